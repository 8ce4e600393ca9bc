"""
The clock of the deadlines, and which services expire when.
"""

from __future__ import annotations

import tracemalloc
import uuid

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.expiry import LiveServices, StallTolerantClock
from txserviceregistry.registry.stores.interfaces import ServiceSummary
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.tasks import TaskOwner


class StallTolerantClockTests(SynchronousTestCase):
    """`StallTolerantClock`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.ticks: list[float] = []
        self.time = StallTolerantClock(self.clock, lambda: self.ticks.append(self.clock.seconds()))
        self.time.start()
        self.addCleanup(self.time.stop)
        self.began = self.time.now()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.time.now() - self.began

    def test_isTheReactorsTime(self) -> None:
        """While the reactor turns, the time is exactly the reactor's, between ticks too."""
        for step in (0.1, 0.05, 0.2, 0.25, 0.4, 0.01) * 50:
            self.clock.advance(step)
        self.assertAlmostEqual(self.elapsed(), self.clock.seconds() - 1000.0, places=9)
        self.clock.pump([0.25] * 120)
        self.assertAlmostEqual(self.elapsed(), self.clock.seconds() - 1000.0, places=9)

    def test_ticksFourTimesASecond(self) -> None:
        """The callback is called regularly."""
        self.clock.pump([0.125] * 80)
        self.assertEqual(len(self.ticks), 40)

    def test_standsStillInAStall(self) -> None:
        """While the reactor does not turn for half a minute, the time stands still."""
        self.clock.pump([0.25] * 4)
        self.clock.advance(31)
        self.assertAlmostEqual(self.elapsed(), 1.0)

    def test_readsTheSameBeforeTheTickThatFindsTheStall(self) -> None:
        """Input that is read after a stall, but before the first tick, is measured by the time before the stall."""
        self.clock.rightNow += 31
        self.assertEqual(self.elapsed(), 0.0)
        self.clock.advance(0)
        self.assertEqual(self.elapsed(), 0.0)

    def test_noSweepBeforeTheInputThatWaited(self) -> None:
        """The tick that finds a stall does not sweep; the next one does."""
        self.clock.advance(31)
        self.assertEqual(self.ticks, [])
        self.clock.advance(0.25)
        self.assertEqual(len(self.ticks), 1)

    def test_neverAdvancesMoreThanASecondInOneTurn(self) -> None:
        """However late a turn comes, the time advances by a second at most; when every turn comes late, it goes on."""
        before = self.time.now()
        for step in (0.9, 1.1, 1.2, 2.0, 5.0, 0.25, 3.0, 60.0, 60.0, 60.0):
            self.clock.advance(step)
            self.assertTrue(0.0 <= self.time.now() - before <= 1.0)
            before = self.time.now()
        for _ in range(60):
            self.clock.advance(2.0)
        self.assertGreater(self.time.now() - before, 50)
        self.assertGreater(len(self.ticks), 50)

    def test_neverGoesBack(self) -> None:
        """When a reactor that counts wall-clock time steps back, the time does not, and goes on from there."""
        self.clock.pump([0.25] * 8)
        self.clock.rightNow -= 3600
        self.assertEqual(self.elapsed(), 2.0)
        self.clock.rightNow += 3600
        self.clock.pump([0.25] * 8)
        self.assertAlmostEqual(self.elapsed(), 4.0)

    def test_logsAStallOnce(self) -> None:
        """The log has one line for a stall, with its length; turns that are a little late are not worth one."""
        with capturedLogs() as logs:
            self.clock.pump([0.25] * 4 + [1.1] + [0.25] * 4)
            self.assertEqual(logs, [])
            self.clock.pump([31.0] + [0.25] * 8)
        self.assertEqual([event["log_level"] for event in logs], [LogLevel.warn])
        text = formatEvent(logs[0])
        self.assertIn("stalled for 30.", text)
        self.assertIn("all heartbeat deadlines extended by that time", text)

    def test_logsStarvationOnce(self) -> None:
        """Stall after stall is one line, when it is over, with the length of all."""
        with capturedLogs() as logs:
            self.clock.pump([5.0] * 10 + [0.25])
            self.clock.pump([0.25] * 8)
        self.assertEqual(len(logs), 1)
        self.assertIn("stalled for 47.5 s", formatEvent(logs[0]))

    def test_leavesNothingBehind(self) -> None:
        """A clock that was stopped, twice even, has no calls on the reactor, and can be started again."""
        self.clock.pump([0.25] * 4)
        self.time.stop()
        self.time.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(100)
        self.time.start()
        self.clock.pump([0.25] * 4)
        self.assertAlmostEqual(self.elapsed(), 2.0)


