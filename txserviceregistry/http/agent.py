"""
Connecting to a host. A refused connection fails at once, so that another server can be tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

from .pool import PooledAgent
from .resolving import ResolvingTimedOut, hostNames
from .tls import describeTLS

#: Seconds that each address of a name has before the next one is tried beside it. Twisted looks only then whether all
#: have refused, so that its own default of 0.3 s is also the least that a refusal would take.
ATTEMPT_DELAY = 0.05


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """
    Where a host is.

    :param reactor: connects.
    :param host: its name, or an address of either kind.
    :param timeout: seconds to find the addresses of a name, and to connect; of a host with several addresses each has
        as many.
    """
    endpoint: IStreamClientEndpoint
    try:
        address = ip_address(host)
    except ValueError:
        endpoint = _NamedHost(reactor, host, port, timeout)
    else:
        # It needs neither to be looked up nor to be raced for.
        kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
        endpoint = kind(reactor, host, port, timeout=timeout)
    return endpoint


@implementer(IHostResolution)
class _Over:
    """A lookup that has ended, for Twisted's endpoint."""

    name = ""

    def cancel(self) -> None:
        """There is nothing to cancel."""


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _Resolved:
    """A reactor whose name resolver returns given addresses."""

    def __init__(self, reactor: Any, addresses: Sequence[IAddress]) -> None:
        self.nameResolver = self
        self._reactor = reactor
        self._addresses = addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See IHostnameResolver."""
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return _Over()


@implementer(IStreamClientEndpoint)
class _NamedHost:
    """
    A host by its name: Twisted's endpoint, with the addresses that :mod:`~txserviceregistry.http.resolving` finds.
    """

    def __init__(self, reactor: Any, host: str, port: int, timeout: float) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See :class:`~twisted.internet.interfaces.IStreamClientEndpoint`."""

        def tooSlow(result: Any, timeout: float) -> Failure:
            return Failure(ResolvingTimedOut(self._host, timeout))

        def connect(addresses: Sequence[IAddress]) -> Deferred[IProtocol]:
            reactor = _Resolved(self._reactor, addresses)
            endpoint = HostnameEndpoint(
                reactor, self._host, self._port, timeout=self._timeout, attemptDelay=ATTEMPT_DELAY
            )
            return endpoint.connect(protocolFactory)

        resolving = hostNames(self._reactor).resolve(self._reactor, self._host, self._port)
        if not resolving.called:
            resolving.addTimeout(self._timeout, self._reactor, tooSlow)
        return resolving.addCallback(connect)


@implementer(IStreamClientEndpoint)
class _Target:
    """
    Where a URI leads. An Agent wants such a thing for every request, also for the many that go over a connection of its
    pool; so what it costs to make is spent when something is connected.
    """

    def __init__(self, endpoints: _Endpoints, uri: URI) -> None:
        self._endpoints = endpoints
        self._uri = uri

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See :class:`~twisted.internet.interfaces.IStreamClientEndpoint`."""
        return self._endpoints.endpointFor(self._uri).connect(protocolFactory)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """What an Agent connects to for a URI."""

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, timeout: float) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout = timeout

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See :class:`~twisted.web.iweb.IAgentEndpointFactory`."""
        if uri.scheme not in (b"http", b"https"):
            raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
        return _Target(self, uri)

    def endpointFor(self, uri: URI) -> IStreamClientEndpoint:
        """The endpoint itself."""
        endpoint = endpointTo(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)


def httpAgent(reactor: Any, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool) -> IAgent:
    """
    An agent for ``http`` and ``https``.

    :param reactor: connects.
    :param policy: whom to trust behind ``https``.
    :param timeout: seconds to connect.
    :param pool: keeps the connections.
    """
    endpoints = _Endpoints(reactor, policy, timeout)
    return PooledAgent(Agent.usingEndpointFactory(reactor, endpoints, pool), endpoints, pool)


def describeFailure(error: BaseException) -> str:
    """
    Why a connection failed or ended, in a few words: ``connection refused``. Of another error, its type and message.
    """
    reasons = getattr(error, "reasons", None)
    # Other errors may have an attribute of this name too.
    cause = reasons[0].value if isinstance(reasons, list) and reasons else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, ResolvingTimedOut):
        return str(cause)
    if isinstance(cause, ConnectTimeout):
        return "no response to the connection attempt"
    if isinstance(cause, DNSLookupError):
        return "no such host"
    if isinstance(cause, ConnectionDone):
        return "the connection was closed"
    # An agent that was given from outside may have connections that are not ours.
    explained = describeTLS(cause)
    if explained is not None:
        return explained
    text = str(cause)[:200]
    return f"{type(cause).__name__}: {text}" if text else type(cause).__name__
