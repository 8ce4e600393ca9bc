"""The event feed: pages of it, requests that wait for new events, event streams, and how long events are kept."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import NamedTuple

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall

from ..util.deferred import SingleFlight, cancel
from ..util.logs import Logger
from .faults import Fault, badRequest, systemFailure
from .limits import Places
from .model import EVENT_TYPES, PLAIN_TYPES, Page
from .stores.interfaces import EventRecord, ISharedStore, NoSuchObject, StoreUnavailable
from .tasks import Part, Turns, available, owned
from .uuids import isMoment, momentAt, position, positionOf

_HOUR = 3600.0
#: The default of how long events are kept, in seconds.
EVENT_RETENTION = 30 * 24 * _HOUR
#: The fault's message when too many requests wait.
TOO_MANY_WAIT = "Too many requests are waiting; retry later, or without wait"
#: Seconds from one ping of an event stream to the next.
PING = 15.0
#: Events that are read at once for streams, and the seconds that the store may take for them.
PAGE = 100
PATIENCE = 10.0

_encode = json.JSONEncoder(ensure_ascii=False).encode


def frame(type: str, id: str | None, data: str = "{}") -> bytes:
    """An event of the stream; without an id the client keeps its last one."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {type}\ndata: {data}\n\n".encode()


class _Place(NamedTuple):
    """A place in a feed: after the event with this position and id, or after this moment."""

    position: int
    id: str


@attrs.define(eq=False)
class Stream:
    """The stream of one subscriber, for events of services with a *tag*, or all."""

    tenant: str
    types: frozenset[str]
    tag: str | None
    write: Callable[[bytes], None]  # sends data, or closes the connection if its client reads too slowly
    drained: Callable[[], Deferred[None]]  # fires when the client has read most of what was sent
    authenticate: Callable[[], Awaitable[object]]  # raises a fault if the subscriber's token has ended
    onEnd: Callable[[], object]  # called once when the stream is to be closed, unless its client closes it
    place: _Place = attrs.field(init=False)  # everything is written up to here
    isOver: bool = False
    isCatchingUp: bool = True  # it is written older events by itself

    def end(self) -> None:
        if not self.isOver:
            self.isOver = True
            self.onEnd()


class _Event:
    """An event that has been read; *tags* are those of its service, as far as the event tells."""

    def __init__(self, record: EventRecord) -> None:
        self.place = _Place(position(record.id), record.id)
        self.record = record
        self.tags: Collection[str] = [*record.payload.get("tags", ()), *record.payload.get("old_tags", ())]

    def isFor(self, stream: Stream) -> bool:
        return (
            self.place.position > stream.place.position
            and self.record.type in stream.types
            and (stream.tag is None or stream.tag in self.tags)
        )

    @cached_property
    def frame(self) -> bytes:
        return frame(self.record.type, self.record.id, _encode(self.record.shown))


@attrs.define(eq=False)
class _Tail:
    """The end of a tenant's feed: what is before its place has been read, and is being written to the streams."""

    tenant: str
    place: _Place
    streams: dict[Stream, None] = attrs.Factory(dict)
    isDue: bool = False
    isRead: bool = False
    ping: IDelayedCall | None = None
    isOver: bool = False


