"""
Load balancing strategies: which of several instances that are equally good is the next one.
"""

from __future__ import annotations

import random as randomModule
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from types import MappingProxyType

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
    and programs that restart together, spread over all instances. With different weights, each as often as its weight
    says.

    :param random: gives numbers from 0 to 1; draws the first instance.
    """

    _candidates: Sequence[Instance] = ()
    _position = -1
    _last: str | None = None
    # Of instances with different weights, how much work each is behind; otherwise none.
    _credits: Mapping[Key, float] = MappingProxyType({})

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates and len({one.weight for one in candidates}) > 1:
            # Each process begins elsewhere.
            known = self._credits
            self._credits = {one.key: known.get(one.key, one.weight * self._random()) for one in candidates}
            self._candidates = candidates
        if candidates is self._candidates and self._credits:
            return self._pickByWeight(candidates)
        self._credits = {}
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

    def _pickByWeight(self, candidates: Sequence[Instance]) -> Instance:
        # As nginx does it: in each round every instance gets as many turns as its weight, evenly distributed.
        credits = self._credits = {one.key: self._credits[one.key] + one.weight for one in candidates}
        picked = max(candidates, key=lambda one: credits[one.key])
        credits[picked.key] -= sum(one.weight for one in candidates)
        self._last = picked.id
        return picked


@implementer(IStrategy)
class RandomChoice(_Stateless):
    """
    A random one, each with a probability by its weight.

    :param random: gives numbers from 0 to 1.
    """

    _candidates: Sequence[Instance] = ()
    _ends: Sequence[int] = ()

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._candidates, self._ends = candidates, list(accumulate(one.weight for one in candidates))
        position = bisect_right(self._ends, self._random() * self._ends[-1])
        return candidates[min(position, len(candidates) - 1)]


@implementer(IStrategy)
class LeastConnections:
    """
    The one that this process uses least at this moment, in proportion to its weight; of several such, the one whose
    number of uses has been the same for longest; of several that were never used, a random one.

    :param random: gives numbers from 0 to 1; breaks ties.
    """

    # A heap of (load, turn, random number, position in the candidates). An entry whose turn is not the instance's last
    # one is outdated, and dropped when it comes to the top. Looking at all candidates took 60 times as long for 1,000.
    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        self._random = random
        self._uses: dict[Key, int] = {}
        self._candidates: Sequence[Instance] = ()
        self._positions: dict[Key, int] = {}
        self._turns: dict[Key, int] = {}
        self._heap: list[tuple[float, int, float, int]] = []
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
            (self._load(instance), turns[instance.key], self._random(), position)
            for position, instance in enumerate(candidates)
        ]
        heapify(self._heap)

    def _change(self, instance: Instance, difference: int) -> None:
        key = instance.key
        uses = self._uses.get(key, 0) + difference
        if uses > 0:
            self._uses[key] = uses
        else:
            self._uses.pop(key, None)
        position = self._positions.get(key)
        if position is not None:
            self._turn += 1
            self._turns[key] = self._turn
            # No other entry has this turn.
            heappush(self._heap, (self._load(self._candidates[position]), self._turn, 0.0, position))

    def _load(self, instance: Instance) -> float:
        """How much an instance is used once it is picked, in proportion to its weight."""
        return (self._uses.get(instance.key, 0) + 1) / max(instance.weight, 1)


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
