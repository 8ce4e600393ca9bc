"""
The common part of services and locks: registrations that last while their heartbeats arrive. Each has an id in a scope
(:mod:`~txserviceregistry.registry.model`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from math import inf
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from zope.interface import implementer

from ..util.deferred import PrioritySemaphore, SingleFlight, returnsDeferred
from .expiry.deadlines import REFUSED, ServiceState
from .expiry.livetable import LiveServices, readSummary
from .faults import Fault, notFound, systemFailure
from .feed import EventFeed
from .model import isLockScope, kindOf, tenantOf
from .stores.interfaces import Expiration, LimitExceeded, NoSuchObject, ObjectExists, ServiceSummary
from .stores.shared import IStoreListener
from .tasks import Part, available
from .tokens import HeartbeatTokens

_T = TypeVar("_T")

#: How many registrations are looked up in a shared store at once because a heartbeat named an unknown one, and how many
#: may wait for that: clients that make up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400

#: Seconds that a registration waits for a service with its id, or in its place in the account, that may have expired;
#: and from one look to the next.
_PATIENCE = 1.0
_PAUSE = 0.05

#: Seconds that a heartbeat may wait until it is decided whether the service has expired.
ADMISSION = 1.0


@attrs.define(eq=False, slots=False)
class Engine(Part):
    """
    The registrations of all scopes. It counts the *heartbeats* that were taken, those that are *waiting* for the store,
    and *expirations* by the type of their event.
    """

    _feed: EventFeed
    live: LiveServices = attrs.field(init=False)
    tokens: HeartbeatTokens = attrs.field(init=False)
    heartbeats: int = attrs.field(init=False, default=0)
    waiting: int = attrs.field(init=False, default=0)
    expirations: Counter[str] = attrs.field(init=False, factory=Counter)

    def __attrs_post_init__(self) -> None:
        self.live = LiveServices(
            self._store, self._persist, clock=self._clock, wallClock=self._wallClock, tasks=self._tasks
        )

    async def start(self) -> None:
        await self._readSecret()
        self.live.start([*await self._store.allServices(), *await self._store.allLocks()])

    async def _readSecret(self) -> None:
        self.tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)

    async def create(self, scope: str, id: str, create: Callable[[], Awaitable[Any]]) -> Any:
        """
        The record of a new registration, which *create* makes in the store: it is called again when something that has
        expired was in its way. Raises what the store raises.
        """
        type = "lock.acquire" if isLockScope(scope) else "service.join"
        while True:
            try:
                record = await self._changed((tenantOf(scope),), create(), type)
                self.live.track(record.summary(tenantOf(scope)))
                return record
            except (ObjectExists, LimitExceeded) as refusal:
                isTaken = isinstance(refusal, ObjectExists)
                if self.live.hidden(scope):
                    # Expired registrations hold ids and places in the limit that are free by the rules.
                    await self.live.persistNext()
                elif not await self._untilDecided(scope, id if isTaken else None):
                    if isTaken and self.live.active(scope, id) is None:
                        self.live.markUnsure(scope, id)
                    raise
            except Exception:
                self.live.markUnsure(scope, id)
                raise

    async def _untilDecided(self, scope: str, id: str | None) -> bool:
        """Wait until it is decided whether *id*, or any of the scope, has expired; returns whether it was open."""
        return False

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        """:raises Fault: 404 if there is no such registration."""
        state = self.live.active(scope, id)
        if state is None:
            raise notFound(kindOf(scope), id)
        return state

    async def applied(self, state: ServiceState, change: Awaitable[_T], type: str | None, *, isEnd: bool = False) -> _T:
        """The result of a change of a registration; the fault 404 if the store does not have it."""
        try:
            result = await self._changed((tenantOf(state.tenant),) if type else (), change, type)
        except Exception as error:
            self.live.markUnsure(state.tenant, state.id)
            if not isinstance(error, NoSuchObject):
                raise
            self.live.forget(*state.name)
            raise notFound(kindOf(state.tenant), state.id)
        if isEnd:
            self.live.forget(*state.name)
        return result

    async def _changed(self, tenants: Collection[str], change: Awaitable[_T], type: str | None) -> _T:
        """The result of a change that makes events of this *type* for *tenants*, which are notified."""
        result = await available(change)
        self._feed.notify(tenants, type)
        return result

    def lastSeen(self, scope: str, ids: Iterable[str]) -> dict[str, int | None]:
        """When the last known heartbeats of those of these services that are there came, in ms since the epoch."""
        states = self.live.ofTenant(scope)
        return {id: states[id].lastSeen for id in ids if id in states}

    def heartbeat(self, scope: str, id: str, token: str) -> Deferred[str]:
        """
        Take a heartbeat, with any token that was given out for this incarnation: the registration has a full timeout
        from now on. Fires with the next token; the fault 404 if the registration is not there, or the token is not its.
        """
        return self.takeHeartbeats(scope, [(id, token)]).addCallback(_only)

    def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """
        Take many heartbeats, ids and tokens, at the same moment. Fires with the outcome of each, as :meth:`heartbeat`:
        at once, unless other registries share the store.
        """
        lastSeen, now = millisecondsUp(self._wallClock()), self.live.now()
        states, following = self.live.ofTenant(scope), self.tokens.following()
        # Locks are not shown with the time of their last heartbeat.
        record = None if isLockScope(scope) else self._store.recordLastSeen
        outcomes: list[str | Fault] = []
        for id, token in heartbeats:
            state = states.get(id)
            if state is None or now >= state.deadline:
                outcomes.append(notFound(kindOf(scope), id))
                continue
            nextToken = following(state.proof or self._proof(state), token)
            if nextToken is None:
                outcomes.append(_refused(state, token))
                continue
            state.heartbeat(now, lastSeen)
            if record is not None:
                record(scope, id, state.incarnation, lastSeen)
            self.heartbeats += 1
            outcomes.append(nextToken)
        return succeed(outcomes)

    def _proof(self, state: ServiceState) -> str:
        state.proof = state.proof or self.tokens.proof(*state.name)
        return state.proof

    @returnsDeferred
    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        expireServices, expireLocks = self._store.expireServices, self._store.expireLocks
        for type, expire in (("service.timeout", expireServices), ("lock.expire", expireLocks)):
            group = [each for each in expirations if _expirationType(each.tenant) == type]
            if group:
                await self._changed({tenantOf(each.tenant) for each in group}, expire(group), type)
                for each in group:
                    self.live.forget(each.tenant, each.id, each.incarnation)
                self.expirations[type] += len(group)


@implementer(IStoreListener)
@attrs.define(eq=False, slots=False)
class Cluster(Engine):
    """
    The engine of one registry among several over one :class:`~.stores.shared.ISharedStore`: it notices their changes,
    any of them takes any heartbeat, services that it does not know yet are looked up, and a service expires when all of
    them agree.
    """

    _due: deque[ServiceState] = attrs.field(init=False, factory=deque)
    _looking: SingleFlight[tuple[str, str], None] = attrs.field(init=False, factory=SingleFlight)
    _looks: PrioritySemaphore = attrs.field(init=False, factory=lambda: PrioritySemaphore(_LOOKS))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.live.onDue, self.live.onTick = self._due.extend, self._store.tick
        self.registered = self.live.registered

    async def start(self) -> None:
        await self._readSecret()
        self.live.start(())
        # That reads the registrations.
        await self._store.join(self)

    @returnsDeferred
    async def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        heartbeats = list(heartbeats)
        if not self._store.isValid:
            return [systemFailure("This node is not a valid member of the cluster") for _ in heartbeats]
        states, following = self.live.ofTenant(scope), self.tokens.following()
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
                admitting = self._tasks.start(self._admit(scope, id, token))
                outcomes.append(admitting.addTimeout(ADMISSION, self._clock, onTimeoutCancel=_undecided))
        return [outcome if isinstance(outcome, str) else await outcome for outcome in outcomes]

    def _acknowledge(self, state: ServiceState) -> None:
        lastSeen = millisecondsUp(self._wallClock())
        state.heartbeat(self.live.now(), lastSeen)
        self.live.requeue(state)
        self._store.recordLastSeen(*state.name, lastSeen)
        self.heartbeats += 1

    async def _admit(self, scope: str, id: str, token: str) -> str | Fault:
        """Let a heartbeat pass that cannot be acknowledged from memory at once; returns the next token."""
        self.waiting += 1
        try:
            hasLooked = False
            while True:
                state = self.live.active(scope, id)
                nextToken = None if state is None else self.tokens.following()(self._proof(state), token)
                if state is not None and nextToken is not None:
                    if not await available(self._store.admit(scope, state.incarnation)):
                        # This incarnation has ended. There may be another one.
                        self.live.forget(*state.name)
                    elif self.registered((scope, state.incarnation)) is state:
                        self._acknowledge(state)
                        return nextToken
                elif hasLooked:
                    return notFound(kindOf(scope), id) if state is None else _refused(state, token)
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
        known = self.live.active(scope, id)
        try:
            self.live.track(await readSummary(self._store, scope, id))
        except NoSuchObject:
            if known is not None:
                self.live.forget(*known.name)
        finally:
            self._looks.give()

    async def _untilDecided(self, scope: str, id: str | None) -> bool:
        end = self._clock.seconds() + _PATIENCE
        hasWaited = False
        state = None if id is None else self.live.active(scope, id)
        if (
            state is not None
            and state.deadline <= state.aliveUntil <= self.live.now()
            and state.incarnation not in self._store.closed(scope)
        ):
            # It was left to another registry, where it may have expired by now: another vote tells.
            self.live.requeue(state)
        while self._mayHaveExpired(scope, id):
            if self._clock.seconds() >= end:
                return False
            hasWaited = True
            await deferLater(self._clock, _PAUSE)
        return hasWaited

    def _mayHaveExpired(self, scope: str, id: str | None) -> bool:
        closed = self._store.closed(scope)
        if id is None:
            return any(state.incarnation in closed for state in self.live.ofTenant(scope).values())
        state = self.live.active(scope, id)
        return state is not None and (
            state.incarnation in closed or max(state.deadline, state.aliveUntil) <= self.live.now()
        )

    # -- IStoreListener

    def appeared(self, service: ServiceSummary) -> None:
        self.live.track(service)

    def renew(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.live.restart(state, state.timeout)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self.live.forget(tenant, id, incarnation)

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
        state = self.registered(registration)
        return -1.0 if state is None else state.deadline - self.live.now()

    def timeout(self, registration: tuple[str, str]) -> float:
        state = self.registered(registration)
        return 0.0 if state is None else state.timeout

    def due(self, count: int) -> Mapping[tuple[str, str], int]:
        now = self.live.now()
        due: dict[tuple[str, str], int] = {}
        while self._due and len(due) < count:
            state = self._due.popleft()
            registration = state.tenant, state.incarnation
            # A heartbeat that came since has put it back into the queue.
            if state.deadline <= now and self.registered(registration) is state:
                due[registration] = self.live.timestamp(state)
                state.asked = now
        return due

    def lookAgain(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.live.requeue(state)

    def leaveTo(self, registration: tuple[str, str], seconds: float) -> None:
        state = self.registered(registration)
        if state is not None and state.deadline > self.live.now():
            self.live.requeue(state)
        elif state is not None:
            # The answer was given later.
            state.aliveUntil = state.asked + seconds

    def expired(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.live.noteExpired(state)
            type = _expirationType(state.tenant)
            self.expirations[type] += 1
            self._feed.notify((tenantOf(state.tenant),), type)

    def ended(self, registration: tuple[str, str]) -> None:
        if state := self.registered(registration):
            self.live.forget(*state.name)


def _undecided(failure: object, seconds: float) -> Fault:
    return systemFailure("It could not be decided in time whether the service has expired")


def _refused(state: ServiceState, token: str) -> Fault:
    """The fault for a heartbeat whose token is not one of the registration's, or whose registration takes none."""
    if state.proof == REFUSED:
        return notFound(kindOf(state.tenant), state.id)
    return notFound("HeartbeatMarker", token)


def _expirationType(scope: str) -> str:
    return "lock.expire" if isLockScope(scope) else "service.timeout"


def millisecondsUp(seconds: float) -> int:
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)


def _only(outcomes: Sequence[str | Fault]) -> str:
    (outcome,) = outcomes
    if isinstance(outcome, Fault):
        raise outcome
    return outcome
