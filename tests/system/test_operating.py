"""
The instructions of the page on operating, followed: backup under load and restore, the systemd units, the Dockerfile.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.utils import getProcessOutputAndValue

from tests import ROOT
from tests.certificates import selfSigned
from tests.needs import needs
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry.client import Client
from txserviceregistry.errors import NotFound
from txserviceregistry.settings import readSettings

PAGE = ROOT / "docs" / "operating.rst"
UNITS = ROOT / "examples" / "systemd"
DOCKERFILE = ROOT / "Dockerfile"

# The part that systemd has: it listens, hands the socket over as descriptor 3, and executes the program.
ACTIVATE = """
import os, socket, sys
made = socket.create_server(("127.0.0.1", 0))
os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="service-registry")
os.execv(sys.argv[1], sys.argv[1:])
"""


def backupScripts() -> list[str]:
    """The shell scripts of the page that are about a backup, in their order."""
    blocks = re.findall(r"\.\. code-block:: sh\n\n((?:    .*\n|\n)+)", PAGE.read_text())
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks if "$BACKUP" in block]


class OperatingCase(ProcessTestCase):
    """A registry on a port of its own."""

    async def registry(self) -> Child:
        registry = self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1")
        await registry.says("Credentials")
        return registry


class BackupTests(OperatingCase):
    """The two recipes of the page, as they stand there."""

    async def shell(self, script: str, backup: Path) -> None:
        environment = {**self.environment(), "DATA": self.dataDir, "BACKUP": str(backup)}
        environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
        _, err, code = await getProcessOutputAndValue("/bin/sh", ["-c", script], env=environment, path=self.home)
        self.assertEqual((code, err), (0, b""))

    async def test_backupUnderLoadAndRestore(self) -> None:
        """
        A backup that is made while others write has all that was acknowledged before it, and services that were
        registered then go on with their tokens; restored, it is a registry that works.
        """
        registry = await self.registry()
        client = self.client()
        body, _ = await client.services.create("web1", 120)
        kept: dict[str, str] = {}
        writing = True

        async def write(worker: int) -> None:
            number = 0
            while writing:
                key = f"key_{worker}_{number}"
                await client.configuration.set(key, str(number))
                kept[key] = str(number)
                number += 1

        writers = gatherResults([Deferred.fromCoroutine(write(worker)) for worker in range(4)])

        async def some() -> bool:
            return len(kept) > 100

        await self.until(some)
        backup, restore = backupScripts()
        folder = Path(self.home, "backup")
        folder.mkdir()
        before = dict(kept)
        await self.shell(backup, folder)
        writing = False
        await writers
        self.assertGreater(len(kept), len(before))
        await client.services.create("web2", 120)
        self.assertEqual(os.stat(folder / "registry.sqlite").st_mode & 0o777, 0o600)
        registry.kill("TERM")
        await registry.ended
        await self.shell(restore, folder)
        await self.registry()
        client = self.client()
        found = {value["id"]: value["value"] async for value in client.configuration.iterate()}
        self.assertEqual({key: found.get(key) for key in before}, before)
        self.assertEqual([service["id"] async for service in client.services.iterate()], ["web1"])
        await client.services.heartbeat("web1", body["token"])
        await client.configuration.set("after", "1")
        events = [event async for event in client.events.iterate()]
        self.assertEqual(events[-1]["payload"]["configuration_value_id"], "after")
        self.assertNoTraceback()


def unit(name: str) -> dict[str, Any]:
    """The content of a unit."""
    return unitOf((UNITS / name).read_text())


def unitOf(text: str) -> dict[str, Any]:
    """The settings of a unit, by section and name; of those that are there twice the last."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names are as they are written
    parser.read_string(text.replace("\\\n", ""))
    return {section: dict(parser[section]) for section in parser.sections()}


