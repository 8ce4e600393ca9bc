"""
What a service may be, by the protocol: checked where it is written, so that a slip is not found out in a log.

Only what no registry takes is refused here. How many tags and pairs there may be, how long each, and which characters,
the registry has the last word on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["HEARTBEAT_TIMEOUTS", "SERVICE_ID", "checkedId", "checkedMetadata", "checkedTags", "checkedTimeout"]

#: What the id of a service is made of.
SERVICE_ID = re.compile(r"[A-Za-z0-9_.\-]{3,65}", re.ASCII)
#: The heartbeat timeouts, in seconds.
HEARTBEAT_TIMEOUTS = range(3, 121)

_ID_LENGTHS = range(3, 66)


def checkedId(serviceId: Any) -> str:
    """
    The id of a service.

    :raises TypeError: if it is no string.
    :raises ValueError: if it is too short or too long.
    """
    right = "a service's id is a string of 3 to 65 characters: a-z A-Z 0-9 _ - ."
    if not isinstance(serviceId, str):
        raise TypeError(f"serviceId is {serviceId!r}, but {right}")
    if len(serviceId) not in _ID_LENGTHS:
        raise ValueError(f"serviceId is {serviceId!r}, but {right}")
    return serviceId


def checkedTimeout(heartbeatTimeout: Any) -> int:
    """
    A heartbeat timeout, in seconds.

    :raises TypeError: if it is no number.
    :raises ValueError: if it is none of :data:`HEARTBEAT_TIMEOUTS`.
    """
    wrong = f"heartbeatTimeout is {heartbeatTimeout!r}, but it has to be a whole number of seconds from 3 to 120"
    if not isinstance(heartbeatTimeout, (int, float)):
        raise TypeError(wrong)
    # 30.0 is in the range, and is one to the protocol too.
    if heartbeatTimeout not in HEARTBEAT_TIMEOUTS:
        raise ValueError(wrong)
    return int(heartbeatTimeout)


def checkedTags(tags: Any) -> list[str]:
    """
    Tags.

    :raises TypeError: if they are no strings, or a single one, whose characters nobody means.
    """
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise TypeError(f"tags is {tags!r}, but it has to be a list of strings, such as ['www']")
    checked = list(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise TypeError(f"{tag!r} is in tags, but each tag has to be a string")
    return checked


def checkedMetadata(metadata: Any) -> dict[str, str]:
    """
    Metadata; ``None`` stands for none.

    :raises TypeError: if they are no mapping of strings to strings.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is {metadata!r}, but it has to be a mapping of strings to strings")
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is a key of metadata, but each has to be a string")
        if not isinstance(value, str):
            raise TypeError(f"metadata[{key!r}] is {value!r}, but each value has to be a string")
    return dict(metadata)
