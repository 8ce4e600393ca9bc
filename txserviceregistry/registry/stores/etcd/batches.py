"""
How a tenant's changes are made in etcd: in groups, each one transaction, guarded by the tenant's clock.

The clock is a key that every change of the tenant's objects sets. It holds the position of the tenant's last event, so
that event ids grow strictly whichever node makes them, and how many objects there are. A group whose guard fails has
lost to another node's group: it is worked out again over what is there now. So that nodes do not starve each other,
all changes that wait together go together, and nodes that make changes of one tenant take turns. The events of a group
share keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ....util.deferred import Waiters
from ...eventids import positionOf
from ...model import PLAIN_TYPES
from ...scopes import tenantOf
from ..interfaces import StoreUnavailable
from .gateway import Etcd, KeyValue, Revision, Txn, Urgency, deletion, jsonBytes, put, reading, unchanged
from .kept import readKept

_T = TypeVar("_T")

#: Changes in one transaction at most. Each reads and sets three keys at the most; etcd takes 128 operations.
GROUP = 40
#: Bytes that a transaction sets before it takes no further change: etcd takes requests of 1.5 MB.
LARGEST = 1_000_000
#: Bytes of the events that share a key, unless a single one is larger: so a page of keys stays small.
SHARED = 16_000
#: Seconds that a change waits and is retried while other nodes change the same tenant.
PATIENCE = 8.0
#: For how many seconds, and how many groups of this process without one of its own, a process that has made changes of
#: a tenant is expected to make more.
ACTIVE = 1.0
MISSED = 2
#: Seconds of a turn at most, and its length in transactions. It is longer than one: a process learns of another one's
#: transaction late, and its own fails if it does not wait until then.
TURN = 0.05
TURN_TRANSACTIONS = 3
# What keys have since version 1.
_CLOCK = {"last": int, "services": int, "values": int}
_EVENT = {"timestamp": int, "type": str, "payload": dict}
_LATE = "etcd is overloaded, or other nodes change the same tenant all the time"


@attrs.define
class TenantClock:
    """The position of a tenant's last event, how many objects of each kind it has, and its greatest fence so far."""

    last: int = 0
    services: int = 0
    values: int = 0
    locks: int = 0
    states: int = 0
    fence: int = 0

    @classmethod
    def of(cls, found: KeyValue | None) -> TenantClock:
        """The clock as it is kept; a new one if there is none."""
        if found is None:
            return cls()
        kept = readKept(found.key, found.value, _CLOCK)
        kept.pop("v", None)
        return cls(**kept)

    def toBytes(self) -> bytes:
        """As it is kept."""
        return jsonBytes({"v": 1, **attrs.asdict(self)})


class Postponed(Exception):
    """A change has to be part of a later group."""


