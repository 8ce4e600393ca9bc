"""The site: serves the API to real connections, and paces how they are accepted and how TLS handshakes go on."""

from __future__ import annotations

from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web import server

from ..limits import Origin
from .admission import Admission, AdmissionQueue
from .channel import ApiChannel, ApiRequest
from .connections import ConnectionLimits, Connections, peerOf
from .resource import ApiResource

#: How many connections a listener accepts in one turn of the reactor.
ACCEPTS = 10

# The share of an address is divided evenly between the first steps of handshakes and the later ones: a client that the
# server has signed for does not wait for all that have just connected.
_FIRST, _LATER = range(2)


class ApiSite(server.Site):
    """Serves the API to real connections: one resource to every path."""

    protocol = ApiChannel  # type: ignore[assignment]  # Twisted names a private wrapper that switches to HTTP/2
    requestFactory = ApiRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        resource: ApiResource,
        reactor: IReactorTime,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is immutable)
    ) -> None:
        server.Site.__init__(self, resource, reactor=reactor, timeout=None, parsePOSTFormSubmission=False)
        self.admission = Admission(reactor)
        self.connections = Connections(limits, reactor, self.admission.stop)
        self._ports: list[Any] = []
        self._isPaced = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._ports and not self._isPaced:
            self._isPaced = True
            self.reactor.callLater(0, self._slowDown)
        channel: Any = server.Site.buildProtocol(self, addr)
        channel.resource, channel.admission, channel.connections = self.resource, self.admission, self.connections
        # Else Twisted has the factory log each response; there is an access log of our own.
        channel.factory = None
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 is what the API's framing is about."""
        return [b"http/1.1"]

    def pace(self, port: IListeningPort) -> None:
        """Let a listener of this site accept only a few connections in a turn of the reactor."""
        if hasattr(port, "numberAccepts"):
            self._ports.append(port)
            self._slowDown()

    def _slowDown(self) -> None:
        self._isPaced = False
        for port in self._ports:
            # Twisted begins with 100, and accepts 20 more each time that there were so many.
            port.numberAccepts = ACCEPTS


class _Handshaking(TLSMemoryBIOProtocol):
    """
    A TLS connection. The steps of its handshake may wait: the server signs each one, which with a key of 4,096 bits
    takes as long as some thirty requests.
    """

    transport: Any
    _queue: AdmissionQueue
    _origin: Origin
    # What has been received and waits for the queue, and whether nothing more is read meanwhile.
    _held = b""
    _isPaused = False
    _isDone = False

    def makeConnection(self, transport: ITransport) -> None:
        admission: Admission = self.factory.wrappedFactory.admission
        self._queue = admission.handshakes
        self._origin = admission.origin(peerOf(transport.getPeer()), _FIRST)
        self._queue.spend(partial(super().makeConnection, transport))

    def dataReceived(self, data: bytes) -> None:
        if self._isDone:
            super().dataReceived(data)  # type: ignore[no-untyped-call]  # Twisted's own
            return
        self._held += data
        if not self._isPaused and not self._queue.run(self._origin, self._shake):
            self._isPaused = True
            self.transport.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._held = b""
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # as above

    def _shake(self) -> None:
        held, self._held = self._held, b""
        if held:
            if self._isPaused:
                self._isPaused = False
                self.transport.resumeProducing()
            super().dataReceived(held)  # type: ignore[no-untyped-call]  # as above
            # After the client's last message of the handshake nothing costs a signature.
            handle: Any = self.getHandle()  # type: ignore[no-untyped-call]  # as above
            self._isDone = handle.get_peer_finished() is not None
            self._origin = attrs.evolve(self._origin, connection=_LATER)


class _HandshakingFactory(TLSMemoryBIOFactory):
    protocol = _Handshaking
    noisy = False


def handshakingFactory(contextFactory: Any, factory: IProtocolFactory) -> IProtocolFactory:
    """The factory that a TLS listener serves. Only handshakes of an ApiSite wait in a queue."""
    make = _HandshakingFactory if isinstance(factory, ApiSite) else TLSMemoryBIOFactory
    return make(contextFactory, False, factory)
