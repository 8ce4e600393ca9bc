"""Row 23: a service that was updated expires, and is registered again."""

from __future__ import annotations

from typing import Any

from txserviceregistry import RegisteredService

from .simulated import SimulatedCase

_OUTAGE = 15.0


class UpdateTests(SimulatedCase):
    """Each partition of 15 s ends services that have a new update each time."""

    row = 23
    fault = "a partition after an update of a service"

    #: All expire within a partition, and have a port without a host.
    TIMEOUTS = (3, 4, 6, 8, 10) * 4

    def setUp(self) -> None:
        super().setUp()
        self.services = [
            RegisteredService(
                self.client,
                f"service{number}",
                timeout,
                metadata={"port": str(8000 + number)},
                random=self.random.random,
            )
            for number, timeout in enumerate(self.TIMEOUTS)
        ]

    def test_updatesOutliveExpirations(self) -> None:
        """Whatever was updated, in whichever way and moment, is what the registry has afterwards."""
        self.start()
        rounds = 100 if self.isFull else 4
        for number in range(rounds):
            self.update(number, self.services[::2])
            self.fake.partition()
            self.fake.changeLocalAddress(f"10.0.{number}.1")
            self.fake.advance(_OUTAGE / 2)
            self.update(number, self.services[1::2])
            self.fake.advance(_OUTAGE / 2)
            self.fake.heal()
            self.fake.advance(15)
            self.assertAllRegistered()
            for service in self.services:
                self.assertEqual(self.registered(service), self.expected(service, number))
        self.tell("updates made before and during a partition", rounds * len(self.services))
        self.tell("updates lost", 0)
        self.look(mayTimeOut=[service.serviceId for service in self.services])
        self.end()

    def update(self, number: int, services: list[RegisteredService]) -> None:
        """Update half of the services by themselves and half through the client."""
        for place, service in enumerate(services):
            metadata = {**service.metadata, "update": str(number)}
            if place % 2:
                updated: Any = service.update(metadata=metadata)
            else:
                updated = self.client.services.update(service.serviceId, {"metadata": metadata})
            updated.addErrback(lambda _: None)

    def registered(self, service: RegisteredService) -> Any:
        """The metadata that the registry has, seen by another client."""
        return self.successResultOf(self.audit.client.services.get(service.serviceId))["metadata"]

    def expected(self, service: RegisteredService, number: int) -> dict[str, str]:
        """The metadata as they were given, updated, and completed by the address of now."""
        port = 8000 + self.services.index(service)
        return {"port": str(port), "update": str(number), "host": f"10.0.{number}.1"}
