"""
The interfaces of stores, and their records. Moments are in milliseconds since the epoch unless something else is said.

Each operation of a store is atomic: a change and its event are kept together or not at all. A change's Deferred fires
only when the change is durable, as far as the store can make it so. A store does not know deadlines: the registry says
which services have expired (``hidden``, ``expireServices``).

The store makes the event ids: version-1 UUIDs that grow strictly within a tenant, in the order in which the changes
become visible, whatever the wall clock does. A service's *incarnation* is the id of its join event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """
    The state that operators set for an id, whether or not there is a service. Without a record it is up.

    :ivar state: ``up``, ``drain`` or ``out``.
    :ivar ends: when the record ends; ``None`` for a record without an end.
    """

    id: str
    state: str = UP
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


@attrs.frozen(slots=True)
class ServiceRecord:
    """
    A service as it is stored.

    :ivar heartbeatTimeout: in seconds.
    :ivar lastSeen: possibly older than the truth; ``None`` before the first heartbeat.
    :ivar state: the state of the id at the same moment, where it is known; ``None`` also if it has no record.
    """

    id: str
    incarnation: str
    heartbeatTimeout: int
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    lastSeen: int | None = None
    state: StateRecord | None = None

    @classmethod
    def of(cls, service: NewService, incarnation: str, state: StateRecord | None = None) -> ServiceRecord:
        return cls(service.id, incarnation, service.heartbeatTimeout, service.tags, service.metadata, state=state)

    def changed(self, changes: ServiceChanges) -> ServiceRecord:
        given = attrs.asdict(changes, recurse=False, filter=lambda _, value: value is not None)
        return attrs.evolve(self, **given)

    def summary(self, tenant: str) -> ServiceSummary:
        return ServiceSummary(tenant, self.id, self.incarnation, self.heartbeatTimeout, self.lastSeen)


@attrs.frozen(slots=True)
class ServiceSummary:
    """
    The part of a service or a lock that the registry keeps in memory. A lock's *tenant* is the scope of the tenant's
    locks (:mod:`~txserviceregistry.registry.model`); the heartbeats of one that *isForced* are refused.
    """

    tenant: str
    id: str
    incarnation: str
    heartbeatTimeout: int
    lastSeen: int | None
    isForced: bool = False


@attrs.frozen(slots=True)
class Expiration:
    """A service, or a lock in its scope, whose deadline has passed at *timestamp*."""

    tenant: str
    id: str
    incarnation: str
    timestamp: int


@attrs.frozen(slots=True)
class EventRecord:
    """An event of the feed, as in the API."""

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


@attrs.frozen(slots=True)
class Account:
    tenant: str
    created: int


@attrs.frozen(slots=True)
class UserRecord:
    """A user. *keyHash* is what :func:`~txserviceregistry.registry.identity.apikeys.hashKey` makes of the API key."""

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
    """
    A lock as it is stored: a name without a holder has no record.

    :ivar incarnation: the id of the event with which it was acquired.
    :ivar fence: greater than that of any lock that the tenant acquired before.
    :ivar isForced: whether its holder's heartbeats are refused, so that it expires.
    """

    incarnation: str
    fence: int
    acquired: int
    isForced: bool = False

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

    def ended(self) -> dict[str, Any]:
        """The payload of ``lock.release`` and ``lock.expire``."""
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
    to ``count`` entries. An operation that names an object, or an incarnation of it, fails with :class:`NoSuchObject`
    if there is none; one that adds an object fails with :class:`LimitExceeded` if the tenant has ``maximum`` already.
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

    def account(tenant: str) -> Deferred[Account]:
        """The tenant's account, which is created here, with the store's time, if it is new."""

    # -- services

    def createService(tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]:
        """Add a service, with its ``service.join`` event; :class:`ObjectExists` if the id is taken."""

    def getService(tenant: str, id: str, states: bool = False) -> Deferred[ServiceRecord]:
        """One service, with its state at the same moment if *states* are asked for."""

    def listServices(
        tenant: str, marker: str | None, count: int, tag: str | None, hidden: Collection[str], states: bool = False
    ) -> Deferred[list[ServiceRecord]]:
        """The services that have *tag*, without those whose incarnation is in *hidden*, like :meth:`getService`."""

    def updateService(tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """Change a service, with a ``service.update`` event if this changes anything. Fires with the new record."""

    def removeService(tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]:
        """Remove a service, with its ``service.remove`` event."""

    def recordLastSeen(tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        """Note the time of a heartbeat, to be kept lazily, in bulk: it may be lost in a crash."""

    # -- the states of services. A record whose end has come is not returned, but stays until a change or endStates().

    def setState(tenant: str, record: StateRecord, maximum: int) -> Deferred[bool]:
        """Set or remove (:attr:`StateRecord.isDefault`) a record, with events. Fires with whether anything changed."""

    def getState(tenant: str, id: str) -> Deferred[StateRecord]:
        """The record of an id; one without a reason if there is none."""

    def listStates(tenant: str, marker: str | None, count: int) -> Deferred[list[StateRecord]]:
        """The records by id."""

    def endStates() -> Deferred[tuple[Collection[str], int | None]]:
        """
        End the records whose end has come, each with one event. Fires with the tenants that have new events, and with
        when the next record ends.
        """

    def dropStates(before: int) -> Deferred[Collection[str]]:
        """
        Drop the records whose ids have had no service since *before*, with an event for each. That an id has no service
        is noted by the first call that finds it so. Fires with the tenants that have new events.
        """

    # -- locks

    def acquireLock(tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> Deferred[LockRecord]:
        """Add a lock, with ``lock.acquire``, its fence at least *fence*; :class:`LockTaken` if it is held."""

    def getLock(tenant: str, name: str) -> Deferred[LockRecord]:
        """One lock."""

    def listLocks(tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> Deferred[list[LockRecord]]:
        """The locks by name, without those whose incarnation is in *hidden*."""

    def forceLock(tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        """Set ``isForced`` of a lock."""

    def releaseLock(tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        """Remove a lock, with its ``lock.release`` event. *isForced*: it is not its holder who releases it."""

    # -- configuration

    def getValue(tenant: str, key: str) -> Deferred[ValueRecord]:
        """One value."""

    def listValues(tenant: str, marker: str | None, count: int, namespace: str | None) -> Deferred[list[ValueRecord]]:
        """
        The values by key.

        :param namespace: ``None`` for all; ``"/"`` for every key that begins with a slash; ``"/a/b"`` (no slash at its
            end) for ``/a/b`` itself and every key that begins with ``/a/b/``.
        """

    def setValue(
        tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> Deferred[int]:
        """
        Set a value, with a ``configuration_value.update`` event if it is new or changed. Fires with the value's
        position, which is the event's if there is one. Fails with :class:`PreconditionFailed` if the *precondition*
        does not allow it, before anything else is looked at.
        """

    def removeValue(tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> Deferred[None]:
        """Remove a value, with its ``configuration_value.remove`` event, as the *precondition* allows."""

    # -- events

    def listEvents(
        tenant: str, position: int, count: int, types: Collection[str] | None
    ) -> Deferred[list[EventRecord]]:
        """
        The events of some *types*, oldest first, from *position* on (see :mod:`~txserviceregistry.registry.eventids`).
        The plain ones are found without reading others.
        """

    def lastEvent(tenant: str) -> Deferred[str | None]:
        """The id of the newest event of *tenant*, of any type, even if it was dropped; ``None`` if there is none."""

    def hasEvent(tenant: str, id: str) -> Deferred[bool]:
        """Whether the feed of *tenant* has this very event."""

    def dropEvents(before: int) -> Deferred[int]:
        """Drop the events before this position, of all tenants; fires with how many there were."""

    # -- users

    def addUser(name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> Deferred[UserRecord]:
        """
        Add a user; :class:`ObjectExists` if the name is taken.

        :param tenant: the tenant id; if ``None``, the smallest number from 1 on that no user has and of which the store
            holds nothing: what belonged to a removed user must not become another's.
        """

    def replaceUserKey(name: str, keyHash: str) -> Deferred[UserRecord]:
        """Give a user another key; all of the user's auth tokens end."""

    def changeRole(name: str, role: Role) -> Deferred[UserRecord]:
        """Give a user another role; the user's auth tokens stay valid."""

    def removeUser(name: str) -> Deferred[None]:
        """Remove a user, and all of the user's auth tokens."""

    def getUser(name: str) -> Deferred[UserRecord]:
        """One user."""

    def listUsers() -> Deferred[list[UserRecord]]:
        """All users by name."""

    def addToken(token: TokenRecord) -> Deferred[None]:
        """Add an auth token, and drop those that have ended."""

    def getToken(tokenHash: str) -> Deferred[tuple[TokenRecord, UserRecord]]:
        """An auth token, and its user at the same moment."""

    def removeToken(tokenHash: str) -> Deferred[bool]:
        """Remove an auth token. Fires with whether it was there: of requests at the same time, one removes it."""


class IOwnStore(IStore):
    """A store that one registry has to itself, which says what has expired."""

    def expireServices(expirations: Sequence[Expiration]) -> Deferred[None]:
        """
        Remove those of the services that are there still (same incarnation), each with a ``service.timeout`` event of
        the expiration's timestamp. The store chooses the groups in which they are persisted.
        """

    def expireLocks(expirations: Sequence[Expiration]) -> Deferred[None]:
        """As :meth:`expireServices`, with ``lock.expire`` events. An expiration's tenant is the scope of its locks."""

    def allServices() -> Deferred[list[ServiceSummary]]:
        """All services of all tenants, for the registry's start."""

    def allLocks() -> Deferred[list[ServiceSummary]]:
        """All locks of all tenants, for the registry's start."""
