"""Row 14: many services that die at the same moment."""

from __future__ import annotations

import time

from .clustercase import ClusterCase, Follower


class DeathTests(ClusterCase):
    """An application with many services is killed; all nodes find out about it at once."""

    row = 14
    fault = "Many services of one application die at the same moment, in a cluster of three nodes"

    async def test_eachDeathIsToldOnce(self) -> None:
        """Every node's feed tells of each death once, all in the same order; who lives is not touched."""
        dying, timeout = (500, 10) if self.isFull else (60, 3)
        await self.startCluster()
        alive = await self.application("--prefix=alive", "--services=20", f"--timeout={timeout}")
        dead = await self.application("--prefix=dead", f"--services={dying}", f"--timeout={timeout}")
        await self.registered(alive, 20)
        await self.registered(dead, dying)
        followers = await self.followAll()
        dead.kill("KILL")
        killed = time.monotonic()

        async def allTold() -> bool:
            return all(len(follower.ids("service.timeout")) >= dying for follower in followers)

        await self.until(allTold)
        audit = self.audit()
        mayTimeOut = {*dead.states, *self.stalled(alive)}
        self.assertKept(await audit.look(mayTimeOut=mayTimeOut, dead=dead.states))
        self.assertKept(await audit.whole())
        self.assertNobodyDied(audit, alive)
        order = self.assertDiedOnce(audit, dead)
        for follower in followers:
            self.assertEqual((follower.ids("service.timeout"), follower.gaps), (order[-dying:], 0))
        self.tell("services that died", dying)
        self.tell("timeout events on each of three feeds", dying)
        self.tell("differences between the feeds", 0)
        self.tell("their heartbeat timeout, in s", timeout)
        late = max(map(self.latest, followers)) - killed - timeout
        if self.isPunctual:
            # The last heartbeats were heard before that; a second is what is promised, and the rest is this machine's.
            self.assertLess(late, 2.0)
        self.tell("last event on any feed, in s after a timeout from the death", round(late, 2))

    def latest(self, follower: Follower) -> float:
        """When a follower heard of the last death."""
        return max(at for at, event in follower.heard if event["type"] == "service.timeout")
