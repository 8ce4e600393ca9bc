"""
Agents of the client, up to the point where an answer is there, whole: connections, and who may use them.

What belongs here speaks :class:`~twisted.web.iweb.IAgent` and knows nothing of JSON, tokens or the registry's API.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IHandshakeListener,
    IProtocol,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.client import HTTP11ClientProtocol as _HTTP11  # type: ignore[attr-defined] # it is, but not by name
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..util.suspend import SuspendWatch
from .tls import describeTLS

#: No answer of the API comes near this many bytes. It bounds what a broken server can make a client hold.
MAX_BODY = 16 * 1024 * 1024

#: Idle connections are closed after so many seconds: before common servers and balancers do it (60 s and more), because
#: a request on a connection that the other side is closing gets no answer.
IDLE_TIMEOUT = 45.0

#: A peer that does not answer the orderly end of a TLS connection for so many seconds is cut off.
CLOSE_GRACE = 1.0


#: A request that has had no response for so many seconds may hang: urgent requests do not wait for its slot any longer.
HANGING = 0.3

_TICK = 0.001

#: The most urgent requests that are sent beside requests that may hang.
MOST_BESIDE = 6


class StaleConnection(ResponseNeverReceived):
    """No byte of an answer came, on a connection out of the pool: most likely the server had closed it meanwhile."""


class InsecureConnection(Exception):
    """TLS did not come about, so nothing was sent; the text says why, and what to do."""


class ResponseTooLarge(Exception):
    """The body of an answer was longer than any that the API gives."""


class AgentClosed(Exception):
    """The agent was closed before the request was done."""


@implementer(IBodyProducer)
class BytesProducer:
    """
    A request's body that is in memory, and can be sent more than once.

    :param body: the body.
    """

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written at once; there is nothing to hold back."""

    def resumeProducing(self) -> None:
        """Everything is written at once; there is nothing to go on with."""

    def stopProducing(self) -> None:
        """Everything is written at once; there is nothing to stop."""


class FixedHeaders(Headers):
    """Headers that nobody changes, so that what is made of them can be kept: checking a header costs time."""

    __slots__ = ("_last",)

    def __init__(self, rawHeaders: Mapping[bytes, Sequence[bytes]] | None = None) -> None:
        super().__init__(rawHeaders)
        self._last: tuple[bytes, bytes, Headers] | None = None

    def having(self, name: bytes, value: bytes) -> Headers:
        """These and one more, which are nobody's to change either. The last ones are kept."""
        if self._last is None or self._last[:2] != (name, value):
            more = self.copy()
            more.setRawHeaders(name, [value])
            self._last = name, value, more
        return self._last[2]


@implementer(IConsumer)
class Collector:
    """Keeps what a body's producer writes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """A body's producer does not register, and nothing has to be held back."""

    def unregisterProducer(self) -> None:
        """Nothing is known of it."""

    @property
    def body(self) -> bytes:
        """All of it so far."""
        return b"".join(self._parts)


class _Nowhere:
    """The transport of a body that has arrived already: all that can be asked of it has happened."""

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = loseConnection = abortConnection = pauseProducing


@implementer(IResponse)
class WholeResponse:
    """
    A response whose body is here.

    :ivar body: the body's bytes.
    """

    def __init__(self, original: IResponse, body: bytes) -> None:
        self.version = original.version
        self.code = original.code
        self.phrase = original.phrase
        self.headers = original.headers
        self.request = original.request
        self.previousResponse = original.previousResponse
        self.length = len(body)
        self.body = body

    def deliverBody(self, protocol: IProtocol) -> None:
        """Hand the whole body to *protocol*, at once. Can be done any number of times."""
        protocol.makeConnection(_Nowhere())  # type: ignore[arg-type] # as little of a transport as a body's has
        if self.body:
            protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(ResponseDone("The body was here already")))

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response


