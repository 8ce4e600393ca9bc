"""
What services and locks have in common: registrations that live as long as their heartbeats come.

A registration belongs to a scope (:mod:`~txserviceregistry.registry.scopes`) and has an id there. What it is about is
known to :mod:`~txserviceregistry.registry.core` and :mod:`~txserviceregistry.registry.locks`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from ..util.deferred import returnsDeferred
from .cluster import Cluster
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import Fault, notFound
from .scopes import isLockScope, kindOf, tenantOf
from .stores.interfaces import Expiration, IStore, LimitExceeded, NoSuchObject, ObjectExists
from .stores.shared import ISharedStore
from .subscribers import Subscribers
from .tasks import TaskOwner, available
from .tokens import HeartbeatTokens, heartbeatRefused

_T = TypeVar("_T")


class Engine:
    """
    The registrations of all scopes: their deadlines, heartbeats and expirations.

    :param store: see :class:`~txserviceregistry.registry.core.Registry`, also for the rest.
    :ivar tasks: owns what is under way; changes of one registration wait for each other, under the key ``(scope, id)``.
    :ivar live: the registrations.
    :ivar cluster: ``None`` unless other registries share the store.
    :ivar tokens: makes and checks heartbeat tokens, once the engine has been started.
    :ivar heartbeats: how many were taken.
    :ivar expirations: how many services have expired, and
    :ivar lockExpirations: how many locks.
    """

    #: How many pending expirations a new registration waits for that may have nothing to do with them.
    FEW_PENDING = 100

    def __init__(
        self, store: IStore, *, clock: IReactorTime, wallClock: Callable[[], float], subscribers: Subscribers
    ) -> None:
        self._store = store
        self._wallClock = wallClock
        self._subscribers = subscribers
        self.tokens: HeartbeatTokens
        self.tasks = TaskOwner()
        shared: Any = store if ISharedStore.providedBy(store) else None
        self.live = LiveServices(
            store, self._persist, clock=clock, wallClock=wallClock, tasks=self.tasks, isAuthoritative=shared is None
        )
        self._deadlines = self.live.deadlines
        self.cluster = (
            None
            if shared is None
            else Cluster(shared, self.live, subscribers, clock, self.tasks, self._acknowledge, self._hasExpired)
        )
        self.heartbeats = 0
        self.expirations = 0
        self.lockExpirations = 0

    async def start(self) -> None:
        """
        Begin: every registration has a full heartbeat timeout from now on.

        :raises StoreUnavailable: if the store can't be read.
        """
        self.tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)
        self.live.start([*await self._store.allServices(), *await self._store.locks.all()])
        if self.cluster is not None:
            await self.cluster.start()

    # -- changes

    async def create(self, scope: str, id: str, create: Callable[[], Awaitable[_T]]) -> _T:
        """
        Create a registration, with an event.

        :param create: creates it in the store; is called again when something that has expired was in its way.
        :raises ObjectExists: if the id is in use.
        :raises LimitExceeded: if there are as many registrations in the scope as there may be.
        :raises Fault: 503 if the store is unavailable.
        """
        type = "lock.acquire" if isLockScope(scope) else "service.join"
        while True:
            # Expired registrations hold ids and places in the limit that are free by the rules. A few are persisted in
            # a moment; while there are many, only those wait that the store refuses.
            if self.live.hidden(scope) and len(self.live.expirations) <= self.FEW_PENDING:
                await self.live.expirations.nextGroup()
            try:
                return await self.changed((tenantOf(scope),), create(), type)
            except (ObjectExists, LimitExceeded) as refusal:
                if self.live.hidden(scope):
                    # Some of them may have expired while the store was at it.
                    await self.live.expirations.nextGroup()
                    continue
                isTaken = isinstance(refusal, ObjectExists)
                if self.cluster is not None and await self.cluster.untilDecided(scope, id if isTaken else None):
                    continue
                if isTaken and self._deadlines.active(scope, id) is None:
                    self.live.markUnsure(scope, id)
                raise
            except Exception:
                self.live.markUnsure(scope, id)
                raise

    async def stateOf(self, scope: str, id: str) -> ServiceState:
        """:raises Fault: 404 if there is no such registration."""
        if self.cluster is not None:
            # Another registry may have created it a moment ago.
            await self.cluster.look(scope, id)
        state = self._deadlines.active(scope, id)
        if state is None:
            raise notFound(kindOf(scope), id)
        return state

    async def applied(self, state: ServiceState, change: Awaitable[_T]) -> _T:
        """
        The result of a change of a registration; the store is right about what is there.

        :raises Fault: 404 if it is gone.
        """
        try:
            return await change
        except NoSuchObject:
            self._deadlines.forget(state.tenant, state.id, state.incarnation)
            self.live.markUnsure(state.tenant, state.id)
            raise notFound(kindOf(state.tenant), state.id)
        except Exception:
            self.live.markUnsure(state.tenant, state.id)
            raise

    async def changed(self, tenants: Collection[str], change: Awaitable[_T], type: str) -> _T:
        """The result of a change that makes events of this *type* for *tenants*, whose subscribers are notified."""
        result = await available(change)
        self._subscribers.notify(tenants, type)
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
        Take a heartbeat: the registration has a full timeout from now on. The store is not asked.

        :param token: any token that was given out for this incarnation of it.
        :return: fires, at once, with the next token.
        :raises Fault: 404 if the registration is not there, or the token is not its own.
        """
        if self.cluster is not None:
            (outcome,) = self.cluster.take(scope, [(id, token)], self.tokens)
            return succeed(outcome) if isinstance(outcome, str) else outcome
        (taken,) = self._take(scope, [(id, token)])
        return fail(taken) if isinstance(taken, Fault) else succeed(taken)

    def takeHeartbeats(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """
        Take many heartbeats, each as if it had come alone, and all at the same moment.

        :param heartbeats: ids and tokens. An id may be there more than once.
        :return: fires, at once, with the next token, or the fault that :meth:`heartbeat` would have raised, for each
            in its order.
        """
        if self.cluster is not None:
            return self.cluster.takeAll(scope, heartbeats, self.tokens)
        return succeed(self._take(scope, heartbeats))

    def _take(self, scope: str, heartbeats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        lastSeen, now = _millisecondsUp(self._wallClock()), self._deadlines.now()
        states, following = self._deadlines.ofTenant(scope), self.tokens.following()
        record = _ignore if isLockScope(scope) else self._store.recordLastSeen
        outcomes: list[str | Fault] = []
        for id, token in heartbeats:
            state = states.get(id)
            if state is None or now >= state.deadline:
                outcomes.append(notFound(kindOf(scope), id))
                continue
            if not state.proof:
                state.proof = self.tokens.proof(scope, id, state.incarnation)
            nextToken = following(state.proof, token)
            if nextToken is None:
                outcomes.append(heartbeatRefused(state, token))
                continue
            state.heartbeat(now, lastSeen)
            record(scope, id, state.incarnation, lastSeen)
            self.heartbeats += 1
            outcomes.append(nextToken)
        return outcomes

    def _acknowledge(self, state: ServiceState) -> None:
        lastSeen = _millisecondsUp(self._wallClock())
        state.heartbeat(self._deadlines.now(), lastSeen)
        self._deadlines.requeue(state)
        self._store.recordLastSeen(state.tenant, state.id, state.incarnation, lastSeen)
        self.heartbeats += 1

    # -- expirations

    @returnsDeferred
    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        locks = [each for each in expirations if isLockScope(each.tenant)]
        services = [each for each in expirations if not isLockScope(each.tenant)] if locks else expirations
        tenants = {tenantOf(each.tenant) for each in expirations}
        if services:
            await self.changed(tenants, self._store.expireServices(services), "service.timeout")
            self._forget(services)
            self.expirations += len(services)
        if locks:
            await self.changed(tenants, self._store.locks.expire(locks), "lock.expire")
            self._forget(locks)
            self.lockExpirations += len(locks)

    def _forget(self, expirations: Iterable[Expiration]) -> None:
        for each in expirations:
            self._deadlines.forget(each.tenant, each.id, each.incarnation)

    def _hasExpired(self, state: ServiceState) -> None:
        isLock = isLockScope(state.tenant)
        if isLock:
            self.lockExpirations += 1
        else:
            self.expirations += 1
        self._subscribers.notify((tenantOf(state.tenant),), "lock.expire" if isLock else "service.timeout")


def _ignore(scope: str, id: str, incarnation: str, lastSeen: int) -> None:
    """Locks are not shown with the time of their last heartbeat."""


def _millisecondsUp(seconds: float) -> int:
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)
