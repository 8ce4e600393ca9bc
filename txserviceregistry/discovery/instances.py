"""
Where to connect: the address that a service gives of itself in its metadata.

The protocol says nothing of addresses. The keys that are looked at here are those that its clients have always used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from ..types import Service

#: The metadata keys that may hold the host, and the port: the first that is there and not empty counts.
HOST_KEYS = ("host", "address", "ip", "service.host")
PORT_KEYS = ("port", "service.port")

#: The metadata key with the name that an instance's TLS certificate is for, if that is not its host.
TLS_NAME_KEY = "tls.name"

_PORT = re.compile(r"[0-9]{1,5}")
# A host name (in ASCII, which all names have) or an IP address. What is more (a URL, a blank) is somebody's mistake.
_HOST = re.compile(r"(?:(?![/?#@\[\]\\])[!-~])+")
_HIGHEST_PORT = 65535

#: What tells one instance from another: a service that comes back at another address is another instance.
Key = tuple[str, str, int]


class Unusable(ValueError):
    """A service does not say where it is; the text says what is wrong."""


@attrs.frozen
class Instance:
    """
    A service that can be connected to.

    :ivar id: the service's id.
    :ivar host: a host name, or an IP address without brackets.
    :ivar port: the port's number.
    :ivar metadata: the service's metadata.
    :ivar tags: the service's tags.
    :ivar key: the id and the address.
    """

    id: str
    host: str
    port: int
    metadata: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    tags: tuple[str, ...] = attrs.field(default=(), eq=False)
    key: Key = attrs.field(init=False, eq=False, repr=False)

    @key.default
    def _makeKey(self) -> Key:
        return (self.id, self.host, self.port)

    @property
    def isEnabled(self) -> bool:
        """Whether its metadata lets it be picked: ``status=disabled`` takes an instance out, and keeps it running."""
        return self.metadata.get("status") != "disabled"

    @property
    def tlsName(self) -> str:
        """The name that its certificate has to be for."""
        name = self.metadata.get(TLS_NAME_KEY, "").strip()
        return name if _HOST.fullmatch(name) else self.host

    @property
    def netloc(self) -> str:
        """The address as it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.id} at {self.netloc}"


def _first(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = metadata.get(key, "").strip()
        if value:
            return value
    raise Unusable(f"its metadata has no {keys[0]!r}")


def readInstance(service: Service) -> Instance:
    """
    Where a service is.

    :raises Unusable: if it does not say so.
    """
    metadata = service["metadata"]
    host = _first(metadata, HOST_KEYS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _HOST.fullmatch(host):
        raise Unusable(f"{host!r} in its metadata is no host")
    port = _first(metadata, PORT_KEYS)
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Unusable(f"{port!r} in its metadata is no port from 1 to {_HIGHEST_PORT}")
    return Instance(service["id"], host, int(port), metadata, tuple(service["tags"]))


def instanceOf(service: Service) -> Instance | None:
    """
    Where a service is.

    :param service: a service, as the registry gives it.
    :return: the instance, or ``None`` if the service does not say where it is.
    """
    try:
        return readInstance(service)
    except Unusable:
        return None
