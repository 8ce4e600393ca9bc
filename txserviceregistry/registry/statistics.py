"""The counts of a registry: plain numbers, of which ``registry.http.metrics`` makes metrics when it is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable

import attrs

#: The upper bounds of the histogram of response times, in seconds: from a heartbeat (0.2 ms) up to what only a store in
#: trouble needs.
REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: The same for how many operations share a commit.
COMMIT_OPERATIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


@attrs.define
class Histogram:
    """How many values of which size there were: *counts* by bucket, whose upper bounds are included, and their sum."""

    bounds: tuple[float, ...] = REQUEST_SECONDS
    counts: list[int] = attrs.field(init=False)
    total: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@attrs.define
class RouteStatistics:
    """How many requests of one method for one route there were, by status code, and how long their responses took."""

    codes: Counter[int] = attrs.field(factory=Counter)
    seconds: Histogram = attrs.field(factory=Histogram)

    def add(self, code: int, seconds: float) -> None:
        self.codes[code] += 1
        self.seconds.add(seconds)


@attrs.define
class StoreStatistics:
    """The work of a store, in seconds with waiting."""

    reads: Histogram = attrs.field(factory=Histogram)
    writes: Histogram = attrs.field(factory=Histogram)
    commits: Histogram = attrs.field(factory=lambda: Histogram(COMMIT_OPERATIONS))  # by operations
    isReadable: bool = True
    isWritable: bool = True
    walBytes: int | None = None
    votes: Callable[[], int] | None = None  # how many services this node has put to the vote
