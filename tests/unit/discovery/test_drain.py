"""
Real servers that come and go, under clients that call them all the while.
"""

from __future__ import annotations

import os
from pathlib import Path

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import deferLater
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests import CHEAP
from txserviceregistry import Client
from txserviceregistry.discovery import RegisteredEndpoint, RegistryAgent
from txserviceregistry.discovery.balancing import Balancer
from txserviceregistry.discovery.directory import Directory
from txserviceregistry.discovery.endpoints import RegisteredPort
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.settings import readSettings
from txserviceregistry.util.deferred import returnsDeferred


class Page(Resource):
    """Responds with the name of the instance."""

    isLeaf = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def render_GET(self, request: Request) -> bytes:
        return self.name.encode()

    render_POST = render_GET


class Instance:
    """A web server that is registered, and all of whose connections can be cut, as a process's are when it ends."""

    def __init__(self, client: Client, id: str) -> None:
        self.client = client
        self.id = id
        self.generation = 0

    async def start(self) -> None:
        self.generation += 1
        site = Site(Page(f"{self.id}.{self.generation}"))
        site.noisy = False
        # It knows the connections that are open.
        self.wrapping = WrappingFactory(site)
        self.wrapping.noisy = False
        endpoint = serverFromString(reactor, "tcp:0:interface=127.0.0.1")
        port = await RegisteredEndpoint(self.client, endpoint, self.id, 10, ["web"]).listen(self.wrapping)
        assert isinstance(port, RegisteredPort)
        self.port = port
        await port.service.whenRegistered()

    async def stop(self, drain: float, directory: Directory | None = None) -> None:
        await self.port.service.drain(drain)
        while directory is not None and directory.get(self.id) is not None:
            # The clients of a busy machine need longer.
            await deferLater(reactor, drain)
        await self.port.stopListening()
        for connection in list(self.wrapping.protocols):
            connection.loseConnection()


class DrainTests(TestCase):
    """A rolling restart."""

    async def registry(self) -> Client:
        home = os.path.abspath(self.mktemp())
        service = RegistryService(
            reactor, dataDir=home, store="memory", endpoints=["tcp:0:interface=127.0.0.1"], keyCost=CHEAP
        )
        service.startService()
        self.addCleanup(service.stopService)
        await service.whenListening()
        settings = readSettings(environ={"RAXSR_DATA_DIR": home}, home=Path(home))
        client = Client(reactor=reactor, settings=settings)
        self.addCleanup(client.close)
        return client

    @returnsDeferred
    async def call(self, agent: RegistryAgent, method: str) -> None:
        http = HTTPClient(agent)
        while self.calling:
            response = await http.request(method, "registry://web/")
            self.assertEqual(response.code, 200)
            self.answers.append(await response.text())

    async def test_rollingRestart(self) -> None:
        """
        Three instances are restarted one after the other, on other ports, while clients call without pause: not one
        request fails, not one connection is refused, and every instance has answered before and after.
        """
        refused: list[object] = []
        self.patch(Balancer, "failed", lambda balancer, instance: refused.append(instance))
        client = await self.registry()
        instances = [Instance(client, id) for id in ("web1", "web2", "web3")]
        for instance in instances:
            await instance.start()
            self.addCleanup(lambda instance=instance: Deferred.fromCoroutine(instance.stop(drain=0)))
        directory = Directory(client)
        directory.startService()
        self.addCleanup(directory.stopService)
        await directory.whenReady()
        agent = RegistryAgent(reactor, directory)
        self.addCleanup(agent.close)
        self.calling = True
        self.answers: list[str] = []
        callers = [self.call(agent, method) for method in ("GET", "GET", "POST", "POST")]
        for instance in instances:
            await instance.stop(drain=0.5, directory=directory)
            await instance.start()
        seen = len(self.answers)
        again = {f"{instance.id}.2" for instance in instances}
        while again - set(self.answers[seen:]) and not any(caller.called for caller in callers):
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.02, waiting.callback, None)
            await waiting
        self.calling = False
        await gatherResults(callers)
        self.assertEqual(refused, [])
        expected = {f"{instance.id}.{generation}" for instance in instances for generation in (1, 2)}
        self.assertEqual(set(self.answers), expected)
