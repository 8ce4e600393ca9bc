"""
HeartBeater: sends the heartbeats of one registered service.

A LoopingCall sends a heartbeat once an interval. A heartbeat that fails is retried, with shorter delays the nearer the
deadline is. A try that is late runs on beside the next one, and the first response counts. A 404 means that the
registry has lost the service. Then it is registered again, if the HeartBeater was given a way to do so. While
heartbeats succeed, and the registry accepts batches, the :mod:`~txserviceregistry.heartbeats.batching` of the client
sends them.
"""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from ..errors import BadRequest, NotFound, ServiceExists, ServiceRegistryError, isUnknown
from ..http.jsontransport import ClientClosed
from ..http.messages import WhenLate
from ..types import HeartbeatToken
from ..util.backoff import Backoff
from ..util.deferred import returnsDeferred
from ..util.logs import Logger
from ..util.tries import SHORTEST_TRY, LateTries, delayBefore, patienceFor, runOnAfter
from .context import HeartbeatContext
from .healthcheck import HealthCheck

#: The states that a listener is called with; see :meth:`HeartBeater.onStateChange`.
REGISTERING = "registering"
REGISTERED = "registered"
UNREACHABLE = "unreachable"
STOPPED = "stopped"

#: The warning when heartbeats, or registrations, begin to fail.
HEARTBEAT_FAILED = "Heartbeat failed for service {serviceId}: {reason} (retrying)"

# Below this timeout (seconds) heartbeats are relatively more frequent: a delay of a few hundred milliseconds is a
# larger part of a short timeout.
_SHORT_TIMEOUT = 15
# The shortest time limit of a health check, in seconds.
_SHORTEST_CHECK = 1.0
# While a service may exist whose registration had no response, the delays are not shorter than this part of its
# timeout.
_SHORTEST_UNHEARD = 1 / 30
# The longest delay between two tries (seconds), however long the registry has been unreachable.
_LONGEST_DELAY = 15.0
# While another service holds the id, the registration is retried this often (seconds).
_GHOST_DELAY = 2.0


class _Services(Protocol):
    """What a HeartBeater needs of :class:`~txserviceregistry.heartbeats.services.ServicesClient`."""

    def heartbeat(
        self, id: str, token: str, *, timeout: float | None = None, whenLate: WhenLate | None = None
    ) -> Deferred[HeartbeatToken]: ...


def heartbeatIntervalFor(heartbeatTimeout: float) -> float:
    """
    How often a service with this timeout is heartbeated: at 0.6 of a timeout that is below 15 s, else at 0.8 of it.

    :param heartbeatTimeout: in seconds.
    :return: in seconds.
    """
    return heartbeatTimeout * (0.6 if heartbeatTimeout < _SHORT_TIMEOUT else 0.8)


def refusesToken(error: BaseException) -> bool:
    """Whether the registry refused the token of a heartbeat. Its service may still be registered."""
    return isinstance(error, BadRequest) or (isinstance(error, NotFound) and "HeartbeatMarker" in error.details)


