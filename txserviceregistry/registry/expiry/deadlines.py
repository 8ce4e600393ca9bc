"""
When services expire: a clock that tolerates stalls (:class:`StallTolerantClock`), and the deadline of each service
(:class:`Deadlines`). What follows when a deadline has passed is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush, heapreplace
from itertools import islice

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ...util.logs import Logger
from ..model import isLockScope
from ..stores.interfaces import ServiceSummary

#: The proof of a registration that takes no heartbeats; no token has it.
REFUSED = "refused"
# No entry of the queue has this deadline: it marks a service that the queue no longer holds.
_NOWHERE = float("-inf")


class StallTolerantClock:
    """
    The time by which deadlines are measured: monotonic, in seconds, advancing by at most one second between two turns
    of the reactor.

    A registry that was stopped, starved of CPU or suspended received no heartbeats, and must not expire services for
    it. So a turn that comes late is a *stall*: the time stands still for its length, and goes on once the input that
    waited in the sockets has had a turn to be read. Only when turn after turn comes late does the time go on
    regardless, a second at a time.

    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param onTick: is called at every tick, except the one that finds a stall: the input that waited is read first.
    :ivar stalls: how many stalls there have been.
    :ivar stalledSeconds: their total length.
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
        """Stop the ticks; nothing is left on the reactor."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

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
            self._endStall()
        standsStill = isLate and self._lateTicks == 1
        if not standsStill:
            self._advance(gap)
        self._ticked, self._time = seconds, self._latest
        if not standsStill:
            self._onTick()

    def _endStall(self) -> None:
        self._log.warn(
            "Registry stalled for {seconds:.1f} s (stopped, suspended or starved of CPU); "
            "all heartbeat deadlines extended by that time",
            seconds=self._stalledFor,
            stalls=self._lateTicks,
        )
        self.stalls += 1
        self.stalledSeconds += self._stalledFor
        self._lateTicks, self._stalledFor = 0, 0.0


@attrs.define(eq=False, weakref_slot=False)
class ServiceState:
    """
    One incarnation of a service or a lock, from its registration to its end.

    :ivar tenant: of a lock, its scope (:mod:`~txserviceregistry.registry.model`).
    :ivar timeout: in seconds.
    :ivar deadline: in seconds of the :class:`StallTolerantClock`.
    :ivar lastSeen: when its last heartbeat came, in milliseconds since the epoch; ``None`` before the first.
    :ivar proof: the common part of its tokens; empty before its first heartbeat here.
    :ivar asked: when others were last asked whether they have received a heartbeat.
    :ivar aliveUntil: its deadline at another registry, as far as that has told.
    """

    tenant: str
    id: str
    incarnation: str
    timeout: int
    deadline: float
    lastSeen: int | None
    # The deadline under which the queue holds this; other entries of it in the queue are void.
    _queued: float = _NOWHERE
    proof: str = ""
    asked: float = _NOWHERE
    aliveUntil: float = _NOWHERE

    @property
    def name(self) -> tuple[str, str, str]:
        """Tenant, id and incarnation."""
        return self.tenant, self.id, self.incarnation

    def heartbeat(self, now: float, lastSeen: int) -> None:
        """Take a heartbeat that came *now*, which is *lastSeen* by the wall clock: the deadline moves."""
        self.deadline = now + self.timeout
        self.lastSeen = lastSeen

    def __lt__(self, other: ServiceState) -> bool:
        # For the queue, where two services may have the same deadline: any order will do.
        return False


_NONE: Mapping[str, ServiceState] = {}


class Deadlines:
    """
    The deadline of each service.

    A service is *active* until its deadline, then *expired* until it is forgotten, which is when the store has
    persisted the expiration. A heartbeat only changes a number; the queue finds out later that the deadline has moved.

    In a cluster other registries take heartbeats too, so that a deadline which has passed proves nothing. There a
    service stays active until it is forgotten.

    :param now: seconds of the :class:`StallTolerantClock`.
    :ivar isAuthoritative: whether this registry takes all heartbeats.
    :ivar onForgotten: called with each service that is forgotten.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.onForgotten: Callable[[ServiceState], None] = lambda state: None
        self.isAuthoritative = True
        self._active: dict[str, dict[str, ServiceState]] = {}
        self._expired: dict[str, dict[str, ServiceState]] = {}
        self._queue: list[tuple[float, ServiceState]] = []
        # Where this registry is not authoritative: the services by tenant and incarnation.
        self._registrations: dict[tuple[str, str], ServiceState] = {}

    def add(self, service: ServiceSummary) -> ServiceState:
        """Add a service, with a full timeout from now on. An earlier active incarnation of the same id is over."""
        tenant, timeout = service.tenant, service.heartbeatTimeout
        deadline, proof = self.now() + timeout, REFUSED if service.isForced else ""
        state = ServiceState(tenant, service.id, service.incarnation, timeout, deadline, service.lastSeen, proof=proof)
        states = self._active.setdefault(tenant, {})
        if service.id in states:
            states[service.id]._queued = _NOWHERE
            self._registrations.pop((tenant, states[service.id].incarnation), None)
        states[service.id] = state
        self.requeue(state)
        if not self.isAuthoritative:
            self._registrations[tenant, service.incarnation] = state
        return state

    def registered(self, registration: tuple[str, str]) -> ServiceState | None:
        """The service with this tenant and incarnation, where this registry is not authoritative."""
        return self._registrations.get(registration)

    def active(self, tenant: str, id: str) -> ServiceState | None:
        """The service with this *id*, if it is active."""
        state = self._active.get(tenant, _NONE).get(id)
        return state if state is not None and (self.now() < state.deadline or not self.isAuthoritative) else None

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
            state._queued = _NOWHERE
        self.requeue(state)

    def count(self) -> dict[str, int]:
        """How many are active, by tenant. Some may have passed their deadline since the last collection."""
        return {tenant: len(states) for tenant, states in self._active.items()}

    @property
    def total(self) -> int:
        """How many services are known, active or expired."""
        scopes = (*self._active.items(), *self._expired.items())
        return sum(len(states) for scope, states in scopes if not isLockScope(scope))

    def collect(self, most: int | None = None) -> tuple[list[ServiceState], bool]:
        """
        Find the active services whose deadline has passed; if this registry is authoritative, they expire.

        :param most: look at no more than so many services; ``None`` for all that are due.
        :return: these services, and whether there may be more. None is found twice, unless it has been given another
            deadline meanwhile (and was given to :meth:`requeue`).
        """
        now = self.now()
        found: list[ServiceState] = []
        queue = self._queue
        looks = 0
        while queue and queue[0][0] <= now:
            if looks == most:
                return found, True
            looks += 1
            queued, state = queue[0]
            if state._queued != queued:
                heappop(queue)
            elif state.deadline > now:
                state._queued = state.deadline
                heapreplace(queue, (state.deadline, state))
            else:
                heappop(queue)
                state._queued = _NOWHERE
                if self.isAuthoritative:
                    _remove(self._active, state, state.id)
                    self._expired.setdefault(state.tenant, {})[state.incarnation] = state
                found.append(state)
        return found, False

    def requeue(self, state: ServiceState) -> None:
        """Let :meth:`collect` find a service again that it has found, when its deadline has passed."""
        if state._queued == _NOWHERE:
            state._queued = state.deadline
            heappush(self._queue, (state.deadline, state))

    def expired(self, tenant: str) -> frozenset[str]:
        """The incarnations of the expired services of *tenant*."""
        return frozenset(self._expired.get(tenant, ()))

    def pending(self, most: int | None = None) -> list[ServiceState]:
        """The expired services, or so many of them, of each tenant in the order in which they were found."""
        return list(islice((state for states in self._expired.values() for state in states.values()), most))

    def find(self, tenant: str, id: str, incarnation: str) -> ServiceState | None:
        """This incarnation, active or expired; ``None`` if it is unknown."""
        state = self._active.get(tenant, _NONE).get(id)
        if state is not None and state.incarnation == incarnation:
            return state
        return self._expired.get(tenant, _NONE).get(incarnation)

    def forget(self, tenant: str, id: str, incarnation: str) -> None:
        """Remove this incarnation, if it is known."""
        state = self.find(tenant, id, incarnation)
        if state is not None:
            _remove(self._active, state, id)
            _remove(self._expired, state, incarnation)
            self._registrations.pop((tenant, incarnation), None)
            state._queued = _NOWHERE
            self.onForgotten(state)


def _remove(states: dict[str, dict[str, ServiceState]], state: ServiceState, key: str) -> None:
    ofTenant = states.get(state.tenant, {})
    if ofTenant.get(key) is state:
        del ofTenant[key]
        if not ofTenant:
            del states[state.tenant]
