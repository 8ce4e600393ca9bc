"""The base of the parts of the store: the prefix of their keys, and the tenants' event ids."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import attrs
from twisted.internet.interfaces import IReactorTime

from ...eventids import EventIds, newTail
from ...scopes import tenantOf
from .batches import Batches
from .gateway import Etcd


class TenantIds:
    """
    The tenants' event ids. Each tenant has positions of its own, and a tail of its own, so that no two events of
    different tenants have the same id.

    :ivar tail: the registry's; the tenants' are made of it.
    """

    def __init__(self, wallClock: Callable[[], float]) -> None:
        self.tail = ""
        self._wallClock = wallClock
        self._ids: dict[str, EventIds] = {}

    def of(self, tenant: str) -> EventIds:
        """The event ids of one tenant, which may be given by one of its scopes."""
        tenant = tenantOf(tenant)
        ids = self._ids.get(tenant)
        if ids is None:
            drawn = int.from_bytes(blake2b(f"{self.tail} {tenant}".encode(), digest_size=8).digest(), "big")
            ids = self._ids[tenant] = EventIds(self._wallClock, newTail(lambda bits: drawn & (1 << bits) - 1))
        return ids


@attrs.define(eq=False)
class Part:
    """A part of the store. *prefix* is that of all keys; *wallClock* returns seconds since the epoch."""

    _etcd: Etcd
    _batches: Batches
    _prefix: str
    _ids: TenantIds
    _clock: IReactorTime
    _wallClock: Callable[[], float]

    def _milliseconds(self) -> int:
        return int(self._wallClock() * 1000)
