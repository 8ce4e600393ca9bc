"""``client.events``: the event feed, page by page or as a stream (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from ..clock import SuspendWatch
from ..errors import ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError
from ..http.messages import Lane
from ..types import Event, EventPage
from ..util.deferred import returnsDeferred
from .shapes import readEventPage
from .transport import EVENT_TYPES, EVENTS_WAIT, APIGroup, Transport

# The most bytes of one event: what a broken server can make a client hold.
_LONGEST = 1024 * 1024
# Other fields are ignored.
_FIELDS = frozenset({"event", "id", "data"})
_END_OF_LINE = re.compile("\r\n|\n|\r")


class EventsClient(APIGroup):
    """The account's feed of events."""

    def __init__(self, transport: Transport, suspends: SuspendWatch) -> None:
        super().__init__(transport)
        self._suspends = suspends
        self._open: set[EventStream] = set()

    @returnsDeferred
    async def list(
        self,
        marker: str | None = None,
        limit: int | None = None,
        type: str | None = None,
        *,
        wait: int | None = None,
        types: Iterable[str] | None = None,
    ) -> EventPage:
        """
        One page of the feed, oldest first.

        :param marker: the id of the first event; without it, the page has the events of the last hour.
        :param limit: the maximum number of events, 1 to 1000; 100 by default.
        :param type: only events of this type, such as ``service.join``.
        :param wait: seconds, 1 to 60, to wait for an event that is newer than the *marker*; the client's timeout counts
            from then. A registry without the extension ``events-wait`` ignores it.
        :param types: only events of these types, instead of *type*, also of those that version 1.0 does not have, such
            as ``service.update``. A registry without the extension ``event-types`` ignores it.
        :return: fires with ``{"values": [event, …], "metadata": {…}}``. Fails with ``BadRequest`` for a wrong marker.
        """
        kinds = None if types is None else ",".join(types)

        async def ask(timeout: float) -> EventPage:
            query: dict[str, object] = {"marker": marker, "limit": limit, "type": type}
            if kinds is not None and EVENT_TYPES in self._transport.extensions:
                query |= {"type": None, "types": kinds}
            if wait is None or EVENTS_WAIT not in self._transport.extensions:
                return await self._get("/events", readEventPage, query=query, timeout=timeout)
            try:
                # The request before this one may have waited for longer than the timeout.
                waiting: Any = {"wait": wait, "lane": Lane.WAITING}
                return await self._get("/events", readEventPage, query={**query, "wait": wait}, **waiting)
            except (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError):
                if self._transport.servers < 2 or self._transport.isClosed:
                    raise
                # The time to wait is over.
                return await self._get("/events", readEventPage, query=query)

        names = [*([] if wait is None else [EVENTS_WAIT]), *([] if types is None else [EVENT_TYPES])]
        return await self._transport.adapted(names, ask)

    def iterate(self, marker: str | None = None) -> AsyncIterator[Event]:
        """The events from *marker* to the end of the feed, page by page as in ``client.services.iterate``."""
        return self._pages("/events", readEventPage, marker=marker)

    def openStream(self, listener: Any, types: str | None, lastId: str | None) -> EventStream:
        """
        Open an event stream of these *types*, separated by commas, or those of version 1.0, after the event *lastId* or
        from now on: the registry's extension ``event-stream``.

        :param listener: its methods are called: ``received()`` for every sign of life, ``happened(type, id, data)`` for
            an event (*id* is ``None`` if it has none), and ``ended()`` unless ``close()`` of the stream was.
        """
        headers = {} if lastId is None else {"Last-Event-ID": lastId}
        requesting = self._transport.stream("/events/stream", {"types": types}, headers)
        stream = EventStream(requesting, listener, self._suspends, self._open.discard)
        if stream.isOpen:
            self._open.add(stream)
        return stream

    def closeStreams(self) -> None:
        """End all streams."""
        for stream in list(self._open):
            stream.interrupt()


@attrs.define(eq=False, repr=False, slots=False)
class EventStream(Protocol):
    """One connection. It ends after a suspend of the machine, because it is most likely dead."""

    _requesting: Deferred[IResponse]
    _listener: Any
    _suspends: SuspendWatch
    _onClosed: Callable[[EventStream], object]
    _response: Any = attrs.field(default=None, init=False)
    _rest: bytes = attrs.field(default=b"", init=False)
    # The lines of an event so far, by the names of their fields, and their length.
    _fields: dict[str, list[str]] = attrs.field(factory=dict, init=False)
    _length: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._suspends.add(self._resumed)
        self._requesting.addCallbacks(self._begun, lambda _: self.interrupt())

    @property
    def isOpen(self) -> bool:
        """Whether it is open, or being opened."""
        return self._listener is not None

    def close(self) -> None:
        """End it without telling the listener."""
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
        transport: Any = self.transport
        abort = getattr(self._response, "abort", None) or getattr(transport, "loseConnection", None)
        if abort is not None:
            abort()

    def dataReceived(self, data: bytes) -> None:
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
        self.interrupt()

    def _line(self, line: str) -> None:
        name, _, value = line.partition(":")
        if name in _FIELDS:
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            self._length += len(line) + 1
            if self._length > _LONGEST:
                self.interrupt()
        elif not line:
            fields, self._fields, self._length = self._fields, {}, 0
            if "data" in fields and self._listener is not None:
                id = fields["id"][-1] if "id" in fields else None
                self._listener.happened(fields.get("event", ["message"])[-1], id, "\n".join(fields["data"]))
