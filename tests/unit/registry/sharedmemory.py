"""
A shared store in memory: what several registries over one store do, on a clock that only the test moves.

The nodes and their votes are the program's own; what they keep in etcd is kept here in memory. That the store behaves
as the real one does is shown by the suite that both pass (``sharedsuite``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.task import Clock
from twisted.python.components import proxyForInterface
from zope.interface import implementer

from txserviceregistry.registry.model import ServiceChanges, isLockScope, lockScope, tenantOf
from txserviceregistry.registry.stores.etcd.node import INodeKeys, Node
from txserviceregistry.registry.stores.etcd.votes import Evidence, Registration, Status
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    ISharedStore,
    IStore,
    IStoreListener,
    LockRecord,
    NoSuchObject,
    ServiceRecord,
    ServiceSummary,
    StoreUnavailable,
)
from txserviceregistry.registry.stores.memory import MemoryStore

__all__ = ["SharedMemory", "SharedMemoryStore"]


@attrs.define
class _Member:
    """A node's key."""

    created: int
    lifetime: float
    ends: float
    status: Status


class SharedMemory:
    """
    The shared state of the registries: a memory store, the nodes' keys, and when each service was touched.

    :param clock: the time by which services expire.
    :param wallClock: seconds since the epoch.
    """

    #: Seconds until the others notice a change.
    LAG = 0.01

    def __init__(self, clock: Clock, wallClock: Callable[[], float]) -> None:
        self.clock = clock
        self.memory = MemoryStore(wallClock=wallClock)
        self.revision = 1
        self.joins = 0
        self.members: dict[str, _Member] = {}
        # The services, with the revision of their last touch.
        self.touched: dict[Registration, int] = {}
        self.names: dict[Registration, str] = {}
        self.stores: list[SharedMemoryStore] = []
        self.hasHadUsers = False

    def store(self) -> SharedMemoryStore:
        """The store as one more registry has it."""
        store = SharedMemoryStore(self)
        self.stores.append(store)
        return store

    def next(self) -> int:
        """The next revision."""
        self.revision += 1
        return self.revision

    def tell(self, notify: Callable[[SharedMemoryStore], object]) -> None:
        """Let all stores that are in contact notice a change."""
        self.clock.callLater(self.LAG, self._tell, notify)

    def _tell(self, notify: Callable[[SharedMemoryStore], object]) -> None:
        for store in self.stores:
            if store.listener is not None and not store.isCutOff:
                notify(store)

    def end(self, name: str) -> None:
        """A node's key is gone."""
        if self.members.pop(name, None) is not None:
            self.next()
            self.tell(lambda store: store.node.nodeGone(name))

    def watchLease(self, name: str) -> None:
        """End a node's key with its lease."""
        member = self.members.get(name)
        if member is None:
            return
        left = member.ends - self.clock.seconds()
        if left > 0:
            # Not for so short that rounding makes it no time at all.
            self.clock.callLater(max(left, 0.01), self.watchLease, name)
        else:
            self.end(name)


