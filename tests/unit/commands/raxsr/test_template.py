"""``raxsr template``: its arguments, ``--once`` and ``--dry-run``."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.commands.raxsr.templates import TemplateFailed, runCommand

SERVERS = "{% for s in services('www') %}\nserver {{ s.address }};\n{% endfor %}\n"


class TemplateTests(RaxsrTestCase):
    """One template beside a registry."""

    async def setUp(self) -> None:
        await super().setUp()
        self.source = Path(self.home, "servers.j2")
        self.source.write_text(SERVERS)
        self.file = Path(self.home, "servers.conf")
        client = self.client()
        payload = {"tags": ["www"], "metadata": {"host": "127.0.0.1", "port": "8000"}}
        await client.services.create("web1", 120, payload)

    async def test_once(self) -> None:
        """The file is checked and made, the reload runs, and the command ends; the second time nothing changes."""
        words = [f"{self.source}:{self.file}:echo reloaded >>reloads", "--check", "grep -q server {}", "--once"]
        ended = await self.raxsr("template", *words)
        self.assertEqual((ended.code, ended.out, ended.err), (0, "", f"raxsr: Template {self.source} rendered\n"))
        self.assertEqual(self.file.read_text(), "server 127.0.0.1:8000;\n")
        await self.good("template", *words)
        self.assertEqual(Path(self.home, "reloads").read_text(), "reloaded\n")

    async def test_aCheckThatFails(self) -> None:
        """It is an error with the command's output, and the file stays."""
        self.file.write_text("old")
        error = await self.refused(
            "template", "servers.j2:servers.conf:false", "--check", "echo line 1 of {}: bad; exit 3", "--once"
        )
        self.assertIn("template servers.j2 failed: 'echo line 1 of", error)
        self.assertRegex(error, r"failed with exit code 3: line 1 of \S*/\.servers\.conf-\w+: bad")
        self.assertEqual(self.file.read_text(), "old")

    async def test_aReloadThatIsKilled(self) -> None:
        """A signal is reported too."""
        error = await self.refused("template", f"servers.j2:{self.file}:kill -9 $$", "--once")
        self.assertIn("'kill -9 $$' failed with signal 9", error)

    async def test_aLongOutput(self) -> None:
        """Output that does not fit into memory is not read whole for the error."""
        write = "truncate -s 1T /proc/self/fd/1; exit 3"
        error = await self.refused("template", f"servers.j2:{self.file}:{write}", "--once")
        self.assertIn("failed with exit code 3", error)

    async def test_aCommandThatHangs(self) -> None:
        """It is killed when raxsr is interrupted, which would wait for it."""
        pipe = Path(self.home, "pipe")
        os.mkfifo(pipe)
        running = Deferred.fromCoroutine(runCommand(f"sleep 600 >{pipe}; touch {self.file}"))
        with await deferToThread(pipe.open) as open:
            running.cancel()
            self.assertEqual(await deferToThread(open.read), "")
        await self.assertFailure(running, CancelledError)
        self.assertFalse(self.file.exists())

    async def test_aTerminal(self) -> None:
        """A command has a session of its own: one that asks for a password fails, instead of being stopped."""
        await runCommand("""test "$(cut -d ' ' -f 6 /proc/$$/stat)" = $$""")

    async def test_aServiceManager(self) -> None:
        """Variables for raxsr's own process do not change how commands run: their output is for an error."""
        self.patch(os, "environb", {**os.environb, b"WATCHDOG_PID": b"%d" % os.getpid()})
        failure = await self.assertFailure(Deferred.fromCoroutine(runCommand("echo bad; exit 3")), TemplateFailed)
        self.assertIn("failed with exit code 3: bad", str(failure))

    async def test_tooManyProcesses(self) -> None:
        """A command that can't be started now is a failure that is retried."""
        with mock.patch("os.posix_spawn", side_effect=BlockingIOError(11, "Resource temporarily unavailable")):
            failure = await self.assertFailure(Deferred.fromCoroutine(runCommand("true")), TemplateFailed)
        self.assertEqual(str(failure), "'true' failed: can't run /bin/sh: Resource temporarily unavailable")

    async def test_dryRun(self) -> None:
        """It shows the difference, and changes nothing."""
        self.file.write_text("server 127.0.0.1:7999;\n")
        ended = await self.good("template", "servers.j2:servers.conf:touch reloaded", "--check", "false", "--dry-run")
        self.assertIn("\n-server 127.0.0.1:7999;\n+server 127.0.0.1:8000;\n", ended.out)
        self.assertEqual(self.file.read_text(), "server 127.0.0.1:7999;\n")
        self.assertFalse(Path(self.home, "reloaded").exists())

    async def test_severalTemplates(self) -> None:
        """Each has its own check, or all have one."""
        both = ["servers.j2:one", "servers.j2:two"]
        await self.raxsr("template", *both, "--check", "true", "--check", "false", "--once")
        self.assertTrue(Path(self.home, "one").exists())
        self.assertFalse(Path(self.home, "two").exists())
        self.assertEqual((await self.raxsr("template", *both, "--check", "true", "--once")).code, 0)
        self.assertTrue(Path(self.home, "two").exists())

    async def test_allowEmpty(self) -> None:
        """A tag without services is an error, unless it is allowed."""
        self.source.write_text(SERVERS.replace("www", "nothing"))
        error = await self.refused("template", "servers.j2:servers.conf", "--once")
        self.assertIn("no service with tag 'nothing' can receive connections", error)
        await self.raxsr("template", "servers.j2:servers.conf", "--once", "--allow-empty")
        self.assertEqual(self.file.read_text(), "")

    async def test_wrongUsage(self) -> None:
        """Wrong words are an error before anything is done."""
        await self.allRefused(
            [
                (["template"], "SOURCE:DESTINATION"),
                (["template", "servers.j2"], "is not SOURCE:DESTINATION"),
                (["template", "servers.j2:"], "is not SOURCE:DESTINATION"),
                (["template", "missing.j2:x"], "there is no template missing.j2"),
                (["template", "servers.j2:./servers.j2"], "./servers.j2 is a template, or the destination of two"),
                (["template", "servers.j2:x", "servers.j2:./x"], "./x is a template, or the destination of two"),
                (["template", "servers.j2:x", "--wait", "soon"], "is not a duration"),
                (["template", "servers.j2:x", "--panic-threshold", "2"], "is not a number from 0 to 1"),
                (["template", "servers.j2:x", "--wait", "5s:2s"], "QUIET is longer than LONGEST"),
                (["template", "servers.j2:x", "--check", "a", "--check", "b"], "one for each template"),
            ],
            code=2,
        )
