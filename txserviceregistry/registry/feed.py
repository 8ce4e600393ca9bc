"""The event feed of a registry: pages of it, requests that wait for new events, and how long events are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ..util.logs import Logger
from .faults import badRequest
from .limits import Places
from .model import EVENT_TYPES, PLAIN_TYPES, Page
from .stores.interfaces import StoreUnavailable
from .streams import EventStreams
from .tasks import Part, Turns, available, owned
from .uuids import position, positionOf

_HOUR = 3600.0

#: The default of how long events are kept, in seconds.
EVENT_RETENTION = 30 * 24 * _HOUR
#: The fault's message when too many requests wait.
TOO_MANY_WAIT = "Too many requests are waiting; retry later, or without wait"


@attrs.define(eq=False, slots=False)
class EventFeed(Part):
    """The feeds of all tenants, kept for the *retention* (seconds), and the requests that wait, which have *places*."""

    _log = Logger()

    _account: Callable[[str], Deferred[int]]
    _turns: Turns
    _retention: float
    places: Places
    streams: EventStreams
    # By tenant what waits, and for which types of events.
    _waiting: dict[str, dict[Deferred[bool], Collection[str]]] = attrs.field(init=False, factory=dict)
    _isEnded: bool = attrs.field(init=False, default=False)
    _dropping: IDelayedCall | None = attrs.field(init=False, default=None)

    def start(self) -> None:
        """Begin to drop old events, soon and then each hour."""
        self._dropping = self._clock.callLater(60.0, self._drop)

    def stop(self) -> None:
        self.endWaiting()
        call, self._dropping = self._dropping, None
        if call is not None:
            call.cancel()

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, types: frozenset[str] = PLAIN_TYPES) -> Page:
        """
        A page of the feed, oldest first: events of some *types* from *marker* on, a version-1 UUID, or of the last
        hour. The fault 400 as :meth:`checkMarker`.
        """
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
        """
        As :meth:`list`, as soon as there is an event that is newer than *marker*; without a marker all are. After so
        many *seconds* the page is returned as it is. The fault 503 if nothing is new and too many requests wait.
        """
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
        self.notify(list(self._waiting))

    def endWaiting(self) -> None:
        """End streams and all waiting, now and in the future: requests get their page as it is."""
        self._isEnded = True
        for waiting in list(self._waiting.values()):
            for change in list(waiting):
                if not change.called:
                    change.callback(False)
        self.streams.endAll(isForGood=True)
        self._turns.stop()

    def _drop(self) -> None:
        self._dropping = self._clock.callLater(_HOUR, self._drop)
        self._tasks.start(self._dropOld())

    async def _dropOld(self) -> None:
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
