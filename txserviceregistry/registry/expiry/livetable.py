"""
The services that a registry knows, in memory: which are active, which have expired, and how memory and store come to
agree about them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import ClassVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ...util.concurrency import SingleFlight
from ...util.deferred import returnsDeferred
from ...util.logs import Logger, Outage
from ..faults import Fault, systemFailure
from ..model import isLockScope, tenantOf
from ..servicelog import ServiceLog
from ..stores.interfaces import Expiration, IStore, NoSuchObject, ServiceSummary, StoreUnavailable
from ..tasks import TaskOwner
from .deadlines import REFUSED, Deadlines, ServiceState, StallTolerantClock


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

    def __init__(self, clock: IReactorTime, deadlines: Deadlines) -> None:
        self._clock = clock
        self._deadlines = deadlines
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
            self._began, self._count, self._before = now, 0, self._deadlines.total + new
            # The number at which the next warning is due.
            self._threshold = max(self.FEWEST, self.SHARE * self._before)
        self._count += new
        if self._count >= self._threshold:
            # Some of them may have been registered since.
            self._before = max(self._before, self._deadlines.total + self._count)
            self._threshold = 2 * self._count
            self._log.warn(
                "{count} of {before} services expired within {seconds:.0f} s; "
                "check the network between them and this registry, and their machines",
                count=self._count,
                before=self._before,
                seconds=max(now - self._began, 1.0),
            )


@attrs.define(eq=False, slots=False)
class LiveServices:
    """
    Keeps the state of all services. They expire at their deadline, whether or not the store can persist that at once:
    expirations are persisted in their order, in groups, each in a turn of the reactor of its own.

    The state of a service belongs to one *incarnation* of it. If the store may have something else, because a change
    had no good response, the service is *unsure*. It is reconciled by reading it, so that no service stays in
    the store without a deadline and none stays in memory alone.

    :param persist: persists some expirations, and lets :attr:`deadlines` forget them; fails with a
        :class:`~txserviceregistry.registry.faults.Fault` when that can't be done.
    :param tasks: owns what is done in the background; changes of one service wait for each other there, under the key
        ``(tenant, id)``.
    :ivar time: the clock of the deadlines.
    :ivar deadlines: the state of each service.
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
    _onTick: Callable[[], None] = attrs.field(init=False, default=lambda: None)
    _onDue: Callable[[Sequence[ServiceState]], object] = attrs.field(init=False, default=lambda states: None)
    _isSuspended: bool = attrs.field(init=False, default=False)
    _isStopped: bool = attrs.field(init=False, default=False)
    _unsure: set[tuple[str, str]] = attrs.field(init=False, factory=set)
    _sweeping: IDelayedCall | None = attrs.field(init=False, default=None)
    _persisting: SingleFlight[None, None] = attrs.field(init=False, factory=SingleFlight)

    def __attrs_post_init__(self) -> None:
        self.time = StallTolerantClock(self._clock, self._tick)
        self.deadlines = Deadlines(self.time.now)
        self._expiries = ExpiryLog(self._clock, self.deadlines)
        self._outage = Outage(self._log, self._clock, "Cannot persist expirations ({count} pending); retrying")

    def share(self, onDue: Callable[[Sequence[ServiceState]], None], onTick: Callable[[], None]) -> None:
        """
        Leave it to others too which services expire: a deadline that has passed here is only reported.

        :param onDue: called with services whose deadline has passed as far as is known here.
        :param onTick: called several times a second after that, but not when this process has stalled.
        """
        self._onDue, self._onTick = onDue, onTick
        self.deadlines.isAuthoritative = False

    def start(self, services: Iterable[ServiceSummary]) -> None:
        """Begin with these services, each with a full timeout."""
        self.time.start()
        for service in services:
            self.deadlines.add(service)

    def stop(self) -> None:
        """Let no more services expire, and leave nothing on the reactor; what is under way belongs to the tasks."""
        self._isStopped = True
        self.time.stop()
        self._expiries.stop()
        call, self._sweeping = self._sweeping, None
        if call is not None:
            call.cancel()

    def suspend(self) -> None:
        """Let no services expire, because their heartbeats can't be noticed, until :meth:`renewAll` is called."""
        self._isSuspended = True

    def renewAll(self) -> None:
        """Give every service a full timeout from now on."""
        for state in self.deadlines.all():
            self.deadlines.restart(state, state.timeout)
        self._isSuspended = False

    def synchronize(self, services: Iterable[ServiceSummary]) -> None:
        """Take over that there are these services and no others."""
        unknown = {state.name for state in self.deadlines.all()}
        for service in services:
            unknown.discard((service.tenant, service.id, service.incarnation))
            self.track(service)
        for name in unknown:
            self.deadlines.forget(*name)

    def track(self, service: ServiceSummary) -> None:
        """
        Take over that a service is there. It has a full timeout from now on if it is unknown or its timeout is another.
        """
        state = self.deadlines.find(service.tenant, service.id, service.incarnation)
        if state is None:
            self.deadlines.add(service)
        elif state.timeout != service.heartbeatTimeout:
            self.deadlines.restart(state, service.heartbeatTimeout)
        elif service.isForced:
            state.proof = REFUSED

    def hidden(self, tenant: str) -> frozenset[str]:
        """The incarnations of those of *tenant*'s services that have expired and that the store may still have."""
        self._collect()
        return self.deadlines.expired(tenant)

    def isHidden(self, tenant: str, id: str, incarnation: str) -> bool:
        """Whether this incarnation has expired, though the store may still have it."""
        state = self.deadlines.find(tenant, id, incarnation)
        return state is not None and self.deadlines.active(tenant, id) is not state

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
        more = self._collect(self.SWEEP)
        if self.deadlines.pending(1) and not self._persisting:
            self.persistNext().addCallbacks(self._sweepLater, lambda _: None)
        if more:
            self._sweepLater()

    def _sweepLater(self, _: object = None) -> None:
        if self._sweeping is None and not self._isStopped:
            self._sweeping = self._clock.callLater(0, self._sweep)

    def _collect(self, most: int | None = None) -> bool:
        if self._isSuspended:
            return False
        due, more = self.deadlines.collect(most)
        if due:
            self._onDue(due)
        return more

    @returnsDeferred
    async def persistNext(self) -> None:
        """Persist some expirations, if there are any; a fault if that can't be done, or the registry is stopping."""
        if not self._isStopped:
            await self._persisting.do(None, lambda: self._tasks.start(self._persistGroup()))
        if self._isStopped:
            raise systemFailure("The registry is stopping")

    async def _persistGroup(self) -> None:
        group = self.deadlines.pending(self.GROUP)
        moments = self.timestamps(group)
        try:
            await self._persist([Expiration(*each.name, moment) for each, moment in zip(group, moments, strict=True)])
            self._logExpired(group)
        except Exception as error:
            self._outage.failed(None if isinstance(error, Fault) else Failure(), count=len(self.deadlines.pending()))
            raise

    def _logExpired(self, states: Sequence[ServiceState]) -> None:
        self._outage.succeeded()
        self._expiries.add(states)
        if self._isStopped:
            self._expiries.stop()
        elif not self.deadlines.pending(1):
            self._expiries.flush()

    def timestamps(self, states: Sequence[ServiceState]) -> list[int]:
        """The deadlines of services, as far as they are known here, in milliseconds since the epoch."""
        # When the clock of the deadlines began, if it had never stood still.
        began = self._wallClock() - self.time.now()
        return [round((began + max(state.deadline, state.aliveUntil)) * 1000) for state in states]

    def noteExpired(self, state: ServiceState) -> None:
        """A service has expired by a decision of others, and that is persisted."""
        self._logExpired([state])
        self.deadlines.forget(*state.name)

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
        before = self.deadlines.active(tenant, id)
        hidden = self.hidden(tenant)
        try:
            record = await readSummary(self._store, tenant, id)
        except NoSuchObject:
            if before is not None:
                self.deadlines.forget(tenant, id, before.incarnation)
            return
        if before is not None and before.incarnation == record.incarnation:
            if self.deadlines.active(tenant, id) is before and before.timeout != record.heartbeatTimeout:
                self.deadlines.restart(before, record.heartbeatTimeout)
        elif record.incarnation not in hidden:
            # Its registration was persisted, but never acknowledged.
            self.deadlines.add(record)
