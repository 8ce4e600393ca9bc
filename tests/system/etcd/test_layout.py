"""The upgrade of what is in etcd."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import capturedLogs

from tests.system.etcd.etcds import sharedEtcd
from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from tests.unit.registry.stores.etcd.test_gateway import CLOCK
from txserviceregistry.registry.stores.etcd.keyvalues import put
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import (
    StoreRefused,
)
from txserviceregistry.util.deferred import returnsDeferred


class UpgradeTests(EtcdStoreCase):
    """Keys of version 1, whose services had leases."""

    @returnsDeferred
    async def setUp(self) -> None:
        super().setUp()
        self.meta: dict[str, Any] = {"v": 1, "secret": "ab" * 32, "tail": "8000-0123456789ab"}
        self.lease, _ = await self.asked.grant(60)
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

    async def isConverted(self) -> None:
        """The data has this version, and all else is there, without what had a lease when that has ended."""
        meta = await self.key("meta")
        assert meta is not None
        self.assertEqual(json.loads(meta.value), {**self.meta, "v": 2})
        await self.asked.revoke(self.lease)
        self.assertEqual(await self.keys("services/"), [f"{T}/web"])
        self.assertEqual(await self.keys("alive/"), [])

    async def test_itIsConverted(self) -> None:
        """Alone, a node converts it; each service is as it was, has a full timeout, and expires by votes from then."""
        began = CLOCK.seconds()
        store = await self.store()
        self.assertEqual(await store.secret(), bytes.fromhex(self.meta["secret"]))
        kept = await store.getService(T, "web")
        self.assertEqual((kept.heartbeatTimeout, kept.tags, kept.lastSeen), (30, ("a",), 5000))
        await self.isConverted()
        self.assertFull(store, kept, began)
        self.passDeadline(kept, store)
        await self.notifies(store, "expired", kept.incarnation)
        self.assertEqual(await self.types(store), ["service.join", "service.timeout"])

    async def test_itIsConvertedOnce(self) -> None:
        """Of nodes that start together one converts it; the others find it converted."""
        with capturedLogs() as logs:
            await gatherResults([Deferred.fromCoroutine(self.store(joins=False)) for _ in range(3)])
        self.assertEqual(sum("converted to version" in str(log) for log in logs), 1)
        await self.isConverted()

    async def test_notWhileANodeOfVersion1IsRunning(self) -> None:
        """That is said in one line, and nothing has changed; when the node's key has ended, it is converted."""
        lease, _ = await self.asked.grant(60)
        await self.asked.txn((), [put(f"{self.prefix}nodes/old", b'{"v": 1}', lease)])
        text = await self.refuses(StoreRefused, self.store())
        for part in ("1 node(s)", "earlier release", self.prefix, "stop them first"):
            self.assertIn(part, text)
        self.assertLess(len(text), 200)
        meta = await self.key("meta")
        self.assertEqual(json.loads(meta.value if meta else b""), self.meta)
        await self.asked.revoke(lease)
        await self.store()
        await self.isConverted()

    async def test_anInterruptedConversionIsRepeated(self) -> None:
        """Before its change nothing is converted; when that arrives late, another node has converted it."""
        wire = TroubledAgent()
        wire.holds = lambda body: b"mod_revision" in body and b"request_put" in body
        broken = EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix, agent=wire)
        opening = broken.open()
        await self.until(lambda: wire.held)
        meta = await self.key("meta")
        self.assertEqual(json.loads(meta.value if meta else b""), self.meta)
        opening.cancel()
        await self.refuses(CancelledError, opening)
        await broken.close()
        store = await self.store()
        wire.release()
        await store.probe()
        await self.isConverted()

    async def test_oneThatIsLateFindsItConverted(self) -> None:
        """When its change arrives after another node has converted the data and joined, it joins as well."""
        wire = TroubledAgent()
        wire.holds = lambda body: b"mod_revision" in body and b"request_put" in body
        late = Deferred.fromCoroutine(self.store(agent=wire))
        await self.until(lambda: wire.held)
        first = await self.store()
        wire.release()
        second = await late
        await self.until(lambda: len(second.members) == len(first.members) == 2)
        await self.isConverted()
