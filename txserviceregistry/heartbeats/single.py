"""
Single heartbeats: the requests of one service that is not batched, one try after the other.

A try calls the health check, if there is one, waits for its turn among the services of the client, and sends a
heartbeat, or registers the service while it is not registered. A try that fails is repeated, the sooner the nearer the
deadline is. A heartbeat that is late runs on beside the next one, and the first response counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from ..errors import ServiceExists, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import HeartbeatToken
from ..util.backoff import Backoff
from ..util.concurrency import PrioritySemaphore
from ..util.logs import Logger
from ..util.outage import Outage
from ..util.tries import LONGEST_DELAY, SHORTEST_TRY, LateTries, delayBefore, patienceFor, runOnAfter
from .batching import HeartbeatContext
from .healthcheck import HealthCheck
from .schedule import BatchedService

#: The warning when heartbeats, or registrations, begin to fail.
HEARTBEAT_FAILED = "Heartbeat failed for {what} {serviceId}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {what} {serviceId} succeed again after {seconds:.1f} s"

# The shortest time limit of a health check, in seconds.
_SHORTEST_CHECK = 1.0
# While a service may exist whose registration had no response, the delays are not shorter than this part of its
# timeout: a registry that can't register services must not be flooded with registrations.
_SHORTEST_UNHEARD = 1 / 30
# While another service holds the id, the registration is retried this often (seconds).
_ID_TAKEN_DELAY = 2.0


class HeartbeatRequests(Protocol):
    """What a HeartBeater needs of :class:`~txserviceregistry.heartbeats.services.ServicesClient`."""

    def heartbeat(
        self, id: str, token: str, *, timeout: float | None = None, whenLate: WhenLate | None = None
    ) -> Deferred[HeartbeatToken]: ...


class SingleService(BatchedService, Protocol):
    """What :class:`SingleSender` needs of a :class:`~txserviceregistry.HeartBeater`, which describes it."""

    @property
    def heartbeatInterval(self) -> float: ...

    @property
    def running(self) -> bool: ...

    def registered(self, sent: float, token: str) -> None: ...

    def isGone(self, error: BaseException | None) -> bool: ...

    def refused(self, failure: Failure) -> None: ...


class SingleSender:
    """
    Sends the single heartbeats and registrations of a service, from :meth:`begin` to :meth:`end`.

    :param service: is called with each outcome.
    :param services: sends the heartbeats.
    :param register: registers the service, and fires with its token.
    :param health: the health check.
    :param context: what the services of a client share.
    :param random: gives numbers from 0 to 1.
    """

    _log = Logger()

    def __init__(
        self,
        service: SingleService,
        services: HeartbeatRequests,
        register: Callable[[], Deferred[str]],
        health: HealthCheck | None,
        context: HeartbeatContext,
        random: Callable[[], float],
    ) -> None:
        self._service = service
        self._services = services
        self._register = register
        self._health = health
        self._context = context
        self._clock = context.stalls
        self._random = random
        self._backoff = Backoff(0.1, min(LONGEST_DELAY, service.interval / 2), random)
        # When a service expires whose registration had no response, if it exists.
        self._unheardUntil = float("-inf")
        # The next try; or what the current one waits for, and the turn that it has; and those that are late.
        self._timer: IDelayedCall | None = None
        self._work: Deferred[Any] | None = None
        self._turn: PrioritySemaphore | None = None
        self._late = LateTries()
        self._outage: Outage | None = None

    def begin(self) -> None:
        """Begin a try now, instead of those under way."""
        self._endTries()
        self._context.suspends.add(self._resumed)
        self._try()

    def beginAt(self, moment: float) -> None:
        """Begin the next try at that time of the clock. Those under way have lost their purpose."""
        self._endTries()
        self._timer = self._clock.callLater(max(0.0, moment - self._clock.seconds()), self._try)

    def end(self) -> None:
        """Leave nothing on the reactor."""
        self._context.suspends.discard(self._resumed)
        self._endTries()

    def _endTries(self) -> None:
        self._endTry()
        self._late.end()

    def _endTry(self) -> None:
        """End the current try, or the wait for it."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        self._giveTurn()

    def _giveTurn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended, and the clock stood still for so many seconds of it."""
        self._service.slept(stoodStill)
        self._unheardUntil -= stoodStill
        self._backoff.reset()
        # A registration that is under way goes on.
        if self._service.nextToken is not None or self._timer is not None:
            self.begin()

    # -- one try

    def _await(self, begin: Callable[[], Deferred[Any]], then: Callable[[Any], None]) -> None:
        """Let the current try wait for what *begin* starts. Call *then* with the outcome, unless the try is ended."""

        def over(result: Any) -> None:
            # The turn goes to another service, and what that one calls may end this try.
            if self._work is work:
                self._giveTurn()
            if self._work is work:
                self._work = None
                then(result)

        # So may what begins: a health check, for example, may stop the application.
        self._work = beginning = Deferred[Any](lambda it: it.callback(None))
        work = begin()
        if self._work is beginning:
            self._work = work
            work.addBoth(over).addErrback(self._broken)
        else:
            work.addErrback(lambda _: None).cancel()

    def _try(self) -> None:
        self._timer = None
        health, service = self._health, self._service
        if health is None:
            self._takeTurn()
            return
        # A third of the seconds that are left when a heartbeat is due, as for the heartbeat itself.
        timeout = max(_SHORTEST_CHECK, (service.heartbeatTimeout - service.heartbeatInterval) / 3)
        suspended = "registration" if service.nextToken is None else "heartbeats"

        def checked(passes: bool) -> None:
            if passes:
                self._takeTurn()
            else:
                left = 0.0 if service.nextToken is None else service.deadline - self._clock.seconds()
                self._retry(health.nextDelay(service.interval, left))

        self._await(partial(health.passes, timeout, suspended), checked)

    def _takeTurn(self) -> None:
        """Wait until few enough ask the registry. The service that needs a response first is first."""
        if self._service.nextToken is not None:
            turns, deadline = self._context.turns, self._service.deadline
        else:
            turns = self._context.registrations
            deadline = self._unheardUntil if self._unheardUntil > self._clock.seconds() else float("inf")
        self._await(partial(turns.take, deadline), partial(self._ask, turns))

    def _ask(self, turns: PrioritySemaphore, _: None) -> None:
        self._turn = turns
        sent = self._clock.seconds()
        if self._service.nextToken is not None:
            self._heartbeat(sent, self._service.entry(sent)["token"])
        else:
            self._await(self._register, partial(self._registered, sent))

    def _registered(self, sent: float, result: str | Failure) -> None:
        if isinstance(result, Failure):
            if isUnknown(result.value) and self._unheardUntil <= sent:
                self._unheardUntil = sent + self._service.heartbeatTimeout
            self._failed(result)
        else:
            self._succeeded()
            self._service.registered(sent, result)

    def _heartbeat(self, sent: float, token: str) -> None:
        timeout = patienceFor(self._service.deadline - sent, self._service.heartbeatTimeout)

        def late(failure: Failure) -> float:
            more = runOnAfter(timeout)
            if more:
                # If there are many, the first is cancelled, whose connection may be what this one has waited for.
                self._late.add(request)
                over(failure)
            return more

        def over(result: HeartbeatToken | Failure) -> None:
            if self._work is request:
                self._giveTurn()
            isCurrent = self._work is request
            if isCurrent:
                self._work = None
                self._clock.wasDue(sent + timeout)
            elif self._service.nextToken != token:
                # Another try was answered before this late one, or the service was registered again.
                return
            if not isinstance(result, Failure):
                self._succeeded()
                self._service.answered(sent, result["token"])
            elif isCurrent or self._service.isGone(result.value):
                self._failed(result)

        self._work = request = self._services.heartbeat(self._service.serviceId, token, timeout=timeout, whenLate=late)
        request.addBoth(over).addErrback(self._broken)

    # -- its outcome

    def _succeeded(self) -> None:
        self._backoff.reset()
        outage, self._outage = self._outage, None
        if outage is not None:
            outage.succeeded()

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        # If it is one that was late, the one after it ends too.
        self._endTry()
        if isinstance(error, ClientClosed) or self._service.isGone(error):
            self._service.refused(failure)
            return
        # Only our own errors are known to hold no secret.
        self.noteOutage(str(error) if isinstance(error, ServiceRegistryError) else type(error).__name__)
        if isinstance(error, ServiceExists):
            self._retry(_ID_TAKEN_DELAY * (1 - self._random() / 2))
        elif self._service.nextToken is not None:
            self._retry(self._service.retryDelay(self._backoff.next()))
        else:
            shortest = max(SHORTEST_TRY, self._service.heartbeatTimeout * _SHORTEST_UNHEARD)
            self._retry(delayBefore(self._backoff.next(), self._unheardUntil - self._clock.seconds(), shortest))

    def _retry(self, delay: float) -> None:
        self._timer = self._clock.callLater(delay, self._try)
        if self._service.nextToken is not None:
            self._service.missed()

    def _broken(self, failure: Failure) -> None:
        self._log.failure(
            "Heartbeats for {what} {serviceId} failed unexpectedly (retrying)",
            failure,
            what=self._service.what,
            serviceId=self._service.serviceId,
        )
        if self._service.running and self._timer is None and self._work is None:
            self._retry(self._service.retryDelay(self._backoff.next()))

    def noteOutage(self, reason: str, *, isCertain: bool = False) -> None:
        """
        A try failed for this reason.

        :param isCertain: whether a second try, which follows at once, can't succeed.
        """
        if self._outage is None:
            self._outage = Outage(
                self._log,
                self._clock,
                HEARTBEAT_FAILED,
                _SUCCEED_AGAIN,
                after=2,
                what=self._service.what,
                serviceId=self._service.serviceId,
            )
        self._outage.failed(reason=reason, isCertain=isCertain)
