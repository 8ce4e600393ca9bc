"""
Mirror: a copy in memory of something that is in the registry, kept current by the feed of events.

What services and configuration values have in common belongs here: in which order things are asked for and applied, so
that the copy equals a full listing whenever nothing is changing. What they are is in
:mod:`~txserviceregistry.discovery.directory` and :mod:`~txserviceregistry.discovery.watcher`.
"""

from __future__ import annotations

import json
import math
import os
import random as randomModule
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import attrs
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater

from ..errors import NotRunning, RateLimited, ServiceRegistryError
from ..types import Event
from ..util.backoff import Backoff
from ..util.deferred import returnsDeferred
from ..util.files import WriteOutage, replaceFile
from ..util.logs import Logger
from ..util.ownership import checkPath
from ..util.parsing import LATEST, LONGEST_INTERVAL, boundedNumber
from ..util.started import checkRunning, notRunning
from .cursor import Cursor, StaleCursor
from .poller import pollerOf
from .task import BackgroundTask

if TYPE_CHECKING:
    from ..client import Client

_T = TypeVar("_T")

# Seconds between two tries to reach a registry that is away: the first try comes at once.
SHORTEST_RETRY = 0.5
LONGEST_RETRY = 10.0

# A listing takes at most this part of our time, however large it is.
_LISTING_SHARE = 0.01

# Seconds after which all is listed again as long as no event of the feed is known: then nothing in the feed would tell
# that the registry has lost its data.
_UNTOLD = 60.0

# Those who began together do not go on listing together: each interval is shorter by up to this part.
_JITTER = 0.2

# Seconds between two writes of the file, at least.
_SAVE_INTERVAL = 5.0
_FILE_VERSION = 1


def retryDelay(backoff: Backoff, error: Exception) -> float:
    """Seconds to wait after *error*, and no less than a registry has asked for."""
    delay = backoff.next()
    if isinstance(error, RateLimited):
        delay = max(delay, error.retryAfter or LONGEST_RETRY)
    return delay


@attrs.frozen
class _Listing(Generic[_T]):
    """
    All there is, at one place in the feed.

    :ivar items: what there is, by key.
    :ivar events: what has happened while it was made.
    :ivar place: the end of these.
    :ivar took: seconds.
    """

    items: dict[str, _T]
    events: list[Event]
    place: Cursor
    took: float


