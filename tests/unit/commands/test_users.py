"""``service-registry-users``, in this process, over the data directory of a registry that is there or not."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import treq
from twisted.internet import reactor as globalReactor
from twisted.internet.defer import fail
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests import CHEAP
from tests.inprocess import Ended, runScript, withoutSettings
from txserviceregistry import Client, RegisteredService
from txserviceregistry.commands.users import main
from txserviceregistry.errors import AuthenticationFailed, Forbidden
from txserviceregistry.registry.datadir import DataDirectory, DataDirectoryError
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.registry.stores.interfaces import StoreUnavailable
from txserviceregistry.registry.stores.sqlite.store import SqliteStore
from txserviceregistry.settings import readSettings

reactor: Any = globalReactor
ANY_PORT = "tcp:0:interface=127.0.0.1"
# The registry's promise, and the time that its clients' requests may take on a busy machine.
A_SECOND = 1.0
SLACK = 1.0


class Users(TestCase):
    """
    An operator's commands, and their effects.

    :ivar home: a folder that is empty at first.
    :ivar dataDir: where the registry has its data, or will have it.
    """

    home: str
    dataDir: str

    async def ran(self, words: Sequence[str], dataDir: str) -> Ended:
        """Run the program to its end."""
        raise NotImplementedError

    async def users(self, *words: str, code: int = 0, dataDir: str | None = None) -> Ended:
        """Run the program to its end, which is this exit code."""
        ended = await self.ran(words, dataDir or self.dataDir)
        self.assertEqual(ended.code, code, ended.out + ended.err)
        self.assertNotIn("Traceback", ended.out + ended.err)
        return ended

    async def refused(self, *arguments: str, code: int = 1, dataDir: str | None = None) -> str:
        """Run the program, which fails with one line; that line."""
        ended = await self.users(*arguments, code=code, dataDir=dataDir)
        self.assertEqual(ended.out, "")
        (line,) = ended.err.splitlines()
        self.assertTrue(line.startswith("service-registry-users: "), line)
        return line

    def key(self, ended: Ended, name: str) -> str:
        """The API key that has been printed, in the two lines that programs take their credentials from."""
        found = re.fullmatch(r"RAXSR_USERNAME=(\S+)\nRAXSR_API_KEY=([0-9a-f]{40})\n", ended.out)
        assert found is not None, ended.out
        self.assertEqual(found[1], name)
        self.assertNotIn(found[2], ended.err)
        return found[2]

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


class UsersCase(Users):
    """The program in this process, and a registry here if a test wants one."""

    timeout = 120

    def setUp(self) -> None:
        # Not below the project, which may be another user's.
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        self.dataDir = os.path.join(self.home, "data")

    async def ran(self, words: Sequence[str], dataDir: str) -> Ended:
        """See :class:`Users`."""
        environment = {**withoutSettings(), "HOME": self.home}
        return await runScript(main, "--data-dir", dataDir, *words, environment=environment, folder=self.home)

    async def intoAFullFile(self, *words: str) -> str:
        """Run the program, whose output can't be written, and which fails with one line; that line."""
        environment = {**withoutSettings(), "HOME": self.home}
        arguments = ("--data-dir", self.dataDir, *words)
        ended = await runScript(main, *arguments, environment=environment, folder=self.home, stdout="/dev/full")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (1, 1), (words, ended.err))
        return ended.err

    async def registry(self, store: Any = "sqlite") -> RegistryService:
        """Start a registry."""
        registry = RegistryService(reactor, dataDir=self.dataDir, store=store, endpoints=[ANY_PORT], keyCost=CHEAP)
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()
        return registry

    def client(self) -> Client:
        """A client with the credentials of the data directory."""
        client = Client(
            reactor=reactor, settings=readSettings(environ={"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        )
        self.addCleanup(client.close)
        return client

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Ask until *condition* is true."""
        while not await condition():
            await deferLater(reactor, 0.2)


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
        self.assertIn("There was no registry", added.err)
        self.assertEqual(os.stat(self.dataDir).st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(os.path.join(self.dataDir, "registry.sqlite")).st_mode & 0o777, 0o600)

    async def test_listShowsNamesAndTenants(self) -> None:
        """``list`` shows users, their tenants and roles, and no keys."""
        keys = [self.key(await self.users("add", "joe"), "joe")]
        keys.append(self.key(await self.users("add", "ann", "--tenant", "77"), "ann"))
        keys.append(self.key(await self.users("add", "jim@example.com"), "jim@example.com"))
        listed = await self.users("list")
        self.assertEqual(
            [line.split() for line in listed.out.splitlines()],
            [
                ["name", "tenant", "role"],
                ["ann", "77", "write"],
                ["jim@example.com", "2", "write"],
                ["joe", "1", "write"],
            ],
        )
        for key in keys:
            self.assertNotIn(key, listed.out + listed.err)

    async def test_refusals(self) -> None:
        """A failure is one line and exit code 1, wrong usage one line and 2."""
        await self.users("add", "joe")
        self.assertIn('the user "joe" already exists', await self.refused("add", "joe"))
        self.assertIn('there is no user "ann"', await self.refused("remove", "ann"))
        self.assertIn('there is no user "ann"', await self.refused("rotate", "ann"))
        self.assertIn('there is no user "ann"', await self.refused("update", "ann", "--role", "read"))
        for arguments in (
            ["add", "a b"],
            ["add", "ann", "--tenant", "0"],
            ["add", "ann", "--tenant", "many"],
            ["add", "ann", "--role", "admin"],
            ["add", "ann", "--role", "read", "--services", "web-"],
            ["add", "ann", "--services", "/web"],
            ["add", "ann", "--configuration", "a b"],
            ["add", "ann", "--locks", "*"],
            ["update", "joe"],
            ["update", "joe", "--services", "web-"],
            ["update", "joe", "--role", "read", "--locks", "/a"],
            ["update", "joe", "--role", "read", "--tenant", "1"],
            ["remove", "joe", "--role", "read"],
            ["add"],
            [],
            ["drop"],
            ["list", "joe"],
            ["--what"],
        ):
            await self.refused(*arguments, code=2)
        self.assertEqual(len((await self.users("list")).out.splitlines()), 2)

    async def test_invalidDataDirectories(self) -> None:
        """A path that is a file, and a file that is not a database, are errors in one line, and do not change."""
        file = Path(self.home, "file")
        file.write_text("text")
        await self.refused("add", "joe", dataDir=str(file))
        folder = Path(self.home, "folder")
        folder.mkdir()
        Path(folder, "registry.sqlite").write_text("this is not a database")
        for arguments in (["list"], ["add", "joe"]):
            self.assertIn("registry.sqlite", await self.refused(*arguments, dataDir=str(folder)))
        self.assertEqual(Path(folder, "registry.sqlite").read_text(), "this is not a database")
        self.assertIn("the value is empty", await self.refused("--data-dir", "", "list", code=2))
        self.assertIn(f"no registry in {self.home}/none;", await self.refused("list", dataDir="~/none"))

    async def test_outputThatCantBeWritten(self) -> None:
        """Nothing is made for a key that can't be shown; what can't be listed, or helped with, is an error."""
        self.assertIn("No space left on device. The user was not changed", await self.intoAFullFile("add", "joe"))
        self.assertFalse(os.path.exists(self.dataDir))
        await self.users("add", "joe")
        for words in (["list"], ["--help"], ["--version"]):
            self.assertIn("can't write the output: No space left on device", await self.intoAFullFile(*words))

    async def test_anEtcdWithoutItsStoreIsRefused(self) -> None:
        """Options of etcd without --store etcd are an error, and no other store is used."""
        said = await self.refused("list", "--etcd", "http://h1:2379", code=2)
        self.assertIn("--etcd requires --store etcd", said)

    async def test_theFirstStartMakesNoOtherUser(self) -> None:
        """A registry that finds users at its first start lets them in, and its raxrc has no credentials."""
        key = self.key(await self.users("add", "joe"), "joe")
        registry = await self.registry()
        self.assertFalse(registry.hasCredentials)
        self.assertEqual(self.raxrc(), {})
        await self.clientOf("joe", key).account.getLimits()
        self.assertEqual(len((await self.users("list")).out.splitlines()), 2)

    async def test_theLastUser(self) -> None:
        """The last user's credentials leave the raxrc, and no start of the registry makes that user or another."""
        first = await self.registry()
        client = self.client()
        await client.configuration.set("abc", "of the first user")
        await client.close()
        key = self.raxrc()["api_key"]
        await first.stopService()
        removed = await self.users("remove", "local")
        self.assertIn(f"The credentials in {os.path.join(self.dataDir, 'raxrc')} were removed", removed.err)
        self.assertIn("It was the last user", removed.err)
        self.assertEqual(self.raxrc(), {})
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        await self.registry()
        self.assertIn("No users exist; all requests will be rejected", "\n".join(lines))
        await self.assertFailure(self.clientOf("local", key).account.getLimits(), AuthenticationFailed)
        listed = await self.users("list")
        self.assertEqual(listed.out, "")
        self.assertIn("No users exist", listed.err)
        # A user who is added then gets in at once, and gets nothing of the other one's data.
        added = await self.users("add", "local")
        self.assertIn("tenant 2", added.err)
        await self.clientOf("local", self.key(added, "local")).account.getLimits()

    async def test_aRaxrcThatCantBeWritten(self) -> None:
        """A user whose key can't be removed from it is kept; a new key that can't be written to it is valid."""
        await (await self.registry()).stopService()
        before, failure = self.raxrc(), DataDirectoryError("can't write raxrc: No space left on device")
        with mock.patch.object(DataDirectory, "keepCredentials", side_effect=failure):
            await self.refused("remove", "local")
            self.assertIn("\nlocal ", (await self.users("list")).out)
            rotated = await self.users("rotate", "local", code=1)
        self.assertIn("No space left", rotated.err)
        self.assertIn('User "local" has a new API key', rotated.err)
        await self.registry()
        await self.clientOf("local", self.key(rotated, "local")).account.getLimits()
        self.assertEqual(self.raxrc(), before)

    async def test_aStoreThatCantBeWritten(self) -> None:
        """A user who can't be removed stays in the raxrc."""
        await (await self.registry()).stopService()
        before, failure = self.raxrc(), StoreUnavailable("the store can't be written: disk full")
        with mock.patch.object(SqliteStore, "removeUser", lambda *_: fail(failure)):
            await self.refused("remove", "local")
        self.assertEqual(self.raxrc(), before)

    async def test_helpHasExamples(self) -> None:
        """``--help`` shows how it is used."""
        shown = await self.users("--help")
        for text in ("examples:", "add joe", "--tenant", "rotate", "--data-dir"):
            self.assertIn(text, shown.out)


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
        """The response to a request with this auth token."""
        response = await treq.get(
            f"{client.settings.baseUrls[0]}/1/limits", headers={"X-Auth-Token": token}, persistent=False
        )
        await treq.content(response)
        return int(response.code)

    async def becomesInvalid(self, token: str, client: Client, since: float) -> None:
        """The auth token is refused: a second later at the latest."""
        while True:
            sent = reactor.seconds()
            code = await self.code(client, token)
            if code == 401:
                return
            self.assertEqual(code, 200)
            await deferLater(reactor, 0.05)
            self.assertTrue(sent - since < A_SECOND + SLACK, f"the token is valid after {sent - since:.1f} s")

    async def test_anAddedUserGetsInAtOnce(self) -> None:
        """A user who is added while the registry runs has a tenant of their own, and nothing of anybody else's."""
        await self.registry()
        await self.client().configuration.set("abc", "of the first user")
        joe = self.clientOf("joe", self.key(await self.users("add", "joe"), "joe"))
        self.assertEqual((await joe.configuration.list())["values"], [])

    async def test_roles(self) -> None:
        """
        ``add`` gives a role, ``update`` replaces it, while the registry runs, and ``list`` shows it as options. The key
        and the tokens stay valid, and ``rotate`` leaves the role.
        """
        await self.registry()
        words = ("--services", "web-", "--services", "db", "--configuration", "/production/web", "--locks", "")
        added = await self.users("add", "joe", "--tenant", "1", "--role", "write", *words)
        key = self.key(added, "joe")
        joe = self.clientOf("joe", key)
        await joe.configuration.set("/production/web/port", "1")
        with self.assertRaises(Forbidden) as refused:
            await joe.configuration.set("/production/website", "1")
        self.assertIn('services that begin with "web-", "db"', str(refused.exception))
        shown = "write --services web- --services db --configuration /production/web --locks ''"
        self.assertEqual(await self.roles(), {"local": "write", "joe": shown})
        self.assertIn(
            "the role read. It counts within a second", (await self.users("update", "joe", "--role", "read")).err
        )
        since = reactor.seconds()
        while True:
            sent = reactor.seconds()
            try:
                await joe.configuration.set("/production/web/port", "2")
            except Forbidden:
                break
            await deferLater(reactor, 0.05)
            self.assertTrue(sent - since < A_SECOND + SLACK, f"the role counts for {sent - since:.1f} s")
        self.assertEqual((await joe.configuration.get("/production/web/port"))["id"], "/production/web/port")
        await self.users("rotate", "joe")
        self.assertEqual(await self.roles(), {"local": "write", "joe": "read"})

    async def roles(self) -> dict[str, str]:
        """What ``list`` shows of the roles of users, by name."""
        lines = [line.split(None, 2) for line in (await self.users("list")).out.splitlines()[1:]]
        return {name: role for name, _, role in lines}

    async def test_aKeyThatCantBeShown(self) -> None:
        """The old key stays valid, and no user is added."""
        await self.registry()
        before = self.raxrc()
        for words in (("add", "joe"), ("rotate", "local")):
            self.assertIn("No space left on device. The user was not changed", await self.intoAFullFile(*words))
        self.assertEqual(self.raxrc(), before)
        await self.clientOf("local", before["api_key"]).account.getLimits()
        self.assertEqual([line.split()[0] for line in (await self.users("list")).out.splitlines()[1:]], ["local"])

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
        self.assertIn("raxrc has the new key", rotated.err)
        self.assertEqual(self.raxrc(), {"username": "local", "api_key": key})
        await self.becomesInvalid(token, client, since)
        await self.assertFailure(self.clientOf("local", old["api_key"]).account.getLimits(), AuthenticationFailed)
        await self.clientOf("local", key).account.getLimits()
        await self.client().account.getLimits()

    async def test_whoHasTheKeyFromTheRaxrcGoesOn(self) -> None:
        """
        Services whose key is rotated again and again stay registered, without a gap in their heartbeats: so many that
        the registry would take its time to refuse each an old key.
        """
        await self.registry()
        clients = {f"web{number}": self.client() for number in range(10)}
        for serviceId, client in clients.items():
            service = RegisteredService(client, serviceId, 8)
            service.startService()
            self.addCleanup(service.stopService)
            await service.whenRegistered()
        for _ in range(2):
            await self.users("rotate", "local")
            other = self.client()
            seen = {service["id"]: service["last_seen"] async for service in other.services.iterate()}

            async def heartbeatsWithTheNewKey(other: Client = other, seen: dict[str, object] = seen) -> bool:
                now = {service["id"]: service["last_seen"] async for service in other.services.iterate()}
                keys = {client.settings.apiKey for client in clients.values()}
                return keys == {other.settings.apiKey} and all(now[each] != seen[each] for each in clients)

            await self.until(heartbeatsWithTheNewKey)
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
        self.assertIn("The data of tenant 1 is unchanged", removed.err)
        self.assertNotIn("last user", removed.err)
        self.assertEqual(self.raxrc(), {})
        await self.becomesInvalid(token, client, since)
        await self.assertFailure(self.clientOf("local", old["api_key"]).account.getLimits(), AuthenticationFailed)

    async def test_anotherUsersKeyLeavesTheRaxrcAlone(self) -> None:
        """A change of users whose credentials are not in the raxrc does not change it."""
        await self.registry()
        await self.users("add", "joe")
        before = Path(self.dataDir, "raxrc").read_bytes()
        for action in ("rotate", "remove"):
            self.assertNotIn(self.dataDir, (await self.users(action, "joe")).err)
        self.assertEqual(Path(self.dataDir, "raxrc").read_bytes(), before)

    async def test_aRegistryWithAnotherStore(self) -> None:
        """Over the folder of a registry that keeps nothing there, it says what to do, and makes no store."""
        await self.registry("memory")
        for arguments in (["list"], ["add", "joe"]):
            said = await self.refused(*arguments)
            self.assertIn(
                "has no sqlite store: over etcd, use --store etcd with --etcd; the users of a memory store", said
            )
        self.assertFalse(os.path.exists(os.path.join(self.dataDir, "registry.sqlite")))
