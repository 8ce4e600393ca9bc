"""Row 8: thousands of services in one application, for an hour."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.system.processes import PATIENCE, Child, reactor
from txserviceregistry import Client

from .faultcase import ROOT, FaultCase
from .manyservices import Count


class ManyServices(Child):
    """The application's process (:mod:`tests.system.faults.manyservices`), from the test's side."""

    def __init__(self) -> None:
        super().__init__()
        self._asked: list[Deferred[Count]] = []
        self._line = ""

    def count(self) -> Deferred[Count]:
        """Ask how far it is."""
        answer: Deferred[Count] = Deferred()
        self._asked.append(answer)
        transport: Any = self.transport
        transport.write(b"\n")
        return answer.addTimeout(PATIENCE, reactor)

    def outReceived(self, data: bytes) -> None:
        """See ProcessProtocol."""
        *lines, self._line = (self._line + data.decode()).split("\n")
        for line in lines:
            self._asked.pop(0).callback(Count(**json.loads(line)))


def memory(child: Child) -> int:
    """The most memory that a process has had, in MiB."""
    transport: Any = child.transport
    status = Path(f"/proc/{transport.pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def cpu(child: Child) -> float:
    """The seconds of CPU that a process has had."""
    transport: Any = child.transport
    fields = Path(f"/proc/{transport.pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class ManyServicesTests(FaultCase):
    """
    A registry over sqlite and an application, each a real process, with real sockets between them. Their time is
    hurried (:mod:`tests.system.faults.hurried`) once all services are registered.

    How far it can be hurried is a matter of arithmetic: 10,000 services with a timeout of 120 s send a heartbeat every
    91 s (0.8 of the timeout, less five per cent of jitter), which makes 110 heartbeats a second on average. Up to 1,000
    go in one request, and cost the registry some 15 us each, so that *speed* times as many are far
    from filling a core. A process in a hurry must not wait for the CPU because of others: between a heartbeat and its
    deadline there are 24 s (18 s in a short run), which are three (two) at eight times the speed.
    """

    row = 8
    fault = "Many services of one application, for an hour"

    async def test_allLive(self) -> None:
        """No service expires, and the application takes all of its services for registered, all the time."""
        services, timeout, minutes, speed = (10_000, 120, 60, 8) if self.isFull else (300, 90, 1.5, 8)
        registry = await self.hurried(speed, services)
        application = ManyServices()
        self.spawn(
            "python",
            *["-m", "tests.system.faults.hurried", str(speed), "tests.system.faults.manyservices"],
            *[f"--services={services}", f"--timeout={timeout}"],
            environment={"PYTHONPATH": str(ROOT)},
            child=application,
        )
        began = time.monotonic()
        await self.allRegistered(application, services)
        took = time.monotonic() - began
        client = self.client(cache=None)
        marker = (await client.events.list(limit=1))["values"][0]["id"]
        before, cpuBefore = await application.count(), (cpu(application), cpu(registry))
        heartbeatsBefore, began = await self.heartbeats(client), time.monotonic()
        for child in (registry, application):
            child.kill("USR1")
        await deferLater(reactor, minutes * 60 / speed, lambda: None)

        async def isOver() -> Count | None:
            # Its clock may have begun to hurry late.
            now = await application.count()
            return now if now.seconds - before.seconds >= minutes * 60 else None

        after, lasted = await self.until(isOver), time.monotonic() - began
        heartbeats = await self.heartbeats(client) - heartbeatsBefore
        timedOut = [event async for event in client.events.iterate(marker) if event["type"] == "service.timeout"]
        listed = [service["id"] async for service in client.services.iterate()]
        self.assertEqual(timedOut, [])
        self.assertEqual((len(listed), after.registered, after.losses), (services, services, 0))
        self.assertNoTraceback()
        self.tell("services", services)
        self.tell("heartbeat timeout, s", timeout)
        self.tell("simulated minutes", round((after.seconds - before.seconds) / 60, 1))
        self.tell("simulated seconds per real second", speed)
        self.tell("heartbeats", heartbeats)
        self.tell("heartbeats per real second", round(heartbeats / lasted))
        self.tell("false expirations", len(timedOut))
        self.tell("real time until all were registered, s", round(took, 1))
        for name, child, used in (("application", application, cpuBefore[0]), ("registry", registry, cpuBefore[1])):
            self.tell(f"CPU of the {name}, cores", round((cpu(child) - used) / lasted, 2))
            self.tell(f"peak memory of the {name}, MiB", memory(child))
        self.tell("stalls noticed by the registry", registry.output.count("Registry stalled for"))

    async def heartbeats(self, client: Client) -> int:
        """How many the registry has taken so far, as its metrics say."""
        metrics = client.settings.baseUrls[0].removesuffix("/v1.0") + "/metrics"
        # Over a connection of its own: in a hurry, the registry soon closes one that is idle.
        text = await treq.text_content(await treq.get(metrics, persistent=False))
        (found,) = re.findall(r"^\w*heartbeats_total (\S+)$", text, re.MULTILINE)
        return int(float(found))

    async def hurried(self, speed: float, services: int) -> Child:
        """A registry over sqlite that has room for so many services."""
        registry = self.spawn(
            "python",
            *["-m", "tests.system.faults.hurried", str(speed), "twistd", "-n", "--pidfile="],
            *["service-registry", "--listen=tcp:0:interface=127.0.0.1", f"--max-services={services}"],
            environment={"PYTHONPATH": str(ROOT)},
        )
        await registry.says("Credentials")
        return registry

    async def allRegistered(self, application: ManyServices, services: int) -> Count:
        """Wait for it, as long as there is progress."""
        count = await application.count()
        while count.registered < services:
            before = count.registered

            async def more(before: int = before) -> Count | None:
                now = await application.count()
                return now if now.registered > before else None

            count = await self.until(more)
        return count
