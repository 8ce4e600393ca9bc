"""The server: its view of the services, queries over UDP and TCP, and the limits of what clients may take."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

from dns.rcode import NOERROR, SERVFAIL
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import DatagramProtocol, Factory, connectionDone
from twisted.protocols.basic import Int16StringReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from ..discovery import Directory
from ..discovery.directory import THRESHOLD, Suspects
from ..types import Service as ServiceRecord
from .zone import LARGEST_TCP, Query, Zone, readQuery

ANSWERS_PER_SECOND = 20  # answers a second to the clients of one network, over UDP
#: Connections over TCP. For another one, the one that has been idle longest is closed.
CONNECTIONS = 500
IDLE = 10.0  # seconds in which a connection has to bring a query
NETWORKS = 50_000  # so many networks in a second have counts of their own
SLICE = 0.003  # seconds of work on changes, after which queries are answered first


class View(MultiService):
    """Brings a zone up to date after changes of a directory, which becomes its child, in slices between queries."""

    def __init__(
        self,
        directory: Directory,
        zone: Zone,
        clock: IReactorTime,
        panicThreshold: float = THRESHOLD,
        whenReady: Callable[[], object] = lambda: None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        MultiService.__init__(self)
        self.zone = zone
        self._isListed = self._isReady = False
        self._directory = directory
        self._clock = clock
        self._whenReady = whenReady
        self._timer = timer
        # The last change of each service that the zone does not have yet.
        self._changes: dict[str, ServiceRecord | None] = {}
        self._call: IDelayedCall | None = None
        self._suspects = Suspects(directory, clock, panicThreshold)
        self._suspects.onChange(self._changed)
        Service.setServiceParent(directory, self)

    def startService(self) -> None:
        MultiService.startService(self)

        def listed(_: None) -> None:
            self._isListed = True
            self._schedule()

        self._directory.whenReady().addCallback(listed)

    def stopService(self) -> Deferred[None]:
        if self._call is not None:
            self._call.cancel()
            self._call = None
        stopped: Deferred[None] = MultiService.stopService(self)
        return stopped

    def respond(self, query: Query, size: int) -> bytes:
        """The response to a query, of at most *size* bytes."""
        if query.rcode != NOERROR:
            return query.empty(query.rcode)
        return self.zone.response(query, size) if self._isReady else query.empty(SERVFAIL)

    def _changed(self, kind: str, service: ServiceRecord) -> None:
        self._changes[service["id"]] = None if kind in ("remove", "timeout") else service
        self._schedule()

    def _schedule(self) -> None:
        if self._call is None and self.running:
            self._call = self._clock.callLater(0, self._apply)

    def _apply(self) -> None:
        self._call = None
        end = self._timer() + SLICE
        while self._changes and self._timer() < end:
            self.zone.put(*self._changes.popitem())
        if self._changes:
            self._schedule()
        elif self._isListed and not self._isReady:
            self._isReady = True
            self._whenReady()


def networkOf(address: str) -> str | bytes | None:
    """The network of a client, /24 or /56; ``None`` for this machine."""
    address = address.removeprefix("::ffff:")
    if ":" not in address:
        return None if address.startswith("127.") else address.rpartition(".")[0]
    raw = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return None if raw == socket.inet_pton(socket.AF_INET6, "::1") else raw[:7]


class UdpServer(DatagramProtocol):
    """Answers over UDP. Beyond a limited number, clients on other machines are told to ask over TCP."""

    def __init__(self, view: View, clock: IReactorTime) -> None:
        self._view = view
        self._clock = clock
        self._second = 0
        self._counts: dict[str | bytes | None, int] = {}

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        query = readQuery(datagram)
        if query is None:
            return
        network, second = networkOf(addr[0]), int(self._clock.seconds())
        if second != self._second:
            self._second = second
            self._counts.clear()
        count = self._counts.get(network, 0)
        if network is None or (count < ANSWERS_PER_SECOND and (count or len(self._counts) < NETWORKS)):
            response = self._view.respond(query, query.size)
            self._counts[network] = count + 1
        else:
            response = query.truncated() if query.rcode == NOERROR else b""
        try:
            if response:
                self.transport.write(response, addr)  # type: ignore[union-attr]  # there is one as long as this is called
        except OSError:
            # A forged source, such as port 0.
            pass


@implementer(IPushProducer)
class TcpConnection(Int16StringReceiver, TimeoutMixin):
    """Answers the queries of one connection in their order. While the client does not read, none is answered."""

    factory: TcpServer
    transport: Any

    def connectionMade(self) -> None:
        self.callLater = self.factory.clock.callLater  # type: ignore[method-assign,assignment]  # as TimeoutMixin wants it
        self.transport.registerProducer(self, True)
        TimeoutMixin.setTimeout(self, IDLE)
        connections = self.factory.connections
        connections[self] = None
        if len(connections) > CONNECTIONS:
            idlest = next(iter(connections))
            # Now, so that the next one takes another's place: the connection is lost only in the next turn.
            del connections[idlest]
            idlest.timeoutConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        TimeoutMixin.setTimeout(self, None)
        self.factory.connections.pop(self, None)

    def timeoutConnection(self) -> None:
        self.transport.abortConnection()

    def stringReceived(self, string: bytes) -> None:
        TimeoutMixin.resetTimeout(self)
        self.factory.connections[self] = self.factory.connections.pop(self)
        query = readQuery(string)
        if query is not None:
            Int16StringReceiver.sendString(self, self.factory.view.respond(query, LARGEST_TCP))


class TcpServer(Factory):
    noisy = False
    protocol = TcpConnection  # type: ignore[assignment]  # its factory is this one

    def __init__(self, view: View, clock: IReactorTime) -> None:
        self.view = view
        self.clock = clock
        # Those that are open, the one that has been idle longest first.
        self.connections: dict[TcpConnection, None] = {}
