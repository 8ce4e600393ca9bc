"""
Requests that wait for new events in a feed, and how they are notified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ..util.singleflight import SingleFlight
from .faults import systemFailure
from .model import PLAIN_TYPES
from .places import Places
from .streams import EventStreams

_T = TypeVar("_T")


class _Reads:
    """What was read of a feed since its last event, and what is being read."""

    #: How many results are kept.
    MOST = 8

    def __init__(self) -> None:
        #: Results by query, and what reads the same again.
        self.results: dict[Hashable, tuple[Any, Callable[[], Deferred[Any]]]] = {}
        self.reading: SingleFlight[Hashable, Any] = SingleFlight()

    def keep(self, query: Hashable, result: Any, again: Callable[[], Deferred[Any]]) -> None:
        if len(self.results) >= self.MOST:
            del self.results[next(iter(self.results))]
        self.results[query] = result, again


@attrs.define(eq=False)
class Subscription:
    """
    The place of a subscriber.

    :ivar tenant: whose feed it is.
    :ivar change: what it waits for now.
    """

    tenant: str
    change: Deferred[bool] | None = None


class Subscribers:
    """
    The subscribers of all tenants. Nothing is polled: each change of a feed notifies them, once.

    :param clock: the reactor; subscribers are notified in its next turns.
    :param places: how many subscriptions there may be.
    :ivar streams: the event streams, which are notified too.
    """

    #: How many are notified in one turn of the reactor, which is some tens of milliseconds then. Between two turns come
    #: heartbeats, and the next requests of the subscribers, which take longer than all the responses.
    TURN = 500
    #: Seconds after which a request for which there was no place may be sent again.
    RETRY_AFTER = 5

    def __init__(self, clock: IReactorTime, places: Places | None = None) -> None:
        self.places = places or Places(5_000, 2_500)
        self.streams: EventStreams | None = None
        self._clock = clock
        # What ends each subscription.
        self._timers: dict[Subscription, IDelayedCall] = {}
        # By tenant what waits, and what was queried.
        self._waiting: dict[str, dict[Deferred[bool], tuple[Hashable, Collection[str]]]] = {}
        self._reads: dict[str, _Reads] = {}
        # What is notified next, and what will be when the new events have been read.
        self._due: deque[Deferred[bool]] = deque()
        self._afterReads: set[tuple[Deferred[bool], ...]] = set()
        self._notifying: IDelayedCall | None = None
        self._isEnded = False

    def subscribe(self, tenant: str, latest: float) -> Subscription:
        """
        Take a place for a request that may wait long; :meth:`unsubscribe` gives it back.

        :param latest: until when it may wait, in seconds of the clock. Then what it waits for fires with ``False``.
        :raises Fault: 503, if there are too many.
        """
        if not self.places.take(tenant):
            details = "Too many requests are waiting; retry later, or without wait"
            raise systemFailure(details, self.RETRY_AFTER)
        subscription = Subscription(tenant)
        if not self._isEnded:
            left = max(0, latest - self._clock.seconds())
            self._timers[subscription] = self._clock.callLater(left, self._endOne, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription."""
        timer = self._timers.pop(subscription, None)
        if timer is not None:
            timer.cancel()
        self.places.give(subscription.tenant)
        self._dropReads(subscription.tenant)

    def _endOne(self, subscription: Subscription) -> None:
        del self._timers[subscription]
        if subscription.change is not None and not subscription.change.called:
            subscription.change.callback(False)

    def wait(self, tenant: str, query: Hashable, types: Collection[str] = PLAIN_TYPES) -> Deferred[bool]:
        """
        Begin to wait. Doing so before reading the feed misses nothing.

        :param query: what is read of the *tenant*'s feed; see :meth:`read`.
        :param types: which types of events it is about.
        :return: fires with ``True`` when there may be new events in the *tenant*'s feed, and with ``False`` when no
            request may wait any more. To be given to :meth:`forget` in the end.
        """
        change: Deferred[bool] = Deferred()
        if self._isEnded:
            change.callback(False)
        else:
            self._waiting.setdefault(tenant, {})[change] = query, types
        return change

    def forget(self, tenant: str, change: Deferred[bool]) -> None:
        """Stop waiting; *change* never fires from now on."""
        waiting = self._waiting.get(tenant)
        if waiting is not None:
            waiting.pop(change, None)
            if not waiting:
                del self._waiting[tenant]
        self._dropReads(tenant)

    def _dropReads(self, tenant: str) -> None:
        if tenant not in self._waiting and not self.places.has(tenant):
            self._reads.pop(tenant, None)

    def cached(self, tenant: str, query: Hashable) -> Any:
        """The result of the last :meth:`read`, if it was kept and nothing is new since; ``None`` if not."""
        reads = self._reads.get(tenant)
        return None if reads is None else reads.results.get(query, (None,))[0]

    def read(
        self, tenant: str, query: Hashable, read: Callable[[], Deferred[_T]], isSmall: Callable[[_T], bool]
    ) -> Deferred[_T]:
        """
        Read a feed together with others: what one of them has read since the last event, or is reading, is good for all
        until there is another. So it takes one read to answer a thousand subscribers to the same, and none to let them
        wait again.

        :param query: what is read of the *tenant*'s feed.
        :param read: reads it.
        :param isSmall: whether the result may be kept.
        """
        result: _T | None = self.cached(tenant, query)
        if result is not None:
            return succeed(result)
        reads = self._reads.setdefault(tenant, _Reads())

        def keep(result: _T) -> _T:
            if isSmall(result):
                reads.keep(query, result, lambda: self.read(tenant, query, read, isSmall))
            return result

        return reads.reading.do(query, lambda: read().addCallback(keep))

    def notify(self, tenants: Collection[str], type: str | None = None) -> None:
        """Notify the subscribers of these tenants that there are new events of a *type*, or of any types."""
        if self.streams is not None:
            self.streams.notify(tenants)
        for tenant in tenants:
            reads, waiting = self._reads.pop(tenant, None), self._waiting.pop(tenant, {})
            if type is not None:
                others = {change: what for change, what in waiting.items() if type not in what[1]}
                if others:
                    self._waiting[tenant] = others
                    waiting = {change: what for change, what in waiting.items() if change not in others}
            if reads is not None and len(waiting) > 1:
                # What has been read once before they are notified is there for all of them, and none has to wait for
                # the read of another.
                changes, queries = tuple(waiting), {query for query, _ in waiting.values()}
                self._afterReads.add(changes)
                again = [read() for query, (_, read) in reads.results.items() if query in queries]
                DeferredList(again, consumeErrors=True).addCallback(self._haveRead, changes)
            else:
                self._due.extend(waiting)
        self._continue()

    def _haveRead(self, _: object, changes: tuple[Deferred[bool], ...]) -> None:
        if changes in self._afterReads:
            self._afterReads.remove(changes)
            self._due.extend(changes)
            self._continue()

    def _continue(self) -> None:
        if self._due and self._notifying is None:
            self._notifying = self._clock.callLater(0, self._notifySome)

    def notifyAll(self) -> None:
        """Notify all subscribers, who have to read the feed again. Event streams end."""
        if self.streams is not None:
            self.streams.endAll()
        self._reads.clear()
        self.notify(list(self._waiting))

    def end(self) -> None:
        """End all waiting, now and in the future."""
        self._isEnded = True
        call, self._notifying = self._notifying, None
        if call is not None:
            call.cancel()
        while self._timers:
            self._timers.popitem()[1].cancel()
        changes = [change for waiting in self._waiting.values() for change in waiting]
        self._waiting.clear()
        self._reads.clear()
        while self._afterReads:
            self._due.extend(self._afterReads.pop())
        self._fire(len(self._due))
        for change in changes:
            if not change.called:
                change.callback(False)

    def _notifySome(self) -> None:
        self._notifying = None
        self._fire(self.TURN)
        self._continue()

    def _fire(self, most: int) -> None:
        for _ in range(min(most, len(self._due))):
            change = self._due.popleft()
            # One whose request has been cancelled meanwhile has been called.
            if not change.called:
                change.callback(True)
