"""
Nodes over one linearizable etcd, in simulated time: pauses, partitions, kills, clock drift, late transactions and deaf
watches, drawn from a seed.

The nodes run the program's own code (:class:`Node`, :class:`Votes`, :class:`StallTolerantClock`); etcd, the network,
the services' deadlines and the applications are simulated. A :class:`Violation` is raised as soon as a promise is
broken: no expiration within a timeout of an acknowledged heartbeat, no acknowledgement after the expiration of that
registration, one expiration per registration, and every silent service expires in the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from txserviceregistry.registry.engine import ADMISSION
from txserviceregistry.registry.expiry import StallTolerantClock
from txserviceregistry.registry.stores.etcd.node import INodeKeys, Node
from txserviceregistry.registry.stores.etcd.votes import Evidence, Registration, Status
from txserviceregistry.registry.stores.interfaces import IStoreListener, NoSuchObject, StoreUnavailable
from txserviceregistry.util.deferred import waitFor

__all__ = ["Application", "SimulatedNode", "Violation", "World"]

#: Seconds after which a request without a response fails.
_PATIENCE = 1.0

Key = tuple[str, Any]


class Violation(Exception):
    """A promise was broken."""


@attrs.define
class Entry:
    """A key in etcd."""

    created: int
    modified: int
    value: Any
    lease: str = ""


@attrs.define
class Truth:
    """
    The true history of a registration.

    :ivar acknowledged: when its last acknowledged heartbeat was processed, or the registration itself.
    :ivar ended: when it expired or was removed.
    :ivar isRemoved: whether it was removed: nodes may acknowledge heartbeats until their watch shows that.
    """

    timeout: float
    acknowledged: float
    ended: float | None = None
    isRemoved: bool = False


class Time:
    """Simulated time, for many more calls than :class:`~twisted.internet.task.Clock` is made for."""

    def __init__(self) -> None:
        self._now = 0.0
        self._numbers = count()
        self._calls: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def seconds(self) -> float:
        """The time."""
        return self._now

    def callLater(self, delay: float, call: Callable[..., object], *arguments: Any) -> None:
        """Call something later; it can't be cancelled."""
        heappush(self._calls, (self._now + max(0.0, delay), next(self._numbers), call, arguments))

    def run(self, end: float) -> None:
        """Go on until *end*."""
        calls = self._calls
        while calls and calls[0][0] <= end:
            self._now, _, call, arguments = heappop(calls)
            call(*arguments)
        self._now = end


@implementer(IDelayedCall)
class Call:
    """A call on a node's clock, which can be cancelled."""

    def __init__(self, clock: NodeClock, call: Callable[..., object], arguments: Any, keywords: Any) -> None:
        self._clock = clock
        self._call, self._arguments, self._keywords = call, arguments, keywords
        self._isActive = True

    def due(self) -> None:
        """The time has come."""
        left = self._clock.standsStill()
        if not self._isActive or left is None:
            return
        if left > 0:
            self._clock.world.clock.callLater(left, self.due)
            return
        self._isActive = False
        self._call(*self._arguments, **self._keywords)

    def cancel(self) -> None:
        """See IDelayedCall."""
        self._isActive = False

    def active(self) -> bool:
        """See IDelayedCall."""
        return self._isActive


