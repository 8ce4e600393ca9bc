"""
How many connections there may be, and which one is closed when there are too many.

Connections without a request are closed first, whatever their address and however many there are; those that have
brought a request with a valid token are kept.
"""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Callable
from itertools import islice, takewhile
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

from ...util.deferred import Waiters, cancelWith
from ...util.logs import Logger

#: File descriptors that are not for connections: the store, the log, listeners, and those that are accepted in the turn
#: of the reactor in which others are closed.
RESERVED_FILES = 200
#: How many connections that could be closed are looked at for one on which nothing has come.
CANDIDATES = 100
#: Seconds from one line in the log about a limit to the next.
LOG_INTERVAL = 60.0


@attrs.frozen
class ConnectionLimits:
    """
    How much of a registry clients may use. One connection takes about 15 KB of memory, and twice as much while a
    request waits on it.

    :ivar connections: how many in all; fewer where the process may not open so many files.
    :ivar perClient: how many from one address.
    :ivar requestSeconds: how long a request may take to come in whole, from its first byte, and how long a new
        connection may be open without one.
    :ivar idleSeconds: how long a connection is kept between two requests; longer than any heartbeat interval.
    :ivar followers: how many requests may wait for events in all.
    :ivar followersPerTenant: how many of one tenant.
    :ivar streams: how many event streams there may be in all.
    :ivar streamsPerTenant: how many of one tenant.
    :ivar unfinishedBytes: how much may be kept of all unfinished requests from connections that have never shown a
        valid token; more than one request can have.
    """

    connections: int = 10_000
    perClient: int = 5_000
    requestSeconds: float = 30.0
    idleSeconds: float = 120.0
    followers: int = 5_000
    followersPerTenant: int = 2_500
    streams: int = 10_000
    streamsPerTenant: int = 5_000
    unfinishedBytes: int = 2**25

    def within(self, files: int) -> ConnectionLimits:
        """The same for a process that may open so many *files*."""
        # Half of very few: the store and the listeners need some twenty.
        connections = max(1, min(self.connections, max(files - RESERVED_FILES, files // 2)))
        return attrs.evolve(self, connections=connections)

    @property
    def held(self) -> int:
        """
        How many requests may wait for events, event streams included: they occupy their connections, and some are left
        for others.
        """
        return self.connections * 4 // 5


def availableFiles() -> int:
    """How many files this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def raiseFileLimit(limits: ConnectionLimits) -> None:
    """Let this process open as many files as the connections need, up to its hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def ipOf(address: IAddress) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in an address, if it has one; that of IPv4 if it is mapped to IPv6."""
    try:
        host = ipaddress.ip_address(getattr(address, "host", "").partition("%")[0])
    except ValueError:
        # A local socket has none, and a header of the PROXY protocol may have any text instead.
        return None
    return getattr(host, "ipv4_mapped", None) or host


def peerOf(address: IAddress) -> str:
    """
    The client that a connection is counted for: its IPv4 address, or its IPv6 network of 64 bits, because a client has
    as many IPv6 addresses as it likes.
    """
    host = ipOf(address)
    if host is None:
        return "local sockets"
    return str(host if host.version == 4 else ipaddress.IPv6Network((host, 64), strict=False))


class Evictable(Protocol):
    """A connection; *isKnown* is whether it has brought a request with a valid token, or valid credentials."""

    peer: str
    isKnown: bool

    @property
    def hasUnread(self) -> bool:
        """Whether something has come that has not been read so far."""

    def evict(self) -> None:
        """Close at once."""

    def endSoon(self) -> None:
        """Close at once if there is no request, else with its response."""

    def timeoutConnection(self) -> None:
        """Called after so many seconds without a request: close, unless one is coming in."""


class _Group:
    """
    Connections, all or those of one peer.

    :ivar count: how many there are.
    :ivar waiting: those that could be closed without harm to a request, and since when: of unauthenticated clients, and
        of known ones. A dict keeps the order in which things came; and what comes again, comes last.
    """

    def __init__(self) -> None:
        self.count = 0
        self.waiting: tuple[dict[Evictable, float], dict[Evictable, float]] = {}, {}

    def add(self, connection: Evictable, now: float) -> None:
        self.waiting[connection.isKnown][connection] = now

    def discard(self, connection: Evictable) -> None:
        for waiting in self.waiting:
            waiting.pop(connection, None)

    def victim(self) -> Evictable | None:
        """
        The connection to close first; never one with unread input. A known one only if at least half of all
        connections are known ones that wait: what unauthenticated clients have sent may keep theirs from being closed.
        """
        candidates, known = self.waiting
        if not candidates and 2 * len(known) >= self.count:
            candidates = known
        return next((each for each in islice(candidates, CANDIDATES) if not each.hasUnread), None)


class Connections:
    """
    All connections of a registry. When there are too many, the one of an unauthenticated client is closed that has
    waited longest for a request. If there is none, and at least half of all connections are known ones that wait, the
    known one is closed that has waited longest. Otherwise the new one is closed: requests are being answered on all
    others, or have just come. When the unfinished requests of unauthenticated clients take too much memory, the
    connection with the oldest one is closed. Connections that wait for too long are closed in any case.

    :param onEmpty: called when the last one is gone.
    :ivar evictions: how many had to go since the start.
    """

    _log = Logger()

    def __init__(self, limits: ConnectionLimits, clock: IReactorTime, onEmpty: Callable[[], object]) -> None:
        self.limits = limits
        self.clock = clock
        self._onEmpty = onEmpty
        self._connections: set[Evictable] = set()
        self._drained: Waiters[None] = Waiters()
        self._all = _Group()
        self._ofPeer: dict[str, _Group] = {}
        # One timer for all that wait: for the one that has waited longest.
        self._idleCall: IDelayedCall | None = None
        # The bytes of unfinished requests of unauthenticated clients, the oldest request first.
        self._kept: dict[Evictable, int] = {}
        self._allKept = 0
        self.evictions = 0
        self._evicted = 0
        self._logged: float | None = None

    @property
    def count(self) -> int:
        return self._all.count

    def opened(self, connection: Evictable) -> None:
        """There is a new one, from which nothing has come so far."""
        self._connections.add(connection)
        ofPeer = self._ofPeer.setdefault(connection.peer, _Group())
        for group in (self._all, ofPeer):
            group.count += 1
        if ofPeer.count > self.limits.perClient:
            self._makeRoom(ofPeer, connection)
        elif self.count > self.limits.connections:
            self._makeRoom(self._all, connection)
        else:
            self.waits(connection)

    def closed(self, connection: Evictable) -> None:
        """One is gone."""
        self.answers(connection)
        self.keeps(connection, 0)
        self._connections.discard(connection)
        ofPeer = self._ofPeer[connection.peer]
        for group in (self._all, ofPeer):
            group.count -= 1
        if not ofPeer.count:
            del self._ofPeer[connection.peer]
        if not self.count:
            if self._idleCall is not None:
                self._idleCall.cancel()
                self._idleCall = None
            self._onEmpty()
            self._drained.fire(None)

    def drain(self, seconds: float, endWaiting: Callable[[], None] = lambda: None) -> Deferred[None]:
        """
        Close all: idle ones now, the others with the response to their request.

        :param seconds: after so long, connections are closed whatever happens on them.
        :param endWaiting: ends the waiting of requests, whose responses then say that the connection ends.
        :return: fires when no connection is left.
        """
        if not self.count:
            endWaiting()
            return succeed(None)
        drained = self._drained.wait()
        abort = self.clock.callLater(seconds, self._abort)
        for connection in list(self._connections):
            connection.endSoon()
        endWaiting()
        return cancelWith(abort, drained)

    def _abort(self) -> None:
        for connection in list(self._connections):
            connection.evict()

    def waits(self, connection: Evictable) -> None:
        """Nothing is being answered on it."""
        now = self.clock.seconds()
        self._all.add(connection, now)
        self._ofPeer[connection.peer].add(connection, now)
        if self._idleCall is None:
            self._idleCall = self.clock.callLater(self.limits.idleSeconds, self._closeIdle)

    def answers(self, connection: Evictable) -> None:
        """A request has come in whole and is being answered, or what has come waits for its turn."""
        self._all.discard(connection)
        self._ofPeer[connection.peer].discard(connection)

    def _closeIdle(self) -> None:
        self._idleCall = None
        now = self.clock.seconds()
        idle = self.limits.idleSeconds
        for waiting in self._all.waiting:
            # The same sum as below: rounded in another way, a moment could be in the future here and be reached there.
            for connection in [each for each, _ in takewhile(lambda item: item[1] + idle <= now, waiting.items())]:
                if connection in waiting:  # closing another one may have closed it
                    # It may take a while to close, or a request may be coming in.
                    self._all.discard(connection)
                    self._all.add(connection, now)
                    connection.timeoutConnection()
        since = [next(iter(waiting.values())) for waiting in self._all.waiting if waiting]
        if since and self._idleCall is None:
            self._idleCall = self.clock.callLater(min(since) + idle - now, self._closeIdle)

    def keeps(self, connection: Evictable, size: int) -> None:
        """Note the size of the unfinished request on the connection of an unauthenticated client."""
        self._allKept += size - self._kept.get(connection, 0)
        if size:
            self._kept[connection] = size
        else:
            self._kept.pop(connection, None)
        while self._allKept > self.limits.unfinishedBytes:
            victim = next(iter(self._kept))
            self.keeps(victim, 0)
            self._evict(
                victim,
                "Unfinished requests without a token take {kept} bytes: {evicted} connections closed",
                kept=self._allKept,
            )

    def _makeRoom(self, group: _Group, newcomer: Evictable) -> None:
        victim = group.victim()
        if victim is None:
            victim = newcomer
        else:
            # Now, so that the next newcomer takes another's place: the connection is gone only in the next turn.
            self.answers(victim)
            self.waits(newcomer)
        self._evict(
            victim,
            "Too many connections ({count}, of which {ofPeer} from {peer}): {evicted} closed",
            count=self.count,
            peer=newcomer.peer,
            ofPeer=self._ofPeer[newcomer.peer].count,
        )

    def _evict(self, victim: Evictable, why: str, **figures: object) -> None:
        self.evictions += 1
        self._evicted += 1
        now = self.clock.seconds()
        if self._logged is None or now - self._logged >= LOG_INTERVAL:
            self._log.warn(why, evicted=self._evicted, **figures)
            self._logged = now
            self._evicted = 0
        victim.evict()