@attrs.define(eq=False, slots=False)
class EventStreams(Part):
    """Each new event is read and serialised once for all streams, and written to a few in each turn of the reactor."""

    _log = Logger()

    _account: Callable[[str], Deferred[int]]
    _turns: Turns
    _retention: float
    places: Places
    _tails: dict[str, _Tail] = attrs.field(init=False, factory=dict)
    _opening: SingleFlight[str, _Tail] = attrs.field(init=False, factory=SingleFlight)
    _isEnded: bool = attrs.field(init=False, default=False)

    def open(self, stream: Stream) -> None:
        """Take a place for a stream, which :meth:`close` gives back; the fault 503 if there is none."""
        if ISharedStore.providedBy(self._store) and not self._store.isValid:
            raise systemFailure("This node is not a valid member of the cluster")
        if self._isEnded:
            raise systemFailure("The registry is stopping")
        self.places.take(stream.tenant, "Too many event streams are open; retry later, or use wait")

    def close(self, stream: Stream) -> None:
        stream.isOver = True
        self.places.give(stream.tenant)
        tail = self._tails.get(stream.tenant)
        if tail is not None:
            tail.streams.pop(stream, None)
            if not tail.streams:
                self._drop(tail)

    def notify(self, tenant: str) -> None:
        if (tail := self._tails.get(tenant)) is not None:
            self._follow(tail)

    @property
    def tenants(self) -> Collection[str]:
        return self._tails.keys()

    def endAll(self, *, isForGood: bool = False) -> None:
        """Let all streams be closed; if *isForGood*, later ones too."""
        self._isEnded = self._isEnded or isForGood
        for tail in list(self._tails.values()):
            self._drop(tail)

    def _drop(self, tail: _Tail) -> None:
        if not tail.isOver:
            tail.isOver = True
            del self._tails[tail.tenant]
            cancel(tail.ping)
            for stream in list(tail.streams):
                stream.end()

    async def locate(self, stream: Stream, begin: int | None, lastId: str) -> bool:
        """Begin after *lastId*, or at the position *begin*, or now. Returns whether no event is missing."""
        tenant = stream.tenant
        tail = self._tails.get(tenant)
        if tail is None:
            # While the store does not answer, all wait for the same answer, and not each for one of its own.
            tail = await available(self._opening.do(tenant, lambda: self._open(tenant)))
        stream.place = tail.place
        tail.streams[stream] = None
        if lastId.lower() == tail.place.id:
            return True
        if lastId:
            if not await self._isKnown(tenant, lastId):
                return False
            stream.place = _Place(position(lastId), lastId)
        elif begin is not None and begin <= tail.place.position:
            stream.place = _Place(begin - 1, momentAt(begin - 1))
        return True

    @owned
    async def _open(self, tenant: str) -> _Tail:
        id = await self._store.lastEvent(tenant)
        if id is not None:
            place = _Place(position(id), id)
        else:
            # Every new event is newer, even if the wall clock is set back.
            place = _Place(0, momentAt(positionOf(await self._account(tenant) / 1000)))
        if self._isEnded:
            raise StoreUnavailable("the registry is stopping")
        # An event may have been persisted while the answer was on its way; no stream was told of it.
        self._tails[tenant] = tail = _Tail(tenant, place, isDue=True)
        tail.ping = self._clock.callLater(PING, self._ping, tail)
        return tail

    async def _isKnown(self, tenant: str, id: str) -> bool:
        try:
            at = position(id)
        except ValueError:
            return False
        if isMoment(id):
            # As a ping named it that was sent before the first event.
            now = self._wallClock()
            oldest = max(await self._account(tenant) / 1000, now - self._retention)
            return positionOf(oldest) <= at < positionOf(now)
        return bool(await available(self._store.hasEvent(tenant, id)))

    def begin(self, stream: Stream, isComplete: bool) -> None:
        """Write a stream, until it ends or is closed; *isComplete* is what :meth:`locate` has returned."""
        tail = self._tails.get(stream.tenant)
        if tail is None or stream not in tail.streams:
            stream.end()
            return
        # A subscriber that gets the ping and not the reset must not believe that it has missed nothing.
        first = frame("ping", stream.place.id if isComplete else None)
        stream.write(b"retry: 2000\n\n" + first + (b"" if isComplete else frame("reset", stream.place.id)))
        self._tasks.start(self._catchUp(stream, tail))
        if tail.isDue:
            self._follow(tail)

    @contextmanager
    def _endsWith(self, end: Callable[[], None], failed: str) -> Iterator[None]:
        """Call *end* if what is done fails; that *failed* is logged if it is unexpected."""
        try:
            yield
        except (Fault, StoreUnavailable, TimeoutError):
            end()
        except Exception:
            self._log.failure(failed)
            end()

    async def _catchUp(self, stream: Stream, tail: _Tail) -> None:
        """Write what is older than the end of the feed."""
        with self._endsWith(stream.end, "Cannot write an event stream (it is closed)"):
            while stream.place.position < tail.place.position and not stream.isOver:
                end = tail.place
                page = await self._read(stream.tenant, stream.place, stream.types)
                if stream.isOver:
                    return
                stream.write(b"".join([each.frame for each in page if each.isFor(stream)]))
                last = page[-1].place if page else end
                stream.place = last if len(page) == PAGE else max(last, end)
                await stream.drained()
                await self._turns.take()
        stream.isCatchingUp = False

    def _follow(self, tail: _Tail) -> None:
        tail.isDue = True
        if not tail.isRead:
            tail.isRead = True
            self._tasks.start(self._relay(tail))

    async def _relay(self, tail: _Tail) -> None:
        with self._endsWith(partial(self._drop, tail), "Cannot write event streams (they are closed)"):
            while tail.isDue and not tail.isOver:
                tail.isDue = False
                while page := await self._read(tail.tenant, tail.place, None):
                    await self._relayPage(tail, page)
                    if len(page) < PAGE:
                        break
        tail.isRead = False

    async def _relayPage(self, tail: _Tail, page: Sequence[_Event]) -> None:
        # From here on, a stream that still catches up does so to the end of this page.
        tail.place = end = page[-1].place
        same: dict[tuple[frozenset[str], str | None, _Place], bytes] = {}
        await self._turns.take()
        # With thousands of streams, the list alone takes a turn's time.
        for stream in list(tail.streams):
            await self._turns.take()
            if stream.isOver or stream.isCatchingUp or stream.place.position >= end.position:
                continue
            wanted = stream.types, stream.tag, stream.place
            if wanted not in same:
                same[wanted] = b"".join([each.frame for each in page if each.isFor(stream)])
            stream.place = end
            if data := same[wanted]:
                stream.write(data)

    def _read(self, tenant: str, after: _Place, types: Collection[str] | None) -> Deferred[list[_Event]]:
        return self._page(tenant, after.position + 1, types).addTimeout(PATIENCE, self._clock)

    @owned
    async def _page(self, tenant: str, begin: int, types: Collection[str] | None) -> list[_Event]:
        page = [_Event(each) for each in await self._store.listEvents(tenant, begin, PAGE, types)]
        for event in page:
            # Changes of states do not tell the tags of the services.
            if event.record.type == "service.state":
                with suppress(NoSuchObject):
                    event.tags = (await self._store.getService(tenant, event.record.payload["id"])).tags
        return page

    @owned
    async def _ping(self, tail: _Tail) -> None:
        if not tail.streams:
            # The client for which the end was looked up has gone meanwhile.
            self._drop(tail)
            return
        # Whether the store can be reached, a read shows.
        self._follow(tail)
        await self._turns.take()
        for stream in list(tail.streams):
            await self._turns.take()
            with self._endsWith(stream.end, "Cannot check the token of an event stream (it is closed)"):
                if not stream.isOver:
                    await stream.authenticate()
            if not stream.isOver and not stream.isCatchingUp:
                stream.write(frame("ping", stream.place.id))
        if not tail.isOver:
            tail.ping = self._clock.callLater(PING, self._ping, tail)


