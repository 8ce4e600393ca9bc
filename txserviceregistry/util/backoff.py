"""Retries: the delays between them, when a try before a deadline is late, and the late ones that run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

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
