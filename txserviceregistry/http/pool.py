"""The HTTP connections of one client: bodies that are read whole, a pool, its errors, and an agent over it."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import cached_property, lru_cache, partial
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IConsumer,
    IHandshakeListener,
    IProtocol,
    ISSLTransport,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.client import HTTP11ClientProtocol as _HTTP11  # type: ignore[attr-defined] # it is, but not by name
from twisted.web.error import SchemeNotSupported
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IClientRequest, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..util.deferred import waitFor
from ..util.fields import netloc
from ..util.logs import Listeners, Logger
from .agent import endpointTo
from .tls import describeTLS

#: The most bytes of a response. The API's are much shorter; it bounds what a broken server can make a client hold.
MAX_BODY = 16 * 1024 * 1024

#: Idle connections are closed after so many seconds: before common servers and balancers do it (60 s and more), because
#: a request on a connection that the other side is closing gets no answer.
IDLE_TIMEOUT = 45.0

# The most servers whose endpoints are kept: more than any registry has.
_MOST_SERVERS = 100

# A URI that can be sent without escapes.
_PLAIN = re.compile(rb"[!-~]+")


class ResponseTooLarge(Exception):
    """The body of a response was longer than :data:`MAX_BODY`."""


@implementer(IBodyProducer)
class BytesProducer:
    """A request's body that is in memory, and can be sent more than once."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Everything is written at once."""

    resumeProducing = stopProducing = pauseProducing


class FixedHeaders(Headers):
    """All headers of a request, Host among them, which are never changed."""

    @cached_property
    def encoded(self) -> bytes:
        """The lines of a request."""
        return b"".join(b"%b: %b\r\n" % (name, each) for name, values in self.getAllRawHeaders() for each in values)


class _Nowhere:
    """The transport of a body that has arrived already."""

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = loseConnection = abortConnection = pauseProducing


