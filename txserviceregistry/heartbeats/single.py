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

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..api.services import ServicesAPI
from ..errors import BadRequest, Forbidden, NotFound, ServiceExists, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import HeartbeatToken
from ..util.backoff import LONGEST_DELAY, SHORTEST_TRY, Backoff, LateTries, delayBefore, patienceFor, runOnAfter
from ..util.concurrency import PrioritySemaphore
from ..util.logs import Logger, Outage
from ..util.suspend import SuspendWatch
from .healthcheck import HealthCheck
from .stalls import StallWatch

_log = Logger()

#: The warning when heartbeats, or registrations, begin to fail.
HEARTBEAT_FAILED = "Heartbeat failed for {what} {serviceId}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {what} {serviceId} succeed again after {seconds:.1f} s"

# Below this timeout (seconds) heartbeats are relatively more frequent: a delay of a few hundred milliseconds is a
# larger part of a short timeout.
_SHORT_TIMEOUT = 15
# The shortest time limit of a health check, in seconds.
_SHORTEST_CHECK = 1.0
# While a service may exist whose registration had no response, the delays are not shorter than this part of its
# timeout: a registry that can't register services must not be flooded with registrations.
_SHORTEST_UNHEARD = 1 / 30
# While another service holds the id, the registration is retried this often (seconds).
_ID_TAKEN_DELAY = 2.0


class Batcher(Protocol):
    """The part of :class:`~txserviceregistry.heartbeats.batching.HeartbeatBatcher` that a HeartBeater uses."""

    @property
    def isOffered(self) -> bool: ...

    def join(self, service: Any, due: float) -> None: ...

    def leave(self, service: Any) -> None: ...


@attrs.frozen
class HeartbeatContext:
    """
    Shared by the HeartBeaters of one client, so that there can be thousands of them.

    :ivar stalls: the clock, which notices that the reactor stood still.
    :ivar suspends: notices that the machine was suspended.
    :ivar turns: bounds the heartbeat requests at once.
    :ivar registrations: bounds the registrations at once.
    :ivar batcher: batches heartbeats; ``None`` if each HeartBeater sends its own.
    """

    stalls: StallWatch
    suspends: SuspendWatch
    turns: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    registrations: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    batcher: Batcher | None = None


