"""Work for clients that have not shown a valid token: in which order it is done, and how much of it at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.server import Request

from ...util.concurrency import BoundedCache
from ..limits import FairQueue, Origin

#: Seconds for which an address stays known after the last connection of an authenticated client.
KNOWN_SECONDS = 86_400.0

# Connections are told apart by numbers: what remembers them keeps none of them alive.
_numbers = count(1)


class AdmissionQueue:
    """
    The queue of the work for unauthenticated clients. Only a slice of it is done in each turn of the reactor, so that
    clients that have shown a token are served in every turn. The order is fair: half of the turns are for known
    addresses, each half is divided between its addresses, and the share of an address between its connections.

    :ivar waited: how many works had to wait since the start.
    """

    #: The length of a slice, in seconds.
    SECONDS = 0.002
    #: How long the pause after a slice is, as a multiple of the slice, while all clients are refused. (Only about half
    #: of the work for a request can be measured: not the reading from sockets, and not the work of the store.)
    PAUSE = 2.0
    #: The share of refused clients is that among so many that were served last.
    RECENT = 100

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._queue: FairQueue[Callable[[], None]] = FairQueue()
        self._spent = 0.0
        # When the work in progress began.
        self._began: float | None = None
        self._next: IDelayedCall | None = None
        # How many were served recently, and how many of these have shown a token. At first all are expected to.
        self._served = self._welcomed = float(self.RECENT)
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
        """Do work for an unauthenticated client in one of the next turns."""
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
            self._served += 1 - self._served / self.RECENT
            self._welcomed -= self._welcomed / self.RECENT
            if took > 0:
                self._spent += took
                self._schedule()

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

    def _schedule(self) -> None:
        delay = 0.0
        if self._spent >= self.SECONDS:
            delay = self._spent * self.PAUSE * max(0.0, 1 - self._welcomed / self._served)
        if self._next is None:
            self._next = self._clock.callLater(delay, self._turn)
        elif delay and self._next.active():
            self._next.reset(delay)

    def _turn(self) -> None:
        self._spent = 0.0
        # Work that enters again during this turn waits for the next one.
        for _ in range(len(self._queue)):
            if self._spent < self.SECONDS:
                self.spend(self._queue.pop())
        self._next = None
        if self._queue or self._spent >= self.SECONDS:
            self._schedule()


class Admission:
    """
    The queues of unauthenticated clients, and the addresses at which a client has authenticated recently. During a
    flood from elsewhere a share of the queues is reserved for these addresses.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self.requests = AdmissionQueue(clock)
        self.handshakes = AdmissionQueue(clock)
        self._clock = clock
        self._seen: BoundedCache[str, float] = BoundedCache()

    def remember(self, peer: str) -> None:
        self._seen.put(peer, self._clock.seconds())

    def origin(self, peer: str, connection: int) -> Origin:
        seen = self._seen.get(peer)
        return Origin(peer, connection, seen is not None and self._clock.seconds() - seen < KNOWN_SECONDS)

    def stop(self) -> None:
        self.requests.stop()
        self.handshakes.stop()


class Client:
    """
    The client of a connection.

    :ivar peer: see :func:`~txserviceregistry.registry.http.connections.peerOf`.
    :ivar isKnown: whether it has sent a request with a valid token, or valid credentials, on this connection.
    """

    admission: Admission
    peer = ""
    isKnown = False
    _number = 0

    @property
    def origin(self) -> Origin:
        self._number = self._number or next(_numbers)
        return self.admission.origin(self.peer, self._number)


def _clientOf(request: Request) -> Client | None:
    # Requests to a plain Site have another channel; one that was finished meanwhile has none.
    channel = getattr(request, "channel", None)
    return channel if isinstance(channel, Client) else None


def recognize(request: Request) -> None:
    """The client of a request has shown a valid token or valid credentials."""
    client = _clientOf(request)
    if client is not None and not client.isKnown:
        client.isKnown = True
        client.admission.remember(client.peer)
        client.admission.requests.welcome()
        client.admission.handshakes.welcome()


def originOf(request: Request) -> Origin:
    client = _clientOf(request)
    return Origin() if client is None else client.origin


async def inTurn(request: Request) -> None:
    """
    Wait for the turn of a request that had to wait for something else. The remaining work for it, and for the requests
    behind it, is work for an unauthenticated client, unless its client has shown a token meanwhile.
    """
    client = _clientOf(request)
    if client is not None and not client.isKnown:
        turn: Deferred[None] = Deferred()
        client.admission.requests.enter(client.origin, partial(turn.callback, None))
        await turn
