"""
A registry that shares its store with others: it notices their changes, any of them takes any heartbeat, and services
that it does not know yet are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from zope.interface import implementer

from ..util.concurrency import PrioritySemaphore
from ..util.deferred import returnsDeferred
from ..util.singleflight import SingleFlight
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import notFound, systemFailure
from .stores.interfaces import ISharedStore, IStoreListener, NoSuchObject, ServiceSummary
from .subscribers import Subscribers
from .tasks import available
from .tokens import HeartbeatTokens

#: How many services are looked up in the store at once because a heartbeat named an unknown one, and how many may wait
#: for that: clients that make up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400


@implementer(IStoreListener)
class Cluster:
    """
    One registry among several over one store.

    :param store: the store.
    :param services: the services, whose heartbeats this registry takes only in part.
    :param subscribers: the requests that wait for events.
    """

    def __init__(self, store: ISharedStore, services: LiveServices, subscribers: Subscribers) -> None:
        self._store = store
        self._live = services
        self._deadlines = services.deadlines
        self._subscribers = subscribers
        self._looking: SingleFlight[tuple[str, str], None] = SingleFlight()
        self._looks = PrioritySemaphore(_LOOKS)

    def start(self) -> None:
        """Begin to listen."""
        self._store.listen(self)

    async def heartbeat(self, tenant: str, id: str, token: str, tokens: HeartbeatTokens) -> tuple[ServiceState, str]:
        """
        Note a heartbeat in the store, if the token is the service's own.

        :return: the service, whose deadline is not moved here, and the next token.
        :raises Fault: 404 if it is not there or the token is not its own; 503 if the store is unavailable.
        """
        state, nextToken = self._known(tenant, id, token, tokens)
        while True:
            if state is None or nextToken is None:
                await self.look(tenant, id)
                state, nextToken = self._known(tenant, id, token, tokens)
                if state is None:
                    raise notFound("Service", id)
                if nextToken is None:
                    raise notFound("HeartbeatMarker", token)
            if await available(self._store.heartbeat(tenant, id, state.incarnation)):
                return state, nextToken
            # Another registry ended this incarnation. There may be another one.
            self._deadlines.forget(tenant, id, state.incarnation)
            state = None

    def _known(
        self, tenant: str, id: str, token: str, tokens: HeartbeatTokens
    ) -> tuple[ServiceState | None, str | None]:
        state = self._deadlines.active(tenant, id)
        return state, None if state is None else tokens.next(tenant, id, state.incarnation, token)

    async def look(self, tenant: str, id: str) -> None:
        """
        Look a service up in the store.

        :raises Fault: 503 if the store is unavailable, or too many are being looked up.
        """
        if len(self._looking) >= _WAITING:
            raise systemFailure("Too many unknown services are being looked up")
        await available(self._looking.do((tenant, id), lambda: self._look(tenant, id)))

    @returnsDeferred
    async def _look(self, tenant: str, id: str) -> None:
        await self._looks.take(inf)
        known = self._deadlines.active(tenant, id)
        try:
            record = await self._store.getService(tenant, id)
            self._live.track(record.summary(tenant))
        except NoSuchObject:
            if known is not None:
                self._deadlines.forget(tenant, id, known.incarnation)
        finally:
            self._looks.give()

    # -- IStoreListener

    def appeared(self, service: ServiceSummary) -> None:
        self._live.track(service)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self._deadlines.forget(tenant, id, incarnation)

    def eventAdded(self, tenant: str) -> None:
        self._subscribers.notify((tenant,))

    def lost(self) -> None:
        self._live.suspend()
        # New events are not noticed here: subscribers find out, and may go to another registry.
        self._subscribers.notifyAll()

    def synchronized(self, services: Sequence[ServiceSummary], wasLost: bool) -> None:
        self._live.synchronize(services, anew=wasLost)
