"""The health check of an application: when it is called, how long it may take, and what is logged of it."""

from __future__ import annotations

import random as randomModule
import re
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..http.agent import describeFailure
from ..util.deferred import Backoff, cancelWith
from ..util.logs import Logger, Outage

# A check that fails is called at least this often (seconds), so that its recovery is noticed soon.
_LONGEST_DELAY = 5.0
_LONGEST_REASON = 200
_FAILED = "Service {serviceId}: {name} failed: {reason}; {suspended} suspended"
_PASSED = "Service {serviceId}: {name} passed after {seconds:.1f} s; {suspended} resumed"
# User and password of a URL, which an exception may quote.
_USER_INFO = re.compile(r"(?<=://)[^\s/@]*@")


class HealthCheckFailed(Exception):
    """A check may raise this, so that the log has its message without a type."""


@attrs.define(eq=False, repr=False, slots=False)
class HealthCheck:
    """
    Calls the health check of a service: once before each heartbeat while it passes, with backoff while it fails.

    :param check: returns a true value, or a Deferred or coroutine of one, while the application is healthy.
    :param name: the check, for the log.
    """

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
        self._outage = Outage(self._log, self._clock, _FAILED, _PASSED, serviceId=self._serviceId, name=self._name)
        self._backoff: Backoff | None = None

    def passes(self, timeout: float, suspended: str, *, isStarting: bool = False) -> Deferred[bool]:
        """
        Call the check, for *timeout* seconds at most. Fires with whether it passes; fails only if it is cancelled.

        :param suspended: the work that waits for it to pass, for the log: ``heartbeats`` or ``registration``.
        :param isStarting: whether it may still fail without a line in the log.
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
            checked.cancel()

        def tooLate() -> None:
            checked.cancel()
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


def _reasonIn(result: Any) -> str | None:
    """Why a check with this result has failed; ``None`` if it has passed."""
    try:
        if isinstance(result, Failure) and result.value is not None:
            isReason = isinstance(result.value, HealthCheckFailed)
            text = str(result.value) if isReason else describeFailure(result.value)
        elif result:
            return None
        else:
            # The repr of a builtin value is short: False, None, 0, '', [].
            type_ = type(result)
            text = f"returned {result!r}" if type_.__module__ == "builtins" else f"returned a false {type_.__name__}"
    except Exception as error:
        # Of the application's own __bool__ or __str__.
        text = type(result.value).__name__ if isinstance(result, Failure) else describeFailure(error)
    text = _USER_INFO.sub("…@", " ".join(text.split()))
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
