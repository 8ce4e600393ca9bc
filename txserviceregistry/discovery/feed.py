"""
EventsFeed: each event once and in order.
"""

from __future__ import annotations

import json
import math
import os
import random as randomModule
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.task import deferLater

from ..errors import ServiceRegistryError
from ..types import Event
from ..util.backoff import Backoff
from ..util.deferred import returnsDeferred
from ..util.files import WriteOutage, replaceFile
from ..util.logs import Logger
from ..util.ownership import checkPath
from ..util.parsing import LATEST, boundedNumber
from ..util.started import checkRunning
from .cursor import Cursor, StaleCursor, markerAt, ticksOf
from .mirror import LONGEST_RETRY, SHORTEST_RETRY, retryDelay
from .poller import PAGE, pollerOf
from .task import BackgroundTask

if TYPE_CHECKING:
    from ..client import Client

# Seconds that a listener may still take when the feed is stopped.
_GRACE = 3.0

# Without a marker the feed shows its last hour, in seconds. A position that is half as old needs a marker.
_SHOWN = 3600.0

# If nothing had happened for an hour, the feed can continue from any moment of that hour. These are tried, in seconds
# before its end: the first tolerates the largest difference of clocks, the others are for young accounts.
_MOMENTS = (1800.0, 60.0, 0.0)

# For how long the protocol promises to keep events, in seconds.
_RETENTION = 30 * 86_400.0

# Seconds between two writes of the file while nothing happens.
_SAVE_INTERVAL = 300.0


class FeedEvent(Event, total=False):
    """An event, as the feed gives it. ``redelivered`` is there, and true, if it may have been given before."""

    redelivered: bool


