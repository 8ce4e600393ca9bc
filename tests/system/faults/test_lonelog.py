"""Row 32: the file of the sqlite store is gone, and its write-ahead log with acknowledged values is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from .faultcase import FaultCase


class LoneLogTests(FaultCase):
    """
    A registry is killed, and its file is removed, emptied, or cut short. The log that stays has all that was
    acknowledged since the last checkpoint.
    """

    row = 32
    fault = "SQLite's file is missing, empty, cut short or another registry's, beside a log with values"

    async def test_isRefused(self) -> None:
        """The registry and service-registry-users name the files and change none; nothing is lost."""
        count = 200 if self.isFull else 20
        registry = await self.registry()
        client = self.client(cache=None)
        values = {f"lone{number}": "x" * 1000 for number in range(count)}
        for key, value in values.items():
            await client.configuration.set(key, value)
        registry.kill("KILL")
        await registry.ended
        store = Path(self.dataDir, "registry.sqlite")
        whole = store.read_bytes()
        faults: dict[str, Callable[[], object]] = {
            "is missing": store.unlink,
            "is empty": lambda: os.truncate(store, 0),
            "is cut short": lambda: os.truncate(store, 50),
            "another database": lambda: store.write_bytes(self.otherStore),
        }
        self.otherStore = await self.anotherStore()
        if not self.isFull:
            faults = {state: faults[state] for state in ("is missing", "another database")}
        refusals = 0
        for state, do in faults.items():
            do()
            before = self.content()
            for line in await self.refusals():
                self.assertIn(state, line)
                for name in (store, f"{store}-wal"):
                    self.assertIn(str(name), line)
                refusals += 1
            self.assertEqual(self.content(), before)
            store.write_bytes(whole)
        await self.registry()
        client = self.client(cache=None)
        self.assertEqual({each["id"]: each["value"] async for each in client.configuration.iterate()}, values)
        self.assertNoTraceback()
        self.tell("starts", refusals)
        self.tell("starts not refused, files changed", "0, 0")
        self.tell(f"of {count} acknowledged values, kept", count)

    async def anotherStore(self) -> bytes:
        """The file that some other registry has made."""
        folder = Path(self.home, "other")
        made = self.spawn("service-registry-users", "--data-dir", str(folder), "add", "joe")
        await made.ended
        self.assertEqual(made.exitCode, 0, made.errors)
        other = folder.joinpath("registry.sqlite").read_bytes()
        shutil.rmtree(folder)
        return other

    def content(self) -> dict[str, bytes]:
        """All that is in the data directory, but for the index of the log, which has nothing of its own."""
        return {path.name: path.read_bytes() for path in Path(self.dataDir).iterdir() if path.suffix != ".sqlite-shm"}

    async def refusals(self) -> list[str]:
        """The lines with which the programs that open the store refuse to."""
        users = [("list",), ("add", "ann"), ("rotate", "admin"), ("remove", "admin")]
        children = [
            self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1"),
            *(
                self.spawn("service-registry-users", "--data-dir", self.dataDir, *each)
                for each in (users if self.isFull else users[:2])
            ),
        ]
        lines = []
        for child in children:
            await child.ended
            self.assertEqual(child.exitCode, 1, child.errors)
            (line,) = child.errors.splitlines()
            lines.append(line)
        return lines
