"""Keys that no node has written, that an operator has damaged, deleted or copied; and an etcd with other data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs

from tests.system.etcd.etcds import sharedEtcd, startEtcd
from tests.system.etcd.storecase import EtcdStoreCase, T
from txserviceregistry.registry.model import NewLock
from txserviceregistry.registry.stores.etcd.keyvalues import deletion, endOf, jsonBytes, logOnce, put
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import (
    NoSuchObject,
    ServiceRecord,
    StateRecord,
    StoreUnavailable,
    TokenRecord,
)

#: Keys below the prefix, with values that no node has written.
ODD = {
    "services/9/text": b"not JSON",
    "services/9/list": b"[]",
    "services/9/empty": b"{}",
    "services/9/untimed": b'{"position": 5}',
    "services/nobodys": b"{}",
    "locks/9/text": b"not JSON",
    "seen/9/text": b"not a time",
    "seen-locks/nobodys": b"",
    "clocks/9": b"not JSON",
    "events/9/0000000000000001": b"not JSON",
    "joins": b"\xff",
    "nobodys/": b"",
    "nobodys": b"",
}


class ForeignKeyTests(EtcdStoreCase):
    """An operator, or another program, writes below the prefix."""

    async def write(self, name: str, value: bytes) -> None:
        await self.asked.txn((), [put(self.prefix + name, value)])

    async def expires(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """A service that falls silent is reported once."""
        self.passDeadline(made, *stores)
        for store in stores:
            await self.notifies(store, "vanished", made.id, made.incarnation)
        self.assertEqual(await self.types(stores[0]), ["service.join", "service.timeout"])

    async def test_whatIsNotUnderstoodIsIgnored(self) -> None:
        """Whether a node reads it or is shown it. The log names the key, and everything else goes on."""
        with capturedLogs() as logs:
            a = await self.store()
            for name, value in ODD.items():
                await self.write(name, value)
            b = await self.store()
            made = await self.created(a, b)
            loads = [str(self.listeners[each].heard).count("synchronized") for each in (a, b)]
            self.assertEqual(loads, [1, 1])
            await self.expires(made, a, b)
        lines = [str(log) for log in logs if log["log_level"] is LogLevel.error]
        for name in ("services/9/empty", "services/9/untimed", "services/nobodys", "locks/9/text"):
            self.assertEqual(sum(f"/{name}'" in line for line in lines), 1, lines)

    async def test_aServicesOwnTime(self) -> None:
        """A time of a heartbeat that is none is a touch like any other, and so is its deletion."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.write("seen/1/web", b"not a time")
        await self.catchesUp(a)
        await self.catchesUp(b)
        self.ticking = [a, b]
        await self.expires(made, a, b)

    async def test_deletedKeys(self) -> None:
        """Votes compare these keys: that an operator has deleted them does not make each vote fail."""
        for name in ("seen/1/web", "joins", "clocks/1"):
            self.prefix += "x/"
            a, b = await self.store(), await self.store()
            made = await self.created(a, b)
            await self.write("seen/1/web", b"0000000000001")
            await self.asked.txn((), [deletion(self.prefix + name)])
            await self.catchesUp(a)
            await self.catchesUp(b)
            self.ticking = [a, b]
            await self.expires(made, a, b)

    async def test_copiedKeysOfNodes(self) -> None:
        """A node's key goes with its lease. One without is not waited for: a copy, as a mirror of an etcd has it."""
        a = await self.store()
        copied = (await self.newestNode()).value
        await self.write("nodes/early", copied)
        b = await self.store()
        await self.write("nodes/late", copied)
        made = await self.created(a, b)
        self.assertEqual([len(each.members) for each in (a, b)], [2, 2])
        await self.expires(made, a, b)
        await a.dropEvents(0)


