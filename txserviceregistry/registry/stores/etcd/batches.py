"""
A tenant's changes and their events in etcd: made in groups, each one transaction, guarded by the tenant's clock.

The clock is a key that every change of the tenant's objects sets, so that event ids grow strictly whichever node makes
them. A group whose guard fails has lost to another node's group: it is worked out again over what is there now. So that
nodes do not starve each other, changes that wait go together, and nodes that make changes of one tenant take turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import inf
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ....util.deferred import Waiters
from ...model import PLAIN_TYPES, tenantOf
from ...uuids import EventIds, newTail, positionOf
from ..interfaces import LimitExceeded, StoreUnavailable
from .gateway import Etcd
from .keyvalues import Clause, KeyValue, createdAt, deletion, jsonBytes, put, reading, readKept, unchanged

_T = TypeVar("_T")

#: Changes in one transaction at most. Each reads and sets three keys at the most; etcd takes 128 operations.
GROUP = 40
#: Bytes that a transaction sets before it takes no further change: etcd takes requests of 1.5 MB.
LARGEST = 1_000_000
#: Bytes of the events that share a key, unless a single one is larger: so a page of keys stays small.
SHARED = 16_000
#: Seconds that a change waits and is retried while other nodes change the same tenant.
PATIENCE = 8.0
#: Seconds of a turn at most, and its length in transactions. It is longer than one: a process learns of another one's
#: transaction late, and its own fails if it does not wait until then.
TURN = 0.05
TURN_TRANSACTIONS = 3
# The fields of values since version 1.
_CLOCK = {"last": int, "services": int, "values": int}
_EVENT = {"timestamp": int, "type": str, "payload": dict}


@attrs.define
class TenantClock:
    last: int = 0  # the position of the tenant's last event
    services: int = 0  # how many it has, as of the others
    values: int = 0
    locks: int = 0
    states: int = 0
    fence: int = 0  # its greatest so far
    modified: int = 0  # the revision that set the clock; 0 if there is none

    @classmethod
    def of(cls, found: KeyValue | None) -> TenantClock:
        if found is None:
            return cls()
        kept = readKept(found.key, found.value, _CLOCK)
        kept.pop("v", None)
        return cls(**kept, modified=found.modified)

    def toBytes(self) -> bytes:
        return jsonBytes({"v": 1, **attrs.asdict(self, filter=attrs.filters.exclude("modified"))})


class TenantIds:
    """
    The tenants' event ids. Each tenant has a tail of its own, made of the registry's *tail*, so that no two events of
    different tenants have the same id.
    """

    def __init__(self, wallClock: Callable[[], float]) -> None:
        self.tail = ""
        self._wallClock = wallClock
        self._ids: dict[str, EventIds] = {}

    def of(self, tenant: str) -> EventIds:
        tenant = tenantOf(tenant)
        if tenant not in self._ids:
            drawn = int.from_bytes(blake2b(f"{self.tail} {tenant}".encode(), digest_size=8).digest(), "big")
            self._ids[tenant] = EventIds(self._wallClock, newTail(lambda bits: drawn & (1 << bits) - 1))
        return self._ids[tenant]


class Postponed(Exception):
    """A change has to be part of a later group."""


class Disproved(Exception):
    """A key has another revision than a change expects."""


@attrs.define(eq=False)
class Transaction:
    """The tenant's objects as they are, and the changes that a group is about to make to them and to its *clock*."""

    clock: TenantClock
    # The keys that were read, None for those that are not there.
    found: Mapping[str, KeyValue | None]
    _wallClock: Callable[[], float]
    # The keys that changes have looked at and that were not read, which are likely not there.
    assumed: set[str] = attrs.Factory(set)
    # The revision at which the group was made; 0 before that.
    made: int = 0
    guards: dict[str, Clause] = attrs.Factory(dict)
    _changes: dict[str, bytes | None] = attrs.Factory(dict)
    # The kinds of the events' keys, the positions, and the events as they are kept.
    _events: list[tuple[str, int, bytes]] = attrs.Factory(list)
    _size: int = 0

    def need(self, *keys: str) -> None:
        """Have these keys read before the change is made, which likely depends on what is there."""
        if not self.found.keys() >= set(keys):
            self.assumed.update(keys)
            raise Postponed(keys)

    def _look(self, key: str) -> KeyValue | None:
        if key not in self.found:
            self.assumed.add(key)
        return self.found.get(key)

    def get(self, key: str) -> bytes | None:
        """The value of a key; ``None`` if it is not there, or was not read: then the group fails if it is there."""
        found = self._look(key)
        return self._changes.get(key, None if found is None else found.value)

    def guard(self, key: str, revision: int | None = None, isCreation: bool = False) -> None:
        """
        Let the group fail if this key, which changes without the clock, is not as it was found. Fails with
        :class:`Disproved` if it was not found as last changed (or as created) by this *revision*, 0 for a missing one.
        """
        kept = self._look(key)
        found = 0 if kept is None else kept.created if isCreation else kept.modified
        if revision is not None and (revision != found or key in self._changes):
            raise Disproved(key)
        self.guards[key] = createdAt(key, found) if isCreation else unchanged(key, found)

    def put(self, key: str, value: bytes) -> None:
        # If the group deletes it too, etcd would only change it, and its create revision would stay.
        if self.found.get(key) is not None and self._changes.get(key, b"") is None:
            raise Postponed(key)
        self._changes[key] = value
        self._size += len(value)

    def delete(self, key: str) -> None:
        """Delete a key, whether or not it is there."""
        self._changes[key] = None

    def count(self, kind: str, change: int, maximum: float = inf) -> None:
        """Note that there are more or fewer objects of a kind; :class:`LimitExceeded` beyond the *maximum*."""
        count = getattr(self.clock, kind)
        if change > 0 and count >= maximum:
            raise LimitExceeded(maximum)
        setattr(self.clock, kind, count + change)

    def addEvent(self, type: str, payload: Mapping[str, Any], timestamp: int | None = None) -> int:
        """Add an event, with a *timestamp* in milliseconds since the epoch or now; returns its position."""
        position = self.clock.last = max(positionOf(self._wallClock()), self.clock.last + 1)
        moment = int(self._wallClock() * 1000) if timestamp is None else timestamp
        event = jsonBytes({"position": position, "timestamp": moment, "type": type, "payload": payload})
        self._events.append(("events" if type in PLAIN_TYPES else "moreevents", position, event))
        self._size += len(event)
        return position

    def attempt(self, act: Callable[[Transaction], _T]) -> _T | Exception:
        """
        Let *act* make its changes: all of them or, if it fails or they are too large with the others, none. Returns its
        result or its exception, :class:`Postponed` if the changes are too large.
        """
        before = attrs.evolve(self.clock), self._changes.copy(), self.guards.copy(), self._events.copy(), self._size
        try:
            outcome = act(self)
            if before[-1] and self._size > LARGEST:
                raise Postponed(act)
            return outcome
        except Exception as error:
            self.clock, self._changes, self.guards, self._events, self._size = before
            return error

    def changes(self) -> list[Clause]:
        return [deletion(key) if value is None else put(key, value) for key, value in self._changes.items()]

    def events(self, prefix: str, tenant: str, by: str) -> dict[str, bytes]:
        """The added events by their keys; they say *by* which group they were added."""
        parts: dict[str, list[list[tuple[int, bytes]]]] = {}
        for kind, position, event in self._events:
            ofKind = parts.setdefault(kind, [[]])
            if ofKind[-1] and sum(len(each) for _, each in ofKind[-1]) + len(event) > SHARED:
                ofKind.append([])
            ofKind[-1].append((position, event))
        return {
            f"{prefix}{kind}/{tenant}/{part[-1][0]:016x}": b'{"v":2,"by":"%s","events":[%s]}'
            % (by.encode("ascii"), b",".join(event for _, event in part))
            for kind, ofKind in parts.items()
            for part in ofKind
        }


