"""Clients lose no request: while servers are restarted one by one, and while all are cut off from the registry."""

from __future__ import annotations

import os
import sys
from collections import Counter

from twisted.internet.defer import Deferred, gatherResults
from twisted.web.client import readBody

from tests.system.etcd.relay import Relay
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase, reactor
from txserviceregistry.discovery import Directory, RegistryAgent
from txserviceregistry.http.messages import BytesProducer

SERVER = [sys.executable, "-S", "-E", os.path.join(os.path.dirname(__file__), "slowserver.py")]
USERS = 8


class NoLostRequestTests(ProcessTestCase):
    """
    Three servers, each in a wrapper, and users who send one POST after another through RegistryAgent: a POST is never
    sent twice, so each connection that breaks is a lost request.
    """

    async def setUp(self) -> None:
        super().setUp()
        (port,) = freePorts(1)
        registry = self.twistd("service-registry", "--store=memory", f"--listen=tcp:{port}:interface=127.0.0.1")
        await registry.says("listens on")
        self.relay = Relay(reactor, port)
        self.relay.start()
        self.addCleanup(self.relay.stop)
        self.ports = freePorts(3)
        self.directory = Directory(self.client())
        self.directory.startService()
        self.addCleanup(self.directory.stopService)
        self.agent = RegistryAgent(reactor, self.directory)
        self.addCleanup(self.agent.close)
        self.answers: Counter[str] = Counter()
        self.isOver = False

    def wrapper(self, number: int, *options: str) -> Child:
        """A server in a wrapper, which reaches the registry through the relay."""
        port = self.ports[number]
        url = self.relay.url
        return self.spawn(
            *("service-registry-wrapper", f"--id=web{number}", "--tags=web", f"--metadata=host=127.0.0.1,port={port}"),
            *(f"--check=tcp:{port}", "--check-interval=0.2", *options, *SERVER, str(port)),
            environment={"RAXSR_API_URL": f"{url}/v1.0", "RAXSR_AUTH_URL": f"{url}/v2.0"},
        )

    async def registered(self, *numbers: int) -> None:
        """Wait until the directory has these servers in use."""

        async def areThere() -> bool:
            found = [self.directory.get(f"web{number}") for number in numbers]
            return all(one is not None and "state" not in one for one in found)

        await self.until(areThere)

    def startUsers(self) -> None:
        """Send requests, until the test ends."""

        async def use() -> None:
            try:
                while not self.isOver:
                    response = await self.agent.request(b"POST", b"registry://web/", None, BytesProducer(b"x"))
                    body: bytes = await readBody(response)
                    self.answers[f"{response.code} {body.decode()}"] += 1
            except Exception as error:
                self.answers[repr(error)] += 1

        users = [Deferred.fromCoroutine(use()) for _ in range(USERS)]

        def end() -> Deferred[list[None]]:
            self.isOver = True
            return gatherResults(users)

        self.addCleanup(end)

    async def noneIsLost(self) -> None:
        """Each request was answered, by each of the servers, and the users still send them."""
        before = self.answers.total()

        async def goOn() -> bool:
            return self.answers.total() >= before + 3 * USERS

        good = {f"200 {port}" for port in self.ports}
        self.assertEqual(set(self.answers), good, self.answers)
        await self.until(goOn)
        self.assertEqual(set(self.answers), good, self.answers)

    async def test_rollingRestart(self) -> None:
        """Three servers are restarted one after the other; each drains first, and no request fails."""
        # Longer than a busy machine needs until the clients know.
        wrappers = [self.wrapper(number, "--drain=4", "--deregister") for number in range(3)]
        await self.registered(0, 1, 2)
        self.startUsers()
        for number in range(3):
            wrappers[number].kill("TERM")
            await wrappers[number].ended
            self.wrapper(number, "--drain=1")
            await self.registered(number)
        await self.noneIsLost()

    async def test_cutOffFromTheRegistry(self) -> None:
        """The servers lose the registry, and expire there; their clients go on using them until they are back."""
        for number in range(3):
            self.wrapper(number, "--interval=3")
        await self.registered(0, 1, 2)
        self.startUsers()
        await self.relay.refuse()
        self.relay.reset()

        async def areGone() -> bool:
            return not self.directory.forTag("web")

        await self.until(areGone)
        await self.noneIsLost()
        self.relay.start()
        await self.registered(0, 1, 2)
        await self.noneIsLost()
