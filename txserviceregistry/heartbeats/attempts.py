"""The tries of one service: its health check, its turn, the current try, the late ones, and the failures."""

from __future__ import annotations

import random as randomModule
import re
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..clock import SuspendWatch
from ..http.agent import describeFailure
from ..http.messages import WhenLate
from ..util.deferred import Backoff, LateTries, PrioritySemaphore, cancelWith, runOnAfter
from ..util.logs import Logger, Outage

#: The warning when heartbeats, or registrations, begin to fail.
HEARTBEAT_FAILED = "Heartbeat failed for {what} {serviceId}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {what} {serviceId} succeed again after {seconds:.1f} s"

# In the place of what is just beginning; cancelling it does nothing.
_BEGINNING = succeed(None)

# A check that fails is called at least this often (seconds), so that its recovery is noticed soon.
_LONGEST_DELAY = 5.0
_LONGEST_REASON = 200
_CHECK_FAILED = "Service {serviceId}: {name} failed: {reason}; {suspended} suspended"
_CHECK_PASSED = "Service {serviceId}: {name} passed after {seconds:.1f} s; {suspended} resumed"
# User and password of a URL, which an exception may quote.
_USER_INFO = re.compile(r"(?<=://)[^\s/@]*@")


@attrs.define(eq=False, repr=False)
class StallWatch:
    """Logs each time that the reactor stood still, which calls show that come far later than they were due."""

    #: How late a call may be, in seconds: longer than a busy reactor or a loaded machine delays it, and shorter than
    #: the shortest heartbeat timeout.
    LATE: ClassVar[float] = 1.0
    _log: ClassVar[Logger] = Logger()

    _clock: IReactorTime
    # A stall makes everything late that was due in it, and is logged once.
    _loggedUntil: float = attrs.field(default=float("-inf"), init=False)

    def wasDue(self, moment: float) -> None:
        """The present call was due at this *moment* of the clock, or before."""
        now = self._clock.seconds()
        if now - moment <= self.LATE or moment <= self._loggedUntil:
            return
        self._loggedUntil = now
        self._log.warn(
            "The application's reactor stood still for {seconds:.1f} s or more; heartbeats were late. Move blocking "
            "calls (time.sleep, long computations, synchronous requests) to threads",
            seconds=now - moment,
        )


@attrs.frozen
class HeartbeatContext:
    """Shared by the HeartBeaters of one client. Each sends its own heartbeats if there is no HeartbeatBatcher."""

    stalls: StallWatch
    suspends: SuspendWatch
    # Bound the heartbeats and the registrations at once.
    turns: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    registrations: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    batcher: Any = None


