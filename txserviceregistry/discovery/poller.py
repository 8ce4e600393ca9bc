"""EventPoller: waits for events on behalf of the subscribers of one client."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import attrs
from twisted.internet.interfaces import IDelayedCall

from ..api.events import EventStream
from ..api.shapes import readEvent
from ..api.transport import EVENT_STREAM, EVENTS_WAIT
from ..client import Client
from ..errors import BadRequest, ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError, ServiceRegistryError
from ..types import Event, EventType, PlainEventType
from ..util.deferred import Backoff, Waiters, cancel, returnsDeferred
from ..util.logs import Listeners, Logger

_WAIT = 30  # seconds for which the registry is asked to hold its response back
POLL = 5.0  # seconds between two requests to a registry that can't wait
_EARLY = 1.0  # seconds to the next request if the registry could wait, but did not: it is probably stopping
PAGE = 1000  # the largest page that there is
#: The types of events that subscribers share; locks may have many events, which few subscribers want.
WATCHED: frozenset[str] = frozenset(type for type in get_args(EventType) if not type.startswith("lock."))
PLAIN: frozenset[str] = frozenset(get_args(PlainEventType))  # the types of events of version 1.0

# A request that waits may fail this way where others succeed: at a proxy, or at a registry without capacity to wait.
_MAYBE_OF_WAITING = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

FIRST_PING = 5.0  # seconds to the first ping of a new stream
IDLE_TIMEOUT = 35.0  # seconds without a byte after which a stream is taken for lost; pings come every 15 s
#: Seconds until a stream is tried again that could not be opened; and at first, where one could be opened before.
RETRY = 600.0
_PAUSE = 1.0

# The time of a UUID, in units of 100 nanoseconds, begins in 1582 (RFC 9562, section 5.1).
_UUID_EPOCH = 0x01B21DD213814000
_TICKS = 10_000_000

# The API's messages for a marker of the event feed that it refuses: not a version-1 UUID, or a time out of range.
_MARKER_REFUSED = (
    "Invalid value for 'marker'",
    "Invalid UUID",
    "UUID is not version 1",
    "Unsupported UUID variant",
    "from parameter must be",
)


class StaleCursor(Exception):
    """The event feed no longer has the place of a cursor: events may be missing."""


@attrs.frozen
class Page:
    """The events after a cursor."""

    events: Sequence[Event]
    # Whether the feed no longer has the place of the cursor, so that events before these may be missing.
    isStale: bool = False
    isFull: bool = False  # whether there may be more

    @property
    def isQuiet(self) -> bool:
        """Whether nothing has happened since."""
        return not self.events and not self.isStale


@attrs.frozen
class Cursor:
    """A place in the feed."""

    # The id of the last event that was read; None for the beginning of the last hour, which the feed shows then.
    marker: str | None = None
    # Whether that event is known to be one of this feed. Then the next page has to begin with it.
    seen: bool = False
    isInclusive: bool = False  # whether that event is to be read, too
    # How often the registry had said that events may be missing, when this was the end; None where that doesn't matter.
    resets: int | None = attrs.field(default=None, eq=False)

    @classmethod
    def after(cls, event: Event) -> Cursor:
        """The place after an event."""
        return cls(event["id"], True)

    def page(self, values: Sequence[Event]) -> Page:
        """The page of the events that the registry has returned for this marker."""
        marker = None if self.isInclusive else (self.marker or "").lower()
        isStale = self.seen and (not values or values[0]["id"] != self.marker)
        return Page([event for event in values if event["id"].lower() != marker], isStale, len(values) >= PAGE)


def ticksOf(id: str | None) -> int:
    """The time in an event's id, by which ids are ordered, in units of 100 ns; 0 for any other text."""
    try:
        parsed = uuid.UUID(id or "")
    except ValueError:
        return 0
    return parsed.time if parsed.version == 1 else 0


def timeOf(id: str | None) -> float:
    """When the event with an id happened, in seconds since the epoch."""
    return (ticksOf(id) - _UUID_EPOCH) / _TICKS


def markerAt(seconds: float) -> str:
    """The smallest id that an event can have, so many seconds after the epoch."""
    ticks = _UUID_EPOCH + int(seconds * _TICKS)
    fields = (ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFF, ticks >> 48 & 0x0FFF, 0, 0, 0)
    return str(uuid.UUID(fields=fields, version=1))


