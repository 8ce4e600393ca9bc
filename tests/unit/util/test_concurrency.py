"""PrioritySemaphore: its order, and thousands of services that start together."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IAgent
from zope.interface import implementer

from txserviceregistry import Client, RegisteredService
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.util.concurrency import PrioritySemaphore


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
        """Who has the nearest deadline is next, whenever it came; among equals the first."""
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
        """Who asks while one ends in the moment in which it comes is not before those that have waited."""
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
        What a registration may take is not spent on waiting for others: none of them fails, though the registry could
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