@attrs.define(eq=False)
class Transaction:
    """
    The tenant's objects as they are, and the changes that a group is about to make to them.

    :ivar clock: the tenant's clock; a change of it is a change like any other.
    :ivar made: the revision at which the group was made; 0 before that.
    :ivar missed: the keys that steps have looked at and that are not there.
    """

    clock: TenantClock
    _found: Mapping[str, KeyValue]
    _wallClock: Callable[[], float]
    made: int = 0
    missed: set[str] = attrs.Factory(set)
    _changes: dict[str, bytes | None] = attrs.Factory(dict)
    _guards: dict[str, dict[str, Any]] = attrs.Factory(dict)
    # The kinds of the events' keys, the positions, and the events as they are kept.
    _events: list[tuple[str, int, bytes]] = attrs.Factory(list)
    _size: int = 0

    def get(self, key: str) -> bytes | None:
        """The value of a key that the step has named; ``None`` if it is not there."""
        if key in self._changes:
            return self._changes[key]
        found = self._found.get(key)
        if found is None:
            self.missed.add(key)
            return None
        return found.value

    def isChanged(self, key: str) -> bool:
        """Whether the group is about to change this key."""
        return key in self._changes

    def revision(self, key: str, target: Revision = Revision.modified) -> int:
        """The revision that changed the key last in etcd, or created it; 0 if it is not there."""
        found = self._found.get(key)
        return 0 if found is None else found.modified if target is Revision.modified else found.created

    def guard(self, key: str, target: Revision = Revision.modified) -> None:
        """Let the group fail if this key, which changes without the clock, is not as it was found."""
        self._guards[key] = unchanged(key, self.revision(key, target), target)

    def put(self, key: str, value: bytes) -> None:
        # If the group deletes it too, etcd would only change it, and its create revision would stay.
        if key in self._found and self._changes.get(key, b"") is None:
            raise Postponed(key)
        self._changes[key] = value
        self._size += len(value)

    def delete(self, key: str) -> None:
        """Delete a key; that it is not there is no error."""
        self._changes[key] = None

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
        Let *act* make its changes: all of them or, if it fails or they are too large with the others, none.

        :return: its result or its exception; :class:`Postponed` if the changes are too large.
        """
        before = attrs.evolve(self.clock), self._changes.copy(), self._guards.copy(), self._events.copy(), self._size
        try:
            outcome = act(self)
            if before[-1] and self._size > LARGEST:
                raise Postponed(act)
            return outcome
        except Exception as error:
            self.clock, self._changes, self._guards, self._events, self._size = before
            return error

    def operations(self, prefix: str, tenant: str) -> list[dict[str, Any]]:
        """The changes, as etcd takes them."""
        made = [deletion(key) if change is None else put(key, change) for key, change in self._changes.items()]
        for kind in dict.fromkeys(kind for kind, _, _ in self._events):
            for events in _shared((position, event) for of, position, event in self._events if of == kind):
                value = b'{"v":2,"events":[%s]}' % b",".join(event for _, event in events)
                made.append(put(f"{prefix}{kind}/{tenant}/{events[-1][0]:016x}", value))
        return made

    @property
    def compares(self) -> Collection[dict[str, Any]]:
        """The guards, as etcd takes them."""
        return self._guards.values()


def _shared(events: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """The events, in parts that share a key."""
    part, size = list[tuple[int, bytes]](), 0
    for each in events:
        if part and size + len(each[1]) > SHARED:
            yield part
            part, size = [], 0
        part.append(each)
        size += len(each[1])
    if part:
        yield part


def lastPosition(found: KeyValue) -> int:
    """The position of the last event in a key."""
    return int(found.key.rpartition("/")[2], 16)


def eventsIn(found: KeyValue) -> list[dict[str, Any]]:
    """The events that share a key, in their order: position, timestamp, type and payload."""
    if "events" in (kept := readKept(found.key, found.value, {})):
        return list(kept["events"])
    # An early release kept each under a key of its own.
    return [{**readKept(found.key, found.value, _EVENT), "position": lastPosition(found)}]


@attrs.frozen(eq=False)
class Step(Generic[_T]):
    """
    A change that is to be part of a group.

    :ivar reads: the keys that it looks at: three at the most, beside those that all steps of a kind share.
    :ivar act: makes the change in a transaction, three keys at the most; may be called again, over another
        transaction. The change fails with the exception that it raises; other changes of the group do not.
    :ivar isNew: whether it is likely that none of its keys exists.
    """

    reads: Collection[str]
    act: Callable[[Transaction], _T]
    isNew: bool
    begun: float
    done: Deferred[_T] = attrs.Factory(Deferred)


@attrs.define(eq=False)
class Batches:
    """Makes the changes of all tenants. *process* names this process's groups; no other one has or had the name."""

    _etcd: Etcd
    _clock: IReactorTime
    _wallClock: Callable[[], float]
    _prefix: str
    process: str
    # By tenant, as long as there are any.
    _waiting: dict[str, deque[Step[Any]]] = attrs.Factory(dict)
    # How many groups are under way, or are being reported.
    _groups: int = 0
    _number: int = 0
    # The tenants' clocks, as far as they are known.
    _clocks: dict[str, KeyValue] = attrs.Factory(dict)
    _idle: Waiters[None] = attrs.Factory(Waiters)
    # When each process has made a group last, by tenant, in their order, and how many this one has made since.
    _commits: dict[str, dict[str, tuple[float, int]]] = attrs.Factory(dict)
    # The group that waits for its turn, by tenant.
    _committed: dict[str, Waiters[None]] = attrs.Factory(dict)
    # Seconds of a turn, on average.
    _turn: float = 0.0

    def do(
        self, tenant: str, reads: Collection[str], act: Callable[[Transaction], _T], isNew: bool = False
    ) -> Deferred[_T]:
        """
        Make a change of a tenant's objects, see :class:`Step`; fires with what *act* has returned when it is kept. The
        tenant may be given by one of its scopes.
        """
        step, tenant = Step(reads, act, isNew, self._clock.seconds()), tenantOf(tenant)
        waiting = self._waiting.get(tenant)
        if waiting is None:
            waiting = self._waiting[tenant] = deque()
            # The next turn: what comes in this one goes along.
            self._clock.callLater(0, self._next, tenant, waiting)
        waiting.append(step)
        return step.done

    def whenIdle(self) -> Deferred[None]:
        """Fires when no change is under way."""
        return self._idle.wait() if self._waiting or self._groups else succeed(None)

    def forget(self) -> None:
        """The tenants' clocks may have been set back: etcd may have been restored from a backup."""
        self._clocks = {}

    def clockChanged(self, tenant: str, now: KeyValue) -> None:
        """A tenant's clock is known to have been changed."""
        before = self._clocks.get(tenant)
        if before is None or before.modified < now.modified:
            self._clocks[tenant] = now

    def committed(self, tenant: str, process: str) -> None:
        """A process has made a group of a tenant's changes."""
        isOwn = process == self.process
        others = {each: (at, missed + isOwn) for each, (at, missed) in self._recent(tenant).items() if each != process}
        self._commits[tenant] = {**others, process: (self._clock.seconds(), 0)}
        if tenant in self._committed:
            self._committed[tenant].fire(None)

    def _recent(self, tenant: str) -> dict[str, tuple[float, int]]:
        """The processes that are expected to make changes of a tenant, the one that did so last at the end."""
        since, commits = self._clock.seconds() - ACTIVE, self._commits.get(tenant, {})
        return {process: (at, missed) for process, (at, missed) in commits.items() if at > since and missed < MISSED}

    async def _untilTurn(self, tenant: str) -> None:
        """Let the processes go first that are between the last one and this one: of groups at once all but one fail."""
        begun, committed = self._clock.seconds(), self._committed.setdefault(tenant, Waiters())
        while (left := begun + self._turn * self._before(tenant) - self._clock.seconds()) > 0:
            try:
                await committed.wait().addTimeout(left, self._clock)
            except TimeoutError:
                return

    def _before(self, tenant: str) -> int:
        """How many processes have a turn before this one."""
        recent = list(self._recent(tenant))
        order = sorted({*recent, self.process})
        last = recent[-1] if recent else self.process
        return (order.index(self.process) - order.index(last) - 1) % len(order)

    def _next(self, tenant: str, waiting: deque[Step[Any]]) -> None:
        Deferred.fromCoroutine(self._work(tenant, waiting))

    async def _work(self, tenant: str, waiting: deque[Step[Any]]) -> None:
        """Make one group, begin with the next one, and fire what waits for this one."""
        self._groups += 1
        await self._untilTurn(tenant)
        while waiting and self._isLate(waiting[0]):
            waiting.popleft().done.errback(StoreUnavailable(_LATE))
        steps = [waiting.popleft() for _ in range(min(GROUP, len(waiting)))]
        outcomes: Sequence[Any]
        try:
            outcomes = await self._group(tenant, steps)
        except Exception as error:
            outcomes = [error] * len(steps)
        done = list(zip(steps, outcomes, strict=True))
        waiting.extendleft(step for step, outcome in reversed(done) if isinstance(outcome, Postponed))
        if waiting:
            self._next(tenant, waiting)
        else:
            del self._waiting[tenant]
        # The consequences of a change are handled while etcd works on the next group, whose request leaves in the next
        # turn.
        for _ in range(2):
            await deferLater(self._clock, 0)
        for step, outcome in done:
            if not isinstance(outcome, Postponed):
                step.done.callback(Failure(outcome) if isinstance(outcome, Exception) else outcome)
        self._groups -= 1
        if not self._waiting and not self._groups:
            self._idle.fire(None)

    async def _group(self, tenant: str, steps: Sequence[Step[Any]], mayAssume: bool = True) -> list[Any]:
        """
        Make changes in one transaction; returns their outcomes, which may be exceptions. New objects need not be looked
        for first, if *mayAssume*: the transaction fails if one of them exists.
        """
        clockKey = f"{self._prefix}clocks/{tenant}"
        commitKey = f"{self._prefix}commits/{tenant}/{self.process}"
        keys = [clockKey, commitKey, *dict.fromkeys(key for step in steps for key in step.reads)]
        clock = self._clocks.get(tenant)
        isAssumed = mayAssume and clock is not None and all(step.isNew for step in steps)
        found = {clockKey: clock} if clock is not None and isAssumed else await self._read(keys)
        while True:
            transaction = Transaction(TenantClock.of(found.get(clockKey)), found, self._wallClock)
            outcomes = [transaction.attempt(step.act) for step in steps]
            if isAssumed and any(isinstance(outcome, Exception) for outcome in outcomes):
                return await self._group(tenant, steps, mayAssume=False)
            changes = transaction.operations(self._prefix, tenant)
            if not changes:
                return outcomes
            self._number += 1
            number = str(self._number).encode("ascii")
            clockValue, revision = transaction.clock.toBytes(), transaction.revision(clockKey)
            absent = transaction.missed if isAssumed else ()
            sent = self._clock.seconds()
            done = await self._etcd.txn(
                [unchanged(clockKey, revision), *transaction.compares, *(unchanged(key, 0) for key in absent)],
                [*changes, put(clockKey, clockValue), put(commitKey, number)],
                [reading(key) for key in (keys[:2] if isAssumed else keys)],
                urgency=Urgency.pressing,
            )
            self._turn += (min(TURN, TURN_TRANSACTIONS * (self._clock.seconds() - sent)) - self._turn) / 8
            if done.succeeded:
                transaction.made = done.revision
            else:
                # If the answer was lost it was sent again, and failed then: what it did the first time, the key shows
                # that only this node sets.
                found = _found(done)
                commit = found.get(commitKey)
                if commit is not None and commit.value == number:
                    transaction.made = commit.modified
            if transaction.made:
                self.committed(tenant, self.process)
                self.clockChanged(tenant, KeyValue(clockKey, clockValue, 0, transaction.made, 0))
                self._etcd.statistics.commits.add(len(steps))
                return outcomes
            if isAssumed and clockKey in found and found[clockKey].modified != revision:
                self.clockChanged(tenant, found[clockKey])
                # Changes that have come meanwhile join the next attempt.
                return [Postponed(clockKey)] * len(steps)
            if isAssumed:
                # One of the objects exists.
                return await self._group(tenant, steps, mayAssume=False)
            if self._isLate(steps[0]):
                raise StoreUnavailable(_LATE)

    def _isLate(self, step: Step[Any]) -> bool:
        return self._clock.seconds() - step.begun > PATIENCE

    async def _read(self, keys: Collection[str]) -> Mapping[str, KeyValue]:
        return _found(await self._etcd.txn((), [reading(key) for key in keys], urgency=Urgency.pressing))


def _found(done: Txn) -> Mapping[str, KeyValue]:
    return {each.key: each for kept in done.found for each in kept}
