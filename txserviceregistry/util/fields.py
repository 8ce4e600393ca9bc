"""
The rules of the protocol for services and configuration keys, their checks before a request is sent, and the metadata
that load balancers read.

Only values that no registry accepts are refused here. The registry checks the number of tags and pairs, their lengths
and their characters. The protocol defines no metadata: the keys are those that its clients have always used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..types import Service

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
#: A host name in ASCII, or an IP address; not a URL, and no blanks.
HOST = re.compile(r"(?:(?![/?#@\[\]\\])[!-~])+")

#: The rules for ids and keys in words, for messages.
ID_RULE = "3 to 65 characters of a-z A-Z 0-9 _ - ."
KEY_RULE = "3 to 170 characters of a-z A-Z 0-9 _ - ., after namespaces of 3 to 50 if any, as in /production/web/workers"

_HIGHEST_PORT = 65535
_HIGHEST_WEIGHT = 1000
_DEFAULT_WEIGHT = 100


def checkedId(serviceId: Any) -> str:
    """The id of a service, or ``TypeError`` or ``ValueError``."""
    wrong = f"serviceId is {serviceId!r}, but a service's id is a string of {ID_RULE}"
    if not isinstance(serviceId, str):
        raise TypeError(wrong)
    if not SERVICE_ID.fullmatch(serviceId):
        raise ValueError(wrong)
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


def checkedHealthCheck(check: Any) -> Any:
    """A health check or ``None``, or ``TypeError`` if it can't be called."""
    if check is not None and not callable(check):
        raise TypeError(
            f"check is {type(check).__name__}, but it has to be a function: check=healthy, not check=healthy()"
        )
    return check


class Unusable(ValueError):
    """A service has no valid address; the text says why."""


def readAddress(metadata: Mapping[str, str]) -> tuple[str, int]:
    """A service's host, which is a name or an IP address without brackets, and its port, or :class:`Unusable`."""
    host, port = (_first(metadata, keys) for keys in (HOST_KEYS, PORT_KEYS))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not HOST.fullmatch(host):
        raise Unusable(f"{host!r} in its metadata is not a host")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Unusable(f"{port!r} in its metadata is not a port from 1 to {_HIGHEST_PORT}")
    return host, int(port)


def _first(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    value = next(filter(None, (metadata.get(key, "").strip() for key in keys)), None)
    if value is None:
        raise Unusable(f"its metadata have no {keys[0]!r}")
    return value


def netloc(host: str, port: int) -> str:
    """An address as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def isEnabled(metadata: Mapping[str, str]) -> bool:
    """Whether ``status=disabled`` in a service's metadata does not prevent that it is used."""
    return metadata.get("status") != "disabled"


def weightOf(metadata: Mapping[str, str]) -> int:
    """The weight of a service, from 0 to 1000: 100 unless its metadata have a valid one."""
    text = metadata.get("weight", "")
    isValid = re.fullmatch("[0-9]{1,4}", text) and int(text) <= _HIGHEST_WEIGHT
    return int(text) if isValid else _DEFAULT_WEIGHT


def takesWork(service: Service) -> bool:
    """
    Whether new work may go to a service: not while its state is ``drain`` or ``out``, its weight is 0, or its metadata
    have ``status=disabled``.
    """
    metadata = service["metadata"]
    return service.get("state", "up") == "up" and isEnabled(metadata) and weightOf(metadata) > 0
