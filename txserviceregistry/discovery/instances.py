"""Instances: services with the address that their metadata have."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ..types import Service
from ..util.fields import HOST, Unusable, netloc, readAddress, takesWork, weightOf

#: The metadata key with the name that the TLS certificate is for, if that is not the host.
TLS_NAME_KEY = "tls.name"

#: Identifies an instance: a service that is registered again with another address is another instance.
Key = tuple[str, str, int]


@attrs.frozen
class Instance:
    """
    A service that can be connected to.

    :ivar id: the service's id.
    :ivar host: a host name, or an IP address without brackets.
    :ivar port: the port's number.
    :ivar metadata: the service's metadata.
    :ivar tags: the service's tags.
    :ivar isEnabled: whether it may be picked. The state ``drain`` or ``out`` prevents that, as do ``status=disabled``
        and ``weight=0`` in its metadata.
    :ivar weight: its share of new work compared with others, 0 to 1000: ``weight`` in its metadata, 100 by default.
    :ivar key: the id and the address.
    """

    id: str
    host: str
    port: int
    metadata: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    tags: tuple[str, ...] = attrs.field(default=(), eq=False)
    isEnabled: bool = attrs.field(default=True, eq=False, repr=False)
    key: Key = attrs.field(init=False, eq=False, repr=False)
    weight: int = attrs.field(init=False, eq=False, repr=False)

    @key.default
    def _makeKey(self) -> Key:
        return (self.id, self.host, self.port)

    @weight.default
    def _readWeight(self) -> int:
        return weightOf(self.metadata)

    @property
    def tlsName(self) -> str:
        """The name that its TLS certificate has to be for."""
        name = self.metadata.get(TLS_NAME_KEY, "").strip()
        return name if HOST.fullmatch(name) else self.host

    @property
    def netloc(self) -> str:
        """The address as in a URL."""
        return netloc(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.id} at {self.netloc}"


def readInstance(service: Service) -> Instance:
    """A service's instance; raises Unusable if it has no valid address."""
    host, port = readAddress(service["metadata"])
    return Instance(service["id"], host, port, service["metadata"], tuple(service["tags"]), takesWork(service))


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
