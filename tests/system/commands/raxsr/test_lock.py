"""``raxsr lock``, as installed, beside a real registry."""

from __future__ import annotations

import sys

from twisted.internet.defer import Deferred

from tests.system.commands.raxsr.raxsrcase import RaxsrProcessTestCase


class LockTests(RaxsrProcessTestCase):
    """A command that runs while raxsr holds a lock."""

    async def test_runsWithTheLock(self) -> None:
        """The command has the fence and the streams, and its exit code is that of raxsr. Then the lock is free."""
        name = f"/{self.prefix}/report"
        code = "import os, sys; print(sys.stdin.read(), int(os.environ['SERVICE_REGISTRY_FENCE']) > 0); sys.exit(7)"
        run = ("lock", name, "--nonblock", "--")
        for _ in range(2):
            ended = await self.raxsr(*run, sys.executable, "-c", code, stdin=b"typed")
            self.assertEqual((ended.out, ended.err, ended.code), ("typed True\n", "", 7))
        ended = await self.raxsr(*run, "sh", "-c", "kill -9 $$")
        self.assertEqual(ended.code, 137)

    async def isHeld(self, name: str) -> bool:
        page = await self.client().locks.list(name)
        return any(lock["name"] == name for lock in page["values"])

    async def test_aLostLockEndsTheCommand(self) -> None:
        """When the lock is lost, a command that ignores SIGTERM is killed, and the exit code is 1."""
        name = f"/{self.prefix}/report"
        script = "trap '' TERM; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1; done"
        running = Deferred.fromCoroutine(self.raxsr("lock", name, "--timeout", "3", "--", "sh", "-c", script))
        await self.until(lambda: self.isHeld(name))
        await self.client().locks.forceRelease(name, now=True)
        ended = await running
        self.assertEqual(ended.code, 1, ended.err)
        self.assertIn(f'the lock "{name}" was lost', ended.err)
