"""
Running the installed ``raxsr`` beside a real registry, and looking at what it prints.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from twisted.internet.utils import getProcessOutputAndValue

from tests.system.processes import Child, ProcessTestCase, reactor, sharedRegistry, together
from txserviceregistry import Client
from txserviceregistry.settings import readSettings

RAXSR = os.path.join(os.path.dirname(sys.executable), "raxsr")


@attrs.frozen
class Ended:
    """What a command has printed, and its exit code (minus N: the signal N)."""

    out: str
    err: str
    code: int

    @property
    def json(self) -> Any:
        """The output as JSON."""
        return json.loads(self.out)


class RaxsrTestCase(ProcessTestCase):
    """Commands beside the shared registry. Every test has a prefix for ids and keys, and looks at no others."""

    def setUp(self) -> None:
        super().setUp()
        self.settings: dict[str, str] = dict(sharedRegistry())
        self.prefix = re.sub(r"[^a-zA-Z0-9]", "-", self.id().rpartition(".")[2])[:40]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return super().environment({**self.settings, "TZ": "Asia/Kolkata", **(extra or {})})

    def client(self, **options: Any) -> Client:
        client = Client(reactor=reactor, settings=readSettings(environ={"HOME": self.home, **self.settings}), **options)
        self.addCleanup(client.close)
        return client

    async def raxsr(
        self, *words: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None
    ) -> Ended:
        """Run a command to its end. No command ever shows a traceback."""
        try:
            out, err, code = await getProcessOutputAndValue(
                RAXSR, words, env=self.environment(environment), path=self.home, stdinBytes=stdin
            )
        except Exception as error:
            out, err, number = error.args
            code = -number
        self.assertNotIn(b"Traceback", err)
        self.assertNotIn(b"defect", err)
        return Ended(out.decode(), err.decode(), code)

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
        lines = await together(self.refused(*words, code=code) for words, _ in cases)
        for line, (words, expected) in zip(lines, cases, strict=True):
            self.assertIn(expected, line, words)

    def started(self, *words: str) -> Child:
        """A command that goes on until it is ended."""
        return self.spawn("raxsr", *words)

    async def clientWithServices(self, *ids: str) -> Client:
        """A client, and services with these ids for as long as the test goes on."""
        client = self.client()
        for id in ids:
            await client.services.create(id, 120)
        return client
