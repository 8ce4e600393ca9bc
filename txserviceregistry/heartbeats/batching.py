"""
Heartbeat batching: heartbeats of several services that are due close together are sent in one request.

It needs a registry with the extension ``heartbeats``. A service joins when its
:class:`~txserviceregistry.HeartBeater` starts, or when a heartbeat of its own has been answered. It leaves, so that its
HeartBeater sends single heartbeats, as soon as its heartbeat is refused. So this module contains the common case only,
which costs next to nothing for each service.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..util.backoff import LateTries, patienceFor, runOnAfter
from ..util.logs import Logger, Outage
from ..util.suspend import SuspendWatch
from .batchsize import Action, BatchProbe, BatchSize, isRefusal
from .heartbeater import HeartBeater
from .stalls import StallWatch

# How many services a log line names.
_NAMED = 5
_FAILED = "Heartbeats failed for {names}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {names} succeed again after {seconds:.1f} s"

_Entries = Sequence[Mapping[str, str]]
_Tokens = Sequence[str | None]


class HeartbeatBatcher:
    """
    The heartbeats of all services of one client that need nothing but heartbeats.

    A heartbeat may be sent early by a tenth of its interval, together with one that is due; it is never sent late.

    :param send: sends heartbeats, the entries of a batch. It is late after so many seconds, and calls the third
        argument then. Fires with a token for each, or ``None`` for one that was refused.
    :param isOffered: whether the registry accepts batches.
    """

    #: Heartbeats in one request at most: the extension's limit.
    MOST = 1000
    #: The most requests at once while large batches are refused.
    AT_ONCE = 2
    #: After so many seconds without a response, the next request does not wait for this one.
    PATIENCE = 1.0

    _log = Logger()

    def __init__(
        self,
        send: Callable[[_Entries, float, WhenLate], Deferred[_Tokens]],
        isOffered: Callable[[], bool],
        clock: StallWatch,
        random: Callable[[], float] = randomModule.random,
        *,
        suspends: SuspendWatch,
    ) -> None:
        self._suspends = suspends
        self._send = send
        self._isOffered = isOffered
        self._clock = clock
        self._services: dict[HeartBeater, None] = {}
        # In it may be some who have left.
        self._schedule = Schedule()
        self._timer: IDelayedCall | None = None
        # When each request under way was sent, without those that are late.
        self._underWay: dict[Deferred[_Tokens], float] = {}
        self._late = LateTries()
        self._size = BatchSize(self.MOST, clock.seconds)
        self._probe = BatchProbe(self._size, self.MOST, random)
        # After a failure, nothing is sent before this time.
        self._notBefore = 0.0
        self._outage = Outage(self._log, clock, _FAILED, _SUCCEED_AGAIN)

    @property
    def isOffered(self) -> bool:
        """Whether services can join. If even the smallest batch was refused, one service at a time tries again."""
        return self._isOffered() and (self._size.most > 0 or (self._size.mayTry and not self._services))

    def join(self, service: HeartBeater, due: float) -> None:
        """Take a service in. Its next heartbeat is sent by *due*, in seconds of the clock."""
        if self._probe.isBack(service):
            self._notBefore = 0.0
        if not self._services:
            self._suspends.add(self._resumed)
        self._services[service] = None
        self._schedule.put(service, due - service.interval)
        self._setTimer()

    def leave(self, service: HeartBeater) -> None:
        """Let a service go; nothing is sent for it any more. One that is not here causes no error."""
        self._probe.alone.discard(service)
        self._remove(service)
        if not self._services:
            self._stop()

    def _remove(self, service: HeartBeater) -> None:
        if service in self._services:
            del self._services[service]
            service.batchSlot = None
            if not self._services:
                self._suspends.discard(self._resumed)

    def _dismiss(self, services: Sequence[HeartBeater]) -> None:
        for service in services:
            self._remove(service)
        if not self._services:
            self._stop()
        for service in services:
            service.dismissed()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended: all heartbeats are due, and requests under way wait on broken connections."""
        self._schedule.clear()
        self._notBefore = 0.0
        now = self._clock.seconds()
        for service in self._services:
            service.slept(stoodStill)
            self._schedule.put(service, now - service.interval)
        self._endRequests()
        self._setTimer()

    def _stop(self) -> None:
        self._schedule.clear()
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._endRequests()

    def _endRequests(self) -> None:
        for request in list(self._underWay):
            request.cancel()
        self._late.end()

    # -- sending

    def _setTimer(self) -> None:
        """Set the timer for the service that is due next."""
        due = self._schedule.next
        if due is None:
            return
        now = self._clock.seconds()
        moment = max(due, self._notBefore, now)
        if len(self._underWay) >= (self.AT_ONCE if self._size.isLimited else 1):
            # One request after the other, on one connection, unless that one hangs.
            moment = max(moment, min(self._underWay.values()) + self.PATIENCE)
        if self._timer is None:
            self._timer = self._clock.callLater(moment - now, self._sendDue)
        elif self._timer.getTime() != moment:
            self._timer.reset(moment - now)

    def _sendDue(self) -> None:
        self._timer = None
        if not self._isOffered():
            self._dismiss(list(self._services))
            return
        now = self._clock.seconds()
        services = self._schedule.take(now, self._probe.most)
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

        def over(result: _Tokens | Failure) -> None:
            isCurrent = self._underWay.pop(request, None) is not None
            if isCurrent:
                self._clock.wasDue(sent + timeout)
            if not isinstance(result, Failure):
                self._probe.accepted(len(services))
                self._notBefore = 0.0
                self._outage.succeeded()
                if isCurrent:
                    self._answered(services, result, sent)
                else:
                    self._answeredLate(services, entries, result, sent)
            elif isCurrent:
                self._failed(result, services)
            elif isRefusal(result.value) and not self._probe.alone:
                # The next try is under way; the one after it is smaller.
                self._probe.refused(len(services), result.getErrorMessage())
            self._setTimer()

        request = maybeDeferred(self._send, entries, timeout, late)
        self._underWay[request] = sent
        request.addBoth(over).addErrback(self._broken)

    # -- responses

    def _answered(self, services: Sequence[HeartBeater], tokens: _Tokens, sent: float) -> None:
        for service, token in zip(services, tokens, strict=True):
            # One that has left meanwhile, or joined again, is not concerned.
            if service.batchSlot is not services:
                continue
            if token is None:
                self._remove(service)
                service.dismissed()
            else:
                self._schedule.put(service, sent)
                service.answered(sent, token)

    def _answeredLate(self, services: Sequence[HeartBeater], entries: _Entries, tokens: _Tokens, sent: float) -> None:
        """A service with another token by now was answered by another try. The next try reports refusals."""
        for service, entry, token in zip(services, entries, tokens, strict=True):
            if token is not None and service in self._services and service.nextToken == entry["token"]:
                self._schedule.put(service, sent)
                service.answered(sent, token)

    def _failed(self, failure: Failure, services: Sequence[HeartBeater]) -> None:
        waiting = [service for service in services if service.batchSlot is services]
        error = failure.value
        if error is None or not waiting:
            return
        if isinstance(error, ClientClosed):
            # The heartbeat that each sends fails in the same way, which ends it.
            self._dismiss(waiting)
            return
        reason = failure.getErrorMessage()
        if not isinstance(error, ServiceRegistryError):
            self._log.failure("A batch of heartbeats failed unexpectedly (retrying)", failure)
        action, delay, aloneCount = self._probe.failed(error, len(services), reason)
        if action is Action.DISSOLVE:
            self._dismiss(list(self._services))
            return
        moment = self._clock.seconds()
        if action is Action.RETRY:
            # Services that send single heartbeats report an outage themselves.
            if self._probe.failures > 1 and not (aloneCount and len(services) == 1):
                self._outage.failed(names=_named(waiting), reason=reason)
            moment = self._notBefore = moment + min(service.retryDelay(delay) for service in waiting)
        for service in waiting:
            if service.batchSlot is services:
                self._schedule.put(service, moment - service.interval)
                service.missed()
        # The listeners that were called above may have stopped some of them.
        alone = [service for service in waiting if service in self._services][:aloneCount]
        self._probe.alone.update(alone)
        self._dismiss(alone)

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