class World:
    """
    The clock, etcd, the network, and what is true.

    :param seed: everything random is drawn from it.
    :param without: names of rules that nodes do not follow.
    """

    def __init__(self, seed: int, without: frozenset[str] = frozenset(), *, nodes: int = 3) -> None:
        self.random = random.Random(seed)
        self.clock = Time()
        self.without = without
        self.revision = 0
        self.entries: dict[Key, Entry] = {}
        self.leases: dict[str, float] = {}
        self.truths: dict[Registration, Truth] = {}
        self.lateness: list[float] = []
        self.violations: list[Violation] = []
        self.acknowledged = self.touches = self.refused = self.missing = 0
        self.writes = self.updates = self.admitted = 0
        self._positions = count(1)
        self.commit({("joins", ""): None})
        self.nodes = [SimulatedNode(self, name) for name in "abcd"[:nodes]]
        for node in self.nodes:
            node.start()

    @property
    def now(self) -> float:
        """The true time."""
        return self.clock.seconds()

    def run(self, end: float) -> None:
        """Go on until *end*."""
        self.clock.run(end)

    def latency(self) -> float:
        """Seconds that something takes in the network."""
        if self.random.random() > 0.02:
            return self.random.uniform(0.001, 0.01)
        return self.random.uniform(0.01, 1.5)

    # -- etcd

    def revisionOf(self, key: Key) -> int:
        """The revision of a key's last change; 0 for none."""
        entry = self.entries.get(key)
        return 0 if entry is None else entry.modified

    def createdOf(self, key: Key) -> int:
        """The create revision of a key; 0 for none."""
        entry = self.entries.get(key)
        return 0 if entry is None else entry.created

    def commit(self, changes: Mapping[Key, Any], deleted: tuple[Key, ...] = (), lease: str = "") -> int:
        """Make changes in one revision; keys of nodes go with the *lease*."""
        self.revision += 1
        self.writes += 1
        for key, value in changes.items():
            created = self.createdOf(key) or self.revision
            self.entries[key] = Entry(created, self.revision, value, lease if key[0] == "nodes" else "")
        for key in deleted:
            self.entries.pop(key, None)
        events = [(key, self.entries.get(key)) for key in (*changes, *deleted)]
        for node in getattr(self, "nodes", ()):
            node.feed(self.revision, events)
        return self.revision

    def grant(self, lease: str, seconds: float) -> None:
        """Begin a lease."""
        self.leases[lease] = self.now + seconds
        self.clock.callLater(seconds, self._check, lease)

    def _check(self, lease: str) -> None:
        end = self.leases.get(lease)
        if end is None:
            return
        if end > self.now:
            self.clock.callLater(end - self.now + self.random.uniform(0, 0.5), self._check, lease)
            return
        self.revoke(lease)

    def revoke(self, lease: str) -> None:
        """End a lease, and the keys that go with it."""
        if self.leases.pop(lease, None) is not None:
            keys = tuple(key for key, entry in self.entries.items() if entry.lease == lease)
            if keys:
                self.commit({}, keys)

    # -- what is true

    def register(self, tenant: str, timeout: float) -> Registration:
        """A service registers."""
        registration = tenant, f"s{next(self._positions)}"
        self.truths[registration] = Truth(timeout, self.now)
        self.commit({("services", registration): (timeout, 0)})
        return registration

    def acknowledge(self, registration: Registration) -> None:
        """A node acknowledges a heartbeat that it processes now."""
        truth = self.truths[registration]
        if truth.ended is not None and not truth.isRemoved:
            raise self.violated(f"{registration}: acknowledged at {self.now:.2f}, expired at {truth.ended:.2f}")
        truth.acknowledged = self.now
        self.acknowledged += 1

    def expire(self, registration: Registration) -> None:
        """The expiration of a registration is committed."""
        truth = self.truths[registration]
        if truth.ended is not None:
            raise self.violated(f"{registration}: reported twice")
        silence = self.now - truth.acknowledged
        # Clock rates differ by up to 1 %, and deadlines are kept by the node's clock.
        if silence < truth.timeout * 0.975:
            raise self.violated(
                f"{registration} (timeout {truth.timeout}) expired {silence:.2f} s after an acknowledged heartbeat"
            )
        truth.ended = self.now
        self.lateness.append(silence - truth.timeout)

    def update(self, registration: Registration, timeout: float) -> bool:
        """A service is given another timeout, which counts from now: its record and the time of a touch are written."""
        truth = self.truths[registration]
        if truth.ended is not None:
            return False
        truth.timeout, truth.acknowledged = timeout, self.now
        _, renewals = self.entries["services", registration].value
        self.commit({("services", registration): (timeout, renewals + 1), ("seen", registration): None})
        self.updates += 1
        return True

    def remove(self, registration: Registration) -> bool:
        """A service deregisters."""
        truth = self.truths[registration]
        if truth.ended is not None:
            return False
        truth.ended, truth.isRemoved = self.now, True
        self.commit({}, (("services", registration), ("seen", registration)))
        return True

    def violated(self, what: str) -> Violation:
        """A promise was broken: the run fails, wherever the exception ends."""
        violation = Violation(what)
        self.violations.append(violation)
        return violation