@attrs.define(eq=False, repr=False, weakref_slot=False)
class Attempts:
    """At most one try waits for something, or for its time; late requests run on beside it. Callbacks may end it."""

    _log: ClassVar[Logger] = Logger()

    _clock: IReactorTime
    _stalls: StallWatch
    backoff: Backoff
    timer: IDelayedCall | None = attrs.field(default=None, init=False)
    work: Deferred[Any] | None = attrs.field(default=None, init=False)
    # The turn that the current try has. It is given back when what the try waits for next is over.
    turn: PrioritySemaphore | None = attrs.field(default=None, init=False)
    # Most services never have these, and there can be thousands.
    _late: LateTries | None = attrs.field(default=None, init=False)
    _outage: Outage | None = attrs.field(default=None, init=False)

    def later(self, delay: float, begin: Callable[[], None]) -> None:
        """Begin the next try after so many seconds."""

        due = self._clock.seconds() + delay

        def isDue() -> None:
            self.timer = None
            self._stalls.wasDue(due)
            begin()

        self.timer = self._clock.callLater(delay, isDue)

    def wait(
        self,
        begin: Callable[[WhenLate], Deferred[Any]],
        then: Callable[[Any, bool], None],
        broken: Callable[[Failure], None],
        patience: float = 0.0,
    ) -> None:
        """
        Let the current try wait for what *begin* starts. Then *then* is called with its result or Failure, and whether
        the try is still current, unless it was ended; *broken* is called with the errors of *then*.

        A request that is late after *patience* seconds calls the argument of *begin*, and runs on beside the next try:
        *then* is called with the Failure of that, and again with the result.
        """
        isLate = False

        def late(failure: Failure) -> float:
            nonlocal isLate
            more = runOnAfter(patience)
            if more:
                isLate = True
                # If there are many, the first is cancelled, whose connection may be what this one has waited for.
                self._late = self._late or LateTries()
                self._late.add(work)
                over(failure)
            return more

        def over(result: Any) -> None:
            # The turn goes to another service, and what that one calls may end this try.
            if self.work is work:
                self.giveTurn()
            isCurrent = self.work is work
            if isCurrent:
                self.work = None
            if isCurrent or isLate:
                then(result, isCurrent)

        # The function may end the try: a health check, for example, may stop the application.
        self.work = _BEGINNING
        try:
            work = begin(late)
        finally:
            isBeginning = self.work is _BEGINNING
            if isBeginning:
                self.work = None
        if isBeginning:
            self.work = work
            work.addBoth(over).addErrback(broken)
        else:
            work.addErrback(lambda _: None).cancel()

    def failed(self, what: str, serviceId: str, reason: str, cause: Any = None, *, isCertain: bool = False) -> float:
        """Log the second failure in a row, or one that *isCertain* to last. Returns the seconds until the next try."""
        if self._outage is None:
            values: Any = {"what": what, "serviceId": serviceId}
            self._outage = Outage(self._log, self._clock, HEARTBEAT_FAILED, _SUCCEED_AGAIN, after=2, **values)
        self._outage.failed(reason=reason, cause=cause, isCertain=isCertain)
        return self.backoff.next()

    def succeeded(self) -> None:
        if self._outage is not None:
            self._outage.succeeded()
        self.forget()

    def forget(self) -> None:
        self._outage = None
        self.backoff.reset()

    def giveTurn(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.give()

    def end(self) -> None:
        """End the current try, or the wait for it, and those that are late."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        work, self.work = self.work, None
        if work is not None:
            work.cancel()
        self.giveTurn()
        if self._late is not None:
            self._late.end()


class HealthCheckFailed(Exception):
    """A check may raise this, so that the log has its message without a type."""


@attrs.define(eq=False, repr=False, slots=False)
class HealthCheck:
    """Calls the health check of a service: once before each heartbeat while it passes, with backoff while it fails."""

    _log: ClassVar[Logger] = Logger()

    _check: Callable[[], Any]
    _serviceId: str
    _clock: IReactorTime
    _random: Callable[[], float] = randomModule.random
    _name: str = "health check"
    # The call that has not ended: one at a time, also of a check that ignores being cancelled.
    _running: Deferred[Any] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        values: Any = {"serviceId": self._serviceId, "name": self._name}
        self._outage = Outage(self._log, self._clock, _CHECK_FAILED, _CHECK_PASSED, **values)
        self._backoff: Backoff | None = None

    def passes(self, timeout: float, suspended: str, *, isStarting: bool = False) -> Deferred[bool]:
        """
        Call the check. Fires with whether it passes in *timeout* seconds; fails only if it is cancelled. The log says
        that *suspended* (``heartbeats`` or ``registration``) wait for it, unless the service *isStarting*.
        """

        def ended(reason: str | None) -> bool:
            if reason is None:
                self._backoff = None
                self._outage.succeeded(suspended=suspended)
            elif not isStarting:
                self._outage.failed(reason=reason, suspended=suspended)
            return reason is None

        return self._call(timeout).addCallback(ended)

    def nextDelay(self, interval: float) -> float:
        """Seconds until a check that fails is called again: from a thirty-second of *interval* to half of it."""
        if self._backoff is None:
            self._backoff = Backoff(interval / 32, min(_LONGEST_DELAY, interval / 2), self._random)
            # Skip the first delay, which is zero.
            self._backoff.next()
        return self._backoff.next()

    def _call(self, timeout: float) -> Deferred[str | None]:
        """Fires with the reason why the check fails, or with ``None`` if it passes."""
        if self._running is not None:
            return succeed("an earlier call has not ended, although it was cancelled")
        timedOut = f"timed out after {timeout:.3g} s"

        def stop(outcome: Deferred[str | None]) -> None:
            outcome.errback(CancelledError())
            self._cancel(checked)

        def tooLate() -> None:
            self._cancel(checked)
            if not outcome.called:
                outcome.callback(timedOut)

        def ended(result: Any) -> None:
            self._running = None
            if outcome.called:
                return
            reason = _reasonIn(result)
            if not late.active():
                # It was cancelled, and its exception may say what it was waiting for.
                isStage = isinstance(result, Failure) and result.check(HealthCheckFailed)
                reason = f"{timedOut}, {reason}" if isStage else timedOut
            outcome.callback(reason)

        late = self._clock.callLater(timeout, tooLate)
        outcome: Deferred[str | None] = cancelWith(late, Deferred(stop))
        checked = self._running = maybeDeferred(self._check)
        checked.addBoth(ended)
        return outcome

    def _cancel(self, checked: Deferred[Any]) -> None:
        try:
            checked.cancel()
        except BaseException:
            # Of the application's own canceller.
            self._log.failure("Service {id}: {name} could not be cancelled", id=self._serviceId, name=self._name)


def _reasonIn(result: Any) -> str | None:
    """Why a check with this result has failed; ``None`` if it has passed."""
    try:
        if isinstance(result, Failure) and result.value is not None:
            isReason = isinstance(result.value, HealthCheckFailed)
            text = str(result.value) if isReason else describeFailure(result.value)
        elif result:
            return None
        else:
            text = f"returned {result!r}"
    except Exception as error:
        # Of the application's own __bool__ or __str__.
        text = type(result.value).__name__ if isinstance(result, Failure) else describeFailure(error)
    text = _USER_INFO.sub("…@", " ".join(text.split()))
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
