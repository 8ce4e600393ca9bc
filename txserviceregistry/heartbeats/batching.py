"""
One pulse for many services: heartbeats that fall due close together travel in one request.

It needs a registry with the extension ``heartbeats``. A service comes here when it begins to beat, or when a heartbeat
of its own has been answered, and leaves, to be looked after by its :class:`~txserviceregistry.HeartBeater` alone, as
soon as there is anything particular about it. So what is done here is what is done nearly always, for all alike, and
costs next to nothing for each.
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
from ..http.jsontransport import ClientClosed, WhenLate
from ..util.backoff import Backoff
from ..util.logs import Logger
from ..util.suspend import SuspendWatch
from ..util.tries import LateTries, delayBefore, runOnAfter
from .batchsize import BatchSize, isRefusal
from .stalls import StallWatch

# How many services are named in a line of the log.
_NAMED = 5
# After so many failures in a row a batch that is refused is split although one of its size was accepted before, and
# after so many one that fails in another way.
_MANY_REFUSALS = 2
_MANY_FAILURES = 5


class Beating(Protocol):
    """
    A service as its pulse sees it.

    :ivar serviceId: its id.
    :ivar nextToken: the token that its next heartbeat presents.
    :ivar interval: seconds between two heartbeats.
    :ivar pulseSlot: the pulse's own: where the service is kept; ``None`` if it is not here.
    :ivar pulseSince: the same: when its next heartbeat is due, less the interval.
    """

    serviceId: str
    nextToken: str | None
    interval: float
    pulseSlot: object
    pulseSince: float

    def secondsLeft(self) -> float:
        """How long it has to live without an answer."""

    def tryTimeout(self) -> float:
        """After how many seconds its next heartbeat is late."""

    def answered(self, sent: float, token: str) -> None:
        """The heartbeat that was sent at that time (of the clock) was answered with this token."""

    def slept(self, seconds: float) -> None:
        """The clock stood still for so many seconds: it has less to live."""

    def missed(self) -> None:
        """A heartbeat had no answer; there will be another try."""

    def dismissed(self) -> None:
        """It is left alone from now on: its heartbeat was refused, or there is no pulse any more."""


class _Slot:
    """
    Those whose beats are due close together, in no order among themselves, which is made only where it matters, when
    they are too many to go together: a heap of single beats would be looked through at every one of them.

    Of ten thousand services, most is in no cache when their time comes, so that everything that is touched for a beat
    is felt. So a service is kept here as it is, and carries what its pulse has to know of it. One that has left, or is
    somewhere else by now, names another slot.

    :ivar due: when the first of them is due.
    """

    __slots__ = ("due", "services")

    def __init__(self) -> None:
        self.due = float("inf")
        self.services: list[Beating] = []

    def add(self, service: Beating, due: float) -> None:
        service.pulseSlot = self
        if due < self.due:
            self.due = due
        self.services.append(service)


def _dueOf(service: Beating) -> float:
    return service.pulseSince + service.interval


class Pulse:
    """
    The heartbeats of all services of one client that need nothing but heartbeats.

    A beat may go early by a tenth of its interval, to travel with one that is due; it is never late.

    :param send: sends heartbeats, pairs of ids and tokens, within so many seconds, and tells when these are over and it
        is given more. Fires with a token for each, or ``None`` for one that was refused.
    :param isOffered: whether the registry takes them together.
    :param clock: the time, which notices when it stood still.
    :param random: gives numbers from 0 to 1.
    :param suspends: notices that the machine was suspended; one of its own by default.
    """

    #: The part of its interval by which a beat may go early.
    EARLY = 0.1
    #: How far apart beats may be due, in seconds, that are kept together until then.
    SLOT = 0.02
    #: Heartbeats in one request at most: the extension's limit.
    MOST = 1000
    #: Requests at once at most, while something on the way refuses large ones.
    AT_ONCE = 2
    #: Seconds after which a request that has no answer is not waited for by those that fall due behind it.
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
        self._services: dict[Beating, None] = {}
        # The slots by number, and a heap of these. In them may be some who have left.
        self._slots: dict[int, _Slot] = {}
        self._due: list[int] = []
        self._call: IDelayedCall | None = None
        self._underWay: dict[Deferred[Sequence[str | None]], float] = {}
        self._late = LateTries()
        self._backoff = Backoff(0.1, self.LONGEST_PAUSE, random)
        self._notBefore = 0.0
        self._size = BatchSize(self.MOST, clock.seconds)
        # Services that were dismissed because batches fail. When one of them is back, the registry takes heartbeats,
        # and it may be the batch that fails. Until then it is an outage.
        self._dismissed: set[Beating] = set()
        # How many of them came back since a batch was accepted.
        self._backAlone = 0
        # How many heartbeats the last batch had that failed, and why it did.
        self._failedCount = 0
        self._failedFor = ""
        # When the services began to have no answer, and which ones, for the log.
        self._trouble: tuple[float, str] | None = None

    @property
    def isOffered(self) -> bool:
        """Whether services can come here. Where batches were refused altogether, one service tries them."""
        return self._isOffered() and (self._size.most > 0 or (self._size.mayTry and not self._services))

    def join(self, service: Beating, due: float) -> None:
        """
        Take a service in.

        :param due: when its next heartbeat has to go, at the latest, in seconds of the clock.
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

    def leave(self, service: Beating) -> None:
        """Let a service go; nothing is sent for it any more. One that is not here is no error."""
        self._dismissed.discard(service)
        self._remove(service)
        if not self._services:
            self._stop()

    def _remove(self, service: Beating) -> None:
        if service in self._services:
            del self._services[service]
            service.pulseSlot = None
            if not self._services:
                self._suspends.discard(self._resumed)

    def _put(self, service: Beating, since: float) -> None:
        service.pulseSince = since
        due = since + service.interval
        number = int(due // self.SLOT)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = _Slot()
            heappush(self._due, number)
        slot.add(service, due)

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended: all heartbeats are due, and what is under way hangs on dead connections."""
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
        """See to it that what is due next goes in time."""
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

    def _take(self, now: float) -> list[Beating]:
        """Take out those who are due first, and who may go with them."""
        # A size of one is that of an outage, as long as none that was dismissed is back.
        most = self.MOST if self._dismissed and self._size.most <= 1 else max(1, self._size.most)
        taken: list[Beating] = []
        while self._due:
            slot = self._slots[self._due[0]]
            services = slot.services
            if len(services) > most - len(taken):
                services.sort(key=_dueOf)
            stay = _Slot()
            for service in services:
                if service.pulseSlot is not slot:
                    continue
                if len(taken) < most and service.pulseSince + (1 - self.EARLY) * service.interval <= now:
                    service.pulseSlot = taken
                    taken.append(service)
                else:
                    stay.add(service, _dueOf(service))
            if stay.services:
                self._slots[self._due[0]] = stay
                break
            del self._slots[heappop(self._due)]
        return taken

    def _request(self, services: list[Beating], now: float) -> None:
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
            # Who has left meanwhile, or come back, is not concerned.
            if isinstance(result, Failure):
                self._failed(result, services)
            else:
                self._answered(services, result, now)
            self._schedule()

        request.addBoth(over).addErrback(self._broken)

    def _answeredLate(
        self,
        services: Sequence[Beating],
        beats: Sequence[tuple[str, str]],
        tokens: Sequence[str | None],
        sent: float,
    ) -> None:
        """Whose token is another one by now was answered by another try. What is refused, the next try is told."""
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
            self._log.info("{names} heartbeated again, after {seconds:.1f} s", names=names, seconds=seconds)

    def _answered(self, services: Sequence[Beating], tokens: Sequence[str | None], sent: float) -> None:
        self._isAnswered(len(services))
        for service, token in zip(services, tokens, strict=True):
            if service.pulseSlot is not services:
                continue
            if token is None:
                self._remove(service)
                service.dismissed()
            else:
                self._put(service, sent)
                service.answered(sent, token)

    def _failed(self, failure: Failure, services: Sequence[Beating]) -> None:
        waiting = [service for service in services if service.pulseSlot is services]
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
            self._log.warn("{names} not heartbeated: {reason}", names=names, reason=self._failedFor)
        if not failure.check(ServiceRegistryError):
            self._log.failure("A request with heartbeats met an error of this library's own", failure)
        for service in waiting:
            # Whoever comes back meets each service again well within one interval.
            delay = delayBefore(min(delay, service.interval / 2), service.secondsLeft())
        self._notBefore = now + delay
        for service in waiting:
            if service.pulseSlot is services:
                self._put(service, now + delay - service.interval)
                service.missed()
        if findOut:
            # It is an outage, as far as is known. One service finds out whether single heartbeats are accepted, and
            # more go alone when that is so. What was told above may have stopped some of them.
            # After another try that takes as long as one that hangs it would be too late for them.
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

    def _split(self, waiting: Sequence[Beating], count: int) -> bool:
        """
        A batch failed as a whole: send it again in halves, and heartbeats by themselves when not even one is accepted
        in a batch.

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
        self._log.failure("The pulse met an error of its own; its services go on alone", failure)
        self._dismissAll()


def _named(ids: Sequence[str]) -> str:
    """Services, and the verb that goes with them."""
    if len(ids) == 1:
        return f"Service {ids[0]} is"
    more = len(ids) - _NAMED
    return f"Services {', '.join(ids[:_NAMED])}{f' and {more} more' if more > 0 else ''} are"
