"""The connections of one client: a pool, their errors, and requests over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import (
    IHandshakeListener,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.client import HTTP11ClientProtocol as _HTTP11  # type: ignore[attr-defined] # it is, but not by name
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IClientRequest, IResponse
from zope.interface import implementer

from ..util.deferred import Waiters, cancelWith
from ..util.fields import netloc
from ..util.logs import Listeners, Logger
from .bodies import BytesProducer, FixedHeaders, WholeResponse, readWhole
from .tls import describeTLS

#: Idle connections are closed after so many seconds: before common servers and balancers do it (60 s and more), because
#: a request on a connection that the other side is closing gets no answer.
IDLE_TIMEOUT = 45.0
#: A peer that does not answer the orderly end of a TLS connection for so many seconds is cut off.
CLOSE_GRACE = 1.0

# The most servers whose endpoints are kept: more than any registry has.
_MOST_SERVERS = 100

# A URI that can be sent without escapes.
_PLAIN = re.compile(rb"[!-~]+")


class StaleConnection(ResponseNeverReceived):
    """No byte of a response came, on a connection that was idle before: most likely the server had closed it."""


class InsecureConnection(Exception):
    """The TLS handshake failed, so nothing was sent. The text says why, and what to do."""


def _asStale(reason: Failure) -> Failure:
    error = reason.value
    if type(error) is not ResponseNeverReceived or any(inner.check(CancelledError) for inner in error.reasons):
        return reason
    stale = StaleConnection(error.reasons)  # type: ignore[no-untyped-call] # Twisted has no types there
    return Failure(stale)


@implementer(IHandshakeListener)
class _Connection(_HTTP11):
    """
    One connection. Its responses come with their bodies, unless they are streamed, and a request that fails does so
    when the socket is closed.
    """

    def __init__(self, clock: IReactorTime, quiescentCallback: Callable[[Any], None], streams: bool) -> None:
        super().__init__(quiescentCallback)  # type: ignore[no-untyped-call] # Twisted has no types there
        self._clock = clock
        self._streams = streams
        self._used = False
        self._isTLS = False
        self._isSecure = False
        self._whenLost: Waiters[None] = Waiters()
        self.isLost = False

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
        answered.addCallback(self._streamed if self._streams else partial(readWhole, abort=self.cutOff))
        if self._isTLS:
            answered.addCallback(self._afterwards)
        answered.addErrback(failed)
        return answered

    def _streamed(self, response: Any) -> Any:
        """A response whose body is read by the caller, who may *abort* it."""
        response.abort = self.cutOff
        return response

    def handshakeCompleted(self) -> None:
        """See IHandshakeListener."""
        self._isSecure = True

    def _afterwards(self, response: WholeResponse) -> Deferred[WholeResponse]:
        """
        The response in the next turn of the reactor. Its receiver may stop the reactor, which closes all connections,
        and Twisted's TLS fails when that happens while it delivers data.
        """
        turn: Deferred[WholeResponse] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(0, turn.callback, response)
        return turn

    def _asInsecure(self, reason: Failure) -> Failure | None:
        """Why the TLS handshake failed, if it did. No byte of a request is sent before its end."""
        if self._isSecure or not self._isTLS:
            return None
        error = reason.value
        for inner in getattr(error, "reasons", ()):
            text = describeTLS(inner.value, inHandshake=True)
            if text is not None:
                return Failure(InsecureConnection(text))
        return None

    def cutOff(self) -> None:
        """Close it at once."""
        transport: Any = self.transport
        transport.abortConnection()

    def whenLost(self) -> Deferred[None]:
        return succeed(None) if self.isLost else self._whenLost.wait()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.isLost = True
        super().connectionLost(reason)  # type: ignore[no-untyped-call] # Twisted has no types there
        self._whenLost.fire(None)


class _ConnectionFactory(Factory):
    noisy = False


class ConnectionPool(HTTPConnectionPool):
    """
    Persistent connections, whose responses come with their bodies. A request fails with :class:`StaleConnection` if the
    server had closed the idle connection: the caller decides whether it is sent again.

    :param maxConnections: the most idle connections to one server.
    :param streams: whether responses come as soon as their headers are there, with an ``abort`` that closes the
        connection.
    """

    retryAutomatically = False
    cachedConnectionTimeout: float = IDLE_TIMEOUT  # type: ignore[assignment] # as good as an int

    def __init__(self, reactor: Any, maxConnections: int, *, streams: bool = False) -> None:
        super().__init__(reactor, persistent=not streams)  # type: ignore[no-untyped-call] # Twisted has no types there
        self.maxPersistentPerHost = maxConnections
        self._clock: IReactorTime = reactor
        self._streams = streams
        self._known: set[_Connection] = set()
        # The local address of the last connection to a server, by the pool's key for the server.
        self._addresses: dict[Hashable, str] = {}
        self._addressListeners: Listeners[str, str] = Listeners(Logger(), "local addresses")

    # Twisted has a class there.
    def _factory(self, quiescentCallback: Callable[[Any], None], metadata: str) -> Any:  # type: ignore[override]
        self._known = {connection for connection in self._known if not connection.isLost}

        def connection() -> _Connection:
            made = _Connection(self._clock, quiescentCallback, self._streams)
            self._known.add(made)
            return made

        factory = _ConnectionFactory()
        factory.protocol = connection
        return factory

    def _newConnection(self, key: Hashable, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        return super()._newConnection(key, endpoint).addCallback(self._connected, key)

    def _connected(self, connection: Any, key: Hashable) -> Any:
        transport = connection.transport
        address = str(transport.getHost().host)
        if self._addresses.get(key) != address:
            self._addresses[key] = address
            scheme, host, port = cast("tuple[bytes, bytes, int]", key)
            url = f"{scheme.decode('ascii')}://{netloc(host.decode('ascii'), port)}/"
            self._addressListeners.call(url, address)
        return connection

    def localAddress(self, url: str) -> str | None:
        """The local address of the last connection to the server of this *url*, if there has been one."""
        parsed = URI.fromBytes(url.encode("ascii"))
        return self._addresses.get((parsed.scheme, parsed.host, parsed.port))

    def onLocalAddress(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """
        Call *listener* with a server's URL and a local address, whenever a connection to the server has another local
        address than the connection before, until the function that is returned is called.
        """
        return self._addressListeners.add(listener)

    def close(self) -> Deferred[None]:
        """Close all connections, also those in use. Fires when it is done, after :data:`CLOSE_GRACE` s at most."""
        # Its Deferred is not used: it does not fire for a peer that does not take part in closing.
        self.closeCachedConnections()  # type: ignore[no-untyped-call] # Twisted has no types there
        left = [connection for connection in self._known if connection.transport is not None]
        done = gatherResults([connection.whenLost() for connection in left], consumeErrors=True)

        def cutOff() -> None:
            for connection in left:
                connection.cutOff()

        return cancelWith(self._clock.callLater(CLOSE_GRACE, cutOff), done).addCallback(lambda _: None)


@implementer(IClientRequest)
@attrs.define(eq=False)
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


@implementer(IAgent)
class PooledAgent:
    """
    Sends the requests of this library with the least work: their headers are valid, their bodies are in memory, and the
    endpoints of their servers are kept. Twisted's agent sends all others over the same pool.
    """

    def __init__(self, agent: IAgent, endpoints: IAgentEndpointFactory, pool: HTTPConnectionPool) -> None:
        self._agent = agent
        self._endpoints = endpoints
        self._pool = pool
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
            return self._agent.request(method, uri, headers, bodyProducer)
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
        parsed = URI.fromBytes(origin)
        return (parsed.scheme, parsed.host, parsed.port), self._endpoints.endpointForURI(parsed)
