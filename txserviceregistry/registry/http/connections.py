"""How many connections there may be, which one is closed, and in which order work for unknown clients is done."""

from __future__ import annotations

import ipaddress
import math
import resource
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count, islice
from socket import MSG_PEEK
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.web.http import HTTPChannel
from twisted.web.server import Request

from ...util.deferred import BoundedCache, cancelWith
from ...util.logs import Logger
from ..limits import FairQueue, Origin

#: Seconds for which an address stays known after the last connection of an authenticated client.
KNOWN_SECONDS = 86_400.0
#: File descriptors that are not for connections: the store, the log, listeners, and those that are accepted in the turn
#: of the reactor in which others are closed.
RESERVED_FILES = 200
#: How many connections that could be closed are looked at for one on which nothing has come.
CANDIDATES = 100
#: Seconds from one line in the log about a limit to the next.
LOG_INTERVAL = 60.0
#: Seconds from one look for connections that have waited for too long to the next.
SWEEP_SECONDS = 1.0
#: Seconds after which a connection that is being closed is cut, whether or not its last response has been read.
CLOSE_SECONDS = 15.0


@attrs.frozen
class ConnectionLimits:
    """
    How much of a registry clients may use. A connection takes about 15 KB of memory, 30 while a request waits on it.

    :ivar connections: how many in all; fewer where the process may not open so many files.
    :ivar perClient: how many from one address.
    :ivar requestSeconds: how long a request may take to come in whole, from its first byte, and how long a new
        connection may be open without one.
    :ivar idleSeconds: how long a connection is kept between two requests; longer than any heartbeat interval.
    :ivar followers: how many requests may wait for events in all; *followersPerTenant*: of one tenant.
    :ivar streams: how many event streams there may be in all; *streamsPerTenant*: of one tenant.
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
        """How many requests may wait for events, event streams included: some connections are left for others."""
        return self.connections * 4 // 5


def availableFiles() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft


def raiseFileLimit(limits: ConnectionLimits) -> None:
    """Let this process open as many files as the connections need, up to its hard limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = limits.connections + RESERVED_FILES
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if availableFiles() < wanted:
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
    """The client that a connection is counted for: an IPv4 address, or an IPv6 network of 64 bits."""
    host = ipOf(address)
    if host is None:
        return "local sockets"
    return str(host if host.version == 4 else ipaddress.IPv6Network((host, 64), strict=False))


class Client(HTTPChannel):
    """The connection of a client, which *isKnown* if it has shown valid credentials; it is closed at its *deadline*."""

    connections: Connections
    transport: Any
    peer = ""
    isKnown = False
    deadline = math.inf
    # Whether the client does not read what it is sent.
    isClogged = False
    isClosing = False
    # Objects that remember a connection keep this number instead, so that the connection can be freed.
    number = 0

    @property
    def origin(self) -> Origin:
        return self.connections.origin(self.peer, self.number)

    @property
    def hasUnread(self) -> bool:
        """Whether something has come that has not been read so far."""
        transport = self.transport
        while hasattr(transport, "transport"):
            transport = transport.transport  # below TLS
        socket = getattr(transport, "socket", None)
        try:
            return not self.isClogged and socket is not None and bool(socket.recv(1, MSG_PEEK))
        except OSError:
            return False

    def endAfter(self, seconds: float) -> None:
        self.deadline = self.connections.clock.seconds() + seconds

    def loseConnection(self) -> None:
        """Close as soon as all that was sent has been read, or after a while."""
        self.isClosing = True
        self.endAfter(CLOSE_SECONDS)
        HTTPChannel.loseConnection(self)


