"""
Tests for :mod:`txserviceregistry.dns.server`, over a registry in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery import Directory
from txserviceregistry.dns import server
from txserviceregistry.dns.server import (
    ANSWERS_PER_SECOND,
    CONNECTIONS,
    IDLE,
    TcpConnection,
    TcpServer,
    UdpServer,
    View,
)
from txserviceregistry.dns.zone import Zone
from txserviceregistry.testing import FakeRegistry

from .standin import recordsOf, service
from .test_messages import isMalformed, strangePackets

LOCAL = ("127.0.0.1", 5353)


class _Datagrams:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.error: OSError | None = None

    def write(self, data: bytes, address: Any) -> None:
        """See IUDPTransport."""
        if self.error is not None:
            raise self.error
        self.sent.append((data, address))


class _Stream(StringTransportWithDisconnection):
    """A transport whose buffer can be full."""

    def abortConnection(self) -> None:
        self.loseConnection()


class _Directory(Service):
    """The part of a Directory that a view uses."""

    parent: Any

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()

    def onChange(self, listener: Callable[[str, Any], None]) -> Callable[[], None]:
        """See Directory."""
        self.tell = listener
        return lambda: None

    def whenReady(self) -> Deferred[None]:
        """See Directory."""
        return self.ready


class _Turns(Clock):
    """Calls without a delay come in the next turn, as a reactor makes them."""

    TURN = 0.001

    def callLater(self, delay: float, *arguments: Any, **more: Any) -> Any:
        """See IReactorTime."""
        return super().callLater(max(delay, self.TURN), *arguments, **more)


class ServerCase(SynchronousTestCase):
    """
    A view of a registry in memory, and queries.

    :ivar timer: the time that work on changes takes, a millisecond each time that it is looked at.
    """

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.timer = 0.0
        self.clock = _Turns()
        self.other = self.fake.client(cache=None)
        directory = Directory(self.fake.client(), refresh=10, random=lambda: 0.5)
        self.view = View(directory, Zone(dns.name.from_text("registry."), 5), self.fake.clock, timer=self.look)
        self.udp = UdpServer(self.view, self.clock)
        self.datagrams = _Datagrams()
        self.udp.transport = self.datagrams  # type: ignore[assignment]  # what is used of one

    def look(self) -> float:
        """Look at the time."""
        self.timer += 0.001
        return self.timer

    def start(self) -> None:
        """Start the view."""
        self.view.startService()
        self.addCleanup(lambda: self.successResultOf(self.view.stopService()))
        self.fake.flush()
        self.fake.advance(0.1)

    def register(self, id: str, host: str = "10.0.0.1") -> None:
        """Register a service with the tag ``www``."""
        payload = {"tags": ["www"], "metadata": {"host": host, "port": "80"}}
        self.successResultOf(self.other.services.create(id, 120, payload))

    def ask(self, name: str = "www.service.registry", type: str = "A", address: Any = LOCAL) -> dns.message.Message:
        """The response over UDP."""
        query = dns.message.make_query(name, type)
        self.udp.datagramReceived(query.to_wire(), address)
        ((data, to),) = self.datagrams.sent
        self.datagrams.sent.clear()
        self.assertEqual(to, address)
        response = dns.message.from_wire(data)
        self.assertTrue(query.is_response(response))
        return response

    def addresses(self) -> list[str]:
        """The addresses of ``www``."""
        return sorted(recordsOf(self.ask(), "A"))


class ViewTests(ServerCase):
    """The visible part of the registry."""

    def test_changes(self) -> None:
        """Services that join and leave are seen."""
        self.register("web1")
        self.start()
        self.assertEqual(self.addresses(), ["10.0.0.1"])
        self.register("web2", "10.0.0.2")
        self.fake.advance(0.1)
        self.assertEqual(self.addresses(), ["10.0.0.1", "10.0.0.2"])
        self.successResultOf(self.other.services.remove("web1"))
        self.fake.advance(0.1)
        self.assertEqual(self.addresses(), ["10.0.0.2"])

    def test_neverReached(self) -> None:
        """While the registry was never reached, queries are SERVFAIL; then they are answered, also without services."""
        self.fake.stop()
        self.start()
        self.assertEqual(self.ask().rcode(), dns.rcode.SERVFAIL)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual(self.ask().rcode(), dns.rcode.NXDOMAIN)

    def test_stale(self) -> None:
        """While the registry is unreachable, the last services are the answer."""
        self.register("web1")
        self.start()
        self.fake.stop()
        self.fake.advance(3600)
        self.assertEqual(self.addresses(), ["10.0.0.1"])

    def test_states(self) -> None:
        """A service that is drained leaves its tag and keeps its own name; one that is out leaves both."""
        self.register("web1")
        self.register("web2", "10.0.0.2")
        self.start()
        for state, own in (("drain", ["10.0.0.1"]), ("out", []), ("up", ["10.0.0.1"])):
            self.successResultOf(self.other.services.setState("web1", state))
            self.fake.advance(11)
            self.assertEqual(self.addresses(), ["10.0.0.2"] if state != "up" else ["10.0.0.1", "10.0.0.2"], state)
            self.assertEqual(recordsOf(self.ask("web1.id.registry"), "A"), own, state)

    def test_massExpiration(self) -> None:
        """When most services of a tag expire at once, they stay, until enough of them are registered again."""
        addresses = [f"10.0.0.{number}" for number in range(4)]
        for number, address in enumerate(addresses):
            self.register(f"web{number}", address)
        self.start()
        self.fake.advance(121)
        self.assertEqual(self.addresses(), addresses)
        for number, address in enumerate(addresses[:3]):
            self.register(f"web{number}", address)
        self.fake.advance(0.1)
        self.assertEqual(self.addresses(), addresses[:3])

    def test_slices(self) -> None:
        """Many changes are applied in slices of time, between which queries are answered."""
        directory = _Directory()
        self.udp = UdpServer(View(directory, self.view.zone, self.clock, timer=self.look), self.clock)  # type: ignore[arg-type]
        self.udp.transport = self.datagrams  # type: ignore[assignment]  # what is used of one
        directory.parent.startService()
        for number in range(1000):
            directory.tell("join", service(f"web{number}"))
        directory.tell("remove", service("web0"))
        directory.ready.callback(None)
        slices = []
        while self.ask("web1.id.registry").rcode() == dns.rcode.SERVFAIL:
            before = self.timer
            self.clock.advance(_Turns.TURN)
            slices.append(self.timer - before)
        self.assertGreater(len(slices), 20)
        self.assertLessEqual(max(slices), 0.0051)
        self.assertEqual(len(recordsOf(self.ask("web999.id.registry"), "A")), 1)
        self.assertEqual(self.ask("web0.id.registry").rcode(), dns.rcode.NXDOMAIN)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Nothing is left on the reactor when it has stopped, also with changes to be applied."""
        self.register("web1")
        self.view.startService()
        self.fake.flush()
        self.successResultOf(self.view.stopService())


