"""Mirror: a copy in memory of something in the registry, kept current by the event feed, as of configuration values."""

from __future__ import annotations

import math
import os
import random as randomModule
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..api.shapes import readConfigurationValue
from ..client import Client
from ..errors import NotRunning
from ..types import Event
from ..util.deferred import Waiters, returnsDeferred
from ..util.fields import LATEST, LONGEST_INTERVAL, boundedNumber
from ..util.logs import Listeners, Logger
from .poller import Cursor, StaleCursor
from .subscriber import BackgroundTask, Items, Subscriber

_T = TypeVar("_T")

_LISTING_SHARE = 0.01  # a listing takes at most this part of the time, however large it is
# Each interval between listings is shorter by up to this part, so that clients that start together spread out.
_JITTER = 0.2
#: Seconds after which everything is listed again, for safety.
REFRESH = 600.0
#: The same where changes may have no event; and as long as no event of the feed is known, unless there is an event
#: stream: nothing else would show then that the registry has lost its data.
BLIND_REFRESH = 60.0

_SAVE_INTERVAL = 5.0  # seconds between two writes of the file, at least
_FILE_VERSION = 1


class Settling:
    """Calls a listener with changes when *settle* seconds had none, at most four times as long after the first."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, settle: float, listener: Callable[[list[Any]], object]) -> None:
        self._clock = clock
        self._settle = boundedNumber(settle, 0.0, LONGEST_INTERVAL)
        self._listeners: Listeners[[list[Any]]] = Listeners(self._log, "settled changes")
        self._listeners.add(listener)
        self._changes: list[Any] = []
        self._latest = 0.0
        self._call: IDelayedCall | None = None

    def add(self, *change: Any) -> None:
        """Something has changed. Several arguments are one tuple."""
        now = self._clock.seconds()
        if self._call is None:
            self._latest = now + 4 * self._settle
            self._call = self._clock.callLater(self._settle, self.flush)
        else:
            self._call.reset(max(0.0, min(self._settle, self._latest - now)))
        self._changes.append(change if len(change) > 1 else change[0])

    def flush(self) -> None:
        """Call the listener now, if there is a change."""
        changes = self.drop()
        if changes:
            self._listeners.call(changes)

    def drop(self) -> list[Any]:
        """Forget the changes, which are returned, and leave nothing on the reactor."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
        changes, self._changes = self._changes, []
        return changes


