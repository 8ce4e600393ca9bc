"""Row 14: many services that expire at the same moment."""

from __future__ import annotations

import time

from .clustercase import ClusterCase, Follower, expirations


class ExpirationTests(ClusterCase):
    """An application with many services is killed; all nodes find out about it at once."""

    row = 14
    fault = "Many services of one application expire at once, in a cluster of three nodes"

    async def test_eachExpirationIsOneEvent(self) -> None:
        """Every node's feed has each expiration once, all in the same order; other services stay."""
        count, timeout = (500, 10) if self.isFull else (60, 3)
        await self.startCluster()
        alive = await self.application("--prefix=alive", "--services=20", f"--timeout={timeout}")
        ended = await self.application("--prefix=ended", f"--services={count}", f"--timeout={timeout}")
        await self.registered(alive, 20)
        await self.registered(ended, count)
        followers = await self.followAll()
        ended.kill("KILL")
        killed = time.monotonic()

        async def allTold() -> bool:
            return all(len(follower.expirations(ended)) >= count for follower in followers)

        await self.until(allTold)
        audit = self.audit()
        mayTimeOut = {*ended.states, *self.stalled(alive)}
        self.assertKept(await audit.look(mayTimeOut=mayTimeOut, ended=ended.states))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, alive)
        self.assertExpiredOnce(audit, ended)
        order = expirations(audit.events, ended)[-count:]
        for follower in followers:
            self.assertEqual((follower.expirations(ended), follower.gaps), (order, 0))
        self.tell("expirations", count)
        self.tell("events on each of three feeds", count)
        self.tell("differences between the feeds", 0)
        self.tell("heartbeat timeout, s", timeout)
        late = max(map(self.latest, followers)) - killed - timeout
        if self.isPunctual:
            # The last heartbeats were heard before that; a second is what is promised, and the rest is this machine's.
            self.assertLess(late, 2.0)
        self.tell("last event, s after the timeout", round(late, 2))

    def latest(self, follower: Follower) -> float:
        """When a follower received the last expiration."""
        return max(at for at, event in follower.heard if event["type"] == "service.timeout")
