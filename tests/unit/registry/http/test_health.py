"""Health: what a registry reports, and how often it probes its store for that."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.heldstore import HeldStore
from txserviceregistry._version import __version__
from txserviceregistry.registry.http.pages import OK, SILENT, UNAVAILABLE, Health
from txserviceregistry.registry.stores.memory import MemoryStore


class HealthTests(SynchronousTestCase):
    """A registry's health, over a store whose answers can be held back."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = MemoryStore()
        self.successResultOf(self.memory.open())
        self.store = HeldStore(self.memory)
        self.health = Health(self.store, self.clock)  # type: ignore[arg-type]  # it passes everything on

    def state(self) -> Any:
        """The state of the store, as it is reported."""
        return self.successResultOf(self.health.report())["store"]["state"]

    def test_tellsHowItIs(self) -> None:
        """A registry that can do its work says so, with its store, its version, and for how long it has been up."""
        self.clock.advance(12.5)
        self.assertEqual(
            self.successResultOf(self.health.report()),
            {"store": {"name": "memory", "state": OK}, "uptime": 12.5, "version": __version__},
        )

    def test_tellsThatTheStoreIsAwayAndBack(self) -> None:
        """A store that can't be reached shows within a second, and so does its return."""
        self.state()
        self.memory.unavailable = True
        self.clock.advance(1)
        self.assertEqual(self.state(), UNAVAILABLE)
        self.memory.unavailable = False
        self.clock.advance(1)
        self.assertEqual(self.state(), OK)

    def test_asksTheStoreOncePerSecond(self) -> None:
        """However often it is asked, the store has to answer once in a second."""
        for _ in range(100):
            self.state()
            self.clock.advance(0.05)
        self.assertLessEqual(self.store.calls["probe"], 6)

    def test_asksOnceForAllWhoAskTogether(self) -> None:
        """Requests at the same time share one probe."""
        held = self.store.hold("probe")
        asking: list[Deferred[Any]] = [self.health.report() for _ in range(50)]
        self.assertEqual(len(held), 1)
        held[0].release()
        self.assertEqual({self.successResultOf(each)["store"]["state"] for each in asking}, {OK})

    def test_doesNotWaitForAStoreThatHangs(self) -> None:
        """A store that does not answer shows after two seconds; only one probe waits for it, and its answer counts."""
        held = self.store.hold("probe")
        for _ in range(5):
            asking = self.health.report()
            if not asking.called:
                self.clock.advance(2)
            self.assertEqual(self.successResultOf(asking)["store"]["state"], SILENT)
            self.clock.advance(1)
        self.assertEqual(len(held), 1)
        held[0].release()
        self.assertEqual(self.state(), OK)

    def test_survivesAnAskerWhoLeaves(self) -> None:
        """A request that is cancelled does not end the probe for another."""
        held = self.store.hold("probe")
        first, second = self.health.report(), self.health.report()
        first.addErrback(lambda _: None)
        first.cancel()
        held[0].release()
        self.assertEqual(self.successResultOf(second)["store"]["state"], OK)

    def test_survivesABugInAStore(self) -> None:
        """A store with a defect is unavailable, and the defect is logged."""
        self.store.breakDown("probe", ZeroDivisionError())
        self.assertEqual(self.state(), UNAVAILABLE)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