class EventsFeed(Service):
    """
    The account's events as they happen, each given to every listener, one after the other.

    While the process lives each event comes exactly once. Across restarts, with *path*, each comes at least once: the
    place in the feed is kept when all listeners are done with an event, and an event that they may have had before the
    restart says so (``event.get("redelivered")``).

    ::

        feed = EventsFeed(client, path="/var/lib/app/feed")
        feed.onEvent(lambda event: print(event["type"], event["payload"]))
        feed.setServiceParent(application)

        async for event in feed:
            ...
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        marker: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: asks the registry. It stays the caller's, to be closed after the feed has stopped.
        :param marker: the id of the event to begin with; without it, what happens from the start on.
        :param path: a file that keeps the place in the feed. What it holds comes before *marker*.
        :param random: gives numbers from 0 to 1.
        :param wallClock: seconds since the epoch.
        """
        self._client = client
        self._clock = client.clock
        self._path = None if path is None else os.fspath(path)
        loss = "a restart delivers again what came since"
        self._writing = WriteOutage(self._path or "", self._log, self._clock, loss)
        self._backoff = Backoff(SHORTEST_RETRY, LONGEST_RETRY, random)
        self._wallClock = wallClock
        self._poller = pollerOf(client)
        self._position: Cursor | None = None if marker is None else Cursor(marker)
        # When the feed was last known to have nothing newer, by the wall clock.
        self._quietAt: float | None = None
        # When the file was written, by the wall clock.
        self._savedAt = -math.inf
        # The marker's own event is wanted as long as nothing has been given.
        self._wantsMarker = marker is not None
        # Events up to the time of this one may have been delivered before.
        self._redelivering: str | None = None
        self._listeners: list[Callable[[FeedEvent], Any]] = []
        self._gapListeners: list[Callable[[], None]] = []
        self._running: BackgroundTask | None = None
        self._ending: BackgroundTask | None = None
        # When an outage was logged, by the client's clock; None when there is none.
        self._lostAt: float | None = None
        self._isDelivering = False

    # -- listeners

    def onEvent(self, listener: Callable[[FeedEvent], Any]) -> Callable[[], None]:
        """
        Hear of every event from now on.

        :param listener: called with the event. If it returns a Deferred or a coroutine, the next event waits for it.
            One that raises is logged, and goes on to hear of events.
        :return: a function that ends it.
        """

        def hear(event: FeedEvent) -> Any:
            return listener(event)

        self._listeners.append(hear)
        return lambda: self._listeners.remove(hear) if hear in self._listeners else None

    def onGap(self, listener: Callable[[], None]) -> Callable[[], None]:
        """
        Hear of gaps: the registry does not know our place in the feed any more (it has lost its data, or we were away
        for longer than it keeps events), and events before the next one may be missing.

        :return: a function that ends it.
        """

        def hear() -> None:
            listener()

        self._gapListeners.append(hear)
        return lambda: self._gapListeners.remove(hear) if hear in self._gapListeners else None

    def __aiter__(self) -> AsyncIterator[FeedEvent]:
        """
        The events from now on, until the feed is stopped. An event is done with when the next one is asked for; an
        iterator that is dropped, or closed with ``aclose()``, delays no listener. It raises
        :class:`~txserviceregistry.errors.NotRunning` if the feed is not running, and is not the child of a service that
        will start it.
        """
        return _Events(self)

    # -- IService

    def startService(self) -> None:
        """Begin. Never fails."""
        Service.startService(self)
        if self._running is not None:
            return
        self._running = run = BackgroundTask(self._ending)
        self._load()
        run.begin(self._follow).addErrback(lambda failure: self._log.failure("The feed of events has ended", failure))

    def stopService(self) -> Deferred[None]:
        """
        End. A listener that is at work is given three seconds to finish.

        :return: fires when nothing of it is left on the reactor.
        """
        Service.stopService(self)
        return self._stop()

    @returnsDeferred
    async def _stop(self) -> None:
        if self._running is not None:
            self._ending, self._running = self._running, None
        run = self._ending
        if run is None:
            return
        done = run.stop(patiently=self._isDelivering)
        for listener in list(self._listeners):
            if isinstance(listener, _Hold):
                listener.end()
        try:
            await done.addTimeout(_GRACE, self._clock)
        except TimeoutError:
            await run.stop()

    # -- following

    async def _follow(self, run: BackgroundTask) -> None:
        backoff = self._backoff
        while not run.isStopping:
            try:
                if self._position is None:
                    await self._begin()
                await self._next(run)
            except CancelledError:
                if run.isStopping:
                    return
                delay = backoff.next()
            except StaleCursor:
                if self._position is not None:
                    with run.callingOut():
                        self._gap()
                    self._position = Cursor()
                delay = backoff.next()
            except ServiceRegistryError as error:
                delay = retryDelay(backoff, error)
                if backoff.failures > 1 and self._lostAt is None:
                    self._lostAt = self._clock.seconds()
                    self._log.warn("Event feed unreachable (retrying): {reason}", reason=str(error))
            except Exception:
                # A defect of this library must not end it.
                delay = backoff.next()
                if self._lostAt is None:
                    self._lostAt = self._clock.seconds()
                    self._log.failure("Reading the event feed failed (retrying)")
            else:
                self._reached()
                continue
            if not run.isStopping:
                await deferLater(self._clock, delay, lambda: None)

    def _reached(self) -> None:
        """The registry has answered: an outage is over."""
        self._backoff.reset()
        if self._lostAt is not None:
            seconds, self._lostAt = self._clock.seconds() - self._lostAt, None
            self._log.info("Event feed reachable again after {seconds:.1f} s", seconds=seconds)

    async def _begin(self) -> None:
        """Find the end of the feed, where new events will come."""
        self._position = await self._poller.readToEnd(Cursor(), [])
        self._quietAt = self._wallClock()
        self._save(None)

    async def _afterAbsence(self, run: BackgroundTask, position: Cursor, quietAt: float) -> Cursor:
        """
        The position to continue from, when there is no last event.

        :param quietAt: when the feed was last known to have nothing newer.
        """
        now = self._wallClock()
        away = now - quietAt
        # No event shows whether there were others that are no longer kept.
        isGap = away > _RETENTION
        if away > _SHOWN / 2 and position.marker is None:
            moment = await self._momentOf(quietAt)
            position = moment or position
            isGap = isGap or (moment is None and away > _SHOWN)
        elif not isGap:
            return position
        self._quietAt = now
        if isGap:
            with run.callingOut():
                self._gap()
        self._position = position
        self._save(None)
        return position

    async def _momentOf(self, quietAt: float) -> Cursor | None:
        """The place in the feed at a time at which it had no event."""
        for seconds in _MOMENTS:
            position = Cursor(markerAt(quietAt - seconds))
            try:
                await self._poller.read(position)
            except StaleCursor:
                # The account was younger than that, or our clock is another one than the registry's.
                continue
            return position
        return None

    async def _next(self, run: BackgroundTask) -> None:
        position = self._position
        assert position is not None
        if self._quietAt is not None and not position.seen:
            position = await self._afterAbsence(run, position, self._quietAt)
            if run.isStopping:
                return
        if self._wantsMarker:
            page = await self._poller.read(position)
            events: Sequence[Event] = page
        else:
            page = await self._poller.after(position, self._quiet)
            if position.isStale(page) and not self._hasExpired(position):
                with run.callingOut():
                    self._gap()
            events = position.newer(page)
        received = self._wallClock()
        if not events:
            self._wantsMarker = False
            self._position = Cursor(position.marker)
            self._quietAt = received
            return
        self._save(events[-1]["id"])
        # The event that listeners may have received without finishing.
        begun: str | None = None
        try:
            for event in events:
                if run.isStopping:
                    break
                begun = event["id"]
                await self._deliver(run, event)
                if run.isStopping and self._undone(event):
                    break
                begun = None
                self._position = position.after(event)
                self._quietAt = None
                self._wantsMarker = False
                if event["id"] == self._redelivering or not self._isRepeated(event):
                    self._redelivering = None
            else:
                if len(page) < PAGE:
                    self._quietAt = received
        finally:
            self._save(begun)

    def _quiet(self) -> None:
        """The registry has answered that there is nothing newer yet."""
        # The outage is over, however long the next event takes.
        self._reached()
        self._quietAt = self._wallClock()
        if self._path is not None and not 0 <= self._quietAt - self._savedAt < _SAVE_INTERVAL:
            self._save(None)

    def _hasExpired(self, position: Cursor) -> bool:
        """
        Whether an event that the feed no longer has was removed because of its age, and nothing is missing: it was the
        last one not long ago, and everything newer is kept.
        """
        if self._quietAt is None or position.time is None:
            return False
        now = self._wallClock()
        return abs(now - self._quietAt) <= _SHOWN / 2 and now - position.time >= _SHOWN

    def _undone(self, event: Event) -> bool:
        return any(isinstance(listener, _Hold) and listener.holds(event) for listener in self._listeners)

    def _gap(self) -> None:
        self._log.warn("The event feed no longer has the last event: events may be missing")
        if self._position is not None and self._position.seen:
            # The next page may begin before it.
            self._redelivering = _later(self._redelivering, self._position.marker)
        for listener in list(self._gapListeners):
            try:
                listener()
            except Exception:
                self._log.failure("A listener to gaps in the feed failed")

    # -- delivering

    async def _deliver(self, run: BackgroundTask, event: Event) -> None:
        given = cast(FeedEvent, dict(event))
        if self._isRepeated(event):
            given["redelivered"] = True
        for listener in list(self._listeners):
            self._isDelivering = True
            try:
                with run.callingOut():
                    delivering = maybeDeferred(self._call, listener, cast(FeedEvent, dict(given)))
                await delivering
            except CancelledError:
                if run.isStopping:
                    raise
            except Exception:
                self._log.failure("A listener to events failed at {type} {id}", type=event["type"], id=event["id"])
            finally:
                self._isDelivering = False

    def _isRepeated(self, event: Event) -> bool:
        """Whether it may have been given before: it is not newer than the last one of which that is so."""
        if self._redelivering is None:
            return False
        return (ticksOf(event["id"]) or 0) <= (ticksOf(self._redelivering) or 0)

    @staticmethod
    def _call(listener: Callable[[FeedEvent], Any], event: FeedEvent) -> Any:
        result = listener(event)
        return Deferred.fromCoroutine(result) if hasattr(result, "send") else result

    # -- the file

    def _save(self, upTo: str | None) -> None:
        """
        Keep the place.

        :param upTo: the last of the events that are given now.
        """
        position = self._position
        if self._path is None or position is None:
            return
        self._savedAt = self._wallClock()
        kept = {
            "marker": position.marker,
            "begins": self._wantsMarker,
            "given": _later(upTo, self._redelivering),
            "quietAt": self._quietAt,
        }
        try:
            checkPath(self._path)
            replaceFile(self._path, json.dumps(kept))
        except OSError as error:
            self._writing.notWritten(error)
        else:
            self._writing.succeeded()

    def _load(self) -> None:
        if self._path is None or (self._position is not None and self._position.seen):
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            marker, begins, given = kept["marker"], kept["begins"] is True, kept["given"]
            quietAt = None if kept["quietAt"] is None else boundedNumber(kept["quietAt"], 0.0, LATEST)
            ids = [one for one in (marker, given) if one is not None]
            if not all(isinstance(one, str) and ticksOf(one) is not None for one in ids):
                raise ValueError("it does not hold ids of events")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._log.warn("{path} is not used: {reason!r}", path=self._path, reason=error)
            return
        self._position = Cursor(marker, marker is not None and not begins)
        self._wantsMarker = begins
        self._redelivering = given
        self._quietAt = quietAt


