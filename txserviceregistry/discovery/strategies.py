"""
Load balancing strategies: which of several instances that are equally good is the next one.
"""

from __future__ import annotations

import random as randomModule
from bisect import bisect_right
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from zope.interface import Interface, implementer

from .instances import Instance, Key


class IStrategy(Interface):
    """Picks one of several instances. One strategy serves one balancer."""

    def pick(candidates: Sequence[Instance]) -> Instance:
        """The next one of *candidates*, sorted by id; as long as nothing has changed they are the same object."""

    def began(instance: Instance) -> None:
        """A use of *instance* begins: a connection or a request. Follows each :meth:`pick`."""

    def ended(instance: Instance) -> None:
        """A use of *instance* has ended."""


class _Stateless:
    """A strategy that needs no knowledge of what is in use."""

    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        self._random = random

    def began(self, instance: Instance) -> None:
        """Makes no difference here."""

    def ended(self, instance: Instance) -> None:
        """Makes no difference here."""


@implementer(IStrategy)
class RoundRobin(_Stateless):
    """
    One after the other, in the order of their ids, beginning at a random one: programs that make one request per run,
    and programs that restart together, spread over all instances.

    :param random: gives numbers from 0 to 1; draws the first instance.
    """

    _candidates: Sequence[Instance] = ()
    _position = -1
    _last: str | None = None

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is self._candidates:
            position = self._position + 1
        elif self._last is None:
            position = _drawn(candidates, self._random)
        else:
            # After other candidates, the next one is the one whose id follows the last one's.
            position = bisect_right(candidates, self._last, key=lambda one: one.id)
        self._candidates = candidates
        self._position = position % len(candidates)
        picked = candidates[self._position]
        self._last = picked.id
        return picked


@implementer(IStrategy)
class RandomChoice(_Stateless):
    """
    A random one.

    :param random: gives numbers from 0 to 1.
    """

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        return candidates[_drawn(candidates, self._random)]


@implementer(IStrategy)
class LeastConnections:
    """
    The one that this process uses least at this moment; of several such, the one whose number of uses has been the same
    for longest; of several that were never used, a random one.

    :param random: gives numbers from 0 to 1; breaks ties.
    """

    # A heap of (uses, turn, random number, position in the candidates). An entry whose turn is not the instance's last
    # one is outdated, and dropped when it comes to the top. Looking at all candidates took 60 times as long for 1,000.
    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        self._random = random
        self._uses: dict[Key, int] = {}
        self._candidates: Sequence[Instance] = ()
        self._positions: dict[Key, int] = {}
        self._turns: dict[Key, int] = {}
        self._heap: list[tuple[int, int, float, int]] = []
        self._turn = 0

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates or len(self._heap) > 4 * len(candidates) + 64:
            self._arrange(candidates)
        while True:
            _, turn, _, position = self._heap[0]
            instance = candidates[position]
            if self._turns[instance.key] == turn:
                return instance
            heappop(self._heap)

    def began(self, instance: Instance) -> None:
        self._change(instance, +1)

    def ended(self, instance: Instance) -> None:
        self._change(instance, -1)

    def _arrange(self, candidates: Sequence[Instance]) -> None:
        turns = {instance.key: self._turns.get(instance.key, 0) for instance in candidates}
        self._candidates = candidates
        self._turns = turns
        self._positions = {instance.key: position for position, instance in enumerate(candidates)}
        self._heap = [
            (self._uses.get(instance.key, 0), turns[instance.key], self._random(), position)
            for position, instance in enumerate(candidates)
        ]
        heapify(self._heap)

    def _change(self, instance: Instance, difference: int) -> None:
        key = instance.key
        uses = self._uses.get(key, 0) + difference
        if uses > 0:
            self._uses[key] = uses
        else:
            uses = 0
            self._uses.pop(key, None)
        position = self._positions.get(key)
        if position is not None:
            self._turn += 1
            self._turns[key] = self._turn
            # No other entry has this turn.
            heappush(self._heap, (uses, self._turn, 0.0, position))


def _drawn(candidates: Sequence[Instance], random: Callable[[], float]) -> int:
    # A number of exactly 1 is not in random.random's range, but may be in another's.
    return min(int(random() * len(candidates)), len(candidates) - 1)


#: The strategies by name.
STRATEGIES: dict[str, Callable[[Callable[[], float]], IStrategy]] = {
    "round-robin": RoundRobin,
    "random": RandomChoice,
    "least-connections": LeastConnections,
}


def strategyNamed(name: str, random: Callable[[], float] = randomModule.random) -> IStrategy:
    """A new strategy; raises ValueError if the name is unknown."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r} (known: {', '.join(STRATEGIES)})")
    return STRATEGIES[name](random)
