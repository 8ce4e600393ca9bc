"""Row 3: a network that is cut, for a moment or for long, in one direction or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from tests.processes import reactor

from .audit import Audit
from .faultcase import FaultCase
from .journal import Application
from .proxy import BOTH, TO_CLIENT, TO_REGISTRY, Proxy, Way

TIMEOUT = 3
SERVICES = 5
# Cuts of so many seconds that nobody may notice, and that everybody must.
SHORT = 1.0
LONG = TIMEOUT + 1.5
# A service is back so many seconds after the network, at the latest: one interval, and a round of requests.
BACK = TIMEOUT * 0.6 + 1.0


class NetworkTests(FaultCase):
    """Between an application with several services and a registry there is a network."""

    row = 3
    fault = "The network is cut, for less and for more than a heartbeat timeout, in both directions and in each alone"

    async def test_aMomentIsNotNoticed(self) -> None:
        """A cut of less than a timeout leaves no event, and no word in the application's log of worse than a retry."""
        ways = [BOTH, (TO_REGISTRY,), (TO_CLIENT,)] if self.isFull else [(TO_CLIENT,)]
        proxy, application, audit = await self.begun()
        cuts = 0
        for way in ways:
            for _ in range(10 if self.isFull else 1):
                await self.cut(proxy, SHORT, way)
                cuts += 1
                await self.wait(1.0 if self.isFull else 0.3)
                self.assertKept(await audit.look())
        self.assertEqual(len(audit.events), SERVICES)
        self.assertEqual(
            [[state for _, state in states] for states in application.states.values()],
            [["registering", "registered"]] * SERVICES,
        )
        self.assertEqual(application.troubles, [])
        await self.end(application, audit)
        self.tell(f"cuts of {SHORT:g} s", cuts)
        self.tell("timeouts or state changes that they made", 0)
        self.tell("words of worse than a retry", sum("is not heartbeated:" not in line for line in application.log))

    async def test_aLongCutEndsAndBegins(self) -> None:
        """After more than a timeout each service times out once, and joins once when the network is back."""
        ways: Sequence[Sequence[Way]] = [BOTH, (TO_REGISTRY,), (TO_CLIENT,)] if self.isFull else [BOTH]
        proxy, application, audit = await self.begun()
        longest = 0.0
        cuts = 0
        for way in ways:
            for _ in range(3 if self.isFull else 1):
                cuts += 1
                longest = max(longest, await self.longCut(proxy, way, application, audit, cuts))
        await self.end(application, audit)
        self.tell(f"cuts of {LONG:g} s (heartbeat timeout {TIMEOUT} s)", cuts)
        self.tell("timeouts for each service and cut, and joins after it", 1)
        self.tell("longest time from the network's return until all were registered again, in s", round(longest, 1))

    async def longCut(
        self, proxy: Proxy, ways: Sequence[Way], application: Application, audit: Audit, nth: int
    ) -> float:
        """A cut and what follows; how long it took until all was well again."""
        clock: IReactorTime = reactor
        isHeard = TO_REGISTRY not in ways
        await self.cut(proxy, LONG, ways)
        healed = clock.seconds()

        async def back() -> bool:
            services = (await audit.client.services.list())["values"]
            return len(services) == SERVICES and all(map(application.isRegistered, application.states))

        await self.until(back)
        took = clock.seconds() - healed
        self.assertLess(took, BACK)
        findings = await audit.look(mayTimeOut=() if isHeard else application.services)
        self.assertKept(findings)
        return took

    async def begun(self) -> tuple[Proxy, Application, Audit]:
        """All are registered, by way of a proxy."""
        await self.registry()
        proxy = self.proxy()
        application = await self.application(f"--services={SERVICES}", f"--timeout={TIMEOUT}", by=proxy)
        await self.registered(application, SERVICES)
        audit = self.audit()
        self.assertKept(await audit.look())
        return proxy, application, audit

    async def end(self, application: Application, audit: Audit) -> None:
        """Whoever stops is gone, and nothing is left or there twice."""
        application.tell("stop")
        await application.says("stopped")
        self.assertKept(await audit.look(dead=application.states))
        self.assertEqual(audit.services, {})

    async def cut(self, proxy: Proxy, seconds: float, ways: Sequence[Way]) -> None:
        proxy.hang(*ways)
        await self.wait(seconds)
        proxy.heal()

    async def wait(self, seconds: float) -> None:
        clock: Any = reactor
        await deferLater(clock, seconds, lambda: None)
