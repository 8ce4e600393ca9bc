"""Limits of objects, GETs and held requests, and a fair order of work for unauthenticated clients."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

import attrs

from .faults import Fault, systemFailure

_T = TypeVar("_T")

#: The pattern of paths that the rate limit counts: all of them.
PATHS = "/.*"
#: Seconds after which a request for which there was no place may be sent again.
RETRY_AFTER = 5
#: The names of the headers with a client's rate.
RATE_HEADERS = ("X-Ratelimit-Path-Regex", "X-Ratelimit-Limit", "X-Ratelimit-Used", "X-Ratelimit-Window", "Reply-After")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
#: How many parts the window of the rate limit has.
_PARTS = 96
#: Of how many parties of one level a FairQueue remembers that they have been served.
REMEMBERED_PARTIES = 10_000


@attrs.frozen
class ResourceLimits:
    """
    How many services, configuration values and held locks an account may have. The original registry allowed 200
    services and 1,000 values.
    """

    service: int = 100_000
    configurationValue: int = 100_000
    lock: int = 10_000


@attrs.define(eq=False)
class RateLimiter:
    """
    Counts the GETs of each account within a sliding window. Only GETs count: the rate limit must never cause an
    expiration. One that is refused does not count, so that the limit ends at the time of ``Retry-After``. A request is
    forgotten up to one part of the window (15 minutes of a day) late.
    """

    _seconds: Callable[[], float]
    _limit: int | None = 500_000
    _window: float = 86_400.0
    _wallClock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)
    # The GETs of each account, by part of the window, oldest first; and the part up to which old ones were forgotten.
    _usage: dict[str, dict[int, int]] = attrs.field(init=False, factory=dict)
    _current: int = attrs.field(init=False, default=0)

    def check(self, tenant: str) -> None:
        """Count a GET, or raise the fault ``rateLimitReached``, which says when the oldest GET will be forgotten."""
        if self._limit is None:
            return
        usage = self._usageOf(tenant)
        if sum(usage.values()) >= self._limit:
            limit, window = self._limit, f"{self._window:.15g}"
            details = f'Limit of {limit} requests in {window} seconds for path "{PATHS}" has been reached'
            headers = {"Retry-After": str(max(1, self._retryAfter(usage)))}
            raise Fault("rateLimitReached", "Rate limit has been reached.", details, headers)
        usage[self._current] = usage.get(self._current, 0) + 1
        self._usage[tenant] = usage

    def used(self, tenant: str) -> int:
        return sum(self._usageOf(tenant).values())

    def usage(self, used: int) -> dict[str, dict[str, int | str]]:
        """The rate in ``GET /limits``, by pattern of paths; *used* is without the present request."""
        if self._limit is None:
            return {}
        hours = self._window / 3600
        # One decimal, as in the protocol, or three significant digits where that is not exact.
        shown = f"{hours:.1f}" if float(f"{hours:.1f}") == hours else f"{hours:.3g}"
        return {PATHS: {"limit": self._limit, "used": used, "window": f"{shown} hours"}}

    def headers(self, tenant: str) -> Mapping[str, str]:
        """The headers of the response to a GET of *tenant*, made before it is counted; none without a limit."""
        if self._limit is None:
            return NO_HEADERS
        usage = self._usageOf(tenant)
        # In a sliding window "Reply-After" (the original's spelling) is when the oldest counted request leaves it.
        replyAfter = math.ceil(self._wallClock() + self._retryAfter(usage))
        used, window = sum(usage.values()), f"{self._window:.15g} seconds"
        return dict(zip(RATE_HEADERS, (PATHS, str(self._limit), str(used), window, str(replyAfter)), strict=True))

    def _retryAfter(self, usage: dict[int, int]) -> int:
        if not usage:
            return math.ceil(self._window)
        return math.ceil((next(iter(usage)) + _PARTS + 1) * self._window / _PARTS - self._seconds())

    def _usageOf(self, tenant: str) -> dict[int, int]:
        now = math.floor(self._seconds() / self._window * _PARTS)
        if now != self._current:
            self._current = now
            recent = {
                name: {part: count for part, count in usage.items() if part >= now - _PARTS}
                for name, usage in self._usage.items()
            }
            self._usage = {name: usage for name, usage in recent.items() if usage}
        return self._usage.get(tenant, {})


@attrs.define(eq=False)
class Places:
    """Places of one kind, of which *count* are taken. Each takes one of those *within* which they are, too."""

    _most: int
    _mostOfTenant: float = math.inf
    _within: Places | None = None
    _countOf: Counter[str] = attrs.field(init=False, factory=Counter)
    count: int = attrs.field(init=False, default=0)

    def take(self, tenant: str, refusal: str) -> None:
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


@attrs.frozen
class Origin:
    """The source of a request or a handshake."""

    peer: str = "local sockets"  # the client's address
    connection: int = 0  # what divides the work for one address
    isKnown: bool = False  # whether a client at this address has authenticated recently


class FairQueue(Generic[_T]):
    """
    A queue that serves parties in turn, however many items each of them has in it. Every other turn is for parties that
    were not served before. An item's path names its party on each level: ``(address, connection)`` divides the turns
    evenly between addresses, and those of an address evenly between its connections. All paths have the same length.
    """

    def __init__(self) -> None:
        self._count = 0
        # Of the last level.
        self._items: deque[_T] = deque()
        # Of the others: what the parties have in the queue that were served before, and the other ones, by their turns.
        self._old: dict[Hashable, FairQueue[_T]] = {}
        self._new: dict[Hashable, FairQueue[_T]] = {}
        self._served: set[Hashable] = set()
        self._isOldsTurn = False

    def __len__(self) -> int:
        return self._count

    def add(self, path: Sequence[Hashable], item: _T) -> None:
        self._count += 1
        if not path:
            self._items.append(item)
            return
        party = path[0]
        isNew = party in self._new or (party not in self._old and party not in self._served)
        (self._new if isNew else self._old).setdefault(party, FairQueue()).add(path[1:], item)

    def pop(self) -> _T:
        """Remove the item that is served next, which must be there."""
        self._count -= 1
        if self._items:
            return self._items.popleft()
        parties = self._old if not self._new or (self._old and self._isOldsTurn) else self._new
        # Not one that becomes old by this turn.
        self._isOldsTurn = parties is self._new and bool(self._old)
        party = next(iter(parties))
        queue = parties.pop(party)
        item = queue.pop()
        self._served.add(party)
        if queue:
            self._old[party] = queue
        if not self._count or len(self._served) > REMEMBERED_PARTIES:
            # With an empty queue there is no order to keep.
            self._served.clear()
        return item

    def dropLast(self) -> _T:
        """Remove the last item of the party that has most, if possible one that was served before."""
        self._count -= 1
        if self._items:
            return self._items.pop()
        parties = self._old or self._new
        party = max(reversed(parties), key=lambda party: len(parties[party]))
        item = parties[party].dropLast()
        if not parties[party]:
            del parties[party]
        return item
