"""
The end of a node, in simulated time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.node import Joined, Node
from txserviceregistry.registry.stores.etcd.votes import Status
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

SERVICE = "1", "incarnation"


class StopTests(SynchronousTestCase):
    """A node that stops while its clock stands still."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.keys = Mock()
        self.keys.join.return_value = succeed(Joined(1, 5.0))
        for name in ("load", "leave", "renew", "publish"):
            getattr(self.keys, name).side_effect = lambda *_: succeed(True)
        self.touched: Deferred[bool] = Deferred()
        self.keys.touch.side_effect = lambda _: self.touched
        registrations = Mock()
        registrations.secondsLeft.return_value = -1.0
        registrations.due.return_value = {}
        self.node = Node(self.keys, self.clock, self.clock.seconds)
        self.successResultOf(self.node.start(registrations))
        assert self.node.votes is not None
        self.node.votes.observe("other", Status(1, {1: [SERVICE]}))
        self.node.tick()
        self.waiting = Deferred.fromCoroutine(self.node.admit(SERVICE))
        self.assertNoResult(self.waiting)

    def test_aHeartbeatThatWaitsForAVoteIsRefused(self) -> None:
        """It does not wait until the vote is over, or its time."""
        self.successResultOf(Deferred.fromCoroutine(self.node.stop()))
        self.failureResultOf(self.waiting, StoreUnavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aTouchThatIsUnderWayDoesNotDelayIt(self) -> None:
        """The heartbeat has its outcome when etcd responds."""
        self.clock.advance(1)
        self.successResultOf(Deferred.fromCoroutine(self.node.stop()))
        self.assertNoResult(self.waiting)
        self.touched.callback(True)
        self.failureResultOf(self.waiting, StoreUnavailable)

    def test_itStopsWhileItJoins(self) -> None:
        """At its first write, while it reads, and between two attempts: it has not joined, and does nothing more."""
        waits: list[Callable[[], Any]] = [Deferred, lambda: fail(StoreUnavailable("etcd: no leader"))]
        for name in ("join", "load"):
            for wait in waits:
                clock, keys = Clock(), Mock()
                keys.join.side_effect = lambda *_: succeed(Joined(1, 5.0))
                keys.leave.side_effect = lambda _: succeed(None)
                getattr(keys, name).side_effect = lambda *_, wait=wait: wait()
                node = Node(keys, clock, clock.seconds)
                joining = node.start(Mock())
                self.assertNoResult(joining)
                self.successResultOf(Deferred.fromCoroutine(node.stop()))
                self.failureResultOf(joining, CancelledError)
                keys.leave.assert_called_once()
                self.assertEqual((node.members, clock.getDelayedCalls()), ([], []))

    def test_aStatusThatIsNotWrittenDoesNotDelayIt(self) -> None:
        """Nor does a lease that etcd does not end: it runs out."""
        self.keys.renew.side_effect = lambda _: Deferred()
        self.keys.leave.side_effect = StoreUnavailable("etcd: no leader")
        self.clock.advance(1)
        self.successResultOf(Deferred.fromCoroutine(self.node.stop()))
        self.assertEqual(self.node.members, [])
