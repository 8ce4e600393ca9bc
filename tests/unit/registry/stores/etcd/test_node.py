"""
Contact with etcd lost and found, on a clock that the test moves.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.backlog import Backlog
from txserviceregistry.registry.stores.etcd.gateway import EtcdError
from txserviceregistry.registry.stores.etcd.node import Node
from txserviceregistry.registry.stores.interfaces import StoreUnavailable


class FakeEtcd:
    """
    As much of etcd as a node asks.

    :ivar isAway: whether it can't be reached.
    :ivar leases: those that are there.
    :ivar written: the values of the node's key.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.isAway = False
        self.leases: set[int] = set()
        self.written: list[Any] = []
        self.contact: Any = None
        self.broken: Exception | None = None

    def _do(self, act: Any) -> Deferred[Any]:
        if self.broken is not None:
            return fail(self.broken)
        return fail(StoreUnavailable("away")) if self.isAway else succeed(act())

    def grant(self, lease: int, seconds: int) -> Deferred[None]:
        return self._do(lambda: self.leases.add(lease))

    def revoke(self, lease: int, *, patience: float) -> Deferred[None]:
        return self._do(lambda: self.leases.discard(lease))

    def keepAlive(self, leases: list[int]) -> Deferred[list[bool]]:
        return self._do(lambda: [lease in self.leases for lease in leases])

    def txn(self, compare: Any, success: Any, *, patience: float) -> Deferred[None]:
        def write() -> None:
            self.contact(self.clock.seconds())
            put = success[0]["request_put"]
            if int(put["lease"]) not in self.leases:
                raise EtcdError(5, "requested lease not found")
            self.written.append(put["value"])

        try:
            return self._do(write)
        except EtcdError as error:
            return fail(error)


