"""
A relay between a store and its etcd, which passes on every byte as it comes (a watch's answer has no end), and can be
cut at any moment.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.system.ports import freePorts

__all__ = ["Relay"]

_LOOPBACK = "127.0.0.1"


class Relay:
    """
    Listens on a port of its own.

    :param reactor: connects and listens.
    :param port: where to relay to, on loopback.
    """

    def __init__(self, reactor: Any, port: int) -> None:
        self.reactor = reactor
        self.port = port
        self.ends: set[_End] = set()
        self.isHung = False
        self._listener: Any = None
        self._ownPort = freePorts(1)[0]
        self._gone: list[Deferred[None]] = []

    @property
    def url(self) -> str:
        """The URL at which it listens."""
        return f"http://{_LOOPBACK}:{self._ownPort}"

    def start(self) -> None:
        """Listen, on a port that stays the same."""
        if self._listener is None:
            factory = Factory.forProtocol(lambda: _End(self))
            factory.noisy = False
            self._listener = self.reactor.listenTCP(self._ownPort, factory, interface=_LOOPBACK)

    async def refuse(self) -> None:
        """Take no new connections."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.stopListening()

    def reset(self) -> None:
        """Reset the connections that are open."""
        for end in list(self.ends):
            end.transport.abortConnection()

    def hang(self) -> None:
        """Let nothing through; nothing is lost."""
        self.isHung = True
        for end in self.ends:
            end.transport.pauseProducing()

    def heal(self) -> None:
        """Be a relay again."""
        self.isHung = False
        self.start()
        for end in self.ends:
            end.transport.resumeProducing()

    def stop(self) -> Deferred[None]:
        """End it; fires when nothing is left."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.refuse()
        while self.ends:
            gone: Deferred[None] = Deferred()
            self._gone.append(gone)
            self.reset()
            await gone

    def passes(self, end: _End, data: bytes) -> None:
        """Something has come to one end; a test that holds this connection's data can begin with it."""

    def lost(self, end: _End) -> None:
        """One end of a connection is gone."""
        self.ends.discard(end)
        if not self.ends:
            gone, self._gone = self._gone, []
            for each in gone:
                each.callback(None)


class _End(Protocol):
    """One end of a connection; the first one makes the other."""

    transport: Any

    def __init__(self, relay: Relay, other: _End | None = None) -> None:
        self._relay = relay
        self.other = other
        self._early: list[bytes] = []
        self._isHeld = False

    def connectionMade(self) -> None:
        self._relay.ends.add(self)
        if self._relay.isHung:
            self.transport.pauseProducing()
        if self.other is None:
            self._relay.reactor.connectTCP(_LOOPBACK, self._relay.port, _Other(self._relay, self))
        else:
            self.other.joined(self)

    def joined(self, other: _End) -> None:
        self.other = other
        if self._isHeld:
            return
        early, self._early = self._early, []
        for data in early:
            other.transport.write(data)

    def hold(self) -> None:
        """Let nothing through from here to the other end; nothing is lost."""
        self._isHeld = True
        self.transport.pauseProducing()

    def letGo(self) -> None:
        """Held bytes go on."""
        self._isHeld = False
        self.transport.resumeProducing()
        if self.other is not None:
            self.joined(self.other)

    def dataReceived(self, data: bytes) -> None:
        self._relay.passes(self, data)
        if self.other is None or self._isHeld:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._relay.lost(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abortConnection()


class _Other(ClientFactory):
    noisy = False

    def __init__(self, relay: Relay, first: _End) -> None:
        self._relay = relay
        self._first = first

    def buildProtocol(self, addr: object) -> _End:
        return _End(self._relay, self._first)

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._first.transport.abortConnection()
