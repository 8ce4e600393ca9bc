"""
The rules of the API: what may be done to services, their states and configuration values, and what follows from it. A
store makes each decision atomic and durable; the deadlines are here, in memory. Arguments have been validated.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from .. import types
from ..util.deferred import SingleFlight, cancel, returnsDeferred
from ..util.logs import Logger
from .engine import Cluster, Engine
from .faults import NO_STORE, Fault, limitReached, notFound
from .feed import EVENT_RETENTION, EventFeed, EventStreams
from .limits import Places, ResourceLimits
from .locks import Locks
from .model import UNCONDITIONAL, NewService, Page, Precondition, ServiceChanges
from .servicelog import ServiceLog
from .stores.interfaces import (
    UP,
    ISharedStore,
    IStore,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    PreconditionFailed,
    ServiceRecord,
    StateRecord,
    StoreUnavailable,
    ValueRecord,
)
from .tasks import Part, TaskOwner, Turns, available, owned, serialized

_T = TypeVar("_T")


@attrs.define(eq=False, slots=False)
class Configuration(Part):
    """The configuration values of all tenants; each may have a *maximum* of them."""

    _feed: EventFeed
    _maximum: int

    @owned
    async def list(
        self, tenant: str, marker: str | None, limit: int, namespace: str | None, *, tagged: bool = False
    ) -> Page:
        """A page of values by key, from *marker* on: all, or as :meth:`.IStore.listValues` says; or *tagged*."""
        records = await available(self._store.listValues(tenant, marker, limit + 1, namespace))
        tags = [{"etag": etagAt(record.position)} if tagged else {} for record in records]
        values = [{"id": each.key, "value": each.value, **tag} for each, tag in zip(records, tags, strict=True)]
        return Page.of(values, limit)

    @owned
    async def get(self, tenant: str, key: str) -> ValueRecord:
        missing = notFound("ConfigurationValue", key)
        record: ValueRecord = await available(self._store.getValue(tenant, key), missing=missing)
        return record

    @owned
    async def set(self, tenant: str, key: str, value: str, precondition: Precondition = UNCONDITIONAL) -> int:
        """Set a value; returns the position of its last change. Faults: ``preconditionFailed``, ``limitReached``."""
        setting = self._store.setValue(tenant, key, value, self._maximum, precondition)
        full = limitReached("configuration_value", self._maximum)
        position: int = await _allowed(key, available(setting, full=full))
        self._feed.notify((tenant,), "configuration_value.update")
        return position

    @owned
    async def remove(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        """Remove a value; the faults ``preconditionFailed``, and 404 if it is not there."""
        removing = self._store.removeValue(tenant, key, precondition)
        await _allowed(key, available(removing, missing=notFound("ConfigurationValue", key)))
        self._feed.notify((tenant,), "configuration_value.remove")


async def _allowed(key: str, change: Awaitable[_T]) -> _T:
    try:
        return await change
    except PreconditionFailed as refusal:
        position = refusal.position
    found = "does not exist" if position is None else f"has the tag {etagAt(position)}"
    headers = NO_STORE if position is None else {"ETag": etagAt(position), **NO_STORE}
    details = f'Object "ConfigurationValue" with key "{key}" {found}'
    raise Fault("preconditionFailed", "precondition failed", details, headers)


def etagAt(position: int) -> str:
    """The tag of a value, as HTTP has it, which says which change of it was the last one."""
    return f'"{position}"'


@attrs.define(eq=False, slots=False)
class ServiceStates(Part):
    """The states of all tenants' services, as operators set them; each tenant may have a *maximum* of records."""

    #: Seconds from one look at what has ended to the next, at most: the wall clock may be set, and other registries
    #: make records too. And at least: many states may end one after the other.
    LOOK = 10.0
    PAUSE = 0.25

    _log = Logger()

    _feed: EventFeed
    _maximum: int
    _looking: IDelayedCall | None = attrs.field(init=False, default=None)
    _isStopped: bool = attrs.field(init=False, default=False)

    def start(self) -> None:
        self._look()

    def stop(self) -> None:
        self._isStopped = True
        cancel(self._looking)

    @owned
    async def set(self, tenant: str, id: str, state: str, reason: str = "", seconds: int | None = None) -> None:
        """Set the state of a service, registered or not, for so many *seconds*; ``up`` without a reason clears it."""
        isSet = state != UP or reason
        ends = int(self._wallClock() * 1000) + seconds * 1000 if seconds is not None and isSet else None
        record = StateRecord(id, state, reason, ends)
        full = limitReached("service_state", self._maximum)
        if await available(self._store.setState(tenant, record, self._maximum), full=full):
            self._feed.notify((tenant,), "service.state")
        self._lookAt(ends)

    @owned
    async def get(self, tenant: str, id: str) -> StateRecord:
        record: StateRecord = await available(self._store.getState(tenant, id))
        return record

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int) -> Page:
        records = await available(self._store.listStates(tenant, marker, limit + 1))
        return Page.of([record.toJSON() for record in records], limit)

    @owned
    async def _look(self) -> None:
        next: int | None = None
        try:
            tenants, next = await self._store.endStates()
            self._feed.notify(tenants, "service.state")
        except StoreUnavailable:
            pass  # that is logged elsewhere
        except Exception:
            self._log.failure("Cannot end the states of services (retrying)")
        if not self._isStopped:
            self._looking = self._clock.callLater(self.LOOK, self._look)
            self._lookAt(next)

    def _lookAt(self, ends: int | None) -> None:
        """Look no later than when a record ends, in milliseconds since the epoch."""
        if ends is not None and self._looking is not None and self._looking.active():
            wait = max(ends / 1000 - self._wallClock(), self.PAUSE)
            if self._clock.seconds() + wait < self._looking.getTime():
                self._looking.reset(wait)


