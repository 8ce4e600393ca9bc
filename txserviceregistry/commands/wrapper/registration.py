"""
The wrapped command's place in the registry: from the first try to be registered to the end, whatever the registry and
the settings do meanwhile.

The registering and beating themselves are a :class:`~txserviceregistry.RegisteredService`'s. What is decided here is
when the tries at the start are over, when a registration is lost for good, and whose settings hold.
"""

from __future__ import annotations

import os
import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall, deferLater
from twisted.python.failure import Failure

from ...client import Client
from ...errors import (
    AuthenticationFailed,
    BadRequest,
    Forbidden,
    InvalidSettings,
    LimitReached,
    ServiceRegistryError,
    Unauthorized,
)
from ...heartbeats.heartbeater import REGISTERED, STOPPED
from ...registration import RegisteredService
from ...settings import Settings
from ...util.backoff import Backoff
from ...util.deferred import returnsDeferred
from ...util.files import lockFile
from ...util.logs import Logger
from ...util.ownership import checkPath

# A try that comes soon after can't end otherwise than these did.
_REFUSALS = (AuthenticationFailed, BadRequest, Forbidden, InvalidSettings, LimitReached, Unauthorized)
# While nothing is registered, the settings are read so often (seconds): they may have been wrong, or not there yet.
_READ_AGAIN = 5.0
# What the registry calls invalid may be valid to its next version. Seconds to the next try.
_ASK_AGAIN = 300.0


class NotRegistered(Exception):
    """The tries at the start are over; the text says what the last one met."""


@attrs.frozen
class ServiceSpec:
    """
    Who is to be registered.

    :ivar serviceId: the service's id.
    :ivar interval: the heartbeat timeout in seconds.
    :ivar tags: the service's tags.
    :ivar metadata: the service's metadata.
    """

    serviceId: str
    interval: int
    tags: Sequence[str] = ()
    metadata: Mapping[str, str] = attrs.field(factory=dict)


