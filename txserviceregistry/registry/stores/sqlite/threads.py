"""
The two threads that work on a SQLite file: one that writes, in groups, and one that reads.

Operations come from the reactor's thread and are run in the order in which they came. Those of one turn of the reactor
are handed over together at its end, and what they bring goes back to the reactor's thread, many of them in one call.
The writer makes one transaction of all the operations that wait, so that one sync of the disk serves them all; an
operation's Deferred fires after the commit. It is given them when a turn of the reactor brings no more.
"""

from __future__ import annotations

import math
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol, TypeAlias, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from ....util.logs import Logger
from ...statistics import Histogram, StoreStatistics
from ..interfaces import StoreError, StoreUnavailable
from .file import BUSY_SECONDS, LOG_BYTES, OpenFiles
from .tables import Tables

_T = TypeVar("_T")
_C = TypeVar("_C")

_TROUBLE = (sqlite3.Error, OSError)

_WRITES_PER_GROUP = 1000
"""Operations in one transaction at most: about 50 ms of work."""

_GATHERING_SECONDS = 0.01
"""How long the first operation of a group waits at most while each turn of the reactor brings more of them."""

_CHECK_SECONDS = 0.2
"""How old the last look at the files may be when something is written to them: a look costs some microseconds."""

_CALM_SECONDS = 60.0
"""How long nothing may have failed before the log tells that trouble is over which came back within that time."""

_REFUSALS = 2
"""How many groups of changes are refused one after the other before it is more than an odd one that has no room."""

_REFUSAL_SECONDS = 5.0
"""How long that counts when no more changes come."""

_CUT_SECONDS = 0.1
"""How long writes wait for those who read when the log is to be cut."""

_READS_PER_GROUP = 16
"""Reads that wait for each other at most before they are answered: few, because a page takes a millisecond."""


class ThreadedReactor(Protocol):
    """What the store needs of a reactor."""

    def seconds(self) -> float:
        """See :class:`twisted.internet.interfaces.IReactorTime`."""

    def callFromThread(self, callable: Callable[..., Any], *args: Any) -> None:
        """See :class:`twisted.internet.interfaces.IReactorFromThreads`."""

    def callLater(self, delay: float, callable: Callable[..., Any], *args: Any) -> IDelayedCall:
        """See :class:`twisted.internet.interfaces.IReactorTime`."""


_Together: TypeAlias = Callable[[Tables, Sequence[_C]], Sequence[_T | StoreError]]


@attrs.define(eq=False)
class _Job:
    """
    Something to do in the thread.

    :ivar isProbe: whether it only finds out how the store is.
    :ivar together: does the same for many at once, each described by its *change*; ``None`` if nothing does.
    """

    function: Callable[[Tables], Any]
    submitted: float
    isBackground: bool = False
    isProbe: bool = False
    together: _Together[Any, Any] | None = None
    change: Any = None
    deferred: Deferred[Any] = attrs.Factory(Deferred)


@attrs.frozen
class _Outcome:
    """What became of a job: *result* is an exception if it failed."""

    job: _Job
    result: Any


class _Trouble:
    """
    Whether an outage is on, for the log: outages that follow each other closely are logged once.

    They do so on a disk that has room for small changes only, and with a file that is damaged in part.
    """

    def __init__(self) -> None:
        self._isThere = False
        self._last = -math.inf
        self._ended = -math.inf
        self._calm = 0.0

    def begins(self, now: float) -> bool:
        """An operation failed; returns whether to log that."""
        self._last = now
        if self._isThere:
            return False
        self._isThere = True
        self._calm = _CALM_SECONDS if now - self._ended < _CALM_SECONDS else 0.0
        return True

    def ends(self, now: float) -> bool:
        """An operation succeeded; returns whether to log the end of the outage."""
        if not self._isThere or now - self._last < self._calm:
            return False
        self._isThere = False
        self._ended = now
        return True


class _Lost(Exception):
    """A write would be lost; the text says why."""


