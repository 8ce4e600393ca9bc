"""
Which of several instances is next.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from txserviceregistry.discovery.balancing import (
    STRATEGIES,
    IStrategy,
    LeastConnections,
    RandomChoice,
    RoundRobin,
    strategyNamed,
)

from .standin import instance, numbers

A, B, C = (instance(name) for name in ("aaa", "bbb", "ccc"))


class RoundRobinTests(SynchronousTestCase):
    """One after the other."""

    def test_inTurn(self) -> None:
        """Each instance is picked once before one is picked twice."""
        strategy, candidates = RoundRobin(lambda: 0.0), [A, B, C]
        self.assertEqual([strategy.pick(candidates).id for _ in range(7)], ["aaa", "bbb", "ccc"] * 2 + ["aaa"])

    def test_goesOnBehindTheLastOne(self) -> None:
        """When the candidates change, the next one is the one behind the last, also if that one is gone."""
        strategy = RoundRobin(lambda: 0.0)
        self.assertEqual(strategy.pick([A, C]), A)
        self.assertEqual(strategy.pick([A, B, C]), B)
        self.assertEqual(strategy.pick([A, C]), C)
        self.assertEqual(strategy.pick([A, B]), A)

    def test_beginsAnywhere(self) -> None:
        """The first one is drawn, so that many programs that pick once do not all pick the same; then it is in turn."""
        for number, first in ((0.0, A), (0.34, B), (0.99, C), (1.0, C)):
            strategy = RoundRobin(numbers(number))
            candidates = [A, B, C]
            picked = [strategy.pick(candidates) for _ in range(3)]
            self.assertEqual((picked[0], len({one.id for one in picked})), (first, 3))


class RandomTests(SynchronousTestCase):
    """Any of them."""

    def test_asTheNumbersSay(self) -> None:
        """The number decides, also one of exactly 1."""
        strategy = RandomChoice(numbers(0.0, 0.34, 0.99, 1.0))
        self.assertEqual([strategy.pick([A, B, C]) for _ in range(4)], [A, B, C, C])


class LeastConnectionsTests(SynchronousTestCase):
    """The one that is used least."""

    def setUp(self) -> None:
        self.strategy = LeastConnections(lambda: 0.0)

    def use(self, candidates: list[object]) -> str:
        picked = self.strategy.pick(candidates)  # type: ignore[arg-type]  # instances
        self.strategy.began(picked)
        return picked.id

    def test_spreadsUses(self) -> None:
        """Uses that go on are spread evenly."""
        candidates = [A, B, C]
        self.assertEqual(sorted(self.use(candidates) for _ in range(6)), sorted(["aaa", "bbb", "ccc"] * 2))

    def test_breaksTiesAtRandom(self) -> None:
        """Of those that are used equally, any may be the next."""
        for draws, first in (((0.1, 0.2, 0.3), "aaa"), ((0.2, 0.1, 0.3), "bbb"), ((0.3, 0.2, 0.1), "ccc")):
            self.strategy = LeastConnections(numbers(*draws))
            self.assertEqual(self.use([A, B, C]), first)

    def test_picksTheOneThatHasEnded(self) -> None:
        """The one whose use has ended is next."""
        candidates = [A, B, C]
        for _ in range(3):
            self.use(candidates)
        self.strategy.ended(B)
        self.assertEqual(self.use(candidates), "bbb")

    def test_countsThroughChanges(self) -> None:
        """Uses are still counted after the candidates changed; one end too many is ignored."""
        self.use([A, B])
        self.assertEqual(self.use([A, B, C]), "bbb")
        self.assertEqual(self.use([A, B, C]), "ccc")
        self.strategy.ended(C)
        self.strategy.ended(C)
        self.assertEqual([self.use([A, B, C]) for _ in range(2)], ["ccc", "aaa"])
        self.strategy.ended(instance("gone"))

    def test_staysSmall(self) -> None:
        """After many uses the picks are still right."""
        candidates = [A, B]
        for _ in range(1000):
            picked = self.strategy.pick(candidates)
            self.strategy.began(picked)
            self.strategy.ended(picked)
        self.use(candidates)
        self.assertEqual(len({self.use(candidates), self.use(candidates)}), 2)


class NamesTests(SynchronousTestCase):
    """Strategies by their names."""

    def test_allOfThem(self) -> None:
        """Each name makes a strategy, and a new one each time."""
        self.assertEqual(sorted(STRATEGIES), ["least-connections", "random", "round-robin"])
        for name in STRATEGIES:
            strategy = strategyNamed(name)
            self.assertTrue(verifyObject(IStrategy, strategy))
            self.assertIsNot(strategyNamed(name), strategy)
            picked = strategy.pick([A])
            strategy.began(picked)
            strategy.ended(picked)

    def test_unknown(self) -> None:
        """An unknown name is a ValueError that lists the known ones."""
        text = str(self.assertRaises(ValueError, strategyNamed, "best"))
        self.assertEqual(text, "unknown strategy 'best' (known: round-robin, random, least-connections)")


class WeightTests(SynchronousTestCase):
    """Instances with different weights."""

    def picked(self, strategy: IStrategy, count: int, *weights: int) -> list[str]:
        candidates = [instance(f"a{number}", weight=str(weight)) for number, weight in enumerate(weights)]
        picks = []
        for _ in range(count):
            one = strategy.pick(candidates)
            strategy.began(one)
            picks.append(one.id)
        return picks

    def test_roundRobin(self) -> None:
        """Each is picked as often as its weight says, evenly distributed."""
        picks = self.picked(RoundRobin(lambda: 0.0), 7, 500, 100, 100)
        self.assertEqual(picks, ["a0", "a0", "a1", "a0", "a2", "a0", "a0"])
        picks = self.picked(RoundRobin(lambda: 0.7), 700, 500, 100, 100)
        self.assertEqual([picks.count(f"a{number}") for number in range(3)], [500, 100, 100])

    def test_roundRobinWhenWeightsChange(self) -> None:
        """Weights may become equal and different again."""
        strategy = RoundRobin(lambda: 0.0)
        for weights, counts in (((100, 100), [50, 50]), ((300, 100), [75, 25]), ((100, 100), [50, 50])):
            picks = self.picked(strategy, 100, *weights)
            self.assertEqual([picks.count("a0"), picks.count("a1")], counts)

    def test_random(self) -> None:
        """A number below the part of its weight picks an instance."""
        strategy = RandomChoice(numbers(0.0, 0.24, 0.26, 0.99, 1.0))
        self.assertEqual(self.picked(strategy, 5, 100, 300), ["a0", "a0", "a1", "a1", "a1"])

    def test_leastConnections(self) -> None:
        """The uses of each are in proportion to its weight."""
        picks = self.picked(LeastConnections(lambda: 0.0), 80, 300, 100)
        self.assertEqual([picks.count("a0"), picks.count("a1")], [60, 20])
