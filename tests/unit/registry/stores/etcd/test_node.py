"""
The end of a node, its watch and its status, in simulated time.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any
from unittest.mock import Mock

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.keyvalues import jsonBytes
from txserviceregistry.registry.stores.etcd.node import DEAF, LISTED, Node
from txserviceregistry.registry.stores.etcd.votes import Status
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

SERVICE = "1", "incarnation"


class StopTests(SynchronousTestCase):
    """A node that stops while its clock stands still."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.keys = Mock()
        self.keys.join.return_value = succeed((1, 5.0))
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
                keys.join.side_effect = lambda *_: succeed((1, 5.0))
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


class JoinTests(SynchronousTestCase):
    """A node that joins."""

    def test_whileMuchIsRead(self) -> None:
        """However long that takes, it is a valid member as soon as it has joined."""
        clock, keys, reading = Clock(), Mock(), Deferred[None]()
        keys.join.return_value = succeed((1, 5.0))
        keys.load.return_value = reading
        for name in ("leave", "renew", "publish"):
            getattr(keys, name).side_effect = lambda *_: succeed(True)
        node, registrations = Node(keys, clock, clock.seconds), Mock()
        joining = node.start(registrations)
        clock.pump([0.05] * 200)
        self.assertNoResult(joining)
        self.assertFalse(node.isValid)
        reading.callback(None)
        self.successResultOf(joining)
        self.assertTrue(node.isValid)
        self.successResultOf(Deferred.fromCoroutine(node.stop()))


class ValidNodeCase(SynchronousTestCase):
    """A node that is a member of its cluster."""

    def setUp(self) -> None:
        self.clock, self.keys, registrations = Clock(), Mock(), Mock()
        self.keys.join.side_effect = lambda *_: succeed((1, 5.0))
        for name in ("load", "leave", "renew", "publish"):
            getattr(self.keys, name).side_effect = lambda *_: succeed(True)
        self.node = Node(self.keys, self.clock, self.clock.seconds)
        registrations.due.return_value = {}
        self.successResultOf(self.node.start(registrations))


class RefusalTests(ValidNodeCase):
    """A node whose writes etcd refuses, for example because its database is full."""

    def test_theLogHasEtcdsReason(self) -> None:
        """It is in the line that says that heartbeats are refused, and not in a later one with another cause."""
        clock, keys, node = self.clock, self.keys, self.node

        def tickFor(seconds: int) -> None:
            for _ in range(seconds * 4):
                clock.advance(0.25)
                node.tick()

        with capturedLogs() as logged:
            keys.publish.side_effect = lambda *_: fail(StoreUnavailable("etcd: database space exceeded"))
            tickFor(5)
            keys.publish.side_effect = lambda *_: succeed(True)
            tickFor(1)
            keys.publish.side_effect = lambda *_: Deferred()
            tickFor(5)
        refused = [line for line in map(formatEvent, logged) if "heartbeats are refused" in line]
        self.assertEqual(["database space exceeded" in line for line in refused], [True, False])
        self.successResultOf(Deferred.fromCoroutine(node.stop()))


class ReadTests(ValidNodeCase):
    """A node that has to read everything again."""

    def test_aReadThatFails(self) -> None:
        """After a while the log says that it delays expirations; that heartbeats are refused it says when they are."""
        clock, keys, node = self.clock, self.keys, self.node
        keys.load.side_effect = lambda: fail(StoreUnavailable("etcd: leader changed"))
        with capturedLogs() as logged:
            node.watchEnded()
            clock.pump([0.25] * 3)
            self.assertEqual(logged, [])
            clock.pump([0.25] * 12)
            self.assertTrue(node.isValid)
            keys.load.side_effect = lambda: succeed(None)
            clock.advance(0.25)
            begins = "Can't read everything from etcd; this node delays expirations (retrying): etcd: leader changed"
            self.assertEqual([formatEvent(each) for each in logged], [begins, "Everything read after 2.0 s"])
            logged.clear()
            keys.publish.side_effect = lambda *_: fail(StoreUnavailable("etcd: no leader"))
            for _ in range(20):
                clock.advance(0.25)
                node.tick()
            self.assertEqual(["heartbeats are refused" in formatEvent(each) for each in logged], [True])
        self.successResultOf(Deferred.fromCoroutine(node.stop()))


