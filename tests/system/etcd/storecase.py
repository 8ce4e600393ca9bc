"""
Stores over a real etcd, for tests of what the etcd store does beside the suites.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.etcd.relay import Relay
from tests.unit.registry.stores.etcd.test_gateway import CLOCK, EtcdCase
from tests.unit.registry.stores.sharedsuite import Listener
from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores.etcd import node as etcdNode
from txserviceregistry.registry.stores.etcd import store as etcdStore
from txserviceregistry.registry.stores.etcd.gateway import TRY
from txserviceregistry.registry.stores.etcd.keyvalues import KeyValue, endOf, put
from txserviceregistry.registry.stores.etcd.node import DEAF
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import (
    ServiceRecord,
)

T = "1"
TICK = 0.1
# Seconds between two ticks after which this process has stood still. As in a registry, such a tick is left out, unless
# the one before it was late too.
_STALL = 0.5
# Seconds for which this process or etcd may stand still in a test that is not about that.
_PATIENCE = 60
_marks = itertools.count()


def toleratesStalls(case: TestCase) -> None:
    """
    Let stores stay valid, and wait for etcd and its watch, also on a machine that stands still for seconds. A test that
    is about these times sets them anew.
    """
    case.patch(etcdNode, "PRESENCE", _PATIENCE)
    case.patch(etcdNode, "DEAF", float(_PATIENCE))
    case.patch(etcdStore, "TRY", float(_PATIENCE))
    case.patch(etcdStore, "GIVE_UP", float(_PATIENCE))


class EtcdStoreCase(EtcdCase):
    """
    Stores over one prefix.

    :cvar isPatient: whether they tolerate stalls of the machine.
    :ivar listeners: by store, of those that have joined.
    :ivar ticking: the stores that take part in votes.
    :ivar stalled: seconds for which this process has stood still.
    """

    isPatient = True

    def setUp(self) -> None:
        if self.isPatient:
            toleratesStalls(self)
        self.prefix = newPrefix()
        self.asked = self.etcd(sharedEtcd())
        self.listeners: dict[EtcdStore, Listener] = {}
        self.ticking: list[EtcdStore] = []
        self.ticked = CLOCK.seconds()
        self.stalled = 0.0
        self.isLate = False
        ticks = LoopingCall(self.tick)
        ticks.start(TICK, now=False)
        self.addCleanup(ticks.stop)

    def tick(self) -> None:
        before, self.ticked = self.ticked, CLOCK.seconds()
        wasLate, self.isLate = self.isLate, self.ticked - before >= _STALL
        if self.isLate:
            self.stalled += self.ticked - before
            if not wasLate:
                return
        for store in self.ticking:
            store.tick()

    def giveUpSoon(self) -> None:
        """Let stores give up requests without a response as soon as they do elsewhere."""
        self.patch(etcdStore, "TRY", TRY)

    def readAgainSoon(self) -> None:
        """Let stores read everything again as soon as elsewhere, after a watch that has ended or shows nothing."""
        self.patch(etcdNode, "DEAF", DEAF)

    async def store(self, url: str | None = None, joins: bool = True, **options: Any) -> EtcdStore:
        store = EtcdStore(reactor, [url or sharedEtcd()], prefix=self.prefix, **options)
        self.addCleanup(store.close)
        await store.open()
        if joins:
            self.listeners[store] = Listener(CLOCK.seconds)
            await store.join(self.listeners[store])
            self.ticking.append(store)
        return store

    def relay(self) -> Relay:
        self.readAgainSoon()
        relay = Relay(reactor, int(sharedEtcd().rpartition(":")[2]))
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    async def create(self, store: EtcdStore, id: str = "web", timeout: int = 30, tenant: str = T) -> ServiceRecord:
        return await store.createService(tenant, NewService(id, timeout), 10_000)

    def beginCreate(self, store: EtcdStore, id: str = "web") -> Deferred[ServiceRecord]:
        return Deferred.fromCoroutine(self.create(store, id))

    async def created(self, *stores: EtcdStore, id: str = "web", timeout: int = 30) -> ServiceRecord:
        """A service that all of these stores know."""
        made = await self.create(stores[0], id, timeout)
        for store in stores:
            await self.notifies(store, "appeared", id, made.incarnation, timeout)
        return made

    async def notifies(self, store: EtcdStore, *what: Any) -> None:
        """Wait until the listener of a store has been notified of that."""
        await self.until(lambda: what in self.listeners[store].heard)

    def heartbeat(self, store: EtcdStore, made: ServiceRecord) -> None:
        """A store's registry receives a heartbeat."""
        self.listeners[store].heartbeat((T, made.incarnation))

    def passDeadline(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """The deadline of a service passes, as these stores' registries know it."""
        for store in stores:
            self.listeners[store].deadlines[T, made.incarnation] = 0.0

    def passSilently(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """As :meth:`passDeadline`, but these stores open no vote about it."""
        self.passDeadline(made, *stores)
        for store in stores:
            self.listeners[store].due(1000)

    def secondsLeft(self, store: EtcdStore, made: ServiceRecord) -> float:
        """As a store's registry knows it."""
        return self.listeners[store].secondsLeft((T, made.incarnation))

    def assertFull(self, store: EtcdStore, made: ServiceRecord, since: float, timeout: int = 30) -> None:
        """A service has a full timeout from this moment on, or from a later one, as a store's registry knows it."""
        self.assertGreaterEqual(self.listeners[store].deadlines[T, made.incarnation], since + timeout)

    async def admitted(self, store: EtcdStore, made: ServiceRecord) -> bool:
        """A heartbeat that a store's registry lets pass or not."""
        isThere = await store.admit(T, made.incarnation)
        if isThere:
            self.heartbeat(store, made)
        return isThere

    def beginAdmitted(self, store: EtcdStore, made: ServiceRecord) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.admitted(store, made))

    async def voteOf(self, store: EtcdStore, made: ServiceRecord, *others: EtcdStore) -> None:
        """A store opens a vote about a service, whose deadline has passed there; only the *others* answer."""
        self.ticking = [store, *others]
        self.passDeadline(made, store)
        self.passSilently(made, *others)
        await self.until(lambda: all(made.incarnation in each.closed(T) for each in (store, *others)))

    async def untilVotesEnd(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """Wait until a service is open on these stores, and no node publishes a vote."""
        await self.whenever(lambda: self.areVotesOver(made, *stores))

    async def areVotesOver(self, made: ServiceRecord, *stores: EtcdStore) -> bool:
        if any(made.incarnation in store.closed(T) for store in stores):
            return False
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return not any(json.loads(each.value)["votes"] for each in found)

    async def newestNode(self) -> KeyValue:
        """The key of the node that has joined last. A join whose response comes too late leaves one for a while."""
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return max(found, key=lambda each: each.created)

    async def key(self, name: str) -> KeyValue | None:
        return await self.asked.get(self.prefix + name)

    async def keys(self, below: str) -> list[str]:
        begin = self.prefix + below
        found, _ = await self.asked.range(begin, endOf(begin))
        return [each.key.removeprefix(begin) for each in found]

    async def types(self, store: EtcdStore) -> list[str]:
        return [each.type for each in await store.listEvents(T, 0, 1000, None)]

    async def whenever(self, condition: Any) -> None:
        """Wait until *condition*, a function that returns something to await, is true."""
        found: list[Any] = [None]
        isAsking = [False]

        def look() -> bool:
            if not isAsking[0] and not found[0]:
                isAsking[0] = True
                Deferred.fromCoroutine(condition()).addCallback(answered)
            return bool(found[0])

        def answered(value: Any) -> None:
            found[0] = value
            isAsking[0] = False

        await self.until(look)

    async def catchesUp(self, store: EtcdStore) -> None:
        """Wait until a store has been shown all that has happened by now."""
        tenant = f"mark{next(_marks)}"
        await self.asked.txn((), [put(f"{self.prefix}events/{tenant}/0", b'{"events": [{"type": "mark"}]}')])
        await self.notifies(store, "eventAdded", tenant, "mark")

    async def haveJoined(self, count: int) -> bool:
        return len(await self.keys("nodes/")) == count

    async def isGone(self, name: str) -> bool:
        return await self.key(name) is None
