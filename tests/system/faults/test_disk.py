"""Row 7: a disk under sqlite that is full, or can't be written."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from typing import Any

from .storecase import StoreFaultCase, run


class DiskTests(StoreFaultCase):
    """
    The registry's data directory lies on a small disk of its own. An application has services, and puts a load of
    writes on the registry, many of which become one commit.
    """

    row = 7
    fault = "SQLite's disk is full, read-only or refuses writes; the registry is killed meanwhile"

    async def test_full(self) -> None:
        """A disk that is full while groups of writes are under way: 503, and over when there is room."""
        self.mount()
        _, application = await self.begin()
        rounds = 10 if self.isFull else 1
        for _ in range(rounds):
            self.fill()
            await self.trouble(application)
            self.free()
            await self.recovers(application)
        await self.end(application, "full disk", rounds)

    async def test_killedWhileFull(self) -> None:
        """A registry that is killed while the disk is full, or stopped, has all that it acknowledged."""
        self.mount()
        registry, application = await self.begin()
        rounds = 10 if self.isFull else 2
        startedWhileFull = 0
        for number in range(rounds):
            self.fill()
            await self.trouble(application)
            # One that is stopped tries to put its log into the file, which has no room for it.
            registry.kill("KILL" if number % 2 else "TERM")
            await registry.ended
            # Over a full disk it either starts, or says why not in one line.
            registry = self.twistd("service-registry", "--listen", f"tcp:{self.port}:interface=127.0.0.1")
            try:
                await registry.says("Credentials")
            except AssertionError:
                self.assertEqual(registry.exitCode, 1)
                self.assertEqual(len(registry.errors.splitlines()), 1, registry.errors)
                self.free()
                registry = await self.registry()
            else:
                startedWhileFull += 1
                self.free()
            await self.recovers(application)
        await self.end(application, "killed or stopped on a full disk", rounds)
        self.tell("starts over a full disk that served reads", f"{startedWhileFull} of {rounds}")

    async def test_readOnly(self) -> None:
        """A disk that becomes read-only when it is full, and is that for a while, even after there is room again."""
        self.mount()
        _, application = await self.begin()
        rounds = 5 if self.isFull else 1
        for _ in range(rounds):
            self.fill()
            await self.trouble(application)
            # The kernel makes no file system read-only while a file on it is open for writing; but this process can be
            # shown another mount of it, which is.
            folder = os.open(self.dataDir, os.O_RDONLY)
            try:
                self.assertEqual(run("mount", "--bind", "-o", "ro", self.dataDir, self.dataDir), 0)
                try:
                    # Files that the registry opened before can still be written; from this refusal on, no others can.
                    await self.until(self.isRefused, 0.01)
                    os.unlink(self.ballast.name, dir_fd=folder)
                    await self.trouble(application)
                finally:
                    run("umount", "--lazy", self.dataDir)
            finally:
                os.close(folder)
            await self.recovers(application)
        await self.end(application, "read-only disk", rounds)

    async def test_startsOverNone(self) -> None:
        """A first start on a full or a read-only disk says so in one line, and leaves nothing half-made."""
        self.mount()
        steps: list[tuple[Callable[[], object], Callable[[], object], str]] = [
            (self.fill, self.free, "No space left"),
            (
                lambda: run("mount", "-o", "remount,ro", self.dataDir),
                lambda: run("mount", "-o", "remount,rw", self.dataDir),
                "Read-only",
            ),
        ]
        for begin, end, word in steps:
            begin()
            registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1")
            await registry.ended
            end()
            self.assertEqual(registry.exitCode, 1)
            (line,) = registry.errors.splitlines()
            self.assertIn(self.dataDir, line)
            self.assertTrue(word in line or "full" in line, line)
        await self.begin()

    async def test_refusesWrites(self) -> None:
        """A disk that takes no write at all, to whatever file: 503, and over when it does."""
        registry, application = await self.begin()
        transport: Any = registry.transport
        before = resource.prlimit(transport.pid, resource.RLIMIT_FSIZE)
        rounds = 10 if self.isFull else 1
        for _ in range(rounds):
            resource.prlimit(transport.pid, resource.RLIMIT_FSIZE, (0, before[1]))
            # SQLite can't open the file then: it would have to write the index of its log.
            await self.trouble(application, reads=False)
            resource.prlimit(transport.pid, resource.RLIMIT_FSIZE, before)
            await self.recovers(application)
        await self.end(application, "every write refused", rounds)
