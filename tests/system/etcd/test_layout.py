"""The upgrade of what is in etcd."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, LoopingCall

from tests.system.etcd.etcds import sharedEtcd
from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from txserviceregistry.registry.stores.etcd.gateway import newLease, put
from txserviceregistry.registry.stores.etcd.layout import openLayout
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import (
    StoreRefused,
    StoreUnavailable,
)
from txserviceregistry.util.deferred import returnsDeferred


class UpgradeTests(EtcdStoreCase):
    """Keys of version 1, whose services had leases."""

    @returnsDeferred
    async def setUp(self) -> None:
        super().setUp()
        self.meta: dict[str, Any] = {"v": 1, "secret": "ab" * 32, "tail": "8000-0123456789ab"}
        self.lease = newLease()
        await self.asked.grant(self.lease, 60)
        self.addCleanup(self.asked.revoke, self.lease)
        position_ = 0x1EE000000000000
        service = {"v": 1, "position": position_, "timeout": 30, "tags": ["a"], "metadata": {}, "lease": self.lease}
        event = {"id": "web", "heartbeat_timeout": 30, "tags": ["a"], "metadata": {}}
        await self.asked.txn(
            (),
            [
                self.put_("meta", self.meta),
                self.put_(f"clocks/{T}", {"v": 1, "last": position_, "services": 1, "values": 0}),
                self.put_(f"services/{T}/web", service),
                self.put_(
                    f"events/{T}/{position_:016x}",
                    {"v": 1, "timestamp": 1, "type": "service.join", "payload": event},
                ),
                put(f"{self.prefix}alive/{T}/web", b"1", self.lease),
                put(f"{self.prefix}seen/{T}/web", b"5000", self.lease),
            ],
        )

    def put_(self, name: str, value: Any) -> Any:
        return put(self.prefix + name, json.dumps(value).encode())

    async def isConverted(self) -> Any:
        """What has become of it: all is there, without leases."""
        meta, seen = await self.key("meta"), await self.key(f"seen/{T}/web")
        assert meta is not None and seen is not None
        self.assertEqual(json.loads(meta.value), {**self.meta, "v": 2})
        self.assertEqual((seen.value, seen.lease), (b"5000", 0))
        self.assertEqual(await self.keys("alive/"), [])
        self.assertEqual(await self.keys("converting"), [])

    async def test_itIsConverted(self) -> None:
        """Alone, a node converts it; each service is as it was, has a full timeout, and expires by votes from then."""
        store = await self.store()
        await self.isConverted()
        self.assertEqual(await store.secret(), bytes.fromhex(self.meta["secret"]))
        kept = await store.getService(T, "web")
        self.assertEqual((kept.heartbeatTimeout, kept.tags, kept.lastSeen), (30, ("a",), 5000))
        self.assertGreater(self.secondsLeft(store, kept), 25)
        await self.asked.revoke(self.lease)
        await self.isConverted()
        self.passDeadline(kept, store)
        await self.notifies(store, "expired", kept.incarnation)
        self.assertEqual(await self.types(store), ["service.join", "service.timeout"])

    async def test_itIsConvertedOnce(self) -> None:
        """Of nodes that start together one converts it; the others wait for that, and find it converted."""
        outcomes: list[Any] = []
        works = [Deferred.fromCoroutine(self.store(joins=False)) for _ in range(3)]
        for each in works:
            each.addBoth(outcomes.append)
        await self.until(lambda: len(outcomes) == 3)
        stores = [each for each in outcomes if isinstance(each, EtcdStore)]
        self.assertTrue(stores)
        for failure in outcomes:
            if failure not in stores:
                failure.trap(StoreUnavailable)
        await self.isConverted()
        meta = await self.key("meta")
        await self.store(joins=False)
        self.assertEqual(await self.key("meta"), meta)

    async def test_notWhileANodeOfVersion1IsRunning(self) -> None:
        """That is said in one line, and nothing has changed; when the node's key has ended, it is converted."""
        lease = newLease()
        await self.asked.grant(lease, 60)
        await self.asked.txn((), [put(f"{self.prefix}nodes/old", b'{"v": 1}', lease)])
        clock = Clock()
        opening = Deferred.fromCoroutine(self.opened(clock))
        advancing = LoopingCall(clock.advance, 0.5)
        advancing.start(0.005)
        self.addCleanup(advancing.stop)
        text = await self.refuses(StoreRefused, opening)
        for part in ("1 node(s)", "earlier release", self.prefix, "stop them first"):
            self.assertIn(part, text)
        self.assertLess(len(text), 200)
        meta, seen = await self.key("meta"), await self.key(f"seen/{T}/web")
        self.assertEqual(json.loads(meta.value if meta else b""), self.meta)
        self.assertEqual(seen and seen.lease, self.lease)
        self.assertEqual(await self.keys("alive/"), [f"{T}/web"])
        opening = Deferred.fromCoroutine(self.opened(clock))
        await self.asked.revoke(lease)
        await opening
        await self.isConverted()

    async def opened(self, clock: Clock) -> Any:
        return await openLayout(self.asked, clock, self.prefix)

    async def test_anInterruptedConversionIsRepeated(self) -> None:
        """From its first change on an old node refuses to start; another node goes on with it."""
        for share in range(1, 6):
            wire = TroubledAgent()
            asked: list[bytes] = []

            def holds(body: bytes, share: int = share, asked: list[bytes] = asked) -> bool:
                if b"request_put" in body or b"request_delete_range" in body:
                    asked.append(body)
                    return len(asked) > share
                return False

            wire.holds = holds
            broken = EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix, agent=wire)
            opening = broken.open()
            await self.until(lambda wire=wire, opening=opening: wire.held or opening.called)
            meta = await self.key("meta")
            assert meta is not None
            hasBegun = json.loads(meta.value) != self.meta
            self.assertEqual(json.loads(meta.value)["v"], 2 if hasBegun else 1)
            ended: list[Any] = []
            opening.addBoth(ended.append)
            opening.cancel()
            await self.until(lambda ended=ended: ended)
            await broken.close()
            await (await self.store(joins=False)).close()
            await self.isConverted()
            await self.again()

    async def again(self) -> None:
        """What is there is of version 1 again."""
        await self.asked.txn(
            (),
            [
                self.put_("meta", self.meta),
                put(f"{self.prefix}alive/{T}/web", b"1", self.lease),
                put(f"{self.prefix}seen/{T}/web", b"5000", self.lease),
            ],
        )
