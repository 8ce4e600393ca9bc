"""
Tests for :mod:`txserviceregistry.registry.fairness`.
"""

from __future__ import annotations

from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.fairness import FairQueue


class FairQueueTests(SynchronousTestCase):
    """The order in which parties are served."""

    def setUp(self) -> None:
        self.queue: FairQueue[str] = FairQueue()

    def served(self, count: int, cost: float = 1.0, *, again: bool = False) -> list[str]:
        """Serve some items, each at a *cost*, and let each wait *again*."""
        items = []
        for _ in range(count):
            path, item = self.queue.pop()
            self.queue.charge(path, cost)
            items.append(item)
            if again:
                self.queue.add(path, item)
        return items

    def test_onePartyIsServedInOrder(self) -> None:
        """Items of one party are served as they came."""
        for item in "abc":
            self.queue.add(("10.0.0.1",), item)
        self.assertEqual(self.served(3), ["a", "b", "c"])

    def test_partiesTakeTurns(self) -> None:
        """A party with many items gets no more than one with few."""
        for number in range(100):
            self.queue.add(("10.0.0.1",), "many")
            if number < 5:
                self.queue.add(("10.0.0.2",), "few")
        self.assertEqual(Counter(self.served(10)), {"many": 5, "few": 5})

    def test_costCounts(self) -> None:
        """What is shared is the work, not the number of items."""
        self.queue.add(("10.0.0.1",), "dear")
        self.queue.add(("10.0.0.2",), "cheap")
        counts: Counter[str] = Counter()
        for _ in range(400):
            path, item = self.queue.pop()
            self.queue.charge(path, 3.0 if item == "dear" else 1.0)
            self.queue.add(path, item)
            counts[item] += 1
        self.assertAlmostEqual(counts["cheap"] / counts["dear"], 3, delta=0.1)

    def test_levels(self) -> None:
        """Addresses share the work evenly, whatever number of connections each has."""
        for number in range(99):
            self.queue.add(("10.0.0.1", number), "many")
        self.queue.add(("10.0.0.2", 100), "one")
        self.assertEqual(Counter(self.served(200, again=True)), {"many": 100, "one": 100})

    def test_aNewcomerComesFirst(self) -> None:
        """A connection that has had nothing is served before a thousand at its address that were served before."""
        for number in range(1000):
            self.queue.add(("10.0.0.1", number), "old")
        self.served(3000, again=True)
        self.queue.add(("10.0.0.1", 1000), "new")
        self.assertIn("new", self.served(2))

    def test_newcomersKeepNoOthersOut(self) -> None:
        """A connection that was served gets its turn again, however many new ones come."""
        self.queue.add(("old",), "old")
        for number in range(10):
            self.queue.add((number,), "new")
        served = []
        for number in range(10, 60):
            served += self.served(1)
            if served[-1] == "old":
                self.queue.add(("old",), "old")
            self.queue.add((number,), "new")
        self.assertGreater(served.count("old"), 1)

    def test_whatIsDroppedIsOfTheGreediest(self) -> None:
        """The item that has to go is one of the party that has had most."""
        for party in ("modest", "greedy"):
            for _ in range(20):
                self.queue.add((party,), party)
        for _ in range(10):
            self.queue.charge(("greedy",), 1)
        self.served(2)
        self.assertEqual({self.queue.dropLast() for _ in range(10)}, {"greedy"})
