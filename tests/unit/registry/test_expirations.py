"""
Expirations on their way to the store, and many within a short while, of which the operator is warned.
"""

from __future__ import annotations

from twisted.logger import LogLevel, globalLogPublisher

from tests.unit.registry.registrycase import RegistryCase
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.servicelog import ExpiryLog


class ExpirationsTests(RegistryCase):
    """The expirations of a registry."""

    def test_goesOnAfterADefect(self) -> None:
        """A defect in what follows when services have expired is logged, and others expire after it."""

        def fail(self: object, names: object, isLast: bool) -> None:
            raise ValueError("a defect")

        defect = self.patch(ExpiryLog, "add", fail)
        self.create("web1", 5)
        self.pass_(6)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        defect.restore()
        self.create("web2", 5)
        self.pass_(6)
        self.assertEqual(self.stored(), [])


class MassExpiryWarningTests(RegistryCase):
    """Warnings in the log of a registry."""

    limits = ResourceLimits(service=1000)

    def setUp(self) -> None:
        super().setUp()
        self.warnings: list[tuple[int, int]] = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)

    def _observe(self, event: dict[str, object]) -> None:
        if event.get("log_level") is LogLevel.warn and "before" in event:
            count, before = event["count"], event["before"]
            assert isinstance(count, int) and isinstance(before, int)
            self.warnings.append((count, before))

    def createMany(self, count: int, timeout: int = 30) -> None:
        for number in range(count):
            self.create(f"s{timeout}-{number}", timeout)

    def test_allAtOnce(self) -> None:
        """When all services expire together, there is one warning, with the number."""
        self.createMany(100)
        self.pass_(31)
        self.assertEqual(self.ids(), [])
        self.assertEqual(self.warnings, [(100, 100)])

    def test_overTheLengthOfATimeout(self) -> None:
        """Services that are cut off expire each at its own deadline: this is logged too, and again as it gets worse."""
        for timeout in range(5, 55):
            self.createMany(2, timeout)
        self.pass_(56)
        self.assertEqual([count for count, _ in self.warnings], [20, 40, 80])
        self.assertEqual({before for _, before in self.warnings}, {100})

    def test_onesThatHaveComeSince(self) -> None:
        """The number of all services is never less than that of the expired ones."""
        self.createMany(30, 30)
        self.createMany(10, 10)
        self.pass_(11)
        self.createMany(100, 15)
        self.pass_(16)
        self.assertEqual(self.warnings, [(110, 140)])

    def test_someOfMany(self) -> None:
        """A small part of all services causes no warning, and neither do a few of a few."""
        self.createMany(200, 120)
        self.createMany(19, 30)
        self.pass_(31)
        self.assertEqual(self.warnings, [])

    def test_onesThatExpireNowAndThen(self) -> None:
        """Services that expire one by one over a long time cause no warning."""
        for number in range(60):
            self.create(f"s{number}", 30)
            self.pass_(5)
        self.assertEqual(self.warnings, [])
