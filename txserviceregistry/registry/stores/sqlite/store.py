"""
The store that keeps everything in one SQLite file: the default.

Operations (:mod:`~txserviceregistry.registry.stores.sqlite.operations`) are handed to the thread that reads
(:mod:`~txserviceregistry.registry.stores.sqlite.threads`) or the one that writes
(:mod:`~txserviceregistry.registry.stores.sqlite.writer`). :mod:`~txserviceregistry.registry.stores.sqlite.file` makes,
checks and opens the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...statistics import StoreStatistics
from ..interfaces import IOwnStore, StoreUnavailable
from . import file as sqlitefile
from .claim import FileClaim, OpenFiles
from .log import LogSize
from .operations import TableStore, chunks
from .tables import Tables, Together
from .threads import Checkpointer, Reader, ThreadedReactor
from .writer import Writer

_C = TypeVar("_C")
_T = TypeVar("_T")

#: Seconds that the time of a heartbeat is kept in memory before it is written.
_LAST_SEEN_DELAY = 5.0
#: How many are written in one part, after which other operations have their turn.
_LAST_SEENS_PER_CHUNK = 128


@implementer(IOwnStore)
class SqliteStore(TableStore):
    """
    See the module. All writes go through one thread and are answered after their commit; commits that arrive together
    are one. Other processes may read and write the file at the same time. Nothing is opened before :meth:`open`.

    :param path: the file; :meth:`open` makes it, readable by its owner only, if it is not there.
    :param reactor: the Deferreds fire in its thread.
    :param wallClock: seconds since 1970; called in a thread.
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
        self._reactor = reactor
        self._wallClock = wallClock
        self.statistics = StoreStatistics()
        self._reader = Reader(reactor, partial(self._connect, readOnly=True), self.statistics)
        self._claim = FileClaim(self._path) if exclusive else None
        self._files = OpenFiles(self._path, guard, self._claim)
        self._writer = Writer(reactor, self._connectToWrite, self.statistics, self._reader, self._files)
        self._checkpointer = Checkpointer(reactor, self._connect)
        self._logSize = LogSize(self._path, reactor, self._writer, self._checkpointer)
        self._writer.logSeen = self._logSize.seen
        self._isPrepared = False
        self._lastSeen: dict[tuple[str, str, str], int] = {}
        # The next time that they are written; it is over while that is under way.
        self._lastSeenCall: IDelayedCall | None = None

    # -- opening and closing

    @returnsDeferred
    async def open(self) -> None:
        try:
            await self._writer.start()
            await self._reader.start()
        except BaseException as error:
            await self.close()
            if not isinstance(error, (sqlite3.Error, OSError)):
                raise
            reason = getattr(error, "strerror", None) or error
            raise StoreUnavailable(f"{self._path} can't be opened: {reason}") from None

    def _connectToWrite(self) -> Tables:
        if not self._isPrepared:
            sqlitefile.prepare(self._path)
            if self._claim is not None:
                self._claim.take()
            self._isPrepared = True
        tables = self._connect()
        self._files.opened()
        return tables

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
        if self._lastSeenCall is not None and self._lastSeenCall.active():
            self._lastSeenCall.cancel()
        self._writeLastSeen()
        self._logSize.stop()
        # The writer closes the file last: of connections that are closed at the same moment SQLite may take none for
        # the last one, and then leaves the log as it is.
        for end in [self._checkpointer.stop(), self._reader.stop()]:
            await end
        await self._writer.stop()
        if self._claim is not None:
            self._claim.release()
        self._lastSeen.clear()

    @returnsDeferred
    async def probe(self) -> None:
        await self._writer.submit(lambda tables: tables.probe(), probe=True)
        await self.secret()
        if self._writer.refusesChanges:
            raise StoreUnavailable("the store accepts a probe, but refused all recent changes")

    def _read(self, operation: Callable[[Tables], _T]) -> Deferred[_T]:
        return self._reader.submit(operation)

    def _write(self, operation: Callable[[Tables], _T], *, background: bool = False) -> Deferred[_T]:
        return self._writer.submit(operation, background=background)

    def _writeAmong(self, together: Together[_C, _T], change: _C) -> Deferred[_T]:
        return self._writer.submitOneOfMany(together, change)

    # -- the times of heartbeats

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        if self._writer.isRunning:
            self._lastSeen[tenant, id, incarnation] = lastSeen
            self._writeLastSeenLater()

    def _writeLastSeenLater(self) -> None:
        # On a disk that is slow or hangs, writes that did not wait for each other would pile up.
        if self._lastSeenCall is None:
            self._lastSeenCall = self._reactor.callLater(_LAST_SEEN_DELAY, self._writeLastSeen)

    @returnsDeferred
    async def _writeLastSeen(self) -> None:
        parts = list(chunks(list(self._lastSeen.items()), _LAST_SEENS_PER_CHUNK))
        self._lastSeen = {}
        writes = [self._writer.submit(partial(Tables.recordLastSeen, seen=part), background=True) for part in parts]
        outcomes = await DeferredList(writes, consumeErrors=True)
        refused: dict[tuple[str, str, str], int] = {}
        for part, (_, failure) in zip(parts, outcomes, strict=True):
            if isinstance(failure, Failure) and failure.check(StoreUnavailable):  # which the writer has logged
                refused.update(part)
            elif isinstance(failure, Failure):
                self._log.failure("Cannot write the times of heartbeats", failure)
        self._lastSeen = refused | self._lastSeen  # which may have later ones
        self._lastSeenCall = None
        if self._lastSeen and self._writer.isRunning:
            self._writeLastSeenLater()
