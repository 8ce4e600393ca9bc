"""
The tries of one service: the current one, the next one, those that are late, and the failures. What the HeartBeaters of
a client share, among it a clock that detects a blocked reactor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ..clock import SuspendWatch
from ..http.messages import WhenLate
from ..util.deferred import Backoff, LateTries, PrioritySemaphore, runOnAfter
from ..util.logs import Logger, Outage

#: The warning when heartbeats, or registrations, begin to fail.
HEARTBEAT_FAILED = "Heartbeat failed for {what} {serviceId}: {reason} (retrying)"
_SUCCEED_AGAIN = "Heartbeats for {what} {serviceId} succeed again after {seconds:.1f} s"

# In the place of what is just beginning; cancelling it does nothing.
_BEGINNING = succeed(None)


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
    """
    Shared by the HeartBeaters of one client, so that there can be thousands of them.

    :ivar turns: bounds the heartbeat requests at once, and *registrations* the registrations.
    :ivar batcher: the HeartbeatBatcher; ``None`` if each HeartBeater sends its own heartbeats.
    """

    stalls: StallWatch
    suspends: SuspendWatch
    turns: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    registrations: PrioritySemaphore = attrs.field(factory=PrioritySemaphore)
    batcher: Any = None


@attrs.define(eq=False, repr=False, weakref_slot=False)
class Attempts:
    """
    At most one try waits for something, or for its time. Requests that are late run on beside it. Everything that is
    called from here may :meth:`end` the try, and begin another one.
    """

    _log: ClassVar[Logger] = Logger()

    _clock: IReactorTime
    _stalls: StallWatch
    backoff: Backoff
    _timer: IDelayedCall | None = attrs.field(default=None, init=False)
    _work: Deferred[Any] | None = attrs.field(default=None, init=False)
    # The turn that the current try has.
    _turn: PrioritySemaphore | None = attrs.field(default=None, init=False)
    # Most services never have these, and there can be thousands.
    _late: LateTries | None = attrs.field(default=None, init=False)
    _outage: Outage | None = attrs.field(default=None, init=False)

    @property
    def isScheduled(self) -> bool:
        return self._timer is not None

    @property
    def isIdle(self) -> bool:
        """Whether there is neither a current try nor a next one."""
        return self._timer is None and self._work is None

    def later(self, delay: float, begin: Callable[[], None]) -> None:
        """Begin the next try after so many seconds."""

        due = self._clock.seconds() + delay

        def isDue() -> None:
            self._timer = None
            self._stalls.wasDue(due)
            begin()

        self._timer = self._clock.callLater(delay, isDue)

    def takeTurn(
        self, turns: PrioritySemaphore, deadline: float, then: Callable[[], None], broken: Callable[[Failure], None]
    ) -> None:
        """Wait for a turn, and call *then*. It is given back when what the try waits for next is over."""

        def taken(result: object, isCurrent: bool) -> None:
            self._turn = turns
            then()

        self.wait(lambda late: turns.take(deadline), taken, broken)

    def wait(
        self,
        begin: Callable[[WhenLate], Deferred[Any]],
        then: Callable[[Any, bool], None],
        broken: Callable[[Failure], None],
        patience: float = 0.0,
    ) -> None:
        """
        Let the current try wait.

        :param begin: starts what it waits for. A request may call the argument when it is late, after *patience*
            seconds; then it runs on beside the next try.
        :param then: called with the result or Failure, and whether the try is still current, unless it was ended. If
            it is late it is called twice, first with the Failure of that. *broken* is called with its errors.
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
            if self._work is work:
                self.giveTurn()
            isCurrent = self._work is work
            if isCurrent:
                self._work = None
            if isCurrent or isLate:
                then(result, isCurrent)

        # What begins may end the try: a health check, for example, may stop the application.
        self._work = _BEGINNING
        try:
            work = begin(late)
        finally:
            isBeginning = self._work is _BEGINNING
            if isBeginning:
                self._work = None
        if isBeginning:
            self._work = work
            work.addBoth(over).addErrback(broken)
        else:
            work.addErrback(lambda _: None).cancel()

    def failed(self, what: str, serviceId: str, reason: str, *, isCertain: bool = False) -> float:
        """
        Log that a try failed, unless a second one follows at once; it does not if it *isCertain* to fail. Returns the
        seconds until the next try.
        """
        if self._outage is None:
            values: Any = {"what": what, "serviceId": serviceId}
            self._outage = Outage(self._log, self._clock, HEARTBEAT_FAILED, _SUCCEED_AGAIN, after=2, **values)
        self._outage.failed(reason=reason, isCertain=isCertain)
        return self.backoff.next()

    def succeeded(self) -> None:
        if self._outage is not None:
            self._outage.succeeded()
        self.forget()

    def forget(self) -> None:
        self._outage = None
        self.backoff.reset()

    def giveTurn(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.give()

    def end(self) -> None:
        """End the current try, or the wait for it, and those that are late."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
        self.giveTurn()
        if self._late is not None:
            self._late.end()
