"""
Endpoints: connecting to a tag, and listening as a registered service.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, wrapClientTLS
from twisted.internet.error import CannotListenError, ConnectionRefusedError, NoProtocol, TimeoutError
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IListeningPort,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.server import Site
from twisted.web.static import Data
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.certificates import selfSigned
from tests.loopback import Call, LoopbackTestCase
from txserviceregistry.discovery.endpoints import RegisteredEndpoint, RegisteredPort, RegistryEndpoint
from txserviceregistry.errors import NoServiceAvailable
from txserviceregistry.testing import FakeRegistry

from .standin import FakeDirectory, service

IPV6 = "2001:db8::1"


class Recorder(Protocol):
    """A protocol that remembers what came."""

    def __init__(self) -> None:
        self.data = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason


class ConnectTests(SynchronousTestCase):
    """RegistryEndpoint, on a reactor in memory."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.directory = FakeDirectory(
            service("aaa", 1, host="10.0.0.1"), service("bbb", 2, host="10.0.0.2"), service("ccc", 3, host=IPV6)
        )
        self.factory = Factory.forProtocol(Recorder)
        self.factory.noisy = False

    def endpoint(self, **options: Any) -> RegistryEndpoint:
        return RegistryEndpoint(self.reactor, self.directory, "web", **{"random": lambda: 0.0, **options})

    def attempts(self) -> list[tuple[str, int]]:
        return [client[:2] for client in self.reactor.tcpClients]

    def refuse(self, number: int) -> None:
        factory, connector = self.reactor.tcpClients[number][2], self.reactor.connectors[number]
        factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))

    def accept(self, number: int) -> Any:
        protocol = self.reactor.tcpClients[number][2].buildProtocol(None)
        protocol.makeConnection(object())
        return protocol

    def test_eachConnectIsOneOfThem(self) -> None:
        """Each connect goes to the next one, and fires with the protocol of the factory that was given."""
        endpoint = self.endpoint()
        self.assertTrue(verifyObject(IStreamClientEndpoint, endpoint))
        for number, address in enumerate([("10.0.0.1", 1), ("10.0.0.2", 2), (IPV6, 3)]):
            connecting = endpoint.connect(self.factory)
            self.assertEqual(self.attempts()[number], address)
            wire = self.accept(number)
            protocol = self.successResultOf(connecting)
            assert isinstance(protocol, Recorder)
            wire.dataReceived(b"hello")
            self.assertEqual((protocol.data, wire.logPrefix()), (b"hello", "Recorder"))
            wire.connectionLost(Failure(connectionDone.value))
            self.assertIsNotNone(protocol.lost)

    def test_theNextOneIsTried(self) -> None:
        """If one refuses, or does not respond in time, the next one is tried, and that one is ejected."""
        endpoint = self.endpoint(timeout=7.0)
        connecting = endpoint.connect(self.factory)
        self.refuse(0)
        self.assertEqual(self.reactor.tcpClients[1][3], 7.0)
        factory, connector = self.reactor.tcpClients[1][2], self.reactor.connectors[1]
        factory.clientConnectionFailed(connector, Failure(TimeoutError()))
        self.accept(2)
        self.successResultOf(connecting)
        endpoint.connect(self.factory).addErrback(lambda _: None)
        self.assertEqual(self.attempts()[3], (IPV6, 3))

    def test_noInstanceAccepts(self) -> None:
        """
        If no instance can be connected to, the error is NoServiceAvailable, with each reason and the age of the
        directory.
        """
        self.directory.stale = 3.0
        connecting = self.endpoint().connect(self.factory)
        for number in range(3):
            self.refuse(number)
        text = str(self.failureResultOf(connecting, NoServiceAvailable).value)
        self.assertIn("(as of 3.0 s ago)", text)
        for where in ("aaa at 10.0.0.1:1", "bbb at 10.0.0.2:2", f"ccc at [{IPV6}]:3"):
            self.assertIn(f"{where}: Connection was refused", text)

    def test_aFactoryThatDoesNotWantTo(self) -> None:
        """If the factory refuses, no other instance is tried, and none is ejected."""

        class Unwilling(Factory):
            noisy = False

            def buildProtocol(self, addr: object) -> None:
                return None

        endpoint = self.endpoint(strategy="least-connections")
        connecting = endpoint.connect(Unwilling())
        self.reactor.tcpClients[0][2].buildProtocol(None)
        self.failureResultOf(connecting, NoProtocol)
        self.assertEqual(len(self.attempts()), 1)

    def test_cancelling(self) -> None:
        """A connect that is cancelled stops connecting."""
        connecting = self.endpoint().connect(self.factory)
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)
        self.assertTrue(self.reactor.connectors[0].stoppedConnecting)
        self.assertEqual(len(self.attempts()), 1)

    def test_leastConnections(self) -> None:
        """With ``least-connections`` it is the one with the fewest connections open, from here."""
        self.directory.remove("ccc")
        endpoint = self.endpoint(strategy="least-connections")
        first = endpoint.connect(self.factory)
        wire = self.accept(0)
        self.successResultOf(first)
        endpoint.connect(self.factory)
        self.accept(1)
        wire.connectionLost(Failure(connectionDone.value))
        endpoint.connect(self.factory)
        self.accept(2)
        self.assertEqual([port for _, port in self.attempts()], [1, 2, 1])

    def test_aProtocolThatIsUsedAgain(self) -> None:
        """The end of a connection counts once, also if the factory returns one protocol for several."""
        self.directory.remove("ccc")
        endpoint = self.endpoint(strategy="least-connections")
        same = Recorder()
        factory = Factory.forProtocol(lambda: same)
        factory.noisy = False
        for number, each in enumerate((factory, self.factory, factory)):
            endpoint.connect(each)
            wire = self.accept(number)
            if each is factory:
                wire.connectionLost(Failure(connectionDone.value))
        endpoint.connect(self.factory)
        self.assertEqual([port for _, port in self.attempts()], [1, 1, 2, 2])

    def test_whatAProtocolCan(self) -> None:
        """Rarely used parts of the protocol work here too."""

        @implementer(IHalfCloseableProtocol, IHandshakeListener)
        class Special:
            def __init__(self) -> None:
                self.called: list[str] = []

            def makeConnection(self, transport: object) -> None:
                self.called.append("made")

            def readConnectionLost(self) -> None:
                self.called.append("read")

            def writeConnectionLost(self) -> None:
                self.called.append("write")

            def handshakeCompleted(self) -> None:
                self.called.append("handshake")

            def fileDescriptorReceived(self, descriptor: int) -> None:
                self.called.append("descriptor")

            def connectionLost(self, reason: object) -> None:
                self.called.append("lost")

        connecting = self.endpoint().connect(Factory.forProtocol(Special))
        wire = self.accept(0)
        wire.readConnectionLost()
        wire.writeConnectionLost()
        wire.handshakeCompleted()
        wire._wrappedProtocol.fileDescriptorReceived(3)
        protocol: Any = self.successResultOf(connecting)
        self.assertEqual(protocol.called, ["made", "read", "write", "handshake", "descriptor"])
        self.assertEqual(wire.logPrefix(), "Special")
        self.assertTrue(IHalfCloseableProtocol.providedBy(wire._wrappedProtocol))
        self.assertTrue(IHandshakeListener.providedBy(wire._wrappedProtocol))


