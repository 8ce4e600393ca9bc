"""When services and locks expire: a clock that tolerates stalls, and the services that a registry knows, in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush, heapreplace
from itertools import chain, islice
from typing import ClassVar

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..util.deferred import SingleFlight, cancel, returnsDeferred
from ..util.logs import Logger, Outage
from .faults import Fault, systemFailure
from .model import isLockScope, tenantOf
from .servicelog import ExpiryLog
from .stores.interfaces import Expiration, IStore, NoSuchObject, ServiceSummary, StoreUnavailable
from .tasks import Part

#: The proof of a registration that takes no heartbeats; no token has it.
REFUSED = "refused"
# No entry of the queue has this deadline: it marks a service that the queue no longer holds.
NOWHERE = float("-inf")


class StallTolerantClock:
    """
    The time by which deadlines are measured: monotonic, in seconds.

    A registry that was stopped, starved of CPU or suspended received no heartbeats, and must not expire services for
    it. So a turn that comes late is a *stall*: the time stands still for its length, and goes on once the input that
    waited in the sockets has had a turn to be read: *onTick* is not called before. Only when turn after turn comes late
    does the time go on regardless, a second at a time.
    """

    #: Seconds between two ticks.
    TICK = 0.25
    #: The most that the time advances from one tick to the next, and how late a tick may come before it is a stall.
    LONGEST_STEP = 1.0

    _log = Logger()

    def __init__(self, clock: IReactorTime, onTick: Callable[[], None]) -> None:
        self._clock = clock
        self._onTick = onTick
        # When the last tick was by the reactor; the time then, and the latest that was told.
        self._ticked = clock.seconds()
        self._time = self._latest = self._ticked
        # How many stalls there have been, and their total length.
        self.stalls = 0
        self.stalledSeconds = 0.0
        self._lateTicks = 0
        self._stalledFor = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Start or continue: the time since the clock was made, or stopped, does not count."""
        self._ticked, self._time = self._clock.seconds(), self._latest
        self._call = self._clock.callLater(self.TICK, self._tick)

    def stop(self) -> None:
        cancel(self._call)

    def now(self) -> float:
        """The time in seconds, from an arbitrary start."""
        gap = self._clock.seconds() - self._ticked
        if gap <= self.TICK + self.LONGEST_STEP:
            self._advance(gap)
        return self._latest

    def _advance(self, gap: float) -> None:
        self._latest = max(self._latest, self._time + min(gap, self.LONGEST_STEP))

    def _tick(self) -> None:
        self._call = self._clock.callLater(self.TICK, self._tick)
        seconds = self._clock.seconds()
        gap = seconds - self._ticked
        isLate = gap > self.TICK + self.LONGEST_STEP
        if isLate:
            self._lateTicks += 1
            self._stalledFor += gap - self.TICK
        elif self._lateTicks:
            self._log.warn(
                "Registry stalled for {seconds:.1f} s (stopped, suspended or starved of CPU); "
                "all heartbeat deadlines extended by that time",
                seconds=self._stalledFor,
                stalls=self._lateTicks,
            )
            self.stalls += 1
            self.stalledSeconds += self._stalledFor
            self._lateTicks, self._stalledFor = 0, 0.0
        standsStill = isLate and self._lateTicks == 1
        if not standsStill:
            self._advance(gap)
        self._ticked, self._time = seconds, self._latest
        if not standsStill:
            self._onTick()


@attrs.define(eq=False, weakref_slot=False)
class ServiceState:
    """One incarnation of a service or a lock, from its registration to its end. Times are of the StallTolerantClock."""

    tenant: str  # of a lock: its scope
    id: str
    incarnation: str
    timeout: int
    deadline: float
    lastSeen: int | None  # when its last heartbeat came, in milliseconds since the epoch
    # The deadline under which the queue holds this; other entries of it in the queue are void.
    _queued: float = NOWHERE
    proof: str = ""  # the common part of its tokens; empty before its first heartbeat here
    asked: float = NOWHERE  # when others were last asked whether they have received a heartbeat
    aliveUntil: float = NOWHERE  # its deadline at another registry, as far as that has told

    @property
    def name(self) -> tuple[str, str, str]:
        return self.tenant, self.id, self.incarnation

    def __lt__(self, other: ServiceState) -> bool:
        # For the queue, where two services may have the same deadline: any order will do.
        return False


