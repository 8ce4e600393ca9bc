"""
The stores: each passes the suite that all of them pass. Promises of a single store have tests of their own.
"""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.unit.garbage import collectOnlyNew
from tests.unit.registry.sharedmemory import SharedMemory, SharedMemoryStore
from tests.unit.registry.stores.sharedsuite import SharedSuite
from tests.unit.registry.stores.storesuite import NOW, OwnStoreSuite
from txserviceregistry.registry.model import NewService
from txserviceregistry.registry.stores import memory
from txserviceregistry.registry.stores.interfaces import ObjectExists, StoreUnavailable
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.stores.sqlite.file import connectToMemory
from txserviceregistry.registry.stores.sqlite.store import SqliteStore


class HandReactor(Clock):
    """The real reactor where threads report to it, and a clock that only the test moves."""

    def callFromThread(self, callable: Any, *args: Any) -> None:
        reactor.callFromThread(callable, *args)


class MemoryStoreSuiteTests(OwnStoreSuite, TestCase):
    """The memory store passes the suite."""

    def makeStore(self) -> MemoryStore:
        return MemoryStore(wallClock=self.wallClock)


class SqliteStoreSuiteTests(OwnStoreSuite, TestCase):
    """The SQLite store passes the suite."""

    def makeStore(self) -> SqliteStore:
        self.reactor = HandReactor()
        return SqliteStore(self.mktemp(), reactor=self.reactor, wallClock=self.wallClock)

    async def lastSeenIsWritten(self) -> None:
        self.reactor.advance(5)
        await self.store.removeToken("whatever was written before this is written now")


class SharedMemorySuiteTests(SharedSuite, TestCase):
    """The fake that stands for a shared store passes the suite of those."""

    def makeStore(self) -> SharedMemoryStore:
        if not hasattr(self, "shared"):
            self.clock = Clock()
            self.shared = SharedMemory(self.clock, lambda: NOW + self.clock.seconds())
            self.successResultOf(self.shared.memory.open())
        return self.shared.store()

    def seconds(self) -> float:
        return self.clock.seconds()

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(10_000):
            if condition():
                return
            self.clock.advance(0.01)
        raise AssertionError("waited in vain")


class MemoryStoreTests(SynchronousTestCase):
    """The memory store beside the suite."""

    def test_answersAtOnce(self):
        """Every Deferred has fired when it is returned."""
        store = MemoryStore()
        self.successResultOf(store.open())
        self.successResultOf(store.setValue("1", "key", "value", 10))
        self.assertEqual(self.successResultOf(store.getValue("1", "key")).value, "value")

    def test_canBeMadeUnavailable(self):
        """While the switch is on every operation fails and nothing changes; then all is as before."""
        store = MemoryStore()
        store.unavailable = True
        self.failureResultOf(store.open(), StoreUnavailable)
        store.unavailable = False
        self.successResultOf(store.open())
        made = self.successResultOf(store.createService("1", NewService("web", 30), 10))
        store.unavailable = True
        self.failureResultOf(store.getService("1", "web"), StoreUnavailable)
        self.failureResultOf(store.removeService("1", "web", made.incarnation), StoreUnavailable)
        store.recordLastSeen("1", "web", made.incarnation, 5)
        store.unavailable = False
        self.assertEqual(self.successResultOf(store.getService("1", "web")), made)

    def test_leavesNothingOpen(self):
        """A store leaves no connection open, of which Python would warn, when it and its clock are no longer used."""
        collectOnlyNew(self)
        connections = []
        self.patch(memory, "connectToMemory", lambda: connections.append(connectToMemory()) or connections[-1])
        clock = Clock()
        store = MemoryStore(clock.seconds)
        # As that of a test does, which has set up the store.
        clock.callLater(1, store.close)
        self.successResultOf(store.open())
        connections[0].execute("SELECT 1")
        del store, clock
        gc.collect()
        self.assertRaises(sqlite3.ProgrammingError, connections[0].execute, "SELECT 1")

    def test_aRefusedChangeKeepsHeartbeats(self):
        """The time of a heartbeat is kept when the next change is refused."""
        store = MemoryStore()
        self.successResultOf(store.open())
        made = self.successResultOf(store.createService("1", NewService("web", 30), 10))
        store.recordLastSeen("1", "web", made.incarnation, 5)
        self.failureResultOf(store.createService("1", NewService("web", 30), 10), ObjectExists)
        self.assertEqual(self.successResultOf(store.getService("1", "web")).lastSeen, 5)

    def test_keepsItsContentWhileItIsClosed(self):
        """A store that is closed and opened again has what it had."""
        store = MemoryStore()
        self.successResultOf(store.open())
        made = self.successResultOf(store.createService("1", NewService("web", 30), 10))
        self.successResultOf(store.close())
        self.failureResultOf(store.getService("1", "web"), StoreUnavailable)
        self.successResultOf(store.open())
        self.assertEqual(self.successResultOf(store.getService("1", "web")), made)
