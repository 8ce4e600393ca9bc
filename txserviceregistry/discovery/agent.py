"""RegistryAgent: HTTP requests to a tag instead of a host: ``registry://web/status``."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit, urlunsplit, uses_netloc, uses_relative

import attrs
from OpenSSL.SSL import Error as TLSError
from service_identity import VerificationError
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocol, IStreamClientEndpoint
from twisted.python.components import proxyForInterface
from twisted.web.client import URI, Agent, HTTPConnectionPool, RequestTransmissionFailed, ResponseFailed
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IAgent, IAgentEndpointFactory, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

from ..http.agent import endpointTo
from ..http.messages import BytesProducer
from ..http.pool import IDLE_TIMEOUT, PooledAgent
from ..http.tls import tlsPolicy
from ..util.deferred import returnsDeferred
from .balancing import Balancer, Instance, TryNext, tryEach
from .directory import THRESHOLD, Directory, Suspects
from .endpoints import CONNECT_TIMEOUT, checkedConnectTimeout, whenLost

_KEPT_CONNECTIONS = 8  # idle connections to one instance that are kept

# RFC 9110, section 9.2.2: doing it twice has the same effect as doing it once.
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_KEPT_BODY = 64 * 1024  # a body of at most so many bytes is kept, so that it can be sent again where that is safe

#: The schemes of a tag, and what each of them is at an instance.
SCHEMES = {b"registry": b"http", b"registrys": b"https"}


@attrs.frozen
class Target:
    """A tag, also as it is quoted in the URI (*netloc*), and the path with the query."""

    scheme: bytes
    netloc: bytes
    tag: str
    path: bytes

    @classmethod
    def read(cls, uri: bytes) -> Target | None:
        """The target of a URI, ``None`` if it has another scheme; raises ValueError if the tag is not valid."""
        if not uri.startswith(tuple(scheme + b"://" for scheme in SCHEMES)):
            return None
        parts = urlsplit(uri)
        if b":" in parts.netloc or b"@" in parts.netloc:
            raise ValueError("a tag can't have a port or a user")
        tag = unquote_to_bytes(parts.netloc).decode("utf-8")
        if not tag:
            raise ValueError("the tag is missing")
        return cls(parts.scheme, parts.netloc, tag, urlunsplit((b"", b"", parts.path or b"/", parts.query, b"")))

    @property
    def isTLS(self) -> bool:
        return self.scheme == b"registrys"

    def uriFor(self, instance: Instance) -> bytes:
        """The URI at one instance."""
        return b"%b://%b%b" % (SCHEMES[self.scheme], instance.netloc.encode("ascii"), self.path)

    def hostFor(self, instance: Instance) -> bytes:
        """The ``Host`` header for one instance."""
        if not self.isTLS or instance.tlsName == instance.host:
            return instance.netloc.encode("ascii")
        return f"{instance.tlsName}:{instance.port}".encode("ascii")

    def redirected(self, location: bytes, instance: Instance) -> bytes:
        """A ``Location`` in its absolute form. One on the same instance becomes one of the tag."""
        scheme = SCHEMES[self.scheme]
        try:
            absolute = urlsplit(urljoin(b"%b://%b%b" % (scheme, self.hostFor(instance), self.path), location))
            port = absolute.port or (443 if self.isTLS else 80)
        except ValueError:
            # The agent that follows redirects reports it.
            return location
        names = {name.lower().encode("ascii") for name in (instance.host, instance.tlsName if self.isTLS else "")}
        isHere = absolute.hostname in names and port == instance.port and b"@" not in absolute.netloc
        if absolute.scheme == scheme and isHere:
            absolute = absolute._replace(scheme=self.scheme, netloc=self.netloc)
        return absolute.geturl()


async def _kept(body: IBodyProducer | None) -> bytes | None:
    """The content of a body, if it is small."""
    if body is None or body.length is UNKNOWN_LENGTH or body.length > _KEPT_BODY:
        return None
    kept: Any = BytesIO()
    try:
        await maybeDeferred(body.startProducing, kept)
    except CancelledError:
        body.stopProducing()
        raise
    content: bytes = kept.getvalue()
    return content


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
@attrs.define(eq=False)
class _Watch:
    """The endpoint of one attempt."""

    _endpoint: IStreamClientEndpoint
    # Whether a connection was made for this attempt. Then its handshake comes before the request.
    isConnected: bool = attrs.field(default=False, init=False)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return self

    @returnsDeferred
    async def connect(self, protocolFactory: Any) -> IProtocol:
        # Twisted's own factory would log a line for each connection.
        protocolFactory.noisy = False
        try:
            protocol = await self._endpoint.connect(protocolFactory)
        except (ConnectError, OSError) as error:
            raise TryNext(error)
        self.isConnected = True
        return protocol


class _Response(proxyForInterface(IResponse, "_original")):  # type: ignore[misc] # a class made by Twisted
    """A response; the use of the instance has ended when its body has been read."""

    def __init__(self, original: IResponse, ended: Callable[[], None]) -> None:
        super().__init__(original)
        self._ended = ended
        if original.length == 0:
            ended()

    def deliverBody(self, protocol: IProtocol) -> None:
        if self._original.length != 0:
            whenLost(protocol, self._ended)
        self._original.deliverBody(protocol)


def _reasons(error: BaseException) -> list[BaseException]:
    return [failure.value for failure in getattr(error, "reasons", None) or ()]


@implementer(IAgent)
class RegistryAgent:
    """
    Sends HTTP requests to the instances of a tag.

    ::

        agent = RegistryAgent(reactor, directory)
        response = await treq.client.HTTPClient(agent).get("registry://web/status")

    ``registry://TAG/path`` is HTTP, ``registrys://TAG/path`` is HTTP over TLS. URIs with ``http`` and ``https`` go to
    the server that they name. Connections are kept for each instance.

    If an instance can't be connected to, the next one is tried. If it fails later, before there is a response, the next
    one is tried only if the method is idempotent (GET, HEAD, OPTIONS, TRACE, PUT, DELETE) and the body can be sent
    again (one of up to 64 KiB is kept for that). Any response is the result.

    The ``Host`` header is the instance's address, unless the request has one of its own. A redirect that stays on the
    instance becomes a redirect to the tag. A certificate has to be for the instance's host, or for the name that its
    metadata have as ``tls.name``.
    """

    def __init__(
        self,
        reactor: Any,
        directory: Directory,
        *,
        strategy: str = "round-robin",
        timeout: float = CONNECT_TIMEOUT,
        near: Mapping[str, str] | None = None,
        policy: IPolicyForHTTPS | None = None,
        panicThreshold: float = THRESHOLD,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param policy: the trusted certificates; by default those that browsers trust.

        See :class:`RegistryEndpoint` for the others; *strategy* is a name.
        """
        self._reactor = reactor
        self._timeout = checkedConnectTimeout(timeout)
        self._policy = tlsPolicy() if policy is None else policy
        self._directory = directory
        suspects = Suspects(directory, reactor, panicThreshold)
        self._options: dict[str, Any] = {"strategy": strategy, "near": near, "random": random, "suspects": suspects}
        self._balancers: dict[str, Balancer] = {}
        # Invalid options are reported now, not with the first request.
        self._balancer("")
        # For urljoin, with which Twisted's RedirectAgent resolves redirects.
        for table in (uses_netloc, uses_relative):
            table.extend(scheme for scheme in map(bytes.decode, SCHEMES) if scheme not in table)
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = _KEPT_CONNECTIONS
        self._pool.cachedConnectionTimeout = IDLE_TIMEOUT  # type: ignore[assignment] # as good as an int
        self._elsewhere = PooledAgent(reactor, self._policy, self._timeout, self._pool)

    def close(self) -> Deferred[None]:
        """Close the idle connections; fires with ``None`` when they are closed."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    @returnsDeferred
    async def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> IResponse:
        """
        Fires with the response. Fails with :class:`~txserviceregistry.errors.NoServiceAvailable` if there is no service
        with the tag, or none that can be connected to; otherwise as Twisted's Agent does. It may be cancelled.
        """
        try:
            target = Target.read(uri)
        except ValueError as error:
            raise SchemeNotSupported(f"{uri!r}: {error}")
        if target is None:
            elsewhere: IResponse = await self._elsewhere.request(method, uri, headers, bodyProducer)
            return elsewhere
        kept = await _kept(bodyProducer) if method in _IDEMPOTENT else None
        canRepeat = method in _IDEMPOTENT and (bodyProducer is None or kept is not None)

        async def attempt(instance: Instance, ended: Callable[[], None]) -> IResponse:
            body = bodyProducer if kept is None else BytesProducer(kept)
            try:
                response = await self._send(target, instance, method, headers or Headers(), body)
            except (ResponseFailed, RequestTransmissionFailed) as error:
                # With or without parts of a response.
                if canRepeat and not any(isinstance(reason, CancelledError) for reason in _reasons(error)):
                    raise TryNext(error, wasReached=True)
                raise
            return _Response(response, ended)

        return await tryEach(self._balancer(target.tag), attempt, self._timeout)

    async def _send(
        self, target: Target, instance: Instance, method: bytes, headers: Headers, body: IBodyProducer | None
    ) -> IResponse:
        """Send a request to one instance; raises TryNext if that failed before anything was sent."""
        endpoint = endpointTo(self._reactor, instance.host, instance.port, self._timeout)
        if target.isTLS:
            creator = self._policy.creatorForNetloc(instance.tlsName.encode("ascii"), instance.port)
            endpoint = wrapClientTLS(creator, endpoint)
        watch = _Watch(endpoint)
        headers = headers.copy()
        if not headers.hasHeader(b"Host"):
            headers.setRawHeaders(b"Host", [target.hostFor(instance)])
        sender = Agent.usingEndpointFactory(self._reactor, watch, self._pool)
        try:
            response: IResponse = await sender.request(method, target.uriFor(instance), headers, body)
        except Exception as error:
            for one in (error, *_reasons(error)) if watch.isConnected else ():
                if isinstance(one, VerificationError):
                    raise TryNext(ConnectError(string=f"TLS: the certificate is not for {instance.tlsName}"))
                if isinstance(one, TLSError):
                    words = [str(part[-1]) for part in (one.args[0] if one.args else ()) if part]
                    raise TryNext(ConnectError(string=f"TLS: {'; '.join(words) or 'handshake failed'}"))
            raise
        locations = response.headers.getRawHeaders(b"Location")
        if locations:
            response.headers.setRawHeaders(b"Location", [target.redirected(locations[0], instance)])
        return response

    def _balancer(self, tag: str) -> Balancer:
        balancer = self._balancers.get(tag)
        if balancer is None:
            # Tags without services are forgotten: there is no bound to the number of them in mistyped URLs.
            self._balancers = {tag: one for tag, one in self._balancers.items() if not one.isEmpty}
            balancer = self._balancers[tag] = Balancer(self._directory, tag, clock=self._reactor, **self._options)
        return balancer