@implementer(IReactorTime)
class NodeClock:
    """
    A node's reactor: it runs at a rate of its own, and stands still while the node is paused.

    :ivar pausedUntil: when the node goes on, in true time.
    """

    def __init__(self, world: World, rate: float) -> None:
        self.world = world
        self._rate = rate
        self.pausedUntil = 0.0
        self.isDead = False

    def seconds(self) -> float:
        """See IReactorTime."""
        return self.world.now * self._rate

    def callLater(self, delay: float, call: Callable[..., object], *arguments: Any, **keywords: Any) -> Call:
        """See IReactorTime."""
        made = Call(self, call, arguments, keywords)
        # A little later, so that rounding never makes a call come before its time.
        self.world.clock.callLater(delay / self._rate + 1e-6, made.due)
        return made

    def standsStill(self) -> float | None:
        """Seconds for which the node is paused; ``None`` if its process has ended."""
        return None if self.isDead else self.pausedUntil - self.world.now

    def getDelayedCalls(self) -> list[Any]:
        """See IReactorTime."""
        return []

    def receive(self, call: Callable[[], object]) -> None:
        """Something arrives at a socket: it is read when the node runs, after the timers that were due."""
        left = self.standsStill()
        if left is None:
            return
        if left > 0:
            self.world.clock.callLater(left + 0.002, self.receive, call)
        else:
            call()


@attrs.define
class Known:
    """A node's knowledge of a registration."""

    timeout: float
    deadline: float
    renewals: int
    isQueued: bool = True


