"""
``python -m tests.system.faults.attackers KIND``: many hostile clients, in a process of their own.

=============  ===================================================================================
``drip``       send a byte a second of a head that never ends
``endless``    send headers without end, as fast as they are taken
``body``       claim a body of 5 GB, and send as much of it as is taken
``unread``     send one request after the other, and read no answer
``follow``     wait for events, and ask again when they are answered (or later, where they are told so)
``handshake``  begin a TLS handshake, and hang up when the server has signed its part
``login``      try one wrong API key a second, each time another one, of the user that ``--user`` names
``guess``      the same with names that no user has
``refused``    send a request with a wrong token, and the next one when it is answered
``pipeline``   send a hundred requests with wrong tokens at once, and the next ones when these are answered
``reconnect``  send a request with a wrong token, and another one over a new connection when it is answered
=============  ===================================================================================

A client whose connection is closed connects again. Five times a second a line has the number of open connections, the
number of closed ones, and the count of each status code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from itertools import cycle
from random import uniform
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as globalReactor
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

reactor: Any = globalReactor

# How many connections are begun at a time, so that none waits for a place in the queue of the listener.
_AT_ONCE = 40
_BODY = b"x" * 65_536
_PIPELINED = 100
_KINDS = (
    *("drip", "endless", "body", "unread", "follow"),
    *("handshake", "login", "guess", "refused", "pipeline", "reconnect"),
)


class _Attacker(Protocol):
    factory: _Attackers
    # Requests that are not answered yet.
    ahead = 0

    def connectionMade(self) -> None:
        self.factory.open.add(self)
        kind = self.factory.kind
        request = self.factory.request
        if kind == "drip":
            self.send(b"GET /v1.0/1/services HTTP/1.1\r\nX-")
        elif kind == "body":
            self.send(b"POST /v1.0/1/services HTTP/1.1\r\nContent-Length: 5000000000\r\n\r\n")
        elif kind == "endless":
            self.send(b"GET /v1.0/1/services HTTP/1.1\r\n")
        elif kind == "handshake":
            self.send(self.factory.hello)
        elif kind in ("login", "guess"):
            self.send(self.factory.login())
        elif kind == "pipeline":
            self.ahead = _PIPELINED
            self.send(request * _PIPELINED)
        elif kind in ("follow", "refused", "reconnect"):
            self.send(request)
        if kind == "unread":
            self.transport.pauseProducing()  # type: ignore[union-attr]  # a TCP connection's
        if kind in ("body", "endless", "unread"):
            self.transport.registerProducer(self, False)  # type: ignore[union-attr]  # as above

    def send(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[union-attr]  # as above

    def resumeProducing(self) -> None:
        """Called when there is room for more."""
        if self.factory.kind == "body":
            self.send(_BODY)
        elif self.factory.kind == "endless":
            self.send(b"X: y\r\n" * 1000)
        else:
            self.send(b"GET / HTTP/1.1\r\n\r\n" * 1000)

    def stopProducing(self) -> None:
        """Called when the connection is gone."""

    def dataReceived(self, data: bytes) -> None:
        if self.factory.kind == "handshake":
            self.factory.codes["signed"] += 1
            self.transport.abortConnection()  # type: ignore[union-attr]  # as above
            return
        # Answers are small, and none is cut in two.
        for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", data):
            self.factory.codes[code.decode()] += 1
            self.factory.answered(self, code.decode(), data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.open.discard(self)
        self.factory.cut += 1
        self.factory.missing += 1


class _Attackers(ClientFactory):
    protocol = _Attacker
    noisy = False

    def __init__(self, kind: str, port: int, count: int, request: bytes, user: str, addresses: int) -> None:
        self.kind = kind
        self.request = request
        self.open: set[_Attacker] = set()
        self.codes: Counter[str] = Counter()
        self.cut = 0
        self.missing = count
        self.hello = _hello()
        self._user = user
        self._tries = 0
        self._addresses = cycle([f"127.0.1.{number}" for number in range(1, addresses + 1)] or [""])
        self._port = port

    def connect(self) -> None:
        for _ in range(min(self.missing, _AT_ONCE)):
            self.missing -= 1
            reactor.connectTCP("127.0.0.1", self._port, self, timeout=60, bindAddress=(next(self._addresses), 0))

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.missing += 1

    def login(self) -> bytes:
        self._tries += 1
        user = f"{self._user}{self._tries}" if self.kind == "guess" else self._user
        credentials = {"username": user, "apiKey": f"wrong{self._tries}"}
        body = json.dumps({"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})
        return f"POST /v2.0/tokens HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def answered(self, attacker: _Attacker, code: str, data: bytes) -> None:
        if self.kind in ("login", "guess"):
            reactor.callLater(1, lambda: attacker.send(self.login()))
        elif self.kind == "refused":
            attacker.send(self.request)
        elif self.kind == "pipeline":
            attacker.ahead -= 1
            if not attacker.ahead:
                attacker.ahead = _PIPELINED
                attacker.send(self.request * _PIPELINED)
        elif self.kind == "reconnect":
            attacker.transport.loseConnection()  # type: ignore[union-attr]  # as above
        elif self.kind == "follow":
            self.toFollow(attacker, code, data)

    def toFollow(self, attacker: _Attacker, code: str, data: bytes) -> None:
        if code == "503":
            reactor.callLater(5, attacker.send, self.request)
        elif b'"next_marker"' in data:
            # It asks for the same again, and what was new to it still is.
            reactor.callLater(uniform(1, 60), attacker.send, self.request)

    def drip(self) -> None:
        if self.kind == "drip":
            for attacker in self.open:
                attacker.send(b"x")

    def tell(self) -> None:
        print(json.dumps({"open": len(self.open), "cut": self.cut, "codes": self.codes}), flush=True)


def _hello() -> bytes:
    """The first message of a TLS client. Making it once costs nothing; answering it costs a signature."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    hello: bytes = connection.bio_read(2**15)
    return hello


def main(arguments: list[str]) -> None:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults.attackers", description=__doc__)
    parser.add_argument("kind", choices=_KINDS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--path", default="/", help="what followers ask for; their token is in the environment")
    parser.add_argument("--user", default="nobody", help="the user whose keys are tried")
    parser.add_argument("--addresses", type=int, default=0, help="from how many addresses they come; by default one")
    options = parser.parse_args(arguments)
    request = f"GET {options.path} HTTP/1.1\r\nX-Auth-Token: {os.environ.get('ATTACKERS_TOKEN', '')}\r\n\r\n"
    # Real attackers have processors of their own; these share the registry's.
    os.nice(5)
    attackers = _Attackers(options.kind, options.port, options.count, request.encode(), options.user, options.addresses)
    LoopingCall(attackers.connect).start(0.01)
    LoopingCall(attackers.drip).start(1)
    LoopingCall(attackers.tell).start(0.2)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
