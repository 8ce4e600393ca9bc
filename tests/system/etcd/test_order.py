"""Responses and the watch, which reach a node in any order."""

from __future__ import annotations

from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from txserviceregistry.registry.model import ServiceChanges
from txserviceregistry.registry.stores.etcd.keyvalues import encode
from txserviceregistry.registry.stores.interfaces import NoSuchObject


class OrderTests(EtcdStoreCase):
    """Older data never replace newer data."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = TroubledAgent()

    def changes(self, body: bytes) -> bool:
        """Whether a request writes the record of the service."""
        return encode(f"{self.prefix}services/{T}/web").encode() in body and b"request_put" in body

    async def test_aCreateIsAnsweredAfterTheEndOfItsService(self) -> None:
        """Another node has removed it, and the watch has shown that: what the caller takes over ends again."""
        a, b = await self.store(agent=self.wire), await self.store()
        self.wire.delays = self.changes
        creating = self.beginCreate(a)
        await self.until(lambda: self.wire.held)
        made = await b.getService(T, "web")
        await self.notifies(a, "appeared", "web", made.incarnation, 30)
        await b.removeService(T, "web", made.incarnation)
        end = "vanished", "web", made.incarnation
        await self.notifies(a, *end)
        self.wire.release()
        self.assertEqual((await creating).incarnation, made.incarnation)
        await self.until(lambda: self.listeners[a].heard.count(end) == 2)
        self.assertFalse(await self.admitted(a, made))

    async def test_theWatchShowsACreateAfterTheRemoval(self) -> None:
        """A service that was created and removed here stays removed."""
        a = await self.store(agent=self.wire)
        self.wire.isDelayed = True
        made = await self.create(a)
        await a.removeService(T, "web", made.incarnation)
        again = await self.create(a)
        self.wire.catchUp()
        await self.catchesUp(a)
        heard = [each for each in self.listeners[a].heard if each[0] == "appeared"]
        self.assertEqual(heard, [("appeared", "web", again.incarnation, 30)])
        self.assertTrue(await self.admitted(a, again))

    async def test_theWatchShowsAnUpdateAfterARemovalThatWasRead(self) -> None:
        """A service that a read has not found does not come back, nor one that a touch has not found."""
        a, b = await self.store(agent=self.wire), await self.store()
        for isTouched in (False, True):
            made = await self.created(a, b)
            if isTouched:
                await self.voteOf(a, made)
            self.wire.isDelayed = True
            await b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
            await b.removeService(T, "web", made.incarnation)
            if isTouched:
                self.assertFalse(await self.admitted(a, made))
            else:
                await self.refuses(NoSuchObject, a.getService(T, "web"))
            self.listeners[a].heard.clear()
            self.wire.catchUp()
            await self.notifies(a, "vanished", "web", made.incarnation)
            self.assertNotIn("appeared", [each[0] for each in self.listeners[a].heard])
            self.ticking = [a, b]

    async def test_anUpdateIsAnsweredAfterALaterOne(self) -> None:
        """Of two new timeouts the last one counts on both nodes, whichever response comes last."""
        a, b = await self.store(agent=self.wire), await self.store()
        made = await self.created(a, b)
        self.wire.delays = self.changes
        updating = a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=40))
        await self.until(lambda: self.wire.held)
        await b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        await self.notifies(a, "appeared", "web", made.incarnation, 60)
        self.wire.release()
        self.assertEqual((await updating).heartbeatTimeout, 60)

    async def test_anExpirationIsAnsweredAfterTheWatchHasShownIt(self) -> None:
        """The node that has made it reports it all the same."""
        a, b = await self.store(agent=self.wire), await self.store()
        made = await self.created(a, b)
        self.wire.delays = lambda body: b"request_delete_range" in body
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.notifies(b, "vanished", "web", made.incarnation)
        await self.catchesUp(a)
        self.assertNotIn(("vanished", "web", made.incarnation), self.listeners[a].heard)
        self.wire.release()
        await self.notifies(a, "vanished", "web", made.incarnation)
        heard = [each[0] for each in self.listeners[a].heard if made.incarnation in each]
        self.assertEqual(heard[-2:], ["expired", "vanished"])

    async def test_aTouchKeepsALaterTime(self) -> None:
        """A node that does not know of the last heartbeat yet leaves its time as it is."""
        a, b = await self.store(agent=self.wire), await self.store()
        made = await self.created(a, b)
        seen = f"seen/{T}/web"
        for store, time in ((a, 1_700_000_000_000), (b, 1_700_000_009_000)):
            store.recordLastSeen(T, "web", made.incarnation, time)
            await self.whenever(lambda time=time: self.holds(seen, time))
            self.wire.isDelayed = True
        before = await self.key(seen)
        await self.voteOf(a, made)
        self.assertTrue(await self.admitted(a, made))
        after = await self.key(seen)
        assert before is not None and after is not None
        self.assertEqual(after.value, before.value)
        self.assertGreater(after.modified, before.modified)

    async def holds(self, name: str, time: int) -> bool:
        """Whether a key has this number."""
        found = await self.key(name)
        return found is not None and int(found.value) == time