class _Body(Protocol):
    """Collects a body; cancelling :attr:`whole` ends the connection, which Twisted's ``readBody`` does not."""

    def __init__(self, response: IResponse, abort: Callable[[], object] | None) -> None:
        self._response = response
        self._abort = abort
        self._parts: list[bytes] = []
        self._size = 0
        self.whole: Deferred[WholeResponse] = Deferred(lambda _: self.abort())

    def abort(self) -> None:
        if self._abort is not None:
            self._abort()
            return
        # A transport under an agent that is not ours: the hardest way of ending that it has.
        for name in ("abortConnection", "loseConnection", "stopProducing"):
            end = getattr(self.transport, name, None)
            if end is not None:
                end()
                return

    def connectionMade(self) -> None:
        length = self._response.length
        if length is not UNKNOWN_LENGTH and length > MAX_BODY:
            self._refuse()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            self._refuse()

    def _refuse(self) -> None:
        self._parts.clear()
        if not self.whole.called:
            self.abort()
            self.whole.errback(ResponseTooLarge(f"more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        # Without a length the end of the connection is the end of the body; whether it is whole, the JSON says.
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            self.whole.callback(WholeResponse(self._response, b"".join(self._parts)))
        else:
            self.whole.errback(reason)


def readWhole(
    response: IResponse, abort: Callable[[], object] | None = None
) -> WholeResponse | Deferred[WholeResponse]:
    """
    The response with its body.

    :param abort: ends the connection, when the body is not wanted any more; the body's own transport if not given.
    """
    if type(response) is WholeResponse:
        return response
    body = _Body(response, abort)
    response.deliverBody(body)
    return body.whole


def _asStale(reason: Failure) -> Failure:
    """What the failure of a request on a used connection means."""
    error = reason.value
    if type(error) is not ResponseNeverReceived or any(inner.check(CancelledError) for inner in error.reasons):
        return reason
    stale = StaleConnection(error.reasons)  # type: ignore[no-untyped-call] # Twisted has no types there
    return Failure(stale)


@implementer(IHandshakeListener)
class _Connection(_HTTP11):
    """
    One connection: knows whether it was used before and whether it is secure, reads bodies whole, and when anything
    fails, the request is over only when the socket is closed.
    """

    def __init__(self, clock: IReactorTime, quiescentCallback: Callable[[Any], None]) -> None:
        super().__init__(quiescentCallback)  # type: ignore[no-untyped-call] # Twisted has no types there
        self._clock = clock
        self._used = False
        self._isTLS = False
        self._isSecure = False
        self._whenLost: list[Deferred[None]] = []
        self.isLost = False
        self.isGiven = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._isTLS = ISSLTransport.providedBy(self.transport)

    def request(self, request: Any) -> Deferred[IResponse]:
        reused, self._used = self._used, True

        def failed(reason: Failure) -> Deferred[Failure]:
            self.cutOff()
            problem = self._asInsecure(reason) or (_asStale(reason) if reused else reason)
            return self.whenLost().addCallback(lambda _: problem)

        answered: Deferred[Any] = super().request(request)
        answered.addCallback(readWhole, self.cutOff)
        if self._isTLS:
            answered.addCallback(self._afterwards)
        answered.addErrback(failed)
        return answered

    def handshakeCompleted(self) -> None:
        """Called when TLS has come about."""
        self._isSecure = True

    def _afterwards(self, response: WholeResponse) -> Deferred[WholeResponse]:
        """
        Give the answer out in the next turn of the reactor. Who gets the last one may let the reactor end, which ends
        all connections there and then; and Twisted's TLS does not bear that while it hands data over.
        """
        turn: Deferred[WholeResponse] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(0, turn.callback, response)
        return turn

    def _asInsecure(self, reason: Failure) -> Failure | None:
        """Why TLS did not come about, if that is what has failed: until then not a byte of a request is sent."""
        if self._isSecure or not self._isTLS:
            return None
        error = reason.value
        for inner in getattr(error, "reasons", ()):
            text = describeTLS(inner.value, inHandshake=True)
            if text is not None:
                return Failure(InsecureConnection(text))
        return None

    def cutOff(self) -> None:
        """End it without any ceremony."""
        transport: Any = self.transport
        transport.abortConnection()

    def whenLost(self) -> Deferred[None]:
        lost: Deferred[None] = Deferred()
        if self.isLost:
            lost.callback(None)
        else:
            self._whenLost.append(lost)
        return lost

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.isLost = True
        super().connectionLost(reason)  # type: ignore[no-untyped-call] # Twisted has no types there
        for lost in self._whenLost:
            lost.callback(None)


class _ConnectionFactory(Factory):
    noisy = False

    def __init__(
        self, clock: IReactorTime, connections: set[_Connection], quiescentCallback: Callable[[Any], None]
    ) -> None:
        self._clock = clock
        self._connections = connections
        self._quiescentCallback = quiescentCallback

    def buildProtocol(self, addr: object) -> _Connection:
        connection = _Connection(self._clock, self._quiescentCallback)
        self._connections.add(connection)
        return connection


class ConnectionPool(HTTPConnectionPool):
    """
    Persistent connections, which can tell a stale one, read bodies whole, and can be closed for good.

    A request that fails because the server had closed the idle connection fails with :class:`StaleConnection`; whether
    it is sent again is the caller's decision, who knows whether it may be.

    :param reactor: what connects, and counts the time of idle connections.
    :param maxConnections: how many idle connections to one server are kept.
    """

    retryAutomatically = False
    cachedConnectionTimeout: float = IDLE_TIMEOUT  # type: ignore[assignment] # as good as an int

    def __init__(self, reactor: Any, maxConnections: int) -> None:
        super().__init__(reactor, persistent=True)  # type: ignore[no-untyped-call] # Twisted has no types there
        self.maxPersistentPerHost = maxConnections
        self._clock: IReactorTime = reactor
        self._known: set[_Connection] = set()
        # Where the last connection to a server begins, by the pool's key for the server.
        self._addresses: dict[Hashable, str] = {}
        self._addressListeners: dict[object, Callable[[str, str], object]] = {}

    # Twisted has a class there, and calls it as one calls a method.
    def _factory(self, quiescentCallback: Callable[[Any], None], metadata: str) -> Any:  # type: ignore[override]
        """What makes the connections: the place that Twisted's pool has for another kind of them."""
        self._known = {connection for connection in self._known if not connection.isLost}
        return _ConnectionFactory(self._clock, self._known, quiescentCallback)

    def getConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        """See HTTPConnectionPool."""
        given: Deferred[Any] = super().getConnection(key, endpoint)
        return given.addCallback(self._given, key)

    def _given(self, connection: _Connection, key: Hashable) -> _Connection:
        if not connection.isGiven:
            connection.isGiven = True
            transport: Any = connection.transport
            self._hasAddress(key, str(transport.getHost().host))
        return connection

    def localAddress(self, url: str) -> str | None:
        """The address of our end of the last connection to the server of this *url*, if there has been one."""
        parsed = URI.fromBytes(url.encode("ascii"))
        return self._addresses.get((parsed.scheme, parsed.host, parsed.port))

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """
        Call *listener* with a server's URL and the address of our end, whenever a connection to the server has another
        address than the connection before.

        :return: a function that ends it.
        """
        key = object()
        self._addressListeners[key] = listener
        return lambda: self._addressListeners.pop(key, None) and None

    def _hasAddress(self, key: Hashable, address: str) -> None:
        if self._addresses.get(key) == address:
            return
        self._addresses[key] = address
        if not self._addressListeners:
            return
        scheme, host, port = cast("tuple[bytes, bytes, int]", key)
        name = host.decode("ascii")
        url = f"{scheme.decode('ascii')}://{f'[{name}]' if ':' in name else name}:{port}/"
        for listener in list(self._addressListeners.values()):
            listener(url, address)

    def close(self) -> Deferred[None]:
        """
        Close all connections, those in use as well.

        :return: fires when all are closed, which takes :data:`CLOSE_GRACE` seconds at most.
        """
        # That one's Deferred waits for ever for a peer that does not take part; so we wait for ourselves.
        self.closeCachedConnections()  # type: ignore[no-untyped-call] # Twisted has no types there
        left = [connection for connection in self._known if connection.transport is not None]
        done = gatherResults([connection.whenLost() for connection in left])

        def cutOff() -> None:
            for connection in left:
                connection.cutOff()

        patience = self._clock.callLater(CLOSE_GRACE, cutOff)

        def allClosed(_: object) -> None:
            if patience.active():
                patience.cancel()

        return done.addCallback(allClosed)


class _Job:
    """One request through a :class:`QueueingAgent`, from its place in the queue to its end."""

    def __init__(self, origin: _Origin, send: Callable[[], Deferred[IResponse]], isUrgent: bool) -> None:
        self.isUrgent = isUrgent
        self.began = 0.0
        self._origin = origin
        self._send = send
        self._sent: Deferred[Any] | None = None
        self._endedBy: Exception | None = None
        self.result: Deferred[IResponse] = Deferred(lambda _: self.end(CancelledError()))

    def start(self) -> None:
        try:
            sent: Deferred[Any] = self._send()
        except Exception:
            sent = fail(Failure())
        self._sent = sent
        sent.addCallback(readWhole)
        sent.addBoth(self._finished)

    def _finished(self, result: WholeResponse | Failure) -> None:
        self._origin.release(self)
        if self._endedBy is None:
            self.result.callback(result)

    def end(self, why: Exception) -> None:
        """Fail now. The slot is free when the connection is closed, which is not necessarily the same moment."""
        if self._endedBy is not None:
            return
        self._endedBy = why
        if self._sent is None:
            self._origin.leave(self)
        else:
            self._sent.cancel()
        # What cancels the result fails it by itself.
        if not isinstance(why, CancelledError):
            self.result.errback(why)


class _Origin:
    """What is under way to one server, and what waits for its turn."""

    def __init__(self, slots: int, clock: IReactorTime | None) -> None:
        self._slots = slots
        self._clock = clock
        self._starting = False
        self.active: set[_Job] = set()
        self.waiting: OrderedDict[_Job, None] = OrderedDict()
        # The waiting requests that are urgent, and the timer that looks at them again when more of the active may hang.
        self._urgent: OrderedDict[_Job, None] = OrderedDict()
        self._look: IDelayedCall | None = None

    def enter(self, job: _Job) -> None:
        if not self.waiting and not self._starting and len(self.active) < self._slots:
            self._starting = True
            try:
                self._start(job)
            finally:
                self._starting = False
            if self.waiting:
                self.startWaiting()
            return
        self.waiting[job] = None
        if job.isUrgent:
            self._urgent[job] = None
        self.startWaiting()

    def leave(self, job: _Job) -> None:
        self.waiting.pop(job, None)
        self._urgent.pop(job, None)
        if self._look is not None and not self._urgent:
            self._look.cancel()
            self._look = None

    def _start(self, job: _Job) -> None:
        self.active.add(job)
        if self._clock is not None:
            job.began = self._clock.seconds()
        job.start()

    def _next(self) -> _Job | None:
        if len(self.active) < self._slots:
            return next(iter(self.waiting), None)
        if not self._urgent:
            return None
        # Requests that hang must not delay urgent ones. One urgent request at a time needs no slot. Further ones need
        # none if the active requests may hang.
        if not any(job.isUrgent for job in self.active) or self._hangs():
            return next(iter(self._urgent))
        return None

    def _hangs(self) -> bool:
        """Whether so many of the active may hang that one more is sent beside them. If not, it looks again in time."""
        if self._clock is None or len(self.active) >= self._slots + MOST_BESIDE:
            return False
        now = self._clock.seconds()
        # Seconds until each of the others may hang too.
        patience = [left for job in self.active if (left := job.began + HANGING - now) > 0]
        if len(patience) < self._slots:
            return True
        if self._look is None:
            # Sums of floating-point seconds may be slightly too small.
            self._look = self._clock.callLater(min(patience) + _TICK, self._lookAgain)
        return False

    def _lookAgain(self) -> None:
        self._look = None
        self.startWaiting()

    def release(self, job: _Job) -> None:
        self.active.discard(job)
        self.startWaiting()

    def startWaiting(self) -> None:
        # Requests that are answered at once (in memory) come back here while they start: one loop is enough.
        if self._starting:
            return
        self._starting = True
        try:
            while (job := self._next()) is not None:
                self.leave(job)
                self._start(job)
        finally:
            self._starting = False


@implementer(IAgent)
class QueueingAgent:
    """
    At most so many requests to one server at once; the others wait, first come, first served.

    A request holds its slot from connecting to the last byte of the body, and its response comes whole: a body that
    stalls can't hang outside of anybody's deadline. Cancelling a request at any stage fails it with
    :class:`~twisted.internet.defer.CancelledError`, closes its connection and frees its slot.

    :param agent: what does the requests.
    :param maxConnections: how many at once, for each scheme, host and port.
    :param isUrgent: whether a request, given by method and URL, must not wait for others that hang. When requests that
        are not urgent have all slots, one urgent request is sent beside them. With a *clock*, up to :data:`MOST_BESIDE`
        are sent beside requests that have had no response for :data:`HANGING` seconds.
    :param clock: times the requests.
    """

    def __init__(
        self,
        agent: IAgent,
        maxConnections: int = 2,
        isUrgent: Callable[[bytes, bytes], bool] = lambda method, uri: False,
        clock: IReactorTime | None = None,
    ) -> None:
        self._agent = agent
        self._clock = clock
        self._maxConnections = maxConnections
        self._isUrgent = isUrgent
        self._origins: dict[bytes, _Origin] = {}
        self._closed = False

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        Do a request when its turn comes.

        :return: fires with an :class:`~twisted.web.iweb.IResponse`, a :class:`WholeResponse`. Fails as the agent
            underneath does, with :class:`ResponseTooLarge`, or with :class:`AgentClosed`.
        """
        if self._closed:
            return fail(AgentClosed())
        # scheme://host:port, which is all that a connection depends on
        key = b"/".join(uri.split(b"/", 3)[:3])
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(self._maxConnections, self._clock)
        isUrgent = self._isUrgent(method, uri)
        job = _Job(origin, lambda: self._agent.request(method, uri, headers, bodyProducer), isUrgent)
        origin.enter(job)
        return job.result

    def close(self) -> None:
        """End all requests, and accept no others: they fail with :class:`AgentClosed`."""
        self._closed = True
        for origin in self._origins.values():
            # The waiting first: a slot that becomes free must not start one of them.
            for job in [*origin.waiting, *origin.active]:
                job.end(AgentClosed())


@implementer(IAgent)
class ResumingAgent:
    """
    When the machine was suspended, fails the requests under way with :class:`StaleConnection`: their connections are
    most likely dead, and no response would come.

    :param agent: sends the requests.
    :param suspends: notices that the machine was suspended.
    """

    def __init__(self, agent: IAgent, suspends: SuspendWatch) -> None:
        self._agent = agent
        self._suspends = suspends

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See :class:`~twisted.web.iweb.IAgent`."""
        asked = self._agent.request(method, uri, headers, bodyProducer)
        answered: Deferred[IResponse] = Deferred(lambda _: asked.cancel())

        def resumed(stoodStill: float) -> None:
            stale = StaleConnection([])  # type: ignore[no-untyped-call] # Twisted has no types there
            self._suspends.discard(resumed)
            answered.errback(stale)
            asked.cancel()

        def over(result: Any) -> None:
            self._suspends.discard(resumed)
            if not answered.called:
                answered.callback(result)

        self._suspends.add(resumed)
        asked.addBoth(over)
        return answered
