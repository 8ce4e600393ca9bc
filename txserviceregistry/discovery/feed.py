"""
EventsFeed: each event once and in order.
"""

from __future__ import annotations

import json
import os
import random as randomModule
import weakref
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..backoff import Backoff
from ..deferred import returnsDeferred, waitFor
from ..errors import BadRequest, ServiceRegistryError
from ..types import Event
from .following import PAGE, Position, followingOf
from .mirror import LONGEST_RETRY, SHORTEST_RETRY, retryDelay

if TYPE_CHECKING:
    from ..client import Client

__all__ = ["EventsFeed", "FeedEvent"]

# Seconds that a listener may still take when the feed is stopped.
_GRACE = 3.0


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
    ) -> None:
        """
        :param client: asks the registry. It stays the caller's, to be closed after the feed has stopped.
        :param marker: the id of the event to begin with; without it, what happens from the start on.
        :param path: a file that keeps the place in the feed. What it holds comes before *marker*.
        :param random: gives numbers from 0 to 1.
        """
        self._client = client
        self._clock = client.clock
        self._path = None if path is None else os.fspath(path)
        self._random = random
        self._following = followingOf(client)
        self._position: Position | None = None if marker is None else Position(marker)
        # The marker's own event is wanted as long as nothing has been given.
        self._wantsMarker = marker is not None
        # Up to this event they may have been given before.
        self._redelivering: str | None = None
        self._lastTimestamp: int | None = None
        self._listeners: list[Callable[[FeedEvent], Any]] = []
        self._gapListeners: list[Callable[[], None]] = []
        self._work: Deferred[None] | None = None
        self._stopping = False
        self._isLost = False
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
        iterator that is dropped, or closed with ``aclose()``, holds nobody up.
        """
        return _Events(self)

    # -- IService

    def startService(self) -> None:
        """Begin. Never fails."""
        Service.startService(self)
        if self._work is not None:
            return
        self._stopping = False
        self._load()
        self._work = Deferred.fromCoroutine(self._run())
        self._work.addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """
        End. A listener that is at work is given three seconds to finish.

        :return: fires when nothing of it is left on the reactor.
        """
        Service.stopService(self)
        return self._stop()

    @returnsDeferred
    async def _stop(self) -> None:
        work, self._work = self._work, None
        if work is None:
            return
        self._stopping = True
        done = waitFor(work)
        if not self._isDelivering:
            work.cancel()
        else:
            for listener in list(self._listeners):
                if isinstance(listener, _Hold):
                    listener.end()
            try:
                await waitFor(work).addTimeout(_GRACE, self._clock)
            except TimeoutError:
                work.cancel()
        await done
        for listener in list(self._listeners):
            if isinstance(listener, _Hold):
                listener.end()

    def _ended(self, failure: Failure) -> None:
        if not (self._stopping and failure.check(CancelledError)):
            self._log.failure("The feed of events has ended", failure)

    # -- following

    async def _run(self) -> None:
        backoff = Backoff(SHORTEST_RETRY, LONGEST_RETRY, self._random)
        while not self._stopping:
            try:
                if self._position is None:
                    await self._begin()
                await self._next()
            except CancelledError:
                if self._stopping:
                    return
                delay = backoff.next()
            except BadRequest:
                # It is the place that is refused.
                self._gap()
                self._position = Position()
                delay = backoff.next()
            except ServiceRegistryError as error:
                delay = retryDelay(backoff, error)
                if backoff.failures > 1 and not self._isLost:
                    self._isLost = True
                    self._log.warn("The feed of events is out of reach: {reason}", reason=str(error))
            else:
                backoff.reset()
                if self._isLost:
                    self._isLost = False
                    self._log.info("The feed of events is followed again")
                continue
            await deferLater(self._clock, delay, lambda: None)

    async def _begin(self) -> None:
        """Find the end of the feed, where new events will come."""
        position = Position()
        while True:
            page = await self._following.read(position)
            events = position.newer(page)
            if events:
                position = position.after(events[-1])
            if len(page) < PAGE:
                break
        self._position = position
        self._save(None)

    async def _next(self) -> None:
        position = self._position
        assert position is not None
        if self._wantsMarker:
            events = await self._following.read(position)
        else:
            page = await self._following.after(position)
            if position.isLost(page):
                self._gap()
            events = position.newer(page)
        if not events:
            self._wantsMarker = False
            self._position = Position(position.marker)
            return
        self._save(events[-1]["id"])
        for event in events:
            await self._deliver(event)
            if self._stopping and self._undone(event):
                return
            self._position = position.after(event)
            self._wantsMarker = False
            self._lastTimestamp = event["timestamp"]
            if event["id"] == self._redelivering:
                self._redelivering = None
            if self._stopping:
                break
        self._save(None)

    def _undone(self, event: Event) -> bool:
        return any(isinstance(listener, _Hold) and listener.holds(event) for listener in self._listeners)

    def _gap(self) -> None:
        self._log.warn("The registry does not know the last event any more: events may be missing")
        if self._lastTimestamp is not None or self._redelivering is not None:
            self._redelivering = None
        for listener in list(self._gapListeners):
            try:
                listener()
            except Exception:
                self._log.failure("A listener to gaps in the feed failed")

    # -- delivering

    async def _deliver(self, event: Event) -> None:
        given = cast(FeedEvent, dict(event))
        again = self._lastTimestamp is not None and event["timestamp"] <= self._lastTimestamp and self._isStrange()
        if self._redelivering is not None or again:
            given["redelivered"] = True
        for listener in list(self._listeners):
            # It may stop the feed from within.
            self._isDelivering = True
            try:
                await maybeDeferred(self._call, listener, cast(FeedEvent, dict(given)))
            except CancelledError:
                if self._stopping:
                    raise
            except Exception:
                self._log.failure("A listener to events failed at {type} {id}", type=event["type"], id=event["id"])
            finally:
                self._isDelivering = False

    def _isStrange(self) -> bool:
        # After a gap the place is one in time, and what is there may be what was there before.
        return self._position is not None and not self._position.seen

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
        beside = f"{self._path}.new"
        try:
            with open(beside, "w", encoding="utf-8") as file:
                kept = {"marker": position.marker, "begins": self._wantsMarker, "given": upTo or self._redelivering}
                json.dump(kept, file)
            os.replace(beside, self._path)
        except OSError as error:
            self._log.warn("{path} can't be written: {reason}", path=self._path, reason=error.strerror)

    def _load(self) -> None:
        if self._path is None or (self._position is not None and self._position.seen):
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            marker, begins, given = kept["marker"], kept["begins"] is True, kept["given"]
            if not all(one is None or isinstance(one, str) for one in (marker, given)):
                raise ValueError("it holds no markers")
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            self._log.warn("{path} is not used: {reason!r}", path=self._path, reason=error)
            return
        self._position = Position(marker, marker is not None and not begins)
        self._wantsMarker = begins
        self._redelivering = given


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
        self._forget = _forgetting(weakref.ref(feed), self._hold)
        feed._listeners.append(self._hold)

    async def __anext__(self) -> FeedEvent:
        hold = self._hold
        hold.asked()
        while hold.event is None or hold.isOver:
            if hold.isOver:
                raise StopAsyncIteration
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
