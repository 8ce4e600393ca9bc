"""
RegistryAgent: HTTP to a tag instead of a host: ``registry://web/status``.

Which instance, and which one next when that fails, is decided here; connections are Twisted's
:class:`~twisted.web.client.Agent`'s.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, uses_netloc, uses_relative

from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IProtocol, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    URI,
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseFailed,
)
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..http.agent import endpointTo, httpAgent
from ..http.bodies import BytesProducer, Collector
from ..http.tls import tlsPolicy
from .balancing import Balancer, TryNext, View, tryEach
from .endpoints import CONNECT_TIMEOUT, checkedConnectTimeout
from .instances import Instance

_SCHEMES = {b"registry": b"http", b"registrys": b"https"}
# urljoin takes these schemes for opaque otherwise, and Twisted's RedirectAgent makes nothing at all of their URLs.
for _scheme in _SCHEMES:
    for _table in (uses_netloc, uses_relative):
        _table.append(_scheme.decode("ascii"))
# RFC 9110, section 9.2.2: doing it twice is no different from doing it once.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
# A body up to so many bytes is kept, so that it can be sent again where that is safe.
_KEPT_BODY = 64 * 1024
# Idle connections to one instance that are kept, and for how many seconds: shorter than servers commonly do.
_KEPT_CONNECTIONS = 8
_KEPT_SECONDS = 45.0


@implementer(IAgent)
class RegistryAgent:
    """
    Does HTTP requests to whatever instance of a tag there is.

    ::

        agent = RegistryAgent(reactor, directory)
        response = await treq.client.HTTPClient(agent).get("registry://web/status")

    ``registry://TAG/path`` is HTTP, ``registrys://TAG/path`` HTTP over TLS, and ``http`` and ``https`` are what they
    always are. Connections are kept for each instance.

    When an instance can't be connected to, the next one is tried. When it fails later, before there is an answer, the
    next one is tried only if the method is idempotent (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) and the body is there to
    be sent again (one of up to 64 KiB is). Whatever answer comes is the result.

    The ``Host`` that is sent, unless there is one in the headers, is the instance's address. A redirect that stays on
    the instance is made one to the tag. A certificate has to be for the instance's host, or for what its metadata call
    ``tls.name``.
    """

    def __init__(
        self,
        reactor: Any,
        directory: View,
        pool: HTTPConnectionPool | None = None,
        *,
        strategy: str = "round-robin",
        timeout: float = CONNECT_TIMEOUT,
        near: Mapping[str, str] | None = None,
        policy: IPolicyForHTTPS | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param reactor: connects.
        :param directory: a :class:`~txserviceregistry.discovery.Directory` that runs. It stays the caller's.
        :param pool: keeps the connections, and stays the caller's; one of its own by default.
        :param strategy: ``round-robin``, ``random`` or ``least-connections``.
        :param timeout: seconds that each instance is given to accept a connection, 0.001 at least; also for how long
            the directory's first listing is waited for.
        :param near: our own ``region`` and ``zone``, to prefer what is near.
        :param policy: whose certificates are trusted; by default those that browsers trust.
        :param random: gives numbers from 0 to 1 to the strategy.
        :raises ValueError: if there is no such strategy, *near* has other keys, or *timeout* is not such a number.
        """
        timeout = checkedConnectTimeout(timeout)
        self._reactor = reactor
        self._directory = directory
        self._options: dict[str, Any] = {"strategy": strategy, "near": near, "random": random}
        policy = tlsPolicy() if policy is None else policy
        self._ownPool: HTTPConnectionPool | None = None
        if pool is None:
            pool = self._ownPool = HTTPConnectionPool(reactor)
            pool.maxPersistentPerHost = _KEPT_CONNECTIONS
            pool.cachedConnectionTimeout = _KEPT_SECONDS  # type: ignore[assignment] # as good as an int
        self._connections = _Connections(reactor, policy, timeout, pool)
        self._elsewhere = httpAgent(reactor, policy, timeout, pool)
        self._balancers: dict[str, Balancer] = {}
        # What is wrong with the options is said now, and not with the first request.
        self._balancer("")

    def close(self) -> Deferred[None]:
        """
        Close the idle connections of the agent's own pool.

        :return: fires with ``None`` when they are closed.
        """
        if self._ownPool is None:
            return succeed(None)
        closed: Deferred[None] = self._ownPool.closeCachedConnections()
        return closed

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        Do a request.

        :return: fires with the response. Fails with :class:`~txserviceregistry.errors.NoServiceAvailable` if there is
            no service with the tag, or none that can be connected to; otherwise as Twisted's Agent does. It may be
            cancelled.
        """
        scheme, _, rest = uri.partition(b"://")
        if scheme not in _SCHEMES:
            return self._elsewhere.request(method, uri, headers, bodyProducer)
        try:
            target = _Target.read(scheme, rest)
        except ValueError as error:
            return fail(SchemeNotSupported(f"{uri!r}: {error}"))
        exchange = _Attempt(self._connections, target, self._balancer(target.tag), method, headers, bodyProducer)
        return exchange.begin()

    def _balancer(self, tag: str) -> Balancer:
        balancer = self._balancers.get(tag)
        if balancer is None:
            # Tags that nobody bears are not worth remembering: they may have come from a URL that somebody typed.
            self._balancers = {tag: one for tag, one in self._balancers.items() if not one.isEmpty}
            balancer = Balancer(self._directory, tag, clock=self._reactor, **self._options)
            self._balancers[tag] = balancer
        return balancer


class _Connections:
    """What a try needs to get through to an instance."""

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool) -> None:
        self.timeout = timeout
        self._reactor = reactor
        self._policy = policy
        self._pool = pool

    def send(
        self, uri: bytes, instance: Instance, watch: _Watch, method: bytes, headers: Headers
    ) -> Deferred[IResponse]:
        """One try, with one instance."""
        endpoint = endpointTo(self._reactor, instance.host, instance.port, self.timeout)
        if uri.startswith(b"https:"):
            creator = self._policy.creatorForNetloc(instance.tlsName.encode("ascii"), instance.port)
            endpoint = wrapClientTLS(creator, endpoint)
        factory = _Only(_WatchedEndpoint(endpoint, watch))
        agent: IAgent = Agent.usingEndpointFactory(self._reactor, factory, self._pool)
        return agent.request(method, uri, headers, watch.body)


class _Target:
    """What a URI means: a tag, and what to ask of it."""

    def __init__(self, scheme: bytes, netloc: bytes, tag: str, path: bytes) -> None:
        self.scheme = scheme
        self.netloc = netloc
        self.tag = tag
        self.path = path

    @classmethod
    def read(cls, scheme: bytes, rest: bytes) -> _Target:
        end = min((at for at in map(rest.find, (b"/", b"?", b"#")) if at >= 0), default=len(rest))
        netloc, path = rest[:end], rest[end:]
        if b":" in netloc or b"@" in netloc:
            raise ValueError("a tag has no port and no user")
        tag = unquote_to_bytes(netloc).decode("utf-8")
        if not tag:
            raise ValueError("there is no tag in it")
        return cls(scheme, netloc, tag, path if path.startswith(b"/") else b"/" + path)

    def uriFor(self, instance: Instance) -> bytes:
        """Where it is at one instance."""
        return b"%b://%b%b" % (_SCHEMES[self.scheme], instance.netloc.encode("ascii"), self.path)

    def hostFor(self, instance: Instance) -> bytes:
        """The ``Host`` to send to it."""
        if self.scheme == b"registry" or instance.tlsName == instance.host:
            return instance.netloc.encode("ascii")
        return f"{instance.tlsName}:{instance.port}".encode("ascii")

    def redirected(self, location: bytes, instance: Instance) -> bytes:
        """
        The absolute form of a ``Location``; one on the same instance is one of the tag, so that whatever instance
        there is by then answers it, and what belongs to the origin (credentials, cookies) goes with it.
        """
        scheme = _SCHEMES[self.scheme]
        base = scheme + b"://" + self.hostFor(instance) + self.path
        try:
            absolute: bytes = urljoin(base, location)
        except ValueError:
            # What it is is the business of whoever follows it.
            return location
        if not absolute.startswith((b"http://", b"https://")):
            return absolute
        parsed = URI.fromBytes(absolute)
        here = {URI.fromBytes(base).netloc, instance.netloc.encode("ascii")}
        netloc = parsed.netloc if b":" in parsed.netloc.rpartition(b"]")[2] else b"%b:%d" % (parsed.netloc, parsed.port)
        if parsed.scheme != scheme or netloc not in here:
            return absolute
        rest = absolute.partition(b"://")[2]
        return self.scheme + b"://" + self.netloc + rest[len(parsed.netloc) :]


class _Attempt:
    """A request, over as many tries as it takes."""

    def __init__(
        self,
        connections: _Connections,
        target: _Target,
        balancer: Balancer,
        method: bytes,
        headers: Headers | None,
        body: IBodyProducer | None,
    ) -> None:
        self._connections = connections
        self._target = target
        self._balancer = balancer
        self._method = method
        self._headers = headers or Headers()
        self._body = body
        self._mayRepeat = method in _IDEMPOTENT
        self._kept: bytes | None = None

    def begin(self) -> Deferred[IResponse]:
        return tryEach(self._balancer, self._attempt, patience=self._connections.timeout)

    async def _attempt(self, instance: Instance) -> IResponse:
        await self._keepBody()
        watch = _Watch(self._body if self._kept is None else BytesProducer(self._kept))
        headers = self._headers.copy()
        if not headers.hasHeader(b"Host"):
            headers.setRawHeaders(b"Host", [self._target.hostFor(instance)])
        self._balancer.began(instance)
        use = _Use(lambda: self._balancer.ended(instance))
        try:
            response = await self._connections.send(
                self._target.uriFor(instance), instance, watch, self._method, headers
            )
        except Exception as error:
            use.end()
            if watch.neverSent(error):
                raise TryNext(_inWords(error, instance))
            if self._mayRepeat and not watch.bodyIsSpent(self._kept) and _mayHaveBeenLost(error):
                raise TryNext(error, wasReached=True)
            raise
        self._balancer.succeeded(instance)
        locations = response.headers.getRawHeaders(b"Location")
        if locations:
            response.headers.setRawHeaders(b"Location", [self._target.redirected(locations[0], instance)])
        return _Answer(response, use)

    async def _keepBody(self) -> None:
        body = self._body
        if body is None or self._kept is not None or not self._mayRepeat:
            return
        if body.length is not UNKNOWN_LENGTH and body.length <= _KEPT_BODY:
            kept = Collector()
            try:
                await maybeDeferred(body.startProducing, kept)
            except CancelledError:
                body.stopProducing()
                raise
            self._kept = kept.body


class _Watch:
    """Sees how far one try has come."""

    def __init__(self, body: Any) -> None:
        self._connected = False
        self._failed: BaseException | None = None
        self.body = None if body is None else _WatchedBody(body)

    def connected(self) -> None:
        self._connected = True

    def failed(self, error: BaseException | None) -> None:
        self._failed = error

    def neverSent(self, error: BaseException) -> bool:
        """Whether nothing of the request can have come to the instance, and it is the instance that is to blame."""
        if error is self._failed and isinstance(error, (ConnectError, OSError)):
            # A connection out of the pool was tried before this one, if a request was begun.
            return self.body is None or not self.body.started
        # A connection that was made for this try: its handshake comes before the request.
        return self._connected and _tlsError(error) is not None

    def bodyIsSpent(self, kept: bytes | None) -> bool:
        """Whether there is a body that can't be sent again."""
        return kept is None and self.body is not None and self.body.started


