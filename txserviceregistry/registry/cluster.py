"""
What is different for a registry that shares its store with others: it hears of what they do, any of them takes any
heartbeat, and what it does not know yet it asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from ..util.singleflight import SingleFlight
from .expiry.deadlines import ServiceState
from .expiry.livetable import LiveServices
from .faults import notFound, systemFailure
from .stores.interfaces import ISharedStore, IStoreListener, LivingService, NoSuchObject, StoreUnavailable
from .subscribers import Subscribers
from .tasks import WorkerLimit
from .tokens import HeartbeatTokens

#: How many services are looked up in the store at once because a heartbeat named something unknown, and how many may
#: wait for that: whoever makes up ids and tokens must not keep the store from its work.
_LOOKS = 4
_WAITING = 400


@implementer(IStoreListener)
class Cluster:
    """
    One registry among several over one store.

    :param store: the store.
    :param lives: the lives of the services, of which this registry hears only some.
    :param followers: those who wait for something new in a feed.
    """

    def __init__(self, store: ISharedStore, lives: LiveServices, followers: Subscribers) -> None:
        self._store = store
        self._live = lives
        self._subscribers = followers
        self._looking: SingleFlight[tuple[str, str], None] = SingleFlight()
        self._looks = WorkerLimit(_LOOKS)

    def start(self) -> None:
        """Begin to listen."""
        self._store.follow(self)

    async def beat(self, tenant: str, id: str, token: str, tokens: HeartbeatTokens) -> tuple[ServiceState, str]:
        """
        A service is alive, if the token is its own.

        :return: its life, which has not been given its time yet, and the next token.
        :raises Fault: 404 if it is not there or the token is not its own; 503 if the store can't be asked.
        """
        life, following = self._known(tenant, id, token, tokens)
        while True:
            if life is None or following is None:
                await self.learn(tenant, id)
                life, following = self._known(tenant, id, token, tokens)
                if life is None:
                    raise notFound("Service", id)
                if following is None:
                    raise notFound("HeartbeatMarker", token)
            try:
                isThere = await self._store.beat(tenant, id, life.incarnation)
            except StoreUnavailable as reason:
                raise systemFailure() from reason
            if isThere:
                return life, following
            # Over, by what another registry did. There may be another life of it.
            self._live.forget(tenant, id, life.incarnation)
            life = None

    def _known(
        self, tenant: str, id: str, token: str, tokens: HeartbeatTokens
    ) -> tuple[ServiceState | None, str | None]:
        life = self._live.alive(tenant, id)
        return life, None if life is None else tokens.next(tenant, id, life.incarnation, token)

    async def learn(self, tenant: str, id: str) -> None:
        """
        Look a service up in the store.

        :raises Fault: 503 if the store can't be asked, or has to look up too many.
        """
        if len(self._looking) >= _WAITING:
            raise systemFailure("Too many unknown services are being looked up")
        try:
            await self._looking.do((tenant, id), lambda: self._looks.do(lambda: self._look(tenant, id)))
        except StoreUnavailable as reason:
            raise systemFailure() from reason

    async def _look(self, tenant: str, id: str) -> None:
        known = self._live.alive(tenant, id)
        try:
            record = await self._store.getService(tenant, id)
        except NoSuchObject:
            if known is not None:
                self._live.forget(tenant, id, known.incarnation)
            return
        self._live.meet(LivingService(tenant, id, record.incarnation, record.heartbeatTimeout, record.lastSeen))

    # -- IStoreListener

    def appeared(self, service: LivingService) -> None:
        """See :meth:`IStoreListener.appeared`."""
        self._live.meet(service)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        """See :meth:`IStoreListener.vanished`."""
        self._live.forget(tenant, id, incarnation)

    def news(self, tenant: str) -> None:
        """See :meth:`IStoreListener.news`."""
        self._subscribers.tell((tenant,))

    def lost(self) -> None:
        """See :meth:`IStoreListener.lost`."""
        self._live.suspend()
        # Nothing new is heard here: those who wait for it find that out, and may go to another registry.
        self._subscribers.tellAll()

    def synchronized(self, living: Sequence[LivingService], wasLost: bool) -> None:
        """See :meth:`IStoreListener.synchronized`."""
        self._live.synchronize(living, anew=wasLost)
