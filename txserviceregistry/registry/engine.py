"""
The common part of services and locks: registrations that last while their heartbeats arrive.

A registration belongs to a scope (:mod:`~txserviceregistry.registry.scopes`) and has an id there. Its meaning is
known to :mod:`~txserviceregistry.registry.core` and :mod:`~txserviceregistry.registry.locks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from ..util.deferred import returnsDeferred
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import Fault, notFound
from .feed import EventFeed
from .scopes import isLockScope, kindOf, tenantOf
from .stores.interfaces import Expiration, LimitExceeded, NoSuchObject, ObjectExists, ServiceSummary
from .tasks import TaskOwner, available
from .tokens import HeartbeatTokens, heartbeatRefused

_T = TypeVar("_T")


@attrs.define(eq=False, slots=False)
class Engine:
    """
    The registrations of all scopes: their deadlines, heartbeats and expirations.

    :param tasks: changes of one registration wait for each other there, under the key ``(scope, id)``.
    :ivar live: the registrations.
    :ivar tokens: makes and checks heartbeat tokens, once the engine has been started.
    :ivar heartbeats: how many were taken.
    :ivar waiting: how many heartbeats wait for the store.
    :ivar expirations: how many registrations have expired, by the type of their event.
    """

    _store: Any
    _feed: EventFeed
    _tasks: TaskOwner
    _clock: IReactorTime
    _wallClock: Callable[[], float]
    live: LiveServices = attrs.field(init=False)
    tokens: HeartbeatTokens = attrs.field(init=False)
    heartbeats: int = attrs.field(init=False, default=0)
    waiting: int = attrs.field(init=False, default=0)
    expirations: Counter[str] = attrs.field(init=False, factory=Counter)

    def __attrs_post_init__(self) -> None:
        self.live = LiveServices(
            self._store, self._persist, clock=self._clock, wallClock=self._wallClock, tasks=self._tasks
        )
        self._deadlines = self.live.deadlines

    async def start(self) -> None:
        """Begin: every registration has a full timeout."""
        self.tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)
        self.live.start(await self._registrations())

    async def _registrations(self) -> Sequence[ServiceSummary]:
        """The registrations at the start."""
        return [*await self._store.allServices(), *await self._store.allLocks()]

    # -- changes

    async def create(self, scope: str, id: str, create: Callable[[], Awaitable[_T]]) -> _T:
        """
        Create a registration, with an event; raises what the store raises.

        :param create: creates it in the store; is called again when something that has expired was in its way.
        """
        type = "lock.acquire" if isLockScope(scope) else "service.join"
        while True:
            try:
                return await self.changed((tenantOf(scope),), create(), type)
            except (ObjectExists, LimitExceeded) as refusal:
                isTaken = isinstance(refusal, ObjectExists)
                if self.live.hidden(scope):
                    # Expired registrations hold ids and places in the limit that are free by the rules.
                    await self.live.expirations.nextGroup()
                elif not await self.untilDecided(scope, id if isTaken else None):
                    if isTaken and self._deadlines.active(scope, id) is None:
                        self.live.markUnsure(scope, id)
                    raise
            except Exception:
                self.live.markUnsure(scope, id)
                raise

    async def untilDecided(self, scope: str, id: str | None) -> bool:
        """Wait until it is decided whether *id*, or any of the scope, has expired; returns whether that is so now."""
        return False

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        """:raises Fault: 404 if there is no such registration."""
        state = self._deadlines.active(scope, id)
        if state is None:
            raise notFound(kindOf(scope), id)
        return state

    async def applied(self, state: ServiceState, change: Awaitable[_T], type: str | None) -> _T:
        """
        The result of a change of a registration, with an event of a *type* if there is one; the fault 404 if the store
        does not have it.
        """
        try:
            return await self.changed((tenantOf(state.tenant),) if type else (), change, type)
        except NoSuchObject:
            self._deadlines.forget(state.tenant, state.id, state.incarnation)
            self.live.markUnsure(state.tenant, state.id)
            raise notFound(kindOf(state.tenant), state.id)
        except Exception:
            self.live.markUnsure(state.tenant, state.id)
            raise

    async def changed(self, tenants: Collection[str], change: Awaitable[_T], type: str | None) -> _T:
        """The result of a change that makes events of this *type* for *tenants*, which are notified."""
        result = await available(change)
        self._feed.notify(tenants, type)
        return result

    # -- heartbeats

    def lastSeen(self, scope: str, ids: Iterable[str]) -> dict[str, int | None]:
        """
        When the last heartbeats of these services arrived, in milliseconds since the epoch, as far as this registry
        knows. Services that are not there are left out.
        """
        states = self._deadlines.ofTenant(scope)
        return {id: states[id].lastSeen for id in ids if id in states}

    def heartbeat(self, scope: str, id: str, token: str) -> Deferred[str]:
        """
        Take a heartbeat: the registration has a full timeout from now on.

        :param token: any token that was given out for this incarnation of it.
        :return: fires with the next token.
        :raises Fault: 404 if the registration is not there, or the token is not its own.
        """
        return self.takeHeartbeats(scope, [(id, token)]).addCallback(_only)

    def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """
        Take many heartbeats, each as if it had come alone, and all at the same moment.

        :param heartbeats: ids and tokens. An id may be there more than once.
        :return: fires with the next token, or the fault that :meth:`heartbeat` would have raised, for each in its
            order: at once, unless other registries share the store.
        """
        lastSeen, now = millisecondsUp(self._wallClock()), self._deadlines.now()
        states, following = self._deadlines.ofTenant(scope), self.tokens.following()
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
                outcomes.append(heartbeatRefused(state, token))
                continue
            state.heartbeat(now, lastSeen)
            if record is not None:
                record(scope, id, state.incarnation, lastSeen)
            self.heartbeats += 1
            outcomes.append(nextToken)
        return succeed(outcomes)

    def _proof(self, state: ServiceState) -> str:
        state.proof = state.proof or self.tokens.proof(state.tenant, state.id, state.incarnation)
        return state.proof

    # -- expirations

    @returnsDeferred
    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        for type, expire in (
            ("service.timeout", self._store.expireServices),
            ("lock.expire", self._store.expireLocks),
        ):
            group = [each for each in expirations if expirationType(each.tenant) == type]
            if group:
                await self.changed({tenantOf(each.tenant) for each in group}, expire(group), type)
                for each in group:
                    self._deadlines.forget(each.tenant, each.id, each.incarnation)
                self.expirations[type] += len(group)


def expirationType(scope: str) -> str:
    """The type of the event of an expiration in this scope."""
    return "lock.expire" if isLockScope(scope) else "service.timeout"


def millisecondsUp(seconds: float) -> int:
    """A moment in milliseconds, rounded up."""
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)


def _only(outcomes: Sequence[str | Fault]) -> str:
    (outcome,) = outcomes
    if isinstance(outcome, Fault):
        raise outcome
    return outcome
