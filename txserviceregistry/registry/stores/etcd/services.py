"""Services and locks in etcd: the nodes vote on the expiration of both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from ...model import NewLock, NewService, ServiceChanges, lockScope
from ..interfaces import LockRecord, LockTaken, ObjectExists, ServiceRecord, StateRecord
from .batches import Transaction
from .gateway import PAGE
from .keyvalues import KeyValue, endOf, jsonBytes
from .objects import EtcdStates
from .registrations import NEVER, Registrations


@attrs.define(eq=False)
class EtcdServices(Registrations[ServiceRecord]):
    kind = "services"
    touches = "seen"
    expiration = "service.timeout"
    fields = {"position": int, "timeout": int, "tags": list, "metadata": dict}
    _states: EtcdStates

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any]) -> ServiceRecord:
        incarnation = self._incarnation(tenant, kept)
        known = self._byIncarnation.get((tenant, incarnation))
        seen = None if known is None else known.seen
        return ServiceRecord(id, incarnation, kept["timeout"], tuple(kept["tags"]), kept["metadata"], seen)

    async def create(self, tenant: str, service: NewService, maximum: int) -> ServiceRecord:
        id, key = service.id, self.key(tenant, service.id)

        def create(transaction: Transaction) -> tuple[dict[str, Any], StateRecord | None, Transaction]:
            if transaction.get(key) is not None:
                raise ObjectExists(id)
            transaction.count("services", 1, maximum)
            state = self._states.inTransaction(transaction, tenant, id)
            position = transaction.addEvent("service.join", ServiceRecord.of(service, "", state).payload())
            kept = _kept(position, service.heartbeatTimeout, service.tags, service.metadata)
            transaction.put(key, jsonBytes(kept))
            return kept, state, transaction

        kept, state, transaction = await self._batches.do(tenant, create)
        return attrs.evolve(self._made(tenant, id, kept, transaction.made), state=state)

    async def get(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        found, *others = await self._find(tenant, id, *([self._states.key(tenant, id)] if states else []))
        return attrs.evolve(self._recordOf(found), state=self._states.shown(others).get(id))

    async def list(
        self,
        tenant: str,
        marker: str | None,
        count: int,
        tag: str | None,
        hidden: Collection[str],
        states: bool = False,
    ) -> list[ServiceRecord]:
        prefix = self.key(tenant)
        size = PAGE if tag is not None else min(PAGE, count + len(hidden))
        services: list[ServiceRecord] = []
        async for found, revision in self._etcd.pages(prefix + (marker or ""), endOf(prefix), size):
            shown: Mapping[str, StateRecord] = {}
            if states and found:
                # The services and the states of their ids are shown as they were at one moment.
                first, last = (self._states.key(*self._nameOf(found[place].key)) for place in (0, -1))
                shown = self._states.shown(await self._etcd.all(first, last + "\0", revision=revision))
            for record in map(self._recordOf, found):
                if record.incarnation not in hidden and (tag is None or tag in record.tags):
                    services.append(attrs.evolve(record, state=shown.get(record.id)))
            if len(services) >= count:
                break
        return services[:count]

    async def update(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        key, seenKey = self.key(tenant, id), self._seenKey(tenant, id)

        def update(transaction: Transaction) -> tuple[dict[str, Any], Transaction]:
            transaction.need(key, seenKey, self._states.key(tenant, id))
            kept = self._recordIn(transaction, tenant, id, incarnation)
            old = self._record(tenant, id, kept)
            new = old.changed(changes)
            if new != old:
                state = self._states.inTransaction(transaction, tenant, id)
                transaction.addEvent("service.update", attrs.evolve(new, state=state).updatePayload(old))
            kept = _kept(kept["position"], new.heartbeatTimeout, new.tags, new.metadata)
            transaction.put(key, jsonBytes(kept))
            if changes.heartbeatTimeout is not None:
                # A new timeout is a touch, which the watch shows after the record.
                transaction.guard(seenKey)
                transaction.put(seenKey, transaction.get(seenKey) or NEVER)
            return kept, transaction

        kept, transaction = await self._batches.do(tenant, update)
        known = self._byIncarnation.get((tenant, incarnation))
        if known is not None:
            self._keep(tenant, id, kept, known.created, transaction.made)
            # The watch may have shown a later update already.
            kept = {**kept, "timeout": known.timeout}
        return self._record(tenant, id, kept)

    async def remove(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        return await self._endNow(tenant, id, incarnation, "service.remove")


def _kept(position: int, timeout: int, tags: Collection[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"v": 1, "position": position, "timeout": timeout, "tags": tags, "metadata": metadata}


@attrs.define(eq=False)
class EtcdLocks(Registrations[LockRecord]):
    """Locks are the registrations of the scopes of their tenants' locks."""

    kind = "locks"
    touches = "seen-locks"
    expiration = "lock.expire"
    fields = {
        "position": int,
        "timeout": int,
        "holder": str,
        "nonce": str | None,
        "metadata": dict,
        "fence": int,
        "acquired": int,
        "isForced": bool,
    }

    def _nameOf(self, key: str) -> tuple[str, str]:
        tenant, name = super()._nameOf(key)
        return lockScope(tenant), name

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any]) -> LockRecord:
        fields = {name: kept[name] for name in self.fields if name != "position"}
        return LockRecord(name=id, incarnation=self._incarnation(tenant, kept), **fields)

    async def acquire(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> LockRecord:
        scope = lockScope(tenant)
        key = self.key(scope, lock.name)

        def acquire(transaction: Transaction) -> tuple[dict[str, Any], Transaction]:
            value, clock = transaction.get(key), transaction.clock
            if value is not None:
                raise LockTaken(self._record(scope, lock.name, self._kept(key, value)))
            transaction.count("locks", 1, maximum)
            clock.fence = max(clock.fence + 1, fence)
            record = LockRecord.of(lock, "", clock.fence, now)
            fields = attrs.asdict(record, filter=attrs.filters.include(*self.fields))
            kept = {"v": 1, "position": transaction.addEvent("lock.acquire", record.shown()), **fields}
            transaction.put(key, jsonBytes(kept))
            return kept, transaction

        kept, transaction = await self._batches.do(scope, acquire)
        return self._made(scope, lock.name, kept, transaction.made)

    async def get(self, tenant: str, name: str) -> LockRecord:
        (found,) = await self._find(lockScope(tenant), name)
        return self._recordOf(found)

    async def list(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> list[LockRecord]:
        def read(found: KeyValue) -> LockRecord | None:
            record = self._recordOf(found)
            return None if record.incarnation in hidden else record

        return await self._page(tenant, marker, count, read)

    async def force(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        scope = lockScope(tenant)

        def force(transaction: Transaction) -> LockRecord:
            kept = {**self._recordIn(transaction, scope, name, incarnation), "isForced": True}
            transaction.put(self.key(scope, name), jsonBytes(kept))
            return self._record(scope, name, kept)

        return await self._batches.do(scope, force)

    async def release(self, tenant: str, name: str, incarnation: str, isForced: bool) -> None:
        await self._endNow(lockScope(tenant), name, incarnation, "lock.release", isForced=isForced)
