"""Many services of one Client: few connections, and none of them dies of another's trouble."""

from __future__ import annotations

import random

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from txserviceregistry import Client, RegisteredService
from txserviceregistry.testing import FakeRegistry

# Seconds that an answer takes on a connection that is well.
LATENCY = 0.02


@implementer(IAgent)
class Lines:
    """
    Stands between a client and a fake, as a pool with two connections would: a request takes the first one if that is
    idle, else the second. Counts what is under way, and can let the second one hang.
    """

    def __init__(self, fake: FakeRegistry) -> None:
        self._fake = fake
        self._firstIsBusy = False
        self.underWay = 0
        self.most = 0
        self.secondHangs = False
        self.hung = 0

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        self.underWay += 1
        self.most = max(self.most, self.underWay)
        if not self._firstIsBusy:
            self._firstIsBusy = True
            answer = deferLater(
                self._fake.clock, LATENCY, self._fake.agent.request, method, uri, headers, bodyProducer
            ).addBoth(self._idle)
        elif self.secondHangs:
            self.hung += 1
            answer = Deferred(lambda it: it.errback(ResponseNeverReceived([Failure(CancelledError())])))
        else:
            answer = self._fake.agent.request(method, uri, headers, bodyProducer)
        return answer.addBoth(self._done)

    def _idle(self, result: object) -> object:
        self._firstIsBusy = False
        return result

    def _done(self, result: object) -> object:
        self.underWay -= 1
        return result


class FleetTests(SynchronousTestCase):
    """A hundred services of one application."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.watcher = self.fake.client()
        self.lines = Lines(self.fake)
        self.client = Client(
            self.fake.username,
            self.fake.apiKey,
            baseUrl=self.fake.url,
            agent=self.lines,
            reactor=self.fake.clock,
        )
        draw = random.Random(20261123).random
        self.services = [RegisteredService(self.client, f"service{number}", 6, random=draw) for number in range(100)]
        for service in self.services:
            service.startService()
        self.fake.advance(10)

    def assertAllLived(self) -> None:
        events = self.successResultOf(self.watcher.events.list(limit=1000))["values"]
        self.assertEqual({event["type"] for event in events}, {"service.join"})
        self.assertEqual(len(self.successResultOf(self.watcher.services.list(limit=1000))["values"]), 100)

    def test_useTwoConnections(self) -> None:
        """However many fall due at once, at most two requests are under way."""
        self.fake.advance(60)
        self.assertLessEqual(self.lines.most, 2)
        self.assertAllLived()

    def test_surviveAConnectionThatHangs(self) -> None:
        """While one of the two connections answers nothing for ten seconds, no six-second service dies."""
        self.lines.secondHangs = True
        self.fake.advance(10)
        self.lines.secondHangs = False
        self.assertGreater(self.lines.hung, 5)
        self.fake.advance(30)
        self.assertLessEqual(self.lines.most, 2)
        self.assertAllLived()

    def test_stopAllAtOnce(self) -> None:
        """Stopped together, all of them leave the registry, within the time that stopping may take."""
        stops = [service.stopService() for service in self.services]
        self.fake.advance(3.1)
        for stop in stops:
            self.successResultOf(stop)
        self.assertEqual(self.successResultOf(self.watcher.services.list())["values"], [])
