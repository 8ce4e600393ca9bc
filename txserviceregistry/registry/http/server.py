"""The site that serves the API: how connections are accepted, how TLS handshakes go on, how requests come in."""

from __future__ import annotations

import math
from enum import Enum
from functools import partial
from typing import Any

import attrs
from twisted.internet.interfaces import IAddress, IListeningPort, IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web import server

# By name, because every look into this module costs a detour that Twisted makes for names that it deprecates.
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest

from ..faults import Fault, badRequest, requestTooLarge
from ..limits import Origin
from .connections import AdmissionQueue, Client, ConnectionLimits, Connections, peerOf
from .messages import faultResponse, inBytes
from .operations import MAXIMUM_BODY, Target, originForm, resolve
from .requestlog import newTxnId
from .resource import ApiResource

#: How many connections a listener accepts in one turn of the reactor.
ACCEPTS = 10
#: How much of a body that was refused is read and thrown away, in bytes and seconds, before the connection is closed. A
#: connection that is closed with bytes unread is reset, and the client may never see the response.
DISCARD_BYTES = 2**20
DISCARD_SECONDS = 2.0
#: The first bytes of a client that wants TLS where there is none.
TLS_HANDSHAKE = b"\x16\x03"

# The share of an address is divided evenly between the first steps of handshakes and the later ones: a client that the
# server has signed for does not wait for all that have just connected.
_FIRST, _LATER = range(2)


