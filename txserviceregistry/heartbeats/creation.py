"""
Creating a service reliably, over a network that loses responses: is the service that holds the id our own?
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ..api.services import ServicesAPI
from ..errors import (
    UNKNOWN_OUTCOME,
    BadRequest,
    ConnectionFailed,
    NotFound,
    RequestTimedOut,
    ServiceExists,
    isUnknown,
)
from ..http.jsontransport import ClientClosed
from ..types import HeartbeatToken, Service
from ..util.backoff import NothingLeft, Race, TryIsLate, runOnAfter
from ..util.deferred import returnsDeferred, waitFor
from .desired import DesiredState

# Requests that look for a service whose creation had no response, in a row, when their responses are lost too.
_LOOKS = 3

# Whatever a service's timeout is, a request may take so many seconds.
_SHORTEST_TRY = 1.0


class ServiceCreator:
    """
    Creates one service, and creates it again when the registry loses it.

    A creation whose response was lost may have had its effect. Then a service of our own holds the id, and would
    expire, because its token is lost too. So the client looks for it, removes it, and creates it again.

    :param deadline: when it has to be created, in seconds of the clock. By default each request has a part of the
        heartbeat timeout, as suits a registration that is retried until it succeeds.
    :ivar mayExist: whether the registry may hold a service that this has created.
    :ivar underWay: the request under way that creates the service. It runs on when the Deferred of its caller is
        cancelled, so that its outcome becomes known. A late one runs on beside the requests that look for the service,
        and its response counts if it arrives before theirs.
    """

    def __init__(
        self,
        services: ServicesAPI,
        desired: DesiredState,
        clock: IReactorTime,
        deadline: float | None = None,
    ) -> None:
        self.mayExist = False
        self.underWay: Deferred[str] | None = None
        self._services = services
        self._desired = desired
        self._id = desired.serviceId
        self._clock = clock
        self._deadline = deadline
        # One that is late: fires with the token, or ``None`` if there is none.
        self._late: Deferred[str | None] | None = None
        # How many have been sent, and which of them is late.
        self._begun = self._lateNumber = 0

    @property
    def _timeout(self) -> float:
        if self._deadline is not None:
            return max(0.0, self._deadline - self._clock.seconds())
        # A third of the heartbeat timeout: a service whose creation had no response is found before it expires.
        return min(self._services.timeout, max(_SHORTEST_TRY, self._desired.heartbeatTimeout / 3))

    def _timeInAll(self, patience: float) -> float:
        """Seconds after which a request fails that is late after *patience* seconds."""
        return patience + (runOnAfter(patience) if self._deadline is None else 0.0)

    async def create(self) -> str:
        """
        :return: the token of the service.
        :raises ServiceExists: if another client's service holds the id.
        """
        late = self._late
        token = await (self._createOrReplace() if late is None else self._firstOf(late))
        self.endLate()
        return token

    def _firstOf(self, late: Deferred[str | None]) -> Deferred[str]:
        """The token of the *late* creation, or the outcome of creating the service again, whichever is first."""
        number = self._lateNumber
        work: Deferred[str] | None = None
        first: Deferred[str] = Deferred(lambda _: work.cancel() if work is not None else None)

        def answered(token: str | None) -> str | None:
            if token is not None and not first.called:
                self._desired.registered(isLast=number == self._begun)
                first.callback(token)
                if work is not None:
                    work.cancel()
            return token

        def over(result: str | Failure) -> None:
            if not first.called:
                first.callback(result)

        late.addCallback(answered)
        if not first.called:
            work = Deferred.fromCoroutine(self._createOrReplace())
            work.addBoth(over)
        return first

    async def _createOrReplace(self) -> str:
        try:
            return await self._retryCreate()
        except ServiceExists:
            if not self.mayExist:
                raise
        # A late creation of our own has just had its effect, or another client holds the id: looking shows which.
        return await self._retryCreate()

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
        finally:
            self.endLate()

    def abandon(self) -> None:
        """Cancel the creation that is under way. Its outcome stays unknown."""
        if self.underWay is not None:
            self.underWay.addErrback(lambda _: None)
            self.underWay.cancel()
        self.endLate()

    def endLate(self) -> None:
        """Cancel the creation that is late, if one is."""
        late, self._late = self._late, None
        if late is not None:
            late.cancel()

    async def _retryCreate(self) -> str:
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
        found = await self._look()
        if found is None:
            return
        if not self._desired.isOurs(found):
            self.mayExist = False
            return
        if self._late is not None:
            # It has had its effect, and its response may be on the way.
            await deferLater(self._clock, self._timeout / 2, lambda: None)
        # From now on its token would be that of a service that is gone.
        self.endLate()
        try:
            await self._services.remove(self._id, timeout=self._timeInAll(self._timeout))
        except (NotFound, *UNKNOWN_OUTCOME):
            # Most likely it is gone now. If not, the creation is refused, and this is repeated.
            pass

    async def _createOnce(self) -> str:
        fields = self._desired.begin(isFirst=not self.mayExist)
        self._begun += 1
        number = self._begun
        timeout = self._timeout
        outcome: Deferred[str] = Deferred(lambda _: creating.cancel())

        def late(failure: Failure) -> float:
            more = runOnAfter(timeout) if self._deadline is None else self._timeout
            if more > 0:
                self.endLate()
                self._late, self._lateNumber = creating, number
                # Another one was cancelled, and its connection may have been what this one waited for.
                if not outcome.called:
                    outcome.errback(failure)
            return more

        def over(result: HeartbeatToken | Failure) -> str | None:
            if not outcome.called:
                outcome.callback(result if isinstance(result, Failure) else result["token"])
            # The failure of a late creation says nothing new.
            return None if isinstance(result, Failure) else result["token"]

        creating = self._services.createOnce(
            self._id, fields["heartbeat_timeout"], fields, timeout=timeout, whenLate=late
        ).addBoth(over)
        self.underWay = outcome.addBoth(self._created)
        token = waitFor(outcome)
        # Its caller may have been cancelled.
        outcome.addErrback(lambda _: None)
        return await token

    def _created(self, result: Any) -> Any:
        self.underWay = None
        if not isinstance(result, Failure) or isUnknown(result.value):
            self.mayExist = True
        if not isinstance(result, Failure):
            self._desired.registered()
        return result

    async def _look(self) -> Service | None:
        # The service expires soon unless this succeeds. A late request runs on beside the next one.
        race: Race[Service | None] = Race(self._clock)
        for look in range(1, _LOOKS + 1):
            timeout = self._timeout
            try:
                return await race.run(self._lookOnce(self._timeInAll(timeout)), timeout)
            except TryIsLate:
                pass
            except ConnectionFailed as error:
                if not error.wasSent or isinstance(error, ClientClosed) or look == _LOOKS:
                    raise
        try:
            return await race.rest()
        except NothingLeft:
            raise RequestTimedOut(
                f"It is unknown whether service {self._id} was created: the registry did not respond in time"
            )

    @returnsDeferred
    async def _lookOnce(self, timeout: float) -> Service | None:
        try:
            return await self._services.get(self._id, timeout=timeout)
        except NotFound:
            return None
