"""
Connections of clients, and requests while they come in: how much of one's time and memory they may take, in which order
they are answered, what is refused before it is there whole, and how connections end.

How a body is read and an answer framed is :mod:`txserviceregistry.registry.http.messages`'s business, which connections
are kept when there are too many :mod:`txserviceregistry.registry.http.admission`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from socket import MSG_PEEK
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IReactorTime
from twisted.python.failure import Failure
from twisted.web import server

# By name, because every look into this module costs a detour that Twisted makes for names that it deprecates.
from twisted.web.http import HTTPChannel
from twisted.web.http import Request as HTTPRequest

from ..fairness import Origin
from ..faults import badRequest, requestTooLarge
from . import routes
from .admission import AdmissionQueue, ConnectionLimits, Connections, IdleTimeouts, KnownAddresses, peerOf
from .messages import AUTH, closeAfterwards, faultAnswer, inBytes, write
from .operations import MAXIMUM_BODY
from .requestlog import RequestLog, newTxnId

_T = TypeVar("_T")

#: How much of a body that was refused is read and thrown away, in bytes and seconds, before the connection is closed. A
#: connection that is closed with bytes unread is reset, and the client may never see the answer.
DISCARD_BYTES = 2**20
DISCARD_SECONDS = 2.0
#: How much is read of what comes after a request that is being answered, in bytes.
AHEAD_BYTES = 2**14
#: How many requests that come at once are answered in one turn of the reactor, for unauthenticated clients.
AT_ONCE = 10
#: Seconds after which a connection that is being closed is cut, whether or not its last answer has been read.
CLOSE_SECONDS = 15.0
#: How many connections a listener accepts in one turn of the reactor.
ACCEPTS = 10

# What a client begins with that wants TLS where there is none: the type of the record, and the major version.
_TLS_HANDSHAKE = b"\x16\x03"
# What a client begins with that sends credentials; they come behind the head, often a moment later.
_LOGIN = b"POST " + AUTH.encode()

# Connections are told apart by numbers: what remembers them keeps none of them alive.
_numbers = count(1)


class Api(Protocol):
    """
    What is served (:class:`~txserviceregistry.registry.http.resource.ApiResource`).

    :ivar requestLog: is told of what is refused before it gets to the resource.
    """

    requestLog: RequestLog

    def render(self, request: server.Request) -> int:
        """Answer a request."""

    def vouchesFor(self, data: bytes) -> bool:
        """
        Whether the data of a request shows a token or credentials that were valid when the store was last asked for
        them. Such a request does not wait in the line. It must not ask the store; the request is authenticated in any
        case.
        """


class ApiRequest(server.Request):
    """
    A request whose body is refused as soon as it is known to be too large, by its length or while it comes in.
    """

    channel: ApiChannel
    _refused = False
    _received = 0
    _limit = MAXIMUM_BODY
    _giveUp: IDelayedCall | None = None
    _target = b""

    def gotLength(self, length: int | None) -> None:
        """Called when the headers are there, with the ``Content-Length``."""
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
        """Called with each piece of the body."""
        self._received += len(data)
        if self._refused:
            if self._received > DISCARD_BYTES:
                self._hangUp()
        elif self._received >= self._limit:
            self._refuse()
        else:
            server.Request.handleContentChunk(self, data)
            if self._received >= MAXIMUM_BODY:
                self.channel.keeps(self._received)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Called when the whole request is there."""
        self._target = routes.originForm(path)
        if not self._refused:
            # Twisted would take the query apart, into what nobody here looks at.
            server.Request.requestReceived(self, command, self._target.partition(b"?")[0], version)
            return
        self.method, self.uri, self.path, self.clientproto = command, self._target, self._target, version
        self.finish()

    def process(self) -> None:
        """Hand the request over. There is one resource, and it wants every path as it came, ``*`` too."""
        self.site = self.channel.site
        self.uri = self._target
        self.channel.site.resource.render(self)

    def connectionLost(self, reason: Failure) -> None:
        """Called when the connection is gone before the request is finished."""
        self._forget()
        super().connectionLost(reason)

    def finish(self) -> None:
        """Send what is left of the answer."""
        self._forget()
        super().finish()

    def _refuse(self) -> None:
        self._refused = True
        self._received = 0
        content: Any = self.content
        content.seek(0)
        content.truncate()
        self.channel.keeps(0)
        # The request line has not been handed over yet, and every client that frames a body speaks 1.1.
        self.clientproto = b"HTTP/1.1"
        self._giveUp = self.channel.factory.reactor.callLater(DISCARD_SECONDS, self._hangUp)
        txnId = newTxnId()
        closeAfterwards(self)
        write(self, faultAnswer(requestTooLarge(self._limit), txnId), txnId)
        self.channel.noticeRefusal(413, txnId)

    def _hangUp(self) -> None:
        self._forget()
        server.Request.loseConnection(self)

    def _forget(self) -> None:
        giveUp, self._giveUp = self._giveUp, None
        if giveUp is not None and giveUp.active():
            giveUp.cancel()


