"""
EventPoller: waits for events on behalf of all subscribers of one client, with one request at a time.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..api.transport import EVENTS_WAIT
from ..errors import BadRequest, ConnectionFailed, MalformedResponse, RequestTimedOut, ServerError
from ..types import Event
from ..util.deferred import returnsDeferred
from ..util.listeners import Listeners
from ..util.logs import Logger
from ..util.waiters import Waiters
from .cursor import Cursor, StaleCursor, isMarkerRefused, ticksOf

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

# A request that waits may fail this way where others succeed: at a proxy, or at a registry without capacity to wait.
_MAYBE_OF_WAITING = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

_log = Logger()


class _SharedRequest:
    """A request that several subscribers wait for; *abandoned* is called when none of them does any more."""

    def __init__(self, cursor: Cursor, abandoned: Callable[[], None]) -> None:
        self.cursor = cursor
        self.waiters: Waiters[list[Event]] = Waiters(abandoned)
        self.quietListeners: Listeners[[]] = Listeners(_log, "a quiet event feed")
        self.work: Deferred[None] | None = None


class EventPoller:
    """
    Reads the event feed for all subscribers of one client.

    They share one request, which waits for events after the cursor with which it began. A subscriber with another
    cursor reads on its own until nothing newer is there, and then waits with the others.

    :param client: makes the requests.
    :param type: only events of this type; ``None`` for all.
    :param interval: seconds from one request to the next where the registry can't wait.
    :param random: gives numbers from 0 to 1.
    :ivar respondedAt: when the last valid response came, by the client's clock; ``None`` before the first.
    """

    def __init__(
        self,
        client: Client,
        *,
        type: str | None = None,
        interval: float = POLL,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        self.respondedAt: float | None = None
        self._client = client
        self._type = type
        self._interval = interval
        self._random = random
        self._shared: _SharedRequest | None = None
        # Whether the last request has failed, or there was none: the next one does not wait.
        self._isUnsure = True
        # How many requests that wait have failed in a row where others succeeded, and until when no other one is sent.
        self._refusedWaits = 0
        self._pollUntil = 0.0

    @returnsDeferred
    async def after(self, cursor: Cursor, onQuiet: Callable[[], None] = lambda: None) -> list[Event]:
        """
        The next events after a place, as soon as there are any.

        :param onQuiet: called whenever the registry has responded that there is nothing newer yet.
        :return: fires with a page as it came, the event of the *cursor* included; also with one for which the cursor is
            stale. Fails with :class:`~txserviceregistry.discovery.cursor.StaleCursor` if the registry refuses the
            marker, and otherwise as :meth:`EventsClient.list <txserviceregistry.api.events.EventsClient.list>` does. It
            may be cancelled.
        """
        while True:
            shared = self._shared
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
                page = await self._join(shared)
            except StaleCursor:
                if shared.cursor == cursor:
                    raise
            else:
                if shared.cursor == cursor:
                    return page
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
            page = await self._client.events.list(cursor.marker, PAGE, self._type, wait=wait)
        except BadRequest as error:
            if isMarkerRefused(error, cursor):
                raise StaleCursor(str(error)) from error
            raise
        events = page["values"]
        marker = ticksOf(cursor.marker)
        if events and marker is not None and (ticksOf(events[0]["id"]) or 0) < marker:
            # Otherwise the same page, sent again and again, would count as new events each time.
            raise MalformedResponse("A page of events begins before the marker that it was requested with")
        self.respondedAt = self._client.clock.seconds()
        return events

    # -- the shared request

    def _join(self, shared: _SharedRequest) -> Deferred[list[Event]]:
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
        outcome: list[Event] | Failure = []
        isFirst = True
        try:
            while self._shared is shared:
                outcome = await self._request(shared.cursor, isFirst)
                self._isUnsure = isFirst = False
                if not shared.cursor.isQuiet(outcome):
                    break
                shared.quietListeners.call()
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


_pollers: WeakKeyDictionary[Client, EventPoller] = WeakKeyDictionary()


def pollerOf(client: Client) -> EventPoller:
    """The one :class:`EventPoller` of a client."""
    poller = _pollers.get(client)
    if poller is None:
        poller = _pollers[client] = EventPoller(client)
    return poller
