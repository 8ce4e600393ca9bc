"""The health check of a service: when it is called, the effect of a failure, and its log lines."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.errors import ConnectionFailed, NoServiceAvailable
from txserviceregistry.heartbeats.heartbeater import HeartBeater


class Services:
    """Stands in for a client's services: every heartbeat is accepted."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[float] = []
        self.failing = False

    def heartbeat(self, id: str, token: str, *, timeout: float | None = None, whenLate: Any = None) -> Deferred[Any]:
        self.sent.append(self.clock.seconds())
        return fail(ConnectionFailed("refused")) if self.failing else succeed({"token": f"t{len(self.sent)}"})


class Unprintable(Exception):
    """An exception whose str() fails."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Ambiguous:
    """An object whose bool() fails."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


class Unhealthy:
    """A false object with a long repr."""

    def __bool__(self) -> bool:
        return False


class HealthCheckTests(SynchronousTestCase):
    """A HeartBeater with a check, on a simulated clock."""

    def setUp(self) -> None:
        self.renew()

        def observe(event: Any) -> None:
            if event["log_namespace"].startswith("txserviceregistry"):
                self.events.append((event["log_level"].name, formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def renew(self) -> None:
        self.clock = Clock()
        self.services = Services(self.clock)
        self.calls: list[float] = []
        self.result: Any = True
        self.events: list[tuple[str, str]] = []

    def check(self) -> Any:
        self.calls.append(self.clock.seconds())
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result() if callable(self.result) else self.result

    def heartBeater(self, timeout: int = 30, check: Callable[[], Any] | None = None, **options: Any) -> HeartBeater:
        options.setdefault("token", "t0")
        options.setdefault("random", lambda: 1.0)
        heartBeater = HeartBeater(
            self.services, "web1", timeout, clock=self.clock, check=check or self.check, **options
        )
        self.addCleanup(heartBeater.stop)
        heartBeater.start()
        return heartBeater

    def pass_(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds / 0.01))

    def lines(self, *levels: str) -> list[str]:
        return [text for level, text in self.events if level in (levels or ("warn", "info"))]

    # -- when it is called

    def test_aPassingCheckIsCalledOncePerHeartbeat(self) -> None:
        """It is called once before each heartbeat, and nothing is logged."""
        self.heartBeater()
        self.pass_(300)
        self.assertEqual(self.calls, self.services.sent)
        self.assertEqual(len(self.calls), 13)
        self.assertEqual(self.events, [])

    def test_aFailingCheckIsCalledWithBackoff(self) -> None:
        """The delays grow to half an interval, and to five seconds at most; the log has one line."""
        for timeout, most in ((3, 0.81), (30, 5), (120, 5)):
            self.renew()
            self.result = False
            self.heartBeater(timeout, random=lambda: 0.0)
            self.pass_(600)
            delays = [after - before for before, after in pairwise(self.calls)]
            self.assertGreater(min(delays), 0.04)
            self.assertApproximates(delays[-1], most, 0.02)
            self.assertLess(len(self.calls), 600 / delays[-1] + 40)
            self.assertEqual(self.services.sent, [])
            self.assertEqual(len(self.events), 1, self.events)

    def test_aRecoveryBeforeTheDeadlineIsInTime(self) -> None:
        """A check that passes again when a third of the time to the deadline is left does not cost the service."""
        for timeout in (3, 5, 10, 14, 15, 30, 60, 120):
            for chance in (0.0, 0.5, 1.0):
                self.renew()
                heartBeater = self.heartBeater(timeout, random=lambda chance=chance: chance)
                due = heartBeater.interval
                self.pass_(due - 0.1)
                self.result = False
                self.pass_(0.1 + (timeout - due) * 2 / 3)
                self.assertGreater(len(self.calls), 3)
                self.result = True
                self.pass_((timeout - due) / 3 - 0.02)
                self.assertEqual(heartBeater.state, "registered")
                self.assertEqual(len(self.services.sent), 2, (timeout, chance))
                heartBeater.stop()

    def test_aRecoveryAfterwardsIsNoticedSoon(self) -> None:
        """However long the check has failed, heartbeats are sent within five seconds after it passes."""
        self.result = False
        self.heartBeater(120, random=lambda: 0.0)
        self.pass_(1000)
        self.result = True
        self.pass_(5.1)
        self.assertEqual(len(self.services.sent), 1)

    def test_aCheckThatHangs(self) -> None:
        """It is cancelled, counts as failed, and is called again; when it passes, heartbeats are sent."""
        cancelled: list[Any] = []
        self.result = lambda: Deferred(cancelled.append)
        self.heartBeater(30)
        self.pass_(100)
        self.assertEqual(self.services.sent, [])
        self.assertEqual(self.lines(), ["Service web1: health check failed: timed out after 2 s; heartbeats suspended"])
        self.assertGreater(len(self.calls), 10)
        self.assertApproximates(len(cancelled), len(self.calls), 1)
        self.result = True
        self.pass_(10)
        self.assertEqual(len(self.services.sent), 1)

    def test_aCheckThatIgnoresItsCancellation(self) -> None:
        """It is not called again before it has ended."""
        rounds: list[Deferred[bool]] = []

        async def stubborn() -> bool:
            while True:
                rounds.append(Deferred())
                try:
                    return await rounds[-1]
                except CancelledError:
                    pass

        self.result = stubborn
        heartBeater = self.heartBeater(30)
        self.pass_(200)
        self.assertEqual((len(self.calls), self.services.sent), (1, []))
        self.assertEqual(self.lines(), ["Service web1: health check failed: timed out after 2 s; heartbeats suspended"])
        rounds[-1].callback(True)
        self.result = True
        self.pass_(10)
        self.assertEqual((len(self.calls), len(self.services.sent)), (2, 1))
        self.assertTrue(heartBeater.healthy)
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_aCheckThatCanNotBeCancelled(self) -> None:
        """An error of its canceller is logged. When it passes, heartbeats are sent; the service can be stopped."""

        def fails(check: Deferred[bool]) -> None:
            raise RuntimeError("can't be cancelled")

        hanging: list[Deferred[bool]] = []

        def hang() -> Deferred[bool]:
            hanging.append(Deferred(fails))
            return hanging[-1]

        self.result = hang
        heartBeater = self.heartBeater(30)
        self.pass_(100)
        self.assertEqual((len(self.calls), self.services.sent), (1, []))
        hanging[0].callback(True)
        self.pass_(1)
        self.assertEqual(len(self.calls), 2)
        heartBeater.stop()
        self.assertEqual((heartBeater.state, self.clock.getDelayedCalls()), ("stopped", []))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_coroutinesAndDeferreds(self) -> None:
        """A check may be a coroutine function, or return a Deferred that fires later."""

        async def well() -> bool:
            return True

        later: Deferred[bool] = Deferred()
        for result in (well, lambda: later):
            self.result = result
            heartBeater = self.heartBeater()
            if not later.called:
                later.callback(True)
            self.assertTrue(self.services.sent.pop() == self.clock.seconds())
            heartBeater.stop()

    def test_stoppedDuringACheck(self) -> None:
        """The check is cancelled, nothing is left on the clock, and nothing is logged."""
        cancelled: list[Any] = []
        self.result = lambda: Deferred(cancelled.append)
        heartBeater = self.heartBeater()
        heartBeater.stop()
        self.assertEqual((len(cancelled), self.clock.getDelayedCalls(), self.events), (1, [], []))
        self.pass_(100)
        self.assertEqual(len(self.calls), 1)

    # -- what the log says

    def test_oneLineWhenItBeginsAndOneWhenItEnds(self) -> None:
        """The first line has the reason, the second one the duration."""
        heartBeater = self.heartBeater(30)
        self.result = False
        self.pass_(29.9)
        self.assertEqual(
            self.lines("warn"), ["Service web1: health check failed: returned False; heartbeats suspended"]
        )
        self.pass_(95)
        self.result = True
        self.pass_(5)
        self.assertEqual(len(self.events), 2, self.events)
        self.assertRegex(
            self.lines("info")[0], r"^Service web1: health check passed after 10\d\.\d s; heartbeats resumed$"
        )
        self.assertTrue(heartBeater.healthy)

    def test_aSingleFailureIsTwoLines(self) -> None:
        """A single failure is logged, because it has suspended a heartbeat."""
        self.result = False
        self.heartBeater()
        self.result = True
        self.pass_(2)
        self.assertEqual([level for level, _ in self.events], ["warn", "info"])

    def test_beforeTheRegistration(self) -> None:
        """The log says that the registration is suspended."""
        self.result = None
        self.heartBeater(token=None, register=lambda: succeed("t"))
        self.pass_(20)
        self.result = True
        self.pass_(6)
        self.assertEqual(
            self.lines("warn"), ["Service web1: health check failed: returned None; registration suspended"]
        )
        self.assertRegex(self.lines("info")[0], "; registration resumed$")

    def test_reasons(self) -> None:
        """The reason is the message of an exception, what was returned, or that it took too long; always one line."""
        reasons: list[tuple[Any, str]] = [
            (ValueError("queue is full"), "ValueError: queue is full"),
            (KeyError(), "KeyError"),
            (Unprintable(), "Unprintable"),
            (SystemExit(3), "SystemExit: 3"),
            (CancelledError(), "CancelledError"),
            (lambda: fail(RuntimeError("later")), "RuntimeError: later"),
            (ConnectionRefusedError(), "connection refused"),
            (NoServiceAvailable("db", 0.0, {"db1": ValueError()}), "NoServiceAvailable: "),
            (ValueError("one\n  two\x1b[31m"), r"ValueError: one two\x1b[31m"),
            (ValueError("https://joe:hidden@db.test/ refused"), "ValueError: https://…@db.test/ refused"),
            (ValueError("x" * 1000), "ValueError: xxx"),
            (False, "returned False"),
            (None, "returned None"),
            ("", "returned ''"),
            ({}, "returned {}"),
            (Unhealthy(), "returned <tests.unit.heartbeats.test_healthcheck.Unhealthy object"),
            (Ambiguous(), "ValueError: ambiguous"),
            (lambda: Deferred(), "timed out after 2 s"),
        ]
        for result, reason in reasons:
            self.events.clear()
            self.result = result
            heartBeater = self.heartBeater()
            self.pass_(3)
            (line,) = self.lines()
            self.assertIn(f"health check failed: {reason}", line)
            self.assertLess(len(line), 280)
            self.assertNotIn("hidden", line)
            self.assertEqual(self.flushLoggedErrors(), [])
            self.result = True
            heartBeater.stop()

    def test_otherReasonsMeanwhile(self) -> None:
        """The reason that begins an outage is the only one that is logged."""
        self.result = ValueError("starting")
        self.heartBeater()
        self.pass_(20)
        self.result = ValueError("no database")
        self.pass_(100)
        self.assertEqual(
            self.lines(), ["Service web1: health check failed: ValueError: starting; heartbeats suspended"]
        )

    def test_anOutageOfTheRegistryIsNotTheChecks(self) -> None:
        """A heartbeat that fails after the check has passed again is logged with the time of its own outage."""
        self.result = False
        self.heartBeater()
        self.pass_(1000)
        self.services.failing = True
        self.result = True
        self.pass_(20)
        self.services.failing = False
        self.pass_(20)
        suspended, resumed, away, again = self.lines()
        self.assertIn("health check failed", suspended)
        self.assertIn("heartbeats resumed", resumed)
        self.assertIn("refused", away)
        self.assertRegex(again, r" after [12]\d\.\d s")

    def test_aNewStartIsANewBeginning(self) -> None:
        """A service that is stopped and started again while the check fails logs the failure again."""
        self.result = False
        heartBeater = self.heartBeater()
        heartBeater.stop()
        heartBeater.start()
        self.assertEqual(len(self.lines("warn")), 2)

    def test_anotherTimeoutIsNotANewBeginning(self) -> None:
        """While the check fails the heartbeat timeout may change: nothing more is logged."""
        self.result = False
        heartBeater = self.heartBeater()
        self.pass_(5)
        heartBeater.setTimeout(10)
        self.pass_(50)
        self.assertEqual(len(self.events), 1)
