"""Tests for :mod:`txserviceregistry.registry.http.server`, on the wire and with real TLS."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests.certificates import commonHolder
from txserviceregistry.registry.http.server import HandshakingFactory

from ..wire import Api, parseReplies, requestBytes


@implementer(IOpenSSLServerConnectionCreator)
class Slow:
    """Makes connections of which each handshake takes a fiftieth of a second in every step."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._context = commonHolder().options().getContext()

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        shake = connection.do_handshake

        def slowly() -> None:
            self._api.clock.rightNow += 0.02
            shake()

        connection.do_handshake = slowly  # type: ignore[method-assign]  # the clock is a test's
        return connection


class _Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        """Twisted's channel asks for it."""


class TLSClient:
    """A TLS client without a socket."""

    transportClass = _Transport

    def __init__(self, factory: Any, host: str) -> None:
        self.transport = self.transportClass(peerAddress=IPv4Address("TCP", host, 50_000))
        self.server = factory.buildProtocol(None)
        self.server.makeConnection(self.transport)
        self.tls = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        self.tls.set_connect_state()
        self.received = b""

    @property
    def isShaken(self) -> bool:
        """Whether the server has done its part of the handshake."""
        return self.transport.value().startswith(b"\x16\x03")

    def begin(self) -> None:
        """Send the first message."""
        self._step(self.tls.do_handshake)

    def goOn(self) -> None:
        """Send the last message of the handshake."""
        self.receive()
        self._step(self.tls.do_handshake)

    def ask(self, data: bytes) -> None:
        """Send something."""
        self.receive()
        self._step(lambda: self.tls.send(data))
        self.receive()

    def _step(self, step: Any) -> None:
        try:
            step()
        except SSL.WantReadError:
            pass
        try:
            self.server.dataReceived(self.tls.bio_read(2**16))
        except SSL.WantReadError:
            pass

    def receive(self) -> None:
        """Take what the server has sent."""
        data = self.transport.value()
        self.transport.clear()
        if data:
            self.tls.bio_write(data)
            try:
                while True:
                    self.received += self.tls.recv(2**16)
            except SSL.WantReadError:
                pass


class _SocketTransport(_Transport):
    """A transport that can write at once, as one of TCP can, and says what it was given so."""

    dataBuffer = b""
    _tempDataLen = 0

    def writeSomeData(self, data: bytes) -> int:
        raise AssertionError(f"sent without TLS: {data!r}")


class StreamTests(SynchronousTestCase):
    """Event streams over TLS."""

    def test_events(self) -> None:
        """The events of a stream are encrypted, as all else is."""
        self.patch(TLSClient, "transportClass", _SocketTransport)
        api = Api()
        context = Slow(api)
        client = TLSClient(HandshakingFactory(context, False, api.site), "10.0.0.1")
        client.begin()
        client.goOn()
        api.clock.pump([0.1] * 5)
        client.ask(requestBytes("GET", "/v1.0/1234/events/stream", None, {"X-Auth-Token": api.token}))
        api.create("web1")
        api.clock.advance(0)
        client.receive()
        self.assertIn(b"event: service.join", client.received)


class HandshakeTests(SynchronousTestCase):
    """TLS handshakes wait for their turn."""

    def setUp(self) -> None:
        self.api = Api()
        self.factory = HandshakingFactory(Slow(self.api), False, self.api.site)
        # So many that it is plain that no client shows a token.
        for _ in range(1000):
            self.api.site.connections.handshakes.spend(lambda: None)

    def client(self, host: str = "10.0.0.1") -> TLSClient:
        client = TLSClient(self.factory, host)
        self.api.clock.pump([0.1] * 5)
        return client

    def test_oneAtATime(self) -> None:
        """Of many handshakes at once some go on and the others wait; as much time passes between them for others."""
        clients = [self.client() for _ in range(3)]
        for each in clients:
            each.begin()
        self.assertEqual([each.isShaken for each in clients], [True, False, False])
        self.assertEqual(clients[1].transport.producerState, "paused")
        self.api.clock.advance(0.03)
        self.assertEqual([each.isShaken for each in clients], [True, False, False])
        self.api.clock.advance(0.03)
        self.assertEqual([each.isShaken for each in clients], [True, True, False])
        self.assertEqual(clients[1].transport.producerState, "producing")

    def test_addressesTakeTurns(self) -> None:
        """A client does not wait for a hundred of another address."""
        crowd = [self.client("10.0.0.1") for _ in range(100)]
        victim = self.client("10.0.0.2")
        for each in (*crowd, victim):
            each.begin()
        self.api.clock.pump([0.01] * 20)
        self.assertTrue(victim.isShaken)
        self.assertLess(sum(each.isShaken for each in crowd), 10)

    def test_knownAddressesHaveAShare(self) -> None:
        """An address of clients that have authenticated does not wait for a hundred addresses."""
        self.api.site.connections.remember("10.0.1.1")
        crowd = [self.client(f"10.0.0.{number}") for number in range(100)]
        victim = self.client("10.0.1.1")
        for each in (*crowd, victim):
            each.begin()
        self.api.clock.pump([0.01] * 20)
        self.assertTrue(victim.isShaken)
        self.assertLess(sum(each.isShaken for each in crowd), 10)

    def test_theSecondStepIsSoon(self) -> None:
        """Once the server has signed, a client's handshake ends before the first steps of others at its address."""
        *crowd, client = (self.client() for _ in range(50))
        for each in (client, *crowd):
            each.begin()
        client.goOn()
        self.api.clock.pump([0.01] * 20)
        request = requestBytes("GET", "/v1.0/1234/limits", None, {"X-Auth-Token": self.api.token})
        client.ask(request)
        self.assertEqual([reply.code for reply in parseReplies(client.received)], [200])
        self.assertLess(sum(each.isShaken for each in crowd), 10)

    def test_secondStepsTakeNoMoreThanTheirShare(self) -> None:
        """Clients that send the second step of a handshake do not keep others from beginning theirs."""
        crowd = [self.client() for _ in range(20)]
        for each in crowd:
            each.begin()
        self.api.clock.pump([0.01] * 200)
        victim = self.client()
        for each in crowd:
            each.goOn()
        victim.begin()
        self.api.clock.pump([0.01] * 20)
        self.assertTrue(victim.isShaken)

    def test_afterwardsNothingWaits(self) -> None:
        """Requests over a connection with TLS do not wait for handshakes."""
        client, *others = (self.client() for _ in range(3))
        client.begin()
        client.goOn()
        self.api.clock.pump([0.01] * 20)
        request = requestBytes("GET", "/v1.0/1234/limits", None, {"X-Auth-Token": self.api.token})
        client.ask(request)
        self.assertEqual([reply.code for reply in parseReplies(client.received)], [200])
        for each in others:
            each.begin()
        self.assertEqual([each.isShaken for each in others], [True, False])
        client.received = b""
        client.ask(request)
        self.assertEqual([reply.code for reply in parseReplies(client.received)], [200])

    def test_clientsThatHangUpLeaveTheQueue(self) -> None:
        """A client that is gone costs no handshake."""
        clients = [self.client() for _ in range(3)]
        for each in clients:
            each.begin()
        clients[1].server.connectionLost()
        self.api.clock.pump([0.01] * 7)
        self.assertEqual([each.isShaken for each in clients], [True, False, True])