class Mirror(Subscriber, Generic[_T]):
    """The copy, which equals a full listing whenever nothing is changing."""

    outageBegins = "The {what} are stale (retrying): {reason}"
    outageEnds = "The {what} are current again after {seconds:.0f} s"
    fileLoss = "a restart finds an older copy"

    def __init__(
        self,
        client: Client,
        path: str | os.PathLike[str] | None,
        random: Callable[[], float],
        wallClock: Callable[[], float],
    ) -> None:
        super().__init__(client, path, random, wallClock)
        self.version = 0  # grows with every change
        self._items: dict[str, _T] = {}
        self._cursor: Cursor | None = None  # the place in the feed up to which events were applied
        self._nextListing = 0.0
        # When the copy was last known to equal the registry; by the clock, which a file's age may lie before.
        self._currentAt: float | None = None
        self._isCurrent = False
        self._readiness: Waiters[None] = Waiters()
        self._saving: IDelayedCall | None = None
        self._listeners: Listeners[...] = Listeners(self._log, self.what)
        # Called after each stop, when there are no more changes.
        self._ends: Listeners[[]] = Listeners(self._log, "a stop")

    def _refreshInterval(self) -> float:
        """Seconds after which everything is listed again; infinity if every change has an event."""
        return math.inf

    def _list(self) -> Deferred[dict[str, _T]]:
        """All keys and values, from the registry and never from a cache."""
        raise NotImplementedError

    def _checked(self, key: str, value: Any) -> _T:
        """A value of the file; raises ValueError if it is not valid."""
        raise NotImplementedError

    def _keyOf(self, event: Event) -> str | None:
        """The key that an event is about; ``None`` if it is not about one of these."""
        raise NotImplementedError

    def _after(self, event: Event, value: _T | None) -> _T | None:
        """The value after an event; ``None`` if it was removed."""
        raise NotImplementedError

    def _merge(self, value: _T | None, events: Sequence[Event]) -> _T | None:
        """The value in a listing after events, each of which may have come before or after it was listed."""
        for event in events:
            value = self._after(event, value)
        return value

    def _differ(self, old: _T, new: _T) -> bool:
        """Whether a value has changed, for listeners."""
        return old != new

    def _changed(self, key: str, old: _T | None, new: _T | None, events: Sequence[Event]) -> None:
        """Call the listeners. *events* are the possible causes, in order; none after a listing without events."""
        raise NotImplementedError

    @property
    def stale(self) -> float:
        """Seconds since this was last known to equal the registry: 0.0 if it does, infinite before a first listing."""
        if self._isCurrent:
            return 0.0
        return math.inf if self._currentAt is None else max(0.0, self._clock.seconds() - self._currentAt)

    @returnsDeferred
    async def whenReady(self) -> None:
        """
        Fires when there is something to look at: the first complete listing, or the content of the file. It may be
        cancelled. Fails with :class:`~txserviceregistry.errors.NotRunning` if this is not running, and is not the child
        of a service that will start it.
        """
        if self._currentAt is None:
            NotRunning.check(self)
            await self._readiness.wait()

    def _known(self) -> dict[str, _T]:
        """The items; raises NotRunning if this was never started."""
        if self._task is None:
            raise NotRunning.of(self)
        return self._items

    def _listen(
        self, listener: Callable[..., object], settle: float | None, isWanted: Callable[..., bool] = lambda *_: True
    ) -> Callable[[], None]:
        """Call *listener* with the changes that are wanted; returns a function that ends it."""
        if settle is None:
            return self._listeners.add(lambda *change: listener(*change) if isWanted(*change) else None)
        settling = Settling(self._clock, settle, listener)
        forget = self._listeners.add(lambda *change: settling.add(*change) if isWanted(*change) else None)
        forgetEnds = self._ends.add(settling.flush)

        def end() -> None:
            forget()
            forgetEnds()
            settling.drop()

        return end

    def _load(self) -> None:
        kept = self._readFile(self._parsed) if self._currentAt is None else None
        if kept is not None:
            self._replace(kept[0], {})
            self._currentAt = self._clock.seconds() - kept[1]
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
            key = self._keyOf(event)
            if key is not None:
                self._put(key, self._after(event, self._items.get(key)), [event])

    def _positionLost(self) -> None:
        self._log.info("The event feed no longer has the last event: listing all {what} again", what=self.what)
        self._cursor = None

    def _interrupted(self) -> None:
        if self._isCurrent:
            self._isCurrent = False
            known = (self._currentAt, self._poller.respondedAt)
            self._currentAt = max(moment for moment in known if moment is not None)

    async def _listAll(self, run: BackgroundTask, cursor: Cursor | None) -> None:
        """List everything, and apply the events since then. Events were applied up to the *cursor*, if there is one."""
        poller = self._poller
        missed: list[Event] = []
        if cursor is None:
            cursor = await run.wait(poller.end())
        elif not self._isCurrent:
            # The listing has what happened while the feed was unreachable, but maybe not what happens from here on.
            cursor = await run.wait(poller.readToEnd(cursor, missed))
        began = self._clock.seconds()
        items = await run.wait(self._list())
        events: list[Event] = []
        self._cursor = await run.wait(poller.readToEnd(cursor, events))
        merged = {key: self._merge(items.get(key), its) for key, its in self._byKey(events).items()}
        now = self._clock.seconds()
        refresh = self._refreshInterval()
        if not self._cursor.seen:
            refresh = min(refresh, REFRESH if poller.isLive else BLIND_REFRESH)
        self._nextListing = now + max(refresh, (now - began) / _LISTING_SHARE) * (1.0 - _JITTER * self._random())
        found = {key: value for key, value in {**items, **merged}.items() if value is not None}
        self._replace(found, self._byKey([*missed, *events]))
        self._isCurrent = True
        self._saveSoon()
        self._currentAt = now
        self._readiness.fire(None)

    def _byKey(self, events: Iterable[Event]) -> dict[str, list[Event]]:
        byKey: dict[str, list[Event]] = {}
        for event in events:
            key = self._keyOf(event)
            if key is not None:
                byKey.setdefault(key, []).append(event)
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


