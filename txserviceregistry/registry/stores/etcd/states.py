"""
The states of services in etcd, each under a key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from ....util.deferred import returnsDeferred
from ..interfaces import LimitExceeded, StateRecord, StoreUnavailable
from ..payloads import stateEvents
from .batches import TenantClock, Transaction
from .gateway import KeyValue, endOf, jsonBytes, reading
from .kept import readKept, understood
from .part import Part

_FIELDS = {"state": str, "reason": str, "ends": int | None, "unused": int | None}


@attrs.define(eq=False)
class EtcdStates(Part):
    def key(self, tenant: str, id: str) -> str:
        return f"{self._prefix}states/{tenant}/{id}"

    def _nameOf(self, found: KeyValue) -> tuple[str, str]:
        _, tenant, id = found.key[len(self._prefix) :].split("/", 2)
        return tenant, id

    def shown(self, found: Collection[KeyValue]) -> list[StateRecord]:
        """The records that have not ended."""
        now = self._milliseconds()
        records = (self._record(*self._nameOf(each), each.value).at(now) for each in found)
        return [record for record in records if not record.isDefault]

    def inTransaction(self, transaction: Transaction, tenant: str, id: str) -> StateRecord | None:
        """The record of an id whose key the step reads, unless it is over."""
        if not transaction.clock.states:
            return None
        record = self._record(tenant, id, transaction.get(self.key(tenant, id))).at(self._milliseconds())
        return None if record.isDefault else record

    async def page(
        self, tenant: str, begin: str, end: str, count: int, states: bool, revision: int = 0
    ) -> tuple[list[KeyValue], dict[str, StateRecord], int]:
        """
        Read services, and the records of their ids at the same moment.

        :param begin: the first service's key, and *end* the key after the last.
        :param states: whether to read records, if the tenant has any.
        :param revision: read all as it was at this revision (0: now).
        :return: up to *count* keys of services, the records by id, and etcd's revision.
        """
        clocks = [reading(f"{self._prefix}clocks/{tenant}", revision=revision)] if states else []
        done = await self._etcd.txn((), [reading(begin, end, count, revision), *clocks])
        found, *counts = done.found
        revision = revision or done.revision
        if not found or not counts or not counts[0] or not TenantClock.of(counts[0][0]).states:
            return found, {}, revision
        first, last = (self.key(tenant, found[index].key.rpartition("/")[2]) for index in (0, -1))
        kept = await self._etcd.all(first, f"{last}\0", revision=revision)
        return found, {record.id: record for record in self.shown(kept)}, revision

    @returnsDeferred
    async def set(self, tenant: str, record: StateRecord, maximum: int) -> bool:
        return await self._batches.do(
            tenant,
            [self.key(tenant, record.id)],
            lambda transaction: self._replace(transaction, tenant, record, maximum),
        )

    def _replace(self, transaction: Transaction, tenant: str, record: StateRecord, maximum: int) -> bool:
        key, clock = self.key(tenant, record.id), transaction.clock
        value = transaction.get(key)
        if record.isDefault and value is None:
            return False
        if record.isDefault:
            transaction.delete(key)
            clock.states -= 1
        else:
            if value is None and clock.states >= maximum:
                raise LimitExceeded(maximum)
            clock.states += value is None
            transaction.put(key, _value(record))
        events = list(stateEvents(self._record(tenant, record.id, value), record, self._milliseconds()))
        for payload, timestamp in events:
            transaction.addEvent("service.state", payload, timestamp)
        return bool(events)

    @returnsDeferred
    async def get(self, tenant: str, id: str) -> StateRecord:
        found = await self._etcd.get(self.key(tenant, id))
        return self._record(tenant, id, None if found is None else found.value).at(self._milliseconds())

    @returnsDeferred
    async def list(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        prefix = self.key(tenant, "")
        records: list[StateRecord] = []
        async for found in self._etcd.pages(prefix + (marker or ""), endOf(prefix)):
            records += self.shown(found)
            if len(records) >= count:
                break
        return records[:count]

    @returnsDeferred
    async def end(self) -> tuple[Collection[str], int | None]:
        now = self._milliseconds()
        ends: list[int] = []
        ended: list[KeyValue] = []
        for each in await self._etcd.all(f"{self._prefix}states/"):
            with understood(each.key):
                end = self._record(*self._nameOf(each), each.value).ends
                if end is not None and end > now:
                    ends.append(end)
                elif end is not None:
                    ended.append(each)
        return await self._changeAll(ended, self._removeEnded), min(ends, default=None)

    def _removeEnded(self, found: KeyValue, tenant: str, id: str, transaction: Transaction) -> bool:
        isSame = transaction.get(found.key) == found.value
        return isSame and self._replace(transaction, tenant, StateRecord(id), 0)

    @returnsDeferred
    async def drop(self, before: int) -> Collection[str]:
        return await self._changeAll(await self._etcd.all(f"{self._prefix}states/"), partial(self._dropUnused, before))

    async def _changeAll(
        self, records: Collection[KeyValue], act: Callable[[KeyValue, str, str, Transaction], bool]
    ) -> Collection[str]:
        """Let *act* change records, in as few transactions as possible; returns the tenants where it returns true."""
        changes: list[tuple[str, Deferred[bool]]] = []
        for each in records:
            with understood(each.key):
                tenant, id = self._nameOf(each)
                reads = [each.key, self._serviceKey(tenant, id)]
                changes.append((tenant, self._batches.do(tenant, reads, partial(act, each, tenant, id))))
        changed: set[str] = set()
        for tenant, change in changes:
            # A record that cannot be changed now is tried again later.
            with suppress(StoreUnavailable):
                if await change:
                    changed.add(tenant)
        return changed

    def _dropUnused(self, before: int, found: KeyValue, tenant: str, id: str, transaction: Transaction) -> bool:
        value = transaction.get(found.key)
        if value is None:
            return False
        since = self._kept(tenant, id, value)["unused"]
        if transaction.get(self._serviceKey(tenant, id)) is not None:
            self.used(transaction, tenant, id)
        elif since is None:
            transaction.put(self.key(tenant, id), _value(self._record(tenant, id, value), self._milliseconds()))
        elif since < before:
            return self._replace(transaction, tenant, StateRecord(id), 0)
        return False

    def used(self, transaction: Transaction, tenant: str, id: str) -> None:
        """Note that there is a service with this id, whose key of the state the step reads."""
        value = transaction.get(self.key(tenant, id)) if transaction.clock.states else None
        if value is not None and self._kept(tenant, id, value)["unused"] is not None:
            transaction.put(self.key(tenant, id), _value(self._record(tenant, id, value)))

    def _serviceKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}services/{tenant}/{id}"

    def _kept(self, tenant: str, id: str, value: bytes) -> dict[str, Any]:
        return readKept(self.key(tenant, id), value, _FIELDS)

    def _record(self, tenant: str, id: str, value: bytes | None) -> StateRecord:
        if value is None:
            return StateRecord(id)
        kept = self._kept(tenant, id, value)
        return StateRecord(id, kept["state"], kept["reason"], kept["ends"])


def _value(record: StateRecord, unused: int | None = None) -> bytes:
    """As a record is kept, with the moment since when its id has had no service."""
    return jsonBytes({"v": 1, "state": record.state, "reason": record.reason, "ends": record.ends, "unused": unused})
