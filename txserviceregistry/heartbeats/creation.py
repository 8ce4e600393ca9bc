"""
Creating a service reliably, over a network that loses responses: is the service that holds the id our own?
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..api.services import ServicesAPI
from ..errors import UNKNOWN_OUTCOME, BadRequest, NotFound, ServiceExists, isUnknown
from ..http.jsontransport import ClientClosed
from ..util.deferred import waitFor
from .desired import DesiredState

# Whatever a service's timeout is, a request may take so many seconds, enough for a new connection over a slow network.
# It is less than the shortest timeout, so that a service without a token is found in time.
_SHORTEST_TRY = 2.5


class ServiceCreator:
    """
    Creates one service, and creates it again when the registry loses it.

    A creation whose response was lost may have had its effect. Then a service of our own holds the id, and would
    expire, because its token is lost too. So the client looks for it, removes it, and creates it again.

    :param deadline: when it has to be created, in seconds of the clock. By default each request has a part of the
        heartbeat timeout, as suits a registration that is retried until it succeeds.
    :ivar mayExist: whether the registry may hold a service that this has created.
    :ivar underWay: the creation under way, which runs on when its caller is cancelled: its outcome becomes known.
    """

    def __init__(
        self, services: ServicesAPI, desired: DesiredState, clock: IReactorTime, deadline: float | None = None
    ) -> None:
        self.mayExist = False
        self.underWay: Deferred[str] | None = None
        self._services = services
        self._desired = desired
        self._clock = clock
        self._deadline = deadline

    @property
    def _timeout(self) -> float:
        if self._deadline is not None:
            return max(0.0, self._deadline - self._clock.seconds())
        # A third of the heartbeat timeout: a service whose creation had no response is found before it expires.
        return min(self._services.timeout, max(_SHORTEST_TRY, self._desired.heartbeatTimeout / 3))

    async def create(self) -> str:
        """Create the service, and return its token. Raises ``ServiceExists`` if another client holds the id."""
        try:
            return await self._removeAndCreate()
        except ServiceExists:
            if not self.mayExist:
                raise
        # A creation of our own has just had its effect, or another client holds the id: looking shows which.
        return await self._removeAndCreate()

    async def createAcross(self) -> str:
        """
        :meth:`create` at a registry with several servers: when one server ends, hangs or loses its store during the
        request, so that the outcome is unknown, another server is asked. Cancelling ends the request.
        """
        try:
            try:
                return await self.create()
            except UNKNOWN_OUTCOME as error:
                if not isUnknown(error) or isinstance(error, ClientClosed) or self._services.servers < 2:
                    raise
            # The request that looks for the service finds a server that works.
            return await self.create()
        except CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Cancel the creation that is under way. Its outcome stays unknown."""
        if self.underWay is not None:
            self.underWay.addErrback(lambda _: None)
            self.underWay.cancel()

    async def _removeAndCreate(self) -> str:
        if self.mayExist:
            await self._removeOrphan()
        while True:
            try:
                return await self._createOnce()
            except BadRequest as error:
                # An update that the registry refuses does not end the registration.
                if not self._desired.refusedRegistration(error):
                    raise

    async def _removeOrphan(self) -> None:
        """Remove a service whose creation had no response, if there is one. Another client's service stays."""
        id = self._desired.serviceId
        try:
            found = await self._services.get(id, timeout=self._timeout)
        except NotFound:
            return
        if not self._desired.isOurs(found):
            self.mayExist = False
            return
        try:
            await self._services.remove(id, timeout=self._timeout)
        except (NotFound, *UNKNOWN_OUTCOME):
            # Most likely it is gone now. If not, the creation is refused, and this is repeated.
            pass

    async def _createOnce(self) -> str:
        fields = self._desired.begin(isFirst=not self.mayExist)
        self.underWay = self._services.createOnce(
            self._desired.serviceId, fields["heartbeat_timeout"], fields, timeout=self._timeout
        ).addBoth(self._created)
        token = waitFor(self.underWay)
        # Its caller may have been cancelled.
        self.underWay.addErrback(lambda _: None)
        return await token

    def _created(self, result: Any) -> Any:
        self.underWay = None
        if isinstance(result, Failure):
            self.mayExist = self.mayExist or isUnknown(result.value)
            return result
        self.mayExist = True
        self._desired.registered()
        return result["token"]
