"""The documentation: what it has to have. (That it can be built without a warning is shown by building it.)"""

from __future__ import annotations

import ast
import json
import os
import re
from configparser import ConfigParser, RawConfigParser
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from twisted.application.service import MultiService
from twisted.internet import reactor
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

import txserviceregistry
from tests import CHEAP
from tests.certificates import selfSigned
from tests.inprocess import withoutSettings
from tests.system.docblocks import DOCS, PageTestCase, blocksOf
from txserviceregistry import Client, RegisteredService, errors
from txserviceregistry.commands.twistd import readConfigFile
from txserviceregistry.discovery import Directory, RegistryAgent, closeShared
from txserviceregistry.discovery.endpoints import RegisteredPort
from txserviceregistry.errors import FAULT_TYPES
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.util.deferred import returnsDeferred

LISTEN = "tcp:0:interface=127.0.0.1"
PACKAGE = Path(str(txserviceregistry.__file__)).parent
PUBLIC_MODULES = (
    "txserviceregistry",
    "txserviceregistry.client",
    "txserviceregistry.clock",
    "txserviceregistry.coordination",
    "txserviceregistry.discovery",
    "txserviceregistry.errors",
    "txserviceregistry.registration",
    "txserviceregistry.registry",
    "txserviceregistry.settings",
    "txserviceregistry.testing",
    "txserviceregistry.types",
)


