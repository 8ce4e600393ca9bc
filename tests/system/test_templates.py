"""``raxsr template`` with the programs that it is for: nginx and HAProxy under load while instances come and go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests import ROOT
from tests.needs import needs
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry.client import Client

EXAMPLES = ROOT / "examples" / "templates"
# Requests at the same time.
WORKERS = 4


class Page(Resource):
    """Says which instance it is of."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name.encode("ascii")

    def render_GET(self, request: Any) -> bytes:
        """The name."""
        return self._name


class ProxyTests(ProcessTestCase):
    """A registry, a proxy, its template, and instances in this process."""

    def setUp(self) -> None:
        super().setUp()
        self.ports: dict[str, Any] = {}
        self.served: list[str] = []
        self.failures: list[str] = []
        self.isLoading = True

    async def come(self, client: Client, name: str) -> None:
        """Start and register an instance."""
        self.ports[name] = port = reactor.listenTCP(0, Site(Page(name)), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        metadata = {"host": "127.0.0.1", "port": str(port.getHost().port)}
        await client.services.create(name, 120, {"tags": ["www"], "metadata": metadata})

    async def served_(self, names: set[str]) -> None:
        """Wait until exactly these instances get requests."""

        async def areServed() -> bool:
            self.served.clear()
            await deferLater(reactor, 0.3, lambda: None)
            return set(self.served) == names

        await self.until(areServed)

    async def load(self, url: str) -> None:
        """Send requests, each over a connection of its own."""
        while self.isLoading:
            try:
                response = await treq.get(url, persistent=False, timeout=10)
                text = await response.text()
            except Exception as error:
                self.failures.append(repr(error))
                continue
            if response.code == 200:
                self.served.append(text)
            else:
                self.failures.append(f"{response.code} {text[:200]}")

    async def underLoad(self, name: str, check: str, start: list[str], reload: str) -> None:
        """Instances come, are replaced and go while requests are sent: all requests succeed."""
        needs(start[0])
        # HAProxy's sockets have short names only, and nginx's workers run as another user.
        folder = self.makeFolder()
        (port,) = freePorts(1)
        await self.twistd("service-registry", "--listen", "tcp:0:interface=127.0.0.1").says("Credentials")
        client = self.client()
        await client.configuration.set(f"/{start[0]}/listen", f"127.0.0.1:{port}")
        for each in ("web1", "web2"):
            await self.come(client, each)
        template = f"{EXAMPLES / name}.j2:{folder / name}"
        words = ["--check", check, "--wait", "0.2s:1s"]
        environment = {"RAXSR_DATA_DIR": self.dataDir}
        once = await self.spawn("raxsr", "template", template, *words, "--once", environment=environment).ended
        self.assertEqual(once.exitCode, 0, once.errors)
        proxy = self.program(folder, *start)
        url = f"http://127.0.0.1:{port}/"
        await self.until(lambda: treq.get(url, persistent=False).addCallbacks(lambda _: True, lambda _: False))
        keeper = self.spawn("raxsr", "template", f"{template}:cd {folder} && {reload}", *words, environment=environment)
        loading = gatherResults([Deferred.fromCoroutine(self.load(url)) for _ in range(WORKERS)])
        await self.served_({"web1", "web2"})
        await self.come(client, "web3")
        await self.served_({"web1", "web2", "web3"})
        # One leaves in good order, one after the other takes its place, and one ends before the proxy knows it.
        await client.services.remove("web1")
        await self.served_({"web2", "web3"})
        await self.ports["web1"].stopListening()
        await self.come(client, "web4")
        await self.ports["web2"].stopListening()
        await client.services.remove("web2")
        await self.served_({"web3", "web4"})
        self.isLoading = False
        await loading
        self.assertEqual((self.failures, keeper.running, proxy.running), ([], True, True))
        self.assertEqual(keeper.errors.count("rendered"), len(keeper.errors.splitlines()), keeper.errors)

    def makeFolder(self) -> Path:
        """A folder for the proxy."""
        folder = Path(f"/tmp/txsr-{os.getpid()}-{self.id().rpartition('_')[2]}")
        folder.mkdir()
        self.addCleanup(shutil.rmtree, folder)
        return folder

    def program(self, folder: Path, *command: str) -> Child:
        """Start a program of the system's in a folder."""
        child = Child()
        program = shutil.which(command[0])
        assert program is not None
        reactor.spawnProcess(child, program, command, env=os.environ, path=str(folder))
        self.children.append(child)
        return child

    async def test_nginx(self) -> None:
        """nginx, reloaded by a signal to its master process."""
        await self.underLoad(
            "nginx.conf",
            "nginx -t -q -p $(dirname {}) -c {}",
            ["nginx", "-p", ".", "-c", "nginx.conf", "-g", "daemon off;"],
            "nginx -p . -c nginx.conf -s reload",
        )

    async def test_haproxy(self) -> None:
        """HAProxy in master-worker mode, reloaded by SIGUSR2."""
        await self.underLoad(
            "haproxy.cfg",
            "haproxy -c -f {}",
            ["haproxy", "-W", "-f", "haproxy.cfg", "-p", "haproxy.pid"],
            "kill -USR2 $(cat haproxy.pid)",
        )
