"""``raxsr configuration exec``, as far as it runs nothing."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests import ROOT
from tests.unit.commands.raxsr.raxsrcase import RaxsrTestCase
from txserviceregistry.commands.console import CommandFailed
from txserviceregistry.commands.raxsr.execute import NAMES, PREFIXES, decidesWhatRuns, environmentOf


class ExecuteTests(RaxsrTestCase):
    """Values that are refused before the command takes the place of raxsr."""

    async def setUp(self) -> None:
        await super().setUp()
        self.space = f"/{self.prefix}"
        self.run_ = ("configuration", "exec", "--namespace", self.space)

    async def test_wrongUsage(self) -> None:
        """The namespace and a command after -- are required."""
        self.assertIn("give the command to run", await self.refused(*self.run_, code=2))
        await self.refused("configuration", "exec", "--", "true", code=2)
        told = await self.refused(*self.run_, "sh", "-c", "echo ran", code=2)
        self.assertIn("unexpected argument 'sh': the command to run comes after --", told)

    async def test_anEmptyNamespace(self) -> None:
        """It is an error in every command, because a script's variable may not be set."""
        for words in (
            ("exec", "--namespace", "", "--", "env"),
            ("list", "--namespace="),
            ("export", "-", "--namespace="),
        ):
            self.assertIn("the namespace is empty", await self.refused("configuration", *words, code=2))

    async def test_aProgramThatCantBeRun(self) -> None:
        """The exit codes are a shell's, and no request is sent."""
        for program, code in (("no-such-program", 127), ("/", 126)):
            ended = await self.raxsr("--api-url", "http://127.0.0.1:1", *self.run_, "--", program)
            self.assertEqual((ended.code, len(ended.err.splitlines())), (code, 1))

    async def test_twoKeysForOneVariable(self) -> None:
        """They are an error, and nothing is run."""
        client = self.client()
        for key in ("listen_ip", "listen-ip"):
            await client.configuration.set(f"{self.space}/{key}", "::1")
        self.assertIn("LISTEN_IP", await self.refused(*self.run_, "--", "true"))

    async def test_requiresValues(self) -> None:
        """With --require, a namespace without values is an error."""
        told = await self.refused(*self.run_, "--require", "--", "echo", "ran")
        self.assertIn(f"there are no configuration values below {self.space}", told)

    async def test_variablesThatDecideWhichCodeRuns(self) -> None:
        """They are refused unless each is allowed by name."""
        client = self.client()
        await client.configuration.set(f"{self.space}/path", "/elsewhere")
        line = await self.refused(*self.run_, "--", "env")
        self.assertIn(f"{self.space}/path would be the environment variable PATH", line)
        self.assertIn("--allow PATH", line)
        await self.refused(*self.run_, "--allow", "LD_PRELOAD", "--", "env")
        await client.configuration.set(f"{self.space}/ld-preload", "/tmp/evil.so")
        await self.refused(*self.run_, "--allow", "PATH", "--", "env")


class LoadersTests(SynchronousTestCase):
    """Which variables decide what runs."""

    def test_theListOfTheDocumentation(self) -> None:
        """docs/configuration.rst names all refused variables and no others; variables of applications are permitted."""
        page = (ROOT / "docs" / "configuration.rst").read_text("utf-8")
        table = page.partition("Refused              Variables")[2].partition("Variables that only")[0]
        documented = re.findall("``([A-Z0-9_*]+)``", table)
        self.assertEqual(sorted(documented), sorted([*NAMES, *(f"{prefix}*" for prefix in PREFIXES)]))
        for name in documented:
            self.assertTrue(decidesWhatRuns(name.replace("*", "X")), name)
        for name in ("LISTEN_IP", "PORT", "NODE_ENV", "PATHS", "MY_PATH", "DATABASE_URL", "ENVIRONMENT", "JVM_OPTS"):
            self.assertFalse(decidesWhatRuns(name), name)

    def test_namesAreThoseOfTheEnvironment(self) -> None:
        """It is the variable's name that counts, however the key is written."""
        for key in ("/app/path", "/app/Ld-Preload", "/app/ld/preload", "/app/bash.env"):
            self.assertRaises(CommandFailed, environmentOf, "/app", {key: "x"})
        self.assertEqual(environmentOf("/app", {"/app/bash-env": "x"}, ["BASH_ENV"]), {"BASH_ENV": "x"})
