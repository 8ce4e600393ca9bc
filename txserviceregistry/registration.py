"""RegisteredService: keeps a service registered while an application runs."""

from __future__ import annotations

import os
import random as randomModule
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from .errors import (
    UNKNOWN_OUTCOME,
    AuthenticationFailed,
    Forbidden,
    NotFound,
    NotRunning,
    RegistrationEnded,
    ServiceRegistryError,
)
from .heartbeats.desired import DesiredState, wantsHost
from .heartbeats.heartbeater import REGISTERED, STOPPED, HeartBeater, refusesToken
from .heartbeats.services import ServiceCreator
from .heartbeats.statefile import StateFile
from .http.jsontransport import ClientClosed
from .util.deferred import Waiters, returnsDeferred, waitFor
from .util.fields import LONGEST_INTERVAL, boundedNumber, checkedId, checkedMetadata, checkedTags, checkedTimeout
from .util.logs import Listeners, Logger

if TYPE_CHECKING:
    from .client import Client

__all__ = ["REGISTERED_AT", "RegisteredService"]

#: The log line for the first registration after a start.
REGISTERED_AT = "Service {serviceId} registered at {url}"

# Seconds that leaving the registry may take: a process has five in all to end.
_LONGEST_LEAVE = 3.0
_LEAVE_RETRY = 0.2


