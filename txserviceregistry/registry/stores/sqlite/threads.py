"""
The threads that work on a SQLite file: their common part, and the threads that read. The one that writes is in
:mod:`~txserviceregistry.registry.stores.sqlite.writer`.

Operations of the reactor's thread run in the order in which they came. The operations of one turn of the reactor are
handed over together at its end, and their results go back to the reactor's thread, many of them in one call.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.logger import LogLevel

from ....util.deferred import Waiters
from ....util.logs import Logger, Outage
from ...statistics import Histogram, StoreStatistics
from ..interfaces import StoreUnavailable
from .tables import Tables, Together

_T = TypeVar("_T")


class ThreadedReactor(IReactorTime, IReactorFromThreads):
    """The part of a reactor that the store uses."""


@attrs.define(eq=False)
class Job:
    """
    Something to do in the thread.

    :ivar isBackground: whether it may wait for others: only one of such jobs goes into a group.
    :ivar isProbe: whether it only finds out how the store is.
    :ivar together: does the same for many at once, each described by its *change*; ``None`` if nothing does.
    :ivar result: its result: an exception if it failed.
    """

    function: Callable[[Tables], Any]
    submitted: float
    isBackground: bool = False
    isProbe: bool = False
    together: Together[Any, Any] | None = None
    change: Any = None
    deferred: Deferred[Any] = attrs.Factory(Deferred)
    result: Any = None

    def failed(self, error: Exception, what: str) -> Exception | None:
        """Note that it has failed; returns the error if it says something about the file, which can't be *what*."""
        isOfFile = isinstance(error, (sqlite3.Error, OSError))
        self.result = StoreUnavailable(f"the store can't be {what}: {error}") if isOfFile else error
        return error if isOfFile else None


class Worker(ABC):
    """
    A thread with a connection of its own, and a queue of jobs for it.

    After an error of the file the connection is closed, and the next group of jobs tries with a new one: nothing is
    left behind of a full disk, or a file system that was read-only for a while.

    :param connect: opens the file; called in the thread, at the start and after errors.
    :param statistics: counts the work.
    :param waits: the part of them for how long jobs take.
    """

    _log = Logger()
    #: The work of the thread, for the log.
    _verb: str
    #: How many jobs are done together at the most.
    _jobsPerGroup: int

    def __init__(
        self, reactor: ThreadedReactor, connect: Callable[[], Tables], statistics: StoreStatistics, waits: Histogram
    ) -> None:
        self._reactor = reactor
        self._connect = connect
        self._statistics = statistics
        self._waits = waits
        # The jobs of this turn of the reactor, and those that the thread has been given.
        self._come: list[Job] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._isStopped = False
        self._ending: Waiters[None] = Waiters()
        texts = "Cannot {verb} the store: {cause}", "Can {verb} the store again"
        self._outage = Outage(self._log, reactor, *texts, level=LogLevel.error, verb=self._verb)
        # Used in the thread only.
        self._tables: Tables | None = None
        self._background: deque[Job] = deque()
        self._isEnding = False

    # -- in the reactor's thread

    @property
    def isRunning(self) -> bool:
        """Whether jobs are taken."""
        return self._thread is not None and not self._isStopped

    def start(self) -> Deferred[None]:
        """Start the thread. Fires when it has opened the file; if it can't, fails, and the thread has ended."""
        if self._isStopped:
            return fail(StoreUnavailable("the store is closed"))
        opened: Deferred[None] = Deferred()
        name = f"txserviceregistry store: {self._verb}"
        self._thread = threading.Thread(target=self._run, args=(opened,), name=name, daemon=True)
        self._thread.start()
        return opened

    def submit(
        self, function: Callable[[Tables], _T], *, background: bool = False, probe: bool = False
    ) -> Deferred[_T]:
        """Call *function* in the thread. Fires with what it returned, after the commit where there is one."""
        return self._take(Job(function, self._reactor.seconds(), background, probe))

    def _take(self, job: Job) -> Deferred[Any]:
        if not self.isRunning:
            return fail(StoreUnavailable("the store is not open"))
        if not self._come:
            self._reactor.callFromThread(self._endTurn)
        self._come.append(job)
        return job.deferred

    def _endTurn(self) -> None:
        # One by one, the thread would begin a group with the first, and make the others wait for a commit of its own.
        come, self._come = self._come, []
        for job in come:
            self._jobs.put(job)

    def stop(self) -> Deferred[None]:
        """Let the thread finish what it has been given, close the file, and end. Fires when it has."""
        if not self._isStopped:
            self._isStopped = True
            Worker._endTurn(self)
            self._jobs.put(None)
        return succeed(None) if self._thread is None else self._ending.wait()

    def _ended(self) -> None:
        assert self._thread is not None
        self._thread.join()  # it has nothing left to do
        self._thread = None
        self._ending.fire(None)

    def _settle(self, jobs: Sequence[Job], cause: Exception | None) -> None:
        now = self._reactor.seconds()
        if cause is None:
            self._outage.succeeded()
        else:
            self._outage.failed(cause=str(cause))
        for job in jobs:
            if not job.isBackground:
                # Background jobs are made to wait, which says nothing about the speed of the store.
                self._waits.add(max(0.0, now - job.submitted))
            if isinstance(job.result, Exception):
                job.deferred.errback(job.result)
            else:
                job.deferred.callback(job.result)

    # -- in the thread

    def _run(self, opened: Deferred[None]) -> None:
        try:
            self._connected()
        except Exception as error:
            self._reactor.callFromThread(self._ended)
            self._reactor.callFromThread(opened.errback, error)
            return
        self._reactor.callFromThread(opened.callback, None)
        while jobs := self._nextGroup():
            self._reactor.callFromThread(self._settle, jobs, self._runGroup(jobs))
        self._finish()
        self._reactor.callFromThread(self._ended)

    def _connected(self) -> Tables:
        if self._tables is None:
            self._tables = self._connect()
        return self._tables

    def _disconnect(self) -> None:
        tables, self._tables = self._tables, None
        if tables is not None:
            try:
                tables.close()
            except sqlite3.Error:
                pass  # what was acknowledged is in the file

    def _finish(self) -> None:
        """Leave the file when there is no more work."""
        self._disconnect()

    def _nextGroup(self) -> Sequence[Job]:
        """Wait for work; there is none when there will be no more."""
        jobs: list[Job] = []
        while len(jobs) < self._jobsPerGroup and not self._isEnding:
            try:
                job = self._jobs.get(block=not jobs and not self._background)
            except queue.Empty:
                break
            if job is None:
                self._isEnding = True
            elif job.isBackground:
                self._background.append(job)
            else:
                jobs.append(job)
        if self._background:
            jobs.insert(0, self._background.popleft())
        return jobs

    @abstractmethod
    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        """Do the jobs; returns the error of the file, if there was one."""


