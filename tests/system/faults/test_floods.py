"""Rows 28 to 30: floods of clients that have no valid token."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import treq
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from tests.certificates import Holder
from tests.system.processes import Child, reactor
from txserviceregistry import Client
from txserviceregistry.registry.identity import Identity
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

from .attackcase import AttackCase, told

T = TypeVar("T")

#: How many times as long a valid request may take as it does while the same flood is at another registry.
TIMES = 10
#: How many valid requests of a kind are measured at most.
AT_MOST = 200
#: How often a short run compares at most.
_COMPARISONS = 3


@cache
def holder(bits: int) -> Holder:
    """A certificate with a key of so many bits."""
    return Holder("registry", private=rsa.generate_private_key(65537, bits))


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do some things at the same time; what each brings."""
    return list(await gatherResults([Deferred.fromCoroutine(work) for work in works], consumeErrors=True))


class FloodCase(AttackCase):
    """
    Services, and clients that send valid requests, share their address with the flood. The control is the same flood at
    a second registry on the same machine.
    """

    listen = "tcp:0:interface=127.0.0.1"

    async def started(self) -> None:
        """Start the registry, the control, and the application."""
        # The larger key takes seconds to make.
        certificate = holder(4096 if self.isFull else 2048)
        for name, content in (("key.pem", certificate.key), ("cert.pem", certificate.fullChain)):
            Path(self.home, name).write_bytes(content)
        self.medians: dict[str, float] = {}
        self.control, self.port = await together(
            [self.listening("--store=memory", "--data-dir=control"), self.listening()]
        )
        count = 20 if self.isFull else 5
        self.application_ = await self.application(f"--services={count}", f"--timeout={self.heartbeatTimeout}")
        await self.registered(self.application_, count)
        self.valid = self.client(cache=None)
        await self.valid.services.list(limit=10)
        self.settings = self.valid.settings

    async def listening(self, *arguments: str) -> int:
        """Start a registry; the port that it listens on."""
        registry = self.twistd("service-registry", "--listen", self.listen, *arguments)
        await registry.says("Credentials")
        listens = re.search(r"listens on https?://127\.0\.0\.1:(\d+)", registry.output)
        assert listens is not None
        return int(listens[1])

    @property
    def seconds(self) -> float:
        """For how long each kind of valid request is measured."""
        return 20 if self.isFull else 0.25

    async def took(self, request: Callable[[], Awaitable[object]], seconds: float) -> list[float]:
        """How long each of some requests takes, in milliseconds, one after the other. None may fail."""
        took: list[float] = []
        end = reactor.seconds() + seconds
        while (not took or reactor.seconds() < end) and len(took) < AT_MOST:
            began = reactor.seconds()
            await request()
            took.append((reactor.seconds() - began) * 1000)
            await deferLater(reactor, 0.02, lambda: None)
        return took

    async def flooded(
        self, kind: str, count: int, *arguments: str, **requests: Callable[[], Awaitable[object]]
    ) -> dict[str, Any]:
        """
        Let a flood go to the control, then to the registry, and compare how long valid requests take meanwhile.

        :param requests: valid requests, each under its name.
        :return: what the attackers of the registry were answered.
        """
        slow: list[str] = []
        for _ in range(1 if self.isFull else _COMPARISONS):
            # A short run has one control for all its floods.
            if self.isFull or slow or not requests.keys() <= self.medians.keys():
                elsewhere, _ = await self.measured(self.control, kind, count, *arguments, **requests)
                self.medians.update({name: statistics.median(took) for name, took in elsewhere.items()})
            during, answers = await self.measured(self.port, kind, count, *arguments, **requests)
            slow = [name for name, here in during.items() if statistics.median(here) >= self.limit(name)]
            # It has few samples, and other tests beside it, which come and go.
            if not slow:
                break
        for name, here in during.items():
            without, with_ = self.medians[name], statistics.median(here)
            what = f"{count} {kind}: {name.replace('_', ' ')}"
            self.tell(f"{what}, ms", f"{without:.1f}, {with_:.1f}, {max(here):.0f}")
            self.assertLess(with_, self.limit(name), what)
        self.tell(f"{count} {kind}: outcomes", json.dumps(answers["codes"]))
        await self.stillThere(self.valid, self.application_)
        return answers

    def limit(self, name: str) -> float:
        """How long a valid request may take, in milliseconds."""
        return TIMES * max(self.medians[name], 2.0 if self.isFull else 5.0)

    async def measured(
        self, port: int, kind: str, count: int, *arguments: str, **requests: Callable[[], Awaitable[object]]
    ) -> tuple[dict[str, list[float]], dict[str, Any]]:
        """How long valid requests take while a flood goes to a port, and what its attackers were answered."""
        attackers = self.attack(kind, count, *arguments, port=port)
        await self.until(lambda: self.areAtWork([attackers]))
        # The first burst, in which all attackers begin at once, is over then.
        await deferLater(reactor, 2 if self.isFull else 0.5, lambda: None)
        took = {
            name: await self.took(request, 0 if name.startswith("some") else self.seconds)
            for name, request in requests.items()
        }
        # However late the attackers have had their turn, there was a flood.
        await self.until(lambda: self.haveBeenAnswered(attackers))
        answers = told(attackers)
        await self.ended(attackers)
        return took, answers

    async def haveBeenAnswered(self, attackers: Child) -> bool:
        """Whether the attackers have received more than a few responses."""
        codes: dict[str, int] = told(attackers)["codes"]
        return sum(codes.values()) > 10

    async def ended(self, child: Child) -> None:
        child.kill("TERM")
        await child.ended

    async def get(self) -> None:
        """A GET over a connection that is there."""
        await self.valid.services.list(limit=10)

    async def login(self, username: str, key: str) -> str:
        """Authenticate over a new connection; the token."""
        response = await treq.post(
            f"http://127.0.0.1:{self.port}/v2.0/tokens",
            json={"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": username, "apiKey": key}}},
            persistent=False,
        )
        self.assertEqual(response.code, 200)
        token: str = (await response.json())["access"]["token"]["id"]
        return token


