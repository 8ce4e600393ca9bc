"""Retries: the delays between them, when a try before a deadline is late, and the late ones that run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from .deferred import cancelWith

_T = TypeVar("_T")

#: The shortest time after which a try is late, in seconds: a real network needs as much.
SHORTEST_TRY = 0.05
#: The longest delay between two tries, in seconds, however long nothing has answered.
LONGEST_DELAY = 15.0

# The longest time after which a try is late that began after the deadline, in seconds.
_LONGEST_AFTER = 10.0
# The seconds that a try has in all: connecting, a TLS handshake and a response over a slow network.
_RUN = 3.0
# The most late tries of one thing at once.
_MOST_LATE = 5


@attrs.define
class Backoff:
    """
    The delays between tries that fail: the first is zero, the next ones double from *base* up to *maximum* seconds,
    each with a jitter that takes away up to half of it.
    """

    _base: float
    _maximum: float
    _random: Callable[[], float]
    failures: int = attrs.field(default=0, init=False)

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        self.failures += 1
        if self.failures == 1:
            return 0.0
        # A failure that lasts for years must not end in an overflow.
        full = min(self._maximum, self._base * 2.0 ** min(self.failures - 2, 32))
        return full * (1.0 - 0.5 * self._random())

    def reset(self) -> None:
        """Begin again: the last try succeeded."""
        self.failures = 0


def patienceFor(left: float, heartbeatTimeout: float) -> float:
    """Seconds after which a try is late: a third of those *left* to the deadline."""
    return min(_LONGEST_AFTER, heartbeatTimeout / 3) if left <= 0 else max(left / 3, SHORTEST_TRY)


def delayBefore(delay: float, left: float, shortest: float = SHORTEST_TRY) -> float:
    """
    Seconds to wait before the next try: *delay*, but until the deadline at most a quarter of those *left*. With a third
    for each try, that leaves room for two tries.
    """
    return min(delay, max(left / 4, shortest)) if left > 0 else delay


def runOnAfter(patience: float) -> float:
    """
    Seconds for which a try that was late after so many seconds runs on beside the next one; 0 if it has had time
    enough. To cancel it would close its connection, and the next try would need a new handshake in even less time.
    """
    return max(0.0, _RUN - patience)


class LateTries:
    """The late tries of one thing. When there are too many, the oldest is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Deferred[Any], None] = {}

    def add(self, work: Deferred[Any]) -> None:
        """Add a try that is late. Its owner handles its failures."""
        self._running[work] = None
        work.addBoth(self._over, work)
        if len(self._running) > _MOST_LATE:
            next(iter(self._running)).cancel()

    def _over(self, result: Any, work: Deferred[Any]) -> Any:
        self._running.pop(work, None)
        return result

    def end(self) -> None:
        """Cancel all of them."""
        running, self._running = self._running, {}
        for work in running:
            work.cancel()


class TryIsLate(Exception):
    """A try has no result yet, and runs on."""


class NothingLeft(Exception):
    """No try runs any more."""


class Race(Generic[_T]):
    """
    Tries of one thing by one coroutine, which waits for one at a time: the first that succeeds counts, and the others
    are cancelled.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._running: list[Deferred[_T]] = []
        # The Deferred that the coroutine awaits, and the try that may fail it.
        self._waiter: Deferred[_T]
        self._awaited: Deferred[_T] | None = None

    def run(self, work: Deferred[_T], patience: float | None = None) -> Deferred[_T]:
        """
        Wait for a try, and for those that run on.

        :param patience: seconds after which it is late; never if ``None``.
        :return: fires with the first result of any. Fails as *work* does, or with :class:`TryIsLate`. Cancelling it
            cancels all tries.
        """
        waiter = self._wait(work)
        self._running.append(work)
        work.addCallbacks(self._succeeded, self._failed, callbackArgs=(work,), errbackArgs=(work,))
        if patience is None or waiter.called:
            return waiter
        return cancelWith(self._clock.callLater(patience, lambda: waiter.errback(TryIsLate())), waiter)

    def rest(self) -> Deferred[_T]:
        """Wait for the first result of those that run on; fails with :class:`NothingLeft` when there is none."""
        return self._wait(None) if self._running else fail(NothingLeft())

    def _wait(self, work: Deferred[_T] | None) -> Deferred[_T]:
        self._awaited = work
        self._waiter = Deferred(lambda _: self._end())
        return self._waiter

    def _succeeded(self, result: _T, work: Deferred[_T]) -> None:
        # One that was cancelled may still succeed.
        if work in self._running:
            self._running.remove(work)
            self._end()
            self._waiter.callback(result)

    def _failed(self, failure: Failure, work: Deferred[_T]) -> None:
        if work not in self._running:
            return
        self._running.remove(work)
        if self._awaited is work:
            self._waiter.errback(failure)
        elif self._awaited is None and not self._running:
            self._waiter.errback(NothingLeft())

    def _end(self) -> None:
        running, self._running = self._running, []
        for work in running:
            work.cancel()