class PagesTests(SynchronousTestCase):
    """Rules for all pages."""

    def test_codeSaysWhatItIs(self) -> None:
        """Each block of code names its language."""
        for page in DOCS.glob("**/*.rst"):
            bare = [line for line in page.read_text().splitlines() if re.search(r"^(?!\.\. ).*::$", line)]
            self.assertEqual((page.name, bare), (page.name, []))

    def test_linksAreLinks(self) -> None:
        """Pages are named by a role that is checked, not by their files' names."""
        for page in DOCS.glob("**/*.rst"):
            text = re.sub(r"\.\. include:: .*", "", page.read_text())
            self.assertEqual((page.name, re.findall(r"[\w-]+\.rst\b", text)), (page.name, []))

    def test_everythingIsRun(self) -> None:
        """Each piece of code is on a page that a test runs, or says why it is not run; data can be read."""
        ran = set(re.findall(r'DOCS / "([\w-]+\.rst)"', Path(__file__).read_text()))
        for page in DOCS.glob("**/*.rst"):
            if page.name == "cluster.rst":
                continue  # tests/system/test_clusterpage.py has it.
            for block in blocksOf(page):
                where = f"{page.name}:{block.line}"
                if block.kind in ("python", "sh", "console"):
                    self.assertTrue(page.name in ran or block.reason, where)
                elif block.kind == "ini":
                    RawConfigParser(strict=False).read_string(block.text.replace("\\\n", ""))
                elif block.kind == "toml":
                    path = Path(self.mktemp()).with_suffix(".toml")
                    path.write_text(block.text)
                    self.assertTrue(readConfigFile(str(path), "service-registry"), where)
                elif block.kind == "yaml":
                    yaml.safe_load(block.text)
                elif block.kind == "json":
                    json.loads(block.text)
                else:
                    self.assertIn(block.kind, ("text", "docker", "file", "run"), where)

    def test_errorsAreAllThere(self) -> None:
        """The page on errors has every exception of the library, and every type of fault."""
        page = (DOCS / "errors.rst").read_text()
        named = set(re.findall(r"^``(\w+)``  ", page, re.MULTILINE))
        exceptions = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
        self.assertEqual(named, exceptions | set(FAULT_TYPES))
        codes = dict(re.findall(r"^``(\w+)`` +(\d+)  ", page, re.MULTILINE))
        self.assertEqual(codes, {name: str(code) for name, code in FAULT_TYPES.items()})

    def test_warningsAreAllThere(self) -> None:
        """The page on troubleshooting has every warning that a registry or an application logs, without its values."""
        page = (DOCS / "troubleshooting.rst").read_text()
        for path in PACKAGE.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(attr="warn"), args=[ast.Constant(value=str(text)), *_]):
                        parts = [" ".join(part.split()[:4]) for part in re.split(r"\{.*?\}|[:;(]", text)]
                        self.assertTrue(any(len(part) > 6 and part in page for part in parts), text)

    def test_dependenciesAreAllThere(self) -> None:
        """The page on dependencies has each package that setup.cfg asks for, and each extra."""
        setup = ConfigParser()
        setup.read(DOCS.parent / "setup.cfg")
        extras = dict(setup["options.extras_require"])
        asked = "\n".join([setup["options"]["install_requires"], *extras.values()])
        packages = set(re.findall(r"^([\w.-]+)", asked, re.MULTILINE))
        named = set(re.findall(r"``([\w.-]+)(?:\[\w+\])?``", (DOCS / "dependencies.rst").read_text()))
        self.assertEqual((packages | extras.keys()) - named, set())

    def test_chartsShowFigures(self) -> None:
        """Each bar of a chart is a figure of a benchmark, or of a row of the fault table."""
        performance, reliability = (
            json.loads((DOCS / f"{kept}-figures.json").read_text()) for kept in ("performance", "reliability")
        )
        figures = {f"{name}: {each['name']}" for name, kept in performance.items() for each in kept["figures"]}
        figures |= {f"{row}: {name}" for row, kept in reliability.items() for name in kept["figures"]}
        bars = [bar for page in DOCS.glob("*.rst") for bar in re.findall(r"^   (\w+: .*) -> ", page.read_text(), re.M)]
        self.assertEqual([bar for bar in bars if bar not in figures], [])
        self.assertGreater(len(bars), 20)

    def test_readmeHasEachPage(self) -> None:
        """Links from the README lead to every page of the documentation."""
        pages = {page.name for page in DOCS.glob("*.rst") if not page.stem.endswith("-figures")} - {"index.rst"}
        linked = re.findall(r"`[^`<]+ <docs/([^>]+)>`_", (DOCS.parent / "README.rst").read_text())
        self.assertEqual(set(linked), pages)

    def test_everyPublicNameIsInTheReference(self) -> None:
        """Each public name is on a page of the API reference: by itself, or because its whole module is."""
        documented = set()
        for page in (DOCS / "api").glob("*.rst"):
            for directive, name, options in re.findall(
                r"^\.\. (?:py:)?(\w+):: ([\w.]+)[()]*\n((?:   :.*\n)*)", page.read_text(), re.MULTILINE
            ):
                if directive == "automodule" and ":no-members:" not in options:
                    documented.update(f"{name}.{each}" for each in import_module(name).__all__)
                documented.add(name)
        values = [namedAny(name) for name in documented]
        missing = []
        for module in PUBLIC_MODULES:
            for name in import_module(module).__all__:
                # A name that several modules export is described once.
                value = getattr(import_module(module), name)
                if f"{module}.{name}" not in documented and not any(value is each for each in values):
                    missing.append(f"{module}.{name}")
        self.assertEqual(missing, [])

    def test_onlyPublicModulesHaveAll(self) -> None:
        """The public modules have an ``__all__``, and no other module has one."""
        files = [file for file in PACKAGE.rglob("*.py") if re.search(r"^__all__\b", file.read_text(), re.MULTILINE)]
        public = [str(import_module(name).__file__) for name in PUBLIC_MODULES]
        self.assertEqual({str(file) for file in files}, set(public))

    def test_constantsSayWhatTheyAre(self) -> None:
        """Each public constant has a comment for the reference, which leaves out those without one."""
        for module in PUBLIC_MODULES:
            source = Path(str(import_module(module).__file__)).read_text()
            for name in import_module(module).__all__:
                if name != "__version__" and re.search(rf"^{name}\b.* = ", source, re.MULTILINE):
                    self.assertRegex(source, rf"(?m)^#: .*\n{name}\b")


