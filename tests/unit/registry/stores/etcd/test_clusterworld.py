"""
Random runs of a simulated cluster keep every promise, and each rule of the protocol is needed.

Without most rules a promise is broken: in random runs, or in a schedule. Three rules break none: ``pending`` lets a
heartbeat during a vote keep its service, ``early`` and ``wait`` save touches.

``CLUSTER_MODEL_RUNS=500`` makes as many runs.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, FirstError, succeed
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd import node as membership
from txserviceregistry.registry.stores.etcd.node import Node
from txserviceregistry.registry.stores.etcd.votes import Evidence, Registration, Status, Votes
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

from .clusterworld import Process, SimulatedNode, Violation, World, run
from .lockworld import runLocks

_RUNS = int(os.environ.get("CLUSTER_MODEL_RUNS", "4"))

#: Runs within which random runs find that a rule is missing.
_SEARCH = 80


def isBroken(run: Callable[[], object]) -> bool:
    """Whether a run breaks a promise. The Deferreds that it leaves have been collected then, with their failures."""
    try:
        run()
        return False
    except Violation:
        pass
    gc.collect()
    return True


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


class LockTests(SynchronousTestCase):
    """Locks in the same trouble, each with three contenders."""

    def test_oneHolder(self) -> None:
        """At no time do two rely on a lock, and locks change hands."""
        handOvers = expirations = 0
        for seed in range(_RUNS):
            world, count = runLocks(seed)
            handOvers += count
            expirations += len(world.lateness)
        self.assertGreater(min(handOvers // 20, expirations // 10), _RUNS)

    def test_relyingForTooLong(self) -> None:
        """Holders that rely on a lock for longer than its timeout are found out."""
        for seed in range(_SEARCH):
            if isBroken(lambda seed=seed: runLocks(seed, part=1.4)):  # type: ignore[misc]  # a loop's
                self.flushLoggedErrors(Violation, FirstError)
                return
        self.fail(f"{_SEARCH} runs have broken no promise")


class RuleTests(SynchronousTestCase):
    """Random runs break a promise without one of these rules."""

    def assertNeeded(self, without: frozenset[str] = frozenset(), first: int = 0) -> None:
        """A run breaks a promise; the search begins where the last one ended."""
        for seed in range(first, first + _SEARCH):
            if isBroken(lambda seed=seed: run(seed, without)):  # type: ignore[misc]  # a loop's
                self.flushLoggedErrors(Violation, FirstError)
                return
        self.fail(f"{_SEARCH} runs have broken no promise")

    def test_seen(self) -> None:
        """An expiration does not commit if there was a touch since its vote began."""
        self.assertNeeded(frozenset(["seen"]))

    def test_validity(self) -> None:
        """A node acknowledges heartbeats only while its lease is confirmed."""
        self.patch(Node, "isValid", property(lambda node: bool(node.name)))
        self.assertNeeded(first=2)

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
        self.assertNeeded(first=20)

    def test_closing(self) -> None:
        """A node that has answered 0 acknowledges only after a touch."""
        self.patch(Votes, "closed", lambda votes, tenant: {})
        self.assertNeeded()


class ScheduleTests(SynchronousTestCase):
    """Rules whose absence only a certain schedule shows."""

    def setUp(self) -> None:
        self.held: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def steady(self, nodes: int, without: str = "") -> World:
        """Some nodes, over a network in which nothing is ever slow."""
        world = World(1, frozenset([without] if without else []), nodes=nodes)
        world.random.random = lambda: 0.5  # type: ignore[method-assign]  # all requests take the same time
        # Memberships that have begun before that end.
        world.run(10)
        return world

    def world(self, without: str = "", nodes: int = 2) -> tuple[World, Registration]:
        """Some nodes and a silent service, up to the moment at which the first node's expiration is on its way."""
        self.held.clear()
        world = self.steady(nodes, without)
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
        # The other nodes do not vote themselves.
        for node in world.nodes[1:]:
            node.process.due = lambda count: {}  # type: ignore[method-assign]  # as above
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
        self.assertRaises(Violation, self.keyIsGone, "self")

    def unknownOutcome(self, touches: bool = True) -> World:
        """An expiration arrives after its sender has given up waiting, and the other node has acknowledged."""
        world, registration = self.world()
        if not touches:
            world.nodes[0].process.touch = lambda registration: succeed(True)  # type: ignore[method-assign]  # the rule
        # It votes only once.
        world.nodes[0].process.due = lambda count: {}  # type: ignore[method-assign]  # as above
        _, answered = self.held[0]
        answered.errback(StoreUnavailable("no response"))
        world.run(world.now + 1)
        self.heartbeat(world, world.nodes[1], registration)
        self.arrives()
        return world

    def test_unknown(self) -> None:
        """A transaction whose response is lost is decided by a touch: what arrives later does not commit."""
        self.assertEqual(self.unknownOutcome().violations, [])
        self.assertRaises(Violation, self.unknownOutcome, touches=False)

    def memberGoes(self) -> World:
        """The key of a third node goes while an expiration is on its way, and the second node acknowledges."""
        world, registration = self.world(nodes=3)
        name = world.nodes[2].process.node.name
        world.nodes[2].pause(60)
        world.revoke(name)
        world.run(world.now + 1)
        self.heartbeat(world, world.nodes[1], registration)
        self.arrives()
        return world

    def test_undecided(self) -> None:
        """A vote that is given up stays listed, and closes the service, until its transaction is decided."""
        self.assertEqual(self.memberGoes().violations, [])

        giveUp = Votes.giveUp

        def giveUpAll(votes: Votes) -> None:
            giveUp(votes)
            for number, registrations in votes.status().votes.items():
                for registration in registrations:
                    votes.decided(number, registration)

        self.patch(Votes, "giveUp", giveUpAll)
        self.assertRaises(Violation, self.memberGoes)

    def lateStatus(self) -> World:
        """An earlier status, which lists no vote, is written after the one whose vote is being decided."""
        world, registration = self.world()
        name = world.nodes[0].process.node.name
        world.commit({("nodes", name): Status(1)}, lease=name)
        world.run(world.now + 0.1)
        self.heartbeat(world, world.nodes[1], registration)
        self.arrives()
        return world

    def test_serial(self) -> None:
        """A status that is older than the last one is ignored."""
        self.assertEqual(self.lateStatus().violations, [])
        observe, serials = Votes.observe, itertools.count(1_000_000)

        def observeAny(votes: Votes, name: str, status: Status) -> None:
            observe(votes, name, attrs.evolve(status, serial=next(serials)))

        self.patch(Votes, "observe", observeAny)
        self.assertRaises(Violation, self.lateStatus)

    def lateTouch(self) -> tuple[World, list[int]]:
        """
        The second node has touched the service, and has no response yet, when the first node sees the touch and opens a
        second vote, which is decided before the response comes.
        """
        world, registration = self.world()
        second = world.nodes[1].process
        touch, statuses, answers = second.touch, list[int](), list[Deferred[bool]]()

        def hold(registration: Registration) -> Deferred[bool]:
            # The response comes when the test says so.
            second.touch = touch  # type: ignore[method-assign]  # the next one is as it was
            answers.append(Deferred())
            world.commit({("seen", registration): None})
            return answers[0]

        second.touch = hold  # type: ignore[method-assign]  # the network is the test's
        Deferred.fromCoroutine(second.heartbeat(registration)).addBoth(statuses.append)
        while not answers:
            world.run(world.now + 0.05)
        # The touch, which both nodes have seen, makes the first expiration fail.
        world.run(world.now + 0.02)
        apply, answered = self.held.pop()
        answered.callback(apply())
        end = world.now + 5
        while not self.held and world.now < end:
            world.run(world.now + 0.1)
        answers[0].callback(True)
        if self.held:
            apply, answered = self.held.pop()
            answered.callback(apply())
        world.run(world.now + 1)
        return world, statuses

    def test_pending(self) -> None:
        """
        While a node touches a service it answers votes with a full timeout, so that the heartbeat keeps the service.
        Without that rule it does not, though no promise is broken.
        """
        world, statuses = self.lateTouch()
        self.assertEqual((statuses, world.lateness), ([200], []))
        self.patch(Process, "timeout", Process.secondsLeft)
        world, statuses = self.lateTouch()
        self.assertEqual((statuses, len(world.lateness), world.violations), ([404], 1, []))

    def test_again(self) -> None:
        """A touch makes up for the votes that closed the service when it was sent; a later one needs another touch."""
        self.patch(Process, "timeout", Process.secondsLeft)
        touched = Votes.touched

        def touchedForAll(votes: Votes, registration: Registration, closing: object) -> bool:
            return touched(votes, registration, votes.closing(registration))

        self.patch(Votes, "touched", touchedForAll)
        self.assertRaises(Violation, self.lateTouch)

    def update(self) -> World:
        """A service is given the timeout that it has: the deadline counts from then on all nodes."""
        world = self.steady(2)
        registration = world.register("x", 3.0)
        world.run(world.now + 1)
        world.update(registration, 3.0)
        world.run(world.now + 5)
        return world

    def test_update(self) -> None:
        """An update of the timeout that the watch shows gives a full timeout, also if it stays the same."""
        world = self.update()
        self.assertEqual((len(world.lateness), world.violations), (1, []))
        meet = Process.meet
        self.patch(Process, "meet", lambda node, name, entry: None if name in node.known else meet(node, name, entry))
        self.assertRaises(Violation, self.update)

    def aliveElsewhere(self, reads: bool = True) -> tuple[World, SimulatedNode, Registration]:
        """
        A vote that the last node can't answer, as it is paused: the second one has answered that there is time left,
        before the third one has answered at all.
        """
        world = self.steady(4)
        for node in world.nodes[1:]:
            node.process.due = lambda count: {}  # type: ignore[method-assign]  # only the first one votes
        registration = world.register("x", 3.0)
        world.run(world.now + 2)
        self.heartbeat(world, world.nodes[1], registration)
        world.nodes[3].pause(60)
        votes = world.nodes[2].process.node.votes
        assert votes is not None
        observe = votes.observe
        if not reads:
            # The third node has no vote of its own.
            votes.observe = lambda name, status: observe(name, attrs.evolve(status, answers={}))  # type: ignore[method-assign]
        answer, votes.answer = votes.answer, lambda: None  # type: ignore[method-assign]  # it is late
        world.run(world.now + 2)
        votes.answer = answer  # type: ignore[method-assign]  # as it was
        world.run(world.now + 0.5)
        return world, world.nodes[2], registration

    def test_early(self) -> None:
        """
        An answer that there is time left reopens the service on every node, also on one that answers later, although
        the vote goes on: heartbeats need no touch. Without that rule they do, though no promise is broken.
        """
        world, node, registration = self.aliveElsewhere()
        self.heartbeat(world, node, registration)
        self.assertEqual(world.touches, 0)
        world, node, registration = self.aliveElsewhere(reads=False)
        self.heartbeat(world, node, registration)
        self.assertEqual((world.touches, world.violations), (1, []))

    def heartbeatInAVote(self) -> World:
        """A heartbeat comes to a node that has just opened a vote; another node has received one before."""
        world = self.steady(2)
        registration = world.register("x", 3.0)
        world.run(world.now + 2)
        self.heartbeat(world, world.nodes[1], registration)
        process = world.nodes[0].process
        while registration[1] not in process.node.closed("x"):
            world.run(world.now + 0.01)
        world.run(world.now + 0.1)
        self.assertIn(registration[1], process.node.closed("x"))
        self.heartbeat(world, world.nodes[0], registration)
        return world

    def test_wait(self) -> None:
        """
        A heartbeat of a closed service waits for the end of the vote, which saves a touch. Without that rule it needs
        one, though no promise is broken.
        """
        self.assertEqual(self.heartbeatInAVote().touches, 0)
        self.patch(membership, "VOTE", 0.0)
        world = self.heartbeatInAVote()
        self.assertEqual((world.touches, world.violations), (1, []))

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
