"""The common part of services and locks: registrations that last while their heartbeats arrive, each in a scope."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from ..util.deferred import PrioritySemaphore, SingleFlight, returnsDeferred
from .expiry import REFUSED, LiveServices, ServiceState, readSummary
from .faults import Fault, notFound, systemFailure
from .feed import EventFeed
from .model import isLockScope, kindOf, tenantOf
from .stores.interfaces import Expiration, IStoreListener, LimitExceeded, NoSuchObject, ObjectExists, ServiceSummary
from .tasks import available
from .uuids import HeartbeatTokens

_T = TypeVar("_T")

#: How many registrations are looked up in a shared store at once because a heartbeat named an unknown one, and how many
#: look-ups may be open: clients that make up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400

#: Seconds that a registration waits for a service with its id, or in its place in the account, that may have expired;
#: and from one look to the next.
_PATIENCE = 1.0
_PAUSE = 0.05

#: Seconds that a heartbeat may wait until it is decided whether the service has expired.
ADMISSION = 1.0


@attrs.define(eq=False, slots=False)
class Engine(LiveServices):
    """The registrations of all scopes."""

    _feed: EventFeed
    tokens: HeartbeatTokens = attrs.field(init=False)
    heartbeats: int = attrs.field(init=False, default=0)  # how many were taken
    waiting: int = attrs.field(init=False, default=0)  # how many heartbeats wait for the store
    expirations: Counter[str] = attrs.field(init=False, factory=Counter)  # by the type of their event

    async def start(self) -> None:
        self.tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)
        await self._begin()

    async def _begin(self) -> None:
        self.begin([*await self._store.allServices(), *await self._store.allLocks()])

    async def create(self, scope: str, id: str, create: Callable[[], Awaitable[Any]]) -> Any:
        """The new record that *create* makes: it is called again when something that has expired was in its way."""
        type = "lock.acquire" if isLockScope(scope) else "service.join"
        while True:
            try:
                record = await self._changed((tenantOf(scope),), create(), type)
                self.track(record.summary(tenantOf(scope)))
                return record
            except (ObjectExists, LimitExceeded) as refusal:
                isTaken = isinstance(refusal, ObjectExists)
                if self.wantExpired(scope, id if isTaken else None):
                    # Expired ones hold ids and places that are free by the rules. The group under way may lack this id.
                    await self.persistNext()
                    while isTaken and self.wantExpired(scope, id):
                        await self.persistNext()
                elif not await self._untilDecided(scope, id if isTaken else None):
                    if isTaken and self.active(scope, id) is None:
                        self.markUnsure(scope, id)
                    raise
            except Exception:
                self.markUnsure(scope, id)
                raise

    async def _untilDecided(self, scope: str, id: str | None) -> bool:
        """Wait until it is decided whether *id*, or any of the scope, has expired; returns whether it was open."""
        return False

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        """:raises Fault: 404 if there is no such registration."""
        state = self.active(scope, id)
        if state is None:
            raise notFound(kindOf(scope), id)
        return state

    async def applied(self, state: ServiceState, change: Awaitable[_T], type: str | None, *, isEnd: bool = False) -> _T:
        """The result of a change of a registration; the fault 404 if the store does not have it."""
        try:
            result = await self._changed((tenantOf(state.tenant),) if type else (), change, type)
        except Exception as error:
            self.markUnsure(state.tenant, state.id)
            if not isinstance(error, NoSuchObject):
                raise
            self.forget(*state.name)
            raise notFound(kindOf(state.tenant), state.id)
        if isEnd:
            self.forget(*state.name)
        return result

    async def _changed(self, tenants: Collection[str], change: Awaitable[_T], type: str | None) -> _T:
        """The result of a change that makes events of this *type* for *tenants*, which are notified."""
        result = await available(change)
        self._feed.notify(tenants, type)
        return result

    def lastSeen(self, scope: str, ids: Iterable[str]) -> dict[str, int | None]:
        """When the last known heartbeats of those of these services that are there came, in ms since the epoch."""
        states = self.ofTenant(scope)
        return {id: states[id].lastSeen for id in ids if id in states}

    def heartbeat(self, scope: str, id: str, token: str) -> Deferred[str]:
        """Take a heartbeat, with any token of this incarnation. Fires with the next one; the fault 404 for others."""
        taking = self.takeHeartbeats(scope, [(id, token)])
        return taking.addCallback(lambda outcomes: fail(outcomes[0]) if isinstance(outcomes[0], Fault) else outcomes[0])

    def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """As :meth:`heartbeat`, for many ids and tokens. It fires at once, unless other registries share the store."""
        lastSeen, now = millisecondsUp(self._wallClock()), self.now()
        states, following, isLock = self.ofTenant(scope), self.tokens.following(), isLockScope(scope)
        closed: Collection[str] = self._store.closed(scope) if self.isShared else ()
        outcomes: list[Any] = []
        for id, token in heartbeats:
            state, nextToken = states.get(id), None
            if state is not None and (now < state.deadline or self.isShared) and state.incarnation not in closed:
                nextToken = following(state.proof or self._proof(state), token)
                if nextToken is not None:
                    self._acknowledge(state, now, lastSeen, isLock=isLock)
            outcomes.append(nextToken or self._otherwise(scope, id, token))
        return succeed(outcomes)

    def _proof(self, state: ServiceState) -> str:
        state.proof = state.proof or self.tokens.proof(*state.name)
        return state.proof

    def _acknowledge(self, state: ServiceState, now: float, lastSeen: int, *, isLock: bool) -> None:
        state.deadline, state.lastSeen = now + state.timeout, lastSeen
        if self.isShared:
            self.requeue(state)
        # Locks are not shown with the time of their last heartbeat.
        if not isLock:
            self._store.recordLastSeen(state.tenant, state.id, state.incarnation, lastSeen)
        self.heartbeats += 1

    def _otherwise(self, scope: str, id: str, token: str) -> Any:
        """The outcome of a heartbeat that can't be acknowledged from memory, or a Deferred of it."""
        state = self.active(scope, id)
        isOther = state is not None and state.proof != REFUSED
        return notFound("HeartbeatMarker", token) if isOther else notFound(kindOf(scope), id)

    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        expireServices, expireLocks = self._store.expireServices, self._store.expireLocks
        for type, expire in (("service.timeout", expireServices), ("lock.expire", expireLocks)):
            group = [each for each in expirations if _expirationType(each.tenant) == type]
            if group:
                await self._changed({tenantOf(each.tenant) for each in group}, expire(group), type)
                for each in group:
                    self.forget(each.tenant, each.id, each.incarnation)
                self.expirations[type] += len(group)


