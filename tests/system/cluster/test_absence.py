"""Row 15: no node is there for a while, and then all are."""

from __future__ import annotations

import time

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .clustercase import ClusterCase, started


class AbsenceTests(ClusterCase):
    """All nodes are killed; of two applications one is killed as well, and one has nobody to beat for."""

    row = 15
    fault = "All three nodes are killed (SIGKILL), and started again after three heartbeat timeouts"

    async def test_onlyTheDeadAreReported(self) -> None:
        """Who lives and beats again within one timeout is not reported; who does not is, once, and not too early."""
        services, timeout, times = (300, 10, 3) if self.isFull else (20, 3, 2)
        await self.startCluster()
        alive = await self.application("--prefix=alive-", f"--services={services}", f"--timeout={timeout}")
        dead = await self.application("--prefix=dead-", f"--services={services}", f"--timeout={timeout}")
        for each in (alive, dead):
            await self.registered(each, services)
        audit = self.audit()
        self.assertKept(await audit.look())
        for node in self.nodes:
            await node.kill()
        killed = time.monotonic()
        dead.kill("KILL")
        await deferLater(reactor, times * timeout, lambda: None)
        returned = time.monotonic()
        await gatherResults([started(node) for node in self.nodes])
        followers = [await self.follow(node) for node in self.nodes]
        await self.registered(alive, services)
        back = time.monotonic()

        async def allTold() -> bool:
            return all(len(follower.ids("service.timeout")) >= services for follower in followers)

        await self.until(allTold)
        # Whoever was to be reported twice, or although it lives, would be by now.
        await deferLater(reactor, timeout, lambda: None)
        mayTimeOut = {*dead.states, *self.stalled(alive)}
        self.assertKept(await audit.look(mayTimeOut=mayTimeOut, dead=dead.states))
        self.assertKept(await audit.whole())
        self.assertNobodyDied(audit, alive)
        self.assertDiedOnce(audit, dead)
        moments = [at for follower in followers for at, each in follower.heard if each["type"] == "service.timeout"]
        self.assertGreater(min(moments) - returned, timeout)
        for follower in followers:
            self.assertEqual(follower.ids("service.timeout"), followers[0].ids("service.timeout"))
            self.assertEqual(follower.gaps, 0)
        self.assertNoTraceback()
        self.tell("heartbeat timeout, in s", timeout)
        self.tell("seconds without a node", round(returned - killed))
        self.tell("services whose application lived", services)
        self.tell("of these, reported dead, or registered anew", 0)
        self.tell("seconds from the start of the nodes until all of them beat again", round(back - returned, 1))
        self.tell("services whose application had died, each reported once", services)
        self.tell("last of these reports, in s after the start of the nodes", round(max(moments) - returned, 1))
