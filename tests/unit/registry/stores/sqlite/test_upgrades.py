"""Databases that earlier releases wrote."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.unit.registry.stores.test_stores import HandReactor
from tests.upgrades import files
from tests.upgrades.content import NOW, shown
from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores.sqlite.store import SqliteStore


class UpgradeTests(TestCase):
    """Each kept database, opened by this release."""

    async def test_keepsAll(self) -> None:
        """All that was in it is there, also after a restart, and new events follow the old ones."""
        for version in files.VERSIONS:
            path = self.mktemp()
            Path(path).write_bytes(files.sqlite(version))
            for _ in range(2):
                store = SqliteStore(path, reactor=HandReactor(), wallClock=lambda: NOW + 60)
                await store.open()
                self.addCleanup(store.close)
                self.assertEqual(await shown(store), files.expected(version, "sqlite"), version)
                await store.close()
            store = SqliteStore(path, reactor=HandReactor(), wallClock=lambda: NOW - 60)
            await store.open()
            self.addCleanup(store.close)
            new = await store.createService("1", NewService("new", 30), 99)
            self.assertEqual(await store.lastEvent("1"), new.incarnation)
