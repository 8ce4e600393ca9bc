"""Registrations in etcd, services and locks alike: a record of each, and the time of a heartbeat."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar

import attrs

from ....util.deferred import Gathering
from ...model import tenantOf
from ..interfaces import IStoreListener, LockRecord, NoSuchObject, ServiceRecord, ServiceSummary, StoreUnavailable
from .batches import Disproved, Transaction
from .keyvalues import KeyValue, Unreadable, createdAt, putGreater, reading, understood
from .objects import Part
from .votes import Evidence, Registration

_R = TypeVar("_R", ServiceRecord, LockRecord)

#: Seconds between two writes of the time of a service's heartbeats.
_SEEN_INTERVAL = 300.0
#: Times and touches in one transaction: etcd takes 128 operations.
_GROUP = 120
#: Lookups in one request: the largest records, each with a state, fit into one response.
READS = 32
#: A read that has begun before an end became known may not include it.
_READS_AGAIN = 3
#: The time of the last heartbeat of a service that has received none.
NEVER = b"0000000000000"


@attrs.define(eq=False)
class Known:
    """A registration as it is known without reading it."""

    tenant: str
    id: str
    incarnation: str
    created: int  # the revision that created its record
    modified: int = 0  # the revision from which the next two are known
    timeout: int = 0
    isForced: bool = False
    seen: int | None = None  # the time of a heartbeat, in milliseconds since the epoch
    written: float | None = None  # when that was written here last
    touched: int = 0  # the revision of the last touch that the watch has shown; 0 for none
    ended: int = 0  # the revision that ended it here, until the watch shows it

    @property
    def summary(self) -> ServiceSummary:
        return ServiceSummary(self.tenant, self.id, self.incarnation, self.timeout, self.seen, self.isForced)


@attrs.define(eq=False)
class Registrations(Part, Generic[_R]):
    """The registrations of one kind. Responses and the watch come in any order: the older replaces no newer one."""

    touches: ClassVar[str]  # the name of the keys with the times of heartbeats
    expiration: ClassVar[str]  # the type of the event
    listener: IStoreListener = attrs.field(init=False)
    _known: dict[tuple[str, str], Known] = attrs.field(factory=dict, init=False)
    _byIncarnation: dict[Registration, Known] = attrs.field(factory=dict, init=False)
    # Registrations whose last heartbeat is to be written, in order.
    _seenDue: dict[Known, None] = attrs.field(factory=dict, init=False)
    # The revision up to which the watch has shown changes, and that of the last known end of a registration.
    _shown: int = attrs.field(default=0, init=False)
    _ended: int = attrs.field(default=0, init=False)
    # The registrations that are expiring, and whether the watch has shown their end already.
    _expiring: dict[Registration, bool] = attrs.field(factory=dict, init=False)
    _touching: Gathering[Known, bool] = attrs.field(init=False)
    _reading: Gathering[tuple[str, ...], tuple[list[list[KeyValue]], int]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._touching = Gathering(self._clock, _GROUP, self._touch)
        self._reading = Gathering(self._clock, READS, self._read)

    def _record(self, tenant: str, id: str, kept: Mapping[str, Any]) -> _R:
        raise NotImplementedError

    def _seenKey(self, tenant: str, id: str) -> str:
        return f"{self._prefix}{self.touches}/{tenantOf(tenant)}/{id}"

    def _incarnation(self, tenant: str, kept: Mapping[str, Any]) -> str:
        return self._ids.of(tenant).idAt(kept["position"])

    def _recordOf(self, found: KeyValue) -> _R:
        return self._record(*self._nameOf(found.key), self._kept(found.key, found.value))

    # -- what is known

    def _keep(self, tenant: str, id: str, kept: Mapping[str, Any], created: int, modified: int) -> Known | None:
        """Take over a record as it was at a revision; ``None`` if it is known to have ended."""
        known = self._known.get((tenant, id))
        if known is not None and (known.created > created or known.ended >= created):
            return None
        incarnation = self._incarnation(tenant, kept)
        if known is None or known.incarnation != incarnation:
            self._drop(known)
            known = Known(tenant, id, incarnation, created)
            self._known[tenant, id] = self._byIncarnation[tenant, incarnation] = known
        if modified >= known.modified:
            known.modified, known.timeout, known.isForced = modified, int(kept["timeout"]), kept.get("isForced", False)
        return known

    def _keepFound(self, found: KeyValue) -> Known | None:
        name = self._nameOf(found.key)
        return self._keep(*name, self._kept(found.key, found.value), found.created, found.modified)

    def _made(self, tenant: str, id: str, kept: Mapping[str, Any], revision: int) -> _R:
        incarnation = self._incarnation(tenant, kept)
        if revision <= self._shown and (tenant, incarnation) not in self._byIncarnation:
            # The watch has shown it already, and its end elsewhere: what the caller takes over now ends again.
            self._clock.callLater(0, self.listener.vanished, tenant, id, incarnation)
        else:
            self._keep(tenant, id, kept, revision, revision)
        return self._record(tenant, id, kept)

    def _drop(self, known: Known | None, ended: int = 0) -> None:
        """Forget a registration; keep only that it has *ended* by a revision that the watch has not shown yet."""
        if known is not None and (not ended or known.created <= ended):
            self._byIncarnation.pop((known.tenant, known.incarnation), None)
            self._seenDue.pop(known, None)
            known.ended = ended
            if ended <= self._shown and self._known.get((known.tenant, known.id)) is known:
                del self._known[known.tenant, known.id]

    def forget(self) -> None:
        """Revisions say nothing about what is known: etcd was restored from a backup."""
        self._known, self._byIncarnation, self._seenDue = {}, {}, {}
        self._shown = self._ended = 0

    def load(self, records: Collection[KeyValue], seen: Collection[KeyValue], revision: int) -> Iterator[None]:
        """Take over, one by one, all records and times at that revision. Ends that are made meanwhile are later."""
        if revision < self._shown:
            self.forget()
        times, loaded, self._ended = {each.key: each for each in seen}, set[Known](), revision
        for record in records:
            with understood(record.key):
                if known := self._keepFound(record):
                    known.touched = 0
                    loaded.add(known)
                    if time := times.get(self._seenKey(known.tenant, known.id)):
                        with understood(time.key):
                            self.seenChanged(time)
                    self.listener.appeared(known.summary)
            yield
        self._shown = revision
        for known in [*self._known.values()]:
            if known not in loaded and max(known.created, known.ended) <= revision:
                self._drop(known)

    def all(self) -> list[ServiceSummary]:
        return [known.summary for known in self._byIncarnation.values()]

    # -- what the watch shows

    def recordChanged(self, now: KeyValue) -> None:
        self._shown = now.modified
        before = self._known.get(self._nameOf(now.key))
        try:
            known = self._keepFound(now)
        except Unreadable:
            # Until it is restored, nothing is registered, as for a node that starts.
            if before is not None:
                self._vanish(before)
            return
        if known is not None:
            self.listener.appeared(known.summary)

    def recordDeleted(self, now: KeyValue) -> None:
        self._shown, self._ended = now.modified, max(self._ended, now.modified)
        known = self._known.get(self._nameOf(now.key))
        # A later one may have been created here, which this change does not concern.
        if known is not None and known.created < now.modified:
            self._vanish(known)

    def _vanish(self, known: Known) -> None:
        self._drop(known)
        if (known.tenant, known.incarnation) in self._expiring:
            self._expiring[known.tenant, known.incarnation] = True
        else:
            self.listener.vanished(known.tenant, known.id, known.incarnation)

    def seenChanged(self, now: KeyValue) -> None:
        """The time of a heartbeat, or that it was deleted."""
        known = self._known.get(self._nameOf(now.key))
        # One of an earlier incarnation may be shown after this one was created here.
        if known is not None and known.created <= now.modified:
            known.touched = now.modified if now.created else 0
            # A heartbeat received here may be newer than the written one. A touch writes 0 before the first heartbeat.
            known.seen = max(known.seen or 0, int(now.value or 0)) or None
            if now.modified == known.modified > known.created:
                # A touch with a change of the record: an update of the timeout gives a full timeout.
                self.listener.renew((known.tenant, known.incarnation))

    def touchedAt(self, registration: Registration) -> int:
        return known.touched if (known := self._byIncarnation.get(registration)) else 0

    async def _find(self, tenant: str, id: str, *further: str) -> Sequence[KeyValue]:
        """Read a record and the *further* keys that exist, at a revision that includes every known end."""
        for _ in range(_READS_AGAIN):
            found, revision = await self._reading.do((self.key(tenant, id), *further))
            if revision >= self._ended:
                break
        else:
            raise StoreUnavailable("etcd has been replaced, or restored from a backup")
        if not found[0]:
            self._drop(self._known.get((tenant, id)), revision)
            raise NoSuchObject(id)
        self._keepFound(found[0][0])
        return [each for kept in found for each in kept]

    async def _read(
        self, reads: Sequence[tuple[str, ...]]
    ) -> Mapping[tuple[str, ...], tuple[list[list[KeyValue]], int]]:
        done = await self._etcd.txn((), [reading(key) for keys in reads for key in keys])
        found = iter(done.found)
        return {keys: ([next(found) for _ in keys], done.revision) for keys in reads}

    def _recordIn(self, transaction: Transaction, tenant: str, id: str, incarnation: str) -> dict[str, Any]:
        key = self.key(tenant, id)
        transaction.need(key)
        value = transaction.get(key)
        kept = None if value is None else self._kept(key, value)
        if kept is None or self._incarnation(tenant, kept) != incarnation:
            raise NoSuchObject(id)
        return kept

    async def _endNow(
        self,
        tenant: str,
        id: str,
        incarnation: str,
        type: str,
        timestamp: int | None = None,
        guards: Sequence[tuple[str, int, bool]] = (),
        **changes: Any,
    ) -> _R:
        """End a registration, with some *changes* in its event, if the *guards* allow it; returns its record."""

        def end(transaction: Transaction) -> tuple[_R, Transaction]:
            transaction.need(self.key(tenant, id), *(key for key, _, _ in guards))
            kept = self._recordIn(transaction, tenant, id, incarnation)
            for guard in guards:
                transaction.guard(*guard)
            ended = self._record(tenant, id, {**kept, **changes})
            transaction.delete(self.key(tenant, id))
            transaction.delete(self._seenKey(tenant, id))
            transaction.count(self.kind, -1)
            transaction.addEvent(type, ended.payload(), timestamp)
            return ended, transaction

        ended, transaction = await self._batches.do(tenant, end)
        self._ended = max(self._ended, transaction.made)
        self._drop(self._byIncarnation.get((tenant, incarnation)), transaction.made)
        return ended

    async def expireByVote(self, nodeKey: str, created: int, registration: Registration, evidence: Evidence) -> bool:
        if (known := self._byIncarnation.get(registration)) is None:
            raise NoSuchObject(registration)
        name = known.tenant, known.id, known.incarnation
        guards = (
            (self._seenKey(known.tenant, known.id), evidence.seen, False),
            (f"{self._prefix}joins", evidence.joins, False),
            (nodeKey, created, True),
        )
        self._expiring[registration] = False
        try:
            await self._endNow(*name, self.expiration, evidence.timestamp, guards)
            return True
        except Disproved:
            # A later touch is noted when the watch shows it: after what the watch shows before that.
            return False
        finally:
            if self._expiring.pop(registration):
                # When the outcome has been reported.
                self._clock.callLater(0, self.listener.vanished, *name)

    # -- touches, and the time of heartbeats

    async def touch(self, registration: Registration) -> bool:
        return (known := self._byIncarnation.get(registration)) is not None and await self._touching.do(known)

    async def _touch(self, group: Sequence[Known]) -> Mapping[Known, bool]:
        """Write the times of registrations; returns which exist."""
        # The same number of digits as every time: etcd compares them as text.
        values = [NEVER if each.seen is None else b"%013d" % each.seen for each in group]
        done = await self._etcd.txn(
            [createdAt(self.key(each.tenant, each.id), each.created) for each in group],
            [putGreater(self._seenKey(each.tenant, each.id), value) for each, value in zip(group, values, strict=True)],
            isUrgent=True,
        )
        if done.succeeded or len(group) == 1:
            if not done.succeeded:
                self._drop(group[0], done.revision)
            return dict.fromkeys(group, done.succeeded)
        # One of them has ended: the others are not affected.
        return {each: (await self._touch([each]))[each] for each in group}

    def noteSeen(self, tenant: str, id: str, incarnation: str, seen: int) -> None:
        if (known := self._byIncarnation.get((tenant, incarnation))) is not None and known.id == id:
            known.seen = seen
            now = self._clock.seconds()
            if known.written is None or now - known.written >= _SEEN_INTERVAL:
                known.written = now
                self._seenDue[known] = None

    async def writeSeen(self) -> None:
        """Write some of the times that are due."""
        if group := list(islice(self._seenDue, _GROUP)):
            for each in group:
                del self._seenDue[each]
            await self._touch(group)
