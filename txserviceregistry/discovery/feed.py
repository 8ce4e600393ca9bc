"""EventsFeed: each event once and in order."""

from __future__ import annotations

import math
import os
import random as randomModule
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, cast

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred

from ..client import Client
from ..types import Event
from ..util.deferred import CANCELLED, returnsDeferred
from ..util.fields import LATEST, boundedNumber, checkedTags
from ..util.logs import Listeners
from .poller import PLAIN, WATCHED, Cursor, Page, StaleCursor, markerAt, ticksOf, timeOf
from .subscriber import BackgroundTask, Items, Subscriber

_GRACE = 3.0  # seconds that a listener may still take when the feed is stopped

# Without a marker the feed shows its last hour, in seconds.
SHOWN = 3600.0
# If nothing had happened for an hour, the feed can continue from any moment of that hour. These are tried, in seconds
# before its end: the first tolerates the largest difference of clocks, the others are for young accounts.
_MOMENTS = (1800.0, 60.0, 0.0)

_SAVE_INTERVAL = 300.0  # seconds between two writes of the file while nothing happens

RETENTION = 30 * 86_400.0  # for how long the protocol promises to keep events, in seconds


@attrs.frozen
class Progress:
    """How far a subscriber has come in the event feed."""

    cursor: Cursor = attrs.Factory(Cursor)  # the place at which the next page begins
    # When the feed was last known to have nothing newer, in seconds since the epoch; None within a page.
    quietAt: float | None = None
    repeatedTo: str | None = None  # the id of the latest event that may have been delivered before

    def delivered(self, event: Event) -> Progress:
        """All listeners have finished with *event*."""
        isLast = event["id"] == self.repeatedTo or not self.isRepeated(event)
        return Progress(Cursor.after(event), repeatedTo=None if isLast else self.repeatedTo)

    def quiet(self, now: float, cursor: Cursor | None = None) -> Progress:
        """The feed has nothing newer; *cursor* is a place after the present one without an event between."""
        return attrs.evolve(self, quietAt=now, cursor=cursor or self.cursor)

    def repeating(self, id: str | None) -> Progress:
        """Events up to the one with this id may be delivered a second time."""
        return attrs.evolve(self, repeatedTo=id) if ticksOf(id) >= ticksOf(self.repeatedTo) else self

    def afterGap(self) -> Progress:
        """Events may be missing, and the next page may begin before the last event."""
        return self.repeating(self.cursor.marker) if self.cursor.seen else self

    def isRepeated(self, event: Event) -> bool:
        """Whether *event* may have been delivered before."""
        return ticksOf(event["id"]) <= ticksOf(self.repeatedTo)

    def isOutdated(self, now: float) -> bool:
        """Whether there is no last event, and too much time has passed to continue at the cursor all the same."""
        if self.quietAt is None or self.cursor.seen:
            return False
        return now - self.quietAt > (SHOWN / 2 if self.cursor.marker is None else RETENTION)

    def isGap(self, page: Page, now: float) -> bool:
        """Whether a page that was read at the cursor shows that events may be missing."""
        # None is if the last event is too old to be kept, and was the last one not long ago: newer ones are kept.
        isQuiet = self.quietAt is not None and abs(now - self.quietAt) <= SHOWN / 2
        return page.isStale and not (isQuiet and now - timeOf(self.cursor.marker) >= SHOWN)

    def toJSON(self) -> dict[str, Any]:
        """The content of the file."""
        marker, begins = self.cursor.marker, self.cursor.isInclusive
        return {"marker": marker, "begins": begins, "given": self.repeatedTo, "quietAt": self.quietAt}

    @classmethod
    def fromJSON(cls, kept: Any) -> Progress:
        """The progress that a file has kept; raises ValueError, KeyError or TypeError if *kept* is not that."""
        marker, isInclusive, repeatedTo = kept["marker"], kept["begins"] is True, kept["given"]
        for id in (marker, repeatedTo):
            if id is not None and not (isinstance(id, str) and ticksOf(id)):
                raise ValueError(f"{id!r} is not the id of an event")
        quietAt = None if kept["quietAt"] is None else boundedNumber(kept["quietAt"], 0.0, LATEST)
        return cls(Cursor(marker, marker is not None and not isInclusive, isInclusive), quietAt, repeatedTo)


