"""The server: queries over UDP and TCP, and the limits of what clients may take."""

from __future__ import annotations

import socket
from typing import Any

from dns.rcode import NOERROR, SERVFAIL
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from .messages import LARGEST_TCP, Query, readQuery
from .view import View

#: Answers a second to the clients of one network, over UDP.
ANSWERS_PER_SECOND = 20
#: Connections over TCP. For another one, the one that has been idle longest is closed.
CONNECTIONS = 500
#: Seconds in which a connection has to bring a query.
IDLE = 10.0
#: So many networks in a second have counts of their own.
NETWORKS = 50_000


def networkOf(address: str) -> str | bytes | None:
    """The network of a client, /24 or /56; ``None`` for this machine."""
    address = address.removeprefix("::ffff:")
    if ":" not in address:
        return None if address.startswith("127.") else address.rpartition(".")[0]
    raw = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return None if raw == socket.inet_pton(socket.AF_INET6, "::1") else raw[:7]


def respond(view: View, query: Query, size: int) -> bytes:
    """The response to a query, of at most *size* bytes."""
    if query.rcode != NOERROR:
        return query.empty(query.rcode)
    if not view.isReady:
        return query.empty(SERVFAIL)
    return view.zone.response(query, size)


class UdpServer(DatagramProtocol):
    """
    Answers over UDP. Clients that are not on this machine get a limited number of answers; beyond, they are told to
    ask over TCP, by messages that are no larger than theirs.
    """

    def __init__(self, view: View, clock: IReactorTime) -> None:
        self._view = view
        self._clock = clock
        self._second = 0
        self._counts: dict[str | bytes, int] = {}

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """See DatagramProtocol."""
        query = readQuery(datagram)
        if query is None:
            return
        network = networkOf(addr[0])
        if network is not None and self._isTooMuch(network):
            response = query.truncated() if query.rcode == NOERROR else b""
        else:
            response = respond(self._view, query, query.size)
        try:
            if response:
                self.transport.write(response, addr)  # type: ignore[union-attr]  # there is one as long as this is called
        except OSError:
            # A forged source, such as port 0.
            pass

    def _isTooMuch(self, network: str | bytes) -> bool:
        second = int(self._clock.seconds())
        if second != self._second:
            self._second = second
            self._counts.clear()
        count = self._counts.get(network, 0)
        if count >= ANSWERS_PER_SECOND or (not count and len(self._counts) >= NETWORKS):
            return True
        self._counts[network] = count + 1
        return False


@implementer(IPushProducer)
class TcpConnection(Protocol, TimeoutMixin):
    """Answers the queries of one connection in their order. While the client does not read, none is answered."""

    factory: TcpServer
    transport: Any

    def __init__(self) -> None:
        self._received = b""
        self._isPaused = False

    def connectionMade(self) -> None:
        """See Protocol."""
        self.callLater = self.factory.clock.callLater  # type: ignore[method-assign,assignment]  # as TimeoutMixin wants it
        self.transport.registerProducer(self, True)
        TimeoutMixin.setTimeout(self, IDLE)
        self.factory.opened(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See Protocol."""
        TimeoutMixin.setTimeout(self, None)
        self.factory.connections.pop(self, None)

    def timeoutConnection(self) -> None:
        """See TimeoutMixin."""
        self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """See Protocol."""
        self._received += data
        self._answer()

    def _answer(self) -> None:
        received, position = self._received, 0
        while not self._isPaused:
            begin = position + 2
            end = begin + int.from_bytes(received[position:begin], "big")
            if len(received) < max(begin, end):
                break
            position = end
            self.factory.used(self)
            query = readQuery(received[begin:end])
            if query is not None:
                response = respond(self.factory.view, query, LARGEST_TCP)
                self.transport.write(len(response).to_bytes(2, "big") + response)
        self._received = received[position:]

    # -- IPushProducer

    def pauseProducing(self) -> None:
        """The client does not read."""
        self._isPaused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """The client has read."""
        self._isPaused = False
        self.transport.resumeProducing()
        self._answer()

    def stopProducing(self) -> None:
        """The connection is lost."""


class TcpServer(Factory):
    """
    Answers over TCP.

    :ivar connections: those that are open, the one that has been idle longest first.
    """

    noisy = False
    protocol = TcpConnection  # type: ignore[assignment]  # its factory is this one

    def __init__(self, view: View, clock: IReactorTime) -> None:
        self.view = view
        self.clock = clock
        self.connections: dict[TcpConnection, None] = {}

    def opened(self, connection: TcpConnection) -> None:
        """Make room for a new connection."""
        self.connections[connection] = None
        if len(self.connections) > CONNECTIONS:
            idlest = next(iter(self.connections))
            # Now, so that the next one takes another's place: the connection is lost only in the next turn.
            del self.connections[idlest]
            idlest.timeoutConnection()

    def used(self, connection: TcpConnection) -> None:
        """A connection has brought a query."""
        TimeoutMixin.resetTimeout(connection)
        del self.connections[connection]
        self.connections[connection] = None
