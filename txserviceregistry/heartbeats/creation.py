"""
Creating one service for sure, over a network that loses answers: whose is the service that holds the id?
"""

from __future__ import annotations

from collections.abc import Callable
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
from ..util.deferred import returnsDeferred, waitFor
from ..util.tries import NothingLeft, Race, TryIsLate, runOnAfter
from .desired import DesiredState

# How often it is looked, at once, for what was created without an answer, when these answers are lost too.
_LOOKS = 3

# Whatever a service's timeout is, a request may take so many seconds.
_SHORTEST_TRY = 1.0


class Creation:
    """
    Creates one service, as often as it has to be.

    A creation whose answer was lost may have had its effect: then the id is taken by a service of our own, of which
    nobody has the token, and which would die of that. It is found out, removed, and created anew.

    :param services: asks the registry.
    :param desired: what the service is to be, each time.
    :param clock: times the pauses; notices when it stood still.
    :param timeout: tells how many seconds a request may take; by default as many as are good for a service that is to
        be registered again and again until it is.
    :ivar mayExist: whether the registry may hold a service that this has created.
    :ivar underWay: the creation that is being asked for now. It goes on when whoever waits for it is cancelled, so that
        its outcome becomes known. One that is late runs on beside what finds out what came of it, and if it is answered
        before that, the answer counts.
    """

    def __init__(
        self,
        services: ServicesAPI,
        desired: DesiredState,
        clock: IReactorTime,
        *,
        timeout: Callable[[], float] | None = None,
    ) -> None:
        self.mayExist = False
        self.underWay: Deferred[str] | None = None
        # One that is late: fires with the token, or ``None`` if there is none.
        self._late: Deferred[str | None] | None = None
        # How many have been sent, and which of them is late.
        self._begun = self._lateNumber = 0
        self._services = services
        self._clock = clock
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
        late = self._late
        token = await (self._createOrReplace() if late is None else self._firstOf(late))
        self.endLate()
        return token

    def _firstOf(self, late: Deferred[str | None]) -> Deferred[str]:
        """The token that the *late* creation brings, or what creating it again comes to before."""
        number = self._lateNumber
        work: Deferred[str] | None = None
        first: Deferred[str] = Deferred(lambda _: work.cancel() if work is not None else None)

        def answered(token: str | None) -> str | None:
            if token is not None and not first.called:
                if number == self._begun:
                    self._desired.registered()
                else:
                    self._desired.registeredEarlier()
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
        finally:
            self.endLate()

    def abandon(self) -> None:
        """Cancel the creation that is under way; whether it has its effect, nobody will know."""
        if self.underWay is not None:
            self.underWay.addErrback(lambda _: None)
            self.underWay.cancel()
        self.endLate()

    def endLate(self) -> None:
        """Cancel the creation that is late, if one is."""
        late, self._late = self._late, None
        if late is not None:
            late.cancel()

    async def _createAfresh(self) -> str:
        if self.mayExist:
            await self._clearAway()
        return await self._create()

    async def _clearAway(self) -> None:
        """Remove what was created without an answer, if it is there; somebody else's stays."""
        found = await self._look()
        if found is None:
            return
        if not self._desired.isOurs(found):
            self.mayExist = False
            return
        if self._late is not None:
            # It has had its effect, and its answer is on the way, unless that is lost.
            await deferLater(self._clock, self._timeout / 2, lambda: None)
        # From now on its token would be one of a service that is gone.
        self.endLate()
        try:
            await self._services.remove(self._id, timeout=self._timeInAll(self._timeout))
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
        self._begun += 1
        number = self._begun
        timeout = self._timeout
        outcome: Deferred[str] = Deferred(lambda _: creating.cancel())

        def late(failure: Failure) -> float:
            more = self._timeInAll(timeout) - timeout if self._limit is None else self._limit()
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
            # Of the failure of a late one all is known.
            return None if isinstance(result, Failure) else result["token"]

        creating = self._services.createOnce(
            self._id, fields["heartbeat_timeout"], fields, timeout=timeout, whenLate=late
        ).addBoth(over)
        self.underWay = outcome.addBoth(self._created)
        token = waitFor(outcome)
        # Nobody may wait for it any more.
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
        # Its life is short and hangs on this answer. One that is late runs on beside the next.
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
            raise RequestTimedOut(f"It could not be found out in time whether service {self._id} was created")

    @returnsDeferred
    async def _lookOnce(self, timeout: float) -> Service | None:
        try:
            return await self._services.get(self._id, timeout=timeout)
        except NotFound:
            return None

    def _timeInAll(self, patience: float) -> float:
        """How many seconds a request has that is late after so many."""
        return patience if self._limit is not None else patience + runOnAfter(patience)
