"""
The common parts of the rows in which the registry can't write to its sqlite store for a while.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import treq
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest

from tests.needs import SENTENCE
from tests.system.processes import Child, reactor
from txserviceregistry.errors import ServerError

from .faultcase import FaultCase
from .journal import Application, Outcome

__all__ = ["StoreFaultCase", "run"]

_SIZE = "16m"


def run(*command: str) -> int:
    """Run a command to its end; its exit code."""
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


class StoreFaultCase(FaultCase):
    """
    An application has services, and puts a load of writes on the registry, many of which become one commit.
    """

    def setUp(self) -> None:
        super().setUp()
        self.ballast = Path(self.dataDir, "ballast")
        self.refused = 0
        self.acknowledged = 0
        self.longest = 0.0

    def mount(self) -> None:
        """Put a disk of 16 MB under the data directory."""
        os.makedirs(self.dataDir)
        # Only root (with CAP_SYS_ADMIN, in a container) may mount a small disk.
        if run("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=700", "tmpfs", self.dataDir):
            raise SkipTest(SENTENCE)
        self.addCleanup(run, "umount", "--lazy", self.dataDir)
        # Cleanups are run in the opposite order: first the processes end.
        self.addCleanup(self._endAll)

    def fill(self) -> None:
        """Use up all of the disk, to the last byte."""
        with self.ballast.open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                while True:
                    try:
                        file.write(b"x" * size)
                    except OSError as error:
                        self.assertEqual(error.errno, errno.ENOSPC)
                        break

    def free(self) -> None:
        self.ballast.unlink()

    async def begin(self) -> tuple[Child, Application]:
        registry = await self.registry()
        pace = 0.005 if self.isFull else 0.02
        load = "--services=5", "--writers=6", "--creators=2", f"--pace={pace}"
        application = await self.application(*load, f"--timeout={self.heartbeatTimeout}")
        await self.registered(application, 5)
        self.findings = self.audit()
        self.writer = self.client(cache=None)
        await self.writer.configuration.set("/full/disk", "x")
        await self.writesAgain(application, time.monotonic())
        return registry, application

    async def trouble(self, application: Application, *, reads: bool = True) -> None:
        """
        Nothing can be written, and for a while that is so.

        :param reads: whether what was written can be read meanwhile.
        """
        began = time.monotonic()

        async def fails() -> bool:
            return any(each.begun > began and each.error == "ServerError" for each in application.operations[-50:])

        await self.until(fails, 0.01)
        # It has a token; a new one would have to be written.
        client = self.writer
        end = reactor.seconds() + (4 if self.isFull else 0.3)
        while reactor.seconds() < end:
            await self.until(self.isRefused, 0.01)
            if reads:
                services = {service["id"] async for service in client.services.iterate(tag="faults")}
                self.assertEqual(services, set(application.states))
                await client.configuration.list()
                await client.events.list(limit=10)
            await deferLater(reactor, 0.1, lambda: None)
        await self.until(lambda: self.healthIs(503))

    async def isRefused(self) -> bool:
        """Whether a write is refused. A small one may be acknowledged, where SQLite's log has room from before."""
        try:
            await self.writer.configuration.set("/full/disk", "x")
        except ServerError as refusal:
            self.assertEqual((refusal.status, refusal.type), (503, "systemFailureError"))
            return True
        return False

    async def healthIs(self, code: int) -> bool:
        response = await treq.get(f"http://127.0.0.1:{self.port}/health", persistent=False)
        await response.content()
        found: int = response.code
        return found == code

    async def recovers(self, application: Application) -> None:
        """Writes are acknowledged again, and all that ever were are there."""
        began = time.monotonic()
        await self.writesAgain(application, began)
        self.longest = max(self.longest, time.monotonic() - began)
        await self.until(lambda: self.healthIs(200))
        application.tell("pause")
        await application.says("paused")
        operations = application.take()
        self.refused += sum(each.outcome is Outcome.unknown for each in operations)
        self.acknowledged += sum(each.outcome is Outcome.acknowledged for each in operations)
        self.assertKept(await self.findings.look(operations))
        await self.until(lambda: self.allAreRegistered(application))
        application.tell("resume")

    async def allAreRegistered(self, application: Application) -> bool:
        return {states[-1][1] for states in application.states.values()} == {"registered"}

    async def writesAgain(self, application: Application, since: float) -> None:
        async def some() -> bool:
            return any(
                each.begun > since and each.outcome is Outcome.acknowledged for each in application.operations[-50:]
            )

        await self.until(some, 0.01)

    async def end(self, application: Application, what: str, rounds: int) -> None:
        await self.stopped(application)
        self.assertKept(await self.findings.look(application.take(), ended=application.states))
        self.assertKept(await self.findings.whole())
        self.assertEqual((self.findings.count("service.timeout"), application.lost), (0, set()))
        self.assertNoTraceback()
        self.tell(f"{what}: times", rounds)
        self.tell(f"{what}: writes acknowledged, failed", f"{self.acknowledged}, {self.refused}")
        self.tell(f"{what}: writes lost, expirations", "0, 0")
        self.tell(f"{what}: longest time to the next write, s", round(self.longest, 2))
