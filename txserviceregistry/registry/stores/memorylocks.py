"""
The locks of the memory store.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, execute
from zope.interface import implementer

from ..scopes import tenantOf
from .interfaces import Expiration, LimitExceeded, NoSuchObject, ServiceSummary
from .locks import ILockStore, LockRecord, LockTaken, NewLock


class AddEvent(Protocol):
    """Adds an event to a tenant's feed."""

    def __call__(self, tenant: str, type: str, payload: Mapping[str, Any], timestamp: int | None = None) -> str:
        """
        :param timestamp: in milliseconds since the epoch; now if not given.
        :return: its id.
        """


@implementer(ILockStore)
class MemoryLocks:
    """
    :param check: raises :class:`StoreUnavailable` if the store is not available.
    :param addEvent: adds an event to a tenant's feed; returns its id.
    """

    def __init__(self, check: Callable[[], None], addEvent: AddEvent) -> None:
        self._check = check
        self._addEvent = addEvent
        self._tenants: defaultdict[str, dict[str, LockRecord]] = defaultdict(dict)
        self._fences: defaultdict[str, int] = defaultdict(int)

    def acquire(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> Deferred[LockRecord]:
        def acquire() -> LockRecord:
            self._check()
            locks = self._tenants[tenant]
            if lock.name in locks:
                raise LockTaken(locks[lock.name])
            if len(locks) >= maximum:
                raise LimitExceeded(maximum)
            self._fences[tenant] = max(self._fences[tenant] + 1, fence)
            record = LockRecord.of(lock, "", self._fences[tenant], now)
            incarnation = self._addEvent(tenant, "lock.acquire", record.shown())
            locks[lock.name] = attrs.evolve(record, incarnation=incarnation)
            return locks[lock.name]

        return execute(acquire)

    def _find(self, tenant: str, name: str, incarnation: str | None = None) -> LockRecord:
        self._check()
        record = self._tenants[tenant].get(name)
        if record is None or incarnation not in (None, record.incarnation):
            raise NoSuchObject(name)
        return record

    def get(self, tenant: str, name: str) -> Deferred[LockRecord]:
        return execute(self._find, tenant, name)

    def list(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> Deferred[list[LockRecord]]:
        def found() -> list[LockRecord]:
            self._check()
            locks = sorted(self._tenants[tenant].items())
            return [one for name, one in locks if name >= (marker or "") and one.incarnation not in hidden][:count]

        return execute(found)

    def force(self, tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        def force() -> LockRecord:
            record = attrs.evolve(self._find(tenant, name, incarnation), isForced=True)
            self._tenants[tenant][name] = record
            return record

        return execute(force)

    def _remove(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        record = self._find(tenant, name, incarnation)
        del self._tenants[tenant][name]
        return record

    def release(self, tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        def release() -> None:
            record = self._remove(tenant, name, incarnation)
            self._addEvent(tenant, "lock.release", attrs.evolve(record, isForced=isForced).ended())

        return execute(release)

    def expire(self, expirations: Sequence[Expiration]) -> Deferred[None]:
        def expire() -> None:
            self._check()
            for each in expirations:
                tenant = tenantOf(each.tenant)
                try:
                    record = self._remove(tenant, each.id, each.incarnation)
                except NoSuchObject:
                    continue
                self._addEvent(tenant, "lock.expire", record.ended(), each.timestamp)

        return execute(expire)

    def all(self) -> Deferred[Sequence[ServiceSummary]]:
        def summaries() -> Sequence[ServiceSummary]:
            self._check()
            return [one.summary(tenant) for tenant, locks in self._tenants.items() for one in locks.values()]

        return execute(summaries)
