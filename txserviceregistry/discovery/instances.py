"""
Instances: services with the address that their metadata have.

The protocol does not define addresses. The metadata keys are those that its clients have always used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from ..types import Service
from ..util.fields import HOST_KEYS, PORT_KEYS

#: The metadata key with the name that the TLS certificate is for, if that is not the host.
TLS_NAME_KEY = "tls.name"

_PORT = re.compile(r"[0-9]{1,5}")
# A host name in ASCII, or an IP address; not a URL, and no blanks.
_HOST = re.compile(r"(?:(?![/?#@\[\]\\])[!-~])+")
_HIGHEST_PORT = 65535

#: Identifies an instance: a service that is registered again with another address is another instance.
Key = tuple[str, str, int]


class Unusable(ValueError):
    """A service has no valid address; the text says why."""


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
        """Whether it may be picked: ``status=disabled`` in its metadata prevents that while it keeps running."""
        return self.metadata.get("status") != "disabled"

    @property
    def tlsName(self) -> str:
        """The name that its TLS certificate has to be for."""
        name = self.metadata.get(TLS_NAME_KEY, "").strip()
        return name if _HOST.fullmatch(name) else self.host

    @property
    def netloc(self) -> str:
        """The address as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.id} at {self.netloc}"


def _first(metadata: Mapping[str, str], keys: tuple[str, ...]) -> str:
    for key in keys:
        value = metadata.get(key, "").strip()
        if value:
            return value
    raise Unusable(f"its metadata have no {keys[0]!r}")


def readInstance(service: Service) -> Instance:
    """
    A service's instance.

    :raises Unusable: if it has no valid address.
    """
    metadata = service["metadata"]
    host = _first(metadata, HOST_KEYS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _HOST.fullmatch(host):
        raise Unusable(f"{host!r} in its metadata is not a host")
    port = _first(metadata, PORT_KEYS)
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= _HIGHEST_PORT:
        raise Unusable(f"{port!r} in its metadata is not a port from 1 to {_HIGHEST_PORT}")
    return Instance(service["id"], host, int(port), metadata, tuple(service["tags"]))


def instanceOf(service: Service) -> Instance | None:
    """
    The instance of a service.

    :param service: a service, as the registry returns it.
    :return: the instance, or ``None`` if the service's metadata have no valid address.
    """
    try:
        return readInstance(service)
    except Unusable:
        return None
