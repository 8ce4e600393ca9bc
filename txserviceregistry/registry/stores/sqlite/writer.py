"""
The thread that writes to a SQLite file. It makes one transaction of all the operations that wait, so that one sync of
the disk serves them all; an operation's Deferred fires after the commit.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from ...statistics import StoreStatistics
from ..interfaces import StoreUnavailable
from .claim import OpenFiles
from .file import BUSY_SECONDS, LOG_BYTES
from .tables import Tables, Together, alone
from .threads import Job, Reader, ThreadedReactor, Worker

_T = TypeVar("_T")
_C = TypeVar("_C")

#: How long the first operation of a group waits at most while each turn of the reactor brings more of them.
_GATHERING_SECONDS = 0.01
#: How old the last check of the files may be when something is written to them: a check costs some microseconds.
_CHECK_SECONDS = 0.2
#: How many groups of changes are refused in succession before it is more than an odd one that has no room, and how long
#: that counts when no more changes come.
_REFUSALS = 2
_REFUSAL_SECONDS = 5.0
#: How long writes wait for readers when the log is to be cut.
_CUT_SECONDS = 0.1


class _Lost(Exception):
    """A write would be lost; the text says why."""


class Writer(Worker):
    """
    The thread that writes: the only one in this process.

    :param reader: the thread that reads the same file.
    :param files: the files that *connect* opens; used in the thread.
    :ivar logSeen: is called with the bytes of the write-ahead log, several times a second while there are writes.
    """

    _verb = "write"
    # In one transaction: about 50 ms of work.
    _jobsPerGroup = 1000

    def __init__(
        self,
        reactor: ThreadedReactor,
        connect: Callable[[], Tables],
        statistics: StoreStatistics,
        reader: Reader,
        files: OpenFiles,
    ) -> None:
        super().__init__(reactor, connect, statistics, statistics.writes)
        self._reader = reader
        self._files = files
        self._checked = -math.inf
        self._isLost = False
        self._logBytes = 0
        # How many groups were refused since the last one that was committed, and when the last one was.
        self._refusals = 0
        self._refused = -math.inf
        self._hasProbeFailed = False
        self._isToCut = False
        self.logSeen: Callable[[int], None] = lambda size: None
        self._gathered = 0

    # -- in the reactor's thread

    def _endTurn(self) -> None:
        # Python threads that both have something to do hinder each other more than they help. So the thread begins when
        # the reactor has read all input, and for once has nothing to do.
        come = len(self._come)
        if come > self._gathered and self._reactor.seconds() - self._come[0].submitted < _GATHERING_SECONDS:
            self._gathered = come
            self._reactor.callFromThread(self._endTurn)
        else:
            self._gathered = 0
            super()._endTurn()

    def submitOneOfMany(self, together: Together[_C, _T], change: _C) -> Deferred[_T]:
        """As :meth:`submit`: make a change, together with others of its kind that wait next to it, if that succeeds."""
        return self._take(Job(alone(together, change), self._reactor.seconds(), together=together, change=change))

    @property
    def refusesChanges(self) -> bool:
        """Whether all recent changes were refused, whatever becomes of a probe."""
        return self._refusals >= _REFUSALS and self._reactor.seconds() - self._refused < _REFUSAL_SECONDS

    def cutLog(self) -> Deferred[None]:
        """Truncate the write-ahead log, unless a reader needs it. Fires when :attr:`logSeen` has been called."""
        self._isToCut = True
        return self.submit(lambda tables: None, background=True)

    def _settle(self, jobs: Sequence[Job], cause: Exception | None) -> None:
        self._statistics.walBytes = self._logBytes
        self.logSeen(self._logBytes)
        # A file that is lost can't be opened again; the connections that are open have all that was written.
        self._reader.keepConnection(cause is None or isinstance(cause, _Lost))
        self._statistics.isWritable = cause is None
        if cause is None:
            self._statistics.commits.add(len(jobs))
        super()._settle(jobs, cause)

    # -- in the thread

    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        hasChanged = False
        try:
            tables = self._connected()
            tables.begin()
            changes = tables.changes
            cause = self._runAll(tables, jobs)
            changed = tables.changes > changes
            self._checkFiles()
            # A large log is copied elsewhere: here it would make this group wait.
            tables.checkpointByItself(self._logBytes <= LOG_BYTES)
            tables.commit()
            hasChanged = changed
            self._cutLog(tables)
        except Exception as error:
            cause = self._explained(error)
            for job in jobs:
                job.result = StoreUnavailable(f"the store can't be written: {cause}")
        if self._isLost:
            self._undo()
        elif cause is not None:
            self._disconnect()
        self._count(jobs, hasChanged)
        return cause

    def _checkFiles(self) -> None:
        """Check that a commit would not be lost, unless that was checked a moment ago."""
        now = self._reactor.seconds()
        if not self._isLost and 0 <= now - self._checked < _CHECK_SECONDS:
            return
        try:
            self._logBytes = self._files.check(isToWrite=True)
        except Exception as error:
            self._isLost = True
            raise _Lost(str(error)) from None
        self._isLost = False
        self._checked = now

    def _count(self, jobs: Sequence[Job], hasChanged: bool) -> None:
        """Note what became of changes. The times of heartbeats are too small to show anything."""
        if self._isLost:
            return  # a probe is refused as well, and as long
        for job in jobs:
            if job.isProbe:
                hasFailed, self._hasProbeFailed = self._hasProbeFailed, isinstance(job.result, Exception)
                if hasFailed and not self._hasProbeFailed:
                    self._refusals = 0  # it has met what the changes met, and that is over
        results = [job.result for job in jobs if not job.isBackground and not job.isProbe]
        if hasChanged and not all(isinstance(result, Exception) for result in results):
            self._refusals = 0
        elif any(isinstance(result, StoreUnavailable) for result in results):
            self._refusals += 1
            self._refused = self._reactor.seconds()

    def _cutLog(self, tables: Tables) -> None:
        isToCut, self._isToCut = self._isToCut, False
        if not isToCut:
            return
        try:
            tables.cutLog(_CUT_SECONDS)
            self._logBytes = self._files.check(isToWrite=True)
        except Exception as error:
            # The written changes are kept.
            self._log.warn("Cannot truncate the write-ahead log: {error}", error=str(error))

    def _explained(self, error: Exception) -> Exception:
        """The error itself, or that the file is lost, if it is."""
        if isinstance(error, _Lost):
            return error
        self._checked = -math.inf
        try:
            self._checkFiles()
        except _Lost as loss:
            return loss
        return error

    def _undo(self) -> None:
        """Undo the transaction that is under way, if there is one, and keep the connection: it may be the last one."""
        if self._tables is not None and self._tables.inTransaction:
            try:
                self._tables.undo()
            except sqlite3.Error:
                self._disconnect()

    def _runAll(self, tables: Tables, jobs: Sequence[Job]) -> Exception | None:
        """Do the jobs of a group, each of them or nothing of it; those together that are of one kind and neighbours."""
        cause: Exception | None = None
        for together, neighbours in groupby(jobs, attrgetter("together")):
            some = list(neighbours)
            if together is None or not self._runTogether(tables, together, some):
                for job in some:
                    cause = self._runOne(tables, job) or cause
        return cause

    def _runTogether(self, tables: Tables, together: Together[Any, Any], jobs: Sequence[Job]) -> bool:
        try:
            with tables.operation():
                results = together(tables, [job.change for job in jobs])
        except Exception:
            if not tables.inTransaction:
                raise  # SQLite has undone the whole group
            return False  # which one is at fault shows when each is done by itself
        for job, result in zip(jobs, results, strict=True):
            job.result = result
        return True

    def _runOne(self, tables: Tables, job: Job) -> Exception | None:
        try:
            with tables.operation():
                job.result = job.function(tables)
        except Exception as error:
            if not tables.inTransaction:
                raise
            return job.failed(error, "written")
        return None

    def _disconnect(self) -> None:
        self._files.closing()
        super()._disconnect()

    def _finish(self) -> None:
        if self._tables is not None:
            self._checked = -math.inf
            try:
                # The log of a file that was taken away stays as it is: it is needed when the file is put back.
                self._checkFiles()
                self._tables.cutLog(BUSY_SECONDS)
            except (sqlite3.Error, _Lost):
                pass  # another process uses the file, or it has errors: the log is read at the next start
        super()._finish()
