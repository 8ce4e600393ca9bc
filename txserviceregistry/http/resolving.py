"""
Name resolution in threads of its own, with the last known addresses while a lookup is slow or fails.

Twisted resolves host names in the reactor's thread pool. An application that keeps these threads busy would delay every
connection to a host name, and so heartbeats.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from socket import gaierror
from threading import Lock, Thread
from typing import Any, cast
from weakref import WeakKeyDictionary

from twisted.internet._resolver import GAIResolver  # what reactors have by default; there is no public name for it
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ..util.deferred import cancelWith
from ..util.logs import Logger
from ..util.outage import Outage
from ..util.waiters import Waiters

#: Seconds that a lookup may take before the last known addresses are used instead.
PATIENCE = 0.25

# A lookup is logged after so many seconds, so that a slow name server does not fill the log.
_SLOW = 2.0

# Another lookup begins beside one without a result after so many seconds. The time doubles with each of these, so that
# a resolver that always hangs uses few threads.
_LONGEST_LOOKUP = 30.0

# The most host names whose addresses are remembered: more than a client connects to.
_MOST_NAMES = 1000
# The most lookups under way at once, in a thread each.
_MOST_THREADS = 20

#: The beginning of the stage of a request that waits for addresses.
RESOLVING = "resolving the host name"

#: A host name and a port.
_Key = tuple[str, int]


class ResolvingTimedOut(ConnectTimeout):
    """The addresses of a host name were not found in time."""

    def __init__(self, host: str, seconds: float) -> None:
        super().__init__(string=f"{RESOLVING} {host} took longer than {seconds:g} s")  # type: ignore[no-untyped-call]

    def __str__(self) -> str:
        return str(self.args[0])


class _Threads:
    """
    Runs lookups in a daemon thread each, which ends with its lookup. A lookup that hangs delays neither others nor the
    end of the process.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._free = _MOST_THREADS
        self._waiting: deque[Callable[[], None]] = deque()

    def callInThreadWithCallback(
        self, onResult: Callable[[bool, Any], None], function: Callable[..., Any], *arguments: Any
    ) -> None:
        """See Twisted's ThreadPool."""

        def work() -> None:
            try:
                result = function(*arguments)
            except Exception as error:
                # Twisted handles only gaierror. A name that can't be encoded raises another error.
                onResult(False, Failure(error if isinstance(error, gaierror) else gaierror(str(error))))
            else:
                onResult(True, result)

        with self._lock:
            if not self._free:
                self._waiting.append(work)
                return
            self._free -= 1
        Thread(target=self._run, args=(work,), name="resolving a host name", daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        while True:
            work()
            with self._lock:
                if not self._waiting:
                    self._free += 1
                    return
                work = self._waiting.popleft()


_threads = _Threads()


@implementer(IResolutionReceiver)
class _Lookup:
    """
    One lookup of one host name, and the Deferreds that wait for it.

    :ivar seconds: another lookup may begin beside this one after so many.
    :ivar waiting: the Deferreds that wait, shared by the lookups that run beside each other.
    """

    def __init__(
        self, began: float, seconds: float, waiting: Waiters[None], done: Callable[[Sequence[IAddress]], None]
    ) -> None:
        self.began = began
        self.seconds = seconds
        self.waiting = waiting
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


class HostNames:
    """
    The host names that are connected to over one reactor.

    Every connection starts a lookup, so that changed addresses are noticed. The last known addresses are used when the
    lookup takes longer than :data:`PATIENCE`, or finds none.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._known: OrderedDict[_Key, Sequence[IAddress]] = OrderedDict()
        self._underWay: dict[_Key, _Lookup] = {}
        # Of names whose last known addresses are used.
        self._outages: dict[_Key, Outage] = {}

    def isResolving(self, host: str) -> bool:
        """Whether requests to this *host* wait for its addresses, of which none is known."""
        return any(key[0] == host and key not in self._known for key in self._underWay)

    def resolve(self, reactor: Any, host: str, port: int) -> Deferred[Sequence[IAddress]]:
        """
        Find the addresses of a host.

        :param reactor: whose resolver is used, if the application has installed one.
        :return: fires with the addresses; with none if there are none. May be cancelled.
        """
        key = (host, port)
        lookup = self._underWay.get(key)
        if lookup is None or reactor.seconds() - lookup.began >= lookup.seconds:
            lookup = self._lookUp(reactor, key, lookup)
        if key not in self._underWay:
            # It is complete.
            return succeed(self._known.get(key, ()))
        left = lookup.began + PATIENCE - reactor.seconds()
        if key in self._known and left <= 0:
            if left <= PATIENCE - _SLOW:
                self._isStale(reactor, key)
            return succeed(self._known[key])
        waiter = lookup.waiting.wait()
        if key in self._known:
            cancelWith(reactor.callLater(left, lookup.waiting.fire, None, [waiter]), waiter)
        return waiter.addCallback(lambda _: self._known.get(key, ()))

    def _lookUp(self, reactor: Any, key: _Key, hanging: _Lookup | None) -> _Lookup:
        def done(found: Sequence[IAddress]) -> None:
            current = self._underWay.get(key)
            if current is None or current.waiting is not waiting:
                # Another one that ran beside it was first.
                return
            del self._underWay[key]
            if found:
                self._keep(key, found)
            elif key in self._known:
                self._isStale(reactor, key)
            waiting.fire(None)

        waiting: Waiters[None] = Waiters() if hanging is None else hanging.waiting
        seconds = _LONGEST_LOOKUP if hanging is None else 2 * hanging.seconds
        lookup = self._underWay[key] = _Lookup(reactor.seconds(), seconds, waiting, done)
        host, port = key
        _resolverOf(reactor).resolveHostName(lookup, host, portNumber=port)
        return lookup

    def _keep(self, key: _Key, found: Sequence[IAddress]) -> None:
        self._known[key] = tuple(found)
        self._known.move_to_end(key)
        if len(self._known) > _MOST_NAMES:
            self._outages.pop(self._known.popitem(last=False)[0], None)
        outage = self._outages.pop(key, None)
        if outage is not None:
            outage.succeeded()

    def _isStale(self, reactor: Any, key: _Key) -> None:
        if key not in self._outages:
            begins = "Host name {host} did not resolve; its last known addresses are used. Check the name server"
            ends = "Host name {host} resolved again, after {seconds:.1f} s"
            self._outages[key] = Outage(self._log, reactor, begins, ends, host=key[0])
        self._outages[key].failed()


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
    return GAIResolver(reactor, lambda: cast(Any, _threads))
