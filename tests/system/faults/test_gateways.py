"""Rows 17, 18 and 20: a gateway answers in the registry's place, refuses large bodies, or mixes responses up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client, RegisteredService
from txserviceregistry.discovery.directory import Directory
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry, Request

from .faultcase import Figures

PROBLEM = (b'{"type":"about:blank","title":"Not Found"}', "application/problem+json")
PAGES = (
    PROBLEM,
    (b"404 page not found\n", "text/plain"),
    (b"<html><h1>Forbidden</h1></html>", "text/html"),
    (b'{"message":"no Route matched with those values"}', "application/json"),
    (b'{"type":"gatewayError","code":404,"message":"no upstream"}', "application/json"),
    (b'{"type":"notFoundError","code":410,"message":"gone"}', "application/json"),
    (b"", "text/plain"),
)
STATUSES = (400, 401, 403, 404, 405, 408, 410, 413, 422, 429, 451)


def isHeartbeat(request: Request) -> bool:
    return "/heartbeat" in request.path


class GatewayCase(Figures, SynchronousTestCase):
    """An application with services, a registry in memory, and a gateway between them."""

    def setUp(self) -> None:
        self.fake = FakeRegistry(limits=ResourceLimits(service=2000))
        self.client = self.fake.client(cache=None)
        self.random = Random(self.row)
        self.services: list[RegisteredService] = []
        self.first = ""

    def start(self, timeouts: Iterable[int], client: Client | None = None, **options: Any) -> None:
        """Register a service for each of *timeouts*."""
        for timeout in timeouts:
            id = f"service{len(self.services):04}"
            service = RegisteredService(client or self.client, id, timeout, random=self.random.random, **options)
            self.services.append(service)
            service.startService()
        self.fake.advance(1)
        for service in self.services:
            self.successResultOf(service.whenRegistered())
        if not self.first:
            self.first = self.successResultOf(self.client.events.list(None, 1))["values"][0]["id"]

    def logged(self) -> list[str]:
        """The warnings and errors that are logged from now on."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            if event["log_level"] >= LogLevel.warn:
                lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def end(self) -> Counter[str]:
        """Stop the services, and count the earlier events by type."""
        self.fake.answerNormally()
        events: list[Any] = []
        # Without a marker the feed begins an hour ago.
        marker: str | None = self.first
        reader = self.fake.client(cache=None)
        while True:
            page = self.successResultOf(reader.events.list(marker, 1000))
            events += page["values"]
            marker = page["metadata"]["next_marker"]
            if marker is None:
                break
        stopping = [service.stopService() for service in self.services]
        self.fake.advance(30)
        for stopped in stopping:
            self.successResultOf(stopped)
        return Counter(event["type"] for event in events)

    def assertKept(self) -> None:
        """Each service was registered once, and never expired."""
        self.assertEqual(self.end(), {"service.join": len(self.services)})
        self.assertEqual(self.flushLoggedErrors(), [])


class GatewayTests(GatewayCase):
    """Pages of a gateway in place of the registry's responses."""

    row = 17
    fault = "A gateway responds with a 4xx page of its own"

    def test_allStayRegistered(self) -> None:
        """
        No service is registered again because of a page, whether it is heartbeated alone or in a batch; and a Directory
        neither loses a service nor lists everything again.
        """
        self.start([3, 10, 20, 60] * 3, check=lambda: True)
        self.start([3, 10, 20, 60] * 3)
        directory = Directory(self.client)
        directory.startService()
        self.fake.advance(5)
        pages = 0
        for _ in range(20 if self.isFull else 1):
            for status in STATUSES:
                for body, contentType in PAGES:
                    # A service that is refused for longer than a timeout expires, and rightly so.
                    self.fake.answerNext(status, body, contentType, count=self.random.randint(1, 3))
                    pages += 1
                    self.fake.advance(self.random.uniform(3, 9))
                    self.assertEqual(len(directory.services()), len(self.services))
        # An outage of two seconds in which the gateway answers everything.
        for status in STATUSES:
            self.fake.answerNext(status, *PROBLEM, count=None)
            self.fake.advance(1.0)
            self.fake.answerNormally()
            self.fake.advance(20 if self.isFull else 5)
        listings = [request for request in self.fake.requests if "/services?limit" in request.path]
        self.successResultOf(directory.stopService())
        self.assertKept()
        self.tell("services, timeouts of 3 to 60 s", len(self.services))
        self.tell("pages", pages)
        self.tell("listings", len(listings))
        self.tell("expirations", 0)
        self.tell("new registrations", 0)