@implementer(INodeKeys)
class MemoryKeys:
    """The keys of one registry's node."""

    def __init__(self, shared: SharedMemory, store: SharedMemoryStore) -> None:
        self._shared = shared
        self._store = store

    def join(self, name: str, seconds: int, status: Status) -> Deferred[tuple[int, float]]:
        def join() -> tuple[int, float]:
            shared = self._shared
            created = shared.joins = shared.next()
            shared.members[name] = _Member(created, seconds, shared.clock.seconds() + seconds, status)
            shared.watchLease(name)
            shared.tell(lambda store: self._joined(store, name, created))
            return created, seconds

        return self._store.reached(lambda: succeed(join()))

    def _joined(self, store: SharedMemoryStore, name: str, revision: int) -> None:
        store.node.joins = revision
        member = self._shared.members.get(name)
        if member is not None:
            store.node.statusChanged(name, member.status)

    def load(self) -> Deferred[None]:
        def loaded(services: Any) -> None:
            node = self._store.node
            self._store.listener.synchronized(services)
            node.joins = self._shared.joins
            node.membersAre(set(self._shared.members))
            for name, member in self._shared.members.items():
                node.statusChanged(name, member.status)

        memory = self._shared.memory
        every = gatherResults([memory.allServices(), memory.allLocks()])
        return self._store.reached(lambda: every.addCallback(lambda each: loaded([*each[0], *each[1]])))

    def renew(self, name: str) -> Deferred[bool]:
        def renew() -> bool:
            member = self._shared.members.get(name)
            if member is not None:
                member.ends = self._shared.clock.seconds() + member.lifetime
            return member is not None

        return self._store.reached(lambda: succeed(renew()))

    def publish(self, name: str, created: int, status: Status) -> Deferred[bool]:
        def publish() -> bool:
            member = self._shared.members.get(name)
            if member is None or member.created != created:
                return False
            self._shared.next()
            member.status = status
            self._shared.tell(lambda store: store.node.statusChanged(name, status))
            return True

        return self._store.reached(lambda: succeed(publish()))

    def leave(self, name: str) -> Deferred[None]:
        return self._store.reached(lambda: succeed(self._shared.end(name)))

    def seen(self, registration: Registration) -> int:
        return self._shared.touched.get(registration, 0)

    def touch(self, registration: Registration) -> Deferred[bool]:
        def touch() -> bool:
            exists = registration in self._shared.touched
            if exists:
                self._shared.touched[registration] = self._shared.next()
            return exists

        return self._store.reached(lambda: succeed(touch()))

    def expire(self, name: str, created: int, registration: Registration, evidence: Evidence) -> Deferred[bool]:
        def expire() -> Deferred[bool]:
            shared = self._shared
            if registration not in shared.touched:
                return fail(NoSuchObject(registration))
            member = shared.members.get(name)
            if (shared.touched[registration], shared.joins) != (evidence.seen, evidence.joins) or member is None:
                return succeed(False)
            tenant, incarnation = registration
            expiration = Expiration(tenant, shared.names[registration], incarnation, evidence.timestamp)
            isLock = isLockScope(tenant)
            expiring = self._store.expireLocks if isLock else self._store.expireServices
            return expiring([expiration]).addCallback(lambda _: True)

        return self._store.reached(expire)