class _Slot(list[HeartBeater]):
    """
    Services whose heartbeats are due close together, in no order.

    :ivar due: when the first of them is due.
    """

    due = float("inf")

    def add(self, service: HeartBeater, due: float) -> None:
        service.batchSlot = self
        if due < self.due:
            self.due = due
        self.append(service)


def _dueOf(service: HeartBeater) -> float:
    return service.batchSince + service.interval


class Schedule:
    """
    Services by the time at which their heartbeats are due.

    They are sorted only if they are too many for one request: a heap of single heartbeats would be sifted for each of
    them. With ten thousand services, few are in the CPU's cache when they are due, so that every object that a
    heartbeat touches costs time. So a slot has the services themselves, and these have attributes for it. A service
    that has left, or has moved to another slot, names that one.
    """

    #: The part of its interval by which a heartbeat may be early, together with one that is due.
    EARLY = 0.1
    #: Heartbeats that are due within so many seconds of each other share a slot.
    SLOT = 0.02

    def __init__(self) -> None:
        # The slots by number, and a heap of these numbers.
        self._slots: dict[int, _Slot] = {}
        self._numbers: list[int] = []

    def put(self, service: HeartBeater, since: float) -> None:
        """Have a heartbeat sent an interval after this time, at the latest, and none at another time."""
        service.batchSince = since
        due = since + service.interval
        number = int(due // self.SLOT)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heappush(self._numbers, number)
        slot.add(service, due)

    def clear(self) -> None:
        """Forget all services."""
        self._slots.clear()
        self._numbers.clear()

    @property
    def next(self) -> float | None:
        """When the first heartbeat is due; ``None`` if there is none."""
        return self._slots[self._numbers[0]].due if self._numbers else None

    def take(self, now: float, most: int) -> list[HeartBeater]:
        """
        Take out the services that are due, and those that may be early. Until they are put back, or elsewhere, the list
        is their ``batchSlot``.

        :param most: how many at most; those that are due first.
        """
        taken: list[HeartBeater] = []
        while self._numbers:
            slot = self._slots[self._numbers[0]]
            if len(slot) > most - len(taken):
                slot.sort(key=_dueOf)
            stay = _Slot()
            for service in slot:
                if service.batchSlot is not slot:
                    continue
                if len(taken) < most and service.batchSince + (1 - self.EARLY) * service.interval <= now:
                    service.batchSlot = taken
                    taken.append(service)
                else:
                    stay.add(service, _dueOf(service))
            if stay:
                self._slots[self._numbers[0]] = stay
                break
            del self._slots[heappop(self._numbers)]
        return taken