class HeartBeater:
    """
    Sends the heartbeats of one service, from :meth:`start` to :meth:`stop`.

    ``client.services.create()`` and ``register()`` make one; most applications use a
    :class:`~txserviceregistry.RegisteredService` instead.

    :ivar serviceId: the service's id.
    :ivar heartbeatTimeout: seconds without a heartbeat after which the service expires.
    :ivar heartbeatInterval: nominal seconds between two heartbeats. The actual interval is drawn once from 0.9 to 1.0
        of it, so that the services of a fleet do not send at the same time.
    :ivar interval: the seconds that were drawn.
    :ivar nextToken: the token that the next heartbeat presents; ``None`` while the service is not registered.
    :ivar hadNoToken: whether the registry refused the token of the last registration, and accepted none since. That
        token may be another service's, so the service may still be registered.
    :ivar lastSeen: when the last heartbeat that was answered had been sent, in seconds of the clock; ``None`` before
        the first.
    """

    __slots__ = (
        "__dict__",  # is made when it is needed: an application's tests may put something in the place of a method
        "__weakref__",
        "_backoff",
        "_batcher",
        "_beat",
        "_clock",
        "_context",
        "_health",
        "_heard",
        "_isBatched",
        "_keep",
        "_late",
        "_lateOutcome",
        "_listeners",
        "_loop",
        "_lost",
        "_provenToken",
        "_random",
        "_register",
        "_services",
        "_state",
        "_stopped",
        "_unheardUntil",
        "_waiting",
        "batchSince",
        "batchSlot",
        "desired",
        "hadNoToken",
        "heartbeatInterval",
        "heartbeatTimeout",
        "interval",
        "lastSeen",
        "nextToken",
        "serviceId",
    )

    _log = Logger()

    def __init__(
        self,
        services: _Services,
        serviceId: str,
        heartbeatTimeout: int,
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
            the service, and tried until it succeeds. Without it such a loss ends the HeartBeater.
        :param check: returns true, or a Deferred or coroutine of it, while the application is healthy. While it returns
            anything else, raises or takes too long, nothing is sent.
        :param fleet: what it shares with the other HeartBeaters of a client, which have the same clock. A service with
            a *check* is not batched.
        :param keep: called with each token that a heartbeat returns, before it is used, and with the token that this
            heartbeat has presented.
        :param random: gives numbers from 0 to 1.
        """
        if token is None and register is None:
            raise ValueError("A HeartBeater needs the token of a registration, or a way to register")
        if clock is None:
            from twisted.internet import reactor

            clock = reactor
        self.serviceId = serviceId
        # Referenced here only: the client has a weak reference to it.
        self.desired: object = None
        self.heartbeatTimeout = heartbeatTimeout
        self.nextToken = token
        self.lastSeen: float | None = None
        self.batchSlot: object = None
        self.batchSince = 0.0
        self._services = services
        self._clock: IReactorTime = clock
        self._register = register
        self._health = None if check is None else HealthCheck(check, serviceId, clock, random)
        self._context = context = context or HeartbeatContext.ofOne(clock)
        self._batcher = context.batcher if check is None else None
        self._keep = keep
        # The last token that was accepted. Tried when the next one is refused, which may be another service's.
        self._provenToken: str | None = None
        self.hadNoToken = False
        self._random = random
        # The earliest time at which the registry can have received the last heartbeat.
        self._heard = clock.seconds()
        # When a service expires whose registration had no response, if it exists.
        self._unheardUntil = float("-inf")
        self._loop: LoopingCall | None = None
        self._isBatched = False
        self._beat: Deferred[None] | None = None
        # Ends the wait before the next try.
        self._waiting: IDelayedCall | None = None
        # Late tries, once there are any, and the outcome of one of them, with which the turn ends.
        self._late: LateTries | None = None
        self._lateOutcome: _LateOutcome | None = None
        self._lost: Failure | None = None
        self._stopped: list[Deferred[None]] = []
        self._listeners: list[Callable[[str], None]] = []
        self._state = REGISTERED if token is not None else REGISTERING
        self._schedule()

    def __repr__(self) -> str:
        return f"<HeartBeater of {self.serviceId!r}: {'running' if self.running else 'stopped'}, {self._state}>"

    # -- state

    @property
    def running(self) -> bool:
        """Whether it sends heartbeats: from :meth:`start` until :meth:`stop`, or until the service is lost for good."""
        return self._loop is not None or self._isBatched

    @property
    def healthy(self) -> bool:
        """
        Whether the registry must still have the service: it is registered, and its deadline, counted from the sending
        of the last beat that was answered, has not passed.
        """
        return self.nextToken is not None and self.secondsLeft() > 0

    @property
    def state(self) -> str:
        """``registering``, ``registered``, ``unreachable`` (its deadline passed without an answer) or ``stopped``."""
        return self._state

    def onStateChange(self, listener: Callable[[str], None]) -> None:
        """
        Call *listener* with the new :attr:`state` whenever it changes. What a listener raises is logged.
        """
        self._listeners.append(listener)

    # -- starting and stopping

    def start(self) -> None:
        """
        Begin to send heartbeats, the first one at once. Does nothing if it is running.
        """
        if self.running:
            return
        self._lost = None
        self._backoff.reset()
        if self._health is not None:
            self._health.reset()
        if self.lastSeen is None:
            # It is not known here when the registration was sent: just now, most likely.
            self._heard = self._clock.seconds()
        self._setState(REGISTERED if self.nextToken is not None else REGISTERING)
        if self.nextToken is None or not self._joinBatcher(self._clock.seconds()):
            self._beatAlone()

    def _beatAlone(self) -> None:
        # A new one each time: a LoopingCall that is started again while its call is in flight runs twice.
        self._context.suspends.add(self._resumed)
        self._loop = loop = LoopingCall(self._turn)
        loop.clock = self._context.stalls
        loop.start(self.interval, now=True)

    def setTimeout(self, heartbeatTimeout: int) -> None:
        """
        The service has another heartbeat timeout, or may have it: send a heartbeat at once, and others as often as it
        needs.

        :param heartbeatTimeout: in seconds.
        """
        # The deadline comes no later than it would have come, and no later than the new timeout from now on.
        now = self._clock.seconds()
        deadline = min(self._heard + self.heartbeatTimeout, now + heartbeatTimeout)
        self._heard = deadline - heartbeatTimeout
        self.heartbeatTimeout = heartbeatTimeout
        self._schedule()
        self.beatNow()

    def _schedule(self) -> None:
        """How often heartbeats go out with the timeout."""
        self.heartbeatInterval = heartbeatIntervalFor(self.heartbeatTimeout)
        self.interval = self.heartbeatInterval * (0.9 + 0.1 * self._random())
        # The delays are at most half an interval, so that a registry that is back gets each heartbeat well within one
        # interval.
        self._backoff = Backoff(0.1, min(_LONGEST_DELAY, self.interval / 2), self._random)

    def beatNow(self) -> None:
        """Send a heartbeat at once, instead of one that is under way. Does nothing if it is not running."""
        if self._batcher is not None and self._isBatched:
            self._batcher.leave(self)
            self._batcher.join(self, self._clock.seconds())
        elif self._loop is not None and self.nextToken is None:
            # A registration goes on.
            self._loop.interval = self.interval
        elif self._loop is not None:
            self._endLoop()
            self._beatAlone()

    def _resumed(self, stoodStill: float) -> None:
        """The machine was suspended, and the clock stood still for so many seconds of it."""
        self.slept(stoodStill)
        self._backoff.reset()
        self.beatNow()
        if self._waiting is not None and self._waiting.active():
            # A registration, whose last try failed before.
            self._waiting.reset(0)

    def slept(self, seconds: float) -> None:
        """The deadline is nearer than the clock says: it stood still for so many seconds."""
        self._heard -= seconds
        self._unheardUntil -= seconds

    def _endLoop(self) -> None:
        self._context.suspends.discard(self._resumed)
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
            beat, self._beat = self._beat, None
            if beat is not None:
                beat.cancel()
            self._endLate()

    def stop(self) -> Deferred[None]:
        """
        Stop sending heartbeats. One that is under way is cancelled. The service stays registered until it expires.

        :return: fires with ``None`` when nothing is left on the reactor. Never fails.
        """
        wasRunning = self.running
        self._endLoop()
        self._isBatched = False
        if wasRunning:
            self._end(None)
        return _succeeded()

    def whenStopped(self) -> Deferred[None]:
        """
        Wait for the end.

        :return: fires with ``None`` when :meth:`stop` has stopped it (at once if it does not run), and fails with
            :class:`~txserviceregistry.errors.NotFound` when the registry no longer has the service and there is no
            way to register it again.
        """
        waiter: Deferred[None] = Deferred(self._forget)
        if self.running:
            self._stopped.append(waiter)
        elif self._lost is not None:
            waiter.errback(self._lost)
        else:
            waiter.callback(None)
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        self._stopped.remove(waiter)

    def _end(self, lost: Failure | None) -> None:
        self._lost = lost
        if self._batcher is not None:
            self._batcher.leave(self)
        self._setState(STOPPED)
        waiters, self._stopped = self._stopped, []
        for waiter in waiters:
            if lost is None:
                waiter.callback(None)
            else:
                waiter.errback(lost)

    def _setState(self, state: str) -> None:
        if state == self._state:
            return
        self._state = state
        for listener in list(self._listeners):
            try:
                listener(state)
            except Exception:
                self._log.failure("A listener to the state of service {serviceId} failed", serviceId=self.serviceId)

    # -- one heartbeat

    def _turn(self) -> Deferred[None]:
        """Called by the LoopingCall. The Deferred never fails: that would end the loop silently."""
        turn = self._untilAnswered(self._loop)
        self._beat = turn

        def ended(result: Any) -> None:
            if self._beat is turn:
                self._beat = None
            if isinstance(result, Failure):
                self._gaveUp(result)
            else:
                self._handOver()

        turn.addBoth(ended)
        return turn

    def _gaveUp(self, failure: Failure) -> None:
        if self._loop is None:
            # stop() has cancelled it.
            return
        self._context.suspends.discard(self._resumed)
        loop, self._loop = self._loop, None
        loop.stop()
        self._endLate()
        self.nextToken = None
        self._log.error(
            "Heartbeats for service {serviceId} ended: {reason}",
            serviceId=self.serviceId,
            reason=failure.getErrorMessage(),
        )
        self._end(failure)

    def _isWellAgain(self) -> None:
        self._backoff.reset()
        self._setState(REGISTERED)

    @returnsDeferred
    async def _untilAnswered(self, loop: LoopingCall | None) -> None:
        """
        Try until there is a response.

        :param loop: the loop that this turn belongs to.
        """
        since = self._clock.seconds()
        trouble: _Trouble | None = None

        def met(reason: str, certain: bool = False) -> None:
            nonlocal trouble
            if trouble is None:
                trouble = _Trouble(self._log, self.serviceId, self._clock, since)
            trouble.met(reason, certain)

        delay: float | None = None
        while True:
            try:
                if delay is not None:
                    wait, delay = delay, None
                    await self._wait(wait)
                if self._health is None or await self._passes(self._health):
                    await self._oneTry()
                    break
                delay = self._health.nextDelay(self.interval, 0.0 if self.nextToken is None else self.secondsLeft())
                # A heartbeat that fails after the check has passed begins another outage.
                since = self._clock.seconds()
            except Exception as raised:
                error: Exception = raised
                # A CancelledError is an Exception too; stop()'s own must end this.
                if self._loop is not loop or isinstance(error, ClientClosed):
                    raise
                late, self._lateOutcome = self._lateOutcome, None
                if late is not None:
                    # That one has cancelled the try that was under way.
                    if late.error is None:
                        break
                    error = late.error
                if self._isGone(error):
                    if self._fellBack(error):
                        met("the registry does not know the token of its last response, which may be another's")
                        continue
                    if self._register is None or self.nextToken is None:
                        raise error
                    self._endLate()
                    self.hadNoToken = refusesToken(error) and self._provenToken is None
                    self.nextToken = None
                    self._setState(REGISTERING)
                    met("the registry no longer has it, and it is being registered again", certain=True)
                    continue
                delay = (
                    _GHOST_DELAY * (1 - self._random() / 2) if isinstance(error, ServiceExists) else self._nextDelay()
                )
                met(_say(error))
            if self.nextToken is not None and self.secondsLeft() <= 0:
                self._setState(UNREACHABLE)
        self._endLate()
        if trouble is not None:
            trouble.over()
        self._isWellAgain()

    # -- batched heartbeats (:class:`~txserviceregistry.heartbeats.batching.BatchedService`)

    def _handOver(self) -> None:
        """Heartbeats succeed: have them batched, if the registry accepts batches."""
        loop = self._loop
        if loop is not None and self._joinBatcher(self._heard + self.interval):
            self._context.suspends.discard(self._resumed)
            self._loop = None
            loop.stop()

    def _joinBatcher(self, due: float) -> bool:
        if self._batcher is None or not self._batcher.isOffered:
            return False
        self._isBatched = True
        self._batcher.join(self, due)
        return True

    def secondsLeft(self) -> float:
        """Seconds to the deadline."""
        return self._heard + self.heartbeatTimeout - self._clock.seconds()

    def answered(self, sent: float, token: str) -> None:
        """A batched heartbeat, sent at that time, was answered with this token."""
        self._accept(sent, token)
        if self._state is not REGISTERED:
            self._setState(REGISTERED)

    def missed(self) -> None:
        """A batched heartbeat had no response; it is retried."""
        if self.secondsLeft() <= 0:
            self._setState(UNREACHABLE)

    def dismissed(self) -> None:
        """This service is not batched any more: its heartbeat was refused, or the registry accepts no batches."""
        if self._isBatched:
            self._isBatched = False
            self._beatAlone()

    def _isGone(self, error: Exception) -> bool:
        """
        Whether the registry has no such service or, after a registration, never accepts it. Errors of these classes are
        faults of the API.
        """
        return isinstance(error, BadRequest if self.nextToken is None else (NotFound, BadRequest))

    def proveToken(self, token: str) -> None:
        """A heartbeat of this service that presented this *token* was accepted, before this HeartBeater began."""
        self._provenToken = token

    def _fellBack(self, error: Exception) -> bool:
        """Present the last token that was accepted, if it is the current one that was refused; whether that is so."""
        proven = self._provenToken
        if self.nextToken is None or proven is None or proven == self.nextToken or not refusesToken(error):
            return False
        self.nextToken = proven
        return True

    def _wait(self, seconds: float) -> Deferred[None]:
        """Wait before the next try, unless the machine is suspended meanwhile."""
        wait: Deferred[None] = Deferred(lambda _: call.cancel())
        self._waiting = call = self._context.stalls.callLater(seconds, wait.callback, None)
        return wait

    async def _oneTry(self) -> None:
        turns = self._context.registrations if self.nextToken is None else self._context.turns
        await turns.take(self._urgency())
        try:
            await self._ask()
        finally:
            turns.give()

    def _urgency(self) -> float:
        """When the response is needed."""
        if self.nextToken is not None:
            return self._heard + self.heartbeatTimeout
        return self._unheardUntil if self._unheardUntil > self._clock.seconds() else float("inf")

    async def _ask(self) -> None:
        sent = self._clock.seconds()
        if self.nextToken is not None:
            await self._heartbeat(sent)
            return
        self._provenToken = None
        self.nextToken = await self._registered(sent)
        self._heard = sent

    def _heartbeat(self, sent: float) -> Deferred[None]:
        """
        Send a heartbeat.

        :return: fires when there is a response, and fails when the heartbeat is late. A late one runs on, and ends the
            turn if it gets a response after all.
        """
        token = self.nextToken
        assert token is not None
        timeout = self.tryTimeout()
        outcome: Deferred[None] = Deferred(lambda _: asked.cancel())

        def late(failure: Failure) -> float:
            more = runOnAfter(timeout)
            if more:
                self._context.stalls.wasDue(sent + timeout)
                if self._late is None:
                    self._late = LateTries()
                self._late.add(asked)
                # Another one was cancelled to make room, and its connection may have been what this one waited for.
                if not outcome.called:
                    outcome.errback(failure)
            return more

        def answered(answer: HeartbeatToken) -> None:
            if outcome.called:
                self._answeredLate(sent, token, answer["token"])
                return
            self._context.stalls.wasDue(sent + timeout)
            self._accept(sent, answer["token"])
            outcome.callback(None)

        def failed(failure: Failure) -> None:
            if outcome.called:
                self._failedLate(token, failure.value)
                return
            self._context.stalls.wasDue(sent + timeout)
            outcome.errback(failure)

        asked = self._services.heartbeat(self.serviceId, token, timeout=timeout, whenLate=late)
        asked.addCallbacks(answered, failed)
        return outcome

    def _answeredLate(self, sent: float, presented: str, token: str) -> None:
        # The token is another one if another try was answered first, or the service was registered again.
        if self._beat is not None and self.nextToken == presented:
            self._accept(sent, token)
            self._endBeat(_LateOutcome())

    def _failedLate(self, presented: str, error: BaseException | None) -> None:
        # Other failures say nothing: the next try is under way already.
        isCurrent = self._beat is not None and self.nextToken == presented
        if isCurrent and isinstance(error, Exception) and self._isGone(error):
            self._endBeat(_LateOutcome(error))

    def _endBeat(self, outcome: _LateOutcome) -> None:
        assert self._beat is not None
        self._lateOutcome = outcome
        self._beat.cancel()

    def _endLate(self) -> None:
        if self._late is not None:
            self._late.end()

    def _accept(self, sent: float, token: str) -> None:
        """A heartbeat that was sent at that time was answered with this token."""
        proven = self.nextToken
        if self._keep is not None and proven is not None:
            self._keep(token, proven)
        self._provenToken = proven
        self.nextToken = token
        self.lastSeen = sent
        self._heard = sent

    async def _registered(self, sent: float) -> str:
        assert self._register is not None
        try:
            return await self._register()
        except Exception as error:
            if isUnknown(error) and self._unheardUntil <= sent:
                self._unheardUntil = sent + self.heartbeatTimeout
            raise

    def _passes(self, health: HealthCheck) -> Deferred[bool]:
        # A third of the seconds that are left when a heartbeat is due, as for the heartbeat itself.
        timeout = max(_SHORTEST_CHECK, (self.heartbeatTimeout - self.heartbeatInterval) / 3)
        return health.passes(timeout, "registration" if self.nextToken is None else "heartbeats")

    def tryTimeout(self) -> float:
        """After how many seconds the next try is late."""
        return patienceFor(self.secondsLeft(), self.heartbeatTimeout)

    def _nextDelay(self) -> float:
        delay = self._backoff.next()
        if self.nextToken is not None:
            return delayBefore(delay, self.secondsLeft())
        # A registry that can't register services must not be flooded with registrations.
        shortest = max(SHORTEST_TRY, self.heartbeatTimeout * _SHORTEST_UNHEARD)
        return delayBefore(delay, self._unheardUntil - self._clock.seconds(), shortest)


@attrs.frozen
class _LateOutcome:
    """
    The outcome of a late try that ends the turn.

    :ivar error: the refusal; ``None`` if the heartbeat was accepted.
    """

    error: Exception | None = None


class _Trouble:
    """
    One outage, with a log line when it begins and one when it ends.

    A first failure after which the immediate second try succeeds is not an outage.
    """

    def __init__(self, log: Logger, serviceId: str, clock: IReactorTime, began: float) -> None:
        self._log = log
        self._serviceId = serviceId
        self._clock = clock
        self._began = began
        self._failures = 0
        self._told = False

    def met(self, reason: str, certain: bool = False) -> None:
        """A try failed for this reason; *certain* if a second try can't succeed."""
        self._failures += 1
        if not self._told and (certain or self._failures > 1):
            self._told = True
            self._log.warn(HEARTBEAT_FAILED, serviceId=self._serviceId, reason=reason)

    def over(self) -> None:
        """All is well again."""
        if self._told:
            self._log.info(
                "Heartbeats for service {serviceId} succeed again after {seconds:.1f} s",
                serviceId=self._serviceId,
                seconds=self._clock.seconds() - self._began,
            )


def _say(error: Exception) -> str:
    # Only our own errors are known to hold no secret.
    return str(error) if isinstance(error, ServiceRegistryError) else type(error).__name__


def _succeeded() -> Deferred[None]:
    done: Deferred[None] = Deferred()
    done.callback(None)
    return done
