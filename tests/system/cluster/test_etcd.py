"""Row 12: etcd's leader is killed, and all of etcd is stopped."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from twisted.internet.task import deferLater

from tests.system.faults.journal import Application, Operation, Outcome
from tests.system.processes import reactor
from txserviceregistry import Client
from txserviceregistry.errors import APIError
from txserviceregistry.registry.stores.etcd.gateway import TRY
from txserviceregistry.registry.stores.etcd.node import PRESENCE, PUBLICATION, RENEWAL, SAFETY

from .clustercase import ClusterCase

#: Seconds that an application waits between two writes, on average.
_PACE = 0.02
#: Seconds that writes may stop for longer than etcd has no leader.
_ALLOWED = 2.0
#: Seconds without etcd for which a node stays a valid member in any case: it may have renewed its lease a while before,
#: and lose a try afterwards.
_VALID = PRESENCE - SAFETY - RENEWAL - PUBLICATION - TRY


class EtcdKillTests(ClusterCase):
    """The member that leads ends by SIGKILL, under load, and is started again some seconds later."""

    row = 12
    fault = "etcd's leader is killed (SIGKILL) under load; all of etcd is stopped (SIGSTOP) for 10 s"

    async def test_aLeaderIsKilled(self) -> None:
        """All that was acknowledged is there, no service has expired, and writes go on as soon as there is a leader."""
        kills, services = (10, 50) if self.isFull else (1, 10)
        await self.startCluster()
        application = await self.application(
            *("--prefix=steady-", f"--services={services}", "--timeout=10", "--writers=4", "--creators=2"),
            f"--pace={_PACE}",
        )
        # These have no more than a second from when a heartbeat is due, and may well be told that there is no answer.
        hasty = await self.application("--prefix=hasty-", f"--services={services}", "--timeout=3")
        for each in (application, hasty):
            await self.registered(each, services)
        follower = await self.follow()
        done: list[Operation] = []
        elections, pauses, quiet = [], [], []
        for _ in range(kills):
            began = time.monotonic()
            await deferLater(reactor, 3.0 if self.isFull else 1.0, lambda: None)
            leader, id = await self.leader()
            killed = time.monotonic()
            quiet.append(self.longestPause(application.operations, began, killed))
            await leader.kill()
            await self.leader(besides=id)
            elections.append(time.monotonic() - killed)
            await self.writesAgain(application, killed)
            pauses.append(self.longestPause(application.operations, killed, time.monotonic()))
            await deferLater(reactor, 3.0 if self.isFull else 0.5, lambda: None)
            await leader.start()
            await self.until(self.areHealthy)
            done += application.take()
        await self.registered(hasty, services)
        done += await self.pause(application, hasty)
        audit = self.audit()
        both = application, hasty
        self.assertKept(await audit.look(done, mayTimeOut=self.stalled(*both)))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, *both)
        if self.haveStayedValid() or (max(elections) < _VALID and self.isCalm):
            self.assertUnnoticed(application)
            self.assertAnswered(done)
        await self.followed(follower, audit)
        self.assertNoTraceback()
        if self.isPunctual:
            # Beyond what a write takes on this machine in any case.
            longer = [pause - election for pause, election in zip(pauses, elections, strict=True)]
            self.assertLess(max(longer), _ALLOWED + max(quiet))
        self.tell("leaders killed", kills)
        self.tell("longest time without a leader, s", round(max(elections), 1))
        self.tell("longest time without an acknowledged write, s", round(max(pauses), 1))
        self.tell("expirations", 0)
        self.tellOfWrites(done)

    def haveStayedValid(self) -> bool:
        """Whether no node had to refuse heartbeats; each says so."""
        return not any("Not a valid member" in node.running.output for node in self.nodes)

    async def writesAgain(self, application: Application, since: float) -> None:
        """Wait until a write that began after a moment has been acknowledged."""

        async def some() -> bool:
            return any(each.begun > since and each.outcome is Outcome.acknowledged for each in application.operations)

        await self.until(some, 0.02)

    def longestPause(self, operations: Sequence[Operation], begin: float, end: float) -> float:
        """The longest time between two moments in which no write was acknowledged."""
        ended = [each.ended for each in operations if each.outcome is Outcome.acknowledged and each.ended is not None]
        moments = [begin, *sorted(at for at in ended if begin < at < end), end]
        return max(after - before for before, after in itertools.pairwise(moments))

    async def test_allOfItIsStopped(self) -> None:
        """The nodes say that they can't do their work, and then go on; no service has expired."""
        stops, length, services = (5, 10.0, 100) if self.isFull else (1, 5.5, 10)
        await self.startCluster()
        application = await self.application(f"--services={services}", "--timeout=3", "--writers=2", "--creators=1")
        await self.registered(application, services)
        clients = [self.client(node) for node in self.nodes]
        # They have their auth tokens, which is all that could still come from a node's memory.
        for client in clients:
            await self.until(lambda client=client: self.answers(client))
        done: list[Operation] = []
        slowest = 0.0
        for _ in range(stops):
            stopped = time.monotonic()
            for member in self.members:
                member.running.kill("STOP")
            await self.until(lambda: self.allSay(503))
            for client in clients:
                self.assertEqual(await self.answer(client), (503, "systemFailureError"))
            await deferLater(reactor, max(0.0, length - (time.monotonic() - stopped)), lambda: None)
            for member in self.members:
                member.running.kill("CONT")
            continued = time.monotonic()
            await self.until(lambda: self.allSay(200))
            await self.writesAgain(application, continued)
            await self.registered(application, services)
            slowest = max(slowest, time.monotonic() - continued)
            # A service that was to expire after all would have by now.
            await deferLater(reactor, 4.0 if self.isFull else 1.0, lambda: None)
        done += await self.pause(application)
        audit = self.audit()
        self.assertKept(await audit.look(done, mayTimeOut=self.stalled(application)))
        self.assertNoneExpired(audit, application)
        self.assertNoTraceback()
        self.tell(f"stops of {length:g} s (heartbeat timeout 3 s)", stops)
        self.tell("expirations after stops", 0)
        self.tell("longest recovery, s", round(slowest, 1))

    async def allSay(self, status: int) -> bool:
        """Whether the health of all nodes is this."""
        return [await node.health() for node in self.nodes] == [status] * len(self.nodes)

    async def answers(self, client: Client) -> bool:
        """Whether a client is answered, and not refused."""
        return await self.answer(client) == (200, "")

    async def answer(self, client: Client) -> tuple[int, str]:
        """The status with which a client is answered, and the type of the fault if it is one."""
        try:
            await client.configuration.list()
        except APIError as error:
            return error.status, error.type
        return 200, ""
