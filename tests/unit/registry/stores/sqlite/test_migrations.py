"""
A file that the first version of the schema has: ``version1.sqlite.gz``, which a registry of that version has written.

It has two tenants with services, one of which sent a heartbeat, one expired and one was removed; values with umlauts,
one of them changed and one removed; three users, one of them beside another in a tenant; two auth tokens.
"""

from __future__ import annotations

import gzip
import os
import sqlite3
from typing import Any

from twisted.trial.unittest import TestCase

from tests.unit.registry.stores.storesuite import countServices, countValues
from tests.unit.registry.stores.test_stores import HandReactor
from txserviceregistry.registry.identity import keyMatches
from txserviceregistry.registry.model import NewService, Precondition
from txserviceregistry.registry.roles import WRITE
from txserviceregistry.registry.stores.sqlite.file import MIGRATIONS, prepare
from txserviceregistry.registry.stores.sqlite.store import SqliteStore
from txserviceregistry.registry.uuids import position

FIXTURE = os.path.join(os.path.dirname(__file__), "version1.sqlite.gz")
#: When it was made.
NOW = 1_795_886_800.0


class MigrationTests(TestCase):
    """A file of the first version, opened by this one."""

    def setUp(self):
        self.path = self.mktemp()
        with gzip.open(FIXTURE) as packed, open(self.path, "wb") as file:
            file.write(packed.read())

    async def opened(self) -> SqliteStore:
        store = SqliteStore(self.path, reactor=HandReactor(), wallClock=lambda: NOW)
        await store.open()
        self.addCleanup(store.close)
        return store

    def ask(self, path: str, sql: str) -> list[Any]:
        connection = sqlite3.connect(path)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    async def test_keepsAll(self):
        """All that the file had is there after the migration, and can be changed."""
        self.assertEqual(self.ask(self.path, "PRAGMA user_version"), [(1,)])
        store = await self.opened()
        services = await store.listServices("1", None, 9, None, ())
        self.assertEqual([service.id for service in services], ["web1", "web2", "web3"])
        self.assertEqual(services[0].metadata, {"host": "10.0.0.1", "port": "8000"})
        self.assertEqual(services[0].lastSeen, 1_795_886_763_339)
        self.assertEqual(services[2].tags, ("www", "données, €"))
        self.assertEqual([one.id for one in await store.listServices("2", None, 9, "db", ())], ["web1"])
        self.assertEqual(await countServices(store), 3)
        events = await store.listEvents("1", 0, 99, None)
        self.assertEqual(
            [event.type for event in events if event.payload.get("id") == "expired"][-1], "service.timeout"
        )
        self.assertEqual(events[0].id, services[0].incarnation)
        users = {user.name: user for user in await store.listUsers()}
        self.assertEqual({name: user.tenant for name, user in users.items()}, {"jim": "2", "joe": "2", "local": "1"})
        self.assertTrue(keyMatches("2fefb65e4e58033771085f0c7b18c6fe5cf5ba24", users["local"].keyHash))
        self.assertEqual({user.role for user in users.values()}, {WRITE})
        token, _ = await store.getToken("8bada22220649ffbb3b501469ffe359abbd5c77c7869ac0bcecd3875b1be0c7f")
        self.assertEqual((token.user, token.tenant), ("local", "1"))
        self.assertEqual(await store.account("2"), 1_795_886_763_351)
        self.assertEqual(await countValues(store), 3)
        await store.createService("1", NewService("new", 30), 4)
        newest = (await store.listEvents("1", 0, 99, None))[-1]
        self.assertGreater(position(newest.id), position(events[-1].id))
        self.assertEqual(self.ask(self.path, "PRAGMA user_version"), [(len(MIGRATIONS),)])

    async def test_valuesFromBefore(self):
        """Values of the first version have the position 0 until they are written; a condition may name it."""
        store = await self.opened()
        values = await store.listValues("1", None, 9, None)
        self.assertEqual(
            [(value.key, value.value, value.position) for value in values],
            [
                ("/production/www/title", "Größe €", 0),
                ("/production/www/workers", "8", 0),
                ("listen_ip", "127.0.0.1", 0),
            ],
        )
        first = Precondition(True, frozenset(["0"]))
        self.assertEqual(await store.setValue("1", "listen_ip", "127.0.0.1", 9, first), 0)
        changed = await store.setValue("1", "listen_ip", "::1", 9, first)
        newest = (await store.listEvents("1", 0, 99, None))[-1]
        self.assertEqual(changed, position(newest.id))

    def test_isLikeANewFile(self):
        """A migrated file has the tables, columns and indices of a new one."""
        schema = "SELECT type, name, sql FROM sqlite_master ORDER BY type, name"
        prepare(self.path)
        new = self.mktemp()
        prepare(new)
        self.assertEqual(self.ask(self.path, schema), self.ask(new, schema))
