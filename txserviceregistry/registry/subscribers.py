"""
Requests that wait for new events in a feed, and how they are notified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from .faults import systemFailure
from .model import PLAIN_TYPES
from .places import Places
from .streams import EventStreams


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

    #: How many are notified in one turn of the reactor. Between two turns come heartbeats.
    TURN = 20
    #: Seconds after which a request for which there was no place may be sent again.
    RETRY_AFTER = 5

    def __init__(self, clock: IReactorTime, places: Places | None = None) -> None:
        self.places = places or Places(5_000, 2_500)
        self.streams: EventStreams | None = None
        self._clock = clock
        # What ends each subscription.
        self._timers: dict[Subscription, IDelayedCall] = {}
        # By tenant what waits, and for which types of events.
        self._waiting: dict[str, dict[Deferred[bool], Collection[str]]] = {}
        self._due: deque[Deferred[bool]] = deque()
        self._notifying: IDelayedCall | None = None
        self._isEnded = False

    def subscribe(self, tenant: str, latest: float) -> Subscription:
        """
        Take a place for a request that may wait long; :meth:`unsubscribe` gives it back.

        :param latest: until when it may wait, in seconds of the clock. Then what it waits for fires with ``False``.
        :raises Fault: 503, if there are too many.
        """
        if not self.places.take(tenant):
            raise systemFailure("Too many requests are waiting; retry later, or without wait", self.RETRY_AFTER)
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

    def _endOne(self, subscription: Subscription) -> None:
        del self._timers[subscription]
        if subscription.change is not None and not subscription.change.called:
            subscription.change.callback(False)

    def wait(self, tenant: str, types: Collection[str] = PLAIN_TYPES) -> Deferred[bool]:
        """
        Begin to wait. Doing so before reading the feed misses nothing.

        :param types: which types of events it is about.
        :return: fires with ``True`` when there may be new events in the *tenant*'s feed, and with ``False`` when no
            request may wait any more. To be given to :meth:`forget` in the end.
        """
        change: Deferred[bool] = Deferred()
        if self._isEnded:
            change.callback(False)
        else:
            self._waiting.setdefault(tenant, {})[change] = types
        return change

    def forget(self, tenant: str, change: Deferred[bool]) -> None:
        """Stop waiting; *change* never fires from now on."""
        waiting = self._waiting.get(tenant)
        if waiting is not None:
            waiting.pop(change, None)
            if not waiting:
                del self._waiting[tenant]

    def notify(self, tenants: Collection[str], type: str | None = None) -> None:
        """Notify the subscribers of these tenants that there are new events of a *type*, or of any types."""
        if self.streams is not None:
            self.streams.notify(tenants)
        for tenant in tenants:
            waiting = self._waiting.get(tenant, {})
            for change in [change for change, types in waiting.items() if type is None or type in types]:
                self._due.append(change)
                self.forget(tenant, change)
        self._continue()

    def _continue(self) -> None:
        if self._due and self._notifying is None:
            self._notifying = self._clock.callLater(0, self._notifySome)

    def notifyAll(self) -> None:
        """Notify all subscribers, who have to read the feed again. Event streams end."""
        if self.streams is not None:
            self.streams.endAll()
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
