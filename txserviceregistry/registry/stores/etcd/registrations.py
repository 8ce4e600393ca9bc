"""
Registrations in etcd, services and locks alike: a record for each, and the time of a heartbeat, which is written by
touches and now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import attrs
from twisted.internet.task import deferLater

from ....util.concurrency import Gathering
from ...scopes import tenantOf
from ..interfaces import NoSuchObject, ServiceSummary
from ..shared import IStoreListener
from .batches import Transaction
from .gateway import PATIENCE, KeyValue, Revision, Urgency, putGreater, reading, unchanged
from .kept import Fields, Unreadable, readKept, understood
from .node import Evidence
from .part import Part
from .votes import Registration

#: Seconds between two writes of the time of a service's heartbeats.
_SEEN_INTERVAL = 300.0
#: Times and touches in one transaction (etcd takes 128 operations), and the seconds between two transactions of times.
_GROUP = 120
_PACE = 1.0
#: Lookups in one request: the largest records, each with a state, fit into one response.
READS = 32
#: The time of the last heartbeat of a service that has received none.
NEVER = b"0000000000000"


@attrs.define(eq=False)
class Known:
    """
    A registration as it is known without reading it.

    :ivar created: the revision that created its record.
    :ivar modified: the revision that what its record says is known from.
    :ivar renewals: how many updates have set the timeout, each of which gives it a full timeout.
    :ivar seen: the time of a heartbeat, in milliseconds since the epoch; *written*: when that was written here last.
    :ivar touched: the revision of the last touch that the watch has shown; 0 for none.
    """

    tenant: str
    id: str
    incarnation: str
    created: int
    modified: int = 0
    timeout: int = 0
    renewals: int = 0
    isForced: bool = False
    seen: int | None = None
    touched: int = 0
    written: float | None = None

    @property
    def summary(self) -> ServiceSummary:
        return ServiceSummary(self.tenant, self.id, self.incarnation, self.timeout, self.seen, self.isForced)


@attrs.define(eq=False)
class Registrations(Part):
    """
    The registrations of one kind.

    :cvar kind: where their records are, and what the tenant's clock calls them.
    :cvar touches: where the times of heartbeats are.
    :cvar expiration: the type of the event.
    :cvar fields: what each record has.
    :ivar listener: is notified of changes.
    """

    kind: ClassVar[str]
    touches: ClassVar[str]
    expiration: ClassVar[str]
    fields: ClassVar[Fields]
    listener: IStoreListener = attrs.field(init=False)
    _known: dict[tuple[str, str], Known] = attrs.field(factory=dict, init=False)
    _byIncarnation: dict[Registration, Known] = attrs.field(factory=dict, init=False)
    # Registrations whose last heartbeat is to be written, in order.
    _seenDue: dict[Known, None] = attrs.field(factory=dict, init=False)
    _hasSeenWriter: bool = attrs.field(default=False, init=False)
    # The revisions of the last record that the watch has shown, and of the last end of a registration that is known.
    _shown: int = attrs.field(default=0, init=False)
    _ended: int = attrs.field(default=0, init=False)
    # Registrations that have ended here and whose end the watch has not shown yet, with its revision.
    _gone: dict[Registration, int] = attrs.field(factory=dict, init=False)
    # Registrations that are expiring, and whether the watch has shown their end already.
    _expiring: dict[Registration, bool] = attrs.field(factory=dict, init=False)
    _touching: Gathering[Known, bool] = attrs.field(init=False)
    _reading: Gathering[tuple[str, ...], tuple[list[list[KeyValue]], int]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._touching = Gathering(self._clock, _GROUP, self._touch)
        self._reading = Gathering(self._clock, READS, self._read)

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any]) -> Any:
        """A record as the registry takes it."""
        raise NotImplementedError

    def _payload(self, record: Any) -> Mapping[str, Any]:
        """The payload of the event of a registration's end."""
        raise NotImplementedError

    # -- keys

    def _recordKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}{self.kind}/{tenantOf(tenant)}/{id}"

    def _seenKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}{self.touches}/{tenantOf(tenant)}/{id}"

    def _name(self, key: str) -> tuple[str, str]:
        _, tenant, id = key[len(self._prefix) :].split("/", 2)
        return self._scope(tenant), id

    def _scope(self, tenant: str) -> str:
        return tenant

    def _readRecord(self, key: str, value: bytes) -> dict[str, Any]:
        return readKept(key, value, self.fields)

    def _incarnation(self, tenant: str, kept: Mapping[str, Any]) -> str:
        return self._ids.of(tenant).idAt(kept["position"])

    # -- what is known

    def _keep(self, tenant: str, id: str, kept: Mapping[str, Any], created: int, modified: int) -> Known | None:
        """Take over a record as it was at a revision; ``None`` if it is known to have ended."""
        incarnation, timeout = self._incarnation(tenant, kept), int(kept["timeout"])
        known = self._known.get((tenant, id))
        if (tenant, incarnation) in self._gone or (known is not None and known.created > created):
            return None
        if known is None or known.incarnation != incarnation:
            self._drop(known)
            known = Known(tenant, id, incarnation, created)
            self._known[tenant, id] = self._byIncarnation[tenant, incarnation] = known
        if modified >= known.modified:
            known.modified, known.timeout = modified, timeout
            known.renewals, known.isForced = kept.get("renewals", 0), kept.get("isForced", False)
        return known

    def _made(self, tenant: str, id: str, kept: Mapping[str, Any], revision: int) -> None:
        """Take over a record that was made here."""
        incarnation = self._incarnation(tenant, kept)
        if revision <= self._shown and (tenant, incarnation) not in self._byIncarnation:
            # The watch has shown it already, and its end elsewhere: what the caller takes over now ends again.
            self._clock.callLater(0, self.listener.vanished, tenant, id, incarnation)
        else:
            self._keep(tenant, id, kept, revision, revision)

    def _drop(self, known: Known | None) -> None:
        if known is not None:
            self._byIncarnation.pop((known.tenant, known.incarnation), None)
            self._seenDue.pop(known, None)
            if self._known.get((known.tenant, known.id)) is known:
                del self._known[known.tenant, known.id]

    def _end(self, registration: Registration, revision: int) -> None:
        """A registration has ended here."""
        self._drop(self._byIncarnation.get(registration))
        self._ended = max(self._ended, revision)
        if revision > self._shown:
            self._gone[registration] = revision

    def load(self, records: Collection[KeyValue], seen: Collection[KeyValue], revision: int) -> list[ServiceSummary]:
        """These are all records and times that there are, at that revision. Returns the registrations."""
        if revision < self._shown:
            # etcd was restored from a backup.
            self._known, self._byIncarnation, self._seenDue, self._gone = {}, {}, {}, {}
        self._shown = self._ended = revision
        self._gone = {registration: at for registration, at in self._gone.items() if at > revision}
        before = {registration for registration, known in self._byIncarnation.items() if known.created <= revision}
        for each in records:
            with understood(each.key):
                tenant, id = self._name(each.key)
                known = self._keep(tenant, id, self._readRecord(each.key, each.value), each.created, each.modified)
                if known is not None:
                    known.touched = 0
                    before.discard((tenant, known.incarnation))
        for registration in before:
            self._drop(self._byIncarnation[registration])
        for each in seen:
            with understood(each.key):
                self.seenChanged(each)
        return [known.summary for known in self._known.values()]

    def recordChanged(self, now: KeyValue) -> None:
        """The watch shows a record."""
        self._shown = now.modified
        tenant, id = self._name(now.key)
        before = self._known.get((tenant, id))
        try:
            kept = self._readRecord(now.key, now.value)
        except Unreadable:
            # Until it is restored, nothing is registered, as for a node that starts.
            if before is not None:
                self._vanish(tenant, id, before.incarnation)
            return
        isRenewed = before is not None and before.renewals < kept.get("renewals", 0)
        known = self._keep(tenant, id, kept, now.created, now.modified)
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
            # The known one may be a later incarnation, created here, which this change does not concern.
            incarnation = self._incarnation(tenant, self._readRecord(now.key, before.value))
        elif known is not None:
            incarnation = known.incarnation
        else:
            return
        self._gone.pop((tenant, incarnation), None)
        self._vanish(tenant, id, incarnation)

    def _vanish(self, tenant: str, id: str, incarnation: str) -> None:
        self._drop(self._byIncarnation.get((tenant, incarnation)))
        if (tenant, incarnation) in self._expiring:
            self._expiring[tenant, incarnation] = True
        else:
            self.listener.vanished(tenant, id, incarnation)

    def seenChanged(self, now: KeyValue) -> None:
        """The watch shows the time of a heartbeat, or that it was deleted."""
        known = self._known.get(self._name(now.key))
        # One of an earlier incarnation may be shown after this one was created here.
        if known is not None and known.created <= now.modified:
            known.touched = now.modified if now.created else 0
            # A heartbeat received here may be newer than the written one. A touch writes 0 before the first heartbeat.
            known.seen = max(known.seen or 0, int(now.value or 0)) or None

    def touchedAt(self, registration: Registration) -> int:
        """The revision of a registration's last touch that the watch has shown; 0 for none."""
        known = self._byIncarnation.get(registration)
        return 0 if known is None else known.touched

    # -- reading

    async def _find(self, tenant: str, id: str, *further: str) -> Sequence[KeyValue]:
        """
        Read a record and the *further* keys that exist, at a revision that includes every known end of a registration.
        """
        while True:
            (record, *others), revision = await self._reading.do((self._recordKey(tenant, id), *further))
            if revision >= self._ended:
                break
        if not record:
            raise NoSuchObject(id)
        self._keep(tenant, id, self._readRecord(record[0].key, record[0].value), record[0].created, record[0].modified)
        return [*record, *(each for found in others for each in found)]

    async def _read(
        self, reads: Sequence[tuple[str, ...]]
    ) -> Mapping[tuple[str, ...], tuple[list[list[KeyValue]], int]]:
        done = await self._etcd.txn((), [reading(key) for keys in reads for key in keys])
        found = iter(done.found)
        return {keys: ([next(found) for _ in keys], done.revision) for keys in reads}

    def _recordIn(self, transaction: Transaction, tenant: str, id: str, incarnation: str) -> dict[str, Any]:
        key = self._recordKey(tenant, id)
        value = transaction.get(key)
        kept = None if value is None else self._readRecord(key, value)
        if kept is None or self._incarnation(tenant, kept) != incarnation:
            raise NoSuchObject(id)
        return kept

    # -- ends

    def _endIn(
        self, transaction: Transaction, tenant: str, id: str, record: Any, type: str, timestamp: int | None = None
    ) -> None:
        """Remove a registration, and add the event of its end."""
        transaction.delete(self._recordKey(tenant, id))
        transaction.delete(self._seenKey(tenant, id))
        setattr(transaction.clock, self.kind, getattr(transaction.clock, self.kind) - 1)
        transaction.addEvent(type, self._payload(record), timestamp)

    async def _endNow(self, tenant: str, id: str, incarnation: str, type: str, **changes: Any) -> Any:
        """End a registration, with some *changes* in the event; returns it."""

        def end(transaction: Transaction) -> tuple[Any, Transaction]:
            record = self._record(tenant, id, {**self._recordIn(transaction, tenant, id, incarnation), **changes})
            self._endIn(transaction, tenant, id, record, type)
            return record, transaction

        record, transaction = await self._batches.do(tenant, [self._recordKey(tenant, id)], end)
        self._end((tenant, incarnation), transaction.made)
        return record

    async def expireByVote(self, nodeKey: str, created: int, registration: Registration, evidence: Evidence) -> bool:
        """See :meth:`INodeKeys.expire`."""
        known = self._byIncarnation.get(registration)
        if known is None:
            raise NoSuchObject(registration)
        tenant, id = known.tenant, known.id
        key, seenKey, joinsKey = self._recordKey(tenant, id), self._seenKey(tenant, id), f"{self._prefix}joins"

        def expire(transaction: Transaction) -> Transaction | None:
            kept = self._recordIn(transaction, tenant, id, known.incarnation)
            if (
                # An update in this group is a touch.
                transaction.isChanged(seenKey)
                or transaction.revision(seenKey) != evidence.seen
                or transaction.revision(joinsKey) != evidence.joins
                or transaction.revision(nodeKey, Revision.created) != created
            ):
                return None
            transaction.guard(seenKey)
            transaction.guard(joinsKey)
            transaction.guard(nodeKey, Revision.created)
            record = self._record(tenant, id, kept)
            self._endIn(transaction, tenant, id, record, self.expiration, evidence.timestamp)
            return transaction

        self._expiring[registration] = False
        try:
            transaction = await self._batches.do(tenant, [key, seenKey, joinsKey, nodeKey], expire)
        finally:
            if self._expiring.pop(registration):
                # When the outcome has been reported.
                self._clock.callLater(0, self.listener.vanished, tenant, id, known.incarnation)
        if transaction is not None:
            self._end(registration, transaction.made)
        # After a failure, a later touch is noted when the watch shows it: after what the watch shows before that.
        return transaction is not None

    # -- touches

    async def touch(self, registration: Registration) -> bool:
        """See :meth:`INodeKeys.touch`. Touches of one reactor turn share transactions."""
        known = self._byIncarnation.get(registration)
        return known is not None and await self._touching.do(known)

    async def _touch(self, group: Sequence[Known]) -> Mapping[Known, bool]:
        existing = await self._write(group, urgency=Urgency.vital)
        return {each: each in existing for each in group}

    async def _write(self, group: Sequence[Known], *, patience: float = PATIENCE, urgency: Urgency) -> Sequence[Known]:
        """Write the times of registrations in one transaction; returns those that exist."""
        keys = [(self._recordKey(each.tenant, each.id), self._seenKey(each.tenant, each.id)) for each in group]
        done = await self._etcd.txn(
            [unchanged(key, each.created, Revision.created) for (key, _), each in zip(keys, group, strict=True)],
            # The same number of digits as every time: etcd compares them as text.
            [
                putGreater(seenKey, NEVER if each.seen is None else b"%013d" % each.seen)
                for (_, seenKey), each in zip(keys, group, strict=True)
            ],
            patience=patience,
            urgency=urgency,
        )
        if done.succeeded:
            return group
        if len(group) == 1:
            self._drop(group[0])
            return []
        # One of them has ended: the others are not affected.
        return [known for each in group for known in await self._write([each], patience=patience, urgency=urgency)]

    # -- the time of heartbeats

    def noteSeen(self, tenant: str, id: str, incarnation: str, seen: int) -> bool:
        """Note the time of a heartbeat; returns whether :meth:`writeSeen` is to be called."""
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
