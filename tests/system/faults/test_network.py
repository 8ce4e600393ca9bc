"""Row 3: a network that is cut, for a moment or for long, in one direction or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from tests.system.processes import isCrowded, reactor

from .audit import Audit
from .faultcase import FaultCase
from .journal import STALL, Application
from .proxy import BOTH, TO_CLIENT, TO_REGISTRY, Proxy, Way

SERVICES = 5
CUTS: list[Sequence[Way]] = [BOTH, (TO_REGISTRY,), (), (TO_CLIENT,)]
# Seconds of a cut that no service may expire of, and how much longer than a timeout one is that every service must.
SHORT = 1.0
LONGER = 0.5


class NetworkTests(FaultCase):
    """Between an application with several services and a registry there is a network."""

    row = 3
    fault = (
        "The network is cut in one direction or both, for less and more than a heartbeat timeout; connections are "
        "reset or refused as long"
    )

    async def test_aMomentIsNotNoticed(self) -> None:
        """A cut of less than a timeout leaves no event, and no word in the application's log of worse than a retry."""
        # In a short run the application may have no CPU for some seconds, too: what is left of this timeout allows it.
        proxy, application, audit = await self.begun(3 if self.isFull else 8)
        cuts, events = 0, len(audit.events)
        for cut in CUTS if self.isFull else CUTS[-1:]:
            for _ in range(10 if self.isFull else 1):
                await self.cut(proxy, cut, SHORT, isMet=not self.isFull)
                cuts += 1
                await self.wait(1.0 if self.isFull else 0.3)
                self.assertKept(await audit.look())
        self.assertEqual(len(audit.events), events)
        self.assertEqual(
            [[state for _, state in states] for states in application.states.values()],
            [["registering", "registered"]] * SERVICES,
        )
        self.assertEqual(application.troubles, [])
        self.assertEqual(
            [
                line
                for line in application.log
                if not any(each in line for each in ("Heartbeats failed for ", "Heartbeat failed for ", STALL))
            ],
            [],
        )
        await self.end(application, audit)
        self.tell(f"cuts of {SHORT:g} s", cuts)
        self.tell("events or state changes", 0)

    async def test_aLongCutEndsAndBegins(self) -> None:
        """After more than a timeout each service times out once, and joins once when the network is back."""
        timeout = 3 if self.isFull else 6
        proxy, application, audit = await self.begun(timeout)
        before = {id: self.counts(audit, id) for id in application.services}
        longest = 0.0
        cuts = 0
        expirations = 0
        for cut in CUTS if self.isFull else CUTS[:1]:
            for _ in range(3 if self.isFull else 1):
                # If only the way back is cut, the registry still receives all heartbeats.
                mayTimeOut = () if cut == (TO_CLIENT,) else application.services
                expirations += bool(mayTimeOut)
                cuts += 1
                await self.cut(proxy, cut, timeout + LONGER, audit if mayTimeOut else None)
                longest = max(longest, await self.back(application, audit, timeout))
                self.assertKept(await audit.look(mayTimeOut=mayTimeOut))
                for id in application.services:
                    timeouts, joins, removes = (
                        now - then for now, then in zip(self.counts(audit, id), before[id], strict=True)
                    )
                    # A registration that had no response in time is found, removed and repeated.
                    self.assertLessEqual(removes, [each for each, _ in application.troubles].count(id))
                    self.assertEqual([timeouts, joins - removes], [expirations, expirations])
        await self.end(application, audit)
        self.tell(f"cuts of {timeout + LONGER:g} s (heartbeat timeout {timeout} s)", cuts)
        self.tell("cuts without a request at the registry", expirations)
        self.tell("expirations and registrations per service in these", 1)
        self.tell("other expirations", 0)
        self.tell("longest time until registered again, s", round(longest, 1))

    def counts(self, audit: Audit, id: str) -> list[int]:
        """How often a service has expired, was registered, and was removed."""
        return [audit.count(f"service.{what}", id) for what in ("timeout", "join", "remove")]

    async def back(self, application: Application, audit: Audit, timeout: int) -> float:
        """Wait until all are there again, as both sides see it; how long it took."""
        clock: IReactorTime = reactor
        healed = clock.seconds()

        async def all_() -> bool:
            services = (await audit.client.services.list())["values"]
            return len(services) == SERVICES and all(map(application.isRegistered, application.states))

        await self.until(all_)
        took = clock.seconds() - healed
        if not isCrowded():
            # One interval, and a round of requests.
            self.assertLess(took, timeout * 0.6 + 1.0)
        return took

    async def begun(self, timeout: int) -> tuple[Proxy, Application, Audit]:
        """All are registered, by way of a proxy."""
        await self.registry()
        proxy = self.proxy()
        application = await self.application(f"--services={SERVICES}", f"--timeout={timeout}", by=proxy)
        await self.registered(application, SERVICES)
        application.forget()
        audit = self.audit()
        self.assertKept(await audit.look())
        return proxy, application, audit

    async def end(self, application: Application, audit: Audit) -> None:
        """Services that stop are deregistered, and none is left or there twice."""
        await self.stopped(application)
        self.assertKept(await audit.look(ended=application.states))
        self.assertEqual(audit.services, {})

    async def cut(
        self, proxy: Proxy, cut: Sequence[Way], seconds: float, expires: Audit | None = None, *, isMet: bool = False
    ) -> None:
        """
        Cut the network in these directions; in none of them means that connections are reset and refused.

        :param expires: of a registry in which all services expire meanwhile, however late it is.
        :param isMet: whether the time counts from the first request in it.
        """
        if cut:
            proxy.hang(*cut)
        else:
            await proxy.refuse()
            proxy.reset()
        before = proxy.counts["requests"]

        async def isRequested() -> bool:
            return proxy.counts["requests"] > before

        async def areExpired() -> bool:
            return expires is None or not (await expires.client.services.list())["values"]

        if isMet:
            await self.until(isRequested, 0.01)
        await self.wait(seconds)
        await self.until(areExpired)
        proxy.heal()

    async def wait(self, seconds: float) -> None:
        clock: Any = reactor
        await deferLater(clock, seconds, lambda: None)