class ApiRequest(server.Request):
    """A request whose body is refused as soon as it is known to be too large, by its length or while it comes in."""

    channel: ApiChannel
    _isRefused = False
    _received = 0
    _limit = MAXIMUM_BODY
    _target = b""

    def gotLength(self, length: int | None) -> None:
        # Twisted would put a large body, or one without a length, into a temporary file. All that is taken here has
        # room in memory.
        server.Request.gotLength(self, 0)
        if length is None or length >= self._limit:
            self._limit = self.channel.asked()[2].maximumBody
        if length is not None and length >= self._limit:
            # No client is invited to send a body that will be refused.
            self.requestHeaders.removeHeader(b"Expect")
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        self._received += len(data)
        if self._isRefused:
            if self._received > DISCARD_BYTES:
                self.channel.loseConnection()
        elif self._received >= self._limit:
            self._refuse()
        else:
            server.Request.handleContentChunk(self, data)
            if self._received >= MAXIMUM_BODY and not self.channel.isKnown:
                self.channel.connections.keeps(self.channel, self._received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self._target = originForm(path)
        if self._isRefused:
            self.method = command
            self.channel.isWhole()
            self.finish()  # type: ignore[no-untyped-call]  # Twisted's own
        else:
            # Twisted would take the query apart, into what nothing here uses.
            server.Request.requestReceived(self, command, self._target.partition(b"?")[0], version)

    def process(self) -> None:
        # There is one resource, and it wants every path as it came, ``*`` too.
        self.uri = self._target
        self.channel.admit(self)

    def _refuse(self) -> None:
        self._isRefused = True
        self._received = 0
        content: Any = self.content
        content.seek(0)
        content.truncate()
        channel = self.channel
        channel.connections.keeps(channel, 0)
        channel.endAfter(DISCARD_SECONDS)
        channel.persistent = False
        self.startedWriting = 1
        channel.refuse(requestTooLarge(self._limit))


# The states of a connection: a request is expected or coming in; it is there whole; nothing has come since its response
# (READING → ANSWERING → IDLE → READING); and from each of them, the connection is lost.
_State = Enum("_State", ("READING", "ANSWERING", "IDLE", "GONE"))


class ApiChannel(Client):
    """A connection. Each request has to come in within a while, and each response has to be read."""

    maxHeaders = 100
    resource: ApiResource
    _state = _State.READING
    # The request that is answered when the client has read what it was sent.
    _held: ApiRequest | None = None

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.peer = peerOf(self.transport.getPeer())
        self.endAfter(self.connections.limits.requestSeconds)
        self.connections.opened(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's own has no annotations
        self._state = _State.GONE
        if self.isKnown:
            self.connections.remember(self.peer)
        HTTPChannel.connectionLost(self, reason)
        self.connections.closed(self)

    def dataReceived(self, data: bytes) -> None:
        if self._state is _State.IDLE and data:
            self._state = _State.READING
            self.endAfter(self.connections.limits.requestSeconds)
        if self.isKnown:
            HTTPChannel.dataReceived(self, data)
        elif data.startswith(TLS_HANDSHAKE) and not self.requests:
            # It has no end of a line to wait for.
            self._respondToBadRequestAndDisconnect()
        else:
            self.connections.requests.spend(partial(HTTPChannel.dataReceived, self, data))

    def isWhole(self) -> None:
        self._state, self.deadline = _State.ANSWERING, math.inf
        self.connections.answers(self)

    def admit(self, request: ApiRequest) -> None:
        """Answer a request, in the turn of its client; a client that does not read responses is sent no more."""
        if self.isClogged:
            self._held = request
            self.endAfter(self.connections.limits.idleSeconds)
            return
        self.isWhole()
        if self.isKnown or self.resource.vouchesFor(request):
            self.resource.answer(request)
        else:
            self.connections.requests.run(self.origin, partial(self._answer, request))

    def _answer(self, request: ApiRequest) -> None:
        if self._state is not _State.GONE:
            self.resource.answer(request)

    def requestDone(self, request: HTTPRequest) -> None:
        if self._state is _State.ANSWERING:
            self._state = _State.IDLE
            self.endAfter(self.connections.limits.idleSeconds)
        self.connections.keeps(self, 0)
        self.connections.waits(self)
        HTTPChannel.requestDone(self, request)

    def pauseProducing(self) -> None:
        self.isClogged = True
        HTTPChannel.pauseProducing(self)
        # Twisted reads on while a request is being answered.
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.isClogged = False
        HTTPChannel.resumeProducing(self)
        self.transport.resumeProducing()
        held, self._held = self._held, None
        if held is not None:
            self.admit(held)

    def asked(self) -> tuple[bytes, bytes, Target]:
        """The method, path and target of the request that is coming in; empty as far as it has not come."""
        # Twisted hands the first line of a request over with the last byte of its body, and keeps it here until then.
        method, path = getattr(self, "_command", b""), originForm(getattr(self, "_path", b"")).partition(b"?")[0]
        try:
            return method, path, resolve(method, path)
        except Fault:  # it will be refused
            return method, path, Target()

    def refuse(self, fault: Fault) -> None:
        """Respond to what is not a request, or not a whole one."""
        txnId = newTxnId()
        # Every client that frames a body speaks 1.1.
        self.transport.write(inBytes(faultResponse(fault, txnId), txnId, mustClose=True))
        method, path, target = self.asked()
        self.resource.requestLog.refused(method, path, target.route, self.transport.getPeer(), fault.code, txnId)

    def headerReceived(self, line: bytes) -> bool:
        try:
            return bool(HTTPChannel.headerReceived(self, line))
        except ValueError:
            # Of a Content-Length with thousands of digits, Python makes no number.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own response to invalid HTTP has neither an id nor a body.
        self.refuse(badRequest("Bad Request", "The request is not valid HTTP"))
        self.loseConnection()


class ApiSite(server.Site):
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
        self.requestLog = resource.requestLog
        self.connections = Connections(limits, reactor)
        self._ports: list[Any] = []

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if self._ports:
            self.reactor.callLater(0, self._slowDown)
        channel: Any = server.Site.buildProtocol(self, addr)
        channel.resource, channel.connections = self.resource, self.connections
        # Else Twisted has the factory log each response; there is an access log of our own.
        channel.factory = None
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    def pace(self, port: IListeningPort) -> None:
        """Let a listener of this site accept only a few connections in a turn of the reactor."""
        if hasattr(port, "numberAccepts"):
            self._ports.append(port)
            self._slowDown()

    def _slowDown(self) -> None:
        for port in self._ports:
            # Twisted begins with 100, and accepts 20 more each time that there were so many.
            port.numberAccepts = ACCEPTS


class _Handshaking(TLSMemoryBIOProtocol):
    """A TLS connection. Steps of its handshake may wait: with a key of 4,096 bits one takes as long as 30 requests."""

    transport: Any
    _queue: AdmissionQueue
    _origin: Origin
    # The bytes that were received and wait for the queue, and whether nothing more is read meanwhile.
    _held = b""
    _isPaused = False
    _isDone = False

    def makeConnection(self, transport: ITransport) -> None:
        connections: Connections = self.factory.wrappedFactory.connections
        self._queue = connections.handshakes
        self._origin = connections.origin(peerOf(transport.getPeer()), _FIRST)
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


class HandshakingFactory(TLSMemoryBIOFactory):
    protocol = _Handshaking
    noisy = False
