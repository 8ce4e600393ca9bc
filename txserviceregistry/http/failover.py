"""The choice of one of several servers: one that works, for as long as it works."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime

# Seconds for which a server that failed is asked last.
_PENALTY = 10.0
# The fewest and the most seconds before a client returns to its first server. Each client draws its own, so that a
# server that works again gets its clients one after the other.
_RETURN = (20.0, 80.0)


class Servers:
    """
    The servers of one service, by their numbers, as one client sees them. The client draws its first server, and the
    order of the others, so that the clients of a server that fails spread over the others. It stays with a server that
    works. After a while a repeatable request tries the first server again.

    :ivar current: the server that is asked first.
    """

    def __init__(self, count: int, clock: IReactorTime, random: Callable[[], float] = randomModule.random) -> None:
        self._clock = clock
        self._random = random
        left = list(range(count))
        self._ring = [left.pop(int(random() * len(left)) % len(left)) for _ in range(count)]
        self.current = self._ring[0] if count else 0
        self._shunnedUntil = [0.0] * count
        self._returnAt: float | None = None

    def __len__(self) -> int:
        return len(self._ring)

    def order(self, *, mayTry: bool) -> Sequence[int]:
        """The order in which to ask; *mayTry* the first server again with a request that is repeatable."""
        if len(self._ring) == 1:
            return self._ring
        now = self._clock.seconds()
        first = self.current
        if mayTry and self._returnAt is not None and now >= self._returnAt:
            # Only one request tries.
            self._drawReturn()
            first = self._ring[0]
        at = self._ring.index(self.current)
        others = [number for number in self._ring[at:] + self._ring[:at] if number != first]
        # Sorting is stable.
        return [first, *sorted(others, key=lambda number: self._shunnedUntil[number] > now)]

    def worked(self, number: int) -> None:
        """There was a response."""
        self._shunnedUntil[number] = 0.0
        if self.current != number:
            self._stayWith(number)

    def failed(self, number: int) -> None:
        """There was no response, or the server is unavailable."""
        self._shunnedUntil[number] = self._clock.seconds() + _PENALTY
        if number == self.current:
            self._stayWith(self.order(mayTry=False)[1 % len(self._ring)])

    def _stayWith(self, number: int) -> None:
        self.current = number
        self._returnAt = None
        if number != self._ring[0]:
            self._drawReturn()

    def _drawReturn(self) -> None:
        least, most = _RETURN
        self._returnAt = self._clock.seconds() + least + (most - least) * self._random()
