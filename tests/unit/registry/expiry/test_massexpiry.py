"""
Many services that time out within a short while: the operator hears of it.
"""

from __future__ import annotations

from twisted.logger import LogLevel, globalLogPublisher

from tests.unit.registry.registrycase import RegistryCase
from txserviceregistry.registry.limits import ResourceLimits


class OutbreakTests(RegistryCase):
    """Warnings, as a registry writes them into its log."""

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
        """That everybody times out together is told once, with the number."""
        self.createMany(100)
        self.pass_(31)
        self.assertEqual(self.ids(), [])
        self.assertEqual(self.warnings, [(100, 100)])

    def test_overTheLengthOfATimeout(self) -> None:
        """Services that are cut off die each at its own deadline: this is told too, and again as it gets worse."""
        for timeout in range(5, 55):
            self.createMany(2, timeout)
        self.pass_(56)
        self.assertEqual([count for count, _ in self.warnings], [20, 40, 80])
        self.assertEqual({before for _, before in self.warnings}, {100})

    def test_onesThatHaveComeSince(self) -> None:
        """Of how many services they are is never less than they are themselves."""
        self.createMany(30, 30)
        self.createMany(10, 10)
        self.pass_(11)
        self.createMany(100, 15)
        self.pass_(16)
        self.assertEqual(self.warnings, [(110, 140)])

    def test_someOfMany(self) -> None:
        """What is a small part of all the services is no outbreak, and neither are a few of a few."""
        self.createMany(200, 120)
        self.createMany(19, 30)
        self.pass_(31)
        self.assertEqual(self.warnings, [])

    def test_onesThatDieNowAndThen(self) -> None:
        """Services that die one by one over a long time are none."""
        for number in range(60):
            self.create(f"s{number}", 30)
            self.pass_(5)
        self.assertEqual(self.warnings, [])
