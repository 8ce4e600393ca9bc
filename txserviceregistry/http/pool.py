"""
The connection pool: idle connections, the connections of one client, and what is wrong with them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import (
    IHandshakeListener,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, HTTPConnectionPool, ResponseNeverReceived
from twisted.web.client import HTTP11ClientProtocol as _HTTP11  # type: ignore[attr-defined] # it is, but not by name
from twisted.web.iweb import IResponse
from zope.interface import implementer

from .bodies import WholeResponse, readWhole
from .tls import describeTLS

#: Idle connections are closed after so many seconds: before common servers and balancers do it (60 s and more), because
#: a request on a connection that the other side is closing gets no answer.
IDLE_TIMEOUT = 45.0
#: A peer that does not answer the orderly end of a TLS connection for so many seconds is cut off.
CLOSE_GRACE = 1.0


class StaleConnection(ResponseNeverReceived):
    """No byte of an answer came, on a connection out of the pool: most likely the server had closed it meanwhile."""


class InsecureConnection(Exception):
    """TLS did not come about, so nothing was sent; the text says why, and what to do."""


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
