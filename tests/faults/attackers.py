"""
``python -m tests.faults.attackers KIND``: clients that mean harm, many of them, in a process of their own.

============  ====================================================================================
``drip``      send a byte a second of a head that never ends
``endless``   send headers without end, as fast as they are taken
``body``      claim a body of 5 GB, and send as much of it as is taken
``unread``    send one request after the other, and read no answer
``follow``    wait for events, and ask again when they are answered (or later, where they are told so)
============  ====================================================================================

Whoever is cut off comes again. Each second a line tells how many connections are open, how many were cut off, and what
was answered how often.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from random import uniform
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

reactor: Any = globalReactor

# How many connections are begun at a time, so that none waits for a place in the queue of the listener.
_AT_ONCE = 40
_BODY = b"x" * 65_536


class _Attacker(Protocol):
    factory: _Attackers

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
        elif kind == "follow":
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
        # Answers are small, and come in one piece.
        for line in data.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                code = line[9:12].decode()
                self.factory.codes[code] += 1
                if self.factory.kind == "follow":
                    self.factory.answered(self, code, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.factory.open.discard(self)
        self.factory.cut += 1
        self.factory.missing += 1


class _Attackers(ClientFactory):
    protocol = _Attacker
    noisy = False

    def __init__(self, kind: str, port: int, count: int, request: bytes) -> None:
        self.kind = kind
        self.request = request
        self.open: set[_Attacker] = set()
        self.codes: Counter[str] = Counter()
        self.cut = 0
        self.missing = count
        self._count = count
        self._port = port

    def connect(self) -> None:
        for _ in range(min(self.missing, _AT_ONCE)):
            self.missing -= 1
            reactor.connectTCP("127.0.0.1", self._port, self, timeout=60)

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self.missing += 1

    def answered(self, attacker: _Attacker, code: str, data: bytes) -> None:
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


def main(arguments: list[str]) -> None:
    """Run them."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.attackers", description=__doc__)
    parser.add_argument("kind", choices=["drip", "endless", "body", "unread", "follow"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--path", default="/", help="what followers ask for; their token is in the environment")
    options = parser.parse_args(arguments)
    request = f"GET {options.path} HTTP/1.1\r\nX-Auth-Token: {os.environ.get('ATTACKERS_TOKEN', '')}\r\n\r\n"
    # Attackers bring their own processors along; here they share those of the registry.
    os.nice(5)
    attackers = _Attackers(options.kind, options.port, options.count, request.encode())
    LoopingCall(attackers.connect).start(0.01)
    LoopingCall(attackers.drip).start(1)
    LoopingCall(attackers.tell).start(0.2)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