class Connections:
    """
    All connections of a registry. When there are too many, that of an unauthenticated client is closed that has waited
    longest for a request; if there is none, the known one that has, if at least half of all are known ones that wait;
    else the new one.
    """

    _log = Logger()

    def __init__(self, limits: ConnectionLimits, clock: IReactorTime) -> None:
        self.limits = limits
        self.clock = clock
        self.evictions = 0
        # Of unauthenticated clients.
        self.requests = AdmissionQueue(clock)
        self.handshakes = AdmissionQueue(clock)
        # When an address was last known: during a flood from elsewhere a share of the queues is reserved for these.
        self._seen: BoundedCache[str, float] = BoundedCache()
        self._numbers = count(1)
        self._members: set[Client] = set()
        self._ofPeer: Counter[str] = Counter()
        # Those that could be closed without harm to a request, of unauthenticated clients and of known ones, in the
        # order in which they began to wait.
        self._waiting: tuple[dict[Client, None], dict[Client, None]] = {}, {}
        self._sweeping: IDelayedCall | None = None
        self._drained: Deferred[None] = Deferred()
        # The bytes of unfinished requests of unauthenticated clients, the oldest request first.
        self._kept: dict[Client, int] = {}
        self._allKept = 0
        # When evictions were logged, and how many there had been then.
        self._logged = -math.inf, 0

    @property
    def count(self) -> int:
        return len(self._members)

    def opened(self, connection: Client) -> None:
        """There is a new one, from which nothing has come so far."""
        connection.number = next(self._numbers)
        self._members.add(connection)
        self._ofPeer[connection.peer] += 1
        if self._sweeping is None:
            self._sweeping = self.clock.callLater(SWEEP_SECONDS, self._sweep)
        if self._ofPeer[connection.peer] > self.limits.perClient:
            self._makeRoom(connection, self._ofPeer[connection.peer], lambda each: each.peer == connection.peer)
        elif self.count > self.limits.connections:
            self._makeRoom(connection, self.count, lambda each: True)
        else:
            self.waits(connection)

    def closed(self, connection: Client) -> None:
        self.answers(connection)
        self.keeps(connection, 0)
        self._members.discard(connection)
        self._ofPeer[connection.peer] -= 1
        if not self._ofPeer[connection.peer]:
            del self._ofPeer[connection.peer]
        if not self._members:
            if self._sweeping is not None:
                self._sweeping.cancel()
                self._sweeping = None
            self.requests.stop()
            self.handshakes.stop()
            drained, self._drained = self._drained, Deferred()
            drained.callback(None)

    def remember(self, peer: str) -> None:
        """A client at this address has authenticated."""
        self._seen.put(peer, self.clock.seconds())

    def origin(self, peer: str, connection: int) -> Origin:
        return Origin(peer, connection, self.clock.seconds() - self._seen.get(peer, -math.inf) < KNOWN_SECONDS)

    def drain(self, seconds: float, endWaiting: Callable[[], None] = lambda: None) -> Deferred[None]:
        """Close idle connections now, the others with their response, all after so many *seconds*; fires when done."""
        if not self._members:
            endWaiting()
            return succeed(None)
        drained = self._drained

        def abort() -> None:
            for connection in list(self._members):
                connection.transport.abortConnection()

        aborting = self.clock.callLater(seconds, abort)
        for connection in list(self._members):
            if connection.requests:
                connection.persistent = False
            else:
                connection.loseConnection()
        endWaiting()
        return cancelWith(aborting, drained)

    def waits(self, connection: Client) -> None:
        self._waiting[connection.isKnown][connection] = None

    def answers(self, connection: Client) -> None:
        for waiting in self._waiting:
            waiting.pop(connection, None)

    def _sweep(self) -> None:
        self._sweeping = self.clock.callLater(SWEEP_SECONDS, self._sweep)
        now = self.clock.seconds()
        for connection in [each for each in self._members if each.deadline <= now]:
            if connection not in self._members:
                continue  # closing another one has closed it
            if connection.isClosing:
                connection.transport.abortConnection()
            else:
                connection.loseConnection()

    def keeps(self, connection: Client, size: int) -> None:
        """Note the size of the unfinished request on the connection of an unauthenticated client."""
        self._allKept += size - self._kept.get(connection, 0)
        if size:
            self._kept[connection] = size
        else:
            self._kept.pop(connection, None)
        while self._allKept > self.limits.unfinishedBytes:
            victim = next(iter(self._kept))
            self.keeps(victim, 0)
            text = "Unfinished requests without a token take {kept} bytes: {evicted} connections closed"
            self._evict(victim, text, kept=self._allKept)

    def _makeRoom(self, newcomer: Client, count: int, isOne: Callable[[Client], bool]) -> None:
        """Close one of the connections of a group that has too many, so *count*."""
        guests, known = self._waiting
        candidates = list(islice(filter(isOne, guests), CANDIDATES))
        if not candidates and 2 * sum(map(isOne, known)) >= count:
            candidates = list(islice(filter(isOne, known), CANDIDATES))
        victim = next((each for each in candidates if not each.hasUnread), newcomer)
        if victim is not newcomer:
            # Now, so that the next newcomer takes another's place: the connection is gone only in the next turn.
            self.answers(victim)
            self.waits(newcomer)
        text = "Too many connections ({count}, of which {ofPeer} from {peer}): {evicted} closed"
        self._evict(victim, text, count=self.count, peer=newcomer.peer, ofPeer=self._ofPeer[newcomer.peer])

    def _evict(self, victim: Client, why: str, **figures: object) -> None:
        self.evictions += 1
        now, (logged, before) = self.clock.seconds(), self._logged
        if now - logged >= LOG_INTERVAL:
            self._log.warn(why, evicted=self.evictions - before, **figures)
            self._logged = now, self.evictions
        victim.transport.abortConnection()


