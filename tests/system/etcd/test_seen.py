"""The times of heartbeats in etcd."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock

from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from tests.unit.registry.stores.etcd.test_gateway import CLOCK
from tests.unit.registry.stores.sharedsuite import Listener
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.etcd.batches import Batches, TenantIds
from txserviceregistry.registry.stores.etcd.keyvalues import KeyValue, encode
from txserviceregistry.registry.stores.etcd.objects import EtcdStates
from txserviceregistry.registry.stores.etcd.services import EtcdServices
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import (
    StoreUnavailable,
)


class SeenTests(EtcdStoreCase):
    """The times of heartbeats, which are written now and then."""

    async def test_onceForEachIncarnationAndThenRarely(self) -> None:
        """The first heartbeat of an incarnation is written, and no other one soon; a new one begins with its own."""
        store = await self.store()
        made = await self.create(store)
        store.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        for time in (2000, 3000):
            store.recordLastSeen(T, "web", made.incarnation, time)
        self.assertEqual((await store.getService(T, "web")).lastSeen, 3000)
        await store.removeService(T, "web", made.incarnation)
        self.assertTrue(await self.isGone(f"seen/{T}/web"))
        again = await self.create(store)
        self.assertIsNone((await store.getService(T, "web")).lastSeen)
        store.recordLastSeen(T, "web", made.incarnation, 5000)
        store.recordLastSeen(T, "web", again.incarnation, 6000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        seen = await self.key(f"seen/{T}/web")
        self.assertEqual(seen and int(seen.value), 6000)

    def services(self, clock: Clock) -> EtcdServices:
        """Services, without the store that lets their times be written every second."""
        batches = Batches(self.asked, CLOCK, lambda: 1e9, self.prefix, "a")
        part = (self.asked, batches, self.prefix, TenantIds(lambda: 1e9), clock, lambda: 1e9)
        services = EtcdServices(*part, EtcdStates(*part))
        services.listener = Listener(clock.seconds)
        return services

    async def test_everyFiveMinutes(self) -> None:
        """Of a service that is seen all the time, one time in five minutes is written."""
        clock = Clock()
        services = self.services(clock)
        made = await services.create(T, NewService("web", 30), 10)
        written: list[int] = []
        for second in range(0, 1000, 10):
            services.noteSeen(T, "web", made.incarnation, second)
            await services.writeSeen()
            seen = await self.key(f"seen/{T}/web")
            if seen is not None and int(seen.value) not in written:
                written.append(int(seen.value))
            clock.advance(10)
        self.assertEqual(written, [0, 300, 600, 900])

    async def test_thoseOfEndedServicesAreNotWritten(self) -> None:
        """The time of a service that ends before it is written is not written, wherever the service ends."""
        services = self.services(Clock())
        made = [await services.create(T, NewService(id, 30), 10) for id in ("here", "elsewhere", "last")]
        for each in made:
            services.noteSeen(T, each.id, each.incarnation, 1000)
        await services.remove(T, "here", made[0].incarnation)
        found = await self.key(f"services/{T}/elsewhere")
        assert found is not None
        services.recordDeleted(KeyValue(found.key, b"", 0, found.modified + 10, 0))
        await services.writeSeen()
        self.assertEqual(await self.keys(f"seen/{T}/"), ["last"])

    async def test_itIsGuardedByTheRecord(self) -> None:
        """A node that does not know yet that a service has ended writes nothing about it."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.isDeaf = True
        await b.removeService(T, "web", made.incarnation)
        await self.create(b)
        writing = encode(f"{self.prefix}seen/{T}/web").encode()
        wire.holds = lambda body: writing in body
        a.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.until(lambda: wire.held)
        wire.release()
        await a.probe()
        self.assertIsNone(await self.key(f"seen/{T}/web"))

    async def test_othersAreNotifiedOfThem(self) -> None:
        """All nodes show the times that one node writes, also nodes that start later."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        a.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.isSeen(b, 1000))
        later = await self.store()
        self.assertTrue(await self.isSeen(later, 1000))

    async def isSeen(self, store: EtcdStore, time: int | None) -> bool:
        return (await store.getService(T, "web")).lastSeen == time

    async def test_aTouchBeforeTheFirstHeartbeatIsNone(self) -> None:
        """After an update of the timeout, a service that has sent no heartbeat has no such time on any node."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for store in (a, b):
            await self.notifies(store, "appeared", "web", made.incarnation, 60)
            await self.catchesUp(store)
            self.assertTrue(await self.isSeen(store, None))
        self.assertTrue(await self.isSeen(await self.store(), None))

    async def test_anEarlierRegistrationsTimeIsNotTheNextOnes(self) -> None:
        """A node that creates a service again, and is notified of the old one's time after that."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.isDelayed = True
        b.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        await a.removeService(T, "web", made.incarnation)
        again = await self.create(a)
        wire.catchUp()
        await self.notifies(a, "appeared", "web", again.incarnation, 30)
        self.assertTrue(await self.isSeen(a, None))

    async def test_writingGoesOnAfterTrouble(self) -> None:
        """However many could not be written while etcd was away, those that come later are."""
        relay = self.relay()
        store = await self.store(relay.url)
        made = await gatherResults([Deferred.fromCoroutine(self.create(store, f"web{n:02}")) for n in range(40)])
        await relay.refuse()
        relay.reset()
        for each in made[:30]:
            store.recordLastSeen(T, each.id, each.incarnation, 1000)
        await self.refuses(StoreUnavailable, store.probe())
        relay.heal()
        for each in made[30:]:
            store.recordLastSeen(T, each.id, each.incarnation, 2000)
        await self.whenever(lambda: self.areSeen([each.id for each in made[30:]]))

    async def areSeen(self, ids: list[str]) -> bool:
        return set(await self.keys(f"seen/{T}/")) >= set(ids)
