"""
The threads that work on a SQLite file: one reads, the other writes.

Jobs wait in the reactor's thread until the thread has done the ones before, and go there in groups. A group of writes
is one transaction, so that one sync of the disk serves them all; their Deferreds fire after the commit.
"""

from __future__ import annotations

import math
import sqlite3
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogLevel

from ....util.deferred import DaemonThreadPool, Waiters, cancel, returnsDeferred
from ....util.logs import Logger, Outage
from ...statistics import Histogram, StoreStatistics
from ..interfaces import StoreUnavailable
from .file import LOG_BYTES, FileLost, OpenFiles
from .tables import Tables, Together

_T = TypeVar("_T")
_C = TypeVar("_C")

#: How long nothing may have failed before the log has the end of an outage that came back within that time. Outages
#: follow each other on a disk that has room for small changes only, and with a file that is damaged in part.
_CALM_SECONDS = 60.0
#: How long the first job of a group of writes waits at most while each turn of the reactor brings more of them.
_GATHERING_SECONDS = 0.01
#: How old the last check of the files may be when something is written to them: a check costs some microseconds.
_CHECK_SECONDS = 0.2
#: How long it counts that a change was refused when no more changes come.
_REFUSAL_SECONDS = 5.0
#: Seconds after which a file that gives no result counts as one that can't be read or written: a disk may hang.
_SILENCE, _LAST_CHANCE = 10.0, 1.0
#: Seconds from one attempt to truncate a large write-ahead log to the next.
_CUT_INTERVAL = 5.0


class ThreadedReactor(IReactorTime, IReactorFromThreads):
    """The part of a reactor that the store uses."""


@attrs.define(eq=False, repr=False)
class Job:
    """Something to do in a thread: *together* does it for many at once, each described by its *change*."""

    together: Together[Any, Any]
    change: Any
    isChange: bool  # whether clients asked for it, so that its refusal says that changes have no room
    submitted: float
    deferred: Deferred[Any] = attrs.Factory(Deferred)
    result: Any = None  # an exception if it failed

    def failed(self, error: Exception, what: str) -> Exception | None:
        """Note that it has failed; returns the error if it says something about the file, which can't be *what*."""
        isOfFile = isinstance(error, (sqlite3.Error, OSError))
        self.result = StoreUnavailable(f"the store can't be {what}: {error}") if isOfFile else error
        return error if isOfFile else None


class Worker(ABC):
    """
    A thread with a connection of its own, which *connect* opens there, and the jobs that wait for it.

    After an error of the file the connection is closed, and the next group of jobs tries with a new one: nothing is
    left behind of a full disk, or a file system that was read-only for a while.
    """

    _log = Logger()
    #: The work of the thread, for the log, and the attribute of the statistics that says whether it succeeds.
    _verb: str
    _works: str
    #: How many jobs are done together at the most.
    _jobsPerGroup: int

    def __init__(
        self, reactor: ThreadedReactor, connect: Callable[[], Tables], statistics: StoreStatistics, waits: Histogram
    ) -> None:
        self._reactor, self._connect = reactor, connect
        self._statistics, self._waits = statistics, waits
        self._pool = DaemonThreadPool(0, 1, f"store: {self._verb}")
        self._jobs: deque[Job] = deque()
        self._isBusy = self._isClosed = False
        self._silence: IDelayedCall | None = None  # while the thread works
        self._idle: Waiters[None] = Waiters()
        texts = "Cannot {verb} the store: {reason}", "Can {verb} the store again"
        self._outage = Outage(self._log, reactor, *texts, level=LogLevel.error, calm=_CALM_SECONDS, verb=self._verb)
        # Used in the thread only.
        self._tables: Tables | None = None

    @returnsDeferred
    async def open(self) -> None:
        """Open the file in the thread."""
        if not self._isClosed:
            self._pool.start()
            await deferToThreadPool(self._reactor, self._pool, self._connected)
        if self._isClosed:
            raise StoreUnavailable("the store is closed")

    @returnsDeferred
    async def close(self) -> None:
        """Do the jobs that wait, close the file, and end the thread."""
        self._isClosed = True
        if self._isBusy:
            await self._idle.wait()
        if self._pool.started:
            await deferToThreadPool(self._reactor, self._pool, self._disconnect)
            self._pool.stop()

    def submit(self, together: Together[_C, _T], change: _C, *, isChange: bool = True) -> Deferred[_T]:
        """
        Do something in the thread, together with others of its kind that wait next to it. Fires with its result, after
        the commit where there is one.
        """
        if self._isClosed or not self._pool.started:
            return fail(StoreUnavailable("the store is not open"))
        job = Job(together, change, isChange, self._reactor.seconds())
        self._jobs.append(job)
        self._begin()
        return job.deferred

    def _begin(self) -> None:
        if self._jobs and not self._isBusy:
            self._isBusy = True
            self._work()

    def _work(self) -> None:
        jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._jobsPerGroup))]
        self._silence = self._reactor.callLater(_SILENCE - _LAST_CHANCE, self._isSilent)
        deferToThreadPool(self._reactor, self._pool, self._runGroup, jobs).addCallback(self._settle, jobs)

    def _isSilent(self) -> None:
        # If the whole process was stopped, the thread has had no time either.
        self._silence = self._reactor.callLater(_LAST_CHANCE, self._note, f"no result within {_SILENCE:g} s")

    def _note(self, cause: object) -> None:
        setattr(self._statistics, self._works, cause is None)
        if cause is None:
            self._outage.succeeded()
        else:
            self._outage.failed(reason=str(cause), cause=cause)

    def _settle(self, cause: Exception | None, jobs: Sequence[Job]) -> None:
        now = self._reactor.seconds()
        cancel(self._silence)
        self._note(cause)
        self._isBusy = False
        self._begin()
        for job in jobs:
            self._waits.add(max(0.0, now - job.submitted))
            (job.deferred.errback if isinstance(job.result, Exception) else job.deferred.callback)(job.result)
        if not self._isBusy:
            self._idle.fire(None)

    # -- in the thread

    @abstractmethod
    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        """Do the jobs; returns the error of the file, if there was one."""

    def _connected(self) -> Tables:
        if self._tables is None:
            self._tables = self._connect()
        return self._tables

    def _disconnect(self) -> None:
        tables, self._tables = self._tables, None
        if tables is not None:
            with suppress(sqlite3.Error):  # what was acknowledged is in the file
                tables.close()


