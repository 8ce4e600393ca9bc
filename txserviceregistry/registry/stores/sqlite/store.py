"""
The store that keeps everything in one SQLite file: the default.

Here the operations of a store are handed to the thread that reads or the thread that writes
(:mod:`~txserviceregistry.registry.stores.sqlite.threads`). What they do to the tables is in
:mod:`~txserviceregistry.registry.stores.sqlite.tables` and
:mod:`~txserviceregistry.registry.stores.sqlite.users`, what the file is in
:mod:`~txserviceregistry.registry.stores.sqlite.file`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...model import NewService, ServiceChanges
from ...statistics import StoreStatistics
from ..interfaces import (
    Account,
    EventRecord,
    Expiration,
    IStore,
    LivingService,
    ServiceRecord,
    StoreUnavailable,
    TokenRecord,
    UserRecord,
)
from . import file as sqlitefile
from .claim import FileClaim
from .log import LogSize
from .tables import LastSeen, Tables
from .threads import Checkpointer, Reader, ThreadedReactor, Writer

_T = TypeVar("_T")

_LAST_SEEN_DELAY = 5.0
"""Seconds that the time of a heartbeat is kept in memory before it is written."""

_LAST_SEENS_PER_CHUNK = 128
_DEATHS_PER_CHUNK = 200
_EVENTS_PER_CHUNK = 500
"""Parts of large operations, small enough that an operation which comes in between waits a few milliseconds."""


def _chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


@implementer(IStore)
class SqliteStore:
    """
    See the module. All writes go through one thread and are answered after their commit; commits that arrive together
    are one. Other processes may read and write the file at the same time.
    """

    name = "sqlite"
    _log = Logger()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        reactor: ThreadedReactor,
        wallClock: Callable[[], float] = time.time,
        guard: Callable[[], None] = lambda: None,
        exclusive: bool = False,
    ) -> None:
        """
        Nothing is opened or started here.

        :param path: the file; it is made, readable by its owner only, when the store is opened and it is not there.
        :param reactor: where the Deferreds fire.
        :param wallClock: seconds since 1970; called in a thread.
        :param guard: is called several times a second while there are writes, in a thread; when it raises an exception,
            nothing is written until it no longer does.
        :param exclusive: whether this store is a registry's, of which a file has one at a time.
        """
        self._path = os.fspath(path)
        self._reactor = reactor
        self._wallClock = wallClock
        self.statistics = StoreStatistics()
        self._reader = Reader(reactor, self._connectToRead, self.statistics)
        self._claim = FileClaim(self._path) if exclusive else None
        checkContent = (lambda: None) if self._claim is None else self._claim.check
        self._files = sqlitefile.OpenFiles(self._path, guard, checkContent)
        self._writer = Writer(reactor, self._connectToWrite, self.statistics, self._reader, self._files)
        self._checkpointer = Checkpointer(reactor, self._connect)
        self._logSize = LogSize(self._path, reactor, self._writer, self._checkpointer, self.statistics)
        self._writer.logSeen = self._logSize.seen
        self._isPrepared = False
        self._lastSeen: dict[tuple[str, str, str], int] = {}
        self._lastSeenCall: IDelayedCall | None = None
        # How many parts of them are being written.
        self._lastSeenParts = 0

    # -- opening and closing

    @returnsDeferred
    async def open(self) -> None:
        """See :meth:`IStore.open`."""
        try:
            await self._writer.start()
            await self._reader.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise StoreUnavailable(f"{self._path} can't be opened: {_reason(error)}") from None
            raise

    def _connectToWrite(self) -> Tables:
        if not self._isPrepared:
            sqlitefile.prepare(self._path)
            if self._claim is not None:
                self._claim.take()
            self._isPrepared = True
        tables = self._connect()
        self._files.opened()
        return tables

    def _connectToRead(self) -> Tables:
        return self._connect(readOnly=True)

    def _connect(self, *, readOnly: bool = False) -> Tables:
        """Open the file, and no other one that has its name by now."""
        self._files.check()
        tables = Tables(sqlitefile.connect(self._path, readOnly=readOnly), self._wallClock)
        try:
            self._files.check()
        except BaseException:
            tables.close()
            raise
        return tables

    @returnsDeferred
    async def close(self) -> None:
        """See :meth:`IStore.close`."""
        self._writeLastSeen()
        self._logSize.stop()
        ends = [self._checkpointer.stop(), self._reader.stop(), self._writer.stop()]
        for end in ends:
            await end
        if self._claim is not None:
            self._claim.release()
        self._lastSeen.clear()

    # -- services

    @returnsDeferred
    async def account(self, tenant: str) -> Account:
        """See :meth:`IStore.account`."""
        found = await self._reader.submit(lambda tables: tables.findAccount(tenant))
        if found is None:
            found = await self._writer.submit(lambda tables: tables.makeAccount(tenant))
        return found

    @returnsDeferred
    async def probe(self) -> None:
        """See :meth:`IStore.probe`."""
        await self._writer.submit(lambda tables: tables.probe(), probe=True)
        await self._reader.submit(lambda tables: tables.secret())
        if self._writer.refusesChanges:
            raise StoreUnavailable("the store takes a probe, but none of the changes that were asked for lately")

    def secret(self) -> Deferred[bytes]:
        """See :meth:`IStore.secret`."""
        return self._reader.submit(lambda tables: tables.secret())

    def createService(self, tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]:
        """See :meth:`IStore.createService`."""
        return self._writer.submitOneOfMany(Tables.createServices, (tenant, service, maximum))

    def getService(self, tenant: str, id: str) -> Deferred[ServiceRecord]:
        """See :meth:`IStore.getService`."""
        return self._reader.submit(lambda tables: tables.getService(tenant, id))

    def listServices(
        self, tenant: str, marker: str | None, count: int, tag: str | None, hidden: Collection[str]
    ) -> Deferred[list[ServiceRecord]]:
        """See :meth:`IStore.listServices`."""
        unseen = frozenset(hidden)
        return self._reader.submit(lambda tables: tables.listServices(tenant, marker, count, tag, unseen))

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[ServiceRecord]:
        """See :meth:`IStore.updateService`."""
        return self._writer.submit(lambda tables: tables.updateService(tenant, id, incarnation, changes))

    def removeService(self, tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]:
        """See :meth:`IStore.removeService`."""
        return self._writer.submit(lambda tables: tables.removeService(tenant, id, incarnation))

    @returnsDeferred
    async def expireServices(self, deaths: Sequence[Expiration]) -> None:
        """See :meth:`IStore.expireServices`. Many deaths are kept in parts, between which others have their turn."""
        if len(deaths) <= _DEATHS_PER_CHUNK:
            await self._writer.submit(lambda tables: tables.expireServices(deaths))
            return
        parts = [
            self._writer.submit(partial(Tables.expireServices, deaths=part), background=True)
            for part in _chunks(deaths, _DEATHS_PER_CHUNK)
        ]
        for succeeded, result in await DeferredList(parts, consumeErrors=True):
            if not succeeded:
                assert isinstance(result, Failure)
                result.raiseException()

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        """See :meth:`IStore.recordLastSeen`. It is written after five seconds, or when the store is closed."""
        if self._writer.isRunning:
            self._lastSeen[tenant, id, incarnation] = lastSeen
            if self._lastSeenCall is None:
                self._writeLastSeenLater()

    def _writeLastSeenLater(self) -> None:
        # On a disk that is slow or hangs, writes that did not wait for each other would pile up.
        if not self._lastSeenParts:
            self._lastSeenCall = self._reactor.callLater(_LAST_SEEN_DELAY, self._writeLastSeen)

    def _writeLastSeen(self) -> None:
        if self._lastSeenCall is not None and self._lastSeenCall.active():
            self._lastSeenCall.cancel()
        self._lastSeenCall = None
        seen: list[LastSeen] = list(self._lastSeen.items())
        self._lastSeen.clear()
        for part in _chunks(seen, _LAST_SEENS_PER_CHUNK):
            written = self._writer.submit(partial(Tables.recordLastSeen, seen=part), background=True)
            self._lastSeenParts += 1
            written.addErrback(self._lastSeenNotWritten, part).addBoth(self._lastSeenPartEnded)

    def _lastSeenNotWritten(self, failure: Failure, seen: Sequence[LastSeen]) -> None:
        if failure.check(StoreUnavailable):  # which the writer has logged
            for whose, milliseconds in seen:
                if whose not in self._lastSeen:
                    self.recordLastSeen(*whose, milliseconds)
        else:
            self._log.failure("The times of heartbeats could not be written", failure)

    def _lastSeenPartEnded(self, _: object) -> None:
        self._lastSeenParts -= 1
        if self._lastSeen and self._lastSeenCall is None and self._writer.isRunning:
            self._writeLastSeenLater()

    def livingServices(self) -> Deferred[list[LivingService]]:
        """See :meth:`IStore.livingServices`."""
        return self._reader.submit(lambda tables: tables.livingServices())

    # -- configuration

    def getValue(self, tenant: str, key: str) -> Deferred[str]:
        """See :meth:`IStore.getValue`."""
        return self._reader.submit(lambda tables: tables.getValue(tenant, key))

    def listValues(
        self, tenant: str, marker: str | None, count: int, namespace: str | None
    ) -> Deferred[list[tuple[str, str]]]:
        """See :meth:`IStore.listValues`."""
        return self._reader.submit(lambda tables: tables.listValues(tenant, marker, count, namespace))

    def setValue(self, tenant: str, key: str, value: str, maximum: int) -> Deferred[None]:
        """See :meth:`IStore.setValue`."""
        return self._writer.submitOneOfMany(Tables.setValues, (tenant, key, value, maximum))

    def removeValue(self, tenant: str, key: str) -> Deferred[None]:
        """See :meth:`IStore.removeValue`."""
        return self._writer.submit(lambda tables: tables.removeValue(tenant, key))

    # -- events

    def listEvents(self, tenant: str, position: int, count: int, type: str | None) -> Deferred[list[EventRecord]]:
        """See :meth:`IStore.listEvents`."""
        return self._reader.submit(lambda tables: tables.listEvents(tenant, position, count, type))

    def hasEvent(self, tenant: str, id: str) -> Deferred[bool]:
        """See :meth:`IStore.hasEvent`."""
        return self._reader.submit(lambda tables: tables.hasEvent(tenant, id))

    @returnsDeferred
    async def dropEvents(self, before: int) -> int:
        """
        See :meth:`IStore.dropEvents`. Many are forgotten in parts, between which others have their turn; if it fails,
        those of the earlier parts are gone, and it can be asked for again.
        """
        dropped = 0
        for tenant in await self._reader.submit(lambda tables: tables.tenantsWithEvents()):
            drop = partial(Tables.dropEvents, tenant=tenant, before=before, count=_EVENTS_PER_CHUNK)
            while part := await self._writer.submit(drop, background=True):
                dropped += part
        return dropped

    # -- identity

    def addUser(self, name: str, keyHash: str, tenant: str | None) -> Deferred[UserRecord]:
        """See :meth:`IStore.addUser`."""
        return self._writer.submit(lambda tables: tables.users.addUser(name, keyHash, tenant))

    def replaceUserKey(self, name: str, keyHash: str) -> Deferred[UserRecord]:
        """See :meth:`IStore.replaceUserKey`."""
        return self._writer.submit(lambda tables: tables.users.replaceUserKey(name, keyHash))

    def removeUser(self, name: str) -> Deferred[None]:
        """See :meth:`IStore.removeUser`."""
        return self._writer.submit(lambda tables: tables.users.removeUser(name))

    def getUser(self, name: str) -> Deferred[UserRecord]:
        """See :meth:`IStore.getUser`."""
        return self._reader.submit(lambda tables: tables.users.getUser(name))

    def listUsers(self) -> Deferred[list[UserRecord]]:
        """See :meth:`IStore.listUsers`."""
        return self._reader.submit(lambda tables: tables.users.listUsers())

    def addToken(self, token: TokenRecord) -> Deferred[None]:
        """See :meth:`IStore.addToken`."""
        return self._writer.submit(lambda tables: tables.users.addToken(token))

    def getToken(self, tokenHash: str) -> Deferred[TokenRecord]:
        """See :meth:`IStore.getToken`."""
        return self._reader.submit(lambda tables: tables.users.getToken(tokenHash))

    def removeToken(self, tokenHash: str) -> Deferred[None]:
        """See :meth:`IStore.removeToken`."""
        return self._writer.submit(lambda tables: tables.users.removeToken(tokenHash))
