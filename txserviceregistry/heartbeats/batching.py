"""
Heartbeat batching: heartbeats of several services that are due close together are sent in one request.

It needs a registry with the extension ``heartbeats``. A service joins when its
:class:`~txserviceregistry.HeartBeater` starts, or when a heartbeat of its own has been answered. It leaves, so that its
HeartBeater sends single heartbeats, as soon as its heartbeat is refused. So this module contains the common case only,
which costs next to nothing for each service.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import RequestTimedOut, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..util.backoff import Backoff
from ..util.logs import Logger
from ..util.suspend import SuspendWatch
from ..util.tries import LateTries, delayBefore, runOnAfter
from .batchsize import BatchSize, isRefusal
from .stalls import StallWatch

# How many services a log line names.
_NAMED = 5
# After so many failures in a row a batch that is refused is split although one of its size was accepted before, and
# after so many one that fails in another way.
_MANY_REFUSALS = 2
_MANY_FAILURES = 5


class BatchedService(Protocol):
    """
    A service as :class:`HeartbeatBatcher` needs it.

    :ivar serviceId: its id.
    :ivar nextToken: the token that its next heartbeat presents.
    :ivar interval: seconds between two heartbeats.
    :ivar pulseSlot: the pulse's own: where the service is kept; ``None`` if it is not here.
    :ivar pulseSince: the same: when its next heartbeat is due, less the interval.
    """

    serviceId: str
    nextToken: str | None
    interval: float
    batchSlot: object
    batchSince: float

    def secondsLeft(self) -> float:
        """Seconds to its deadline."""

    def tryTimeout(self) -> float:
        """After how many seconds its next heartbeat is late."""

    def answered(self, sent: float, token: str) -> None:
        """The heartbeat that was sent at that time (of the clock) was answered with this token."""

    def slept(self, seconds: float) -> None:
        """The clock stood still for so many seconds: its deadline is nearer than it seems."""

    def missed(self) -> None:
        """A heartbeat had no response; it is retried."""

    def dismissed(self) -> None:
        """It sends single heartbeats from now on: its heartbeat was refused, or batching has ended."""


class _Slot:
    """
    Services whose heartbeats are due close together. They are sorted only if they are too many for one request: a heap
    of single heartbeats would be sifted for each of them.

    With ten thousand services, few are in the CPU's cache when they are due, so that every object that a heartbeat
    touches costs time. So the service itself is kept here, and has attributes for the :class:`HeartbeatBatcher`. A
    service that has left, or has moved to another slot, names that one.

    :ivar due: when the first of them is due.
    """

    __slots__ = ("due", "services")

    def __init__(self) -> None:
        self.due = float("inf")
        self.services: list[BatchedService] = []

    def add(self, service: BatchedService, due: float) -> None:
        service.batchSlot = self
        if due < self.due:
            self.due = due
        self.services.append(service)


def _dueOf(service: BatchedService) -> float:
    return service.batchSince + service.interval


class HeartbeatBatcher:
    """
    The heartbeats of all services of one client that need nothing but heartbeats.

    A heartbeat may be sent early by a tenth of its interval, together with one that is due; it is never sent late.

    :param send: sends heartbeats, pairs of ids and tokens. It is late after so many seconds, and calls the third
        argument then. Fires with a token for each, or ``None`` for one that was refused.
    :param isOffered: whether the registry accepts batches.
    :param clock: the time, which notices when it stood still.
    :param random: gives numbers from 0 to 1.
    :param suspends: notices that the machine was suspended; one of its own by default.
    """

    #: The part of its interval by which a heartbeat may be early.
    EARLY = 0.1
    #: Heartbeats that are due within so many seconds of each other share a slot.
    SLOT = 0.02
    #: Heartbeats in one request at most: the extension's limit.
    MOST = 1000
    #: The most requests at once while large batches are refused.
    AT_ONCE = 2
    #: After so many seconds without a response, the next request does not wait for this one.
    PATIENCE = 1.0
    #: The longest time that a request is given, in seconds: a third of the longest timeout.
    LONGEST_TRY = 40.0
    #: The longest pause between two tries, in seconds.
    LONGEST_PAUSE = 15.0

    _log = Logger()

    def __init__(
        self,
        send: Callable[[Sequence[tuple[str, str]], float, WhenLate], Deferred[Sequence[str | None]]],
        isOffered: Callable[[], bool],
        clock: StallWatch,
        random: Callable[[], float] = randomModule.random,
        suspends: SuspendWatch | None = None,
    ) -> None:
        self._suspends = SuspendWatch(clock) if suspends is None else suspends
        self._send = send
        self._isOffered = isOffered
        self._clock = clock
        self._services: dict[BatchedService, None] = {}
        # The slots by number, and a heap of these. In them may be some who have left.
        self._slots: dict[int, _Slot] = {}
        self._due: list[int] = []
        self._call: IDelayedCall | None = None
        self._underWay: dict[Deferred[Sequence[str | None]], float] = {}
        self._late = LateTries()
        self._backoff = Backoff(0.1, self.LONGEST_PAUSE, random)
        self._notBefore = 0.0
        self._size = BatchSize(self.MOST, clock.seconds)
        # Services that were dismissed because batches fail. When one of them is back, its single heartbeat was
        # accepted, and it may be the batch that fails. Until then it is an outage.
        self._dismissed: set[BatchedService] = set()
        # How many of them came back since a batch was accepted.
        self._backAlone = 0
        # How many heartbeats the last batch had that failed, and why it did.
        self._failedCount = 0
        self._failedFor = ""
        # When the services began to have no answer, and which ones, for the log.
        self._trouble: tuple[float, str] | None = None

    @property
    def isOffered(self) -> bool:
        """Whether services can join. If even the smallest batch was refused, one service at a time tries again."""
        return self._isOffered() and (self._size.most > 0 or (self._size.mayTry and not self._services))

    def join(self, service: BatchedService, due: float) -> None:
        """
        Take a service in.

        :param due: the latest time for its next heartbeat, in seconds of the clock.
        """
        if service in self._dismissed:
            self._dismissed.discard(service)
            self._backAlone += 1
            self._notBefore = 0.0
        if not self._services:
            self._suspends.add(self._resumed)
        self._services[service] = None
        self._put(service, due - service.interval)
        self._schedule()

    def leave(self, service: BatchedService) -> None:
        """Let a service go; nothing is sent for it any more. One that is not here is no error."""
        self._dismissed.discard(service)
        self._remove(service)
        if not self._services:
            self._stop()

    def _remove(self, service: BatchedService) -> None:
        if service in self._services:
            del self._services[service]
            service.batchSlot = None
            if not self._services:
                self._suspends.discard(self._resumed)

    def _put(self, service: BatchedService, since: float) -> None:
        service.batchSince = since
        due = since + service.interval
        number = int(due // self.SLOT)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heappush(self._due, number)
        slot.add(service, due)

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended: all heartbeats are due, and requests under way hang on dead connections."""
        self._due.clear()
        self._slots.clear()
        self._notBefore = 0.0
        now = self._clock.seconds()
        for service in self._services:
            service.slept(stoodStill)
            self._put(service, now - service.interval)
        self._endRequests()
        self._schedule()

    def _stop(self) -> None:
        self._due.clear()
        self._slots.clear()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._endRequests()

    def _endRequests(self) -> None:
        for request in list(self._underWay):
            request.cancel()
        self._late.end()

    # -- sending

    def _schedule(self) -> None:
        """Set the timer for the service that is due next."""
        if not self._due:
            return
        now = self._clock.seconds()
        moment = max(self._slots[self._due[0]].due, self._notBefore, now)
        if len(self._underWay) >= (self.AT_ONCE if self._size.isLimited else 1):
            # One request after the other, on one connection, unless that one hangs.
            moment = max(moment, min(self._underWay.values()) + self.PATIENCE)
        if self._call is None:
            self._call = self._clock.callLater(moment - now, self._beat)
        elif self._call.getTime() != moment:
            self._call.reset(moment - now)

    def _beat(self) -> None:
        self._call = None
        if not self._isOffered():
            self._dismissAll()
            return
        now = self._clock.seconds()
        services = self._take(now)
        if services:
            self._request(services, now)
        self._schedule()

    def _take(self, now: float) -> list[BatchedService]:
        """Take out the services that are due, and those that may be early."""
        # A size of one is that of an outage, as long as none that was dismissed is back.
        most = self.MOST if self._dismissed and self._size.most <= 1 else max(1, self._size.most)
        taken: list[BatchedService] = []
        while self._due:
            slot = self._slots[self._due[0]]
            services = slot.services
            if len(services) > most - len(taken):
                services.sort(key=_dueOf)
            stay = _Slot()
            for service in services:
                if service.batchSlot is not slot:
                    continue
                if len(taken) < most and service.batchSince + (1 - self.EARLY) * service.interval <= now:
                    service.batchSlot = taken
                    taken.append(service)
                else:
                    stay.add(service, _dueOf(service))
            if stay.services:
                self._slots[self._due[0]] = stay
                break
            del self._slots[heappop(self._due)]
        return taken

    def _request(self, services: list[BatchedService], now: float) -> None:
        timeout = min(self.LONGEST_TRY, *[service.tryTimeout() for service in services])
        beats = [(service.serviceId, service.nextToken or "") for service in services]

        def late(failure: Failure) -> float:
            # It runs on beside the next one.
            more = runOnAfter(timeout)
            if more:
                del self._underWay[request]
                self._clock.wasDue(now + timeout)
                self._failed(failure, services)
                self._late.add(request)
                self._schedule()
            return more

        request = self._send(beats, timeout, late)
        self._underWay[request] = now

        def over(result: Sequence[str | None] | Failure) -> None:
            if request not in self._underWay:
                if not isinstance(result, Failure):
                    self._answeredLate(services, beats, result, now)
                    self._schedule()
                elif isRefusal(result.value) and not self._dismissed:
                    # The next try is under way; the one after it is smaller.
                    self._refused(len(services), result.getErrorMessage())
                return
            del self._underWay[request]
            self._clock.wasDue(now + timeout)
            # A service that has left meanwhile, or joined again, is not concerned.
            if isinstance(result, Failure):
                self._failed(result, services)
            else:
                self._answered(services, result, now)
            self._schedule()

        request.addBoth(over).addErrback(self._broken)

    def _answeredLate(
        self,
        services: Sequence[BatchedService],
        beats: Sequence[tuple[str, str]],
        tokens: Sequence[str | None],
        sent: float,
    ) -> None:
        """A service with another token by now was answered by another try. The next try reports refusals."""
        self._isAnswered(len(services))
        for service, (_, presented), token in zip(services, beats, tokens, strict=True):
            if token is not None and service in self._services and service.nextToken == presented:
                self._put(service, sent)
                service.answered(sent, token)

    def _isAnswered(self, count: int) -> None:
        failures = self._backoff.failures
        self._backoff.reset()
        self._notBefore = 0.0
        if self._backAlone and failures > _MANY_REFUSALS and count < self._failedCount:
            # A smaller one is accepted, and single ones are.
            self._refused(self._failedCount, self._failedFor)
        self._backAlone = 0
        if count >= self._failedCount or self._size.isLimited:
            self._dismissed.clear()
        wasLimited = self._size.isLimited
        self._size.accepted(count)
        if wasLimited and not self._size.isLimited:
            self._log.info("A batch of {count} heartbeats is accepted again", count=count)
        if self._trouble is not None:
            (began, names), self._trouble = self._trouble, None
            seconds = self._clock.seconds() - began
            self._log.info("Heartbeats for {names} succeed again after {seconds:.1f} s", names=names, seconds=seconds)

    def _answered(self, services: Sequence[BatchedService], tokens: Sequence[str | None], sent: float) -> None:
        self._isAnswered(len(services))
        for service, token in zip(services, tokens, strict=True):
            if service.batchSlot is not services:
                continue
            if token is None:
                self._remove(service)
                service.dismissed()
            else:
                self._put(service, sent)
                service.answered(sent, token)

    def _failed(self, failure: Failure, services: Sequence[BatchedService]) -> None:
        waiting = [service for service in services if service.batchSlot is services]
        if failure.check(ClientClosed) or not waiting:
            return
        now = self._clock.seconds()
        self._failedCount = count = len(services)
        self._failedFor = failure.getErrorMessage()
        isRefused = isRefusal(failure.value)
        mayBeBatch = isRefused or isUnknown(failure.value)
        if mayBeBatch and self._isItsSize(isRefused, count) and self._split(waiting, count):
            return
        delay = self._backoff.next()
        isOutage = self._backoff.failures > 1
        mayFindOut = isRefused or self._backAlone > 0 or not self._dismissed
        findOut = mayBeBatch and mayFindOut and (isOutage or (isRefused and not self._size.isProven(count)))
        # One that goes on alone logs that by itself.
        if isOutage and self._trouble is None and not (findOut and count == 1):
            names = _named([service.serviceId for service in waiting])
            self._trouble = now, names
            self._log.warn("Heartbeats failed for {names}: {reason} (retrying)", names=names, reason=self._failedFor)
        if not failure.check(ServiceRegistryError):
            self._log.failure("A batch of heartbeats failed unexpectedly (retrying)", failure)
        for service in waiting:
            # A registry that is back gets each heartbeat well within one interval.
            delay = delayBefore(min(delay, service.interval / 2), service.secondsLeft())
        self._notBefore = now + delay
        for service in waiting:
            if service.batchSlot is services:
                self._put(service, now + delay - service.interval)
                service.missed()
        if findOut:
            # It looks like an outage. The single heartbeat of one service shows whether it is one; if it is accepted,
            # more services send single heartbeats. After another try that takes as long as one that hangs it would be
            # too late for them. The listeners that were called above may have stopped some of them.
            more = count if failure.check(RequestTimedOut) else 4
            alone = [service for service in waiting if service in self._services][: max(1, more * self._backAlone)]
            for service in alone:
                self._remove(service)
            self._dismissed.update(alone)
            for service in alone:
                service.dismissed()

    def _isItsSize(self, isRefused: bool, count: int) -> bool:
        """Whether a batch that failed may have been too large, rather than met an outage."""
        failures = self._backoff.failures
        if self._backAlone and failures >= _MANY_FAILURES:
            # Single heartbeats are accepted meanwhile.
            return True
        if self._dismissed and not self._backAlone:
            return False
        if isRefused and (not self._size.isProven(count) or failures >= _MANY_REFUSALS):
            return True
        return self._size.isTrial(count)

    def _split(self, waiting: Sequence[BatchedService], count: int) -> bool:
        """
        A batch failed as a whole: send it again in halves, and single heartbeats if not even a batch of one is
        accepted.

        :return: false if it is not known whether single heartbeats are accepted.
        """
        self._refused(count, self._failedFor)
        if count == 1 and not self._backAlone and not self._size.isClosed:
            return False
        if count == 1:
            self._size.close()
            self._dismissAll()
            return True
        now = self._clock.seconds()
        for service in waiting:
            self._put(service, now - service.interval)
            service.missed()
        return True

    def _refused(self, count: int, reason: str) -> None:
        if not self._size.isLimited:
            self._log.warn(
                "A batch of {count} heartbeats was not accepted, and smaller ones are sent: {reason}",
                count=count,
                reason=reason,
            )
        self._size.refused(count)

    def _dismissAll(self) -> None:
        services = list(self._services)
        for service in services:
            self._remove(service)
        self._stop()
        for service in services:
            service.dismissed()

    def _broken(self, failure: Failure) -> None:
        self._log.failure("Heartbeat batching failed unexpectedly; single heartbeats are sent", failure)
        self._dismissAll()


def _named(ids: Sequence[str]) -> str:
    """These services in a log line."""
    if len(ids) == 1:
        return f"service {ids[0]}"
    more = len(ids) - _NAMED
    return f"services {', '.join(ids[:_NAMED])}{f' and {more} more' if more > 0 else ''}"
