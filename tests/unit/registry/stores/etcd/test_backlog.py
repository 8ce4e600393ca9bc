"""
Heartbeats that wait for etcd, on a clock that the test moves.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.stores.etcd.backlog import Backlog


class BacklogTests(SynchronousTestCase):
    """How long is too long, here and elsewhere."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.backlog = Backlog(self.clock, "a")

    def test_theOldestCounts(self) -> None:
        """However many come and go behind it, and in whatever order they end."""
        self.assertEqual((self.backlog.report(), self.backlog.mayBeLong), (0.0, False))
        first = self.backlog.begin()
        self.clock.advance(0.5)
        second, third = self.backlog.begin(), self.backlog.begin()
        self.clock.advance(0.5)
        self.backlog.end(third)
        self.assertEqual((self.backlog.report(), self.backlog.mayBeLong), (1.0, False))
        self.clock.advance(0.1)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.end(first)
        self.assertAlmostEqual(self.backlog.report(), 0.6)
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.end(second)
        self.assertEqual(self.backlog.report(), 0.0)

    def test_whatWaitedMayBeWaitingStill(self) -> None:
        """A report is carried on until the next one, which counts at once."""
        self.backlog.received("b", 0.3)
        self.clock.advance(0.6)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.received("b", 0.1)
        self.assertFalse(self.backlog.mayBeLong)

    def test_aNodeThatIsNotBehindMayGo(self) -> None:
        """A node whose reports end while it is not behind is gone, and takes no heartbeats."""
        self.backlog.received("b", 0.0)
        self.backlog.received("c", 0.01)
        long = []
        for moment in (0.9, 1.1, 1.3, 5.0):
            self.clock.advance(moment - self.clock.seconds())
            long.append(self.backlog.mayBeLong)
        # For a moment it could also be slow to report.
        self.assertEqual(long, [False, True, False, False])

    def test_aNodeThatIsBehindIsSlowToReport(self) -> None:
        """It is taken to be behind until it reports something else, or is known to be gone, or has been for long."""
        self.backlog.received("b", 1.1)
        self.clock.advance(4.5)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.gone("b")
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.received("b", 1.1)
        self.clock.advance(5.1)
        self.assertFalse(self.backlog.mayBeLong)

    def test_allNodesAtOnce(self) -> None:
        """Reports of nodes that are not among them are dropped."""
        self.backlog.received("b", 2.0)
        self.backlog.receivedAll({"c": 0.0})
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.receivedAll({"c": 3.0})
        self.assertTrue(self.backlog.mayBeLong)

    def test_itsOwnReportIsOld(self) -> None:
        """A node's own report comes back to it when it may have caught up long ago."""
        self.backlog.received("a", 3.0)
        self.assertFalse(self.backlog.mayBeLong)

    def test_aNodeWithoutItsOwnReportsIsDeaf(self) -> None:
        """Then the reports of the others don't come either; so it is from when it began to listen."""
        self.clock.advance(5)
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.listen()
        self.clock.advance(0.9)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.received("a", 0.0)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.9)
        self.backlog.received("b", 0.0)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)

    def test_logsItOnce(self) -> None:
        """Each time that it falls behind."""
        with capturedLogs() as logs:
            for _ in range(2):
                number = self.backlog.begin()
                self.clock.advance(1.5)
                self.backlog.report()
                self.clock.advance(1.5)
                self.backlog.report()
                self.backlog.end(number)
                self.backlog.report()
        texts = [formatEvent(log) for log in logs]
        self.assertEqual(len(texts), 2, texts)
        self.assertIn("heartbeats have waited for 1.5 s", texts[0])
