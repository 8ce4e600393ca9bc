"""
The states of services in etcd, each under a key of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial

from ..interfaces import LimitExceeded
from ..states import StateRecord, stateEvents
from .batches import Batches, TenantClock, Transaction
from .gateway import PAGE, Etcd, KeyValue, endOf, reading


class EtcdStates:
    """
    The states of all tenants' services.

    :param etcd: where they are.
    :param batches: makes the changes.
    :param milliseconds: the wall clock, in milliseconds since the epoch.
    :param prefix: of all keys.
    """

    def __init__(self, etcd: Etcd, batches: Batches, milliseconds: Callable[[], int], prefix: str) -> None:
        self._etcd = etcd
        self._batches = batches
        self._milliseconds = milliseconds
        self._prefix = prefix

    def key(self, tenant: str, id: str) -> str:
        """The key of a record."""
        return f"{self._prefix}states/{tenant}/{id}"

    def inTransaction(self, transaction: Transaction, tenant: str, id: str) -> StateRecord | None:
        """The record of an id whose key the step reads, unless it is over."""
        if not transaction.clock.states:
            return None
        record = _record(id, transaction.get(self.key(tenant, id))).at(self._milliseconds())
        return None if record.isDefault else record

    async def page(
        self,
        tenant: str,
        begin: str,
        end: str,
        count: int,
        states: bool,
        revision: int = 0,
    ) -> tuple[list[KeyValue], dict[str, StateRecord], int]:
        """
        Read services, and the records of their ids at the same moment.

        :param begin: the first service's key, and *end* the key after the last.
        :param states: whether to read records, if the tenant has any.
        :param revision: read all as it was at this revision (0: now).
        :return: up to *count* keys of services, the records by id, and etcd's revision.
        """
        clock = f"{self._prefix}clocks/{tenant}"
        clocks = [reading(clock, revision=revision)] if states else []
        done = await self._etcd.txn((), [reading(begin, end, count, revision), *clocks])
        found, *counts = [kept or [] for kept in done.found]
        revision = revision or done.revision
        records: dict[str, StateRecord] = {}
        if found and counts and counts[0] and TenantClock.of(counts[0][0]).states:
            first, last = (self.key(tenant, found[index].key.rpartition("/")[2]) for index in (0, -1))
            now = self._milliseconds()
            kept = await self._etcd.all(first, f"{last}\0", revision=revision)
            shown = (self._recordOf(each).at(now) for each in kept)
            records = {record.id: record for record in shown if not record.isDefault}
        return found, records, revision

    async def set(self, tenant: str, record: StateRecord, maximum: int) -> bool:
        """See :meth:`IStore.setState`."""
        key = self.key(tenant, record.id)

        def change(transaction: Transaction) -> bool:
            return self._replace(transaction, tenant, record, maximum)

        return await self._batches.do(tenant, [key], change)

    def _replace(self, transaction: Transaction, tenant: str, record: StateRecord, maximum: int) -> bool:
        key = self.key(tenant, record.id)
        value = transaction.get(key)
        if record.isDefault:
            if value is None:
                return False
            transaction.delete(key)
            transaction.clock.states -= 1
        else:
            if value is None:
                if transaction.clock.states >= maximum:
                    raise LimitExceeded(maximum)
                transaction.clock.states += 1
            transaction.put(key, _value(record))
        events = list(stateEvents(_record(record.id, value), record, self._milliseconds()))
        for payload, timestamp in events:
            transaction.addEvent("service.state", payload, timestamp)
        return bool(events)

    async def get(self, tenant: str, id: str) -> StateRecord:
        """See :meth:`IStore.getState`."""
        found = await self._etcd.get(self.key(tenant, id))
        return _record(id, None if found is None else found.value).at(self._milliseconds())

    async def list(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        """See :meth:`IStore.listStates`."""
        prefix, now = self.key(tenant, ""), self._milliseconds()
        begin = prefix + (marker or "")
        records: list[StateRecord] = []
        while True:
            found, _ = await self._etcd.range(begin, endOf(prefix), PAGE)
            records += [record for each in found if not (record := self._recordOf(each).at(now)).isDefault]
            if len(found) < PAGE or len(records) >= count:
                return records[:count]
            begin = found[-1].key + "\0"

    async def end(self) -> tuple[Collection[str], int | None]:
        """See :meth:`IStore.endStates`."""
        now = self._milliseconds()
        kept = [(*self._nameOf(each), each.value) for each in await self._etcd.all(f"{self._prefix}states/")]
        ended: set[str] = set()
        for tenant, id, value in kept:
            if _record(id, value).at(now) != _record(id, value) and await self._remove(tenant, id, value):
                ended.add(tenant)
        ends = [end for _, id, value in kept if (end := _record(id, value).ends) is not None and end > now]
        return ended, min(ends, default=None)

    async def _remove(self, tenant: str, id: str, value: bytes) -> bool:
        """Remove a record if it still has this value."""
        key = self.key(tenant, id)

        def remove(transaction: Transaction) -> bool:
            return transaction.get(key) == value and self._replace(transaction, tenant, StateRecord(id), 0)

        return await self._batches.do(tenant, [key], remove)

    async def drop(self, before: int) -> Collection[str]:
        """See :meth:`IStore.dropStates`."""
        names = [self._nameOf(each) for each in await self._etcd.all(f"{self._prefix}states/")]
        changes = [
            self._batches.do(
                name[0], [self.key(*name), self._serviceKey(*name)], partial(self._dropUnused, before, *name)
            )
            for name in names
        ]
        return {tenant for (tenant, _), change in zip(names, changes, strict=True) if await change}

    def _dropUnused(self, before: int, tenant: str, id: str, transaction: Transaction) -> bool:
        value = transaction.get(self.key(tenant, id))
        if value is None:
            return False
        since = json.loads(value)["unused"]
        if transaction.get(self._serviceKey(tenant, id)) is not None:
            self.used(transaction, tenant, id)
        elif since is None:
            transaction.put(self.key(tenant, id), _value(_record(id, value), self._milliseconds()))
        elif since < before:
            return self._replace(transaction, tenant, StateRecord(id), 0)
        return False

    def used(self, transaction: Transaction, tenant: str, id: str) -> None:
        """Note that there is a service with this id, whose key of the state the step reads."""
        value = transaction.get(self.key(tenant, id)) if transaction.clock.states else None
        if value is not None and json.loads(value)["unused"] is not None:
            transaction.put(self.key(tenant, id), _value(_record(id, value)))

    def _serviceKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}services/{tenant}/{id}"

    def _recordOf(self, found: KeyValue) -> StateRecord:
        return _record(self._nameOf(found)[1], found.value)

    def _nameOf(self, found: KeyValue) -> tuple[str, str]:
        tenant, id = found.key[len(self._prefix) + len("states/") :].split("/", 1)
        return tenant, id


def _record(id: str, value: bytes | None) -> StateRecord:
    if value is None:
        return StateRecord(id)
    kept = json.loads(value)
    return StateRecord(id, kept["state"], kept["reason"], kept["ends"])


def _value(record: StateRecord, unused: int | None = None) -> bytes:
    """As a record is kept, with the moment since when its id has had no service."""
    kept = {"v": 1, "state": record.state, "reason": record.reason, "ends": record.ends, "unused": unused}
    return json.dumps(kept, separators=(",", ":")).encode("ascii")
