"""
Outbreaks: many services that time out within a short while, which is rarely because so many have died.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from ...util.logs import Logger


class MassExpiryWarning:
    """
    Warns when unusually many services have timed out.

    When a network is cut, those behind it do not time out together but over the length of their timeouts, each at its
    own deadline; so what counts is how many there are within a minute.

    :param clock: the reactor.
    :param population: how many services there are left.
    """

    #: Seconds that are looked at together.
    WINDOW = 60.0
    #: How many have to time out, and which part of all, before there is a warning.
    FEWEST = 20
    SHARE = 0.1

    _log = Logger()

    def __init__(self, clock: IReactorTime, population: Callable[[], int]) -> None:
        self._clock = clock
        self._population = population
        self._began: float | None = None
        self._count = 0
        self._before = 0
        # How many there have to be for the next warning.
        self._threshold = 0.0

    def add(self, count: int) -> None:
        """So many have timed out just now."""
        now = self._clock.seconds()
        if self._began is None or now - self._began >= self.WINDOW:
            self._began = now
            self._count = 0
            self._before = self._population() + count
            self._threshold = max(self.FEWEST, self.SHARE * self._before)
        self._count += count
        if self._count >= self._threshold:
            # Some of them may have come since.
            self._before = max(self._before, self._population() + self._count)
            # The next warning is worth its line when it is twice as bad.
            self._threshold = 2 * self._count
            self._log.warn(
                "{count} of {before} services have timed out within {seconds:.0f} s. So many at once have rarely died: "
                "look at the network between them and this registry, and at the machines that they run on",
                count=self._count,
                before=self._before,
                seconds=max(now - self._began, 1.0),
            )
