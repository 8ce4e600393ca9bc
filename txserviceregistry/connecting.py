"""
Connecting to a host: where nobody listens, that is known at once, so that whoever has somewhere else to go goes there.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostResolution,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.error import SchemeNotSupported
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IPolicyForHTTPS
from zope.interface import implementer

__all__ = ["NamedEndpoint", "endpointTo", "httpAgent"]


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """
    Where a host is.

    :param reactor: connects.
    :param host: its name, or an address of either kind.
    :param timeout: seconds to connect; of a host with several addresses each has as many.
    """
    try:
        address = ip_address(host)
    except ValueError:
        return NamedEndpoint(reactor, host, port, timeout)
    # An address needs neither to be looked up nor to be raced for.
    return _addressed(reactor, address.version == 6, host, port, timeout)


def _addressed(reactor: Any, is6: bool, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    kind = TCP6ClientEndpoint if is6 else TCP4ClientEndpoint
    endpoint: IStreamClientEndpoint = kind(reactor, host, port, timeout=timeout)
    return endpoint


@implementer(IStreamClientEndpoint)
class NamedEndpoint:
    """
    A host by its name, at whichever of its addresses answers first. The next one is tried as soon as one has failed,
    or when one has not answered for a while.

    Twisted's own HostnameEndpoint looks for another address only with the next tick of 0.3 s, so that a connection
    that is refused takes as long to fail.

    :param reactor: resolves, connects and keeps time.
    :param timeout: seconds to connect, for each address.
    """

    def __init__(self, reactor: Any, host: str, port: int, timeout: float) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See :class:`~twisted.internet.interfaces.IStreamClientEndpoint`."""
        addresses = _Addresses()
        self._reactor.nameResolver.resolveHostName(addresses, self._host, portNumber=self._port)
        return addresses.known.addCallback(self._race, protocolFactory)

    def _race(self, addresses: Iterable[Any], protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        endpoints = [
            _addressed(self._reactor, isinstance(each, IPv6Address), each.host, each.port, self._timeout)
            for each in addresses
        ]
        if not endpoints:
            raise DNSLookupError(f"no address of {self._host!r} is known")
        race = _Race(self._reactor, endpoints, protocolFactory)
        race.next()
        return race.winner


@implementer(IResolutionReceiver)
class _Addresses:
    """Takes what a resolver finds."""

    def __init__(self) -> None:
        self.known: Deferred[list[Any]] = Deferred()
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """What has begun can't be called off: no resolver of Twisted's can."""

    def addressResolved(self, address: IAddress) -> None:
        """One more."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """No more."""
        if not self.known.called:
            self.known.callback(self._found)


class _Race:
    """
    Attempts to connect, of which one is to succeed.

    :ivar winner: fires with the first one's protocol; fails when all have failed, as the last one did.
    """

    #: Seconds that an address has before another one is tried beside it.
    DELAY = 0.3

    def __init__(self, clock: IReactorTime, endpoints: Iterable[IStreamClientEndpoint], factory: IProtocolFactory):
        self.winner: Deferred[IProtocol] = Deferred(lambda _: self._end())
        self._clock = clock
        self._left = iter(endpoints)
        self._factory = factory
        self._attempts: list[Deferred[IProtocol]] = []
        self._later: IDelayedCall | None = None

    def next(self) -> None:
        """Try the next one, if there is one."""
        self._later = None
        endpoint = next(self._left, None)
        if endpoint is None:
            return
        self._later = self._clock.callLater(self.DELAY, self.next)
        attempt: Deferred[IProtocol] = endpoint.connect(self._factory)
        self._attempts.append(attempt)
        attempt.addBoth(self._attempted, attempt)

    def _attempted(self, result: IProtocol | Failure, attempt: Deferred[IProtocol]) -> None:
        if attempt not in self._attempts:
            # It was called off.
            return
        self._attempts.remove(attempt)
        if not isinstance(result, Failure):
            self._end()
            self.winner.callback(result)
            return
        self._stopWaiting()
        self.next()
        if not self._attempts and not self.winner.called:
            self.winner.errback(result)

    def _end(self) -> None:
        self._stopWaiting()
        attempts, self._attempts = self._attempts, []
        for attempt in attempts:
            attempt.cancel()

    def _stopWaiting(self) -> None:
        later, self._later = self._later, None
        if later is not None:
            later.cancel()


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """What an Agent connects to for a URI."""

    def __init__(self, reactor: Any, policy: IPolicyForHTTPS, timeout: float) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout = timeout

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See :class:`~twisted.web.iweb.IAgentEndpointFactory`."""
        endpoint = endpointTo(self._reactor, uri.host.decode("ascii"), uri.port, self._timeout)
        if uri.scheme == b"http":
            return endpoint
        if uri.scheme == b"https":
            return wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        raise SchemeNotSupported(f"Unsupported scheme: {uri.scheme!r}")


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
