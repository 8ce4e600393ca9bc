"""
Name resolution in threads of its own, with the last known addresses while a lookup is slow or fails.

Twisted resolves host names in the reactor's thread pool. An application that keeps these threads busy would delay every
connection to a host name, and so heartbeats.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import attrs
from twisted.internet._resolver import GAIResolver  # what reactors have by default; there is no public name for it
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

from ..util.concurrency import DaemonThreadPool
from ..util.deferred import Waiters, cancelWith
from ..util.logs import Logger, Outage

#: Seconds that a lookup may take before the last known addresses are used instead.
PATIENCE = 0.25

# A lookup is logged after so many seconds, so that a slow name server does not fill the log.
_SLOW = 2.0

# Another lookup begins beside one without a result after so many seconds. The time doubles with each of these, so that
# a resolver that always hangs uses few threads.
_LONGEST_LOOKUP = 30.0

# The most host names whose addresses are remembered: more than a client connects to.
_MOST_NAMES = 1000

#: The beginning of the stage of a request that waits for addresses.
RESOLVING = "resolving the host name"


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
class _Receiver:
    """Collects the addresses that one lookup finds."""

    def __init__(self, done: Callable[[Sequence[IAddress]], None]) -> None:
        self._done = done
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolution: IHostResolution) -> None:
        """See IResolutionReceiver."""

    def addressResolved(self, address: IAddress) -> None:
        """See IResolutionReceiver."""
        self._found.append(address)

    def resolutionComplete(self) -> None:
        """See IResolutionReceiver."""
        self._done(self._found)


@attrs.define(eq=False)
class _Name:
    """
    A host name.

    :ivar outage: that of its lookups, while its last known addresses are used.
    :ivar known: its last known addresses.
    :ivar waiting: the Deferreds that wait for its lookups, which run beside each other; ``None`` if there is none.
    :ivar began: when the last of these began.
    :ivar seconds: another one begins after so many.
    """

    outage: Outage
    known: Sequence[IAddress] = ()
    waiting: Waiters[None] | None = None
    began: float = 0.0
    seconds: float = 0.0


class HostNames:
    """
    The host names that are connected to over one reactor.

    Every connection starts a lookup, so that changed addresses are noticed. The last known addresses are used when the
    lookup takes longer than :data:`PATIENCE`, or finds none.
    """

    _log = Logger()

    def __init__(self) -> None:
        # By host and port, the one that was used last at the end.
        self._names: dict[tuple[str, int], _Name] = {}

    def isResolving(self, host: str) -> bool:
        """Whether requests to this *host* wait for its addresses, of which none is known."""
        return any(key[0] == host and not name.known for key, name in self._names.items())

    def resolve(self, reactor: Any, host: str, port: int) -> Deferred[Sequence[IAddress]]:
        """
        Find the addresses of a host.

        :param reactor: its resolver is used if the application has installed one.
        :return: fires with the addresses; with none if there are none. May be cancelled.
        """
        key = host, port
        name = self._names.pop(key) if key in self._names else self._newName(reactor, host)
        self._names[key] = name
        if len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]
        if name.waiting is None or reactor.seconds() - name.began >= name.seconds:
            self._lookUp(reactor, key, name)
        waiting = name.waiting
        if waiting is None:
            # The lookup is complete.
            return succeed(name.known)
        left = name.began + PATIENCE - reactor.seconds()
        if name.known and left <= 0:
            if left <= PATIENCE - _SLOW:
                name.outage.failed()
            return succeed(name.known)
        waiter = waiting.wait()
        if name.known:
            cancelWith(reactor.callLater(left, waiting.fire, None, [waiter]), waiter)
        return waiter.addCallback(lambda _: name.known)

    def _newName(self, reactor: Any, host: str) -> _Name:
        begins = "Host name {host} did not resolve; its last known addresses are used. Check the name server"
        ends = "Host name {host} resolved again, after {seconds:.1f} s"
        return _Name(Outage(self._log, reactor, begins, ends, host=host))

    def _lookUp(self, reactor: Any, key: tuple[str, int], name: _Name) -> None:
        name.seconds = _LONGEST_LOOKUP if name.waiting is None else 2 * name.seconds
        name.began = reactor.seconds()
        waiting = name.waiting = name.waiting or Waiters()

        def done(found: Sequence[IAddress]) -> None:
            if name.waiting is not waiting:
                # Another one that ran beside it was first.
                return
            name.waiting = None
            if found:
                name.known = tuple(found)
                name.outage.succeeded()
            elif name.known:
                name.outage.failed()
            else:
                self._names.pop(key, None)
            waiting.fire(None)

        host, port = key
        _resolverOf(reactor).resolveHostName(_Receiver(done), host, portNumber=port)


# By reactor: all clients in a process share the addresses.
_of: WeakKeyDictionary[Any, HostNames] = WeakKeyDictionary()


def hostNames(reactor: Any) -> HostNames:
    """The :class:`HostNames` of this *reactor*."""
    names = _of.get(reactor)
    if names is None:
        names = _of[reactor] = HostNames()
    return names


def stageOf(reactor: Any, host: str) -> str:
    """The stage of a request to *host* that waits for its addresses, for error messages; empty if it does not wait."""
    names = _of.get(reactor)
    return f"{RESOLVING} {host}" if names is not None and names.isResolving(host) else ""


def _resolverOf(reactor: Any) -> IHostnameResolver:
    """The resolver that the application has installed, or the system's in threads of our own."""
    installed: IHostnameResolver = reactor.nameResolver
    if type(installed) is not GAIResolver:
        return installed
    return GAIResolver(reactor, lambda: _threadsOf(os.getpid()), _getaddrinfo)  # type: ignore[arg-type] # it takes what it is given
