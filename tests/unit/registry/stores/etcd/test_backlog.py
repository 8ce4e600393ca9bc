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
        self.assertEqual((self.backlog.word(), self.backlog.mayBeLong), (0.0, False))
        first = self.backlog.begin()
        self.clock.advance(0.5)
        second, third = self.backlog.begin(), self.backlog.begin()
        self.clock.advance(0.5)
        self.backlog.end(third)
        self.assertEqual((self.backlog.word(), self.backlog.mayBeLong), (1.0, False))
        self.clock.advance(0.1)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.end(first)
        self.assertAlmostEqual(self.backlog.word(), 0.6)
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.end(second)
        self.assertEqual(self.backlog.word(), 0.0)

    def test_whatWaitedMayBeWaitingStill(self) -> None:
        """A word is carried on until the next one, and that one is believed at once."""
        self.backlog.heard("b", 0.3)
        self.clock.advance(0.6)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.heard("b", 0.1)
        self.assertFalse(self.backlog.mayBeLong)

    def test_aNodeThatIsNotBehindMayGo(self) -> None:
        """Whoever falls silent while nothing is wrong is gone, and takes no heartbeats."""
        self.backlog.heard("b", 0.0)
        self.backlog.heard("c", 0.01)
        doubts = []
        for moment in (0.9, 1.1, 1.3, 5.0):
            self.clock.advance(moment - self.clock.seconds())
            doubts.append(self.backlog.mayBeLong)
        # For a moment it could also be slow to say the next word.
        self.assertEqual(doubts, [False, True, False, False])

    def test_aNodeThatIsBehindIsSlowToSaySo(self) -> None:
        """It is taken to be behind until it says something else, or is known to be gone, or has been for long."""
        self.backlog.heard("b", 1.1)
        self.clock.advance(4.5)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.gone("b")
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.heard("b", 1.1)
        self.clock.advance(5.1)
        self.assertFalse(self.backlog.mayBeLong)

    def test_allNodesAtOnce(self) -> None:
        """Of whom is not among them nothing is true any more."""
        self.backlog.heard("b", 2.0)
        self.backlog.heardAll({"c": 0.0})
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.heardAll({"c": 3.0})
        self.assertTrue(self.backlog.mayBeLong)

    def test_itsOwnWordIsOld(self) -> None:
        """What a node has said of itself comes back to it when it may have caught up long ago."""
        self.backlog.heard("a", 3.0)
        self.assertFalse(self.backlog.mayBeLong)

    def test_whoHearsNothingOfItselfIsDeaf(self) -> None:
        """Then the words of the others don't come either; so it is from when it began to listen."""
        self.clock.advance(5)
        self.assertFalse(self.backlog.mayBeLong)
        self.backlog.listen()
        self.clock.advance(0.9)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)
        self.backlog.heard("a", 0.0)
        self.assertFalse(self.backlog.mayBeLong)
        self.clock.advance(0.9)
        self.backlog.heard("b", 0.0)
        self.clock.advance(0.2)
        self.assertTrue(self.backlog.mayBeLong)

    def test_itSaysSoOnce(self) -> None:
        """Each time that it falls behind."""
        with capturedLogs() as logs:
            for _ in range(2):
                number = self.backlog.begin()
                self.clock.advance(1.5)
                self.backlog.word()
                self.clock.advance(1.5)
                self.backlog.word()
                self.backlog.end(number)
                self.backlog.word()
        said = [formatEvent(log) for log in logs]
        self.assertEqual(len(said), 2, said)
        self.assertIn("Heartbeats have waited for etcd for 1.5 s", said[0])
