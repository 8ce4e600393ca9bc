"""Mirror: a copy in memory of something that is in the registry, kept current by the event feed."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..errors import NotRunning
from ..types import Event
from ..util.deferred import Waiters
from ..util.logs import Listeners, Logger
from ..util.parsing import LATEST, LONGEST_INTERVAL, boundedNumber
from .poller import Cursor, StaleCursor
from .subscriber import BackgroundTask, Subscriber

if TYPE_CHECKING:
    from ..client import Client

_T = TypeVar("_T")

# A listing takes at most this part of the time, however large it is.
_LISTING_SHARE = 0.01

# Seconds between two listings as long as no event of the feed is known: no response for events would show then that the
# registry has lost its data, and nothing but an event stream would show it.
_BLIND_REFRESH = 60.0
_SAFE_REFRESH = 600.0

# Each interval between listings is shorter by up to this part, so that clients that start together spread out.
_JITTER = 0.2

# Seconds between two writes of the file, at least.
_SAVE_INTERVAL = 5.0
_FILE_VERSION = 1

# A listener is called so many times its settling time after the first change at the latest.
_LATEST_SETTLING = 4


class Settling:
    """
    Collects changes, and calls a listener with all of them when there was none for a while.

    :param listener: called with a list of the changes, in their order.
    :param settle: seconds without a change, after which it is called; at most four times as long after the first one.
    :raises ValueError: if *settle* is not a finite number of 0 or more.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, settle: float, listener: Callable[[list[Any]], object]) -> None:
        self._clock = clock
        self._settle = boundedNumber(settle, 0.0, LONGEST_INTERVAL)
        self._listener = listener
        self._changes: list[Any] = []
        self._latest = 0.0
        self._call: IDelayedCall | None = None

    def add(self, *change: Any) -> None:
        """Something has changed. Several arguments are one tuple."""
        now = self._clock.seconds()
        if self._call is None:
            self._latest = now + _LATEST_SETTLING * self._settle
            self._call = self._clock.callLater(self._settle, self.flush)
        else:
            self._call.reset(max(0.0, min(self._settle, self._latest - now)))
        self._changes.append(change if len(change) > 1 else change[0])

    def flush(self) -> None:
        """Call the listener now, if there is a change."""
        changes = self.drop()
        if changes:
            try:
                self._listener(changes)
            except Exception:
                self._log.failure("Listener to settled changes failed")

    def drop(self) -> list[Any]:
        """Forget the changes, which are returned, and leave nothing on the reactor."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
        changes, self._changes = self._changes, []
        return changes


class Mirror(Subscriber, Generic[_T]):
    """
    The copy, which equals a full listing whenever nothing is changing.

    First everything is listed, then events are applied. The place in the feed is taken before the listing, and the
    events from there to its end are applied to the listing before anything shows it, so that no change is missed.
    Everything is listed again when the feed no longer has that place, or was unreachable. Only a complete listing
    counts.

    Listeners may do anything, stopping it included.

    :ivar version: grows with every change.
    """

    outageBegins = "The {what} are stale (retrying): {reason}"
    outageEnds = "The {what} are current again after {seconds:.0f} s"
    fileLoss = "a restart finds an older copy"

    def __init__(
        self,
        client: Client,
        refresh: float | None,
        path: str | os.PathLike[str] | None,
        random: Callable[[], float],
        wallClock: Callable[[], float],
    ) -> None:
        super().__init__(client, path, random, wallClock)
        self.version = 0
        self._refresh = None if refresh is None else boundedNumber(refresh, 0.0, LONGEST_INTERVAL)
        self._items: dict[str, _T] = {}
        # The place in the feed up to which events were applied, and when everything is to be listed again.
        self._cursor: Cursor | None = None
        self._nextListing = 0.0
        # When the copy was last known to equal the registry; by the clock, which a file's age may lie before.
        self._currentAt: float | None = None
        self._isCurrent = False
        self._readiness: Waiters[None] = Waiters()
        self._saving: IDelayedCall | None = None
        self._listeners: Listeners[...] = Listeners(self._log, self.what)
        # Called after each stop, when there are no more changes.
        self._ends: Listeners[[]] = Listeners(self._log, "a stop")

    # -- what a kind of mirror defines

    def _defaultRefresh(self) -> float:
        """Seconds after which everything is listed again; infinity if every change has an event."""
        return math.inf

    def _list(self) -> AsyncIterator[Any]:
        """All items, page by page, from the registry and never from a cache."""
        raise NotImplementedError

    def _valueOf(self, item: Any) -> _T:
        """The value to keep of an item that was listed."""
        raise NotImplementedError

    def _checked(self, key: str, value: Any) -> _T:
        """An item of the file, validated; raises ValueError if it is not valid."""
        raise NotImplementedError

    def _read(self, event: Event) -> tuple[str, _T | None] | None:
        """The key that an event is about, and its new value, ``None`` if it was removed; ``None`` if it is not ours."""
        raise NotImplementedError

    def _merge(self, listed: _T | None, events: Sequence[Event]) -> _T | None:
        """
        The value of a key after a listing, and after what happened while the listing was made.

        :param listed: the value in the listing; it may be from before or after each of the events.
        :param events: the events of this key, at least one, in order.
        """
        read = self._read(events[-1])
        return None if read is None else read[1]

    def _differ(self, old: _T, new: _T) -> bool:
        """Whether a value has changed, for listeners."""
        return old != new

    def _changed(self, key: str, old: _T | None, new: _T | None, events: Sequence[Event]) -> None:
        """Call the listeners. *events* are the possible causes, in order; none after a listing without events."""
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
        :return: fires when there is something to look at: the first complete listing, or the content of the file. It
            may be cancelled. Fails with :class:`~txserviceregistry.errors.NotRunning` if this is not running, and is
            not the child of a service that will start it.
        """
        if self._currentAt is not None:
            return succeed(None)
        try:
            NotRunning.check(self)
        except NotRunning:
            return fail()
        return self._readiness.wait()

    def _known(self) -> dict[str, _T]:
        """The items; raises NotRunning if this was never started."""
        if self._task is None:
            raise NotRunning.of(self)
        return self._items

    def _listen(
        self, listener: Callable[..., object], settle: float | None, isWanted: Callable[..., bool] = lambda *_: True
    ) -> Callable[[], None]:
        """Call *listener* with the changes that are wanted; returns a function that ends it."""
        settling = None if settle is None else Settling(self._clock, settle, listener)
        call = listener if settling is None else settling.add
        forget = self._listeners.add(lambda *change: call(*change) if isWanted(*change) else None)
        if settling is None:
            return forget
        forgetEnds = self._ends.add(settling.flush)

        def end() -> None:
            forget()
            forgetEnds()
            settling.drop()

        return end

    # -- Subscriber

    def _load(self) -> None:
        found = self._readFile(self._parsed) if self._currentAt is None else None
        if found is not None:
            items, age = found
            self._replace(items, {})
            self._currentAt = self._clock.seconds() - age
            self._readiness.fire(None)

    async def _run(self, run: BackgroundTask) -> None:
        try:
            await super()._run(run)
        finally:
            if self._saving is not None:
                self._saving.cancel()
                self._save()
            self._ends.call()

    async def _step(self, run: BackgroundTask) -> None:
        cursor = self._cursor
        left = self._nextListing - self._clock.seconds()
        if cursor is None or not self._isCurrent or left <= 0.0:
            await self._listAll(run, cursor)
            return
        coming = self._poller.after(cursor)
        page = await run.wait(coming.addTimeout(min(left, LONGEST_INTERVAL), self._clock, lambda *_: None))
        if page is None:
            return
        if page.isStale:
            raise StaleCursor()
        self._currentAt = self._clock.seconds()
        for event in page.events:
            self._cursor = Cursor.after(event)
            read = self._read(event)
            if read is not None:
                self._put(*read, [event])

    def _positionLost(self) -> None:
        self._log.info("The event feed no longer has the last event: listing all {what} again", what=self.what)
        self._cursor = None

    def _interrupted(self) -> None:
        if self._isCurrent:
            self._isCurrent = False
            known = (self._currentAt, self._poller.respondedAt)
            self._currentAt = max(moment for moment in known if moment is not None)

    # -- keeping current

    async def _listAll(self, run: BackgroundTask, cursor: Cursor | None) -> None:
        """
        List everything, and make the copy equal to it.

        :param cursor: the place in the feed up to which events were applied, if it is known.
        """
        poller = self._poller
        missed: list[Event] = []
        if cursor is None:
            cursor = await run.wait(poller.end())
        elif not self._isCurrent:
            # The listing has what happened while the feed was unreachable, but maybe not what happens from here on.
            cursor = await run.wait(poller.readToEnd(cursor, missed))
        began = self._clock.seconds()
        items = await run.wait(Deferred.fromCoroutine(self._listed()))
        events: list[Event] = []
        self._cursor = await run.wait(poller.readToEnd(cursor, events))
        for key, its in self._byKey(events).items():
            merged = self._merge(items.pop(key, None), its)
            if merged is not None:
                items[key] = merged
        now = self._clock.seconds()
        refresh = self._defaultRefresh() if self._refresh is None else self._refresh
        if not self._cursor.seen:
            refresh = min(refresh, _SAFE_REFRESH if poller.isLive else _BLIND_REFRESH)
        self._nextListing = now + max(refresh, (now - began) / _LISTING_SHARE) * (1.0 - _JITTER * self._random())
        self._replace(items, self._byKey([*missed, *events]))
        self._isCurrent = True
        self._saveSoon()
        self._currentAt = now
        self._readiness.fire(None)

    async def _listed(self) -> dict[str, _T]:
        return {item["id"]: self._valueOf(item) async for item in self._list()}

    def _byKey(self, events: Iterable[Event]) -> dict[str, list[Event]]:
        byKey: dict[str, list[Event]] = {}
        for event in events:
            read = self._read(event)
            if read is not None:
                byKey.setdefault(read[0], []).append(event)
        return byKey

    def _put(self, key: str, new: _T | None, events: Sequence[Event]) -> None:
        old = self._items.get(key)
        if new is None:
            self._items.pop(key, None)
        else:
            self._items[key] = new
        if new is not old and (old is None or new is None or self._differ(old, new)):
            self.version += 1
            self._saveSoon()
            self._changed(key, old, new, events)

    def _replace(self, items: Mapping[str, _T], events: Mapping[str, Sequence[Event]]) -> None:
        for key in [*(key for key in self._items if key not in items), *items]:
            self._put(key, items.get(key), events.get(key, ()))

    # -- the file

    def _saveSoon(self) -> None:
        if self._path is not None and self._saving is None:
            self._saving = self._clock.callLater(_SAVE_INTERVAL, self._save)

    def _save(self) -> None:
        self._saving = None
        if self._currentAt is not None:
            current = self._wallClock() - self.stale
            self._writeFile({"version": _FILE_VERSION, "current": current, "values": self._items})

    def _parsed(self, kept: Any) -> tuple[dict[str, _T], float]:
        """The items of a file, and its age."""
        if kept["version"] != _FILE_VERSION:
            raise ValueError("it is of another version")
        items = {key: self._checked(key, value) for key, value in kept["values"].items()}
        return items, max(0.0, self._wallClock() - boundedNumber(kept["current"], 0.0, LATEST))
