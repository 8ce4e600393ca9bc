"""
A TCP proxy of ours between clients and a registry, which does to their connections what networks do.

It stands in the test's own process, so that a fault begins and ends at the very moment that the test says.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from random import Random
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.system.ports import freePorts
from txserviceregistry.util.deferred import returnsDeferred

from .messages import Bytes, Messages, answer

__all__ = ["BOTH", "TO_CLIENT", "TO_REGISTRY", "Proxy", "Way"]

_LOOPBACK = "127.0.0.1"


class Way(Enum):
    """One of the two directions of every connection."""

    toRegistry = "to the registry"
    toClient = "to the client"


TO_REGISTRY = Way.toRegistry
TO_CLIENT = Way.toClient
BOTH = (TO_REGISTRY, TO_CLIENT)


class _End(Enum):
    """How one side has ended a connection."""

    closed = "closed"
    reset = "reset"


#: The bytes of one direction.
_Item = bytes | _End


@attrs.frozen
class _Spoiled:
    """
    The replacement of a response.

    :ivar data: is sent,
    :ivar end: and then the connection ends so, or goes on.
    """

    data: bytes
    end: _End | None = None


#: Looks at a whole answer, and spoils it or not.
_Spoiler = Callable[[bytes], _Spoiled | None]


class Proxy:
    """
    Every fault can begin at any moment, holds for the connections that are open as for those to come, and ends with
    :meth:`heal`. Several can hold at once.

    A direction that is cut loses nothing for good as long as its sender keeps the connection, as TCP sends again what
    was not acknowledged: it arrives when the fault has ended. Bytes sent before their sender *reset* the connection
    are lost then, as the sender's system has thrown them away.

    :param reactor: connects, listens and keeps time.
    :param port: the registry's port on loopback. May be set anew, for the connections to come.
    :param random: draws what is left to chance.
    :param isTLS: whether TLS goes through. Then there are no messages to spoil, and a delay holds for the handshake of
        TCP as well.
    :ivar counts: how many ``connections`` there were, ``requests`` from clients, ``answers`` from the registry, and how
        often each fault was done to one.
    """

    def __init__(self, reactor: Any, port: int, random: Random | None = None, *, isTLS: bool = False) -> None:
        self.reactor = reactor
        self.isTLS = isTLS
        self.port = port
        self.random = Random(0) if random is None else random
        self.counts: Counter[str] = Counter()
        self.links: set[_Link] = set()
        self.hung: set[Way] = set()
        self.delays: dict[Way, float] = {}
        self.garbled: dict[Way, float] = {}
        self.spoilers: dict[str, _Spoiler] = {}
        self.instead: Callable[[], bytes | None] | None = None
        self._listener: IListeningPort | None = None
        self._ownPort = freePorts(1)[0]

    # -- being there

    def start(self) -> None:
        """Listen, on a port of its own that stays the same."""
        if self._listener is None:
            self._listener = self.reactor.listenTCP(self._ownPort, _Clients(self), interface=_LOOPBACK)

    @property
    def url(self) -> str:
        """The registry's URL by way of this proxy."""
        return f"{'https' if self.isTLS else 'http'}://{_LOOPBACK}:{self._ownPort}/v1.0"

    @property
    def environment(self) -> dict[str, str]:
        """What, in a program's environment, sends it here for all that it asks."""
        return {"RAXSR_API_URL": self.url, "RAXSR_AUTH_URL": self.url.replace("v1.0", "v2.0")}

    @returnsDeferred
    async def stop(self) -> None:
        """
        Stop listening, and end all connections.

        :return: fires when nothing is left on the reactor.
        """
        await self.refuse()
        # All at once: while one is waited for, others may end by themselves.
        await gatherResults([link.end() for link in list(self.links)])

    # -- faults of connections

    @returnsDeferred
    async def refuse(self) -> None:
        """
        Refuse new connections; those that are open go on.

        :return: fires when it is so.
        """
        listener, self._listener = self._listener, None
        if listener is not None:
            stopping = listener.stopListening()
            if stopping is not None:
                await stopping

    def reset(self) -> None:
        """Reset all connections that are open, on both sides."""
        self.counts["resets"] += len(self.links)
        for link in list(self.links):
            link.reset()

    def hang(self, *ways: Way) -> None:
        """Let nothing through; in both directions if none is named, else in these (a half open connection)."""
        self.hung.update(ways or BOTH)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Let everything take so many *seconds* longer. Bytes under way arrive even when its sender has gone."""
        self.delays.update(dict.fromkeys(ways or BOTH, seconds))

    def garble(self, rate: float, *ways: Way) -> None:
        """Spoil a byte in about so many (0 to 1) of the messages."""
        self.garbled.update(dict.fromkeys(ways or BOTH, rate))

    def heal(self) -> None:
        """End every fault; what was held arrives now, what is delayed when its time has come."""
        self.hung.clear()
        self.delays.clear()
        self.garbled.clear()
        self.spoilers.clear()
        self.instead = None
        self.start()
        for link in list(self.links):
            link.flush()

    # -- faults of answers

    def lose(self, every: int = 2, *, hang: bool = False) -> None:
        """
        Lose every so many'th answer, after the registry has done what it was asked.

        :param hang: leave the connection open, so that the client waits; by default it is reset.
        """
        self._spoilEvery("lost", every, lambda _: _Spoiled(b"", None if hang else _End.reset))

    def cutShort(self, after: int, every: int = 1) -> None:
        """Close the connection *after* so many bytes of the body of every so many'th answer."""

        def cut(message: bytes) -> _Spoiled | None:
            head, blank, body = message.partition(b"\r\n\r\n")
            return _Spoiled(head + blank + body[:after], _End.closed) if len(body) > after else None

        self._spoilEvery("cut short", every, cut)

    def answer(self, rate: float, *messages: bytes, reaching: float = 0.5) -> None:
        """
        Give answers of its own to so many (0 to 1) of the requests.

        :param messages: to choose from; 500, 502, 503 and what is not HTTP if there are none.
        :param reaching: how many of these requests (0 to 1) reach the registry all the same.
        """
        choice = messages or (answer(500), answer(502), answer(503), b"\x00\xff this is not HTTP\r\n\r\n")

        def chosen(share: float) -> bytes | None:
            if self.random.random() >= share:
                return None
            self.counts["answered instead"] += 1
            return self.random.choice(choice)

        def spoil(_: bytes) -> _Spoiled | None:
            message = chosen(rate * reaching)
            return None if message is None else _Spoiled(message)

        self.instead = lambda: chosen(rate * (1 - reaching))
        self.spoilers["answered instead"] = spoil

    def _spoilEvery(self, name: str, every: int, spoil: _Spoiler) -> None:
        seen = 0

        def spoiler(message: bytes) -> _Spoiled | None:
            nonlocal seen
            seen += 1
            spoiled = spoil(message) if seen % every == 0 else None
            if spoiled is not None:
                self.counts[name] += 1
            return spoiled

        self.spoilers[name] = spoiler

    # -- for the connections

    def spoil(self, message: bytes) -> _Spoiled:
        """The part of a response of the registry that the client receives."""
        self.counts["answers"] += 1
        for spoiler in self.spoilers.values():
            spoiled = spoiler(message)
            if spoiled is not None:
                return spoiled
        return _Spoiled(message)

    def blur(self, way: Way, message: bytes) -> bytes:
        """A message, with a byte of it spoiled where that is so decided."""
        if not message or self.random.random() >= self.garbled.get(way, 0.0):
            return message
        self.counts["garbled"] += 1
        at = self.random.randrange(len(message))
        return message[:at] + bytes([message[at] ^ self.random.randrange(1, 256)]) + message[at + 1 :]


