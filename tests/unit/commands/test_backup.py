"""``service-registry-backup``, in this process, over the data directory of a registry that runs or not."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

from tests import CHEAP
from tests.inprocess import Ended, runScript, withoutSettings
from tests.unit.commands.test_users import ANY_PORT, UsersCase, reactor
from txserviceregistry.commands.backup import main
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.registry.stores.sqlite.file import connect


class BackupCase(UsersCase):
    """A registry, and what an operator types."""

    def setUp(self) -> None:
        super().setUp()
        self.store = Path(self.dataDir, "registry.sqlite")
        self.file = Path(self.home, "backups", "registry.sqlite")
        self.file.parent.mkdir()

    async def backup(self, *words: str, code: int = 0) -> Ended:
        """Run the program to its end, which is this exit code."""
        environment = {**withoutSettings(), "HOME": self.home}
        words = ("--data-dir", self.dataDir, *words)
        ended = await runScript(main, *words, environment=environment, folder=self.home)
        self.assertEqual(ended.code, code, ended.out + ended.err)
        if code:
            self.assertEqual((ended.out, len(ended.err.splitlines())), ("", 1), ended.err)
        return ended

    async def restore(self, code: int = 0) -> Ended:
        """Restore the backup."""
        return await self.backup("--restore", str(self.file), code=code)

    #: The data directory of a registry that has a service and a value in its store, and has stopped.
    left: str | None = None

    async def stopped(self) -> None:
        """Put there what a registry with a service and a value in its store has left."""
        if BackupCase.left is not None:
            shutil.copytree(BackupCase.left, self.dataDir)
            return
        registry = await self.registry()
        client = self.client()
        await client.services.create("web1", 30)
        await client.configuration.set("color", "red")
        await registry.stopService()
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder)
        BackupCase.left = shutil.copytree(self.dataDir, os.path.join(folder, "data"))

    def files(self) -> dict[str, bytes]:
        """The files in the data directory, as far as they can be compared."""
        ignored = ("registry.lock", "-shm", "-wal")
        found = [each for each in Path(self.dataDir).iterdir() if not each.name.endswith(ignored)]
        return {each.name: each.read_bytes() for each in found}


class BackUpTests(BackupCase):
    """The copy."""

    async def test_whileTheRegistryRuns(self) -> None:
        """The copy has what was acknowledged, only its owner can read it, and it replaces the one before."""
        await self.registry()
        client = self.client()
        self.file.write_text("an older backup")
        await client.services.create("web1", 30)
        await client.configuration.set("color", "red")
        ended = await self.backup(str(self.file))
        self.assertEqual(
            ended.out,
            f"Backed up {self.store} to {self.file}, and verified it: "
            "1 service, 1 configuration value, 1 user, 2 events.\n",
        )
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        await client.configuration.set("color", "blue")
        found = sqlite3.connect(self.file).execute("SELECT value FROM configuration_values").fetchall()
        self.assertEqual(found, [(b"red",)])

    async def test_ofADamagedStore(self) -> None:
        """A store that is damaged is not backed up: the earlier backup stays, and nothing is beside it."""
        await self.stopped()
        with open(self.store, "r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * 8192)
        self.file.write_text("an older backup")
        ended = await self.backup(str(self.file), code=1)
        self.assertIn(f"{self.store} is damaged", ended.err)
        self.assertEqual(self.file.read_text(), "an older backup")
        self.assertEqual(os.listdir(self.file.parent), ["registry.sqlite"])

    async def test_theStoreItself(self) -> None:
        """The store is not replaced by its own copy, under whatever name."""
        await self.stopped()
        before = self.files()
        self.file.symlink_to(self.store)
        for name in (self.store, self.file, f"{self.store}-wal"):
            ended = await self.backup(str(name), code=1)
            self.assertIn("is the registry's store itself; choose another file", ended.err)
        self.assertEqual(self.files(), before)

    async def test_withoutAStore(self) -> None:
        """Without an sqlite store, the command fails with that reason, and creates nothing."""
        ended = await self.backup(str(self.file), code=1)
        self.assertIn(f"there is no sqlite store in {self.dataDir}\n", ended.err)
        self.assertFalse(os.path.exists(self.dataDir))
        await self.registry("memory")
        ended = await self.backup(str(self.file), code=1)
        self.assertIn("its registry has another one (over etcd: etcdctl snapshot save)", ended.err)

    async def test_aFolderThatIsMissing(self) -> None:
        """The error names the folder and the reason."""
        await self.stopped()
        ended = await self.backup(f"{self.home}/missing/registry.sqlite", code=1)
        self.assertIn("No such file or directory", ended.err)

    async def test_toAPipe(self) -> None:
        """A pipe or a device is not replaced by the copy."""
        await self.stopped()
        os.mkfifo(self.file)
        ended = await self.backup(str(self.file), code=1)
        self.assertIn(f"{self.file} is not a regular file", ended.err)
        self.assertTrue(self.file.is_fifo())
        self.assertEqual(list(self.file.parent.iterdir()), [self.file])

    async def test_wrongUsage(self) -> None:
        """Wrong words are one line and exit code 2."""
        for words in ((), ("",), ("a", "b"), ("--fast", "a")):
            await self.backup(*words, code=2)


class RestoreTests(BackupCase):
    """The copy, put back."""

    async def test_bringsBackWhatWasThere(self) -> None:
        """
        The registry has the state of the backup again; the output says what is lost, and where the replaced store is,
        which can be restored in turn.
        """
        await self.stopped()
        await self.backup(str(self.file))
        registry = await self.registry()
        client = self.client()
        await client.services.create("web2", 30)
        await client.configuration.set("color", "blue")
        await client.configuration.remove("color")
        await client.configuration.set("shape", "round")
        await registry.stopService()
        ended = await self.restore()
        restored, lost = ended.out.splitlines()
        self.assertRegex(restored, r"^Restored .*, whose last event is of \d{4}-.* UTC: 1 service, ")
        self.assertRegex(
            lost,
            r"^Lost: 4 events, 1 registration, 1 new or changed configuration value, 1 removal of a configuration "
            r"value\. The replaced store is in ",
        )
        self.assertEqual(ended.err, "")
        registry = await self.registry()
        client = self.client()
        self.assertEqual([each["id"] async for each in client.services.iterate()], ["web1"])
        self.assertEqual([each["id"] async for each in client.configuration.iterate()], ["color"])
        await registry.stopService()
        (replaced,) = Path(self.dataDir).glob("replaced-*/registry.sqlite")
        self.assertEqual(replaced.parent.stat().st_mode & 0o777, 0o700)
        await self.backup("--restore", str(replaced))
        await self.registry()
        self.assertEqual([each["id"] async for each in self.client().configuration.iterate()], ["shape"])

    async def test_whileARegistryRuns(self) -> None:
        """A store that is in use is not replaced, under whatever name its registry knows it."""
        await self.stopped()
        await self.backup(str(self.file))
        await self.registry()
        self.assertIn("another registry uses the data directory", (await self.restore(code=1)).err)
        other = Path(self.home, "other")
        other.mkdir()
        (other / "registry.sqlite").symlink_to(self.store)
        self.dataDir = str(other)
        self.assertIn("another registry uses the file", (await self.restore(code=1)).err)
        self.assertTrue(self.store.exists())

    async def test_onANewMachine(self) -> None:
        """An empty or missing data directory gets the store; nothing is lost."""
        await self.stopped()
        await self.backup(str(self.file))
        shutil.rmtree(self.dataDir)
        # There may have been locks that the backup does not know.
        restored, locks = (await self.restore()).out.splitlines()
        self.assertTrue(restored.startswith("Restored") and locks.startswith("Locks:"), (restored, locks))
        self.assertEqual(self.store.stat().st_mode & 0o777, 0o600)
        await self.registry()

    async def test_throughASymbolicLink(self) -> None:
        """The store is restored where a link leads, and the link stays."""
        await self.stopped()
        await self.backup(str(self.file))
        elsewhere = Path(self.home, "elsewhere")
        elsewhere.mkdir()
        self.store.rename(elsewhere / "data")
        self.store.symlink_to(elsewhere / "data")
        await self.restore()
        self.assertTrue(self.store.is_symlink())
        self.assertEqual(len(list(elsewhere.glob("replaced-*/data"))), 1)
        await self.registry()

    async def test_ofADamagedStore(self) -> None:
        """A store that can't be read any more is replaced and kept; what is lost is unknown."""
        await self.stopped()
        await self.backup(str(self.file))
        self.store.write_bytes(b"garbage" * 1000)
        ended = await self.restore()
        self.assertIn("Lost: unknown, because the replaced store can't be read", ended.out)
        await self.registry()

    async def test_ofAFileThatItOverwrites(self) -> None:
        """A backup in the place of the copy that is made stays."""
        await self.stopped()
        self.file = Path(f"{self.store}.restored")
        await self.backup(str(self.file))
        before = self.files()
        self.assertIn("rename it first", (await self.restore(code=1)).err)
        self.assertEqual(self.files(), before)

    async def test_afterAKilledRestore(self) -> None:
        """The log that a restore has left when it was killed does not become part of what is restored now."""
        await self.stopped()
        await self.backup(str(self.file))
        making = Path(f"{self.store}.restored")
        shutil.copy(self.file, making)
        with closing(connect(str(making))) as killed:
            killed.execute("DELETE FROM configuration_values")
            log = Path(f"{making}-wal").read_bytes()
        Path(f"{making}-wal").write_bytes(log)
        await self.restore()
        with closing(sqlite3.connect(self.store)) as restored:
            self.assertEqual(restored.execute("SELECT count(*) FROM configuration_values").fetchone(), (1,))
        self.assertEqual([name for name in os.listdir(self.dataDir) if ".restored" in name], [])

    async def test_aFullDisk(self) -> None:
        """A copy that can't be prepared replaces nothing, and the error has one line."""
        await self.stopped()
        await self.backup(str(self.file))
        before = self.files()
        for step in ("prepare", "connect"):
            full = sqlite3.OperationalError("database or disk is full")
            with mock.patch(f"txserviceregistry.registry.stores.sqlite.file.{step}", side_effect=full):
                error = (await self.restore(code=1)).err
            self.assertIn(f"can't replace {self.store}: database or disk is full", error)
        self.assertEqual(self.files(), before)

    async def test_whatIsNotABackup(self) -> None:
        """A file that is missing, damaged or something else changes nothing."""
        await self.stopped()
        await self.backup(str(self.file))
        before = self.files()
        good = self.file.read_bytes()
        for content, reason in (
            (None, "No such file or directory"),
            (b"", "is not a SQLite database"),
            (b"something else" * 1000, "is not a SQLite database"),
            (good[:8192], "is damaged"),
            (good[:4096] + b"\xff" * 4096 + good[8192:], "is damaged"),
        ):
            self.file.unlink(missing_ok=True)
            if content is not None:
                self.file.write_bytes(content)
            self.assertIn(reason, (await self.restore(code=1)).err)
        self.assertEqual(self.files(), before)

    async def test_aDeviceOrAPipe(self) -> None:
        """A pipe or a device is refused before it is read, which could block indefinitely."""
        await self.stopped()
        before = self.files()
        self.file.symlink_to("/dev/null")
        self.assertIn("is not a regular file", (await self.restore(code=1)).err)
        self.file.unlink()
        os.mkfifo(self.file)
        self.assertIn("is not a regular file", (await self.restore(code=1)).err)
        self.assertEqual(self.files(), before)

    async def locks(self, path: str, **body: object) -> tuple[int, dict[str, Any]]:
        """A request about locks: the status and the response."""
        client = self.client()
        url = f"{client.settings.baseUrls[0]}/1/locks{path}"
        response = await client.treq.post(url, json=body)
        text = await response.text()
        return response.code, json.loads(text) if text else {}

    async def test_locks(self) -> None:
        """
        After a restore no lock can be acquired for two minutes from the first start on, and fences exceed all that
        there were, also if the wall clock has been set back.
        """
        registry = await self.registry()
        _, held = await self.locks("", name="/billing", timeout=30)
        await self.backup(str(self.file))
        await self.locks("/release", name="/billing", token=held["token"])
        _, later = await self.locks("", name="/billing", timeout=30)
        await registry.stopService()
        ended = await self.restore()
        self.assertIn("1 acquired lock", ended.out)
        found = re.search(r"^Locks: fences go on above (\d+); none can be acquired for 120 s", ended.out, re.MULTILINE)
        assert found is not None, ended.out
        self.assertGreaterEqual(int(found[1]), later["fence"])
        for seconds, expected in ((0, 503), (60, 503), (125, 201), (-1000, 201)):
            now = time.time() + seconds
            registry = RegistryService(
                reactor, dataDir=self.dataDir, endpoints=[ANY_PORT], wallClock=lambda now=now: now, keyCost=CHEAP
            )
            registry.startService()
            await registry.whenListening()
            try:
                code, acquired = await self.locks("", name=f"/other{abs(seconds)}", timeout=3)
            finally:
                await registry.stopService()
            self.assertEqual(code, expected, (seconds, acquired))
            if code == 201:
                self.assertGreater(acquired["fence"], int(found[1]))

    async def test_aKeyThatWasRotatedSince(self) -> None:
        """It is among what is lost."""
        await self.stopped()
        await self.backup(str(self.file))
        await self.users("rotate", "local")
        ended = await self.restore()
        self.assertIn("1 new user or API key", ended.out)
