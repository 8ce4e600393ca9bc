"""
The part of a store's interface that is about locks.

Each lock is held: a name without a holder has no record. A lock's *incarnation* is the id of the event with
which it was acquired, so that it is unique among all that belong to the tenant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from zope.interface import Interface

from ..scopes import isLockScope, lockScope, tenantOf
from .interfaces import Expiration, IStore, ObjectExists, ServiceSummary


@attrs.frozen
class NewLock:
    """
    A lock to be acquired.

    :ivar timeout: the heartbeat timeout, in seconds.
    :ivar holder: who acquires it, for people.
    :ivar nonce: names this acquisition; ``None`` if it has no name.
    """

    name: str
    timeout: int
    holder: str = ""
    nonce: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=dict)


@attrs.frozen
class LockRecord:
    """
    A lock as it is stored. See :class:`NewLock` for the rest.

    :ivar fence: greater than that of any lock that the tenant acquired before.
    :ivar acquired: when, in milliseconds since the epoch.
    :ivar isForced: whether its holder's heartbeats are refused, so that it expires.
    """

    name: str
    timeout: int
    holder: str
    nonce: str | None
    metadata: Mapping[str, str]
    incarnation: str
    fence: int
    acquired: int
    isForced: bool = False

    @classmethod
    def of(cls, new: NewLock, incarnation: str, fence: int, acquired: int) -> LockRecord:
        """A new lock's record."""
        return cls(new.name, new.timeout, new.holder, new.nonce, new.metadata, incarnation, fence, acquired)

    def summary(self, tenant: str) -> ServiceSummary:
        """What the registry keeps in memory of the lock, which is *tenant*'s."""
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
    """
    The lock is held.

    :ivar record: its record.
    """

    def __init__(self, record: LockRecord) -> None:
        super().__init__(record.name)
        self.record = record


class ILockStore(Interface):
    """
    The locks of a store: the attribute ``locks`` of an :class:`IStore`, whose rules are valid here too.
    """

    def acquire(tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> Deferred[LockRecord]:
        """
        Add a lock and its ``lock.acquire`` event.

        :param maximum: how many locks the tenant may have.
        :param now: milliseconds since the epoch.
        :param fence: the least fence that it may have; it also exceeds the last one of the tenant.
        :raises LockTaken: if the name is taken.
        :raises LimitExceeded: if the tenant has *maximum* locks already (a taken name is reported first).
        """

    def get(tenant: str, name: str) -> Deferred[LockRecord]:
        """:raises NoSuchObject: if there is none."""

    def list(tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> Deferred[list[LockRecord]]:
        """Up to *count* locks by name, from *marker* on, without those whose incarnation is in *hidden*."""

    def force(tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        """
        Set ``isForced`` of a lock.

        :raises NoSuchObject: if the lock, or this incarnation of it, is gone.
        """

    def release(tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        """
        Remove a lock and add its ``lock.release`` event.

        :param isForced: whether it is not its holder who releases it.
        :raises NoSuchObject: if the lock, or this incarnation of it, is gone.
        """

    def expire(expirations: Sequence[Expiration]) -> Deferred[None]:
        """
        Remove those of the locks that are there still (same incarnation), and add a ``lock.expire`` event for each,
        with the expiration's timestamp. The tenant of an expiration is the scope of its locks.
        """

    def all() -> Deferred[Sequence[ServiceSummary]]:
        """All locks of all tenants, for the registry's start."""


async def readSummary(store: IStore, scope: str, id: str) -> ServiceSummary:
    """
    A service or a lock as the store has it.

    :raises NoSuchObject: if there is none.
    """
    if isLockScope(scope):
        record: LockRecord = await store.locks.get(tenantOf(scope), id)
        return record.summary(tenantOf(scope))
    return (await store.getService(scope, id)).summary(scope)
