"""
Deferreds that several callers wait for, and that delayed calls belong to.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.deferred import cancelWith, waitFor


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
