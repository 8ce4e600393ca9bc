"""
Keeping many leases together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.gateway import KEEP_ALIVES
from txserviceregistry.registry.stores.etcd.leases import KeepAlives, secondsLeft
from txserviceregistry.registry.stores.interfaces import StoreUnavailable


class Leases:
    """
    etcd's leases; it responds when the test says so.

    :ivar asked: the leases of each request, and its answer to be.
    :ivar isAway: whether it refuses at once.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[int], Deferred[list[bool]]]] = []
        self.isAway = False

    def keepAlive(self, leases: Sequence[int]) -> Deferred[list[bool]]:
        """See Etcd."""
        if self.isAway:
            return fail(StoreUnavailable("away"))
        answer: Deferred[list[bool]] = Deferred()
        self.asked.append((leases, answer))
        return answer

    def answer(self) -> None:
        """Answer the oldest request: leases of even numbers are there."""
        leases, answer = self.asked.pop(0)
        answer.callback([lease % 2 == 0 for lease in leases])


class KeepAlivesTests(SynchronousTestCase):
    """Heartbeats of many services."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.leases = Leases()
        etcd: Any = self.leases
        self.keepAlives = KeepAlives(etcd, self.clock)

    def keep(self, count: int) -> list[Deferred[bool]]:
        """So many that fall due together."""
        kept = [self.keepAlives.keep(number) for number in range(count)]
        self.clock.advance(0)
        return kept

    def test_thoseOfATurnGoTogether(self) -> None:
        """They share requests, of which a few are under way at once, and each gets the result for its own lease."""
        kept = self.keep(3 * KEEP_ALIVES)
        self.assertEqual([len(leases) for leases, _ in self.leases.asked], [KEEP_ALIVES] * 2)
        for _ in range(3):
            self.leases.answer()
        self.assertEqual([self.successResultOf(each) for each in kept], [each % 2 == 0 for each in range(len(kept))])
        self.assertEqual(self.leases.asked, [])

    def test_theSameLeaseAgain(self) -> None:
        """One that waits is asked for once, and all that wait for it get the result; one that is under way, again."""
        first = self.keep(2 * KEEP_ALIVES)
        waiting = [*self.keep(3), self.keepAlives.keep(100), *self.keep(3)]
        for _ in range(2):
            self.leases.answer()
        self.assertEqual([list(leases) for leases, _ in self.leases.asked], [[0, 1, 2, 100]])
        self.leases.answer()
        self.assertEqual([self.successResultOf(each) for each in waiting], [True, False, True, True, True, False, True])
        self.assertEqual(len([self.successResultOf(each) for each in first]), 2 * KEEP_ALIVES)

    def test_thousandsWaitAndEtcdIsAway(self) -> None:
        """Each of them fails, and heartbeats go on when it is back."""
        kept = self.keep(20_000)
        self.leases.isAway = True
        for _, answer in self.leases.asked:
            answer.errback(StoreUnavailable("away"))
        outcomes: Counter[type] = Counter()
        for each in kept:
            each.addBoth(lambda result: outcomes.update([type(getattr(result, "value", result))]))
        self.assertEqual(outcomes, {StoreUnavailable: 20_000})
        self.leases.isAway = False
        self.leases.asked.clear()
        (again,) = self.keep(1)
        self.leases.answer()
        self.assertTrue(self.successResultOf(again))

    def test_answersThatAreThereAtOnce(self) -> None:
        """However many there are, none is left waiting."""
        self.leases.keepAlive = lambda leases: succeed([True] * len(leases))  # type: ignore[method-assign]  # at once
        self.assertTrue(all(self.successResultOf(each) for each in self.keep(20_000)))


class SecondsLeftTests(SynchronousTestCase):
    """What a lease shows of a deadline."""

    def test_theMarginIsNotTheServices(self) -> None:
        """A lease was granted for longer than the service has; what is gone is past its deadline."""
        self.assertEqual(secondsLeft(11, 12, 10), 9.0)
        self.assertEqual(secondsLeft(2, 12, 10), 0.0)
        self.assertLess(secondsLeft(1, 12, 10), 0)
        self.assertLess(secondsLeft(-1, 0, 10), 0)
