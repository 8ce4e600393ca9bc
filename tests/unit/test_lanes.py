"""
Which requests of a client wait for which others, and what a suspend of the machine does to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.client import Client
from txserviceregistry.clock import SuspendWatch

from ..fakeagent import API_KEY, FakeApi, Sent, answer, fault

PAGE = {"values": [], "metadata": {"count": 0, "limit": 100, "marker": None, "next_marker": None, "next_href": None}}


class LaneTests(SynchronousTestCase):
    """A client with two connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.slept = 0.0
        self.ended: list[str] = []
        self.agent = FakeApi(self.hang)
        self.client = Client(
            "joe",
            API_KEY,
            baseUrl="http://registry/v1.0",
            agent=self.agent,
            reactor=self.clock,
            suspended=lambda: self.slept,
        )
        self.addCleanup(self.client.close)

    def hang(self, sent: Sent) -> Any:
        return Deferred(lambda _: self.ended.append(sent.url))

    def begin(self, request: Callable[[], Deferred[Any]]) -> list[str]:
        """Send a request, and return what was sent because of it."""
        before = len(self.agent.sent)
        request().addErrback(lambda _: None)
        return [sent.asked.replace("http://registry/v1.0/7", "") for sent in self.agent.sent[before:]]

    def occupy(self) -> None:
        """Let two requests that are not urgent hang."""
        for _ in range(2):
            self.begin(self.client.configuration.list)

    def test_ordinaryRequestsWait(self) -> None:
        """While two requests have had no response, others are not sent."""
        self.occupy()
        for request in (self.client.configuration.list, self.client.services.list, self.client.account.getLimits):
            self.assertEqual(self.begin(request), [])

    def test_requestsForOneServiceDoNotWait(self) -> None:
        """Heartbeats, and whatever else concerns one service, are sent beside requests that hang."""
        requests: list[tuple[Callable[[Any], Deferred[Any]], str]] = [
            (lambda services: services.heartbeat("web1", "t"), "POST /services/web1/heartbeat"),
            (lambda services: services.heartbeats([{"id": "web1", "token": "t"}]), "POST /heartbeats"),
            (lambda services: services.createOnce("web1", 30), "POST /services"),
            (lambda services: services.updateOnce("web1", {}), "PUT /services/web1"),
            (lambda services: services.get("web1"), "GET /services/web1"),
            (lambda services: services.remove("web1"), "DELETE /services/web1"),
        ]
        for request, sent in requests:
            self.setUp()
            self.occupy()
            self.assertEqual(self.begin(partial(request, self.client.services)), [sent])

    def test_authenticationDoesNotWait(self) -> None:
        """A heartbeat whose token was refused gets a new one, also while other requests hang."""
        tokens: list[str] = []

        def refuse(sent: Sent) -> Any:
            if not sent.url.endswith("/heartbeat"):
                return self.hang(sent)
            tokens.append(sent.token)
            return fault("unauthorizedError") if len(tokens) == 1 else answer(200, {"token": "next"})

        self.occupy()
        self.agent.handler = lambda sent: self.issue() if sent.url.endswith("/tokens") else refuse(sent)
        beat = self.client.services.heartbeat("web1", "t")
        self.assertEqual(self.successResultOf(beat), {"token": "next"})
        self.assertEqual(tokens[1], "second")

    def issue(self) -> Any:
        return answer(200, {"access": {"token": {"id": "second", "tenant": {"id": "7"}}, "serviceCatalog": []}})

    def test_requestsThatWaitForEventsOccupyNothing(self) -> None:
        """However many wait for events, other requests are sent."""
        extensions = {"X_Service_Registry_Extensions": "events-wait"}
        self.agent.handler = lambda sent: (
            self.issue() if sent.url.endswith("/tokens") else answer(200, PAGE, **extensions)
        )
        self.successResultOf(self.client.events.list())
        self.agent.handler = self.hang
        for _ in range(3):
            self.assertEqual(self.begin(lambda: self.client.events.list(wait=60)), ["GET /events?wait=60"])
        self.assertEqual(self.begin(self.client.configuration.list), ["GET /configuration"])

    def test_aSuspendEndsAllButHeartbeats(self) -> None:
        """After a suspend, requests are sent again on other connections. HeartBeaters do that for their own."""
        self.begin(lambda: self.client.services.get("web1"))
        self.begin(lambda: self.client.services.heartbeat("web1", "t"))
        self.assertEqual(self.ended, [])
        self.slept = 60.0
        sent = len(self.agent.sent)
        self.clock.advance(SuspendWatch.TICK)
        self.assertEqual(self.ended, ["http://registry/v1.0/7/services/web1"])
        self.assertEqual([each.asked for each in self.agent.sent[sent:]], ["GET http://registry/v1.0/7/services/web1"])
