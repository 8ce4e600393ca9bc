"""
The lives of services: what memory knows of each, who is dead by now, and that memory and store come to agree about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ...util.logs import Logger
from ..stores.interfaces import Expiration, IStore, LivingService, NoSuchObject, StoreUnavailable
from ..tasks import TaskOwner
from .deadlines import Deadlines, ServiceState, StallTolerantClock
from .expirations import ExpirationQueue
from .massexpiry import MassExpiryWarning


class LiveServices:
    """
    Keeps the lives of all services: they end at their deadline, whether or not the store can be told of it at once.

    What is held of a service belongs to one *incarnation* of it. Where the store may have something else (a change
    had no good answer), there is a *doubt*, which is settled by reading, so that no service stays in the store
    without a deadline and none lives on in memory alone.

    :param bury: keeps some deaths; fails with a :class:`~txserviceregistry.registry.faults.Fault` when that can't be
        done.
    :param work: owns what is done in the background; changes of one service wait for each other there, under the key
        ``(tenant, id)``.
    :param ask: says how many seconds a service has left at the least, below zero if it is dead; for a registry that
        shares its store with others, which take heartbeats too. ``None`` for one that is alone.
    """

    #: How many lives are looked at in one turn of the reactor, and how many doubts are settled after one tick.
    SWEEP = 1000
    DOUBTS = 100
    #: How many services are asked about at once, and the least seconds until one is asked about again.
    QUESTIONS = 8
    PAUSE = 0.25

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        persist: Callable[[Sequence[Expiration]], Deferred[None]],
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        work: TaskOwner,
        ask: Callable[[str, str, str], Deferred[float]] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wallClock = wallClock
        self._work = work
        self._ask = ask
        self._unjudged: deque[ServiceState] = deque()
        self._judges = 0
        self._isSuspended = False
        self._lifeClock = StallTolerantClock(clock, self._tick)
        self._deadlines = Deadlines(self._lifeClock.now, areTrue=ask is None)
        outbreaks = MassExpiryWarning(clock, lambda: self._deadlines.total)
        self._expirations = ExpirationQueue(persist, self._isDue, clock, work, outbreaks.add)
        self._doubts: set[tuple[str, str]] = set()
        self._sweeping: IDelayedCall | None = None
        # What is asked on every heartbeat goes straight to where it is known.
        self.alive = self._deadlines.alive
        self.ofTenant = self._deadlines.ofTenant
        self.now = self._lifeClock.now
        self.beat = self._deadlines.beat
        self.restart = self._deadlines.restart
        self.find = self._deadlines.find
        self.forget = self._deadlines.forget
        self.begin = self._deadlines.begin
        self.count = self._deadlines.count

    def start(self, living: Iterable[LivingService]) -> None:
        """Everybody who is *living* has a full timeout from now on."""
        self._lifeClock.start()
        for each in living:
            self.begin(each.tenant, each.id, each.incarnation, each.heartbeatTimeout, each.lastSeen)

    def stop(self) -> None:
        """Nobody dies any more, and nothing is left on the reactor; what is under way belongs to the work."""
        self._lifeClock.stop()
        self._unjudged.clear()
        self._expirations.stop()
        call, self._sweeping = self._sweeping, None
        if call is not None:
            call.cancel()

    def suspend(self) -> None:
        """Nobody dies from now on, for nobody can be heard."""
        self._isSuspended = True

    def synchronize(self, living: Iterable[LivingService], *, anew: bool) -> None:
        """
        These are living, and no others.

        :param anew: whether everybody has a full timeout from now on, and may die again.
        """
        known = {(life.tenant, life.id, life.incarnation) for life in self._deadlines.everybody()}
        for each in living:
            known.discard((each.tenant, each.id, each.incarnation))
            self.meet(each, anew=anew)
        for name in known:
            self.forget(*name)
        if anew:
            self._isSuspended = False

    def meet(self, service: LivingService, *, anew: bool = False) -> None:
        """
        A service lives. It has a full timeout from now on if it is new here, or has another timeout.

        :param anew: it has one in any case.
        """
        life = self.find(service.tenant, service.id, service.incarnation)
        if life is None:
            self.begin(service.tenant, service.id, service.incarnation, service.heartbeatTimeout, service.lastSeen)
        elif anew or life.timeout != service.heartbeatTimeout:
            self.restart(life, service.heartbeatTimeout)

    @property
    def stalls(self) -> tuple[int, float]:
        """How often life has stood still, and for how many seconds in all."""
        return self._lifeClock.stalls, self._lifeClock.stalledSeconds

    def hidden(self, tenant: str) -> frozenset[str]:
        """The incarnations of those of *tenant*'s services that are dead by now, and that the store may still have."""
        self._collect()
        return self._deadlines.dying(tenant)

    def isHidden(self, tenant: str, id: str, incarnation: str) -> bool:
        """Whether this life is over by now, though the store may still have it."""
        life = self.find(tenant, id, incarnation)
        return life is not None and self.alive(tenant, id) is not life

    @property
    def pending(self) -> int:
        """How many deaths the store has still to be told of."""
        return len(self._expirations)

    def whenBuried(self) -> Deferred[None]:
        """
        :return: fires when the store has been told of all deaths that were found before.
        :raises Fault: if it could not be told.
        """
        return self._expirations.whenDone()

    def buried(self, deaths: Iterable[Expiration]) -> None:
        """The store has kept these."""
        for death in deaths:
            self.forget(death.tenant, death.id, death.incarnation)

    def doubt(self, tenant: str, id: str) -> None:
        """Memory and store may not agree about this service: look at it after the next tick."""
        self._doubts.add((tenant, id))

    def _tick(self) -> None:
        if self._sweeping is None:
            self._sweep()
        if self._doubts and not self._work.isBusy("doubts"):
            self._work.serialized("doubts", self._settleDoubts)

    def _sweep(self) -> None:
        self._sweeping = self._clock.callLater(0, self._sweep) if self._collect(self.SWEEP) else None
        self._expirations.work()

    def _collect(self, most: int | None = None) -> bool:
        if self._isSuspended:
            return False
        due, more = self._deadlines.collect(most)
        if self._ask is None:
            self._mourn(due)
        else:
            self._unjudged += due
            for _ in range(min(len(self._unjudged), self.QUESTIONS - self._judges)):
                self._work.start(self._judgeAll(self._ask))
        return more

    def _mourn(self, dead: Sequence[ServiceState]) -> None:
        if dead:
            # When life began, if it had never stood still.
            began = self._wallClock() - self._lifeClock.now()
            self._expirations.add(
                [Expiration(one.tenant, one.id, one.incarnation, round((began + one.deadline) * 1000)) for one in dead]
            )

    async def _judgeAll(self, ask: Callable[[str, str, str], Deferred[float]]) -> None:
        # A loop, because a chain of Deferreds that fire each other overflows the stack when thousands wait and the
        # answers are there at once.
        self._judges += 1
        try:
            while self._unjudged:
                await self._judge(self._unjudged.popleft(), ask)
        finally:
            self._judges -= 1

    async def _judge(self, life: ServiceState, ask: Callable[[str, str, str], Deferred[float]]) -> None:
        """Find out whether a service whose deadline has passed, as far as is known here, was heard elsewhere."""
        if self.find(life.tenant, life.id, life.incarnation) is not life:
            # While it waited for its turn somebody else has found out.
            return
        try:
            left = await ask(life.tenant, life.id, life.incarnation)
        except StoreUnavailable:
            left = self.PAUSE
        except Exception:
            # It must not be lost: nothing else would ever look at it again.
            self._log.failure("Can't tell whether service {id} is alive", id=life.id)
            left = self.PAUSE
        if self.find(life.tenant, life.id, life.incarnation) is not life:
            return
        if left < 0 and self._lifeClock.now() >= life.deadline and not self._isSuspended:
            self._deadlines.kill(life)
            self._mourn([life])
            self._expirations.work()
        else:
            self._deadlines.postpone(life, max(left, self.PAUSE))

    def _isDue(self, death: Expiration) -> bool:
        return self._deadlines.isDying(death.tenant, death.incarnation)

    async def _settleDoubts(self) -> None:
        for tenant, id in list(self._doubts)[: self.DOUBTS]:
            self._doubts.discard((tenant, id))
            try:
                await self._work.serialized((tenant, id), self._settler(tenant, id))
            except StoreUnavailable:
                self.doubt(tenant, id)
                return
            except Exception:
                self._log.failure("Can't tell whether service {id} of tenant {tenant} is there", id=id, tenant=tenant)

    def _settler(self, tenant: str, id: str) -> Callable[[], Coroutine[Deferred[Any], Any, None]]:
        async def settle() -> None:
            before = self.alive(tenant, id)
            hidden = self.hidden(tenant)
            try:
                record = await self._store.getService(tenant, id)
            except NoSuchObject:
                if before is not None:
                    self.forget(tenant, id, before.incarnation)
                return
            if before is not None and before.incarnation == record.incarnation:
                if self.alive(tenant, id) is before and before.timeout != record.heartbeatTimeout:
                    self.restart(before, record.heartbeatTimeout)
            elif record.incarnation not in hidden:
                # Its registration was kept, but never acknowledged.
                self.begin(tenant, id, record.incarnation, record.heartbeatTimeout, record.lastSeen)

        return settle
