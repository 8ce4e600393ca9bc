"""Row 19: connections that are reset, over a network where a new one takes nearly as long as there is time."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import deferLater

from tests.certificates import commonHolder
from tests.system.processes import reactor

from .faultcase import FaultCase

# Of a round trip, in seconds. A new connection and a request over it take three.
ROUND_TRIP = 0.3
SERVICES = 2


class LatencyTests(FaultCase):
    """Services with the shortest timeouts, over TLS."""

    row = 19
    fault = f"Connections over TLS with a round trip of {ROUND_TRIP:g} s are reset; timeouts of 3 s and 4 s"

    @property
    def timeouts(self) -> tuple[int, int]:
        """In seconds: in a short run, the applications may have no CPU for a second, when no time is left."""
        return (3, 4) if self.isFull else (6, 8)

    async def test_staysRegistered(self) -> None:
        """No service expires, with single or with batched heartbeats."""
        resets = 20 if self.isFull else 2
        Path(self.home, "key.pem").write_bytes(commonHolder().key)
        Path(self.home, "cert.pem").write_bytes(commonHolder().certificate)
        authority = str(Path(self.home, "cert.pem"))
        trusted = {"RAXSR_CA_FILE": authority}
        await self.registry(transport="ssl:privateKey=key.pem:certKey=cert.pem", environment=trusted)
        proxy = self.proxy(isTLS=True)
        proxy.delay(ROUND_TRIP / 2)
        applications = [
            await self.application(
                f"--services={SERVICES}",
                f"--timeout={timeout}",
                f"--prefix=in{timeout}{way}",
                *(["--check"] if way == "alone" else []),
                by=proxy,
                environment=trusted,
            )
            for timeout in self.timeouts
            for way in ("alone", "together")
        ]
        for application in applications:
            await self.registered(application, SERVICES)
        audit = self.audit()
        self.assertKept(await audit.look())
        joins = audit.count("service.join")
        for _ in range(resets):
            proxy.reset()
            await deferLater(reactor, self.timeouts[0], lambda: None)
        self.assertKept(await audit.look())
        self.assertEqual([audit.count("service.timeout"), audit.count("service.join")], [0, joins])
        self.tell("resets", resets)
        self.tell("expirations", 0)
        self.tell("time of a new connection with one request, s", round(3 * ROUND_TRIP, 1))
