"""Programs whose standard streams are closed, or can't be written: real processes, as a shell starts them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import treq

from tests.system.commands.raxsr.raxsrcase import RaxsrProcessTestCase
from tests.system.processes import Child
from txserviceregistry.settings import readSettings

CLOSED, FULL = ">&-", ">/dev/full"
REASONS = {CLOSED: "it is closed", FULL: "No space left on device"}


class StreamsTests(RaxsrProcessTestCase):
    """Output that can't be written is an error, which is found before anything is done."""

    def redirected(self, streams: str, program: str, *words: str) -> Child:
        """A program that a shell has started with redirected *streams*."""
        return self.spawn(
            "/bin/sh", "-c", f'PATH="$0:$PATH"; exec "$@" {streams}', os.path.dirname(sys.executable), program, *words
        )

    async def ended(self, streams: str, program: str, *words: str) -> Child:
        """The same, at its end."""
        child = self.redirected(streams, program, *words)
        await child.ended
        self.assertNoTraceback([child])
        self.assertNotIn("internal error", child.errors)
        return child

    async def assertUnwritable(self, streams: str, program: str, *words: str) -> None:
        """It fails with one line, which says why."""
        child = await self.ended(streams, program, *words)
        self.assertEqual((child.exitCode, len(child.errors.splitlines())), (1, 1), (words, streams, child.errors))
        self.assertIn(f"can't write the output: {REASONS[streams]}", child.errors)

    async def test_whatWouldNotBeShownIsNotDone(self) -> None:
        """raxsr changes nothing if it can't show what came of it."""
        await self.assertUnwritable(CLOSED, "raxsr", "configuration", "set", f"/{self.prefix}/key", "value")
        client = self.client()
        self.assertEqual((await client.configuration.listForNamespace(f"/{self.prefix}"))["values"], [])

    async def test_whatIsOnlyShown(self) -> None:
        """Lists, exports, helps and versions can't be lost without an error."""
        for words in (["services", "list"], ["--help"]):
            await self.assertUnwritable(CLOSED, "raxsr", *words)

    async def test_whatSaysNothing(self) -> None:
        """A command that has nothing to say needs no stream at all."""
        key = f"/{self.prefix}/key"
        child = await self.ended(">&- 2>&- <&-", "raxsr", "-q", "configuration", "set", key, "value")
        self.assertEqual(child.exitCode, 0)
        self.assertEqual((await self.client().configuration.get(key))["value"], "value")

    async def test_errorsWithoutAReader(self) -> None:
        """If stderr can't be written, the exit code says so, and the output is complete."""
        child = await self.ended("2>/dev/full", "raxsr", "configuration", "get", f"/{self.prefix}/none")
        self.assertEqual((child.output, child.exitCode), ("", 1))
        child = await self.ended("2>&-", "raxsr", "--version")
        self.assertTrue(child.output.startswith("raxsr "), child.output)
        self.assertEqual(child.exitCode, 0)

    async def test_anInputThatIsClosed(self) -> None:
        """Input that can't be read from stdin is a user's error, in one line."""
        child = await self.ended("<&-", "raxsr", "configuration", "import", "-")
        self.assertEqual((child.output, child.exitCode), ("", 1))
        self.assertEqual(child.errors, "raxsr: can't read the standard input: it is closed\n")

    async def test_theOthersHelp(self) -> None:
        """So it is with what the wrapper and the twistd commands print."""
        await self.assertUnwritable(CLOSED, "service-registry-wrapper", "--help")
        for streams in (CLOSED, FULL):
            await self.assertUnwritable(streams, "twistd", "service-registry", "--help")

    async def test_aWrappedCommandHasTheSameStreams(self) -> None:
        """A stream that is closed is closed for the command of the wrapper and of ``exec`` too, and no other file."""
        script = "for fd in 0 1 2; do test -e /proc/self/fd/$fd || echo $fd >>closed; done; true"
        await self.client().configuration.set(f"/{self.prefix}/any", "value")
        for number, run in enumerate(
            (
                ("service-registry-wrapper", "--id", f"{self.prefix[:30]}2", "--deregister"),
                ("raxsr", "configuration", "exec", "--namespace", f"/{self.prefix}", "--"),
            ),
            1,
        ):
            child = await self.ended(">&- <&-", *run, "sh", "-c", script)
            self.assertEqual(child.exitCode, 0, child.errors)
            with open(os.path.join(self.home, "closed")) as file:
                self.assertEqual(file.read(), "0\n1\n" * number)

    async def test_noFileOfTheRegistryIsAStream(self) -> None:
        """Neither a connection nor a database gets the number of a stream that is closed."""
        words = ("--listen", "tcp:0:interface=127.0.0.1", "--data-dir", self.dataDir, "--access-log", "-")
        log = os.path.join(self.home, "log")
        pid = os.path.join(self.home, "pid")
        registry = self.redirected(
            ">&- 2>&- <&-", "twistd", "-n", f"--pidfile={pid}", f"--logfile={log}", "service-registry", *words
        )

        async def isListening() -> bool:
            return os.path.exists(log) and "The registry listens on" in Path(log).read_text()

        await self.until(isListening)
        with open(pid) as file:
            number = file.read().strip()
        for descriptor in ("0", "1", "2"):
            self.assertEqual(os.readlink(f"/proc/{number}/fd/{descriptor}"), os.devnull)
        settings = readSettings(environ={"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        response = await treq.get(settings.baseUrls[0].replace("/v1.0", "/health"), persistent=False)
        self.assertEqual(response.code, 200)
        await treq.content(response)

        async def isTold() -> bool:
            return "The access log - can't be written" in Path(log).read_text()

        await self.until(isTold)
        self.assertTrue(registry.running)
