"""
A registry that shares its store with others: it notices their changes, any of them takes any heartbeat, services that
it does not know yet are looked up, and a service expires when all of them agree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import inf

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from zope.interface import implementer

from ..util.concurrency import PrioritySemaphore, SingleFlight
from ..util.deferred import returnsDeferred
from .engine import Engine, expirationType, millisecondsUp
from .expiry.deadlines import ServiceState
from .expiry.livetable import readSummary
from .faults import Fault, notFound, systemFailure
from .scopes import kindOf, tenantOf
from .stores.interfaces import NoSuchObject, ServiceSummary
from .stores.shared import IStoreListener
from .tasks import available
from .tokens import heartbeatRefused

#: How many services are looked up in the store at once because a heartbeat named an unknown one, and how many may wait
#: for that: clients that make up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400

#: Seconds that a registration waits for a service with its id, or in its place in the account, that may have expired;
#: and from one look to the next.
_PATIENCE = 1.0
_PAUSE = 0.05

#: Seconds that a heartbeat may wait until it is decided whether the service has expired.
ADMISSION = 1.0


@implementer(IStoreListener)
@attrs.define(eq=False, slots=False)
class Cluster(Engine):
    """The engine of one registry among several over one :class:`~.stores.shared.ISharedStore`."""

    _due: deque[ServiceState] = attrs.field(init=False, factory=deque)
    _looking: SingleFlight[tuple[str, str], None] = attrs.field(init=False, factory=SingleFlight)
    _looks: PrioritySemaphore = attrs.field(init=False, factory=lambda: PrioritySemaphore(_LOOKS))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.live.share(self._due.extend, self._store.tick)

    async def start(self) -> None:
        await super().start()
        await self._store.join(self)

    async def _registrations(self) -> Sequence[ServiceSummary]:
        # The join reads them.
        return ()

    # -- heartbeats

    @returnsDeferred
    async def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        heartbeats = list(heartbeats)
        if not self._store.isValid:
            return [systemFailure("This node is not a valid member of the cluster") for _ in heartbeats]
        states, following = self._deadlines.ofTenant(scope), self.tokens.following()
        closed = self._store.closed(scope)
        outcomes: list[str | Deferred[str | Fault]] = []
        for id, token in heartbeats:
            state = states.get(id)
            isOpen = state is not None and state.incarnation not in closed
            nextToken = following(self._proof(state), token) if state is not None and isOpen else None
            if state is not None and nextToken is not None:
                self._acknowledge(state)
                outcomes.append(nextToken)
            else:
                # Also for an unknown token: another registry may know a later incarnation.
                outcomes.append(self._admitted(scope, id, token))
        return [outcome if isinstance(outcome, str) else await outcome for outcome in outcomes]

    def _acknowledge(self, state: ServiceState) -> None:
        lastSeen = millisecondsUp(self._wallClock())
        state.heartbeat(self._deadlines.now(), lastSeen)
        self._deadlines.requeue(state)
        self._store.recordLastSeen(state.tenant, state.id, state.incarnation, lastSeen)
        self.heartbeats += 1

    def _admitted(self, scope: str, id: str, token: str) -> Deferred[str | Fault]:
        """Let a heartbeat pass that cannot be acknowledged from memory at once; fires with the next token."""
        admitting = self._tasks.start(self._admit(scope, id, token))
        return admitting.addTimeout(ADMISSION, self._clock, onTimeoutCancel=_undecided)

    async def _admit(self, scope: str, id: str, token: str) -> str | Fault:
        self.waiting += 1
        try:
            hasLooked = False
            while True:
                state = self._deadlines.active(scope, id)
                nextToken = None if state is None else self.tokens.following()(self._proof(state), token)
                if state is not None and nextToken is not None:
                    if not await available(self._store.admit(scope, state.incarnation)):
                        # This incarnation has ended. There may be another one.
                        self._deadlines.forget(scope, id, state.incarnation)
                    elif self._deadlines.registered((scope, state.incarnation)) is state:
                        self._acknowledge(state)
                        return nextToken
                elif hasLooked:
                    return notFound(kindOf(scope), id) if state is None else heartbeatRefused(state, token)
                await self._look(scope, id)
                hasLooked = True
        except Fault as fault:
            return fault
        finally:
            self.waiting -= 1

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        # Another registry may have created it a moment ago.
        await self._look(scope, id)
        return await super().stateOf(scope, id)

    async def _look(self, scope: str, id: str) -> None:
        """Look a registration up in the store; the fault 503 if it is unavailable, or too many are being looked up."""
        if len(self._looking) >= _WAITING:
            raise systemFailure("Too many unknown services are being looked up")
        await available(self._looking.do((scope, id), lambda: self._lookUp(scope, id)))

    @returnsDeferred
    async def _lookUp(self, scope: str, id: str) -> None:
        await self._looks.take(inf)
        known = self._deadlines.active(scope, id)
        try:
            self.live.track(await readSummary(self._store, scope, id))
        except NoSuchObject:
            if known is not None:
                self._deadlines.forget(scope, id, known.incarnation)
        finally:
            self._looks.give()

    # -- registrations

    async def untilDecided(self, scope: str, id: str | None) -> bool:
        end = self._clock.seconds() + _PATIENCE
        hasWaited = False
        state = None if id is None else self._deadlines.active(scope, id)
        if (
            state is not None
            and state.deadline <= state.aliveUntil <= self._deadlines.now()
            and state.incarnation not in self._store.closed(scope)
        ):
            # It was left to another registry, where it may have expired by now: another vote tells.
            self._deadlines.requeue(state)
        while self._mayHaveExpired(scope, id):
            if self._clock.seconds() >= end:
                return False
            hasWaited = True
            await deferLater(self._clock, _PAUSE)
        return hasWaited

    def _mayHaveExpired(self, scope: str, id: str | None) -> bool:
        closed = self._store.closed(scope)
        if id is None:
            return any(state.incarnation in closed for state in self._deadlines.ofTenant(scope).values())
        state = self._deadlines.active(scope, id)
        if state is None:
            return False
        return state.incarnation in closed or max(state.deadline, state.aliveUntil) <= self._deadlines.now()

    # -- IStoreListener

    def appeared(self, service: ServiceSummary) -> None:
        self.live.track(service)

    def renew(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.restart(state, state.timeout)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self._deadlines.forget(tenant, id, incarnation)

    def eventAdded(self, tenant: str, type: str | None) -> None:
        self._feed.notify((tenant,), type)

    def synchronized(self, services: Sequence[ServiceSummary]) -> None:
        self.live.synchronize(services)

    def suspend(self) -> None:
        self.live.suspend()
        self._feed.lose()

    def renewAll(self) -> None:
        self._due.clear()
        self.live.renewAll()

    def secondsLeft(self, registration: tuple[str, str]) -> float:
        state = self._deadlines.registered(registration)
        return -1.0 if state is None else state.deadline - self._deadlines.now()

    def timeout(self, registration: tuple[str, str]) -> float:
        state = self._deadlines.registered(registration)
        return 0.0 if state is None else state.timeout

    def due(self, count: int) -> Mapping[tuple[str, str], int]:
        now = self._deadlines.now()
        due: dict[tuple[str, str], int] = {}
        while self._due and len(due) < count:
            state = self._due.popleft()
            registration = state.tenant, state.incarnation
            # A heartbeat that came since has put it back into the queue.
            if state.deadline <= now and self._deadlines.registered(registration) is state:
                (due[registration],) = self.live.timestamps([state])
                state.asked = now
        return due

    def lookAgain(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.requeue(state)

    def leaveTo(self, registration: tuple[str, str], seconds: float) -> None:
        state = self._deadlines.registered(registration)
        if state is None:
            return
        if state.deadline > self._deadlines.now():
            self._deadlines.requeue(state)
        else:
            # The answer was given later.
            state.aliveUntil = state.asked + seconds

    def expired(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self.live.noteExpired(state)
            type = expirationType(state.tenant)
            self.expirations[type] += 1
            self._feed.notify((tenantOf(state.tenant),), type)

    def ended(self, registration: tuple[str, str]) -> None:
        state = self._deadlines.registered(registration)
        if state is not None:
            self._deadlines.forget(state.tenant, state.id, state.incarnation)


def _undecided(failure: object, seconds: float) -> Fault:
    return systemFailure("It could not be decided in time whether the service has expired")