class ShellTests(PageTestCase):
    """The commands on pages give the output that the pages show."""

    async def test_tutorial(self) -> None:
        """The tutorial, from its first line to its last."""
        await self.perform(DOCS / "tutorial.rst")

    async def test_applications(self) -> None:
        """Other frameworks."""
        await self.perform(DOCS / "applications.rst")

    async def test_healthChecks(self) -> None:
        """An application with a database, the test of a check, and checks of a program that is wrapped."""
        self.makeProgram()
        await self.perform(DOCS / "health-checks.rst")

    async def test_httpApi(self) -> None:
        """The API with curl."""
        await self.perform(DOCS / "http-api.rst")

    async def test_httpApiExtensions(self) -> None:
        """Basic credentials, a conditional write and a lock with curl."""
        await self.perform(DOCS / "http-api-extensions.rst")

    async def test_operating(self) -> None:
        """The visible state of a registry's health."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "operating.rst")

    async def test_tls(self) -> None:
        """An authority, a certificate, a registry with it, and a client that trusts it."""
        await self.perform(DOCS / "tls.rst")

    async def test_registry(self) -> None:
        """A registry with two listeners, and its users."""
        for name, content in zip(("fullchain.pem", "key.pem"), selfSigned("localhost"), strict=True):
            Path(self.home, name).write_bytes(content)
        await self.perform(DOCS / "registry.rst")

    async def test_wrapper(self) -> None:
        """A program that is wrapped, beside a registry and without one."""
        self.makeProgram()
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "wrapper.rst")

    def makeProgram(self) -> None:
        """Install the program that pages wrap: it ends at once."""
        program = Path(self.home, "my-app", "bin", "api")
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o700)


class CommandLineTests(PageTestCase):
    """The page on raxsr."""

    async def command(self, command: str, output: str) -> None:
        """See PageTestCase; to those who follow, something happens."""
        if "events follow" not in command:
            await super().command(command, output)
            return
        following = self.shell("exec " + self.withFreePorts(command))
        client = self.client()

        async def seen() -> bool:
            if self.expected(output.strip()).search(following.output):
                return True
            await client.services.create("web2", 30)
            await client.services.remove("web2")
            return False

        await self.until(seen, interval=0.5)
        following.kill("INT")
        await following.ended

    async def test_asItIsShown(self) -> None:
        """All that is typed there prints what is shown there."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "raxsr.rst")

    async def test_configuration(self) -> None:
        """Values are set, restored, imported and given to a command."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "configuration.rst")

    async def test_gracefulShutdown(self) -> None:
        """A service is drained and used again."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "graceful-shutdown.rst")

    async def test_templates(self) -> None:
        """The first template of the page on templates is rendered as shown."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "templates.rst")


class OtherProgramsTests(PageTestCase):
    """Pages on programs that find services without this library."""

    STAYING = re.compile(r"twistd -n|prometheus --|dnsmasq --|haproxy -db|service-registry-wrapper")

    async def test_prometheus(self) -> None:
        """A user, a configuration, a target, and the rules."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "prometheus.rst")
        rules = DOCS.parent / "examples" / "monitoring" / "service-registry.test.yml"
        await self.command(f"promtool test rules {rules}", "Unit Testing: …SUCCESS")

    async def test_dns(self) -> None:
        """A server, its answers, and a resolver."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "dns.rst")

    async def test_haproxy(self) -> None:
        """A backend whose servers come from DNS."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "haproxy.rst")