class HandshakeTests(FloodCase):
    """TLS handshakes, each of which costs the registry a signature and the attacker next to nothing."""

    row = 28
    fault = "A flood of TLS handshakes, 4,096-bit key"
    listen = "ssl:0:privateKey=key.pem:certKey=cert.pem:interface=127.0.0.1"

    async def test_handshakes(self) -> None:
        """Clients that are connected are served as ever; from another address than the flood, new ones are too."""
        await self.started()
        count = 50 if self.isFull else 10
        if self.isFull:
            await self.flooded("handshake", count, a_GET=self.get)
        answers = await self.flooded(
            *("handshake", count, "--addresses=1"), a_GET=self.get, a_new_client_from_another_address=self.newClient
        )
        self.assertGreater(answers["codes"]["signed"], 10)

    async def newClient(self) -> None:
        client: Client = self.client(cache=None)
        await client.services.list(limit=10)
        await client.close()


class LoginTests(FloodCase):
    """Logins with wrong keys."""

    row = 29
    fault = "260 connections that each try a wrong API key a second"

    async def users(self, count: int) -> list[tuple[str, str]]:
        """Add users; their names and keys."""
        store = SqliteStore(str(Path(self.home, self.dataDir, "registry.sqlite")), reactor=reactor)
        await store.open()
        identity = Identity(store, clock=reactor)
        users = [await identity.addUser(f"user{number}") for number in range(count)]
        await store.close()
        return [(user.name, key) for user, key in users]

    async def test_logins(self) -> None:
        """Wrong keys of a user, and of users that there are not, hold up neither that user nor others."""
        await self.started()
        fresh = await self.users(40 if self.isFull else 4 * _COMPARISONS)
        count = 10 if self.isFull else 1

        async def first() -> None:
            """Authenticate some users that have not done so before."""
            for _ in range(count):
                await self.login(*fresh.pop())

        async def again() -> None:
            await self.login(self.settings.username or "", self.settings.apiKey or "")

        await again()
        for kind in ("login", "guess"):
            await self.flooded(kind, 260, "--user=local", some_first_logins=first, a_login=again, a_GET=self.get)


class RefusedTests(FloodCase):
    """Requests with tokens that do not count."""

    row = 30
    fault = "Requests without a valid token: over 1,000 connections, pipelined, or over new connections each"

    async def test_refused(self) -> None:
        """However they come, requests that are refused do not hold up others, over old connections or new ones."""
        await self.started()
        token = await self.login(self.settings.username or "", self.settings.apiKey or "")

        async def new() -> None:
            response = await treq.get(
                f"http://127.0.0.1:{self.port}/v1.0/1/limits", headers={"X-Auth-Token": token}, persistent=False
            )
            self.assertEqual(response.code, 200)
            await response.content()

        async def again() -> None:
            await self.login(self.settings.username or "", self.settings.apiKey or "")

        for kind, count in (("refused", 1000), ("pipeline", 50), ("reconnect", 300)):
            count = count if self.isFull else min(count, 100)
            path = "--path=/v1.0/1/services"
            await self.flooded(kind, count, path, a_GET=self.get, a_GET_over_a_new_connection=new, a_login=again)
