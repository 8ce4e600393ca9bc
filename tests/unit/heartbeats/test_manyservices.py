"""Many services of one Client: few connections, and none expires because of another."""

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
from txserviceregistry.http.pool import MOST_BESIDE
from txserviceregistry.testing import FakeRegistry

from ...fakeagent import asOfAPlainRegistry

COUNT = 24
# Seconds that an answer takes on a connection that is well.
LATENCY = 0.02


@implementer(IAgent)
class Connections:
    """
    Stands between a client and a fake, as a pool with two connections would: a request takes the first one if that is
    idle, else the second. Counts what is under way, and can let the second one hang.

    :param isPlain: whether the registry behind it has no extensions.
    """

    def __init__(self, fake: FakeRegistry, isPlain: bool) -> None:
        self._fake = fake
        self.isPlain = isPlain
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
        if self.isPlain:
            answer.addCallback(asOfAPlainRegistry)
        return answer.addBoth(self._done)

    def _idle(self, result: object) -> object:
        self._firstIsBusy = False
        return result

    def _done(self, result: object) -> object:
        self.underWay -= 1
        return result


class SingleHeartbeatTests(SynchronousTestCase):
    """Many services of one application, and a registry without heartbeat batches."""

    isPlain = True
    isTraceBroken = False

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.watcher = self.fake.client()
        self.connections = Connections(self.fake, self.isPlain)
        self.client = Client(
            self.fake.username,
            self.fake.apiKey,
            baseUrl=self.fake.url,
            agent=self.connections,
            reactor=self.fake.clock,
            traceparent=self.trace,
        )
        draw = random.Random(20261123).random
        self.services = [RegisteredService(self.client, f"service{number}", 6, random=draw) for number in range(COUNT)]
        for service in self.services:
            service.startService()
        self.fake.advance(10)

    def trace(self) -> None:
        if self.isTraceBroken:
            raise ZeroDivisionError

    def assertNoneExpired(self) -> None:
        events = self.successResultOf(self.watcher.events.list(limit=1000))["values"]
        self.assertEqual({event["type"] for event in events}, {"service.join"})
        self.assertEqual(len(self.successResultOf(self.watcher.services.list(limit=1000))["values"]), COUNT)

    def test_useTwoConnections(self) -> None:
        """However many are due at once, at most two requests are under way."""
        self.fake.advance(20)
        self.assertLessEqual(self.connections.most, 2)
        self.assertNoneExpired()

    def test_surviveAConnectionThatHangs(self) -> None:
        """While one of the two connections answers nothing for ten seconds, no six-second service expires."""
        self.connections.secondHangs = True
        self.fake.advance(10)
        self.connections.secondHangs = False
        self.assertGreater(self.connections.hung, 3)
        self.fake.advance(15)
        self.assertLessEqual(self.connections.most, 2 + MOST_BESIDE)
        self.assertNoneExpired()

    def test_surviveATraceThatFails(self) -> None:
        """No service expires while the application's function for the header traceparent raises exceptions."""
        self.isTraceBroken = True
        self.fake.advance(20)
        self.isTraceBroken = False
        self.fake.advance(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNoneExpired()

    def test_stopAllAtOnce(self) -> None:
        """Stopped together, all of them leave the registry, within the time that stopping may take."""
        stops = [service.stopService() for service in self.services]
        self.fake.advance(3.1)
        for stop in stops:
            self.successResultOf(stop)
        self.assertEqual(self.successResultOf(self.watcher.services.list())["values"], [])


class BatchTests(SingleHeartbeatTests):
    """Many services of one application, and a registry that accepts heartbeat batches."""

    isPlain = False

    def test_shareRequests(self) -> None:
        """Heartbeats that are due close together are sent in one request, over one connection."""
        self.fake.advance(60)
        before = len(self.fake.requests)
        self.connections.most = 0
        self.fake.advance(60)
        beats = [request.path for request in self.fake.requests[before:]]
        self.assertEqual({path.rpartition("/")[2] for path in beats}, {"heartbeats"})
        # A heartbeat of each is due every 3.24 to 3.6 seconds: single ones would be hundreds of requests.
        self.assertLess(len(beats), 60)
        self.assertEqual(self.connections.most, 1)
        self.assertNoneExpired()

    def test_startTogether(self) -> None:
        """Those that start when the extensions of the registry are known share a request for their first heartbeats."""
        made = [self.successResultOf(self.watcher.services.create(f"more{number}", 60)) for number in range(50)]
        before = len(self.fake.requests)
        for _, heartBeater in made:
            heartBeater.start()
        self.fake.advance(0.1)
        asked = [request.path.rpartition("/")[2] for request in self.fake.requests[before:]]
        self.assertEqual(set(asked), {"heartbeats"})
        self.assertLessEqual(len(asked), 2)
        self.assertTrue(all(heartBeater.lastSeen is not None for _, heartBeater in made))
        self.successResultOf(self.watcher.services.close())

    def test_surviveAConnectionThatHangs(self) -> None:
        """While one request in two is never answered no six-second service expires."""
        for _ in range(20):
            self.fake.hangNext()
            self.fake.advance(3)
        self.fake.advance(30)
        self.assertNoneExpired()

    def test_eachHasItsOwnFault(self) -> None:
        """A service that another client has removed is registered again; the others do not notice."""
        self.successResultOf(self.watcher.services.remove("service7"))
        self.fake.advance(10)
        types = [event["type"] for event in self.successResultOf(self.watcher.events.list(limit=1000))["values"]]
        self.assertEqual(types.count("service.join"), COUNT + 1)
        self.assertEqual(types.count("service.remove"), 1)
        self.assertNotIn("service.timeout", types)
        self.assertEqual({service.state for service in self.services}, {"registered"})

    def test_comeBackAfterAnOutage(self) -> None:
        """After a long outage all are registered again."""
        self.fake.stop()
        self.fake.advance(60)
        self.assertEqual({service.state for service in self.services}, {"unreachable"})
        self.fake.start(keepData=False)
        self.fake.advance(10)
        self.assertEqual({service.state for service in self.services}, {"registered"})
        self.assertEqual(len(self.successResultOf(self.watcher.services.list(limit=1000))["values"]), COUNT)

    def test_oneThatStopsIsLeftOut(self) -> None:
        """Nothing is sent for a service that has stopped, also when its heartbeat was under way."""
        self.fake.advance(20)
        self.fake.hangNext()
        self.fake.advance(2)
        self.services[3].stopService()
        self.fake.advance(30)
        self.assertEqual(len(self.successResultOf(self.watcher.services.list(limit=1000))["values"]), COUNT - 1)
        self.assertEqual(self.services[3].state, "stopped")

    def test_goOnWithoutBatches(self) -> None:
        """An older registry at the same URL, which accepts no batches, expires none of them."""
        self.fake.advance(10)
        self.connections.isPlain = True
        self.fake.advance(30)
        self.assertNoneExpired()
