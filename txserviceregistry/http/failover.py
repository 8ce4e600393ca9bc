"""
Which server of several to ask: one that works, for as long as it works.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime

from ..util.backoff import Backoff

# Seconds that a server which has failed is asked last: longer with each failure.
_FIRST_PENALTY = 2.0
_LONGEST_PENALTY = 60.0
# Seconds, at the least and at the most, before a client goes back to the server that it began with. Each client draws
# its own, so that a server that is back meets its clients one after the other.
_RETURN = (20.0, 80.0)


class Servers:
    """
    Several servers that are one service, as one client sees them.

    A client begins with a server that it draws, so that a fleet spreads over all of them. It stays with one that
    works; from one that doesn't it goes to the next in an order of its own, so that the clients of a server that has
    died spread over all that are left; and after a while, with a request that may be repeated, it tries the one that it
    began with.

    :param count: how many there are.
    :param clock: for penalties and returns.
    :param random: gives numbers from 0 to 1.
    :ivar current: the number of the server that is asked first.
    """

    def __init__(self, count: int, clock: IReactorTime, random: Callable[[], float] = randomModule.random) -> None:
        self._clock = clock
        self._random = random
        left = list(range(count))
        self._ring = [left.pop(int(random() * len(left)) % len(left)) for _ in range(count)]
        self._home = self.current = self._ring[0] if count else 0
        self._shunnedUntil = [0.0] * count
        self._penalties = [Backoff(_FIRST_PENALTY, _LONGEST_PENALTY, random) for _ in range(count)]
        self._returnAt: float | None = None

    def order(self, *, mayTry: bool) -> Sequence[int]:
        """
        The servers in the order in which to ask them.

        :param mayTry: whether the request may be repeated with another server if the first one fails: then it may be
            the one that finds out whether the client can go back.
        """
        if len(self._ring) == 1:
            return self._ring
        now = self._clock.seconds()
        first = self.current
        if mayTry and self._returnAt is not None and now >= self._returnAt:
            # One request tries; the others stay where they are until it is known.
            self._drawReturn()
            first = self._home
        at = self._ring.index(self.current)
        others = [number for number in self._ring[at:] + self._ring[:at] if number != first]
        # Sorting keeps the order of those that are alike.
        return [first, *sorted(others, key=lambda number: self._shunnedUntil[number] > now)]

    def worked(self, number: int) -> None:
        """This one has answered."""
        if self._shunnedUntil[number]:
            self._shunnedUntil[number] = 0.0
            self._penalties[number].reset()
        if self.current == number:
            return
        self.current = number
        if number == self._home:
            self._returnAt = None
        else:
            self._drawReturn()

    def failed(self, number: int) -> None:
        """This one has not answered, or said that it can't do its work."""
        now = self._clock.seconds()
        # The first delay of a backoff is none, but there are others that can be asked.
        self._shunnedUntil[number] = now + max(self._penalties[number].next(), _FIRST_PENALTY)
        if number != self.current:
            return
        self.current = self.order(mayTry=False)[1 % len(self._shunnedUntil)]
        if self.current == self._home:
            self._returnAt = None
        else:
            self._drawReturn()

    def _drawReturn(self) -> None:
        least, most = _RETURN
        self._returnAt = self._clock.seconds() + least + (most - least) * self._random()
