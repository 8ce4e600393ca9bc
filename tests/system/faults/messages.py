"""
The boundaries of HTTP messages in a stream of bytes: as much of it as the proxy needs to spoil one whole answer.
"""

from __future__ import annotations

import re

__all__ = ["Bytes", "Messages", "answer"]

_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_CHUNKED = re.compile(rb"^transfer-encoding: *chunked", re.IGNORECASE | re.MULTILINE)
_REASONS = {500: b"Internal Server Error", 502: b"Bad Gateway", 503: b"Service Unavailable"}


class Messages:
    """
    Cuts one direction of a connection into whole messages, of which each may follow the one before.

    Data that are not HTTP, or end only with their connection, come out of :meth:`rest`.
    """

    def __init__(self) -> None:
        self._data = b""

    def take(self, data: bytes) -> list[bytes]:
        """*data* has come: the messages that are whole now."""
        self._data += data
        whole: list[bytes] = []
        while (end := _endOf(self._data)) is not None:
            whole.append(self._data[:end])
            self._data = self._data[end:]
        return whole

    def rest(self) -> bytes:
        """The bytes of an incomplete message; they are not kept here any more."""
        rest, self._data = self._data, b""
        return rest


class Bytes(Messages):
    """Cuts nothing: what has come is a message."""

    def take(self, data: bytes) -> list[bytes]:
        """See Messages."""
        return [data]


def _endOf(data: bytes) -> int | None:
    head, blank, _ = data.partition(b"\r\n\r\n")
    if not blank:
        return None
    begin = len(head) + len(blank)
    if _CHUNKED.search(head):
        return _endOfChunks(data, begin)
    length = _LENGTH.search(head)
    end = begin + (int(length[1]) if length else 0)
    return end if len(data) >= end else None


def _endOfChunks(data: bytes, begin: int) -> int | None:
    while (lineEnd := data.find(b"\r\n", begin)) >= 0:
        size = int(data[begin:lineEnd].split(b";")[0], 16)
        if size == 0:
            # Trailers, which etcd 3.4 sends, come before the empty line.
            end = data.find(b"\r\n\r\n", lineEnd)
            return end + 4 if end >= 0 else None
        begin = lineEnd + 2 + size + 2
    return None


def answer(status: int, body: bytes = b"<html>a page of some balancer's</html>") -> bytes:
    """An answer such as a balancer makes by itself."""
    return b"HTTP/1.1 %d %s\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        _REASONS.get(status, b"Unknown"),
        len(body),
        body,
    )
