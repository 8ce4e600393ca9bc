"""
Services in etcd: a record for each, and the time of a heartbeat, which is written by touches and now and then.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ...model import NewService, ServiceChanges
from .. import payloads
from ..interfaces import Expiration, LimitExceeded, NoSuchObject, ObjectExists, ServiceRecord, ServiceSummary
from ..shared import IStoreListener
from ..states import StateRecord
from .batches import Batches, Transaction
from .eventids import TenantIds
from .gateway import PAGE, PATIENCE, Compare, Etcd, KeyValue, Revision, Urgency, endOf, putGreater
from .node import Evidence
from .states import EtcdStates
from .votes import Registration

#: Seconds between two writes of the time of a service's heartbeats.
_SEEN_INTERVAL = 300.0
#: Times and touches in one transaction (etcd takes 128 operations), and the seconds between two transactions of times.
_GROUP = 120
_PACE = 1.0
#: The time of the last heartbeat of a service that has received none.
_NEVER = b"0000000000000"


@attrs.frozen
class _Record:
    """
    A service's record as it is stored.

    :ivar renewals: how many updates have set the timeout, each of which gives the service a full timeout.
    """

    position: int
    timeout: int
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    renewals: int = 0

    @classmethod
    def of(cls, value: bytes) -> _Record:
        """From the key's value."""
        kept = json.loads(value)
        return cls(kept["position"], kept["timeout"], tuple(kept["tags"]), kept["metadata"], kept.get("renewals", 0))

    def toBytes(self) -> bytes:
        """The key's value."""
        return json.dumps({"v": 1, **attrs.asdict(self)}, separators=(",", ":")).encode("ascii")


@attrs.define(eq=False)
class _Known:
    """
    What is known of a service without reading it.

    :ivar created: the revision that created its record.
    :ivar modified: the revision that its timeout and the renewals are known from.
    :ivar seen: the time of a heartbeat, in milliseconds since the epoch.
    :ivar touched: the revision of the last touch that the watch has shown; 0 for none.
    :ivar written: when the time of a heartbeat was written here last, in seconds.
    """

    tenant: str
    id: str
    incarnation: str
    timeout: int
    renewals: int
    created: int
    modified: int
    seen: int | None = None
    touched: int = 0
    written: float | None = None

    @property
    def summary(self) -> ServiceSummary:
        """For the registry."""
        return ServiceSummary(self.tenant, self.id, self.incarnation, self.timeout, self.seen)


