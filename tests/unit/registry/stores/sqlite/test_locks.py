"""Locks in a file."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from tests.unit.registry.stores.test_stores import HandReactor
from txserviceregistry.registry.model import NewLock
from txserviceregistry.registry.stores.interfaces import LockTaken
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

NAME = "/billing/scheduler"


class LockFileTests(TestCase):
    """Locks in a file."""

    def setUp(self):
        self.path = self.mktemp()

    async def opened(self) -> SqliteStore:
        store = SqliteStore(self.path, reactor=HandReactor(), wallClock=lambda: 1000.0)
        await store.open()
        self.addCleanup(store.close)
        return store

    async def test_fencesGrowAcrossRestarts(self):
        """A file that is opened again has its locks, and goes on from the greatest fence if the clock is behind."""
        store = await self.opened()
        lock = await store.acquireLock("1", NewLock(NAME, 15, "me", None, {"a": "é"}), 10, 5_000, 5_000)
        other = await store.acquireLock("1", NewLock("/other/name", 15), 10, 5_000, 5_000)
        await store.releaseLock("1", "/other/name", other.incarnation, False)
        await store.forceLock("1", NAME, lock.incarnation)
        await store.close()
        store = await self.opened()
        kept = await store.getLock("1", NAME)
        self.assertEqual((kept.fence, kept.holder, kept.metadata, kept.isForced), (5_000, "me", {"a": "é"}, True))
        self.assertEqual(await store.allLocks(), [kept.summary("1")])
        with self.assertRaises(LockTaken):
            await store.acquireLock("1", NewLock(NAME, 15), 10, 1, 1)
        again = await store.acquireLock("1", NewLock("/other/name", 15), 10, 1, 1)
        self.assertEqual(again.fence, 5_002)
