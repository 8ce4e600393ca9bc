"""The registration of the wrapped command: the tries at the start, its loss, and graceful shutdown."""

from __future__ import annotations

import math
import random as randomModule
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ... import errors
from ...api.transport import SERVICE_STATE
from ...client import Client
from ...heartbeats.heartbeater import REGISTERED, STOPPED
from ...heartbeats.services import ServicesClient
from ...registration import RegisteredService
from ...settings import defaultDataDir
from ...util.deferred import Backoff, Waiters, cancel, returnsDeferred
from ...util.files import checkPath
from ...util.logs import Logger

#: The reason of states that the wrapper sets. It never changes any other state.
REASON = "service-registry-wrapper"

# Another try soon after one of these fails in the same way.
_REFUSALS = (
    *(errors.AuthenticationFailed, errors.BadRequest, errors.Forbidden),
    *(errors.InvalidSettings, errors.LimitReached, errors.Unauthorized),
)
# Seconds between two readings of settings that are wrong, or do not exist yet.
_READ_AGAIN = 5.0
# Seconds to the next try for a service that the registry refuses: its next version may accept it, and the user's next
# role allow it.
_TRY_INVALID_AGAIN = 300.0


class NotRegistered(Exception):
    """The tries at the start are over; the text is the reason of the last one."""