@implementer(IResponse)
@attrs.define(eq=False, slots=False, repr=False)
class WholeResponse:
    """A response whose body is here."""

    code: int
    headers: Headers
    body: bytes
    version: Any = (b"HTTP", 1, 1)
    phrase: bytes = b""
    request: Any = None
    previousResponse: Any = None

    @property
    def length(self) -> int:
        return len(self.body)

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

    transport: Any

    def __init__(self, response: IResponse, abort: Callable[[], object] | None) -> None:
        self._response = response
        self._abort = abort
        self._parts: list[bytes] = []
        self._size = 0
        self.whole: Deferred[WholeResponse] = Deferred(lambda _: self._end())

    def _end(self) -> None:
        (self._abort or self.transport.loseConnection)()

    def dataReceived(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_BODY:
            self._parts.clear()
            if not self.whole.called:
                self._end()
                self.whole.errback(ResponseTooLarge(f"more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        # Without a length the end of the connection is the end of the body; whether it is whole, the JSON says.
        if isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            of, body = self._response, b"".join(self._parts)
            self.whole.callback(
                WholeResponse(of.code, of.headers, body, of.version, of.phrase, of.request, of.previousResponse)
            )
        else:
            self.whole.errback(reason)


def readWhole(response: IResponse, abort: Callable[[], object] | None = None) -> Deferred[WholeResponse]:
    """The response with its body; *abort* ends the connection, instead of the transport that the body comes with."""
    if isinstance(response, WholeResponse):
        return succeed(response)
    body = _Body(response, abort)
    response.deliverBody(body)
    return body.whole


class StaleConnection(ResponseNeverReceived):
    """No byte of a response came, on a connection that was idle before: most likely the server had closed it."""


class InsecureConnection(Exception):
    """The TLS handshake failed, so nothing was sent. The text says why, and what to do."""


@implementer(IHandshakeListener)
class _Connection(_HTTP11):
    """
    One connection. Its responses come with their bodies, unless they are streamed, and a request that fails does so
    when the socket is closed (*lost*).
    """

    def __init__(self, clock: Any, quiescentCallback: Callable[[Any], None], streams: bool) -> None:
        super().__init__(quiescentCallback)  # type: ignore[no-untyped-call] # Twisted has no types there
        self._clock = clock
        self._streams = streams
        self._used = False
        self._isTLS = False
        self._isSecure = False
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        super().connectionMade()
        self._isTLS = ISSLTransport.providedBy(self.transport)

    def handshakeCompleted(self) -> None:
        """See IHandshakeListener."""
        self._isSecure = True

    def request(self, request: Any) -> Deferred[IResponse]:
        reused, self._used = self._used, True
        read: Any = self._streamed if self._streams else partial(readWhole, abort=self.cutOff)
        answered: Deferred[Any] = super().request(request).addCallback(read)
        if self._isTLS:
            # In the next turn of the reactor. The receiver of the response may stop the reactor, which closes all
            # connections, and Twisted's TLS fails when that happens while it delivers data.
            answered.addCallback(lambda response: deferLater(self._clock, 0, lambda: response))
        answered.addErrback(self._failed, reused)
        return answered

    def _streamed(self, response: Any) -> Any:
        """A response whose body is read by the caller, who may *abort* it."""
        response.abort = self.cutOff
        return response

    def _failed(self, reason: Failure, reused: bool) -> Deferred[Failure]:
        self.cutOff()
        problem = self._explained(reason.value, reused) or reason
        return waitFor(self.lost).addCallback(lambda _: problem)

    def _explained(self, error: Any, reused: bool) -> Failure | None:
        reasons = [inner.value for inner in getattr(error, "reasons", ())]
        if self._isTLS and not self._isSecure:
            # No byte of a request is sent before the end of the handshake.
            texts = (describeTLS(inner, inHandshake=True) for inner in reasons)
            text = next(filter(None, texts), None)
            return None if text is None else Failure(InsecureConnection(text))
        isCancelled = any(isinstance(inner, CancelledError) for inner in reasons)
        if not reused or isCancelled or type(error) is not ResponseNeverReceived:
            return None
        stale = StaleConnection(error.reasons)  # type: ignore[no-untyped-call] # Twisted has no types there
        return Failure(stale)

    def cutOff(self) -> None:
        """Close it at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call] # Twisted has no types there
        self.lost.callback(None)


class ConnectionPool(HTTPConnectionPool):
    """
    Persistent connections, at *most* so many idle ones to a server, whose responses come with their bodies. A request
    fails with :class:`StaleConnection` if the server had closed the idle connection: the caller decides whether it is
    sent again. A pool that *streams* has responses without their bodies, with an ``abort`` that closes the connection.
    """

    retryAutomatically = False
    cachedConnectionTimeout: float = IDLE_TIMEOUT  # type: ignore[assignment] # as good as an int

    def __init__(self, reactor: Any, most: int, *, streams: bool = False) -> None:
        super().__init__(reactor, persistent=not streams)  # type: ignore[no-untyped-call] # Twisted has no types there
        self.maxPersistentPerHost = most
        self._clock = reactor
        self._streams = streams
        self._known: set[_Connection] = set()
        # The local address of the last connection to a server, by the pool's key for the server.
        self._addresses: dict[Hashable, str] = {}
        self._addressListeners: Listeners[str, str] = Listeners(Logger(), "local addresses")

    # Twisted has a class there.
    def _factory(self, quiescentCallback: Callable[[Any], None], metadata: str) -> Any:  # type: ignore[override]
        self._known = {connection for connection in self._known if not connection.lost.called}

        def connection() -> _Connection:
            made = _Connection(self._clock, quiescentCallback, self._streams)
            self._known.add(made)
            return made

        factory = Factory()
        factory.noisy = False
        factory.protocol = connection
        return factory

    def _newConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        return super()._newConnection(key, endpoint).addCallback(self._connected, key)

    def _connected(self, connection: Any, key: Hashable) -> Any:
        address = str(connection.transport.getHost().host)
        if self._addresses.get(key) != address:
            self._addresses[key] = address
            scheme, host, port = cast("tuple[bytes, bytes, int]", key)
            url = f"{scheme.decode('ascii')}://{netloc(host.decode('ascii'), port)}/"
            self._addressListeners.call(url, address)
        return connection

    def localAddress(self, url: str) -> str | None:
        """The local address of the last connection to the server of this *url*, if there has been one."""
        return self._addresses.get(originOf(url))

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """Call *listener* with a server's URL and the local address of a connection to it, if that has changed."""
        return self._addressListeners.add(listener)

    def close(self) -> Deferred[None]:
        """Close all connections, also those in use, without waiting for their peers. Fires when it is done."""
        left = [each for each in self._known if each.transport is not None and not each.lost.called]
        for connection in left:
            connection.cutOff()
        self.closeCachedConnections()  # type: ignore[no-untyped-call] # Twisted has no types there
        return gatherResults([waitFor(connection.lost) for connection in left]).addCallback(lambda _: None)


def originOf(url: str) -> tuple[bytes, bytes, int]:
    """The scheme, host and port of a URL, which are the pool's key for a server."""
    uri = URI.fromBytes(url.encode("ascii"))
    return uri.scheme, uri.host, uri.port


@implementer(IClientRequest)
@attrs.define(eq=False, repr=False)
class _Request:
    """
    A request whose body is in memory, which is written with its headers at once. Twisted's own is made for bodies that
    are produced bit by bit, and costs several times as much.
    """

    method: bytes
    absoluteURI: bytes
    uri: bytes
    headers: FixedHeaders
    bodyProducer: BytesProducer | None
    persistent: bool

    def writeTo(self, transport: ITransport) -> Deferred[None]:
        """Write it, all at once."""
        body = b"" if self.bodyProducer is None else self.bodyProducer.body
        length = b"Content-Length: %d\r\n" % len(body) if body or self.method in (b"PUT", b"POST") else b""
        close = b"" if self.persistent else b"Connection: close\r\n"
        transport.write(
            b"%b %b HTTP/1.1\r\n%b%b%b\r\n%b" % (self.method, self.uri, close, self.headers.encoded, length, body)
        )
        return succeed(None)

    def stopWriting(self) -> None:
        """All is written."""


@implementer(IAgent, IAgentEndpointFactory)
class PooledAgent:
    """
    An agent for ``http`` and ``https``. It sends the requests of this library with the least work: their headers are
    valid, their bodies are in memory, and the endpoints of their servers are kept. Twisted's agent sends all others
    over the same pool. Connecting has *timeout* seconds.
    """

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout = timeout
        self._pool = pool
        self._agent = Agent.usingEndpointFactory(reactor, self, pool)
        self._targetOf = lru_cache(maxsize=_MOST_SERVERS)(self._find)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        pieces = uri.split(b"/", 3)
        if (
            not isinstance(headers, FixedHeaders)
            or not (bodyProducer is None or isinstance(bodyProducer, BytesProducer))
            or len(pieces) != 4
            or not _PLAIN.fullmatch(uri)
        ):
            sent: Deferred[IResponse] = self._agent.request(method, uri, headers, bodyProducer)
            return sent
        try:
            target = self._targetOf(b"%b//%b/" % (pieces[0], pieces[2]))
        except SchemeNotSupported:
            return fail()
        request = _Request(method, uri, b"/" + pieces[3], headers, bodyProducer, self._pool.persistent)
        connecting: Deferred[Any] = self._pool.getConnection(*target)
        connection: Any = connecting.result if connecting.called else None
        if isinstance(connection, _HTTP11):
            # Nearly always. It spares the chaining of two Deferreds.
            return cast(Any, connection).request(request)  # type: ignore[no-any-return] # Twisted has no types there
        return connecting.addCallback(lambda connection: connection.request(request))

    def _find(self, origin: bytes) -> tuple[tuple[bytes, bytes, int], IStreamClientEndpoint]:
        """The pool's key for a server, and its endpoint."""
        return originOf(origin.decode("ascii")), self.endpointForURI(URI.fromBytes(origin))

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See IAgentEndpointFactory."""
        if uri.scheme not in (b"http", b"https"):
            raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
        endpoint = endpointTo(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