class TLSTests(LoopbackTestCase):
    """TLS on top of it."""

    async def test_wrapped(self) -> None:
        """Twisted's wrapClientTLS takes it as it takes any endpoint."""
        certificate, key = selfSigned("web")
        context = PrivateCertificate.loadPEM(certificate + key).options()

        def handle(call: Call) -> None:
            call.answer(200, b"hi", close=True)

        server = self.serve(handle, context)
        directory = FakeDirectory(service("aaa", int(server.url.rpartition(":")[2]), host="127.0.0.1"))
        options = optionsForClientTLS("127.0.0.1", Certificate.loadPEM(certificate))
        endpoint = wrapClientTLS(options, RegistryEndpoint(reactor, directory, "web"))
        protocol: Any = await endpoint.connect(Factory.forProtocol(Recorder))
        protocol.transport.write(b"GET / HTTP/1.1\r\n\r\n")
        await self.until(lambda: protocol.lost is not None)
        self.assertTrue(protocol.data.endswith(b"hi"))


@implementer(IListeningPort)
class FakePort:
    """A port that is somewhere, and can take its time to close."""

    def __init__(self, address: object) -> None:
        self.address = address
        self.started = 0
        self.closed: Deferred[None] | None = None

    def startListening(self) -> None:
        self.started += 1

    def getHost(self) -> object:
        return self.address

    def stopListening(self) -> Deferred[None]:
        self.closed = Deferred()
        return self.closed


@implementer(IStreamServerEndpoint)
class FakeServer:
    """An endpoint of that port."""

    def __init__(self, address: object) -> None:
        self.port = FakePort(address)

    def listen(self, protocolFactory: object) -> Deferred[FakePort]:
        return succeed(self.port)


