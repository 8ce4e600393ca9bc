"""
The store that keeps everything in one SQLite file: the default.

Operations (:mod:`~txserviceregistry.registry.stores.sqlite.operations`) are done in two threads
(:mod:`~txserviceregistry.registry.stores.sqlite.threads`).
:mod:`~txserviceregistry.registry.stores.sqlite.file` makes, checks and opens the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from ....util.deferred import returnsDeferred, waitFor
from ....util.logs import Logger
from ...statistics import StoreStatistics
from ..interfaces import IOwnStore, StoreUnavailable
from . import file as sqlitefile
from .operations import TableStore, chunks
from .tables import Tables, Together
from .threads import Reader, ThreadedReactor, Writer

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
        self._wallClock = wallClock
        self.statistics = StoreStatistics()
        self._files = sqlitefile.OpenFiles(self._path, guard)
        self._reader = Reader(reactor, partial(self._connect, readOnly=True), self.statistics)
        self._writer = Writer(reactor, self._connectToWrite, self.statistics, self._reader, self._files)
        self._isExclusive = exclusive
        self._claim: int | None = None
        self._isPrepared = False
        self._closing: Deferred[None] | None = None
        self._lastSeen: dict[tuple[str, str, str], int] = {}
        self._writing = LoopingCall(self._writeLastSeen)
        self._writing.clock = reactor

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
            raise StoreUnavailable(f"{self._path} can't be opened: {reason}") from None
        self._writing.start(_LAST_SEEN_DELAY, now=False)

    def _connectToWrite(self) -> Tables:
        if not self._isPrepared:
            sqlitefile.prepare(self._path)
            if self._isExclusive:
                self._claim = sqlitefile.claimFile(self._path)
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

    def close(self) -> Deferred[None]:
        if self._closing is None:
            self._closing = Deferred.fromCoroutine(self._close())
        return waitFor(self._closing)

    async def _close(self) -> None:
        if self._writing.running:
            self._writing.stop()
        await self._writeLastSeen()
        # The writer closes the file last: of connections that are closed at the same moment SQLite may take none for
        # the last one, and then leaves the log as it is.
        await self._reader.close()
        await self._writer.close()
        if self._claim is not None:
            os.close(self._claim)

    @returnsDeferred
    async def probe(self) -> None:
        await self._writer.submit(Tables.probe, isChange=False)
        await self.secret()
        if self._writer.refusesChanges:
            raise StoreUnavailable("the store accepts a probe, but refused all recent changes")

    def _read(self, operation: Callable[[Tables], _T]) -> Deferred[_T]:
        return self._reader.submit(operation)

    def _write(self, operation: Callable[[Tables], _T]) -> Deferred[_T]:
        return self._writer.submit(operation)

    def _writeAmong(self, together: Together[_C, _T], change: _C) -> Deferred[_T]:
        return self._writer.submitOneOfMany(together, change)

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        self._lastSeen[tenant, id, incarnation] = lastSeen

    @returnsDeferred
    async def _writeLastSeen(self) -> None:
        seen, self._lastSeen = self._lastSeen, {}
        for part in chunks(list(seen.items()), _LAST_SEENS_PER_CHUNK):
            try:
                await self._writer.submit(partial(Tables.recordLastSeen, seen=part), isChange=False)
            except StoreUnavailable:  # which the writer has logged
                self._lastSeen = seen | self._lastSeen  # which may have later ones
                return
            except Exception:
                self._log.failure("Cannot write the times of heartbeats")