class _Pipe:
    """One direction of one connection: what was sent, and has not arrived yet."""

    def __init__(self, proxy: Proxy, way: Way) -> None:
        self._proxy = proxy
        self._way = way
        self._target: Any = None
        self._held: deque[_Item] = deque()
        self._travelling: deque[IDelayedCall] = deque()
        self._latest = 0.0
        self._stopped = False

    def wait(self, seconds: float) -> None:
        """Nothing arrives before so many seconds have passed."""
        self._latest = self._proxy.reactor.seconds() + seconds

    def connect(self, target: Any) -> None:
        """The other end is there."""
        self._target = target
        self.flush()

    def put(self, item: _Item) -> None:
        """Something is sent."""
        if self._stopped:
            return
        if isinstance(item, bytes):
            item = self._proxy.blur(self._way, item)
        now = self._proxy.reactor.seconds()
        # Nothing overtakes what was sent before, also when the delay has become shorter.
        self._latest = max(self._latest, now + self._proxy.delays.get(self._way, 0.0))
        if self._latest > now or self._travelling:
            self._travelling.append(self._proxy.reactor.callLater(self._latest - now, self._arrived, item))
        else:
            self._hold(item)

    def _arrived(self, item: _Item) -> None:
        self._travelling.popleft()
        self._hold(item)

    def _hold(self, item: _Item) -> None:
        if item is _End.reset:
            self._held.clear()
        self._held.append(item)
        self.flush()

    def flush(self) -> None:
        """Let arrive what can."""
        while self._held and self._target is not None and self._way not in self._proxy.hung:
            item = self._held.popleft()
            if isinstance(item, bytes):
                self._target.write(item)
            elif item is _End.closed:
                self._target.loseConnection()
            else:
                self._target.abortConnection()

    def stop(self) -> None:
        """Nothing arrives any more."""
        self._stopped = True
        self._held.clear()
        while self._travelling:
            self._travelling.popleft().cancel()


