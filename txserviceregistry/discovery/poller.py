"""
EventPoller: waits for events on behalf of all subscribers of one client: by the registry's event stream, or where that
does not work with one request at a time.
"""

from __future__ import annotations

import json
import random as randomModule
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, TypeVar, get_args

from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..api.events import EventStream
from ..api.shapes import readEvent
from ..api.transport import EVENT_STREAM, EVENT_TYPES, EVENTS_WAIT
from ..errors import BadRequest, ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError, ServiceRegistryError
from ..types import Event, EventType, PlainEventType
from ..util.backoff import Backoff
from ..util.deferred import Waiters, returnsDeferred
from ..util.logs import Listeners, Logger
from .cursor import Cursor, Span, StaleCursor, isMarkerRefused, markerAt, ticksOf
from .task import BackgroundTask

if TYPE_CHECKING:
    from ..client import Client

_T = TypeVar("_T")

#: Seconds for which the registry is asked to hold its response back. A longer wait means fewer requests, and more time
#: until a connection that hangs is noticed.
WAIT = 30
#: Seconds between two requests to a registry that can't wait.
POLL = 5.0
#: Seconds to the next request if the registry could wait, but did not: it is probably stopping.
_EARLY = 1.0
#: The largest page that there is.
PAGE = 1000
#: Without a marker the feed shows its last hour, in seconds.
SHOWN = 3600.0
# The end of a feed is searched to within so many seconds.
_NEAR = 10.0
#: The types of events that subscribers share; locks may have many events, which few subscribers want.
WATCHED: frozenset[str] = frozenset(type for type in get_args(EventType) if not type.startswith("lock."))
#: The types of events of version 1.0.
PLAIN: frozenset[str] = frozenset(get_args(PlainEventType))

# A request that waits may fail this way where others succeed: at a proxy, or at a registry without capacity to wait.
_MAYBE_OF_WAITING = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

#: Seconds to the first ping of a new stream.
FIRST_PING = 5.0
#: Seconds without a byte after which a stream is dead; pings come every 15 s.
SILENCE = 35.0
#: Seconds until a stream is tried again that could not be opened.
RETRY = 600.0
# Seconds until one is tried again that was live before: at first, and how often before it counts as one that could not
# be opened. One that was live for so long begins anew.
_PAUSE = 1.0
_TRIES = 8
_LONG = 60.0


class _Stream(Enum):
    """CLOSED → OPENING → LIVE, and from each of them to CLOSED."""

    CLOSED = "there is no stream"
    OPENING = "no ping has come so far"
    LIVE = "events come as they happen"