class _Worker(ABC):
    """
    A thread with a connection of its own, and a queue of jobs for it.

    A connection that gave trouble is thrown away, and the next group of jobs tries with a new one: whatever the
    trouble was (a full disk, a file system that was read-only for a while), nothing of it stays behind.
    """

    _log = Logger()
    _doing: str

    def __init__(
        self, reactor: ThreadedReactor, connect: Callable[[], Tables], statistics: StoreStatistics, waits: Histogram
    ) -> None:
        """
        :param connect: opens the file; called in the thread, at the start and after trouble.
        :param statistics: where the work is counted.
        :param waits: the part of them for how long jobs take.
        """
        self._reactor = reactor
        self._connect = connect
        self._statistics = statistics
        self._waits = waits
        # What has come in this turn of the reactor, and what the thread has been given.
        self._come: list[_Job] = []
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._isStopped = False
        self._ending: list[Deferred[None]] = []
        self._trouble = _Trouble()
        self._tables: Tables | None = None

    # -- in the reactor's thread

    @property
    def isRunning(self) -> bool:
        """Whether jobs are taken."""
        return self._thread is not None and not self._isStopped

    def start(self) -> Deferred[None]:
        """
        Start the thread.

        :return: fires when it has opened the file; fails with what kept it from that, and then the thread has ended.
        """
        if self._isStopped:
            return fail(StoreUnavailable("the store is closed"))
        opened: Deferred[None] = Deferred()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name=f"txserviceregistry store: {self._doing}", daemon=True
        )
        self._thread.start()
        return opened

    def submit(
        self, function: Callable[[Tables], _T], *, background: bool = False, probe: bool = False
    ) -> Deferred[_T]:
        """
        Have *function* called in the thread.

        :param background: whether it may wait for others: of such jobs only one goes into a group.
        :param probe: whether it only finds out how the store is.
        :return: fires with what it returned, after the commit where there is one.
        """
        return self._take(_Job(function, self._reactor.seconds(), background, probe))

    def _take(self, job: _Job) -> Deferred[Any]:
        if not self.isRunning:
            return fail(StoreUnavailable("the store is not open"))
        if not self._come:
            self._reactor.callFromThread(self._turnEnds)
        self._come.append(job)
        return job.deferred

    def _turnEnds(self) -> None:
        self._handOver()

    def _handOver(self) -> None:
        # One by one, the thread would begin a group with the first, and make the others wait for a commit of its own.
        come, self._come = self._come, []
        for job in come:
            self._jobs.put(job)

    def stop(self) -> Deferred[None]:
        """
        Let the thread finish what it has been given, close the file, and end.

        :return: fires when it has.
        """
        if not self._isStopped:
            self._isStopped = True
            self._handOver()
            self._jobs.put(None)
        if self._thread is None:
            return succeed(None)
        ended: Deferred[None] = Deferred()
        self._ending.append(ended)
        return ended

    def _ended(self) -> None:
        assert self._thread is not None
        self._thread.join()  # it has nothing left to do
        self._thread = None
        waiting, self._ending = self._ending, []
        for ended in waiting:
            ended.callback(None)

    def _notOpened(self, opened: Deferred[None], error: Exception) -> None:
        self._ended()
        opened.errback(error)

    def _settle(self, outcomes: Sequence[_Outcome], cause: Exception | None) -> None:
        now = self._reactor.seconds()
        if cause is not None and self._trouble.begins(now):
            self._log.error("The store can't be {doing}: {cause}", doing=self._doing, cause=str(cause))
        elif cause is None and self._trouble.ends(now):
            self._log.info("The store can be {doing} again", doing=self._doing)
        for outcome in outcomes:
            job = outcome.job
            if not job.isBackground:
                # What may wait is made to wait, which says nothing of how fast the store is.
                self._waits.add(max(0.0, now - job.submitted))
            if isinstance(outcome.result, Exception):
                job.deferred.errback(outcome.result)
            else:
                job.deferred.callback(outcome.result)

    # -- in the thread

    def _run(self, opened: Deferred[None]) -> None:
        try:
            self._tables = self._connect()
        except Exception as error:
            self._reactor.callFromThread(self._notOpened, opened, error)
            return
        self._reactor.callFromThread(opened.callback, None)
        while (jobs := self._nextGroup()) is not None:
            outcomes, cause = self._runGroup(jobs)
            self._reactor.callFromThread(self._settle, outcomes, cause)
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
                pass  # nothing hangs on it: what was acknowledged is in the file

    def _finish(self) -> None:
        """Leave the file when there is no more work."""
        self._disconnect()

    @abstractmethod
    def _nextGroup(self) -> Sequence[_Job] | None:
        """Wait for work; ``None`` when there will be no more."""

    @abstractmethod
    def _runGroup(self, jobs: Sequence[_Job]) -> tuple[list[_Outcome], Exception | None]:
        """Do the jobs; the second part is the trouble that there was with the file, if there was any."""


