"""
The rules of the API: what may be done to services, configuration and events, and what follows from it.

A :class:`Registry` knows neither HTTP nor how a store keeps things. It decides; the store makes each decision atomic
and durable; the deadlines live here, in memory. Values that come in have been through
:mod:`~txserviceregistry.registry.http.validation`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from .. import types
from ..util.deferred import returnsDeferred
from ..util.logs import Logger
from .cluster import Cluster
from .eventids import position, positionOf
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import Fault, invalidEventQuery, limitReached, notFound, serviceExists, systemFailure
from .limits import ResourceLimits
from .model import Figures, NewService, Page, ServiceChanges
from .servicelog import ServiceLog
from .stores.interfaces import (
    Account,
    EventRecord,
    Expiration,
    ISharedStore,
    IStore,
    LimitExceeded,
    LivingService,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
    StoreUnavailable,
)
from .subscribers import Subscribers, Subscription
from .tasks import TaskOwner
from .tokens import HeartbeatTokens

_T = TypeVar("_T")

_HOUR = 3600.0

#: How long events are kept unless told otherwise, in seconds.
EVENT_RETENTION = 30 * 24 * _HOUR


class Registry:
    """
    The rules, for all tenants of one registry.

    Every method fails with a :class:`~txserviceregistry.registry.faults.Fault` where a rule is broken, and with the
    fault 503 while the store can't be reached. Cancelling a Deferred ends the waiting only: what the store was asked
    to change is seen through, so that deadlines and store agree.

    A service is hidden from its deadline on; its death is brought to the store soon after. What memory holds of a
    service belongs to one *incarnation* of it, and every change names the incarnation that it is about.

    :param store: is open, and stays open until the registry has stopped.
    :param clock: the reactor; its seconds should be monotonic (:mod:`txserviceregistry.clock`).
    :param wallClock: seconds since the epoch.
    :param limits: how many objects an account may have.
    :param eventRetention: how long events are kept, in seconds; not less than :attr:`EVENTS_SHOWN`.
    :param followers: those who wait for events; as many as usual may do so if it is not given.
    """

    #: How much of the events a feed without a marker shows, in seconds.
    EVENTS_SHOWN = _HOUR
    #: How many events a page has at most that is kept for others who wait for the same.
    SMALL_PAGE = 10
    #: How many dead a registration waits for that may have nothing to do with them.
    FEW_DEAD = 100
    #: Seconds from the start to the first time that old events are dropped, and from then on from one time to the next.
    FIRST_DROP = 60.0
    NEXT_DROP = _HOUR

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float] = time.time,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008 (it is immutable)
        eventRetention: float = EVENT_RETENTION,
        followers: Subscribers | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wallClock = wallClock
        self._limits = limits
        self._eventRetention = eventRetention
        self._tokens: HeartbeatTokens
        self._accounts: dict[str, Account] = {}
        self._work = TaskOwner()
        self._subscribers = followers or Subscribers(clock)
        shared: Any = store if ISharedStore.providedBy(store) else None
        self._live = LiveServices(
            store,
            self._persist,
            clock=clock,
            wallClock=wallClock,
            work=self._work,
            ask=None if shared is None else shared.secondsLeft,
        )
        self._cluster = None if shared is None else Cluster(shared, self._live, self._subscribers)
        self._dropping: IDelayedCall | None = None
        self._registered = ServiceLog(clock, "registered")
        self._deregistered = ServiceLog(clock, "deregistered")
        self._heartbeats = 0
        self._expirations = 0

    # -- life of the registry itself

    @returnsDeferred
    async def start(self) -> None:
        """
        Begin: every living service has a full heartbeat timeout from now on.

        :return: fires when requests can be answered.
        :raises StoreUnavailable: if the store can't be read.
        """
        self._tokens = HeartbeatTokens(await self._store.secret(), self._wallClock)
        living = await self._store.livingServices()
        self._live.start(living)
        if self._cluster is not None:
            self._cluster.start()
        self._dropping = self._clock.callLater(self.FIRST_DROP, self._dropEvents)

    @returnsDeferred
    async def stop(self) -> None:
        """
        End: nobody dies any more, and nothing is left on the reactor. The store is left open.

        :return: fires when all that is under way is done.
        """
        self.endWaiting()
        self._live.stop()
        call, self._dropping = self._dropping, None
        if call is not None:
            call.cancel()
        self._endLogs()
        await self._work.whenIdle()
        self._endLogs()

    def _endLogs(self) -> None:
        self._registered.stop()
        self._deregistered.stop()

    def figures(self) -> Figures:
        """What there is to be counted."""
        stalls, seconds = self._live.stalls
        return Figures(
            services=self._live.count(),
            followers=self._subscribers.count,
            heartbeats=self._heartbeats,
            expirations=self._expirations,
            stalls=stalls,
            stalledSeconds=seconds,
        )

    # -- accounts

    def hasAccount(self, tenant: str) -> bool:
        """Whether the tenant's account is known to have come into being."""
        return tenant in self._accounts

    def account(self, tenant: str) -> Deferred[Account]:
        """
        The tenant's account; it comes into being with the first time that it is asked for.

        :return: fires with the account, from memory if it is known.
        """
        known = self._accounts.get(tenant)
        if known is not None:
            return succeed(known)
        return self._work.serialized(("account", tenant), lambda: self._account(tenant))

    async def _account(self, tenant: str) -> Account:
        if tenant not in self._accounts:
            self._accounts[tenant] = await self._asked(self._store.account(tenant))
        return self._accounts[tenant]

    # -- services

    def create(self, tenant: str, service: NewService) -> Deferred[str]:
        """
        Register a service, and tell of it in the feed.

        :return: fires with its first heartbeat token. Its deadline counts from then.
        :raises Fault: ``serviceWithThisIdExists`` if the id is alive, ``limitReached`` if the account is full.
        """
        return self._work.serialized((tenant, service.id), lambda: self._create(tenant, service))

    async def _create(self, tenant: str, service: NewService) -> str:
        record: ServiceRecord | None = None
        while record is None:
            record = await self._tryToCreate(tenant, service)
        self._live.meet(LivingService(tenant, record.id, record.incarnation, record.heartbeatTimeout, record.lastSeen))
        self._registered.add(tenant, record.id)
        self._registered.tell()
        return self._tokens.first(tenant, record.id, record.incarnation)

    async def _tryToCreate(self, tenant: str, service: NewService) -> ServiceRecord | None:
        # The dead hold ids and places in the limit that are free by the rules. A few are buried in a moment; while
        # there are many, only those wait whom the store refuses for it.
        if self._live.hidden(tenant) and self._live.pending <= self.FEW_DEAD:
            await self._live.whenBuried()
        try:
            creating = self._store.createService(tenant, service, self._limits.service)
            return await self._changed((tenant,), creating)
        except (ObjectExists, LimitExceeded) as refusal:
            if self._live.hidden(tenant):
                # Some of them may have died while the store was at it.
                await self._live.whenBuried()
                return None
            if isinstance(refusal, LimitExceeded):
                raise limitReached("service", self._limits.service)
            if self._live.alive(tenant, service.id) is None:
                self._live.doubt(tenant, service.id)
            raise serviceExists(service.id)
        except Exception:
            self._live.doubt(tenant, service.id)
            raise

    def get(self, tenant: str, id: str) -> Deferred[types.Service]:
        """
        One service.

        :raises Fault: 404 if it is not there.
        """
        return self._work.start(self._get(tenant, id))

    async def _get(self, tenant: str, id: str) -> types.Service:
        # Of the dead there may be many, and of most services it is known that they are not among them.
        hidden = self._live.hidden(tenant) if self._live.alive(tenant, id) is None else ()
        try:
            record = await self._asked(self._store.getService(tenant, id))
        except NoSuchObject:
            if self._live.alive(tenant, id) is not None:
                self._live.doubt(tenant, id)
            raise notFound("Service", id)
        if record.incarnation in hidden or self._live.isHidden(tenant, id, record.incarnation):
            raise notFound("Service", id)
        return self._shown(tenant, record)

    def list(self, tenant: str, marker: str | None, limit: int, tag: str | None) -> Deferred[Page]:
        """
        A page of services by id, from *marker* on.

        :param tag: only those that bear it; ``None`` for all.
        """
        return self._work.start(self._list(tenant, marker, limit, tag))

    async def _list(self, tenant: str, marker: str | None, limit: int, tag: str | None) -> Page:
        hidden = self._live.hidden(tenant)
        records = await self._asked(self._store.listServices(tenant, marker, limit + 1, tag, hidden))
        nextMarker = records[limit].id if len(records) > limit else None
        return Page([self._shown(tenant, record) for record in records[:limit]], nextMarker)

    def update(self, tenant: str, id: str, changes: ServiceChanges) -> Deferred[None]:
        """
        Change a service. With a new heartbeat timeout its deadline counts from now; without, it stays.

        :raises Fault: 404 if the service is not there, or has died before the change was made.
        """
        return self._work.serialized((tenant, id), lambda: self._update(tenant, id, changes))

    async def _update(self, tenant: str, id: str, changes: ServiceChanges) -> None:
        life = await self._living(tenant, id)
        if changes == ServiceChanges():
            return
        answer = self._store.updateService(tenant, id, life.incarnation, changes)
        await self._aboutLife(life, self._asked(answer))
        if self._live.alive(tenant, id) is not life:
            raise notFound("Service", id)
        if changes.heartbeatTimeout is not None:
            self._live.restart(life, changes.heartbeatTimeout)

    def remove(self, tenant: str, id: str) -> Deferred[None]:
        """
        Take a service away, and tell of it in the feed.

        :raises Fault: 404 if it is not there.
        """
        return self._work.serialized((tenant, id), lambda: self._remove(tenant, id))

    async def _remove(self, tenant: str, id: str) -> None:
        life = await self._living(tenant, id)
        answer = self._store.removeService(tenant, id, life.incarnation)
        await self._aboutLife(life, self._changed((tenant,), answer))
        self._live.forget(tenant, id, life.incarnation)
        self._deregistered.add(tenant, id)
        self._deregistered.tell()

    async def _aboutLife(self, life: ServiceState, answer: Awaitable[object]) -> None:
        """What the store says to a change of *life*; the store is right about what is there."""
        try:
            await answer
        except NoSuchObject:
            self._live.forget(life.tenant, life.id, life.incarnation)
            self._live.doubt(life.tenant, life.id)
            raise notFound("Service", life.id)
        except Exception:
            self._live.doubt(life.tenant, life.id)
            raise

    def heartbeat(self, tenant: str, id: str, token: str) -> Deferred[str]:
        """
        A service is alive: it has a full timeout from now on. The store is not asked.

        :param token: any token that was given out for this life of the service.
        :return: fires, at once, with the next token.
        :raises Fault: 404 if the service is not there, or the token is not its own.
        """
        if self._cluster is not None:
            return self._work.start(self._beatShared(self._cluster, tenant, id, token))
        (outcome,) = self._beat(tenant, [(id, token)])
        return fail(outcome) if isinstance(outcome, Fault) else succeed(outcome)

    def heartbeats(self, tenant: str, beats: Iterable[tuple[str, str]]) -> Deferred[Sequence[str | Fault]]:
        """
        Many heartbeats, each as if it had come alone, and all at the same moment.

        :param beats: service ids and tokens. An id may be there more than once.
        :return: fires, at once, with the next token, or the fault that :meth:`heartbeat` would have raised, for each
            in its order.
        """
        if self._cluster is not None:
            return self._beatAllShared(self._cluster, tenant, beats)
        return succeed(self._beat(tenant, beats))

    def _beat(self, tenant: str, beats: Iterable[tuple[str, str]]) -> Sequence[str | Fault]:
        now, lastSeen = self._live.now(), _millisecondsUp(self._wallClock())
        lives, following = self._live.ofTenant(tenant), self._tokens.following()
        record = self._store.recordLastSeen
        outcomes: list[str | Fault] = []
        for id, token in beats:
            life = lives.get(id)
            if life is None or now >= life.deadline:
                outcomes.append(notFound("Service", id))
                continue
            if not life.proof:
                life.proof = self._tokens.proof(tenant, id, life.incarnation)
            answer = following(life.proof, token)
            if answer is None:
                outcomes.append(notFound("HeartbeatMarker", token))
                continue
            life.beat(now, lastSeen)
            record(tenant, id, life.incarnation, lastSeen)
            self._heartbeats += 1
            outcomes.append(answer)
        return outcomes

    async def _beatShared(self, sharing: Cluster, tenant: str, id: str, token: str) -> str:
        life, following = await sharing.beat(tenant, id, token, self._tokens)
        lastSeen = _millisecondsUp(self._wallClock())
        self._live.beat(life, lastSeen)
        self._store.recordLastSeen(tenant, id, life.incarnation, lastSeen)
        self._heartbeats += 1
        return following

    @returnsDeferred
    async def _beatAllShared(
        self, sharing: Cluster, tenant: str, beats: Iterable[tuple[str, str]]
    ) -> Sequence[str | Fault]:
        works = [self._work.start(self._beatShared(sharing, tenant, id, token)) for id, token in beats]
        outcomes: Any = await DeferredList(works, consumeErrors=True)
        return [result if isThere else _faultIn(result) for isThere, result in outcomes]

    # -- configuration

    def listValues(self, tenant: str, marker: str | None, limit: int, namespace: str | None) -> Deferred[Page]:
        """
        A page of configuration values by key, from *marker* on.

        :param namespace: ``None`` for all, ``"/"`` for all qualified keys, ``"/a/b"`` for that key and all below it.
        """
        return self._work.start(self._listValues(tenant, marker, limit, namespace))

    async def _listValues(self, tenant: str, marker: str | None, limit: int, namespace: str | None) -> Page:
        pairs = await self._asked(self._store.listValues(tenant, marker, limit + 1, namespace))
        values = [_value(key, value) for key, value in pairs[:limit]]
        return Page(values, pairs[limit][0] if len(pairs) > limit else None)

    def getValue(self, tenant: str, key: str) -> Deferred[types.ConfigurationValue]:
        """
        One configuration value.

        :raises Fault: 404 if it is not there.
        """
        return self._work.start(self._getValue(tenant, key))

    async def _getValue(self, tenant: str, key: str) -> types.ConfigurationValue:
        try:
            return _value(key, await self._asked(self._store.getValue(tenant, key)))
        except NoSuchObject:
            raise notFound("ConfigurationValue", key)

    def setValue(self, tenant: str, key: str, value: str) -> Deferred[None]:
        """
        Keep a configuration value; the feed tells of it if it is new or changed.

        :raises Fault: ``limitReached`` if it is new and the account is full.
        """
        return self._work.start(self._setValue(tenant, key, value))

    async def _setValue(self, tenant: str, key: str, value: str) -> None:
        maximum = self._limits.configurationValue
        try:
            await self._changed((tenant,), self._store.setValue(tenant, key, value, maximum))
        except LimitExceeded:
            raise limitReached("configuration_value", maximum)

    def removeValue(self, tenant: str, key: str) -> Deferred[None]:
        """
        Take a configuration value away, and tell of it in the feed.

        :raises Fault: 404 if it is not there.
        """
        return self._work.start(self._removeValue(tenant, key))

    async def _removeValue(self, tenant: str, key: str) -> None:
        try:
            await self._changed((tenant,), self._store.removeValue(tenant, key))
        except NoSuchObject:
            raise notFound("ConfigurationValue", key)

    # -- events

    def listEvents(self, tenant: str, marker: str | None, limit: int, type: str | None) -> Deferred[Page]:
        """
        A page of the feed, oldest first.

        :param marker: the text of a version-1 UUID: that event, or that moment, and what is newer; ``None`` for the
            last hour.
        :param type: only events of this type; ``None`` for all.
        :raises Fault: 400 if the marker is from the future or from before the account, and no event of this feed.
        """
        return self._work.start(self._listEvents(tenant, marker, limit, type))

    async def _listEvents(self, tenant: str, marker: str | None, limit: int, type: str | None) -> Page:
        if marker is None:
            since = positionOf(self._wallClock() - self.EVENTS_SHOWN)
        else:
            since = position(marker)
            refusal = self._refusal(since, await self.account(tenant))
            if refusal is not None and not await self._asked(self._store.hasEvent(tenant, marker)):
                raise refusal
        records = await self._asked(self._store.listEvents(tenant, since, limit + 1, type))
        nextMarker = records[limit].id if len(records) > limit else None
        return Page([_event(record) for record in records[:limit]], nextMarker)

    async def news(self, tenant: str, marker: str | None, limit: int, type: str | None, seconds: float) -> Page:
        """
        A page of the feed as soon as there is anything on it that is newer than *marker*; without a marker everything
        on it is. A coroutine, unlike the others; cancelling what awaits it ends the waiting.

        :param seconds: after so long, or when :meth:`endWaiting` is called, the page is given as it is.
        :return: the page. Others who ask for the same may be given the same one.
        :raises Fault: as :meth:`listEvents`; 503 if there is nothing new and no place to wait.
        """
        followers, what = self._subscribers, (marker, limit, type)
        latest = self._clock.seconds() + seconds
        place: Subscription | None = None
        try:
            while True:
                news = followers.wait(tenant, what)
                try:
                    page: Page | None = followers.seen(tenant, what)
                    if page is None:
                        page = await self._look(tenant, marker, limit, type)
                    if self._clock.seconds() >= latest or _hasNews(page, marker):
                        return page
                    if place is None:
                        place = followers.takePlace(tenant, seconds, latest)
                    place.news = news
                    if not await news:
                        return page
                finally:
                    followers.forget(tenant, news)
        finally:
            if place is not None:
                followers.leavePlace(place)

    def _look(self, tenant: str, marker: str | None, limit: int, type: str | None) -> Deferred[Page]:
        """A page of the feed, for one of those who wait."""
        if marker is None or self._cluster is not None:
            # What there is without a marker depends on the time as well; and of other registries' news one hears late.
            return self.listEvents(tenant, marker, limit, type)
        return self._subscribers.look(
            tenant,
            (marker, limit, type),
            lambda: self.listEvents(tenant, marker, limit, type),
            lambda page: len(page.values) <= self.SMALL_PAGE,
        )

    def endWaiting(self) -> None:
        """Let nobody wait for events any more: who does is answered now, and who comes is answered at once."""
        self._subscribers.end()

    def _refusal(self, since: int, account: Account) -> Fault | None:
        if since >= positionOf(self._wallClock()):
            return invalidEventQuery("from parameter must be smaller than the current time")
        if since < positionOf(account.created / 1000):
            return invalidEventQuery("from parameter must be greater than or equal to the account creation date")
        return None

    def _dropEvents(self) -> None:
        self._dropping = self._clock.callLater(self.NEXT_DROP, self._dropEvents)
        self._work.start(self._forgetOldEvents())

    async def _forgetOldEvents(self) -> None:
        try:
            dropped = await self._store.dropEvents(positionOf(self._wallClock() - self._eventRetention))
        except StoreUnavailable:
            self._log.debug("Old events stay for another hour: the store can't be reached")
        except Exception:
            self._log.failure("Old events could not be dropped")
        else:
            if dropped:
                hours = f"{self._eventRetention / _HOUR:g}"
                self._log.info("Dropped {dropped} events older than {hours} hours", dropped=dropped, hours=hours)

    # -- with the store

    @returnsDeferred
    async def _persist(self, deaths: Sequence[Expiration]) -> None:
        await self._changed({death.tenant for death in deaths}, self._store.expireServices(deaths))
        self._live.buried(deaths)
        self._expirations += len(deaths)

    async def _asked(self, answer: Awaitable[_T]) -> _T:
        """The store's answer; that it can't be reached is a fault."""
        try:
            return await answer
        except StoreUnavailable as reason:
            raise systemFailure() from reason

    async def _changed(self, tenants: Collection[str], answer: Awaitable[_T]) -> _T:
        """
        The store's answer to a change that makes events.

        All of them come by here; so from here those are told who wait for something new in the feeds of these
        *tenants*.
        """
        result = await self._asked(answer)
        self._subscribers.tell(tenants)
        return result

    async def _living(self, tenant: str, id: str) -> ServiceState:
        if self._cluster is not None:
            # Another registry may have made it a moment ago.
            await self._cluster.learn(tenant, id)
        life = self._live.alive(tenant, id)
        if life is None:
            raise notFound("Service", id)
        return life

    def _shown(self, tenant: str, record: ServiceRecord) -> types.Service:
        life = self._live.find(tenant, record.id, record.incarnation)
        if life is None and not self._work.isBusy((tenant, record.id)):
            self._live.doubt(tenant, record.id)
        return {
            "id": record.id,
            "heartbeat_timeout": record.heartbeatTimeout,
            "tags": list(record.tags),
            "metadata": dict(record.metadata),
            "last_seen": record.lastSeen if life is None or life.lastSeen is None else life.lastSeen,
        }


def _faultIn(failure: Failure) -> Fault:
    """The fault that something has failed with; any other failure is raised again."""
    if not isinstance(failure.value, Fault):
        failure.raiseException()
    fault: Fault = failure.value
    return fault


def _value(key: str, value: str) -> types.ConfigurationValue:
    return {"id": key, "value": value}


def _hasNews(page: Page, marker: str | None) -> bool:
    # The event of the marker may be on it; no other is there twice.
    return page.nextMarker is not None or len(page.values) > 1 or any(event["id"] != marker for event in page.values)


def _event(record: EventRecord) -> Mapping[str, Any]:
    return {
        "id": record.id,
        "timestamp": record.timestamp,
        "type": record.type,
        "payload": dict(record.payload),
    }


def _millisecondsUp(seconds: float) -> int:
    # By way of microseconds, the finest that the clock tells: 1.1 s times 1000 is a trifle more than 1100 ms.
    return -(-round(seconds * 1_000_000) // 1000)