class _Link:
    """A client's connection, and the one to the registry that belongs to it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.toRegistry = _Pipe(proxy, TO_REGISTRY)
        self.toClient = _Pipe(proxy, TO_CLIENT)
        self._requests = Bytes() if proxy.isTLS else Messages()
        self._answers = Bytes() if proxy.isTLS else Messages()
        # Of these the two ends are made; each is there until its connection is lost.
        self._ends: set[Any] = set()
        self._connector: Any = None
        self._gone: list[Deferred[None]] = []
        # An answer was lost on it: nothing that comes later could be told from what is missing.
        self._isDeaf = False

    def connected(self, end: Protocol) -> None:
        self._ends.add(end.transport)
        if isinstance(end, _ClientEnd):
            self.proxy.counts["connections"] += 1
            self.proxy.links.add(self)
            self.toClient.connect(end.transport)
            if self.proxy.isTLS:
                self.toRegistry.wait(sum(self.proxy.delays.values()))
            self._connector = self.proxy.reactor.connectTCP(_LOOPBACK, self.proxy.port, _Registries(self))
        else:
            self.toRegistry.connect(end.transport)

    def fromClient(self, data: bytes) -> None:
        for message in self._requests.take(data):
            self.proxy.counts["requests"] += 1
            instead = self.proxy.instead() if self.proxy.instead is not None else None
            if instead is None:
                self.toRegistry.put(message)
            else:
                self.toClient.put(instead)

    def fromRegistry(self, data: bytes) -> None:
        for message in self._answers.take(data):
            spoiled = self.proxy.spoil(message)
            if spoiled.data and not self._isDeaf:
                self.toClient.put(spoiled.data)
            elif not spoiled.data and spoiled.end is None:
                self._isDeaf = True
            if spoiled.end is not None:
                self.toClient.put(spoiled.end)

    def lost(self, end: Protocol, how: _End) -> None:
        self._ends.discard(end.transport)
        if isinstance(end, _ClientEnd):
            self._pass(self.toRegistry, self._requests.rest(), how)
            self.toClient.stop()
        else:
            self._pass(self.toClient, self._answers.rest(), how)
            self.toRegistry.stop()
        if not self._ends:
            self._over()

    def notConnected(self) -> None:
        """The registry refuses the connection."""
        self.toRegistry.stop()
        self.toClient.put(_End.reset)

    def _pass(self, pipe: _Pipe, rest: bytes, how: _End) -> None:
        if rest:
            pipe.put(rest)
        pipe.put(how)

    def _over(self) -> None:
        self.toClient.stop()
        self.toRegistry.stop()
        self._connector.disconnect()
        self.proxy.links.discard(self)
        gone, self._gone = self._gone, []
        for each in gone:
            each.callback(None)

    def reset(self) -> None:
        for transport in list(self._ends):
            transport.abortConnection()

    def flush(self) -> None:
        self.toRegistry.flush()
        self.toClient.flush()

    def end(self) -> Deferred[None]:
        gone: Deferred[None] = Deferred()
        self._gone.append(gone)
        self.reset()
        return gone


class _ProxyEnd(Protocol):
    """One of the two ends of a link."""

    def __init__(self, link: _Link) -> None:
        self.link = link

    def connectionMade(self) -> None:
        self.link.connected(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.link.lost(self, _End.closed if reason.check(ConnectionDone) else _End.reset)


class _ClientEnd(_ProxyEnd):
    def dataReceived(self, data: bytes) -> None:
        self.link.fromClient(data)


class _RegistryEnd(_ProxyEnd):
    def dataReceived(self, data: bytes) -> None:
        self.link.fromRegistry(data)


class _Clients(Factory):
    noisy = False

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def buildProtocol(self, addr: object) -> _ClientEnd:
        return _ClientEnd(_Link(self._proxy))


class _Registries(ClientFactory):
    noisy = False

    def __init__(self, link: _Link) -> None:
        self._link = link

    def buildProtocol(self, addr: object) -> _RegistryEnd:
        return _RegistryEnd(self._link)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._link.notConnected()
