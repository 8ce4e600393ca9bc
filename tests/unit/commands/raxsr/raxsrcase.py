"""
Running ``raxsr`` in this process beside a registry in it, and looking at what it prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.trial.unittest import TestCase

from tests import CHEAP
from tests.inprocess import Ended, runScript, withoutSettings
from txserviceregistry import Client
from txserviceregistry.commands.raxsr.main import main
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings

reactor: Any = globalReactor


class Commands(TestCase):
    """
    Commands beside a registry, and what is expected of them. Every test has a prefix for ids and keys.

    :ivar home: a folder that is empty at first.
    :ivar settings: the environment variables that tell where the registry is.
    """

    home: str
    settings: dict[str, str]

    @property
    def prefix(self) -> str:
        """Something that no other test has."""
        return re.sub(r"[^a-zA-Z0-9]", "-", self.id().rpartition(".")[2])[:40]

    async def ran(self, words: Sequence[str], stdin: bytes | None, environment: Mapping[str, str]) -> Ended:
        """Run a command to its end."""
        raise NotImplementedError

    def client(self, **options: Any) -> Client:
        """A client of the registry; closed with the test."""
        client = Client(reactor=reactor, settings=readSettings(environ={"HOME": self.home, **self.settings}), **options)
        self.addCleanup(client.close)
        return client

    async def clientWithServices(self, *ids: str) -> Client:
        """A client, and services with these ids for as long as the test goes on."""
        client = self.client()
        for id in ids:
            await client.services.create(id, 120)
        return client

    async def raxsr(
        self, *words: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> Ended:
        """Run a command to its end. No command ever shows a traceback."""
        ended = await self.ran(
            words, stdin, {**self.settings, "TZ": "Asia/Kolkata", "COLUMNS": "80", **(environment or {})}
        )
        self.assertNotIn("Traceback", ended.err)
        self.assertNotIn("internal error", ended.err)
        return ended

    async def good(self, *words: str, stdin: bytes | None = None) -> Ended:
        """Run a command that works and has nothing to complain of."""
        ended = await self.raxsr(*words, stdin=stdin)
        self.assertEqual((ended.err, ended.code), ("", 0), words)
        return ended

    async def refused(self, *words: str, code: int = 1, environment: Mapping[str, str] | None = None) -> str:
        """Run a command that fails: nothing on stdout, one line on stderr, which is returned."""
        ended = await self.raxsr(*words, environment=environment)
        self.assertEqual((ended.out, ended.code, len(ended.err.splitlines())), ("", code, 1), (words, ended.err))
        self.assertTrue(ended.err.startswith("raxsr: "), ended.err)
        return ended.err

    async def allRefused(self, cases: Sequence[tuple[Sequence[str], str]], code: int = 1) -> None:
        """Run commands that fail, each with a line that has the text beside it."""
        for words, expected in cases:
            self.assertIn(expected, await self.refused(*words, code=code), words)


class RaxsrTestCase(Commands):
    """Commands in this process, beside a registry of the test's own in this process."""

    timeout = 60

    async def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.makedirs(self.home)
        registry = RegistryService(
            reactor,
            dataDir=Path(self.home, "registry"),
            store="memory",
            endpoints=["tcp:0:interface=127.0.0.1"],
            keyCost=CHEAP,
        )
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()
        self.settings = {"RAXSR_RAXRC": os.path.join(self.home, "registry", "raxrc")}

    async def ran(self, words: Sequence[str], stdin: bytes | None, environment: Mapping[str, str]) -> Ended:
        """See :class:`Commands`."""
        given = {**withoutSettings(), "HOME": self.home, **environment}
        return await runScript(main, *words, environment=given, folder=self.home, stdin=stdin or b"")

    async def intoAFullFile(self, *words: str) -> str:
        """Run a command whose output can't be written, and which fails with one line; that line."""
        given = {**withoutSettings(), "HOME": self.home, **self.settings}
        ended = await runScript(main, *words, environment=given, folder=self.home, stdout="/dev/full")
        self.assertEqual((ended.code, len(ended.err.splitlines())), (1, 1), (words, ended.err))
        return ended.err
