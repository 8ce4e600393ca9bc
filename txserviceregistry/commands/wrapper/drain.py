"""
Graceful shutdown: after SIGTERM the service is drained while the command still serves. Then the signal is passed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from ...api.transport import SERVICE_STATE
from ...client import Client
from ...errors import ServiceRegistryError
from ...util.deferred import returnsDeferred
from .options import Options
from .registration import WrapperRegistration

#: The reason of states that the wrapper sets. It never changes any other state.
REASON = "service-registry-wrapper"


@attrs.define(eq=False)
class Drain:
    """
    Drains a service, once.

    :param tell: writes a line for the user.
    """

    _clock: IReactorTime
    _registration: WrapperRegistration
    _options: Options
    _tell: Callable[[str], None]
    _draining: Deferred[None] | None = attrs.field(init=False, default=None)
    _isStopped: bool = attrs.field(init=False, default=False)

    @returnsDeferred
    async def registered(self) -> None:
        """The service was registered: end the state that an earlier wrapper has set for it."""
        client = self._client()
        try:
            if client is not None and self._draining is None:
                present = await client.services.getState(self._options["id"])
                if present["reason"] == REASON:
                    await client.services.clearState(self._options["id"])
        except ServiceRegistryError:
            pass  # it ends by itself

    def _client(self) -> Client | None:
        """A client of a registry that has states of services."""
        client = self._registration.client
        return client if client is not None and SERVICE_STATE in client.extensions else None

    def begin(self) -> Deferred[None] | None:
        """
        Begin to drain.

        :return: fires when the command may end; ``None`` if it may end at once, because the service is not registered,
            or is being drained already, which is cut short.
        """
        if self._draining is not None:
            self.stop()
            return None
        if not self._registration.registered:
            return None
        self._draining = self._drain()
        return self._draining

    def stop(self) -> None:
        self._isStopped = True
        if self._draining is not None:
            self._draining.cancel()

    @returnsDeferred
    async def _drain(self) -> None:
        seconds: float = self._options["drain"]
        end = self._clock.seconds() + seconds
        try:
            await Deferred.fromCoroutine(self._announce(seconds)).addTimeout(seconds, self._clock)
        except (ServiceRegistryError, TimeoutError, CancelledError) as error:
            if not self._isStopped:
                self._tell(f"the service can't be drained: {error}")
        try:
            if not self._isStopped:
                await deferLater(self._clock, max(0.0, end - self._clock.seconds()))
                if self._options["deregister"]:
                    await self._registration.leave()
        except CancelledError:
            pass  # it was stopped

    async def _announce(self, seconds: float) -> None:
        """Let clients find out that the service gets no new work."""
        client, id = self._client(), self._options["id"]
        if client is None:
            await self._registration.leave()
            return
        present = await client.services.getState(id)
        if present["reason"] == REASON or (present["state"] == "up" and not present["reason"]):
            expiry = math.ceil(seconds) + self._options["interval"]
            await client.services.setState(id, "drain", REASON, expiresIn=expiry)