class EventPoller:
    """
    Reads the event feed for all subscribers of one client.

    They share one event stream. Where the registry has none, or it can't be opened, they share one request that waits.
    Both extend one span of the feed. A subscriber at another place reads on its own until nothing newer is there.

    :param client: makes the requests.
    :param types: only events of these types; those that version 1.0 does not have are left out where the registry does
        not have them either.
    :param interval: seconds from one request to the next where the registry can't wait.
    :param random: returns numbers from 0 to 1.
    :ivar respondedAt: when the last valid response came, by the client's clock; ``None`` before the first.
    :ivar resets: how often the registry has said that events may be missing in its event stream.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        *,
        types: Collection[str] = WATCHED,
        interval: float = POLL,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        self.respondedAt: float | None = None
        self.resets = 0
        self._client = client
        self._wanted = frozenset(types)
        self._interval = interval
        self._random = random
        self._users = 0
        self._span = Span(Cursor())
        # Fire with whether there are events; with None when a stream begins or ends.
        self._waiters: Waiters[bool | None] = Waiters(self._stopPolling)
        self._quietListeners: Listeners[[]] = Listeners(self._log, "a quiet event feed")
        self._polling: BackgroundTask | None = None
        # Whether the last page of the shared request was full, so that there may be more.
        self._isBehind = False
        # How many requests that wait have failed in a row where others succeeded, and until when no other one is sent.
        self._refusedWaits = 0
        self._pollUntil = 0.0
        # Whether the last request has failed.
        self._hasFailed = False
        self._state = _Stream.CLOSED
        self._stream: EventStream | None = None
        self._timer: IDelayedCall | None = None
        self._openedAt = 0.0
        self._backoff = Backoff(_PAUSE, RETRY, random)
        # When a stream may be opened again, and whether it could not be opened the last time.
        self._notBefore = 0.0
        self._isBlocked = False
        # The id of the last event or ping of a stream.
        self._lastId: str | None = None

    @property
    def isLive(self) -> bool:
        """Whether events come by an event stream, which says if any may be missing."""
        return self._state is _Stream.LIVE

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which a subscriber uses it. The event stream is open as long as there is one."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._endStream(0.0)
                self._lastId = None
                self._span = Span(Cursor())

    @returnsDeferred
    async def after(
        self, cursor: Cursor, onQuiet: Callable[[], None] = lambda: None, *, resets: int | None = None
    ) -> list[Event]:
        """
        The next events after a place, as soon as there are any.

        :param onQuiet: called whenever the registry has responded that there is nothing newer yet.
        :param resets: :attr:`resets` as it was when the place was known to be the end of the feed; ``None`` if the
            cursor shows by itself whether events are missing.
        :return: fires with a page as it came, the event of the *cursor* included; also with one for which the cursor is
            stale. Fails with :class:`~txserviceregistry.discovery.cursor.StaleCursor` if the registry refuses the
            marker, or if there were more *resets*, and otherwise as :meth:`EventsClient.list
            <txserviceregistry.api.events.EventsClient.list>` does. It may be cancelled.
        """
        # The span up to whose beginning, or end if it is not live, the feed is known to have nothing newer.
        quiet: Span | None = None
        while True:
            if resets not in (None, self.resets):
                raise StaleCursor("The registry says that events may be missing")
            span = self._span
            events = span.after(cursor, self.isLive and span is quiet)
            if events:
                return events
            if not self._isOpening and events is None and span is not quiet:
                end = span.end
                page = await self.read(cursor)
                if not cursor.isQuiet(page):
                    return page
                if not self.isLive and self._polling is None:
                    self._span = quiet = Span(cursor)
                elif self.isLive or span.end is end:
                    # Otherwise the shared request has brought events that may have come after this page was made.
                    quiet = span
                onQuiet()
                continue
            forget = self._quietListeners.add(onQuiet)
            waiter = self._waiters.wait()
            try:
                if not self._isOpening and not self.isLive:
                    self._startPolling()
                areEvents = await waiter
            except StaleCursor:
                if cursor == span.end:
                    raise
                areEvents = True
            finally:
                forget()
            if areEvents and not self.isLive:
                # Only its own page shows whether a place outside the span is stale.
                quiet = None

    @returnsDeferred
    async def end(self) -> Cursor:
        """
        Find the current end of the feed. Fires with its cursor, and fails as :meth:`readToEnd` does.

        It does not read the whole last hour of a busy feed, and needs no clock: the registry refuses a marker of the
        future, so that the end is found by halving the time in which it can be.
        """
        page = await self.read(Cursor())
        cursor = Cursor.after(page[-1]) if page else Cursor()
        if len(page) < PAGE:
            return cursor
        low, high = cursor.time or 0.0, (Cursor.after(page[0]).time or 0.0) + SHOWN
        # Most often the end is just before the latest possible time.
        step = _NEAR
        while high - low > _NEAR and len(page) >= PAGE:
            at = max(high - step, (low + high) / 2)
            step *= 10
            try:
                found = await self.read(Cursor(markerAt(at)))
            except StaleCursor:
                found = []
            if found:
                page, cursor = found, Cursor.after(found[-1])
                low = max(at, cursor.time or 0.0)
            else:
                high = at
        return await self.readToEnd(cursor, [])

    @returnsDeferred
    async def readToEnd(self, cursor: Cursor, into: list[Event]) -> Cursor:
        """
        Read all events *into* a list, to the end that the feed has now.

        :return: fires with the place of the end. Fails as :meth:`after` does, and with StaleCursor if *cursor* is
            stale.
        """
        while True:
            page = await self.read(cursor)
            if cursor.isStale(page):
                raise StaleCursor()
            events = cursor.newer(page)
            into.extend(events)
            if events:
                cursor = Cursor.after(events[-1])
            if len(page) < PAGE:
                return cursor

    @returnsDeferred
    async def read(self, cursor: Cursor, wait: int | None = None) -> list[Event]:
        """One page, the event of the *cursor* included, after at most *wait* seconds. Fails as :meth:`after` does."""
        types = self._types
        type = next(iter(self._wanted)) if types is None and len(self._wanted) == 1 and self._wanted <= PLAIN else None
        try:
            page = await self._client.events.list(cursor.marker, PAGE, type, wait=wait, types=types)
        except BadRequest as error:
            if cursor.marker is not None and isMarkerRefused(error):
                raise StaleCursor(str(error)) from error
            raise
        except ServiceRegistryError:
            self._hasFailed = self._hasFailed or wait is None
            raise
        events = page["values"]
        marker = ticksOf(cursor.marker)
        if events and marker is not None and (ticksOf(events[0]["id"]) or 0) < marker:
            # Otherwise the same page, sent again and again, would count as new events each time.
            raise MalformedResponse("A page of events begins before the marker that it was requested with")
        self.respondedAt = self._client.clock.seconds()
        if self._hasFailed:
            self._hasFailed = False
            self._notBefore = 0.0
            self._backoff.reset()
        if self._users and EVENT_STREAM in self._client.extensions:
            self._openStream()
        return events

    @property
    def _types(self) -> list[str] | None:
        """The types that a request names; ``None`` where the registry only has those of version 1.0."""
        return sorted(self._wanted) if EVENT_TYPES in self._client.extensions else None

    # -- the shared request

    def _startPolling(self) -> None:
        """Ask for what comes after the span, while it is waited for."""
        if self._polling is None:
            self._polling = BackgroundTask()
            self._polling.begin(self._poll)

    def _stopPolling(self) -> None:
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.stop()

    async def _poll(self, task: BackgroundTask) -> None:
        span = self._span
        page: list[Event] = []
        outcome: bool | Failure = True
        try:
            while not task.isStopping:
                page = await self._nextPage(span.end)
                if not span.end.isQuiet(page):
                    break
                self._quietListeners.call()
                if self._isOpening:
                    break
        except Exception:
            outcome = Failure()
        if task.isStopping:
            return
        self._polling = None
        self._isBehind = len(page) >= PAGE
        if isinstance(outcome, Failure) or span.end.isStale(page):
            # Each subscriber reads on its own, which shows whether its own place is stale.
            self._span = Span(Cursor())
        for event in span.end.newer(page):
            span.add(event)
        self._waiters.fire(outcome)

    async def _nextPage(self, cursor: Cursor) -> list[Event]:
        began = self._client.clock.seconds()
        if EVENTS_WAIT not in self._client.extensions or began < self._pollUntil:
            if not self._isBehind:
                await self._client.pause(self._interval * (1.0 - 0.2 * self._random()))
            return await self.read(cursor)
        try:
            page = await self.read(cursor, WAIT)
        except _MAYBE_OF_WAITING:
            # This fails too if the registry is unreachable.
            page = await self.read(cursor)
            self._refusedWaits += 1
            if self._refusedWaits > 1:
                self._pollUntil = self._client.clock.seconds() + WAIT
            return page
        self._refusedWaits = 0
        if self._client.clock.seconds() - began < WAIT / 2 and cursor.isQuiet(page):
            await self._client.pause(_EARLY)
        return page

    # -- the stream

    @property
    def _isOpening(self) -> bool:
        """Whether there will most likely be a stream in a moment."""
        return self._state is _Stream.OPENING and not self._isBlocked

    def _openStream(self) -> None:
        """Open a stream, if it is time for that. The registry has just responded."""
        now = self._client.clock.seconds()
        if self._state is not _Stream.CLOSED or now < self._notBefore:
            return
        self._state = _Stream.OPENING
        self._openedAt = now
        self._watch(FIRST_PING)
        types = self._types
        stream = self._client.events.streams.open(self, None if types is None else ",".join(types), self._lastId)
        if self._state is not _Stream.CLOSED:
            self._stream = stream

    def received(self) -> None:
        """See StreamListener."""
        if self.isLive:
            self._watch(SILENCE)

    def happened(self, type: str, id: str | None, data: str) -> None:
        """See StreamListener."""
        if type == "ping" and id is None:
            # A reset follows.
            return
        if id is None or ticksOf(id) is None:
            self._fail("an event has no valid id")
            return
        wasLive = self.isLive
        self.respondedAt = self._client.clock.seconds()
        if type == "reset":
            self.resets += self._lastId is not None
        self._lastId = id
        if type == "reset" or not wasLive:
            # Subscribers read on their own what comes before.
            self._span = Span(Cursor(id, True))
            self._state = _Stream.LIVE
            self._isBlocked = False
            self._watch(SILENCE)
            self._stopPolling()
            self._waiters.fire(None)
        elif type == "ping":
            self._quietListeners.call()
        else:
            try:
                self._span.add(readEvent(json.loads(data)))
            except (ValueError, RecursionError) as error:
                self._fail(str(error))
            else:
                self._waiters.fire(True)

    def ended(self) -> None:
        """See StreamListener."""
        self._isBlocked = not self.isLive
        now = self._client.clock.seconds()
        if self.isLive and now - self._openedAt >= _LONG:
            self._backoff.reset()
        mayTry = self._lastId is not None and self._backoff.failures < _TRIES
        self._endStream(now + (self._backoff.next() if mayTry else RETRY))

    def _watch(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._client.clock.callLater(seconds, self._silent)

    def _silent(self) -> None:
        self._timer = None
        self.ended()

    def _fail(self, reason: str) -> None:
        self._log.debug("The event stream is malformed: {reason}", reason=reason)
        self._state = _Stream.OPENING
        self.ended()

    def _endStream(self, notBefore: float) -> None:
        stream, self._stream = self._stream, None
        timer, self._timer = self._timer, None
        wasOpen = self._state is not _Stream.CLOSED
        self._state = _Stream.CLOSED
        self._notBefore = notBefore
        if stream is not None:
            stream.close()
        if timer is not None:
            timer.cancel()
        if wasOpen and self._polling is None:
            self._span = Span(Cursor())
            self._waiters.fire(None)


def pollerOf(client: Client, types: Collection[str] = WATCHED) -> EventPoller:
    """The :class:`EventPoller` of a client for some types of events: the same for all that are in :data:`WATCHED`."""
    wanted = WATCHED if WATCHED.issuperset(types) else frozenset(types)
    return sharedBy(client, wanted, partial(EventPoller, client, types=wanted))


def sharedBy(client: Client, key: object, make: Callable[[], _T]) -> _T:
    """An object that the subscribers of a client share: made at its first use, and garbage with the client."""
    if key not in client.shared:
        client.shared[key] = make()
    shared: _T = client.shared[key]
    return shared
