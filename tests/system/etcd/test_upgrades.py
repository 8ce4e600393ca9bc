"""Data in etcd that earlier releases wrote."""

from __future__ import annotations

from tests.system.etcd.storecase import EtcdStoreCase
from tests.unit.registry.stores.etcd.test_gateway import CLOCK
from tests.upgrades import files
from tests.upgrades.content import NOW, shown
from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores.etcd.keyvalues import put


class UpgradeTests(EtcdStoreCase):
    """Each kept set of keys, opened by this release."""

    async def test_keepsAll(self) -> None:
        """All that was in it is there for each node, and new events follow the old ones."""
        for version in files.VERSIONS:
            await self.asked.txn((), [put(self.prefix + key, value) for key, value in files.etcd(version).items()])
            began = CLOCK.seconds()
            stores = [await self.store(wallClock=lambda: NOW + 60) for _ in range(2)]
            # A token is bound to the revision of its user's key, which is another one here.
            expected = {**files.expected(version, "etcd"), "token": None}
            for store in stores:
                self.assertEqual(await shown(store), expected, version)
            kept = await stores[0].getService("1", "web1")
            self.assertFull(stores[0], kept, began, kept.heartbeatTimeout)
            new = await stores[0].createService("1", NewService("new", 30), 99)
            self.assertEqual(await stores[1].lastEvent("1"), new.incarnation)