@implementer(IStreamClientEndpoint)
class _WatchedEndpoint:
    """Tells a :class:`_Watch` what comes of connecting."""

    def __init__(self, endpoint: IStreamClientEndpoint, watch: _Watch) -> None:
        self._endpoint = endpoint
        self._watch = watch

    def connect(self, protocolFactory: Any) -> Deferred[IProtocol]:
        def connected(protocol: IProtocol) -> IProtocol:
            self._watch.connected()
            return protocol

        def failed(failure: Failure) -> Failure:
            self._watch.failed(failure.value)
            return failure

        # Twisted's own would write a line to the log for each connection.
        protocolFactory.noisy = False
        return self._endpoint.connect(protocolFactory).addCallbacks(connected, failed)


@implementer(IBodyProducer)
class _WatchedBody:
    """A body that knows whether it was begun."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self.length = body.length
        self.started = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.started = True
        produced: Deferred[None] = self._body.startProducing(consumer)
        return produced

    def pauseProducing(self) -> None:
        self._body.pauseProducing()

    def resumeProducing(self) -> None:
        self._body.resumeProducing()

    def stopProducing(self) -> None:
        self._body.stopProducing()


class _Use:
    """A use of an instance, which ends once."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self._ended: Callable[[], None] | None = ended

    def end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class _LastingUse(Protocol):
    """Hands a body on, and ends the use with it."""

    def __init__(self, wrapped: IProtocol, use: _Use) -> None:
        self._wrapped = wrapped
        self._use = use

    def makeConnection(self, transport: Any) -> None:
        self._wrapped.makeConnection(transport)

    def dataReceived(self, data: bytes) -> None:
        self._wrapped.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._use.end()
        self._wrapped.connectionLost(reason)


