"""``client.services``: register, heartbeat, find, change and remove services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakSet

import attrs
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ..api.services import ListCache, ServicesAPI
from ..api.transport import HEARTBEATS, Transport
from ..clock import SuspendWatch
from ..errors import UNKNOWN_OUTCOME, BadRequest, NotFound, ServiceExists, isUnknown
from ..http.jsontransport import ClientClosed
from ..types import HeartbeatToken
from ..util.deferred import PrioritySemaphore, returnsDeferred, waitFor
from ..util.fields import LONGEST_INTERVAL, boundedNumber
from .attempts import HeartbeatContext, StallWatch
from .batching import HeartbeatBatcher
from .desired import DesiredState, DesiredStates
from .heartbeater import HeartBeater

# By how many seconds a service may expire late, and the clocks of two machines may differ.
_EXPIRY_MARGIN = 2.0
# With any timeout of a service, a request may take so many seconds, enough for a new connection over a slow network.
# It is less than the shortest timeout, so that a service without a token is found in time.
_SHORTEST_TRY = 2.5


@attrs.define(eq=False, repr=False)
class ServiceCreator:
    """
    Creates one service, and creates it again when the registry loses it.

    A creation whose response was lost may have had its effect. Then a service of our own holds the id, and would
    expire, because its token is lost too. So the client looks for it, removes it, and creates it again.
    """

    _services: ServicesAPI
    _desired: DesiredState
    _clock: IReactorTime
    # Without it, each request has a part of the heartbeat timeout, as a registration that is retried has.
    _deadline: float | None = None
    # Whether the registry may hold a service that this has created.
    mayExist: bool = attrs.field(default=False, init=False)
    # The creation under way. It runs on when its caller is cancelled, so that its outcome becomes known.
    underWay: Deferred[str] | None = attrs.field(default=None, init=False)

    @property
    def _timeout(self) -> float:
        if self._deadline is not None:
            return max(0.0, self._deadline - self._clock.seconds())
        # A third of the heartbeat timeout: a service whose creation had no response is found before it expires.
        return min(self._services.timeout, max(_SHORTEST_TRY, self._desired.heartbeatTimeout / 3))

    async def create(self) -> str:
        """
        Create the service, and return its token. Raises ``ServiceExists`` if another client holds the id.

        With a deadline, and several servers: when one of them ends, hangs or loses its store during the request, so
        that the outcome is unknown, another one is asked.
        """
        for attempt in range(3):
            try:
                return await self._removeAndCreate()
            except CancelledError:
                # A registration that is retried lets it run on, and finds out its outcome.
                if self._deadline is not None:
                    self.abandon()
                raise
            except ServiceExists:
                # A creation of our own has just had its effect, or another client holds the id: looking shows which.
                if attempt == 2 or not self.mayExist:
                    raise
            except UNKNOWN_OUTCOME as error:
                isOver = attempt > 0 or self._deadline is None or isinstance(error, ClientClosed)
                if isOver or not isUnknown(error) or self._services.servers < 2:
                    raise
        raise AssertionError("unreachable")

    def abandon(self) -> None:
        """Cancel the creation that is under way. Its outcome stays unknown."""
        if self.underWay is not None:
            self.underWay.addErrback(lambda _: None)
            self.underWay.cancel()

    async def _removeAndCreate(self) -> str:
        if self.mayExist:
            await self._removeOrphan()
        while True:
            fields = self._desired.begin(isFirst=not self.mayExist)
            self.underWay = self._services.createOnce(
                self._desired.serviceId, fields["heartbeat_timeout"], fields, timeout=self._timeout
            ).addBoth(self._created)
            token = waitFor(self.underWay)
            # Its caller may have been cancelled.
            self.underWay.addErrback(lambda _: None)
            try:
                return await token
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

    def _created(self, result: Any) -> Any:
        self.underWay = None
        if isinstance(result, Failure):
            self.mayExist = self.mayExist or isUnknown(result.value)
            return result
        self.mayExist = True
        self._desired.registered()
        return result["token"]


class ServicesClient(ServicesAPI):
    """
    The services of the account: their requests, and what keeps services registered.

    Every method returns a Deferred, which fails with a :class:`~txserviceregistry.errors.ServiceRegistryError`: an
    ``APIError`` such as ``NotFound`` or ``BadRequest`` when the registry refuses, else ``ConnectionFailed``,
    ``RequestTimedOut``, ``MalformedResponse`` or ``AuthenticationFailed``.
    """

    def __init__(
        self,
        transport: Transport,
        clock: IReactorTime,
        cache: ListCache | None = None,
        *,
        connections: int = 2,
        suspends: SuspendWatch,
    ) -> None:
        super().__init__(transport, clock, cache)
        stalls = StallWatch(clock)
        self.context = HeartbeatContext(
            stalls,
            suspends,
            # The time limit of a registration must not pass while it waits for many others. One that waits behind each
            # one under way keeps the connections busy.
            registrations=PrioritySemaphore(2 * connections),
            batcher=HeartbeatBatcher(
                self.heartbeats, lambda: HEARTBEATS in transport.extensions, clock, stalls=stalls, suspends=suspends
            ),
        )
        self.desired = DesiredStates(self.updateOnce, self.context.registrations, transport.pause, clock)
        self._heartBeaters: WeakSet[HeartBeater] = WeakSet()

    @returnsDeferred
    async def create(
        self,
        id: str,
        heartbeatTimeout: int,
        payload: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> tuple[HeartbeatToken, HeartBeater]:
        """
        Register a service. It expires unless heartbeats are sent for it: start the HeartBeater.

        :param id: 3 to 65 characters of ``a-z A-Z 0-9 _ - .``.
        :param heartbeatTimeout: seconds without a heartbeat after which the registry removes it, 3 to 120.
        :param payload: ``tags`` (a list of strings) and ``metadata`` (a dict of strings), both optional.
        :return: fires with ``({"token": …}, heartBeater)``. Fails with ``ServiceExists`` if a service holds the id.
            After a ``ConnectionFailed`` (if it ``wasSent``), ``RequestTimedOut``, ``MalformedResponse`` or
            ``ServerError`` it is not known whether the service was registered; a
            :class:`~txserviceregistry.RegisteredService` finds out. With several URLs, another server is asked before.
        """
        timeout = self.timeout if timeout is None else boundedNumber(timeout, 0.0, LONGEST_INTERVAL)
        desired = DesiredState(self.desired, id, heartbeatTimeout, payload)
        token = await ServiceCreator(self, desired, self._clock, self._clock.seconds() + timeout).create()
        return self._created(desired, token, None)

    @returnsDeferred
    async def register(
        self,
        id: str,
        heartbeatTimeout: int,
        payload: Mapping[str, Any] | None = None,
        retryDelay: float = 2,
    ) -> tuple[HeartbeatToken, HeartBeater]:
        """
        :meth:`create`, but while a service holds the id, most likely of an earlier run of the same program, retry until
        that one must have expired, if it has the same timeout. The HeartBeater registers the service again whenever the
        registry loses it.

        :param retryDelay: seconds between two tries.
        :return: fires as :meth:`create` does. Fails with ``ServiceExists`` if the other service does not expire, and
            with ``ValueError`` if *retryDelay* is not a number from 0 on. Cancelling it ends the tries.
        """
        retryDelay = boundedNumber(retryDelay, 0.0, LONGEST_INTERVAL)
        desired = DesiredState(self.desired, id, heartbeatTimeout, payload)
        creation = ServiceCreator(self, desired, self._clock)

        @returnsDeferred
        async def again() -> str:
            heartBeater = desired.heartBeater()
            if heartBeater is not None and heartBeater.hadNoToken:
                creation.mayExist = True
            token = await creation.create()
            # When this one is lost too, a service that holds the id then is another client's.
            creation.mayExist = False
            return token

        expiry = self._clock.seconds() + heartbeatTimeout + _EXPIRY_MARGIN
        while True:
            try:
                first = ServiceCreator(self, desired, self._clock, self._clock.seconds() + self.timeout)
                return self._created(desired, await first.create(), again)
            except ServiceExists:
                left = expiry - self._clock.seconds()
                if left <= 0:
                    raise
                # The last try is made when the old service must have expired.
                await self._transport.pause(min(retryDelay, left))

    @returnsDeferred
    async def update(self, id: str, payload: Mapping[str, Any]) -> bool:
        """
        Change a service.

        A service that this client registered is registered again as it was changed. Only a refusal (an ``APIError``
        other than ``NotFound`` and ``ServerError``) takes the change back. After any other failure it is not known
        whether the registry has it; the client updates a service that it registers again until the registry has it.

        :param payload: any of ``heartbeat_timeout``, ``tags`` and ``metadata``. A field that is given replaces the old
            value as a whole; the others stay. So does a ``host`` that a RegisteredService determined automatically.
        :return: fires with ``True``; fails with ``NotFound`` if there is none with this *id*.
        """
        desired = self.desired.byId.get(id)
        if desired is None:
            await self.updateOnce(id, payload)
        else:
            await desired.update(payload)
        return True

    def close(self) -> Deferred[None]:
        """Stop the HeartBeaters that were made here. A client does it when it is closed."""
        for heartBeater in list(self._heartBeaters):
            heartBeater.stop()
        return succeed(None)

    def adopt(self, heartBeater: HeartBeater) -> None:
        """Stop this one too when the client is closed."""
        self._heartBeaters.add(heartBeater)

    def _created(
        self, desired: DesiredState, token: str, register: Callable[[], Deferred[str]] | None
    ) -> tuple[HeartbeatToken, HeartBeater]:
        heartBeater = HeartBeater(
            self,
            desired.serviceId,
            desired.heartbeatTimeout,
            token,
            clock=self._clock,
            register=register,
            context=self.context,
        )
        # The client has a weak reference to the desired state, which lasts as long as the HeartBeater.
        heartBeater.desired = desired
        desired.open(heartBeater)
        self.adopt(heartBeater)
        return {"token": token}, heartBeater
