"""
Noticing that the machine was suspended. Monotonic time stands still meanwhile, so that a heartbeat that fell due in
that time would be sent much too late.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .logs import Logger

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def machineSuspended() -> float:
    """
    For how many seconds in all this machine has been suspended since it was started: CLOCK_BOOTTIME less
    CLOCK_MONOTONIC. 0 on a platform without CLOCK_BOOTTIME.
    """
    if _BOOTTIME is None:
        return 0.0
    return time.clock_gettime(_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SuspendWatch:
    """
    Looks once in :data:`TICK` seconds whether the machine was suspended, while there is a listener.

    :param clock: the reactor.
    :param suspended: tells for how many seconds in all the machine has been suspended.
    :param resumed: is called before the listeners when it was.
    """

    #: Seconds between two looks. The shortest heartbeat interval is 1.6 s, so that a service with any timeout is heard
    #: of soon. A look takes some microseconds.
    TICK = 1.0

    #: The shortest suspend that counts, in seconds: the two clocks are not read at the same moment.
    SHORTEST = 0.5

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        suspended: Callable[[], float] = machineSuspended,
        resumed: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._suspended = suspended
        self._resumed = resumed
        self._listeners: dict[Callable[[float], object], None] = {}
        self._call: IDelayedCall | None = None
        # What the last look has seen, and when, in seconds of the clock.
        self._total = 0.0
        self._at = 0.0

    def add(self, listener: Callable[[float], object]) -> None:
        """
        Call *listener* each time when the machine was suspended, with the seconds by which the clock has stood still.
        """
        self._listeners[listener] = None
        if self._call is None:
            self._see()

    def discard(self, listener: Callable[[float], object]) -> None:
        """Call *listener* no more. One that is not called is no error."""
        self._listeners.pop(listener, None)
        if not self._listeners and self._call is not None:
            call, self._call = self._call, None
            call.cancel()

    def _see(self) -> None:
        self._total, self._at = self._suspended(), self._clock.seconds()
        self._call = self._clock.callLater(self.TICK, self._look)

    def _look(self) -> None:
        total, at = self._total, self._at
        self._see()
        slept, passed = self._total - total, self._at - at
        if slept < self.SHORTEST:
            return
        self._log.info("The machine was suspended for {seconds:.1f} s, and heartbeats are sent at once", seconds=slept)
        # A reactor whose clock is the wall clock has counted it.
        stoodStill = 0.0 if passed >= max(slept, 2 * self.TICK) else slept
        self._resumed()
        for listener in list(self._listeners):
            if listener in self._listeners:
                listener(stoodStill)
