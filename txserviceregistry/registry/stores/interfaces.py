"""
The interfaces of stores, their records, and the payloads of events. Moments are in milliseconds since the epoch.

Each operation of a store is atomic: a change and its event are kept together or not at all. A change's Deferred fires
only when the change is durable, as far as the store can make it so. A store does not know deadlines: the registry says
which services have expired (``hidden``, ``expireServices``).

The store makes the event ids: version-1 UUIDs that grow strictly within a tenant, in the order in which the changes
become visible, whatever the wall clock does. A service's *incarnation* is the id of its join event.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

from ..model import UNCONDITIONAL, NewLock, NewService, Precondition, ServiceChanges, lockScope
from ..roles import WRITE, Role
from ..statistics import StoreStatistics

#: The state of a service that has no record of one.
UP = "up"


class StoreError(Exception):
    """The base class of the errors below."""


class ObjectExists(StoreError):
    """An object with this key exists already."""


class NoSuchObject(StoreError):
    """No object has this key."""


class LimitExceeded(StoreError):
    """The tenant has as many objects of this kind as it may."""


class PreconditionFailed(StoreError):
    """A precondition does not allow the write. Its *position* is the value's; ``None`` if there is none."""

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class StoreUnavailable(StoreError):
    """The store can't be read or written now; nothing was changed. It may work again later."""


class StoreRefused(StoreError):
    """The data is not a store, damaged, or of a newer release, as one line says. It was not changed."""


@attrs.frozen(slots=True)
class StateRecord:
    """The state that operators set for an id, with a service or without. It is up after *ends*, or without a record."""

    id: str
    state: str = UP  # or "drain" or "out"
    reason: str = ""
    ends: int | None = None

    @property
    def isDefault(self) -> bool:
        """Whether it says no more than that the service is up, so that it need not be kept."""
        return self.state == UP and not self.reason

    def at(self, now: int) -> StateRecord:
        """The record for readers at a moment."""
        return self if self.ends is None or self.ends > now else StateRecord(self.id)

    def toJSON(self) -> dict[str, Any]:
        """As in the API."""
        return {"id": self.id, "state": self.state, "reason": self.reason, "expires_at": self.ends}

    def events(self, new: StateRecord, now: int) -> Iterator[tuple[dict[str, Any], int]]:
        """
        The payloads and timestamps of the ``service.state`` events when *new* replaces this record: of its end, if it
        was over at *now*, and of what is new.
        """
        before = self.at(now)
        if before is not self:
            assert self.ends is not None
            yield {**before.toJSON(), "old_state": self.state}, self.ends
        if new != before:
            yield {**new.toJSON(), "old_state": before.state}, now


@attrs.frozen(slots=True)
class ServiceRecord:
    id: str
    incarnation: str
    heartbeatTimeout: int  # in seconds
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    # Possibly older than the truth; None before the first heartbeat.
    lastSeen: int | None = None
    # That of the id at the same moment, where it is known and has a record.
    state: StateRecord | None = None

    @classmethod
    def of(cls, service: NewService, incarnation: str, state: StateRecord | None = None) -> ServiceRecord:
        return cls(service.id, incarnation, service.heartbeatTimeout, service.tags, service.metadata, state=state)

    def changed(self, changes: ServiceChanges) -> ServiceRecord:
        given = attrs.asdict(changes, recurse=False, filter=lambda _, value: value is not None)
        return attrs.evolve(self, **given)

    def summary(self, tenant: str) -> ServiceSummary:
        return ServiceSummary(tenant, self.id, self.incarnation, self.heartbeatTimeout, self.lastSeen)

    def payload(self) -> dict[str, Any]:
        """Of ``service.join`` (with the state if it is not up), ``service.remove`` and ``service.timeout``."""
        payload = {
            "id": self.id,
            "heartbeat_timeout": self.heartbeatTimeout,
            "tags": list(self.tags),
            "metadata": dict(self.metadata),
        }
        if self.state is not None and self.state.state != UP:
            payload["state"] = self.state.state
        return payload

    def updatePayload(self, old: ServiceRecord) -> dict[str, Any]:
        """Of ``service.update``."""
        before, after = old.payload(), self.payload()
        payload = {**after, "changed": [name for name in before if after[name] != before[name]]}
        return {**payload, "old_tags": before["tags"]} if "tags" in payload["changed"] else payload


