"""
Heartbeats at a fixed rate: ``python -m benchmarks.openloop``.

Clients send heartbeats when it is time, not when the last response has come. So each heartbeat's time counts from the
moment at which it was to be sent: a stall of the registry delays all that come meanwhile, and shows.

First the capacity is measured, with requests over 50 connections that follow each other at once. Then the rate is half
of that, and 0.8 of it. The registry is one over sqlite, and one of three nodes over three members of etcd, where each
request goes to another node. All of them and the load share the cores of this machine.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from .burst import send
from .cluster import Contender, node
from .etcd import etcds
from .harness import Costs, Figure, run

_SERVICES = 1000
_CONNECTIONS = 50
#: Parts of the capacity.
_LOADS = (0.5, 0.8)
#: Seconds between two looks at what is due.
_TICK = 0.001


class _Server:
    """One server, and the requests that wait for one of its connections: a port, and the times that they took."""

    def __init__(self, port: int, times: list[float]) -> None:
        self.port = port
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.free: list[_Connection] = []
        self._times = times

    def send(self, due: float, data: bytes) -> None:
        """Send a request that was due at that time, as soon as a connection is free."""
        if self.free:
            self.free.pop().send(due, data)
        else:
            self.waiting.append((due, data))

    def done(self, connection: _Connection, due: float) -> None:
        """A connection has received a response."""
        self._times.append(asyncio.get_running_loop().time() - due)
        if self.waiting:
            connection.send(*self.waiting.popleft())
        else:
            self.free.append(connection)


class _Connection(asyncio.Protocol):
    """One connection, which waits for each response."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._due = 0.0
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.free.append(self)

    def send(self, due: float, data: bytes) -> None:
        """Send a request that was due at that time."""
        assert self._transport is not None
        self._due = due
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, isWhole, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if isWhole and len(body) >= int(length):
            assert head.startswith(b"HTTP/1.1 200"), head
            self._received = b""
            self._server.done(self, self._due)

    def close(self) -> None:
        """End it."""
        assert self._transport is not None
        self._transport.close()


async def _atRate(requests: Sequence[tuple[int, bytes]], rate: float, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    times: list[float] = []
    servers = {port: _Server(port, times) for port in {port for port, _ in requests}}
    for server in servers.values():
        for _ in range(_CONNECTIONS // len(servers)):
            await loop.create_connection(partial(_Connection, server), "127.0.0.1", server.port)
    connections = [connection for server in servers.values() for connection in server.free]
    began, count = loop.time(), round(rate * seconds)
    for number in range(count):
        due = began + number / rate
        while loop.time() < due:
            await asyncio.sleep(_TICK)
        port, data = requests[number % len(requests)]
        servers[port].send(due, data)
    while len(times) < count:
        await asyncio.sleep(_TICK)
    for connection in connections:
        connection.close()
    return times


def atRate(requests: Sequence[tuple[int, bytes]], rate: float, seconds: float) -> list[float]:
    """
    Send requests at a fixed rate.

    :param rate: how many in a second.
    :return: the seconds that each took, from the moment at which it was due.
    """
    return asyncio.run(_atRate(requests, rate, seconds))


def latencies(name: str, contender: Contender, rounds: int, seconds: float) -> Iterator[Figure]:
    """The capacity, and the times below it."""
    beats = contender.heartbeats([f"service-{index:05}" for index in range(_SERVICES)])
    # The first ones are written to the store.
    send(contender.requests("POST", beats), 1)
    connections = _CONNECTIONS if name == "sqlite" else _CONNECTIONS // 3
    rates = [send(contender.requests("POST", beats * 3), connections)[0] for _ in range(rounds)]
    capacity = statistics.median(rates)
    yield Figure(f"capacity, {name}", capacity, "/s")
    for load in _LOADS:
        # In turns, so that each service's heartbeats come to all nodes.
        requests = [each for _ in range(3) for each in contender.requests("POST", beats)]
        times = sorted(atRate(requests, load * capacity, seconds))
        for percent in (50, 99, 99.9):
            value = times[min(len(times) - 1, int(len(times) * percent / 100))]
            yield Figure(f"{load} of capacity, {name}, p{percent:g}", 1000 * value, "ms")


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    rounds, seconds = (2, 3.0) if quick else (5, 20.0)
    figures: list[Figure] = []
    with ExitStack() as stack:
        one = Contender([stack.enter_context(node())], ())
        figures += latencies("sqlite", one, rounds, seconds)
    with ExitStack() as stack:
        members = stack.enter_context(etcds(3))
        store = {"urls": [member.url for member in members], "prefix": "/together/"}
        three = [stack.enter_context(node(etcd=store)) for _ in range(3)]
        together = Contender(three, [Costs(member.pid) for member in members])
        figures += latencies("three nodes", together, rounds, seconds)
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