class EventPoller:
    """Reads the event feed for the subscribers of one client: by one stream, or by requests of each that may wait."""

    _log = Logger()

    def __init__(self, client: Client, types: Collection[str] = WATCHED) -> None:
        self.respondedAt: float | None = None  # when the last valid response came, by the client's clock
        self.resets = 0  # how often the registry has said that events may be missing
        self._client = client
        self._wanted = sorted(types)
        self._users = 0
        # Until when no request waits, and until when no request is made at all where none waits.
        self._noWaitUntil = self._noPollUntil = 0.0
        # A stream that is open, or being opened; after its first ping, the id of its last event or its beginning.
        self._stream: EventStream | None = None
        self._end: str | None = None
        self._timer: IDelayedCall | None = None
        self._backoff = Backoff(_PAUSE, RETRY, random.random)
        # When a stream may be opened again, whether it could not be opened the last time, and whether requests fail.
        self._notBefore = 0.0
        self._isBlocked = self._isFailing = False
        self._lastId: str | None = None  # of the last event or ping of a stream
        # Fire with an event of the stream, and with None when one begins or ends.
        self._waiters: Waiters[Event | None] = Waiters()
        self._quietListeners: Listeners[[]] = Listeners(self._log, "a quiet event feed")

    @property
    def isLive(self) -> bool:
        """Whether events come by an event stream, which says if any may be missing."""
        return self._end is not None

    @property
    def isOpening(self) -> bool:
        """Whether there will most likely be a stream in a moment."""
        return self._stream is not None and self._end is None and not self._isBlocked

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which a subscriber uses it. The event stream is open as long as there is one."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._closeStream(0.0)
                self._lastId = None

    @returnsDeferred
    async def after(self, cursor: Cursor, onQuiet: Callable[[], None] = lambda: None) -> Page:
        """
        The next events after a place, as soon as there are any. *onQuiet* is called whenever there is nothing newer.
        Fails with StaleCursor if the registry refuses the marker, or says that events may be missing and the cursor
        can't show it, and otherwise as ``client.events.list`` does.
        """
        resets = self.resets if cursor.resets is None else cursor.resets
        marker = (cursor.marker or "").lower()
        # The end of the stream for which the feed is known to have nothing newer than the cursor.
        quietEnd: str | None = None
        # A stream that has ended may be opened again as soon as there is a response.
        isUrgent = cursor.isInclusive
        while True:
            if self.resets != resets and not cursor.seen:
                raise StaleCursor("The registry says that events may be missing")
            end = self._end
            isAtEnd = end is not None and (end == quietEnd or (cursor.seen and end.lower() == marker))
            if isAtEnd or self.isOpening:
                forget = self._quietListeners.add(onQuiet)
                try:
                    event = await self._waiters.wait()
                finally:
                    forget()
                if isAtEnd and event is not None and ticksOf(event["id"]) > ticksOf(marker):
                    return Page([event])
                # The stream may bring an event that a page had before.
                quietEnd = self._end if isAtEnd and event is not None else None
                isUrgent = True
                continue
            # A request that waits would show the end of an outage late, and open a stream late.
            isUrgent = isUrgent or self._isFailing
            page = await (self.read(cursor) if end is not None or isUrgent else self._nextPage(cursor))
            if not page.isQuiet:
                return page
            quietEnd, isUrgent = end, False
            if self.resets == resets or cursor.seen:
                onQuiet()

    @returnsDeferred
    async def end(self) -> Cursor:
        """Find the current end of the feed. Fires with its cursor, and fails as :meth:`readToEnd` does."""
        if not self._client.extensions:
            # The page may be long. Its parameters depend on the extensions, so that it would be requested twice.
            await self._client.account.getLimits()
        resets = self.resets
        page = await self.read(Cursor())
        if page.isFull and self.isOpening:
            # A stream begins at the end, and the last hour may have had many events.
            await self._waiters.wait()
        if page.isFull and self.isLive:
            return Cursor(self._lastId, resets=resets)
        cursor = Cursor.after(page.events[-1]) if page.events else Cursor(resets=resets)
        return await self.readToEnd(cursor) if page.isFull else cursor

    @returnsDeferred
    async def readToEnd(self, cursor: Cursor, into: list[Event] | None = None) -> Cursor:
        """Read all events *into* a list; fires with the end that the feed has now. Fails as :meth:`after` does."""
        while True:
            page = await self.read(cursor)
            if page.isStale:
                raise StaleCursor()
            if page.events:
                cursor = Cursor.after(page.events[-1])
            if into is not None:
                into.extend(page.events)
            if not page.isFull:
                return cursor

    @returnsDeferred
    async def read(self, cursor: Cursor, wait: int | None = None) -> Page:
        """One page, after at most *wait* seconds. Fails as :meth:`after` does."""
        try:
            response = await self._client.events.list(cursor.marker, PAGE, wait=wait, types=self._wanted)
        except BadRequest as error:
            # The page of a proxy with the same status says nothing about the place in the feed.
            isFault = (error.status, error.type) == (400, "badRequest")
            if isFault and any(text.startswith(_MARKER_REFUSED) for text in (error.message, error.details)):
                raise StaleCursor(str(error)) from error
            raise
        except ServiceRegistryError:
            self._isFailing = True
            if wait is None:
                # Once the registry is reachable again, a stream may be opened.
                self._notBefore = 0.0
            raise
        values = response["values"]
        if values and ticksOf(values[0]["id"]) < ticksOf(cursor.marker):
            # Otherwise the same page, sent again and again, would count as new events each time.
            raise MalformedResponse("A page of events begins before the marker that it was requested with")
        now, self._isFailing = self._client.clock.seconds(), False
        self.respondedAt = now
        canStream = self._users and EVENT_STREAM in self._client.extensions
        if canStream and self._stream is None and now >= self._notBefore:
            self._timer = self._client.clock.callLater(FIRST_PING, self.ended)
            stream = self._client.events.openStream(self, ",".join(self._wanted), self._lastId)
            if stream.isOpen:
                self._stream = stream
        return cursor.page(values)

    async def _nextPage(self, cursor: Cursor) -> Page:
        """A page that has events, as soon as there are any, or none after some time."""
        clock = self._client.clock
        began = clock.seconds()
        if EVENTS_WAIT in self._client.extensions and began >= self._noWaitUntil:
            try:
                page = await self.read(cursor, _WAIT)
            except _MAYBE_OF_WAITING:
                # This fails too if the registry is unreachable.
                page = await self.read(cursor)
                self._noWaitUntil = clock.seconds() + _WAIT
            else:
                if page.isQuiet and clock.seconds() - began < _WAIT / 2:
                    await self._client.pause(_EARLY)
            return page
        if began < self._noPollUntil:
            await self._client.pause(self._noPollUntil - began)
        page = await self.read(cursor)
        if not page.isFull:
            self._noPollUntil = clock.seconds() + POLL * (1.0 - 0.2 * random.random())
        return page

    # -- the stream; for received, happened and ended see EventsClient.openStream

    def received(self) -> None:
        if self.isLive and self._timer is not None:
            self._timer.reset(IDLE_TIMEOUT)

    def happened(self, type: str, id: str | None, data: str) -> None:
        if type == "ping" and id is None:
            # A reset follows.
            return
        self.respondedAt = self._client.clock.seconds()
        isBeginning = type == "reset" or self._end is None
        try:
            if id is None or not ticksOf(id):
                raise ValueError("an event has no valid id")
            event = None if isBeginning or type == "ping" else readEvent(json.loads(data))
        except (ValueError, RecursionError) as error:
            self._log.debug("The event stream is malformed: {reason}", reason=str(error))
            self._end = None
            self.ended()
            return
        if isBeginning:
            # Subscribers read on their own what comes before.
            self.resets += type == "reset" and self._lastId is not None
            self._isBlocked = False
        self._lastId = id
        if isBeginning or event is not None:
            self._end = id
            self.received()
            self._waiters.fire(event)
        else:
            self._backoff.reset()
            self._quietListeners.call()

    def ended(self) -> None:
        self._isBlocked = not self.isLive
        # If a stream has worked before, the registry may just be starting.
        delay = RETRY if self._lastId is None else self._backoff.next()
        self._closeStream(self._client.clock.seconds() + delay)

    def _closeStream(self, notBefore: float) -> None:
        stream, self._stream, self._end = self._stream, None, None
        timer, self._timer = self._timer, None
        self._notBefore = notBefore
        if stream is not None:
            stream.close()
        cancel(timer)
        self._waiters.fire(None)


def pollerOf(client: Client, types: Collection[str] = WATCHED) -> EventPoller:
    """The :class:`EventPoller` of a client for some types of events: the same for all that are in :data:`WATCHED`."""
    wanted = WATCHED if WATCHED.issuperset(types) else frozenset(types)
    poller: EventPoller = client.shared.setdefault(wanted, EventPoller(client, wanted))
    return poller