class ProxyTests(ProcessTestCase):
    """The configuration of nginx."""

    async def test_reverseProxy(self) -> None:
        """Clients, keys with a slash, events and the link to the console work through it, and metrics do not."""
        needs("nginx", "curl")
        registryPort, port = freePorts(2)
        registry = self.twistd("service-registry", "--listen", f"tcp:{registryPort}:interface=127.0.0.1")
        await registry.says("Credentials")
        # nginx's workers are other users.
        folder = Path(f"/tmp/txsr-{os.getpid()}-proxy")
        folder.mkdir()
        self.addCleanup(shutil.rmtree, folder)
        for name, content in zip(("fullchain.pem", "key.pem"), selfSigned("localhost"), strict=True):
            (folder / name).write_bytes(content)
        (block,) = re.findall(r"\n    (upstream registry .*?\n    })\n\n", PAGE.read_text(), re.DOTALL)
        for old, new in (
            ("127.0.0.1:8880", f"127.0.0.1:{registryPort}"),
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/ssl/registry", str(folder)),
        ):
            self.assertIn(old, block)
            block = block.replace(old, new)
        head = "daemon off;\npid nginx.pid;\nerror_log error.log;\nevents {}\nhttp {\naccess_log off;\n"
        (folder / "nginx.conf").write_text(f"{head}{block}\n}}\n")
        self.program("nginx", "-p", str(folder), "-c", "nginx.conf")
        url, trusted = f"https://127.0.0.1:{port}", ("--cacert", str(folder / "fullchain.pem"))

        async def get(path: str) -> tuple[bytes, bytes, int]:
            words = ["-s", *trusted, "-w", "%{http_code}", url + path]
            return await getProcessOutputAndValue("curl", words, env=os.environ)

        async def listens() -> bool:
            return (await get("/health"))[2] == 0

        await self.until(listens)
        environment = {"RAXSR_API_URL": f"{url}/v1.0", "RAXSR_CA_FILE": str(folder / "fullchain.pem")}
        link = await self.spawn("raxsr", "console", "--print", environment=environment).ended
        self.assertIn(f"{url}/console/#once=", link.output, link.errors)
        found = {"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir}
        client = Client(reactor=reactor, settings=readSettings(environ={**found, **environment}))
        self.addCleanup(client.close)
        await client.configuration.set("/abc_def", "1")
        await self.assertFailure(client.configuration.get("abc_def"), NotFound)
        credentials = f"{client.settings.username}:{client.settings.apiKey}"
        stream = self.program("curl", "-sN", *trusted, "-u", credentials, f"{url}/v1.0/events/stream")
        await stream.says("event: ping")
        self.assertTrue((await get("/metrics"))[0].endswith(b"404"))
        self.assertNoTraceback()

    def program(self, *command: str) -> Child:
        """Start a program of the system's."""
        child = Child()
        reactor.spawnProcess(child, shutil.which(command[0]), command, env=os.environ)
        self.children.append(child)
        return child


class SystemdTests(ProcessTestCase):
    """The units."""

    async def test_theServiceTakesTheSocketOver(self) -> None:
        """The program of the unit answers on the socket of systemd; its raxrc and log name that address."""
        command = unit("service-registry.service")["Service"]["ExecStart"].replace("${STATE_DIRECTORY}", self.dataDir)
        program, *arguments = shlex.split(command)
        here = str(Path(sys.executable).with_name(Path(program).name))
        registry = self.spawn(Path(sys.executable).name, "-c", ACTIVATE, here, *arguments)
        await registry.says("Credentials")
        client = self.client()
        await client.account.getLimits()
        self.assertIn(f"The registry listens on {client.settings.baseUrls[0]}", registry.output)
        registry.kill("TERM")
        await registry.ended
        self.assertNoTraceback()

    async def test_withoutSystemd(self) -> None:
        """Started without a socket to take over, it says so in one line."""
        failed = await self.twistd("service-registry", "--listen", "systemd:domain=INET:index=0").ended
        self.assertEqual(failed.exitCode, 1)
        self.assertEqual(len(failed.errors.strip().splitlines()), 1, failed.errors)
        self.assertIn("systemd passed no such socket", failed.errors)

    def test_theSocketIsTheDefaultOne(self) -> None:
        """The socket unit listens where a registry does by default, and the service unit takes that socket."""
        self.assertEqual(unit("service-registry.socket")["Socket"]["ListenStream"], "127.0.0.1:8880")
        self.assertEqual(unit("service-registry.service")["Unit"]["Requires"], "service-registry.socket")


class DockerTests(OperatingCase):
    """The parts of the Dockerfile that can be tried without Docker."""

    def instructions(self, name: str) -> list[str]:
        text = DOCKERFILE.read_text().replace("\\\n", "")
        return re.findall(rf"^(?:HEALTHCHECK .*)?{name} (.*)$", text, re.MULTILINE)

    async def test_entryPointAndHealthCheck(self) -> None:
        """The command starts a registry, in the data directory of the environment; the health check reports it."""
        (entryPoint,) = map(json.loads, self.instructions("ENTRYPOINT"))
        ((check), command) = (json.loads(text) for text in reversed(self.instructions("CMD")))
        self.assertEqual(command, ["--listen=tcp:8880"])
        program, *arguments = entryPoint
        data = {"RAXSR_DATA_DIR": self.dataDir}
        registry = self.spawn(program, *arguments, "--listen=tcp:0:interface=127.0.0.1", environment=data)
        await registry.says("Credentials")
        url = self.client().settings.baseUrls[0].removesuffix("/v1.0")
        probe = [part.replace("http://127.0.0.1:8880", url) for part in check]
        self.assertNotEqual(probe, check)
        healthy = await self.spawn(*probe).ended
        self.assertEqual((healthy.exitCode, healthy.errors), (0, ""))
        registry.kill("TERM")
        await registry.ended
        self.assertEqual((await self.spawn(*probe).ended).exitCode, 1)

    def test_theVolumeIsTheDataDirectory(self) -> None:
        """The data is in the volume, and nothing of it is root's."""
        self.assertEqual(self.instructions("VOLUME"), ["/data"])
        self.assertIn("RAXSR_DATA_DIR=/data", " ".join(self.instructions("ENV")))
        self.assertEqual(self.instructions("USER"), ["service-registry"])
