"""
How much an account may have (:class:`ResourceLimits`) and how often it may ask (:class:`RateLimiter`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs

from .faults import rateLimitReached

#: The pattern of paths that the rate limit counts: all of them.
PATHS = "/.*"
#: The names of the headers that tell a client about its rate.
RATE_HEADERS = ("X-Ratelimit-Path-Regex", "X-Ratelimit-Limit", "X-Ratelimit-Used", "X-Ratelimit-Window", "Reply-After")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@attrs.frozen
class ResourceLimits:
    """
    How many objects of each kind an account may have. The original registry allowed 200 services and 1,000 values.

    :ivar service: living services.
    :ivar configurationValue: configuration values.
    """

    service: int = 100_000
    configurationValue: int = 100_000


@attrs.define
class _Usage:
    """
    How often one account asked: ``(bucket, requests)`` pairs, oldest first, and their sum.
    """

    buckets: deque[list[int]] = attrs.field(factory=deque)
    total: int = 0


class RateLimiter:
    """
    Counts the GET requests of each account within a window that slides along with the clock.

    Only GETs count: a service must never die of the rate limit, and what changes something is bounded by the resource
    limits. A GET that is refused does not count either, so that the limit ends at the time that ``Retry-After`` says,
    however hard a client goes on asking.

    The window is kept in :attr:`BUCKETS` coarse parts: an account costs at most that many small counters, and a request
    is forgotten up to one part (15 minutes of a day) late. The counts live in memory and begin anew with the process.

    :param seconds: monotonic seconds, such as ``reactor.seconds``.
    :param limit: how many GETs an account may make in the *window*; ``None`` for as many as it likes.
    :param window: in seconds.
    :param wallClock: seconds since the epoch, for the headers.
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
        self._usage: dict[str, _Usage] = {}
        self._current = self._bucket()

    def check(self, tenant: str) -> None:
        """
        Count a GET of *tenant*.

        :raises Fault: ``rateLimitReached``, if the account has used up its window; ``Retry-After`` says when the oldest
            of its requests will be forgotten.
        """
        if self._limit is None:
            return
        usage = self._usageOf(tenant)
        if usage.total >= self._limit:
            raise rateLimitReached(
                f'Limit of {self._limit} requests in {self._window:.15g} seconds for path "{PATHS}" has been reached',
                self._retryAfter(usage),
            )
        if usage.buckets and usage.buckets[-1][0] == self._current:
            usage.buckets[-1][1] += 1
        else:
            usage.buckets.append([self._current, 1])
        usage.total += 1
        self._usage[tenant] = usage

    def used(self, tenant: str) -> int:
        """How many GETs of *tenant* count now."""
        return self._usageOf(tenant).total

    def usage(self, used: int) -> dict[str, dict[str, int | str]]:
        """
        What ``GET /limits`` says of an account's rate: ``limit``, ``used`` and ``window`` by pattern of paths. Without
        a limit there is no pattern.

        :param used: how many GETs count, without the one that asks.
        """
        if self._limit is None:
            return {}
        return {PATHS: {"limit": self._limit, "used": used, "window": self._hours()}}

    def headers(self, tenant: str) -> Mapping[str, str]:
        """
        The headers of the response to a GET of *tenant*, made before the request is counted: it does not count itself.
        Without a limit there are none.
        """
        if self._limit is None:
            return NO_HEADERS
        usage = self._usageOf(tenant)
        return {
            "X-Ratelimit-Path-Regex": PATHS,
            "X-Ratelimit-Limit": str(self._limit),
            "X-Ratelimit-Used": str(usage.total),
            "X-Ratelimit-Window": f"{self._window:.15g} seconds",
            # The original's spelling. Of a window that slides, this is when the oldest counted request leaves it.
            "Reply-After": str(math.ceil(self._wallClock() + self._retryAfter(usage))),
        }

    def _bucket(self) -> int:
        return math.floor(self._seconds() / self._width)

    def _hours(self) -> str:
        # One decimal, as the protocol has it; of windows that would not show so, three digits that count.
        hours = self._window / 3600
        decimals = (
            1 if hours >= 0.1 and abs(hours * 10 - round(hours * 10)) < 1e-6 else 2 - math.floor(math.log10(hours))
        )
        return f"{hours:.{max(decimals, 1)}f} hours"

    def _retryAfter(self, usage: _Usage) -> int:
        if not usage.buckets:
            return math.ceil(self._window)
        return math.ceil((usage.buckets[0][0] + self.BUCKETS + 1) * self._width - self._seconds())

    def _usageOf(self, tenant: str) -> _Usage:
        now = self._bucket()
        if now != self._current:
            self._current = now
            # Once per bucket is often enough to let go of the accounts that have not asked for a whole window.
            for name, usage in list(self._usage.items()):
                self._forget(usage)
                if not usage.total:
                    del self._usage[name]
        return self._usage.get(tenant) or _Usage()

    def _forget(self, usage: _Usage) -> None:
        while usage.buckets and usage.buckets[0][0] < self._current - self.BUCKETS:
            usage.total -= usage.buckets.popleft()[1]
