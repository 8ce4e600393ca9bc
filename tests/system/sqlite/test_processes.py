"""
The SQLite store among processes: one that is killed, one that edits users, and one whose disk is full.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.utils import getProcessOutputAndValue

from tests import ROOT
from tests.unit.registry.stores.sqlite.test_store import SqliteCase
from tests.unit.registry.stores.storesuite import countServices
from txserviceregistry.registry.stores.interfaces import (
    TokenRecord,
)
from txserviceregistry.util.deferred import returnsDeferred

NOW = 1_700_000_000.0
PROGRAM = ["-m", "tests.system.sqlite.storeprograms"]


@returnsDeferred
async def run(name: str, path: str) -> str:
    """Run a program of storeprograms to its end; what it printed."""
    arguments = [*PROGRAM, name, os.path.abspath(path)]
    output, errors, code = await getProcessOutputAndValue(sys.executable, arguments, os.environ, ROOT)
    if code != 0:
        raise AssertionError(errors.decode())
    return output.decode()


class KilledWhileItPrints(ProcessProtocol):
    """Kills a process after it has printed a number of lines. Complete lines only are kept."""

    def __init__(self, lines: int) -> None:
        self.ended: Deferred[list[str]] = Deferred()
        self._lines = lines
        self._output = b""
        self._errors = b""

    def outReceived(self, data: bytes) -> None:
        self._output += data
        if self._output.count(b"\n") >= self._lines and self.transport.pid:
            self.transport.signalProcess("KILL")
            self._lines = sys.maxsize

    def errReceived(self, data: bytes) -> None:
        self._errors += data

    def processEnded(self, reason: Any) -> None:
        if reason.check(ProcessTerminated) and reason.value.signal == 9:
            self.ended.callback(self._output.decode().split("\n")[:-1])
        else:
            self.ended.errback(AssertionError(self._errors.decode()))


class ProcessesTests(SqliteCase):
    """Writes of other processes, and their outcome."""

    async def test_survivesKill(self):
        """All data that a process printed as acknowledged before it was killed are there, and the store is in order."""
        killed = KilledWhileItPrints(500)
        environment = dict(os.environ)
        path = os.path.abspath(self.path)
        reactor.spawnProcess(killed, sys.executable, [sys.executable, *PROGRAM, "writeStream", path], environment, ROOT)
        lines = [line.split() for line in await killed.ended]
        self.assertGreaterEqual(len(lines), 500)
        store = await self.opened()
        removed = {rest[0] for what, *rest in lines if what == "removed"}
        joined = {event.id for event in await store.listEvents("1", 0, 100_000, {"service.join"})}
        services = {one.id: one for one in await store.listServices("1", None, 100_000, None, ())}
        under = {f"s{n}" for n in range(10**4)} - removed  # those of which a removal may have been under way
        for what, *rest in lines:
            if what == "service":
                id, incarnation = rest
                self.assertIn(incarnation, joined)
                if id in services:
                    self.assertEqual(services[id].incarnation, incarnation)
                elif id in under:
                    self.assertTrue(int(id[1:]) % 30 < 10, f"{id} is lost")
            elif what == "value":
                self.assertEqual((await store.getValue("1", rest[0])).value, rest[0][1:])
        self.assertTrue(removed)
        self.assertEqual(removed & set(services), set())
        self.assertEqual(await countServices(store), len(services))
        result = self.elsewhere().execute("PRAGMA integrity_check").fetchall()
        self.assertEqual(result, [("ok",)])

    async def test_seesWhatAnotherProcessWrites(self):
        """Users that another process edits are as that process left them, at once."""
        store = await self.opened()
        await store.addUser("joe", "old", None)
        await store.addToken(TokenRecord("token", "joe", "1", NOW * 2))
        await run("editUsers", self.path)
        self.assertEqual([user.name for user in await store.listUsers()], ["ann", "joe"])
        self.assertEqual((await store.getUser("joe")).keyHash, "new")
        self.assertEqual((await store.addUser("bob", "hash", None)).tenant, "3")

    async def test_aFullDiskIsOverByItself(self):
        """While the disk is full writes fail and change nothing, reads go on; with room again all works."""
        seen = json.loads(await run("fillDisk", self.path))
        self.assertEqual(seen["done"], ["done", "unavailable", "done"])
        self.assertEqual((seen["found"], seen["events"], seen["count"]), (["before"], 1, 2))
        store = await self.opened()
        self.assertEqual([value.key for value in await store.listValues("1", None, 100, None)], ["after", "before"])

    async def almostFull(self, *tries: tuple[int, list[int]]) -> list[list[str]]:
        """The outcome of writes and probes; see ``almostFillDisk`` in storeprograms."""
        with mock.patch.dict(os.environ, {"TRIES": json.dumps(tries)}):
            found: list[list[str]] = json.loads(await run("almostFillDisk", self.path))
        return found

    async def test_aProbeMeetsWhatAChangeMeets(self):
        """If only a page has room, the probe fails as changes of 1 KB do; with room again both succeed at once."""
        found = await self.almostFull((2, [1000, 0, 1000, 0, 1000, 0]), (1000, [1000, 0]))
        self.assertEqual(found, [["unavailable"] * 6, ["done"] * 2])

    async def test_aChangeThatHasRoomIsTheEndOfTheTrouble(self):
        """After a change that had no room the probe fails, and it succeeds as soon as another has room."""
        found = await self.almostFull((100, [5_000_000, 0, 1000, 0]))
        self.assertEqual(found, [["unavailable", "unavailable", "done", "done"]])

    async def test_aProbeKnowsOfRefusedChanges(self):
        """While all changes are refused the probe fails, whatever has room; and some seconds after the last of them."""
        large = 5_000_000
        found = await self.almostFull((100, [large, large, 0, large, 0, -1, 0]))
        self.assertEqual(found, [["unavailable"] * 5 + ["done"]])

    async def test_aWriteProtectedFileIsOverByItself(self):
        """From a file that may only be read is read; as soon as it may be written it is."""
        self.assertEqual(
            json.loads(await run("protect", "-")), ["unavailable", "value", "unavailable", "done", "other", "done"]
        )
