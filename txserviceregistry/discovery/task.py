"""BackgroundTask: background work from its start to its stop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ..util.deferred import waitFor

_T = TypeVar("_T")


class BackgroundTask:
    """
    One run of a coroutine until it is stopped.

    A coroutine that is not waiting for anything can't be cancelled. When a listener that it calls stops it, the
    coroutine finds that in :attr:`isStopping` after the listener has returned.

    :param previous: a run that was stopped and may not be over yet; this one waits for its end.
    :ivar isStopping: whether it was stopped. The work checks it after each call of listeners, and after each failure.
    """

    def __init__(self, previous: BackgroundTask | None = None) -> None:
        self.isStopping = False
        self._previous = previous
        self._over: Deferred[None] = Deferred()
        self._work: Deferred[None] | None = None
        self._coroutine: Any = None
        self._waiting: Deferred[Any] | None = None

    def begin(self, work: Callable[[BackgroundTask], Coroutine[Deferred[Any], Any, None]]) -> Deferred[None]:
        """Start the work; fires when it is over, and fails if it failed for another reason than a stop."""

        def over(result: Failure | None) -> Failure | None:
            self._over.callback(None)
            if isinstance(result, Failure) and self.isStopping and result.check(CancelledError):
                return None
            return result

        self._coroutine = self._go(work)
        self._work = Deferred.fromCoroutine(self._coroutine)
        if self.isStopping:
            # It was stopped before there was something to cancel.
            self._work.cancel()
        return self._work.addBoth(over)

    async def _go(self, work: Callable[[BackgroundTask], Coroutine[Deferred[Any], Any, None]]) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            await waitFor(previous._over)
        if not self.isStopping:
            await work(self)

    async def wait(self, waiting: Deferred[_T]) -> _T:
        """Wait for what a patient stop cancels, too."""
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None

    def stop(self, *, patiently: bool = False) -> Deferred[None]:
        """End it; *patiently*: cancel a :meth:`wait` and nothing else. Fires when it is over."""
        self.isStopping = True
        if patiently:
            if self._waiting is not None:
                self._waiting.cancel()
        elif self._work is not None and inspect.getcoroutinestate(self._coroutine) == "CORO_SUSPENDED":
            self._work.cancel()
        return waitFor(self._over)
