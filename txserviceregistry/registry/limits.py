"""
How much an account may have (:class:`ResourceLimits`) and how often it may ask (:class:`RateLimiter`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import attrs

from .faults import rateLimitReached

__all__ = ["RateLimiter", "ResourceLimits"]


@attrs.frozen
class ResourceLimits:
    """
    How many objects of each kind an account may have. The defaults are the protocol's.

    :ivar service: living services.
    :ivar configurationValue: configuration values.
    """

    service: int = 200
    configurationValue: int = 1000


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
    """

    BUCKETS = 96

    def __init__(self, seconds: Callable[[], float], limit: int | None = 500_000, window: float = 86_400.0) -> None:
        self._seconds = seconds
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
                f"Limit for GET requests has been reached. Maximum allowed requests: {self._limit} in {self._hours()}",
                self._retryAfter(usage),
            )
        if usage.buckets and usage.buckets[-1][0] == self._current:
            usage.buckets[-1][1] += 1
        else:
            usage.buckets.append([self._current, 1])
        usage.total += 1
        self._usage[tenant] = usage

    def usage(self, tenant: str) -> dict[str, dict[str, int | str]]:
        """
        What ``GET /limits`` says of *tenant*'s rate: ``limit``, ``used`` and ``window`` by pattern of paths. Without a
        limit there is no pattern.
        """
        if self._limit is None:
            return {}
        return {"/.*": {"limit": self._limit, "used": self._usageOf(tenant).total, "window": self._hours()}}

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