@attrs.frozen(slots=True)
class ServiceSummary:
    """The part of a service, or of a lock in its scope, that the registry keeps in memory."""

    tenant: str
    id: str
    incarnation: str
    heartbeatTimeout: int
    lastSeen: int | None
    isForced: bool = False  # whether its heartbeats are refused


@attrs.frozen(slots=True)
class Expiration:
    """A service, or a lock in its scope, whose deadline has passed at *timestamp*."""

    tenant: str
    id: str
    incarnation: str
    timestamp: int


@attrs.frozen(slots=True)
class EventRecord:
    id: str
    timestamp: int
    type: str
    payload: Mapping[str, Any]

    @property
    def shown(self) -> dict[str, Any]:
        """As in the API's JSON."""
        return {"id": self.id, "timestamp": self.timestamp, "type": self.type, "payload": dict(self.payload)}


@attrs.frozen(slots=True)
class ValueRecord:
    """A configuration value. *position* is that of its last change in the feed; 0 if an early release made it."""

    key: str
    value: str
    position: int


def valuePayload(key: str, oldValue: str | None, newValue: str | None) -> dict[str, Any]:
    """Of ``configuration_value.update``, and without a new value of ``configuration_value.remove``."""
    payload = {"configuration_value_id": key, "old_value": oldValue}
    return payload if newValue is None else {**payload, "new_value": newValue}


@attrs.frozen(slots=True)
class UserRecord:
    """A user. *keyHash* is what :func:`~txserviceregistry.registry.identity.hashKey` makes of the API key."""

    name: str
    tenant: str
    keyHash: str = attrs.field(repr=False)
    role: Role = WRITE


@attrs.frozen(slots=True)
class TokenRecord:
    """An auth token: the BLAKE2b hash of it, whose it is, and when it ends (seconds since the epoch)."""

    tokenHash: str = attrs.field(repr=False)
    user: str
    tenant: str
    expires: float


@attrs.frozen(kw_only=True)
class LockRecord(NewLock):
    """A lock as it is stored: a name without a holder has no record. *incarnation* is the id of its acquire event."""

    incarnation: str
    fence: int  # greater than that of any lock that the tenant acquired before
    acquired: int
    isForced: bool = False  # whether its holder's heartbeats are refused, so that it expires

    @classmethod
    def of(cls, new: NewLock, incarnation: str, fence: int, acquired: int) -> LockRecord:
        return cls(**attrs.asdict(new, recurse=False), incarnation=incarnation, fence=fence, acquired=acquired)

    def summary(self, tenant: str) -> ServiceSummary:
        return ServiceSummary(lockScope(tenant), self.name, self.incarnation, self.timeout, None, self.isForced)

    def shown(self) -> dict[str, Any]:
        """As clients see it, neither token nor nonce; also the payload of ``lock.acquire``."""
        return {
            "name": self.name,
            "holder": self.holder,
            "fence": self.fence,
            "timeout": self.timeout,
            "acquired_at": self.acquired,
            "metadata": dict(self.metadata),
        }

    def payload(self) -> dict[str, Any]:
        """Of ``lock.release`` and ``lock.expire``."""
        return {**self.shown(), "forced": self.isForced}


class LockTaken(ObjectExists):
    """The lock is held, as its *record* says."""

    def __init__(self, record: LockRecord) -> None:
        super().__init__(record.name)
        self.record = record


