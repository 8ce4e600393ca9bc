"""
A connection of a client, and its requests while they come in: how much time and memory they may take, in which order
requests are answered, and how a connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from socket import MSG_PEEK
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.python.failure import Failure
from twisted.web import server

# By name, because every look into this module costs a detour that Twisted makes for names that it deprecates.
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest

from ..faults import badRequest, requestTooLarge
from . import routes
from .admission import Client
from .connections import Connections, peerOf
from .messages import AUTH, closeAfterwards, faultResponse, inBytes, write
from .operations import MAXIMUM_BODY
from .requestlog import newTxnId
from .resource import ApiResource

#: How much of a body that was refused is read and thrown away, in bytes and seconds, before the connection is closed. A
#: connection that is closed with bytes unread is reset, and the client may never see the response.
DISCARD_BYTES = 2**20
DISCARD_SECONDS = 2.0
#: How much is read of what comes after a request that is being answered, in bytes.
AHEAD_BYTES = 2**14
#: How many requests that come at once are answered in one turn of the reactor, for unauthenticated clients.
AT_ONCE = 10
#: Seconds after which a connection that is being closed is cut, whether or not its last response has been read.
CLOSE_SECONDS = 15.0

# The first bytes of a client that wants TLS where there is none: the type of the record, and the major version.
_TLS_HANDSHAKE = b"\x16\x03"
# The first bytes of a request with credentials; they come behind the head, often a moment later.
_LOGIN = b"POST " + AUTH.encode()


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
            self._limit = self.channel.bodyLimit()
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
            if self._received >= MAXIMUM_BODY:
                self.channel.keeps(self._received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self._target = path if path.startswith(b"/") else routes.originForm(path)
        if not self._isRefused:
            # Twisted would take the query apart, into what nothing here uses.
            server.Request.requestReceived(self, command, self._target.partition(b"?")[0], version)
            return
        self.method = command
        self.channel.requestArrived()
        self.finish()  # type: ignore[no-untyped-call]  # Twisted's own

    def process(self) -> None:
        """Hand the request over. There is one resource, and it wants every path as it came, ``*`` too."""
        self.channel.requestArrived()
        self.uri = self._target
        self.channel.resource.answer(self)

    def _refuse(self) -> None:
        self._isRefused = True
        self._received = 0
        content: Any = self.content
        content.seek(0)
        content.truncate()
        self.channel.keeps(0)
        # The request line has not been handed over yet, and every client that frames a body speaks 1.1.
        self.clientproto = b"HTTP/1.1"
        self.channel.endAfter(DISCARD_SECONDS, self.channel.loseConnection)
        txnId = newTxnId()
        closeAfterwards(self)
        write(self, faultResponse(requestTooLarge(self._limit), txnId), txnId)
        self.channel.noticeRefusal(413, txnId)


class _State(Enum):
    """The states of a connection: NEW → READING ⇄ ANSWERING, and from each of them to GONE."""

    NEW = "nothing has come so far"
    READING = "no request has come in whole that is not answered"
    ANSWERING = "a request is being answered"
    GONE = "the connection is lost"


class ApiChannel(Client, HTTPChannel):
    """
    A connection, which takes a bounded part of the registry's time and memory. Each request has to come in within a
    while, and each response has to be read.
    """

    resource: ApiResource
    connections: Connections
    transport: Any
    _state = _State.NEW
    # How many requests have come in whole, and how many bytes while one was answered.
    _whole = 0
    _ahead = 0
    # The size of a large body that is coming in.
    _body = 0
    # Received bytes that wait in the queue, and how many requests have been answered since they came.
    _held: bytes | None = None
    _answered = 0
    _isTaking = False
    # Whether the client does not read what it is sent.
    _isClogged = False
    _deadline: IDelayedCall | None = None
    # Twisted asks for both with every request. With the PROXY protocol they are those of the client from the first
    # request on, and those of the proxy before.
    _host: IAddress | None = None
    _peer: IAddress | None = None

    def connectionMade(self) -> None:
        HTTPChannel.connectionMade(self)
        self.peer = peerOf(self.transport.getPeer())
        self.endAfter(self.connections.limits.requestSeconds, self.loseConnection)
        self.connections.opened(self)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's own has no annotations
        self._state = _State.GONE
        if self.isKnown:
            self.admission.remember(self.peer)
        self._inTime()
        HTTPChannel.connectionLost(self, reason)
        self.connections.closed(self)

    def dataReceived(self, data: bytes) -> None:
        if self._held is not None:
            self._held += data
            if self.resource.authenticator.vouchesFor(self._held):
                self.spend(self._takeHeld)
            else:
                self.transport.pauseProducing()
                self.keeps(self._body)
        elif self.isKnown:
            self._take(data)
        elif self.admission.requests.isBusy and not self.resource.authenticator.vouchesFor(data):
            self._held = data
            if not data.startswith(_LOGIN):
                self.transport.pauseProducing()
            self.keeps(self._body)
            self._enterQueue(self._takeHeld)
        else:
            self.spend(partial(self._take, data))

    def _enterQueue(self, go: Callable[[], None]) -> None:
        def served() -> None:
            if self._state is not _State.GONE:
                if self._state is not _State.ANSWERING:
                    self.connections.waits(self)
                self.spend(go)

        # A whole request may be waiting, and the connection of such a request is never closed to make room.
        self.connections.answers(self)
        self.admission.requests.enter(self.origin, served)

    def _takeHeld(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        self.keeps(self._body)
        if not self._isClogged:
            self.transport.resumeProducing()
        self._take(held)

    def _take(self, data: bytes) -> None:
        if self._isTaking:
            # Bytes behind a body are passed in again, and count for the same turn.
            self._parse(data)
            return
        self._isTaking = True
        self._answered = 0
        try:
            self._parse(data)
        finally:
            self._isTaking = False

    def _parse(self, data: bytes) -> None:
        if self._state is _State.NEW:
            self._state = _State.READING
            if data.startswith(_TLS_HANDSHAKE):
                # It has no end of a line to wait for.
                self._respondToBadRequestAndDisconnect()
                return
        if self._state is _State.ANSWERING:
            # Twisted does not stop reading in every case.
            self._ahead += len(data)
            if self._ahead > AHEAD_BYTES:
                self.transport.pauseProducing()
        whole = self._whole
        HTTPChannel.dataReceived(self, data)
        if data and self._whole == whole and self._state is _State.READING and self._deadline is None:
            self.endAfter(self.connections.limits.requestSeconds, self.loseConnection)

    def requestArrived(self) -> None:
        """A request is there whole."""
        self._inTime()
        self._whole += 1
        self._ahead = 0
        self._state = _State.ANSWERING
        self.connections.answers(self)

    def requestDone(self, request: HTTPRequest) -> None:
        if self._state is _State.ANSWERING:
            self._state = _State.READING
        if self._body:
            self.keeps(0)
        self.connections.waits(self)
        self._answered += 1
        hasEnough = self._answered >= AT_ONCE and not self.isKnown
        # A client that does not read responses is sent no more of them.
        self.paused = hasEnough or self._isClogged
        HTTPChannel.requestDone(self, request)
        if self.paused and self._state is not _State.GONE:
            self.transport.pauseProducing()
            if hasEnough:
                self._answered = 0
                self._enterQueue(self._goOn)

    def _goOn(self) -> None:
        if self.paused and not self._isClogged:
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Called when much of what was sent has not been read."""
        self._isClogged = True
        self.paused = self._state is not _State.ANSWERING
        HTTPChannel.pauseProducing(self)

    def resumeProducing(self) -> None:
        """Called when what was sent has been read."""
        self._isClogged = False
        HTTPChannel.resumeProducing(self)
        if self.paused:
            self.paused = False
            self.dataReceived(b"")  # of what has come already

    def loseConnection(self) -> None:
        """Close as soon as all that was sent has been read, or after a while."""
        self.endAfter(CLOSE_SECONDS, self.evict)
        HTTPChannel.loseConnection(self)

    def getHost(self) -> IAddress:
        if self._host is None:
            self._host = HTTPChannel.getHost(self)
        return self._host

    def getPeer(self) -> IAddress:
        if self._peer is None:
            self._peer = HTTPChannel.getPeer(self)
        return self._peer

    def timeoutConnection(self) -> None:
        if self._deadline is None:
            self.loseConnection()

    def evict(self) -> None:
        self.transport.abortConnection()

    @property
    def hasUnread(self) -> bool:
        """See :class:`~txserviceregistry.registry.http.connections.Evictable`."""
        transport = self.transport
        while hasattr(transport, "transport"):
            transport = transport.transport  # below TLS
        socket = getattr(transport, "socket", None)
        if self._isClogged or socket is None:
            return False
        try:
            return bool(socket.recv(1, MSG_PEEK))
        except OSError:
            return False

    def endAfter(self, seconds: float, end: Callable[[], None]) -> None:
        """Call *end* after so many seconds, unless the request is there whole before that."""

        def ends() -> None:
            self._deadline = None
            end()

        self._inTime()
        if self._state is not _State.GONE:
            self._deadline = self.connections.clock.callLater(seconds, ends)

    def _inTime(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def keeps(self, body: int) -> None:
        """So many bytes of a body have come."""
        self._body = body
        if self._state is not _State.GONE:
            size = 0 if self.isKnown else body + len(self._held or b"")
            self.connections.keeps(self, size)

    def bodyLimit(self) -> int:
        """How many bytes are too many for the body of the request whose headers have just come."""
        return routes.bodyLimit(*self._asked())

    def noticeRefusal(self, code: int, txnId: str) -> None:
        """Log that incoming data was refused before it was a request."""
        method, path = self._asked()
        route = routes.targetOf(method, path).route
        self.resource.requestLog.refused(method, path, route, self.transport.getPeer(), code, txnId)

    def _asked(self) -> tuple[bytes, bytes]:
        # Twisted hands the first line of a request over with the last byte of its body. (If Twisted ever keeps the line
        # under other names, a batch of heartbeats may be as large as everything else.)
        target = routes.originForm(getattr(self, "_path", b""))
        return getattr(self, "_command", b""), target.partition(b"?")[0]

    def endSoon(self) -> None:
        """Close at once if there is no request, else with its response."""
        if self.requests:
            closeAfterwards(self.requests[0])
        else:
            self.loseConnection()

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
        # Twisted's own response to invalid HTTP has neither an id nor a body. (If Twisted ever calls this no longer,
        # clients get that one.)
        txnId = newTxnId()
        response = faultResponse(badRequest("Bad Request", "The request is not valid HTTP"), txnId)
        self.transport.write(inBytes(response, txnId, mustClose=True))
        self.loseConnection()
        self.noticeRefusal(response.code, txnId)
