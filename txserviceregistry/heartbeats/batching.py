"""Heartbeat batching: heartbeats of several services that are due close together are sent in one request."""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..clock import SuspendWatch
from ..errors import BadRequest, Forbidden, ForeignResponse, NotFound, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..util.deferred import LONGEST_DELAY, Backoff, LateTries, patienceFor, runOnAfter
from ..util.logs import Logger, Outage
from .attempts import StallWatch
from .heartbeater import HeartBeater

_NAMED = 5  # services in a log line
_FAILED = "Heartbeats failed for {names}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {names} succeed again after {seconds:.1f} s"
_REFUSED = "A batch of {count} heartbeats was refused, smaller ones are sent: {reason}"
_ACCEPTED = "A batch of {count} heartbeats is accepted again"


def isRefusal(error: object) -> bool:
    """Whether a smaller batch may avoid this *error*: a 4xx other than 401 and 429 to the batch as a whole."""
    if isinstance(error, ForeignResponse):
        # More and smaller ones would not help against a rate limit.
        return error.status not in (401, 429)
    return isinstance(error, (BadRequest, Forbidden, NotFound))


class _Slot(list[HeartBeater]):
    """Services whose heartbeats are due close together, in no order. *due* is when the first of them is due."""

    due = math.inf


class Schedule:
    """Services by the time at which their heartbeats are due. A service that has left its slot names it no more."""

    # In a heap of all services, a heartbeat would cost a tenth more. A slot is sorted only if it is too long for one
    # request.

    #: The part of its interval by which a heartbeat may be early, together with one that is due.
    EARLY = 0.1
    #: Heartbeats that are due within so many seconds of each other share a slot.
    SLOT = 0.02

    def __init__(self) -> None:
        # The slots by number, and a heap of these numbers.
        self._slots: dict[int, _Slot] = {}
        self._numbers: list[int] = []

    def put(self, service: HeartBeater, due: float) -> None:
        """Have a heartbeat sent at this time, at the latest, and none at another time."""
        number = int(due // self.SLOT)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heappush(self._numbers, number)
        if due < slot.due:
            slot.due = due
        service.batchDue, service.batchSlot = due, slot
        slot.append(service)

    @property
    def next(self) -> float | None:
        """When the first heartbeat is due; ``None`` if there is none."""
        return self._slots[self._numbers[0]].due if self._numbers else None

    def take(self, now: float, most: int) -> list[HeartBeater]:
        """Take out the services that are due or may be early, at most *most*. The list is their ``batchSlot`` then."""
        taken: list[HeartBeater] = []
        mayFollow = True
        while self._numbers and mayFollow:
            slot = self._slots.pop(heappop(self._numbers))
            if len(slot) > most - len(taken):
                slot.sort(key=attrgetter("batchDue"))
            for service in slot:
                if service.batchSlot is not slot:
                    continue
                if len(taken) < most and service.batchDue - self.EARLY * service.interval <= now:
                    service.batchSlot = taken
                    taken.append(service)
                else:
                    self.put(service, service.batchDue)
                    mayFollow = False
        return taken


@attrs.define(eq=False, repr=False, slots=False)
class HeartbeatBatcher:
    """
    The heartbeats of all services of one client that need nothing but heartbeats. A service whose heartbeat is refused
    is dismissed: its HeartBeater sends single heartbeats. It joins again when one of those has been answered.

    When batches fail, which may be because of their size, one service sends a single heartbeat. If that is accepted, it
    is not an outage: batches begin again with one heartbeat, and grow until one fails. If that one is refused, sizes
    in between are tried. If the first one fails, all services send single heartbeats. Larger batches are tried after
    :data:`HOLD` seconds, whatever else fails meanwhile.

    :param send: ``services.heartbeats``.
    :param isOffered: whether the registry accepts batches.
    """

    #: Heartbeats in one request at most: the extension's limit.
    MOST: ClassVar[int] = 1000
    #: The most requests at once while batches are smaller than they could be.
    AT_ONCE: ClassVar[int] = 2
    #: After so many seconds without a response, the next request does not wait for this one.
    PATIENCE: ClassVar[float] = 1.0
    #: Seconds until larger batches are tried again.
    HOLD: ClassVar[float] = 300.0

    _log: ClassVar[Logger] = Logger()

    _send: Callable[..., Deferred[Any]]
    _isOffered: Callable[[], bool]
    _clock: IReactorTime
    _random: Callable[[], float] = randomModule.random
    _stalls: StallWatch = attrs.field(kw_only=True)
    _suspends: SuspendWatch = attrs.field(kw_only=True)
    _services: dict[HeartBeater, None] = attrs.field(factory=dict, init=False)
    _schedule: Schedule = attrs.field(factory=Schedule, init=False)
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _timerDue: float = attrs.field(default=0.0, init=False)
    # When each request under way was sent, without those that are late.
    _underWay: dict[Deferred[Any], float] = attrs.field(factory=dict, init=False)
    _late: LateTries = attrs.field(factory=LateTries, init=False)
    # After a failure, nothing is sent before this time.
    _notBefore: float = attrs.field(default=0.0, init=False)
    # The service that sends a single heartbeat while batches fail.
    _alone: HeartBeater | None = attrs.field(default=None, init=False)
    # The most heartbeats in a batch until then.
    _held: int = attrs.field(default=MOST, init=False)
    _heldUntil: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        # The most heartbeats in the next batch, 0 while none are accepted, and the most in one that was accepted.
        self._most = self._accepted = self.MOST
        self._backoff = Backoff(0.1, LONGEST_DELAY, self._random)
        self._outage = Outage(self._log, self._clock, _FAILED, _SUCCEED_AGAIN)
        self._refusals = Outage(self._log, self._clock, _REFUSED, _ACCEPTED)

    @property
    def isOffered(self) -> bool:
        """Whether services can join. If not even one heartbeat was accepted, one service at a time tries again."""
        return self._isOffered() and (self._most > 0 or not (self._services or self._clock.seconds() < self._heldUntil))

    @property
    def _isReduced(self) -> bool:
        return self._most < min(self.MOST, len(self._services))

    def join(self, service: HeartBeater, due: float) -> None:
        """Take a service in. Its next heartbeat is sent by *due*."""
        if service is self._alone:
            self._alone = None
            self._accepted, self._most = 0, 1
            self._notBefore = 0.0
            self._backoff.reset()
        if not self._services:
            self._suspends.add(self._resumed)
        self._services[service] = None
        self._schedule.put(service, due)
        self._setTimer()

    def leave(self, service: HeartBeater) -> None:
        """Let a service go; nothing is sent for it any more. One that is not here causes no error."""
        if service is self._alone:
            self._alone = None
        if service in self._services:
            del self._services[service]
            service.batchSlot = None
            if not self._services:
                self._stop()

    def _dismiss(self, services: Sequence[HeartBeater]) -> None:
        for service in services:
            self.leave(service)
        for service in services:
            service.dismissed()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended: all heartbeats are due, and requests under way wait on broken connections."""
        self._notBefore = 0.0
        now = self._clock.seconds()
        for service in self._services:
            service.deadline -= stoodStill
            self._schedule.put(service, now)
        self._endRequests()
        self._setTimer()

    def _stop(self) -> None:
        self._suspends.discard(self._resumed)
        self._schedule = Schedule()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._endRequests()

    def _endRequests(self) -> None:
        for request in list(self._underWay):
            request.cancel()
        self._late.end()

    def _setTimer(self) -> None:
        """Set the timer for the service that is due next."""
        due = self._schedule.next
        if due is None:
            return
        now = self._clock.seconds()
        moment = max(due, self._notBefore, now)
        if len(self._underWay) >= (self.AT_ONCE if self._isReduced else 1):
            # One request after the other, on one connection, unless that one hangs.
            moment = max(moment, min(self._underWay.values()) + self.PATIENCE)
        if self._timer is None:
            self._timer = self._clock.callLater(moment - now, self._sendDue)
        elif self._timerDue != moment:
            self._timer.reset(moment - now)
        self._timerDue = moment

    def _sendDue(self) -> None:
        self._timer = None
        self._stalls.wasDue(self._timerDue)
        if not self._isOffered():
            self._dismiss(list(self._services))
            return
        now = self._clock.seconds()
        services = self._schedule.take(now, max(1, self._most))
        if services:
            self._request(services, now)
        self._setTimer()

    def _request(self, services: list[HeartBeater], sent: float) -> None:
        timeout = min(patienceFor(service.deadline - sent, service.heartbeatTimeout) for service in services)
        entries = [service.entry(sent) for service in services]

        def late(failure: Failure) -> float:
            more = runOnAfter(timeout)
            if more:
                # It runs on beside the next one.
                over(failure)
                self._late.add(request)
            return more

        def over(result: Any) -> None:
            isCurrent = self._underWay.pop(request, None) is not None
            if isCurrent:
                self._stalls.wasDue(sent + timeout)
            if not isinstance(result, Failure):
                self._succeeded(len(services))
                self._answered(services, entries, result, sent, isCurrent)
            elif isCurrent:
                self._failed(result, services)
            self._setTimer()

        request = maybeDeferred(self._send, entries, timeout=timeout, whenLate=late)
        self._underWay[request] = sent
        request.addBoth(over).addErrback(self._broken)

    def _succeeded(self, count: int) -> None:
        self._accepted = max(self._accepted, count)
        limit = self._held if self._clock.seconds() < self._heldUntil else self.MOST
        self._most = max(self._most, min(limit, 4 * count))
        self._backoff.reset()
        self._notBefore = 0.0
        self._alone = None
        self._outage.succeeded()
        if not self._isReduced:
            self._refusals.succeeded(count=count)

    def _answered(
        self, services: list[HeartBeater], entries: list[Any], outcomes: list[Any], sent: float, isCurrent: bool
    ) -> None:
        for service, entry, outcome in zip(services, entries, outcomes, strict=True):
            token = outcome.get("token")
            # One that has left meanwhile, or joined again, is not concerned; nor is one without a response so far that
            # was answered by another try. The next try reports refusals.
            isLate = not isCurrent and service.batchSlot is not None and service.nextToken == entry["token"]
            if service.batchSlot is not services and not (isLate and token is not None):
                continue
            if token is None:
                self._dismiss([service])
            else:
                self._schedule.put(service, sent + service.interval)
                service.answered(sent, token)

    def _failed(self, failure: Failure, services: Sequence[HeartBeater]) -> None:
        waiting = [service for service in services if service.batchSlot is services]
        error, count, reason = failure.value, len(services), failure.getErrorMessage()
        if error is None or not waiting:
            return
        if isinstance(error, ClientClosed):
            # The heartbeat that each sends fails in the same way, which ends it.
            self._dismiss(waiting)
            return
        if not isinstance(error, ServiceRegistryError):
            self._log.failure("A batch of heartbeats failed unexpectedly (retrying)", failure)
        mayBeSize = isRefusal(error) or (isUnknown(error) and self._backoff.failures > 0)
        moment, isSingle = self._clock.seconds(), False
        if mayBeSize and count > self._accepted:
            # Smaller ones are sent at once.
            self._most = self._accepted or min(count - 1, 1)
            if self._most == self._accepted:
                # A refusal takes little time, so that sizes in between can be tried.
                self._held = (self._most + count) // 2 if isRefusal(error) else self._most
                self._heldUntil = moment + self.HOLD
            self._refusals.failed(count=count, reason=reason)
            if not self._most:
                self._dismiss(list(self._services))
                return
        else:
            delay = self._backoff.next()
            moment = self._notBefore = moment + min(service.retryDelay(delay) for service in waiting)
            # One that has lost its registration does not show whether single heartbeats are accepted.
            isSingle = mayBeSize and (self._alone is None or self._alone.nextToken is None)
            # A service that sends single heartbeats reports an outage itself.
            if self._backoff.failures > 1 and not (isSingle and count == 1):
                self._outage.failed(names=_named(waiting), reason=reason, cause=error)
        for service in waiting:
            if service.batchSlot is services:
                self._schedule.put(service, moment)
                service.missed()
        # The listeners that were called above may have stopped some of them.
        left = [service for service in waiting if service in self._services]
        if isSingle and left:
            self.leave(left[0])
            self._alone = left[0]
            left[0].dismissed()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("Heartbeat batching failed unexpectedly; single heartbeats are sent", failure)
        self._dismiss(list(self._services))


def _named(services: Sequence[HeartBeater]) -> str:
    """These services and locks in a log line."""
    if len(services) == 1:
        return f"{services[0].what} {services[0].serviceId}"
    kinds = " and ".join(sorted({f"{service.what}s" for service in services}, reverse=True))
    more = len(services) - _NAMED
    names = ", ".join(service.serviceId for service in services[:_NAMED])
    return f"{kinds} {names}{f' and {more} more' if more > 0 else ''}"
