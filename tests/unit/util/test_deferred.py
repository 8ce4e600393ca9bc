"""
Deferreds that several callers wait for, and that delayed calls belong to.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.deferred import Waiters, cancelWith, waitFor


class WaitForTests(SynchronousTestCase):
    """waitFor()."""

    def test_allWaitersHaveTheResult(self) -> None:
        """Each has a Deferred of its own, and so has the owner of the work."""
        work: Deferred[int] = Deferred()
        waiters = [waitFor(work) for _ in range(3)]
        work.callback(5)
        self.assertEqual([self.successResultOf(waiter) for waiter in (*waiters, work)], [5] * 4)

    def test_cancellingAWaiterLeavesTheOthers(self) -> None:
        """The work goes on."""
        work: Deferred[int] = Deferred()
        one, other = waitFor(work), waitFor(work)
        one.cancel()
        self.failureResultOf(one, CancelledError)
        work.callback(5)
        self.assertEqual(self.successResultOf(other), 5)

    def test_theWaiterHandlesTheFailure(self) -> None:
        """Nothing is left to be logged as unhandled."""
        work: Deferred[int] = Deferred()
        waiter = waitFor(work)
        work.errback(LookupError())
        self.failureResultOf(waiter, LookupError)
        self.assertIsNone(self.successResultOf(work))


class CancelWithTests(SynchronousTestCase):
    """cancelWith()."""

    def test_theCallEndsWithTheWork(self) -> None:
        """Whether the work succeeds, fails or is cancelled."""

        def succeed(work: Deferred[Any]) -> None:
            work.callback(1)

        def fail(work: Deferred[Any]) -> None:
            work.errback(LookupError())
            work.addErrback(lambda _: None)

        def cancel(work: Deferred[Any]) -> None:
            work.cancel()
            work.addErrback(lambda _: None)

        for end in (succeed, fail, cancel):
            clock, work = Clock(), Deferred[Any]()
            end(cancelWith(clock.callLater(5, self.fail), work))
            self.assertEqual(clock.getDelayedCalls(), [])

    def test_aCallThatHasRunIsLeftAlone(self) -> None:
        """It is called in its time, if the work takes longer."""
        clock, work, called = Clock(), Deferred[int](), []
        cancelWith(clock.callLater(5, called.append, 1), work)
        clock.advance(5)
        work.callback(2)
        self.assertEqual((called, self.successResultOf(work)), ([1], 2))


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
