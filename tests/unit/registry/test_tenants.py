"""Tenants are strictly apart: every route of the API, asked with another tenant's token, path and ids."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from tests import CHEAP
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.http.resource import ApiResource
from txserviceregistry.registry.http.server import ApiSite
from txserviceregistry.registry.identity import Identity
from txserviceregistry.registry.limits import RateLimiter, ResourceLimits
from txserviceregistry.registry.stores.interfaces import IStore
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.stores.sqlite.store import SqliteStore

from .wire import OPERATIONS, Connection, Reply, requestBytes

reactor: Any = globalReactor
ME = "1001"
OTHER = "1002"
# Stands in all that is mine, and in nothing that the other one sends.
MARK = "of-tenant-one"
KEY = "/production/key"
LOCK = "/production/lock"
NONCE = "8ee6ee28-5b6a-4a3a-a2dd-3a9a1a6d7a3b"
ARGUMENTS = {"{serviceId}": "web1", "{namespace}": "production", "{configurationId}": KEY[1:]}

# The body for each route, if it takes one; {token} is the heartbeat token of my service. A route that is missing
# here fails a test: a new one needs an entry here, and below what the other tenant may get of it.
BODIES: Mapping[str, Any] = {
    "getLimits": None,
    "createConsoleLink": None,
    "listServices": None,
    "createService": {"id": "web1", "heartbeat_timeout": 30},
    "getService": None,
    "updateService": {"tags": ["changed"]},
    "removeService": None,
    "getState": None,
    "setState": {"state": "drain", "reason": "changed"},
    "clearState": None,
    "listStates": None,
    "heartbeat": {"token": "{token}"},
    "listPrometheusTargets": None,
    "heartbeats": {"heartbeats": [{"id": "web1", "token": "{token}"}, {"lock": LOCK, "token": "{lockToken}"}]},
    "listValues": None,
    "listNamespace": None,
    "getValue": None,
    "setValue": {"value": "changed"},
    "removeValue": None,
    "listEvents": None,
    "acquireLock": {"name": LOCK, "timeout": 30, "nonce": NONCE},
    "heartbeatLock": {"name": LOCK, "token": "{lockToken}"},
    "releaseLock": {"name": LOCK, "token": "{lockToken}"},
    "listLocks": None,
    "streamEvents": None,
}
# The response to the other tenant, which has nothing, on its own path.
CODES = {"getLimits": 200, "createService": 201, "setValue": 204, "heartbeats": 200, "streamEvents": 200}
CODES |= {"acquireLock": 201, "getState": 200, "setState": 204, "clearState": 204}
CODES.update({name: 200 for name in BODIES if name.startswith("list")})


def calls() -> list[tuple[str, str, str]]:
    """The method, the path below the tenant and the name of every operation."""
    found = []
    for operation in OPERATIONS:
        path = operation.path
        for placeholder, argument in ARGUMENTS.items():
            path = path.replace(placeholder, argument)
        found.append((operation.method, path, operation.name))
    return found


class _TwoTenants:
    """
    A whole registry, spoken to in bytes, with a service, a value and events of one tenant, and nothing of another.

    :ivar tokens: the auth token of each tenant.
    :ivar mine: the heartbeat token of my service, and
    :ivar lock: that of my lock.
    """

    def __init__(self, store: IStore) -> None:
        self._store = store
        self.tokens: dict[str, str] = {}
        self.mine = self.lock = ""

    async def start(self) -> None:
        await self._store.open()
        identity = Identity(self._store, clock=reactor, cost=CHEAP)
        for tenant in (ME, OTHER):
            user, key = await identity.addUser(f"user{tenant}", tenant)
            self.tokens[tenant] = (await identity.authenticate(user.name, key)).id
        # Room for one of each: what is mine must not take the other's place.
        limits = ResourceLimits(service=1, configurationValue=1, lock=1)
        self._registry = Registry(self._store, clock=reactor, limits=limits)
        await self._registry.start()
        resource = ApiResource(
            self._registry, identity, rateLimiter=RateLimiter(reactor.seconds, limit=1000), limits=limits
        )
        self.site = ApiSite(resource, Clock())
        service = {"id": "web1", "heartbeat_timeout": 120, "tags": [MARK], "metadata": {"a": MARK}}
        self.mine = (await self.ask(ME, ME, "POST", "/services", service)).json["token"]
        await self.ask(ME, ME, "PUT", "/configuration/" + KEY, {"value": MARK})
        await self.ask(ME, ME, "PUT", "/services/web1/state", {"state": "out", "reason": MARK})
        lock = {**BODIES["acquireLock"], "holder": MARK, "metadata": {"a": MARK}}
        self.lock = (await self.ask(ME, ME, "POST", "/locks", lock)).json["token"]

    async def stop(self) -> None:
        await self._registry.stop()
        await self._store.close()

    def send(self, who: str, whose: str, method: str, path: str, body: Any = None) -> Connection:
        """A request with the token of *who* for a path of *whose*."""
        connection = Connection(self)  # type: ignore[arg-type]  # it wants the site only
        data = (
            None
            if body is None
            else json.dumps(body).replace("{token}", self.mine).replace("{lockToken}", self.lock).encode()
        )
        connection.send(requestBytes(method, f"/v1.0/{whose}{path}", data, {"X-Auth-Token": self.tokens[who]}))
        return connection

    async def ask(self, who: str, whose: str, method: str, path: str, body: Any = None) -> Reply:
        """The answer to such a request."""
        return await self.reply(self.send(who, whose, method, path, body))

    async def reply(self, connection: Connection) -> Reply:
        """The answer that comes, or has come."""
        while not connection.transport.value():
            await deferLater(reactor, 0.001, lambda: None)
        (reply,) = connection.replies()
        return reply

    async def allThatIsMine(self) -> list[Any]:
        """Everything that I can see."""
        paths = ("/services?states=true", "/configuration", "/states", "/locks", "/events?types=all")
        return [(await self.ask(ME, ME, "GET", path)).json["values"] for path in paths]


class TenantsTestsMixin:
    """The tests, over a store."""

    mktemp: Callable[[], str]
    assertEqual: Callable[..., Any]
    assertNotIn: Callable[..., Any]
    assertIn: Callable[..., Any]

    def makeStore(self) -> IStore:
        """A new store."""
        raise NotImplementedError

    async def with_(self, work: Callable[[_TwoTenants], Awaitable[None]]) -> None:
        """Do something with a registry of its own."""
        tenants = _TwoTenants(self.makeStore())
        await tenants.start()
        try:
            await work(tenants)
        finally:
            await tenants.stop()

    async def test_anotherTenantsTokenOpensNothing(self) -> None:
        """With another tenant's token every route on my path is a 401, discloses nothing and changes nothing."""

        async def work(tenants: _TwoTenants) -> None:
            before = await tenants.allThatIsMine()
            for method, path, name in calls():
                reply = await tenants.ask(OTHER, ME, method, path, BODIES[name])
                self.assertEqual(reply.code, 401, name)
                self.assertNotIn(MARK, reply.raw.decode(), name)
            for query in ("wait=1", f"wait=60&marker={before[-1][-1]['id']}"):
                self.assertEqual((await tenants.ask(OTHER, ME, "GET", f"/events?{query}")).code, 401)
            self.assertEqual(await tenants.allThatIsMine(), before)

        await self.with_(work)

    async def test_myIdsMeanNothingOnAnotherTenantsPath(self) -> None:
        """On its own path another tenant finds nothing of mine by my ids, and what it does there is not done to me."""

        async def work(tenants: _TwoTenants, method: str, path: str, name: str) -> None:
            before = await tenants.allThatIsMine()
            reply = await tenants.ask(OTHER, OTHER, method, path, BODIES[name])
            text = reply.raw.decode()
            self.assertEqual(reply.code, CODES.get(name, 404), (name, text))
            self.assertNotIn(MARK, text, name)
            if name.startswith("list"):
                self.assertEqual(reply.json if name == "listPrometheusTargets" else reply.json["values"], [], name)
            elif name == "heartbeats":
                self.assertEqual([value["fault"]["code"] for value in reply.json["values"]], [404, 404])
            elif name == "getLimits":
                self.assertEqual(reply.json["rate"]["/.*"]["used"], 0)
            self.assertEqual(await tenants.allThatIsMine(), before, name)

        for call in calls():
            await self.with_(lambda tenants, call=call: work(tenants, *call))  # type: ignore[misc]  # mypy can't see the default

    async def test_myHeartbeatTokenIsForNoOtherService(self) -> None:
        """A service of the same id that another tenant has does not take the token of mine, alone or in a batch."""

        async def work(tenants: _TwoTenants) -> None:
            await tenants.ask(OTHER, OTHER, "POST", "/services", BODIES["createService"])
            reply = await tenants.ask(OTHER, OTHER, "POST", "/services/web1/heartbeat", BODIES["heartbeat"])
            self.assertEqual(reply.code, 404)
            self.assertIn("HeartbeatMarker", reply.json["details"])
            reply = await tenants.ask(OTHER, OTHER, "POST", "/heartbeats", BODIES["heartbeats"])
            self.assertIn("HeartbeatMarker", reply.json["values"][0]["fault"]["details"])
            for tenant in (ME, OTHER):
                service = (await tenants.ask(tenant, tenant, "GET", "/services/web1")).json
                self.assertEqual(service["last_seen"], None)
            self.assertEqual(
                (await tenants.ask(ME, ME, "POST", "/services/web1/heartbeat", BODIES["heartbeat"])).code, 200
            )

        await self.with_(work)

    async def test_aSubscriberGetsEventsOfItsOwnTenantOnly(self) -> None:
        """My changes notify subscribers to my events only, and my events are in no other tenant's feed."""

        async def work(tenants: _TwoTenants) -> None:
            marker = (await tenants.ask(ME, ME, "GET", "/events")).json["values"][-1]["id"]
            mine = tenants.send(ME, ME, "GET", f"/events?wait=60&marker={marker}")
            others = tenants.send(OTHER, OTHER, "GET", "/events?wait=60")
            await tenants.ask(ME, ME, "DELETE", "/services/web1")
            self.assertEqual(
                [event["type"] for event in (await tenants.reply(mine)).json["values"]][-1], "service.remove"
            )
            # A round trip of the other's own, through the same store, later than what would have woken it.
            self.assertEqual((await tenants.ask(OTHER, OTHER, "GET", "/events")).json["values"], [])
            self.assertEqual(others.transport.value(), b"")
            await tenants.ask(OTHER, OTHER, "PUT", "/configuration/" + KEY, {"value": "own"})
            (event,) = (await tenants.reply(others)).json["values"]
            self.assertEqual(event["payload"]["new_value"], "own")
            # My event's id is not in the other's feed, and nothing of mine is at it.
            reply = await tenants.ask(OTHER, OTHER, "GET", f"/events?marker={marker}")
            self.assertNotIn(MARK, reply.raw.decode())

        await self.with_(work)


class MemoryTenantsTests(TenantsTestsMixin, TestCase):
    """Over the memory store."""

    def makeStore(self) -> IStore:
        return MemoryStore()


class SqliteTenantsTests(TenantsTestsMixin, TestCase):
    """Over the sqlite store."""

    def makeStore(self) -> IStore:
        return SqliteStore(self.mktemp(), reactor=reactor)


class RoutesTests(TestCase):
    """The walk itself."""

    def test_knowsEveryRoute(self) -> None:
        """A route that is added to the API has to be added to this walk, and one that is removed to leave it."""
        self.assertEqual({name for _, _, name in calls()}, set(BODIES))
        for _, path, name in calls():
            self.assertNotIn("{", path, name)
