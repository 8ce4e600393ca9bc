"""
Random runs of a simulated cluster keep every promise, and each rule of the protocol is needed.

``CLUSTER_MODEL_RUNS=500`` makes as many runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.node import Evidence, Node
from txserviceregistry.registry.stores.etcd.votes import Registration, Votes
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

from .clusterworld import SimulatedNode, Violation, World, run

_RUNS = int(os.environ.get("CLUSTER_MODEL_RUNS", "4"))

#: Runs within which random runs find that a rule is missing.
_SEARCH = 80


class RandomTests(SynchronousTestCase):
    """Pauses, partitions, kills, clock drift, late transactions and deaf watches."""

    def test_promisesAreKept(self) -> None:
        """No service expires within a timeout of an acknowledged heartbeat, and each silent one once."""
        heartbeats = expirations = touches = 0
        for seed in range(_RUNS):
            world = run(seed)
            heartbeats += world.acknowledged
            expirations += len(world.lateness)
            touches += world.touches
        # The runs are worth something only if all of that happens.
        self.assertGreater(min(heartbeats // 100, expirations // 10, touches // 10), _RUNS)


class RuleTests(SynchronousTestCase):
    """Random runs break a promise without one of these rules."""

    def assertNeeded(self, without: frozenset[str] = frozenset()) -> None:
        for seed in range(_SEARCH):
            try:
                run(seed, without)
            except Violation:
                self.flushLoggedErrors(Violation)
                return
        self.fail(f"{_SEARCH} runs have broken no promise")

    def test_seen(self) -> None:
        """An expiration does not commit if there was a touch since its vote began."""
        self.assertNeeded(frozenset(["seen"]))

    def test_validity(self) -> None:
        """A node acknowledges heartbeats only while its lease is confirmed."""
        self.patch(Node, "isValid", property(lambda node: bool(node.name)))
        self.assertNeeded()

    def test_renewalAfterALoss(self) -> None:
        """When a node's key is gone, every service has a full timeout."""

        def nodeGone(node: Node, name: str) -> None:
            votes = node.votes
            if votes is None or name == node.name:
                gone(node, name)
            else:
                votes.leave(name)

        gone = Node.nodeGone
        self.patch(Node, "nodeGone", nodeGone)
        self.assertNeeded()

    def test_closing(self) -> None:
        """A node that has answered 0 acknowledges only after a touch."""
        self.patch(Votes, "closed", lambda votes, tenant: {})
        self.assertNeeded()


class ScheduleTests(SynchronousTestCase):
    """Rules whose absence only a certain schedule shows."""

    def setUp(self) -> None:
        self.held: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def world(self, without: str = "") -> tuple[World, Registration]:
        """Two nodes and a silent service, up to the moment at which the first node's expiration is on its way."""
        world = World(1, frozenset([without] if without else []), nodes=2)
        world.run(2)
        process = world.nodes[0].process
        asks, expire = process.ask, process.expire

        def hold(name: str, created: int, registration: Registration, evidence: Evidence) -> Deferred[Any]:
            def ask(apply: Callable[[], Any]) -> Deferred[Any]:
                self.held.append((apply, Deferred()))
                return self.held[-1][1]

            process.ask = ask  # type: ignore[method-assign]  # for this one request
            try:
                return expire(name, created, registration, evidence)
            finally:
                process.ask = asks  # type: ignore[method-assign]  # as it was

        process.expire = hold  # type: ignore[method-assign]  # the network is the test's
        # The other node does not vote itself.
        world.nodes[1].process.due = lambda count: {}  # type: ignore[method-assign]  # as above
        registration = world.register("x", 3.0)
        while not self.held:
            world.run(world.now + 0.1)
        return world, registration

    def arrives(self) -> Any:
        """The expiration arrives at etcd."""
        for apply, _ in self.held:
            apply()

    def heartbeat(self, world: World, node: SimulatedNode, registration: Registration) -> None:
        """A heartbeat is acknowledged by a node."""
        statuses: list[Any] = []
        Deferred.fromCoroutine(node.process.heartbeat(registration)).addBoth(statuses.append)
        world.run(world.now + 1)
        self.assertEqual(statuses, [200])

    def joins(self, without: str = "") -> World:
        """A node joins between a vote and its transaction, and acknowledges a heartbeat."""
        world, registration = self.world(without)
        node = SimulatedNode(world, "late")
        world.nodes.append(node)
        node.start()
        world.run(world.now + 1)
        self.heartbeat(world, node, registration)
        self.arrives()
        return world

    def test_joins(self) -> None:
        """An expiration does not commit if a node has joined since its vote began."""
        self.assertEqual(self.joins().violations, [])
        self.held.clear()
        self.assertRaises(Violation, self.joins, "joins")

    def keyIsGone(self, without: str = "") -> World:
        """A transaction arrives after its node's key is gone, and the other one has acknowledged a heartbeat."""
        world, registration = self.world(without)
        name = world.nodes[0].process.node.name
        world.nodes[0].pause(60)
        world.revoke(name)
        world.run(world.now + 1)
        self.heartbeat(world, world.nodes[1], registration)
        self.arrives()
        return world

    def test_self(self) -> None:
        """An expiration does not commit if the key of its node is gone."""
        self.assertEqual(self.keyIsGone().violations, [])
        self.held.clear()
        self.assertRaises(Violation, self.keyIsGone, "self")

    def test_anUnknownOutcome(self) -> None:
        """
        A transaction whose response is lost keeps its vote open until a touch has decided it: what arrives later does
        not commit.
        """
        world, registration = self.world()
        _, answered = self.held[0]
        answered.errback(StoreUnavailable("no response"))
        world.run(world.now + 1)
        self.assertEqual(world.touches, 1)
        self.heartbeat(world, world.nodes[1], registration)
        self.arrives()
        self.assertEqual(world.violations, [])
        self.assertIsNone(world.truths[registration].ended)

    def test_anUnknownOutcomeOfOneThatWasRemoved(self) -> None:
        """When a touch finds that the registration has ended, the node does not report an expiration of its own."""
        world, registration = self.world()
        process = world.nodes[0].process
        process.watching = None
        world.remove(registration)
        _, answered = self.held[0]
        answered.errback(StoreUnavailable("no response"))
        world.run(world.now + 1)
        self.assertEqual((world.touches, process.expirations), (1, []))
        self.assertNotIn(registration, process.known)
