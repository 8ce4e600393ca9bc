"""Connecting to a host. A refused connection fails at once, so that another server can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import attrs
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

#: Seconds that each address of a name has before the next one is tried beside it. A refused connection is reported only
#: then, so that it would take at least 0.3 s with Twisted's default.
ATTEMPT_DELAY = 0.05


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """
    The endpoint of a host, by its name or address.

    :param timeout: seconds to find the addresses of a name, and to connect to each of them.
    """
    try:
        version = ip_address(host).version
    except ValueError:
        return _NamedHost(reactor, host, port, timeout)
    kind = TCP4ClientEndpoint if version == 4 else TCP6ClientEndpoint
    return kind(reactor, host, port, timeout=timeout)


@implementer(IReactorPluggableNameResolver, IHostnameResolver, IHostResolution)
class _Resolved:
    """A reactor whose name resolver returns given addresses."""

    name = ""

    def __init__(self, reactor: Any, addresses: Sequence[IAddress]) -> None:
        self.nameResolver = self
        self._reactor = reactor
        self._addresses = addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, resolutionReceiver: IResolutionReceiver, *_: Any, **__: Any) -> IHostResolution:
        """See IHostnameResolver."""
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        """The lookup has ended."""


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _NamedHost:
    """A host by its name: Twisted's endpoint, with the addresses that ``resolving`` finds."""

    _reactor: Any
    _host: str
    _port: int
    _timeout: float

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint."""

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


@implementer(IAgentEndpointFactory)
@attrs.frozen
class _Endpoints:
    """The endpoints that an Agent connects to, by URI."""

    _reactor: Any
    _policy: IPolicyForHTTPS
    _timeout: float

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See IAgentEndpointFactory."""
        if uri.scheme not in (b"http", b"https"):
            raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")
        endpoint = endpointTo(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)


def httpAgent(reactor: Any, policy: IPolicyForHTTPS, timeout: float, pool: HTTPConnectionPool) -> IAgent:
    """An agent for ``http`` and ``https``, with a *timeout* for connecting, in seconds."""
    endpoints = _Endpoints(reactor, policy, timeout)
    return PooledAgent(Agent.usingEndpointFactory(reactor, endpoints, pool), endpoints, pool)


def describeFailure(error: BaseException) -> str:
    """Why a connection failed or ended, in a few words: ``connection refused``. Of another error, type and message."""
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
