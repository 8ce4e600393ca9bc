"""The HTTP connections of one client: a pool, its errors, an agent over it, and a queue before that."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, gatherResults, maybeDeferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseFailed, ResponseNeverReceived
from twisted.web.client import HTTP11ClientProtocol as _HTTP11  # type: ignore[attr-defined] # it is, but not by name
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IClientRequest, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..clock import SuspendWatch
from ..util.deferred import PrioritySemaphore, waitFor
from ..util.fields import netloc
from ..util.logs import Listeners, Logger
from .agent import endpointTo
from .messages import BytesProducer, FixedHeaders, ResponseTooLarge, WholeResponse, readWhole
from .tls import describeTLS

#: A request that has had no response for so many seconds may hang: urgent requests do not wait for its slot any longer.
HANGING = 0.3
#: The most urgent requests that may hang without a slot.
MOST_BESIDE = 6

#: Idle connections are closed after so many seconds: before common servers and balancers do it (60 s and more), because
#: a request on a connection that the other side is closing gets no response.
IDLE_TIMEOUT = 45.0

#: The most bytes before the body of a response: what a broken server can make a client hold.
MAX_HEADERS = 64 * 1024

# A URI that can be sent without escapes.
_PLAIN = re.compile(rb"[!-~]+")


class StaleConnection(ResponseNeverReceived):
    """No byte of a response came, on a connection that was idle before: most likely the server had closed it."""


class InsecureConnection(Exception):
    """The TLS handshake failed, so nothing was sent. The text says why, and what to do."""


class AgentClosed(Exception):
    """The agent was closed before the request was done."""


@implementer(IHandshakeListener)
class _Connection(_HTTP11):
    """One connection. A request that fails does so when the socket is closed (*lost*)."""

    def __init__(self, clock: Any, quiescentCallback: Callable[[Any], None], streams: bool) -> None:
        super().__init__(quiescentCallback)  # type: ignore[no-untyped-call] # Twisted has no types there
        self._clock = clock
        self._streams = streams
        self._used = self._isTLS = self._isSecure = False
        self._headersLeft: float = MAX_HEADERS
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        super().connectionMade()
        self._isTLS = ISSLTransport.providedBy(self.transport)

    def handshakeCompleted(self) -> None:
        """See IHandshakeListener."""
        self._isSecure = True

    def request(self, request: Any) -> Deferred[IResponse]:
        reused, self._used, self._headersLeft = self._used, True, MAX_HEADERS
        answered: Deferred[Any] = super().request(request).addCallback(self._answered)
        if self._isTLS:
            # In the next turn of the reactor. The receiver of the response may stop the reactor, which closes all
            # connections, and Twisted's TLS fails when that happens while it delivers data.
            answered.addCallback(lambda response: deferLater(self._clock, 0, lambda: response))
        answered.addErrback(self._failed, reused)
        return answered

    def dataReceived(self, data: bytes) -> None:
        # Before the next request may begin: data of this response does not count for that.
        self._headersLeft -= len(data)
        super().dataReceived(data)  # type: ignore[no-untyped-call] # Twisted has no types there
        if self._headersLeft < 0:
            self.cutOff()

    def _answered(self, response: Any) -> Any:
        self._headersLeft = math.inf
        if not self._streams:
            return readWhole(response, self.cutOff)
        # The caller reads the body.
        response.abort = self.cutOff
        return response

    def _failed(self, reason: Failure, reused: bool) -> Deferred[Failure]:
        self.cutOff()
        problem, error = reason, cast(Any, reason.value)
        reasons = [inner.value for inner in getattr(error, "reasons", ())]
        if self._isTLS and not self._isSecure:
            # No byte of a request is sent before the end of the handshake.
            text = next(filter(None, (describeTLS(inner, inHandshake=True) for inner in reasons)), None)
            problem = reason if text is None else Failure(InsecureConnection(text))
        elif self._headersLeft < 0:
            tooLarge = Failure(ResponseTooLarge(f"more than {MAX_HEADERS} bytes of headers"))
            problem = Failure(ResponseFailed([tooLarge]))
        elif reused and type(error) is ResponseNeverReceived and CancelledError not in map(type, reasons):
            problem = Failure(StaleConnection(error.reasons))  # type: ignore[no-untyped-call] # Twisted has no types there
        return waitFor(self.lost).addCallback(lambda _: problem)

    def cutOff(self) -> None:
        """Close it at once."""
        cast(Any, self.transport).abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)  # type: ignore[no-untyped-call] # Twisted has no types there
        self.lost.callback(None)


class ConnectionPool(HTTPConnectionPool):
    """
    Persistent connections, at *most* so many idle ones to a server, whose responses come with their bodies. If it
    *streams*, they come without, and with an ``abort`` that closes the connection.
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
        def connected(connection: Any) -> Any:
            address = str(connection.transport.getHost().host)
            if self._addresses.get(key) != address:
                self._addresses[key] = address
                scheme, host, port = cast("tuple[bytes, bytes, int]", key)
                url = f"{scheme.decode('ascii')}://{netloc(host.decode('ascii'), port)}/"
                self._addressListeners.call(url, address)
            return connection

        return super()._newConnection(key, endpoint).addCallback(connected)

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
    """A request that is written with its body at once. Twisted's own costs several times as much."""

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
    An agent for ``http`` and ``https``; connecting has *timeout* seconds. It sends the requests of this library, whose
    headers are valid and whose bodies are in memory, with the least work. Twisted's agent sends all others.
    """

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout = timeout
        self._pool = pool
        self._agent = Agent.usingEndpointFactory(reactor, self, pool)
        # The pool's key for a server, and its endpoint.
        self._targetOf = lru_cache(maxsize=100)(
            lambda origin: (originOf(origin.decode("ascii")), self.endpointForURI(URI.fromBytes(origin)))
        )

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

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See IAgentEndpointFactory."""
        if uri.scheme not in (b"http", b"https"):
            raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
        endpoint = endpointTo(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)


