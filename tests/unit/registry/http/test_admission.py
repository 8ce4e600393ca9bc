"""
Tests for :mod:`txserviceregistry.registry.http.connections`, on the wire: unauthenticated clients wait for their turn.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.web.server import Request

from txserviceregistry.registry.http.requestlog import GONE, STREAM
from txserviceregistry.registry.identity import InvalidToken

from ..wire import Connection, requestBytes
from .test_connections import SERVICES, LimitsCase


class QueueTests(LimitsCase):
    """Requests of unauthenticated clients are queued."""

    def slow(self, seconds: float = 0.02) -> None:
        """Every request takes so long from now on."""
        answer = self.api.resource.answer

        def slowly(request: Request) -> None:
            self.api.clock.rightNow += seconds
            answer(request)

        self.patch(self.api.resource, "answer", slowly)

    def test_manyRequestsAtOnce(self) -> None:
        """Of many requests at once, an unauthenticated client has some answered per turn, a known one all."""
        known, guest = self.known(), self.connect()
        self.slow(0.0005)
        for connection in (known, guest):
            connection.send(requestBytes("GET", "/") * 24 + b"GET")
        self.assertEqual(self.codes(known), [404] * 24)
        self.assertEqual(self.codes(guest), [404] * 4)
        self.api.clock.advance(0.005)
        self.assertEqual(self.codes(guest), [404] * 4)
        self.later()
        self.assertEqual(self.codes(guest), [404] * 16)
        guest.send(b" / HTTP/1.1\r\n\r\n")
        self.assertEqual(self.codes(guest), [404])

    def test_manyRequestsWithBodies(self) -> None:
        """A body in between makes no difference."""
        guest = self.connect()
        self.slow(0.0005)
        guest.send(requestBytes("POST", SERVICES, b"{}") * 24)
        self.assertEqual(self.codes(guest), [401] * 4)
        self.later()
        self.assertEqual(self.codes(guest), [401] * 20)

    def later(self) -> None:
        """Let some time pass, in small steps."""
        self.api.clock.pump([0.01] * 20)

    def test_whoIsKnownDoesNotWait(self) -> None:
        """However many unauthenticated clients send requests, a known client is answered at once."""
        known = self.known()
        guests = [self.connect(f"10.0.1.{n}") for n in range(3)]
        self.slow()
        for guest in guests:
            guest.send(requestBytes("GET", "/")[:10])
            guest.send(requestBytes("GET", "/")[10:])
        known.send(self.request())
        self.assertEqual(self.codes(known), [200])
        self.assertEqual([self.codes(each) for each in guests], [[404], [], []])
        self.later()
        self.assertEqual([self.codes(each) for each in guests], [[], [404], [404]])

    def test_waitingIsNotReading(self) -> None:
        """Not much more is read from a client in the queue; a client that hangs up leaves the queue."""
        first, second, third = (self.connect(f"10.0.1.{n}") for n in range(3))
        self.slow()
        for each in (first, second, third):
            each.send(requestBytes("GET", "/"))
        second.send(requestBytes("GET", "/") * 1000)
        self.assertEqual(second.transport.producerState, "paused")
        second.transport.loseConnection()
        self.later()
        self.assertEqual(self.codes(third), [404])
        self.assertEqual(third.transport.producerState, "producing")

    def test_theyHaveAThirdOfTheTime(self) -> None:
        """While unauthenticated clients are refused, they are served no more than a third of the time."""
        self.slow()
        refused = self.connect()
        for _ in range(400):
            refused.send(requestBytes("GET", "/"))
            self.api.clock.advance(1)
        guests = [self.connect(f"10.0.1.{n}") for n in range(3)]
        began = self.api.clock.seconds()
        answered = 0
        for _ in range(200):
            for each in guests:
                if each.transport.producerState == "producing":
                    each.send(requestBytes("GET", "/"))
            self.api.clock.advance(0.005)
            answered += sum(len(self.codes(each)) for each in guests)
        self.assertLess(answered * 0.02 / (self.api.clock.seconds() - began), 0.4)

    def test_whatComesMeanwhileKeepsNothingWaiting(self) -> None:
        """A request has its turn within a while, whatever comes every millisecond: bytes of requests, or whole ones."""
        queue, clock = self.api.site.connections.requests, self.api.clock

        def work() -> None:
            clock.rightNow += 0.001

        for _ in range(1000):
            queue.spend(lambda: None)
        for comes in (lambda: queue.spend(work), lambda: self.connect().send(requestBytes("GET", "/"))):
            for _ in range(3):
                queue.spend(work)
            waiting = self.connect("10.0.1.1")
            waiting.send(requestBytes("GET", "/"))
            self.assertEqual(self.codes(waiting), [])
            for _ in range(150):
                comes()
                clock.advance(0.001)
            self.assertEqual(self.codes(waiting), [404])

    def test_manyKnownClientsAreNotKeptBack(self) -> None:
        """Clients that all show a token, as after a restart, are served without a pause."""
        self.slow()
        clients = [self.connect(f"10.0.1.{n}") for n in range(3)]
        for each in clients:
            each.send(self.request())
        self.assertEqual([self.codes(each) for each in clients], [[200]] * 3)

    def crowd(self) -> list[Connection]:
        """Unauthenticated clients of one address, of which one has been answered and the others wait."""
        self.slow()
        guests = [self.connect() for _ in range(3)]
        for each in guests:
            each.send(requestBytes("GET", "/"))
        self.assertEqual(self.codes(guests[0]), [404])
        return guests[1:]

    def test_aTokenThatIsRememberedPasses(self) -> None:
        """A new connection with a token that was seen before does not wait for unauthenticated clients."""
        self.known("10.0.0.2")
        waiting = self.crowd()
        self.known()
        self.assertEqual([self.codes(each) for each in waiting], [[], []])

    def login(self, **credentials: str) -> Connection:
        """A new connection that brings credentials, the body behind the head."""
        body = json.dumps({"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}}).encode()
        request = requestBytes("POST", "/v2.0/tokens", body)
        connection = self.connect("10.0.0.3")
        connection.send(request[: -len(body)])
        connection.send(request[-len(body) :])
        return connection

    def test_credentialsThatAreRememberedPass(self) -> None:
        """Nor does one that brings credentials which were right before."""
        waiting = self.crowd()
        self.assertEqual(self.codes(self.login(username="joe", apiKey="the-key-of-joe")), [200])
        self.assertEqual([self.codes(each) for each in waiting], [[], []])

    def test_credentialsThatAreNotRememberedWait(self) -> None:
        """Other credentials wait for their turn."""
        self.crowd()
        for credentials in ({"username": "joe", "apiKey": "wrong"}, {"username": "joe"}):
            login = self.login(**credentials)
            self.assertEqual(self.codes(login), [])
        self.later()
        self.assertEqual(self.codes(login), [400])

    def test_whatIsAnsweredLaterWaitsToo(self) -> None:
        """The work for a request after the store was asked for its token is done in the client's turn as well."""
        slow: list[Deferred[Any]] = [Deferred() for _ in range(3)]
        guests = [self.connect() for _ in range(3)]
        self.patch(self.api.identity, "userOf", lambda token: slow[int(token)])
        for number, each in enumerate(guests):
            each.send(requestBytes("GET", SERVICES, None, {"X-Auth-Token": str(number)}))
        send = self.api.requestLog.end

        def slowly(*args: Any) -> None:
            self.api.clock.rightNow += 0.02
            send(*args)

        self.patch(self.api.requestLog, "end", slowly)
        for each in slow:
            each.errback(InvalidToken())
        self.api.clock.advance(0)
        self.assertEqual([self.codes(each) for each in guests], [[401], [], []])
        self.later()
        self.assertEqual([self.codes(each) for each in guests], [[], [401], [401]])

    def test_whoLeavesBeforeItsTurnComes(self) -> None:
        """A client that leaves then is counted as gone, and nothing is logged as an error."""
        asked: Deferred[Any] = Deferred()
        self.patch(self.api.identity, "userOf", lambda token: asked)
        guest = self.connect()
        guest.send(requestBytes("GET", "/v1.0/1234/events/stream", None, {"X-Auth-Token": "unknown"}))
        asked.errback(InvalidToken())
        guest.transport.loseConnection()
        self.later()
        self.assertEqual(self.api.requestLog.routes[(b"GET", STREAM)].codes, {GONE: 1})
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_aWholeRequestIsNotClosedUpon(self) -> None:
        """A request that waits for its turn is answered, however many connections come meanwhile."""
        waiting = self.crowd()
        for n in range(20):
            self.connect(f"10.0.2.{n}")
        self.assertOpen(*waiting)
        self.later()
        self.assertEqual([self.codes(each) for each in waiting], [[404], [404]])
