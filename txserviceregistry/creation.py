"""
Creating one service for sure, over a network that loses answers: whose is the service that holds the id?
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from .deferred import waitFor
from .desired import DesiredState
from .errors import (
    BadRequest,
    ConnectionFailed,
    MalformedResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
    ServiceExists,
)
from .jsontransport import ClientClosed
from .types import Service

if TYPE_CHECKING:
    from .services import ServicesClient

__all__ = ["UNKNOWN_OUTCOME", "Creation", "isUnknown"]

#: No answer, or none that says anything about the request.
UNKNOWN_OUTCOME = (ConnectionFailed, RequestTimedOut, MalformedResponse, ServerError)

# How often it is looked, at once, for what was created without an answer, when these answers are lost too.
_LOOKS = 3

# Whatever a service's timeout is, a request may take so many seconds.
_SHORTEST_TRY = 1.0


def isUnknown(error: BaseException | None) -> bool:
    """Whether nobody knows, after this *error*, if the registry has done what it was asked."""
    return isinstance(error, UNKNOWN_OUTCOME) and getattr(error, "wasSent", True)


class Creation:
    """
    Creates one service, as often as it has to be.

    A creation whose answer was lost may have had its effect: then the id is taken by a service of our own, of which
    nobody has the token, and which would die of that. It is found out, removed, and created anew.

    :param services: asks the registry.
    :param desired: what the service is to be, each time.
    :param timeout: tells how many seconds a request may take; by default as many as are good for a service that is to
        be registered again and again until it is.
    :ivar mayExist: whether the registry may hold a service that this has created.
    :ivar underWay: the creation that is being asked for now. It goes on when whoever waits for it is cancelled, so that
        its outcome becomes known.
    """

    def __init__(
        self,
        services: ServicesClient,
        desired: DesiredState,
        *,
        timeout: Callable[[], float] | None = None,
    ) -> None:
        self.mayExist = False
        self.underWay: Deferred[str] | None = None
        self._services = services
        self._id = desired.serviceId
        self._desired = desired
        self._limit = timeout

    @property
    def _timeout(self) -> float:
        if self._limit is not None:
            return self._limit()
        # A third of the service's life: what was created without an answer is to be found before it has died.
        return min(self._services.timeout, max(_SHORTEST_TRY, self._desired.heartbeatTimeout / 3))

    async def create(self) -> str:
        """
        :return: the token of the service.
        :raises ServiceExists: if somebody else holds the id.
        """
        try:
            return await self._createAfresh()
        except ServiceExists:
            if not self.mayExist:
                raise
        # One of ours that reached the registry only now, or somebody else: looking tells.
        return await self._createAfresh()

    async def createAcross(self) -> str:
        """
        :meth:`create`, of a registry with several servers: when the outcome with one is unknown, another one tells. So
        it is with a server that dies, hangs or loses its store in the middle of it. Cancelling ends the request.
        """
        try:
            try:
                return await self.create()
            except UNKNOWN_OUTCOME as error:
                if not isUnknown(error) or isinstance(error, ClientClosed) or self._services.servers < 2:
                    raise
            # Looking comes first, and finds a server that works.
            return await self.create()
        except CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Cancel the creation that is under way; whether it has its effect, nobody will know."""
        if self.underWay is not None:
            self.underWay.addErrback(lambda _: None)
            self.underWay.cancel()

    async def _createAfresh(self) -> str:
        if self.mayExist:
            await self._clearAway()
        return await self._create()

    async def _clearAway(self) -> None:
        """Remove what was created without an answer, if it is there; somebody else's stays."""
        try:
            found = await self._look()
        except NotFound:
            return
        if not self._desired.isOurs(found):
            self.mayExist = False
            return
        try:
            await self._services.remove(self._id, timeout=self._timeout)
        except (NotFound, *UNKNOWN_OUTCOME):
            # Most likely it is gone now. If not, creating it is refused, and all of this is done once more.
            pass

    async def _create(self) -> str:
        while True:
            try:
                return await self._createOnce()
            except BadRequest as error:
                # What an update has changed is no reason never to register the service again.
                if not self._desired.refusedRegistration(error):
                    raise

    async def _createOnce(self) -> str:
        fields = self._desired.begin(isFirst=not self.mayExist)
        self.underWay = creating = self._services.createOnce(
            self._id, fields["heartbeat_timeout"], fields, timeout=self._timeout
        ).addCallback(lambda created: created["token"])
        creating.addBoth(self._created)
        token: str = await waitFor(creating)
        return token

    def _created(self, result: Any) -> Any:
        self.underWay = None
        if not isinstance(result, Failure) or isUnknown(result.value):
            self.mayExist = True
        if not isinstance(result, Failure):
            self._desired.registered()
        return result

    async def _look(self) -> Service:
        # Its life is short and hangs on this answer.
        for _ in range(_LOOKS - 1):
            try:
                return await self._services.get(self._id, timeout=self._timeout)
            except ConnectionFailed as error:
                if not error.wasSent or isinstance(error, ClientClosed):
                    raise
        return await self._services.get(self._id, timeout=self._timeout)