@attrs.frozen
class ConfigurationChange:
    """A value that has changed: its key, in full, and the old and the new value; ``None`` where there is none."""

    key: str
    old: str | None
    new: str | None


class ConfigurationWatcher(Mirror[str], Mapping[str, str]):
    """
    The configuration values below a namespace, as a mapping that is kept current::

        watcher = ConfigurationWatcher(client, "/production/www")
        watcher.setServiceParent(application)
        watcher.onKey("/production/www/workers", lambda workers: pool.resize(int(workers or 1)))

        async for change in watcher.changes():
            print(change.key, change.old, "->", change.new)

    Keys are in full. While the registry is unreachable the mapping keeps its values, and :attr:`stale` says for how
    long.
    """

    what = "configuration values"
    # A mapping compares by what is in it; a service is itself and nothing else.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        client: Client,
        namespace: str | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        random: Callable[[], float] = randomModule.random,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after the watcher has stopped.
        :param namespace: such as ``/production/www``; ``/`` for all that have one, and all values if not given.
        :param path: a file that keeps the values, for a start while the registry is unreachable.
        :param random: returns numbers from 0 to 1.
        :param wallClock: seconds since the epoch.
        """
        super().__init__(client, path, random, wallClock)
        self.namespace = None if namespace is None else _normal(namespace)

    def __getitem__(self, key: str) -> str:
        return self._known()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def __len__(self) -> int:
        return len(self._known())

    def onChange(self, listener: Callable[[Any], object], *, settle: float | None = None) -> Callable[[], None]:
        """
        Call *listener* with every change from now on, the first listing included.

        :param listener: called with a :class:`ConfigurationChange`.
        :param settle: seconds to wait for further changes, so that values that are changed together are seen together.
            Then *listener* is called once, with a list of the changes, when nothing has changed for so long; at most
            four times as long after the first change, and at a stop.
        :return: a function that removes the listener.
        """
        return self._listen(listener, settle)

    def onKey(
        self, key: str, listener: Callable[[str | None], object], *, settle: float | None = None
    ) -> Callable[[], None]:
        """
        Call *listener* with the new value of one key, given in full, when it changes; with ``None`` when it was
        removed. For *settle* and the result see :meth:`onChange`; it is called with the last value.
        """

        def changed(found: Any) -> None:
            listener((found if settle is None else found[-1]).new)

        return self._listen(changed, settle, lambda change: change.key == key)

    def onNamespace(
        self, namespace: str, listener: Callable[[Any], object], *, settle: float | None = None
    ) -> Callable[[], None]:
        """Do as :meth:`onChange` does, but for values below a namespace only, such as ``/production/www``."""
        within = _normal(namespace)
        return self._listen(listener, settle, lambda change: _isWithin(change.key, within))

    def changes(self) -> AsyncIterator[ConfigurationChange]:
        """
        The changes from now on, until the watcher is stopped. Changes wait while the loop is busy. To end it earlier,
        close the iterator with ``aclose()`` or drop it. It raises :class:`~txserviceregistry.errors.NotRunning` if the
        watcher is not running, and is not the child of a service that will start it.
        """
        return Items(self, lambda put: self.onChange(lambda change: put(change).addErrback(lambda _: None)))

    @returnsDeferred
    async def _list(self) -> dict[str, str]:
        values = self._client.configuration.iterate(self.namespace)
        return {item["id"]: item["value"] async for item in values}

    def _checked(self, key: str, value: Any) -> str:
        return readConfigurationValue({"id": key, "value": value})["value"]

    def _keyOf(self, event: Event) -> str | None:
        if event["type"] not in ("configuration_value.update", "configuration_value.remove"):
            return None
        key: str = event["payload"]["configuration_value_id"]
        return key if self.namespace is None or _isWithin(key, self.namespace) else None

    def _after(self, event: Event, value: str | None) -> str | None:
        return None if event["type"] == "configuration_value.remove" else event["payload"]["new_value"]

    def _changed(self, key: str, old: str | None, new: str | None, events: Sequence[Event]) -> None:
        self._listeners.call(ConfigurationChange(key, old, new))


def _normal(namespace: str) -> str:
    return f"/{namespace.strip('/')}"


def _isWithin(key: str, namespace: str) -> bool:
    return key == namespace or key.startswith(namespace if namespace == "/" else f"{namespace}/")
