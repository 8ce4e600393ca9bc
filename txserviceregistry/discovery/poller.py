"""
Following the feed: however many follow the events of one client, the registry is asked for news by one request at a
time.

What belongs here gets events as they come; what is made of them is in :mod:`~txserviceregistry.discovery.feed` and
:mod:`~txserviceregistry.discovery.mirror`.
"""

from __future__ import annotations

import random as randomModule
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ..api.transport import EVENTS_WAIT
from ..errors import BadRequest, MalformedResponse
from ..types import Event
from ..util.deferred import returnsDeferred

if TYPE_CHECKING:
    from ..client import Client

#: Seconds for which the registry is asked to hold its answer back. Every one of them that is added is a second more
#: until a line that hangs is noticed; every one less means more requests.
WAIT = 30
#: Seconds from one question to the next where the registry can't wait.
POLL = 5.0
#: Seconds to the next question when the registry could wait, but did not: it is ending, most likely.
_NOT_NOW = 1.0
#: The largest page that there is.
PAGE = 1000

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


@attrs.frozen
class Cursor:
    """
    A place in the feed.

    :ivar marker: the id of the last event that was seen; ``None`` for the beginning of what the feed shows to those who
        have seen none, which is its last hour.
    :ivar seen: whether that event is known to be one of this feed. Then it has to be found where it was.
    """

    marker: str | None = None
    seen: bool = False

    def newer(self, events: Sequence[Event]) -> list[Event]:
        """What is new to whoever stands here, of a page that was asked for with this marker."""
        if self.marker is None:
            return list(events)
        return [event for event in events if event["id"].lower() != self.marker.lower()]

    def isStale(self, events: Sequence[Event]) -> bool:
        """Whether such a page shows that the feed no longer knows this place: events before it may be lost as well."""
        return self.seen and (not events or events[0]["id"] != self.marker)

    def after(self, event: Event) -> Cursor:
        """The place behind an event."""
        return Cursor(event["id"], True)

    @property
    def time(self) -> float | None:
        """When the event of the marker happened, in seconds since the epoch; ``None`` without a marker of the API."""
        ticks = ticksOf(self.marker)
        return None if ticks is None else (ticks - _UUID_EPOCH) / _TICKS


def ticksOf(id: str | None) -> int | None:
    """
    The time in the id of an event, a version-1 UUID, in units of 100 nanoseconds: ids are ordered by it.

    :return: ``None`` for anything else.
    """
    try:
        parsed = uuid.UUID(id or "")
    except ValueError:
        return None
    return parsed.time if parsed.version == 1 else None


def markerAt(seconds: float) -> str:
    """
    The smallest id that an event at a moment can have.

    :param seconds: the moment, since the epoch.
    """
    ticks = _UUID_EPOCH + int(seconds * _TICKS)
    fields = (ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFF, ticks >> 48 & 0x0FFF, 0, 0, 0)
    return str(uuid.UUID(fields=fields, version=1))


def isMarkerRefused(error: BaseException | None, position: Cursor) -> bool:
    """
    Whether an error says that the registry does not accept the marker of *position*.

    Only the API's own faults about markers count. Any other response with the same status (the page of a proxy, a fault
    about another parameter) says nothing about the position in the feed.
    """
    return (
        position.marker is not None
        and isinstance(error, BadRequest)
        and (error.status, error.type) == (400, "badRequest")
        and (error.message.startswith(_MARKER_REFUSED) or error.details.startswith(_MARKER_REFUSED))
    )


