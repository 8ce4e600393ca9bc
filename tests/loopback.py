"""
A scripted HTTP server on a real loopback socket, for what can't be shown otherwise: connections.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.iweb import IPolicyForHTTPS

from txserviceregistry.http.tls import tlsPolicy

# Far more than anything here takes; a test that waits for it has failed.
PATIENCE = 60.0


class Call:
    """A request that has come, and the way to answer it, or not to."""

    def __init__(self, connection: Connection, head: str, body: bytes) -> None:
        self.connection = connection
        self.method, self.path, _ = head.split("\r\n")[0].split(" ")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:] if line)
        }
        self.body = body
        #: How many requests this connection has brought, this one included.
        self.nth = connection.count

    @property
    def isAuthentication(self) -> bool:
        return self.path.endswith("/tokens")

    def answer(self, status: int = 200, body: Any = None, *, close: bool = False, headers: str = "") -> None:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n{headers}"
        self.raw(head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + content)
        if close:
            self.connection.transport.loseConnection()

    def raw(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def hangUp(self) -> None:
        self.connection.transport.loseConnection()

    def reset(self) -> None:
        self.connection.transport.abortConnection()


class Connection(Protocol):
    """One connection of a client."""

    factory: Server

    def connectionMade(self) -> None:
        self._data = b""
        self.count = 0
        self.factory.open.append(self)
        self.factory.opened += 1
        self.factory.mostOpen = max(self.factory.mostOpen, len(self.factory.open))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.open.remove(self)

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        while b"\r\n\r\n" in self._data:
            head, _, rest = self._data.partition(b"\r\n\r\n")
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            length = int(lengths[0].split(b":")[1]) if lengths else 0
            if len(rest) < length:
                return
            self._data = rest[length:]
            self.count += 1
            call = Call(self, head.decode(), rest[:length])
            self.factory.calls.append(call)
            self.factory.handler(call)


class Server(Factory):
    """
    The server; *handler* gets each :class:`Call`.

    :ivar open: the connections that are open now. :ivar opened: how many there have been, and
    :ivar mostOpen: how many at most at once.
    """

    protocol = Connection
    noisy = False

    def __init__(self, handler: Callable[[Call], None]) -> None:
        self.handler = handler
        self.calls: list[Call] = []
        self.open: list[Connection] = []
        self.opened = self.mostOpen = 0
        self.url = ""


class LoopbackTestCase(TestCase):
    """A test with servers on loopback, which are gone when it ends."""

    timeout = 2 * PATIENCE
    #: The servers' TLS context, unless a test says otherwise.
    context: Any = None

    def serve(self, handler: Callable[[Call], None], context: Any = None) -> Server:
        server = Server(handler)
        context = context or self.context
        if context is None:
            port = reactor.listenTCP(0, server, interface="127.0.0.1")
        else:
            port = reactor.listenSSL(0, server, context, interface="127.0.0.1")
        server.url = f"http{'' if context is None else 's'}://127.0.0.1:{port.getHost().port}"

        async def stop() -> None:
            await port.stopListening()
            for connection in list(server.open):
                connection.transport.abortConnection()
            await self.until(lambda: not server.open)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        return server

    def unusedUrl(self) -> str:
        """A URL at which no program listens, until the test is over."""
        # A socket that is bound keeps the port from others, and refuses connections.
        holder = socket.socket()
        self.addCleanup(holder.close)
        holder.bind(("127.0.0.1", 0))
        return f"http{'' if self.context is None else 's'}://127.0.0.1:{holder.getsockname()[1]}"

    def policy(self) -> IPolicyForHTTPS:
        """Whose certificates are trusted by what a test makes itself: as a client finds it in its settings."""
        return tlsPolicy(True, os.environ.get("RAXSR_CA_FILE"))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true."""
        began = reactor.seconds()

        def look() -> None:
            if condition():
                loop.stop()
            elif reactor.seconds() - began > PATIENCE:
                raise AssertionError("waited in vain")

        loop = LoopingCall(look)
        await loop.start(0.005)