def recognized(request: server.Request) -> None:
    """A request has shown a token or credentials that count: its connection is one to keep."""
    channel = request.channel
    if isinstance(channel, ApiChannel) and not channel.isKnown:
        channel.isKnown = True
        channel.site.addresses.add(channel.peer)
        channel.site.line.welcome()
        channel.site.handshakes.welcome()


def originOf(request: server.Request) -> Origin:
    """Where a request comes from."""
    channel = request.channel
    return channel.origin if isinstance(channel, ApiChannel) else Origin()


def inTurn(outcome: _T, request: server.Request) -> _T | Deferred[_T]:
    """
    Go on with a request that had to wait for something. What is still to be done for it, and for the requests behind
    it, is work for an unauthenticated client, unless its connection has shown a token meanwhile.

    :param outcome: what it has waited for.
    :return: the outcome at once, or a Deferred that fires with it when it is the connection's turn.
    """
    channel = request.channel
    if not isinstance(channel, ApiChannel) or channel.isKnown:
        return outcome
    turn: Deferred[_T] = Deferred()
    channel.site.line.enter(channel.origin, partial(channel.spend, partial(turn.callback, outcome)))
    return turn


class ApiChannel(HTTPChannel):
    """
    A connection that its site knows of, so that all can be closed in good order, and on which nobody can take more
    time or memory than is meant for one.

    Twisted counts the seconds without a byte. That a request comes to its end, and that answers are read, is seen to
    here.
    """

    site: ApiSite
    transport: Any
    _isNew = True
    peer = ""
    isKnown = False
    number = 0
    _isAnswering = False
    # Requests that have come in whole, and the bytes that have come while one was answered.
    _whole = 0
    _ahead = 0
    # How much is kept of a body that is large.
    _body = 0
    # What has come, and waits in the line; and how many requests have been answered since it came.
    _held: bytes | None = None
    _answered = 0
    _isTaking = False
    # Whether the client does not read what it is sent.
    _isClogged = False
    _isGone = False
    _deadline: IDelayedCall | None = None
    # What every request asks for, and what stays as it is.
    _host: IAddress | None = None
    _peer: IAddress | None = None
    _isSecure: bool | None = None

    def connectionMade(self) -> None:
        """Called when a client has connected."""
        HTTPChannel.connectionMade(self)
        self.peer = peerOf(self.transport.getPeer())
        self.number = next(_numbers)
        self._endAfter(self.site.limits.requestSeconds, self.loseConnection)
        self.site.opened(self)

    @property
    def origin(self) -> Origin:
        """Where the requests on it come from."""
        return Origin(self.peer, self.number, self.site.addresses.has(self.peer))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's own has no annotations
        """Called when the connection is gone."""
        self._isGone = True
        if self.isKnown:
            self.site.addresses.add(self.peer)
        self._isAnswering = False
        self._inTime()
        HTTPChannel.connectionLost(self, reason)
        self.site.closed(self)

    def dataReceived(self, data: bytes) -> None:
        """Called with what the client sends."""
        if self._held is not None:
            self._held += data
            if self.site.resource.vouchesFor(self._held):
                self.spend(self._takeHeld)
            else:
                self.transport.pauseProducing()
                self.keeps(self._body)
        elif self.isKnown:
            self._take(data)
        elif self.site.line.isBusy and not self.site.resource.vouchesFor(data):
            self._held = data
            if not data.startswith(_LOGIN):
                self.transport.pauseProducing()
            self.keeps(self._body)
            self._standInLine(self._takeHeld)
        else:
            self.spend(partial(self._take, data))

    def spend(self, work: Callable[[], None]) -> None:
        """Do something that counts as work for an unauthenticated client."""
        self.site.line.spend(self.origin, work)

    def _standInLine(self, go: Callable[[], None]) -> None:
        # A whole request may be waiting, and the connection of such a request is never closed to make room.
        self.site.connections.answers(self)
        self.site.line.enter(self.origin, partial(self._served, go))

    def _served(self, go: Callable[[], None]) -> None:
        if not self._isGone:
            if not self._isAnswering:
                self.site.connections.waits(self)
            self.spend(go)

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
            # What came behind a body is handed in once more, and counts for the same turn.
            self._takeMore(data)
            return
        self._isTaking = True
        self._answered = 0
        try:
            self._takeMore(data)
        finally:
            self._isTaking = False

    def _takeMore(self, data: bytes) -> None:
        if self._isNew:
            self._isNew = False
            if data.startswith(_TLS_HANDSHAKE):
                # There is no line in it whose end could be waited for; and this answer tells such a client enough.
                self._respondToBadRequestAndDisconnect()
                return
        if self._isAnswering:
            # Twisted does not stop reading in every case.
            self._ahead += len(data)
            if self._ahead > AHEAD_BYTES:
                self.transport.pauseProducing()
        whole = self._whole
        HTTPChannel.dataReceived(self, data)
        if data and self._whole == whole and not self._isAnswering and self._deadline is None:
            self._endAfter(self.site.limits.requestSeconds, self.loseConnection)

    def allContentReceived(self) -> None:
        """Called when a request is there whole."""
        self._inTime()
        self._whole += 1
        self._ahead = 0
        self._isAnswering = True
        self.site.connections.answers(self)
        HTTPChannel.allContentReceived(self)

    def requestDone(self, request: HTTPRequest) -> None:
        """Called when a request has been answered."""
        self._isAnswering = False
        if self._body:
            self.keeps(0)
        self.site.connections.waits(self)
        self._answered += 1
        hasEnough = self._answered >= AT_ONCE and not self.isKnown
        # A client that does not read responses is sent no more of them.
        self.paused = hasEnough or self._isClogged
        HTTPChannel.requestDone(self, request)
        if self.paused and not self._isGone:
            self.transport.pauseProducing()
            if hasEnough:
                self._answered = 0
                self._standInLine(self._goOn)

    def _goOn(self) -> None:
        if self.paused and not self._isClogged:
            self.resumeProducing()

    def pauseProducing(self) -> None:
        """Called when much of what was sent has not been read."""
        self._isClogged = True
        self.paused = not self._isAnswering
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
        self._endAfter(CLOSE_SECONDS, self.evict)
        HTTPChannel.loseConnection(self)

    def getHost(self) -> IAddress:
        """The address that the client has connected to."""
        if self._host is None:
            self._host = HTTPChannel.getHost(self)
        return self._host

    def getPeer(self) -> IAddress:
        """The address of the client."""
        if self._peer is None:
            self._peer = HTTPChannel.getPeer(self)
        return self._peer

    def isSecure(self) -> bool:
        """Whether this is TLS."""
        if self._isSecure is None:
            self._isSecure = HTTPChannel.isSecure(self)
        return self._isSecure

    def resetTimeout(self) -> None:
        """Called when something has come."""
        if self.timeOut is not None:
            self.site.silence.begins(self)

    def setTimeout(self, period: int | None) -> int | None:
        """
        Called with the seconds that may pass without a byte, which are the site's; with ``None`` while a request is
        answered.

        :return: what they were before.
        """
        before, self.timeOut = self.timeOut, period
        if period is None:
            self.site.silence.ends(self)
        else:
            self.site.silence.begins(self)
        return before

    def timeoutConnection(self) -> None:
        """Called after so many seconds without a byte between two requests."""
        # Twisted would write a line for each into the log.
        self.loseConnection()

    def evict(self) -> None:
        """Close at once."""
        self.transport.abortConnection()

    @property
    def hasUnread(self) -> bool:
        """Whether something has come that has not been read so far, though the connection is being read."""
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

    def _endAfter(self, seconds: float, end: Callable[[], None]) -> None:
        self._inTime()
        if not self._isGone:
            self._deadline = self.site.reactor.callLater(seconds, self._ends, end)

    def _ends(self, end: Callable[[], None]) -> None:
        self._deadline = None
        end()

    def _inTime(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.cancel()

    def keeps(self, body: int) -> None:
        """So many bytes of a body have come."""
        self._body = body
        if not self._isGone:
            size = 0 if self.isKnown else body + len(self._held or b"")
            self.site.connections.keeps(self, size)

    def bodyLimit(self) -> int:
        """How many bytes are too many for the body of the request whose headers have just come."""
        # Twisted hands its first line over with the last byte of its body. (If Twisted ever keeps the line under other
        # names, a batch of heartbeats may be as large as everything else.)
        return routes.bodyLimit(*self._asked())

    def noticeRefusal(self, code: int, txnId: str) -> None:
        """What has been coming in was refused before it was a request."""
        method, path = self._asked()
        route = routes.targetOf(method, path).route
        self.site.resource.requestLog.refused(method, path, route, self.transport.getPeer(), code, txnId)

    def _asked(self) -> tuple[bytes, bytes]:
        target = routes.originForm(getattr(self, "_path", b""))
        return getattr(self, "_command", b""), target.partition(b"?")[0]

    def endSoon(self) -> None:
        """Close at once if nothing is being asked, else with the answer."""
        if self.requests:
            closeAfterwards(self.requests[0])
        else:
            self.loseConnection()

    def headerReceived(self, line: bytes) -> bool:
        """Called with each line of the head but the first."""
        try:
            return bool(HTTPChannel.headerReceived(self, line))
        except ValueError:
            # Of a Content-Length with thousands of digits, Python makes no number.
            self._respondToBadRequestAndDisconnect()
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        """Called when a line of the head is longer than any is taken."""
        self._respondToBadRequestAndDisconnect()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's own answer to what is no HTTP has neither an id nor a body. (If Twisted ever calls this no longer,
        # its own answer is what clients get.)
        txnId = newTxnId()
        answer = faultAnswer(badRequest("Bad Request", "The request is no valid HTTP"), txnId)
        self.transport.write(inBytes(answer, txnId, mustClose=True))
        self.loseConnection()
        self.noticeRefusal(answer.code, txnId)


class ApiSite(server.Site):
    """
    Serves the API to real connections: one resource to every path. It can be drained.

    :param resource: the API.
    :param reactor: for timeouts.
    :ivar limits: what one connection may take.
    :ivar connections: sees to it that there are not too many.
    :ivar silence: ends those from which nothing comes.
    :ivar line: the queue of requests of unauthenticated clients.
    :ivar handshakes: the queue of TLS handshakes.
    :ivar addresses: the addresses at which clients have authenticated.
    """

    resource: Api
    protocol = ApiChannel  # type: ignore[assignment]  # Twisted names a private wrapper that switches to HTTP/2
    requestFactory = ApiRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        resource: Api,
        reactor: IReactorTime,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (it is immutable)
    ) -> None:
        server.Site.__init__(self, resource, reactor=reactor, timeout=limits.idleSeconds, parsePOSTFormSubmission=False)
        self.limits = limits
        self.connections = Connections(limits, reactor)
        self.silence = IdleTimeouts(limits.idleSeconds, reactor)
        self.line = AdmissionQueue(reactor)
        self.handshakes = AdmissionQueue(reactor)
        self.addresses = KnownAddresses(reactor)
        self._ports: list[Any] = []
        self._isPaced = False
        self._channels: set[ApiChannel] = set()
        self._drained: list[Deferred[None]] = []

    def log(self, request: HTTPRequest) -> None:
        """Twisted's access log is not wanted; there is one of our own."""

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 is what the API's framing is about."""
        return [b"http/1.1"]

    def pace(self, port: IListeningPort) -> None:
        """Let a listener of this site accept few connections in a turn of the reactor."""
        if hasattr(port, "numberAccepts"):
            self._ports.append(port)
            self._slowDown()

    def _slowDown(self) -> None:
        self._isPaced = False
        for port in self._ports:
            # Twisted begins with 100, and accepts 20 more each time that there were so many.
            port.numberAccepts = ACCEPTS

    def opened(self, channel: ApiChannel) -> None:
        """A client has connected."""
        if self._ports and not self._isPaced:
            self._isPaced = True
            self.reactor.callLater(0, self._slowDown)
        self._channels.add(channel)
        self.connections.opened(channel)

    def closed(self, channel: ApiChannel) -> None:
        """A connection is gone."""
        self._channels.discard(channel)
        self.connections.closed(channel)
        if not self._channels:
            self.silence.stop()
            self.line.stop()
            self.handshakes.stop()
            waiting, self._drained = self._drained, []
            for each in waiting:
                each.callback(None)

    def drain(self, seconds: float) -> Deferred[None]:
        """
        Close every connection: idle ones now, the others with the answer to what they have asked.

        :param seconds: after so long, connections are closed whatever happens on them.
        :return: fires when no connection is left.
        """
        if not self._channels:
            return succeed(None)
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        abort = self.reactor.callLater(seconds, self._abort)
        for channel in list(self._channels):
            channel.endSoon()

        def done(result: None) -> None:
            if abort.active():
                abort.cancel()

        return drained.addCallback(done)

    def _abort(self) -> None:
        for channel in list(self._channels):
            channel.transport.abortConnection()
