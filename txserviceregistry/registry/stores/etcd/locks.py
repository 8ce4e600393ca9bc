"""
Locks in etcd: registrations of the scopes of their tenants' locks (:mod:`~txserviceregistry.registry.scopes`), on which
the nodes vote as on services.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from ....util.deferred import returnsDeferred
from ...model import NewLock
from ...scopes import lockScope
from ..interfaces import LimitExceeded, LockRecord, LockTaken
from .batches import Transaction
from .gateway import endOf, jsonBytes
from .kept import Fields
from .registrations import Registrations

# The fields of a record, without its position.
_FIELDS: Fields = {
    "timeout": int,
    "holder": str,
    "nonce": str | None,
    "metadata": dict,
    "fence": int,
    "acquired": int,
    "isForced": bool,
}


@attrs.define(eq=False)
class EtcdLocks(Registrations):
    kind = "locks"
    touches = "seen-locks"
    expiration = "lock.expire"
    fields = {"position": int, **_FIELDS}

    def _scope(self, tenant: str) -> str:
        return lockScope(tenant)

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any]) -> LockRecord:
        incarnation = self._incarnation(tenant, kept)
        return LockRecord(name=id, incarnation=incarnation, **{field: kept[field] for field in _FIELDS})

    @returnsDeferred
    async def acquire(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> LockRecord:
        scope = lockScope(tenant)
        key = self._recordKey(scope, lock.name)

        def acquire(transaction: Transaction) -> tuple[dict[str, Any], Transaction]:
            value, clock = transaction.get(key), transaction.clock
            if value is not None:
                raise LockTaken(self._record(scope, lock.name, self._readRecord(key, value)))
            if clock.locks >= maximum:
                raise LimitExceeded(maximum)
            clock.locks += 1
            clock.fence = max(clock.fence + 1, fence)
            record = LockRecord.of(lock, "", clock.fence, now)
            kept = _kept(transaction.addEvent("lock.acquire", record.shown()), record)
            transaction.put(key, jsonBytes(kept))
            return kept, transaction

        kept, transaction = await self._batches.do(scope, [key], acquire)
        self._made(scope, lock.name, kept, transaction.made)
        return self._record(scope, lock.name, kept)

    @returnsDeferred
    async def get(self, tenant: str, name: str) -> LockRecord:
        scope = lockScope(tenant)
        (found,) = await self._find(scope, name)
        return self._record(scope, name, self._readRecord(found.key, found.value))

    @returnsDeferred
    async def list(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> list[LockRecord]:
        scope = lockScope(tenant)
        prefix = self._recordKey(scope, "")
        locks: list[LockRecord] = []
        async for found in self._etcd.pages(prefix + (marker or ""), endOf(prefix)):
            records = [self._record(*self._name(each.key), self._readRecord(each.key, each.value)) for each in found]
            locks += [record for record in records if record.incarnation not in hidden]
            if len(locks) >= count:
                break
        return locks[:count]

    @returnsDeferred
    async def force(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        scope = lockScope(tenant)

        def force(transaction: Transaction) -> LockRecord:
            kept = {**self._recordIn(transaction, scope, name, incarnation), "isForced": True}
            transaction.put(self._recordKey(scope, name), jsonBytes(kept))
            return self._record(scope, name, kept)

        return await self._batches.do(scope, [self._recordKey(scope, name)], force)

    @returnsDeferred
    async def release(self, tenant: str, name: str, incarnation: str, isForced: bool) -> None:
        await self._endNow(lockScope(tenant), name, incarnation, "lock.release", isForced=isForced)

    def _payload(self, record: LockRecord) -> Mapping[str, Any]:
        return record.ended()


def _kept(position: int, record: LockRecord) -> dict[str, Any]:
    return {"v": 1, "position": position, **attrs.asdict(record, filter=attrs.filters.include(*_FIELDS))}
