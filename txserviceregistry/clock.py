"""
Time that only ever moves forward.

Twisted's reactor counts wall-clock time (Twisted issue 2424): when the wall clock steps back by an hour, every delayed
call waits for an hour, heartbeats among them. :func:`useMonotonic` fixes that for the whole process.
"""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakSet

__all__ = ["useMonotonic"]

# The reactors that count monotonic time.
_monotonic: WeakSet[Any] = WeakSet()


def useMonotonic(reactor: Any = None) -> None:
    """
    Make *reactor* count monotonic time, so that no step of the wall clock delays or hurries a call.

    The reactor's time starts at the wall clock's, so that the dates that Twisted makes from it are right: those of the
    access log of ``twisted.web``. After a step of the wall clock they differ from it by that step until the program is
    restarted.

    Call it first in a program: pending calls keep their times of the wall clock. A second call does nothing.

    :param reactor: the reactor; the global one if it is not given.
    :raises RuntimeError: if calls are pending already.
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
