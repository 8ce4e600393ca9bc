"""
The rules of the protocol for services and configuration keys, and their checks before a request is sent.

Only values that no registry accepts are refused here. The registry checks the number of tags and pairs, their lengths
and their characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

#: The id of a service.
SERVICE_ID = re.compile(r"[A-Za-z0-9_.\-]{3,65}", re.ASCII)
#: A configuration key of 3 to 500 characters: the protocol's own pattern.
KEY = re.compile(r"(?!.*/$)(?=.{3,500}$)(/[A-Za-z0-9_\-]{3,50}/?){0,10}([A-Za-z0-9_\-.]{3,170})?", re.ASCII)
#: The values of ``If-Match``: ``*``, or a list of tags. It means the same to Python and to ECMAScript.
ETAGS = re.compile('[*]|[ \t,]*(W/)?"[!#-~]*"[ \t]*(,[ \t]*((W/)?"[!#-~]*"[ \t]*)?)*', re.ASCII)
#: The heartbeat timeouts, in seconds.
HEARTBEAT_TIMEOUTS = range(3, 121)

#: The metadata keys that may have the host of a service, and its port: the first one that is not empty is used.
HOST_KEYS = ("host", "address", "ip", "service.host")
PORT_KEYS = ("port", "service.port")

#: The rules for ids and keys in words, for messages.
ID_RULE = "3 to 65 characters of a-z A-Z 0-9 _ - ."
KEY_RULE = "3 to 170 characters of a-z A-Z 0-9 _ - ., after namespaces of 3 to 50 if any, as in /production/web/workers"


def checkedId(serviceId: Any) -> str:
    """The id of a service, or ``TypeError`` or ``ValueError``."""
    right = f"a service's id is a string of {ID_RULE}"
    if not isinstance(serviceId, str):
        raise TypeError(f"serviceId is {serviceId!r}, but {right}")
    if not SERVICE_ID.fullmatch(serviceId):
        raise ValueError(f"serviceId is {serviceId!r}, but {right}")
    return serviceId


def checkedTimeout(heartbeatTimeout: Any) -> int:
    """A heartbeat timeout, in seconds, or ``TypeError`` or ``ValueError``."""
    wrong = f"heartbeatTimeout is {heartbeatTimeout!r}, but it has to be a whole number of seconds from 3 to 120"
    if not isinstance(heartbeatTimeout, (int, float)):
        raise TypeError(wrong)
    # 30.0 is in the range, and a whole number in the protocol too.
    if heartbeatTimeout not in HEARTBEAT_TIMEOUTS:
        raise ValueError(wrong)
    return int(heartbeatTimeout)


def checkedTags(tags: Any) -> list[str]:
    """Tags, or ``TypeError`` if they are not strings, or are a single string."""
    if isinstance(tags, (str, bytes)) or not isinstance(tags, Iterable):
        raise TypeError(f"tags is {tags!r}, but it has to be a list of strings, such as ['www']")
    checked = list(tags)
    for tag in checked:
        if not isinstance(tag, str):
            raise TypeError(f"{tag!r} is in tags, but each tag has to be a string")
    return checked


def checkedHealthCheck(check: Any) -> Any:
    """A health check or ``None``, or ``TypeError`` if it can't be called."""
    if check is not None and not callable(check):
        raise TypeError(
            f"check is {type(check).__name__}, but it has to be a function: check=healthy, not check=healthy()"
        )
    return check


def checkedMetadata(metadata: Any) -> dict[str, str]:
    """Metadata, ``{}`` for ``None``, or ``TypeError`` if they are not a mapping of strings to strings."""
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
