"""
What the HeartBeaters of one client share, among it a clock that detects a blocked reactor, which delays heartbeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

from ..util.concurrency import PrioritySemaphore
from ..util.logs import Logger
from ..util.suspend import SuspendWatch


@implementer(IReactorTime)
class StallWatch:
    """A clock that logs each time that the reactor stood still, which calls show that come far later than due."""

    #: How late a call may be, in seconds: longer than a busy reactor or a loaded machine delays it, and shorter than
    #: the shortest heartbeat timeout.
    LATE = 1.0
    _log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # A stall makes everything late that was due in it, and is logged once.
        self._loggedUntil = float("-inf")

    def seconds(self) -> float:
        return self._clock.seconds()

    def callLater(self, delay: float, callable: Callable[..., Any], *args: object, **kwargs: object) -> IDelayedCall:
        due = self._clock.seconds() + delay

        def call() -> None:
            self.wasDue(due)
            callable(*args, **kwargs)

        return self._clock.callLater(delay, call)

    def getDelayedCalls(self) -> Sequence[IDelayedCall]:
        return self._clock.getDelayedCalls()

    def wasDue(self, moment: float) -> None:
        """The present call was due at this *moment* of the clock, or before."""
        now = self._clock.seconds()
        if now - moment <= self.LATE or moment <= self._loggedUntil:
            return
        self._loggedUntil = now
        self._log.warn(
            "The application's reactor stood still for {seconds:.1f} s or more; heartbeats were late. Move blocking "
            "calls (time.sleep, long computations, synchronous requests) to threads",
            seconds=now - moment,
        )


@attrs.frozen
class HeartbeatContext:
    """
    Shared by the HeartBeaters of one client, so that there can be thousands of them.

    :ivar turns: bounds the heartbeat requests at once, and *registrations* the registrations.
    :ivar batcher: the HeartbeatBatcher; ``None`` if each HeartBeater sends its own heartbeats.
    """

    stalls: StallWatch
    suspends: SuspendWatch
    turns: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    registrations: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    batcher: Any = None