@attrs.define(eq=False, slots=False)
class EventFeed(Part):
    """The feeds of all tenants, and the requests that wait, which have *places*."""

    _log = Logger()

    _account: Callable[[str], Deferred[int]]
    _turns: Turns
    _retention: float
    places: Places
    streams: EventStreams
    # By tenant what waits, and for which types of events.
    _waiting: dict[str, dict[Deferred[bool], Collection[str]]] = attrs.field(init=False, factory=dict)
    _isEnded: bool = attrs.field(init=False, default=False)
    # Old events are dropped soon after the start, and then each hour.
    _dropping: IDelayedCall | None = attrs.field(init=False, default=None)

    def start(self) -> None:
        self._dropping = self._clock.callLater(60.0, self._drop)

    def stop(self) -> None:
        cancel(self._dropping)

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, types: frozenset[str] = PLAIN_TYPES) -> Page:
        """A page, oldest first: events from *marker* on, or of the last hour. The fault 400 as :meth:`checkMarker`."""
        if marker is None:
            since = positionOf(self._wallClock() - _HOUR)
        else:
            since = position(marker)
            await self.checkMarker(tenant, marker)
        wanted = None if types.issuperset(EVENT_TYPES) else types
        records = await available(self._store.listEvents(tenant, since, limit + 1, wanted))
        return Page.of([record.shown for record in records], limit)

    async def checkMarker(self, tenant: str, marker: str) -> None:
        """The fault 400 if a marker is from the future or from before the account, and no event of this feed."""
        since, created = position(marker), await self._account(tenant)
        if since >= positionOf(self._wallClock()):
            refusal = "from parameter must be smaller than the current time"
        elif since < positionOf(created / 1000):
            refusal = "from parameter must be greater than or equal to the account creation date"
        else:
            return
        if not await available(self._store.hasEvent(tenant, marker)):
            raise badRequest(refusal)

    async def wait(
        self, tenant: str, marker: str | None, limit: int, seconds: float, types: frozenset[str] = PLAIN_TYPES
    ) -> Page:
        """As :meth:`list`, when an event is newer than *marker*, or after so many *seconds*; 503 if too many wait."""
        latest = self._clock.seconds() + seconds
        hasPlace = False
        try:
            while True:
                # Before the feed is read: what happens meanwhile must not be missed. It fires with whether there may be
                # new events of these types, or with False when waiting has ended.
                change: Deferred[bool] = Deferred()
                self._waiting.setdefault(tenant, {})[change] = types
                try:
                    page = await self.list(tenant, marker, limit, types)
                    left = latest - self._clock.seconds()
                    # The event of the marker may be on the page; no other is there twice.
                    isNew = page.nextMarker or page.values[1:] or any(each["id"] != marker for each in page.values)
                    if left <= 0 or self._isEnded or isNew:
                        return page
                    if not hasPlace:
                        self.places.take(tenant, TOO_MANY_WAIT)
                        hasPlace = True
                    if not await change.addTimeout(left, self._clock, lambda *_: False):
                        return page
                finally:
                    self._forget(tenant, change)
        finally:
            if hasPlace:
                self.places.give(tenant)

    def _forget(self, tenant: str, change: Deferred[bool]) -> None:
        waiting = self._waiting.get(tenant, {})
        waiting.pop(change, None)
        if not waiting:
            self._waiting.pop(tenant, None)

    def notify(self, tenants: Iterable[str], type: str | None = None) -> None:
        """Let streams, and requests that wait for this type, have the new events of these tenants."""
        changes = []
        for tenant in tenants:
            self.streams.notify(tenant)
            for change, types in list(self._waiting.get(tenant, {}).items()):
                if type is None or type in types:
                    self._forget(tenant, change)
                    changes.append(change)
        if changes:
            self._tasks.start(self._wake(changes))

    async def _wake(self, changes: Iterable[Deferred[bool]]) -> None:
        for change in changes:
            await self._turns.take()
            # One whose client has gone, or whose waiting has ended, has been called.
            if not change.called:
                change.callback(True)

    def lose(self) -> None:
        """New events are not noticed here for a while: those who wait read again, and streams go elsewhere."""
        self.streams.endAll()
        self.notifyAll()

    def notifyAll(self) -> None:
        """There may be events that were not noticed here."""
        self.notify({*self._waiting, *self.streams.tenants})

    def endWaiting(self) -> None:
        """End streams and all waiting, now and in the future: requests get their page as it is."""
        self._isEnded = True
        for waiting in list(self._waiting.values()):
            for change in list(waiting):
                if not change.called:
                    change.callback(False)
        self.streams.endAll(isForGood=True)
        self._turns.stop()

    @owned
    async def _drop(self) -> None:
        self._dropping = self._clock.callLater(_HOUR, self._drop)
        try:
            oldest = self._wallClock() - self._retention
            dropped = await self._store.dropEvents(positionOf(oldest))
            # Of services that have not been there for as long.
            self.notify(await self._store.dropStates(int(oldest * 1000)), "service.state")
        except StoreUnavailable:
            self._log.debug("Cannot drop old events: the store is unavailable (retrying in an hour)")
        except Exception:
            self._log.failure("Cannot drop old events (retrying in an hour)")
        else:
            if dropped:
                hours = f"{self._retention / _HOUR:g}"
                self._log.info("Dropped {dropped} events older than {hours} hours", dropped=dropped, hours=hours)