@implementer(IStoreListener)
@attrs.define(eq=False, slots=False)
class Cluster(Engine):
    """
    The engine of one registry among several over one :class:`~.stores.interfaces.ISharedStore`: it notices their
    changes, any of them takes any heartbeat, services that it does not know yet are looked up, and a service expires
    when all of them agree.
    """

    isShared = True
    _due: deque[ServiceState] = attrs.field(init=False, factory=deque)
    _looking: SingleFlight[tuple[str, str], None] = attrs.field(init=False, factory=SingleFlight)
    _looks: PrioritySemaphore = attrs.field(init=False, factory=partial(PrioritySemaphore, _LOOKS))

    async def _begin(self) -> None:
        self.begin(())
        # That reads the registrations.
        await self._store.join(self)

    def _passed(self, states: Sequence[ServiceState]) -> None:
        self._due.extend(states)

    def _onTick(self) -> None:
        self._store.tick()

    @returnsDeferred
    async def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        if not self._store.isValid:
            return [systemFailure("This node is not a valid member of the cluster") for _ in heartbeats]
        outcomes = await super().takeHeartbeats(scope, heartbeats)
        return [await outcome if isinstance(outcome, Deferred) else outcome for outcome in outcomes]

    def _otherwise(self, scope: str, id: str, token: str) -> Deferred[str | Fault]:
        # Also for an unknown token: another registry may know a later incarnation.
        admitting = self._tasks.start(self._admit(scope, id, token))
        undecided = systemFailure("It could not be decided in time whether the service has expired")
        return admitting.addTimeout(ADMISSION, self._clock, onTimeoutCancel=lambda *_: undecided)

    async def _admit(self, scope: str, id: str, token: str) -> str | Fault:
        """Let a heartbeat pass that cannot be acknowledged from memory at once; returns the next token."""
        self.waiting += 1
        try:
            hasLooked = False
            while True:
                state = self.active(scope, id)
                nextToken = None if state is None else self.tokens.following()(self._proof(state), token)
                if state is not None and nextToken is not None:
                    if not await available(self._store.admit(scope, state.incarnation)):
                        # This incarnation has ended. There may be another one.
                        self.forget(*state.name)
                    elif self.registered((scope, state.incarnation)) is state:
                        lastSeen = millisecondsUp(self._wallClock())
                        self._acknowledge(state, self.now(), lastSeen, isLock=isLockScope(scope))
                        return nextToken
                elif hasLooked:
                    refusal: Fault = super()._otherwise(scope, id, token)
                    return refusal
                await self._look(scope, id, self._lookUpInTurn)
                hasLooked = True
        except Fault as fault:
            return fault
        finally:
            self.waiting -= 1

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        # Another registry may have created it a moment ago.
        await self._look(scope, id, self._lookUp)
        return await super().stateOf(scope, id)

    async def _look(self, scope: str, id: str, lookUp: Callable[[str, str], Deferred[None]]) -> None:
        """Look a registration up in the store; the fault 503 if it is unavailable, or too many are being looked up."""
        if len(self._looking) >= _WAITING:
            raise systemFailure("Too many unknown services are being looked up")
        await available(self._looking.do((scope, id), lambda: lookUp(scope, id)))

    @returnsDeferred
    async def _lookUp(self, scope: str, id: str) -> None:
        known = self.active(scope, id)
        try:
            self.track(await readSummary(self._store, scope, id))
        except NoSuchObject:
            if known is not None:
                self.forget(*known.name)

    @returnsDeferred
    async def _lookUpInTurn(self, scope: str, id: str) -> None:
        await self._looks.take(inf)
        try:
            await self._lookUp(scope, id)
        finally:
            self._looks.give()

    async def _untilDecided(self, scope: str, id: str | None) -> bool:
        end = self._clock.seconds() + _PATIENCE
        hasWaited = False
        state = None if id is None else self.active(scope, id)
        if (
            state is not None
            and state.deadline <= state.aliveUntil <= self.now()
            and state.incarnation not in self._store.closed(scope)
        ):
            # It was left to another registry, where it may have expired by now: another vote tells.
            self.requeue(state)
        while self._mayHaveExpired(scope, id):
            if self._clock.seconds() >= end:
                return False
            hasWaited = True
            await deferLater(self._clock, _PAUSE)
        return hasWaited

    def _mayHaveExpired(self, scope: str, id: str | None) -> bool:
        closed = self._store.closed(scope)
        if id is None:
            return any(self.registered((scope, incarnation)) for incarnation in closed)
        state = self.active(scope, id)
        return state is not None and (
            state.incarnation in closed or max(state.deadline, state.aliveUntil) <= self.now()
        )

    # -- IStoreListener

    appeared, vanished = LiveServices.track, LiveServices.forget

    def synchronized(self, services: Sequence[ServiceSummary]) -> None:
        self.synchronize(services)
        self._feed.notifyAll()

    def renew(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.restart(state, state.timeout)

    def eventAdded(self, tenant: str, type: str | None) -> None:
        self._feed.notify((tenant,), type)

    def suspend(self) -> None:
        super().suspend()
        self._feed.lose()

    def secondsLeft(self, registration: tuple[str, str]) -> float:
        state = self.registered(registration)
        return -1.0 if state is None else state.deadline - self.now()

    def timeout(self, registration: tuple[str, str]) -> float:
        state = self.registered(registration)
        return 0.0 if state is None else state.timeout

    def due(self, count: int) -> Mapping[tuple[str, str], int]:
        now = self.now()
        due: dict[tuple[str, str], int] = {}
        while self._due and len(due) < count:
            state = self._due.popleft()
            registration = state.tenant, state.incarnation
            # A heartbeat that came since has put it back into the queue.
            if state.deadline <= now and self.registered(registration) is state:
                due[registration] = self.timestamp(state)
                state.asked = now
        return due

    def lookAgain(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.requeue(state)

    def leaveTo(self, registration: tuple[str, str], seconds: float) -> None:
        state = self.registered(registration)
        # A later deadline would have put it back into the queue.
        if state is not None and state.deadline <= self.now():
            state.aliveUntil = state.asked + seconds

    def expired(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.forget(*state.name)
            self.logExpired(state)
            type = _expirationType(state.tenant)
            self.expirations[type] += 1
            self._feed.notify((tenantOf(state.tenant),), type)

    def ended(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.forget(*state.name)


def _expirationType(scope: str) -> str:
    return "lock.expire" if isLockScope(scope) else "service.timeout"


def millisecondsUp(seconds: float) -> int:
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)
