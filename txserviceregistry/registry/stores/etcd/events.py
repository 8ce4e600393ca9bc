"""
The feeds in etcd: events by their positions, which are made with their changes
(:mod:`~txserviceregistry.registry.stores.etcd.batches`), read here, and dropped when they are old.
"""

from __future__ import annotations

import json

from ..interfaces import EventRecord
from .eventids import TenantIds
from .gateway import PAGE, Compare, Etcd, deletion, endOf


class EtcdEvents:
    """
    The events of all tenants.

    :param etcd: where they are.
    :param prefix: of all keys.
    :param ids: the tenants' event ids.
    """

    def __init__(self, etcd: Etcd, prefix: str, ids: TenantIds) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._ids = ids
        self._compactTo = 0

    def _events(self, tenant: str) -> str:
        return f"{self._prefix}events/{tenant}/"

    async def list(self, tenant: str, position: int, count: int, type: str | None) -> list[EventRecord]:
        prefix = self._events(tenant)
        begin, end = f"{prefix}{position:016x}", endOf(prefix)
        events: list[EventRecord] = []
        while True:
            size = PAGE if type is not None else min(PAGE, count - len(events))
            found, _ = await self._etcd.range(begin, end, size)
            for each in found:
                kept = json.loads(each.value)
                if type in (None, kept["type"]):
                    at = self._ids.of(tenant).idAt(int(each.key[len(prefix) :], 16))
                    events.append(EventRecord(at, kept["timestamp"], kept["type"], kept["payload"]))
                    if len(events) == count:
                        return events
            if len(found) < size:
                return events
            begin = found[-1].key + "\0"

    async def has(self, tenant: str, id: str) -> bool:
        position = self._ids.of(tenant).owned(id)
        return position is not None and await self._etcd.get(f"{self._events(tenant)}{position:016x}") is not None

    async def drop(self, before: int) -> int:
        """
        See :meth:`IStore.dropEvents`.

        What other nodes drop at the same time is counted by one of them. Of what etcd keeps of the past, the part from
        before the last call is forgotten too, and so are the marks of nodes that are gone.
        """
        dropped = 0
        for clock in await self._etcd.all(f"{self._prefix}clocks/"):
            prefix = self._events(clock.key.rpartition("/")[2])
            end = f"{prefix}{max(before, 0):016x}"
            while True:
                found, _ = await self._etcd.range(prefix, end, PAGE)
                if not found:
                    break
                await self._etcd.txn((), [deletion(prefix, found[-1].key + "\0")])
                dropped += len(found)
        await self._forgetNodes()
        _, revision = await self._etcd.range(f"{self._prefix}meta")
        if self._compactTo:
            await self._etcd.compact(self._compactTo)
        self._compactTo = revision
        return dropped

    async def _forgetNodes(self) -> None:
        present = {json.loads(each.value).get("commits") for each in await self._etcd.all(f"{self._prefix}nodes/")}
        for mark in await self._etcd.all(f"{self._prefix}commits/"):
            if mark.key.rpartition("/")[2] not in present:
                await self._etcd.txn([Compare(mark.key, mark.modified)], [deletion(mark.key)])
