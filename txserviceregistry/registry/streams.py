"""
The event streams. Each new event of a tenant is read once and serialised once, and then written to every stream that
wants it, a few in each turn of the reactor.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.logs import Logger
from ..util.singleflight import SingleFlight
from .eventids import isMoment, momentAt, position, positionOf
from .faults import Fault, systemFailure
from .model import EVENT_TYPES
from .places import Places
from .stores.interfaces import Account, EventRecord, NoSuchObject, ServiceRecord, StoreUnavailable
from .stores.shared import ISharedStore
from .tasks import TaskOwner, available

#: Seconds from one ping to the next.
PING = 15.0
#: Events that are read at once.
PAGE = 100
#: Seconds that the store may take for them.
PATIENCE = 10.0
#: Seconds that streams may take of a turn of the reactor. Between two turns come heartbeats.
SLICE = 0.002
#: Seconds after which a request for which there was no place may be sent again.
RETRY_AFTER = 5

_encode = json.JSONEncoder(ensure_ascii=False).encode


class Outlet(Protocol):
    """The connection of a stream."""

    def write(self, data: bytes) -> None:
        """Send data, or close the connection if its client reads too slowly."""

    def drained(self) -> Deferred[None]:
        """Fires when the client has read most of what was sent."""


def frame(type: str, id: str | None, data: str = "{}") -> bytes:
    """An event of the stream; without an id the client keeps its last one."""
    head = "" if id is None else f"id: {id}\n"
    return f"{head}event: {type}\ndata: {data}\n\n".encode()


@attrs.define(eq=False)
class Stream:
    """
    The stream of one subscriber.

    :ivar types: the types of its events.
    :ivar tag: only events of services with this tag; ``None`` for all events.
    :ivar authenticate: raises a fault if the subscriber's token has ended.
    :ivar onEnd: called once when the stream is to be closed, unless its client closes it.
    :ivar position: the position up to which everything has been written.
    :ivar id: its id.
    :ivar isOver: whether it is closed, or to be closed.
    """

    tenant: str
    types: frozenset[str]
    tag: str | None
    outlet: Outlet
    authenticate: Callable[[], Awaitable[object]]
    onEnd: Callable[[], object]
    position: int = 0
    id: str = ""
    isOver: bool = False

    def end(self) -> None:
        """Let the stream be closed."""
        if not self.isOver:
            self.isOver = True
            self.onEnd()


class _Event:
    """An event that has been read; *tags* are those of its service."""

    def __init__(self, record: EventRecord, tags: Collection[str]) -> None:
        self.id = record.id
        self.position = position(record.id)
        self._record = record
        self._tags = tags

    def isFor(self, stream: Stream) -> bool:
        return self._record.type in stream.types and (stream.tag is None or stream.tag in self._tags)

    @cached_property
    def frame(self) -> bytes:
        record = self._record
        return frame(record.type, record.id, _encode(record.shown))


@attrs.define(eq=False)
class _Tail:
    """
    The end of a tenant's feed.

    :ivar position: up to which everything has been read, and is written or being written to the *streams*.
    :ivar id: its id.
    :ivar members: all streams, those included that still catch up.
    """

    tenant: str
    position: int
    id: str
    streams: dict[Stream, None] = attrs.Factory(dict)
    members: dict[Stream, None] = attrs.Factory(dict)
    isDue: bool = False
    isRead: bool = False
    isPinging: bool = False
    ping: IDelayedCall | None = None


class _Turns:
    """Divides work between turns of the reactor."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._began = 0.0
        self._next: IDelayedCall | None = None
        self._waiting: deque[Deferred[None]] = deque()
        self._isStopped = False

    async def take(self) -> None:
        """Wait until there is time in a turn."""
        while self._isSpent():
            turn: Deferred[None] = Deferred()
            self._waiting.append(turn)
            await turn

    def _isSpent(self) -> bool:
        if self._isStopped:
            return False
        now = self._clock.seconds()
        if self._next is None:
            self._next = self._clock.callLater(0, self._turn)
            self._began = now
        return now - self._began >= SLICE

    def _turn(self) -> None:
        self._next = None
        waiting, self._waiting = self._waiting, deque()
        while waiting and not self._isSpent():
            turn = waiting.popleft()
            # One whose client has gone has been called.
            if not turn.called:
                turn.callback(None)
        # They are before those that have had their turn and wait again.
        self._waiting.extendleft(reversed(waiting))

    def stop(self) -> None:
        """Leave nothing on the reactor; what waits goes on."""
        self._isStopped = True
        if self._next is not None:
            self._next.cancel()
            self._turn()


