"""
EventTail: the end of the event feed in memory, kept current by the registry's event stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall

from ..api.eventstream import EventStream
from ..api.shapes import readEvent
from ..types import Event
from ..util.backoff import Backoff
from ..util.logs import Logger
from ..util.waiters import Waiters
from .cursor import Cursor, Following, ticksOf

if TYPE_CHECKING:
    from ..client import Client

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
#: The most events that are kept for subscribers that are behind.
_KEPT = 1000


class _State(Enum):
    """CLOSED → OPENING → LIVE, and from each of them to CLOSED."""

    CLOSED = "there is no stream"
    OPENING = "no ping has come so far"
    LIVE = "events come as they happen"


class EventTail:
    """
    What has happened since a stream was opened. A stream that is interrupted continues after the last event, so that
    nothing is missing between two streams, or the registry says that it can't.

    :param client: opens the streams.
    :param types: returns the types of events, separated by commas; ``None`` for those of version 1.0.
    :param onLive: called when events come as they happen.
    :param onSign: called with each sign of life of the registry.
    :param random: gives numbers from 0 to 1.
    :ivar resets: how often events may have been lost between two streams.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        types: Callable[[], str | None],
        onLive: Callable[[], object],
        onSign: Callable[[], object],
        random: Callable[[], float],
    ) -> None:
        self._client = client
        self._types = types
        self._onLive = onLive
        self._onSign = onSign
        self._state = _State.CLOSED
        self._stream: EventStream | None = None
        self._timer: IDelayedCall | None = None
        self._openedAt = 0.0
        self._backoff = Backoff(_PAUSE, RETRY, random)
        self.resets = 0
        # When it may be opened again, and whether it could not be opened the last time.
        self._notBefore = 0.0
        self._hasFailed = False
        # The events of a span of the feed, and by id how many of all events of the span are before each place in it.
        # Only these places are known to be in the span: a registry that was restored from a backup has lost later ones.
        self._events: list[Event] = []
        self._places: dict[str, int] = {}
        self._count = 0
        # The id of the last event or of the last ping.
        self._lastId: str | None = None
        self._asked: str | None = None
        # Fire with whether there are events; with None when the stream has ended.
        self._waiters: Waiters[bool | None] = Waiters()
        #: Changes when the events have another beginning.
        self.span = object()

    @property
    def isLive(self) -> bool:
        """Whether events come as they happen."""
        return self._state is _State.LIVE

    @property
    def isAwaited(self) -> bool:
        """Whether it will most likely be live in a moment."""
        return self._state is _State.OPENING and not self._hasFailed

    def after(self, cursor: Cursor, isComplete: bool) -> Following | None:
        """
        The events after a place.

        :param isComplete: whether the feed is known to have nothing between that place and the beginning of the span.
        :return: ``None`` if this does not know them all.
        """
        before = self._places.get((cursor.marker or "").lower())
        if before is not None:
            return Following(self._events[before - self._count + len(self._events) :])
        if not isComplete:
            return None
        ticks = ticksOf(cursor.marker) or 0
        return Following(event for event in self._events if (ticksOf(event["id"]) or 0) > ticks)

    async def next(self) -> bool | None:
        """
        Wait until something happens.

        :return: ``True`` for an event, ``False`` for a ping, and ``None`` if the stream has ended.
        """
        return await self._waiters.wait()

    def open(self) -> None:
        """Open a stream, if it is time for that. The registry has just responded."""
        if self._state is not _State.CLOSED or self._client.clock.seconds() < self._notBefore:
            return
        self._state = _State.OPENING
        self._openedAt = self._client.clock.seconds()
        self._asked = self._lastId
        self._watch(FIRST_PING)
        stream = self._client.events.streams.open(self, self._types(), self._lastId)
        if self._state is not _State.CLOSED:
            self._stream = stream

    def retrySoon(self) -> None:
        """The registry was unreachable, and responds again."""
        self._notBefore = 0.0
        self._backoff.reset()

    def close(self) -> None:
        """There is no subscriber any more."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._closed(0.0)
        self._lastId = None

    # -- StreamListener

    def received(self) -> None:
        """Called with each part of the stream."""
        if self._state is _State.LIVE:
            self._watch(SILENCE)

    def happened(self, type: str, id: str | None, data: str) -> None:
        """Called with each event of the stream."""
        if type == "ping" and id is None:
            # A reset follows.
            return
        if id is None or ticksOf(id) is None:
            self._fail("an event has no valid id")
            return
        if self._state is _State.OPENING:
            if type == "reset":
                self.resets += self._asked is not None
            if type == "reset" or id != self._asked:
                self._restart(id)
            self._state = _State.LIVE
            self._watch(SILENCE)
            self._lastId = id
            self._hasFailed = False
            self._onSign()
            self._onLive()
            self._waiters.fire(False)
            return
        self._onSign()
        self._lastId = id
        if type == "reset":
            self.resets += 1
            self._restart(id)
            self._waiters.fire(True)
        elif type == "ping":
            self._waiters.fire(False)
        else:
            self._add(data)

    def ended(self) -> None:
        """Called when the stream is over."""
        self._stream = None
        now = self._client.clock.seconds()
        self._hasFailed = self._state is not _State.LIVE
        if not self._hasFailed and now - self._openedAt >= _LONG:
            self._backoff.reset()
        mayTry = self._lastId is not None and self._backoff.failures < _TRIES
        self._closed(now + (self._backoff.next() if mayTry else RETRY))

    # -- inside

    def _add(self, data: str) -> None:
        try:
            event = readEvent(json.loads(data))
        except (ValueError, RecursionError) as error:
            self._fail(str(error))
            return
        self._count += 1
        self._events.append(event)
        self._places[event["id"].lower()] = self._count
        if len(self._events) > _KEPT:
            # The dropped event itself is still a place; the one before is not.
            del self._events[0], self._places[next(iter(self._places))]
        self._waiters.fire(True)

    def _restart(self, id: str) -> None:
        self._events, self._places, self._count = [], {id.lower(): 0}, 0
        self.span = object()

    def _watch(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._client.clock.callLater(seconds, self._silent)

    def _silent(self) -> None:
        self._timer = None
        self._end()

    def _fail(self, reason: str) -> None:
        self._log.debug("The event stream is malformed: {reason}", reason=reason)
        self._state = _State.OPENING
        self._end()

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self.ended()

    def _closed(self, notBefore: float) -> None:
        self._state = _State.CLOSED
        self._notBefore = notBefore
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiters.fire(None)
