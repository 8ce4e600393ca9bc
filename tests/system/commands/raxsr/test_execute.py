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
        empty = await self.raxsr("configuration", "exec", "--namespace", f"{space}/none", "--", "echo", "ran")
        self.assertEqual((empty.out, empty.code, len(empty.err.splitlines())), ("ran\n", 0, 1))
        self.assertIn(f"there are no configuration values below {space}/none", empty.err)

    async def test_allowedVariables(self) -> None:
        """A value of PATH that is allowed by name is the command's, and does not decide which program is run."""
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
        ended = await self.raxsr(*run, "--allow", "PATH", "--", "env")
        self.assertEqual(ended.code, 0, ended.err)
        self.assertNotIn("hijacked", ended.out)
        self.assertIn(f"PATH={folder}\n", ended.out)
        ended = await self.raxsr(*run, "--allow", "PATH", "--", "other")
        self.assertEqual((ended.out, ended.code), ("", 127))
        await client.configuration.set(f"{space}/ld-preload", "/tmp/evil.so")
        ended = await self.raxsr(*run, "--allow", "PATH", "--allow", "LD_PRELOAD", "--", "/usr/bin/env")
        self.assertIn("LD_PRELOAD=/tmp/evil.so\n", ended.out)