_NONE: Mapping[str, ServiceState] = {}


@attrs.define(eq=False, slots=False)
class LiveServices(Part):
    """
    The state of all services. A service is *active* until its deadline, then *expired* until the store has persisted
    the expiration, and is forgotten then. If the store may have another incarnation or none, because a change had no
    good response, the service is *unsure*. It is reconciled by reading it, so that no service stays in the store
    without a deadline and none stays in memory alone.

    In a cluster (*isShared*) other registries take heartbeats too, so that a deadline which has passed proves nothing.
    There a service stays active until it is forgotten.
    """

    isShared: ClassVar = False
    #: How many services are looked at in one turn of the reactor, and how many are reconciled after one tick.
    SWEEP: ClassVar = 1000
    RECONCILED: ClassVar = 100
    #: How many are persisted together: enough to share a commit, and few enough for one turn of the reactor.
    GROUP: ClassVar = 500

    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.time = StallTolerantClock(self._clock, self._tick)
        self.now = self.time.now
        self.onForgotten: Callable[[ServiceState], None] = lambda state: None
        self.onSynchronized: Callable[[], None] = lambda: None
        self._active: dict[str, dict[str, ServiceState]] = {}
        # By tenant and id: of two with the same id, the store can only have the later one.
        self._expired: dict[str, dict[str, ServiceState]] = {}
        # Expired ones for which a registration waits, and which come into the next group.
        self._wanted: dict[ServiceState, None] = {}
        # By deadlines. A heartbeat only changes a number; it is found out later that the deadline has moved.
        self._queue: list[tuple[float, ServiceState]] = []
        # In a cluster: the services by tenant and incarnation.
        self._registrations: dict[tuple[str, str], ServiceState] = {}
        self.registered = self._registrations.get
        self._isSuspended = self._isStopped = False
        self._unsure: set[tuple[str, str]] = set()
        self._sweeping: IDelayedCall | None = None
        self._persisting: SingleFlight[None, None] = SingleFlight()
        self._expiries = ExpiryLog(self._clock, self._population)
        self._outage = Outage(self._log, self._clock, "Cannot persist expirations ({count} pending); retrying")

    def begin(self, services: Iterable[ServiceSummary]) -> None:
        """Begin with these services, each with a full timeout."""
        self.time.start()
        for service in services:
            self.add(service)

    def stop(self) -> None:
        """Let no more services expire, and leave nothing on the reactor; what is under way belongs to the tasks."""
        self._isStopped = True
        self.time.stop()
        self._expiries.stop()
        cancel(self._sweeping)

    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        """Persist these and forget them; a :class:`Fault` if that can't be done."""
        raise NotImplementedError

    def _onTick(self) -> None:
        """Called several times a second, but not when this process has stalled."""

    def add(self, service: ServiceSummary) -> ServiceState:
        """Add a service, with a full timeout from now on. An earlier active incarnation of the same id is over."""
        tenant, timeout = service.tenant, service.heartbeatTimeout
        deadline, proof = self.now() + timeout, REFUSED if service.isForced else ""
        state = ServiceState(tenant, service.id, service.incarnation, timeout, deadline, service.lastSeen, proof=proof)
        states = self._active.setdefault(tenant, {})
        if service.id in states:
            states[service.id]._queued = NOWHERE
            self._registrations.pop((tenant, states[service.id].incarnation), None)
        states[service.id] = state
        self.requeue(state)
        if self.isShared:
            self._registrations[tenant, service.incarnation] = state
        return state

    def active(self, tenant: str, id: str) -> ServiceState | None:
        """The service with this *id*, if it is active."""
        state = self._active.get(tenant, _NONE).get(id)
        return state if state is not None and (self.now() < state.deadline or self.isShared) else None

    def ofTenant(self, tenant: str) -> Mapping[str, ServiceState]:
        """All active services of *tenant* by id. Some may have passed their deadline since the last collection."""
        return self._active.get(tenant, _NONE)

    def all(self) -> list[ServiceState]:
        return [state for states in self._active.values() for state in states.values()]

    def restart(self, state: ServiceState, timeout: int) -> None:
        """Give an active service another timeout (seconds), which begins now."""
        state.timeout = timeout
        state.deadline = self.now() + timeout
        if state.deadline < state._queued:
            state._queued = NOWHERE
        self.requeue(state)

    def counts(self, *, ofLocks: bool = False) -> dict[str, int]:
        """How many services are registered, or locks held, by tenant, as of the last collection."""
        scopes = self._active.items()
        return {tenantOf(scope): len(states) for scope, states in scopes if isLockScope(scope) == ofLocks}

    def _population(self) -> int:
        scopes = (*self._active.items(), *self._expired.items())
        return sum(len(states) for scope, states in scopes if not isLockScope(scope))

    def collect(self, most: int | None = None) -> bool:
        """Find active services whose deadline has passed, in *most* looks. Returns whether there may be more."""
        now, queue, found, looks = self.now(), self._queue, list[ServiceState](), 0
        while queue and queue[0][0] <= now and looks != most and not self._isSuspended:
            looks += 1
            queued, state = queue[0]
            if state._queued == queued and state.deadline > now:
                state._queued = state.deadline
                heapreplace(queue, (state.deadline, state))
                continue
            heappop(queue)
            if state._queued == queued:
                state._queued = NOWHERE
                found.append(state)
        self._passed(found)
        return looks == most

    def _passed(self, states: Sequence[ServiceState]) -> None:
        """The deadlines of these services have passed: they expire. In a cluster the others are asked."""
        for state in states:
            _remove(self._active, state, state.id)
            self._expired.setdefault(state.tenant, {})[state.id] = state

    def requeue(self, state: ServiceState) -> None:
        """Let :meth:`collect` find a service again that it has found, when its deadline has passed."""
        if state._queued == NOWHERE:
            state._queued = state.deadline
            heappush(self._queue, (state.deadline, state))

    def pending(self, most: int | None = None) -> list[ServiceState]:
        """The expired services, or so many: those that are waited for, then each tenant's in the order of deadlines."""
        others = (state for states in self._expired.values() for state in states.values() if state not in self._wanted)
        return list(islice(chain(self._wanted, others), most))

    def find(self, tenant: str, id: str, incarnation: str) -> ServiceState | None:
        """This incarnation, active or expired; ``None`` if it is unknown."""
        state = self._active.get(tenant, _NONE).get(id)
        if state is not None and state.incarnation == incarnation:
            return state
        state = self._expired.get(tenant, _NONE).get(id)
        return state if state is not None and state.incarnation == incarnation else None

    def forget(self, tenant: str, id: str, incarnation: str) -> None:
        """Remove this incarnation, if it is known."""
        state = self.find(tenant, id, incarnation)
        if state is not None:
            _remove(self._active, state, id)
            _remove(self._expired, state, id)
            self._wanted.pop(state, None)
            self._registrations.pop((tenant, incarnation), None)
            state._queued = NOWHERE
            self.onForgotten(state)

    def suspend(self) -> None:
        """Let no services expire, because their heartbeats can't be noticed, until :meth:`renewAll` is called."""
        self._isSuspended = True

    def renewAll(self) -> None:
        """Give every service a full timeout from now on."""
        for state in self.all():
            self.restart(state, state.timeout)
        self._isSuspended = False

    def synchronize(self, services: Iterable[ServiceSummary]) -> None:
        """Take over that there are these services and no others."""
        unknown = {state.name for state in self.all()}
        for service in services:
            unknown.discard((service.tenant, service.id, service.incarnation))
            self.track(service)
        for name in unknown:
            self.forget(*name)
        self.onSynchronized()

    def track(self, service: ServiceSummary) -> None:
        """A service is there. It has a full timeout from now on if it is unknown or its timeout is another."""
        state = self.find(service.tenant, service.id, service.incarnation)
        if state is None:
            self.add(service)
        elif state.timeout != service.heartbeatTimeout:
            self.restart(state, service.heartbeatTimeout)
        elif service.isForced:
            state.proof = REFUSED

    def hidden(self, tenant: str) -> frozenset[str]:
        """The incarnations of those of *tenant*'s services that have expired and that the store may still have."""
        self.collect()
        return frozenset(state.incarnation for state in self._expired.get(tenant, _NONE).values())

    def findExpired(self, tenant: str, id: str) -> ServiceState | None:
        """The one with this *id* that has expired and that the store may still have. Of others there may be many."""
        state = self._active.get(tenant, _NONE).get(id)
        if state is not None and self.active(tenant, id) is None:
            state._queued = NOWHERE
            self._passed([state])
        return self._expired.get(tenant, _NONE).get(id)

    def wantExpired(self, tenant: str, id: str | None) -> bool:
        """Let the expired service with this *id*, or one of the tenant's, be persisted next; whether there is one."""
        if id is None:
            self.collect()
        states = self._expired.get(tenant, _NONE).values()
        state = next(iter(states), None) if id is None else self.findExpired(tenant, id)
        if state is not None:
            self._wanted[state] = None
        return state is not None

    def markUnsure(self, tenant: str, id: str) -> None:
        """Have a service reconciled after the next tick: memory and store may not agree about it."""
        self._unsure.add((tenant, id))

    def _tick(self) -> None:
        if self._sweeping is None:
            self._sweep()
        self._onTick()
        if self._unsure and not self._tasks.isBusy("reconcile"):
            self._tasks.serialized("reconcile", self._reconcile)

    def _sweep(self) -> None:
        self._sweeping = None
        more = self.collect(self.SWEEP)
        if self.pending(1) and not self._persisting:
            self.persistNext().addCallbacks(self._sweepLater, lambda _: None)
        if more:
            self._sweepLater()

    def _sweepLater(self, _: object = None) -> None:
        if self._sweeping is None and not self._isStopped:
            self._sweeping = self._clock.callLater(0, self._sweep)

    @returnsDeferred
    async def persistNext(self) -> None:
        """Persist some expirations, if there are any; a fault if that can't be done, or the registry is stopping."""
        if not self._isStopped:
            await self._persisting.do(None, lambda: self._tasks.start(self._persistGroup()))
        if self._isStopped:
            raise systemFailure("The registry is stopping")

    async def _persistGroup(self) -> None:
        group = self.pending(self.GROUP)
        self._wanted.clear()
        try:
            await self._persist([Expiration(*each.name, self.timestamp(each)) for each in group])
            self.logExpired(*group)
        except Exception as error:
            self._outage.failed(None if isinstance(error, Fault) else Failure(), count=len(self.pending()))
            raise

    def logExpired(self, *states: ServiceState) -> None:
        """These have expired, and that is persisted."""
        self._outage.succeeded()
        self._expiries.add([(each.tenant, each.id) for each in states], isLast=not self.pending(1))
        if self._isStopped:
            self._expiries.stop()

    def timestamp(self, state: ServiceState) -> int:
        """The deadline of a service, as far as it is known here, in milliseconds since the epoch."""
        # When the clock of the deadlines began, if it had never stood still.
        began = self._wallClock() - self.now()
        return round((began + max(state.deadline, state.aliveUntil)) * 1000)

    async def _reconcile(self) -> None:
        for tenant, id in list(self._unsure)[: self.RECONCILED]:
            self._unsure.discard((tenant, id))
            try:
                await self._tasks.serialized((tenant, id), partial(self._reconcileOne, tenant, id))
            except StoreUnavailable:
                self.markUnsure(tenant, id)
                return
            except Exception:
                self._log.failure("Cannot reconcile service {id} of tenant {tenant}", id=id, tenant=tenant)

    async def _reconcileOne(self, tenant: str, id: str) -> None:
        before = self.active(tenant, id)
        expired = self.findExpired(tenant, id)
        try:
            record = await readSummary(self._store, tenant, id)
        except NoSuchObject:
            if before is not None:
                self.forget(tenant, id, before.incarnation)
            return
        if before is not None and before.incarnation == record.incarnation:
            if self.active(tenant, id) is before and before.timeout != record.heartbeatTimeout:
                self.restart(before, record.heartbeatTimeout)
        elif expired is None or expired.incarnation != record.incarnation:
            # Its registration was persisted, but never acknowledged.
            self.add(record)


async def readSummary(store: IStore, scope: str, id: str) -> ServiceSummary:
    """A service or a lock as the store has it; :class:`NoSuchObject` if there is none."""
    if isLockScope(scope):
        return (await store.getLock(tenantOf(scope), id)).summary(tenantOf(scope))
    return (await store.getService(scope, id)).summary(scope)


def _remove(states: dict[str, dict[str, ServiceState]], state: ServiceState, key: str) -> None:
    ofTenant = states.get(state.tenant, {})
    if ofTenant.get(key) is state:
        del ofTenant[key]
        if not ofTenant:
            del states[state.tenant]
