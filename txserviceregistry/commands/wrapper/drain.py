"""
Graceful shutdown: after SIGTERM the service is drained while the command still serves. Then the signal is passed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from ...api.transport import SERVICE_STATE
from ...client import Client
from ...errors import ServiceRegistryError
from ...util.deferred import returnsDeferred
from .options import Options
from .registration import WrapperRegistration

#: The reason of states that the wrapper sets. It never changes any other state.
REASON = "service-registry-wrapper"


class Drain:
    """
    Drains a service, once.

    :param seconds: how long the command still serves.
    :param tell: writes a line for the user.
    """

    def __init__(
        self,
        clock: Any,
        registration: WrapperRegistration,
        options: Options,
        seconds: float,
        tell: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._registration = registration
        self._options = options
        self._seconds = seconds
        self._tell = tell
        self._draining: Deferred[None] | None = None
        self._isStopped = False

    def registered(self) -> None:
        """The service was registered: the state that an earlier wrapper has set for it ends."""
        if self._draining is None:
            self._clear().addErrback(lambda failure: failure.trap(ServiceRegistryError))

    def _client(self) -> Client | None:
        """A client of a registry that has states of services."""
        client = self._registration.client
        return client if client is not None and SERVICE_STATE in client.extensions else None

    @returnsDeferred
    async def _clear(self) -> None:
        client = self._client()
        if client is not None and (await client.services.getState(self._options.serviceId))["reason"] == REASON:
            await client.services.clearState(self._options.serviceId)

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
        end = self._clock.seconds() + self._seconds
        try:
            await Deferred.fromCoroutine(self._announce()).addTimeout(self._seconds, self._clock)
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

    async def _announce(self) -> None:
        """Let clients find out that the service gets no new work."""
        client = self._client()
        if client is None:
            await self._registration.leave()
            return
        present = await client.services.getState(self._options.serviceId)
        if present["reason"] == REASON or (present["state"] == "up" and not present["reason"]):
            seconds = math.ceil(self._seconds) + self._options.interval
            await client.services.setState(self._options.serviceId, "drain", REASON, expiresIn=seconds)
