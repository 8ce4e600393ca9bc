"""Rows 17, 18 and 20: a gateway answers in the registry's place, refuses large bodies, or mixes responses up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

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

    def end(self) -> Counter[str]:
        """Stop them, and count the events of the time before by their types."""
        self.fake.answerNormally()
        events: list[Any] = []
        marker = None
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
    fault = "a gateway answers with a 4xx page of its own"

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
                    # What is refused for longer than a timeout expires, and rightly so.
                    self.fake.answerNext(status, body, contentType, count=self.random.randint(1, 3))
                    pages += 1
                    self.fake.advance(self.random.uniform(3, 9))
                    self.assertEqual(len(directory.services()), len(self.services))
        # An outage of two seconds in which the gateway answers everything.
        for status in STATUSES:
            self.fake.answerNext(status, *PROBLEM, count=None)
            self.fake.advance(1.0)
            self.fake.answerNormally()
            self.fake.advance(20)
        listings = [request for request in self.fake.requests if "/services?limit" in request.path]
        self.successResultOf(directory.stopService())
        self.assertKept()
        self.tell("services, with timeouts of 3 to 60 s", len(self.services))
        self.tell("pages", pages)
        self.tell("listings of the Directory", len(listings))
        self.tell("expirations", 0)
        self.tell("new registrations", 0)
