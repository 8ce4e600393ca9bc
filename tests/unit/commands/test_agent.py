"""``twistd service-registry-agent``, in this process."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
from typing import Any
from unittest import mock

import treq
from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import CHEAP
from tests.inprocess import withoutSettings
from txserviceregistry import Client
from txserviceregistry.commands import agent
from txserviceregistry.commands.agent import Options, defaultServiceId, makeService
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings

reactor: Any = globalReactor
ANY_PORT = "tcp:0:interface=127.0.0.1"


class OptionsTests(SynchronousTestCase):
    """Errors that are found before anything is started."""

    def test_wrongOnesAreOneLine(self) -> None:
        """A mistake is told in one line, which names the option or what can't be one."""
        for words, named in (
            (["--heartbeat-timeout", "2"], "--heartbeat-timeout"),
            (["--heartbeat-timeout", "soon"], "--heartbeat-timeout"),
            (["--id", "a/b"], "a/b"),
            (["--id", "ab"], "--id"),
            (["--metadata", "novalue"], "novalue"),
            (["--listen", "no such:endpoint"], "--listen"),
            (["--unknown"], "unknown"),
            (["argument"], "argument"),
        ):
            line = str(self.assertRaises(SystemExit, Options().parseOptions, words))
            self.assertEqual(len(line.splitlines()), 1, line)
            self.assertIn(named, line)

    def test_defaultIdComesFromTheHostName(self) -> None:
        """With any name of the machine, the id is valid."""
        self.assertEqual(defaultServiceId("my.host_1"), "agent-my.host_1")
        self.assertEqual(defaultServiceId("ho st/ü"), "agent-ho-st")
        self.assertLessEqual(len(defaultServiceId("x" * 200)), 65)
        self.assertEqual(defaultServiceId(""), "agent")


class AgentTests(TestCase):
    """The agent in this process."""

    timeout = 60

    def setUp(self) -> None:
        # Not below the project, which may be another user's.
        self.home = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.home)
        self.dataDir = os.path.join(self.home, "data")
        self.stdout = io.StringIO()
        environ = {**withoutSettings(), "HOME": self.home, "RAXSR_DATA_DIR": self.dataDir}
        for patch in (
            mock.patch.object(sys, "__stdout__", self.stdout),
            mock.patch.object(agent, "prepare"),
            mock.patch.object(agent, "endProcess", lambda _, line: self.fail(line)),
            mock.patch.dict(os.environ, environ, clear=True),
        ):
            patch.start()
            self.addCleanup(patch.stop)

    async def test_whatPreventsAStart(self) -> None:
        """Settings that can't be used, a folder that can't be written and a port in use are told in one line."""
        for name, value in (("RAXSR_API_URL", "not a url"), ("RAXSR_RAXRC", os.path.join(self.home, "none"))):
            with mock.patch.dict(os.environ, {name: value}):
                options = Options()
                options.parseOptions([])
                line = str(self.assertRaises(SystemExit, makeService, options))
            self.assertIn(value if name == "RAXSR_RAXRC" else name, line)
            self.assertEqual(len(line.splitlines()), 1, line)
        file = os.path.join(self.home, "file")
        open(file, "w").close()
        taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(taken.stopListening)
        listen = f"tcp:{taken.getHost().port}:interface=127.0.0.1"
        blocked = os.path.join(file, "below")
        for words, expected in ((["--data-dir", blocked], blocked), (["--listen", listen], listen)):
            ended: Deferred[str] = Deferred()
            with mock.patch.object(agent, "endProcess", lambda _, line, ended=ended: ended.callback(line)):
                options = Options()
                options.parseOptions(["--registry-listen", ANY_PORT, *words])
                process = makeService(options)
                process.startService()
                self.addCleanup(process.stopService)
                self.assertIn(expected, await ended)

    async def agent(self, *words: str) -> str:
        """Start an agent; what it has printed when its service is registered."""
        self.stdout.truncate(0)
        options = Options()
        options.parseOptions(["--registry-listen", ANY_PORT, *words])
        process = makeService(options)
        process.startService()
        self.addCleanup(process.stopService)
        while "END" not in self.stdout.getvalue():
            await deferLater(reactor, 0.01)
        return self.stdout.getvalue()

    async def registry(self) -> None:
        registry = RegistryService(reactor, dataDir=self.dataDir, store="memory", endpoints=[ANY_PORT], keyCost=CHEAP)
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()

    def client(self) -> Client:
        client = Client(reactor=reactor, settings=readSettings())
        self.addCleanup(client.close)
        return client

    async def test_theDummyShowsItsState(self) -> None:
        """With --listen it answers HTTP with its own state, and the registry knows its address."""
        self.assertIn("The registry listens on", await self.agent("--id", "web1", "--listen", ANY_PORT))
        metadata = (await self.client().services.get("web1"))["metadata"]
        self.assertEqual(metadata["host"], "127.0.0.1")
        response = await treq.get(f"http://127.0.0.1:{metadata['port']}/", persistent=False)
        state = json.loads(await response.text())
        self.assertEqual((state["id"], state["state"], state["healthy"]), ("web1", "registered", True))

    async def test_usesTheRegistryThatRunsHere(self) -> None:
        """Beside a registry over the same data directory it is a client of that one."""
        await self.registry()
        for id in ("web0", "web1"):
            self.assertNotIn("listens on", await self.agent("--id", id))
        services = (await self.client().services.list())["values"]
        self.assertEqual([service["id"] for service in services], ["web0", "web1"])

    async def test_usesTheRegistryThatIsConfigured(self) -> None:
        """It uses the registry that the environment names, and starts none."""
        await self.registry()
        os.environ["RAXSR_RAXRC"] = os.path.join(self.dataDir, "raxrc")
        other = os.path.join(self.home, "elsewhere")
        self.assertNotIn("listens on", await self.agent("--id", "web1", "--data-dir", other))
        self.assertFalse(os.path.exists(other))
        self.assertEqual((await self.client().services.get("web1"))["id"], "web1")

    async def test_withoutALinkToTheConsole(self) -> None:
        """The service stays registered when the registry gives no link to its web console, which is logged."""

        class WithoutConsole(RegistryService):
            """A registry whose web console is turned off."""

            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options, consoleNames=None)

        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.stdout.isatty = lambda: True  # type: ignore[method-assign]  # a terminal
        with mock.patch.object(agent, "RegistryService", WithoutConsole):
            said = await self.agent("--id", "web1")
        self.assertNotIn("browser", said)
        self.assertEqual((await self.client().services.get("web1"))["id"], "web1")
        self.assertTrue(any(line.startswith("Cannot make a link to the web console: ") for line in lines), lines)
