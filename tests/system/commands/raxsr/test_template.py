"""``raxsr template``, in this process: the checks and reloads that it runs."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread

from tests.unit.commands.raxsr.test_template import TemplateProgramCase
from txserviceregistry.commands.raxsr.templates import TemplateFailed, runCommand


class TemplateCommandTests(TemplateProgramCase):
    """The shell commands of one template beside a registry."""

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

    async def test_severalTemplates(self) -> None:
        """Each has its own check, or all have one."""
        both = ["servers.j2:one", "servers.j2:two"]
        await self.raxsr("template", *both, "--check", "true", "--check", "false", "--once")
        self.assertTrue(Path(self.home, "one").exists())
        self.assertFalse(Path(self.home, "two").exists())
        self.assertEqual((await self.raxsr("template", *both, "--check", "true", "--once")).code, 0)
        self.assertTrue(Path(self.home, "two").exists())