class EventStreams:
    """
    The streams of all tenants.

    :param account: gives a tenant's account.
    :param places: how many streams there may be.
    :param retention: how long events are kept, in seconds.
    """

    _log = Logger()

    def __init__(
        self,
        store: Any,
        account: Callable[[str], Deferred[Account]],
        places: Places,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        tasks: TaskOwner,
        retention: float,
    ) -> None:
        self.places = places
        self._store = store
        self._account = account
        self._clock = clock
        self._wallClock = wallClock
        self._tasks = tasks
        self._retention = retention
        self._tails: dict[str, _Tail] = {}
        self._opening: SingleFlight[str, _Tail] = SingleFlight()
        self._turns = _Turns(clock)
        self._isEnded = False

    def open(self, stream: Stream) -> None:
        """
        Take a place for a stream; :meth:`close` gives it back.

        :raises Fault: 503, if there are too many.
        """
        if ISharedStore.providedBy(self._store) and not self._store.isValid:
            raise systemFailure("This node is not a valid member of the cluster")
        if self._isEnded or not self.places.take(stream.tenant):
            raise systemFailure("Too many event streams are open; retry later, or use wait", RETRY_AFTER)

    def close(self, stream: Stream) -> None:
        """A stream is over: it was closed, or not begun."""
        stream.isOver = True
        self.places.give(stream.tenant)
        tail = self._tails.get(stream.tenant)
        if tail is not None:
            tail.streams.pop(stream, None)
            tail.members.pop(stream, None)
            if not tail.members:
                self._drop(tail)

    def notify(self, tenants: Iterable[str]) -> None:
        """These tenants have new events."""
        for tenant in tenants:
            tail = self._tails.get(tenant)
            if tail is not None:
                self._follow(tail)

    def endAll(self) -> None:
        """Let all streams be closed: new events are not noticed here."""
        for tail in list(self._tails.values()):
            self._drop(tail)

    def end(self) -> None:
        """Let all streams be closed, now and in the future."""
        self._isEnded = True
        self.endAll()
        self._turns.stop()

    def _drop(self, tail: _Tail) -> None:
        if self._tails.get(tail.tenant) is tail:
            del self._tails[tail.tenant]
        if tail.ping is not None:
            tail.ping.cancel()
            tail.ping = None
        members = list(tail.members)
        tail.members.clear()
        tail.streams.clear()
        for stream in members:
            stream.end()

    # -- one stream

    async def locate(self, stream: Stream, begin: int | None, lastId: str) -> bool:
        """
        Find the place where a stream begins.

        :param begin: the position of its first event, unless *lastId* names the one before it; ``None`` for now.
        :param lastId: the id up to which the subscriber knows everything; empty if it knows nothing.
        :return: whether nothing is missing. If not, the stream begins now.
        :raises Fault: 503, if the store is unavailable.
        """
        tail = await available(self._opening.do(stream.tenant, lambda: self._tasks.start(self._open(stream.tenant))))
        stream.position, stream.id = tail.position, tail.id
        tail.members[stream] = None
        if lastId.lower() == tail.id:
            return True
        if lastId:
            if not await self._isKnown(stream.tenant, lastId):
                stream.position, stream.id = tail.position, tail.id
                return False
            stream.position, stream.id = position(lastId), lastId
        elif begin is not None and begin <= tail.position:
            stream.position, stream.id = begin - 1, momentAt(begin - 1)
        return True

    async def _open(self, tenant: str) -> _Tail:
        tail = self._tails.get(tenant)
        if tail is not None:
            return tail
        id = await self._store.lastEvent(tenant)
        if id is None:
            # Whatever comes is newer, even if the wall clock is set back.
            created = (await self._account(tenant)).created
            tail = _Tail(tenant, 0, momentAt(positionOf(created / 1000)))
        else:
            tail = _Tail(tenant, position(id), id)
        if self._isEnded:
            raise StoreUnavailable("the registry is stopping")
        self._tails[tenant] = tail
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
            oldest = max((await self._account(tenant)).created / 1000, now - self._retention)
            return positionOf(oldest) <= at < positionOf(now)
        return await available(self._store.hasEvent(tenant, id))

    def begin(self, stream: Stream, isComplete: bool) -> None:
        """
        Write a stream, until it ends or is closed.

        :param isComplete: what :meth:`locate` has returned.
        """
        tail = self._tails.get(stream.tenant)
        if tail is None or stream not in tail.members:
            stream.end()
            return
        # A subscriber that gets the ping and not the reset must not believe that it has missed nothing.
        first = frame("ping", stream.id if isComplete else None)
        stream.outlet.write(b"retry: 2000\n\n" + first + (b"" if isComplete else frame("reset", stream.id)))
        if stream.position < tail.position:
            self._tasks.start(self._catchUp(stream, tail))
        else:
            tail.streams[stream] = None

    async def _catchUp(self, stream: Stream, tail: _Tail) -> None:
        """Write what is older than the end of the feed."""
        try:
            while stream.position < tail.position and not stream.isOver:
                await self._catchUpPage(stream, tail)
        except (StoreUnavailable, TimeoutError):
            stream.end()
        except Exception:
            self._log.failure("Cannot write an event stream (it is closed)")
            stream.end()
        if not stream.isOver:
            tail.streams[stream] = None

    async def _catchUpPage(self, stream: Stream, tail: _Tail) -> None:
        end, endId = tail.position, tail.id
        page = await self._read(stream.tenant, stream.position, stream.types, stream.tag is not None)
        if stream.isOver:
            return
        stream.outlet.write(_framesFor(stream, page))
        if page:
            stream.position, stream.id = page[-1].position, page[-1].id
        if len(page) < PAGE and stream.position < end:
            stream.position, stream.id = end, endId
        await stream.outlet.drained()
        await self._turns.take()

    # -- all streams of a tenant

    def _follow(self, tail: _Tail) -> None:
        tail.isDue = True
        if not tail.isRead:
            tail.isRead = True
            self._tasks.start(self._relay(tail))

    async def _relay(self, tail: _Tail) -> None:
        try:
            while tail.isDue:
                tail.isDue = False
                while await self._relayPage(tail):
                    pass
        except (StoreUnavailable, TimeoutError):
            self._drop(tail)
        except Exception:
            self._log.failure("Cannot write event streams (they are closed)")
            self._drop(tail)
        finally:
            tail.isRead = False

    async def _relayPage(self, tail: _Tail) -> bool:
        """Write a page of new events to all streams; returns whether there may be more."""
        page = await self._read(
            tail.tenant, tail.position, None, any(stream.tag is not None for stream in tail.members)
        )
        if not page:
            return False
        begin, end, endId = page[0].position, page[-1].position, page[-1].id
        # From here on, a stream that still catches up does so to the end of this page.
        tail.position, tail.id = end, endId
        same: dict[tuple[frozenset[str], str | None], bytes] = {}
        for stream in list(tail.streams):
            await self._turns.take()
            if stream not in tail.streams or stream.position >= end:
                continue
            if stream.position >= begin:
                data = _framesFor(stream, page)
            else:
                wanted = stream.types, stream.tag
                data = same[wanted] if wanted in same else same.setdefault(wanted, _framesFor(stream, page))
            stream.position, stream.id = end, endId
            if data:
                stream.outlet.write(data)
        return len(page) == PAGE

    async def _read(self, tenant: str, after: int, types: frozenset[str] | None, needsTags: bool) -> Sequence[_Event]:
        wanted = None if types is None or types.issuperset(EVENT_TYPES) else types
        reading = self._tasks.start(self._page(tenant, after + 1, wanted, needsTags))
        return await reading.addTimeout(PATIENCE, self._clock)

    async def _page(self, tenant: str, begin: int, types: frozenset[str] | None, needsTags: bool) -> Sequence[_Event]:
        records = await self._store.listEvents(tenant, begin, PAGE, types)
        return [_Event(each, await self._tagsOf(tenant, each) if needsTags else ()) for each in records]

    async def _tagsOf(self, tenant: str, record: EventRecord) -> Collection[str]:
        payload = record.payload
        if record.type != "service.state":
            return [*payload.get("tags", ()), *payload.get("old_tags", ())]
        try:
            service: ServiceRecord = await self._store.getService(tenant, payload["id"])
        except NoSuchObject:
            return ()
        return service.tags

    def _ping(self, tail: _Tail) -> None:
        tail.ping = self._clock.callLater(PING, self._ping, tail)
        # Whether the store can be reached, a read shows.
        self._follow(tail)
        if not tail.isPinging:
            tail.isPinging = True
            self._tasks.start(self._pingAll(tail))

    async def _pingAll(self, tail: _Tail) -> None:
        try:
            await self._pingEach(tail)
        finally:
            tail.isPinging = False

    async def _pingEach(self, tail: _Tail) -> None:
        for stream in list(tail.streams):
            try:
                await stream.authenticate()
            except (Fault, StoreUnavailable):
                stream.end()
                continue
            await self._turns.take()
            if stream in tail.streams:
                stream.outlet.write(frame("ping", stream.id))


def _framesFor(stream: Stream, page: Sequence[_Event]) -> bytes:
    return b"".join([each.frame for each in page if each.position > stream.position and each.isFor(stream)])
