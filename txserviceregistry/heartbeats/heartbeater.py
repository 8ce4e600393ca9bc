"""HeartBeater: keeps one service registered, from its start to its stop."""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..api.services import ServicesAPI
from ..clock import SuspendWatch
from ..errors import BadRequest, Forbidden, NotFound, ServiceExists, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import HeartbeatToken
from ..util.deferred import LONGEST_DELAY, Backoff, Waiters, delayBefore, patienceFor
from ..util.logs import Listeners, Logger
from .attempts import Attempts, HealthCheck, HeartbeatContext, StallWatch

# While another service holds the id, the registration is retried this often (seconds).
_ID_TAKEN_DELAY = 2.0


class State(str, Enum):
    """The states of a HeartBeater, as strings. Each may become ``STOPPED``."""

    REGISTERING = "registering"  # the registry does not have the service; then REGISTERED
    REGISTERED = "registered"  # from the registration, or the start with a token; then another state
    UNREACHABLE = "unreachable"  # the deadline passed without a response; then REGISTERED or REGISTERING
    STOPPED = "stopped"


REGISTERING, REGISTERED, UNREACHABLE, STOPPED = State


def refusesToken(error: BaseException) -> bool:
    """Whether the registry refused the token of a heartbeat. Its service may still be registered."""
    return isinstance(error, BadRequest) or (isinstance(error, NotFound) and "HeartbeatMarker" in error.details)


