"""
How many objects an account may have (:class:`ResourceLimits`), how many GETs it may make (:class:`RateLimiter`), and
how many requests may be held (:class:`Places`).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs

from .faults import rateLimitReached, systemFailure

#: The pattern of paths that the rate limit counts: all of them.
PATHS = "/.*"
#: Seconds after which a request for which there was no place may be sent again.
RETRY_AFTER = 5
#: The names of the headers with a client's rate.
RATE_HEADERS = ("X-Ratelimit-Path-Regex", "X-Ratelimit-Limit", "X-Ratelimit-Used", "X-Ratelimit-Window", "Reply-After")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@attrs.frozen
class ResourceLimits:
    """
    How many objects of each kind an account may have. The original registry allowed 200 services and 1,000 values.

    :ivar service: registered services.
    :ivar configurationValue: configuration values.
    :ivar lock: locks that are held.
    """

    service: int = 100_000
    configurationValue: int = 100_000
    lock: int = 10_000


class RateLimiter:
    """
    Counts the GETs of each account within a sliding window.

    Only GETs count: the rate limit must never cause an expiration, and the resource limits bound what is written. A GET
    that is refused does not count, so that the limit ends at the time of ``Retry-After``.

    The window consists of :attr:`BUCKETS` parts: an account takes at most that many counters, and a request is
    forgotten up to one part (15 minutes of a day) late. The counts are kept in memory only.

    :param seconds: monotonic seconds, such as ``reactor.seconds``.
    :param limit: how many GETs an account may make in the *window* (seconds); ``None`` for no limit.
    """

    BUCKETS = 96

    def __init__(
        self,
        seconds: Callable[[], float],
        limit: int | None = 500_000,
        window: float = 86_400.0,
        *,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        self._seconds = seconds
        self._wallClock = wallClock
        self._limit = limit
        self._window = window
        self._width = window / self.BUCKETS
        # The GETs of each account, by part of the window, oldest first.
        self._usage: dict[str, dict[int, int]] = {}
        self._current = self._bucket()

    def check(self, tenant: str) -> None:
        """Count a GET, or raise the fault ``rateLimitReached``, which says when the oldest GET will be forgotten."""
        if self._limit is None:
            return
        usage = self._usageOf(tenant)
        if sum(usage.values()) >= self._limit:
            raise rateLimitReached(
                f'Limit of {self._limit} requests in {self._window:.15g} seconds for path "{PATHS}" has been reached',
                self._retryAfter(usage),
            )
        usage[self._current] = usage.get(self._current, 0) + 1
        self._usage[tenant] = usage

    def used(self, tenant: str) -> int:
        """How many GETs of *tenant* count now."""
        return sum(self._usageOf(tenant).values())

    def usage(self, used: int) -> dict[str, dict[str, int | str]]:
        """The rate in ``GET /limits``, by pattern of paths; *used* is without the present request."""
        if self._limit is None:
            return {}
        return {PATHS: {"limit": self._limit, "used": used, "window": self._hours()}}

    def headers(self, tenant: str) -> Mapping[str, str]:
        """The headers of the response to a GET of *tenant*, made before it is counted; none without a limit."""
        if self._limit is None:
            return NO_HEADERS
        usage = self._usageOf(tenant)
        return {
            "X-Ratelimit-Path-Regex": PATHS,
            "X-Ratelimit-Limit": str(self._limit),
            "X-Ratelimit-Used": str(sum(usage.values())),
            "X-Ratelimit-Window": f"{self._window:.15g} seconds",
            # The original's spelling. In a sliding window this is when the oldest counted request leaves it.
            "Reply-After": str(math.ceil(self._wallClock() + self._retryAfter(usage))),
        }

    def _bucket(self) -> int:
        return math.floor(self._seconds() / self._width)

    def _hours(self) -> str:
        # One decimal, as in the protocol; three significant digits where one decimal is not exact.
        hours = self._window / 3600
        isExact = hours >= 0.1 and abs(hours * 10 - round(hours * 10)) < 1e-6
        decimals = 1 if isExact else max(2 - math.floor(math.log10(hours)), 1)
        return f"{hours:.{decimals}f} hours"

    def _retryAfter(self, usage: dict[int, int]) -> int:
        if not usage:
            return math.ceil(self._window)
        return math.ceil((next(iter(usage)) + self.BUCKETS + 1) * self._width - self._seconds())

    def _usageOf(self, tenant: str) -> dict[int, int]:
        now = self._bucket()
        if now != self._current:
            self._current = now
            for name, usage in list(self._usage.items()):
                for bucket in [each for each in usage if each < now - self.BUCKETS]:
                    del usage[bucket]
                if not usage:
                    del self._usage[name]
        return self._usage.get(tenant, {})


class Places:
    """
    Places of one kind.

    :param most: how many there are.
    :param mostOfTenant: how many one tenant may have; as many as there are if not given.
    :param within: places of several kinds, of which each of these takes one.
    :ivar count: how many are taken.
    """

    def __init__(self, most: int, mostOfTenant: int | None = None, within: Places | None = None) -> None:
        self._most = most
        self._mostOfTenant = most if mostOfTenant is None else mostOfTenant
        self._within = within
        self._countOf: Counter[str] = Counter()
        self.count = 0

    def take(self, tenant: str, refusal: str) -> None:
        """Take one for a request of a tenant; the fault 503 with this *refusal*, if there is none left."""
        if self.count >= self._most or self._countOf[tenant] >= self._mostOfTenant:
            raise systemFailure(refusal, RETRY_AFTER)
        if self._within is not None:
            self._within.take(tenant, refusal)
        self._countOf[tenant] += 1
        self.count += 1

    def give(self, tenant: str) -> None:
        self._countOf[tenant] -= 1
        if not self._countOf[tenant]:
            del self._countOf[tenant]
        self.count -= 1
        if self._within is not None:
            self._within.give(tenant)
