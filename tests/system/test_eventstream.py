"""The event stream with clients that are not ours: curl, node, and EventSource in Chromium behind nginx."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import treq
from twisted.internet.interfaces import IReactorProcess
from twisted.internet.threads import blockingCallFromThread

from tests.needs import needs, nodeModule
from tests.system.browser import browsing, needsBrowser
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry.settings import readSettings
from txserviceregistry.util.deferred import returnsDeferred

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NGINX = """
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            default_type text/html;
            return 200 "<!DOCTYPE html><title>page</title>";
        }}
        location /v1.0/ {{
            proxy_pass http://127.0.0.1:{registry};
            proxy_set_header X-Auth-Token {token};
        }}
    }}
}}
"""
FOLLOW = """(url) => {
    window.heard = [];
    const source = new EventSource(url);
    for (const type of ["ping", "reset", "service.join"]) {
        source.addEventListener(type, (event) => heard.push([type, event.lastEventId, JSON.parse(event.data)]));
    }
}"""


NODE = """
const EventSource = require("eventsource");
const [url, token] = process.argv.slice(1);
const source = new EventSource(url, {headers: {"X-Auth-Token": token}});
for (const type of ["ping", "reset", "service.join"])
    source.addEventListener(type, (event) => console.log(type, event.lastEventId, event.data));
"""


class RealClientsTests(ProcessTestCase):
    """Clients that know nothing of this project."""

    async def begin(self) -> None:
        """Start a registry; find out a token and the path of the stream."""
        self.port, self.front = freePorts(2)
        await self.startRegistry()
        settings = readSettings(environ={"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        credentials = {"username": settings.username, "apiKey": settings.apiKey}
        response = await treq.post(
            f"http://127.0.0.1:{self.port}/v2.0/tokens",
            json={"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}},
            persistent=False,
        )
        token = (await response.json())["access"]["token"]
        self.token, self.path = token["id"], f"/v1.0/{token['tenant']['id']}/events/stream?types=all"

    async def startRegistry(self) -> None:
        self.registry = self.twistd("service-registry", "--listen", f"tcp:{self.port}:interface=127.0.0.1")
        await self.registry.says("listens")

    def startNginx(self) -> None:
        self.nginx = self.run_("nginx", "-p", ".", "-c", "nginx.conf", "-g", "daemon off;")

    def run_(self, *command: str, environment: Mapping[str, str] | None = None) -> Child:
        """Start a program of the system."""
        child = Child()
        program = shutil.which(command[0])
        assert program is not None
        where = {**os.environ, **(environment or {})}
        IReactorProcess(reactor).spawnProcess(child, program, command, env=where, path=self.home)
        self.children.append(child)
        return child

    async def test_curl(self) -> None:
        """curl -N prints events as they happen, and ends with the registry."""
        needs("curl")
        await self.begin()
        curl = self.run_(
            "curl", "-sNi", "-H", f"X-Auth-Token: {self.token}", f"http://127.0.0.1:{self.port}{self.path}"
        )
        await curl.says("event: ping")
        await self.client().services.create("web1", 120)
        await curl.says('"id": "web1"')
        self.assertNotIn("Transfer-Encoding", curl.output)
        self.registry.kill("TERM")
        await curl.ended
        self.assertEqual(curl.exitCode, 0)

    async def test_node(self) -> None:
        """npm's eventsource, which sends the token itself, goes on where it was after a restart of the registry."""
        environment = nodeModule("eventsource")
        await self.begin()
        url = f"http://127.0.0.1:{self.port}{self.path}"
        node = self.run_("node", "-e", NODE, url, self.token, environment=environment)
        await node.says("ping")
        await self.client().services.create("web1", 120)
        await node.says('"id": "web1"')
        self.registry.kill("TERM")
        await self.registry.ended
        await self.startRegistry()
        await self.client().services.create("web2", 120)
        await node.says('"id": "web2"')
        kinds = [line.split(" ")[0] for line in node.output.splitlines()]
        self.assertEqual([kind for kind in kinds if kind != "ping"], ["service.join"] * 2)
        self.assertGreaterEqual(kinds.count("ping"), 2)

    async def test_eventSource(self) -> None:
        """
        A page gets events through nginx, which adds the token and does not collect them. After a restart of nginx
        EventSource goes on where it was.
        """
        needs("nginx")
        needsBrowser()
        await self.begin()
        config = NGINX.format(port=self.front, registry=self.port, token=self.token)
        with open(os.path.join(self.home, "nginx.conf"), "w") as file:
            file.write(config)
        self.startNginx()
        url = f"http://127.0.0.1:{self.front}/"
        await self.until(lambda: treq.get(url, persistent=False).addCallbacks(lambda _: True, lambda _: False))
        self.heard: list[Any] = []
        await browsing(self.walk)
        kinds = [kind if kind == "ping" else data["payload"]["id"] for kind, _, data in self.heard]
        self.assertEqual(kinds[:2], ["ping", "web1"])
        self.assertEqual([kind for kind in kinds if kind != "ping"], ["web1", "web2", "web3"])
        # The first ping after the restart has the place from which the stream goes on.
        web1, again = self.heard[1], next(each for each in self.heard[2:] if each[0] == "ping")
        self.assertEqual(again[1], web1[1])

    def walk(self, browser: Browser) -> None:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{self.front}/")
        page.evaluate(FOLLOW, self.path)
        page.wait_for_function("heard.length > 0")
        blockingCallFromThread(reactor, self.create, "web1")
        page.wait_for_function("heard.length > 1")
        blockingCallFromThread(reactor, self.restart)
        page.wait_for_function("heard.some((each) => each[2].payload?.id === 'web2')")
        blockingCallFromThread(reactor, self.create, "web3")
        page.wait_for_function("heard.some((each) => each[2].payload?.id === 'web3')")
        self.heard += page.evaluate("heard")

    def create(self, id: str) -> Any:
        return self.client().services.create(id, 120)

    @returnsDeferred
    async def restart(self) -> None:
        """Restart nginx. A service is registered meanwhile."""
        self.nginx.kill("TERM")
        await self.nginx.ended
        await self.create("web2")
        self.startNginx()
