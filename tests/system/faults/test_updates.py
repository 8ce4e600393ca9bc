"""Row 23: a service that was updated expires, and is registered again."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import RegisteredService
from txserviceregistry.testing import FakeRegistry

from .faultcase import Figures

# Seconds of a partition, and the timeouts of the services, which all expire in it.
_OUTAGE = 15.0
_TIMEOUTS = (3, 4, 6, 8, 10) * 4


class UpdateTests(Figures, SynchronousTestCase):
    """Every service is updated in each round, and expires; its machine has another address afterwards."""

    row = 23
    fault = "Partitions during and after updates of services"

    def setUp(self) -> None:
        random = Random(self.row)
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client()
        self.services = [
            RegisteredService(self.client, f"service{number}", timeout, metadata={"port": "80"}, random=random.random)
            for number, timeout in enumerate(_TIMEOUTS)
        ]

    def test_updatesOutliveExpirations(self) -> None:
        """The registry has every update afterwards, whenever and however it was made."""
        for service in self.services:
            service.startService()
        self.fake.advance(1)
        # All of it within the hour that the feed shows.
        rounds = 90 if self.isFull else 4
        lost = 0
        for number in range(rounds):
            self.update(number, self.services[::2])
            self.fake.partition()
            self.fake.advance(_OUTAGE / 2)
            self.update(number, self.services[1::2])
            self.fake.changeLocalAddress(f"10.0.{number}.1")
            self.fake.advance(_OUTAGE / 2)
            self.fake.heal()
            self.fake.advance(20)
            expected = {"port": "80", "update": str(number), "host": f"10.0.{number}.1"}
            lost += sum(self.registered(service) != expected for service in self.services)
        self.assertEqual(lost, 0)
        self.assertEqual(self.expirations(), rounds * len(self.services))
        self.tell("updates", rounds * len(self.services))
        self.tell("updates or addresses lost", lost)
        stops = [service.stopService() for service in self.services]
        self.fake.advance(4)
        for stop in stops:
            self.successResultOf(stop)

    def update(self, number: int, services: list[RegisteredService]) -> None:
        """Update half of the services by themselves and half through the client."""
        for place, service in enumerate(services):
            metadata = {**service.metadata, "update": str(number)}
            if place % 2:
                updated: Any = service.update(metadata=metadata)
            else:
                updated = self.client.services.update(service.serviceId, {"metadata": metadata})
            # Through the client, an update without a response fails; it counts all the same.
            updated.addErrback(lambda _: None)

    def registered(self, service: RegisteredService) -> Any:
        """The metadata that the registry has, as another client sees them."""
        return self.successResultOf(self.other.services.get(service.serviceId))["metadata"]

    def expirations(self) -> int:
        """How many services have expired so far."""
        count, marker = 0, None
        while True:
            page: Any = self.successResultOf(self.other.events.list(marker=marker, limit=1000, type="service.timeout"))
            count += len(page["values"])
            marker = page["metadata"]["next_marker"]
            if marker is None:
                return count