class Reader(Worker):
    """The thread that reads. It sees what any process has committed."""

    _verb = "read"
    # Reads that wait for each other before they are answered: few, because a page takes a millisecond.
    _jobsPerGroup = 16
    _isKeeping = True
    # How many jobs are under way.
    _unsettled = 0

    def __init__(self, reactor: ThreadedReactor, connect: Callable[[], Tables], statistics: StoreStatistics) -> None:
        super().__init__(reactor, connect, statistics, statistics.reads)

    def _take(self, job: Job) -> Deferred[Any]:
        if not self.isRunning or self._unsettled:
            self._unsettled += self.isRunning
            return super()._take(job)
        # A thread without work need not wait for the end of the turn.
        self._unsettled = 1
        self._jobs.put(job)
        return job.deferred

    def _settle(self, jobs: Sequence[Job], cause: Exception | None) -> None:
        self._unsettled -= len(jobs)
        self._statistics.isReadable = cause is None
        super()._settle(jobs, cause)

    def keepConnection(self, isKeeping: bool) -> None:
        """
        Set whether the connection is kept from one group of jobs to the next.

        While the writer has errors it is not kept: connections of one process share SQLite's view of the files, and
        one that was opened while they were read-only would keep the writer from ever writing again.
        """
        wasKeeping, self._isKeeping = self._isKeeping, isKeeping
        if not isKeeping and wasKeeping and self.isRunning:
            # An error is logged all the same, and reported to later reads.
            self.submit(lambda tables: None).addErrback(lambda _: None)

    def _runGroup(self, jobs: Sequence[Job]) -> Exception | None:
        cause: Exception | None = None
        for job in jobs:
            try:
                job.result = job.function(self._connected())
            except Exception as error:
                if job.failed(error, "read"):
                    cause = error
                    self._disconnect()
        if not self._isKeeping:
            self._disconnect()
        return cause


class Checkpointer(Reader):
    """A thread that copies the write-ahead log into the file, and has a connection only while it does."""

    _verb = "checkpoint"
    _isKeeping = False

    def __init__(self, reactor: ThreadedReactor, connect: Callable[[], Tables]) -> None:
        super().__init__(reactor, connect, StoreStatistics())  # which nothing reads
