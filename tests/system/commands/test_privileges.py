"""Root in a data directory of another user, who replaces what is in it by symbolic links at the worst moment."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import skipUnless

from tests.needs import SENTENCE
from tests.system.commands.test_users import UsersProcessCase
from txserviceregistry.heartbeats.statefile import claimed
from txserviceregistry.util.files import UnsafePath, checkPath, controllingUser, isPrivileged

#: Two users that are not root. They need no passwd entry.
JOE, ANN = 64001, 64002

# Waits for a file of a name to appear in its folder, and puts a symbolic link in its place, again and again, while its
# parent lives. It may do what JOE may do.
RACER = """
import os, sys
joe, folder, target, parent = int(sys.argv[1]), sys.argv[2], sys.argv[3], os.getppid()
os.setgroups([]); os.setgid(joe); os.setuid(joe)
keep = {"registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm", "registry.lock", "raxrc"}
print("ready", flush=True)
while os.getppid() == parent:
    for name in os.listdir(folder):
        if name in keep:
            continue
        path = os.path.join(folder, name)
        try:
            os.unlink(path)
            os.symlink(target, path)
        except OSError:
            pass
"""


# Only root has something to lose in a directory of another user.
@skipUnless(isPrivileged(), SENTENCE)
class RootTests(UsersProcessCase):
    """``service-registry-users`` and the library's state files, run by root."""

    def setUp(self) -> None:
        super().setUp()
        # Not in the tests' own folder, which other users may not be able to enter.
        self.base = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.base)
        os.chmod(self.base, 0o755)
        self.dataDir = os.path.join(self.base, "data")
        os.mkdir(self.dataDir, 0o700)
        os.chown(self.dataDir, JOE, JOE)
        # Nobody but root may change who owns it, write it, or read it.
        self.precious = Path(self.base, "precious")
        self.precious.write_text("root's own")
        self.precious.chmod(0o600)
        self.before = self.precious.stat()

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Without coverage, whose files the other user could not write."""
        environment = super().environment(extra)
        return {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}

    def assertUntouched(self) -> None:
        """The file of root is what it was."""
        now = self.precious.stat()
        for name in ("st_uid", "st_gid", "st_mode", "st_size", "st_mtime_ns", "st_ctime_ns"):
            self.assertEqual(getattr(now, name), getattr(self.before, name), name)

    async def test_aRacingOwnerGainsNothing(self) -> None:
        """An owner who puts links to a file of root's in place of new files never makes root touch that file."""
        await self.users("add", "local")
        Path(self.dataDir, "raxrc").write_text("[credentials]\nusername = local\napi_key = 00\n")
        os.chown(Path(self.dataDir, "raxrc"), JOE, JOE)
        racer = subprocess.Popen(
            [sys.executable, "-c", RACER, str(JOE), self.dataDir, str(self.precious)], stdout=subprocess.PIPE
        )
        try:
            assert racer.stdout is not None
            racer.stdout.readline()
            for _ in range(4):
                # It may fail, of what the owner does to it; it must do no harm.
                rotated = self.spawn(
                    "python", "-m", "txserviceregistry.commands.users", "--data-dir", self.dataDir, "rotate", "local"
                )
                await rotated.ended
            self.assertIsNone(racer.poll(), "the racer has ended")
        finally:
            racer.kill()
            racer.communicate()
        self.assertUntouched()
        for name in os.listdir(self.dataDir):
            self.assertEqual(os.lstat(os.path.join(self.dataDir, name)).st_uid, JOE, name)

    async def test_whatRootMakesIsTheOwners(self) -> None:
        """The store belongs to the directory's owner from its first moment, and so does a raxrc that is written."""
        await self.users("add", "joe")
        names = set(os.listdir(self.dataDir))
        self.assertIn("registry.sqlite", names)
        Path(self.dataDir, "raxrc").write_text("[credentials]\nusername = joe\napi_key = 00\n")
        os.chown(Path(self.dataDir, "raxrc"), JOE, JOE)
        await self.users("rotate", "joe")
        for name in os.listdir(self.dataDir):
            status = os.lstat(os.path.join(self.dataDir, name))
            self.assertEqual((status.st_uid, stat.S_IMODE(status.st_mode) & 0o077 if name != "raxrc" else 0), (JOE, 0))

    async def test_filesThatOnlyRootCanReadAreNotRead(self) -> None:
        """A link in place of a file of the registry leads root nowhere that its owner can't go."""
        await self.users("add", "joe")
        Path(self.dataDir, "raxrc").symlink_to(self.precious)
        self.assertIn("raxrc: Permission denied", await self.refused("rotate", "joe"))
        Path(self.dataDir, "registry.sqlite").unlink()
        Path(self.dataDir, "registry.sqlite").symlink_to(self.precious)
        await self.refused("list")
        await self.refused("add", "ann")
        self.assertUntouched()

    async def test_aDirectoryThatOneUserLeadsToAnothers(self) -> None:
        """Root is not to act as one user because another one has pointed there."""
        os.chown(self.base, ANN, ANN)
        self.assertIn("run this as the directory's owner", await self.refused("add", "joe"))
        self.assertEqual(os.listdir(self.dataDir), [])

    async def test_aDirectoryThatAllUsersCanWrite(self) -> None:
        """A directory of root's that others can write is refused, with what to do."""
        os.chown(self.dataDir, 0, 0)
        os.chmod(self.dataDir, 0o777)
        self.assertIn("chmod go-w", await self.refused("add", "joe"))
        self.assertEqual(os.listdir(self.dataDir), [])

    async def test_theRegistryItself(self) -> None:
        """A registry run by root does not start over a directory of another user, and says what to do."""
        link = Path(self.dataDir, "registry.lock")
        link.symlink_to(Path(self.base, "made"))
        registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1", "--data-dir", self.dataDir)
        await registry.ended
        self.assertEqual(registry.exitCode, 1)
        self.assertIn("run this as the directory's owner", registry.errors)
        self.assertFalse(Path(self.base, "made").exists())

    async def test_aStoreInADirectoryOfAnotherUser(self) -> None:
        """A link from a directory of root's to a store in another user's leads root there no more than a path would."""
        own = os.path.join(self.base, "own")
        os.mkdir(own, 0o700)
        await self.users("add", "joe", dataDir=own)
        store, link = Path(self.dataDir, "registry.sqlite"), Path(own, "registry.sqlite")
        os.rename(link, store)
        os.chown(store, JOE, JOE)
        link.symlink_to(store)
        for name in ("registry.sqlite-wal", "registry.sqlite-shm"):
            os.link(self.precious, Path(self.dataDir, name))
        self.before = self.precious.stat()
        self.assertIn("run this as the directory's owner", await self.refused("add", "ann", dataDir=own))
        registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1", "--data-dir", own)
        await registry.ended
        self.assertEqual(registry.exitCode, 1)
        self.assertIn("run this as the directory's owner", registry.errors)
        self.assertUntouched()

    async def test_theAccessLog(self) -> None:
        """A registry run by root goes on without its access log rather than follow a link to a file of root's."""
        log = Path(self.dataDir, "access.log")
        log.symlink_to(self.precious)
        registry = self.twistd(
            "service-registry",
            *(
                "--listen",
                "tcp:0:interface=127.0.0.1",
                "--store",
                "memory",
                "--data-dir",
                os.path.join(self.base, "own"),
            ),
            *("--access-log", str(log)),
        )
        await registry.says(f"The access log {log} can't be written: user {JOE} can change where it leads")
        await registry.says("The registry listens on")
        self.assertUntouched()

    async def test_theWrapperKeepsNoTokenThere(self) -> None:
        """The wrapper runs the command without a token file rather than follow the owner's links."""
        folder = Path(self.dataDir, "wrapper")
        folder.mkdir()
        os.chown(folder, JOE, JOE)
        for name in ("web1.lock", "web1.token", "web1.token.new", "web1.token.claim"):
            Path(folder, name).symlink_to(self.precious)
        wrapper = self.spawn(
            "service-registry-wrapper",
            "--id=web1",
            "--retries=0",
            "true",
            environment={
                "RAXSR_DATA_DIR": self.dataDir,
                "RAXSR_API_URL": "http://127.0.0.1:1",
                "RAXSR_USERNAME": "a",
                "RAXSR_API_KEY": "b",
            },
        )
        await wrapper.ended
        self.assertEqual(wrapper.exitCode, 0)
        self.assertIn("A restart can't continue the same service", wrapper.errors)
        self.assertUntouched()

    def test_aStateFile(self) -> None:
        """A service's state file is not kept where another user can change the path to it."""
        path = os.path.join(self.dataDir, "state")
        Path(f"{path}.claim").symlink_to(self.precious)
        with self.assertRaises(UnsafePath):
            claimed(path)
        self.assertUntouched()

    def test_whoControlsAPath(self) -> None:
        """It is the owner of the first directory or link on the way that is not root's."""
        inside = os.path.join(self.dataDir, "a", "b")
        self.assertEqual(controllingUser(self.base), 0)
        self.assertEqual(controllingUser(inside), JOE)
        link = os.path.join(self.base, "link")
        os.symlink(self.base, link)
        self.assertEqual(controllingUser(os.path.join(link, "data")), JOE)
        self.assertEqual(controllingUser(os.path.join(link, "..", os.path.basename(self.base))), 0)
        os.lchown(link, ANN, ANN)
        self.assertEqual(controllingUser(os.path.join(link, "precious")), ANN)
        with self.assertRaises(UnsafePath):
            controllingUser(os.path.join(link, "data"))
        checkPath(self.precious)
        with self.assertRaises(UnsafePath):
            checkPath(inside)
        os.symlink("loop", os.path.join(self.base, "loop"))
        with self.assertRaises(OSError):
            checkPath(os.path.join(self.base, "loop"))
