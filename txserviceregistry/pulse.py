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
from itertools import count
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from .backoff import Backoff
from .errors import ServiceRegistryError
from .jsontransport import ClientClosed
from .stalls import StallWatch

__all__ = ["Beating", "Pulse"]

# How many services are named in a line of the log.
_NAMED = 5


class Beating(Protocol):
    """
    A service as its pulse sees it.

    :ivar serviceId: its id.
    :ivar nextToken: the token that its next heartbeat presents.
    :ivar interval: seconds between two heartbeats.
    """

    serviceId: str
    nextToken: str | None
    interval: float

    def secondsLeft(self) -> float:
        """How long it has to live without an answer."""

    def tryTimeout(self) -> float:
        """How many seconds its next heartbeat may take."""

    def answered(self, sent: float, token: str) -> None:
        """The heartbeat that was sent at that time (of the clock) was answered with this token."""

    def missed(self) -> None:
        """A heartbeat had no answer; there will be another try."""

    def dismissed(self) -> None:
        """It is left alone from now on: its heartbeat was refused, or there is no pulse any more."""


class Pulse:
    """
    The heartbeats of all services of one client that need nothing but heartbeats.

    A beat may go early by a tenth of its interval, to travel with one that is due; it is never late.

    :param send: sends heartbeats, pairs of ids and tokens, within so many seconds. Fires with a token for each, or
        ``None`` for one that was refused.
    :param isOffered: whether the registry takes them together.
    :param clock: the time, which notices when it stood still.
    :param random: gives numbers from 0 to 1.
    """

    #: The part of its interval by which a beat may go early.
    EARLY = 0.1
    #: Heartbeats in one request at most: the extension's limit.
    MOST = 1000
    #: Seconds after which a request that has no answer is not waited for by those that fall due behind it.
    PATIENCE = 1.0
    #: The longest time that a request is given, in seconds: a third of the longest timeout.
    LONGEST_TRY = 40.0
    #: The shortest pause between two tries after the first, and the longest, in seconds.
    SHORTEST_PAUSE = 0.05
    LONGEST_PAUSE = 15.0

    _log = Logger()

    def __init__(
        self,
        send: Callable[[Sequence[tuple[str, str]], float], Deferred[Sequence[str | None]]],
        isOffered: Callable[[], bool],
        clock: StallWatch,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        self._send = send
        self._isOffered = isOffered
        self._clock = clock
        # When each is due; a service whose number is another one by now counts for nothing.
        self._due: list[tuple[float, int, Beating]] = []
        self._numbers = count()
        self._members: dict[Beating, int] = {}
        self._call: IDelayedCall | None = None
        self._underWay: dict[Deferred[Sequence[str | None]], float] = {}
        self._backoff = Backoff(0.1, self.LONGEST_PAUSE, random)
        self._notBefore = 0.0
        # When the services began to have no answer, and which ones, for the log.
        self._trouble: tuple[float, str] | None = None

    @property
    def isOffered(self) -> bool:
        """Whether services can come here."""
        return self._isOffered()

    def join(self, service: Beating, due: float) -> None:
        """
        Take a service in.

        :param due: when its next heartbeat has to go, at the latest, in seconds of the clock.
        """
        self._put(service, due)
        self._schedule()

    def leave(self, service: Beating) -> None:
        """Let a service go; nothing is sent for it any more. One that is not here is no error."""
        self._members.pop(service, None)
        if not self._members:
            self._stop()

    def _put(self, service: Beating, due: float) -> None:
        number = next(self._numbers)
        self._members[service] = number
        heappush(self._due, (due, number, service))

    def _stop(self) -> None:
        self._due.clear()
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        for request in list(self._underWay):
            request.cancel()

    # -- sending

    def _schedule(self) -> None:
        """See to it that what is due next goes in time."""
        while self._due and self._members.get(self._due[0][2]) != self._due[0][1]:
            heappop(self._due)
        if not self._due:
            return
        now = self._clock.seconds()
        moment = max(self._due[0][0], self._notBefore, now)
        if self._underWay:
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
        services: list[Beating] = []
        timeout = self.LONGEST_TRY
        due, members = self._due, self._members
        while due and len(services) < self.MOST:
            moment, number, service = due[0]
            if members.get(service) != number:
                heappop(due)
                continue
            if moment - self.EARLY * service.interval > now:
                break
            heappop(due)
            timeout = min(timeout, service.tryTimeout())
            services.append(service)
        if services:
            self._request(services, now, timeout)
        self._schedule()

    def _request(self, services: list[Beating], now: float, timeout: float) -> None:
        request = self._send([(service.serviceId, service.nextToken or "") for service in services], timeout)
        self._underWay[request] = now
        numbers = [self._members[service] for service in services]

        def over(result: Sequence[str | None] | Failure) -> None:
            del self._underWay[request]
            self._clock.wasDue(now + timeout)
            # Who has left meanwhile, or come back, is not concerned.
            here = [self._members.get(service) == number for service, number in zip(services, numbers, strict=True)]
            if isinstance(result, Failure):
                self._failed(result, [service for service, isHere in zip(services, here, strict=True) if isHere])
            else:
                self._answered(services, here, result, now)
            self._schedule()

        request.addBoth(over).addErrback(self._broken)

    def _answered(
        self, services: Sequence[Beating], here: Sequence[bool], tokens: Sequence[str | None], sent: float
    ) -> None:
        self._backoff.reset()
        self._notBefore = 0.0
        if self._trouble is not None:
            (began, names), self._trouble = self._trouble, None
            seconds = self._clock.seconds() - began
            self._log.info("{names} heartbeated again, after {seconds:.1f} s", names=names, seconds=seconds)
        for service, isHere, token in zip(services, here, tokens, strict=True):
            if not isHere:
                continue
            if token is None:
                self._members.pop(service)
                service.dismissed()
            else:
                service.answered(sent, token)
                self._put(service, sent + service.interval)

    def _failed(self, failure: Failure, services: Sequence[Beating]) -> None:
        if failure.check(ClientClosed) or not services:
            return
        now = self._clock.seconds()
        delay = self._backoff.next()
        if self._backoff.failures > 1 and self._trouble is None:
            names = _named([service.serviceId for service in services])
            self._trouble = now, names
            self._log.warn("{names} not heartbeated: {reason}", names=names, reason=failure.getErrorMessage())
        if not failure.check(ServiceRegistryError):
            self._log.failure("A request with heartbeats met an error of this library's own", failure)
        for service in services:
            left = service.secondsLeft()
            # Whoever comes back meets each service again well within one interval.
            delay = min(delay, service.interval / 2)
            if left > 0:
                # A quarter of what is left for the pause and a third for each try leave room for two of them.
                delay = min(delay, max(left / 4, self.SHORTEST_PAUSE))
        self._notBefore = now + delay
        for service in services:
            self._put(service, now + delay)
            service.missed()

    def _dismissAll(self) -> None:
        services = list(self._members)
        self._members.clear()
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
