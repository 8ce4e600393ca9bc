"""
The interface of stores, in terms of the registry's rules.

A store keeps what :class:`~txserviceregistry.registry.core.Registry` decides, and makes each of its operations atomic
in its own way: a change and its event are kept together or not at all. The Deferred of an operation that changes
something fires only when the change is durable, as far as the store can make it so. A store does not know deadlines:
the registry says which services have expired (``hidden``, ``expireServices``).

The store makes the event ids: version-1 UUIDs that grow strictly within a tenant, in the order in which the changes
become visible, whatever the wall clock does. A service's *incarnation* is the id of its join event.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Attribute

from ..model import UNCONDITIONAL, NewService, Precondition, ServiceChanges
from ..roles import WRITE, Role
from ..statistics import StoreStatistics
from .states import IStateStore, StateRecord


class StoreError(Exception):
    """The base class of the errors below."""


class ObjectExists(StoreError):
    """An object with this key exists already."""


class NoSuchObject(StoreError):
    """No object has this key."""


class LimitExceeded(StoreError):
    """The tenant has as many objects of this kind as it may."""


class PreconditionFailed(StoreError):
    """
    A precondition does not allow the write.

    :ivar position: the value's; ``None`` if there is none.
    """

    def __init__(self, position: int | None) -> None:
        super().__init__(position)
        self.position = position


class StoreUnavailable(StoreError):
    """The store can't be read or written now; nothing was changed. It may work again later."""


class StoreRefused(StoreError):
    """
    What is there can't be used: it is not a store, it is damaged, or it is one of a newer release.

    It has been left as it was. The text is one line that names it and says what is wrong.
    """


@attrs.frozen(slots=True)
class ServiceRecord:
    """
    A service as it is stored.

    :ivar incarnation: the id of the service's join event, which is unique.
    :ivar heartbeatTimeout: in seconds.
    :ivar lastSeen: milliseconds since the epoch, possibly older than the truth; ``None`` before the first heartbeat.
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
        """A new service's record."""
        return cls(service.id, incarnation, service.heartbeatTimeout, service.tags, service.metadata, state=state)

    def changed(self, changes: ServiceChanges) -> ServiceRecord:
        """The record with these changes."""
        given = attrs.asdict(changes, recurse=False, filter=lambda _, value: value is not None)
        return attrs.evolve(self, **given)

    def summary(self, tenant: str) -> ServiceSummary:
        """What the registry keeps in memory of the service, which is *tenant*'s."""
        return ServiceSummary(tenant, self.id, self.incarnation, self.heartbeatTimeout, self.lastSeen)


@attrs.frozen(slots=True)
class ServiceSummary:
    """
    What the registry keeps in memory of each service and each lock: enough to set deadlines and check tokens.

    :ivar tenant: of a lock, the scope of the tenant's locks (:mod:`~txserviceregistry.registry.scopes`).
    :ivar isForced: whether its heartbeats are refused.
    """

    tenant: str
    id: str
    incarnation: str
    heartbeatTimeout: int
    lastSeen: int | None
    isForced: bool = False


@attrs.frozen(slots=True)
class Expiration:
    """A service whose deadline has passed, at *timestamp* (milliseconds since the epoch)."""

    tenant: str
    id: str
    incarnation: str
    timestamp: int


@attrs.frozen(slots=True)
class EventRecord:
    """An event of the feed. *timestamp* is in milliseconds since the epoch; the rest is as in the API."""

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
    """A tenant's account; *created* is in milliseconds since the epoch."""

    tenant: str
    created: int


@attrs.frozen(slots=True)
class UserRecord:
    """
    A user. *keyHash* is the scrypt hash of the API key, in the form that
    :mod:`txserviceregistry.registry.identity.identity` writes.
    """

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