@implementer(ISharedStore)
class SharedMemoryStore(proxyForInterface(IStore, "_memory")):  # type: ignore[misc]  # it makes a class
    """One registry's view of the store. ``isCutOff`` may be set: then nothing reaches it, until :meth:`reconnect`."""

    name = "shared memory"

    def __init__(self, shared: SharedMemory) -> None:
        super().__init__(shared.memory)
        self._shared = shared
        self.listener: Any = None
        self.node: Any = None
        self.isCutOff = False
        self.isNew = True

    def open(self) -> Deferred[None]:
        """The shared store is open already."""
        self.isNew = not self._shared.hasHadUsers
        return succeed(None)

    def cutOff(self) -> None:
        """Lose the store."""
        self.isCutOff = True

    def reconnect(self) -> None:
        """Have the store again."""
        self.isCutOff = False

    def close(self) -> Deferred[None]:
        """Only this view is closed."""
        node, self.node = self.node, None
        self.listener = None
        work = succeed(None) if node is None else Deferred.fromCoroutine(node.stop())
        self.isCutOff = True
        return work

    def reached(self, work: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Do some *work*, unless the store is out of reach."""
        return fail(StoreUnavailable("cut off")) if self.isCutOff else work()

    # -- IStore, where others have to notice it

    def created(self, summary: ServiceSummary, type: str) -> None:
        """A service or a lock was created."""
        registration = summary.tenant, summary.incarnation
        self._shared.touched[registration], self._shared.names[registration] = 0, summary.id
        self._shared.tell(lambda store: store.listener.appeared(summary))
        self._shared.tell(lambda store: store.listener.eventAdded(tenantOf(summary.tenant), type))

    def createService(self, tenant: str, *rest: Any) -> Deferred[ServiceRecord]:
        def created(record: ServiceRecord) -> ServiceRecord:
            self.created(record.summary(tenant), "service.join")
            return record

        return self.reached(lambda: self._memory.createService(tenant, *rest).addCallback(created))

    def getService(self, tenant: str, id: str, states: bool = False) -> Deferred[ServiceRecord]:
        return self.reached(lambda: self._memory.getService(tenant, id, states))

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> Deferred[Any]:
        def updated(record: ServiceRecord) -> ServiceRecord:
            if changes.heartbeatTimeout is not None:
                self._shared.touched[tenant, incarnation] = self._shared.next()
            self._shared.tell(lambda store: store.listener.appeared(record.summary(tenant)))
            self._shared.tell(lambda store: store.listener.eventAdded(tenant, "service.update"))
            return record

        return self.reached(lambda: self._memory.updateService(tenant, id, incarnation, changes).addCallback(updated))

    def removeService(self, tenant: str, id: str, incarnation: str) -> Deferred[ServiceRecord]:
        return self.reached(
            lambda: self._memory.removeService(tenant, id, incarnation).addCallback(self.gone, tenant, id, incarnation)
        )

    def gone(self, result: Any, tenant: str, id: str, incarnation: str) -> Any:
        """A service or a lock has ended."""
        self._shared.touched.pop((tenant, incarnation), None)
        self._shared.tell(lambda store: store.listener.vanished(tenant, id, incarnation))
        self._shared.tell(lambda store: store.listener.eventAdded(tenantOf(tenant), None))
        return result

    def expireServices(self, expirations: Sequence[Expiration]) -> Deferred[None]:
        def expired(result: None) -> None:
            for each in expirations:
                self.gone(None, each.tenant, each.id, each.incarnation)

        return self.reached(lambda: self._memory.expireServices(expirations).addCallback(expired))

    def acquireLock(self, tenant: str, *rest: Any) -> Deferred[LockRecord]:
        def acquired(record: LockRecord) -> LockRecord:
            self.created(record.summary(tenant), "lock.acquire")
            return record

        return self.reached(lambda: self._memory.acquireLock(tenant, *rest).addCallback(acquired))

    def getLock(self, tenant: str, name: str) -> Deferred[LockRecord]:
        return self.reached(lambda: self._memory.getLock(tenant, name))

    def forceLock(self, tenant: str, name: str, incarnation: str) -> Deferred[LockRecord]:
        def forced(record: LockRecord) -> LockRecord:
            self._shared.tell(lambda store: store.listener.appeared(record.summary(tenant)))
            return record

        return self.reached(lambda: self._memory.forceLock(tenant, name, incarnation).addCallback(forced))

    def releaseLock(self, tenant: str, name: str, incarnation: str, isForced: bool) -> Deferred[None]:
        return self.reached(
            lambda: self._memory.releaseLock(tenant, name, incarnation, isForced).addCallback(
                self.gone, lockScope(tenant), name, incarnation
            )
        )

    def expireLocks(self, expirations: Sequence[Expiration]) -> Deferred[None]:
        def expired(result: None) -> None:
            for each in expirations:
                self.gone(None, each.tenant, each.id, each.incarnation)

        return self.reached(lambda: self._memory.expireLocks(expirations).addCallback(expired))

    def setValue(self, tenant: str, *rest: Any) -> Deferred[int]:
        def kept(position: int) -> int:
            self._shared.tell(lambda store: store.listener.eventAdded(tenant, "configuration_value.update"))
            return position

        return self.reached(lambda: self._memory.setValue(tenant, *rest).addCallback(kept))

    def setState(self, tenant: str, *rest: Any) -> Deferred[bool]:
        def kept(result: bool) -> bool:
            self._shared.tell(lambda store: store.listener.eventAdded(tenant, "service.state"))
            return result

        return self.reached(lambda: self._memory.setState(tenant, *rest).addCallback(kept))

    def listChanges(self, *arguments: Any) -> Deferred[Any]:
        return self.reached(lambda: self._memory.listChanges(*arguments))

    def listEvents(self, *arguments: Any) -> Deferred[Any]:
        return self.reached(lambda: self._memory.listEvents(*arguments))

    def addUser(self, *arguments: Any) -> Deferred[Any]:
        def added(user: Any) -> Any:
            self._shared.hasHadUsers = True
            return user

        return self.reached(lambda: self._memory.addUser(*arguments).addCallback(added))

    # -- ISharedStore

    def join(self, listener: IStoreListener) -> Deferred[None]:
        self.listener = listener
        clock = self._shared.clock
        self.node = Node(MemoryKeys(self._shared, self), clock, clock.seconds)
        joined: Deferred[None] = self.node.start(listener)
        return joined

    @property
    def members(self) -> Sequence[str]:
        return [] if self.node is None else self.node.members

    @property
    def isValid(self) -> bool:
        return self.node is not None and self.node.isValid

    def tick(self) -> None:
        if self.node is not None:
            self.node.tick()

    def closed(self, tenant: str) -> Collection[str]:
        return () if self.node is None else self.node.closed(tenant)

    def admit(self, tenant: str, incarnation: str) -> Deferred[bool]:
        if self.node is None:
            return fail(StoreUnavailable("closed"))
        return Deferred.fromCoroutine(self.node.admit((tenant, incarnation)))
