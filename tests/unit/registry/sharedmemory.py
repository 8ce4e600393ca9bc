"""
A shared store in memory: what several registries over one store do, on a clock that only the test moves.

That it behaves as the real one does is shown by the suite that both pass (``sharedsuite``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.components import proxyForInterface
from zope.interface import implementer

from txserviceregistry.registry.model import ServiceChanges
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    ISharedStore,
    IStore,
    IStoreListener,
    ServiceRecord,
    StoreUnavailable,
)
from txserviceregistry.registry.stores.memory import MemoryStore


class SharedMemory:
    """
    What the registries share: a memory store, and when each service was heartbeated last.

    :param clock: the time by which services expire.
    :param wallClock: seconds since the epoch.
    """

    #: Seconds until the others are notified of a change.
    LAG = 0.01

    def __init__(self, clock: Clock, wallClock: Callable[[], float]) -> None:
        self.clock = clock
        self.memory = MemoryStore(wallClock=wallClock)
        self.heartbeats: dict[tuple[str, str, str], float] = {}
        self.stores: list[SharedMemoryStore] = []
        self.hasHadUsers = False

    def store(self) -> SharedMemoryStore:
        """The store as one more registry has it."""
        store = SharedMemoryStore(self)
        self.stores.append(store)
        return store

    def notify(self, name: str, *arguments: Any) -> None:
        """Notify all listeners that are in contact."""
        self.clock.callLater(self.LAG, self._notify, name, arguments)

    def _notify(self, name: str, arguments: Sequence[Any]) -> None:
        for store in self.stores:
            if store.listener is not None and not store.isCutOff:
                getattr(store.listener, name)(*arguments)


@implementer(ISharedStore)
class SharedMemoryStore(proxyForInterface(IStore, "_memory")):  # type: ignore[misc]  # it makes a class
    """One registry's view of the store. ``isCutOff`` may be set: then nothing reaches it, until :meth:`reconnect`."""

    name = "shared memory"

    def __init__(self, shared: SharedMemory) -> None:
        super().__init__(shared.memory)
        self._shared = shared
        self.listener: IStoreListener | None = None
        self.isCutOff = False
        self.isNew = True

    def open(self) -> Deferred[None]:
        """See :meth:`IStore.open`. What is shared is open already."""
        self.isNew = not self._shared.hasHadUsers
        return succeed(None)

    def cutOff(self) -> None:
        """Lose the store."""
        self.isCutOff = True
        if self.listener is not None:
            self.listener.lost()

    def reconnect(self) -> None:
        """Have the store again."""
        self.isCutOff = False
        self._shared.memory.allServices().addCallback(lambda services: self.listener.synchronized(services, True))

    def close(self) -> Deferred[None]:
        """Only this view is closed."""
        self.listener, self.isCutOff = None, True
        return succeed(None)

    # -- IStore, where others are notified

    def createService(self, tenant: str, *rest: Any) -> Deferred[ServiceRecord]:
        def created(record: ServiceRecord) -> ServiceRecord:
            self._shared.heartbeats[tenant, record.id, record.incarnation] = self._shared.clock.seconds()
            self._shared.notify("appeared", record.summary(tenant))
            self._shared.notify("eventAdded", tenant)
            return record

        return self._reached(lambda: self._memory.createService(tenant, *rest).addCallback(created))

    def getService(self, tenant: str, id: str) -> Deferred[ServiceRecord]:
        return self._reached(lambda: self._memory.getService(tenant, id))

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[Any]:
        def updated(record: ServiceRecord) -> ServiceRecord:
            if changes.heartbeatTimeout is not None:
                self._shared.heartbeats[tenant, id, incarnation] = self._shared.clock.seconds()
            self._shared.notify("appeared", record.summary(tenant))
            return record

        return self._reached(lambda: self._memory.updateService(tenant, id, incarnation, changes).addCallback(updated))

    def removeService(self, tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]:
        return self._reached(
            lambda: self._memory.removeService(tenant, id, incarnation).addCallback(self._gone, tenant, id, incarnation)
        )

    def _gone(self, result: Any, tenant: str, id: str, incarnation: str) -> Any:
        self._shared.heartbeats.pop((tenant, id, incarnation), None)
        self._shared.notify("vanished", tenant, id, incarnation)
        self._shared.notify("eventAdded", tenant)
        return result

    def expireServices(self, expirations: Sequence[Expiration]) -> Deferred[None]:
        def expired(result: None) -> None:
            for each in expirations:
                self._gone(None, each.tenant, each.id, each.incarnation)

        return self._reached(lambda: self._memory.expireServices(expirations).addCallback(expired))

    def setValue(self, tenant: str, *rest: Any) -> Deferred[None]:
        def kept(result: None) -> None:
            self._shared.notify("eventAdded", tenant)

        return self._reached(lambda: self._memory.setValue(tenant, *rest).addCallback(kept))

    def listEvents(self, *arguments: Any) -> Deferred[Any]:
        return self._reached(lambda: self._memory.listEvents(*arguments))

    def addUser(self, *arguments: Any) -> Deferred[Any]:
        def added(user: Any) -> Any:
            self._shared.hasHadUsers = True
            return user

        return self._reached(lambda: self._memory.addUser(*arguments).addCallback(added))

    # -- ISharedStore

    def listen(self, listener: IStoreListener) -> None:
        """See :meth:`ISharedStore.listen`."""
        self.listener = listener

    def heartbeat(self, tenant: str, id: str, incarnation: str) -> Deferred[bool]:
        """See :meth:`ISharedStore.heartbeat`."""

        def taken() -> Deferred[bool]:
            isThere = (tenant, id, incarnation) in self._shared.heartbeats
            if isThere:
                self._shared.heartbeats[tenant, id, incarnation] = self._shared.clock.seconds()
            return succeed(isThere)

        return self._reached(taken)

    def secondsLeft(self, tenant: str, id: str, incarnation: str) -> Deferred[float]:
        """See :meth:`ISharedStore.secondsLeft`."""

        def left(record: ServiceRecord) -> float:
            latest = self._shared.heartbeats.get((tenant, id, incarnation), float("-inf"))
            exact = latest + record.heartbeatTimeout - self._shared.clock.seconds()
            # In whole seconds, as etcd returns it: 0 for less than one, below zero for none.
            return float(exact // 1) if exact > 0 else -1.0

        return self._reached(lambda: self._memory.getService(tenant, id).addCallbacks(left, lambda _: -1.0))

    def _reached(self, work: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        return fail(StoreUnavailable("cut off")) if self.isCutOff else work()