class _Slots(PrioritySemaphore):
    """The slots for requests to one server. Some that hang need none: *besides* says how many more."""

    besides = MOST_BESIDE


class _Job:
    """One request through a :class:`QueueingAgent`. It waits for a slot, then for the response."""

    def __init__(self, slots: _Slots, clock: IReactorTime | None, send: Callable[[], Deferred[IResponse]]) -> None:
        self._slots = slots
        self._clock = clock
        self._send = send
        self._hasSlot = self._hasEnded = False
        self._patience: IDelayedCall | None = None
        self.result: Deferred[IResponse] = Deferred(lambda _: self.end(CancelledError()))
        self._work: Deferred[Any] = slots.take(0.0)
        self._work.addCallbacks(self._start, lambda _: None)

    def _start(self, _: None) -> None:
        self._hasSlot = True
        if self._clock is not None:
            self._patience = self._clock.callLater(HANGING, self._mayHang)
        self._work = maybeDeferred(self._send)
        self._work.addBoth(self._arrived)

    def _mayHang(self) -> None:
        if self._slots.besides:
            self._slots.besides -= 1
            self._hasSlot = False
            self._slots.give()

    def _arrived(self, result: Any) -> Deferred[None] | None:
        if not isinstance(result, (WholeResponse, Failure)):
            return readWhole(result, getattr(result, "abort", None)).addBoth(self._arrived)
        # The connection is closed, or can be used again: that may be later than the end of a cancelled request.
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        if self._hasSlot:
            self._slots.give()
        else:
            self._slots.besides += 1
        if not self._hasEnded:
            self.result.callback(result)
        return None

    def end(self, why: Exception) -> None:
        """Fail now."""
        if not self._hasEnded:
            self._hasEnded = True
            self._work.cancel()
            # A cancelled result fails by itself.
            if not isinstance(why, CancelledError):
                self.result.errback(why)

    def resumed(self, stoodStill: float) -> None:
        """Fail, because the machine was suspended: the connection is most likely dead."""
        self.end(StaleConnection([]))  # type: ignore[no-untyped-call] # Twisted has no types there


@implementer(IAgent)
@attrs.define(eq=False, slots=False, repr=False)
class QueueingAgent:
    """
    Bounds the requests to one server at once. A request holds its slot from connecting to the last byte of the body,
    and its response comes whole. Cancelling it at any stage closes its connection and frees its slot.

    :param most: the most requests at once, for each scheme, host and port.
    :param suspends: fails requests with ``StaleConnection`` when the machine was suspended.
    :param clock: given if the requests are urgent: those that have had no response for :data:`HANGING` seconds need no
        slot, up to :data:`MOST_BESIDE` of them.
    :ivar slots: by server; another agent may share them.
    """

    _agent: IAgent
    _most: int = 2
    _suspends: SuspendWatch | None = None
    _clock: IReactorTime | None = attrs.field(default=None, kw_only=True)
    slots: dict[bytes, _Slots] = attrs.field(factory=dict, kw_only=True)
    _jobs: dict[_Job, None] = attrs.field(factory=dict, init=False)
    _isClosed: bool = attrs.field(default=False, init=False)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent. Fires with a ``WholeResponse``; fails with ``ResponseTooLarge`` or :class:`AgentClosed` too."""
        if self._isClosed:
            return fail(AgentClosed())
        # scheme://host:port
        key = b"/".join(uri.split(b"/", 3)[:3])
        slots = self.slots.get(key) or self.slots.setdefault(key, _Slots(self._most))
        job = _Job(slots, self._clock, lambda: self._agent.request(method, uri, headers, bodyProducer))
        if job.result.called:
            return job.result
        self._jobs[job] = None
        if self._suspends is not None:
            self._suspends.add(job.resumed)

        def over(result: Any) -> Any:
            del self._jobs[job]
            if self._suspends is not None:
                self._suspends.discard(job.resumed)
            return result

        return job.result.addBoth(over)

    def close(self) -> None:
        """End all requests, and accept no others: they fail with :class:`AgentClosed`."""
        self._isClosed = True
        # The waiting first: a slot that becomes free must not start one of them.
        for job in reversed(list(self._jobs)):
            job.end(AgentClosed())
