"""
Heartbeats that wait for etcd, on a clock that the test moves.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcdbacklog import Backlog


class BacklogTests(SynchronousTestCase):
    """How long is too long, here and elsewhere."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.backlog = Backlog(self.clock, "a")

    def test_theOldestCounts(self) -> None:
        """However many come and go behind it, and in whatever order they end."""
        self.assertEqual((self.backlog.seconds(), self.backlog.isLong), (0.0, False))
        first = self.backlog.begin()
        self.clock.advance(0.5)
        second, third = self.backlog.begin(), self.backlog.begin()
        self.clock.advance(0.5)
        self.backlog.end(third)
        self.assertEqual((self.backlog.seconds(), self.backlog.isLong), (1.0, False))
        self.clock.advance(0.1)
        self.assertTrue(self.backlog.isLong)
        self.backlog.end(first)
        self.assertAlmostEqual(self.backlog.seconds(), 0.6)
        self.assertFalse(self.backlog.isLong)
        self.backlog.end(second)
        self.assertEqual(self.backlog.seconds(), 0.0)

    def test_whatOthersSayCountsForAWhile(self) -> None:
        """One that has caught up is believed at once; one that is heard no more is gone, and takes no heartbeats."""
        self.backlog.heard("b", 1.1)
        self.backlog.heard("c", 0.9)
        self.assertTrue(self.backlog.isLong)
        self.backlog.heard("b", 0.0)
        self.assertFalse(self.backlog.isLong)
        self.backlog.heard("c", 4.0)
        self.clock.advance(1)
        self.backlog.heard("b", 0.0)
        self.assertTrue(self.backlog.isLong)
        self.clock.advance(0.3)
        self.assertFalse(self.backlog.isLong)

    def test_itsOwnWordIsOld(self) -> None:
        """What a node has said of itself comes back to it when it may have caught up long ago."""
        self.backlog.heard("a", 3.0)
        self.assertFalse(self.backlog.isLong)

    def test_itSaysSoOnce(self) -> None:
        """Each time that it falls behind."""
        with capturedLogs() as logs:
            for _ in range(2):
                number = self.backlog.begin()
                self.clock.advance(1.5)
                self.assertTrue(self.backlog.isLong)
                self.clock.advance(1.5)
                self.assertTrue(self.backlog.isLong)
                self.backlog.end(number)
                self.assertFalse(self.backlog.isLong)
        said = [formatEvent(log) for log in logs]
        self.assertEqual(len(said), 2, said)
        self.assertIn("Heartbeats have waited for etcd for 1.5 s", said[0])
