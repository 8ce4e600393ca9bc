"""
Locks in etcd: a record for each, and the time of a touch. The nodes vote on them as on services.

They are registrations of the scope of their tenant's locks (:mod:`~txserviceregistry.registry.scopes`).
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import attrs

from ...model import NewLock
from ...scopes import lockScope, tenantOf
from ..interfaces import LimitExceeded, LockRecord, LockTaken, NoSuchObject, ServiceSummary
from .batches import Transaction
from .gateway import PAGE, KeyValue, Urgency, endOf
from .services import EtcdServices

# What a record holds beside its position.
_FIELDS = ("timeout", "holder", "nonce", "metadata", "fence", "acquired", "isForced")


class LockRegistrations(EtcdServices):
    """The locks of all tenants as registrations. See :class:`EtcdServices`, also for the arguments."""

    def _recordKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}locks/{tenantOf(tenant)}/{id}"

    def _seenKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}seen-locks/{tenantOf(tenant)}/{id}"

    def _name(self, key: str) -> tuple[str, str]:
        tenant, name = super()._name(key)
        return lockScope(tenant), name

    def recordOf(self, scope: str, name: str, value: bytes) -> LockRecord:
        """The record that is in a key."""
        kept: dict[str, Any] = json.loads(value)
        incarnation = self._ids.of(scope).idAt(kept["position"])
        return LockRecord(name=name, incarnation=incarnation, **{field: kept[field] for field in _FIELDS})

    def load(self, records: Collection[KeyValue], seen: Collection[KeyValue], revision: int) -> list[ServiceSummary]:
        """See :meth:`EtcdServices.load`."""
        forced = {self._name(each.key) for each in records if json.loads(each.value)["isForced"]}
        locks = super().load(records, seen, revision)
        return [attrs.evolve(each, isForced=(each.tenant, each.id) in forced) for each in locks]

    def recordChanged(self, now: KeyValue) -> None:
        """See :meth:`EtcdServices.recordChanged`."""
        super().recordChanged(now)
        lock = self.recordOf(*self._name(now.key), now.value)
        if lock.isForced:
            self.listener.appeared(lock.summary(tenantOf(self._name(now.key)[0])))

    def _delete(
        self, transaction: Transaction, tenant: str, id: str, record: Any, type: str, timestamp: int | None = None
    ) -> None:
        value = transaction.get(self._recordKey(tenant, id))
        assert value is not None
        transaction.addEvent("lock.expire", self.recordOf(tenant, id, value).ended(), timestamp)
        self._remove(transaction, tenant, id)

    def _remove(self, transaction: Transaction, scope: str, name: str) -> None:
        transaction.delete(self._recordKey(scope, name))
        transaction.delete(self._seenKey(scope, name))
        transaction.clock.locks -= 1

    # -- operations

    async def acquire(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> LockRecord:
        scope = lockScope(tenant)
        key = self._recordKey(scope, lock.name)

        def acquire(transaction: Transaction) -> tuple[bytes, Transaction]:
            value, clock = transaction.get(key), transaction.clock
            if value is not None:
                raise LockTaken(self.recordOf(scope, lock.name, value))
            if clock.locks >= maximum:
                raise LimitExceeded(maximum)
            clock.locks += 1
            clock.fence = max(clock.fence + 1, fence)
            record = LockRecord.of(lock, "", clock.fence, now)
            position = transaction.addEvent("lock.acquire", record.shown())
            value = _bytes(position, record)
            transaction.put(key, value)
            return value, transaction

        value, transaction = await self._batches.do(scope, [key], acquire)
        self._made(scope, lock.name, value, transaction.revision)
        return self.recordOf(scope, lock.name, value)

    async def read(self, tenant: str, name: str) -> LockRecord:
        scope = lockScope(tenant)
        found = await self._find(scope, name, Urgency.ordinary)
        if found is None:
            raise NoSuchObject(name)
        self._found(scope, name, found)
        return self.recordOf(scope, name, found.value)

    async def page(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> list[LockRecord]:
        scope = lockScope(tenant)
        prefix = self._recordKey(scope, "")
        begin, locks = prefix + (marker or ""), list[LockRecord]()
        while True:
            found, _ = await self._etcd.range(begin, endOf(prefix), PAGE)
            for each in found:
                record = self.recordOf(scope, each.key[len(prefix) :], each.value)
                if record.incarnation not in hidden:
                    locks.append(record)
            if len(locks) >= count or len(found) < PAGE:
                return locks[:count]
            begin = found[-1].key + "\0"

    async def force(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        scope = lockScope(tenant)
        key = self._recordKey(scope, name)

        def force(transaction: Transaction) -> LockRecord:
            record = attrs.evolve(self._taken(transaction, scope, name, incarnation), isForced=True)
            position = self._ids.of(scope).owned(incarnation)
            transaction.put(key, _bytes(position, record))
            return record

        return await self._batches.do(scope, [key], force)

    async def release(self, tenant: str, name: str, incarnation: str, isForced: bool) -> None:
        scope = lockScope(tenant)

        def release(transaction: Transaction) -> Transaction:
            record = self._taken(transaction, scope, name, incarnation)
            self._remove(transaction, scope, name)
            transaction.addEvent("lock.release", attrs.evolve(record, isForced=isForced).ended())
            return transaction

        transaction = await self._batches.do(scope, [self._recordKey(scope, name)], release)
        self._end((scope, incarnation), transaction.revision)

    def _taken(self, transaction: Transaction, scope: str, name: str, incarnation: str) -> LockRecord:
        value = transaction.get(self._recordKey(scope, name))
        record = None if value is None else self.recordOf(scope, name, value)
        if record is None or record.incarnation != incarnation:
            raise NoSuchObject(name)
        return record

    async def all(self) -> list[ServiceSummary]:
        records, seen = [await self._etcd.all(self._prefix + kind) for kind in ("locks/", "seen-locks/")]
        return self.load(records, seen, self._ended)


def _bytes(position: int | None, record: LockRecord) -> bytes:
    kept = attrs.asdict(record, filter=attrs.filters.include(*_FIELDS))
    # Tags make it a registration like that of a service.
    return json.dumps({"v": 1, "position": position, "tags": (), **kept}, separators=(",", ":")).encode("ascii")