class HeartBeater:
    """
    Sends the heartbeats of one service, from :meth:`start` to :meth:`stop`.

    While heartbeats succeed, and the registry accepts batches, the client's HeartbeatBatcher sends them. Otherwise it
    makes one try after the other: it calls the health check, waits for its turn among the services of the client, and
    sends a heartbeat, or registers the service. It retries the sooner the nearer the deadline is.

    ``client.services.create()`` and ``register()`` make one; most applications use a
    :class:`~txserviceregistry.RegisteredService` instead.

    :ivar serviceId: the service's id.
    :ivar heartbeatTimeout: seconds without a heartbeat after which the service expires.
    :ivar interval: seconds between two heartbeats, drawn once from 0.9 to 1.0 of *heartbeatInterval*, so that services
        that start together do not send at the same time.
    :ivar nextToken: the token that the next heartbeat presents; ``None`` while the service is not registered.
    :ivar provenToken: the last token that was accepted, in case that the next one is another service's.
    :ivar hadNoToken: whether the registry refused the token of the last registration, and accepted none since. That
        token may be another service's, so the service may still be registered.
    :ivar deadline: when the service expires without another heartbeat, in seconds of the clock: the heartbeat timeout
        after the *sending* of the last one that was answered.
    :ivar lastSeen: when that one was sent; ``None`` before the first.
    :ivar registersAgain: whether it registers the service again when the registry loses it.
    :ivar state: ``registering``, ``registered``, ``unreachable`` or ``stopped``.
    """

    _log = Logger()
    what = "service"  # for the log
    # Most services have none of these. Up to 30 attributes an object has no dictionary: there can be thousands.
    _health: HealthCheck | None = None
    _stopped: Waiters[None] | None = None
    _listeners: Listeners[[str]] | None = None
    desired: object = None  # set by the client, which has a weak reference to it
    _orphanUntil = math.inf  # when a service expires that a registration without a response may have created

    def __init__(
        self,
        services: ServicesAPI,
        serviceId: str,
        heartbeatTimeout: float,
        token: str | None = None,
        *,
        clock: IReactorTime | None = None,
        register: Callable[[], Deferred[str]] | None = None,
        check: Callable[[], Any] | None = None,
        context: HeartbeatContext | None = None,
        keep: Callable[[str, str], None] | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param services: sends the heartbeats: a client's ``services``.
        :param token: the token of the registration; without one, *register* is called first.
        :param clock: the clock; the global reactor if it is not given.
        :param register: registers the service again and fires with its token; called when the registry no longer has
            the service, and retried until it succeeds. Without it such a loss ends the HeartBeater.
        :param check: returns true, or a Deferred or coroutine of it, while the application is healthy. While it returns
            anything else, raises or takes too long, nothing is sent. With it, heartbeats are not batched.
        :param context: shared by the HeartBeaters of a client, which have the same clock.
        :param keep: called with each token that a heartbeat returns, before it is used, and the one that it presented.
        :param random: returns numbers from 0 to 1.
        """
        if token is None and register is None:
            raise ValueError("HeartBeater needs a token, or a function that registers the service")
        if clock is None:
            from twisted.internet import reactor

            clock = reactor
        self.serviceId = serviceId
        self.heartbeatTimeout = heartbeatTimeout
        self.nextToken = token
        self.provenToken: str | None = None
        self.hadNoToken = False
        self.lastSeen: float | None = None
        self.deadline = clock.seconds() + heartbeatTimeout
        self._services, self._register, self._keep = services, register, keep
        self.registersAgain = register is not None
        self._clock = clock
        self._random = random
        self._context = context = context or HeartbeatContext(StallWatch(clock), SuspendWatch(clock))
        if check is not None:
            self._health = HealthCheck(check, serviceId, clock, random)
        self._batcher = context.batcher if check is None else None
        # The batcher's own: where it keeps the service, and when its next heartbeat is due.
        self.batchSlot: object = None
        self.batchDue = 0.0
        self.state = STOPPED.value
        self._lost: Failure | None = None
        self._attempts = Attempts(clock, context.stalls, self._drawInterval())

    def __repr__(self) -> str:
        return f"<HeartBeater of {self.serviceId!r}: {self.state}>"

    @property
    def running(self) -> bool:
        """Whether it sends heartbeats: from :meth:`start` until :meth:`stop`, or until the service is lost for good."""
        return self.state != STOPPED

    @property
    def healthy(self) -> bool:
        """Whether the registry must still have the service: it is registered, and its deadline has not passed."""
        return self.nextToken is not None and self.deadline > self._clock.seconds()

    def onStateChange(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the new ``state`` whenever it changes. Errors of a listener are logged."""
        if self._listeners is None:
            self._listeners = Listeners(self._log, f"the state of service {self.serviceId}")
        self._listeners.add(listener)

    def _transition(self, to: State) -> None:
        """Enter a state. This comes last: a listener may stop the HeartBeater, or change its timeout."""
        before, self.state = self.state, to.value
        if to != before and self._listeners is not None:
            self._listeners.call(to.value)

    # -- starting and stopping

    def start(self, sent: float | None = None) -> None:
        """
        Begin to send heartbeats: the first one at once, or an interval after the registration was *sent*, if that is
        known. Does nothing if it is running.
        """
        if self.running:
            return
        if self._health is not None:
            self._health.reset()
        now = self._clock.seconds()
        if self.lastSeen is None:
            # If it is not known when the registration was sent: just now, most likely.
            self.deadline = (now if sent is None else sent) + self.heartbeatTimeout
        self._transition(REGISTERING if self.nextToken is None else REGISTERED)
        if self.running and not self._joinBatcher(now if sent is None else sent + self.interval):
            self._beginTry()

    def stop(self) -> Deferred[None]:
        """Stop sending heartbeats. The service stays registered until it expires. Fires at once, and never fails."""
        if self.running:
            self._end(None)
        return succeed(None)

    def whenStopped(self) -> Deferred[None]:
        """
        Wait until :meth:`stop` has stopped it; fires at once if it does not run. Fails with ``NotFound`` when the
        registry no longer has the service and there is no way to register it again, and with ``BadRequest`` or
        ``Forbidden`` when the registry will not accept it.
        """
        if not self.running:
            return succeed(None) if self._lost is None else fail(self._lost)
        self._stopped = Waiters() if self._stopped is None else self._stopped
        return self._stopped.wait()

    def _end(self, lost: Failure | None) -> None:
        self._lost = lost
        self._forgetTries()
        if self._batcher is not None:
            self._batcher.leave(self)
        self._transition(STOPPED)
        if self._stopped is not None:
            self._stopped.fire(lost)

    @property
    def heartbeatInterval(self) -> float:
        """Nominal seconds between two heartbeats: 0.6 of a timeout below 15 s, 0.8 of a longer one."""
        # A delay of the network is a larger part of a short timeout.
        return self.heartbeatTimeout * (0.6 if self.heartbeatTimeout < 15 else 0.8)

    def _drawInterval(self) -> Backoff:
        self.interval = self.heartbeatInterval * (0.9 + 0.1 * self._random())
        return Backoff(0.1, min(LONGEST_DELAY, self.interval / 2), self._random)

    def retryDelay(self, delay: float) -> float:
        """Seconds to the next heartbeat: *delay*, but fewer near the deadline, and at most half an interval."""
        return delayBefore(min(delay, self.interval / 2), self.deadline - self._clock.seconds())

    def setTimeout(self, heartbeatTimeout: int) -> None:
        """The service may have another heartbeat timeout: send a heartbeat at once, and others as often as it needs."""
        self.deadline = min(self.deadline, self._clock.seconds() + heartbeatTimeout)
        self.heartbeatTimeout = heartbeatTimeout
        self._attempts.backoff = self._drawInterval()
        self.sendNow()

    def sendNow(self) -> None:
        """Send a heartbeat at once, instead of one that is under way. Does nothing while there is no registration."""
        if self._batcher is not None and self.batchSlot is not None:
            self._batcher.leave(self)
            self._batcher.join(self, self._clock.seconds())
        elif self.running and self.nextToken is not None:
            self._beginTry()

    def _joinBatcher(self, due: float) -> bool:
        """Have heartbeats sent in batches, if the registry accepts these; the next one at that time at the latest."""
        if self._batcher is None or self.nextToken is None or not self._batcher.isOffered:
            return False
        self._forgetTries()
        self._batcher.join(self, due)
        return True

    def dismissed(self) -> None:
        """This service is not batched any more: its heartbeat was refused, or the registry accepts no batches."""
        if self._makesTries:
            self._beginTry()

    @property
    def _makesTries(self) -> bool:
        return self.batchSlot is None and self.running

    # -- tries

    def _beginTry(self) -> None:
        """Begin a try now, instead of one under way."""
        self._attempts.end()
        self._context.suspends.add(self._resumed)
        self._try()

    def _forgetTries(self) -> None:
        """Leave nothing on the reactor, and forget the failures."""
        self._context.suspends.discard(self._resumed)
        self._attempts.end()
        self._attempts.forget()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended, and the clock stood still for so many seconds of it."""
        self.deadline -= stoodStill
        self._attempts.backoff.reset()
        # A registration that is under way goes on.
        if self.nextToken is not None or self._attempts.timer is not None:
            self._beginTry()

    def _try(self) -> None:
        health = self._health
        if health is None:
            self._takeTurn()
            return
        # A third of the seconds that are left when a heartbeat is due, as for the heartbeat itself, and at least one.
        timeout = max(1.0, (self.heartbeatTimeout - self.heartbeatInterval) / 3)
        suspended = "registration" if self.nextToken is None else "heartbeats"

        def checked(passes: bool, isCurrent: bool) -> None:
            if passes:
                self._takeTurn()
            else:
                self._retry(health.nextDelay(self.interval))

        self._attempts.wait(lambda late: health.passes(timeout, suspended), checked, self._broken)

    def _takeTurn(self) -> None:
        """Wait until few enough ask the registry. The service that needs a response first is first."""
        turns, deadline, send = self._context.turns, self.deadline, self._heartbeat
        if self.nextToken is None:
            turns, deadline, send = self._context.registrations, self._orphanUntil, self._registerOnce

        def taken(result: object, isCurrent: bool) -> None:
            self._attempts.turn = turns
            send()

        self._attempts.wait(lambda late: turns.take(deadline), taken, self._broken)

    def _registerOnce(self) -> None:
        sent, register = self._clock.seconds(), self._register
        self.provenToken = None
        assert register is not None

        def over(result: str | Failure, isCurrent: bool) -> None:
            if isinstance(result, Failure):
                if isUnknown(result.value) and not sent < self._orphanUntil < math.inf:
                    self._orphanUntil = sent + self.heartbeatTimeout
                self._failed(result)
            else:
                self._attempts.succeeded()
                self.nextToken = result
                self.deadline = sent + self.heartbeatTimeout
                self._goOn(sent)

        self._attempts.wait(lambda late: register(), over, self._broken)

    def _heartbeat(self) -> None:
        sent = self._clock.seconds()
        token = self.entry(sent)["token"]
        timeout = patienceFor(self.deadline - sent, self.heartbeatTimeout)

        def over(result: HeartbeatToken | Failure, isCurrent: bool) -> None:
            if isCurrent:
                self._context.stalls.wasDue(sent + timeout)
            elif self.nextToken != token:
                # Another try was answered before this late one, or the service was registered again.
                return
            if not isinstance(result, Failure):
                self._attempts.succeeded()
                self.answered(sent, result["token"])
            elif isCurrent or self._isGone(result.value):
                self._failed(result)

        self._attempts.wait(lambda late: self.request(token, timeout, late), over, self._broken, timeout)

    def entry(self, sent: float) -> dict[str, str]:
        """Its entry in a batch, or its data for a single heartbeat, sent at this time."""
        return {"id": self.serviceId, "token": self.nextToken or ""}

    def request(self, token: str, timeout: float, whenLate: WhenLate) -> Deferred[HeartbeatToken]:
        """Send a single heartbeat."""
        return self._services.heartbeat(self.serviceId, token, timeout=timeout, whenLate=whenLate)

    # -- outcomes

    def answered(self, sent: float, token: str) -> None:
        """A heartbeat that was sent at that time was answered with this token."""
        proven = self.nextToken
        if self._keep is not None and proven is not None:
            self._keep(token, proven)
        self.provenToken = proven
        self.nextToken = token
        self.lastSeen = sent
        self.deadline = sent + self.heartbeatTimeout
        if self.batchSlot is None or self.state != REGISTERED:
            self._goOn(sent)

    def _goOn(self, sent: float) -> None:
        due = sent + self.interval
        if self._makesTries and not self._joinBatcher(due):
            self._attempts.end()
            self._attempts.later(max(0.0, due - self._clock.seconds()), self._try)
        if self.state != REGISTERED and self.running:
            self._transition(REGISTERED)

    def missed(self) -> None:
        """A heartbeat had no response; it is retried."""
        if self.deadline <= self._clock.seconds():
            self._transition(UNREACHABLE)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if self._isGone(error):
            self._refused(failure)
            return
        # Only our own errors are known to hold no secret.
        reason = str(error) if isinstance(error, ServiceRegistryError) else type(error).__name__
        delay = self._attempts.failed(self.what, self.serviceId, reason, error)
        if isinstance(error, ServiceExists):
            delay = _ID_TAKEN_DELAY * (1 - self._random() / 2)
        elif self.nextToken is None:
            # A registry that can't register services is not flooded with registrations.
            delay = delayBefore(delay, self._orphanUntil - self._clock.seconds(), self.heartbeatTimeout / 30)
        self._retry(delay)

    def _retry(self, delay: float) -> None:
        isRegistered = self.nextToken is not None
        self._attempts.later(self.retryDelay(delay) if isRegistered else delay, self._try)
        if isRegistered:
            self.missed()

    def _broken(self, failure: Failure) -> None:
        text = "Heartbeats for {what} {serviceId} failed unexpectedly (retrying)"
        self._log.failure(text, failure, what=self.what, serviceId=self.serviceId)
        if self._makesTries and self._attempts.timer is None and self._attempts.work is None:
            self._attempts.giveTurn()
            self._retry(self._attempts.backoff.next())

    def _isGone(self, error: BaseException | None) -> bool:
        """Whether the registry does not have the service, or will never accept its registration or heartbeats."""
        if isinstance(error, NotFound):
            return self.nextToken is not None
        return isinstance(error, (BadRequest, Forbidden, ClientClosed))

    def _refused(self, failure: Failure) -> None:
        error, proven = failure.value, self.provenToken
        if not self._makesTries or error is None:
            return
        if self.nextToken is not None and proven not in (None, self.nextToken) and refusesToken(error):
            self.nextToken = proven
            reason = "the registry does not know the token of its last response, which may be another's"
            self._attempts.failed(self.what, self.serviceId, reason)
            self._beginTry()
        elif isinstance(error, (ClientClosed, Forbidden)) or self._register is None or self.nextToken is None:
            self.nextToken = None
            text, reason = "Heartbeats for {what} {serviceId} ended: {reason}", failure.getErrorMessage()
            self._log.error(text, what=self.what, serviceId=self.serviceId, reason=reason)
            self._end(failure)
        else:
            self.hadNoToken = refusesToken(error) and proven is None
            self.nextToken = None
            reason = "the registry no longer has it, and it is being registered again"
            self._attempts.failed(self.what, self.serviceId, reason, error, isCertain=True)
            self._transition(REGISTERING)
            if self.running:
                self._beginTry()