class RegisteredTests(SynchronousTestCase):
    """RegisteredEndpoint, over a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.site = Site(Data(b"", "text/plain"))

    def listen(self, address: object, **options: Any) -> RegisteredPort:
        self.server = FakeServer(address)
        endpoint = RegisteredEndpoint(self.client, self.server, "web1", **options)
        self.assertTrue(verifyObject(IStreamServerEndpoint, endpoint))
        port = self.successResultOf(endpoint.listen(self.site))
        assert isinstance(port, RegisteredPort)
        self.assertTrue(verifyObject(IListeningPort, port))
        self.fake.advance(1)
        return port

    def services(self) -> list[Any]:
        result = self.client.services.list()
        self.fake.flush()
        return self.successResultOf(result)["values"]

    def metadata(self, address: object, **options: Any) -> dict[str, str]:
        port = self.listen(address, **options)
        [found] = self.services()
        stopping = port.stopListening()
        self.fake.advance(1)
        assert self.server.port.closed is not None
        self.server.port.closed.callback(None)
        self.successResultOf(stopping)
        metadata: dict[str, str] = found["metadata"]
        return metadata

    def test_saysWhereItListens(self) -> None:
        """The real port, and the host it is bound to; where it is bound to any, the address that the registry sees."""
        self.assertEqual(self.metadata(IPv4Address("TCP", "10.1.1.1", 81)), {"host": "10.1.1.1", "port": "81"})
        for anywhere in ("0.0.0.0", "::"):
            found = self.metadata(IPv4Address("TCP", anywhere, 81))
            self.assertEqual(found, {"host": "127.0.0.1", "port": "81"})

    def test_whatIsGivenStays(self) -> None:
        """A host and a port that are given are left as they are, whatever their keys."""
        address = IPv4Address("TCP", "10.1.1.1", 81)
        given = {"address": "web.example", "zone": "a"}
        self.assertEqual(self.metadata(address, metadata=given), {**given, "port": "81"})
        given = {"service.port": "443"}
        self.assertEqual(self.metadata(address, metadata=given), {**given, "host": "10.1.1.1"})

    def test_noPortAtAll(self) -> None:
        """On a UNIX socket there is nothing to say."""
        self.assertEqual(self.metadata(UNIXAddress("/run/web")), {})

    def test_keepsItRegistered(self) -> None:
        """As long as it listens, it is registered as what was said."""
        port = self.listen(IPv4Address("TCP", "10.1.1.1", 81), tags=["www"], heartbeatTimeout=10)
        self.fake.advance(60)
        [found] = self.services()
        self.assertEqual((found["id"], found["tags"], found["heartbeat_timeout"]), ("web1", ["www"], 10))
        self.assertEqual((port.service.state, port.getHost()), ("registered", self.server.port.address))
        port.startListening()
        self.assertEqual(self.server.port.started, 1)

    def test_leavesBeforeItCloses(self) -> None:
        """The service is removed first; then the port is closed, once, however often one says so."""
        port = self.listen(IPv4Address("TCP", "10.1.1.1", 81))
        self.fake.pause()
        stops = [port.stopListening() for _ in range(2)]
        self.fake.advance(1)
        self.assertIsNone(self.server.port.closed)
        self.fake.resume()
        self.fake.advance(1)
        closed = self.server.port.closed
        assert closed is not None
        self.assertEqual(self.services(), [])
        self.assertNoResult(stops[0])
        closed.callback(None)
        for stopping in stops:
            self.successResultOf(stopping)
        self.fake.advance(60)
        self.assertEqual(self.services(), [])

    def test_aRegistryThatDoesNotAnswer(self) -> None:
        """It is given three seconds; then the port is closed all the same."""
        port = self.listen(IPv4Address("TCP", "10.1.1.1", 81))
        self.fake.partition()
        port.stopListening()
        self.fake.advance(3.1)
        self.assertIsNotNone(self.server.port.closed)

    def test_whatNoRegistryTakesIsToldBeforeItListens(self) -> None:
        """Invalid tags are reported before a port is opened."""
        for options, error in (
            ({"tags": "www"}, TypeError),
            ({"metadata": {"a": 1}}, TypeError),
            ({"heartbeatTimeout": 1}, ValueError),
            ({"serviceId": "a"}, ValueError),
        ):
            self.assertRaises(
                error, RegisteredEndpoint, self.client, FakeServer(None), **{"serviceId": "web1", **options}
            )

    def test_aPortThatIsTaken(self) -> None:
        """If listening fails, that is the result, at once, and nothing is registered."""
        taken = FakeServer(None)
        taken.listen = lambda _: fail(CannotListenError("", 80, OSError()))  # type: ignore[method-assign]  # as a test may
        endpoint = RegisteredEndpoint(self.client, taken, "web1")
        self.failureResultOf(endpoint.listen(self.site), CannotListenError)
        self.fake.advance(1)
        self.assertEqual(self.services(), [])

    def test_aRealPort(self) -> None:
        """Port 0 becomes the port that it turned out to be."""
        memory = MemoryReactorClock()
        endpoint = RegisteredEndpoint(self.client, TCP4ServerEndpoint(memory, 0), "web1")
        self.successResultOf(endpoint.listen(self.site))
        self.fake.advance(1)
        [found] = self.services()
        self.assertEqual(found["metadata"]["port"], str(memory.tcpServers[0][0]))