def claimTokenFile(dataDir: Path, serviceId: str) -> tuple[Path, int]:
    """
    The file that keeps the service's heartbeat token, for this process alone: another one with the same id that runs
    on this machine must not go on as the service that lives.

    :return: its path, and the descriptor that holds the claim as long as it is open; the system closes it with the
        process, however that ends.
    :raises BlockingIOError: if a living process has it.
    :raises OSError: if it can't be made.
    """
    folder = dataDir / "wrapper"
    checkPath(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    checkPath(folder)
    claim = os.open(folder / f"{serviceId}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        lockFile(claim)
    except OSError:
        os.close(claim)
        raise
    return folder / f"{serviceId}.token", claim


class WrapperRegistration:
    """
    Gets a service registered, keeps it so, and says when that has failed.

    :ivar client: the client in use, once there is one.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        registrant: ServiceSpec,
        *,
        read: Callable[[], Settings],
        connect: Callable[[Settings], Client],
        retries: int,
        lost: Callable[[str], None],
        check: Callable[[], bool] | None = None,
        state: Path | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param clock: the reactor.
        :param registrant: who.
        :param read: reads the settings; raises ``InvalidSettings``.
        :param connect: makes a client.
        :param retries: how many more tries there are at the start, after the first.
        :param lost: called with the reason, once, when a service that was registered is so no more, for good: the
            registry refuses it, or it has been away for an interval after its deadline.
        :param check: says whether the service is well; without it, it is.
        :param state: the file for the heartbeat token.
        :param random: gives numbers from 0 to 1.
        """
        self.client: Client | None = None
        self._clock = clock
        self._registrant = registrant
        self._read = read
        self._connect = connect
        self._retries = retries
        self._lost: Callable[[str], None] | None = lost
        self._check = check
        self._state = state
        self._random = random
        self._service: RegisteredService | None = None
        self._failures = 0
        self._everRegistered = False
        self._trying: Deferred[None] = Deferred()
        self._reading = LoopingCall(self._readAgain)
        self._reading.clock = clock
        self._lossTimer: IDelayedCall | None = None
        self._excused = False
        self._again: IDelayedCall | None = None
        self._ended = False
        self._toldOfSettings = ""

    # -- the start

    @returnsDeferred
    async def reach(self) -> None:
        """
        See that there is a registry which takes our credentials, as often as the tries at the start allow.

        :return: fires with ``None``; fails with :class:`NotRegistered`.
        """
        backoff = Backoff(0.1, self._registrant.interval / 2, self._random)
        while True:
            try:
                if self.client is None:
                    self.client = self._connect(self._read())
                await self.client.account.getLimits()
                return
            except ServiceRegistryError as error:
                if isinstance(error, _REFUSALS) or backoff.failures >= self._retries:
                    raise NotRegistered(str(error))
            await deferLater(self._clock, backoff.next(), lambda: None)

    def begin(self) -> Deferred[None]:
        """
        Begin to register; it is gone on with until :meth:`abandon` or :meth:`leave`.

        :return: fires with ``None`` when it is registered; fails with :class:`NotRegistered` when the tries at the
            start are used up, or the first of them has shown that no other helps.
        """
        self._begin()
        return self._trying

    def _begin(self) -> None:
        try:
            self._serve(self.client or self._connect(self._read()))
        except InvalidSettings as error:
            self._cantRead(error)
        self._watchSettings()

    def _serve(self, client: Client, former: RegisteredService | None = None) -> None:
        self.client = client
        registrant = self._registrant
        self._service = service = RegisteredService(
            client,
            registrant.serviceId,
            registrant.interval,
            registrant.tags,
            registrant.metadata,
            check=self._check,
            state=self._state,
            random=self._random,
        )
        if former is not None and (former.tags, former.metadata) != (service.tags, service.metadata):
            # Other settings are no reason to forget what has been updated.
            service.update(former.tags, former.metadata).addErrback(lambda _: None)
        service.onRegistrationFailure(self._tryFailed)
        service.onStateChange(lambda state: self._stateChanged(service, state))
        service.startService()

    # -- the end

    @property
    def registered(self) -> bool:
        """Whether the registry has the service, as far as is known."""
        return self._service is not None and self._service.state == REGISTERED

    def abandon(self) -> None:
        """Beat no more, and leave the service to its timeout."""
        self._end()
        if self._service is not None:
            self._service.abandon()

    def leave(self) -> Deferred[None]:
        """
        Take the service out of the registry, if it is registered.

        :return: fires with ``None`` when that is done, or has not succeeded in three seconds.
        """
        if self._service is None or not self.registered:
            self.abandon()
            return succeed(None)
        self._end()
        return self._service.stopService()

    def _end(self) -> None:
        self._ended = True
        self._lost = None
        self._stopLossTimer()
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._reading.running:
            self._reading.stop()

    # -- what happens meanwhile

    def _tryFailed(self, error: Exception) -> None:
        if self._ended:
            return
        refused = isinstance(error, _REFUSALS)
        reason = str(error) if isinstance(error, ServiceRegistryError) else type(error).__name__
        self._failures += 1
        if self._everRegistered:
            if refused:
                self._lose(reason)
        elif (refused or self._failures > self._retries) and not self._trying.called:
            self._trying.errback(NotRegistered(reason))

    def _stateChanged(self, service: RegisteredService, state: str) -> None:
        if self._ended or service is not self._service:
            return
        if state == REGISTERED:
            self._everRegistered = True
            self._stopLossTimer()
            if self._reading.running:
                self._reading.stop()
            if not self._trying.called:
                self._trying.callback(None)
            return
        self._watchSettings()
        if state == STOPPED:
            # The registry has called it invalid.
            self._again = self._clock.callLater(_ASK_AGAIN, self._askAgain, service)
        if self._everRegistered and self._lossTimer is None:
            self._excused = not self._isWell()
            self._lossTimer = self._clock.callLater(service.heartbeatTimeout, self._doomed, service)

    def _isWell(self) -> bool:
        return self._check is None or self._check()

    def _askAgain(self, service: RegisteredService) -> None:
        if service is not self._service:
            return
        service.abandon()
        service.startService()

    def _doomed(self, service: RegisteredService) -> None:
        self._lossTimer = None
        well = self._isWell()
        if self._excused or not well:
            # While the check fails nobody tries to beat: that is not the registry's doing. It gets its whole time.
            self._excused = not well
            self._lossTimer = self._clock.callLater(service.heartbeatTimeout, self._doomed, service)
            return
        self._lose("the registry has not been reached, or has not taken it, for too long")

    def _stopLossTimer(self) -> None:
        lossTimer, self._lossTimer = self._lossTimer, None
        if lossTimer is not None:
            lossTimer.cancel()

    def _lose(self, reason: str) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost(reason)

    # -- settings that change

    def _watchSettings(self) -> None:
        if not self._reading.running and not self._ended:
            self._reading.start(_READ_AGAIN, now=False).addErrback(self._readingFailed)

    def _readingFailed(self, failure: Failure) -> None:
        self._log.failure("The settings are not read again", failure)

    def _readAgain(self) -> None:
        try:
            settings = self._read()
            if self.client is not None and settings == self.client.settings:
                return
            client = self._connect(settings)
        except InvalidSettings as error:
            self._cantRead(error)
            return
        old, service, self._service = self.client, self._service, None
        if service is not None:
            service.abandon()
        if old is not None:
            self._log.info("The settings have changed")
            old.close().addErrback(lambda _: None)
        self._serve(client, service)

    def _cantRead(self, error: InvalidSettings) -> None:
        # As long as somebody waits for the first tries, it is told to them.
        isAwaited = not self._trying.called
        if self.client is None:
            self._tryFailed(error)
        if str(error) != self._toldOfSettings:
            self._toldOfSettings = str(error)
            if not isAwaited:
                self._log.warn(
                    "Service {serviceId} can't be registered: {reason}",
                    serviceId=self._registrant.serviceId,
                    reason=str(error),
                )
