"""Connecting to a host by name or address, and why it failed."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet._resolver import GAIResolver  # what reactors have by default; there is no public name for it
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, ConnectionDone, ConnectionRefusedError, DNSLookupError
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
from zope.interface import implementer

from ..util.deferred import DaemonThreadPool, Waiters, cancelWith
from .tls import describeTLS

#: Seconds that each address of a name has before the next one is tried beside it. A refused connection is reported only
#: then, so that it would take at least 0.3 s with Twisted's default.
ATTEMPT_DELAY = 0.05

#: Seconds that a lookup may take before the last known addresses are used instead.
PATIENCE = 0.25

#: The beginning of the stage of a request that waits for addresses.
RESOLVING = "resolving the host name"

# Another lookup begins beside one without a result after so many seconds.
_LONGEST_LOOKUP = 30.0


class ResolvingTimedOut(ConnectTimeout):
    """The addresses of a host name were not found in time."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(string=f"{RESOLVING} {host} took longer than {seconds:g} s")  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return str(self.args[0])


@lru_cache(maxsize=1)
def _threadsOf(process: int) -> DaemonThreadPool:
    """The threads of this process: a fork of it has others. Lookups that hang delay no others, up to their number."""
    threads = DaemonThreadPool(minthreads=0, maxthreads=20, name="resolving host names")
    threads.start()
    return threads


def _getaddrinfo(*args: Any) -> Any:
    try:
        return socket.getaddrinfo(*args)
    except Exception as error:
        # Of a name that can't be encoded, or too many open files. Twisted's lookups never end with another error.
        raise error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))


@implementer(IResolutionReceiver)
@attrs.define(eq=False, repr=False)
class HostName:
    """
    A host name. Every connection starts a lookup, so that changed addresses are noticed. The last known addresses are
    used when the lookup takes longer than :data:`PATIENCE`, or finds none.
    """

    _reactor: Any
    _host: str
    _port: int
    _known: Sequence[IAddress] = ()
    _waiting: Waiters[None] = attrs.field(factory=Waiters)
    # How many lookups are under way, when the last one began, and what they have found so far.
    _lookups: int = 0
    _began: float = 0.0
    _found: list[IAddress] = attrs.field(factory=list)

    @property
    def stage(self) -> str:
        """The stage of a request that waits for the addresses, for error messages; empty if it does not wait."""
        return f"{RESOLVING} {self._host}" if self._lookups and not self._known else ""

    def resolve(self) -> Deferred[Sequence[IAddress]]:
        """Find the addresses. Fires with them, or with none if there are none. May be cancelled."""
        now = self._reactor.seconds()
        if not self._lookups or now - self._began >= _LONGEST_LOOKUP:
            self._lookups += 1
            self._began = now
            resolver: IHostnameResolver = self._reactor.nameResolver
            if type(resolver) is GAIResolver:
                # Not in the reactor's threads, which an application may keep busy: that would delay heartbeats.
                resolver = GAIResolver(self._reactor, lambda: _threadsOf(os.getpid()), _getaddrinfo)  # type: ignore[arg-type] # it takes what it is given
            resolver.resolveHostName(self, self._host, portNumber=self._port)
        left = self._began + PATIENCE - now
        if not self._lookups or (self._known and left <= 0):
            return succeed(self._known)
        waiter = self._waiting.wait()
        if self._known:
            cancelWith(self._reactor.callLater(left, self._waiting.fire, None, [waiter]), waiter)
        return waiter.addCallback(lambda _: self._known)

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """See IResolutionReceiver."""

    def addressResolved(self, address: IAddress) -> None:
        """See IResolutionReceiver."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """See IResolutionReceiver."""
        self._lookups -= 1
        found, self._found = self._found, []
        self._known = tuple(found) or self._known
        if found or not self._lookups:
            self._waiting.fire(None)


#: The :class:`HostName` of a reactor, a host and a port, which all clients in a process share.
hostName = lru_cache(maxsize=1000)(HostName)


def stageOf(reactor: Any, url: str) -> str:
    """The stage of a request to *url* that waits for its host's addresses, for messages; empty if it does not wait."""
    parts = urlsplit(url)
    return hostName(reactor, parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)).stage


@implementer(IReactorPluggableNameResolver, IHostnameResolver)
class _Resolved:
    """A reactor whose name resolver returns given addresses."""

    def __init__(self, reactor: Any, addresses: Sequence[IAddress]) -> None:
        self.nameResolver = self
        self._reactor = reactor
        self._addresses = addresses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, resolutionReceiver: IResolutionReceiver, *_: Any, **__: Any) -> Any:
        """See IHostnameResolver."""
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _NamedHost:
    """A host by its name: Twisted's endpoint, with the addresses of :class:`HostName`."""

    _reactor: Any
    _host: str
    _port: int
    _timeout: float

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See IStreamClientEndpoint."""

        def tooSlow(result: Any, timeout: float) -> Failure:
            return Failure(ResolvingTimedOut(self._host, timeout))

        def connect(addresses: Sequence[IAddress]) -> Deferred[IProtocol]:
            if not addresses:
                raise DNSLookupError(f"no results for hostname lookup: {self._host}")
            reactor = _Resolved(self._reactor, addresses)
            # Twisted refuses some names that have addresses, such as my_app. At this point any name will do.
            endpoint = HostnameEndpoint(
                reactor, "localhost", self._port, timeout=self._timeout, attemptDelay=ATTEMPT_DELAY
            )
            return endpoint.connect(protocolFactory)

        resolving = hostName(self._reactor, self._host, self._port).resolve()
        if not resolving.called:
            resolving.addTimeout(self._timeout, self._reactor, tooSlow)
        return resolving.addCallback(connect)


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """The endpoint of a host. *timeout* seconds are for finding the addresses of a name, and connecting to each."""
    try:
        kind = TCP4ClientEndpoint if ip_address(host).version == 4 else TCP6ClientEndpoint
    except ValueError:
        return _NamedHost(reactor, host, port, timeout)
    return kind(reactor, host, port, timeout=timeout)


_FAILURES = {
    ConnectionRefusedError: "connection refused",
    ConnectTimeout: "no response to the connection attempt",
    ConnectingCancelledError: "no response to the connection attempt",
    DNSLookupError: "no such host",
    ConnectionDone: "the connection was closed",
}


def describeFailure(error: BaseException) -> str:
    """Why a connection failed or ended, in a few words: ``connection refused``. Of another error, type and message."""
    reasons = getattr(error, "reasons", None)
    # Other errors may have an attribute of this name too.
    cause = reasons[0].value if isinstance(reasons, list) and reasons else error
    if isinstance(cause, ResolvingTimedOut):
        return str(cause)
    for kind, text in _FAILURES.items():
        if isinstance(cause, kind):
            return text
    # An agent that was given from outside may have connections that are not ours.
    return describeTLS(cause) or ": ".join(filter(None, (type(cause).__name__, str(cause)[:200])))
