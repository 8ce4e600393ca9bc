"""
EventPoller: waits for events on behalf of all subscribers of one client: by the registry's event stream, or where that
does not work with one request at a time.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..api.transport import EVENT_STREAM, EVENT_TYPES, EVENTS_WAIT
from ..errors import BadRequest, ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError, ServiceRegistryError
from ..types import Event, EventType, PlainEventType
from ..util.deferred import returnsDeferred
from ..util.listeners import Listeners
from ..util.logs import Logger
from ..util.waiters import Waiters
from .cursor import Cursor, StaleCursor, isMarkerRefused, ticksOf
from .stream import EventTail

if TYPE_CHECKING:
    from ..client import Client

#: Seconds for which the registry is asked to hold its response back. A longer wait means fewer requests, and more time
#: until a connection that hangs is noticed.
WAIT = 30
#: Seconds between two requests to a registry that can't wait.
POLL = 5.0
#: Seconds to the next request if the registry could wait, but did not: it is probably stopping.
_EARLY = 1.0
#: The largest page that there is.
PAGE = 1000
#: The types of events that subscribers share; locks may have many events, which few subscribers want.
WATCHED: frozenset[str] = frozenset(type for type in get_args(EventType) if not type.startswith("lock."))
#: The types of events of version 1.0.
PLAIN: frozenset[str] = frozenset(get_args(PlainEventType))

# A request that waits may fail this way where others succeed: at a proxy, or at a registry without capacity to wait.
_MAYBE_OF_WAITING = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

_log = Logger()


class _SharedRequest:
    """A request that several subscribers wait for; *abandoned* is called when none of them does any more."""

    def __init__(self, cursor: Cursor, abandoned: Callable[[], None]) -> None:
        self.cursor = cursor
        self.waiters: Waiters[list[Event] | None] = Waiters(abandoned)
        self.quietListeners: Listeners[[]] = Listeners(_log, "a quiet event feed")
        self.work: Deferred[None] | None = None


class EventPoller:
    """
    Reads the event feed for all subscribers of one client.

    They share one event stream (:class:`~txserviceregistry.discovery.stream.EventTail`). Where the registry has none,
    or it can't be opened, they share one request, which waits for events after the cursor with which it began. A
    subscriber with another cursor reads on its own until nothing newer is there, and then waits with the others.

    :param client: makes the requests.
    :param types: only events of these types; those that version 1.0 does not have are left out where the registry does
        not have them either.
    :param interval: seconds from one request to the next where the registry can't wait.
    :param random: gives numbers from 0 to 1.
    :ivar respondedAt: when the last valid response came, by the client's clock; ``None`` before the first.
    """

    def __init__(
        self,
        client: Client,
        *,
        types: Collection[str] = WATCHED,
        interval: float = POLL,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        self.respondedAt: float | None = None
        self._client = client
        self._wanted = frozenset(types)
        self._interval = interval
        self._random = random
        self._shared: _SharedRequest | None = None
        self._tail = EventTail(client, self._types, self._streamIsLive, self._responded, random)
        self._users = 0
        # Whether the last request has failed, or there was none: the next one does not wait.
        self._isUnsure = True
        self._hasFailed = False
        # How many requests that wait have failed in a row where others succeeded, and until when no other one is sent.
        self._refusedWaits = 0
        self._pollUntil = 0.0

    @property
    def resets(self) -> int:
        """How often the registry has said that events may be missing in its event stream."""
        return self._tail.resets

    @property
    def isLive(self) -> bool:
        """Whether events come by an event stream, which says if any may be missing."""
        return self._tail.isLive

    @contextmanager
    def used(self) -> Iterator[None]:
        """A context in which a subscriber uses it. The event stream is open as long as there is one."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._tail.close()

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
        # The beginning of the tail up to which the feed is known to have nothing newer.
        quiet: object = None
        while True:
            if resets not in (None, self.resets):
                raise StaleCursor("The registry says that events may be missing")
            shared = self._shared
            if self._tail.isLive:
                span = self._tail.span
                events = self._tail.after(cursor, span is quiet)
                if events is None:
                    page = await self.read(cursor)
                    if not cursor.isQuiet(page):
                        return page
                    quiet = span
                    onQuiet()
                elif events:
                    return events
                else:
                    isNews = await self._tail.next()
                    self._isUnsure = isNews is None
                    if isNews is False:
                        onQuiet()
                continue
            if self._tail.isAwaited and shared is None:
                await self._tail.next()
                continue
            if shared is not None and shared.cursor != cursor:
                page = await self.read(cursor)
                if not cursor.isQuiet(page):
                    return page
                onQuiet()
                if shared is not self._shared:
                    # There were events meanwhile, maybe.
                    continue
            elif shared is None:
                shared = _SharedRequest(cursor, self._abandon)
            forget = shared.quietListeners.add(onQuiet)
            try:
                joined = await self._join(shared)
            except StaleCursor:
                if shared.cursor == cursor:
                    raise
            else:
                if joined is not None and shared.cursor == cursor:
                    return joined
            finally:
                forget()

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
        try:
            page = await self._client.events.list(cursor.marker, PAGE, self._type, wait=wait, types=self._namedTypes)
        except BadRequest as error:
            if isMarkerRefused(error, cursor):
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
        self._responded()
        if self._hasFailed:
            self._hasFailed = False
            self._tail.retrySoon()
        if self._users and EVENT_STREAM in self._client.extensions:
            self._tail.open()
        return events

    def _responded(self) -> None:
        self.respondedAt = self._client.clock.seconds()

    @property
    def _namedTypes(self) -> list[str] | None:
        """The types that a request names; ``None`` where the registry only has those of version 1.0."""
        return sorted(self._wanted) if EVENT_TYPES in self._client.extensions else None

    @property
    def _type(self) -> str | None:
        """The type that a request names instead."""
        return next(iter(self._wanted)) if len(self._wanted) == 1 and self._wanted <= PLAIN else None

    def _types(self) -> str | None:
        named = self._namedTypes
        return None if named is None else ",".join(named)

    # -- the stream

    def _streamIsLive(self) -> None:
        """Let those that wait with the shared request wait for the stream instead."""
        shared, self._shared = self._shared, None
        if shared is not None:
            if shared.work is not None:
                # It may be running now.
                self._client.clock.callLater(0, shared.work.cancel)
            shared.waiters.fire(None)

    # -- the shared request

    def _join(self, shared: _SharedRequest) -> Deferred[list[Event] | None]:
        waiter = shared.waiters.wait()
        if self._shared is None:
            self._shared = shared
            shared.work = Deferred.fromCoroutine(self._work(shared))
            if self._shared is not shared:
                # It has ended already, or was abandoned before there was something to cancel.
                shared.work.cancel()
        return waiter

    def _abandon(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None and shared.work is not None:
            shared.work.cancel()

    async def _work(self, shared: _SharedRequest) -> None:
        outcome: list[Event] | Failure | None = []
        isFirst = True
        try:
            while self._shared is shared:
                outcome = page = await self._request(shared.cursor, isFirst)
                self._isUnsure = isFirst = False
                if not shared.cursor.isQuiet(page):
                    break
                shared.quietListeners.call()
                if self._tail.isAwaited:
                    outcome = None
                    break
        except Exception:
            outcome = Failure()
        if self._shared is shared:
            self._isUnsure = isinstance(outcome, Failure)
            self._shared = None
            shared.waiters.fire(outcome)

    async def _request(self, cursor: Cursor, isFirst: bool) -> list[Event]:
        if self._isUnsure:
            return await self.read(cursor)
        began = self._client.clock.seconds()
        if EVENTS_WAIT not in self._client.extensions or began < self._pollUntil:
            if not isFirst:
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


_pollers: WeakKeyDictionary[Client, dict[frozenset[str], EventPoller]] = WeakKeyDictionary()


def pollerOf(client: Client, types: Collection[str] = WATCHED) -> EventPoller:
    """The :class:`EventPoller` of a client for some types of events: the same for all that are in :data:`WATCHED`."""
    wanted = WATCHED if WATCHED.issuperset(types) else frozenset(types)
    pollers = _pollers.setdefault(client, {})
    if wanted not in pollers:
        pollers[wanted] = EventPoller(client, types=wanted)
    return pollers[wanted]