def lastPosition(found: KeyValue) -> int:
    """The position of the last event in a key."""
    return int(found.key.rpartition("/")[2], 16)


def eventsIn(found: KeyValue) -> tuple[str, list[dict[str, Any]]]:
    """The group that added the events in a key, and the events in their order."""
    kept = readKept(found.key, found.value, {})
    if "events" in kept:
        return kept.get("by", ""), list(kept["events"])
    # An early release kept each under a key of its own.
    return "", [{**readKept(found.key, found.value, _EVENT), "position": lastPosition(found)}]


@attrs.define(eq=False)
class _Step(Generic[_T]):
    act: Callable[[Transaction], _T]
    begun: float
    done: Deferred[_T] = attrs.Factory(Deferred)


@attrs.define(eq=False)
class _Tenant:
    name: str
    waiting: deque[_Step[Any]] = attrs.Factory(deque)
    # Whether changes are waiting, or a group is under way.
    isBusy: bool = False
    clock: TenantClock | None = None
    # The processes that make groups, in the order of their last ones; and what fires at each group.
    recent: dict[str, None] = attrs.Factory(dict)
    committed: Waiters[None] = attrs.Factory(Waiters)

    def learn(self, clock: TenantClock) -> None:
        if self.clock is None or self.clock.modified < clock.modified:
            self.clock = clock


