"""The reactor's time: monotonic, from the start or not at all."""

from __future__ import annotations

import time

from twisted.internet.base import DelayedCall
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http

from txserviceregistry import useMonotonic


class Reactor:
    """As much of a reactor as has to do with time."""

    def __init__(self) -> None:
        self.seconds = time.time
        self.pending: list[DelayedCall] = []

    def getDelayedCalls(self) -> list[DelayedCall]:
        """The scheduled calls."""
        return self.pending


class UseMonotonicTests(SynchronousTestCase):
    """The first call of a program."""

    def test_countsMonotonicTime(self) -> None:
        """The reactor's time starts at the wall clock's, and no step moves it; a second call changes nothing."""
        reactor = Reactor()
        self.patch(time, "time", lambda: 1_700_000_000.0)
        self.patch(time, "monotonic", lambda: 500.0)
        useMonotonic(reactor)
        self.assertEqual(reactor.seconds(), 1_700_000_000.0)
        # The wall clock steps back by an hour, in one second.
        self.patch(time, "time", lambda: 1_699_996_401.0)
        self.patch(time, "monotonic", lambda: 501.0)
        self.assertEqual(reactor.seconds(), 1_700_000_001.0)
        useMonotonic(reactor)
        self.assertEqual(reactor.seconds(), 1_700_000_001.0)

    def test_datesOfAnAccessLog(self) -> None:
        """twisted.web dates its access log by the reactor's time: the dates are today's."""
        dates: list[str] = []

        def formatter(timestamp: str, request: object) -> str:
            dates.append(timestamp)
            return timestamp

        clock = Clock()
        useMonotonic(clock)
        self.patch(http, "datetimeToLogString", lambda seconds: f"{seconds:.0f}")
        factory = http.HTTPFactory(logPath=self.mktemp(), logFormatter=formatter, reactor=clock)
        before = time.time()
        factory.startFactory()
        self.addCleanup(factory.stopFactory)
        factory.log(None)
        (date,) = dates
        self.assertLess(abs(float(date) - before), 60)

    def test_refusesToComeLate(self) -> None:
        """With calls pending, whose times are of the old count, it says so instead of mixing the two."""
        reactor = Reactor()
        reactor.pending.append(DelayedCall(1.0, lambda: None, (), {}, lambda _: None, lambda _: None))
        error = self.assertRaises(RuntimeError, useMonotonic, reactor)
        self.assertIn("before anything is scheduled", str(error))
        self.assertIs(reactor.seconds, time.time)
