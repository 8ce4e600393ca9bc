"""
Rows in one process, on a clock of their own: a real registry in memory, real clients, and a network between them that
fails by chance. An hour takes seconds, and goes the same way each time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from random import Random
from typing import Any

import treq
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from txserviceregistry import Client, RegisteredService
from txserviceregistry.http.messages import WholeResponse
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry

from .application import Load
from .audit import Audit, Findings
from .faultcase import Figures
from .journal import Application, Operation

__all__ = ["Network", "SimulatedCase"]


@implementer(IAgent)
class Network:
    """
    Stands between a client and a registry.

    :param random: decides which requests fail, and how.
    :ivar rate: how many of all requests fail, from 0 to 1.
    :ivar authDown: whether the Auth API refuses connections.
    :ivar lifetime: how long auth tokens count, in seconds, by what they say; as the registry says if it is ``None``.
    :ivar counts: ``requests``, ``authentications``, and each fault.
    """

    def __init__(self, fake: FakeRegistry, random: Random) -> None:
        self._fake = fake
        self._random = random
        self.rate = 0.0
        self.authDown = False
        self.lifetime: float | None = None
        self.counts: Counter[str] = Counter()

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""

        def go() -> Deferred[IResponse]:
            return self._fake.agent.request(method, uri, headers, bodyProducer)

        self.counts["requests"] += 1
        if b"/v2.0/" in uri:
            self.counts["authentications"] += 1
            if self.authDown:
                refused: Deferred[IResponse] = Deferred()
                refused.errback(ConnectionRefusedError())
                return refused
            if self.lifetime is not None:
                return Deferred.fromCoroutine(self._shortened(go(), self.lifetime))
        if self._random.random() < self.rate:
            self._fail(go)
        return go()

    async def _shortened(self, answer: Deferred[IResponse], lifetime: float) -> IResponse:
        response = await answer
        access = json.loads(await treq.content(response))
        # The client counts from the wall clock, which hardly moves here; what passes is the time of the test.
        ends = time.gmtime(time.time() + lifetime + 1)
        access["access"]["token"]["expires"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", ends)
        return WholeResponse(response.code, response.headers, json.dumps(access).encode())

    def _fail(self, go: Callable[[], Deferred[IResponse]]) -> None:
        """Have the next request fail in one way or another; half of what gets an answer of others is acted on."""
        status = self._random.choice((500, 502, 503, 0, 1))
        if status == 1:
            self.counts["cut short"] += 1
            self._fake.truncateNext()
            return
        if self._random.random() < 0.5:
            go().addErrback(lambda _: None)
        if status == 0:
            self.counts["garbage"] += 1
            self._fake.garbageNext()
        else:
            self.counts[str(status)] += 1
            self._fake.failNext(status)


class SimulatedCase(Figures, SynchronousTestCase):
    """A registry, an application with services and a load of writes, and an audit that asks the registry directly."""

    #: Heartbeat timeouts of the application's services, in seconds, from the shortest to the longest there is.
    TIMEOUTS = (3, 4, 6, 10, 20, *((30, 45, 60, 90, 120) * 5))
    #: How many create services beside them.
    CREATORS = 1

    def setUp(self) -> None:
        self.fake = FakeRegistry(limits=ResourceLimits(service=1000, configurationValue=1000))
        self.random = Random(self.row)
        self.network = Network(self.fake, self.random)
        self.audit = Audit(self.fake.client(cache=None))
        self.client = Client(
            self.fake.username,
            self.fake.apiKey,
            baseUrl=self.fake.url,
            agent=self.network,
            reactor=self.fake.clock,
            suspended=self.fake.suspended,
        )
        # Without a process of its own: only what it did is kept here.
        self.application = Application()
        options = argparse.Namespace(
            prefix="app", writers=2, creators=self.CREATORS, timeout=6, pace=2.0, seed=self.row
        )
        self.load = Load(self.client, self.fake.clock, options, self.note)
        self.services = [
            RegisteredService(self.client, f"service{number}", timeout, random=self.random.random)
            for number, timeout in enumerate(self.TIMEOUTS)
        ]

    def note(self, kind: str, **members: object) -> None:
        """The application's report."""
        self.application.hear({"kind": kind, "at": self.fake.clock.seconds(), **members})

    def start(self) -> None:
        """Register all services, and begin to write."""
        for service in self.services:
            service.startService()
        self.fake.advance(10)
        self.assertAllRegistered()
        self.load.resume()

    def look(self, mayTimeOut: Collection[str] = ()) -> list[Operation]:
        """
        Finish what is under way and look whether all promises have been kept; and go on.

        :return: what was done since the last time.
        """
        paused = Deferred.fromCoroutine(self.load.pause())
        for _ in range(120):
            if paused.called:
                break
            self.fake.advance(1)
        self.successResultOf(paused)
        operations = self.application.take()
        findings = Deferred.fromCoroutine(self.audit.look(operations, mayTimeOut=mayTimeOut))
        self.assertEqual(self.successResultOf(findings), Findings())
        self.load.resume()
        self.fake.requests.clear()
        return operations

    def end(self) -> None:
        """Stop the application: none of its services stays listed, and the feed is what it was all the time."""
        self.successResultOf(self.finished(self.load.pause()))
        stops = [service.stopService() for service in self.services]
        self.fake.advance(4)
        for stop in stops:
            self.successResultOf(stop)
        looks = self.audit.look(self.application.take(), ended={service.serviceId for service in self.services})
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(looks)), Findings())
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.audit.whole())), Findings())
        self.assertEqual(self.application.lost, set())
        self.fake.advance(130)
        self.successResultOf(self.client.close())

    def finished(self, work: Any) -> Deferred[Any]:
        """*work*, done."""
        done = Deferred.fromCoroutine(work)
        self.fake.advance(60)
        return done

    def assertAllRegistered(self) -> None:
        """The application takes all of its services for registered."""
        self.assertEqual([service for service in self.services if not service.healthy], [])
