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

from ...util.logs import Logger
from ..scopes import isLockScope, tenantOf
from ..stores.interfaces import Expiration, IStore, NoSuchObject, ServiceSummary, StoreUnavailable
from ..tasks import TaskOwner
from .deadlines import REFUSED, Deadlines, ServiceState, StallTolerantClock
from .expirations import ExpirationQueue, MassExpiryWarning


async def readSummary(store: IStore, scope: str, id: str) -> ServiceSummary:
    """
    A service or a lock as the store has it.

    :raises NoSuchObject: if there is none.
    """
    if isLockScope(scope):
        return (await store.getLock(tenantOf(scope), id)).summary(tenantOf(scope))
    return (await store.getService(scope, id)).summary(scope)


@attrs.define(eq=False, slots=False)
class LiveServices:
    """
    Keeps the state of all services. They expire at their deadline, whether or not the store can persist that at once.

    The state of a service belongs to one *incarnation* of it. If the store may have something else, because a change
    had no good response, the service is *unsure*. It is reconciled by reading it, so that no service stays in
    the store without a deadline and none stays in memory alone.

    :param persist: persists some expirations; fails with a :class:`~txserviceregistry.registry.faults.Fault` when that
        can't be done.
    :param tasks: owns what is done in the background; changes of one service wait for each other there, under the key
        ``(tenant, id)``.
    :ivar time: the clock of the deadlines.
    :ivar deadlines: the state of each service.
    :ivar expirations: the expirations that are to be persisted.
    """

    #: How many services are looked at in one turn of the reactor, and how many are reconciled after one tick.
    SWEEP: ClassVar = 1000
    RECONCILED: ClassVar = 100

    _log = Logger()

    _store: IStore
    _persist: Callable[[Sequence[Expiration]], Deferred[None]]
    _clock: IReactorTime
    _wallClock: Callable[[], float]
    _tasks: TaskOwner
    _onTick: Callable[[], None] = attrs.field(init=False, default=lambda: None)
    _isSuspended: bool = attrs.field(init=False, default=False)
    _unsure: set[tuple[str, str]] = attrs.field(init=False, factory=set)
    _sweeping: IDelayedCall | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.time = StallTolerantClock(self._clock, self._tick)
        self.deadlines = Deadlines(self.time.now)
        warning = MassExpiryWarning(self._clock, lambda: self.deadlines.total)
        self.expirations = ExpirationQueue(self._persist, self._isPending, self._clock, self._tasks, warning.add)
        self._onDue: Callable[[Sequence[ServiceState]], None] = self._enqueue

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
        self.time.stop()
        self.expirations.stop()
        call, self._sweeping = self._sweeping, None
        if call is not None:
            call.cancel()

    def suspend(self) -> None:
        """Let no services expire, because their heartbeats can't be noticed, until :meth:`renewAll` is called."""
        self._isSuspended = True

    def synchronize(self, services: Iterable[ServiceSummary]) -> None:
        """Take over that there are these services and no others."""
        unknown = {state.name for state in self.deadlines.all()}
        for service in services:
            unknown.discard((service.tenant, service.id, service.incarnation))
            self.track(service)
        for name in unknown:
            self.deadlines.forget(*name)

    def renewAll(self) -> None:
        """Give every service a full timeout from now on."""
        for state in self.deadlines.all():
            self.deadlines.restart(state, state.timeout)
        self._isSuspended = False

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
        self._sweeping = self._clock.callLater(0, self._sweep) if self._collect(self.SWEEP) else None
        self.expirations.work()

    def _collect(self, most: int | None = None) -> bool:
        if self._isSuspended:
            return False
        due, more = self.deadlines.collect(most)
        if due:
            self._onDue(due)
        return more

    def _enqueue(self, expired: Sequence[ServiceState]) -> None:
        moments = self.timestamps(expired)
        self.expirations.add([Expiration(*each.name, moment) for each, moment in zip(expired, moments, strict=True)])

    def timestamps(self, states: Sequence[ServiceState]) -> list[int]:
        """The deadlines of services, as far as they are known here, in milliseconds since the epoch."""
        # When the clock of the deadlines began, if it had never stood still.
        began = self._wallClock() - self.time.now()
        return [round((began + max(state.deadline, state.aliveUntil)) * 1000) for state in states]

    def noteExpired(self, state: ServiceState) -> None:
        """A service has expired by a decision of others, and that is persisted."""
        self.expirations.report([Expiration(*state.name, 0)])
        self.deadlines.forget(*state.name)

    def _isPending(self, expiration: Expiration) -> bool:
        return self.deadlines.isExpired(expiration.tenant, expiration.incarnation)

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
