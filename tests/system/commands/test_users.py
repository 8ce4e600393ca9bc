"""``service-registry-users``: the real program, over the data directory of a registry that runs or does not."""

from __future__ import annotations

import configparser
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import treq

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry import Client, RegisteredService
from txserviceregistry.errors import AuthenticationFailed
from txserviceregistry.settings import readSettings

ANY_PORT = "tcp:0:interface=127.0.0.1"
# What the registry promises, and what its clients' requests may take on a machine that has other things to do.
A_SECOND = 1.0
SLACK = 1.0
# The program.
PROGRAM = """
os.execv(sys.executable, [sys.executable, "-m", "txserviceregistry.commands.users", *sys.argv[1:]])
"""
# What it finds as its standard streams: an output on a full disk, none, a file that takes four bytes, a pipe without a
# reader; only an output; and a stderr on a full disk.
INTO_A_FULL_FILE = 'import os, sys; os.dup2(os.open("/dev/full", os.O_WRONLY), 1)'
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


class UsersCase(ProcessTestCase):
    """What an operator types, and what happens then."""

    async def users(self, *arguments: str, code: int = 0, dataDir: str | None = None, **options: Any) -> Child:
        """Run the program to its end."""
        child = self.spawn(
            "python",
            "-m",
            "txserviceregistry.commands.users",
            "--data-dir",
            dataDir or self.dataDir,
            *arguments,
            **options,
        )
        await child.ended
        self.assertEqual(child.exitCode, code, child.output + child.errors)
        self.assertNoTraceback([child])
        return child

    async def refused(self, *arguments: str, code: int = 1, dataDir: str | None = None) -> str:
        """Run the program, which fails with one line; that line."""
        child = await self.users(*arguments, code=code, dataDir=dataDir)
        self.assertEqual(child.output, "")
        (line,) = child.errors.splitlines()
        self.assertTrue(line.startswith("service-registry-users: "), line)
        return line

    def key(self, child: Child, name: str) -> str:
        """The API key that has been printed, in the two lines that programs take their credentials from."""
        found = re.fullmatch(r"RAXSR_USERNAME=(\S+)\nRAXSR_API_KEY=([0-9a-f]{40})\n", child.output)
        assert found is not None, child.output
        self.assertEqual(found[1], name)
        self.assertNotIn(found[2], child.errors)
        return found[2]

    async def registry(self, *arguments: str) -> Child:
        """A registry that listens."""
        registry = self.twistd("service-registry", "--listen", ANY_PORT, *arguments)
        await registry.says("The registry listens on")
        return registry

    def clientOf(self, name: str, key: str) -> Client:
        """A client with these credentials, of the registry that runs."""
        settings = readSettings(username=name, apiKey=key, environ={"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        client = Client(reactor=reactor, settings=settings, cache=None)
        self.addCleanup(client.close)
        return client

    def raxrc(self) -> dict[str, str]:
        """The credentials in the data directory's raxrc."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(os.path.join(self.dataDir, "raxrc"))
        return dict(parser["credentials"]) if parser.has_section("credentials") else {}


class WithoutARegistryTests(UsersCase):
    """While no registry runs."""

    async def test_whereThereIsNothing(self) -> None:
        """A folder with no store is said to have none, and nothing is made in it, except by adding a user."""
        for arguments in (["list"], ["remove", "joe"], ["rotate", "joe"]):
            self.assertIn(f"there is no registry in {self.dataDir}", await self.refused(*arguments))
        await self.refused("add", "no/name", code=2)
        self.assertFalse(os.path.exists(self.dataDir))
        added = await self.users("add", "joe")
        self.key(added, "joe")
        self.assertIn("There was no registry", added.errors)
        self.assertEqual(os.stat(self.dataDir).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(os.path.join(self.dataDir, "registry.sqlite")).st_mode & 0o777, 0o600)

    async def test_listShowsNamesAndTenants(self) -> None:
        """``list`` tells who there is and of which tenant, and never a key."""
        keys = [self.key(await self.users("add", "joe"), "joe")]
        keys.append(self.key(await self.users("add", "ann", "--tenant", "77"), "ann"))
        keys.append(self.key(await self.users("add", "jim@example.com"), "jim@example.com"))
        listed = await self.users("list")
        self.assertEqual(
            [line.split() for line in listed.output.splitlines()],
            [
                ["name", "tenant"],
                ["ann", "77"],
                ["jim@example.com", "2"],
                ["joe", "1"],
            ],
        )
        for key in keys:
            self.assertNotIn(key, listed.output + listed.errors)

    async def test_refusals(self) -> None:
        """What can't be done is one line and exit code 1, what nobody can mean is one line and 2."""
        await self.users("add", "joe")
        self.assertIn('there is a user "joe" already', await self.refused("add", "joe"))
        self.assertIn('there is no user "ann"', await self.refused("remove", "ann"))
        self.assertIn('there is no user "ann"', await self.refused("rotate", "ann"))
        for arguments in (
            ["add", "a b"],
            ["add", "ann", "--tenant", "0"],
            ["add", "ann", "--tenant", "many"],
            ["add"],
            [],
            ["drop"],
            ["list", "joe"],
            ["--what"],
        ):
            await self.refused(*arguments, code=2)
        self.assertEqual(len((await self.users("list")).output.splitlines()), 2)

    async def test_aFolderThatIsNone(self) -> None:
        """A path that is a file, and a file that is no database, are told in one line and left as they are."""
        file = Path(self.home, "file")
        file.write_text("text")
        await self.refused("add", "joe", dataDir=str(file))
        folder = Path(self.home, "folder")
        folder.mkdir()
        Path(folder, "registry.sqlite").write_text("this is no database, and never was one")
        for arguments in (["list"], ["add", "joe"]):
            self.assertIn("registry.sqlite", await self.refused(*arguments, dataDir=str(folder)))
        self.assertEqual(Path(folder, "registry.sqlite").read_text(), "this is no database, and never was one")
        self.assertIn("there is no value", await self.refused("--data-dir", "", "list", code=2))

    async def test_helpHasExamples(self) -> None:
        """``--help`` shows how it is used."""
        shown = await self.users("--help")
        for text in ("examples:", "add joe", "--tenant", "rotate", "--data-dir"):
            self.assertIn(text, shown.output)

    async def test_theFirstStartMakesNoOtherUser(self) -> None:
        """A registry that finds users at its first start lets them in, and says that its raxrc has no credentials."""
        key = self.key(await self.users("add", "joe"), "joe")
        registry = await self.registry()
        await registry.says("There are no credentials in")
        self.assertEqual(self.raxrc(), {})
        await self.clientOf("joe", key).account.getLimits()
        self.assertEqual(len((await self.users("list")).output.splitlines()), 2)

    async def test_whoRemovesTheLastUserIsToldAndNobodyComesBack(self) -> None:
        """The last user's credentials leave the raxrc, and no start of the registry makes that user or another."""
        first = await self.registry()
        client = self.client()
        await client.configuration.set("abc", "of the first user")
        await client.close()
        key = self.raxrc()["api_key"]
        first.kill("TERM")
        await first.ended
        removed = await self.users("remove", "local")
        self.assertIn("had the credentials, and no longer has", removed.errors)
        self.assertIn("It was the last user", removed.errors)
        self.assertEqual(self.raxrc(), {})
        registry = await self.registry()
        self.assertIn("There are no users: nobody can enter", registry.output)
        await self.assertFailure(self.clientOf("local", key).account.getLimits(), AuthenticationFailed)
        listed = await self.users("list")
        self.assertEqual(listed.output, "")
        self.assertIn("There are no users", listed.errors)
        # Who is added then gets in at once, and gets nothing of what the other one had.
        added = await self.users("add", "local")
        self.assertIn("tenant 2", added.errors)
        await self.clientOf("local", self.key(added, "local")).account.getLimits()


class BesideARegistryTests(UsersCase):
    """While the registry runs."""

    async def token(self, client: Client) -> str:
        """An auth token for this client's credentials, as any program gets it."""
        settings = client.settings
        key = {"username": settings.username, "apiKey": settings.apiKey}
        response = await treq.post(
            f"{settings.authUrls[0]}/tokens", json={"auth": {"RAX-KSKEY:apiKeyCredentials": key}}, persistent=False
        )
        token: str = (await treq.json_content(response))["access"]["token"]["id"]
        return token

    async def code(self, client: Client, token: str) -> int:
        """What a request with this auth token is answered."""
        response = await treq.get(
            f"{client.settings.baseUrls[0]}/1/limits", headers={"X-Auth-Token": token}, persistent=False
        )
        await treq.content(response)
        return int(response.code)

    async def dies(self, token: str, client: Client, since: float) -> None:
        """The auth token counts no longer: no request that is sent more than a second later is answered with it."""
        while True:
            sent = reactor.seconds()
            code = await self.code(client, token)
            if code == 401:
                return
            self.assertEqual(code, 200)
            self.assertTrue(sent - since < A_SECOND + SLACK, f"the token counts after {sent - since:.1f} s")

    async def test_anAddedUserGetsInAtOnce(self) -> None:
        """A user who is added while the registry runs has a tenant of their own, and nothing of anybody else's."""
        await self.registry()
        await self.client().configuration.set("abc", "of the first user")
        joe = self.clientOf("joe", self.key(await self.users("add", "joe"), "joe"))
        self.assertEqual((await joe.configuration.list())["values"], [])

    async def test_rotateEndsKeyAndTokensWithinASecond(self) -> None:
        """The old token and the old key are refused, the new key is taken, and the raxrc does not go stale."""
        await self.registry()
        client = self.client()
        await client.account.getLimits()
        old = self.raxrc()
        token = await self.token(client)
        rotated = await self.users("rotate", "local")
        since = reactor.seconds()
        key = self.key(rotated, "local")
        self.assertIn("raxrc has it too", rotated.errors)
        self.assertEqual(self.raxrc(), {"username": "local", "api_key": key})
        await self.dies(token, client, since)
        await self.assertFailure(self.clientOf("local", old["api_key"]).account.getLimits(), AuthenticationFailed)
        await self.clientOf("local", key).account.getLimits()
        await self.client().account.getLimits()

    async def test_whoHasTheKeyFromTheRaxrcGoesOn(self) -> None:
        """
        Services whose key is rotated again and again stay registered, and are beaten on without a gap: so many that
        the registry would take its time to refuse each an old key.
        """
        await self.registry()
        clients = {f"web{number}": self.client() for number in range(10)}
        for serviceId, client in clients.items():
            service = RegisteredService(client, serviceId, 3)
            service.startService()
            self.addCleanup(service.stopService)
            await service.whenRegistered()
        for _ in range(3):
            await self.users("rotate", "local")
            other = self.client()
            seen = {service["id"]: service["last_seen"] async for service in other.services.iterate()}

            async def beatenWithTheNewKey(other: Client = other, seen: dict[str, object] = seen) -> bool:
                now = {service["id"]: service["last_seen"] async for service in other.services.iterate()}
                keys = {client.settings.apiKey for client in clients.values()}
                return keys == {other.settings.apiKey} and all(now[each] != seen[each] for each in clients)

            await self.until(beatenWithTheNewKey)
        types = {event["type"] async for event in self.client().events.iterate()}
        self.assertEqual(types, {"service.join"})

    async def test_removeEndsKeyAndTokensWithinASecond(self) -> None:
        """So does removing; the raxrc loses the credentials that no longer count, and keeps the registry's URL."""
        await self.registry()
        await self.users("add", "joe")
        client = self.client()
        old = self.raxrc()
        token = await self.token(client)
        removed = await self.users("remove", "local")
        since = reactor.seconds()
        self.assertIn("What tenant 1 has stays", removed.errors)
        self.assertNotIn("last user", removed.errors)
        self.assertEqual(self.raxrc(), {})
        await self.dies(token, client, since)
        await self.assertFailure(self.clientOf("local", old["api_key"]).account.getLimits(), AuthenticationFailed)

    async def test_aKeyThatCantBeWritten(self) -> None:
        """A key that can't be shown changes nothing: the old key goes on to count, and nobody is added."""
        await self.registry()
        before = self.raxrc()
        for streams, reason in ((INTO_A_FULL_FILE, "No space left on device"), (INTO_NOTHING, "it is closed")):
            for action, name in (("add", "joe"), ("rotate", "local")):
                program = self.spawn("python", "-c", streams + PROGRAM, "--data-dir", self.dataDir, action, name)
                await program.ended
                self.assertEqual((program.exitCode, program.output), (1, ""))
                (line,) = program.errors.splitlines()
                self.assertIn(f"{reason}. The user has not been changed", line)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()
        self.assertEqual([line.split()[0] for line in (await self.users("list")).output.splitlines()[1:]], ["local"])

    async def test_aDiskThatIsFullShowsNoKey(self) -> None:
        """A file that takes no more is found before the key is stored, not only when it is closed."""
        await self.registry()
        before = self.raxrc()
        program = self.spawn(
            "python", "-c", INTO_A_LIMITED_FILE + PROGRAM, "--data-dir", self.dataDir, "rotate", "local"
        )
        await program.ended
        self.assertEqual(program.exitCode, 1, program.errors)
        self.assertIn("The user has not been changed", program.errors)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()

    async def test_aPipeThatNobodyReadsShowsNoKey(self) -> None:
        """Nor is a key stored that went to a reader who had gone."""
        await self.registry()
        program = self.spawn(
            "python", "-c", INTO_A_BROKEN_PIPE + PROGRAM, "--data-dir", self.dataDir, "rotate", "local"
        )
        await program.ended
        self.assertEqual(program.exitCode, 1, program.errors)
        self.assertIn("Broken pipe. The user has not been changed", program.errors)
        await self.client().account.getLimits()

    async def test_aKeyThatCantBeStored(self) -> None:
        """A key that was shown, and could not be stored, is said to be of no use; the old one goes on to count."""
        await self.registry()
        before = self.raxrc()
        await self.client().account.getLimits()
        other = sqlite3.connect(os.path.join(self.dataDir, "registry.sqlite"), isolation_level=None)
        self.addCleanup(other.close)
        # For as long as it lasts, nobody else can write.
        other.execute("BEGIN IMMEDIATE")
        program = self.spawn(
            "python", "-m", "txserviceregistry.commands.users", "--data-dir", self.dataDir, "rotate", "local"
        )
        await program.ended
        other.execute("ROLLBACK")
        self.assertEqual(program.exitCode, 1)
        self.assertIn('the API key of user "local" that was printed is not valid', program.errors)
        self.assertEqual(self.raxrc(), before)
        await self.client().account.getLimits()

    async def test_nothingIsMadeForAKeyThatCantBeWritten(self) -> None:
        """Not even the store of a registry that there is not yet, which would let nobody in."""
        program = self.spawn("python", "-c", INTO_NOTHING + PROGRAM, "--data-dir", self.dataDir, "add", "joe")
        await program.ended
        self.assertEqual(program.exitCode, 1)
        self.assertFalse(os.path.exists(self.dataDir))

    async def test_otherOutputThatCantBeWritten(self) -> None:
        """What can't be listed, or helped with, is an error of one line; what writes nothing needs no output."""
        await self.users("add", "joe")
        for streams in (INTO_A_FULL_FILE, INTO_NOTHING):
            for words in (["list"], ["--help"], ["--version"]):
                program = self.spawn("python", "-c", streams + PROGRAM, "--data-dir", self.dataDir, *words)
                await program.ended
                self.assertEqual((program.exitCode, len(program.errors.splitlines())), (1, 1), (words, program.errors))
                self.assertIn("can't write the output", program.errors)
        program = self.spawn("python", "-c", INTO_NOTHING + PROGRAM, "--data-dir", self.dataDir, "remove", "joe")
        await program.ended
        self.assertEqual(program.exitCode, 0, program.errors)

    async def test_withoutStandardErrors(self) -> None:
        """Without stderr and stdin all is done, and shown, and no file gets their numbers."""
        for streams in (WITHOUT_OTHERS, ERRORS_INTO_A_FULL_FILE):
            program = self.spawn(
                "python", "-c", streams + PROGRAM, "--data-dir", self.dataDir, "add", f"joe{len(streams)}"
            )
            await program.ended
            self.assertEqual(program.exitCode, 0)
            self.assertRegex(program.output, "RAXSR_API_KEY=[0-9a-f]{40}\n$")
        self.assertEqual(len((await self.users("list")).output.splitlines()), 3)

    async def test_anotherUsersKeyLeavesTheRaxrcAlone(self) -> None:
        """What is done to users whose credentials are not in the raxrc does not change it."""
        await self.registry()
        await self.users("add", "joe")
        before = Path(self.dataDir, "raxrc").read_bytes()
        for action in ("rotate", "remove"):
            self.assertNotIn("raxrc has", (await self.users(action, "joe")).errors)
        self.assertEqual(Path(self.dataDir, "raxrc").read_bytes(), before)

    async def test_aRegistryInMemoryHasNoOtherUsers(self) -> None:
        """Over the folder of a registry that keeps nothing there, it says so, and makes no store."""
        await self.registry("--store", "memory")
        for arguments in (["list"], ["add", "joe"]):
            self.assertIn("keeps its users in memory", await self.refused(*arguments))
        self.assertFalse(os.path.exists(os.path.join(self.dataDir, "registry.sqlite")))


class OverEtcdTests(UsersCase):
    """Users in etcd, on a machine that has a data directory too."""

    def setUp(self) -> None:
        super().setUp()
        self.prefix = newPrefix()
        self.etcd = ("--store", "etcd", "--etcd", sharedEtcd(), "--etcd-prefix", self.prefix)

    async def test_messagesNameTheEtcd(self) -> None:
        """It is there that users are or are not, and not in a folder."""
        listed = await self.users("list", *self.etcd)
        self.assertIn(f"There are no users in etcd below {self.prefix}", listed.errors)
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
        await self.registry(*self.etcd)
        name = self.raxrc()["username"]
        rotated = await self.users("rotate", name, *self.etcd)
        self.assertEqual(self.raxrc()["api_key"], self.key(rotated, name))
        await self.users("remove", name, *self.etcd)
        self.assertEqual(self.raxrc(), {})

    async def test_anEtcdWithoutItsStoreIsRefused(self) -> None:
        """Who names an etcd and forgets --store does not get another store without a word."""
        said = await self.refused("list", "--etcd", "http://h1:2379", code=2)
        self.assertIn("--etcd goes with --store etcd", said)
