"""
The services that a registry knows, in memory: which are active, which have expired, and how memory and store come to
agree about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush, heapreplace
from itertools import islice
from typing import ClassVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ...util.deferred import SingleFlight, returnsDeferred
from ...util.logs import Logger, Outage
from ..faults import Fault, systemFailure
from ..model import isLockScope, tenantOf
from ..servicelog import ServiceLog
from ..stores.interfaces import Expiration, IStore, NoSuchObject, ServiceSummary, StoreUnavailable
from ..tasks import TaskOwner
from .deadlines import NOWHERE, REFUSED, ServiceState, StallTolerantClock


async def readSummary(store: IStore, scope: str, id: str) -> ServiceSummary:
    """A service or a lock as the store has it; :class:`NoSuchObject` if there is none."""
    if isLockScope(scope):
        return (await store.getLock(tenantOf(scope), id)).summary(tenantOf(scope))
    return (await store.getService(scope, id)).summary(scope)


class ExpiryLog:
    """
    Logs the services and locks that expire, and warns when there are unusually many services, which rarely means that
    so many have stopped.

    When a network is cut, the services behind it expire each at its own deadline, over the length of their timeouts; so
    what counts is their number within a minute.
    """

    #: Seconds that are looked at together.
    WINDOW = 60.0
    #: How many services have to expire, and which part of all, before there is a warning.
    FEWEST = 20
    SHARE = 0.1

    _log = Logger()

    def __init__(self, clock: IReactorTime, population: Callable[[], int]) -> None:
        self._clock = clock
        self._population = population
        # Services that lose their network expire one by one, over the length of a timeout.
        self._services = ServiceLog(clock, "Services expired")
        self._locks = ServiceLog(clock, "Locks expired")
        self._new = 0
        self._began = float("-inf")

    def add(self, states: Iterable[ServiceState]) -> None:
        """Note some that have expired. The lines follow after :meth:`flush`."""
        for state in states:
            isLock = isLockScope(state.tenant)
            self._new += not isLock
            (self._locks if isLock else self._services).add(tenantOf(state.tenant), state.id)

    def flush(self) -> None:
        self._services.flush()
        self._locks.flush()
        new, self._new = self._new, 0
        if new:
            self._warn(new)

    def stop(self) -> None:
        """Log the rest now, and leave nothing on the reactor."""
        self._services.stop()
        self._locks.stop()

    def _warn(self, new: int) -> None:
        now = self._clock.seconds()
        if now - self._began >= self.WINDOW:
            self._began, self._count, self._before = now, 0, self._population() + new
            # The number at which the next warning is due.
            self._threshold = max(self.FEWEST, self.SHARE * self._before)
        self._count += new
        if self._count >= self._threshold:
            # Some of them may have been registered since.
            self._before = max(self._before, self._population() + self._count)
            self._threshold = 2 * self._count
            self._log.warn(
                "{count} of {before} services expired within {seconds:.0f} s; "
                "check the network between them and this registry, and their machines",
                count=self._count,
                before=self._before,
                seconds=max(now - self._began, 1.0),
            )


_NONE: Mapping[str, ServiceState] = {}


@attrs.define(eq=False, slots=False)
class LiveServices:
    """
    The state of all services. A service is *active* until its deadline, then *expired* until the store has persisted
    the expiration, and is forgotten then. Expirations are persisted in groups, each in its own turn of the reactor.

    The state of a service belongs to one *incarnation* of it. If the store may have something else, because a change
    had no good response, the service is *unsure*. It is reconciled by reading it, so that no service stays in
    the store without a deadline and none stays in memory alone.

    In a cluster other registries take heartbeats too, so that a deadline which has passed proves nothing. There a
    service stays active until it is forgotten.

    :param persist: persists some expirations, and has them forgotten; fails with a
        :class:`~txserviceregistry.registry.faults.Fault` when that can't be done.
    :param tasks: owns what is done in the background; changes of one service wait for each other there, under the key
        ``(tenant, id)``.
    :ivar time: the clock of the deadlines, whose time is *now*.
    :ivar onDue: in a cluster, called with services whose deadline has passed as far as is known here; else ``None``.
    :ivar onTick: called several times a second, but not when this process has stalled.
    :ivar onForgotten: called with each service that is forgotten.
    """

    #: How many services are looked at in one turn of the reactor, and how many are reconciled after one tick.
    SWEEP: ClassVar = 1000
    RECONCILED: ClassVar = 100
    #: How many are persisted together: enough to share a commit, and few enough for one turn of the reactor.
    GROUP: ClassVar = 500

    _log = Logger()

    _store: IStore
    _persist: Callable[[Sequence[Expiration]], Deferred[None]]
    _clock: IReactorTime
    _wallClock: Callable[[], float]
    _tasks: TaskOwner

    def __attrs_post_init__(self) -> None:
        self.time = StallTolerantClock(self._clock, self._tick)
        self.now = self.time.now
        self.onDue: Callable[[Sequence[ServiceState]], object] | None = None
        self.onTick: Callable[[], None] = lambda: None
        self.onForgotten: Callable[[ServiceState], None] = lambda state: None
        self._active: dict[str, dict[str, ServiceState]] = {}
        self._expired: dict[str, dict[str, ServiceState]] = {}
        # By deadlines. A heartbeat only changes a number; it is found out later that the deadline has moved.
        self._queue: list[tuple[float, ServiceState]] = []
        # In a cluster: the services by tenant and incarnation.
        self._registrations: dict[tuple[str, str], ServiceState] = {}
        self._isSuspended = self._isStopped = False
        self._unsure: set[tuple[str, str]] = set()
        self._sweeping: IDelayedCall | None = None
        self._persisting: SingleFlight[None, None] = SingleFlight()
        self._expiries = ExpiryLog(self._clock, lambda: self.total)
        self._outage = Outage(self._log, self._clock, "Cannot persist expirations ({count} pending); retrying")

    def start(self, services: Iterable[ServiceSummary]) -> None:
        """Begin with these services, each with a full timeout."""
        self.time.start()
        for service in services:
            self.add(service)

    def stop(self) -> None:
        """Let no more services expire, and leave nothing on the reactor; what is under way belongs to the tasks."""
        self._isStopped = True
        self.time.stop()
        self._expiries.stop()
        call, self._sweeping = self._sweeping, None
        if call is not None:
            call.cancel()

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
        if self.onDue is not None:
            self._registrations[tenant, service.incarnation] = state
        return state

    def registered(self, registration: tuple[str, str]) -> ServiceState | None:
        """The service with this tenant and incarnation, in a cluster."""
        return self._registrations.get(registration)

    def active(self, tenant: str, id: str) -> ServiceState | None:
        """The service with this *id*, if it is active."""
        state = self._active.get(tenant, _NONE).get(id)
        return state if state is not None and (self.now() < state.deadline or self.onDue is not None) else None

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

    def count(self) -> dict[str, int]:
        """How many are active, by tenant. Some may have passed their deadline since the last collection."""
        return {tenant: len(states) for tenant, states in self._active.items()}

    @property
    def total(self) -> int:
        """How many services are known, active or expired."""
        scopes = (*self._active.items(), *self._expired.items())
        return sum(len(states) for scope, states in scopes if not isLockScope(scope))

    def collect(self, most: int | None = None) -> bool:
        """
        Find active services whose deadline has passed: they expire, or, in a cluster, are reported. None is found
        twice, unless it has been given another deadline meanwhile (and was given to :meth:`requeue`).

        :param most: look at no more than so many services; ``None`` for all that are due.
        :return: whether there may be more.
        """
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
        if self.onDue is not None:
            self.onDue(found)
        else:
            for state in found:
                _remove(self._active, state, state.id)
                self._expired.setdefault(state.tenant, {})[state.incarnation] = state
        return looks == most

    def requeue(self, state: ServiceState) -> None:
        """Let :meth:`collect` find a service again that it has found, when its deadline has passed."""
        if state._queued == NOWHERE:
            state._queued = state.deadline
            heappush(self._queue, (state.deadline, state))

    def pending(self, most: int | None = None) -> list[ServiceState]:
        """The expired services, or so many of them, each tenant's in the order in which they were found."""
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

    def track(self, service: ServiceSummary) -> None:
        """
        Take over that a service is there. It has a full timeout from now on if it is unknown or its timeout is another.
        """
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
        return frozenset(self._expired.get(tenant, ()))

    def isHidden(self, tenant: str, id: str, incarnation: str) -> bool:
        """Whether this incarnation has expired, though the store may still have it."""
        state = self.find(tenant, id, incarnation)
        return state is not None and self.active(tenant, id) is not state

    def markUnsure(self, tenant: str, id: str) -> None:
        """Have a service reconciled after the next tick: memory and store may not agree about it."""
        self._unsure.add((tenant, id))

    def _tick(self) -> None:
        if self._sweeping is None:
            self._sweep()
        self.onTick()
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
        try:
            await self._persist([Expiration(*each.name, self.timestamp(each)) for each in group])
            self._logExpired(group)
        except Exception as error:
            self._outage.failed(None if isinstance(error, Fault) else Failure(), count=len(self.pending()))
            raise

    def _logExpired(self, states: Sequence[ServiceState]) -> None:
        self._outage.succeeded()
        self._expiries.add(states)
        if self._isStopped:
            self._expiries.stop()
        elif not self.pending(1):
            self._expiries.flush()

    def timestamp(self, state: ServiceState) -> int:
        """The deadline of a service, as far as it is known here, in milliseconds since the epoch."""
        # When the clock of the deadlines began, if it had never stood still.
        began = self._wallClock() - self.now()
        return round((began + max(state.deadline, state.aliveUntil)) * 1000)

    def noteExpired(self, state: ServiceState) -> None:
        """A service has expired by a decision of others, and that is persisted."""
        self._logExpired([state])
        self.forget(*state.name)

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
        hidden = self.hidden(tenant)
        try:
            record = await readSummary(self._store, tenant, id)
        except NoSuchObject:
            if before is not None:
                self.forget(tenant, id, before.incarnation)
            return
        if before is not None and before.incarnation == record.incarnation:
            if self.active(tenant, id) is before and before.timeout != record.heartbeatTimeout:
                self.restart(before, record.heartbeatTimeout)
        elif record.incarnation not in hidden:
            # Its registration was persisted, but never acknowledged.
            self.add(record)


def _remove(states: dict[str, dict[str, ServiceState]], state: ServiceState, key: str) -> None:
    ofTenant = states.get(state.tenant, {})
    if ofTenant.get(key) is state:
        del ofTenant[key]
        if not ofTenant:
            del states[state.tenant]
