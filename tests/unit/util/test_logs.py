"""Loggers that escape texts, outages in the log, and functions that are called when something happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.errors import AuthenticationFailed, ConnectionFailed, RequestTimedOut
from txserviceregistry.util.logs import Listeners, Logger, Outage


class ListenersTests(SynchronousTestCase):
    """Listeners."""

    def setUp(self) -> None:
        self.listeners: Listeners[[str]] = Listeners(Logger(), "the weather")
        self.heard: list[str] = []

    def test_areCalledInOrder(self) -> None:
        """Each is called each time, in the order in which they were added."""
        self.listeners.add(lambda text: self.heard.append(f"first {text}"))
        self.listeners.add(lambda text: self.heard.append(f"second {text}"))
        self.listeners.call("rain")
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["first rain", "second rain", "first sun", "second sun"])

    def test_end(self) -> None:
        """One that has ended is not called any more, however often it is ended."""
        end = self.listeners.add(self.heard.append)
        self.assertEqual(len(self.listeners), 1)
        end()
        end()
        self.listeners.call("rain")
        self.assertEqual((self.heard, len(self.listeners)), ([], 0))

    def test_theSameFunctionTwice(self) -> None:
        """A function that was added twice is called twice, and ended one by one."""
        end, _ = (self.listeners.add(self.heard.append) for _ in range(2))
        self.listeners.call("rain")
        end()
        end()
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["rain", "rain", "sun"])

    def test_oneThatFails(self) -> None:
        """A listener's error is logged, and the others are called all the same."""

        def cancelled(text: str) -> None:
            raise asyncio.CancelledError

        self.listeners.add(lambda text: self.fail("no umbrella"))
        self.listeners.add(cancelled)
        self.listeners.add(self.heard.append)
        with capturedLogs() as events:
            self.listeners.call("rain")
        self.assertEqual(self.heard, ["rain"])
        self.assertEqual([formatEvent(event) for event in events], ["Listener to the weather failed"] * 2)
        self.assertIn("no umbrella", events[0]["log_failure"].getErrorMessage())
        self.assertEqual(len(self.flushLoggedErrors(self.failureException, asyncio.CancelledError)), 2)

    def test_endsAnother(self) -> None:
        """One that another one ends is not called, not even for the same event."""
        ends: list[Callable[[], None]] = []
        self.listeners.add(lambda text: ends[0]())
        ends.append(self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])

    def test_addsAnother(self) -> None:
        """One that is added during a call is first called for the next event."""
        self.listeners.add(lambda text: self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["sun"])


class OutageTests(SynchronousTestCase):
    """Outage."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def outage(self, **options: Any) -> Outage:
        return Outage(
            Logger(), self.clock, "{what} failed: {reason}", "{what} works after {seconds:.0f} s", what="It", **options
        )

    def logged(self) -> list[str]:
        """The lines since the last time."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def test_isLoggedTwice(self) -> None:
        """One line when it begins, with the first reason, and one when it ends; the next outage is another one."""
        outage = self.outage()
        outage.succeeded()
        self.assertEqual((self.logged(), outage.isOn), ([], False))
        for reason in ("full", "broken"):
            outage.failed(reason=reason)
            self.clock.advance(10)
        self.assertTrue(outage.isOn)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.warn])
        self.assertEqual(self.logged(), ["It failed: full"])
        for _ in range(2):
            outage.succeeded()
        self.assertFalse(outage.isOn)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.info])
        self.assertEqual(self.logged(), ["It works after 20 s"])
        outage.failed(reason="broken")
        self.assertEqual(self.logged(), ["It failed: broken"])

    def test_refusalsWithinAnOutage(self) -> None:
        """A refusal that follows other failures has a line, once in an outage: it may last when the outage is over."""
        outage = self.outage()
        for _ in range(3):
            outage.failed(reason="connection refused", cause=ConnectionFailed())
            outage.failed(reason="slow", cause=RequestTimedOut())
            outage.failed(reason="wrong key", cause=AuthenticationFailed())
        self.assertEqual(self.logged(), ["It failed: connection refused", "It failed: wrong key"])
        outage.succeeded()
        outage.failed(reason="wrong key", cause=AuthenticationFailed())
        self.assertEqual(self.logged(), ["It works after 0 s", "It failed: wrong key"])

    def test_valuesOfBothLines(self) -> None:
        """The last line has the values of the first one, and values of its own."""
        outage = Outage(Logger(), self.clock, "{name} failed", "{name} works, {lost} lost", level=LogLevel.error)
        outage.failed(name="First")
        outage.failed(name="Second")
        outage.succeeded(lost=3)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.error, LogLevel.info])
        self.assertEqual(self.logged(), ["First failed", "First works, 3 lost"])

    def test_noLastLine(self) -> None:
        """There may be nothing to say when it ends."""
        outage = Outage(Logger(), self.clock, "It failed")
        for _ in range(2):
            outage.failed()
            outage.succeeded()
        self.assertEqual(self.logged(), ["It failed"] * 2)

    def test_theSecondFailure(self) -> None:
        """It may take several failures in a row to be one; its time counts from the first."""
        outage = self.outage(after=2)
        outage.failed(reason="slow")
        outage.succeeded()
        outage.failed(reason="slow")
        self.assertEqual((self.logged(), outage.isOn), ([], False))
        self.clock.advance(5)
        outage.failed(reason="slower")
        self.clock.advance(5)
        outage.succeeded()
        self.assertEqual(self.logged(), ["It failed: slower", "It works after 10 s"])

    def test_aCertainFailure(self) -> None:
        """One that another try does not mend is one at once."""
        outage = self.outage(after=2)
        outage.failed(isCertain=True, reason="gone")
        self.assertEqual(self.logged(), ["It failed: gone"])

    def test_anUnexpectedError(self) -> None:
        """An error that was not expected is one at once, with its traceback in the log."""
        outage = self.outage(after=2)
        outage.failed(Failure(KeyError("web1")), reason="a defect")
        self.assertEqual(self.events[0]["log_failure"].type, KeyError)
        self.assertEqual(self.logged(), ["It failed: a defect"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_whatFailsNowAndThen(self) -> None:
        """An outage soon after another one ends when nothing has failed for some time."""
        outage = self.outage(calm=60)
        outage.failed(reason="full")
        outage.succeeded()
        self.assertEqual(self.logged(), ["It failed: full", "It works after 0 s"])
        self.clock.advance(59)
        outage.failed(reason="full")
        self.assertEqual(self.logged(), ["It failed: full"])
        for _ in range(3):
            self.clock.advance(59)
            outage.succeeded()
            outage.failed(reason="full")
        self.clock.advance(60)
        outage.succeeded()
        self.assertEqual(self.logged(), ["It works after 237 s"])
        self.clock.advance(60)
        outage.failed(reason="full")
        outage.succeeded()
        self.assertEqual(self.logged(), ["It failed: full", "It works after 0 s"])
