"""The reactor's time: monotonic, from the start or not at all."""

from __future__ import annotations

import time

from twisted.internet.base import DelayedCall
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import useMonotonic


class Reactor:
    """As much of a reactor as has to do with time."""

    def __init__(self) -> None:
        self.seconds = time.time
        self.pending: list[DelayedCall] = []

    def getDelayedCalls(self) -> list[DelayedCall]:
        """What is scheduled."""
        return self.pending


class UseMonotonicTests(SynchronousTestCase):
    """What a program does first of all."""

    def test_countsMonotonicTime(self) -> None:
        """From then on the reactor counts time that no wall clock moves; a second call changes nothing."""
        reactor = Reactor()
        useMonotonic(reactor)
        useMonotonic(reactor)
        self.assertIs(reactor.seconds, time.monotonic)

    def test_refusesToComeLate(self) -> None:
        """With calls pending, whose times are of the old count, it says so instead of mixing the two."""
        reactor = Reactor()
        reactor.pending.append(DelayedCall(1.0, lambda: None, (), {}, lambda _: None, lambda _: None))
        error = self.assertRaises(RuntimeError, useMonotonic, reactor)
        self.assertIn("before anything is scheduled", str(error))
        self.assertIs(reactor.seconds, time.time)
