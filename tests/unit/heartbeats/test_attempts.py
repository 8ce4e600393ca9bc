"""A reactor that stood still: one line in the log, and no service expires before its timeout."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import RegisteredService
from txserviceregistry.testing import FakeRegistry


class StallTests(SynchronousTestCase):
    """An application whose reactor is blocked."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.log: list[str] = []

        def observe(event: Any) -> None:
            self.log.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def stalls(self) -> list[str]:
        return [line for line in self.log if "The application's reactor stood still" in line]

    def register(self, id: str, timeout: int) -> RegisteredService:
        service = RegisteredService(self.client, id, timeout, random=lambda: 1.0)
        service.startService()
        self.successResultOf(service.whenRegistered())
        return service

    def expired(self) -> list[str]:
        events = self.successResultOf(self.client.events.list(limit=1000))["values"]
        return [event["payload"]["id"] for event in events if event["type"] == "service.timeout"]

    def test_saysSoOnce(self) -> None:
        """However many heartbeats are late, one line says for how long the reactor stood still."""
        for number in range(20):
            self.register(f"web{number}", 5)
        self.fake.advance(2)
        self.fake.block(4)
        self.fake.advance(60)
        # The first heartbeat was due after 3 s, a second into the block.
        self.assertEqual(len(self.stalls()), 1)
        self.assertIn("stood still for 3.0 s or more", self.stalls()[0])

    def test_saysSoEachTime(self) -> None:
        """A second stall is another one, and logged too."""
        self.register("web1", 5)
        for _ in range(2):
            self.fake.block(5)
            self.fake.advance(20)
        self.assertEqual(len(self.stalls()), 2)

    def test_expiredServicesAreRegisteredAgain(self) -> None:
        """A service whose timeout was shorter has expired, and is back at once; a longer one goes on."""
        services = [self.register("short", 3), self.register("long", 10)]
        self.fake.advance(1)
        self.fake.block(5)
        self.fake.advance(0.5)
        self.assertEqual({service.state for service in services}, {"registered"})
        self.assertEqual(self.expired(), ["short"])
        self.fake.advance(60)
        self.assertEqual(self.expired(), ["short"])

    def test_noticesWhileARequestIsUnderWay(self) -> None:
        """A heartbeat that was under way had far more time than it may take: that is a stall too."""
        self.register("web1", 3)
        self.fake.hangNext()
        self.fake.advance(2)
        self.fake.block(5)
        self.fake.advance(10)
        self.assertEqual(len(self.stalls()), 1)

    def test_noticesWhileItWaits(self) -> None:
        """The wait between two tries comes to its end too late: a stall all the same."""
        self.register("web1", 30)
        self.fake.stop()
        self.fake.advance(35)
        self.fake.block(20)
        self.fake.start()
        self.fake.advance(60)
        self.assertEqual(len(self.stalls()), 1)

    def test_silenceIsNotAStall(self) -> None:
        """A registry that hangs, refuses or is late, and a short pause, do not count as a stall of this process."""
        self.register("web1", 3)
        for _ in range(10):
            self.fake.block(0.9)
            self.fake.advance(1)
        self.fake.partition()
        self.fake.advance(30)
        self.fake.heal()
        self.fake.advance(30)
        self.fake.stop()
        self.fake.advance(30)
        self.fake.start()
        self.fake.pause()
        self.fake.advance(30)
        self.fake.resume()
        self.fake.advance(30)
        self.assertEqual(self.stalls(), [])
