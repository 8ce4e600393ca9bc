"""
Noticing that the application's reactor stood still: the one thing that no heartbeat survives, whatever it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from ..util.logs import Logger


@implementer(IReactorTime)
class StallWatch:
    """
    A clock that tells, with a line in the log for each time, that the reactor stood still.

    It has no timer of its own, and so costs nothing: what shows a stall is a call of its users that comes far later
    than it was due. A stall that passes between two calls, and so does no harm, goes unnoticed.

    :param clock: the reactor.
    """

    #: How late a call may come, in seconds: more than a busy reactor, a garbage collection or a machine under load
    #: explains, and less than the shortest heartbeat timeout.
    LATE = 1.0

    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # A stall makes everything late that fell due in it, and is told once.
        self._toldUntil = float("-inf")

    def seconds(self) -> float:
        """See IReactorTime."""
        return self._clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        """See IReactorTime."""
        due = self._clock.seconds() + delay

        def call() -> None:
            self.wasDue(due)
            callable(*args, **kwargs)

        return self._clock.callLater(delay, call)

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        """See IReactorTime."""
        return self._clock.getDelayedCalls()

    def wasDue(self, moment: float) -> None:
        """
        What happens now should have happened at this *moment*, or before.

        :param moment: in seconds of the clock.
        """
        now = self._clock.seconds()
        if now - moment <= self.LATE or moment <= self._toldUntil:
            return
        self._toldUntil = now
        self._log.warn(
            "The application's reactor stood still for {seconds:.1f} s or more, and its heartbeats with it: something "
            "blocked it (a long computation, time.sleep, a synchronous request: deferToThread takes such things "
            "elsewhere), or the process was stopped. A service that the registry gave up meanwhile is registered again",
            seconds=now - moment,
        )
