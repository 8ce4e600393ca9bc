"""The store that keeps everything in one SQLite file: the default; and what it has in common with the one in memory."""

from __future__ import annotations

import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from errno import EBADF
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from ....util.deferred import returnsDeferred, waitFor
from ....util.logs import Logger
from ...model import UNCONDITIONAL, NewService, Precondition
from ...statistics import StoreStatistics
from ..interfaces import Expiration, IOwnStore, ServiceRecord, StoreUnavailable
from . import file as sqlitefile
from .tables import Tables, Together, single
from .threads import Reader, ThreadedReactor, Writer

_C = TypeVar("_C")
_P = ParamSpec("_P")
_T = TypeVar("_T")

#: How many rows a part of a large operation has: an operation that comes in between waits a few milliseconds.
_PART = 200
#: Seconds that the time of a heartbeat is kept in memory before it is written.
_LAST_SEEN_DELAY = 5.0


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start : start + _PART] for start in range(0, len(items), _PART))


def _reads(
    operation: Callable[Concatenate[Tables, _P], _T], isWrite: bool = False
) -> Callable[Concatenate[TableStore, _P], Deferred[_T]]:
    @wraps(operation)
    def do(self: TableStore, /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return self._do(lambda tables: operation(tables, *args, **kwargs), isWrite)

    return do


def _writes(
    operation: Callable[Concatenate[Tables, _P], _T],
) -> Callable[Concatenate[TableStore, _P], Deferred[_T]]:
    return _reads(operation, isWrite=True)


class TableStore(ABC):
    """
    A store does its operations by :class:`Tables`, and says how it reaches them. Large ones are done in parts, between
    which others have their turn: if a part fails, the earlier ones are done, and the operation can be repeated.
    """

    @abstractmethod
    def _submit(self, together: Together[_C, _T], change: _C, isWrite: bool = True) -> Deferred[_T]:
        """Do something that changes nothing, or all or nothing of a write."""

    def _do(self, operation: Callable[[Tables], _T], isWrite: bool = True) -> Deferred[_T]:
        return self._submit(single(operation), None, isWrite)

    secret = _reads(Tables.secret)

    @returnsDeferred
    async def account(self, tenant: str) -> int:
        found = await self._do(lambda tables: tables.findAccount(tenant), False)
        return await self._do(lambda tables: tables.makeAccount(tenant)) if found is None else found

    def createService(self, tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]:
        return self._submit(Tables.createServices, (tenant, service, maximum))

    getService = _reads(Tables.getService)
    listServices = _reads(Tables.listServices)
    updateService = _writes(Tables.updateService)
    removeService = _writes(Tables.removeService)
    allServices = _reads(Tables.allServices)

    @returnsDeferred
    async def expireServices(self, expirations: Sequence[Expiration]) -> None:
        for part in _parts(expirations):
            await self._do(partial(Tables.expireServices, expirations=part))

    setState = _writes(Tables.setState)
    getState = _reads(Tables.getState)
    listStates = _reads(Tables.listStates)
    dropStates = _writes(Tables.dropStates)

    @returnsDeferred
    async def endStates(self) -> tuple[Collection[str], int | None]:
        changed, isMore = set[str](), True
        while isMore:
            some, isMore, next = await self._do(partial(Tables.endStates, most=_PART))
            changed |= some
        return changed, next

    acquireLock = _writes(Tables.acquireLock)
    getLock = _reads(Tables.getLock)
    listLocks = _reads(Tables.listLocks)
    forceLock = _writes(Tables.forceLock)
    releaseLock = _writes(Tables.releaseLock)
    expireLocks = _writes(Tables.expireLocks)
    allLocks = _reads(Tables.allLocks)

    getValue = _reads(Tables.getValue)
    listValues = _reads(Tables.listValues)
    removeValue = _writes(Tables.removeValue)

    def setValue(
        self, tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> Deferred[int]:
        return self._submit(Tables.setValues, (tenant, key, value, maximum, precondition))

    listEvents = _reads(Tables.listEvents)
    listChanges = _reads(Tables.listChanges)
    lastEvent = _reads(Tables.lastEvent)
    hasEvent = _reads(Tables.hasEvent)

    @returnsDeferred
    async def dropEvents(self, before: int) -> int:
        dropped = 0
        for tenant in await self._do(Tables.tenants, False):
            drop = partial(Tables.dropEvents, tenant=tenant, before=before, count=_PART)
            while part := await self._do(drop):
                dropped += part
        return dropped

    addUser = _writes(Tables.addUser)
    replaceUserKey = _writes(Tables.replaceUserKey)
    changeRole = _writes(Tables.changeRole)
    removeUser = _writes(Tables.removeUser)
    getUser = _reads(Tables.getUser)
    listUsers = _reads(Tables.listUsers)
    addToken = _writes(Tables.addToken)
    getToken = _reads(Tables.getToken)
    removeToken = _writes(Tables.removeToken)


@implementer(IOwnStore)
class SqliteStore(TableStore):
    """
    See the module. Other processes may read and write the file at the same time. Nothing is opened before :meth:`open`,
    which makes the file, readable by its owner only, if it is not there.

    :param guard: is called several times a second while there are writes, in a thread; when it raises an exception,
        nothing is written until it no longer does.
    :param exclusive: whether this store is a registry's, of which a file has one at a time.
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
        self._path = os.fspath(path)
        self._wallClock = wallClock
        self.statistics = StoreStatistics()
        self._files = sqlitefile.OpenFiles(self._path, guard)
        self._reader = Reader(reactor, partial(self._connect, readOnly=True), self.statistics, self.statistics.reads)
        self._writer = Writer(reactor, self._connectToWrite, self.statistics, self._reader, self._files)
        self._isExclusive = exclusive
        self._isPrepared = False
        self._closing: Deferred[None] | None = None
        self._lastSeen: dict[tuple[str, str, str], int] = {}
        self._writing = LoopingCall(self._writeLastSeen)
        self._writing.clock = reactor
        self._written: Deferred[LoopingCall] | None = None

    @returnsDeferred
    async def open(self) -> None:
        try:
            await self._writer.open()
            await self._reader.open()
        except BaseException as error:
            await self.close()
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            reason = getattr(error, "strerror", None) or error
            # NFS locks no folder; before Python 3.11, SQLite's errors have only a text, "disk I/O error".
            if getattr(error, "sqlite_errorname", getattr(error, "errno", None)) in ("SQLITE_IOERR_SHMMAP", EBADF):
                reason = "its file system lacks shared memory or locks; use a local one, not a network or shared folder"
            raise StoreUnavailable(f"{self._path} can't be opened: {reason}") from None
        self._written = self._writing.start(_LAST_SEEN_DELAY, now=False)

    def _connectToWrite(self) -> Tables:
        if not self._isPrepared:
            sqlitefile.prepare(self._path)
            if self._isExclusive:
                self._files.claim = sqlitefile.claimFile(self._path)
            self._isPrepared = True
        tables = self._connect()
        self._files.opened()
        return tables

    def _connect(self, *, readOnly: bool = False) -> Tables:
        self._files.check()  # another file may have its name by now
        return Tables(sqlitefile.connect(self._path, readOnly=readOnly), self._wallClock)

    def close(self) -> Deferred[None]:
        if self._closing is None:
            self._closing = Deferred.fromCoroutine(self._close())
        return waitFor(self._closing)

    async def _close(self) -> None:
        if self._written is not None:
            self._writing.stop()
            await self._written
        await self._writeLastSeen()
        # One after the other: of connections that are closed at the same moment SQLite may take none for the last one,
        # and then leaves the log as it is.
        await self._reader.close()
        await self._writer.close()
        if self._files.claim is not None:
            os.close(self._files.claim)

    @returnsDeferred
    async def probe(self) -> None:
        # After an error of the writer a read closes the reader's connection, which may keep it from working again.
        await self.secret()
        await self._writer.submit(single(Tables.probe), None, isChange=False)
        if self._writer.refusesChanges:
            raise StoreUnavailable("the store accepts a probe, but refused the last changes")

    def _submit(self, together: Together[_C, _T], change: _C, isWrite: bool = True) -> Deferred[_T]:
        return (self._writer if isWrite else self._reader).submit(together, change)

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        self._lastSeen[tenant, id, incarnation] = lastSeen

    async def _writeLastSeen(self) -> None:
        seen, self._lastSeen = self._lastSeen, {}
        for part in _parts(list(seen.items())):
            try:
                await self._writer.submit(single(partial(Tables.recordLastSeen, seen=part)), None, isChange=False)
            except StoreUnavailable:  # which the writer has logged
                self._lastSeen = seen | self._lastSeen  # which may have later ones
                return
            except Exception:
                self._log.failure("Cannot write the times of heartbeats")
