"""Row 42: a node that is killed under thousands of services, some of which end with it."""

from __future__ import annotations

import time

from txserviceregistry.registry.stores.etcd.node import PRESENCE

from .clustercase import ClusterCase


class ManyServicesTests(ClusterCase):
    """A node and an application are killed at the same moment; other applications go on with the other nodes."""

    row = 42
    fault = "One of three nodes and an application are killed (SIGKILL), beside 10,000 services"

    async def test_onlyTheOnesThatEndedExpire(self) -> None:
        """Each service of the killed application is reported once, in time; no other one is."""
        crowds, each, ended, timeout = (10, 950, 500, 30) if self.isFull else (1, 200, 40, 6)
        await self.startCluster("--max-services", str(2 * crowds * each))
        alive = []
        # One after the other: a node creates some hundred services in the time of a request.
        for crowd in range(crowds):
            alive.append(
                await self.application(f"--prefix=alive{crowd}-", f"--services={each}", f"--timeout={timeout}")
            )
            await self.registered(alive[-1], each)
        doomed = await self.application("--prefix=ended-", f"--services={ended}", f"--timeout={timeout}")
        await self.registered(doomed, ended)
        follower = await self.follow(*self.nodes[1:])
        await self.begin(follower)
        audit = self.audit()
        self.assertKept(await audit.look())
        killed = time.monotonic()
        doomed.kill("KILL")
        await self.nodes[0].kill()

        async def allTold() -> bool:
            return len(follower.expirations(doomed)) >= ended

        await self.until(allTold)
        latest = max(at for at, event in follower.heard if event["type"] == "service.timeout") - killed
        await self.nodes[0].start()
        mayTimeOut = {*doomed.states, *self.stalled(*alive)}
        self.assertKept(await audit.look(mayTimeOut=mayTimeOut, ended=doomed.states))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, *alive)
        self.assertExpiredOnce(audit, doomed)
        self.assertNoTraceback()
        bound = PRESENCE + 1 + timeout
        if self.isPunctual:
            self.assertLess(latest, bound + 1)
        self.tell("services", crowds * each + ended)
        self.tell("expirations of the killed application's, one event each", ended)
        self.tell("other expirations", 0)
        self.tell(f"last event, s after the kill (at most {bound})", round(latest, 1))
