"""
Connecting to hosts: what is refused is known soon.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError, DNSLookupError
from twisted.internet.interfaces import IAddress, IHostnameResolver, IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from zope.interface import implementer

from txserviceregistry.http.agent import ATTEMPT_DELAY, endpointTo
from txserviceregistry.http.messages import BytesProducer, FixedHeaders
from txserviceregistry.http.pool import ConnectionPool, PooledAgent

from ...loopback import PATIENCE, LoopbackTestCase

SIX, FOUR, OTHER = IPv6Address("TCP", "2001:db8::1", 80), IPv4Address("TCP", "192.0.2.1", 80), "192.0.2.2"


@implementer(IHostnameResolver)
class Names:
    """Knows the addresses of each name."""

    def __init__(self, known: dict[str, list[IAddress]]) -> None:
        self._known = known

    def resolveHostName(self, receiver: Any, name: str, portNumber: int = 0, *rest: Any) -> Any:
        """See IHostnameResolver."""
        receiver.resolutionBegan(None)
        for address in self._known.get(name, []):
            receiver.addressResolved(address)
        receiver.resolutionComplete()


class ConnectingTestCase(SynchronousTestCase):
    """A reactor in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = Names({"both": [SIX, FOUR], "one": [FOUR]})

    def connect(self, host: str) -> Deferred[IProtocol]:
        return endpointTo(self.reactor, host, 80, 5.0).connect(Factory.forProtocol(Protocol))

    @property
    def asked(self) -> list[str]:
        """The addresses that it has tried to connect to."""
        return [host for host, *_ in self.reactor.tcpClients]

    def refuse(self, number: int) -> None:
        """Refuse one of the attempts."""
        factory = self.reactor.tcpClients[number][2]
        factory.clientConnectionFailed(self.reactor.connectors[number], Failure(ConnectionRefusedError()))

    def accept(self, number: int) -> None:
        """Let one of the attempts succeed."""
        factory = self.reactor.tcpClients[number][2]
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        protocol.makeConnection(StringTransport())


class EndpointTests(ConnectingTestCase):
    """One host, by address and by name."""

    def test_anAddressThatRefusesFailsAtOnce(self) -> None:
        """Without a moment of waiting, and with nothing left on the reactor."""
        for host in ("192.0.2.1", "2001:db8::1"):
            connecting = self.connect(host)
            self.refuse(-1)
            self.failureResultOf(connecting, ConnectionRefusedError)
        self.assertEqual(self.asked, ["192.0.2.1", "2001:db8::1"])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_aNameThatRefusesFailsSoon(self) -> None:
        """When all of its addresses have refused."""
        connecting = self.connect("both")
        self.refuse(0)
        self.assertNoResult(connecting)
        self.reactor.advance(ATTEMPT_DELAY)
        self.assertEqual(self.asked, ["2001:db8::1", "192.0.2.1"])
        self.refuse(1)
        self.reactor.advance(ATTEMPT_DELAY)
        self.failureResultOf(connecting, ConnectionRefusedError)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_aNameWithASilentAddress(self) -> None:
        """The next one is tried beside it, and the first that accepts is taken."""
        connecting = self.connect("both")
        self.reactor.advance(ATTEMPT_DELAY)
        self.accept(1)
        self.assertIsInstance(self.successResultOf(connecting), Protocol)
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_anUnknownName(self) -> None:
        """It is told as such."""
        self.failureResultOf(self.connect("none"), DNSLookupError)


class Wire(StringTransport):
    """A transport as HTTP wants one."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """There are no packets."""


class AgentTests(ConnectingTestCase):
    """Requests."""

    def setUp(self) -> None:
        super().setUp()
        pool = HTTPConnectionPool(self.reactor, persistent=False)
        self.agent = PooledAgent(self.reactor, BrowserLikePolicyForHTTPS(), 5.0, pool)

    def test_hosts(self) -> None:
        """Names, addresses, and addresses of IPv6 in their brackets."""
        for uri in (b"http://one:81/", b"http://192.0.2.2/", b"http://[2001:db8::1]:82/", b"https://one/"):
            self.agent.request(b"GET", uri).addErrback(lambda _: None)
        places = [(host, port) for host, port, *_ in self.reactor.tcpClients]
        self.assertEqual(places, [("192.0.2.1", 80), (OTHER, 80), ("2001:db8::1", 82), ("192.0.2.1", 80)])

    def test_secrecy(self) -> None:
        """A request to an https URL is TLS, and one to an http URL is not."""
        sent = []
        for uri in (b"http://192.0.2.1/", b"https://192.0.2.1/"):
            asking = self.agent.request(b"GET", uri)
            transport = Wire()
            protocol = self.reactor.tcpClients[-1][2].buildProtocol(FOUR)
            assert protocol is not None
            protocol.makeConnection(transport)
            sent.append(transport.value()[:3])
            asking.cancel()
            self.failureResultOf(asking, CancelledError, ResponseNeverReceived)
        self.assertEqual(sent[0], b"GET")
        # A handshake record of TLS.
        self.assertEqual(sent[1][:2], b"\x16\x03")

    def test_otherSchemesAreRefused(self) -> None:
        """As Twisted's own agent refuses them."""
        self.failureResultOf(self.agent.request(b"GET", b"gopher://one/"), SchemeNotSupported)


class LeanRequestTests(LoopbackTestCase):
    """Requests whose headers were made beforehand, over real sockets."""

    def setUp(self) -> None:
        self.pool = ConnectionPool(reactor, 1)
        self.addCleanup(self.pool.close)
        self.agent = PooledAgent(reactor, self.policy(), PATIENCE, self.pool)
        self.server = self.serve(lambda call: call.answer(200, {"path": call.path}))

    async def test_arriveAsTwistedSendsThem(self) -> None:
        """A request arrives, word for word, as Twisted's own agent sends it, and over the same connection."""
        url = self.server.url.encode("ascii")
        headers = {b"Host": [url.partition(b"//")[2]], b"X-Some": [b"a", b"b"]}
        for method, path, body in (
            (b"GET", b"/", None),
            (b"GET", b"/a/%2F?b=c&d=/", None),
            (b"DELETE", b"/a", None),
            (b"POST", b"/a", None),
            (b"POST", b"/a", BytesProducer(b"{}")),
            (b"PUT", b"/a", BytesProducer(b"")),
        ):
            for kind in (Headers, FixedHeaders):
                answer = await self.agent.request(method, url + path, kind(headers), body)
                self.assertEqual((answer.code, answer.request.method), (200, method))
                self.assertEqual(answer.request.absoluteURI, url + path)
            one, other = self.server.calls[-2:]
            self.assertEqual((other.method, other.path, other.body), (one.method, one.path, one.body))
            self.assertEqual(other.headers, one.headers)
        self.assertEqual(self.server.opened, 1)

    async def test_whatIsNotAURIIsNotSent(self) -> None:
        """Nothing gets into a request that would make two of it."""
        headers = FixedHeaders({b"Host": [b"a"]})
        for path in (b"/a b", b"/a\r\nX: b", "/ä".encode()):
            with self.assertRaises(ValueError):
                await self.agent.request(b"GET", self.server.url.encode("ascii") + path, headers)
        self.failureResultOf(self.agent.request(b"GET", b"ftp://a/b", headers), SchemeNotSupported)
        self.assertEqual(self.server.calls, [])
