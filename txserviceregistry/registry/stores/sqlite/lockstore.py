"""
The locks of the SQLite store.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from ..interfaces import Expiration, ServiceSummary
from ..locks import ILockStore, LockRecord, NewLock
from .threads import Reader
from .writer import Writer


@implementer(ILockStore)
class SqliteLocks:
    """
    :param reader: the thread that reads.
    :param writer: the thread that writes.
    """

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    def acquire(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> Deferred[LockRecord]:
        return self._writer.submit(lambda tables: tables.acquireLock(tenant, lock, maximum, now, fence))

    def get(self, tenant: str, name: str) -> Deferred[LockRecord]:
        return self._reader.submit(lambda tables: tables.getLock(tenant, name))

    def list(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> Deferred[list[LockRecord]]:
        return self._reader.submit(lambda tables: tables.listLocks(tenant, marker, count, hidden))

    def force(self, tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        return self._writer.submit(lambda tables: tables.forceLock(tenant, name, incarnation))

    def release(self, tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        return self._writer.submit(lambda tables: tables.releaseLock(tenant, name, incarnation, isForced))

    def expire(self, expirations: Sequence[Expiration]) -> Deferred[None]:
        return self._writer.submit(lambda tables: tables.expireLocks(expirations))

    def all(self) -> Deferred[Sequence[ServiceSummary]]:
        return self._reader.submit(lambda tables: tables.allLocks())
