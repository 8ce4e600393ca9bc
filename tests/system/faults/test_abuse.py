"""Row 9: clients that take all that they can get."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import treq
from twisted.internet.task import deferLater

from tests.system.processes import Child, isCrowded, reactor
from txserviceregistry import Client

from .attackcase import AttackCase, told
from .journal import Outcome

_MEGABYTE = 2**20
#: How long a request may take, in milliseconds, and how often a short run measures that at most.
_LONGEST, _MEASUREMENTS = 2_500, 3


class AbuseTests(AttackCase):
    """
    A well-behaved application has services, and shares its address with the attackers.
    """

    row = 9
    fault = "Connections that send a byte a second, endless heads and bodies, thousands of waiting requests"

    async def served(self, limits: list[str], *attacks: tuple[str, int], seconds: float) -> Child:
        """
        The registry serves the application all the while, and takes no more memory than is bounded.

        :return: the registry.
        """
        registry = await self.registry(*limits)
        load = "--services=5", "--writers=2", "--pace=0.1"
        application = await self.application(*load, f"--timeout={self.heartbeatTimeout}")
        await self.registered(application, 5)
        before = memory(registry)
        # Unauthenticated connections may be closed when there are too many; authenticated ones stay.
        client = self.client(cache=None)
        attackers = [self.attack(kind, count) for kind, count in attacks]

        async def areAtWork() -> bool:
            # Its connection is not left silent until it is closed, however long they take to start.
            await client.services.list(limit=10)
            return await self.areAtWork(attackers)

        await self.until(areAtWork)
        latencies = await self.latencies(client, seconds)
        what = " and ".join(f"{count} {kind}" for kind, count in attacks)
        await self.stillThere(client, application)
        application.tell("stop")
        await application.says("stopped")
        self.assertTrue(any(each.outcome is Outcome.acknowledged for each in application.take()))
        self.tell(f"{what}: seconds with {' '.join(limits) or 'the defaults'}", seconds)
        self.tell(f"{what}: cut off", sum(told(each)["cut"] for each in attackers))
        self.tellLatencies(what, latencies)
        self.tell(f"{what}: memory before, peak, MB", f"{before}, {memory(registry, peak=True)}")
        self.assertLess(memory(registry, peak=True), 400 if self.isFull else 200)
        return registry

    async def haveBeenCutOff(self, attackers: Child, count: int) -> bool:
        """Whether more than so many connections were cut off."""
        cut: int = told(attackers)["cut"]
        return cut > count

    async def latencies(self, client: Client, seconds: float) -> list[float]:
        """How long each of many requests takes, in milliseconds, one after the other."""
        took: list[float] = []
        for _ in range(1 if self.isFull else _MEASUREMENTS):
            took.clear()
            end = reactor.seconds() + seconds
            while reactor.seconds() < end:
                began = reactor.seconds()
                await client.services.list(limit=10)
                took.append((reactor.seconds() - began) * 1000)
                await deferLater(reactor, 0.02, lambda: None)
            # A short run has other tests beside it: a process may have no CPU for seconds, once.
            if max(took) < _LONGEST:
                break
        if not isCrowded():
            self.assertLess(max(took), _LONGEST)
        return took

    async def endAll(self) -> None:
        """End all processes, the last one first."""
        for child in reversed(self.children):
            child.kill("TERM")
            await child.ended

    async def test_aByteASecond(self) -> None:
        """Thousands of connections that send their request byte by byte keep no client out, and are closed."""
        count = 2_000 if self.isFull else 200
        if self.isFull:
            await self.served([], ("drip", count), seconds=60)
            await self.endAll()
        limits = [f"--max-connections={count // 4}", f"--max-connections-per-client={count // 4}"]
        registry = await self.served(
            [*limits, "--request-timeout=2s"], ("drip", count), seconds=30 if self.isFull else 1
        )
        await self.until(lambda: self.haveBeenCutOff(self.children[-1], count // 2))
        self.assertEqual(len(re.findall("Too many connections", registry.output)), 1)

    async def test_noEnd(self) -> None:
        """Heads and bodies without end, and requests whose responses are never read, cost what one request does."""
        count = 50 if self.isFull else 10
        attacks = [(kind, count) for kind in ("endless", "body", "unread")]
        await self.served([], *attacks, seconds=30 if self.isFull else 1)

    async def test_thousandsWhoWait(self) -> None:
        """Those who wait for events leave room for the others; for whom there is no place is told so."""
        count, places = (10_000, 10_000) if self.isFull else (150, 100)
        registry = await self.registry(
            *(f"--max-connections={count * 13 // 10}", f"--max-connections-per-client={count * 13 // 10}"),
            *(f"--max-followers={places}", f"--max-followers-per-tenant={places}"),
        )
        application = await self.application("--services=5", f"--timeout={self.heartbeatTimeout}")
        await self.registered(application, 5)
        client = self.client(cache=None)
        token, tenant = await self.token()
        marker = (await client.events.list())["values"][-1]["id"]
        before = memory(registry)
        path = f"/v1.0/{tenant}/events?wait=60&marker={marker}"
        followers = self.attack("follow", count, f"--path={path}", token=token)
        await self.until(lambda: self.hasOpened(followers, count, count - places))
        latencies = await self.latencies(client, 15 if self.isFull else 0.5)
        waiting = memory(registry)
        await self.stillThere(client, application)
        began = reactor.seconds()
        await client.configuration.set("news", "1")
        await self.until(lambda: self.haveHeard(followers, places), 0.01)
        took = reactor.seconds() - began
        what = f"{count} waiting, {places} places"
        self.tellLatencies(what, latencies)
        self.tell(
            f"{what}: memory before, waiting, peak, MB",
            f"{before}, {waiting}, {memory(registry, peak=True)}",
        )
        self.tell(f"{what}: refused with 503", told(followers)["codes"].get("503", 0))
        self.tell(f"{what}: time until all had an event, s", round(took, 1))
        await self.latencies(client, 5 if self.isFull else 0.1)
        await self.stillThere(client, application)
        self.assertLess(memory(registry, peak=True), 800 if self.isFull else 150)

    async def hasOpened(self, followers: Child, count: int, refused: int) -> bool:
        line = told(followers)
        opened: bool = line["open"] >= count and line["codes"].get("503", 0) >= refused
        return opened

    async def haveHeard(self, followers: Child, count: int) -> bool:
        heard: int = told(followers)["codes"].get("200", 0)
        return heard >= count

    async def token(self) -> tuple[str, str]:
        settings = self.client().settings
        credentials = {"username": settings.username, "apiKey": settings.apiKey}
        response = await treq.post(
            f"http://127.0.0.1:{self.port}/v2.0/tokens",
            json={"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}},
            persistent=False,
        )
        token = (await response.json())["access"]["token"]
        return token["id"], token["tenant"]["id"]


def memory(registry: Child, *, peak: bool = False) -> int:
    """The memory of a process, in MB."""
    transport: Any = registry.transport
    status = Path(f"/proc/{transport.pid}/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)" if peak else r"VmRSS:\s+(\d+)", status)
    return int(kilobytes) * 1024 // _MEGABYTE
