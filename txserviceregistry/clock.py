"""
Time that only ever moves forward, for the reactor and for whoever counts on it.

Twisted's reactor counts wall-clock time (Twisted issue 2424): when the wall clock steps back by an hour, every delayed
call waits for an hour, heartbeats among them. :func:`useMonotonic` mends that for the whole process.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["useMonotonic"]


class _MonotonicSeconds:
    """
    Monotonic time that counts from the epoch: it agrees with the wall clock when it is made, so that dates made from it
    are right, and goes its own way when the wall clock steps.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() + self._offset


def useMonotonic(reactor: Any = None) -> None:
    """
    Make *reactor* count monotonic time, so that no step of the wall clock delays or hurries a call.

    The reactor's time starts at the wall clock's, so that the dates that Twisted makes from it are right: those of the
    access log of ``twisted.web``. After a step of the wall clock they differ from it by that step until the program is
    restarted.

    Call it first thing in a program, before anything is scheduled: calls that are pending already keep times of the
    old count. Calling it again does nothing.

    :param reactor: the reactor; the global one if it is not given.
    :raises RuntimeError: if calls are pending already.
    """
    if reactor is None:
        from twisted.internet import reactor
    if isinstance(reactor.seconds, _MonotonicSeconds):
        return
    if reactor.getDelayedCalls():
        raise RuntimeError(
            "useMonotonic() has to come before anything is scheduled on the reactor: call it where the program starts"
        )
    reactor.seconds = _MonotonicSeconds()
