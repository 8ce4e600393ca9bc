"""Row 15: no node is there for a while, and then all are."""

from __future__ import annotations

import time

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .clustercase import ClusterCase, started


class AbsenceTests(ClusterCase):
    """All nodes are killed; of two applications one is killed as well, and one goes on without a registry."""

    row = 15
    fault = "All three nodes are killed (SIGKILL), and started after three heartbeat timeouts"

    async def test_onlyKilledApplicationsExpire(self) -> None:
        """Services with a heartbeat within one timeout stay; the others expire, once, and not too early."""
        services, timeout, times = (300, 10, 3) if self.isFull else (20, 3, 2)
        await self.startCluster()
        alive = await self.application("--prefix=alive-", f"--services={services}", f"--timeout={timeout}")
        ended = await self.application("--prefix=killed-", f"--services={services}", f"--timeout={timeout}")
        for each in (alive, ended):
            await self.registered(each, services)
        audit = self.audit()
        self.assertKept(await audit.look())
        for node in self.nodes:
            await node.kill()
        killed = time.monotonic()
        ended.kill("KILL")
        await deferLater(reactor, times * timeout, lambda: None)
        returned = time.monotonic()
        await gatherResults([started(node) for node in self.nodes])
        followers = [await self.follow(node) for node in self.nodes]
        await self.registered(alive, services)
        back = time.monotonic()

        async def allTold() -> bool:
            return all(len(follower.expirations(ended)) >= services for follower in followers)

        await self.until(allTold)
        # A second event of one service, or one of a service that is there, would have come by now.
        await deferLater(reactor, timeout, lambda: None)
        mayTimeOut = {*ended.states, *self.stalled(alive)}
        self.assertKept(await audit.look(mayTimeOut=mayTimeOut, ended=ended.states))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, alive)
        self.assertExpiredOnce(audit, ended)
        moments = [at for follower in followers for at, each in follower.heard if each["type"] == "service.timeout"]
        self.assertGreater(min(moments) - returned, timeout)
        for follower in followers:
            self.assertEqual(follower.ids("service.timeout"), followers[0].ids("service.timeout"))
            self.assertEqual(follower.gaps, 0)
        self.assertNoTraceback()
        self.tell("heartbeat timeout, s", timeout)
        self.tell("time without a node, s", round(returned - killed))
        self.tell("services of running applications", services)
        self.tell("of these, expired or registered again", 0)
        self.tell("time until all are registered again, s", round(back - returned, 1))
        self.tell("services of killed applications, one event each", services)
        self.tell("last event, s after the start", round(max(moments) - returned, 1))
