"""
A test case for templates, over a registry in memory.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.raxsr.templates import Target, Template, TemplateFailed
from txserviceregistry.testing import FakeRegistry


class TemplateCase(SynchronousTestCase):
    """
    A template, the file that is made of it, and a client that changes the registry.

    :ivar commands: the commands that were run.
    :ivar failing: the words of commands that fail.
    """

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client(cache=None)
        folder = self.mktemp()
        os.makedirs(folder)
        self.folder = Path(folder).resolve()
        self.source = self.folder / "template.j2"
        self.file = self.folder / "made"
        self.commands: list[str] = []
        self.failing: set[str] = set()

    def run_(self, command: str) -> Awaitable[None]:
        """In the place of a shell."""
        self.commands.append(command)
        word = command.split()[0]
        if word in self.failing:
            return Deferred.fromCoroutine(self.fail_(word))
        return succeed(None)

    async def fail_(self, word: str) -> None:
        """Fail as a command does."""
        raise TemplateFailed(f"'{word}' failed with exit code 1")

    def target(self, **options: Any) -> Target:
        """The file, with a run that this case records."""
        return Target(str(self.file), run=self.run_, **options)

    def template(self, text: str, **options: Any) -> Template:
        """A template with this text, and the file."""
        self.source.write_text(text)
        return Template(str(self.source), self.target(**options).put)

    def create(self, id: str, tags: tuple[str, ...] = ("www",), timeout: int = 120, **metadata: str) -> None:
        """Register a service with an address, unless its metadata say otherwise."""
        given = {"host": f"{id}.example.org", "port": "80", **metadata}
        payload = {"tags": list(tags), "metadata": {key: value for key, value in given.items() if value}}
        self.successResultOf(self.other.services.create(id, timeout, payload))
        self.fake.flush()

    def set(self, key: str, value: str) -> None:
        """Set a configuration value."""
        self.successResultOf(self.other.configuration.set(key, value))
        self.fake.flush()
