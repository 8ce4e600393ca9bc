"""
The rules of the API: what may be done to services, and what follows from it.

A :class:`Registry` knows neither HTTP nor how a store keeps things. It decides; the store makes each decision atomic
and durable; the deadlines are here, in memory. Values that come in have been validated by
:mod:`~txserviceregistry.registry.http.validation`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from .. import types
from ..util.deferred import returnsDeferred
from .cluster import Cluster
from .configuration import Configuration
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import Fault, limitReached, notFound, serviceExists
from .feed import EVENT_RETENTION, EventFeed
from .limits import ResourceLimits
from .model import Figures, NewService, Page, ServiceChanges
from .servicelog import ServiceLog
from .stores.interfaces import (
    Account,
    Expiration,
    ISharedStore,
    IStore,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
)
from .subscribers import Subscribers
from .tasks import TaskOwner, available, owned
from .tokens import HeartbeatTokens

_T = TypeVar("_T")


class Registry:
    """
    The rules, for all tenants of one registry.

    Every method fails with a :class:`~txserviceregistry.registry.faults.Fault` where a rule is broken, and with the
    fault 503 while the store is unavailable. Cancelling a Deferred ends the waiting only: what the store was asked to
    change is seen through, so that deadlines and store agree. A service is hidden from its deadline on; its expiration
    is persisted soon after. Every change names the *incarnation* of the service that it is about.

    :param store: is open, and stays open until the registry has stopped.
    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param wallClock: seconds since the epoch.
    :param limits: how many objects an account may have.
    :param eventRetention: how long events are kept, in seconds; not less than :attr:`EventFeed.EVENTS_SHOWN`.
    :param subscribers: the requests that wait for events; a default number of them may do so if not given.
    :ivar configuration: the configuration values.
    :ivar feed: the events.
    """

    #: How many pending expirations a registration waits for that may have nothing to do with them.
    FEW_PENDING = 100

    def __init__(
        self,
        store: IStore,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float] = time.time,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008 (it is immutable)
        eventRetention: float = EVENT_RETENTION,
        subscribers: Subscribers | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wallClock = wallClock
        self._limits = limits
        self._tokens: HeartbeatTokens
        self._accounts: dict[str, Account] = {}
        self._tasks = TaskOwner()
        self._subscribers = subscribers or Subscribers(clock)
        self.configuration = Configuration(store, limits, self._subscribers, self._tasks)
        self.feed = EventFeed(
            store,
            self.account,
            self._subscribers,
            clock=clock,
            wallClock=wallClock,
            tasks=self._tasks,
            retention=eventRetention,
        )
        shared: Any = store if ISharedStore.providedBy(store) else None
        self._live = LiveServices(
            store,
            self._persist,
            clock=clock,
            wallClock=wallClock,
            tasks=self._tasks,
            isAuthoritative=shared is None,
        )
        self._deadlines = self._live.deadlines
        self._cluster = (
            None
            if shared is None
            else Cluster(shared, self._live, self._subscribers, clock, self._tasks, self._acknowledge, self._hasExpired)
        )
        self._registered = ServiceLog(clock, "registered")
        self._deregistered = ServiceLog(clock, "deregistered")
        self._heartbeats = 0
        self._expirations = 0

    @returnsDeferred
    async def start(self) -> None:
        """
        Begin: every service has a full heartbeat timeout from now on. Fires when requests can be answered; fails with
        :class:`StoreUnavailable` if the store can't be read.
        """
        self._tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)
        self._live.start(await self._store.allServices())
        if self._cluster is not None:
            await self._cluster.start()
        self.feed.start()

    @returnsDeferred
    async def stop(self) -> None:
        """
        End: services no longer expire, and nothing is left on the reactor. The store is left open. Fires when all that
        is under way is done.
        """
        self.feed.stop()
        self._live.stop()
        await self._tasks.whenIdle()
        self._registered.stop()
        self._deregistered.stop()

    def figures(self) -> Figures:
        """The current counts."""
        return Figures(
            services=self._deadlines.count(),
            subscribers=self._subscribers.count,
            heartbeats=self._heartbeats,
            expirations=self._expirations,
            stalls=self._live.time.stalls,
            stalledSeconds=self._live.time.stalledSeconds,
        )

    # -- accounts

    def hasAccount(self, tenant: str) -> bool:
        """Whether the tenant's account is known to exist."""
        return tenant in self._accounts

    def account(self, tenant: str) -> Deferred[Account]:
        """The tenant's account, which is created by the first call; from memory if it is known."""
        known = self._accounts.get(tenant)
        if known is not None:
            return succeed(known)
        return self._tasks.serialized(("account", tenant), lambda: self._account(tenant))

    async def _account(self, tenant: str) -> Account:
        if tenant not in self._accounts:
            self._accounts[tenant] = await available(self._store.account(tenant))
        return self._accounts[tenant]

    # -- services

    def create(self, tenant: str, service: NewService) -> Deferred[str]:
        """
        Register a service, with an event.

        :return: fires with its first heartbeat token. Its deadline counts from then.
        :raises Fault: ``serviceWithThisIdExists`` if the id is in use, ``limitReached`` if the account is full.
        """
        return self._tasks.serialized((tenant, service.id), lambda: self._create(tenant, service))

    async def _create(self, tenant: str, service: NewService) -> str:
        while (record := await self._tryToCreate(tenant, service)) is None:
            pass
        self._live.track(record.summary(tenant))
        self._registered.add(tenant, record.id)
        self._registered.flush()
        return self._tokens.first(tenant, record.id, record.incarnation)

    async def _tryToCreate(self, tenant: str, service: NewService) -> ServiceRecord | None:
        # Expired services hold ids and places in the limit that are free by the rules. A few are persisted in a moment;
        # while there are many, only those registrations wait that the store refuses.
        if self._live.hidden(tenant) and len(self._live.expirations) <= self.FEW_PENDING:
            await self._live.expirations.nextGroup()
        try:
            return await self._changed(
                (tenant,), self._store.createService(tenant, service, self._limits.service), "service.join"
            )
        except (ObjectExists, LimitExceeded) as refusal:
            if self._live.hidden(tenant):
                # Some of them may have expired while the store was at it.
                await self._live.expirations.nextGroup()
                return None
            if self._cluster is not None:
                inTheWay = service.id if isinstance(refusal, ObjectExists) else None
                if await self._cluster.untilDecided(tenant, inTheWay):
                    return None
            if isinstance(refusal, LimitExceeded):
                raise limitReached("service", self._limits.service)
            if self._deadlines.active(tenant, service.id) is None:
                self._live.markUnsure(tenant, service.id)
            raise serviceExists(service.id)
        except Exception:
            self._live.markUnsure(tenant, service.id)
            raise

    @owned
    async def get(self, tenant: str, id: str) -> types.Service:
        """One service; the fault 404 if it is not there."""
        # There may be many expired services, and most services are known not to be among them.
        hidden = self._live.hidden(tenant) if self._deadlines.active(tenant, id) is None else ()
        try:
            record = await available(self._store.getService(tenant, id))
        except NoSuchObject:
            if self._deadlines.active(tenant, id) is not None:
                self._live.markUnsure(tenant, id)
            raise notFound("Service", id)
        if record.incarnation in hidden or self._live.isHidden(tenant, id, record.incarnation):
            raise notFound("Service", id)
        return self._shown(tenant, record)

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, tag: str | None) -> Page:
        """A page of services by id, from *marker* on: all, or those with this *tag*."""
        hidden = self._live.hidden(tenant)
        records = await available(self._store.listServices(tenant, marker, limit + 1, tag, hidden))
        nextMarker = records[limit].id if len(records) > limit else None
        return Page([self._shown(tenant, record) for record in records[:limit]], nextMarker)

    def _shown(self, tenant: str, record: ServiceRecord) -> types.Service:
        state = self._deadlines.find(tenant, record.id, record.incarnation)
        if state is None and not self._tasks.isBusy((tenant, record.id)):
            self._live.markUnsure(tenant, record.id)
        return {
            "id": record.id,
            "heartbeat_timeout": record.heartbeatTimeout,
            "tags": [*record.tags],
            "metadata": dict(record.metadata),
            "last_seen": record.lastSeen if state is None or state.lastSeen is None else state.lastSeen,
        }

    def update(self, tenant: str, id: str, changes: ServiceChanges) -> Deferred[None]:
        """
        Change a service; the fault 404 if it is not there, or has expired before the change was made. With a new
        heartbeat timeout its deadline counts from now; without, it stays.
        """
        return self._tasks.serialized((tenant, id), lambda: self._update(tenant, id, changes))

    async def _update(self, tenant: str, id: str, changes: ServiceChanges) -> None:
        state = await self._stateOf(tenant, id)
        if changes == ServiceChanges():
            return
        updating = self._store.updateService(tenant, id, state.incarnation, changes)
        record = await self._applied(state, self._changed((tenant,), updating, "service.update"))
        if self._deadlines.active(tenant, id) is not state:
            raise notFound("Service", id)
        if changes.heartbeatTimeout is not None:
            self._deadlines.restart(state, record.heartbeatTimeout)

    def remove(self, tenant: str, id: str) -> Deferred[None]:
        """Deregister a service, with an event; the fault 404 if it is not there."""
        return self._tasks.serialized((tenant, id), lambda: self._remove(tenant, id))

    async def _remove(self, tenant: str, id: str) -> None:
        state = await self._stateOf(tenant, id)
        removing = self._store.removeService(tenant, id, state.incarnation)
        await self._applied(state, self._changed((tenant,), removing, "service.remove"))
        self._deadlines.forget(tenant, id, state.incarnation)
        self._deregistered.add(tenant, id)
        self._deregistered.flush()

    async def _stateOf(self, tenant: str, id: str) -> ServiceState:
        if self._cluster is not None:
            # Another registry may have created it a moment ago.
            await self._cluster.look(tenant, id)
        state = self._deadlines.active(tenant, id)
        if state is None:
            raise notFound("Service", id)
        return state

    async def _applied(self, state: ServiceState, change: Awaitable[ServiceRecord]) -> ServiceRecord:
        """Wait for a change of a service; the store is right about what is there."""
        try:
            return await change
        except NoSuchObject:
            self._deadlines.forget(state.tenant, state.id, state.incarnation)
            self._live.markUnsure(state.tenant, state.id)
            raise notFound("Service", state.id)
        except Exception:
            self._live.markUnsure(state.tenant, state.id)
            raise

    # -- heartbeats

    def heartbeat(self, tenant: str, id: str, token: str) -> Deferred[str]:
        """
        Take a heartbeat: the service has a full timeout from now on. The store is not asked.

        :param token: any token that was given out for this incarnation of the service.
        :return: fires, at once, with the next token.
        :raises Fault: 404 if the service is not there, or the token is not its own.
        """
        if self._cluster is not None:
            (outcome,) = self._cluster.take(tenant, [(id, token)], self._tokens)
            return succeed(outcome) if isinstance(outcome, str) else outcome
        (taken,) = self._take(tenant, [(id, token)])
        return fail(taken) if isinstance(taken, Fault) else succeed(taken)

    def heartbeats(self, tenant: str, heartbeats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """
        Take many heartbeats, each as if it had come alone, and all at the same moment.

        :param heartbeats: service ids and tokens. An id may be there more than once.
        :return: fires, at once, with the next token, or the fault that :meth:`heartbeat` would have raised, for each
            in its order.
        """
        if self._cluster is not None:
            return self._cluster.takeAll(tenant, heartbeats, self._tokens)
        return succeed(self._take(tenant, heartbeats))

    def _take(self, tenant: str, heartbeats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        lastSeen, now = _millisecondsUp(self._wallClock()), self._deadlines.now()
        states, following = self._deadlines.ofTenant(tenant), self._tokens.following()
        record = self._store.recordLastSeen
        outcomes: list[str | Fault] = []
        for id, token in heartbeats:
            state = states.get(id)
            if state is None or now >= state.deadline:
                outcomes.append(notFound("Service", id))
                continue
            if not state.proof:
                state.proof = self._tokens.proof(tenant, id, state.incarnation)
            nextToken = following(state.proof, token)
            if nextToken is None:
                outcomes.append(notFound("HeartbeatMarker", token))
                continue
            state.heartbeat(now, lastSeen)
            record(tenant, id, state.incarnation, lastSeen)
            self._heartbeats += 1
            outcomes.append(nextToken)
        return outcomes

    def _acknowledge(self, state: ServiceState) -> None:
        lastSeen = _millisecondsUp(self._wallClock())
        state.heartbeat(self._deadlines.now(), lastSeen)
        self._deadlines.requeue(state)
        self._store.recordLastSeen(state.tenant, state.id, state.incarnation, lastSeen)
        self._heartbeats += 1

    # -- changes that make events

    @returnsDeferred
    async def _persist(self, expirations: Sequence[Expiration]) -> None:
        tenants = {expiration.tenant for expiration in expirations}
        await self._changed(tenants, self._store.expireServices(expirations), "service.timeout")
        for expiration in expirations:
            self._deadlines.forget(expiration.tenant, expiration.id, expiration.incarnation)
        self._expirations += len(expirations)

    def _hasExpired(self, state: ServiceState) -> None:
        self._expirations += 1
        self._subscribers.notify((state.tenant,), "service.timeout")

    async def _changed(self, tenants: Collection[str], change: Awaitable[_T], type: str) -> _T:
        """The result of a change that makes events of this *type* for *tenants*, whose subscribers are notified."""
        result = await available(change)
        self._subscribers.notify(tenants, type)
        return result


def _millisecondsUp(seconds: float) -> int:
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)