class UdpTests(ServerCase):
    """Queries over UDP."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(40):
            self.register(f"web{number}", f"10.0.0.{number}")
        self.start()

    def test_size(self) -> None:
        """A response has at most 512 bytes, or what EDNS says."""
        response = self.ask()
        self.assertTrue(response.flags & dns.flags.TC)
        self.assertTrue(20 < len(recordsOf(response, "A")) < 40)

    def test_limit(self) -> None:
        """A network that is not this machine gets 20 answers a second; further ones say only: use TCP."""
        for first, second in (("192.0.2.1", "192.0.2.99"), ("2001:db8::1", "2001:db8:0:ff::1")):
            for number in range(ANSWERS_PER_SECOND):
                self.assertTrue(self.ask(address=((first, second)[number % 2], 1)).answer)
            response = self.ask(address=(first, 1))
            self.assertEqual((response.answer, bool(response.flags & dns.flags.TC)), ([], True))
        self.assertTrue(self.ask(address=("198.51.100.1", 1)).answer)
        self.clock.advance(1)
        self.assertTrue(self.ask(address=("192.0.2.1", 1)).answer)

    def test_noLimitHere(self) -> None:
        """Clients on this machine are not limited."""
        for address in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"):
            for _ in range(2 * ANSWERS_PER_SECOND):
                self.assertTrue(self.ask(address=(address, 1)).answer)

    def test_manyNetworks(self) -> None:
        """Of forged sources only a bounded number is remembered; the others are sent to TCP."""
        self.patch(server, "NETWORKS", 1000)
        for number in range(1000):
            self.udp.datagramReceived(b"\0" * 12, (f"10.{number >> 8}.{number & 255}.1", 1))
        self.datagrams.sent.clear()
        self.assertTrue(self.ask(address=("192.0.2.1", 1)).flags & dns.flags.TC)

    def test_unsendable(self) -> None:
        """A response that the system refuses to send is dropped."""
        self.datagrams.error = OSError(22, "Invalid argument")
        self.udp.datagramReceived(dns.message.make_query("www.service.registry", "A").to_wire(), ("192.0.2.1", 0))

    def test_strangePackets(self) -> None:
        """Random packets: malformed ones get FORMERR or nothing, and no network more than its limit."""
        outcomes: Counter[str] = Counter()
        for number, packet in enumerate(strangePackets(6_000, 1)):
            address = ("192.0.2.1" if number % 2 else "127.0.0.1", 1)
            self.udp.datagramReceived(packet, address)
            sent = b"".join(data for data, _ in self.datagrams.sent)
            self.datagrams.sent.clear()
            if not sent:
                outcomes["nothing"] += 1
                continue
            # dnspython reads each response, down to the last byte.
            response = dns.message.from_wire(sent)
            outcomes[dns.rcode.to_text(response.rcode())] += 1
            if isMalformed(packet):
                self.assertIn(response.rcode(), (dns.rcode.FORMERR, dns.rcode.NOTIMP), packet)
            if number % 2 and number > 2 * ANSWERS_PER_SECOND:
                self.assertLessEqual(len(sent), len(packet))
        for outcome in ("nothing", "NOERROR", "FORMERR", "REFUSED", "BADVERS", "NOTIMP"):
            self.assertGreater(outcomes[outcome], 30, outcomes)


class TcpTests(ServerCase):
    """Queries over TCP."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(40):
            self.register(f"web{number}", f"10.0.0.{number}")
        self.start()
        self.server = TcpServer(self.view, self.clock)

    def connect(self) -> tuple[TcpConnection, _Stream]:
        """A new connection."""
        connection: Any = self.server.buildProtocol(None)  # type: ignore[arg-type]  # no address is needed
        stream = _Stream()
        stream.protocol = connection
        connection.makeConnection(stream)
        return connection, stream

    def query(self, name: str = "www.service.registry") -> bytes:
        """A query with its length."""
        wire = dns.message.make_query(name, "A").to_wire()
        return len(wire).to_bytes(2, "big") + wire

    def responses(self, stream: _Stream) -> list[dns.message.Message]:
        """The messages that have come."""
        data, found = stream.value(), []
        stream.clear()
        while data:
            end = 2 + int.from_bytes(data[:2], "big")
            found.append(dns.message.from_wire(data[2:end]))
            data = data[end:]
        return found

    def test_whole(self) -> None:
        """A response over TCP has all records."""
        connection, stream = self.connect()
        connection.dataReceived(self.query())
        (response,) = self.responses(stream)
        self.assertEqual((len(response.answer[0]), response.flags & dns.flags.TC), (40, 0))

    def test_pieces(self) -> None:
        """Queries may come byte by byte, and many at once; they are answered in their order."""
        connection, stream = self.connect()
        for number in self.query():
            connection.dataReceived(bytes([number]))
        self.assertEqual(len(self.responses(stream)), 1)
        names = [f"web{number}.id.registry." for number in range(40)]
        connection.dataReceived(b"".join(map(self.query, names)))
        self.assertEqual([response.question[0].name.to_text() for response in self.responses(stream)], names)

    def test_idle(self) -> None:
        """A connection that brings no whole query is closed, also if bytes drip in."""
        for drips in (False, True):
            connection, stream = self.connect()
            connection.dataReceived(self.query())
            self.clock.advance(IDLE - 1)
            connection.dataReceived(self.query())
            self.clock.advance(IDLE - 1)
            self.assertTrue(stream.connected)
            if drips:
                connection.dataReceived(self.query()[:5])
            self.clock.advance(2)
            self.assertFalse(stream.connected)
        self.assertEqual(self.server.connections, {})

    def test_many(self) -> None:
        """For one connection too many, the one that has been idle longest is closed."""
        streams = [self.connect() for _ in range(CONNECTIONS)]
        streams[0][0].dataReceived(self.query())
        self.connect()
        self.assertEqual([stream.connected for _, stream in streams[:3]], [True, False, True])
        self.clock.advance(IDLE)

    def test_manyInOneTurn(self) -> None:
        """Each of several new connections takes another's place, though a connection is lost only in the next turn."""
        streams = [self.connect()[1] for _ in range(CONNECTIONS)]
        aborted: list[_Stream] = []
        self.patch(_Stream, "abortConnection", lambda stream: aborted.append(stream))
        for _ in range(3):
            self.connect()
        self.assertEqual(aborted, streams[:3])
        self.assertEqual(len(self.server.connections), CONNECTIONS)
        self.clock.advance(IDLE)

    def test_unread(self) -> None:
        """While a client does not read its responses, no query of it is answered."""
        connection, stream = self.connect()
        connection.pauseProducing()
        self.assertEqual(stream.producerState, "paused")
        connection.dataReceived(self.query() * 3)
        self.assertEqual(self.responses(stream), [])
        connection.resumeProducing()
        self.assertEqual((len(self.responses(stream)), stream.producerState), (3, "producing"))
        connection.pauseProducing()
        self.clock.advance(IDLE)
        self.assertFalse(stream.connected)

    def test_strangePackets(self) -> None:
        """Random messages over a connection are answered or not; the next query is."""
        connection, stream = self.connect()
        for packet in strangePackets(1000, 2):
            connection.dataReceived(len(packet).to_bytes(2, "big") + packet)
        self.responses(stream)
        connection.dataReceived(self.query())
        self.assertEqual(len(self.responses(stream)), 1)
        connection.stopProducing()
        stream.loseConnection()