class PythonTests(PageTestCase):
    """The pieces of Python on the pages, with what they take for granted around them."""

    def setUp(self) -> None:
        super().setUp()
        # The pieces that run here find the page's registry as any program of this user's does.
        self.patch(os, "environ", {**withoutSettings(), "HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        self.numbers = count(1)
        self.port: int | None = None
        self.registry: RegistryService | None = None
        self.clients: list[Client] = []
        make = Client.fromSettings

        def remembered(*arguments: Any) -> Client:
            self.clients.append(make(*arguments))
            return self.clients[-1]

        self.patch(Client, "fromSettings", remembered)
        self.application = MultiService()
        self.application.startService()
        self.root = Resource()
        self.names: dict[str, Any] = {
            "application": self.application,
            "reactor": reactor,
            "root": self.root,
            "site": Site(self.root),
            "factory": Factory.forProtocol(Protocol),
            "pool": Pool(),
            "print": lambda *words: None,
            "TestCase": TestCase,
        }
        self.addCleanup(self.end)

    @returnsDeferred
    async def end(self) -> None:
        """Stop all that the pieces have left running."""
        for name in ("port", "directory", "agent", "protocol"):
            left = self.names.get(name)
            if isinstance(left, Directory):
                await left.stopService()
            elif isinstance(left, RegistryAgent):
                await left.close()
            elif isinstance(left, RegisteredPort):
                await left.stopListening()
            elif isinstance(left, Protocol):
                left.transport.abortConnection()  # type: ignore[union-attr]  # it is connected
        await self.application.stopService()
        await closeShared()
        for client in self.clients:
            await client.close()
        if self.registry is not None:
            await self.registry.stopService()

    async def test_stayingRegistered(self) -> None:
        """A service, and monotonic time."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "staying-registered.rst", self.names)

    async def test_index(self) -> None:
        """The lines that an application needs; and from the README, those of a program of old."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "index.rst", self.names)
        await self.names["service"].whenRegistered()
        (old,) = [block for block in blocksOf(DOCS.parent / "README.rst") if "was: from" in block.text]
        await self.python(old.text, self.names)
        self.clients.append(self.names["client"])

    async def test_distributedLocks(self) -> None:
        """A lock, work that ends with it, and a table that checks fences."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "distributed-locks.rst", self.names)

    async def test_leaderElection(self) -> None:
        """The program leads."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "leader-election.rst", self.names)

    async def test_partitioning(self) -> None:
        """The program joins a group."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "partitioning.rst", self.names)

    async def test_migrating(self) -> None:
        """The import."""
        await self.perform(DOCS / "migrating.rst", self.names)

    async def test_fromConsul(self) -> None:
        """The new form of a program with python-consul."""
        await self.stay("twistd -n service-registry")
        await self.perform(DOCS / "from-consul.rst", self.names)
        self.assertEqual([node["id"] for node in self.names["nodes"]], ["web1"])
        self.assertEqual(self.names["entry"]["value"], "4")

    async def test_consistency(self) -> None:
        """The election is one."""
        await self.perform(DOCS / "consistency.rst", self.names)

    async def test_testing(self) -> None:
        """The tests pass."""
        await self.perform(DOCS / "testing.rst", self.names)

    async def test_testingDiscovery(self) -> None:
        """The test connects to a service of the registry in memory."""
        await self.perform(DOCS / "testing-discovery.rst", self.names)

    async def test_faultInjection(self) -> None:
        """The failures are simulated."""
        await self.perform(DOCS / "fault-injection.rst", self.names)

    async def test_instanceIds(self) -> None:
        """An id of its own for each instance."""
        self.names["RegisteredService"] = RegisteredService
        self.names["client"] = client = Client("joe", "key", reactor=reactor)
        self.clients.append(client)
        await self.perform(DOCS / "instance-ids.rst", self.names)
        service = self.names["service"]
        self.assertLessEqual(len(service.serviceId), 65)
        self.assertRegex(service.serviceId, r"^web-\d{4}-[A-Za-z0-9_.-]+$")

    async def test_findingServices(self) -> None:
        """From the web server that registers itself to the end of a test, in the page's order."""
        listening = IReactorTCP(reactor).listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.port = listening.getHost().port
        await self.perform(DOCS / "finding-services.rst", self.names)

    async def test_registeredEndpoints(self) -> None:
        """A web server, a port in this program, and a .tac file."""
        await self.perform(DOCS / "registered-endpoints.rst", self.names)

    async def test_watchingConfiguration(self) -> None:
        """A value that is written, and one that changes while it is watched."""
        await self.stay("twistd -n service-registry")
        self.keepChanging()
        await self.perform(DOCS / "watching-configuration.rst", self.names)

    def keepChanging(self) -> None:
        """Give a configuration value another content twice a second, until the test ends."""
        client = self.client()
        changes = LoopingCall(lambda: client.configuration.set("/production/www/workers", str(next(self.numbers))))
        running = changes.start(0.5)

        def stop() -> Any:
            """Stop, when the change that is under way is done."""
            changes.stop()
            return running

        self.addCleanup(stop)

    async def stay(self, command: str) -> None:
        """See PageTestCase; what happens in the registry while the page is read begins with the registry."""
        if command == "twistd -n service-registry" and self.port is None:
            # The page does not stop it: it runs in this process.
            if self.registry is None:
                self.registry = RegistryService(
                    reactor, dataDir=Path(self.dataDir), endpoints=[LISTEN], store="memory", keyCost=CHEAP
                )
                self.registry.startService()
                await self.registry.whenListening()
            return
        await super().stay(command)
        if self.port is not None and command.endswith(" service-registry"):
            other = self.client()
            metadata = {"host": "127.0.0.1", "port": str(self.port)}
            await other.services.create("smtp1", 120, {"tags": ["smtp"], "metadata": metadata})
            self.keepChanging()


class Pool:
    """Something that can be given another size."""

    def resize(self, size: int) -> None:
        self.size = size
