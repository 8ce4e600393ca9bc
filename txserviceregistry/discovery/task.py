"""
Run: background work from its start to its stop, whenever the stop comes.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ..util.deferred import waitFor


class BackgroundTask:
    """
    One run of a coroutine that goes on until it is stopped.

    A coroutine that is not waiting for anything can't be cancelled: when a listener that it calls stops it, that is
    found in :attr:`isStopping` once the listener has returned.

    :param previous: a run that was stopped and may not be over yet; this one waits for its end.
    :ivar isStopping: whether it was stopped. The work looks at it after each :meth:`callingOut`, and whenever something
        it waited for has failed.
    """

    def __init__(self, previous: BackgroundTask | None = None) -> None:
        self.isStopping = False
        self._previous = previous
        self._over: Deferred[None] = Deferred()
        self._work: Deferred[None] | None = None
        self._callsOut = 0

    def begin(self, work: Callable[[BackgroundTask], Coroutine[Deferred[Any], Any, None]]) -> Deferred[None]:
        """
        Do it.

        :return: fires when the work is over; fails if it failed in a way that stopping it does not explain.
        """
        self._work = Deferred.fromCoroutine(self._go(work))
        if self.isStopping:
            # It was stopped before anybody knew what there was to cancel.
            self._work.cancel()

        def over(result: Failure | None) -> Failure | None:
            self._over.callback(None)
            if isinstance(result, Failure) and self.isStopping and result.check(CancelledError):
                return None
            return result

        return self._work.addBoth(over)

    async def _go(self, work: Callable[[BackgroundTask], Coroutine[Deferred[Any], Any, None]]) -> None:
        previous, self._previous = self._previous, None
        if previous is not None:
            await waitFor(previous._over)
        if not self.isStopping:
            await work(self)

    @contextmanager
    def callingOut(self) -> Iterator[None]:
        """A context in which foreign code is called, which may stop the run."""
        self._callsOut += 1
        try:
            yield
        finally:
            self._callsOut -= 1

    def stop(self, *, patiently: bool = False) -> Deferred[None]:
        """
        End it.

        :param patiently: do not cancel what it waits for.
        :return: fires when it is over.
        """
        self.isStopping = True
        if not patiently and self._work is not None and not self._callsOut:
            self._work.cancel()
        return waitFor(self._over)