class EventPoller:
    """
    Gets events for all who follow the feed of one client.

    They share one request, which waits for what is newer than the place that it was asked at. Who stands elsewhere
    reads on its own until nothing newer is there, and waits with the others then.

    :param client: asks the registry.
    :param random: gives numbers from 0 to 1.
    :ivar heard: when the last good answer came, by the client's clock; ``None`` before the first.
    """

    def __init__(self, client: Client, *, random: Callable[[], float] = randomModule.random) -> None:
        self.heard: float | None = None
        self._client = client
        self._random = random
        self._waiters: dict[Deferred[list[Event] | None], tuple[Cursor, Callable[[], None]]] = {}
        self._position = Cursor()
        # The shared request: something that tells it from the next one, and its work, once that has begun.
        self._asking: object | None = None
        self._work: Deferred[None] | None = None
        self._troubled = True
        # How often there was news: who reads on its own while there is some has to look again.
        self._rounds = 0

    @returnsDeferred
    async def after(self, position: Cursor, onQuiet: Callable[[], None] = lambda: None) -> list[Event]:
        """
        The next events behind a place, as soon as there are any.

        :param onQuiet: called whenever the registry has answered that there is nothing newer yet.
        :return: fires with a page as it came, the event of the *position* included; also with one that shows that the
            place is lost. Fails as :meth:`EventsClient.list <txserviceregistry.api.events.EventsClient.list>` does. It
            may be cancelled.
        """
        while True:
            if self._asking is not None and self._position != position:
                rounds = self._rounds
                page = await self.read(position)
                if position.newer(page) or position.isStale(page):
                    return page
                onQuiet()
                if rounds != self._rounds:
                    continue
            found = await self._join(position, onQuiet)
            if found is not None:
                return found

    @returnsDeferred
    async def read(self, position: Cursor) -> list[Event]:
        """
        One page from a place on, as it is now.

        :return: fires with the page, the event of the *position* included.
        """
        page = await self._client.events.list(position.marker, PAGE)
        return self._noted(position, page["values"])

    def _noted(self, position: Cursor, events: list[Event]) -> list[Event]:
        marker = ticksOf(position.marker)
        if events and marker is not None and (ticksOf(events[0]["id"]) or 0) < marker:
            # Otherwise the same page, sent again and again, would count as new events each time.
            raise MalformedResponse("A page of events begins before the marker that it was requested with")
        self.heard = self._client.clock.seconds()
        return events

    # -- the request that is shared

    def _join(self, position: Cursor, onQuiet: Callable[[], None]) -> Deferred[list[Event] | None]:
        """Fires with the shared answer if it is for this place, and with ``None`` when one has to look oneself."""
        waiter: Deferred[list[Event] | None] = Deferred(self._leave)
        self._waiters[waiter] = position, onQuiet
        if self._asking is None:
            self._position = position
            self._asking = asking = object()
            work = Deferred.fromCoroutine(self._ask(position, asking))
            work.addErrback(self._failed, asking)
            # Its end may have come at once, and with it the next one.
            if self._asking is asking:
                self._work = work
            elif not work.called:
                work.cancel()
        return waiter

    def _leave(self, waiter: Deferred[list[Event] | None]) -> None:
        self._waiters.pop(waiter, None)
        if not self._waiters and self._asking is not None:
            work, self._asking, self._work = self._work, None, None
            if work is not None:
                work.cancel()

    async def _ask(self, position: Cursor, asking: object) -> None:
        first = True
        while True:
            page = await self._askOnce(position, first)
            self._troubled = first = False
            if position.newer(page) or position.isStale(page):
                break
            if self._asking is asking:
                for _, onQuiet in list(self._waiters.values()):
                    onQuiet()
        if self._asking is not asking:
            return
        self._rounds += 1
        for waiter, its in self._ended():
            waiter.callback(page if its == position else None)

    async def _askOnce(self, position: Cursor, first: bool) -> list[Event]:
        if self._troubled:
            # After trouble, or at first, one wants to know soon.
            return await self.read(position)
        if EVENTS_WAIT not in self._client.extensions:
            if not first:
                await self._client.pause(POLL * (1.0 - 0.2 * self._random()))
            return await self.read(position)
        began = self._client.clock.seconds()
        answer = await self._client.events.list(position.marker, PAGE, wait=WAIT)
        page = self._noted(position, answer["values"])
        early = self._client.clock.seconds() - began < WAIT / 2
        if early and not position.newer(page) and not position.isStale(page):
            await self._client.pause(_NOT_NOW)
        return page

    def _failed(self, reason: Failure, asking: object) -> None:
        if self._asking is not asking:
            # No subscriber waits for it any more.
            return
        self._troubled = True
        position = self._position
        refused = isMarkerRefused(reason.value, position)
        for waiter, its in self._ended():
            if refused and its != position:
                # It was the place that was refused, and not this one.
                waiter.callback(None)
            else:
                waiter.errback(reason)

    def _ended(self) -> list[tuple[Deferred[list[Event] | None], Cursor]]:
        waiters = [(waiter, position) for waiter, (position, _) in self._waiters.items()]
        self._waiters.clear()
        self._asking = self._work = None
        return waiters


_followings: WeakKeyDictionary[Client, EventPoller] = WeakKeyDictionary()


def followingOf(client: Client) -> EventPoller:
    """The one :class:`EventPoller` of a client."""
    following = _followings.get(client)
    if following is None:
        following = _followings[client] = EventPoller(client)
    return following
