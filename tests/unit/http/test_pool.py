"""
Connections and the queue for them.
"""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakSet

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.error import ConnectionAborted, ConnectionRefusedError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, ResponseFailed, ResponseNeverReceived, readBody

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.http import messages, pool
from txserviceregistry.http.agent import describeFailure
from txserviceregistry.http.messages import BytesProducer, ResponseTooLarge
from txserviceregistry.http.pool import (
    HANGING,
    MOST_BESIDE,
    AgentClosed,
    ConnectionPool,
    QueueingAgent,
    StaleConnection,
)

from ...fakeagent import FakeAgent, answer
from ...loopback import Call, LoopbackTestCase, Server


class ConnectionTests(LoopbackTestCase):
    """Requests over real sockets."""

    def setUp(self) -> None:
        self.pool = ConnectionPool(reactor, 2)
        self.addCleanup(self.pool.close)
        self.agent = QueueingAgent(Agent(reactor, self.policy(), pool=self.pool), 2)

    def get(self, server: Server, path: str = "/") -> Deferred[Any]:
        return self.agent.request(b"GET", (server.url + path).encode())

    def post(self, server: Server, path: str = "/") -> Deferred[Any]:
        return self.agent.request(b"POST", (server.url + path).encode(), None, BytesProducer(b"{}"))

    async def test_opensNoMoreConnectionsThanAllowed(self) -> None:
        """However many requests come at once, two connections serve them all."""
        server = self.serve(lambda call: call.answer(200, {"path": call.path}))
        responses = await gatherResults([self.get(server, f"/{n}") for n in range(50)])
        self.assertEqual(len(responses), 50)
        self.assertEqual((server.opened, server.mostOpen), (2, 2))

    async def test_aHangingServerHoldsOnlyItsOwnSlots(self) -> None:
        """Requests that wait for one server do not keep others from another."""
        hanging, well = self.serve(lambda call: None), self.serve(lambda call: call.answer(204))
        stuck = [self.get(hanging) for _ in range(3)]
        self.assertEqual((await self.get(well)).code, 204)
        await self.until(lambda: len(hanging.calls) == 2)
        self.agent.close()
        for waiting in stuck:
            self.failureResultOf(waiting, AgentClosed)

    async def test_cancellingClosesTheConnectionAndFreesTheSlot(self) -> None:
        """A request that hangs, and one whose body stalls, are over when cancelled: socket closed, slot free."""

        def handler(call: Call) -> None:
            if call.path == "/body":
                call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            elif call.path != "/silence":
                call.answer(200, b"fine")

        server = self.serve(handler)
        silence, stalled = self.get(server, "/silence"), self.get(server, "/body")
        third = self.get(server, "/third")
        await self.until(lambda: len(server.calls) == 2)
        # The head of the answer has to have arrived for the body to be what stalls.
        await self.until(lambda: len(server.open) == 2)
        silence.cancel()
        stalled.cancel()
        self.failureResultOf(silence, CancelledError)
        self.failureResultOf(stalled, CancelledError)
        self.assertEqual((await third).body, b"fine")
        await self.until(lambda: len(server.open) == 1)

    async def test_cancellingABodyClosesTheConnection(self) -> None:
        """Cancelling when the head of the answer is there, and its body is not, closes the socket."""
        server = self.serve(lambda call: call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"))
        seen: list[Any] = []
        inner = Agent(reactor, self.policy(), pool=self.pool)

        class Watching:
            def request(self, *args: Any) -> Any:
                return inner.request(*args)

        original = messages._Body.connectionMade
        self.patch(messages._Body, "connectionMade", lambda body: (seen.append(body), original(body))[1])
        stalled = QueueingAgent(Watching()).request(b"GET", server.url.encode())
        await self.until(lambda: seen)
        stalled.cancel()
        self.failureResultOf(stalled, CancelledError)
        await self.until(lambda: not server.open)

    async def test_staleConnectionIsTold(self) -> None:
        """A request on a pooled connection that the server closes without a byte of answer fails as stale."""
        server = self.serve(lambda call: call.answer() if call.nth == 1 else call.hangUp())
        await self.post(server)
        with self.assertRaises(StaleConnection):
            await self.post(server)
        await self.post(server)
        self.assertEqual(server.opened, 2)

    async def test_aNewConnectionIsNeverStale(self) -> None:
        """A server that hangs up on a new connection has had its chance: that is no stale connection."""
        server = self.serve(lambda call: call.hangUp())
        with self.assertRaises(ResponseNeverReceived) as caught:
            await self.post(server)
        self.assertNotIsInstance(caught.exception, StaleConnection)

    async def test_cutBodyFails(self) -> None:
        """A body that ends early is a failure, not a shorter body."""

        def handler(call: Call) -> None:
            call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
            call.hangUp()

        with self.assertRaises(ResponseFailed):
            await self.get(self.serve(handler))

    async def test_bodyWithoutLengthEndsWithTheConnection(self) -> None:
        """An answer in the old style, without a length, is taken as it is when the connection ends."""

        def handler(call: Call) -> None:
            call.raw(b"HTTP/1.0 200 OK\r\n\r\nall of it")
            call.hangUp()

        self.assertEqual((await self.get(self.serve(handler))).body, b"all of it")

    async def test_tooLargeBodiesAreRefused(self) -> None:
        """A body longer than any answer of the API ends the request, announced or not, and the connection."""
        self.patch(messages, "MAX_BODY", 10)

        def handler(call: Call) -> None:
            if call.path == "/announced":
                call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n12345678901")
            else:
                call.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n123456\r\n")

        server = self.serve(handler)
        for path in "/announced", "/chunks":
            with self.assertRaises(ResponseTooLarge):
                await self.get(server, path)
        await self.until(lambda: not server.open)

    async def test_tooLongHeadersAreRefused(self) -> None:
        """Headers longer than those of any server end the request and the connection; interim responses count."""
        begins = {
            "/lines": b"HTTP/1.1 200 OK\r\n" + b"X-Some: header\r\n" * 15_000,
            "/continued": b"HTTP/1.1 200 OK\r\nX-Some: header\r\n" + b" and more\r\n" * 20_000,
            "/interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000 + b"HTTP/1.1 200 OK\r\n",
        }
        server = self.serve(lambda call: call.raw(begins[call.path] + b"Content-Length: 0\r\n\r\n"))
        for path in begins:
            with self.assertRaises(ResponseFailed) as caught:
                await self.get(server, path)
            self.assertIn("more than 65536 bytes of headers", describeFailure(caught.exception))
        await self.until(lambda: not server.open)

    async def test_aLongBodyDoesNotCountAsTheNextHeaders(self) -> None:
        """A request that is sent when the response before it ends, on the same connection, may have its own headers."""
        self.patch(pool, "MAX_HEADERS", 200)
        server = self.serve(lambda call: call.answer(200, b"x" * 1000))
        first = self.get(server)
        second = first.addCallback(lambda response: self.get(server))
        self.assertEqual(len((await second).body), 1000)
        self.assertEqual(server.opened, 1)

    async def test_localAddressIsThatOfAConnection(self) -> None:
        """
        The pool tells under which address this machine reaches a server, as soon as there was a connection; also while
        that is in use, or when it is lost.
        """
        server = self.serve(lambda call: None)
        self.assertIsNone(self.pool.localAddress(server.url))
        asked = self.get(server)
        await self.until(lambda: server.calls)
        self.assertEqual(self.pool.localAddress(server.url + "/v1.0"), "127.0.0.1")
        self.assertIsNone(self.pool.localAddress("http://127.0.0.1:1/"))
        server.calls[0].answer()
        await asked
        server.open[0].transport.loseConnection()
        await self.until(lambda: not server.open)
        self.assertEqual(self.pool.localAddress(server.url), "127.0.0.1")

    async def test_closedPoolHasNoConnections(self) -> None:
        """When close() has fired, no socket is left."""
        server = self.serve(lambda call: call.answer())
        await gatherResults([self.get(server), self.get(server)])
        await self.pool.close()
        await self.until(lambda: not server.open)

    async def test_lostConnectionsAreForgotten(self) -> None:
        """A client that connects again and again does not fill the memory."""
        collectOnlyNew(self)
        server = self.serve(lambda call: call.hangUp())
        connections: WeakSet[Any] = WeakSet()
        connect = self.pool.getConnection

        def noted(*args: Any) -> Any:
            return connect(*args).addCallback(lambda connection: (connections.add(connection), connection)[1])

        self.patch(self.pool, "getConnection", noted)
        for _ in range(20):
            with self.assertRaises(ResponseNeverReceived):
                await self.get(server)
        gc.collect()
        self.assertEqual(server.opened, 20)
        self.assertLess(len(connections), 5)

    async def test_idleConnectionsAreClosedInTime(self) -> None:
        """An idle connection is closed by us, before a server would do it under a request."""
        self.patch(ConnectionPool, "cachedConnectionTimeout", 0.01)
        server = self.serve(lambda call: call.answer())
        await self.get(server)
        await self.until(lambda: not server.open)


class PoolTests(SynchronousTestCase):
    """The pool, without sockets."""

    def test_aPeerThatDoesNotAnswerTheEndIsCutOff(self) -> None:
        """Closing does not wait for the other side, which may not take part in ending its TLS."""

        class MuteTransport(StringTransport):
            def loseConnection(self) -> None:
                """The orderly end never comes."""

            def abortConnection(self) -> None:
                self.protocol.connectionLost(Failure(ConnectionAborted()))

        class MuteEndpoint:
            def connect(self, factory: Factory) -> Deferred[Any]:
                transport = MuteTransport()
                transport.protocol = factory.buildProtocol(None)
                transport.protocol.makeConnection(transport)
                return succeed(transport.protocol)

        clock = Clock()
        pool = ConnectionPool(clock, 2)
        self.successResultOf(pool.getConnection((b"http", b"a", 80), MuteEndpoint()))
        self.successResultOf(pool.close())
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_tellsWhenTheLocalAddressChanges(self) -> None:
        """A listener is called for each server's first connection, and for one that has another address."""

        class Endpoint:
            def __init__(self, address: str) -> None:
                self.address = address

            def connect(self, factory: Factory) -> Deferred[Any]:
                protocol = factory.buildProtocol(None)
                protocol.makeConnection(StringTransport(hostAddress=IPv4Address("TCP", self.address, 1)))
                return succeed(protocol)

        pool = ConnectionPool(Clock(), 2)
        told: list[tuple[str, str]] = []
        end = pool.onLocalAddress(lambda url, address: told.append((url, address)))
        for host, address in (
            (b"a.example", "10.0.0.1"),
            (b"a.example", "10.0.0.1"),
            (b"2001:db8::1", "10.0.0.1"),
            (b"a.example", "10.9.9.9"),
        ):
            self.successResultOf(pool.getConnection((b"http", host, 8880), Endpoint(address)))
        self.assertEqual(
            told,
            [
                ("http://a.example:8880/", "10.0.0.1"),
                ("http://[2001:db8::1]:8880/", "10.0.0.1"),
                ("http://a.example:8880/", "10.9.9.9"),
            ],
        )
        end()
        self.successResultOf(pool.getConnection((b"http", b"a.example", 8880), Endpoint("10.8.8.8")))
        self.assertEqual(len(told), 3)


class QueueTests(SynchronousTestCase):
    """The queue, over an agent that the test answers for."""

    def setUp(self) -> None:
        self.inner = FakeAgent()
        self.agent = QueueingAgent(self.inner, 2)

    def get(self, url: str) -> Deferred[Any]:
        return self.agent.request(b"GET", url.encode())

    def test_firstComeFirstServed(self) -> None:
        """Requests that wait are sent in the order in which they came, whichever slot becomes free."""
        requests = [self.get(f"http://a/{n}") for n in range(6)]
        for place in (1, 0, 3, 2, 4, 5):
            self.inner.pending[place].callback(answer(200))
        self.assertEqual(self.inner.asked, [f"GET http://a/{n}" for n in range(6)])
        for request in requests:
            self.successResultOf(request)

    def test_urgentOnesGoBesideThoseThatHang(self) -> None:
        """Those that have had no answer for a while hold no others up, but only so many go beside them."""
        clock = Clock()
        self.agent = QueueingAgent(self.inner, 2, clock=clock)
        self.get("http://a/1").addErrback(lambda _: None)
        clock.advance(0.2)
        for number in (2, 3, 4, 5):
            self.get(f"http://a/{number}").addErrback(lambda _: None)
        self.assertEqual(self.inner.asked, ["GET http://a/1", "GET http://a/2"])
        clock.advance(HANGING - 0.19)
        # One of the two may hang by now.
        self.assertEqual(self.inner.asked[2:], ["GET http://a/3"])
        clock.advance(0.2)
        self.assertEqual(self.inner.asked[3:], ["GET http://a/4"])
        for number in range(20):
            self.get(f"http://a/more-{number}").addErrback(lambda _: None)
        clock.pump([0.1] * 100)
        self.assertEqual(len(self.inner.asked), 2 + MOST_BESIDE)
        self.inner.pending[0].callback(answer(200))
        clock.advance(HANGING)
        self.assertEqual(len(self.inner.asked), 2 + MOST_BESIDE)
        self.agent.close()
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_twoAgentsShareTheirSlots(self) -> None:
        """Requests through either wait for each other."""
        other = QueueingAgent(self.inner, 2, slots=self.agent.slots)
        for number, agent in enumerate((self.agent, other, self.agent, other)):
            agent.request(b"GET", f"http://a/{number}".encode())
        self.assertEqual(len(self.inner.asked), 2)
        self.inner.pending[0].callback(answer(200))
        self.assertEqual(self.inner.asked[2:], ["GET http://a/2"])

    def test_cancelledInTheQueueIsNeverSent(self) -> None:
        """A request that is cancelled while it waits never reaches the server, and the next one is served."""
        requests = [self.get(f"http://a/{n}") for n in range(4)]
        requests[2].cancel()
        self.failureResultOf(requests[2], CancelledError)
        self.inner.pending[0].callback(answer(200))
        self.assertEqual(self.inner.asked, ["GET http://a/0", "GET http://a/1", "GET http://a/3"])

    def test_cancelledWhileConnectingIsACancel(self) -> None:
        """With any result of a cancelled agent, the caller sees a CancelledError."""
        self.inner.handler = lambda sent: Deferred(lambda d: d.errback(ConnectionRefusedError()))
        request = self.get("http://a/")
        request.cancel()
        self.failureResultOf(request, CancelledError)

    def test_theSlotIsFreeOnlyWhenTheConnectionIsGone(self) -> None:
        """A cancelled request fails at once, but its connection counts until it is closed."""
        closing: list[Deferred[Any]] = []

        def slow(sent: Any) -> Deferred[Any]:
            closing.append(Deferred())
            return Deferred().addErrback(lambda _, end=closing[-1]: end)

        self.inner.handler = slow
        first, _, third = (self.get(f"http://a/{n}") for n in range(3))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(len(self.inner.sent), 2)
        closing[0].callback(answer(200))
        self.assertEqual(len(self.inner.sent), 3)
        self.assertNoResult(third)

    def test_failuresFreeTheSlot(self) -> None:
        """A request that fails, or an agent that raises, does not hold a slot."""

        def refuse(sent: Any) -> Any:
            if "raise" in sent.url:
                raise ValueError("no such URL")
            return ConnectionRefusedError()

        self.inner.handler = refuse
        for _ in range(5):
            self.failureResultOf(self.get("http://a/raise"), ValueError)
            self.failureResultOf(self.get("http://a/"), ConnectionRefusedError)

    def test_answersThatAreThereAtOnceDoNotNest(self) -> None:
        """Thousands of queued requests that are answered at once do not exhaust the stack."""
        hanging = [self.get("http://a/") for _ in range(2)]
        self.inner.handler = lambda sent: answer(200)
        queued = [self.get("http://a/") for _ in range(3000)]
        self.inner.pending[0].callback(answer(200))
        for request in queued:
            self.successResultOf(request)
        self.assertNoResult(hanging[1])

    def test_closingEndsAll(self) -> None:
        """close() fails what is under way, what waits, and what comes after it; once."""
        requests = [self.get("http://a/") for _ in range(4)]
        requests[0].cancel()
        self.failureResultOf(requests[0], CancelledError)
        self.agent.close()
        self.agent.close()
        for request in requests[1:]:
            self.failureResultOf(request, AgentClosed)
        self.failureResultOf(self.get("http://a/"), AgentClosed)
        self.assertEqual(len(self.inner.sent), 3)

    def test_wholeResponsesAreDeliveredAsOftenAsAskedFor(self) -> None:
        """A response through the queue works with whatever reads bodies from responses."""
        self.inner.handler = lambda sent: answer(200, b"the body")
        response = self.successResultOf(self.get("http://a/"))
        self.assertEqual(self.successResultOf(readBody(response)), b"the body")
        self.assertEqual(self.successResultOf(readBody(response)), b"the body")
        response.setPreviousResponse(response)
        self.assertIs(response.previousResponse, response)

    def test_bodiesOfOtherAgentsAreCancelled(self) -> None:
        """Over an agent that is not ours, a stalled body is ended by its transport."""
        ended: list[str] = []
        transport = type("Transport", (), {"loseConnection": lambda _: ended.append("lost")})()
        stalling = {**vars(answer(200)), "length": 5, "deliverBody": lambda _, body: body.makeConnection(transport)}
        self.inner.handler = lambda sent: type("Stalling", (), stalling)()
        request = self.get("http://a/")
        request.cancel()
        self.failureResultOf(request, CancelledError)
        self.assertEqual(ended, ["lost"])

    def test_producersOfBytesCanBeSentAgain(self) -> None:
        """A body in memory is the same the second time, and pausing it does no harm."""

        class Consumer:
            data = b""

            def write(self, data: bytes) -> None:
                self.data += data

        consumer, producer = Consumer(), BytesProducer(b"ab")
        producer.pauseProducing()
        producer.resumeProducing()
        for _ in range(2):
            self.successResultOf(producer.startProducing(consumer))
        producer.stopProducing()
        self.assertEqual((producer.length, consumer.data), (2, b"abab"))
