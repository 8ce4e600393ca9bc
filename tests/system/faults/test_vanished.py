"""Row 31: the files of the sqlite store are removed, moved away or replaced while the registry runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.system.docblocks import blocksOf
from tests.system.processes import isCrowded

from .faultcase import ROOT
from .journal import Application, Outcome
from .storecase import StoreFaultCase

#: Seconds in which the registry may acknowledge writes to a file that is gone.
A_SECOND = 1.0


class VanishedTests(StoreFaultCase):
    """SQLite's writes to a file that is gone are lost when the process ends, without an error."""

    row = 31
    fault = "SQLite's file, log or index, or the data directory, is moved, replaced or removed"

    def setUp(self) -> None:
        super().setUp()
        self.store = Path(self.dataDir, "registry.sqlite")
        self.late = 0
        self.noticed = 0.0

    async def isNoticed(self, application: Application, vanish: Callable[[], object]) -> None:
        """Make something vanish: writes are refused within a second, health says so, and reads go on."""
        vanish()
        # This process may have been slow to do it.
        began = time.monotonic()
        await self.trouble(application)
        after = [each for each in application.operations if each.begun > began]
        late = [each.begun - began for each in after if each.outcome is Outcome.acknowledged]
        self.late += len(late)
        self.noticed = max(self.noticed, *late, 0)
        if not isCrowded():
            self.assertLess(self.noticed, A_SECOND)

    async def test_movedAway(self) -> None:
        """Writes get 503 until the same file is back; then all that was acknowledged is there."""
        registry, application = await self.begin()
        copy = self.store.with_suffix(".copy")

        def away(*paths: Path) -> tuple[Callable[[], object], Callable[[], object]]:
            def move(back: bool) -> None:
                for path in paths:
                    names = [str(path), f"{path}.away"]
                    os.rename(*(reversed(names) if back else names))

            return lambda: move(False), lambda: move(True)

        wal, shm = (self.store.with_name(self.store.name + ending) for ending in ("-wal", "-shm"))
        moveAll, bringAll = away(self.store, wal, shm)

        def replace() -> None:
            shutil.copy(self.store, copy)
            moveAll()
            os.rename(copy, self.store)

        steps = {
            "file": away(self.store),
            "directory": away(Path(self.dataDir)),
            "replaced": (replace, lambda: (self.store.unlink(), bringAll())),
            "log": away(wal),
            "index": away(shm),
        }
        if not self.isFull:
            steps = {name: steps[name] for name in ("directory", "replaced")}
        for vanish, back in steps.values():
            await self.isNoticed(application, vanish)
            back()
            await self.recovers(application)
        # A problem that comes back within a minute is not logged each time.
        said = registry.output + registry.errors
        for text in ("Cannot write the store: ", "Can write the store again"):
            self.assertTrue(1 <= said.count(text) <= len(steps), said)
        await self.end(application, ", ".join(steps) + " away and back", len(steps))
        self.tell("writes acknowledged after the removal, none lost", self.late)
        self.tell("latest start of such a write, s after the removal", round(self.noticed, 3))

    async def test_removed(self) -> None:
        """A file that was removed is noticed too; a copy of what the registry has open has all that it acknowledged."""
        registry, application = await self.begin()
        # Before, it is in the log alone: that has to be copied, too.
        await self.isNoticed(application, self.store.unlink)
        application.tell("pause")
        await application.says("paused")
        rescued = Path(self.home, "rescued")
        rescued.mkdir()
        transport: Any = registry.transport
        environment = {**os.environ, "PID": str(transport.pid), "RESCUE": str(rescued)}
        copied = subprocess.run(["/bin/sh", "-c", _rescue()], env=environment, capture_output=True, check=False)
        self.assertEqual((copied.returncode, copied.stderr), (0, b""))
        registry.kill("KILL")
        await registry.ended
        for path in self.store.parent.glob("registry.sqlite*"):
            path.unlink()
        for path in rescued.iterdir():
            shutil.copy(path, self.dataDir)
        await self.registry()
        application.tell("resume")
        await self.recovers(application)
        await self.end(application, "removed and restored from the running registry", 1)

    async def test_lockFile(self) -> None:
        """A lock file that is removed is made again, and keeps a second registry out; a replaced one stops writes."""
        _, application = await self.begin()
        lock = Path(self.dataDir, "registry.lock")
        lock.unlink()

        async def isThere() -> bool:
            return lock.exists()

        await self.until(isThere, 0.01)
        second = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1")
        await second.ended
        self.assertEqual(second.exitCode, 1)
        self.assertIn("another registry uses the data directory", second.errors)
        await self.writesAgain(application, time.monotonic())

        other = lock.with_suffix(".other")
        other.touch()
        await self.isNoticed(application, lambda: os.replace(other, lock))
        self.assertNoTraceback()


def _rescue() -> str:
    """The commands of the page on operating that copy the files of a store that were removed."""
    (block,) = (block for block in blocksOf(ROOT / "docs" / "operating.rst") if "/proc/$PID" in block.text)
    return block.text