class DamagedTests(EtcdStoreCase):
    """The value of a key is cut short, lacks its fields, or was written by a newer release."""

    async def filled(self) -> tuple[EtcdStore, dict[str, Callable[[], Deferred[Any]]]]:
        """A store with an object of each kind, and what reads each key."""
        store = await self.store()
        await store.account(T)
        await self.create(store)
        await store.setState(T, StateRecord("web", "drain", "", 4_000_000_000_000), 10)
        await store.acquireLock(T, NewLock("job", 15), 10, 1, 1)
        await store.setValue(T, "color", "red", 10)
        await store.addUser("joe", "hash", T)
        await store.addToken(TokenRecord("token", "joe", T, 4_000_000_000.0))
        event = (await self.keys(f"events/{T}/"))[0]
        return store, {
            f"accounts/{T}": lambda: store.account(T),
            f"clocks/{T}": lambda: store.removeValue(T, "missing"),
            f"events/{T}/{event}": lambda: store.listEvents(T, 0, 10, None),
            f"locks/{T}/job": lambda: store.getLock(T, "job"),
            f"services/{T}/web": lambda: store.getService(T, "web"),
            f"states/{T}/web": lambda: store.getState(T, "web"),
            f"values/{T}/color": lambda: store.getValue(T, "color"),
            "tokens/token": lambda: store.getToken("token"),
            "users/joe": lambda: store.getUser("joe"),
        }

    async def test_requestsFailUntilItIsRestored(self) -> None:
        """Requests that need the key are told that the store is unavailable; the log names the key, once."""
        store, reads = await self.filled()
        for name, read in reads.items():
            kept = await self.key(name)
            assert kept is not None
            newer = jsonBytes({**json.loads(kept.value), "v": 99})
            for value in (kept.value[:-5], b"{}", b"\xff", newer):
                with capturedLogs() as logs:
                    await self.asked.txn((), [put(kept.key, value, kept.lease)])
                    await self.catchesUp(store)
                    for _ in range(2):
                        self.assertIn(repr(kept.key), await self.refuses(StoreUnavailable, read()))
                lines = [str(log) for log in logs if log["log_level"] is LogLevel.error]
                self.assertEqual([kept.key in line for line in lines], [True], lines)
            await self.asked.txn((), [put(kept.key, kept.value, kept.lease)])
            if name == "users/joe":
                # Its tokens end with any other write of the user.
                await store.getUser("joe")
            elif name.startswith("clocks"):
                await self.refuses(NoSuchObject, read())
            else:
                await read()

    async def test_allElseGoesOn(self) -> None:
        """A node's work for all tenants is done for those whose keys are not damaged."""
        store, reads = await self.filled()
        await store.setState("2", StateRecord("db", "drain", "", 1), 10)
        for name in reads:
            await self.asked.txn((), [put(self.prefix + name, b"{")])
        await self.asked.txn((), [put(f"{self.prefix}states/nobodys", b"{")])
        self.assertEqual((await store.endStates())[0], {"2"})
        await store.dropStates(2**62)
        await store.dropEvents(2**62)
        self.assertEqual(await self.keys(f"events/{T}/"), [])
        self.assertEqual(await store.listUsers(), [])

    async def test_ofAServiceThatIsKnown(self) -> None:
        """Without its record it is unknown everywhere, and no vote about it is opened; it returns with its record."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        kept = await self.key(f"services/{T}/web")
        assert kept is not None
        await self.asked.txn((), [put(kept.key, b"{")])
        for store in (a, b):
            await self.notifies(store, "vanished", "web", made.incarnation)
            self.assertFalse(await store.admit(T, made.incarnation))
            self.listeners[store].heard.clear()
        await self.asked.txn((), [put(kept.key, kept.value)])
        for store in (a, b):
            await self.notifies(store, "appeared", "web", made.incarnation, 30)
        self.passDeadline(made, a, b)
        for store in (a, b):
            await self.notifies(store, "vanished", "web", made.incarnation)
        self.assertEqual(await self.types(a), ["service.join", "service.timeout"])

    async def test_ofTheRegistryItself(self) -> None:
        """A store whose secret is damaged does not open, and says so."""
        await self.store()
        await self.asked.txn((), [put(f"{self.prefix}meta", b'{"v":2}')])
        self.assertIn("meta", await self.refuses(StoreUnavailable, self.store()))


class OtherDataTests(EtcdStoreCase):
    """While nodes are running, etcd is replaced."""

    def setUp(self) -> None:
        super().setUp()
        logOnce.cache_clear()

    async def test_anotherRegistrysData(self) -> None:
        """A node of the old data does not join: it would reject the tokens of other nodes, and give other event ids."""
        a = await self.store()
        made = await self.created(a)
        with capturedLogs() as logs:
            await self.asked.txn((), [deletion(self.prefix, endOf(self.prefix))])
            await self.notifies(a, "suspend")
            b = await self.store()
            await self.create(b, "other")
            await self.until(lambda: "another registry's data" in str(logs))
        self.assertEqual(list(b.members), await self.keys("nodes/"))
        self.assertEqual(len(b.members), 1)
        for asked in (a.admit(T, made.incarnation), a.listServices(T, None, 10, None, ()), self.create(a, "third")):
            await self.refuses(StoreUnavailable, asked)
        self.assertEqual(await self.keys("services/"), [f"{T}/other"])

    async def test_anotherCluster(self) -> None:
        """If a member leaves for a cluster of its own, requests there fail: nothing is read or written in that one."""
        url, end = startEtcd()
        self.addCleanup(end)
        relay = self.relay()
        a = await self.store(relay.url)
        made = await self.created(a)
        await self.create(a, "removed")
        await a.removeService(T, "removed", (await a.getService(T, "removed")).incarnation)
        own, relay.port = relay.port, int(url.rpartition(":")[2])
        relay.reset()
        await self.refuses(StoreUnavailable, a.getService(T, "web"))
        await self.refuses(StoreUnavailable, self.create(a, "new"))
        self.assertEqual(await self.etcd(url).all(self.prefix), [])
        relay.port = own
        relay.reset()
        await self.until(lambda: a.isValid)
        self.assertEqual(await a.getService(T, "web"), made)
        await self.create(a, "new")

    async def test_anotherClusterAtTheStart(self) -> None:
        """A node begins with the data that there is, whichever member it asks first: the other cluster is empty."""
        url, end = startEtcd()
        self.addCleanup(end)
        secret = await (await self.store()).secret()
        for _ in range(6):
            store = EtcdStore(reactor, [url, sharedEtcd()], prefix=self.prefix)
            self.addCleanup(store.close)
            await store.open()
            self.assertEqual(await store.secret(), secret)
        self.assertEqual(await self.etcd(url).all(self.prefix), [])

    async def test_aBackupAsAnotherCluster(self) -> None:
        """
        A node goes on over a backup that has its own key and lease: a restored etcd is another cluster, whose revisions
        say nothing about those of the first.
        """
        (url, end), (restored, endRestored) = startEtcd(), startEtcd()
        self.addCleanup(end)
        self.addCleanup(endRestored)
        relay = self.relay()
        relay.port = int(url.rpartition(":")[2])
        a = await self.store(relay.url)
        self.asked, asked = self.etcd(url), self.etcd(restored)
        node, meta = await self.newestNode(), await self.key("meta")
        for id in ("lost", "kept"):
            await self.created(a, id=id)
        kept = await self.key(f"services/{T}/kept")
        assert meta is not None and kept is not None
        self.listeners[a].heard.clear()
        with mock.patch("secrets.randbits", return_value=node.lease):
            await asked.grant(60)
        await asked.txn((), [put(meta.key, meta.value)])
        while (await asked.range("/"))[1] < node.created - 1:
            await asked.txn((), [put("/other", b"")])
        for each in (node, kept):
            await asked.txn((), [put(each.key, each.value, each.lease)])
        while (await asked.range("/"))[1] < kept.created + 100:
            await asked.txn((), [put("/other", b"")])
        relay.port = int(restored.rpartition(":")[2])
        relay.reset()
        await self.notifies(a, "synchronized", ["kept"])
        await self.until(lambda: a.isValid)
        await self.create(a, "new")
        self.assertEqual((await a.getService(T, "kept")).id, "kept")

    async def test_anOlderBackup(self) -> None:
        """Nodes that go on over a backup, whose revisions are lower, make changes at once."""
        url, end = startEtcd()
        self.addCleanup(end)
        relay = self.relay()
        a, b = await self.store(relay.url), await self.store(relay.url)
        kept = await self.created(a, b, id="kept")
        backup = [
            each
            for kind in ("meta", "clocks/", "services/", "events/")
            for each in await self.asked.all(self.prefix + kind)
        ]
        for number in range(20):
            await self.create(a, f"lost{number}")
        await self.etcd(url).txn((), [put(each.key, each.value) for each in backup])
        relay.port = int(url.rpartition(":")[2])
        relay.reset()
        for store in (a, b):
            await self.notifies(store, "synchronized", ["kept"])
            await self.until(lambda store=store: store.isValid)
        for number, store in enumerate((a, b, a, b)):
            await self.create(store, f"new{number}")
        found = await a.listServices(T, None, 10, None, ())
        self.assertEqual([each.id for each in found], ["kept", *(f"new{number}" for number in range(4))])
        self.assertTrue(await self.admitted(b, kept))