class IStore(IStateStore):
    """
    A place where a registry keeps its state.

    Every operation returns a Deferred. Each may fail with :class:`StoreUnavailable`, after which nothing has changed
    (or, where the response to a change was lost, its outcome has been found out). Lists are sorted by code point and
    begin *at* ``marker``.
    """

    name: str = Attribute("What the store is called on the command line: ``memory``, ``sqlite``, …")
    statistics: StoreStatistics = Attribute("What the store counts of its own work.")
    locks: Any = Attribute("The locks: an :class:`~txserviceregistry.registry.stores.locks.ILockStore`.")

    def open() -> Deferred[None]:
        """
        Make the store ready; called once, on a running reactor, before anything else.

        :raises StoreRefused: if what is there can't be this store's data.
        :raises StoreUnavailable: if it can't be reached now.
        """

    def close() -> Deferred[None]:
        """Finish what is under way, then let everything go. Operations that come later fail with `StoreUnavailable`."""

    def probe() -> Deferred[None]:
        """
        Write as much as an operation does, durably, and read it: nothing that any other operation would notice.

        :raises StoreUnavailable: if the store can't be written and read now, or refuses what others write.
        """

    def secret() -> Deferred[bytes]:
        """The registry's secret, 32 random bytes that the store made when it was new. Keys are derived from it."""

    # -- accounts

    def account(tenant: str) -> Deferred[Account]:
        """The tenant's account, which is created here, with the store's time, if it is new."""

    # -- services

    def createService(tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]:
        """
        Add a service and its ``service.join`` event.

        :param maximum: how many services the tenant may have.
        :raises ObjectExists: if the id is taken.
        :raises LimitExceeded: if the tenant has *maximum* services already (a taken id is reported first).
        """

    def getService(tenant: str, id: str, states: bool = False) -> Deferred[ServiceRecord]:
        """
        One service.

        :param states: whether to read its state too.
        :raises NoSuchObject: if there is none.
        """

    def listServices(
        tenant: str, marker: str | None, count: int, tag: str | None, hidden: Collection[str], states: bool = False
    ) -> Deferred[list[ServiceRecord]]:
        """
        Up to *count* services by id, from *marker* on, that have *tag*; those whose incarnation is in *hidden* are left
        out, as if they were not there.

        :param states: whether to read their states too, as they are at the same moment.
        """

    def updateService(tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """
        Change a service, and add a ``service.update`` event if this changes anything.

        :return: fires with the service as it is then.
        :raises NoSuchObject: if the service, or this incarnation of it, is gone.
        """

    def removeService(tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]:
        """
        Remove the service and add its ``service.remove`` event.

        :raises NoSuchObject: if the service, or this incarnation of it, is gone.
        """

    def expireServices(expirations: Sequence[Expiration]) -> Deferred[None]:
        """
        Remove those of the services that are there still (same incarnation) and add a ``service.timeout`` event for
        each, with the expiration's timestamp. Each is atomic; the store chooses the groups in which they are persisted.
        """

    def recordLastSeen(tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        """
        Note the time of a heartbeat, to be kept when it suits the store (lazily, in bulk): it may be lost in a crash,
        and is never waited for.
        """

    def allServices() -> Deferred[list[ServiceSummary]]:
        """All services of all tenants, for the registry's start."""

    # -- configuration

    def getValue(tenant: str, key: str) -> Deferred[ValueRecord]:
        """:raises NoSuchObject: if there is none."""

    def listValues(tenant: str, marker: str | None, count: int, namespace: str | None) -> Deferred[list[ValueRecord]]:
        """
        Up to *count* values by key, from *marker* on.

        :param namespace: ``None`` for all; ``"/"`` for every key that begins with a slash; ``"/a/b"`` (no slash at its
            end) for ``/a/b`` itself and every key that begins with ``/a/b/``.
        """

    def setValue(
        tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> Deferred[int]:
        """
        Set a value; add a ``configuration_value.update`` event if it is new or changed, none if it is the same.

        :param maximum: how many values the tenant may have.
        :return: fires with the value's position, which is the event's if there is one.
        :raises PreconditionFailed: if the *precondition* does not allow it, before anything else is looked at.
        :raises LimitExceeded: if the key is new and the tenant has *maximum* values already.
        """

    def removeValue(tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> Deferred[None]:
        """
        Remove a value and add its ``configuration_value.remove`` event.

        :raises PreconditionFailed: as :meth:`setValue`.
        :raises NoSuchObject: if there is none.
        """

    # -- events

    def listEvents(
        tenant: str, position: int, count: int, types: Collection[str] | None
    ) -> Deferred[list[EventRecord]]:
        """
        Up to *count* events, oldest first, from *position* on (the time of a version-1 UUID, in units of 100 ns
        since 1582-10-15).

        :param types: only events of these types; ``None`` for all. The plain ones are found without reading others.
        """

    def lastEvent(tenant: str) -> Deferred[str | None]:
        """The id of the newest event of *tenant*, of any type, even if it was dropped; ``None`` if there is none."""

    def hasEvent(tenant: str, id: str) -> Deferred[bool]:
        """Whether the feed of *tenant* has this very event."""

    def dropEvents(before: int) -> Deferred[int]:
        """Drop the events before this position, of all tenants; fires with how many there were."""

    # -- identity

    def addUser(name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> Deferred[UserRecord]:
        """
        Add a user.

        :param tenant: the tenant id; if ``None``, the smallest number from 1 on that no user has and of which the store
            holds nothing: what belonged to a removed user must not become another's.
        :raises ObjectExists: if the name is taken.
        """

    def replaceUserKey(name: str, keyHash: str) -> Deferred[UserRecord]:
        """
        Give a user another key; all of the user's auth tokens end.

        :raises NoSuchObject: if there is no such user.
        """

    def changeRole(name: str, role: Role) -> Deferred[UserRecord]:
        """
        Give a user another role; the user's auth tokens stay valid.

        :raises NoSuchObject: if there is no such user.
        """

    def removeUser(name: str) -> Deferred[None]:
        """
        Remove a user, and all of the user's auth tokens.

        :raises NoSuchObject: if there is no such user.
        """

    def getUser(name: str) -> Deferred[UserRecord]:
        """:raises NoSuchObject: if there is none."""

    def listUsers() -> Deferred[list[UserRecord]]:
        """All users by name."""

    def addToken(token: TokenRecord) -> Deferred[None]:
        """Add an auth token, and drop those that have ended."""

    def getToken(tokenHash: str) -> Deferred[tuple[TokenRecord, UserRecord]]:
        """
        :return: fires with the token, and its user at the same moment.
        :raises NoSuchObject: if there is none.
        """

    def removeToken(tokenHash: str) -> Deferred[bool]:
        """Remove an auth token. Fires with whether it was there: of requests at the same time, one removes it."""
