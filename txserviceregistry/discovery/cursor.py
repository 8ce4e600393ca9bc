"""Places in the event feed, and what the pages after them show."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import attrs

from ..errors import BadRequest
from ..types import Event

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

#: The largest page that there is.
PAGE = 1000


class StaleCursor(Exception):
    """The event feed no longer has the place of a cursor: events may be missing."""


@attrs.frozen
class Page:
    """
    The events after a cursor.

    :ivar isStale: whether the feed no longer has the place of the cursor, so that events before these may be missing.
    :ivar isFull: whether there may be more.
    """

    events: Sequence[Event]
    isStale: bool = False
    isFull: bool = False

    @property
    def isQuiet(self) -> bool:
        """Whether nothing has happened since."""
        return not self.events and not self.isStale


@attrs.frozen
class Cursor:
    """
    A place in the feed.

    :ivar marker: the id of the last event that was read; ``None`` for the beginning of what the feed shows without a
        marker, which is its last hour.
    :ivar seen: whether that event is known to be one of this feed. Then the next page has to begin with it.
    :ivar isInclusive: whether that event is to be read, too.
    """

    marker: str | None = None
    seen: bool = False
    isInclusive: bool = False

    def page(self, values: Sequence[Event]) -> Page:
        """The page of the events that the registry has returned for this marker."""
        marker = None if self.isInclusive else (self.marker or "").lower()
        isStale = self.seen and (not values or values[0]["id"] != self.marker)
        return Page([event for event in values if event["id"].lower() != marker], isStale, len(values) >= PAGE)

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
