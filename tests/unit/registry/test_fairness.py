"""
Tests for :mod:`txserviceregistry.registry.limits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.limits import FairQueue


class FairQueueTests(SynchronousTestCase):
    """The order in which parties are served."""

    def setUp(self) -> None:
        self.queue: FairQueue[tuple[Sequence[str | int], str]] = FairQueue()

    def add(self, path: Sequence[str | int], item: str) -> None:
        self.queue.add(path, (path, item))

    def served(self, count: int, *, again: bool = False) -> list[str]:
        """Serve some items, and let each wait *again*."""
        items = []
        for _ in range(count):
            path, item = self.queue.pop()
            items.append(item)
            if again:
                self.add(path, item)
        return items

    def test_onePartyIsServedInOrder(self) -> None:
        """Items of one party are served as they came."""
        for item in "abc":
            self.add(("10.0.0.1",), item)
        self.assertEqual(self.served(3), ["a", "b", "c"])

    def test_partiesTakeTurns(self) -> None:
        """A party with many items gets no more than one with few."""
        for number in range(100):
            self.add(("10.0.0.1",), "many")
            if number < 5:
                self.add(("10.0.0.2",), "few")
        self.assertEqual(Counter(self.served(10)), {"many": 5, "few": 5})

    def test_levels(self) -> None:
        """Addresses share the work evenly, whatever number of connections each has."""
        for number in range(99):
            self.add(("10.0.0.1", number), "many")
        self.add(("10.0.0.2", 100), "one")
        self.assertEqual(Counter(self.served(200, again=True)), {"many": 100, "one": 100})

    def test_aNewcomerComesFirst(self) -> None:
        """A connection that has had nothing is served before a thousand at its address that were served before."""
        for number in range(1000):
            self.add(("10.0.0.1", number), "old")
        self.served(3000, again=True)
        self.add(("10.0.0.1", 1000), "new")
        self.assertIn("new", self.served(2))

    def test_newcomersKeepNoOthersOut(self) -> None:
        """A connection that was served gets its turn again, however many new ones come."""
        self.add(("old",), "old")
        for number in range(10):
            self.add((number,), "new")
        served = []
        for number in range(10, 60):
            served += self.served(1)
            if served[-1] == "old":
                self.add(("old",), "old")
            self.add((number,), "new")
        self.assertGreater(served.count("old"), 1)

    def test_whatIsDroppedIsOfTheGreediest(self) -> None:
        """The item that has to go is one of the party that has most, if possible of one that was served before."""
        for count, party in ((3, "modest"), (20, "greedy")):
            for _ in range(count):
                self.add((party,), party)
        self.served(2)
        self.add(("new",), "new")
        dropped = [self.queue.dropLast()[1] for _ in range(17)]
        self.assertEqual(Counter(dropped), {"greedy": 17})
        self.assertEqual({self.queue.dropLast()[1] for _ in range(4)}, {"greedy", "modest"})
        self.assertEqual(self.served(1), ["new"])
