"""The etcd store beside the suites: its keys, start and end."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred, gatherResults

from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from txserviceregistry.registry.model import Precondition
from txserviceregistry.registry.stores.etcd.keyvalues import put
from txserviceregistry.registry.stores.etcd.objects import KEYS
from txserviceregistry.registry.stores.interfaces import (
    NoSuchObject,
    StoreRefused,
    StoreUnavailable,
    TokenRecord,
    ValueRecord,
)
from txserviceregistry.registry.uuids import position


class HousekeepingTests(EtcdStoreCase):
    """A key space that does not grow without a limit."""

    async def test_forgetsThePast(self) -> None:
        """Old events and etcd's own history go; what is there stays."""
        store = await self.store()
        await store.setValue(T, "key1", "x", 10)
        await store.setValue(T, "key2", "x", 10)
        first, second = await store.listEvents(T, 0, 10, None)
        await store.dropEvents(0)
        _, old = await self.asked.range("/")
        self.assertEqual(await store.dropEvents(position(second.id)), 1)
        self.assertEqual([each.id for each in await store.listEvents(T, 0, 10, None)], [second.id])
        self.assertFalse(await store.hasEvent(T, first.id))
        await store.setValue(T, "key2", "y", 10)
        await store.dropEvents(0)
        # The next to last time is what is forgotten.
        history = {"key": "AA==", "range_end": "AA==", "revision": str(old - 1), "limit": "1"}
        text = await self.refuses(Exception, self.asked.txn((), [{"request_range": history}]))
        self.assertIn("compacted", text)
        self.assertEqual((await store.getValue(T, "key2")).value, "y")

    async def test_valuesFromBefore(self) -> None:
        """A value of a release without tags has the position 0 until it is written; a condition may name it."""
        store = await self.store()
        await store.setValue(T, "key", "x", 10)
        before = json.dumps({"v": 1, "value": "x"}).encode()
        await self.asked.txn((), [put(f"{self.prefix}values/{T}/key", before)])
        self.assertEqual(await store.getValue(T, "key"), ValueRecord("key", "x", 0))
        first = Precondition(True, frozenset(["0"]))
        self.assertEqual(await store.setValue(T, "key", "x", 10, first), 0)
        changed = await store.setValue(T, "key", "y", 10, first)
        self.assertEqual(await store.listValues(T, None, 9, None), [ValueRecord("key", "y", changed)])
        self.assertGreater(changed, 0)

    async def test_manyOldEvents(self) -> None:
        """More than a page of them, while another node drops them too."""
        a, b = await self.store(), await self.store()
        await gatherResults([a.setValue(T, "key", f"{number:01000}", 10) for number in range(500)])
        self.assertGreater(len(await self.keys(f"events/{T}/")), KEYS)
        dropped = await gatherResults([store.dropEvents(1 << 59) for store in (a, b)])
        self.assertGreaterEqual(sum(dropped), 500)
        self.assertEqual(await a.listEvents(T, 0, 10, None), [])


class IdentityTests(EtcdStoreCase):
    """Users and tokens on several nodes."""

    async def test_aReplacedKeyEndsAllTokensAtOnce(self) -> None:
        """On every node, in the moment in which it is replaced; so does the removal of the user, also a namesake's."""
        a, b = await self.store(), await self.store()
        await a.addUser("joe", "hash1", None)
        expires = 4_000_000_000.0

        async def token(name: str) -> None:
            await a.addToken(TokenRecord(name, "joe", "1", expires))
            self.assertEqual((await b.getToken(name))[0].tenant, "1")

        await token("t1")
        await token("t2")
        await b.replaceUserKey("joe", "hash2")
        for name in ("t1", "t2"):
            for store in (a, b):
                await self.refuses(NoSuchObject, store.getToken(name))
        await token("t3")
        await b.removeUser("joe")
        await self.refuses(NoSuchObject, a.getToken("t3"))
        await a.addUser("joe", "hash3", "1")
        await self.refuses(NoSuchObject, b.getToken("t3"))

    async def test_usersOfSeveralNodesHaveTenantsOfTheirOwn(self) -> None:
        """However many are added at the same moment on both, no two are given the same tenant."""
        a, b = await self.store(), await self.store()
        users = await gatherResults([store.addUser(f"u/{n}", "h", None) for n, store in enumerate((a, b) * 6)])
        self.assertEqual(len({user.tenant for user in users}), 12)
        self.assertEqual({user.name for user in await b.listUsers()}, {f"u/{n}" for n in range(12)})

    async def test_noReadIsUnbounded(self) -> None:
        """No request reads all keys of a kind from etcd at once: there may be tens of thousands."""
        wire, bodies = TroubledAgent(), list[bytes]()
        wire.holds = lambda body: bool(bodies.append(body))
        store = await self.store(agent=wire)
        await self.create(store)
        await store.addUser("joe", "hash", None)
        for listing in (
            store.listUsers(),
            store.listServices(T, None, 10, "tag", (), True),
            store.listLocks(T, None, 10, ()),
            store.listStates(T, None, 10),
            store.listValues(T, None, 10, "/a"),
            store.listEvents(T, 0, 10, None),
            store.endStates(),
            store.dropStates(0),
            store.dropEvents(0),
        ):
            await listing
        asked = [json.loads(body) for body in bodies]
        reads = [each.get("request_range", {}) for body in asked for each in body.get("success", ())]
        self.assertGreater(sum("range_end" in read for read in reads), 10)
        self.assertEqual([read for read in reads if "range_end" in read and "limit" not in read], [])

    async def test_anAccountIsOne(self) -> None:
        """Asked for on all nodes at once, it has come into being at one time."""
        wall = iter(range(1000, 2000))
        stores = [await self.store(wallClock=lambda: float(next(wall))) for _ in range(3)]
        accounts = await gatherResults([store.account("77") for store in stores * 4])
        self.assertEqual(len(set(accounts)), 1)