class _Hold:
    """
    What holds the feed up for an iterator: an event is given when the one before it is done with.

    The feed knows this and not the iterator, so that one that is dropped goes away.
    """

    def __init__(self) -> None:
        self.event: FeedEvent | None = None
        self.isOver = False
        self.hasBeenGiven = False
        self._done: Deferred[None] | None = None
        self._asking: Deferred[None] | None = None

    def __call__(self, event: FeedEvent) -> Deferred[None] | None:
        if self.isOver:
            return None
        self.event, self.hasBeenGiven = event, False
        self._done = Deferred()
        asking, self._asking = self._asking, None
        if asking is not None and not asking.called:
            asking.callback(None)
        return self._done

    def holds(self, event: Event) -> bool:
        """Whether an event is not done with."""
        return self.event is not None and self.event["id"] == event["id"]

    def asked(self) -> None:
        """The one that was given is done with."""
        if self.hasBeenGiven:
            self.event, self.hasBeenGiven = None, False
            done, self._done = self._done, None
            if done is not None and not done.called:
                done.callback(None)

    def wait(self) -> Deferred[None]:
        """Fires when there is one."""
        self._asking = Deferred()
        return self._asking

    def end(self) -> None:
        """There will be no more; what is held is not done with."""
        self.isOver = True
        done, self._done = self._done, None
        asking, self._asking = self._asking, None
        for waiting in (done, asking):
            if waiting is not None and not waiting.called:
                waiting.callback(None)