class SilentAgent:
    """Begins requests that are never answered."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []

    def request(self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None) -> Deferred[Any]:
        self.begun.append(uri)
        return Deferred()


class NodeTests(SynchronousTestCase):
    """A node; its watches are deaf, all of them."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.etcd = FakeEtcd(self.clock)
        self.agent = SilentAgent()
        #: What it was asked to read: whether contact was lost, and what says that it has been read.
        self.loads: list[tuple[bool, Deferred[int]]] = []
        self.lost = 0
        self.backlog = Backlog(self.clock, "n")
        self.node = Node(
            self.etcd,  # type: ignore[arg-type]  # as much of it as is needed
            self.clock,
            self.agent,  # type: ignore[arg-type]  # as above
            ["http://a", "http://b"],
            "/p/",
            "n",
            onChange=lambda change: None,
            load=self.load,
            onLost=self.onLost,
            backlog=self.backlog,
        )
        self.etcd.contact = self.node.contact
        self.node.start(1)
        self.addCleanup(self.node.stop)

    def load(self, wasLost: bool) -> Deferred[int]:
        self.loads.append((wasLost, Deferred()))
        return self.loads[-1][1]

    def onLost(self) -> None:
        self.lost += 1

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)

    def test_writesItsKeyAllTheTime(self) -> None:
        """That shows that etcd is there, and that the watch works."""
        self.passes(4)
        self.assertTrue(9 <= len(self.etcd.written) <= 11)
        self.assertEqual(len(set(self.etcd.written)), len(self.etcd.written))
        self.assertLess(self.node.secondsAway(), 0.5)
        self.assertTrue(self.node.isSteady)

    def test_itReportsHowFarItIsBehind(self) -> None:
        """Its key has how long a heartbeat has been waiting, while it does."""
        self.passes(1)
        number = self.backlog.begin()
        self.passes(1)
        self.assertTrue(0.5 < self.behind() <= 1)
        self.passes(1)
        self.assertGreater(self.behind(), 1.5)
        self.backlog.end(number)
        self.passes(0.5)
        self.assertEqual(self.behind(), 0)

    def behind(self) -> float:
        said: float = json.loads(b64decode(self.etcd.written[-1]))["behind"]
        return said

    def test_aLeaseThatIsGoneIsReplaced(self) -> None:
        """After more than its time away, its key has another lease."""
        self.passes(1)
        self.etcd.leases.clear()
        self.passes(2)
        self.assertEqual(len(self.etcd.leases), 1)
        written = len(self.etcd.written)
        self.passes(1)
        self.assertGreater(len(self.etcd.written), written)

    def test_aDeafWatchIsLeftForAnotherMembers(self) -> None:
        """What may have been missed is read, and then the next member is asked; contact is another matter."""
        self.passes(3.3)
        self.loads[0][1].callback(5)
        self.passes(3.3)
        self.assertEqual([wasLost for wasLost, _ in self.loads], [False, False])
        self.assertEqual(len(set(self.agent.begun)), 2)
        self.assertEqual(self.lost, 0)

    def test_lossIsNotifiedOnceAndEndsWhenAllIsRead(self) -> None:
        """Contact that is there again is worth nothing until everything has been read."""
        self.passes(1.25)
        self.etcd.isAway = True
        self.passes(1)
        self.assertFalse(self.node.isSteady)
        self.assertEqual(self.lost, 0)
        self.passes(0.6)
        self.assertEqual((self.lost, self.loads), (1, []))
        self.etcd.isAway = False
        self.passes(1)
        self.assertEqual([wasLost for wasLost, _ in self.loads], [True])
        self.assertFalse(self.node.isSteady)
        self.loads[0][1].callback(5)
        self.assertTrue(self.node.isSteady)
        self.passes(1)
        self.assertEqual((self.lost, len(self.loads)), (1, 1))

    def test_theLogHasTheReason(self) -> None:
        """What etcd said, or that it can't be asked, and once for each loss."""
        for trouble in (StoreUnavailable("etcd: connection refused"), EtcdError(3, "user name is empty")):
            with capturedLogs() as logs:
                self.etcd.broken = trouble
                self.passes(3)
            said = [formatEvent(log) for log in logs if log["log_level"] is LogLevel.warn]
            self.assertEqual(len(said), 1, said)
            self.assertIn(f"no service expires until it is back: {trouble}", said[0])
            self.etcd.broken = None
            self.passes(1)
            self.loads[-1][1].callback(5)
            self.passes(0.5)

    def test_aLossWhileAllIsReadIsNotForgotten(self) -> None:
        """What was begun when there was contact does not give back the time that was lost after it."""
        self.passes(3.3)
        self.assertEqual([wasLost for wasLost, _ in self.loads], [False])
        self.etcd.isAway = True
        self.passes(2)
        self.etcd.isAway = False
        self.passes(0.5)
        self.loads[0][1].callback(5)
        self.passes(0.5)
        self.assertEqual([wasLost for wasLost, _ in self.loads], [False, True])
        self.loads[1][1].callback(6)
        self.passes(1)
        self.assertEqual((self.lost, len(self.loads)), (1, 2))

    def test_readingIsTriedUntilItWorks(self) -> None:
        """However it fails."""
        self.passes(3.3)
        self.loads[0][1].errback(StoreUnavailable("away"))
        self.passes(0.3)
        self.loads[1][1].errback(RuntimeError("something else"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.passes(0.3)
        self.loads[2][1].callback(5)
        self.assertEqual(len(self.agent.begun), 2)

    def test_aPauseOfEtcdMakesItUnsteadyForAWhile(self) -> None:
        """Even one that is too short to be a loss."""
        self.passes(1.25)
        self.etcd.isAway = True
        self.passes(1)
        self.etcd.isAway = False
        # Something else is answered.
        self.node.contact(self.clock.seconds())
        self.assertFalse(self.node.isSteady)
        self.passes(0.4)
        self.assertFalse(self.node.isSteady)
        self.passes(0.2)
        self.assertTrue(self.node.isSteady)
        self.assertEqual(self.lost, 0)

    def test_whateverBreaksItGoesOn(self) -> None:
        """An unexpected error costs one write, and is logged."""
        self.passes(1.25)
        self.etcd.broken = KeyError("result")
        self.passes(0.5)
        self.etcd.broken = None
        self.assertTrue(self.flushLoggedErrors(KeyError))
        self.passes(1)
        self.assertEqual(self.lost, 0)
        self.assertLess(self.node.secondsAway(), 0.5)

    def test_stopLeavesNothing(self) -> None:
        """Neither calls nor a key, whatever it was doing; what is read is not needed any more."""
        self.passes(3.3)
        self.successResultOf(self.node.stop())
        self.assertEqual((self.clock.getDelayedCalls(), self.etcd.leases), ([], set()))
        self.assertTrue(self.loads[0][1].called)
