"""
The size of the write-ahead log of a SQLite file.

SQLite copies the log into the file, and begins it again, only while no program has an older transaction open. A program
that keeps one open, a backup for example, makes the log grow. Afterwards the log keeps its size, and the next commit
takes long because it copies all of it. So a log that has grown is copied in a thread of its own, and then truncated.
"""

from __future__ import annotations

import sqlite3

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ....util.logs import Logger, Outage
from ..interfaces import StoreUnavailable
from .file import LOG_BYTES
from .threads import Checkpointer, ThreadedReactor
from .writer import Writer

#: Seconds until the next attempt to truncate a log that a reader still needs.
RETRY_SECONDS = 5.0
#: A log of this size is worth a warning.
WARNING_BYTES = 4 * LOG_BYTES


class LogSize:
    """Keeps the log of the file *path* small."""

    _log = Logger()

    def __init__(self, path: str, reactor: ThreadedReactor, writer: Writer, checkpointer: Checkpointer) -> None:
        self._reactor = reactor
        self._writer = writer
        self._checkpointer = checkpointer
        self._size = 0
        self._isCutting = False
        self._next: IDelayedCall | None = None
        self._growth = Outage(
            self._log,
            reactor,
            "Write-ahead log {path}-wal has grown to {size} MB, and will grow until another program ends the "
            "transaction in which it reads the store",
            "Write-ahead log {path}-wal is small again",
            path=path,
        )

    def seen(self, size: int) -> None:
        """Note that the log has *size* bytes, and cut it if that is too much."""
        self._size = size
        if size <= LOG_BYTES:
            self.stop()
            self._growth.succeeded()
        elif not self._isCutting and self._next is None:
            self._cut()
        if size > WARNING_BYTES:
            self._growth.failed(size=round(size / 1e6))

    def stop(self) -> None:
        """Cancel the next attempt."""
        call, self._next = self._next, None
        if call is not None:
            call.cancel()

    def _cut(self) -> None:
        self._next = None
        self._isCutting = True
        Deferred.fromCoroutine(self._copyAndCut()).addBoth(self._ended)

    async def _copyAndCut(self) -> None:
        # Most of the log is copied while the writer goes on, which copies the little that is written meanwhile.
        if not self._checkpointer.isRunning:
            await self._checkpointer.start()
        await self._checkpointer.submit(lambda tables: tables.checkpoint())
        await self._writer.cutLog()

    def _ended(self, outcome: object) -> None:
        self._isCutting = False
        if self._size > LOG_BYTES and self._writer.isRunning:
            self._next = self._reactor.callLater(RETRY_SECONDS, self._cut)
        if isinstance(outcome, Failure) and not outcome.check(StoreUnavailable, sqlite3.Error, OSError):
            # Errors of the file are logged by the writer, which meets them too.
            self._log.failure("Cannot truncate the write-ahead log", outcome)