class Registry(Part):
    """
    The rules, for all tenants of one registry, over a *store* that is open.

    Every method fails with a :class:`.Fault` where a rule is broken, and with the fault 503 while the store is
    unavailable. Cancelling a Deferred ends the waiting only: what the store was asked to change is seen through, so
    that deadlines and store agree. A service is hidden from its deadline on.
    """

    def __init__(
        self,
        store: IStore,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float] = time.time,
        limits: ResourceLimits = ResourceLimits(),  # noqa: B008 (it is immutable)
        eventRetention: float = EVENT_RETENTION,
        followers: Places | None = None,
        streams: Places | None = None,
        fenceFrom: int = 0,
        locksHeldBack: float = 0.0,
    ) -> None:
        common = store, TaskOwner(), clock, wallClock
        super().__init__(*common)
        self.isStarted = False
        self._maximum = limits.service
        self._accounts: dict[str, int] = {}
        self._opening: SingleFlight[str, int] = SingleFlight()
        self.followers = followers or Places(5_000, 2_500)
        events = *common, self.account, Turns(clock), eventRetention
        self.feed = EventFeed(*events, self.followers, EventStreams(*events, streams or Places(10_000, 5_000)))
        kind = Cluster if ISharedStore.providedBy(store) else Engine
        self.engine = engine = kind(*common, self.feed)
        self.heartbeat, self.heartbeats, self.lastSeen = engine.heartbeat, engine.takeHeartbeats, engine.lastSeen
        self.counts = engine.counts
        self.locks = Locks(*common, engine, self.followers, limits.lock, fenceFrom, locksHeldBack)
        self.configuration = Configuration(*common, self.feed, limits.configurationValue)
        self.states = ServiceStates(*common, self.feed, limits.service)
        self._registered = ServiceLog(clock, "Services registered")
        self._deregistered = ServiceLog(clock, "Services deregistered")

    @returnsDeferred
    async def start(self) -> None:
        """Begin: every service has a full timeout. May fail with :class:`StoreUnavailable`."""
        await self.engine.start()
        self.feed.start()
        self.states.start()
        self.isStarted = True

    @returnsDeferred
    async def stop(self) -> None:
        """End: services no longer expire. The store is left open. Fires when all that is under way is done."""
        self.endWaiting()
        self.feed.stop()
        self.states.stop()
        self.engine.stop()
        await self._tasks.whenIdle()
        self._registered.stop()
        self._deregistered.stop()

    def endWaiting(self) -> None:
        self.feed.endWaiting()
        self.locks.endWaiting()

    def pause(self) -> Deferred[None]:
        """Fires in another turn of the reactor, between the parts of long work."""
        return deferLater(self._clock, 0)

    def account(self, tenant: str) -> Deferred[int]:
        """When the tenant's account was created: by the first call. From memory if it is known."""
        if tenant in self._accounts:
            return succeed(self._accounts[tenant])
        # While the store does not answer, all wait for the same answer, and not each for one of its own.
        return self._opening.do(tenant, lambda: self._account(tenant))

    @owned
    async def _account(self, tenant: str) -> int:
        account = self._accounts[tenant] = await available(self._store.account(tenant))
        return account

    @serialized(lambda tenant, service: (tenant, service.id))
    async def create(self, tenant: str, service: NewService) -> str:
        """Register a service; returns its first token. Faults: ``serviceWithThisIdExists``, ``limitReached``."""
        create = partial(self._store.createService, tenant, service, self._maximum)
        try:
            record: ServiceRecord = await self.engine.create(tenant, service.id, create)
        except ObjectExists:
            raise Fault("serviceWithThisIdExists", f"Service with id {service.id} already exists.")
        except LimitExceeded:
            raise limitReached("service", self._maximum)
        self._registered.add((tenant, record.id))
        return self.engine.tokens.first(tenant, record.id, record.incarnation)

    @owned
    async def get(self, tenant: str, id: str, states: bool = False) -> types.Service:
        """One service, with its state if *states* are asked for; the fault 404 if it is not there."""
        before, known = self.engine.findExpired(tenant, id), self.engine.active(tenant, id)
        try:
            record = await available(self._store.getService(tenant, id, states))
        except NoSuchObject:
            if known is not None:
                self.engine.forget(*known.name)
            raise notFound("Service", id)
        for expired in (before, self.engine.findExpired(tenant, id)):
            if expired is not None and expired.incarnation == record.incarnation:
                raise notFound("Service", id)
        return self._shown(tenant, record)

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, tag: str | None, states: bool = False) -> Page:
        """A page of services by id, from *marker* on: all, or those with this *tag*."""
        hidden = self.engine.hidden(tenant)
        records = await available(self._store.listServices(tenant, marker, limit + 1, tag, hidden, states))
        return Page.of([self._shown(tenant, record) for record in records], limit)

    def _shown(self, tenant: str, record: ServiceRecord) -> types.Service:
        state = self.engine.find(tenant, record.id, record.incarnation)
        if state is None and not self._tasks.isBusy((tenant, record.id)):
            self.engine.markUnsure(tenant, record.id)
        shown: types.Service = {
            "id": record.id,
            "heartbeat_timeout": record.heartbeatTimeout,
            "tags": [*record.tags],
            "metadata": dict(record.metadata),
            "last_seen": record.lastSeen if state is None or state.lastSeen is None else state.lastSeen,
        }
        if record.state is not None and record.state.state != UP:
            shown["state"], shown["state_reason"] = record.state.state, record.state.reason
        return shown

    @serialized(lambda tenant, id, changes: (tenant, id))
    async def update(self, tenant: str, id: str, changes: ServiceChanges) -> None:
        """Change a service; the fault 404 if it is not there. With a new heartbeat timeout its deadline starts over."""
        state = await self.engine.stateOf(tenant, id)
        if changes == ServiceChanges():
            return
        updating = self._store.updateService(tenant, id, state.incarnation, changes)
        record = await self.engine.applied(state, updating, "service.update")
        if self.engine.findExpired(tenant, id) is state:
            raise notFound("Service", id)
        # Else it may have been removed later, elsewhere.
        if changes.heartbeatTimeout is not None and self.engine.active(tenant, id) is state:
            self.engine.restart(state, record.heartbeatTimeout)

    @serialized(lambda tenant, id: (tenant, id))
    async def remove(self, tenant: str, id: str) -> None:
        """Deregister a service; the fault 404 if it is not there."""
        state = await self.engine.stateOf(tenant, id)
        removing = self._store.removeService(tenant, id, state.incarnation)
        await self.engine.applied(state, removing, "service.remove", isEnd=True)
        self._deregistered.add((tenant, id))
