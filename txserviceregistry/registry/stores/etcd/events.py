"""
The feeds in etcd: events by their positions, which are made with their changes
(:mod:`~txserviceregistry.registry.stores.etcd.batches`), read here, and dropped when they are old.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from heapq import merge
from operator import itemgetter

import attrs

from ....util.deferred import returnsDeferred
from ...model import PLAIN_TYPES
from ..interfaces import EventRecord
from .batches import TenantClock, eventsIn, lastPosition
from .gateway import after, deletion, endOf, reading, unchanged
from .kept import Unreadable, readKept
from .part import Part

#: Keys in one read: so many of the largest events, of both kinds, are as much as a response may have.
KEYS = 32


@attrs.define(eq=False)
class EtcdEvents(Part):
    _compactTo: int = 0

    def _prefixes(self, tenant: str) -> tuple[str, str]:
        """Of the keys of the tenant's events: plain ones, and others."""
        return f"{self._prefix}events/{tenant}/", f"{self._prefix}moreevents/{tenant}/"

    @returnsDeferred
    async def list(self, tenant: str, position: int, count: int, types: Collection[str] | None) -> list[EventRecord]:
        isPlain = types is not None and PLAIN_TYPES.issuperset(types)
        prefixes = self._prefixes(tenant)[: 1 if isPlain else 2]
        idAt = self._ids.of(tenant).idAt
        events: list[EventRecord] = []
        # Each key has one event at least.
        size = min(KEYS, count)
        while True:
            # At one revision, so that no event is skipped.
            done = await self._etcd.txn(
                (), [reading(f"{prefix}{position:016x}", endOf(prefix), size) for prefix in prefixes]
            )
            # Events behind the end of a full page may be incomplete.
            ends = [lastPosition(page[-1]) for page in done.found if len(page) == size]
            last = min(ends, default=None)
            found = ((event for key in page for event in eventsIn(key)) for page in done.found)
            for each in merge(*found, key=itemgetter("position")):
                at, type = each["position"], each["type"]
                if last is not None and at > last:
                    break
                if at >= position and (types is None or type in types):
                    events.append(EventRecord(idAt(at), each["timestamp"], type, each["payload"]))
                    if len(events) == count:
                        return events
            if last is None:
                return events
            position = last + 1

    @returnsDeferred
    async def last(self, tenant: str) -> str | None:
        clock = TenantClock.of(await self._etcd.get(f"{self._prefix}clocks/{tenant}"))
        return self._ids.of(tenant).idAt(clock.last) if clock.last else None

    @returnsDeferred
    async def has(self, tenant: str, id: str) -> bool:
        position = self._ids.of(tenant).owned(id)
        if position is None:
            return False
        prefixes = self._prefixes(tenant)
        done = await self._etcd.txn((), [reading(f"{each}{position:016x}", endOf(each), 1) for each in prefixes])
        return any(each["position"] == position for kept in done.found for key in kept for each in eventsIn(key))

    @returnsDeferred
    async def drop(self, before: int) -> int:
        """
        See :meth:`IStore.dropEvents`.

        What other nodes drop at the same time is counted by one of them. Of what etcd keeps of the past, the part from
        before the last call is forgotten too, and so are the marks of nodes that are gone.
        """
        dropped = 0
        for clock in await self._etcd.all(f"{self._prefix}clocks/"):
            for prefix in self._prefixes(clock.key.rpartition("/")[2]):
                end = f"{prefix}{max(before, 0):016x}"
                while True:
                    found, _ = await self._etcd.range(prefix, end, KEYS)
                    if not found:
                        break
                    await self._etcd.txn((), [deletion(prefix, after(found[-1]))])
                    for each in found:
                        with suppress(Unreadable):
                            dropped += len(eventsIn(each))
        await self._forgetNodes()
        _, revision = await self._etcd.range(f"{self._prefix}meta")
        if self._compactTo:
            await self._etcd.compact(self._compactTo)
        self._compactTo = revision
        return dropped

    async def _forgetNodes(self) -> None:
        nodes = await self._etcd.all(f"{self._prefix}nodes/")
        present = {readKept(each.key, each.value, {}).get("commits") for each in nodes if each.lease}
        for mark in await self._etcd.all(f"{self._prefix}commits/"):
            if mark.key.rpartition("/")[2] not in present:
                await self._etcd.txn([unchanged(mark.key, mark.modified)], [deletion(mark.key)])