class Mirror(Service, Generic[_T]):
    """
    The copy.

    First all is listed, then what the feed tells is applied. The place in the feed is taken before the listing, and the
    events from there to its end are applied to it before anybody sees it: nothing that happens meanwhile is missed. All
    is listed again when the feed has a gap, does not know its place any more, or was out of reach. A listing counts
    when it is complete, and only then.

    Listeners may do anything, stopping it included.
    """

    _log = Logger()
    #: What it is a copy of, for the log.
    what = "things"

    def __init__(
        self,
        client: Client,
        *,
        refresh: float | None,
        path: str | os.PathLike[str] | None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: asks the registry.
        :param refresh: seconds after which everything is listed again; ``None`` if every change has an event. Raises
            ValueError if it is not a finite number of 0 or more.
        :param path: a file that keeps the copy across restarts.
        :param random: gives numbers from 0 to 1.
        :param wallClock: seconds since the epoch, for the age of the file.
        """
        #: Grows with every change.
        self.version = 0
        self._client = client
        self._clock = client.clock
        self._refresh = None if refresh is None else boundedNumber(refresh, 0.0, LONGEST_INTERVAL)
        self._path = None if path is None else os.fspath(path)
        self._writing = WriteOutage(self._path or "", self._log, self._clock, "a restart finds an older copy")
        self._random = random
        self._wallClock = wallClock
        self._poller = pollerOf(client)
        self._items: dict[str, _T] = {}
        self._position: Cursor | None = None
        # When the copy was last known to equal the registry; by the clock, which a file's age may lie before.
        self._currentAt: float | None = None
        self._isCurrent = False
        self._isReady = False
        self._wasStarted = False
        self._waiting: list[Deferred[None]] = []
        self._running: BackgroundTask | None = None
        self._ending: BackgroundTask | None = None
        self._lostAt: float | None = None
        # When all is to be listed again, by the clock.
        self._nextListing = math.inf
        self._saving: IDelayedCall | None = None

    # -- what a kind of thing has to say

    def _list(self) -> AsyncIterator[Any]:
        """All of them, page by page, from the registry and from nowhere else."""
        raise NotImplementedError

    def _valueOf(self, item: Any) -> _T:
        """What is kept of an item that was listed."""
        raise NotImplementedError

    def _read(self, event: Event) -> tuple[str, _T | None] | None:
        """The key that an event is about, and what it has now, ``None`` for nothing; ``None`` if it is not ours."""
        raise NotImplementedError

    def _merge(self, listed: _T | None, events: Sequence[Event]) -> _T | None:
        """
        What a listing and what has happened while it was made come to.

        :param listed: what the listing has; it may be from before or after each of the events.
        :param events: what has happened to this key, at least one event, in order.
        """
        read = self._read(events[-1])
        return None if read is None else read[1]

    def _differ(self, old: _T, new: _T) -> bool:
        """Whether there are listeners."""
        return old != new

    def _changed(self, key: str, old: _T | None, new: _T | None, event: Event | None) -> None:
        """Something has changed, and :attr:`version` has grown. Must not raise."""
        raise NotImplementedError

    # -- what can be asked

    @property
    def stale(self) -> float:
        """
        Seconds since this was last known to equal the registry: 0.0 while it does, infinite before the first listing.
        """
        if self._isCurrent:
            return 0.0
        return math.inf if self._currentAt is None else max(0.0, self._clock.seconds() - self._currentAt)

    def whenReady(self) -> Deferred[None]:
        """
        :return: fires when there is something to look at: the first complete listing, or what a file has kept. It may
            be cancelled. Fails with :class:`~txserviceregistry.errors.NotRunning` if this is not running, and is not
            the child of a service that will start it.
        """
        if not self._isReady:
            try:
                checkRunning(self, self._running is not None)
            except NotRunning as error:
                return fail(error)
        ready: Deferred[None] = Deferred(self._giveUp)
        if self._isReady:
            ready.callback(None)
        else:
            self._waiting.append(ready)
        return ready

    def _known(self) -> dict[str, _T]:
        """The items; raises NotRunning if this was never started."""
        if not self._wasStarted:
            raise notRunning(self)
        return self._items

    def _giveUp(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    # -- IService

    def startService(self) -> None:
        """Begin, with what the file has. Never fails."""
        Service.startService(self)
        if self._running is not None:
            return
        self._wasStarted = True
        self._running = run = BackgroundTask(self._ending)
        if not self._isReady:
            with run.callingOut():
                self._load()
        over = run.begin(self._run)
        over.addErrback(
            lambda failure: self._log.failure(
                "The copy of the {what} is not kept current any more", failure, what=self.what
            )
        )

    def stopService(self) -> Deferred[None]:
        """
        End. What is known can still be read.

        :return: fires when nothing of it is left on the reactor.
        """
        Service.stopService(self)
        return self._stop()

    @returnsDeferred
    async def _stop(self) -> None:
        if self._running is not None:
            self._ending, self._running = self._running, None
        if self._ending is not None:
            await self._ending.stop()

    # -- keeping current

    async def _run(self, run: BackgroundTask) -> None:
        try:
            await self._follow(run)
        finally:
            self._noLongerCurrent()
            if self._saving is not None:
                self._saving.cancel()
                self._saveNow()

    async def _follow(self, run: BackgroundTask) -> None:
        backoff = Backoff(SHORTEST_RETRY, LONGEST_RETRY, self._random)
        while not run.isStopping:
            error: Exception | None = None
            try:
                await self._keepCurrent(run, backoff)
            except StaleCursor:
                self._log.info("The event feed no longer has the last event: listing all {what} again", what=self.what)
                self._position = None
            except ServiceRegistryError as caught:
                error = caught
            except CancelledError:
                # Not every cancellation is ours: closing the client ends what is under way.
                pass
            except Exception as caught:
                # A defect of this library must not end it.
                if self._lostAt is None:
                    self._log.failure("Updating the {what} failed (retrying)", what=self.what)
                error = caught
            if run.isStopping:
                return
            self._noLongerCurrent()
            delay = retryDelay(backoff, error) if error is not None else backoff.next()
            if backoff.failures > 1 and error is not None:
                self._lost(error)
            await deferLater(self._clock, delay, lambda: None)

    async def _keepCurrent(self, run: BackgroundTask, backoff: Backoff) -> None:
        """Goes on until something is in the way."""
        missed: list[Event] = []
        if self._position is None:
            place = await self._poller.readToEnd(Cursor(), [])
        else:
            # What happened while it was out of reach is in the listing; only what happens from here on may not be.
            place = await self._poller.readToEnd(self._position, missed)
        while True:
            listing = await self._listAll(place)
            with run.callingOut():
                self._adopt(listing, missed)
            missed = []
            backoff.reset()
            self._found()
            while not run.isStopping:
                events = await self._news()
                if events is None:
                    break
                with run.callingOut():
                    self._apply(events)
            if run.isStopping:
                return
            assert self._position is not None
            place = self._position

    async def _listAll(self, place: Cursor) -> _Listing[_T]:
        began = self._clock.seconds()
        items: dict[str, _T] = {}
        async for item in self._list():
            items[item["id"]] = self._valueOf(item)
        events: list[Event] = []
        place = await self._poller.readToEnd(place, events)
        for key, its in self._byKey(events).items():
            merged = self._merge(items.get(key), its)
            if merged is None:
                items.pop(key, None)
            else:
                items[key] = merged
        return _Listing(items, events, place, self._clock.seconds() - began)

    def _byKey(self, events: Iterable[Event]) -> dict[str, list[Event]]:
        byKey: dict[str, list[Event]] = {}
        for event in events:
            read = self._read(event)
            if read is not None:
                byKey.setdefault(read[0], []).append(event)
        return byKey

    async def _news(self) -> list[Event] | None:
        """The next page of news, or ``None`` when it is time to list again."""
        assert self._position is not None
        left = self._secondsToListing()
        if left <= 0.0:
            return None
        waiting = self._poller.after(self._position)
        isTime = False

        def giveUp() -> None:
            nonlocal isTime
            isTime = True
            waiting.cancel()

        call = None if math.isinf(left) else self._clock.callLater(left, giveUp)
        try:
            page = await waiting
        except (CancelledError, ServiceRegistryError):
            if isTime:
                return None
            raise
        finally:
            if call is not None and call.active():
                call.cancel()
        if self._position.isStale(page):
            raise StaleCursor()
        return page

    def _secondsToListing(self) -> float:
        if self._refresh is None and self._position is not None and self._position.seen:
            return math.inf
        return self._nextListing - self._clock.seconds()

    # -- applying

    def _adopt(self, listing: _Listing[_T], missed: Iterable[Event]) -> None:
        self._position = listing.place
        refresh = _UNTOLD if self._refresh is None else self._refresh
        pause = max(refresh, listing.took / _LISTING_SHARE) * (1.0 - _JITTER * self._random())
        self._nextListing = self._clock.seconds() + pause
        last = {key: its[-1] for key, its in self._byKey([*missed, *listing.events]).items()}
        self._replace(listing.items, last)
        self._isCurrent = True
        self._currentAt = self._clock.seconds()
        self._saveSoon()
        if not self._isReady:
            self._makeReady()

    def _apply(self, page: list[Event]) -> None:
        assert self._position is not None
        for event in self._position.newer(page):
            read = self._read(event)
            self._position = self._position.after(event)
            if read is not None:
                self._put(read[0], read[1], event)
        self._currentAt = self._clock.seconds()

    def _put(self, key: str, new: _T | None, event: Event | None) -> None:
        old = self._items.get(key)
        if new is None:
            self._items.pop(key, None)
        else:
            self._items[key] = new
        if old is None and new is None:
            return
        if old is None or new is None or self._differ(old, new):
            self.version += 1
            self._saveSoon()
            self._changed(key, old, new, event)

    def _replace(self, items: Mapping[str, _T], events: Mapping[str, Event]) -> None:
        for key in [key for key in self._items if key not in items]:
            self._put(key, None, events.get(key))
        for key, item in items.items():
            self._put(key, item, events.get(key))

    # -- how it stands

    def _makeReady(self) -> None:
        self._isReady = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def _noLongerCurrent(self) -> None:
        if self._isCurrent:
            self._isCurrent = False
            responded = self._poller.respondedAt
            assert self._currentAt is not None
            self._currentAt = self._currentAt if responded is None else max(self._currentAt, responded)

    def _lost(self, error: Exception) -> None:
        if self._lostAt is None:
            self._lostAt = self._clock.seconds()
            self._log.warn("The {what} are stale: {reason} (retrying)", what=self.what, reason=str(error))

    def _found(self) -> None:
        if self._lostAt is not None:
            seconds = self._clock.seconds() - self._lostAt
            self._lostAt = None
            self._log.info("The {what} are current again after {seconds:.0f} s", what=self.what, seconds=seconds)

    # -- the file

    def _saveSoon(self) -> None:
        if self._path is not None and self._saving is None:
            self._saving = self._clock.callLater(_SAVE_INTERVAL, self._saveNow)

    def _saveNow(self) -> None:
        self._saving = None
        self._save()

    def _save(self) -> None:
        if self._path is None or self._currentAt is None:
            return
        age = 0.0 if self._isCurrent else self._clock.seconds() - self._currentAt
        kept = {"version": _FILE_VERSION, "current": self._wallClock() - age, "values": self._items}
        try:
            checkPath(self._path)
            replaceFile(self._path, json.dumps(kept))
        except OSError as error:
            self._writing.notWritten(error)
        else:
            self._writing.succeeded()

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            if kept["version"] != _FILE_VERSION:
                raise ValueError("it is of another version")
            items = {key: self._checked(key, value) for key, value in kept["values"].items()}
            age = max(0.0, self._wallClock() - boundedNumber(kept["current"], 0.0, LATEST))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._log.warn("{path} is not used: {reason!r}", path=self._path, reason=error)
            return
        self._currentAt = self._clock.seconds() - age
        self._replace(items, {})
        self._makeReady()

    def _checked(self, key: str, value: Any) -> _T:
        """An item of the file, validated; raises ValueError if it is not valid."""
        raise NotImplementedError
