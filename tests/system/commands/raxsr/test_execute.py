"""``raxsr configuration exec``, as installed, beside a real registry."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.system.commands.raxsr.raxsrcase import RaxsrProcessTestCase


class ExecuteTests(RaxsrProcessTestCase):
    """An environment for a command."""

    async def test_execute(self) -> None:
        """A command has the values as environment variables, and raxsr's place: streams and exit code are its own."""
        space = f"/{self.prefix}"
        client = self.client()
        for key, value in (("listen_ip", "::1"), ("deep/port-no", "80"), ("9lives", "yes")):
            await client.configuration.set(f"{space}/{key}", value)
        code = (
            "import os, sys; print(sys.stdin.read(), os.environ['LISTEN_IP'], os.environ['DEEP_PORT_NO'], "
            "os.environ['_9LIVES'], sys.argv[1:]); sys.exit(7)"
        )
        run = ("configuration", "exec", "--namespace", space, "--")
        ended = await self.raxsr(*run, sys.executable, "-c", code, "--help", "", "*", stdin=b"typed")
        self.assertEqual((ended.out, ended.err, ended.code), ("typed ::1 80 yes ['--help', '', '*']\n", "", 7))
        ended = await self.raxsr(*run, "no-such-program")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (127, 1))
        ended = await self.raxsr(*run, "/")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (126, 1))
        self.assertIn(
            "give the command to run", await self.refused("configuration", "exec", "--namespace", space, code=2)
        )
        await self.refused("configuration", "exec", "--", "true", code=2)
        for words in (
            ("exec", "--namespace", "", "--", "env"),
            ("list", "--namespace="),
            ("export", "-", "--namespace="),
        ):
            self.assertIn("the namespace is empty", await self.refused("configuration", *words, code=2))
        told = await self.refused("configuration", "exec", "--namespace", space, "sh", "-c", "echo ran", code=2)
        self.assertIn("unexpected argument 'sh': the command to run comes after --", told)
        await client.configuration.set(f"{space}/listen-ip", "::2")
        self.assertIn("LISTEN_IP", await self.refused(*run, "true"))
        # That there is no such program is known without the registry.
        ended = await self.raxsr("--api-url", "http://127.0.0.1:1", *run, "no-such-program")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (127, 1))
        empty = await self.raxsr("configuration", "exec", "--namespace", f"{space}/none", "--", "echo", "ran")
        self.assertEqual((empty.out, empty.code, len(empty.err.splitlines())), ("ran\n", 0, 1))
        self.assertIn(f"there are no configuration values below {space}/none", empty.err)
        required = ("configuration", "exec", "--require", "--namespace", f"{space}/none", "--", "echo", "ran")
        self.assertIn(f"there are no configuration values below {space}/none", await self.refused(*required))

    async def test_executeRefusesWhatDecidesWhichCodeRuns(self) -> None:
        """A value runs no other program, and loads no code into this one, unless the variable is allowed by name."""
        space = f"/{self.prefix}"
        client = self.client()
        folder = Path(self.home, "bin")
        folder.mkdir()
        for name in ("env", "other"):
            program = folder / name
            program.write_text("#!/bin/sh\necho hijacked\n")
            program.chmod(0o755)
        run = ("configuration", "exec", "--namespace", space)
        await client.configuration.set(f"{space}/path", str(folder))
        line = await self.refused(*run, "--", "env")
        self.assertIn(f"{space}/path would be the environment variable PATH", line)
        self.assertIn("--allow PATH", line)
        await self.refused(*run, "--allow", "LD_PRELOAD", "--", "env")
        ended = await self.raxsr(*run, "--allow", "PATH", "--", "env")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertNotIn("hijacked", ended.out)
        self.assertIn(f"PATH={folder}\n", ended.out)
        ended = await self.raxsr(*run, "--allow", "PATH", "--", "other")
        self.assertEqual((ended.out, ended.code), ("", 127))
        await client.configuration.set(f"{space}/ld-preload", "/tmp/evil.so")
        await self.refused(*run, "--allow", "PATH", "--", "env")
        ended = await self.raxsr(*run, "--allow", "PATH", "--allow", "LD_PRELOAD", "--", "/usr/bin/env")
        self.assertIn("LD_PRELOAD=/tmp/evil.so\n", ended.out)
