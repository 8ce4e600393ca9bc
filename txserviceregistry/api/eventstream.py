"""
A connection to the registry's event stream: events as they come (WHATWG HTML, "Server-sent events").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol as BodyProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from ..util.suspend import SuspendWatch

# The most bytes of one event: what a broken server can make a client hold.
_LONGEST = 1024 * 1024
_END_OF_LINE = re.compile("\r\n|\n|\r")


class StreamListener(Protocol):
    """What happens on a stream."""

    def received(self) -> None:
        """The connection is alive."""

    def happened(self, type: str, id: str | None, data: str) -> None:
        """An event has come; *id* is ``None`` if it has none of its own."""

    def ended(self) -> None:
        """The stream is over, or was never begun. Called once, unless :meth:`EventStream.close` was."""


class EventStream(BodyProtocol):
    """
    One connection.

    :param requesting: fires with the response, whose body has not been read.
    :param suspends: after a suspend the connection is most likely dead.
    :param onClosed: called when it is over.
    """

    def __init__(
        self,
        requesting: Deferred[IResponse],
        listener: StreamListener,
        suspends: SuspendWatch,
        onClosed: Callable[[EventStream], object],
    ) -> None:
        self._listener: StreamListener | None = listener
        self._suspends = suspends
        self._onClosed = onClosed
        self._response: Any = None
        self._rest = b""
        self._fields: dict[str, str] = {}
        self._requesting = requesting
        suspends.add(self._resumed)
        requesting.addCallbacks(self._begun, lambda _: self.interrupt())

    @property
    def isOpen(self) -> bool:
        """Whether it is open, or being opened."""
        return self._listener is not None

    def close(self) -> None:
        """End it, without a call of the listener."""
        if self._listener is None:
            return
        self._listener = None
        self._suspends.discard(self._resumed)
        self._onClosed(self)
        if self._response is None:
            self._requesting.cancel()
        else:
            self._abort()

    def interrupt(self) -> None:
        """End it."""
        listener = self._listener
        self.close()
        if listener is not None:
            listener.ended()

    def _resumed(self, stoodStill: float) -> None:
        self.interrupt()

    def _begun(self, response: IResponse) -> None:
        self._response = response
        response.deliverBody(self)
        if self._listener is None:
            self._abort()

    def _abort(self) -> None:
        # Agents that are not ours have connections that can be ended in one of these ways.
        abort = getattr(self._response, "abort", None)
        for name in ("abortConnection", "loseConnection", "stopProducing"):
            abort = abort or getattr(self.transport, name, None)
        if abort is not None:
            abort()

    def dataReceived(self, data: bytes) -> None:
        """Called with a part of the body."""
        if self._listener is None:
            return
        self._listener.received()
        self._rest += data
        if len(self._rest) > _LONGEST:
            self.interrupt()
            return
        end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r", 0, len(self._rest) - 1)) + 1
        whole, self._rest = self._rest[:end], self._rest[end:]
        for line in _END_OF_LINE.split(whole.decode("utf-8", "replace"))[:-1]:
            self._line(line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Called when the body has ended."""
        self.interrupt()

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name:
            value = value.removeprefix(" ")
            isMore = name == "data" and name in self._fields
            self._fields[name] = f"{self._fields[name]}\n{value}" if isMore else value
        elif not line:
            fields, self._fields = self._fields, {}
            if "data" in fields and self._listener is not None:
                self._listener.happened(fields.get("event", "message"), fields.get("id"), fields["data"])


class EventStreams:
    """
    The streams of one client.

    :param send: sends the request for a path, a query and headers; fires with the response, whose body is not read.
    """

    def __init__(
        self,
        send: Callable[[str, Mapping[str, object], Mapping[str, str]], Deferred[IResponse]],
        suspends: SuspendWatch,
    ) -> None:
        self._send = send
        self._suspends = suspends
        self._open: set[EventStream] = set()

    def open(self, listener: StreamListener, types: str | None, lastId: str | None) -> EventStream:
        """
        Open a stream.

        :param types: the types of events, separated by commas; ``None`` for those of version 1.0.
        :param lastId: the id of the last event that is known; ``None`` for what happens from now on.
        """
        headers = {} if lastId is None else {"Last-Event-ID": lastId}
        requesting = self._send("/events/stream", {"types": types}, headers)
        stream = EventStream(requesting, listener, self._suspends, self._open.discard)
        if stream.isOpen:
            self._open.add(stream)
        return stream

    def close(self) -> None:
        """End all streams."""
        for stream in list(self._open):
            stream.interrupt()
