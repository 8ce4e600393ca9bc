"""
What a registry counts while it works: plain numbers, because counting comes with every heartbeat.

Nothing here knows who reads the numbers; :mod:`txserviceregistry.registry.http.metrics` does, when it is asked.
"""

from __future__ import annotations

from bisect import bisect_left

import attrs

#: The upper ends, in seconds, of the classes into which the time is sorted that an answer takes: from a heartbeat
#: (0.2 ms) up to what only a store in trouble needs.
REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: The same for an operation of a store.
STORE_SECONDS = REQUEST_SECONDS
#: The same for how many operations share a commit.
COMMIT_OPERATIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


@attrs.define
class Histogram:
    """
    How many values of which size there were.

    :ivar bounds: the upper ends of the classes, each counted to its own; above the last one there is one more class.
    :ivar counts: how many values are in each.
    :ivar total: all values together.
    """

    bounds: tuple[float, ...]
    counts: list[int] = attrs.field(init=False)
    total: float = attrs.field(init=False, default=0.0)

    def __attrs_post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@attrs.define
class RouteStatistics:
    """
    The requests of one method for one route.

    :ivar codes: how many there were, by the status code of their answers.
    :ivar seconds: how long their answers took.
    """

    codes: dict[int, int] = attrs.field(factory=dict)
    seconds: Histogram = attrs.field(factory=lambda: Histogram(REQUEST_SECONDS))


@attrs.define
class RequestStatistics:
    """
    The requests that were answered.

    :ivar routes: by method and route. There are as many entries as there are routes: whatever clients make up has to
        be given one name before it comes here.
    """

    routes: dict[tuple[bytes, str], RouteStatistics] = attrs.field(factory=dict)

    def add(self, method: bytes, route: str, code: int, seconds: float) -> None:
        """Count an answer, and the time that it took."""
        statistics = self.routes.get((method, route))
        if statistics is None:
            statistics = self.routes[(method, route)] = RouteStatistics()
        codes = statistics.codes
        codes[code] = codes.get(code, 0) + 1
        statistics.seconds.add(seconds)


@attrs.define
class StoreStatistics:
    """
    The work of a store. What a store has no notion of stays empty.

    :ivar reads: how long those have waited for their answer, in seconds, who wanted to read.
    :ivar writes: the same for those who wanted to write.
    :ivar commits: how many operations shared a commit.
    :ivar isReadable: whether it could be read the last time.
    :ivar isWritable: whether it could be written the last time.
    :ivar walBytes: the size of its write-ahead log.
    """

    reads: Histogram = attrs.field(factory=lambda: Histogram(STORE_SECONDS))
    writes: Histogram = attrs.field(factory=lambda: Histogram(STORE_SECONDS))
    commits: Histogram = attrs.field(factory=lambda: Histogram(COMMIT_OPERATIONS))
    isReadable: bool = True
    isWritable: bool = True
    walBytes: int | None = None
