"""
The event feed of a registry: pages of it, requests that wait for new events, and how long events are kept.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.logs import Logger
from .eventids import position, positionOf
from .faults import Fault, badRequest
from .model import EVENT_TYPES, PLAIN_TYPES, Page
from .places import Places
from .stores.interfaces import Account, IStore, StoreUnavailable
from .streams import EventStreams
from .subscribers import Subscribers, Subscription
from .tasks import TaskOwner, available, owned

_HOUR = 3600.0

#: How long events are kept unless told otherwise, in seconds.
EVENT_RETENTION = 30 * 24 * _HOUR


class EventFeed:
    """
    The feeds of all tenants.

    :param account: gives a tenant's account.
    :param places: how many event streams there may be.
    :param retention: how long events are kept, in seconds; not less than :attr:`EVENTS_SHOWN`.
    :ivar streams: the event streams.
    """

    #: How much of the events a feed without a marker shows, in seconds.
    EVENTS_SHOWN = _HOUR
    #: Seconds from the start to the first time that old events are dropped, and from then on from one time to the next.
    FIRST_DROP = 60.0
    NEXT_DROP = _HOUR

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        account: Callable[[str], Deferred[Account]],
        subscribers: Subscribers,
        places: Places,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        tasks: TaskOwner,
        retention: float,
    ) -> None:
        self._store = store
        self._account = account
        self._subscribers = subscribers
        self._clock = clock
        self._wallClock = wallClock
        self._tasks = tasks
        self._retention = retention
        self._dropping: IDelayedCall | None = None
        self.streams = subscribers.streams = EventStreams(
            store, account, places, clock=clock, wallClock=wallClock, tasks=tasks, retention=retention
        )

    def start(self) -> None:
        """Begin to drop old events."""
        self._dropping = self._clock.callLater(self.FIRST_DROP, self._drop)

    def stop(self) -> None:
        """End all waiting, and leave nothing on the reactor."""
        self.endWaiting()
        call, self._dropping = self._dropping, None
        if call is not None:
            call.cancel()

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, types: frozenset[str] = PLAIN_TYPES) -> Page:
        """
        A page of the feed, oldest first.

        :param marker: the text of a version-1 UUID: that event, or that moment, and what is newer; ``None`` for the
            last hour.
        :param types: only events of these types.
        :raises Fault: 400 if the marker is from the future or from before the account, and no event of this feed.
        """
        if marker is None:
            since = positionOf(self._wallClock() - self.EVENTS_SHOWN)
        else:
            since = position(marker)
            await self.checkMarker(tenant, marker)
        wanted = None if types.issuperset(EVENT_TYPES) else types
        records = await available(self._store.listEvents(tenant, since, limit + 1, wanted))
        nextMarker = records[limit].id if len(records) > limit else None
        return Page([record.shown for record in records[:limit]], nextMarker)

    async def checkMarker(self, tenant: str, marker: str) -> None:
        """
        Check whether the feed can begin at a marker.

        :raises Fault: as :meth:`list`.
        """
        refusal = self._refusal(position(marker), await self._account(tenant))
        if refusal is not None and not await available(self._store.hasEvent(tenant, marker)):
            raise refusal

    def _refusal(self, since: int, account: Account) -> Fault | None:
        if since >= positionOf(self._wallClock()):
            return badRequest("from parameter must be smaller than the current time")
        if since < positionOf(account.created / 1000):
            return badRequest("from parameter must be greater than or equal to the account creation date")
        return None

    async def wait(
        self, tenant: str, marker: str | None, limit: int, seconds: float, types: frozenset[str] = PLAIN_TYPES
    ) -> Page:
        """
        A page of the feed as soon as it has an event that is newer than *marker*; without a marker all are. A
        coroutine; cancelling what awaits it ends the waiting.

        :param seconds: after so long, or when :meth:`endWaiting` is called, the page is returned as it is.
        :raises Fault: as :meth:`list`; 503 if nothing is new and there are too many subscribers.
        """
        subscribers = self._subscribers
        latest = self._clock.seconds() + seconds
        subscription: Subscription | None = None
        try:
            while True:
                change = subscribers.wait(tenant, types)
                try:
                    page = await self.list(tenant, marker, limit, types)
                    if self._clock.seconds() >= latest or _hasNews(page, marker):
                        return page
                    if subscription is None:
                        subscription = subscribers.subscribe(tenant, latest)
                    subscription.change = change
                    if not await change:
                        return page
                finally:
                    subscribers.forget(tenant, change)
        finally:
            if subscription is not None:
                subscribers.unsubscribe(subscription)

    def endWaiting(self) -> None:
        """
        End the waiting of all subscribers: they get their page now, and later ones get theirs at once. Event streams
        end.
        """
        self._subscribers.end()
        self.streams.end()

    def _drop(self) -> None:
        self._dropping = self._clock.callLater(self.NEXT_DROP, self._drop)
        self._tasks.start(self._dropOldEvents())

    async def _dropOldEvents(self) -> None:
        try:
            dropped = await self._store.dropEvents(positionOf(self._wallClock() - self._retention))
        except StoreUnavailable:
            self._log.debug("Cannot drop old events: the store is unavailable (retrying in an hour)")
        except Exception:
            self._log.failure("Cannot drop old events (retrying in an hour)")
        else:
            if dropped:
                hours = f"{self._retention / _HOUR:g}"
                self._log.info("Dropped {dropped} events older than {hours} hours", dropped=dropped, hours=hours)


def _hasNews(page: Page, marker: str | None) -> bool:
    # The event of the marker may be on it; no other is there twice.
    return page.nextMarker is not None or len(page.values) > 1 or any(event["id"] != marker for event in page.values)
