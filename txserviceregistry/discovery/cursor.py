"""Places in the event feed, from which the next page is read, and the events after them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import attrs

from ..errors import BadRequest
from ..types import Event

# The time of a UUID, in units of 100 nanoseconds, begins in 1582 (RFC 9562, section 5.1).
_UUID_EPOCH = 0x01B21DD213814000
_TICKS = 10_000_000
# The most events that are kept for subscribers that are behind.
_KEPT = 1000

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


class Following(list[Event]):
    """Events that are known to follow a place directly, without the event before it."""


@attrs.frozen
class Cursor:
    """
    A place in the feed.

    :ivar marker: the id of the last event that was read; ``None`` for the beginning of what the feed shows without a
        marker, which is its last hour.
    :ivar seen: whether that event is known to be one of this feed. Then the next page has to begin with it.
    """

    marker: str | None = None
    seen: bool = False

    def newer(self, page: Sequence[Event]) -> list[Event]:
        """The events after this place, of a page that was requested with this marker."""
        marker = self.marker and self.marker.lower()
        return [event for event in page if event["id"].lower() != marker]

    def isStale(self, page: Sequence[Event]) -> bool:
        """Whether such a page shows that the feed no longer has this place: events before it may be lost as well."""
        return self.seen and not isinstance(page, Following) and (not page or page[0]["id"] != self.marker)

    def isQuiet(self, page: Sequence[Event]) -> bool:
        """Whether such a page shows that nothing has happened since."""
        return not self.isStale(page) and not self.newer(page)

    @classmethod
    def after(cls, event: Event) -> Cursor:
        """The place after an event."""
        return cls(event["id"], True)

    @property
    def time(self) -> float | None:
        """When the event of the marker happened, in seconds since the epoch; ``None`` without a valid marker."""
        ticks = ticksOf(self.marker)
        return None if ticks is None else (ticks - _UUID_EPOCH) / _TICKS


def ticksOf(id: str | None) -> int | None:
    """The time in an event's id, by which ids are ordered, in units of 100 ns; ``None`` for any other text."""
    try:
        parsed = uuid.UUID(id or "")
    except ValueError:
        return None
    return parsed.time if parsed.version == 1 else None


def markerAt(seconds: float) -> str:
    """The smallest id that an event can have, so many seconds after the epoch."""
    ticks = _UUID_EPOCH + int(seconds * _TICKS)
    fields = (ticks & 0xFFFFFFFF, ticks >> 32 & 0xFFFF, ticks >> 48 & 0x0FFF, 0, 0, 0)
    return str(uuid.UUID(fields=fields, version=1))


def isMarkerRefused(error: BadRequest) -> bool:
    """
    Whether the registry does not accept the marker. Only the API's own faults about markers count: the page of a proxy
    with the same status says nothing about the place in the feed.
    """
    return (error.status, error.type) == (400, "badRequest") and any(
        text.startswith(_MARKER_REFUSED) for text in (error.message, error.details)
    )


class Span:
    """
    The events after a place, without a gap.

    Only the ids of its events and of its beginning are known to be in it: a registry that was restored from a backup
    has lost other ones.
    """

    def __init__(self, begin: Cursor) -> None:
        self.end = begin
        self._events: list[Event] = []
        # By id, how many of all events come before the place after it.
        self._places = {begin.marker.lower(): 0} if begin.seen and begin.marker is not None else {}
        self._count = 0

    def add(self, event: Event) -> None:
        self._count += 1
        self._events.append(event)
        self.end = Cursor.after(event)
        self._places[event["id"].lower()] = self._count
        if len(self._events) > _KEPT:
            # The dropped event itself is still a place; the one before is not.
            del self._events[0], self._places[next(iter(self._places))]

    def after(self, cursor: Cursor, isComplete: bool) -> Following | None:
        """
        The events after a place; ``None`` if they are not all known.

        :param isComplete: whether the feed is known to have nothing between that place and the beginning of the span.
        """
        before = self._places.get((cursor.marker or "").lower())
        if before is not None:
            return Following(self._events[before - self._count + len(self._events) :])
        if not isComplete:
            return None
        ticks = ticksOf(cursor.marker) or 0
        return Following(event for event in self._events if (ticksOf(event["id"]) or 0) > ticks)
