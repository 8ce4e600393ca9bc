"""Row 1: a registry that is killed again and again while it is written to."""

from __future__ import annotations

import time
from random import Random

from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .faultcase import FaultCase
from .journal import Application, Outcome


class KillTests(FaultCase):
    """The registry's process ends by SIGKILL at any moment, and is started again over its data."""

    row = 1
    fault = "The registry is killed (SIGKILL) under load, at random moments"

    async def test_nothingAcknowledgedIsLost(self) -> None:
        """After each start every write that was acknowledged is there, and no service has expired."""
        kills = 200 if self.isFull else 3
        random = Random(1)
        registry = await self.registry()
        pace = 0.005 if self.isFull else 0.02
        load = "--services=5", "--writers=4", "--creators=2", f"--pace={pace}"
        application = await self.application(*load, f"--timeout={self.heartbeatTimeout}")
        await self.registered(application, 5)
        audit = self.audit()
        outcomes = dict.fromkeys(Outcome, 0)
        longest = 0.0
        for _ in range(kills):
            await deferLater(reactor, random.uniform(0.05, 1.0 if self.isFull else 0.4), lambda: None)
            registry.kill("KILL")
            killed = time.monotonic()
            await registry.ended
            registry = await self.registry()
            await self.writesAgain(application, killed)
            longest = max(longest, time.monotonic() - killed)
            application.tell("pause")
            await application.says("paused")
            operations = application.take()
            for operation in operations:
                outcomes[operation.outcome] += 1
            self.assertKept(await audit.look(operations))
            application.tell("resume")
        await self.stopped(application)
        self.assertKept(await audit.look(application.take(), ended=application.states))
        self.assertKept(await audit.whole())
        self.assertEqual((audit.count("service.timeout"), application.lost), (0, set()))
        self.tell("kills", kills)
        self.tell("writes acknowledged", outcomes[Outcome.acknowledged])
        self.tell("writes without a response", outcomes[Outcome.unknown])
        self.tell("acknowledged writes lost", 0)
        self.tell("expirations", 0)
        self.tell("longest time to the next write, s", round(longest, 1))

    async def writesAgain(self, application: Application, since: float) -> None:
        """Wait until a write that began after a moment has been acknowledged."""

        async def some() -> bool:
            return any(
                each.begun > since and each.outcome is Outcome.acknowledged for each in application.operations[-50:]
            )

        await self.until(some, 0.01)