def tokenFileOf(serviceId: str, tell: Callable[[str], None]) -> Path | None:
    """The file that keeps the heartbeat token; ``None``, and a line for the user, if there is no place for it."""
    try:
        folder = defaultDataDir() / "wrapper"
        checkPath(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        checkPath(folder)
        return folder / f"{serviceId}.token"
    except errors.InvalidSettings:
        tell("No place for the heartbeat token: this user has no home directory. Set RAXSR_DATA_DIR")
    except OSError as error:
        tell(f"{error.filename or defaultDataDir()}: {error.strerror}. A restart can't continue the same service")
    return None


class State(Enum):
    """The states of a registration."""

    UNREGISTERED = "never registered, or lost; tries follow"
    REGISTERED = "the registry has the service"
    INTERRUPTED = "the registry does not have the service any more, or does not answer; the loss timer runs"
    ENDED = "abandoned or deregistered"


# The states that may follow each state. Any other change is ignored. To be UNREGISTERED again is a loss.
_NEXT = {
    State.UNREGISTERED: {State.REGISTERED, State.ENDED},
    State.REGISTERED: {State.INTERRUPTED, State.ENDED},
    State.INTERRUPTED: {State.REGISTERED, State.UNREGISTERED, State.ENDED},
    State.ENDED: set(),
}


@attrs.define(eq=False, repr=False, slots=False)
class WrapperRegistration:
    """
    Keeps a service registered, and calls *lost* with the reason when the registration is lost: the registry refuses the
    service, or it has not been registered for an interval after its deadline.
    """

    _log = Logger()

    _clock: IReactorTime
    _options: Mapping[str, Any]
    _connect: Callable[[], Client]
    _lost: Callable[[str], None]
    _check: Callable[[], bool] | None = None
    _tokenFile: Path | None = None
    _random: Callable[[], float] = randomModule.random
    client: Client | None = attrs.field(init=False, default=None)
    reason: str = attrs.field(init=False, default="")  # why the last try has failed
    _state: State = attrs.field(init=False, default=State.UNREGISTERED)
    _service: RegisteredService | None = attrs.field(init=False, default=None)
    _failures: int = attrs.field(init=False, default=0)
    _starting: Waiters[None] = attrs.field(init=False, factory=Waiters)
    _lossTimer: IDelayedCall | None = attrs.field(init=False, default=None)
    _retryTimer: IDelayedCall | None = attrs.field(init=False, default=None)
    # The last problem with the settings that was logged.
    _problem: str = attrs.field(init=False, default="")
    _draining: Deferred[None] | None = attrs.field(init=False, default=None)

    @property
    def registered(self) -> bool:
        return self._state is State.REGISTERED

    # -- the start and the end

    @returnsDeferred
    async def reach(self) -> None:
        """Check with the tries of the start that a registry accepts the credentials; else :class:`NotRegistered`."""
        backoff = Backoff(0.1, self._options["interval"] / 2, self._random)
        while True:
            try:
                self.client = self.client or self._connect()
                await self.client.account.getLimits()
                return
            except errors.ServiceRegistryError as error:
                if isinstance(error, _REFUSALS) or backoff.failures >= self._options["retries"]:
                    raise NotRegistered(str(error))
            await deferLater(self._clock, backoff.next())

    def begin(self) -> Deferred[None]:
        """Register until :meth:`abandon` or :meth:`leave`. :class:`NotRegistered` after the tries at the start."""
        started = self._starting.wait()
        self._serve()
        return started

    def abandon(self) -> None:
        """Send no more heartbeats, and leave the service in the registry until it expires."""
        service = self._end()
        if service is not None:
            service.abandon()

    def leave(self) -> Deferred[None]:
        """Deregister the service, if it is registered; fires when that is done, or after three seconds."""
        service = self._end() if self.registered else None
        if service is None:
            self.abandon()
            return succeed(None)
        return service.stopService()

    def _end(self) -> RegisteredService | None:
        self._transition(State.ENDED)
        service, self._service = self._service, None
        return service

    # -- the states

    def _transition(self, state: State, reason: str = "") -> None:
        """Enter *state* if it may follow the present one, and start and stop what belongs to the two."""
        if state not in _NEXT[self._state]:
            return
        self._state = state
        cancel(self._lossTimer)
        if state in (State.REGISTERED, State.ENDED):
            cancel(self._retryTimer)
        if state is State.INTERRUPTED:
            self._startLossTimer()
        elif state is State.UNREGISTERED:
            self._lost(reason)
        elif state is State.REGISTERED:
            self._starting.fire(None)
            self._clearState()

    def _tryFailed(self, error: Exception) -> None:
        self._failures += 1
        self.reason = reason = str(error) if isinstance(error, errors.ServiceRegistryError) else type(error).__name__
        isRefused = isinstance(error, _REFUSALS)
        if isRefused or self._failures > self._options["retries"]:
            self._starting.fire(Failure(NotRegistered(reason)))
        if isRefused:
            self._transition(State.UNREGISTERED, reason)

    def _stateChanged(self, service: RegisteredService, state: str) -> None:
        if service is not self._service:
            return
        self._transition(State.REGISTERED if state == REGISTERED else State.INTERRUPTED)
        if state == STOPPED:
            # The registry calls the service invalid, or the user may not register it.
            self._retryTimer = self._clock.callLater(_TRY_INVALID_AGAIN, self._tryInvalidAgain, service)

    def _tryInvalidAgain(self, service: RegisteredService) -> None:
        service.abandon()
        service.startService()

    def _startLossTimer(self) -> None:
        self._lossTimer = self._clock.callLater(self._options["interval"], self._lossTimedOut, self._isHealthy())

    def _lossTimedOut(self, wasHealthy: bool) -> None:
        if wasHealthy and self._isHealthy():
            self._transition(State.UNREGISTERED, "the registry did not answer, or refused the service, for too long")
        else:
            # No heartbeat is sent while the check fails, so the registry gets all of the time again.
            self._startLossTimer()

    def _isHealthy(self) -> bool:
        return self._check is None or self._check()

    # -- the service

    def _serve(self) -> None:
        options = self._options
        try:
            client = self.client = self.client or self._connect()
        except errors.InvalidSettings as error:
            self._retryTimer = self._clock.callLater(_READ_AGAIN, self._serve)
            # A caller that waits for the tries at the start gets the error.
            if str(error) != self._problem and not self._starting:
                text = "Registration failed for service {serviceId}: {reason} (retrying)"
                self._log.warn(text, serviceId=options["id"], reason=str(error))
            self._problem = str(error)
            self._tryFailed(error)
            return
        fields = (options[name] for name in ("id", "interval", "tags", "metadata"))
        service = self._service = RegisteredService(
            client, *fields, check=self._check, state=self._tokenFile, random=self._random
        )
        service.onRegistrationFailure(self._tryFailed)
        service.onStateChange(lambda state: self._stateChanged(service, state))
        service.startService()

    # -- graceful shutdown

    def _states(self) -> ServicesClient | None:
        """The requests for states of services, with ``--drain`` and a registry that has them."""
        client = self.client if self._options["drain"] is not None else None
        return client.services if client is not None and SERVICE_STATE in client.extensions else None

    @returnsDeferred
    async def _clearState(self) -> None:
        """End the state that an earlier wrapper has set for the service."""
        services = self._states()
        try:
            if services is not None and self._draining is None:
                present = await services.getState(self._options["id"])
                if present["reason"] == REASON and self._draining is None:
                    await services.clearState(self._options["id"])
        except errors.ServiceRegistryError:
            pass  # it ends by itself

    def drain(self, tell: Callable[[str], None]) -> Deferred[None] | None:
        """
        Drain the service, once, while the command still serves; fires when that may end. ``None`` if it may end at
        once: the service is not registered, or is being drained already, which is cut short.
        """
        if self._draining is not None:
            self._draining.cancel()
        elif self._options["drain"] is not None and self.registered:
            self._draining = self._drain(tell)
            return self._draining
        return None

    def stopDraining(self) -> None:
        if self._draining is not None:
            self._draining.cancel()

    @returnsDeferred
    async def _drain(self, tell: Callable[[str], None]) -> None:
        seconds: float = self._options["drain"]
        end = self._clock.seconds() + seconds
        try:
            try:
                await Deferred.fromCoroutine(self._announce(seconds)).addTimeout(seconds, self._clock)
            except (errors.ServiceRegistryError, TimeoutError) as error:
                tell(f"the service can't be drained: {error}")
            await deferLater(self._clock, max(0.0, end - self._clock.seconds()))
            if self._options["deregister"]:
                await self.leave()
        except CancelledError:
            pass  # it was stopped

    async def _announce(self, seconds: float) -> None:
        """Let clients find out that the service gets no new work."""
        services, id = self._states(), self._options["id"]
        if services is None:
            await self.leave()
            return
        present = await services.getState(id)
        if present["reason"] == REASON or (present["state"] == "up" and not present["reason"]):
            expiry = math.ceil(seconds) + self._options["interval"]
            await services.setState(id, "drain", REASON, expiresIn=expiry)
