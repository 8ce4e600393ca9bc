"""Row 2: a registry that is stopped for long, and whose wall clock is another one when it goes on."""

from __future__ import annotations

import time
from pathlib import Path

from twisted.internet.task import deferLater

from tests.needs import fakeTime
from tests.system.processes import Child, reactor

from .audit import Audit
from .faultcase import FaultCase
from .journal import Application, Outcome

SERVICES = 5
HOUR = 3600
DAY = 24 * HOUR


class StopTests(FaultCase):
    """The registry's process stands still for longer than its services' timeouts."""

    row = 2
    fault = "The registry is stopped (SIGSTOP) for three heartbeat timeouts while its clock is set"

    async def test_givesTheTimeBack(self) -> None:
        """No service expires, nothing is lost, and the feed stays in order, whatever the time of day is."""
        self.wallClock = Path(self.home, "faketime")
        fake = fakeTime(self.wallClock)
        registry = await self.registry(environment=fake)
        # In a short run the application may have no CPU for two seconds, too.
        timeout = 3 if self.isFull else 6
        application = await self.application(f"--services={SERVICES}", f"--timeout={timeout}", "--writers=1")
        await self.registered(application, SERVICES)
        # A registration that had no response in time is found, removed and repeated.
        repeated = len(application.troubles)
        audit = self.audit()
        steps = [0, HOUR, -HOUR, DAY, -DAY] if self.isFull else [-DAY]
        # One timeout is enough to see it, three are what the table says.
        stopped = (3 if self.isFull else 1.1) * timeout
        longest = 0.0
        for step in steps:
            longest = max(longest, await self.stop(registry, application, stopped, step))
            await self.check(application, audit)
            if self.isFull:
                # And back again, while it runs.
                self.step(0)
                await deferLater(reactor, timeout * 1.5, lambda: None)
                await self.check(application, audit)
        await self.stopped(application)
        self.assertKept(await audit.look(application.take(), ended=application.states))
        self.assertKept(await audit.whole())
        self.assertTrue(0 <= audit.count("service.join") - SERVICES <= repeated)
        self.assertEqual(audit.count("service.timeout"), 0)
        self.tell(f"stops of {stopped:g} s (heartbeat timeout {timeout} s)", len(steps))
        self.tell("clock steps", "none, " + ", ".join(f"{step / HOUR:+g} h" for step in steps if step))
        self.tell("expirations", 0)
        self.tell("longest recovery, s", round(longest, 1))

    async def stop(self, registry: Child, application: Application, seconds: float, step: int) -> float:
        """Stop it, and let it go on; how long it took then until all services had been heard of."""
        client = self.client(cache=None)
        services = (await client.services.list())["values"]
        before = {each["id"]: each["last_seen"] for each in services}
        self.assertEqual(len(before), SERVICES)
        registry.kill("STOP")
        self.step(step)
        await deferLater(reactor, seconds, lambda: None)
        registry.kill("CONT")
        continued = time.monotonic()

        async def heard() -> bool:
            services = (await client.services.list())["values"]
            seen = {each["id"]: each["last_seen"] for each in services}
            self.assertEqual(seen.keys(), before.keys())
            return all(seen[id] != before[id] for id in before)

        await self.until(heard)
        services = (await client.services.list())["values"]
        # The registry does see the clock that it is shown.
        for each in (await client.services.list())["values"]:
            self.assertApproximates((each["last_seen"] or 0) / 1000, time.time() + step, 60)
        await self.registered(application, SERVICES)
        await client.close()
        return time.monotonic() - continued

    def step(self, seconds: int) -> None:
        """Move the wall clock that the registry sees."""
        self.wallClock.write_text(f"{seconds:+d}\n")

    async def check(self, application: Application, audit: Audit) -> None:
        """All is kept so far."""
        application.tell("pause")
        await application.says("paused")
        operations = application.take()
        self.assertTrue(any(each.outcome is Outcome.acknowledged for each in operations))
        self.assertKept(await audit.look(operations))
        application.tell("resume")
