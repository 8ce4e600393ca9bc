"""
Deferreds that several callers wait for, and that delayed calls belong to; semaphores, and thousands of services that
start together; work that is gathered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IAgent
from zope.interface import implementer

from txserviceregistry import Client, RegisteredService
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.util.deferred import Gathering, PrioritySemaphore, Waiters, cancelWith, waitFor


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


class TurnsTests(SynchronousTestCase):
    """The order in which turns come."""

    def test_soManyAtOnce(self) -> None:
        """As many as may have a turn have one at once; each that ends lets another one in."""
        turns = PrioritySemaphore(2)
        asked = [turns.take(1.0) for _ in range(4)]
        self.assertEqual([turn.called for turn in asked], [True, True, False, False])
        for _ in range(3):
            turns.give()
        self.assertEqual([turn.called for turn in asked], [True] * 4)
        self.successResultOf(turns.take(1.0))
        self.assertNoResult(turns.take(1.0))

    def test_theNearestDeadlineFirst(self) -> None:
        """The caller with the nearest deadline is next, whenever it came; among equals the first."""
        turns = PrioritySemaphore(1)
        self.successResultOf(turns.take(0.0))
        order: list[str] = []
        for name, deadline in (("never", float("inf")), ("late", 9.0), ("soon", 3.0), ("soon, too", 3.0)):
            turns.take(deadline).addCallback(lambda _, name=name: order.append(name))
        for _ in range(4):
            turns.give()
        self.assertEqual(order, ["soon", "soon, too", "late", "never"])

    def test_cancelled(self) -> None:
        """A caller that does not wait any more is skipped."""
        turns = PrioritySemaphore(1)
        self.successResultOf(turns.take(0.0))
        gone, next = turns.take(1.0), turns.take(2.0)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        turns.give()
        self.successResultOf(next)

    def test_thatEndAtOnce(self) -> None:
        """However many end in the moment in which they come, each ends before the next one comes."""
        turns = PrioritySemaphore(1)
        self.successResultOf(turns.take(0.0))
        ended: list[int] = []

        def end(_: None, number: int) -> None:
            turns.give()
            ended.append(number)

        for number in range(10_000):
            turns.take(1.0).addCallback(end, number)
        turns.give()
        self.assertEqual(ended, list(range(10_000)))
        self.successResultOf(turns.take(1.0))

    def test_whoTakesOneMeanwhile(self) -> None:
        """A caller that comes while another one ends is not before those that have waited."""
        turns = PrioritySemaphore(1)
        self.successResultOf(turns.take(0.0))
        order: list[str] = []

        def endAndAskAgain(_: None) -> None:
            turns.give()
            turns.take(9.0).addCallback(lambda _: order.append("late"))

        turns.take(1.0).addCallback(endAndAskAgain)
        turns.take(3.0).addCallback(lambda _: order.append("soon"))
        turns.give()
        self.assertEqual(order, ["soon"])
        turns.give()
        self.assertEqual(order, ["soon", "late"])


@implementer(IAgent)
class Slow:
    """Stands before a fake, and answers one request after the other, so many a second."""

    def __init__(self, fake: FakeRegistry, rate: float) -> None:
        self._fake = fake
        self._rate = rate
        self._free = 0.0

    def request(self, *arguments: Any) -> Deferred[Any]:
        """See IAgent."""
        clock = self._fake.clock
        self._free = max(self._free, clock.seconds()) + 1 / self._rate
        return deferLater(clock, self._free - clock.seconds(), self._fake.agent.request, *arguments)


class ManyServicesTests(SynchronousTestCase):
    """More services than the registry can answer within the time of one request."""

    def test_startedTogether(self) -> None:
        """All of them are registered, one after the other, and none expires while it waits for the others."""
        fake = FakeRegistry(limits=ResourceLimits(service=1000))
        client = Client(fake.username, fake.apiKey, baseUrl=fake.url, agent=Slow(fake, 12.5), reactor=fake.clock)
        services = [RegisteredService(client, f"service{number}", 20 + number % 40) for number in range(200)]
        for service in services:
            service.startService()
        fake.advance(30)
        self.assertTrue(all(service.healthy for service in services))
        fake.advance(60)
        events = self.successResultOf(fake.client().events.list(limit=1000))["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"] * 200)

    def test_withLittleTime(self) -> None:
        """
        The time of a registration is not spent on waiting for others: none of them fails, though the registry could
        answer no more than two dozen in that time.
        """
        fake = FakeRegistry(limits=ResourceLimits(service=1000))
        client = Client(fake.username, fake.apiKey, baseUrl=fake.url, agent=Slow(fake, 12.5), reactor=fake.clock)
        services = [RegisteredService(client, f"service{number}", 6) for number in range(200)]
        failures: list[object] = []
        for service in services:
            service.onRegistrationFailure(failures.append)
            service.startService()
        fake.advance(25)
        self.assertTrue(all(service.healthy for service in services))
        self.assertEqual(failures, [])


class GatheringTests(SynchronousTestCase):
    """Numbers, which are doubled, three at a time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.groups: list[list[int]] = []
        self.gathering: Gathering[int, int] = Gathering(self.clock, 3, self.double)

    async def double(self, numbers: Sequence[int]) -> Mapping[int, int]:
        self.groups.append(list(numbers))
        return {number: 2 * number // (number != 13) for number in numbers}

    def do(self, *numbers: int) -> list[Deferred[int]]:
        waiting = [self.gathering.do(number) for number in numbers]
        self.clock.advance(0)
        return waiting

    def test_together(self) -> None:
        """Calls of one turn are made together, each once, and not too many at a time."""
        for turn in ((1, 2, 1), (3, 4, 5, 6)):
            self.assertEqual([self.successResultOf(each) for each in self.do(*turn)], [2 * number for number in turn])
        self.assertEqual(self.groups, [[1, 2], [3, 4, 5], [6]])

    def test_failures(self) -> None:
        """An error is for all calls that were made together, and for no others."""
        *failed, fine = self.do(12, 13, 14, 15)
        for each in failed:
            self.failureResultOf(each, ZeroDivisionError)
        self.assertEqual(self.successResultOf(fine), 30)

    def test_cancelling(self) -> None:
        """One who cancels changes nothing for others that asked for the same."""
        one, two = self.gathering.do(1), self.gathering.do(1)
        one.addErrback(lambda _: None).cancel()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(two), 2)
