"""
Attempts: one HTTP request, sent to one instance after another until there is a response.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import attrs
from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, maybeDeferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IProtocol, IStreamClientEndpoint
from twisted.python.components import proxyForInterface
from twisted.web.client import URI, Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..http.agent import endpointTo
from ..http.bodies import BytesProducer, Collector
from ..util.deferred import returnsDeferred
from .balancing import Balancer, TryNext
from .endpoints import WatchedProtocol
from .instances import Instance
from .target import Target

# RFC 9110, section 9.2.2: doing it twice has the same effect as doing it once.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
# A body of at most so many bytes is kept, so that it can be sent again where that is safe.
_KEPT_BODY = 64 * 1024


@attrs.define
class BalancedRequest:
    """A request to a tag, which may take several attempts, each within *timeout* seconds to connect."""

    reactor: Any
    policy: IPolicyForHTTPS
    timeout: float
    pool: HTTPConnectionPool
    target: Target
    balancer: Balancer
    method: bytes
    headers: Headers
    body: IBodyProducer | None
    _kept: bytes | None = None

    async def attempt(self, instance: Instance) -> IResponse:
        """Send it to one instance; see :func:`~txserviceregistry.discovery.balancing.tryEach`."""
        await self._keepBody()
        target = self.target
        endpoint = endpointTo(self.reactor, instance.host, instance.port, self.timeout)
        if target.isTLS:
            creator = self.policy.creatorForNetloc(instance.tlsName.encode("ascii"), instance.port)
            endpoint = wrapClientTLS(creator, endpoint)
        watch = _Watch(endpoint, self.body if self._kept is None else BytesProducer(self._kept))
        headers = self.headers.copy()
        if not headers.hasHeader(b"Host"):
            headers.setRawHeaders(b"Host", [target.hostFor(instance)])
        agent = Agent.usingEndpointFactory(self.reactor, watch, self.pool)
        with ExitStack() as use:
            self.balancer.strategy.began(instance)
            use.callback(self.balancer.strategy.ended, instance)
            try:
                response: IResponse = await agent.request(self.method, target.uriFor(instance), headers, watch.body)
            except Exception as error:
                if watch.isUnsent(error):
                    raise TryNext(_described(error, instance))
                canRepeat = self.method in _IDEMPOTENT and (self._kept is not None or not watch.isBodyBegun)
                if canRepeat and _isConnectionLost(error):
                    raise TryNext(error, wasReached=True)
                raise
            # It ends when the body has been read.
            use = use.pop_all()
        self.balancer.ejections.succeeded(instance)
        locations = response.headers.getRawHeaders(b"Location")
        if locations:
            response.headers.setRawHeaders(b"Location", [target.redirected(locations[0], instance)])
        return _Response(response, use)

    async def _keepBody(self) -> None:
        body = self.body
        if body is None or self._kept is not None or self.method not in _IDEMPOTENT:
            return
        if body.length is not UNKNOWN_LENGTH and body.length <= _KEPT_BODY:
            kept = Collector()
            try:
                await maybeDeferred(body.startProducing, kept)
            except CancelledError:
                body.stopProducing()
                raise
            self._kept = kept.body


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Watch:
    """The endpoint of one attempt, which observes how far the attempt gets, and the body to send."""

    def __init__(self, endpoint: IStreamClientEndpoint, body: Any) -> None:
        self.body = None if body is None else _WatchedBody(body)
        self._endpoint = endpoint
        self._isConnected = False
        self._failed: BaseException | None = None

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See IAgentEndpointFactory."""
        return self

    @returnsDeferred
    async def connect(self, protocolFactory: Any) -> IProtocol:
        """See IStreamClientEndpoint."""
        # Twisted's own factory would log a line for each connection.
        protocolFactory.noisy = False
        try:
            protocol = await self._endpoint.connect(protocolFactory)
        except Exception as error:
            self._failed = error
            raise
        self._isConnected = True
        return protocol

    @property
    def isBodyBegun(self) -> bool:
        return self.body is not None and self.body.isBegun

    def isUnsent(self, error: BaseException) -> bool:
        """Whether *error* is the instance's fault, and came before any part of the request was sent."""
        if error is self._failed and isinstance(error, (ConnectError, OSError)):
            # A connection of the pool was tried before this one, if the body was begun.
            return not self.isBodyBegun
        # On a connection that was made for this attempt, the handshake comes before the request.
        return self._isConnected and _tlsError(error) is not None


class _WatchedBody(proxyForInterface(IBodyProducer, "_body")):  # type: ignore[misc] # a class made by Twisted
    """A body that knows whether it was begun."""

    isBegun = False

    def startProducing(self, consumer: IConsumer) -> Any:
        self.isBegun = True
        return super().startProducing(consumer)


class _Response(proxyForInterface(IResponse, "_original")):  # type: ignore[misc] # as above
    """A response; the instance is in use until its body has been read."""

    def __init__(self, original: IResponse, use: ExitStack) -> None:
        super().__init__(original)
        self._use = use
        if original.length == 0:
            use.close()

    def deliverBody(self, protocol: IProtocol) -> None:
        """See IResponse."""
        self._original.deliverBody(WatchedProtocol(protocol, self._use.close))


def _reasons(error: BaseException) -> list[BaseException]:
    return [failure.value for failure in getattr(error, "reasons", None) or ()]


def _tlsError(error: BaseException) -> BaseException | None:
    """What went wrong with the handshake: no request is sent before that is done."""
    errors = (error, *_reasons(error))
    return next((one for one in errors if isinstance(one, (TLSError, VerificationError))), None)


def _described(error: Exception, instance: Instance) -> Exception:
    """*error*, with a text if it is one of TLS."""
    tls = _tlsError(error)
    if tls is None:
        return error
    if isinstance(tls, VerificationError):
        return ConnectError(string=f"TLS: the certificate is not for {instance.tlsName}")
    reasons = [str(part[-1]) for part in (tls.args[0] if tls.args else ()) if part]
    return ConnectError(string=f"TLS: {'; '.join(reasons) or 'handshake failed'}")


def _isConnectionLost(error: BaseException) -> bool:
    """Whether the connection failed, with or without parts of a response, and the request was not cancelled."""
    isFailed = isinstance(error, (ResponseFailed, RequestTransmissionFailed))
    return isFailed and not any(isinstance(reason, CancelledError) for reason in _reasons(error))
