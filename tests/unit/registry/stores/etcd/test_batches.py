"""
When groups of changes are sent to etcd, over one that a test answers for.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.statistics import StoreStatistics
from txserviceregistry.registry.stores.etcd.batches import (
    GROUP,
    PATIENCE,
    TURN,
    TURN_TRANSACTIONS,
    Batches,
    TenantClock,
)
from txserviceregistry.registry.stores.etcd.keyvalues import KeyValue, Txn, encode
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

T = "7"
#: Seconds that a transaction takes.
TAKES = 0.01


class _Etcd:
    """Transactions that wait for their responses."""

    def __init__(self) -> None:
        self.statistics = StoreStatistics()
        self.asked: list[Deferred[Txn]] = []
        self.changes: list[Any] = []

    def txn(self, compare: Any, success: Any, *arguments: Any, **options: Any) -> Deferred[Txn]:
        self.changes = success
        self.asked.append(Deferred())
        return self.asked[-1]


class TurnTests(SynchronousTestCase):
    """One of the nodes that make changes of a tenant; its name is between those of two others."""

    def setUp(self) -> None:
        self.clock, self.etcd = Clock(), _Etcd()
        self.batches = Batches(self.etcd, self.clock, lambda: 1e9, "/", "b")  # type: ignore[arg-type]  # what it uses
        self.batches.clockChanged(T, KeyValue(f"/clocks/{T}", TenantClock().toBytes(), 1, 1, 0))
        self.made: list[int] = []
        # So it knows how long a transaction takes.
        for _ in range(50):
            self.change()
            self.clock.advance(TAKES)
            self.respond()

    def change(self) -> None:
        done = self.batches.do(T, lambda draft: draft.addEvent("service.join", {}))
        done.addCallback(self.made.append)
        self.clock.pump([0, 0])

    def respond(self) -> None:
        self.etcd.asked.pop().callback(Txn(True, 2, []))
        self.clock.pump([0, 0, 0])

    def test_aNodeThatIsAloneWaitsForNoOther(self) -> None:
        """Each group follows the one before, and what waits for that one fires while this one is under way."""
        self.change()
        self.change()
        self.assertEqual((len(self.etcd.asked), len(self.made)), (1, 50))
        self.respond()
        self.assertEqual((len(self.etcd.asked), len(self.made)), (1, 51))

    def test_theOthersHaveTheirTurns(self) -> None:
        """After its own group it waits for two others to make theirs; after the one before it, for none."""
        self.batches.committed(T, "c")
        self.batches.committed(T, "a")
        self.change()
        self.assertEqual(len(self.etcd.asked), 1)
        self.respond()
        self.change()
        self.assertEqual(self.etcd.asked, [])
        self.batches.committed(T, "c")
        self.clock.advance(0)
        self.assertEqual(self.etcd.asked, [])
        self.batches.committed(T, "a")
        self.assertEqual(len(self.etcd.asked), 1)

    def test_othersKnowTheClockWhenTheirTurnComes(self) -> None:
        """The watch shows the clock of a group before its events, at which the next process begins with its own."""
        self.change()
        keys = [each["request_put"]["key"] for each in self.etcd.changes]
        self.assertEqual((keys[0], len(keys)), (encode(f"/clocks/{T}"), 2))

    def test_itDoesNotWaitForLong(self) -> None:
        """Others that have nothing to do cost a node two turns' time, and nothing afterwards."""
        self.batches.committed(T, "a")
        self.batches.committed(T, "c")
        self.batches.committed(T, "b")
        self.change()
        self.clock.advance(TAKES * TURN_TRANSACTIONS)
        self.assertEqual(self.etcd.asked, [])
        self.clock.advance(TAKES * TURN_TRANSACTIONS)
        self.respond()
        self.change()
        self.assertEqual(len(self.etcd.asked), 1)

    def test_itWaitsNoMoreForOthersThatAreIdle(self) -> None:
        """One that makes changes all the time waits for those that make few once after each of theirs."""
        self.batches.committed(T, "a")
        self.batches.committed(T, "c")
        waits = []
        for _ in range(4):
            self.change()
            waits.append(0)
            while not self.etcd.asked:
                self.clock.advance(TAKES * TURN_TRANSACTIONS)
                waits[-1] += 1
            self.respond()
        self.assertEqual(waits, [1, 1, 0, 0])
        self.batches.committed(T, "c")
        self.change()
        self.respond()
        self.change()
        self.assertEqual(self.etcd.asked, [])

    def test_aTurnIsNotLongerWhereEtcdIsSlow(self) -> None:
        """A transaction in etcd may take seconds; the wait for a turn is a twentieth of one."""
        for _ in range(50):
            self.change()
            self.clock.advance(10 * TURN)
            self.respond()
        self.batches.committed(T, "a")
        self.batches.committed(T, "b")
        self.change()
        self.assertEqual(self.etcd.asked, [])
        self.clock.advance(TURN)
        self.assertEqual(len(self.etcd.asked), 1)

    def test_noneWaitsForLong(self) -> None:
        """A change that has waited while etcd did nothing is refused, in any place of the queue; later ones work."""
        waiting = [self.batches.do(T, lambda draft: draft.addEvent("lock.expire", {})) for _ in range(10 * GROUP)]
        self.clock.pump([0, 0])
        self.clock.advance(PATIENCE + 1)
        idle = self.batches.whenIdle()
        self.etcd.asked.pop().errback(StoreUnavailable("etcd: no leader"))
        self.clock.pump([0, 0, 0])
        for each in waiting:
            self.failureResultOf(each, StoreUnavailable)
        self.successResultOf(idle)
        self.change()
        self.respond()
        self.assertEqual(len(self.made), 51)

    def test_oneThatFailsHarmsNotTheOneBefore(self) -> None:
        """The outcome of a group is its own, also if the next one fails before that is reported."""
        self.change()
        after = self.batches.do(T, lambda draft: draft.addEvent("service.join", {}))
        self.etcd.asked.pop().callback(Txn(True, 2, []))
        self.etcd.asked.pop().errback(StoreUnavailable("etcd: no leader"))
        self.clock.pump([0, 0, 0])
        self.assertEqual(len(self.made), 51)
        self.failureResultOf(after, StoreUnavailable)
        self.successResultOf(self.batches.whenIdle())

    def test_theEndIsAwaited(self) -> None:
        """A store that closes waits until the last group has been reported."""
        self.change()
        idle = self.batches.whenIdle()
        self.etcd.asked.pop().callback(Txn(True, 2, []))
        self.assertNoResult(idle)
        self.clock.pump([0, 0, 0])
        self.assertEqual(len(self.made), 51)
        self.successResultOf(idle)