class LargeBodyTests(GatewayCase):
    """A proxy that refuses large bodies."""

    row = 18
    fault = "A proxy refuses bodies over 8 KiB, or all heartbeat batches, with a 4xx"

    def simulate(self, seconds: float, count: int = 400) -> list[int]:
        """Run services with a timeout of 10 s behind the proxy; the numbers of requests per minute."""
        self.start([10] * count)
        requests = []
        for _ in range(round(seconds / 60)):
            before = len(self.fake.requests)
            self.fake.advance(60)
            requests.append(len(self.fake.requests) - before)
        return requests

    def refuseOver(self, size: int, status: int, body: bytes = b"<html>", contentType: str = "text/html") -> None:
        self.fake.answerNext(status, body, contentType, count=None, when=lambda request: len(request.body) > size)

    def test_bodiesOver8KiB(self) -> None:
        """With any status of the proxy, batches become small and stay so, and the log has one line."""
        for status in (403, 404, 413):
            self.setUp()
            log = self.logged()
            self.refuseOver(8192, status)
            # A batch of all of them is over 8 KiB.
            requests = self.simulate(3600) if self.isFull else self.simulate(60, 160)
            # Heartbeats that fit share a request: not a request for each heartbeat.
            self.assertLess(requests[-1], 100)
            self.assertEqual([line for line in log if "heartbeat" in line and "registered" not in line], log[:1])
            self.assertIn("A batch of", log[0])
            self.assertIn(f"returned {status}", log[0])
            self.assertKept()
            self.tell(f"requests in the last minute, refused with: {status}", requests[-1])
        self.tell("services, timeout 10 s", len(self.services))
        self.tell("expirations", 0)

    def test_theRegistrysOwnLimit(self) -> None:
        """After a fault of the registry for a large body, batches become smaller too."""
        fault = b'{"type":"requestTooLargeError","code":413,"message":"Request body too large","details":""}'
        self.refuseOver(4999, 413, fault, "application/json")
        self.simulate(60, 200)
        self.assertKept()

    def test_noBatchesAtAll(self) -> None:
        """If not even a batch of one is accepted, each service sends its own heartbeats; batches are tried rarely."""
        isBatch = 0

        def refuses(request: Request) -> bool:
            nonlocal isBatch
            isBatch += request.path.endswith("/heartbeats")
            return request.path.endswith("/heartbeats")

        self.fake.answerNext(403, b"<html>", count=None, when=refuses)
        self.simulate(1200, 400) if self.isFull else self.simulate(360, 20)
        self.assertLess(isBatch, 40)
        self.assertKept()
        self.tell("batches tried where none passes", isBatch)

    def test_anOutageOfTheGateway(self) -> None:
        """A gateway that answers everything for a few seconds is an outage: heartbeats are batched again afterwards."""
        count = 400 if self.isFull else 40
        self.start([10] * count)
        self.fake.advance(60)
        for _ in range(20 if self.isFull else 2):
            log = self.logged()
            self.fake.answerNext(404, *PROBLEM, count=None)
            before = len(self.fake.requests)
            self.fake.advance(3.5)
            self.fake.answerNormally()
            during = len(self.fake.requests) - before
            self.fake.advance(400)
            before = len(self.fake.requests)
            self.fake.advance(60)
            self.assertLess(len(self.fake.requests) - before, 100)
            self.assertLess(during, 200)
            self.assertLess(len(log), 12, log)
        self.assertKept()
        self.tell(f"requests of {count} services in an outage of 3.5 s", during)


class ForeignTokenTests(GatewayCase):
    """A proxy that mixes responses up."""

    row = 20
    fault = "Heartbeats receive the token of another service"

    def test_allStayRegistered(self) -> None:
        """The client falls back to the last accepted token, for single and for batched heartbeats."""
        self.start([3, 10, 20, 60] * 3, check=lambda: True)
        self.start([3, 10, 20, 60] * 3)
        rounds = 300 if self.isFull else 10
        for _ in range(rounds):
            self.fake.foreignTokenNext(self.random.randint(1, 4))
            self.fake.advance(self.random.uniform(1, 9))
        # Every heartbeat, for several intervals of each.
        self.fake.foreignTokenNext(None)
        seconds = 300 if self.isFull else 120
        self.fake.advance(seconds)
        self.assertKept()
        self.tell("services, timeouts of 3 to 60 s", len(self.services))
        self.tell("seconds", seconds)
        self.tell("expirations", 0)