class FeedEvent(Event, total=False):
    """An event, as the feed gives it. ``redelivered`` is there, and true, if it may have been given before."""

    redelivered: bool


class EventsFeed(Subscriber):
    """
    The account's events as they happen, each given to every listener, one after the other.

    While the process lives each event comes exactly once. Across restarts, with *path*, each comes at least once: the
    position in the feed is kept when all listeners have finished with an event, and an event that they may have had
    before the restart is marked (``event.get("redelivered")``). When the feed is stopped, a listener that is at work is
    given three seconds to finish.

    ::

        feed = EventsFeed(client, path="/var/lib/app/feed")
        feed.onEvent(lambda event: print(event["type"], event["payload"]))
        feed.setServiceParent(application)

        async for event in feed:
            ...
    """

    what = "event feed"
    outageBegins = "Event feed unreachable (retrying): {reason}"
    outageEnds: str | None = "Event feed reachable again after {seconds:.1f} s"
    fileLoss = "a restart delivers again what came since"

    def __init__(
        self,
        client: Client,
        marker: str | None = None,
        *,
        types: Iterable[str] = PLAIN,
        path: str | os.PathLike[str] | None = None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after the feed has stopped.
        :param marker: the id of the event to begin with; without it, the feed begins with new events.
        :param types: the types of events; by default those of version 1.0. Others, such as ``service.update``, come
            only from a registry with the extension ``event-types``.
        :param path: a file that keeps the position in the feed. Its content takes precedence over *marker*.
        :param random: returns numbers from 0 to 1.
        :param wallClock: seconds since the epoch.
        """
        self._types = frozenset(checkedTags(types, "types", "service.join"))
        super().__init__(client, path, random, wallClock, self._types)
        self._savedAt = -math.inf  # when the file was written, by the wall clock
        # None until the end of the feed, where new events come, is known.
        self._progress = None if marker is None else Progress(Cursor(marker, isInclusive=True))
        self._listeners: Listeners[[FeedEvent]] = Listeners(self._log, "events")
        self._gapListeners: Listeners[[]] = Listeners(self._log, "gaps of the event feed")
        self._delivering: Deferred[Any] | None = None
        self._isGapReported = False  # whether the stream may show a reported gap again

    def onEvent(self, listener: Callable[[FeedEvent], Any]) -> Callable[[], None]:
        """
        Call *listener* with every event from now on.

        :param listener: called with the event. If it returns a Deferred or a coroutine, the next event waits for it.
            One that raises is logged, and still gets the next events.
        :return: a function that removes the listener.
        """
        return self._listeners.add(listener)

    def onGap(self, listener: Callable[[], object]) -> Callable[[], None]:
        """
        Call *listener* when events before the next one may be missing: the registry no longer has the position in the
        feed, because it has lost its data, or because the feed was not connected for longer than events are kept.
        Returns a function that removes the listener.
        """
        return self._gapListeners.add(listener)

    def __aiter__(self) -> AsyncIterator[FeedEvent]:
        """
        The events from now on, until the feed is stopped. An event is finished when the next one is requested; an
        iterator that is dropped, or closed with ``aclose()``, delays no listener. It raises
        :class:`~txserviceregistry.errors.NotRunning` if the feed is not running, and is not the child of a service that
        will start it.
        """
        return Items(self, self.onEvent)

    @returnsDeferred
    async def stopService(self) -> None:
        """Fires when nothing of it is left on the reactor."""
        try:
            await super().stopService().addTimeout(_GRACE, self._clock)
        except TimeoutError:
            if self._delivering is not None:
                self._delivering.cancel()
            await super().stopService()

    def _load(self) -> None:
        if self._progress is None or not self._progress.cursor.seen:
            self._progress = self._readFile(Progress.fromJSON) or self._progress

    async def _step(self, run: BackgroundTask) -> None:
        progress = self._progress
        if progress is None:
            self._keep(Progress(await run.wait(self._poller.end())).quiet(self._wallClock()))
        elif progress.isOutdated(self._wallClock()):
            await self._resume(run, progress)
        else:
            await self._read(run, progress)

    def _positionLost(self) -> None:
        if self._progress is None:
            self._outage.failed(reason="the registry does not accept the event that it ended with")
        else:
            # The events that the registry shows without a marker come next.
            self._progress = Progress(repeatedTo=self._progress.afterGap().repeatedTo)
            self._reportGap()

    async def _resume(self, run: BackgroundTask, progress: Progress) -> None:
        """Continue after an absence, where no last event shows whether others are missing."""
        now = self._wallClock()
        quietAt, cursor = progress.quietAt or now, progress.cursor
        for seconds in _MOMENTS if cursor.marker is None else ():
            earlier = Cursor(markerAt(quietAt - seconds))
            try:
                await run.wait(self._poller.read(earlier))
            except StaleCursor:
                # The account was younger than that, or our clock is another one than the registry's.
                continue
            cursor = earlier
            break
        if now - quietAt > (SHOWN if cursor.marker is None else RETENTION):
            self._reportGap()
        self._keep(progress.quiet(now, cursor))

    async def _read(self, run: BackgroundTask, progress: Progress) -> None:
        """Wait for the next events, and deliver them."""
        if progress.cursor.resets is None:
            # From here on: another subscriber may notice a gap while this one waits to try again.
            cursor = attrs.evolve(progress.cursor, resets=self._poller.resets)
            progress = self._progress = attrs.evolve(progress, cursor=cursor)

        def onQuiet() -> None:
            nonlocal progress
            # An outage is over, however long the next event takes.
            self._succeeded()
            self._isGapReported = self._isGapReported and self._poller.isOpening
            now = self._wallClock()
            progress = self._progress = progress.quiet(now)
            if not 0 <= now - self._savedAt < _SAVE_INTERVAL:
                self._keep(progress)

        page = await run.wait(self._poller.after(progress.cursor, onQuiet))
        received = self._wallClock()
        if progress.isGap(page, received):
            progress = progress.afterGap()
            self._reportGap()
        if not page.events:
            # Without a last event the next one can't show whether others are missing before it.
            self._progress = progress.quiet(received, Cursor(progress.cursor.marker))
            return
        # A process that is killed meanwhile can't know which of them its listeners have had.
        self._keep(progress.repeating(page.events[-1]["id"]))
        self._progress = progress
        try:
            for event in page.events:
                if run.isStopping:
                    return
                # Others were requested for other subscribers.
                if event["type"] not in WATCHED or event["type"] in self._types:
                    self._progress = progress.repeating(event["id"])
                    await self._deliver(run, event, progress.isRepeated(event))
                self._progress = progress = progress.delivered(event)
                self._isGapReported = False
            if not page.isFull:
                self._progress = progress.quiet(received)
        finally:
            self._keep(self._progress)

    async def _deliver(self, run: BackgroundTask, event: Event, isRepeated: bool) -> None:
        mark = {"redelivered": True} if isRepeated else {}
        for listener in self._listeners:
            self._delivering = maybeDeferred(listener, cast(FeedEvent, {**event, **mark}))
            try:
                await self._delivering
            except CANCELLED:
                if run.isStopping:
                    raise CancelledError from None
            except GeneratorExit:
                raise
            except BaseException:
                self._log.failure("Listener to events failed at {type} {id}", type=event["type"], id=event["id"])
            finally:
                self._delivering = None

    def _reportGap(self) -> None:
        if not self._isGapReported:
            self._isGapReported = True
            self._log.warn("The event feed no longer has the last event: events may be missing")
            self._gapListeners.call()

    def _keep(self, progress: Progress) -> None:
        self._progress = progress
        self._savedAt = self._wallClock()
        self._writeFile(progress.toJSON())
