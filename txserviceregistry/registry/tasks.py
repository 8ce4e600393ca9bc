"""
Work that goes on to its end even if nobody waits for it any more.

What has been handed to a store may be kept whether or not the client that asked for it is still there; so whoever keeps
count of it must see every piece of work through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..util.logs import Logger
from .faults import Fault

_T = TypeVar("_T")
_Steps: TypeAlias = Coroutine[Deferred[Any], Any, _T]


class TaskOwner:
    """
    Owns pieces of work (coroutines). Cancelling the Deferred that stands for one ends the waiting, never the work.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._underWay = 0
        # What waits for the work of each key that has some; hardly ever there is anything.
        self._queues: dict[Hashable, deque[Callable[[], _Steps[None]]] | None] = {}
        self._idle: list[Deferred[None]] = []

    def start(self, steps: _Steps[_T]) -> Deferred[_T]:
        """
        Start some work at once.

        :return: fires with what it returns, or fails as it fails.
        """
        waiting: Deferred[_T] = Deferred()
        self._underWay += 1
        Deferred.fromCoroutine(self._finishAlone(steps, waiting))
        return waiting

    def serialized(self, key: Hashable, steps: Callable[[], _Steps[_T]]) -> Deferred[_T]:
        """
        Start some work when all that was given before under the same *key* is done.

        :return: as :meth:`start`.
        """
        waiting: Deferred[_T] = Deferred()
        if key in self._queues:
            queue = self._queues[key]
            if queue is None:
                queue = self._queues[key] = deque()
            queue.append(lambda: self._finish(steps(), waiting))
        else:
            self._queues[key] = None
            self._underWay += 1
            Deferred.fromCoroutine(self._workThrough(key, steps, waiting))
        return waiting

    def isBusy(self, key: Hashable) -> bool:
        """Whether there is work under this key."""
        return key in self._queues

    def whenIdle(self) -> Deferred[None]:
        """Fires when no work is under way."""
        idle: Deferred[None] = Deferred()
        if self._underWay:
            self._idle.append(idle)
        else:
            idle.callback(None)
        return idle

    def _ended(self) -> None:
        self._underWay -= 1
        if not self._underWay:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)

    async def _finishAlone(self, steps: _Steps[_T], waiting: Deferred[_T]) -> None:
        await self._finish(steps, waiting)
        self._ended()

    async def _workThrough(self, key: Hashable, first: Callable[[], _Steps[_T]], waiting: Deferred[_T]) -> None:
        await self._finish(first(), waiting)
        # A loop, because a chain of Deferreds that fire each other overflows the stack when hundreds wait.
        queue = self._queues[key]
        while queue:
            await queue.popleft()()
        del self._queues[key]
        self._ended()

    async def _finish(self, steps: _Steps[_T], waiting: Deferred[_T]) -> None:
        """Do the work, and tell who waits for it; whatever comes of that, this does not fail."""
        try:
            result = await steps
        except Fault as fault:
            # Where it comes from nobody asks, and the way back to here leads by `waiting` to itself.
            waiting.errback(Failure(fault.with_traceback(None)))
        except Exception:
            if waiting.called:
                self._log.failure("Work that nobody waits for any more failed", Failure())
            waiting.errback(Failure())
        else:
            waiting.callback(result)


class WorkerLimit:
    """
    Works side by side, at most so many of them; what comes then waits, and is done in the order in which it came.

    A loop in each lane sees to that, and no semaphore of Deferreds, which overflows the stack when hundreds wait and
    all of them have their results at once.

    :param count: how many.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[Callable[[], _Steps[None]]] = deque()

    def do(self, steps: Callable[[], _Steps[_T]]) -> Deferred[_T]:
        """
        :param steps: begins the work.
        :return: fires with what it returns, or fails as it fails.
        """
        done: Deferred[_T] = Deferred()

        async def work() -> None:
            try:
                result = await steps()
            except Exception:
                done.errback(Failure())
            else:
                done.callback(result)

        self._waiting.append(work)
        if self._free:
            self._free -= 1
            # It can't fail: what does is told to whoever waits for it.
            Deferred.fromCoroutine(self._workThrough())
        return done

    async def _workThrough(self) -> None:
        while self._waiting:
            await self._waiting.popleft()()
        self._free += 1