class _Events(AsyncIterator[FeedEvent]):
    """The events of a feed, for ``async for``."""

    def __init__(self, feed: EventsFeed) -> None:
        self._hold = _Hold()
        self._feed = weakref.ref(feed)
        self._forget = _forgetting(self._feed, self._hold)
        feed._listeners.append(self._hold)

    async def __anext__(self) -> FeedEvent:
        hold = self._hold
        hold.asked()
        while hold.event is None or hold.isOver:
            if hold.isOver:
                raise StopAsyncIteration
            feed = self._feed()
            if feed is not None:
                checkRunning(feed, feed._running is not None)
                del feed
            await hold.wait()
        hold.hasBeenGiven = True
        return hold.event

    async def aclose(self) -> None:
        """Want no more. What was given last is done with."""
        self._forget()

    def __del__(self) -> None:
        self._forget()


def _forgetting(feed: weakref.ref[EventsFeed], hold: _Hold) -> Callable[[], None]:
    def forget() -> None:
        hold.asked()
        alive = feed()
        if alive is not None and hold in alive._listeners:
            alive._listeners.remove(hold)
        hold.event = None
        hold.end()

    return forget


def _later(id: str | None, other: str | None) -> str | None:
    """Of the ids of two events, that of the later one."""
    return id if (ticksOf(id) or 0) >= (ticksOf(other) or 0) else other