class SingleHeartbeats:
    """One service, and its heartbeats and registrations as single requests: what HeartBeater inherits; see there."""

    # For the log.
    what = "service"
    # Most services never have one of these. Up to 30 attributes an object has no dictionary of its own: there can be
    # thousands.
    _health: HealthCheck | None = None
    _late: LateTries | None = None
    _outage: Outage | None = None

    def __init__(
        self,
        services: ServicesAPI,
        serviceId: str,
        heartbeatTimeout: float,
        token: str | None,
        register: Callable[[], Deferred[str]] | None,
        health: HealthCheck | None,
        context: HeartbeatContext,
        clock: IReactorTime,
        random: Callable[[], float],
    ) -> None:
        self.serviceId = serviceId
        self.heartbeatTimeout = heartbeatTimeout
        self.nextToken = token
        # The last token that was accepted. Tried when the next one is refused, which may be another service's.
        self.provenToken: str | None = None
        self._services = services
        self._register = register
        if health is not None:
            self._health = health
        self._context = context
        self._clock = clock
        self._random = random
        self.deadline = clock.seconds() + heartbeatTimeout
        # When a service expires whose registration had no response, if it exists.
        self._unheardUntil = float("-inf")
        # The next try; or what the current one waits for, and the turn that it has; and those that are late.
        self._timer: IDelayedCall | None = None
        self._work: Deferred[Any] | None = None
        self._turn: PrioritySemaphore | None = None
        self._drawInterval()

    # -- what HeartBeater adds

    @property
    def _makesTries(self) -> bool:
        raise NotImplementedError

    def answered(self, sent: float, token: str) -> None:
        """A heartbeat that was sent at that time was answered with this token."""
        raise NotImplementedError

    def missed(self) -> None:
        """A heartbeat had no response; it is retried."""
        raise NotImplementedError

    def _goOn(self, sent: float) -> None:
        """Have the next heartbeat sent an interval after that time."""
        raise NotImplementedError

    def _refused(self, failure: Failure) -> None:
        raise NotImplementedError

    # -- times

    @property
    def heartbeatInterval(self) -> float:
        """Nominal seconds between two heartbeats: 0.6 of a timeout below 15 s, 0.8 of a longer one."""
        return self.heartbeatTimeout * (0.6 if self.heartbeatTimeout < _SHORT_TIMEOUT else 0.8)

    def _drawInterval(self) -> None:
        self.interval = self.heartbeatInterval * (0.9 + 0.1 * self._random())
        self._backoff = Backoff(0.1, min(LONGEST_DELAY, self.interval / 2), self._random)

    def retryDelay(self, delay: float) -> float:
        """
        Seconds to wait after a heartbeat had no response: *delay*, but fewer near the deadline, and at most half an
        interval. So a registry that is back gets each heartbeat well within one interval.
        """
        return delayBefore(min(delay, self.interval / 2), self.deadline - self._clock.seconds())

    def slept(self, seconds: float) -> None:
        """The deadline is nearer than the clock says: it stood still for so many seconds."""
        self.deadline -= seconds

    # -- tries

    def _beginTry(self) -> None:
        """Begin a try now, instead of those under way."""
        self._endTries()
        self._context.suspends.add(self._resumed)
        self._try()

    def _forgetTries(self) -> None:
        """Leave nothing on the reactor, and forget the failures."""
        self._context.suspends.discard(self._resumed)
        self._endTries()
        self._backoff.reset()
        if self._outage is not None:
            self._outage = None
        self._unheardUntil = float("-inf")

    def _beginAt(self, moment: float) -> None:
        """Begin the next try at that time of the clock. Running tries have lost their purpose."""
        self._endTries()
        self._timer = self._context.stalls.callLater(max(0.0, moment - self._clock.seconds()), self._try)

    def _endTries(self) -> None:
        """End the current try, or the wait for it, and those that are late."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        self._giveTurn()
        if self._late is not None:
            self._late.end()

    def _giveTurn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended, and the clock stood still for so many seconds of it."""
        self.slept(stoodStill)
        self._unheardUntil -= stoodStill
        self._backoff.reset()
        # A registration that is under way goes on.
        if self.nextToken is not None or self._timer is not None:
            self._beginTry()

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
        health = self._health
        if health is None:
            self._takeTurn()
            return
        # A third of the seconds that are left when a heartbeat is due, as for the heartbeat itself.
        timeout = max(_SHORTEST_CHECK, (self.heartbeatTimeout - self.heartbeatInterval) / 3)
        suspended = "registration" if self.nextToken is None else "heartbeats"

        def checked(passes: bool) -> None:
            if passes:
                self._takeTurn()
            else:
                left = 0.0 if self.nextToken is None else self.deadline - self._clock.seconds()
                self._retry(health.nextDelay(self.interval, left))

        self._await(partial(health.passes, timeout, suspended), checked)

    def _takeTurn(self) -> None:
        """Wait until few enough ask the registry. The service that needs a response first is first."""
        if self.nextToken is not None:
            turns, deadline = self._context.turns, self.deadline
        else:
            turns = self._context.registrations
            deadline = self._unheardUntil if self._unheardUntil > self._clock.seconds() else float("inf")
        self._await(partial(turns.take, deadline), partial(self._ask, turns))

    def _ask(self, turns: PrioritySemaphore, _: None) -> None:
        self._turn = turns
        sent = self._clock.seconds()
        if self.nextToken is not None:
            self._heartbeat(sent, self.entry(sent)["token"])
        else:
            self.provenToken = None
            assert self._register is not None
            self._await(self._register, partial(self._registered, sent))

    def _registered(self, sent: float, result: str | Failure) -> None:
        if isinstance(result, Failure):
            if isUnknown(result.value) and self._unheardUntil <= sent:
                self._unheardUntil = sent + self.heartbeatTimeout
            self._failed(result)
        else:
            self._succeeded()
            self.nextToken = result
            self.deadline = sent + self.heartbeatTimeout
            self._goOn(sent)

    def entry(self, sent: float) -> dict[str, str]:
        """Its entry in a batch, or its data for a single heartbeat, sent at this time."""
        return {"id": self.serviceId, "token": self.nextToken or ""}

    def request(self, token: str, timeout: float, whenLate: WhenLate) -> Deferred[HeartbeatToken]:
        """Send a single heartbeat."""
        return self._services.heartbeat(self.serviceId, token, timeout=timeout, whenLate=whenLate)

    def _heartbeat(self, sent: float, token: str) -> None:
        timeout = patienceFor(self.deadline - sent, self.heartbeatTimeout)

        def late(failure: Failure) -> float:
            more = runOnAfter(timeout)
            if more:
                # If there are many, the first is cancelled, whose connection may be what this one has waited for.
                self._late = self._late or LateTries()
                self._late.add(request)
                over(failure)
            return more

        def over(result: HeartbeatToken | Failure) -> None:
            if self._work is request:
                self._giveTurn()
            isCurrent = self._work is request
            if isCurrent:
                self._work = None
                self._context.stalls.wasDue(sent + timeout)
            elif self.nextToken != token:
                # Another try was answered before this late one, or the service was registered again.
                return
            if not isinstance(result, Failure):
                self._succeeded()
                self.answered(sent, result["token"])
            elif isCurrent or self._isGone(result.value):
                self._failed(result)

        self._work = request = self.request(token, timeout, late)
        request.addBoth(over).addErrback(self._broken)

    def _succeeded(self) -> None:
        if self._backoff.failures:
            self._backoff.reset()
        if self._outage is not None:
            self._outage.succeeded()
            self._outage = None

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if self._isGone(error):
            self._refused(failure)
            return
        # Only our own errors are known to hold no secret.
        self._noteOutage(str(error) if isinstance(error, ServiceRegistryError) else type(error).__name__)
        if isinstance(error, ServiceExists):
            self._retry(_ID_TAKEN_DELAY * (1 - self._random() / 2))
        elif self.nextToken is not None:
            self._retry(self.retryDelay(self._backoff.next()))
        else:
            shortest = max(SHORTEST_TRY, self.heartbeatTimeout * _SHORTEST_UNHEARD)
            self._retry(delayBefore(self._backoff.next(), self._unheardUntil - self._clock.seconds(), shortest))

    def _retry(self, delay: float) -> None:
        self._timer = self._context.stalls.callLater(delay, self._try)
        if self.nextToken is not None:
            self.missed()

    def _broken(self, failure: Failure) -> None:
        text = "Heartbeats for {what} {serviceId} failed unexpectedly (retrying)"
        _log.failure(text, failure, what=self.what, serviceId=self.serviceId)
        if self._makesTries and self._timer is None and self._work is None:
            self._giveTurn()
            self._retry(self.retryDelay(self._backoff.next()))

    def _isGone(self, error: BaseException | None) -> bool:
        """
        Whether the registry has no such service, never accepts its registration, or lets this user neither register it
        nor send heartbeats. Errors of these classes are faults of the API.
        """
        if isinstance(error, NotFound):
            return self.nextToken is not None
        return isinstance(error, (BadRequest, Forbidden, ClientClosed))

    def _noteOutage(self, reason: str, *, isCertain: bool = False) -> None:
        """A try failed for this *reason*. A second one follows at once, unless it *isCertain* that it fails too."""
        if self._outage is None:
            service: Any = {"what": self.what, "serviceId": self.serviceId}
            self._outage = Outage(_log, self._clock, HEARTBEAT_FAILED, _SUCCEED_AGAIN, after=2, **service)
        self._outage.failed(reason=reason, isCertain=isCertain)
