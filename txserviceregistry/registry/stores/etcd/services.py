"""
Services in etcd. See :class:`~txserviceregistry.registry.stores.interfaces.IStore`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from ....util.deferred import returnsDeferred
from ...model import NewService, ServiceChanges
from .. import payloads
from ..interfaces import LimitExceeded, ObjectExists, ServiceRecord, StateRecord
from .batches import Transaction
from .gateway import PAGE, KeyValue, after, endOf, jsonBytes
from .registrations import NEVER, Registrations
from .states import EtcdStates


@attrs.define(eq=False)
class EtcdServices(Registrations):
    kind = "services"
    touches = "seen"
    expiration = "service.timeout"
    fields = {"position": int, "timeout": int, "tags": list, "metadata": dict}
    _states: EtcdStates

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any], state: StateRecord | None = None) -> ServiceRecord:
        known = self._known.get((tenant, id))
        incarnation = self._incarnation(tenant, kept)
        seen = known.seen if known is not None and known.incarnation == incarnation else None
        return ServiceRecord(id, incarnation, kept["timeout"], tuple(kept["tags"]), kept["metadata"], seen, state)

    def _recordOf(self, tenant: str, found: KeyValue, states: Mapping[str, StateRecord]) -> ServiceRecord:
        id = self._name(found.key)[1]
        return self._record(tenant, id, self._readRecord(found.key, found.value), states.get(id))

    @returnsDeferred
    async def create(self, tenant: str, service: NewService, maximum: int) -> ServiceRecord:
        id, key = service.id, self._recordKey(tenant, service.id)

        def create(transaction: Transaction) -> tuple[dict[str, Any], StateRecord | None, Transaction]:
            if transaction.get(key) is not None:
                raise ObjectExists(id)
            if transaction.clock.services >= maximum:
                raise LimitExceeded(maximum)
            state = self._states.inTransaction(transaction, tenant, id)
            payload = payloads.serviceState(ServiceRecord.of(service, "", state))
            position = transaction.addEvent("service.join", payload)
            kept = _kept(position, service.heartbeatTimeout, service.tags, service.metadata)
            transaction.put(key, jsonBytes(kept))
            transaction.clock.services += 1
            self._states.used(transaction, tenant, id)
            return kept, state, transaction

        reads = [key, self._states.key(tenant, id)]
        kept, state, transaction = await self._batches.do(tenant, reads, create, isNew=True)
        made = self._record(tenant, id, kept, state)
        self._made(tenant, id, kept, transaction.made)
        return made

    @returnsDeferred
    async def get(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        further = [self._states.key(tenant, id)] if states else []
        found, *others = await self._find(tenant, id, *further)
        return self._recordOf(tenant, found, {record.id: record for record in self._states.shown(others)})

    @returnsDeferred
    async def list(
        self,
        tenant: str,
        marker: str | None,
        count: int,
        tag: str | None,
        hidden: Collection[str],
        states: bool = False,
    ) -> list[ServiceRecord]:
        prefix = self._recordKey(tenant, "")
        begin, end = prefix + (marker or ""), endOf(prefix)
        services: list[ServiceRecord] = []
        # All pages show the services at one moment, the one of the first page.
        revision = 0
        while True:
            size = PAGE if tag is not None else min(PAGE, count - len(services) + len(hidden))
            found, records, now = await self._states.page(tenant, begin, end, size, states, revision=revision)
            revision = revision or now
            shown = [self._recordOf(tenant, each, records) for each in found]
            services += [each for each in shown if each.incarnation not in hidden and (tag is None or tag in each.tags)]
            if len(services) >= count or len(found) < size:
                return services[:count]
            begin = after(found[-1])

    @returnsDeferred
    async def update(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        key, seenKey = self._recordKey(tenant, id), self._seenKey(tenant, id)

        def update(transaction: Transaction) -> tuple[dict[str, Any], Transaction]:
            kept = self._recordIn(transaction, tenant, id, incarnation)
            old = self._record(tenant, id, kept)
            new = old.changed(changes)
            if new != old:
                state = self._states.inTransaction(transaction, tenant, id)
                transaction.addEvent("service.update", payloads.updatedService(old, attrs.evolve(new, state=state)))
            renewals = kept.get("renewals", 0)
            if changes.heartbeatTimeout is not None:
                # A new timeout is a touch.
                renewals += 1
                transaction.guard(seenKey)
                transaction.put(seenKey, transaction.get(seenKey) or NEVER)
            kept = _kept(kept["position"], new.heartbeatTimeout, new.tags, new.metadata, renewals)
            transaction.put(key, jsonBytes(kept))
            return kept, transaction

        reads = [key, seenKey, self._states.key(tenant, id)]
        kept, transaction = await self._batches.do(tenant, reads, update)
        known = self._byIncarnation.get((tenant, incarnation))
        if known is not None:
            self._keep(tenant, id, kept, known.created, transaction.made)
            # The watch may have shown a later update already.
            kept = {**kept, "timeout": known.timeout}
        return self._record(tenant, id, kept)

    @returnsDeferred
    async def remove(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        service: ServiceRecord = await self._endNow(tenant, id, incarnation, "service.remove")
        return service

    def _payload(self, record: ServiceRecord) -> Mapping[str, Any]:
        return payloads.serviceState(record)


def _kept(
    position: int, timeout: int, tags: Collection[str], metadata: Mapping[str, str], renewals: int = 0
) -> dict[str, Any]:
    """A record as it is kept, with how many updates have set the timeout: each gives the service a full timeout."""
    return {
        "v": 1,
        "position": position,
        "timeout": timeout,
        "tags": tags,
        "metadata": metadata,
        "renewals": renewals,
    }