@implementer(INodeKeys, IStoreListener)
class Process:
    """One process of a node, from its start to its end: what the program's :class:`Node` is given."""

    def __init__(self, world: World, place: SimulatedNode) -> None:
        self.world = world
        self.place = place
        self.clock = NodeClock(world, place.rate)
        self.known: dict[Registration, Known] = {}
        self.seenRevisions: dict[Registration, int] = {}
        self.isSuspended = True
        self.expirations: list[Registration] = []
        self.node = Node(self, self.clock, self.clock.seconds)
        self.serviceClock = StallTolerantClock(self.clock, self.node.tick)
        # The revision from which on the watch delivers; ``None`` while it does not.
        self.watching: int | None = None
        self.isDeaf = False
        # The changes to deliver first, because they came after the revision that is being read.
        self.early: list[tuple[int, list[tuple[Key, Entry | None]]]] = []

    def start(self) -> None:
        """Begin."""
        self.serviceClock.start()
        self.node.start(self)

    # -- the way to etcd and back

    def ask(self, apply: Callable[[], Any]) -> Deferred[Any]:
        """A request to etcd: it may be late, and its response may be lost."""
        world, place = self.world, self.place
        answered: Deferred[Any] = Deferred(lambda _: None)

        def respond(result: Any) -> None:
            if not answered.called:
                # An exception is a failure.
                (answered.errback if isinstance(result, Exception) else answered.callback)(result)

        def fail() -> None:
            if not answered.called:
                answered.errback(StoreUnavailable("no response"))

        def arrive() -> None:
            result = apply()
            if place.cutUntil <= world.now:
                world.clock.callLater(world.latency(), self.clock.receive, lambda: respond(result))

        self.clock.callLater(_PATIENCE, fail)
        if place.cutUntil > world.now:
            if world.random.random() < 0.5:
                # It is stuck in the network.
                world.clock.callLater(place.cutUntil - world.now + world.latency(), arrive)
        elif world.random.random() < 0.01:
            world.clock.callLater(world.random.uniform(0.5, 4), arrive)
        else:
            world.clock.callLater(world.latency(), arrive)
        return answered

    # -- INodeKeys

    def join(self, name: str, seconds: int, status: Status) -> Deferred[tuple[int, float]]:
        """See :meth:`INodeKeys.join`."""

        def apply() -> tuple[int, float]:
            self.world.grant(name, seconds)
            return self.world.commit({("nodes", name): status, ("joins", ""): None}, lease=name), seconds

        return self.ask(apply)

    def load(self) -> Deferred[None]:
        """See :meth:`INodeKeys.load`."""
        self.watching, self.early = None, []

        def apply() -> tuple[int, dict[Key, Entry]]:
            return self.world.revision, {key: attrs.evolve(entry) for key, entry in self.world.entries.items()}

        def loaded(found: tuple[int, dict[Key, Entry]]) -> None:
            revision, entries = found
            self.watching = revision
            self.isDeaf = False
            services = {key[1]: entry for key, entry in entries.items() if key[0] == "services"}
            for registration in [each for each in self.known if each not in services]:
                del self.known[registration]
            for registration, entry in services.items():
                self.meet(registration, entry)
            self.seenRevisions = {key[1]: entry.modified for key, entry in entries.items() if key[0] == "seen"}
            self.node.joins = entries["joins", ""].modified
            statuses = {key[1]: entry.value for key, entry in entries.items() if key[0] == "nodes"}
            self.node.membersAre(set(statuses))
            for name, status in statuses.items():
                self.node.statusChanged(name, status)
            for each in self.early:
                self.changed(*each)

        return self.ask(apply).addCallback(loaded)

    def renew(self, name: str) -> Deferred[bool]:
        """See :meth:`INodeKeys.renew`."""

        def apply() -> bool:
            if name not in self.world.leases:
                return False
            self.world.leases[name] = self.world.now + 5.0
            return True

        return self.ask(apply)

    def publish(self, name: str, created: int, status: Status) -> Deferred[bool]:
        """See :meth:`INodeKeys.publish`."""

        def apply() -> bool:
            if self.world.createdOf(("nodes", name)) != created:
                return False
            self.world.commit({("nodes", name): status}, lease=name)
            return True

        return self.ask(apply)

    def touch(self, registration: Registration) -> Deferred[bool]:
        """See :meth:`INodeKeys.touch`."""

        def apply() -> bool:
            self.world.touches += 1
            if ("services", registration) not in self.world.entries:
                return False
            self.world.commit({("seen", registration): None})
            return True

        return self.ask(apply)

    def expire(self, name: str, created: int, registration: Registration, evidence: Evidence) -> Deferred[bool]:
        """See :meth:`INodeKeys.expire`."""
        world = self.world

        def apply() -> bool | NoSuchObject:
            if ("services", registration) not in world.entries:
                return NoSuchObject(registration)
            checks = {
                "seen": world.revisionOf(("seen", registration)) == evidence.seen,
                "joins": world.revisionOf(("joins", "")) == evidence.joins,
                "self": world.createdOf(("nodes", name)) == created,
            }
            if not all(holds or rule in world.without for rule, holds in checks.items()):
                return False
            world.expire(registration)
            world.commit({}, (("services", registration), ("seen", registration)))
            return True

        return self.ask(apply)

    def seen(self, registration: Registration) -> int:
        """See :meth:`INodeKeys.seen`."""
        return self.seenRevisions.get(registration, 0)

    def leave(self, name: str) -> Deferred[None]:
        """See :meth:`INodeKeys.leave`."""
        return self.ask(lambda: self.world.revoke(name))

    # -- the watch

    def changed(self, revision: int, events: list[tuple[Key, Entry | None]]) -> None:
        """The watch delivers what one revision changed."""
        if self.watching is None:
            self.early.append((revision, events))
        if self.isDeaf or self.watching is None or revision <= self.watching:
            return
        self.watching = revision
        for (kind, name), entry in events:
            if kind == "joins" and entry is not None:
                self.node.joins = entry.modified
            elif kind == "services":
                if entry is None:
                    self.known.pop(name, None)
                else:
                    self.meet(name, entry)
            elif kind == "seen":
                if entry is not None:
                    self.seenRevisions[name] = entry.modified
            elif kind == "nodes":
                if entry is None:
                    self.node.nodeGone(name)
                else:
                    self.node.statusChanged(name, entry.value)

    # -- IStoreListener

    def meet(self, registration: Registration, entry: Entry) -> None:
        """A service exists. It has a full timeout if it is new or its timeout was updated."""
        known, (timeout, renewals) = self.known.get(registration), entry.value
        if known is None or known.renewals < renewals:
            self.known[registration] = Known(timeout, self.serviceClock.now() + timeout, renewals)

    def secondsLeft(self, registration: Registration) -> float:
        """See :meth:`IStoreListener.secondsLeft`."""
        known = self.known.get(registration)
        return -1.0 if known is None else known.deadline - self.serviceClock.now()

    def timeout(self, registration: Registration) -> float:
        """See :meth:`IStoreListener.timeout`."""
        known = self.known.get(registration)
        return 0.0 if known is None else known.timeout

    def due(self, count: int) -> dict[Registration, int]:
        """See :meth:`IStoreListener.due`."""
        now = self.serviceClock.now()
        due = [each for each, known in self.known.items() if known.isQueued and known.deadline <= now][:count]
        for each in due:
            self.known[each].isQueued = False
        return dict.fromkeys(due, 0)

    def lookAgain(self, registration: Registration) -> None:
        """See :meth:`IStoreListener.lookAgain`."""
        known = self.known.get(registration)
        if known is not None:
            known.isQueued = True

    def leaveTo(self, registration: Registration, seconds: float) -> None:
        """See :meth:`IStoreListener.leaveTo`."""
        known = self.known.get(registration)
        if known is not None:
            known.isQueued = known.deadline > self.serviceClock.now()

    def renewAll(self) -> None:
        """See :meth:`IStoreListener.renewAll`."""
        now = self.serviceClock.now()
        for known in self.known.values():
            known.deadline = now + known.timeout
            known.isQueued = True
        self.isSuspended = False

    def expired(self, registration: Registration) -> None:
        """See :meth:`IStoreListener.expired`."""
        self.expirations.append(registration)
        self.ended(registration)

    def ended(self, registration: Registration) -> None:
        """See :meth:`IStoreListener.ended`."""
        self.known.pop(registration, None)

    def suspend(self) -> None:
        """See :meth:`IStoreListener.suspend`."""
        self.isSuspended = True

    # -- heartbeats

    async def heartbeat(self, registration: Registration) -> int:
        """A heartbeat arrives; returns the status of its response."""
        if not self.node.isValid:
            return 503
        if registration not in self.known:
            # The record is read.
            entry = await self.ask(lambda: self.world.entries.get(("services", registration)))
            if entry is None:
                return 404
            self.meet(registration, entry)
        tenant, incarnation = registration
        if incarnation in self.node.closed(tenant):
            self.world.admitted += 1
            if not await self.node.admit(registration):
                return 404
        if not self.node.isValid:
            return 503
        known = self.known.get(registration)
        if known is None:
            return 503
        known.deadline = self.serviceClock.now() + known.timeout
        known.isQueued = True
        self.world.acknowledge(registration)
        return 200

    def heartbeats(self, registrations: Sequence[Registration]) -> Deferred[list[int]]:
        """
        Heartbeats arrive in one request; those of closed services wait together. Returns the status of each, 503 for
        those that are not decided within a second.
        """
        outcomes = []
        for registration in registrations:
            work = Deferred.fromCoroutine(self.heartbeat(registration))
            work.addErrback(lambda failure: failure.trap(StoreUnavailable) and 503)
            outcome = waitFor(work).addTimeout(ADMISSION, self.clock)
            outcomes.append(outcome.addErrback(lambda failure: failure.trap(TimeoutError) and 503))
        return gatherResults(outcomes)


