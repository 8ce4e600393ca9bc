"""Deferreds that wait for one event."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.waiters import Waiters


class WaitersTests(SynchronousTestCase):
    """Waiters."""

    def setUp(self) -> None:
        self.abandoned = 0
        self.waiters: Waiters[str] = Waiters(self.isAbandoned)

    def isAbandoned(self) -> None:
        self.abandoned += 1

    def test_allFire(self) -> None:
        """All that wait fire, once and in order; the next event is for others."""
        order: list[int] = []
        first, second = self.waiters.wait(), self.waiters.wait()
        for number, waiter in enumerate((first, second)):
            waiter.addCallback(lambda outcome, number: order.append(number) or outcome, number)
        self.assertEqual(len(self.waiters), 2)
        self.waiters.fire("rain")
        third = self.waiters.wait()
        self.waiters.fire("sun")
        self.assertEqual([self.successResultOf(each) for each in (first, second, third)], ["rain", "rain", "sun"])
        self.assertEqual((order, len(self.waiters)), ([0, 1], 0))

    def test_allFail(self) -> None:
        """A Failure fails each of them."""
        waiters = [self.waiters.wait() for _ in range(2)]
        self.waiters.fire(Failure(KeyError("rain")))
        for waiter in waiters:
            self.failureResultOf(waiter, KeyError)

    def test_someFire(self) -> None:
        """Only some of them may fire; of these, those that have fired already do not count."""
        first, second, third = (self.waiters.wait() for _ in range(3))
        self.waiters.fire("rain", [second])
        self.waiters.fire("sun", [first, second])
        self.assertEqual([self.successResultOf(each) for each in (first, second)], ["sun", "rain"])
        self.assertNoResult(third)
        self.assertEqual(list(self.waiters), [third])

    def test_cancelled(self) -> None:
        """One that is cancelled takes nothing from the others. When none is left, this is told."""
        first, second, third = (self.waiters.wait() for _ in range(3))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.abandoned, 0)
        self.waiters.fire("rain", [second])
        self.assertEqual(self.successResultOf(second), "rain")
        third.cancel()
        self.failureResultOf(third, CancelledError)
        self.assertEqual(self.abandoned, 1)

    def test_oneCancelsAnother(self) -> None:
        """While they fire, one may cancel another, which then does not fire."""
        first, second = self.waiters.wait(), self.waiters.wait()
        first.addCallback(lambda _: second.cancel())
        self.waiters.fire("rain")
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.abandoned, 0)

    def test_oneBeginsToWaitAgain(self) -> None:
        """One that begins to wait while they fire waits for the next event."""
        again: list[Deferred[str]] = []
        self.waiters.wait().addCallback(lambda _: again.append(self.waiters.wait()))
        self.waiters.fire("rain")
        self.assertNoResult(again[0])
        self.waiters.fire("sun")
        self.assertEqual(self.successResultOf(again[0]), "sun")
