"""``twistd service-registry``, in this process: what it prints, and where it listens."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from typing import Any
from unittest import mock

from twisted.internet import reactor as globalReactor
from twisted.trial.unittest import TestCase

from tests import CHEAP
from txserviceregistry import Client
from txserviceregistry.commands.agent import Options as AgentOptions
from txserviceregistry.commands.registry import Options, sayWhere
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import Settings, readSettings

reactor: Any = globalReactor
ANY_PORT = "tcp:0:interface=127.0.0.1"


class RegistryTests(TestCase):
    """A registry over a folder of the test's own."""

    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        self.stdout = io.StringIO()
        patched = mock.patch.object(sys, "__stdout__", self.stdout)
        patched.start()
        self.addCleanup(patched.stop)

    async def registry(self, store: str, *endpoints: str) -> RegistryService:
        registry = RegistryService(
            reactor, dataDir=self.home, store=store, endpoints=endpoints or (ANY_PORT,), keyCost=CHEAP
        )
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()
        return registry

    def settings(self) -> Settings:
        return readSettings(environ={"HOME": self.home, "RAXSR_DATA_DIR": self.home})

    def client(self, **options: Any) -> Client:
        settings = self.settings()
        options.setdefault("baseUrl", settings.baseUrls)
        client = Client(settings.username, settings.apiKey, reactor=reactor, **options)
        self.addCleanup(client.close)
        return client

    async def test_saysWhereItListens(self) -> None:
        """It prints its URLs, all of which answer, and the file of the credentials."""
        registry = await self.registry("memory", ANY_PORT, ANY_PORT)
        sayWhere(registry)
        listens, credentials = self.stdout.getvalue().splitlines()
        urls = listens.removeprefix("The registry listens on ").split(", ")
        self.assertEqual(len(set(urls)), 2)
        for url in urls:
            await self.client(baseUrl=url).account.getLimits()
        self.assertEqual(credentials, f"Credentials for this machine are in {os.path.join(self.home, 'raxrc')}")

    async def test_saysItsLocalSocket(self) -> None:
        """A listener without an address, such as a local socket behind a proxy, is shown as it was given."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        registry = await self.registry("memory", f"unix:{folder}/socket", ANY_PORT)
        sayWhere(registry)
        self.assertIn(f"The registry listens on {registry.urls[0]}, unix:{folder}/socket\n", self.stdout.getvalue())

    async def test_saysThatThereAreNoCredentials(self) -> None:
        """A registry whose users have been removed says what lists and adds users."""
        first = await self.registry("sqlite")
        await first.stopService()
        os.unlink(os.path.join(self.home, "raxrc"))
        sayWhere(await self.registry("sqlite"))
        self.assertIn(
            f"There are no credentials in {os.path.join(self.home, 'raxrc')}: service-registry-users",
            self.stdout.getvalue(),
        )

    async def test_memoryIsLostAtTheEnd(self) -> None:
        """With the memory store a restart begins with no data, and the same credentials."""
        first = await self.registry("memory")
        before = self.settings()
        await self.client().configuration.set("abc", "1")
        await first.stopService()
        await self.registry("memory")
        self.assertEqual(self.settings().apiKey, before.apiKey)
        self.assertEqual((await self.client().configuration.list())["values"], [])

    def test_helpHasAnExample(self) -> None:
        """``--help`` names every option and shows how to use them."""
        for options in (Options(), AgentOptions()):
            shown = str(options)
            self.assertIn("Example:", " ".join(shown.split()))
            for name in list(options):
                self.assertIn(f"--{name}", shown)
