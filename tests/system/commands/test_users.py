"""``service-registry-users``: the real program, over the data directory of a registry that runs or does not."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence

from tests.inprocess import Ended
from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.processes import Child, ProcessTestCase
from tests.unit.commands.test_users import ANY_PORT, Users, UsersCase, reactor
from txserviceregistry.registry.stores.etcd.store import EtcdStore

# The program.
PROGRAM = """
os.execv(sys.executable, [sys.executable, "-m", "txserviceregistry.commands.users", *sys.argv[1:]])
"""
# Its standard streams: no output, a file that takes four bytes, a pipe without a reader; only an
# output; and a stderr on a full disk.
INTO_NOTHING = "import os, sys; os.close(1)"
INTO_A_LIMITED_FILE = """
import os, resource, sys
os.dup2(os.open("limited", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
os.write(1, b"x" * 2_000_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
"""
INTO_A_BROKEN_PIPE = """
import os, sys
reads, writes = os.pipe()
os.dup2(writes, 1)
os.close(reads)
os.close(writes)
"""
WITHOUT_OTHERS = "import os, sys; os.close(0); os.close(2)"
ERRORS_INTO_A_FULL_FILE = 'import os, sys; os.dup2(os.open("/dev/full", os.O_WRONLY), 2)'


class UsersProcessCase(Users, ProcessTestCase):
    """The program as a process."""

    async def ran(self, words: Sequence[str], dataDir: str) -> Ended:
        """See :class:`Users`."""
        child = self.spawn("python", "-m", "txserviceregistry.commands.users", "--data-dir", dataDir, *words)
        await child.ended
        assert child.exitCode is not None
        return Ended(child.output, child.errors, child.exitCode)

    async def registry(self, *arguments: str) -> Child:
        """A registry that listens."""
        registry = self.twistd("service-registry", "--listen", ANY_PORT, *arguments)
        await registry.says("The registry listens on")
        return registry


class BesideARegistryTests(UsersProcessCase):
    """While the registry runs."""

    async def test_aKeyThatCantBeWritten(self) -> None:
        """Without an output nothing changes: the old key stays valid."""
        await self.registry()
        before = self.raxrc()
        program = self.spawn("python", "-c", INTO_NOTHING + PROGRAM, "--data-dir", self.dataDir, "rotate", "local")
        await program.ended
        self.assertEqual((program.exitCode, program.output), (1, ""))
        (line,) = program.errors.splitlines()
        self.assertIn("it is closed. The user was not changed", line)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()

    async def test_aDiskThatIsFullShowsNoKey(self) -> None:
        """A file that takes no more is found before the key is stored, not only when it is closed."""
        await self.registry()
        before = self.raxrc()
        program = self.spawn(
            "python", "-c", INTO_A_LIMITED_FILE + PROGRAM, "--data-dir", self.dataDir, "rotate", "local"
        )
        await program.ended
        self.assertEqual(program.exitCode, 1, program.errors)
        self.assertIn("The user was not changed", program.errors)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()

    async def test_aPipeWithoutAReaderShowsNoKey(self) -> None:
        """Nor is a key stored that went to a reader who had gone."""
        await self.registry()
        program = self.spawn(
            "python", "-c", INTO_A_BROKEN_PIPE + PROGRAM, "--data-dir", self.dataDir, "rotate", "local"
        )
        await program.ended
        self.assertEqual(program.exitCode, 1, program.errors)
        self.assertIn("Broken pipe. The user was not changed", program.errors)
        await self.client().account.getLimits()

    async def test_otherOutputThatCantBeWritten(self) -> None:
        """An error that can't be avoided has one line; a command that writes nothing needs no output."""
        await self.users("add", "joe")
        for words, code in ((["--help"], 1), (["remove", "joe"], 0)):
            program = self.spawn("python", "-c", INTO_NOTHING + PROGRAM, "--data-dir", self.dataDir, *words)
            await program.ended
            self.assertEqual(program.exitCode, code, program.errors)

    async def test_withoutStandardErrors(self) -> None:
        """Without stderr and stdin all is done, and shown, and no file gets their numbers."""
        for streams in (WITHOUT_OTHERS, ERRORS_INTO_A_FULL_FILE):
            program = self.spawn(
                "python", "-c", streams + PROGRAM, "--data-dir", self.dataDir, "add", f"joe{len(streams)}"
            )
            await program.ended
            self.assertEqual(program.exitCode, 0)
            self.assertRegex(program.output, "RAXSR_API_KEY=[0-9a-f]{40}\n$")
        self.assertEqual(len((await self.users("list")).out.splitlines()), 3)


class LockedStoreTests(UsersCase):
    """A store that another process writes for longer than sqlite waits; the program is in this process."""

    async def test_aKeyThatCantBeStored(self) -> None:
        """A key that was shown, and could not be stored, is reported as invalid; the old one stays valid."""
        await self.registry()
        before = self.raxrc()
        await self.client().account.getLimits()
        other = sqlite3.connect(os.path.join(self.dataDir, "registry.sqlite"), isolation_level=None)
        self.addCleanup(other.close)
        # As long as this transaction lasts, no other connection can write.
        other.execute("BEGIN IMMEDIATE")
        rotated = await self.users("rotate", "local", code=1)
        other.execute("ROLLBACK")
        self.assertIn('the API key of user "local" that was printed is invalid', rotated.err)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()


class OverEtcdTests(UsersCase):
    """Users in etcd, on a machine that has a data directory too; the program and the registry are in this process."""

    def setUp(self) -> None:
        super().setUp()
        self.prefix = newPrefix()
        self.etcd = ("--store", "etcd", "--etcd", sharedEtcd(), "--etcd-prefix", self.prefix)

    async def test_messagesNameTheEtcd(self) -> None:
        """It is there that users are or are not, and not in a folder."""
        listed = await self.users("list", *self.etcd)
        self.assertIn(f"No users exist in etcd below {self.prefix}", listed.err)
        self.assertIn(f'no user "joe" in etcd below {self.prefix}', await self.refused("remove", "joe", *self.etcd))

    async def test_theRaxrcOfAnotherRegistryStays(self) -> None:
        """A registry over sqlite that has a user of the same name in this folder keeps its credentials."""
        await self.registry()
        before = self.raxrc()
        await self.users("add", before["username"], *self.etcd)
        await self.users("rotate", before["username"], *self.etcd)
        await self.users("remove", before["username"], *self.etcd)
        self.assertEqual(self.raxrc(), before)

    async def test_theRaxrcOfThisOneIsKeptUpToDate(self) -> None:
        """A node over etcd that has made the first user has the new key in its folder, or none when it is removed."""
        await self.registry(lambda: EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix))
        name = self.raxrc()["username"]
        rotated = await self.users("rotate", name, *self.etcd)
        self.assertEqual(self.raxrc()["api_key"], self.key(rotated, name))
        await self.users("remove", name, *self.etcd)
        self.assertEqual(self.raxrc(), {})