class RegisteredService(Service):
    """
    Keeps a service registered while it runs::

        RegisteredService(Client.fromSettings(), "web1", 30, tags=["www"]).setServiceParent(application)

    The registry may start later than the application, be unreachable for a while, or lose its data: the service is
    registered again as soon as possible. Stopping it deregisters the service.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        serviceId: str,
        heartbeatTimeout: int = 30,
        tags: Sequence[str] = (),
        metadata: Mapping[str, str] | None = None,
        *,
        check: Callable[[], Any] | None = None,
        state: str | os.PathLike[str] | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after this service has stopped.
        :param serviceId: 3 to 65 characters of ``a-z A-Z 0-9 _ - .``
        :param heartbeatTimeout: seconds without a heartbeat, 3 to 120, after which the service expires.
        :param tags: the tags by which other clients find the service.
        :param metadata: anything else that other clients should know. If it has a ``port`` and no ``host``, a ``host``
            is added: the local address of a connection to the registry, also when that changes.
        :param check: the health check: returns true, or a Deferred or coroutine of it, while the application is
            healthy. While it returns anything else, raises or takes too long, neither a heartbeat nor a registration is
            sent. The log has the reason, which is the message of what it raised.
        :param state: a file for the last heartbeat token and updates. With it an application that was killed and is
            started again within the timeout continues the same service. It belongs to one running process: another one
            runs without it until the first has ended.
        :param random: returns numbers from 0 to 1.
        :raises TypeError: if an argument has the wrong type.
        :raises ValueError: if the id or the timeout is not valid. The registry checks the rest: see
            :meth:`whenRegistered`.
        """
        self.serviceId = checkedId(serviceId)
        timeout = checkedTimeout(heartbeatTimeout)
        payload = {"tags": checkedTags(tags), "metadata": checkedMetadata(metadata)}
        self._client = client
        self._clock = client.clock
        if check is not None and not callable(check):
            kind = type(check).__name__
            raise TypeError(f"check is {kind}, but it has to be a function: check=healthy, not check=healthy()")
        self._check = check
        self._random = random
        self._heartBeater: HeartBeater | None = None
        self._desired = DesiredState(client.services.desired, serviceId, timeout, payload)
        self._file = StateFile(None if state is None else os.fspath(state), self._desired, self._log, client.clock)
        self._desired.onChange = self._file.save
        self._ignoreAddress: Callable[[], None] = lambda: None
        self._creator = ServiceCreator(client.services, self._desired, client.clock)
        self._leaving: Deferred[None] = succeed(None)
        self._wasRegistered = False
        self._hasSaidWhere = False
        self._refusal: Failure | None = None
        self._waiters: Waiters[None] = Waiters()
        self._listeners: Listeners[[str]] = Listeners(self._log, f"the state of service {serviceId}")
        self._failureListeners: Listeners[[Exception]] = Listeners(self._log, f"failed registrations of {serviceId}")

    def __repr__(self) -> str:
        return f"<RegisteredService {self.serviceId!r}: {self.state}>"

    @property
    def heartbeatTimeout(self) -> int:
        """The heartbeat timeout that the service should have, in seconds."""
        return self._desired.heartbeatTimeout

    @property
    def tags(self) -> list[str]:
        """A copy of the tags that the service should have."""
        return list(self._desired.fields["tags"])

    @property
    def metadata(self) -> dict[str, str]:
        """A copy of the metadata that it should have, without a ``host`` that was added automatically."""
        return dict(self._desired.fields["metadata"])

    @property
    def state(self) -> str:
        """``registering``, ``registered``, ``unreachable`` (its deadline passed without a response) or ``stopped``."""
        return STOPPED.value if self._heartBeater is None else self._heartBeater.state

    @property
    def healthy(self) -> bool:
        """Whether the registry must have the service now; see :attr:`HeartBeater.healthy`."""
        return self._heartBeater is not None and self._heartBeater.healthy

    def onStateChange(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with the new :attr:`state` whenever it changes. Exceptions of a listener are logged."""
        self._listeners.add(listener)

    def onRegistrationFailure(self, listener: Callable[[Exception], None]) -> None:
        """Call *listener* with the reason whenever a registration has failed. Its exceptions are logged."""
        self._failureListeners.add(listener)

    def whenRegistered(self) -> Deferred[None]:
        """
        Wait until the service is registered. Fails with ``BadRequest`` or ``Forbidden`` if the registry refuses it,
        ``RegistrationEnded`` if this service is stopped before, and ``NotRunning`` if it is not running, nor the child
        of a service that will start it.
        """
        if self.state == REGISTERED:
            return succeed(None)
        never = self._whyNever()
        return self._waiters.wait() if never is None else fail(never)

    def _whyNever(self) -> Failure | None:
        """Why it will not be registered without another start; ``None`` if it may be."""
        isIdle = not self.running and self.parent is None
        return self._refusal or (Failure(NotRunning.of(self)) if isIdle else None)

    def update(self, tags: Sequence[str] | None = None, metadata: Mapping[str, str] | None = None) -> Deferred[None]:
        """
        Change the service::

            service.update(metadata={**service.metadata, "status": "draining"})

        The change counts for each registration from now on. While the registry can't be reached, the client retries.

        :param tags: the new tags, instead of all that there are; ``None`` leaves them as they are.
        :param metadata: the new metadata in the same way. A ``host`` that was added automatically stays, unless there
            is one here.
        :return: fires with ``None`` when the registry has the change. Fails with ``BadRequest`` or ``Forbidden`` if the
            registry refuses it: then it is undone, together with other changes that waited. Fails as
            :meth:`whenRegistered` does if this service is stopped before, or will not be registered without another
            start; then the change counts for the next start. Cancelling it only ends the wait.
        :raises TypeError: if a tag, or a key or value of the metadata, is not a string.
        """
        changes: dict[str, Any] = {} if tags is None else {"tags": checkedTags(tags)}
        if metadata is not None:
            changes["metadata"] = checkedMetadata(metadata)
        never = self._whyNever()
        if never is None:
            return self._desired.set(changes)
        self._desired.change(changes)
        return fail(never)

    def startService(self) -> None:
        """Begin to register, in the background."""
        if self.running:
            return
        Service.startService(self)
        self._refusal, self._hasSaidWhere = None, False
        self._file.open()
        self._heartBeater = heartBeater = HeartBeater(
            self._client.services,
            self.serviceId,
            self.heartbeatTimeout,
            clock=self._clock,
            register=self._register,
            check=self._check,
            context=self._client.services.context,
            keep=None if self._file.path is None else self._file.keep,
            random=self._random,
        )
        heartBeater.onStateChange(self._stateChanged)
        self._desired.open(heartBeater)
        self._ignoreAddress = self._client.onLocalAddress(self._useHost)
        heartBeater.start()
        heartBeater.whenStopped().addErrback(self._refused)

    def stopService(self) -> Deferred[None]:
        """Stop, and deregister the service. Fires when that is done, or after three seconds without a response."""
        Service.stopService(self)
        return self._leave()

    def abandon(self) -> None:
        """
        Stop, and leave the service in the registry until it expires, as if the application had been killed. The state
        file keeps the token. A registration that is under way is cancelled, but may have its effect.
        """
        Service.stopService(self)
        heartBeater, self._heartBeater = self._heartBeater, None
        self._file.close()
        if heartBeater is not None:
            heartBeater.stop()
            self._creator.abandon()
            self._creator.mayExist = False
            self._file.release()
            self._endWaits()

    def drain(self, seconds: float) -> Deferred[None]:
        """
        Deregister the service now, and wait *seconds*, in which clients that still know it are served. Call it before
        the port is closed. ``ValueError`` if *seconds* is negative or not a number; then nothing happens.
        """
        seconds = boundedNumber(seconds, 0.0, LONGEST_INTERVAL)
        return self._leave().addCallback(lambda _: deferLater(self._clock, seconds, lambda: None))

    def _stateChanged(self, state: str) -> None:
        if state == REGISTERED:
            self._waiters.fire(None)
        self._listeners.call(state)
        if state == REGISTERED and not self._hasSaidWhere:
            self._hasSaidWhere = True
            settings = self._client.settings
            urls = ", ".join(settings.baseUrls or settings.authUrls)
            self._log.info(REGISTERED_AT, serviceId=self.serviceId, url=urls)

    def _refused(self, failure: Failure) -> None:
        self._refusal = failure
        self._waiters.fire(failure)
        self._desired.close(failure)

    @returnsDeferred
    async def _register(self) -> str:
        await waitFor(self._leaving)
        if self._wasRegistered:
            # The registry has lost our service: from now on another client's may hold the id. But if it never accepted
            # our token, that may be another service's, and the one that is there may be ours.
            self._wasRegistered = False
            self._creator.mayExist = self._heartBeater is not None and self._heartBeater.hadNoToken
        try:
            token = await self._resume(self._file.restore())
            if token is None:
                await self._findHost()
                token = await self._creator.create()
                self._file.keep(token)
            else:
                self._file.save()
            # An update may want it later. The connection is there now; an agent that was given may not know.
            with suppress(ServiceRegistryError):
                self._useHost(await self._client.localAddress())
        except Exception as error:
            if not isinstance(error, CancelledError):
                self._failureListeners.call(error)
            raise
        self._wasRegistered = self._creator.mayExist = True
        return token

    async def _resume(self, tokens: Sequence[str]) -> str | None:
        """Continue the service of an earlier process with one of its *tokens*, if it has not expired."""
        for presented in tokens:
            try:
                token: str = (await self._client.services.heartbeat(self.serviceId, presented))["token"]
            except ServiceRegistryError as error:
                if isinstance(error, (*UNKNOWN_OUTCOME, Forbidden)):
                    raise
                if not refusesToken(error):
                    break
                continue
            self._creator.mayExist = True
            self._file.keep(token, presented)
            if self._heartBeater is not None:
                self._heartBeater.provenToken = presented
            await self._findHost()
            found = await self._client.services.get(self.serviceId)
            self._file.adopt(found)
            self._desired.resumed(found)
            while self._desired.missing():
                await self._desired.push()
            self._log.info("Service {serviceId} continued with the token of its state file", serviceId=self.serviceId)
            return token
        if tokens:
            self._file.forgetToken()
        return None

    async def _findHost(self) -> None:
        if wantsHost(self._desired.fields["metadata"]):
            self._useHost(await self._client.localAddress())

    def _useHost(self, host: str) -> None:
        if host == self._desired.host:
            return
        self._desired.setHost(host)
        if wantsHost(self._desired.fields["metadata"]):
            advice = ". Listen on IPv6 too (tcp6:PORT does, tcp:PORT does not), or set host" if ":" in host else ""
            text = "Service {serviceId} has host {host}, the local address of a connection to the registry{advice}"
            self._log.info(text, serviceId=self.serviceId, host=host, advice=advice)

    def _leave(self) -> Deferred[None]:
        heartBeater, self._heartBeater = self._heartBeater, None
        self._file.close()
        if heartBeater is not None:
            self._leaving = self._depart(heartBeater).addTimeout(_LONGEST_LEAVE, self._clock).addErrback(self._stayed)
        return waitFor(self._leaving)

    @returnsDeferred
    async def _depart(self, heartBeater: HeartBeater) -> None:
        creator = self._creator
        try:
            await heartBeater.stop()
            self._endWaits()
            if creator.underWay is not None:
                await waitFor(creator.underWay).addErrback(lambda _: None)
            while creator.mayExist:
                try:
                    await self._client.services.remove(self.serviceId)
                    text = "Service {serviceId} deregistered"
                except NotFound:
                    text = "Service {serviceId} was no longer registered when it stopped"
                except (CancelledError, ClientClosed, AuthenticationFailed, Forbidden):
                    raise
                except Exception as error:
                    text = "Deregistration of service {serviceId} failed: {error}"
                    self._log.debug(text, serviceId=self.serviceId, error=type(error).__name__)
                    await deferLater(self._clock, _LEAVE_RETRY, lambda: None)
                    continue
                self._log.info(text, serviceId=self.serviceId)
                creator.mayExist = False
            self._file.forgetToken()
        finally:
            self._file.release()

    def _endWaits(self) -> None:
        self._ignoreAddress()
        text = f"Service {self.serviceId} was stopped before "
        self._desired.close(Failure(RegistrationEnded(f"{text}the registry had its update")))
        self._waiters.fire(Failure(RegistrationEnded(f"{text}it was registered")))

    def _stayed(self, failure: Failure) -> None:
        failure.trap(TimeoutError, CancelledError, ClientClosed, AuthenticationFailed, Forbidden)
        self._creator.mayExist = False
        self._log.warn(
            "Deregistration of service {serviceId} failed: {reason}. It expires after {timeout} s",
            serviceId=self.serviceId,
            reason=failure.getErrorMessage() if failure.check(Forbidden) else "no response",
            timeout=self.heartbeatTimeout,
        )