@implementer(IResponse)
class _Answer:
    """A response; the instance is in use until its body has been read."""

    def __init__(self, original: IResponse, use: _Use) -> None:
        self._original = original
        self._use = use
        self.version = original.version
        self.code = original.code
        self.phrase = original.phrase
        self.headers = original.headers
        self.length = original.length
        self.request = original.request
        self.previousResponse = original.previousResponse
        if self.length == 0:
            use.end()

    def deliverBody(self, protocol: IProtocol) -> None:
        """See IResponse."""
        self._original.deliverBody(_LastingUse(protocol, self._use))

    def setPreviousResponse(self, response: IResponse) -> None:
        """See IResponse."""
        self.previousResponse = response


@implementer(IAgentEndpointFactory)
class _Only:
    """The one endpoint that there is."""

    def __init__(self, endpoint: IStreamClientEndpoint) -> None:
        self._endpoint = endpoint

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self._endpoint


def _reasons(error: BaseException) -> list[BaseException]:
    return [failure.value for failure in getattr(error, "reasons", None) or ()]


def _tlsError(error: BaseException) -> BaseException | None:
    """What went wrong with the handshake: no request goes out before that is done."""
    found = [one for one in (error, *_reasons(error)) if isinstance(one, (TLSError, VerificationError))]
    return found[0] if found else None


def _inWords(error: Exception, instance: Instance) -> Exception:
    tls = _tlsError(error)
    if tls is None:
        return error
    if isinstance(tls, VerificationError):
        return ConnectError(string=f"TLS: the certificate is not for {instance.tlsName}")
    reasons = [str(part[-1]) for part in (tls.args[0] if tls.args else ()) if part]
    return ConnectError(string=f"TLS: {'; '.join(reasons) or 'the handshake failed'}")


def _mayHaveBeenLost(error: BaseException) -> bool:
    """Whether it is a connection that failed, with or without parts of an answer."""
    if not isinstance(error, (ResponseFailed, RequestTransmissionFailed)):
        return False
    return not any(isinstance(reason, CancelledError) for reason in _reasons(error))
