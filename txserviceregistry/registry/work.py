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
from twisted.logger import Logger
from twisted.python.failure import Failure

from .faults import Fault

__all__ = ["Lanes", "Work"]

_T = TypeVar("_T")
_Steps: TypeAlias = Coroutine[Deferred[Any], Any, _T]


class Work:
    """
    Owns pieces of work (coroutines). Cancelling the Deferred that stands for one ends the waiting, never the work.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._underWay: set[Deferred[None]] = set()
        self._queues: dict[Hashable, deque[Callable[[], _Steps[None]]]] = {}
        self._idle: list[Deferred[None]] = []

    def start(self, steps: _Steps[_T]) -> Deferred[_T]:
        """
        Start some work at once.

        :return: fires with what it returns, or fails as it fails.
        """
        waiting: Deferred[_T] = Deferred()
        self._own(self._finish(steps, waiting))
        return waiting

    def inTurn(self, key: Hashable, steps: Callable[[], _Steps[_T]]) -> Deferred[_T]:
        """
        Start some work when all that was given before under the same *key* is done.

        :return: as :meth:`start`.
        """
        waiting: Deferred[_T] = Deferred()
        queue = self._queues.get(key)
        if queue is not None:
            queue.append(lambda: self._finish(steps(), waiting))
        else:
            self._queues[key] = deque()
            self._own(self._workThrough(key, self._finish(steps(), waiting)))
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

    def _own(self, steps: _Steps[None]) -> None:
        work = Deferred.fromCoroutine(steps)
        self._underWay.add(work)
        work.addBoth(self._ended, work)

    def _ended(self, outcome: Failure | None, work: Deferred[None]) -> None:
        if outcome is not None:
            self._log.failure("What waited for some work broke", outcome)
        self._underWay.discard(work)
        if not self._underWay:
            idle, self._idle = self._idle, []
            for waiting in idle:
                waiting.callback(None)

    async def _workThrough(self, key: Hashable, first: _Steps[None]) -> None:
        await first
        # A loop, because a chain of Deferreds that fire each other overflows the stack when hundreds wait.
        queue = self._queues[key]
        while queue:
            await queue.popleft()()
        del self._queues[key]

    async def _finish(self, steps: _Steps[_T], waiting: Deferred[_T]) -> None:
        try:
            result = await steps
        except Exception as error:
            failure = Failure()
            if waiting.called and not isinstance(error, Fault):
                self._log.failure("Work that nobody waits for any more failed", failure)
            waiting.errback(failure)
        else:
            waiting.callback(result)


class Lanes:
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
