"""Row 11: registries that are killed, one after the other, under many services."""

from __future__ import annotations

import itertools
import time

from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .clustercase import ClusterCase

#: Services with a short timeout: at full length the shortest that there is.
_HASTY = 10


class NodeKillTests(ClusterCase):
    """Each node in its turn is killed and started again, while applications send heartbeats, write and follow."""

    row = 11
    fault = "One of three nodes is killed (SIGKILL) every 5 s, under many services and writes"

    async def test_noApplicationNotices(self) -> None:
        """No service times out, no request fails, no application is told anything but that all is well."""
        crowds, services, seconds, interval = (5, 198, 120.0, 5.0) if self.isFull else (2, 30, 4.5, 1.5)
        # With the shortest timeout a try may have a quarter of a second, which a busy machine takes now and then.
        hasty = 3 if self.isFull else 6
        await self.startCluster()
        applications = [
            await self.application(f"--prefix=crowd{number}-", f"--services={services}", "--timeout=10")
            for number in range(crowds)
        ]
        for application in applications:
            await self.registered(application, services)
        applications.append(
            await self.application(
                *("--prefix=hasty-", f"--services={_HASTY}", f"--timeout={hasty}", "--writers=3", "--creators=2"),
                "--pace=0.05",
            )
        )
        await self.registered(applications[-1], _HASTY)
        follower = await self.follow()
        await self.begin(follower)
        began, kills = time.monotonic(), 0
        for node in itertools.cycle(self.nodes):
            if time.monotonic() - began >= seconds:
                break
            killed = time.monotonic()
            await node.kill()
            kills += 1
            await node.start()
            await deferLater(reactor, max(0.0, interval - (time.monotonic() - killed)), lambda: None)
        lasted = time.monotonic() - began
        done = await self.pause(*applications)
        audit = self.audit()
        self.assertKept(await audit.look(done, mayTimeOut=self.stalled(*applications)))
        self.assertKept(await audit.whole())
        self.assertNoneExpired(audit, *applications)
        self.assertUnnoticed(*(applications if self.isCalm else applications[:-1]))
        self.assertAnswered(done)
        await self.followed(follower, audit)
        self.assertNoTraceback()
        self.tell("services", crowds * services + _HASTY)
        self.tell("seconds", round(lasted))
        self.tell("kills", kills)
        self.tell("expirations", audit.count("service.timeout"))
        self.tell("application errors", 0)
        self.tellOfWrites(done)
