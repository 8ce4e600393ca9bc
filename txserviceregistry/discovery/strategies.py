"""Load balancing strategies: which of several instances that are equally good is the next one."""

from __future__ import annotations

import random as randomModule
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


class _Strategy:
    """A strategy that needs no knowledge of what is in use, and a source of numbers from 0 to 1."""

    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        self._random = random

    def began(self, instance: Instance) -> None:
        """Makes no difference here."""

    def ended(self, instance: Instance) -> None:
        """Makes no difference here."""


@implementer(IStrategy)
class RoundRobin(_Strategy):
    """
    One after the other, in the order of their ids, beginning at a random one: programs that make one request per run,
    and programs that restart together, spread over all instances. With different weights, each as often as its weight
    says.
    """

    _candidates: Sequence[Instance] = ()
    _position = -1
    _last: str | None = None
    # Of instances with different weights, how much work each is behind; otherwise none.
    _credits: Mapping[Key, float] = MappingProxyType({})

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._arrange(candidates)
        if self._credits:
            # As nginx does it: in each round every instance gets as many turns as its weight, evenly distributed.
            credits = self._credits = {one.key: self._credits[one.key] + one.weight for one in candidates}
            picked = max(candidates, key=lambda one: credits[one.key])
            credits[picked.key] -= sum(one.weight for one in candidates)
        else:
            self._position = (self._position + 1) % len(candidates)
            picked = candidates[self._position]
        self._last = picked.id
        return picked

    def _arrange(self, candidates: Sequence[Instance]) -> None:
        self._candidates, known, self._credits = candidates, self._credits, {}
        if len({one.weight for one in candidates}) > 1:
            # Each process begins elsewhere.
            self._credits = {one.key: known.get(one.key, one.weight * self._random()) for one in candidates}
        elif self._last is None:
            # Another source of numbers than random.random may give exactly 1.
            self._position = min(int(self._random() * len(candidates)), len(candidates) - 1) - 1
        else:
            # The next one is the one whose id follows the last one's.
            self._position = bisect_right(candidates, self._last, key=lambda one: one.id) - 1


@implementer(IStrategy)
class RandomChoice(_Strategy):
    """A random one, each with a probability by its weight."""

    _candidates: Sequence[Instance] = ()
    _ends: Sequence[int] = ()

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._candidates, self._ends = candidates, list(accumulate(one.weight for one in candidates))
        position = bisect_right(self._ends, self._random() * self._ends[-1])
        return candidates[min(position, len(candidates) - 1)]


@implementer(IStrategy)
class LeastConnections(_Strategy):
    """
    The one that this process uses least at this moment, in proportion to its weight; of several such, the one whose
    number of uses has been the same for longest; of several that were never used, a random one.
    """

    def __init__(self, random: Callable[[], float] = randomModule.random) -> None:
        super().__init__(random)
        self._uses: Counter[Key] = Counter()
        # For each candidate, the number of the change after which its uses have been the same.
        self._turns: dict[Key, int] = {}
        self._turn = 0
        self._candidates: Sequence[Instance] = ()

    def pick(self, candidates: Sequence[Instance]) -> Instance:
        if candidates is not self._candidates:
            self._candidates = candidates
            self._turns = {one.key: self._turns.get(one.key, 0) for one in candidates}
        return min(candidates, key=self._rank)

    def began(self, instance: Instance) -> None:
        self._change(instance.key, +1)

    def ended(self, instance: Instance) -> None:
        self._change(instance.key, -1)

    def _rank(self, instance: Instance) -> tuple[float, int, float]:
        """How much an instance is used once it is picked, in proportion to its weight; then what breaks ties."""
        load = (self._uses[instance.key] + 1) / max(instance.weight, 1)
        return load, self._turns[instance.key], self._random()

    def _change(self, key: Key, difference: int) -> None:
        self._uses[key] += difference
        if self._uses[key] <= 0:
            del self._uses[key]
        if key in self._turns:
            self._turn += 1
            self._turns[key] = self._turn


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