@attrs.define(eq=False)
class Batches:
    """Makes the changes of all tenants. *process* names this process's groups; no other one has or had the name."""

    _etcd: Etcd
    _clock: IReactorTime
    _wallClock: Callable[[], float]
    _prefix: str
    process: str
    _tenants: dict[str, _Tenant] = attrs.Factory(dict)
    # How many tenants are busy, and how many groups are being reported.
    _busy: int = 0
    _number: int = 0
    _idle: Waiters[None] = attrs.Factory(Waiters)
    # Seconds of a turn, on average.
    _turn: float = 0.0

    def do(self, tenant: str, act: Callable[[Transaction], _T]) -> Deferred[_T]:
        """
        Make a change of a tenant's objects; fires with what *act* has returned when it is kept. *act* needs three keys
        at the most, beside those that all changes of a kind share, and may be called again, over another transaction.
        If it raises an exception, the change fails with it; other changes of the group do not.
        """
        step, of = _Step(act, self._clock.seconds()), self._of(tenantOf(tenant))
        of.waiting.append(step)
        if not of.isBusy:
            of.isBusy = True
            self._busy += 1
            # The next turn: what comes in this one goes along.
            self._clock.callLater(0, lambda: Deferred.fromCoroutine(self._work(of)))
        return step.done

    def whenIdle(self) -> Deferred[None]:
        """Fires when no change is under way."""
        return self._idle.wait() if self._busy else succeed(None)

    def forget(self) -> None:
        """The tenants' clocks may have been set back: etcd may have been restored from a backup."""
        for tenant in self._tenants.values():
            tenant.clock = None

    def clockChanged(self, tenant: str, now: KeyValue) -> None:
        self._of(tenant).learn(TenantClock.of(now))

    def eventsAdded(self, tenant: str, now: KeyValue) -> Collection[str]:
        """A key with events was added; returns their types."""
        by, events = eventsIn(now)
        process = by.partition(".")[0]
        if process not in ("", self.process):
            self.committed(tenant, process)
        return {event["type"] for event in events}

    def committed(self, tenant: str, process: str) -> None:
        """A process has made a group of a tenant's changes."""
        of = self._of(tenant)
        of.recent.pop(process, None)
        of.recent[process] = None
        of.committed.fire(None)

    def _of(self, tenant: str) -> _Tenant:
        return self._tenants.setdefault(tenant, _Tenant(tenant))

    async def _work(self, tenant: _Tenant) -> None:
        while tenant.waiting:
            await self._untilTurn(tenant)
            late = StoreUnavailable("etcd is overloaded, or other nodes change the same tenant all the time")
            while tenant.waiting and self._clock.seconds() - tenant.waiting[0].begun > PATIENCE:
                tenant.waiting.popleft().done.errback(late)
            steps = [tenant.waiting.popleft() for _ in range(min(GROUP, len(tenant.waiting)))]
            outcomes: Sequence[Any]
            try:
                outcomes = await self._group(tenant, steps)
            except Exception as error:
                outcomes = [error] * len(steps)
            done = list(zip(steps, outcomes, strict=True))
            tenant.waiting.extendleft(step for step, outcome in reversed(done) if isinstance(outcome, Postponed))
            self._busy += 1
            # The consequences of a change are handled while etcd works on the next group, whose request leaves in the
            # next turn.
            self._clock.callLater(0, self._clock.callLater, 0, self._report, done)
        tenant.isBusy = False
        self._ended()

    def _report(self, done: Sequence[tuple[_Step[Any], Any]]) -> None:
        for step, outcome in done:
            if not isinstance(outcome, Postponed):
                step.done.callback(Failure(outcome) if isinstance(outcome, Exception) else outcome)
        self._ended()

    def _ended(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.fire(None)

    async def _untilTurn(self, tenant: _Tenant) -> None:
        """Let the processes go first that are, by name, between the last one and this one: else all but one fail."""
        begun = self._clock.seconds()
        while True:
            order = sorted({*tenant.recent, self.process})
            last = order.index(next(reversed(tenant.recent), self.process)) + 1
            ring = order[last:] + order[:last]
            before = ring[: ring.index(self.process)]
            if not before:
                return
            left = begun + self._turn * len(before) - self._clock.seconds()
            try:
                await tenant.committed.wait().addTimeout(max(0.0, left), self._clock)
            except TimeoutError:
                # They have nothing to do.
                for each in before:
                    del tenant.recent[each]

    async def _group(self, tenant: _Tenant, steps: Sequence[_Step[Any]]) -> list[Any]:
        clockKey = f"{self._prefix}clocks/{tenant.name}"
        known, found, keys = tenant.clock, dict[str, KeyValue | None](), set[str]()

        def read(keys: Iterable[str]) -> list[Clause]:
            return [reading(key) for key in dict.fromkeys([clockKey, *keys])]

        while True:
            transaction = Transaction(attrs.evolve(known or TenantClock()), found, self._wallClock)
            outcomes = [transaction.attempt(step.act) for step in steps]
            keys |= transaction.assumed
            isDoubtful = transaction.assumed and any(isinstance(outcome, Exception) for outcome in outcomes)
            if known is None or isDoubtful:
                # New objects need not be looked for first: the transaction fails if one of them exists.
                kept = (await self._etcd.txn((), read(keys), isUrgent=True)).byKey
                known, found = TenantClock.of(kept.get(clockKey)), {key: kept.get(key) for key in keys}
                continue
            self._number += 1
            events = transaction.events(self._prefix, tenant.name, f"{self.process}.{self._number}")
            changes = [*transaction.changes(), *(put(key, value) for key, value in events.items())]
            if not changes:
                return outcomes
            clock = transaction.clock
            # The first events show what was done; a group without events may be made twice.
            mark = next(iter(events), clockKey)
            sent = self._clock.seconds()
            absent = [unchanged(key, 0) for key in transaction.assumed]
            done = await self._etcd.txn(
                [unchanged(clockKey, known.modified), *transaction.guards.values(), *absent],
                # In this order: at the events, which the watch shows last, other processes have the new clock.
                [put(clockKey, clock.toBytes()), *changes],
                read([mark, *found]),
                isUrgent=True,
            )
            self._turn += (min(TURN, TURN_TRANSACTIONS * (self._clock.seconds() - sent)) - self._turn) / 8
            kept = done.byKey
            if done.succeeded:
                transaction.made = clock.modified = done.revision
                tenant.learn(clock)
            else:
                tenant.clock = clock = TenantClock.of(kept.get(clockKey))
                if mark in kept and kept[mark].value == events.get(mark):
                    # The response was lost, and the transaction sent again.
                    transaction.made = kept[mark].created
            if transaction.made:
                self.committed(tenant.name, self.process)
                self._etcd.statistics.commits.add(len(steps))
                return outcomes
            if clock.modified != known.modified:
                # Changes that have come meanwhile join the next attempt.
                return [Postponed()] * len(steps)
            # One of the objects exists, or a guarded key has changed.
            known, found = None if transaction.assumed else clock, {key: kept.get(key) for key in found}
