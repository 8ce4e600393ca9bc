"""
HeartBeater: keeps one service registered, from its start to its stop.

While heartbeats succeed, and the registry accepts batches, the client's
:class:`~txserviceregistry.heartbeats.batching.HeartbeatBatcher` sends them.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..api.services import ServicesAPI
from ..errors import BadRequest, Forbidden, NotFound
from ..http.jsontransport import ClientClosed
from ..util.deferred import Waiters
from ..util.logs import Listeners, Logger
from ..util.suspend import SuspendWatch
from .healthcheck import HealthCheck
from .single import HeartbeatContext, SingleHeartbeats
from .stalls import StallWatch


class _State(Enum):
    """
    The states of a HeartBeater. The values are those of :attr:`HeartBeater.state`.

    ===========  ==============================================  ===============================================
    State        Event                                           Next state
    ===========  ==============================================  ===============================================
    NEW          ``start()``                                     REGISTERED with a token, otherwise REGISTERING
    REGISTERING  the registration is accepted                    REGISTERED
    ..           the registry will never accept it               STOPPED
    ..           the user may not send heartbeats, or register   STOPPED
    REGISTERED   the deadline passes without a response          UNREACHABLE
    ..           the registry no longer has the service          REGISTERING, or STOPPED if it can't register again
    UNREACHABLE  a heartbeat is accepted                         REGISTERED
    ..           the registry no longer has the service          as above
    STOPPED      ``start()``                                     as from NEW
    any          ``stop()``                                      STOPPED
    ===========  ==============================================  ===============================================

    While it runs, it makes tries of its own unless the batcher has it (``batchSlot``).
    """

    NEW = ""
    REGISTERING = "registering"
    REGISTERED = "registered"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"


REGISTERING = _State.REGISTERING.value
REGISTERED = _State.REGISTERED.value
STOPPED = _State.STOPPED.value


def refusesToken(error: BaseException) -> bool:
    """Whether the registry refused the token of a heartbeat. Its service may still be registered."""
    return isinstance(error, BadRequest) or (isinstance(error, NotFound) and "HeartbeatMarker" in error.details)


class HeartBeater(SingleHeartbeats):
    """
    Sends the heartbeats of one service, from :meth:`start` to :meth:`stop`.

    ``client.services.create()`` and ``register()`` make one; most applications use a
    :class:`~txserviceregistry.RegisteredService` instead.

    :ivar serviceId: the service's id.
    :ivar heartbeatTimeout: seconds without a heartbeat after which the service expires.
    :ivar interval: seconds between two heartbeats, drawn once from 0.9 to 1.0 of *heartbeatInterval*, so that services
        that start together do not send at the same time.
    :ivar nextToken: the token that the next heartbeat presents; ``None`` while the service is not registered.
    :ivar deadline: when the service expires, in seconds of the clock, unless another heartbeat is answered: the
        heartbeat timeout after the *sending* of the last one that was.
    :ivar hadNoToken: whether the registry refused the token of the last registration, and accepted none since. That
        token may be another service's, so the service may still be registered.
    :ivar lastSeen: when the last heartbeat that was answered had been sent, in seconds of the clock; ``None`` before
        the first.
    """

    _log = Logger()
    _stopped: Waiters[None] | None = None

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
            anything else, raises or takes too long, nothing is sent.
        :param context: shared by the HeartBeaters of a client, which have the same clock. A service
            with a *check* is not batched.
        :param keep: called with each token that a heartbeat returns, before it is used, and with the token that this
            heartbeat has presented.
        :param random: returns numbers from 0 to 1.
        """
        if token is None and register is None:
            raise ValueError("HeartBeater needs a token, or a function that registers the service")
        if clock is None:
            from twisted.internet import reactor

            clock = reactor
        context = context or HeartbeatContext(StallWatch(clock), SuspendWatch(clock))
        health = None if check is None else HealthCheck(check, serviceId, clock, random)
        super().__init__(services, serviceId, heartbeatTimeout, token, register, health, context, clock, random)
        # Referenced here only: the client has a weak reference to it.
        self.desired: object = None
        self.lastSeen: float | None = None
        self.hadNoToken = False
        self._keep = keep
        # The batcher's own: where it keeps the service, and when its next heartbeat is due, less the interval.
        self._batcher = context.batcher if check is None else None
        self.batchSlot: object = None
        self.batchSince = 0.0
        self._state = _State.NEW
        self._lost: Failure | None = None
        self._listeners: Listeners[[str]] | None = None

    def __repr__(self) -> str:
        return f"<HeartBeater of {self.serviceId!r}: {'running' if self.running else 'stopped'}, {self.state}>"

    # -- state

    @property
    def running(self) -> bool:
        """Whether it sends heartbeats: from :meth:`start` until :meth:`stop`, or until the service is lost for good."""
        return self._state not in (_State.NEW, _State.STOPPED)

    @property
    def registersAgain(self) -> bool:
        """Whether it registers the service again when the registry loses it."""
        return self._register is not None

    @property
    def healthy(self) -> bool:
        """
        Whether the registry must still have the service: it is registered, and its deadline, counted from the sending
        of the last heartbeat that was answered, has not passed.
        """
        return self.nextToken is not None and self.deadline > self._clock.seconds()

    @property
    def state(self) -> str:
        """``registering``, ``registered``, ``unreachable`` (its deadline passed without a response) or ``stopped``."""
        if self._state is _State.NEW:
            return REGISTERING if self.nextToken is None else REGISTERED
        value: str = self._state.value
        return value

    def onStateChange(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the new :attr:`state` whenever it changes. Errors of a listener are logged."""
        if self._listeners is None:
            self._listeners = Listeners(self._log, f"the state of service {self.serviceId}")
        self._listeners.add(listener)

    def _transition(self, to: _State) -> None:
        """Enter a state. This comes last: a listener may stop the HeartBeater, or change its timeout."""
        before = self.state
        self._state = to
        if to.value != before and self._listeners is not None:
            self._listeners.call(to.value)

    # -- starting and stopping

    def start(self, sent: float | None = None) -> None:
        """
        Begin to send heartbeats, the first one at once. Does nothing if it is running.

        :param sent: when the registration was sent, if that is known: the first heartbeat is due an interval later.
        """
        if self.running:
            return
        self._lost = None
        if self._health is not None:
            self._health.reset()
        now = self._clock.seconds()
        if self.lastSeen is None:
            # If it is not known when the registration was sent: just now, most likely.
            self.deadline = (now if sent is None else sent) + self.heartbeatTimeout
        self._transition(_State.REGISTERING if self.nextToken is None else _State.REGISTERED)
        if self.running and not self._joinBatcher(now if sent is None else sent + self.interval):
            self._beginTry()

    def stop(self) -> Deferred[None]:
        """
        Stop sending heartbeats. One that is under way is cancelled. The service stays registered until it expires.
        Fires when nothing is left on the reactor. Never fails.
        """
        if self.running:
            self._end(None)
        return succeed(None)

    def whenStopped(self) -> Deferred[None]:
        """
        Wait until :meth:`stop` has stopped it; fires at once if it does not run. Fails with
        :class:`~txserviceregistry.errors.NotFound` when the registry no longer has the service and there is no way to
        register it again, or with :class:`~txserviceregistry.errors.Forbidden` when the user may not send heartbeats.
        """
        if not self.running:
            return succeed(None) if self._lost is None else fail(self._lost)
        if self._stopped is None:
            self._stopped = Waiters()
        return self._stopped.wait()

    def _end(self, lost: Failure | None) -> None:
        self._lost = lost
        self._forgetTries()
        if self._batcher is not None:
            self._batcher.leave(self)
        self._transition(_State.STOPPED)
        if self._stopped is not None:
            self._stopped.fire(lost)

    # -- times

    def setTimeout(self, heartbeatTimeout: int) -> None:
        """
        The service has another heartbeat timeout, or may have it: send a heartbeat at once, and others as often as it
        needs.
        """
        # The deadline comes no later than it would have come, and no later than the new timeout from now on.
        self.deadline = min(self.deadline, self._clock.seconds() + heartbeatTimeout)
        self.heartbeatTimeout = heartbeatTimeout
        self._drawInterval()
        self.sendNow()

    # -- batches

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
        if self.batchSlot is None or self._state is not _State.REGISTERED:
            self._goOn(sent)

    def _goOn(self, sent: float) -> None:
        due = sent + self.interval
        if self._makesTries and not self._joinBatcher(due):
            self._beginAt(due)
        if self._state is not _State.REGISTERED and self.running:
            self._transition(_State.REGISTERED)

    def missed(self) -> None:
        """A heartbeat had no response; it is retried."""
        if self.deadline <= self._clock.seconds():
            self._transition(_State.UNREACHABLE)

    def _refused(self, failure: Failure) -> None:
        """A request failed because the service is gone (see :meth:`_isGone`)."""
        error, proven = failure.value, self.provenToken
        if not self._makesTries or error is None:
            return
        if self.nextToken is not None and proven not in (None, self.nextToken) and refusesToken(error):
            self.nextToken = proven
            self._noteOutage("the registry does not know the token of its last response, which may be another's")
            self._beginTry()
        elif isinstance(error, (ClientClosed, Forbidden)) or self._register is None or self.nextToken is None:
            self.nextToken = None
            text, reason = "Heartbeats for {what} {serviceId} ended: {reason}", failure.getErrorMessage()
            self._log.error(text, what=self.what, serviceId=self.serviceId, reason=reason)
            self._end(failure)
        else:
            self.hadNoToken = refusesToken(error) and proven is None
            self.nextToken = None
            self._noteOutage("the registry no longer has it, and it is being registered again", isCertain=True)
            self._transition(_State.REGISTERING)
            if self.running:
                self._beginTry()

    @property
    def _makesTries(self) -> bool:
        return self.batchSlot is None and self.running
