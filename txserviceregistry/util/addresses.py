"""
The metadata of a service for load balancers: its address, its weight, and whether it is enabled.

The protocol does not define any of it. The metadata keys are those that its clients have always used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..types import Service
from .fields import HOST_KEYS, PORT_KEYS

#: A host name in ASCII, or an IP address; not a URL, and no blanks.
HOST = re.compile(r"(?:(?![/?#@\[\]\\])[!-~])+")
_PORT = re.compile(r"[0-9]{1,5}")
_HIGHEST_PORT = 65535
_HIGHEST_WEIGHT = 1000
_DEFAULT_WEIGHT = 100
_WEIGHT = re.compile(r"[0-9]{1,4}", re.ASCII)


class Unusable(ValueError):
    """A service has no valid address; the text says why."""


def readAddress(metadata: Mapping[str, str]) -> tuple[str, int]:
    """A service's host, which is a name or an IP address without brackets, and its port, or :class:`Unusable`."""
    host = _first(metadata, HOST_KEYS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not HOST.fullmatch(host):
        raise Unusable(f"{host!r} in its metadata is not a host")
    port = _first(metadata, PORT_KEYS)
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Unusable(f"{port!r} in its metadata is not a port from 1 to {_HIGHEST_PORT}")
    return host, int(port)


def netloc(host: str, port: int) -> str:
    """An address as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def isEnabled(metadata: Mapping[str, str]) -> bool:
    """Whether ``status=disabled`` in a service's metadata does not prevent that it is used."""
    return metadata.get("status") != "disabled"


def weightOf(metadata: Mapping[str, str]) -> int:
    """The weight of a service, from 0 to 1000: 100 unless its metadata have a valid one."""
    text = metadata.get("weight", "")
    isValid = _WEIGHT.fullmatch(text) and int(text) <= _HIGHEST_WEIGHT
    return int(text) if isValid else _DEFAULT_WEIGHT


def takesWork(service: Service) -> bool:
    """
    Whether new work may go to a service: not while its state is ``drain`` or ``out``, its weight is 0, or its metadata
    have ``status=disabled``.
    """
    metadata = service["metadata"]
    return service.get("state", "up") == "up" and isEnabled(metadata) and weightOf(metadata) > 0


def _first(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = metadata.get(key, "").strip()
        if value:
            return value
    raise Unusable(f"its metadata have no {keys[0]!r}")
