"""``raxsr template``: its arguments, and what it does without a command of the user's."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from twisted.internet.defer import Deferred

from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.commands.raxsr.templates import TemplateFailed, runCommand

SERVERS = "{% for s in services('www') %}\nserver {{ s.address }};\n{% endfor %}\n"


class TemplateProgramCase(RaxsrTestCase):
    """One template beside a registry."""

    async def setUp(self) -> None:
        await super().setUp()
        self.source = Path(self.home, "servers.j2")
        self.source.write_text(SERVERS)
        self.file = Path(self.home, "servers.conf")
        client = self.client()
        payload = {"tags": ["www"], "metadata": {"host": "127.0.0.1", "port": "8000"}}
        await client.services.create("web1", 120, payload)


class TemplateTests(TemplateProgramCase):
    """Without a check and a reload."""

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

    async def test_allowEmpty(self) -> None:
        """A tag without services is an error, unless it is allowed."""
        self.source.write_text(SERVERS.replace("www", "nothing"))
        error = await self.refused("template", "servers.j2:servers.conf", "--once")
        self.assertIn("no service with tag 'nothing' can receive connections", error)
        await self.raxsr("template", "servers.j2:servers.conf", "--once", "--allow-empty")
        self.assertEqual(self.file.read_text(), "")

    async def test_aRegistryThatIsNotThere(self) -> None:
        """A single run fails, with the setting that may be wrong, instead of waiting without end."""
        for option in ("--once", "--dry-run"):
            words = ("template", "servers.j2:servers.conf", option, "--api-url", "http://127.0.0.1:9/v1.0")
            self.assertRegex(await self.refused(*words), "connection refused.* is set by --api-url")

    async def test_wrongUsage(self) -> None:
        """Wrong words are an error before anything is done."""
        await self.allRefused(
            [
                (["template"], "SOURCE:DESTINATION"),
                (["template", "servers.j2"], "is not SOURCE:DESTINATION"),
                (["template", "servers.j2:"], "is not SOURCE:DESTINATION"),
                (["template", "missing.j2:x"], "there is no template missing.j2"),
                (["template", "servers.j2:./servers.j2"], "./servers.j2 is a template, or the destination of two"),
                (["template", "~/servers.j2:~/servers.j2"], "servers.j2 is a template, or the destination of two"),
                (["template", "servers.j2:x", "servers.j2:./x"], "./x is a template, or the destination of two"),
                (["template", "servers.j2:x", "--wait", "soon"], "is not a duration"),
                (["template", "servers.j2:x", "--panic-threshold", "2"], "is not a number from 0 to 1"),
                (["template", "servers.j2:x", "--wait", "5s:2s"], "QUIET is longer than LONGEST"),
                (["template", "servers.j2:x", "--check", "a", "--check", "b"], "one for each template"),
            ],
            code=2,
        )