class SimulatedNode:
    """A place where a node runs: its process may be paused, killed and started again, and its network cut."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rate = world.random.uniform(0.995, 1.005)
        self.cutUntil = 0.0
        self._fifo = 0.0
        self.process = Process(world, self)

    def start(self) -> None:
        """Start the process."""
        self.process.start()

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after *seconds*."""
        self.process.clock.pausedUntil = self.world.now + seconds

    def cut(self, seconds: float) -> None:
        """Nothing passes between the node and etcd for *seconds*."""
        self.cutUntil = self.world.now + seconds

    def deafen(self) -> None:
        """The watch delivers nothing any more, and does not end."""
        self.process.isDeaf = True

    def kill(self, seconds: float) -> None:
        """kill -9, and a new process after *seconds*."""
        self.process.clock.isDead = True

        def again() -> None:
            self.process = Process(self.world, self)
            self.process.start()

        self.world.clock.callLater(seconds, again)

    def feed(self, revision: int, events: list[tuple[Key, Entry | None]]) -> None:
        """A revision has been committed: the watch delivers it in order, sooner or later."""
        process = self.process
        self._fifo = max(self._fifo, self.world.now + self.world.latency(), self.cutUntil)
        self.world.clock.callLater(
            self._fifo - self.world.now, process.clock.receive, lambda: process.changed(revision, events)
        )


