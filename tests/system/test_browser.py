"""Attacks of a web page on a registry whose Basic credentials the browser remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.threads import blockingCallFromThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests import CHEAP
from tests.system.browser import OTHER_NAME, browsing, needsBrowser
from tests.system.ports import freePorts
from tests.system.processes import reactor
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Over plain HTTP browsers send Sec-Fetch-Site to this machine only, which they recognize by its address.
HOSTS = ("127.0.0.1", OTHER_NAME)
# A page may send this to any server: a simple method, and a body without a content type.
REGISTER = """([url, mode, id]) => fetch(url, {
    method: "POST", mode, credentials: "include", body: new Blob([JSON.stringify({id, heartbeat_timeout: 120})])
}).then(response => response.status)"""


class _Page(Resource):
    """
    An empty page.

    :param asks: whether it asks for Basic credentials.
    :ivar posts: for each POST, whether it had credentials.
    """

    isLeaf = True

    def __init__(self, *, asks: bool) -> None:
        Resource.__init__(self)
        self.posts: list[bool] = []
        self._asks = asks

    def render(self, request: Request) -> bytes:
        """Answer any request."""
        hasCredentials = request.getHeader("Authorization") is not None
        if request.method == b"POST":
            self.posts.append(hasCredentials)
        # Another server takes over the port.
        request.setHeader("Connection", "close")
        request.setHeader("Content-Type", "text/html")
        if self._asks and not hasCredentials:
            request.setResponseCode(401)
            request.setHeader("WWW-Authenticate", 'Basic realm="service registry", charset="UTF-8"')
        return b"<!DOCTYPE html><title>page</title>"


class RememberedCredentialsTests(TestCase):
    """A browser with credentials of the registry, and a page on another port of the same host."""

    async def registry(self, port: int) -> RegistryService:
        """Start the registry."""
        registry = RegistryService(
            reactor,
            dataDir=self.dataDir,
            endpoints=[f"tcp:{port}:interface=127.0.0.1"],
            keyCost=CHEAP,
            auditLog=self.dataDir.with_suffix(".audit"),
        )
        registry.startService()
        self.addCleanup(registry.stopService)
        await registry.whenListening()
        return registry

    async def test_aPageOnAnotherPortCantWrite(self) -> None:
        """
        The browser sends the credentials with what such a page asks of a server on the registry's port. A registry
        there refuses it, and accepts the same request of a page of its own.
        """
        needsBrowser()
        self.dataDir = Path(self.mktemp()).absolute()
        port, other = freePorts(2)
        await (await self.registry(port)).stopService()
        settings = readSettings(environ={"HOME": str(self.dataDir), "RAXSR_DATA_DIR": str(self.dataDir)})
        server = _Page(asks=True)
        before = reactor.listenTCP(port, Site(server), interface="127.0.0.1")
        pages = reactor.listenTCP(other, Site(_Page(asks=False)), interface="127.0.0.1")
        for each in (before, pages):
            self.addCleanup(maybeDeferred, each.stopListening)

        async def replace() -> RegistryService:
            await maybeDeferred(before.stopListening)
            return await self.registry(port)

        def walk(browser: Browser) -> list[Any]:
            tabs = {host: browser.new_page() for host in HOSTS}
            for host, tab in tabs.items():
                # The registry itself asks no page, and on this machine no browser, for Basic credentials.
                tab.goto(f"http://{settings.username}:{settings.apiKey}@{host}:{port}/")
                tab.goto(f"http://{host}:{other}/")
                tab.evaluate(REGISTER, [f"http://{host}:{port}/v1.0/services", "no-cors", "x"])
            registry = blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(replace()))
            codes = []
            for host, tab in tabs.items():
                tab.evaluate(REGISTER, [f"http://{host}:{port}/v1.0/services", "no-cors", f"other.{host}"])
                tab.goto(f"http://{host}:{port}/v1.0/services")
                codes.append(tab.evaluate(REGISTER, ["/v1.0/services", "same-origin", f"own.{host}"]))
            blockingCallFromThread(reactor, registry.stopService)
            return codes

        codes = await browsing(walk)
        self.assertEqual(server.posts, [True, True])
        self.assertEqual(codes, [201, 201])
        changes = [json.loads(line) for line in self.dataDir.with_suffix(".audit").read_text().splitlines()]
        self.assertEqual(
            [(change["object"], change["result"]) for change in changes],
            [entry for host in HOSTS for entry in ((None, 403), (f"own.{host}", 201))],
        )
