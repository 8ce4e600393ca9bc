"""
Tests for :mod:`txserviceregistry.registry.limits`.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import RateLimiter, ResourceLimits

DAY = 86_400.0


class ResourceLimitsTests(SynchronousTestCase):
    """
    The resource limits.
    """

    def test_defaults(self) -> None:
        """
        An account may have 100,000 services and as many values unless the operator sets another limit.
        """
        self.assertEqual((ResourceLimits().service, ResourceLimits().configurationValue), (100_000, 100_000))


class RateLimiterTests(SynchronousTestCase):
    """
    The rate limit of GETs.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(12_345.6)
        self.limiter = RateLimiter(self.clock.seconds, limit=3)

    def used(self, tenant: str = "1") -> int:
        return self.limiter.used(tenant)

    def refusal(self, tenant: str = "1") -> Fault:
        return self.assertRaises(Fault, self.limiter.check, tenant)

    def test_defaults(self) -> None:
        """
        Out of the box an account has the protocol's 500,000 GETs in 24 hours, and none of them used.
        """
        limiter = RateLimiter(self.clock.seconds)
        self.assertEqual(
            limiter.usage(limiter.used("1")),
            {"/.*": {"limit": 500_000, "used": 0, "window": "24.0 hours"}},
        )

    def test_countsEachAccountOnItsOwn(self) -> None:
        """
        One account's requests are none of another's business.
        """
        for tenant in ("1", "1", "1", "2"):
            self.limiter.check(tenant)
        self.assertEqual((self.used("1"), self.used("2"), self.used("3")), (3, 1, 0))
        self.refusal("1")
        self.limiter.check("2")

    def test_refusesWhatIsTooMuch(self) -> None:
        """
        The request after the last one allowed is the fault that the API names, with the time to wait.
        """
        for _ in range(3):
            self.limiter.check("1")
        fault = self.refusal()
        self.assertEqual(
            (fault.code, fault.type, fault.message), (400, "rateLimitReached", "Rate limit has been reached.")
        )
        self.assertEqual(fault.details, 'Limit of 3 requests in 86400 seconds for path "/.*" has been reached')
        self.assertTrue(DAY <= int(fault.headers["Retry-After"]) <= DAY + 900)

    def test_refusedRequestsDoNotCount(self) -> None:
        """
        A client that goes on asking does not make its wait any longer.
        """
        for _ in range(3):
            self.limiter.check("1")
        first = int(self.refusal().headers["Retry-After"])
        self.clock.advance(100)
        for _ in range(50):
            later = int(self.refusal().headers["Retry-After"])
        self.assertEqual((self.used(), later), (3, first - 100))

    def test_retryAfterIsTheTruth(self) -> None:
        """
        After the seconds that were named, and not before, there is room again.
        """
        for _ in range(3):
            self.limiter.check("1")
        wait = int(self.refusal().headers["Retry-After"])
        self.clock.advance(wait - 1)
        self.refusal()
        self.clock.advance(1)
        self.limiter.check("1")

    def test_theWindowSlides(self) -> None:
        """
        Requests are forgotten one after the other, each about a day later.
        """
        self.limiter.check("1")
        self.clock.advance(DAY / 2)
        self.limiter.check("1")
        self.assertEqual(self.used(), 2)
        self.clock.advance(DAY / 2 + 1000)
        self.assertEqual(self.used(), 1)
        self.clock.advance(DAY)
        self.assertEqual(self.used(), 0)

    def test_aLimitOfNothing(self) -> None:
        """
        With a limit of 0 every GET is refused, with a whole window to wait.
        """
        self.limiter = RateLimiter(self.clock.seconds, limit=0, window=3600.0)
        self.assertEqual(self.refusal().headers["Retry-After"], "3600")
        self.assertEqual(self.limiter.usage(0)["/.*"]["window"], "1.0 hours")

    def test_theWindowIsToldInHours(self) -> None:
        """
        ``GET /limits`` has the window in hours, with enough decimals, however short it is.
        """
        for window, text in [
            (86_400, "24.0"),
            (30 * 86_400, "720.0"),
            (5400, "1.5"),
            (360, "0.1"),
            (60, "0.0167"),
            (10, "0.00278"),
            (1, "0.000278"),
            (6000, "1.67"),
        ]:
            limiter = RateLimiter(self.clock.seconds, window=window)
            self.assertEqual(limiter.usage(0)["/.*"]["window"], f"{text} hours")

    def test_theWindowIsToldInSeconds(self) -> None:
        """Headers and refusals have all digits of the window, however long it is."""
        for window, text in [
            (86_400.0, "86400"),
            (366 * 86_400.0, "31622400"),
            (1.5, "1.5"),
            (2_592_000.5, "2592000.5"),
        ]:
            self.limiter = RateLimiter(self.clock.seconds, limit=0, window=window)
            self.assertEqual(self.limiter.headers("1")["X-Ratelimit-Window"], f"{text} seconds")
            self.assertIn(f" in {text} seconds for ", self.refusal().details)

    def test_retryAfterIsTheTruthForEveryWindow(self) -> None:
        """
        In windows of a second, of ten and of a minute too there is room after the seconds that were named.
        """
        for window in (1.0, 10.0, 60.0, 7.3):
            limiter = RateLimiter(self.clock.seconds, limit=1, window=window)
            for offset in range(50):
                limiter.check("1")
                wait = int(self.assertRaises(Fault, limiter.check, "1").headers["Retry-After"])
                self.assertTrue(window <= wait <= window * (1 + 2 / 96) + 1, (window, wait))
                self.clock.advance(wait)
                limiter.check("1")
                self.clock.advance(2 * window + offset / 37)

    def test_noLimit(self) -> None:
        """
        Without a limit nothing is refused, and ``GET /limits`` has no rate.
        """
        limiter = RateLimiter(self.clock.seconds, limit=None)
        for _ in range(10):
            limiter.check("1")
        self.assertEqual((limiter.usage(0), limiter.headers("1")), ({}, {}))

    def test_headers(self) -> None:
        """
        The headers name the limit, how much of it was used before, and when the oldest request leaves the window.
        """
        wall = 1_700_000_000.0 - self.clock.seconds()
        limiter = RateLimiter(self.clock.seconds, 5, 60.0, wallClock=lambda: wall + self.clock.seconds())
        self.assertEqual(
            limiter.headers("1"),
            {
                "X-Ratelimit-Path-Regex": "/.*",
                "X-Ratelimit-Limit": "5",
                "X-Ratelimit-Used": "0",
                "X-Ratelimit-Window": "60 seconds",
                "Reply-After": "1700000060",
            },
        )
        for _ in range(5):
            limiter.check("1")
        headers = limiter.headers("1")
        wait = int(self.assertRaises(Fault, limiter.check, "1").headers["Retry-After"])
        self.assertEqual((headers["X-Ratelimit-Used"], headers["Reply-After"]), ("5", str(1_700_000_000 + wait)))