class DeadlinesTests(SynchronousTestCase):
    """`LiveServices`."""

    def setUp(self) -> None:
        self.now = 100.0
        self.deadlines = LiveServices(MemoryStore(), TaskOwner(), Clock(), lambda: self.now)
        self.deadlines.now = lambda: self.now

    def add(self, id: str, timeout: int = 30, incarnation: str = "", tenant: str = "1") -> None:
        """A service is registered."""
        self.deadlines.add(ServiceSummary(tenant, id, incarnation or f"incarnation of {id}", timeout, None))

    def heartbeat(self, id: str) -> None:
        """A heartbeat comes."""
        state = self.deadlines.active("1", id)
        assert state is not None
        state.deadline, state.lastSeen = self.now + state.timeout, 5

    def collectIncarnations(self) -> list[str]:
        """The incarnations of those that expire, which are forgotten."""
        self.deadlines.collect()
        found = self.deadlines.pending()
        for state in found:
            self.deadlines.forget(*state.name)
        return [state.incarnation for state in found]

    def collect(self, most: int | None = None) -> list[str]:
        """The ids of those that are found to have expired."""
        before = self.deadlines.pending()
        self.deadlines.collect(most)
        return [state.id for state in self.deadlines.pending() if state not in before]

    def test_isActiveUntilTheDeadline(self) -> None:
        """A service is active before the deadline and not at it, whether or not it has been collected."""
        self.add("a")
        self.now = 129.999
        self.assertIsNotNone(self.deadlines.active("1", "a"))
        self.assertEqual(self.collect(), [])
        self.now = 130.0
        self.assertIsNone(self.deadlines.active("1", "a"))
        self.assertEqual(self.collect(), ["a"])

    def test_knowsTenantsApart(self) -> None:
        """The same id under another tenant is another service."""
        self.add("a")
        self.assertIsNone(self.deadlines.active("2", "a"))
        self.add("a", tenant="2", timeout=3)
        self.now += 3
        self.assertIsNotNone(self.deadlines.active("1", "a"))
        self.collect()
        self.assertEqual(self.deadlines.hidden("1"), frozenset())
        self.assertEqual(self.deadlines.hidden("2"), {"incarnation of a"})

    def test_findsTheExpiredOnceAndInOrder(self) -> None:
        """Each is found once, the earliest deadline first."""
        for id, timeout in (("c", 30), ("a", 10), ("b", 20), ("z", 10)):
            self.add(id, timeout)
        self.now += 25
        found = self.collect()
        self.assertEqual(sorted(found[:2]), ["a", "z"])
        self.assertEqual(found[2:], ["b"])
        self.assertEqual(self.collect(), [])
        self.now += 5
        self.assertEqual(self.collect(), ["c"])

    def test_heartbeatMovesTheDeadline(self) -> None:
        """A heartbeat gives a full timeout from when it came, again and again."""
        self.add("a")
        for _ in range(10):
            self.now += 29
            self.heartbeat("a")
            self.assertEqual(self.collect(), [])
        self.now += 30
        self.assertEqual(self.collect(), ["a"])

    def test_restart(self) -> None:
        """Another timeout counts from now, be it shorter or longer."""
        for id, timeout in (("a", 5), ("b", 60)):
            self.add(id)
            state = self.deadlines.active("1", id)
            assert state is not None
            self.deadlines.restart(state, timeout)
        self.now += 5
        self.assertEqual(self.collect(), ["a"])
        self.now += 54
        self.assertEqual(self.collect(), [])
        self.now += 1
        self.assertEqual(self.collect(), ["b"])

    def test_expiredUntilForgotten(self) -> None:
        """One that was found stays expired, and known, until it is forgotten."""
        self.add("a")
        self.now += 30
        self.collect()
        self.assertEqual(self.deadlines.hidden("1"), {"incarnation of a"})
        self.assertIsNotNone(self.deadlines.find("1", "a", "incarnation of a"))
        self.deadlines.forget("1", "a", "incarnation of a")
        self.assertEqual(self.deadlines.pending(), [])
        self.assertIsNone(self.deadlines.find("1", "a", "incarnation of a"))
        self.assertEqual(self.deadlines.hidden("1"), frozenset())

    def test_theResultOfExpiredDoesNotChange(self) -> None:
        """The set of the expired stays as it was returned, though others expire or are forgotten meanwhile."""
        for id, timeout in (("a", 10), ("b", 10), ("c", 20)):
            self.add(id, timeout=timeout)
        self.now += 10
        self.collect()
        expired = self.deadlines.hidden("1")
        self.now += 10
        self.collect()
        self.deadlines.forget("1", "a", "incarnation of a")
        self.assertEqual(expired, {"incarnation of a", "incarnation of b"})
        self.assertEqual(self.deadlines.hidden("1"), {"incarnation of b", "incarnation of c"})

    def test_forgetsTheRightIncarnation(self) -> None:
        """To forget one incarnation of an id leaves the others of it alone; an unknown one is ignored."""
        self.add("a", incarnation="first")
        self.now += 30
        self.collect()
        self.add("a", incarnation="second")
        self.deadlines.forget("1", "a", "first")
        self.deadlines.forget("1", "a", "zeroth")
        self.deadlines.forget("2", "a", "second")
        self.assertIsNotNone(self.deadlines.active("1", "a"))
        self.now += 30
        self.assertEqual(self.collectIncarnations(), ["second"])

    def test_theForgottenAreNotFound(self) -> None:
        """A service that was removed before its deadline is not found."""
        self.add("a")
        self.deadlines.forget("1", "a", "incarnation of a")
        self.now += 1000
        self.assertEqual(self.collect(), [])

    def test_aNewIncarnationTakesTheIdOver(self) -> None:
        """When a service is added under an id that is active, the earlier incarnation is over."""
        self.add("a", incarnation="first", timeout=10)
        self.add("a", incarnation="second", timeout=20)
        self.now += 1000
        self.assertEqual(self.collectIncarnations(), ["second"])

    def test_looksAtSoManyOnly(self) -> None:
        """Many that are due are found in parts, if it is asked so; it is said that there may be more."""
        for number in range(25):
            self.add(f"s{number}")
        self.now += 30
        parts = []
        more = True
        while more:
            before = len(self.deadlines.pending())
            more = self.deadlines.collect(10)
            parts.append(len(self.deadlines.pending()) - before)
        self.assertEqual(parts, [10, 10, 5])

    def test_isSmall(self) -> None:
        """Everything that is kept for one of many services is less than 600 bytes, ids included."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(4_000):
            self.add(f"service-number-{number}.example.com", incarnation=str(uuid.UUID(int=number)))
        for number in range(4_000):
            state = self.deadlines.active("1", f"service-number-{number}.example.com")
            assert state is not None
            state.deadline, state.lastSeen = self.now + state.timeout, 1_346_967_146_370 + number
        self.now += 29
        self.collect()
        self.assertLess(tracemalloc.get_traced_memory()[0] / 4_000, 600)