class Reader(Worker):
    """The thread that reads. It sees what any process has committed."""

    _verb, _works = "read", "isReadable"
    # Reads that wait for each other before they are answered: few, because a page takes a millisecond.
    _jobsPerGroup = 16
    #: Whether the connection is kept from one group of jobs to the next. While the writer has errors it is not:
    #: connections of one process share SQLite's view of the files, and one that was opened while they were read-only
    #: would keep the writer from ever writing again.
    isKeeping = True

    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        cause: Exception | None = None
        for job in jobs:
            try:
                (job.result,) = job.together(self._connected(), [job.change])
            except Exception as error:
                if job.failed(error, "read"):
                    cause = error
                    self._disconnect()
        if not self.isKeeping:
            self._disconnect()
        return cause


class Writer(Worker):
    """The only thread of this process that writes; *connect* opens the *files*, which the *reader* reads."""

    _verb, _works = "write", "isWritable"
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
        # When the files were checked, the log was cut, and all changes of a group were refused.
        self._checked = self._cut = self._refused = -math.inf
        self._hasWritten = False
        self._logBytes = 0

    @property
    def refusesChanges(self) -> bool:
        """Whether the last changes were refused, whatever becomes of a probe."""
        return self._reactor.seconds() - self._refused < _REFUSAL_SECONDS

    def _work(self) -> None:
        self._reactor.callFromThread(self._gather, 0)

    def _gather(self, gathered: int) -> None:
        # Python threads that both have something to do hinder each other more than they help. So the thread begins when
        # the reactor has read all input, and for once has nothing to do.
        waiting = len(self._jobs)
        if waiting > gathered and self._reactor.seconds() - self._jobs[0].submitted < _GATHERING_SECONDS:
            self._reactor.callFromThread(self._gather, waiting)
        else:
            super()._work()

    def _settle(self, cause: Exception | None, jobs: Sequence[Job]) -> None:
        # A file that is lost can't be opened again; the connections that are open have all that was written.
        self._reader.isKeeping = cause is None or isinstance(cause, FileLost)
        self._statistics.walBytes = self._logBytes
        if cause is None:
            self._statistics.commits.add(len(jobs))
        super()._settle(cause, jobs)

    # -- in the thread

    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        self._hasWritten = False
        cause = self._commit(jobs)
        now = self._reactor.seconds()
        if not isinstance(cause, FileLost):
            results = [job.result for job in jobs if job.isChange]
            if self._hasWritten and not all(isinstance(result, Exception) for result in results):
                self._refused = -math.inf
            elif any(isinstance(result, StoreUnavailable) for result in results):
                self._refused = now
        # Another program's reads made the log large, and may still need it.
        if cause is None and self._logBytes > LOG_BYTES and now - self._cut >= _CUT_INTERVAL:
            self._cut = now
            with suppress(sqlite3.Error):  # which writes meet as well
                self._connected().cutLog()
        return cause

    def _commit(self, jobs: Sequence[Job]) -> Exception | None:
        """Make one transaction of the jobs, or, if one of them fails, of each."""
        isAnyOfThem = False
        try:
            tables = self._connected()
            with tables.transaction():
                before, isAnyOfThem = tables.changes, len(jobs) > 1
                # Neighbours of one kind together.
                for together, some in groupby(jobs, attrgetter("together")):
                    neighbours = list(some)
                    results = together(tables, [job.change for job in neighbours])
                    for job, result in zip(neighbours, results, strict=True):
                        job.result = result
                isAnyOfThem = False
                # If nothing was to be written, a full disk has room for it.
                self._hasWritten = self._hasWritten or tables.changes > before
                self._checkFiles()
        except Exception as error:
            if isAnyOfThem:
                return next(filter(None, [self._commit([job]) for job in jobs]), None)
            if not isinstance(error, FileLost):
                try:
                    self._checkFiles(mostSeconds=0)
                except FileLost as loss:
                    error = loss
            (cause, *_) = [job.failed(error, "written") for job in jobs]
            # The connection to a file that is lost is kept: it may be the last one.
            if cause is not None and not isinstance(cause, FileLost):
                self._disconnect()
            return cause
        return None

    def _disconnect(self) -> None:
        self._files.closing()
        super()._disconnect()

    def _checkFiles(self, mostSeconds: float = _CHECK_SECONDS) -> None:
        """Check that a commit would not be lost, unless that was checked less than so many seconds ago."""
        now = self._reactor.seconds()
        if not 0 <= now - self._checked < mostSeconds:
            self._checked = -math.inf
            self._logBytes = self._files.check()
            self._checked = now
