"""Detection of a suspended machine: monotonic time stands still while it sleeps, and heartbeats would be too late."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .logs import Logger

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def machineSuspended() -> float:
    """The seconds for which this machine has been suspended since it was started; 0 where that is not known."""
    return bootTime() - time.monotonic()


def bootTime() -> float:
    """Seconds since the machine was started, those among them for which it was suspended, where that is known."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


@attrs.define(eq=False, slots=False)
class SuspendWatch:
    """
    Checks every :data:`TICK` seconds whether the machine was suspended, while there is a listener.

    :param suspended: returns the seconds for which the machine has been suspended in all.
    :param resumed: called before the listeners.
    """

    #: Seconds between two checks: less than the shortest heartbeat interval, 1.6 s. A check takes some microseconds.
    TICK: ClassVar[float] = 1.0
    #: The shortest suspend that counts, in seconds: the two clocks are not read at the same moment.
    SHORTEST: ClassVar[float] = 0.5

    _log: ClassVar[Logger] = Logger()

    _clock: IReactorTime
    _suspended: Callable[[], float] = machineSuspended
    _resumed: Callable[[], object] = lambda: None
    _listeners: dict[Callable[[float], object], None] = attrs.field(factory=dict, init=False)
    _call: IDelayedCall | None = attrs.field(default=None, init=False)
    # The last result of *suspended*, and its time, in seconds of the clock.
    _seen: tuple[float, float] = attrs.field(default=(0.0, 0.0), init=False)

    def add(self, listener: Callable[[float], object]) -> None:
        """Call *listener* whenever the machine was suspended, with the seconds for which the clock stood still."""
        self._listeners[listener] = None
        if self._call is None:
            self._look(isFirst=True)

    def discard(self, listener: Callable[[float], object]) -> None:
        """Stop calling *listener*. Does nothing if it is not a listener."""
        self._listeners.pop(listener, None)
        if not self._listeners and self._call is not None:
            self._call.cancel()
            self._call = None

    def _look(self, isFirst: bool = False) -> None:
        (total, at), self._seen = self._seen, (self._suspended(), self._clock.seconds())
        self._call = self._clock.callLater(self.TICK, self._look)
        slept, passed = self._seen[0] - total, self._seen[1] - at
        if isFirst or slept < self.SHORTEST:
            return
        self._log.info("Machine was suspended for {seconds:.1f} s; heartbeats are sent at once", seconds=slept)
        # The clock of a reactor that counts wall-clock time did not stand still.
        stoodStill = 0.0 if passed >= max(slept, 2 * self.TICK) else slept
        self._resumed()
        for listener in list(self._listeners):
            if listener in self._listeners:
                listener(stoodStill)
