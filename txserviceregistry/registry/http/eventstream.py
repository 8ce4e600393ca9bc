"""``GET /events/stream``: server-sent events (WHATWG HTML), the one response that ends with its connection."""

from __future__ import annotations

import socket
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection
from twisted.web.server import Request
from zope.interface import implementer

from ...util.deferred import Waiters
from ..feed import EventFeed, Stream
from ..limits import NO_HEADERS
from ..stores.interfaces import StoreUnavailable
from ..uuids import position
from . import validation
from .messages import Response, header, write
from .operations import Call

#: Bytes that are kept for a client that reads too slowly, beside those in the kernel. With more it is disconnected.
BUFFER = 256 * 1024
#: Milliseconds after which a connection counts as lost whose peer does not acknowledge what was sent.
_UNACKNOWLEDGED = 45_000

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@implementer(IPushProducer)
@attrs.define(eq=False, repr=False)
class _Outlet:
    """The connection of a stream. Data that its transport does not accept is kept here, up to a limit."""

    _request: Request
    _transport: Any
    _isClogged: bool = False
    _held: bytearray = attrs.field(factory=bytearray)
    _drained: Waiters[None] = attrs.field(factory=Waiters)

    def begin(self, head: Response, txnId: str) -> None:
        handle = getattr(self._transport, "socket", None)
        if handle is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)
        self._request.channel.persistent = False
        write(self._request, head, txnId)
        # Not by the request: another attribute of it takes a kilobyte.
        self._request.channel.registerProducer(self, True)

    def end(self) -> None:
        """Finish the response. The kept data is left to the transport."""
        self._request.channel.unregisterProducer()
        self._transport.write(bytes(self._held))
        self._request.finish()
        self.stopProducing()

    def write(self, data: bytes) -> None:
        transport = self._transport
        if self._isClogged:
            self._held += data
            # The transport keeps 64 KiB.
            if len(self._held) > BUFFER - 64 * 1024:
                self._held.clear()
                transport.abortConnection()
            return
        # Plain TCP writes at once. (Wrappers, such as TLS, have the same names, and would send the data as it is.)
        # Twisted's way takes three times as long: it waits for the reactor to say that there is room.
        if isinstance(transport, Connection) and not transport.dataBuffer and not transport._tempDataLen:
            sent = transport.writeSomeData(data)
            if sent == len(data):
                return
            if isinstance(sent, int):
                data = data[sent:]
        transport.write(data)

    def drained(self) -> Deferred[None]:
        return self._drained.wait() if self._isClogged else succeed(None)

    def pauseProducing(self) -> None:
        self._isClogged = True

    def resumeProducing(self) -> None:
        self._isClogged = False
        held, self._held = self._held, bytearray()
        if held:
            self._transport.write(bytes(held))
        if not self._isClogged:
            self.stopProducing()

    def stopProducing(self) -> None:
        self._drained.fire(None)


async def streamEvents(feed: EventFeed, call: Call) -> Response:
    """Answer a request for the stream. Returns the head, which is sent already unless it is for a HEAD."""
    record, query, streams = call.record, call.query, feed.streams
    request, marker = record.request, query["marker"]
    lastId = header(request, b"Last-Event-ID").strip()
    head = Response(200, headers={**_HEADERS, **record.headers}, isStream=True)
    if marker is not None and not lastId:
        await feed.checkMarker(call.tenant, marker.lower())
    if request.method == b"HEAD":
        request.channel.persistent = False
        return head
    outlet = _Outlet(request, request.channel.transport)

    def end() -> None:
        streams.close(stream)
        if request.startedWriting:
            outlet.end()

    stream = Stream(
        call.tenant, validation.eventTypes(query), query["tag"], outlet.write, outlet.drained, call.authenticate, end
    )
    streams.open(stream)
    try:
        isComplete = await streams.locate(stream, None if marker is None else position(marker), lastId)
        if record.isGone:
            raise CancelledError()
        if stream.isOver:
            raise StoreUnavailable("all event streams were closed")
        outlet.begin(head, record.txnId)
    except BaseException:
        if not stream.isOver:
            streams.close(stream)
        raise
    record.headers = NO_HEADERS
    request.notifyFinish().addErrback(lambda _: streams.close(stream))
    streams.begin(stream, isComplete)
    return head