class Reader(_Worker):
    """The thread that reads. It sees what has been committed, by whomever."""

    _doing = "read"
    _isEnding = False
    _isKeeping = True

    def __init__(self, reactor: ThreadedReactor, connect: Callable[[], Tables], statistics: StoreStatistics) -> None:
        super().__init__(reactor, connect, statistics, statistics.reads)

    def _settle(self, outcomes: Sequence[_Outcome], cause: Exception | None) -> None:
        self._statistics.isReadable = cause is None
        super()._settle(outcomes, cause)

    def keepConnection(self, isKeeping: bool) -> None:
        """
        Keep the connection from one group of jobs to the next, or don't.

        While the writer is in trouble it is not kept: connections of one process share SQLite's view of the files, and
        one that was opened while they were read-only would keep the writer from ever writing again.
        """
        wasKeeping, self._isKeeping = self._isKeeping, isKeeping
        if not isKeeping and wasKeeping and self.isRunning:
            nudge = self.submit(lambda tables: None)
            nudge.addErrback(lambda _: None)  # trouble with reading is logged, and told to those who read

    def _nextGroup(self) -> Sequence[_Job] | None:
        jobs: list[_Job] = []
        while len(jobs) < _READS_PER_GROUP and not self._isEnding:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                self._isEnding = True
            else:
                jobs.append(job)
        return jobs or None

    def _runGroup(self, jobs: Sequence[_Job]) -> tuple[list[_Outcome], Exception | None]:
        cause: Exception | None = None
        outcomes = []
        for job in jobs:
            result: Any
            try:
                result = job.function(self._connected())
            except _TROUBLE as error:
                cause = error
                result = StoreUnavailable(f"the store can't be read: {error}")
                self._disconnect()
            except Exception as error:
                result = error
            outcomes.append(_Outcome(job, result))
        if not self._isKeeping:
            self._disconnect()
        return outcomes, cause


class Checkpointer(Reader):
    """A thread that copies the write-ahead log into the file, and has a connection only while it does."""

    _doing = "checkpointed"
    _isKeeping = False

    def __init__(self, reactor: ThreadedReactor, connect: Callable[[], Tables]) -> None:
        super().__init__(reactor, connect, StoreStatistics())  # which nobody asks for


