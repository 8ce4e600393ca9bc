"""
The time that services live by, and who dies when.
"""

from __future__ import annotations

import tracemalloc
import uuid

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.expiry.deadlines import Deadlines, StallTolerantClock


class LifeClockTests(SynchronousTestCase):
    """`StallTolerantClock`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000.0)
        self.ticks: list[float] = []
        self.life = StallTolerantClock(self.clock, lambda: self.ticks.append(self.clock.seconds()))
        self.life.start()
        self.addCleanup(self.life.stop)
        self.begun = self.life.now()

    def lived(self) -> float:
        """Seconds of life since the start."""
        return self.life.now() - self.begun

    def test_isTheReactorsTime(self) -> None:
        """While the reactor turns, life is as long as its time, exactly, between ticks too."""
        for step in (0.1, 0.05, 0.2, 0.25, 0.4, 0.01) * 50:
            self.clock.advance(step)
        self.assertAlmostEqual(self.lived(), self.clock.seconds() - 1000.0, places=9)
        self.clock.pump([0.25] * 120)
        self.assertAlmostEqual(self.lived(), self.clock.seconds() - 1000.0, places=9)

    def test_ticksFourTimesASecond(self) -> None:
        """Whoever sweeps is called regularly."""
        self.clock.pump([0.125] * 80)
        self.assertEqual(len(self.ticks), 40)

    def test_standsStillInAStall(self) -> None:
        """A reactor that did not turn for half a minute costs nobody any life."""
        self.clock.pump([0.25] * 4)
        self.clock.advance(31)
        self.assertAlmostEqual(self.lived(), 1.0)

    def test_readsTheSameBeforeTheTickThatFindsTheStall(self) -> None:
        """Input that is read after a stall, but before the first tick, is judged by the time before the stall."""
        self.clock.rightNow += 31
        self.assertEqual(self.lived(), 0.0)
        self.clock.advance(0)
        self.assertEqual(self.lived(), 0.0)

    def test_noSweepBeforeTheInputThatWaited(self) -> None:
        """The tick that finds a stall is no occasion to sweep; the next one is."""
        self.clock.advance(31)
        self.assertEqual(self.ticks, [])
        self.clock.advance(0.25)
        self.assertEqual(len(self.ticks), 1)

    def test_neverAdvancesMoreThanASecondInOneTurn(self) -> None:
        """However late a turn comes, life is a second older at most; and it goes on, when every turn comes late."""
        before = self.life.now()
        for step in (0.9, 1.1, 1.2, 2.0, 5.0, 0.25, 3.0, 60.0, 60.0, 60.0):
            self.clock.advance(step)
            self.assertTrue(0.0 <= self.life.now() - before <= 1.0)
            before = self.life.now()
        for _ in range(60):
            self.clock.advance(2.0)
        self.assertGreater(self.life.now() - before, 50)
        self.assertGreater(len(self.ticks), 50)

    def test_neverGoesBack(self) -> None:
        """Though a reactor that counts wall-clock time steps back, life does not, and goes on from there."""
        self.clock.pump([0.25] * 8)
        self.clock.rightNow -= 3600
        self.assertEqual(self.lived(), 2.0)
        self.clock.rightNow += 3600
        self.clock.pump([0.25] * 8)
        self.assertAlmostEqual(self.lived(), 4.0)

    def test_tellsOfAStallOnce(self) -> None:
        """The log has one line for a stall, with its length; turns that are a little late are not worth one."""
        with capturedLogs() as logs:
            self.clock.pump([0.25] * 4 + [1.1] + [0.25] * 4)
            self.assertEqual(logs, [])
            self.clock.pump([31.0] + [0.25] * 8)
        self.assertEqual([event["log_level"] for event in logs], [LogLevel.warn])
        text = formatEvent(logs[0])
        self.assertIn("stood still for 30.", text)
        self.assertIn("every service gets that time back", text)

    def test_tellsOfStarvationOnce(self) -> None:
        """Stall after stall is one line, when it is over, with the length of all."""
        with capturedLogs() as logs:
            self.clock.pump([5.0] * 10 + [0.25])
            self.clock.pump([0.25] * 8)
        self.assertEqual(len(logs), 1)
        self.assertIn("stood still for 47.5 s", formatEvent(logs[0]))

    def test_leavesNothingBehind(self) -> None:
        """A clock that was stopped, twice even, has no calls on the reactor, and can be started again."""
        self.clock.pump([0.25] * 4)
        self.life.stop()
        self.life.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(100)
        self.life.start()
        self.clock.pump([0.25] * 4)
        self.assertAlmostEqual(self.lived(), 2.0)


class DeadlinesTests(SynchronousTestCase):
    """`Deadlines`."""

    def setUp(self) -> None:
        self.now = 100.0
        self.deadlines = Deadlines(lambda: self.now)

    def begin(self, id: str, timeout: int = 30, incarnation: str = "", tenant: str = "1") -> None:
        """A life begins."""
        self.deadlines.begin(tenant, id, incarnation or f"life of {id}", timeout)

    def beat(self, id: str) -> None:
        """A heartbeat comes."""
        life = self.deadlines.alive("1", id)
        assert life is not None
        self.deadlines.beat(life, 5)

    def collect(self, most: int | None = None) -> list[str]:
        """The ids of those that are found dead."""
        return [life.id for life in self.deadlines.collect(most)[0]]

    def test_isAliveUntilTheDeadline(self) -> None:
        """Before the deadline alive, at it not, whether or not anybody has looked."""
        self.begin("a")
        self.now = 129.999
        self.assertIsNotNone(self.deadlines.alive("1", "a"))
        self.assertEqual(self.collect(), [])
        self.now = 130.0
        self.assertIsNone(self.deadlines.alive("1", "a"))
        self.assertEqual(self.collect(), ["a"])

    def test_knowsTenantsApart(self) -> None:
        """The same id under another tenant is another service."""
        self.begin("a")
        self.assertIsNone(self.deadlines.alive("2", "a"))
        self.begin("a", tenant="2", timeout=3)
        self.now += 3
        self.assertIsNotNone(self.deadlines.alive("1", "a"))
        self.collect()
        self.assertEqual(self.deadlines.dying("1"), frozenset())
        self.assertEqual(self.deadlines.dying("2"), {"life of a"})

    def test_findsTheDeadOnceAndInOrder(self) -> None:
        """Each is found dead once, the earliest deadline first."""
        for id, timeout in (("c", 30), ("a", 10), ("b", 20), ("z", 10)):
            self.begin(id, timeout)
        self.now += 25
        found = self.collect()
        self.assertEqual(sorted(found[:2]), ["a", "z"])
        self.assertEqual(found[2:], ["b"])
        self.assertEqual(self.collect(), [])
        self.now += 5
        self.assertEqual(self.collect(), ["c"])

    def test_heartbeatMovesTheDeadline(self) -> None:
        """A beat gives a full timeout from when it came, again and again."""
        self.begin("a")
        for _ in range(10):
            self.now += 29
            self.beat("a")
            self.assertEqual(self.collect(), [])
        self.now += 30
        self.assertEqual(self.collect(), ["a"])

    def test_restart(self) -> None:
        """Another timeout counts from now, be it shorter or longer."""
        for id, timeout in (("a", 5), ("b", 60)):
            self.begin(id)
            life = self.deadlines.alive("1", id)
            assert life is not None
            self.deadlines.restart(life, timeout)
        self.now += 5
        self.assertEqual(self.collect(), ["a"])
        self.now += 54
        self.assertEqual(self.collect(), [])
        self.now += 1
        self.assertEqual(self.collect(), ["b"])

    def test_dyingUntilForgotten(self) -> None:
        """One that was found dead stays dying, and known, until it is forgotten."""
        self.begin("a")
        self.now += 30
        self.collect()
        self.assertTrue(self.deadlines.isDying("1", "life of a"))
        self.assertIsNotNone(self.deadlines.find("1", "a", "life of a"))
        self.deadlines.forget("1", "a", "life of a")
        self.assertFalse(self.deadlines.isDying("1", "life of a"))
        self.assertIsNone(self.deadlines.find("1", "a", "life of a"))
        self.assertEqual(self.deadlines.dying("1"), frozenset())

    def test_whoWasDyingStaysAsItWasSaid(self) -> None:
        """What was told of those who are dying stays as it was, whoever dies or is forgotten meanwhile."""
        for id, timeout in (("a", 10), ("b", 10), ("c", 20)):
            self.begin(id, timeout=timeout)
        self.now += 10
        self.collect()
        told = self.deadlines.dying("1")
        self.now += 10
        self.collect()
        self.deadlines.forget("1", "a", "life of a")
        self.assertEqual(told, {"life of a", "life of b"})
        self.assertEqual(self.deadlines.dying("1"), {"life of b", "life of c"})

    def test_forgetsTheRightLife(self) -> None:
        """To forget one life of an id leaves the others of it alone; one that is not known is no error."""
        self.begin("a", incarnation="first")
        self.now += 30
        self.collect()
        self.begin("a", incarnation="second")
        self.deadlines.forget("1", "a", "first")
        self.deadlines.forget("1", "a", "zeroth")
        self.deadlines.forget("2", "a", "second")
        self.assertIsNotNone(self.deadlines.alive("1", "a"))
        self.now += 30
        self.assertEqual([life.incarnation for life in self.deadlines.collect()[0]], ["second"])

    def test_theForgottenAreNotFound(self) -> None:
        """A life that ended before its deadline is not found dead."""
        self.begin("a")
        self.deadlines.forget("1", "a", "life of a")
        self.now += 1000
        self.assertEqual(self.collect(), [])

    def test_aNewLifeTakesTheIdOver(self) -> None:
        """When a new life begins under an id that is thought to be alive, the earlier one is over."""
        self.begin("a", incarnation="first", timeout=10)
        self.begin("a", incarnation="second", timeout=20)
        self.now += 1000
        self.assertEqual([life.incarnation for life in self.deadlines.collect()[0]], ["second"])

    def test_looksAtSoManyOnly(self) -> None:
        """Many that are due are found in parts, if it is asked so; it is said that there may be more."""
        for number in range(25):
            self.begin(f"s{number}")
        self.now += 30
        parts = []
        more = True
        while more:
            found, more = self.deadlines.collect(10)
            parts.append(len(found))
        self.assertEqual(parts, [10, 10, 5])

    def test_isSmall(self) -> None:
        """Everything that is kept for one of many services is less than 600 bytes, ids included."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for number in range(20_000):
            self.begin(f"service-number-{number}.example.com", incarnation=str(uuid.UUID(int=number)))
        for number in range(20_000):
            life = self.deadlines.alive("1", f"service-number-{number}.example.com")
            assert life is not None
            self.deadlines.beat(life, 1_346_967_146_370 + number)
        self.now += 29
        self.collect()
        self.assertLess(tracemalloc.get_traced_memory()[0] / 20_000, 600)