class WatchTests(SynchronousTestCase):
    """A watch that ends as soon as it has begun, as behind a proxy that lets none pass."""

    def test_everythingIsReadNowAndThen(self) -> None:
        """Not as fast as etcd responds; the first time at once."""
        clock, keys, loads = Clock(), Mock(), list[float]()
        keys.join.side_effect = lambda *_: succeed((1, 5.0))
        for name in ("leave", "renew", "publish"):
            getattr(keys, name).side_effect = lambda *_: succeed(True)
        node = Node(keys, clock, clock.seconds)

        def load() -> Deferred[None]:
            loads.append(clock.seconds())
            clock.callLater(0.001, node.watchEnded)
            return succeed(None)

        keys.load.side_effect = load
        self.successResultOf(node.start(Mock()))
        clock.pump([0.001] * 10_000)
        self.assertEqual(loads[0], 0.0)
        self.assertTrue(2 <= len(loads) <= 10_000 * 0.001 / DEAF + 1, loads)
        self.assertTrue(node.isValid)
        self.successResultOf(Deferred.fromCoroutine(node.stop()))
        self.assertEqual(clock.getDelayedCalls(), [])


class ExpirationTests(SynchronousTestCase):
    """Many services whose deadlines pass at once."""

    def test_aFewAtATime(self) -> None:
        """Changes of clients do not wait in etcd's queue behind thousands of expirations; all of these follow."""
        clock, keys, registrations = Clock(), Mock(), Mock()
        keys.join.side_effect = lambda *_: succeed((1, 5.0))
        for name in ("load", "leave", "renew", "publish"):
            getattr(keys, name).side_effect = lambda *_: succeed(True)
        silent = iter([("1", str(number)) for number in range(1_000)])
        registrations.due = lambda most: dict.fromkeys(islice(silent, most), 0)
        expiring: list[Deferred[bool]] = []
        keys.expire.side_effect = lambda *_: expiring.append(Deferred()) or expiring[-1]
        node = Node(keys, clock, clock.seconds)
        self.successResultOf(node.start(registrations))
        node.tick()
        assert node.votes is not None
        rounds = 0
        while expiring:
            self.assertLessEqual(len(expiring), 100)
            rounds += 1
            under, expiring[:] = expiring[:], []
            for each in under:
                each.callback(True)
        self.assertEqual((rounds, registrations.expired.call_count, node.votes.listed), (10, 1_000, 0))
        self.successResultOf(Deferred.fromCoroutine(node.stop()))

    def test_stopWhileSomeWait(self) -> None:
        """Nothing is left of those that are under way, nor of those that wait."""
        clock, keys, registrations = Clock(), Mock(), Mock()
        keys.join.side_effect = lambda *_: succeed((1, 5.0))
        for name in ("load", "leave", "renew", "publish"):
            getattr(keys, name).side_effect = lambda *_: succeed(True)
        registrations.due.return_value = {("1", str(number)): 0 for number in range(1_000)}
        keys.expire.side_effect = lambda *_: Deferred()
        node = Node(keys, clock, clock.seconds)
        self.successResultOf(node.start(registrations))
        node.tick()
        self.successResultOf(Deferred.fromCoroutine(node.stop()))
        self.assertLessEqual(keys.expire.call_count, 100)
        registrations.expired.assert_not_called()
        self.assertEqual(clock.getDelayedCalls(), [])


class StatusTests(SynchronousTestCase):
    """As many services as there may be, whose heartbeats only some of the nodes have received."""

    def test_itFitsIntoOneRequest(self) -> None:
        """However many deadlines pass at once on all nodes, and whatever the others have to answer."""
        for count in (3, 6):
            clock, nodes, largest = Clock(), list[Node](), 0
            alive = [("1", str(10**18 + place)) for place in range(LISTED)]
            for number in range(count):
                keys, registrations = Mock(), Mock()
                keys.join.side_effect = lambda *_: succeed((1, 5.0))
                keys.load.side_effect = lambda: succeed(None)
                keys.publish.side_effect = lambda *_: succeed(True)
                keys.renew.side_effect = lambda *_: succeed(True)
                # Each node has received a part of the heartbeats, and the deadlines of the others have passed there.
                first, last = LISTED * number // count, LISTED * (number + 1) // count
                own = set(alive[first:last])
                silent = iter([each for each in alive if each not in own])
                registrations.secondsLeft = lambda each, own=own: 29.123 if each in own else -1.0
                registrations.due = lambda most, silent=silent: dict.fromkeys(islice(silent, most), 0)
                keys.seen = lambda each: 0
                nodes.append(Node(keys, clock, clock.seconds))
                self.successResultOf(nodes[-1].start(registrations))
            for node in nodes:
                node.membersAre({each.name for each in nodes if each is not node})
                for each in nodes:
                    node.statusChanged(each.name, Status(1))
            for _ in range(2):
                for node in nodes:
                    node.tick()
                said = {}
                for node in nodes:
                    assert node.votes is not None
                    said[node.name] = node.votes.status()
                    kept = said[node.name].toJSON(lambda registration: int(registration[1]))
                    largest = max(largest, len(jsonBytes(kept)))
                for node in nodes:
                    for name, status in said.items():
                        node.statusChanged(name, attrs.evolve(status, serial=status.serial + 10))
            self.assertTrue(400_000 < largest < 1_300_000, (count, largest))