class EtcdServices:
    """
    The services of all tenants.

    :param etcd: where they are.
    :param batches: makes the changes.
    :param clock: for the intervals.
    :param prefix: of all keys.
    :param ids: the tenants' event ids.
    :ivar listener: is notified of changes.
    :ivar states: the states of services.
    """

    listener: IStoreListener
    states: EtcdStates

    def __init__(self, etcd: Etcd, batches: Batches, clock: IReactorTime, prefix: str, ids: TenantIds) -> None:
        self._etcd = etcd
        self._batches = batches
        self._clock = clock
        self._prefix = prefix
        self._ids = ids
        self._known: dict[tuple[str, str], _Known] = {}
        self._byIncarnation: dict[Registration, _Known] = {}
        # Services whose time is to be written, in order.
        self._seenDue: dict[_Known, None] = {}
        self._hasSeenWriter = False
        # The revisions of the last record that the watch has shown, and of the last end of a service that is known.
        self._shown = self._ended = 0
        # Services that have ended here and whose end the watch has not shown yet, with its revision.
        self._gone: dict[Registration, int] = {}
        # Services whose expiration is under way, and whether the watch has shown their end already.
        self._expiring: dict[Registration, bool] = {}
        self._touches: list[tuple[_Known, Deferred[bool]]] = []

    # -- keys

    def _recordKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}services/{tenant}/{id}"

    def _seenKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}seen/{tenant}/{id}"

    def _name(self, key: str) -> tuple[str, str]:
        _, tenant, id = key[len(self._prefix) :].split("/", 2)
        return tenant, id

    # -- what is known

    def _keep(self, tenant: str, id: str, record: _Record, created: int, modified: int) -> _Known | None:
        """Take over a record as it was at a revision; ``None`` if it is known to have ended."""
        incarnation = self._ids.of(tenant).idAt(record.position)
        known = self._known.get((tenant, id))
        if (tenant, incarnation) in self._gone or (known is not None and known.created > created):
            return None
        if known is None or known.incarnation != incarnation:
            self._drop(known)
            known = _Known(tenant, id, incarnation, record.timeout, record.renewals, created, modified)
            self._known[tenant, id] = self._byIncarnation[tenant, incarnation] = known
        elif modified >= known.modified:
            known.timeout, known.renewals, known.modified = record.timeout, record.renewals, modified
        return known

    def _made(self, tenant: str, id: str, value: bytes, revision: int) -> None:
        """Take over a record that was made here."""
        record = _Record.of(value)
        incarnation = self._ids.of(tenant).idAt(record.position)
        if revision <= self._shown and (tenant, incarnation) not in self._byIncarnation:
            # The watch has shown it already, and its end elsewhere: what the caller takes over now ends again.
            self._clock.callLater(0, self.listener.vanished, tenant, id, incarnation)
        else:
            self._keep(tenant, id, record, revision, revision)

    def _found(self, tenant: str, id: str, found: KeyValue) -> None:
        """Take over a record that was read."""
        self._keep(tenant, id, _Record.of(found.value), found.created, found.modified)

    def _drop(self, known: _Known | None) -> None:
        if known is not None:
            self._byIncarnation.pop((known.tenant, known.incarnation), None)
            if self._known.get((known.tenant, known.id)) is known:
                del self._known[known.tenant, known.id]

    def _end(self, registration: Registration, revision: int) -> None:
        """A service has ended here."""
        self._drop(self._byIncarnation.get(registration))
        self._ended = max(self._ended, revision)
        if revision > self._shown:
            self._gone[registration] = revision

    def load(self, records: Collection[KeyValue], seen: Collection[KeyValue], revision: int) -> list[ServiceSummary]:
        """These are all records and times that there are, at that revision. Returns the services."""
        if revision < self._shown:
            # etcd was restored from a backup.
            self._known, self._byIncarnation, self._gone = {}, {}, {}
        self._shown = self._ended = revision
        self._gone = {registration: at for registration, at in self._gone.items() if at > revision}
        before = {registration for registration, known in self._byIncarnation.items() if known.created <= revision}
        for each in records:
            tenant, id = self._name(each.key)
            known = self._keep(tenant, id, _Record.of(each.value), each.created, each.modified)
            if known is not None:
                known.touched = 0
                before.discard((tenant, known.incarnation))
        for registration in before:
            self._drop(self._byIncarnation[registration])
        for each in seen:
            self.seenChanged(each)
        return [known.summary for known in self._known.values()]

    def recordChanged(self, now: KeyValue) -> None:
        """The watch shows a record."""
        self._shown = now.modified
        tenant, id = self._name(now.key)
        record, before = _Record.of(now.value), self._known.get((tenant, id))
        isRenewed = before is not None and before.renewals < record.renewals
        known = self._keep(tenant, id, record, now.created, now.modified)
        if known is not None:
            self.listener.appeared(known.summary)
            if isRenewed:
                self.listener.renew((tenant, known.incarnation))

    def recordDeleted(self, now: KeyValue, before: KeyValue | None) -> None:
        """The watch shows that a record is gone."""
        self._shown = now.modified
        self._ended = max(self._ended, now.modified)
        tenant, id = self._name(now.key)
        known = self._known.get((tenant, id))
        if before is not None:
            # What is known may be a later incarnation, created here, which this change is not about.
            incarnation = self._ids.of(tenant).idAt(_Record.of(before.value).position)
        elif known is not None:
            incarnation = known.incarnation
        else:
            return
        self._gone.pop((tenant, incarnation), None)
        self._drop(self._byIncarnation.get((tenant, incarnation)))
        if (tenant, incarnation) in self._expiring:
            self._expiring[tenant, incarnation] = True
        else:
            self.listener.vanished(tenant, id, incarnation)

    def seenChanged(self, now: KeyValue) -> None:
        """The watch shows the time of a heartbeat."""
        known = self._known.get(self._name(now.key))
        # One of an earlier incarnation may be shown after this one was created here.
        if known is not None and known.created <= now.modified:
            known.touched = now.modified
            # What was received here may be newer than what was written. A touch writes 0 before the first heartbeat.
            known.seen = max(known.seen or 0, int(now.value)) or None

    def touchedAt(self, registration: Registration) -> int:
        """The revision of a registration's last touch that the watch has shown; 0 for none."""
        known = self._byIncarnation.get(registration)
        return 0 if known is None else known.touched

    # -- operations

    def _record(self, tenant: str, id: str, record: _Record, state: StateRecord | None = None) -> ServiceRecord:
        known = self._known.get((tenant, id))
        incarnation = self._ids.of(tenant).idAt(record.position)
        seen = known.seen if known is not None and known.incarnation == incarnation else None
        return ServiceRecord(id, incarnation, record.timeout, record.tags, record.metadata, seen, state)

    async def all(self) -> list[ServiceSummary]:
        records, seen = [await self._etcd.all(self._prefix + kind) for kind in ("services/", "seen/")]
        return self.load(records, seen, self._ended)

    async def create(self, tenant: str, service: NewService, maximum: int) -> ServiceRecord:
        id, timeout = service.id, service.heartbeatTimeout
        key = self._recordKey(tenant, id)

        def create(transaction: Transaction) -> tuple[_Record, StateRecord | None, Transaction]:
            if transaction.get(key) is not None:
                raise ObjectExists(id)
            if transaction.clock.services >= maximum:
                raise LimitExceeded(maximum)
            state = self.states.inTransaction(transaction, tenant, id)
            payload = payloads.serviceState(ServiceRecord.of(service, "", state))
            position = transaction.addEvent("service.join", payload)
            record = _Record(position, timeout, service.tags, service.metadata)
            transaction.put(key, record.toBytes())
            transaction.clock.services += 1
            self.states.used(transaction, tenant, id)
            return record, state, transaction

        reads = [key, self.states.key(tenant, id)]
        record, state, transaction = await self._batches.do(tenant, reads, create, isNew=True)
        made = self._record(tenant, id, record, state)
        self._made(tenant, id, record.toBytes(), transaction.revision)
        return made

    async def get(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        if not states:
            found, state = await self._find(tenant, id, Urgency.ordinary), None
        else:
            key, revision = self._recordKey(tenant, id), -1
            while revision < self._ended:
                page, records, revision = await self.states.page(tenant, key, f"{key}\0", 1, states)
            found, state = page[0] if page else None, records.get(id)
        if found is None:
            raise NoSuchObject(id)
        self._found(tenant, id, found)
        return self._record(tenant, id, _Record.of(found.value), state)

    async def _find(self, tenant: str, id: str, urgency: Urgency) -> KeyValue | None:
        """Read a record: not as it was before an end of services that the watch has shown."""
        while True:
            found, revision = await self._etcd.range(self._recordKey(tenant, id), urgency=urgency)
            if revision >= self._ended:
                return found[0] if found else None

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
            found, records, now = await self.states.page(tenant, begin, end, size, states, revision=revision)
            revision = revision or now
            for each in found:
                id = each.key[len(prefix) :]
                record = self._record(tenant, id, _Record.of(each.value), records.get(id))
                if record.incarnation in hidden or (tag is not None and tag not in record.tags):
                    continue
                services.append(record)
                if len(services) == count:
                    return services
            if len(found) < size:
                return services
            begin = found[-1].key + "\0"

    async def update(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        """See :meth:`IStore.updateService`. A new timeout is a touch."""
        key, seenKey = self._recordKey(tenant, id), self._seenKey(tenant, id)

        def update(transaction: Transaction) -> tuple[_Record, Transaction]:
            record = self._recordIn(transaction, tenant, key, incarnation)
            timeout, tags, metadata = changes.heartbeatTimeout, changes.tags, changes.metadata
            changed = attrs.evolve(
                record,
                timeout=record.timeout if timeout is None else timeout,
                tags=record.tags if tags is None else tags,
                metadata=record.metadata if metadata is None else metadata,
            )
            if changed != record:
                old, new = self._record(tenant, id, record), self._record(tenant, id, changed)
                new = attrs.evolve(new, state=self.states.inTransaction(transaction, tenant, id))
                transaction.addEvent("service.update", payloads.updatedService(old, new))
            if timeout is not None:
                changed = attrs.evolve(changed, renewals=record.renewals + 1)
                transaction.guard(seenKey)
                transaction.put(seenKey, transaction.get(seenKey) or _NEVER)
            transaction.put(key, changed.toBytes())
            return changed, transaction

        record, transaction = await self._batches.do(tenant, [key, seenKey, self.states.key(tenant, id)], update)
        known = self._byIncarnation.get((tenant, incarnation))
        if known is not None:
            self._keep(tenant, id, record, known.created, transaction.revision)
            # The watch may have shown a later update already.
            record = attrs.evolve(record, timeout=known.timeout)
        return self._record(tenant, id, record)

    async def remove(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        key = self._recordKey(tenant, id)

        def remove(transaction: Transaction) -> tuple[_Record, Transaction]:
            record = self._recordIn(transaction, tenant, key, incarnation)
            self._delete(transaction, tenant, id, record, "service.remove")
            return record, transaction

        record, transaction = await self._batches.do(tenant, [key], remove)
        service = self._record(tenant, id, record)
        self._end((tenant, incarnation), transaction.revision)
        return service

    def _recordIn(self, transaction: Transaction, tenant: str, key: str, incarnation: str) -> _Record:
        value = transaction.get(key)
        record = None if value is None else _Record.of(value)
        if record is None or self._ids.of(tenant).idAt(record.position) != incarnation:
            raise NoSuchObject(key)
        return record

    def _delete(
        self, transaction: Transaction, tenant: str, id: str, record: _Record, type: str, timestamp: int | None = None
    ) -> None:
        transaction.delete(self._recordKey(tenant, id))
        transaction.delete(self._seenKey(tenant, id))
        service = ServiceRecord(id, "", record.timeout, record.tags, record.metadata)
        transaction.addEvent(type, payloads.serviceState(service), timestamp)
        transaction.clock.services -= 1

    # -- expirations and touches

    async def expireAll(self, expirations: Sequence[Expiration]) -> None:
        def expire(expiration: Expiration, transaction: Transaction) -> None:
            tenant, id = expiration.tenant, expiration.id
            try:
                record = self._recordIn(transaction, tenant, self._recordKey(tenant, id), expiration.incarnation)
            except NoSuchObject:
                return
            self._delete(transaction, tenant, id, record, "service.timeout", expiration.timestamp)

        changes = [
            self._batches.do(each.tenant, [self._recordKey(each.tenant, each.id)], partial(expire, each))
            for each in expirations
        ]
        for each, change in zip(expirations, changes, strict=True):
            await change
            self._drop(self._byIncarnation.get((each.tenant, each.incarnation)))

    async def expire(self, nodeKey: str, created: int, registration: Registration, evidence: Evidence) -> bool:
        known = self._byIncarnation.get(registration)
        if known is None:
            raise NoSuchObject(registration)
        tenant, id = known.tenant, known.id
        key, seenKey, joinsKey = self._recordKey(tenant, id), self._seenKey(tenant, id), f"{self._prefix}joins"

        def expire(transaction: Transaction) -> Transaction | None:
            record = self._recordIn(transaction, tenant, key, known.incarnation)
            if (
                # An update in this group is a touch.
                transaction.isChanged(seenKey)
                or transaction.modified(seenKey) != evidence.seen
                or transaction.modified(joinsKey) != evidence.joins
                or transaction.created(nodeKey) != created
            ):
                return None
            transaction.guard(seenKey)
            transaction.guard(joinsKey)
            transaction.guard(nodeKey, Revision.created)
            self._delete(transaction, tenant, id, record, "service.timeout", evidence.timestamp)
            return transaction

        self._expiring[registration] = False
        try:
            transaction = await self._batches.do(tenant, [key, seenKey, joinsKey, nodeKey], expire)
        finally:
            if self._expiring.pop(registration):
                # When the outcome has been reported.
                self._clock.callLater(0, self.listener.vanished, tenant, id, known.incarnation)
        if transaction is not None:
            self._end(registration, transaction.revision)
        # After a failure, a later touch is noted when the watch shows it: after what the watch shows before that.
        return transaction is not None

    async def touch(self, registration: Registration) -> bool:
        """See :meth:`INodeKeys.touch`. Touches of one reactor turn share transactions."""
        known = self._byIncarnation.get(registration)
        if known is None:
            return False
        touched: Deferred[bool] = Deferred()
        if not self._touches:
            self._clock.callLater(0, self._sendTouches)
        self._touches.append((known, touched))
        return await touched

    def _sendTouches(self) -> None:
        touches, self._touches = self._touches, []
        for begin in range(0, len(touches), _GROUP):
            Deferred.fromCoroutine(self._sendGroup(touches[begin : begin + _GROUP]))

    async def _sendGroup(self, touches: Sequence[tuple[_Known, Deferred[bool]]]) -> None:
        group = list(dict.fromkeys(known for known, _ in touches))
        try:
            existing = await self._write(group, urgency=Urgency.vital)
        except Exception:
            failure = Failure()
            for _, touched in touches:
                touched.errback(failure)
            return
        for known, touched in touches:
            touched.callback(known in existing)

    async def _write(
        self, group: Sequence[_Known], *, patience: float = PATIENCE, urgency: Urgency
    ) -> Collection[_Known]:
        """Write the times of services in one transaction; returns those that exist."""
        conditions = [self._exists(each) for each in group]
        done = await self._etcd.txn(
            conditions, [self._seenPut(each) for each in group], patience=patience, urgency=urgency
        )
        if done.succeeded:
            return group
        if len(group) == 1:
            self._drop(group[0])
            return ()
        # One of them has ended: the others are not affected.
        return [known for each in group for known in await self._write([each], patience=patience, urgency=urgency)]

    def _exists(self, known: _Known) -> Compare:
        return Compare(self._recordKey(known.tenant, known.id), known.created, Revision.created)

    def _seenPut(self, known: _Known) -> dict[str, Any]:
        # The same number of digits as every time: etcd compares them as text.
        value = _NEVER if known.seen is None else b"%013d" % known.seen
        return putGreater(self._seenKey(known.tenant, known.id), value)

    # -- the time of heartbeats

    def noteSeen(self, tenant: str, id: str, incarnation: str, seen: int) -> bool:
        """
        Note the time of a heartbeat.

        :return: whether :meth:`writeSeen` is to be called.
        """
        known = self._byIncarnation.get((tenant, incarnation))
        if known is None or known.id != id:
            return False
        known.seen = seen
        now = self._clock.seconds()
        if known.written is not None and now - known.written < _SEEN_INTERVAL:
            return False
        known.written = now
        self._seenDue[known] = None
        hasWriter, self._hasSeenWriter = self._hasSeenWriter, True
        return not hasWriter

    async def writeSeen(self) -> None:
        """Write the times that are due, one group a second."""
        try:
            while self._seenDue:
                group = list(islice(self._seenDue, _GROUP))
                for each in group:
                    del self._seenDue[each]
                await self._write(group, patience=0, urgency=Urgency.idle)
                await deferLater(self._clock, _PACE)
        finally:
            self._hasSeenWriter = False