class Writer(_Worker):
    """
    The thread that writes: the only one in this process.

    :ivar logSeen: is called with the bytes of the write-ahead log, several times a second while there are writes.
    """

    _doing = "written"
    _isEnding = False

    def __init__(
        self,
        reactor: ThreadedReactor,
        connect: Callable[[], Tables],
        statistics: StoreStatistics,
        reader: Reader,
        files: OpenFiles,
    ) -> None:
        """
        :param reader: the thread that reads the same file.
        :param files: what *connect* opens; used in the thread.
        """
        super().__init__(reactor, connect, statistics, statistics.writes)
        self._reader = reader
        self._files = files
        self._checked = -math.inf
        self._isLost = False
        self._logBytes = 0
        # How many groups were refused since the last one that was kept, and when the last one was.
        self._refusals = 0
        self._refused = -math.inf
        self._hasProbeFailed = False
        self._isToCut = False
        self.logSeen: Callable[[int], None] = lambda size: None
        self._background: deque[_Job] = deque()
        self._gathered = 0

    def _turnEnds(self) -> None:
        # Python threads that both have something to do hinder each other more than they help. So the thread begins when
        # the reactor has read all that is there to be read, and for once has nothing to do.
        come = len(self._come)
        if come > self._gathered and self._reactor.seconds() - self._come[0].submitted < _GATHERING_SECONDS:
            self._gathered = come
            self._reactor.callFromThread(self._turnEnds)
        else:
            self._gathered = 0
            self._handOver()

    def submitOneOfMany(self, together: _Together[_C, _T], change: _C) -> Deferred[_T]:
        """
        Have a change made, together with others of its kind that wait next to it.

        :param together: is called in the thread with such changes in their order; gives what became of each, and
            fails if that can't be said of each: then they are made one by one.
        :return: as :meth:`submit`.
        """

        def alone(tables: Tables) -> _T:
            (outcome,) = together(tables, [change])
            if isinstance(outcome, StoreError):
                raise outcome
            return outcome

        return self._take(_Job(alone, self._reactor.seconds(), together=together, change=change))

    @property
    def refusesChanges(self) -> bool:
        """Whether changes that were asked for lately were all refused, whatever becomes of a probe."""
        return self._refusals >= _REFUSALS and self._reactor.seconds() - self._refused < _REFUSAL_SECONDS

    def cutLog(self) -> Deferred[None]:
        """
        Truncate the write-ahead log, unless a reader needs it.

        :return: fires after the try, when :attr:`logSeen` has been called.
        """
        self._isToCut = True
        return self.submit(lambda tables: None, background=True)

    def _settle(self, outcomes: Sequence[_Outcome], cause: Exception | None) -> None:
        self.logSeen(self._logBytes)
        # Of a file that is lost there is no other connection to be had; those that are open have all that was written.
        self._reader.keepConnection(cause is None or isinstance(cause, _Lost))
        self._statistics.isWritable = cause is None
        if cause is None:
            self._statistics.commits.add(len(outcomes))
        super()._settle(outcomes, cause)

    def _nextGroup(self) -> Sequence[_Job] | None:
        jobs: list[_Job] = []
        while len(jobs) < _WRITES_PER_GROUP and not self._isEnding:
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
        return jobs or None

    def _runGroup(self, jobs: Sequence[_Job]) -> tuple[list[_Outcome], Exception | None]:
        cause: Exception | None
        hasChanged = False
        try:
            tables = self._connected()
            tables.begin()
            changes = tables.changes
            try:
                outcomes, cause = self._runTogether(tables, jobs)
            except Exception:
                if not tables.inTransaction:
                    raise  # SQLite has undone the whole group
                # Whose fault it is can be told when each is done by itself.
                tables.undo()
                tables.begin()
                outcomes, cause = self._runEach(tables, jobs)
            changed = tables.changes > changes
            self._checkFiles()
            # A large log is copied elsewhere: here it would make this group wait.
            tables.checkpointByItself(self._logBytes <= LOG_BYTES)
            tables.commit()
            hasChanged = changed
            if self._isToCut:
                self._cutLog(tables)
        except Exception as error:
            cause = self._explained(error)
            outcomes = [_Outcome(job, StoreUnavailable(f"the store can't be written: {cause}")) for job in jobs]
        if self._isLost:
            self._undo()
        elif cause is not None:
            self._disconnect()
        self._count(outcomes, hasChanged)
        return outcomes, cause

    def _checkFiles(self) -> None:
        """See that what is going to be committed is not going to be lost, unless that was seen a moment ago."""
        now = self._reactor.seconds()
        if not self._isLost and 0 <= now - self._checked < _CHECK_SECONDS:
            return
        try:
            self._logBytes = self._files.checkToWrite()
        except Exception as error:
            self._isLost = True
            raise _Lost(str(error)) from None
        self._isLost = False
        self._checked = now

    def _count(self, outcomes: Sequence[_Outcome], hasChanged: bool) -> None:
        """Note what became of changes. The times of heartbeats are too small to show anything."""
        if self._isLost:
            return  # a probe is refused as well, and as long
        for each in outcomes:
            if each.job.isProbe:
                hasFailed, self._hasProbeFailed = self._hasProbeFailed, isinstance(each.result, Exception)
                if hasFailed and not self._hasProbeFailed:
                    self._refusals = 0  # it has met what the changes met, and that is over
        results = [each.result for each in outcomes if not each.job.isBackground and not each.job.isProbe]
        if hasChanged and not all(isinstance(result, Exception) for result in results):
            self._refusals = 0
        elif any(isinstance(result, StoreUnavailable) for result in results):
            self._refusals += 1
            self._refused = self._reactor.seconds()

    def _cutLog(self, tables: Tables) -> None:
        self._isToCut = False
        try:
            tables.cutLog(_CUT_SECONDS)
            self._logBytes = self._files.checkToWrite()
        except Exception as error:
            self._log.warn("The write-ahead log can't be cut: {error}", error=str(error))  # what was written is kept

    def _explained(self, error: Exception) -> Exception:
        """What is wrong: that the file is lost, if it is, else the error that there was."""
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

    def _runTogether(self, tables: Tables, jobs: Sequence[_Job]) -> tuple[list[_Outcome], Exception | None]:
        """Do the jobs of a group, those together that are next to each other and of one kind."""
        cause: Exception | None = None
        outcomes: list[_Outcome] = []
        for together, neighbours in groupby(jobs, attrgetter("together")):
            some = list(neighbours)
            if together is None:
                made, trouble = self._runEach(tables, some)
                cause = trouble or cause
            else:
                results = together(tables, [job.change for job in some])
                made = [_Outcome(job, result) for job, result in zip(some, results, strict=True)]
            outcomes += made
        return outcomes, cause

    def _runEach(self, tables: Tables, jobs: Sequence[_Job]) -> tuple[list[_Outcome], Exception | None]:
        cause: Exception | None = None
        outcomes = []
        for job in jobs:
            result, trouble = self._runOne(tables, job)
            outcomes.append(_Outcome(job, result))
            cause = trouble or cause
        return outcomes, cause

    def _runOne(self, tables: Tables, job: _Job) -> tuple[Any, Exception | None]:
        """Do one job of a group, all of it or nothing."""
        tables.beginOne()
        try:
            result = job.function(tables)
        except _TROUBLE as error:
            if not tables.inTransaction:
                raise  # SQLite has undone the whole group
            tables.undoOne()
            return StoreUnavailable(f"the store can't be written: {error}"), error
        except Exception as error:
            tables.undoOne()
            return error, None
        tables.endOne()
        return result, None

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
                pass  # another process uses the file, or there is trouble: the log is read at the next start
        super()._finish()
