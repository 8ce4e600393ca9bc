"""Row 10: an application whose reactor is blocked."""

from __future__ import annotations

import time
from pathlib import Path

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from tests.system.processes import reactor

from .audit import Audit
from .faultcase import FaultCase
from .journal import Application


class StallTests(FaultCase):
    """Something in the application does not return for longer than a heartbeat timeout, while it is under load."""

    row = 10
    fault = "An application's reactor is blocked under load, for longer than some of its timeouts"

    async def test_recovers(self) -> None:
        """
        Services with a longer timeout stay; the others expire, and are registered again at once; the log says why.
        """
        # In a short run the applications may have no CPU for two seconds afterwards, too.
        stalls, length, timeout = (5, 5.0, 3) if self.isFull else (1, 6.5, 6)
        services = 20
        await self.registry()
        proxy = self.proxy()
        options = (f"--services={services}", "--writers=4", "--pace=0.02")
        short = await self.application("--prefix=short", f"--timeout={timeout}", *options, by=proxy)
        long = await self.application("--prefix=long", "--timeout=20", "--creators=2", *options)
        both = (short, long)
        for each in both:
            await self.registered(each, services)
            each.forget()
        audit = self.audit()
        slowest, most, written = 0.0, 0, 0
        for stall in range(1, stalls + 1):
            if self.isFull:
                # At another moment between two heartbeats each time.
                await deferLater(reactor, 2 + stall / 7, lambda: None)
            # However late the registry is, all services expire that must.
            end = Path(self.home, f"end{stall}")
            for each in both:
                each.tell("block", length, end)
            blocked = gatherResults([each.says("blocked") for each in both])
            await self.until(lambda: self.areExpired(audit, short))
            end.touch()
            await blocked
            began, requests, operations = time.monotonic(), proxy.counts["requests"], len(short.operations)
            await self.backAgain(short, stall)
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, proxy.counts["requests"] - requests - (len(short.operations) - operations))
            for each in both:
                each.tell("pause")
            await gatherResults([each.says("paused") for each in both])
            done = short.take() + long.take()
            written += len(done)
            self.assertKept(await audit.look(done, mayTimeOut=short.states))
            for each in both:
                each.tell("resume")
        for each in both:
            await self.stopped(each)
        self.assertKept(
            await audit.look(short.take() + long.take(), mayTimeOut=short.states, ended={*short.states, *long.states})
        )
        self.assertEqual(audit.count("service.timeout"), services * stalls)
        self.assertEqual(long.lost, set())
        # A heartbeat, a registration and another heartbeat for each; what fails is retried once. A service whose
        # registration had no response in time is looked for, removed and registered again.
        self.assertLess(most, 6 * services + 4 * len(short.troubles))
        told = sum("reactor stood still" in line for line in short.log)
        # On a machine that is busy enough there may have been more.
        self.assertGreaterEqual(told, stalls)
        self.tell("stalls", stalls)
        self.tell("length, s", length)
        self.tell("expirations, timeout 20 s", 0)
        self.tell(f"expirations, timeout {timeout} s (intended)", services * stalls)
        self.tell("longest recovery, s", round(slowest, 2))
        self.tell("requests per service until then, at most", round(most / services, 1))
        self.tell("log lines per stall", told / stalls)
        self.tell("writes meanwhile, none lost", written)

    async def areExpired(self, audit: Audit, application: Application) -> bool:
        """Whether none of its services is listed."""
        return not {service["id"] async for service in audit.client.services.iterate()} & application.states.keys()

    async def backAgain(self, application: Application, stalls: int) -> None:
        """Wait until all of its services are there once more, after so many stalls in all."""

        async def all_() -> bool:
            return all(
                application.isRegistered(id) and [state for _, state in states].count("registered") > stalls
                for id, states in application.states.items()
            )

        await self.until(all_, 0.02)
