"""
A given number of requests to one server or several, as fast as they are answered, and the answers' bodies: requests
that are bytes already, over connections that each send the next one as soon as the last one is answered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from urllib.parse import urlsplit

__all__ = ["request", "send"]


def request(method: str, url: str, token: str, body: object = None) -> tuple[int, bytes]:
    """
    :param token: what goes into ``X-Auth-Token``.
    :param body: sent as JSON; ``None`` for no body.
    :return: the port, and the bytes that go there.
    """
    where = urlsplit(url)
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode("utf-8")
    lines = {"Host": where.netloc, "X-Auth-Token": token}
    if data:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return where.port or 80, f"{method} {where.path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + data


class _Connection(asyncio.Protocol):
    """One connection, and its part of the requests."""

    def __init__(self, requests: Iterator[tuple[int, bytes]], answers: list[bytes], over: asyncio.Future[None]) -> None:
        self._requests = requests
        self._answers = answers
        self._asked = 0
        self._over = over
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        assert self._transport is not None
        following = next(self._requests, None)
        if following is None:
            self._over.set_result(None)
            self._transport.close()
        else:
            self._asked, data = following
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, isWhole, body = self._received.partition(b"\r\n\r\n")
        if not isWhole:
            return
        _, hasLength, length = head.lower().partition(b"content-length: ")
        if hasLength and len(body) < int(length.partition(b"\r\n")[0]):
            return
        self._received = b""
        self._answers[self._asked] = body
        if head.split(b" ", 2)[1][:1] != b"2" and not self._over.done():
            self._over.set_exception(AssertionError((head + body)[:1000]))
        self._next()

    def connection_lost(self, reason: Exception | None) -> None:
        if not self._over.done():
            self._over.set_exception(reason or AssertionError("the server has closed the connection"))


def send(requests: Sequence[tuple[int, bytes]], connections: int) -> tuple[float, list[bytes]]:
    """
    Send all of them to this machine.

    :param requests: of :func:`request`.
    :param connections: how many there are to each port.
    :return: how many were answered in a second, each of them with a 2xx; and the answers' bodies, in the order of the
        requests.
    """
    return asyncio.run(_send(requests, connections))


async def _send(requests: Sequence[tuple[int, bytes]], connections: int) -> tuple[float, list[bytes]]:
    loop = asyncio.get_running_loop()
    answers = [b""] * len(requests)
    waiting = []
    began = time.monotonic()
    for port in {port for port, _ in requests}:
        # They share it: whichever of them is free takes the next one.
        left = iter([(number, data) for number, (where, data) in enumerate(requests) if where == port])
        for _ in range(connections):
            over: asyncio.Future[None] = loop.create_future()
            waiting.append(over)
            await loop.create_connection(partial(_Connection, left, answers, over), "127.0.0.1", port)
    await asyncio.gather(*waiting)
    return len(requests) / (time.monotonic() - began), answers