class Application:
    """
    Services that register, send their heartbeats in one request, are late with some of them, and fall silent in the
    end. Now and then one is removed and registers again, or is given another timeout.

    :param count: how many.
    :param isSticky: whether they stay with one node while that answers.
    """

    def __init__(self, world: World, tenant: str, timeout: float, count: int, isSticky: bool, ends: float) -> None:
        self.world = world
        self.tenant = tenant
        self.timeout = timeout
        self.ends = ends
        self._isSticky = isSticky
        self._node = world.random.choice(world.nodes)
        self.registrations = [world.register(tenant, timeout) for _ in range(count)]
        world.clock.callLater(0.6 * timeout, self._send)

    def _send(self) -> None:
        world, random = self.world, self.world.random
        if world.now > self.ends:
            return
        for place, registration in enumerate(self.registrations):
            change = random.random()
            if change < 0.01 and world.remove(registration):
                self.registrations[place] = world.register(self.tenant, self.timeout)
            elif change < 0.02:
                world.update(registration, self.timeout * random.choice([1, 1, 2]))
        if not self._isSticky:
            self._node = random.choice(world.nodes)
        sent = list(self.registrations)
        answers: list[list[int]] = []

        def answered(statuses: list[int]) -> None:
            if answers:
                return
            answers.append(statuses)
            for place, status in enumerate(statuses):
                if status == 404:
                    world.missing += 1
                    self.registrations[place] = world.register(self.tenant, self.timeout)
            if 503 in statuses:
                world.refused += 1
                self._node = random.choice(world.nodes)
                world.clock.callLater(random.uniform(0.05, 0.3), self._send)
            else:
                isLate = random.random() < 0.5
                wait = random.uniform(0.9, 1.25) if isLate else 0.6 * random.uniform(0.9, 1)
                world.clock.callLater(wait * self.timeout, self._send)

        def late() -> None:
            answered([503] * len(sent))

        process = self._node.process

        def arrive() -> None:
            result = process.heartbeats(sent)
            result.addCallback(lambda statuses: world.clock.callLater(world.latency(), answered, statuses))

        world.clock.callLater(world.latency(), process.clock.receive, arrive)
        world.clock.callLater(self.timeout / 4, late)


def faults(world: World, until: float) -> Iterator[None]:
    """Pauses, partitions, kills and deaf watches, one after the other."""
    random = world.random
    while world.now < until:
        node = random.choice(world.nodes)
        kind = random.random()
        if kind < 0.35:
            node.pause(random.choice([0.3, 1.5, 4, 7, 12]))
        elif kind < 0.7:
            node.cut(random.choice([0.5, 2, 3.2, 4.5, 7, 15]))
        elif kind < 0.88 and not node.process.clock.isDead:
            node.kill(random.uniform(0.2, 8))
        elif kind < 0.95:
            node.deafen()
        yield


def run(seed: int, without: frozenset[str] = frozenset(), *, services: int = 16) -> World:
    """
    One random run.

    :raises Violation: if a promise is broken.
    """
    world = World(seed, without)
    world.run(2)
    random = world.random
    for _ in range(services):
        Application(
            world,
            random.choice("xy"),
            random.choice([3, 3, 5, 30]),
            random.choice([1, 1, 1, 1, 5]),
            random.random() < 0.5,
            random.uniform(20, 200),
        )
    troubles = faults(world, 220)

    def trouble() -> None:
        if next(troubles, world) is None:
            world.clock.callLater(random.uniform(0.2, 4), trouble)

    trouble()
    # A slow write of a status looks like a deaf watch, after which every service has a full timeout: some more of these
    # may follow each other.
    for end in range(420, 1021, 100):
        if any(truth.ended is None for truth in world.truths.values()):
            world.run(end)
    for violation in world.violations:
        raise violation
    forgotten = [registration for registration, truth in world.truths.items() if truth.ended is None]
    if forgotten:
        raise Violation(f"never reported: {forgotten}")
    return world
