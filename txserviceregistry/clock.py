"""
Time that only ever moves forward, and suspends of the machine, during which it stands still.

Twisted's reactor counts wall-clock time (Twisted issue 2424): when the wall clock steps back by an hour, every delayed
call waits for an hour, heartbeats among them. :func:`useMonotonic` fixes that for the whole process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakSet

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .util.logs import Logger

__all__ = ["useMonotonic"]

# The reactors that count monotonic time.
_monotonic: WeakSet[Any] = WeakSet()

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def useMonotonic(reactor: Any = None) -> None:
    """
    Make *reactor* count monotonic time, so that no step of the wall clock delays or hurries a call.

    The reactor's time starts at the wall clock's. After a step of the wall clock, the dates that Twisted makes from it,
    in the access log of ``twisted.web``, differ by it until the program is restarted. A second call does nothing.

    :param reactor: the reactor; the global one if it is not given.
    :raises RuntimeError: if calls are pending already: they would keep their times of the wall clock.
    """
    if reactor is None:
        from twisted.internet import reactor
    if reactor in _monotonic:
        return
    if reactor.getDelayedCalls():
        raise RuntimeError(
            "useMonotonic() has to come before anything is scheduled on the reactor: call it where the program starts"
        )
    offset = time.time() - time.monotonic()
    # Twisted calls it some twenty times for each request; another callable than a function costs three times as much.
    reactor.seconds = lambda: time.monotonic() + offset
    _monotonic.add(reactor)


def machineSuspended() -> float:
    """Seconds for which this machine has been suspended since its start; 0 where that is not known."""
    return bootTime() - time.monotonic()


def bootTime() -> float:
    """Seconds since this machine's start, with those for which it was suspended, where that is known."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


@attrs.define(eq=False, slots=False)
class SuspendWatch:
    """Calls *resumed*, then the listeners, when *suspended* (seconds in all) shows that the machine was suspended."""

    #: Seconds between two checks, while there is a listener: less than the shortest heartbeat interval, 1.6 s.
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
        """Stop calling *listener*, if it is one."""
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