class OpeningTests(EtcdStoreCase):
    """Beginning, and ending."""

    async def test_oneSecretForAllThatBeginTogether(self) -> None:
        """Nodes that meet over an empty key space agree about secret and event ids."""
        stores = await gatherResults([Deferred.fromCoroutine(self.store(joins=False)) for _ in range(5)])
        self.assertEqual(len({await store.secret() for store in stores}), 1)
        await stores[0].setValue(T, "key", "value", 1)
        self.assertEqual(len({(await store.listEvents(T, 0, 1, None))[0].id for store in stores}), 1)

    async def test_anotherReleasesKeysAreRefused(self) -> None:
        """Data of a later release are left alone."""
        await (await self.store()).close()
        meta = await self.key("meta")
        assert meta is not None
        changed = json.dumps({**json.loads(meta.value), "v": 99}).encode()
        await self.asked.txn((), [put(f"{self.prefix}meta", changed)])
        text = await self.refuses(StoreRefused, self.store())
        self.assertIn("another release", text)

    async def test_whatIsUnderWayIsFinished(self) -> None:
        """A change that was begun before the store is closed is made, and answered."""
        store = await self.store()
        changes = [store.setValue(T, f"key{number}", "x", 1000) for number in range(100)]
        closing = store.close()
        await gatherResults(changes)
        await closing
        self.assertEqual(len(await self.keys(f"values/{T}/")), 100)

    async def test_closedItLeavesNothing(self) -> None:
        """Neither its own key, nor anything on the reactor, also while etcd is away."""
        self.giveUpSoon()
        relay = self.relay()
        stores = [await self.store(), await self.store(relay.url)]
        self.assertTrue(await self.haveJoined(2))
        self.ticking = []
        relay.hang()
        await gatherResults([store.close() for store in stores])
        self.assertEqual(len(await self.keys("nodes/")), 1)


class StatisticsTests(EtcdStoreCase):
    """What ``/metrics`` shows of the store."""

    async def test_countsItsTransactions(self) -> None:
        """Those that read, those that write, and how many changes shared one of those."""
        store = await self.store(joins=False)
        await store.account(T)
        counted = store.statistics
        reads, writes = sum(counted.reads.counts), sum(counted.writes.counts)
        await gatherResults([store.setValue(T, f"/key/{number}", "x", 100) for number in range(5)])
        await store.getValue(T, "/key/1")
        self.assertEqual((sum(counted.commits.counts), counted.commits.total), (1, 5))
        self.assertEqual(sum(counted.writes.counts), writes + 1)
        # A group reads what it is about to change.
        self.assertEqual(sum(counted.reads.counts), reads + 2)
        self.assertGreater(counted.reads.total, 0)
        self.assertGreater(counted.writes.total, 0)

    async def test_tellsWhetherEtcdIsThere(self) -> None:
        """It is up until it can't be reached, and again when it can; what it refuses for good reason is an answer."""
        relay = self.relay()
        store = await self.store(relay.url, joins=False)
        counted = store.statistics
        await self.refuses(NoSuchObject, store.getValue(T, "/nothing"))
        self.assertEqual((counted.isReadable, counted.isWritable), (True, True))
        await relay.refuse()
        relay.reset()
        await self.refuses(StoreUnavailable, store.probe())
        self.assertEqual((counted.isReadable, counted.isWritable), (True, False))
        await self.refuses(StoreUnavailable, store.getValue(T, "/key"))
        self.assertEqual((counted.isReadable, counted.isWritable), (False, False))
        relay.heal()
        await store.probe()
        await self.refuses(NoSuchObject, store.getValue(T, "/key"))
        self.assertEqual((counted.isReadable, counted.isWritable), (True, True))
