"""
Connecting to a host by name or address, and why it failed.

Twisted resolves host names in the reactor's thread pool. An application that keeps these threads busy would delay every
connection to a host name, and so heartbeats. So names are resolved in threads of our own, and the last known addresses
are used while a lookup is slow or fails.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import attrs
from twisted.internet._resolver import GAIResolver  # what reactors have by default; there is no public name for it
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
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
from zope.interface import implementer

from ..util.concurrency import BoundedCache, DaemonThreadPool
from ..util.deferred import Waiters, cancelWith
from ..util.logs import Logger, Outage
from .tls import describeTLS

#: Seconds that each address of a name has before the next one is tried beside it. A refused connection is reported only
#: then, so that it would take at least 0.3 s with Twisted's default.
ATTEMPT_DELAY = 0.05

#: Seconds that a lookup may take before the last known addresses are used instead.
PATIENCE = 0.25

#: The beginning of the stage of a request that waits for addresses.
RESOLVING = "resolving the host name"

# A lookup is logged after so many seconds, so that a slow name server does not fill the log.
_SLOW = 2.0
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
@attrs.define
class _Receiver:
    """Collects the addresses that one lookup finds."""

    _done: Callable[[Sequence[IAddress]], None]
    _found: list[IAddress] = attrs.field(factory=list, init=False)

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """See IResolutionReceiver."""

    def addressResolved(self, address: IAddress) -> None:
        """See IResolutionReceiver."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """See IResolutionReceiver."""
        self._done(self._found)


class _Name:
    """
    A host name.

    :ivar known: its last known addresses.
    :ivar lookups: how many are under way.
    """

    _log = Logger()

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        begins = "Host name {host} did not resolve; its last known addresses are used. Check the name server"
        ends = "Host name {host} resolved again, after {seconds:.1f} s"
        self.known: Sequence[IAddress] = ()
        self.lookups = 0
        self._reactor = reactor
        self._host = host
        self._port = port
        self._outage = Outage(self._log, reactor, begins, ends, host=host)
        self._waiting: Waiters[None] = Waiters()
        # When the last lookup began.
        self._began = 0.0

    def resolve(self) -> Deferred[Sequence[IAddress]]:
        """See :meth:`HostNames.resolve`."""
        now = self._reactor.seconds()
        if not self.lookups or now - self._began >= _LONGEST_LOOKUP:
            self.lookups += 1
            self._began = now
            self._resolver().resolveHostName(_Receiver(self._found), self._host, portNumber=self._port)
        if not self.lookups:
            return succeed(self.known)
        left = self._began + PATIENCE - now
        if self.known and left <= 0:
            if now - self._began >= _SLOW:
                self._outage.failed()
            return succeed(self.known)
        waiter = self._waiting.wait()
        if self.known:
            cancelWith(self._reactor.callLater(left, self._waiting.fire, None, [waiter]), waiter)
        return waiter.addCallback(lambda _: self.known)

    def _resolver(self) -> IHostnameResolver:
        """The resolver that the application has installed, or the system's in threads of our own."""
        installed: IHostnameResolver = self._reactor.nameResolver
        if type(installed) is not GAIResolver:
            return installed
        return GAIResolver(self._reactor, lambda: _threadsOf(os.getpid()), _getaddrinfo)  # type: ignore[arg-type] # it takes what it is given

    def _found(self, addresses: Sequence[IAddress]) -> None:
        self.lookups -= 1
        if addresses:
            self.known = tuple(addresses)
            self._outage.succeeded()
        elif self.known:
            self._outage.failed()
        if addresses or not self.lookups:
            self._waiting.fire(None)


class HostNames:
    """
    The host names that are connected to over one reactor. All clients in a process share them.

    Every connection starts a lookup, so that changed addresses are noticed. The last known addresses are used when the
    lookup takes longer than :data:`PATIENCE`, or finds none.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._names: BoundedCache[tuple[str, int], _Name] = BoundedCache()

    def resolve(self, host: str, port: int) -> Deferred[Sequence[IAddress]]:
        """Find the addresses of a host. Fires with them, or with none if there are none. May be cancelled."""
        name = self._names.get((host, port)) or _Name(self._reactor, host, port)
        self._names.put((host, port), name)
        return name.resolve()

    def isResolving(self, host: str) -> bool:
        """Whether requests to this *host* wait for its addresses, of which none is known."""
        return any(key[0] == host and name.lookups and not name.known for key, name in self._names.items())


#: The :class:`HostNames` of a reactor.
hostNames = lru_cache(maxsize=8)(HostNames)


def stageOf(reactor: Any, host: str) -> str:
    """The stage of a request to *host* that waits for its addresses, for error messages; empty if it does not wait."""
    return f"{RESOLVING} {host}" if hostNames(reactor).isResolving(host) else ""


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
    """A host by its name: Twisted's endpoint, with the addresses of :class:`HostNames`."""

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

        resolving = hostNames(self._reactor).resolve(self._host, self._port)
        if not resolving.called:
            resolving.addTimeout(self._timeout, self._reactor, tooSlow)
        return resolving.addCallback(connect)


def endpointTo(reactor: Any, host: str, port: int, timeout: float) -> IStreamClientEndpoint:
    """
    The endpoint of a host, by its name or address.

    :param timeout: seconds to find the addresses of a name, and to connect to each of them.
    """
    try:
        kind = TCP4ClientEndpoint if ip_address(host).version == 4 else TCP6ClientEndpoint
    except ValueError:
        return _NamedHost(reactor, host, port, timeout)
    return kind(reactor, host, port, timeout=timeout)


_FAILURES = {
    ConnectionRefusedError: "connection refused",
    ConnectTimeout: "no response to the connection attempt",
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