class AdmissionQueue:
    """
    The queue of the work for unauthenticated clients. Only a slice of it is done in each turn of the reactor, so that
    clients that have shown a token are served in every turn. The order is fair: half of the turns are for known
    addresses, each half is divided between its addresses, and the share of an address between its connections.
    """

    #: The length of a slice, in seconds.
    SECONDS = 0.002
    #: How long the pause after a slice is, as a multiple of the slice, while all clients are refused. (Only about half
    #: of the work for a request can be measured: not the reading from sockets, and not the work of the store.)
    PAUSE = 2.0
    #: Up to how long work that comes during a pause can make it, in seconds.
    LONGEST = 0.1
    #: The share of refused clients is that among so many that were served last.
    RECENT = 100

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queue: FairQueue[Callable[[], None]] = FairQueue()
        self._spent = 0.0
        # When the work in progress began.
        self._began: float | None = None
        self._next: IDelayedCall | None = None
        # When the pause ends at the latest.
        self._latest = 0.0
        # How many of those that were served recently have shown a token. At first all are expected to.
        self._welcomed = float(self.RECENT)
        self.waited = 0

    def run(self, origin: Origin, work: Callable[[], None]) -> bool:
        """Do work for an unauthenticated client now, or in one of the next turns; whether it is done."""
        running = 0.0 if self._began is None else self._clock.seconds() - self._began
        if self._queue or self._spent + running >= self.SECONDS:
            self.enter(origin, work)
            return False
        self.spend(work)
        return True

    def enter(self, origin: Origin, work: Callable[[], None]) -> None:
        self.waited += 1
        self._queue.add((origin.isKnown, origin.peer, origin.connection), work)
        self._schedule()

    def spend(self, work: Callable[[], None]) -> None:
        """Do work for an unauthenticated client now, and account for the time that it takes."""
        if self._began is not None:
            work()  # it is part of other work
            return
        self._began = self._clock.seconds()
        try:
            work()
        finally:
            took, self._began = self._clock.seconds() - self._began, None
            self._welcomed -= self._welcomed / self.RECENT
            if took > 0:
                before = self._spent
                self._spent += took
                self._schedule(before < self.SECONDS <= self._spent)

    def welcome(self) -> None:
        """A client has shown a token. While most do so, as after a restart, there is no pause between slices."""
        self._welcomed += 1

    def stop(self) -> None:
        """All connections are gone: end what waits for them, and leave nothing on the reactor."""
        while self._queue:
            self._queue.pop()()
        # The time already used still counts for the next clients.
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _schedule(self, beginsPause: bool = False) -> None:
        now, delay = self._clock.seconds(), 0.0
        if self._spent >= self.SECONDS:
            delay = self._spent * self.PAUSE * max(0.0, 1 - self._welcomed / self.RECENT)
        if beginsPause:
            self._latest = now + max(delay, self.LONGEST)
        if self._next is None:
            self._next = self._clock.callLater(delay, self._turn)
        elif delay:
            self._next.reset(max(0.0, min(delay, self._latest - now)))

    def _turn(self) -> None:
        self._next, self._spent = None, 0.0
        # Work that enters again during this turn waits for the next one.
        for _ in range(len(self._queue)):
            if self._queue and self._spent < self.SECONDS:
                self.spend(self._queue.pop())
        if self._queue or self._spent >= self.SECONDS:
            self._schedule()


def _guest(request: Request) -> Client | None:
    """The connection of a request whose client has not shown valid credentials."""
    # Requests to a plain Site have another channel; one that was finished meanwhile has none.
    channel = getattr(request, "channel", None)
    return channel if isinstance(channel, Client) and not channel.isKnown else None


def recognize(request: Request) -> None:
    client = _guest(request)
    if client is not None:
        client.isKnown = True
        client.connections.remember(client.peer)
        client.connections.requests.welcome()
        client.connections.handshakes.welcome()


def originOf(request: Request) -> Origin:
    channel = getattr(request, "channel", None)
    return channel.origin if isinstance(channel, Client) else Origin()


async def inTurn(request: Request) -> None:
    """Wait for the turn of a request that has waited for something else, unless its client has shown a token."""
    client = _guest(request)
    if client is not None:
        turn: Deferred[None] = Deferred()
        client.connections.requests.enter(client.origin, partial(turn.callback, None))
        await turn