class IStore(Interface):
    """
    A place where a registry keeps its state.

    Each operation may fail with :class:`StoreUnavailable`, after which nothing has changed (or, where the response to a
    change was lost, its outcome has been found out). Lists are sorted by code point, begin *at* ``marker``, and have up
    to ``count`` entries without the incarnations in ``hidden``. An operation that names an object, or an incarnation of
    it, fails with :class:`NoSuchObject` if there is none; one that adds an object fails with :class:`ObjectExists` if
    there is one, and with :class:`LimitExceeded` if the tenant has ``maximum`` already.
    """

    name: str = Attribute("The name of the store on the command line: ``memory``, ``sqlite``, …")
    statistics: StoreStatistics = Attribute("The statistics of the store's own work.")

    def open() -> Deferred[None]:
        """Make the store ready, on a running reactor. Fails with :class:`StoreRefused` if the data can't be used."""

    def close() -> Deferred[None]:
        """Finish what is under way, then let everything go. Operations that come later fail with `StoreUnavailable`."""

    def probe() -> Deferred[None]:
        """Write as much as an operation does, and read; fails also if the store refuses what others write."""

    def secret() -> Deferred[bytes]:
        """The registry's secret, 32 random bytes that the store made when it was new. Keys are derived from it."""

    def account(tenant: str) -> Deferred[int]:
        """When the tenant's account was created: now, by the store's time, if it is new."""

    # -- services, with their states at the same moment if *states* are asked for. Each change has its event.

    def createService(tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]: ...
    def getService(tenant: str, id: str, states: bool = False) -> Deferred[ServiceRecord]: ...
    def listServices(
        tenant: str, marker: str | None, count: int, tag: str | None, hidden: Collection[str], states: bool = False
    ) -> Deferred[list[ServiceRecord]]: ...
    def updateService(tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[ServiceRecord]: ...
    def removeService(tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]: ...
    def recordLastSeen(tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        """Note the time of a heartbeat, to be kept lazily, in bulk: it may be lost in a crash."""

    # -- the states of services. A record whose end has come is not returned, but stays until a change or endStates().

    def getState(tenant: str, id: str) -> Deferred[StateRecord]: ...
    def listStates(tenant: str, marker: str | None, count: int) -> Deferred[list[StateRecord]]: ...
    def setState(tenant: str, record: StateRecord, maximum: int) -> Deferred[bool]:
        """Set or remove (:attr:`StateRecord.isDefault`) a record. Fires with whether anything changed."""

    def endStates() -> Deferred[tuple[Collection[str], int | None]]:
        """End the records whose end has come. Fires with the tenants concerned, and when the next record ends."""

    def dropStates(before: int) -> Deferred[Collection[str]]:
        """Drop the records of ids found without a service since *before*. Fires with the tenants concerned."""

    # -- locks

    def getLock(tenant: str, name: str) -> Deferred[LockRecord]: ...
    def listLocks(
        tenant: str, marker: str | None, count: int, hidden: Collection[str]
    ) -> Deferred[list[LockRecord]]: ...
    def acquireLock(tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> Deferred[LockRecord]:
        """Add a lock, its fence at least *fence*; :class:`LockTaken` if it is held."""

    def forceLock(tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        """Set ``isForced`` of a lock, without an event."""

    def releaseLock(tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        """Remove a lock, with its ``lock.release`` event. *isForced*: it is not its holder who releases it."""

    # -- configuration. A write fails with PreconditionFailed before anything else is looked at.

    def getValue(tenant: str, key: str) -> Deferred[ValueRecord]: ...
    def listValues(tenant: str, marker: str | None, count: int, namespace: str | None) -> Deferred[list[ValueRecord]]:
        """
        The values of a *namespace*: ``None`` for all; ``"/"`` for every key that begins with a slash; ``"/a/b"`` (no
        slash at its end) for ``/a/b`` itself and every key that begins with ``/a/b/``.
        """

    def setValue(
        tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> Deferred[int]:
        """Set a value. Fires with its position, which is the event's if it is new or changed."""

    def removeValue(tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> Deferred[None]: ...

    # -- events

    def listEvents(
        tenant: str, position: int, count: int, types: Collection[str] | None
    ) -> Deferred[list[EventRecord]]:
        """Those of some *types*, oldest first, from *position* on. The plain ones are found without reading others."""

    def listChanges(tenant: str, key: str, count: int) -> Deferred[list[EventRecord]]:
        """The newest events of a configuration value, oldest first. The store may read all events, but parses few."""

    def lastEvent(tenant: str) -> Deferred[str | None]:
        """The id of the newest event of *tenant*, of any type, even if it was dropped; ``None`` if there is none."""

    def hasEvent(tenant: str, id: str) -> Deferred[bool]: ...
    def dropEvents(before: int) -> Deferred[int]:
        """Drop the events before this position, of all tenants; fires with how many there were."""

    # -- users. With another key, or without the user, all of the user's auth tokens end. Tokens that ended are dropped.

    def addUser(name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> Deferred[UserRecord]:
        """
        Add a user. If *tenant* is ``None``, it is the smallest number from 1 on that no user has and of which the store
        holds nothing: what belonged to a removed user must not become another's.
        """

    def replaceUserKey(name: str, keyHash: str) -> Deferred[UserRecord]: ...
    def changeRole(name: str, role: Role) -> Deferred[UserRecord]: ...
    def removeUser(name: str) -> Deferred[None]: ...
    def getUser(name: str) -> Deferred[UserRecord]: ...
    def listUsers() -> Deferred[list[UserRecord]]: ...
    def addToken(token: TokenRecord) -> Deferred[None]: ...
    def getToken(tokenHash: str) -> Deferred[tuple[TokenRecord, UserRecord]]:
        """An auth token, and its user at the same moment."""

    def removeToken(tokenHash: str) -> Deferred[bool]:
        """Remove an auth token. Fires with whether it was there: of requests at the same time, one removes it."""


class IOwnStore(IStore):
    """A store that one registry has to itself, which says what has expired. Its lists are of all tenants."""

    def allServices() -> Deferred[list[ServiceSummary]]: ...
    def allLocks() -> Deferred[list[ServiceSummary]]: ...
    def expireServices(expirations: Sequence[Expiration]) -> Deferred[None]:
        """Remove those that are there still, in groups, each with a ``service.timeout`` event of that timestamp."""

    def expireLocks(expirations: Sequence[Expiration]) -> Deferred[None]:
        """As :meth:`expireServices`, with ``lock.expire`` events. An expiration's tenant is the scope of its locks."""


class IStoreListener(Interface):
    """
    Receives the changes of a shared store, which may be the registry's own, and its questions about deadlines. A
    registration is named by its tenant and its incarnation. A full timeout is counted from the call.
    """

    def appeared(service: ServiceSummary) -> None:
        """A service is there, new or changed. It has a full timeout if it was unknown or its timeout is another."""

    def renew(registration: tuple[str, str]) -> None:
        """Give a service a full timeout: another registry has updated its timeout."""

    def renewAll() -> None: ...
    def vanished(tenant: str, id: str, incarnation: str) -> None: ...
    def eventAdded(tenant: str, type: str | None) -> None:
        """The tenant's feed has a new event of this type; ``None`` for any number of any types."""

    def synchronized(services: Sequence[ServiceSummary]) -> None:
        """All services as they are now: some changes may have been missed."""

    def suspend() -> None:
        """The store is unavailable: heartbeats elsewhere are not noticed, and none is acknowledged here."""

    def secondsLeft(registration: tuple[str, str]) -> float:
        """Seconds until the deadline as known here; 0 or less if it has passed, or for an unknown registration."""

    def timeout(registration: tuple[str, str]) -> float:
        """The heartbeat timeout in seconds; 0 for an unknown registration."""

    def due(count: int) -> Mapping[tuple[str, str], int]:
        """Up to *count* registrations whose deadline has passed, with it, each until :meth:`lookAgain` or a new one."""

    def lookAgain(registration: tuple[str, str]) -> None:
        """Let :meth:`due` return a registration again, if its deadline has passed then."""

    def leaveTo(registration: tuple[str, str], seconds: float) -> None:
        """Another registry has a later deadline, in so many seconds: :meth:`due` returns it after a heartbeat here."""

    def expired(registration: tuple[str, str]) -> None:
        """This registry has persisted the expiration."""

    def ended(registration: tuple[str, str]) -> None:
        """The registration has ended by what another registry did."""


class ISharedStore(IStore):
    """
    A store that several registries use at the same time. Each of them acknowledges heartbeats from memory, and a
    service expires when all of them agree that they received none for one timeout.
    """

    isNew: bool = Attribute("Whether, when it was opened, there had never been a user in it.")
    isValid: bool = Attribute("Whether this registry may acknowledge heartbeats now.")
    members: Sequence[str] = Attribute("The names of the registries that share it now, this one's first.")

    def join(listener: IStoreListener) -> Deferred[None]:
        """Join the registries that share the store, and notify *listener*. Fires when all services have been read."""

    def tick() -> None:
        """Take part in the votes. Called several times a second, but not when this process has stalled."""

    def closed(tenant: str) -> Collection[str]:
        """The incarnations of those services whose heartbeats have to be admitted before they are acknowledged."""

    def admit(tenant: str, incarnation: str) -> Deferred[bool]:
        """Let a heartbeat of a closed service pass. Fires with whether this incarnation is there."""
