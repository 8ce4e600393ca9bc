"""``raxsr locks``."""

from __future__ import annotations

import json

from .raxsrcase import RaxsrTestCase


class LocksTests(RaxsrTestCase):
    """Locks from the command line."""

    async def test_listAndGet(self) -> None:
        """The locks that are held, and one of them."""
        client, name = self.client(), f"/{self.prefix}/scheduler"
        lock = await client.locks.acquire(name, 120, holder="host1/4711", metadata={"zone": "b"})
        ended = await self.good("locks", "list", "--all", "-f", "json")
        (shown,) = [each for each in json.loads(ended.out) if each["name"] == name]
        self.assertEqual((shown["holder"], shown["fence"], shown["timeout"]), ("host1/4711", lock["fence"], 120))
        ended = await self.good("locks", "get", name, "-f", "json")
        self.assertEqual(json.loads(ended.out), shown)
        ended = await self.good("locks", "get", name)
        self.assertIn("| Holder      | host1/4711", ended.out)
        self.assertNotIn(lock["token"], ended.out)

    async def test_release(self) -> None:
        """A lock is released by its token, and by no other one."""
        client, name = self.client(), f"/{self.prefix}/scheduler"
        token = (await client.locks.acquire(name, 120))["token"]
        other = (await client.locks.acquire(f"{name}-2", 120))["token"]
        ended = await self.raxsr("locks", "release", name, "--token", other)
        self.assertEqual((ended.code, ended.err), (1, f'raxsr: the token does not belong to the lock "{name}"\n'))
        ended = await self.good("locks", "release", name, "--token", token)
        self.assertEqual(ended.out, f'Lock "{name}" has been released\n')
        ended = await self.raxsr("locks", "release", name, "--token", token)
        self.assertEqual((ended.code, ended.err), (1, f'raxsr: there is no lock "{name}"\n'))

    async def test_force(self) -> None:
        """Another's lock is ended, at once only with --now."""
        client, name = self.client(), f"/{self.prefix}/scheduler"
        await client.locks.acquire(name, 120)
        ended = await self.good("locks", "release", name, "--force")
        self.assertEqual(ended.out, f'Lock "{name}" takes no more heartbeats: it is free when its timeout has passed\n')
        self.assertEqual((await client.locks.get(name))["name"], name)
        ended = await self.good("locks", "release", name, "--force", "--now")
        self.assertEqual(ended.out, f'Lock "{name}" has been released\n')
        for words in (["get", name], ["release", name, "--force"]):
            ended = await self.raxsr("locks", *words)
            self.assertEqual((ended.code, ended.err), (1, f'raxsr: there is no lock "{name}"\n'))

    async def test_usage(self) -> None:
        """Wrong combinations of options are usage errors."""
        for options in ([], ["--now", "--token", "x"], ["--force", "--token", "x"]):
            ended = await self.raxsr("locks", "release", "/a/name", *options)
            self.assertEqual(ended.code, 2, ended.err)

    async def test_aCommandWhileTheLockIsHeld(self) -> None:
        """While another holds the lock, nothing is run, and the exit code is 75."""
        name = f"/{self.prefix}/report"
        await self.client().locks.acquire(name, 30, holder="another")
        for how in (["--nonblock"], ["--wait", "0.1"]):
            said = await self.refused("lock", name, *how, "--", "echo", "ran", code=75)
            self.assertEqual(said, f'raxsr: the lock "{name}" is held by another. The command was not run\n')

    async def test_aRegistryThatIsNotThere(self) -> None:
        """A wait for a lock says why it goes on, as it could go on without end."""
        words = ["--wait", "0.5", "--api-url", "http://127.0.0.1:9/v1.0", "--", "true"]
        ended = await self.raxsr("lock", f"/{self.prefix}/report", *words)
        self.assertEqual((ended.out, ended.code), ("", 1))
        self.assertRegex(ended.err, r"^raxsr: Lock .* can't be requested: .*connection refused.* \(retrying\)\n")

    async def test_aCommandThatCantBeRun(self) -> None:
        """Wrong options, and a command that does not exist, have the usual exit codes."""
        said = await self.refused("lock", "/a/b", "--timeout", "2", "--", "true", code=2)
        self.assertIn("--timeout: '2' is not a whole number from 3 to 120", said)
        for words, code in (([], 2), (["--", "no-such-command"], 127)):
            await self.refused("lock", f"/{self.prefix}/report", *words, code=code)
        for wait in ("inf", "nan", "-1", "1e9", "soon"):
            error = await self.refused("lock", f"/{self.prefix}/report", f"--wait={wait}", "--", "true", code=2)
            self.assertIn(f"--wait: '{wait}' is not a duration", error)
