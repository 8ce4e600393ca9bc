"""
How many connections there may be, and which one has to go when there are too many.

A connection that has brought a whole request with a valid token is kept. A connection that was opened and brings
nothing is closed first, whatever its address and however many such connections there are.
:mod:`txserviceregistry.registry.http.server` has the connections themselves.
"""

from __future__ import annotations

import ipaddress
import resource
from collections import Counter
from itertools import islice, takewhile
from typing import Protocol

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime

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
    What clients may take of a registry. One connection costs about 15 KB of memory, and twice as much while a request
    waits on it.

    :ivar connections: how many in all. It is fewer where the process may not open so many files.
    :ivar perClient: how many from one address.
    :ivar requestSeconds: how long a request may take to come in whole, from its first byte, and how long a new
        connection may take to bring its first one.
    :ivar idleSeconds: how long a connection is kept between two requests. The longest heartbeat interval is shorter, so
        that a client that does nothing but beat keeps its connection.
    :ivar followers: how many requests may wait for events in all.
    :ivar followersPerTenant: how many of one tenant.
    :ivar unfinishedBytes: how much is kept of the requests that have not come in whole, all together, from connections
        that have never shown a token; more than one request can have.
    """

    connections: int = 10_000
    perClient: int = 5_000
    requestSeconds: float = 30.0
    idleSeconds: float = 120.0
    followers: int = 5_000
    followersPerTenant: int = 2_500
    unfinishedBytes: int = 2**25

    def within(self, files: int) -> ConnectionLimits:
        """
        The same, as far as they can be kept to.

        :param files: how many files the process may open.
        """
        # Of very few, half: the store and the listeners need no more than some twenty.
        connections = max(1, min(self.connections, max(files - RESERVED_FILES, files // 2)))
        # Requests that wait for events hold their connections for a minute: some have to be left for others.
        return attrs.evolve(self, connections=connections, followers=min(self.followers, connections * 4 // 5))


def availableFiles() -> int:
    """How many files this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def raiseFileLimit(limits: ConnectionLimits) -> None:
    """
    Let this process open as many files as the connections need, as far as it may decide that itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def peerOf(address: IAddress) -> str:
    """
    Whom a connection is counted for: its address. One that has an IPv6 address has as many as it likes, in a network
    of 64 bits.
    """
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        host = ipaddress.IPv6Address(address.host.partition("%")[0])
        return str(host.ipv4_mapped or ipaddress.IPv6Network((host, 64), strict=False))
    return "local sockets"


class Evictable(Protocol):
    """
    What is kept here.

    :ivar peer: the address that it comes from.
    :ivar isKnown: whether it has brought a request with a token that counts, or credentials that do.
    :ivar hasUnread: whether something has come on it that has not been read so far.
    """

    peer: str
    isKnown: bool

    @property
    def hasUnread(self) -> bool: ...

    def evict(self) -> None:
        """Close at once."""


class _Waiting:
    """
    Connections that could be closed without harm to anybody's request, those that have waited longest first.
    """

    def __init__(self) -> None:
        # A dict keeps the order in which things came; and what comes again, comes last.
        self.unauthenticated: dict[Evictable, None] = {}
        self.known: dict[Evictable, None] = {}

    def add(self, connection: Evictable) -> None:
        (self.known if connection.isKnown else self.unauthenticated)[connection] = None

    def discard(self, connection: Evictable) -> None:
        self.unauthenticated.pop(connection, None)
        self.known.pop(connection, None)

    def __bool__(self) -> bool:
        return bool(self.unauthenticated or self.known)

    def victim(self, count: int) -> Evictable | None:
        """
        The connection to close first; never one with unread input. A known one only if at least half of all
        connections are known ones that wait: what unauthenticated clients have sent may keep theirs from being closed.

        :param count: how many connections there are in all.
        """
        candidates = self.unauthenticated
        if not candidates and 2 * len(self.known) >= count:
            candidates = self.known
        for connection in islice(candidates, CANDIDATES):
            if not connection.hasUnread:
                return connection
        return None


class Connections:
    """
    All connections of a registry. When there are as many as may be, a new one takes the place of one that waits: the
    one of an unauthenticated client that has waited longest. If there is none, and at least half of all connections are
    known ones that wait, the known one that has waited longest is closed. Otherwise the new one is closed: requests are
    being answered on all, or have just come. When the unfinished requests of unauthenticated clients take too much
    memory, the connection is closed whose request has been under way longest.

    :param limits: how many there may be.
    :param clock: paces the log.
    :ivar evictions: how many had to go since the start.
    """

    _log = Logger()

    def __init__(self, limits: ConnectionLimits, clock: IReactorTime) -> None:
        self._limits = limits
        self._clock = clock
        self._count = 0
        self._byPeer: Counter[str] = Counter()
        self._waiting = _Waiting()
        self._waitingByPeer: dict[str, _Waiting] = {}
        # The bytes of unfinished requests of unauthenticated clients, the oldest request first.
        self._kept: dict[Evictable, int] = {}
        self._allKept = 0
        self.evictions = 0
        self._evicted = 0
        self._logged: float | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return self._count

    def opened(self, connection: Evictable) -> None:
        """There is a new one, from which nothing has come so far."""
        self._count += 1
        self._byPeer[connection.peer] += 1
        if self._byPeer[connection.peer] > self._limits.perClient:
            self._makeRoom(self._waitingByPeer.get(connection.peer), connection, self._byPeer[connection.peer])
        elif self._count > self._limits.connections:
            self._makeRoom(self._waiting, connection, self._count)
        else:
            self.waits(connection)

    def closed(self, connection: Evictable) -> None:
        """One is gone."""
        self.answers(connection)
        self.keeps(connection, 0)
        self._count -= 1
        self._byPeer[connection.peer] -= 1
        if not self._byPeer[connection.peer]:
            del self._byPeer[connection.peer]

    def waits(self, connection: Evictable) -> None:
        """Nothing is being answered on it."""
        self._waiting.add(connection)
        ofPeer = self._waitingByPeer.get(connection.peer)
        if ofPeer is None:
            ofPeer = self._waitingByPeer[connection.peer] = _Waiting()
        ofPeer.add(connection)

    def answers(self, connection: Evictable) -> None:
        """A request has come in whole and is being answered, or what has come waits for its turn."""
        self._waiting.discard(connection)
        ofPeer = self._waitingByPeer.get(connection.peer)
        if ofPeer is not None:
            ofPeer.discard(connection)
            if not ofPeer:
                del self._waitingByPeer[connection.peer]

    def keeps(self, connection: Evictable, size: int) -> None:
        """Note the size of the unfinished request on the connection of an unauthenticated client."""
        self._allKept += size - self._kept.get(connection, 0)
        if size:
            self._kept[connection] = size
        else:
            self._kept.pop(connection, None)
        while self._allKept > self._limits.unfinishedBytes:
            victim = next(iter(self._kept))
            self.keeps(victim, 0)
            self._evict(
                victim,
                "{kept} bytes are kept of requests without a token that have not come in whole: {evicted} connections "
                "closed to make room",
                kept=self._allKept,
            )

    def _makeRoom(self, waiting: _Waiting | None, newcomer: Evictable, count: int) -> None:
        victim = None if waiting is None else waiting.victim(count)
        if victim is None:
            victim = newcomer
        else:
            # Now, so that the next newcomer takes another's place: the connection is gone only in the next turn.
            self.answers(victim)
            self.waits(newcomer)
        self._evict(
            victim,
            "There are too many connections ({count}; from {peer}: {ofPeer}): {evicted} closed to make room",
            count=self._count,
            peer=newcomer.peer,
            ofPeer=self._byPeer[newcomer.peer],
        )

    def _evict(self, victim: Evictable, why: str, **figures: object) -> None:
        self.evictions += 1
        self._evicted += 1
        now = self._clock.seconds()
        if self._logged is None or now - self._logged >= LOG_INTERVAL:
            self._log.warn(why, evicted=self._evicted, **figures)
            self._logged = now
            self._evicted = 0
        victim.evict()


class Silent(Protocol):
    """What may be silent for some time."""

    def timeoutConnection(self) -> None:
        """That was too long."""


class IdleTimeouts:
    """
    Ends connections from which nothing has come for too long. It begins and ends with every request: so there is one
    timer for all of them, which goes by the one that has been silent longest.

    :param seconds: how long is too long.
    """

    def __init__(self, seconds: float, clock: IReactorTime) -> None:
        self._seconds = seconds
        self._clock = clock
        # Since when, those first that have been silent longest.
        self._since: dict[Silent, float] = {}
        self._call: IDelayedCall | None = None

    def begins(self, connection: Silent) -> None:
        """From now on nothing comes."""
        self._since.pop(connection, None)
        self._since[connection] = self._clock.seconds()
        if self._call is None:
            self._call = self._clock.callLater(self._seconds, self._look)

    def ends(self, connection: Silent) -> None:
        """Something has come, or the connection is gone."""
        self._since.pop(connection, None)

    def stop(self) -> None:
        """Leave nothing on the reactor."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _look(self) -> None:
        self._call = None
        now = self._clock.seconds()
        silent = list(takewhile(lambda item: item[1] + self._seconds <= now, self._since.items()))
        for connection, since in silent:
            # The end of one may have brought about another's.
            if self._since.get(connection) == since:
                del self._since[connection]
                connection.timeoutConnection()
        self.stop()
        for since in self._since.values():
            self._call = self._clock.callLater(max(0.0, since + self._seconds - self._clock.seconds()), self._look)
            break
