"""
Progress: which events of the feed were delivered, and which may have been missed or delivered before.

Each transition returns a new value. :class:`~txserviceregistry.discovery.feed.EventsFeed` makes the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from ..types import Event
from ..util.parsing import LATEST, boundedNumber
from .cursor import Cursor, ticksOf

#: Without a marker the feed shows its last hour, in seconds. Progress that is half as old needs a marker.
SHOWN = 3600.0

#: For how long the protocol promises to keep events, in seconds.
RETENTION = 30 * 86_400.0


@attrs.frozen
class Progress:
    """
    How far a subscriber has come in the event feed.

    ==============================  =====================  ==============  ===========================================
    State                           ``cursor``             ``quietAt``     Left by
    ==============================  =====================  ==============  ===========================================
    at a marker that was given      not seen               ``None``        :meth:`delivered`, :meth:`emptied`
    within a page                   seen                   ``None``        :meth:`delivered`, :meth:`quiet`
    up to date                      seen                   a time          :meth:`delivered`, :meth:`emptied`
    up to date, no event is known   not seen               a time          :meth:`delivered`, :meth:`movedTo`
    after the marker was refused    not seen, no marker    ``None``        :meth:`delivered`, :meth:`emptied`
    ==============================  =====================  ==============  ===========================================

    :ivar cursor: where the next page begins.
    :ivar includesMarker: whether the marker's own event is to be delivered too.
    :ivar quietAt: when the feed was last known to have nothing newer, in seconds since the epoch.
    :ivar repeatedTo: the id of the latest event that may have been delivered before; ``None`` if there is none.
    """

    cursor: Cursor = attrs.Factory(Cursor)
    includesMarker: bool = False
    quietAt: float | None = None
    repeatedTo: str | None = None

    def delivered(self, event: Event) -> Progress:
        """All listeners have finished with *event*."""
        areMore = self.isRepeated(event) and event["id"] != self.repeatedTo
        return Progress(Cursor.after(event), repeatedTo=self.repeatedTo if areMore else None)

    def quiet(self, now: float) -> Progress:
        """The feed has nothing newer."""
        return attrs.evolve(self, quietAt=now)

    def emptied(self, now: float) -> Progress:
        """The feed has no event from the cursor on: the next one can't show whether others are missing before it."""
        return self.movedTo(Cursor(self.cursor.marker), now)

    def movedTo(self, cursor: Cursor, now: float) -> Progress:
        """The feed had no event between the cursor and *cursor*."""
        return Progress(cursor, quietAt=now, repeatedTo=self.repeatedTo)

    def afterGap(self) -> Progress:
        """Events may be missing, and the next page may begin before the last event."""
        return self.repeating(self.cursor.marker) if self.cursor.seen else self

    def refused(self) -> Progress:
        """The registry does not accept the marker: the events that it shows without one come next."""
        return Progress(repeatedTo=self.repeatedTo)

    def repeating(self, id: str | None) -> Progress:
        """Events up to the one with this id may be delivered a second time."""
        return attrs.evolve(self, repeatedTo=id) if _ticks(id) >= _ticks(self.repeatedTo) else self

    def isRepeated(self, event: Event) -> bool:
        """Whether *event* may have been delivered before."""
        return self.repeatedTo is not None and _ticks(event["id"]) <= _ticks(self.repeatedTo)

    def isOutdated(self, now: float) -> bool:
        """Whether there is no last event, and too much time has passed to continue at the cursor all the same."""
        if self.quietAt is None or self.cursor.seen:
            return False
        return now - self.quietAt > (SHOWN / 2 if self.cursor.marker is None else RETENTION)

    def isGap(self, page: Sequence[Event], now: float) -> bool:
        """Whether a page that was read at the cursor shows that events may be missing."""
        return self.cursor.isStale(page) and not self._hasExpired(now)

    def _hasExpired(self, now: float) -> bool:
        """
        Whether the feed no longer has the last event because of its age, and nothing is missing: it was the last one
        not long ago, and everything newer is kept.
        """
        if self.quietAt is None or self.cursor.time is None:
            return False
        return abs(now - self.quietAt) <= SHOWN / 2 and now - self.cursor.time >= SHOWN

    def toJSON(self) -> dict[str, Any]:
        """What a file keeps."""
        return {
            "marker": self.cursor.marker,
            "begins": self.includesMarker,
            "given": self.repeatedTo,
            "quietAt": self.quietAt,
        }

    @classmethod
    def fromJSON(cls, kept: Any) -> Progress:
        """The progress that a file has kept; raises ValueError, KeyError or TypeError if *kept* is not that."""
        marker, includesMarker, repeatedTo = kept["marker"], kept["begins"] is True, kept["given"]
        for id in (marker, repeatedTo):
            if id is not None and not (isinstance(id, str) and ticksOf(id) is not None):
                raise ValueError(f"{id!r} is not the id of an event")
        quietAt = None if kept["quietAt"] is None else boundedNumber(kept["quietAt"], 0.0, LATEST)
        return cls(Cursor(marker, marker is not None and not includesMarker), includesMarker, quietAt, repeatedTo)


def _ticks(id: str | None) -> int:
    return ticksOf(id) or 0
