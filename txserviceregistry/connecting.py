"""
Connecting to a host: where nobody listens, that is known soon, so that whoever has somewhere else to go goes there.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

__all__ = ["ATTEMPT_DELAY", "endpointTo", "httpAgent"]

#: Seconds that each address of a name has before the next one is tried beside it. Twisted looks only then whether all
#: have refused, so that its own default of 0.3 s is also the least that a refusal would take.
ATTEMPT_DELAY = 0.05


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """
    Where a host is.

    :param reactor: connects.
    :param host: its name, or an address of either kind.
    :param timeout: seconds to connect; of a host with several addresses each has as many.
    """
    endpoint: IStreamClientEndpoint
    try:
        address = ip_address(host)
    except ValueError:
        endpoint = HostnameEndpoint(reactor, host, port, timeout=timeout, attemptDelay=ATTEMPT_DELAY)
    else:
        # It needs neither to be looked up nor to be raced for.
        kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
        endpoint = kind(reactor, host, port, timeout=timeout)
    return endpoint


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
    agent: IAgent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, policy, timeout), pool)
    return agent
