"""Row 13: a member of etcd is cut off, with the registry next to it."""

from __future__ import annotations

import itertools
import time

from twisted.internet.task import deferLater

from tests.system.faults.journal import Outcome
from tests.system.ports import freePorts
from tests.system.processes import reactor
from txserviceregistry.errors import ServerError
from txserviceregistry.registry.stores.etcd.gateway import PATIENCE

from .clustercase import ClusterCase, Node
from .network import Network

#: The site that is cut off.
FAR = 2


class PartitionTests(ClusterCase):
    """Applications reach all three nodes; one of these, and the member of etcd beside it, reach none of the others."""

    row = 13
    fault = "One of three etcd members is cut off, with a node that applications still reach"

    def setUp(self) -> None:
        super().setUp()
        self.numbers = itertools.count()

    async def startSites(self) -> Network:
        """Start all of it, with a network in between."""
        ports = freePorts(6)
        network = Network(reactor, ports[3:], ports[:3], FAR)
        self.addCleanup(network.stop)
        self.addMembers(ports[:3], ports[3:], [relay.url for relay in network.peers])
        for member in self.members:
            await member.start()
        await self.until(self.areHealthy)
        for number, port in enumerate(freePorts(3)):
            self.addNode(number, port, network.etcdOf(number))
        await self.startAll()
        return network

    async def test_clientsMoveOn(self) -> None:
        """The node that is cut off says so; those who asked it go on with another, and no service has expired."""
        cuts, length, services = (5, 20.0, 100) if self.isFull else (1, 6.0, 10)
        network = await self.startSites()
        far, *near = self.nodes[FAR], *self.nodes[:FAR]
        # They begin with the node that is to be cut off.
        order = self.environmentOf(far, *near)
        applications = [
            await self.application(
                *("--in-order", f"--prefix={name}-", f"--services={services}", f"--timeout={timeout}", *load),
                environment=order,
            )
            for name, timeout, load in (("hasty", 3, ()), ("steady", 10, ("--writers=3", "--creators=2")))
        ]
        for each in applications:
            await self.registered(each, services)
        status = await self.until(self.members[FAR].status)
        memberId = status["header"]["member_id"]
        done, noticed, longest, withoutLeader = [], 0.0, 0.0, 0.0
        # From when to when a request may wait for etcd at the node that is cut off: then its outcome is unknown.
        troubled: list[tuple[float, float]] = []
        for _ in range(cuts):
            _, leads = await self.leader()
            began = time.monotonic()
            network.cutOff(f"{int(memberId):x}")
            if leads == memberId:
                await self.leader(besides=memberId)
                withoutLeader = max(withoutLeader, time.monotonic() - began)
            await self.until(lambda: self.says(far, 503))
            noticed = max(noticed, time.monotonic() - began)
            troubled.append((began, time.monotonic() + PATIENCE))
            for node in near:
                # It may have been the leader that went.
                await self.until(lambda node=node: self.says(node, 200))
            await deferLater(reactor, max(0.0, length - (time.monotonic() - began)), lambda: None)
            self.assertNotEqual(await far.health(), 200)
            term = await self.term()
            network.heal()
            healed = time.monotonic()
            await self.until(lambda: self.says(far, 200))
            longest = max(longest, time.monotonic() - healed)
            # All nodes are one registry again.
            await self.until(self.agree, 0.5)
            if await self.term() != term:
                # The member that came back made etcd elect a leader again.
                troubled.append((healed, time.monotonic()))
            done += [operation for each in applications for operation in each.take()]
        for each in applications:
            await self.registered(each, services)
        done += await self.pause(*applications)
        audit = self.audit()
        # Services made to see whether the nodes agree, and not removed because a node could not.
        mayTimeOut = {*self.stalled(*applications), *(f"agreed{number}" for number in range(next(self.numbers)))}
        self.assertKept(await audit.look(done, mayTimeOut=mayTimeOut))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, *applications)
        if withoutLeader <= 1:
            # Else etcd's election took so long that no node could do its work, and said so.
            self.assertAnswered(
                each for each in done if not any(begin - PATIENCE < each.begun < end for begin, end in troubled)
            )
        self.assertNoTraceback()
        self.tell("cuts", cuts)
        self.tell("length, s", length)
        self.tell("expirations", 0)
        self.tell("failed requests", sum(each.outcome is Outcome.unknown for each in done))
        self.tell("longest time without a leader for other nodes, s", round(withoutLeader, 1))
        self.tell("longest time until the node responded 503, s", round(noticed, 1))
        self.tell("longest time until it rejoined, s", round(longest, 1))
        self.tellOfWrites(done)

    async def term(self) -> object:
        """The number of etcd's last election, as a member knows it that was not cut off."""
        status = await self.until(self.members[0].status)
        return status["raftTerm"]

    async def says(self, node: Node, status: int) -> bool:
        """Whether this is a node's health."""
        return await node.health() == status

    async def agree(self) -> bool:
        """
        Whether what one node is told all know at once. (A member that comes back may make etcd elect a leader again,
        and as long as that takes a node may have to say that it can't reach its store.)
        """
        clients = [self.client(node) for node in self.nodes]
        for client in clients:
            id = f"agreed{next(self.numbers)}"
            try:
                await client.services.create(id, 60)
                found = [(await other.services.get(id))["id"] for other in clients]
                await client.services.remove(id)
            except ServerError:
                return False
            self.assertEqual(found, [id] * len(clients))
        return True
