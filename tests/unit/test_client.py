"""
The client as a whole, over real sockets, as an application has it.
"""

from __future__ import annotations

from contextvars import ContextVar
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher, textFileLogObserver
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.client import Client
from txserviceregistry.clock import SuspendWatch
from txserviceregistry.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    InvalidSettings,
    MalformedResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
    ServiceRegistryError,
    Unauthorized,
)
from txserviceregistry.http import pool
from txserviceregistry.settings import readSettings

from ..fakeagent import API_KEY, TOKEN, WEB1, FakeAgent, FakeApi, Sent, access, answer, authFault, fault
from ..loopback import Call, LoopbackTestCase, Server

BEAT = "the-heartbeat-token"


class ClientTestCase(LoopbackTestCase):
    """A client of a scripted registry."""

    def registry(self, handler: Any) -> Server:
        """A registry whose Auth API gives tokens, and whose API is *handler*."""

        def handle(call: Call) -> None:
            if call.isAuthentication:
                call.answer(200, access())
            else:
                handler(call)

        return self.serve(handle)

    def client(self, *servers: Server | str, **options: Any) -> Client:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        client = Client("joe", API_KEY, baseUrl=[f"{url}/v1.0" for url in urls], reactor=reactor, **options)
        self.addCleanup(client.close)
        return client

    def calls(self, server: Server) -> list[Call]:
        return [call for call in server.calls if not call.isAuthentication]


class ConnectionTests(ClientTestCase):
    """Connections as they are in the world."""

    async def test_oneConnectionServesAuthenticationAndAll(self) -> None:
        """The Auth API and the registry at one address share the connection."""
        server = self.registry(lambda call: call.answer(200, WEB1))
        client = self.client(server)
        for _ in range(3):
            await client.services.get("web1")
        self.assertEqual((server.opened, len(server.calls)), (1, 4))
        self.assertEqual(self.calls(server)[0].headers["x-auth-token"], TOKEN)

    async def test_tellsTheTraceOfEachRequest(self) -> None:
        """The header is the one that is current where a request begins; one that is not valid is not sent."""
        server = self.registry(lambda call: call.answer(200, WEB1))
        trace: ContextVar[str | None] = ContextVar("trace", default=None)
        client = self.client(server, traceparent=trace.get)
        valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for value in (None, valid, "not\r\nvalid"):
            trace.set(value)
            await client.services.get("web1")
        self.assertEqual([call.headers.get("traceparent") for call in self.calls(server)], [None, valid, None])

    async def test_manyHeartbeatsUseTwoConnections(self) -> None:
        """Heartbeats of many services at once go over two connections."""
        # On a machine that stands still for a moment, none of them hangs.
        self.patch(pool, "HANGING", 60.0)
        server = self.registry(lambda call: call.answer(200, {"token": BEAT}))
        client = self.client(server, timeout=60)
        await gatherResults([client.services.heartbeat(f"web{n}", BEAT) for n in range(20)])
        self.assertEqual(server.mostOpen, 2)

    async def test_retriesAtOnceWhenTheConnectionWasStale(self) -> None:
        """A heartbeat on connections that the server closes at that moment succeeds."""
        stale = True

        def handle(call: Call) -> None:
            nonlocal stale
            if call.nth > 1 and stale:
                call.reset() if call.path.endswith("web1/heartbeat") else call.hangUp()
            else:
                call.answer(200, {"token": BEAT})

        server = self.serve(lambda call: call.answer(200, access()) if call.isAuthentication else handle(call))
        client = self.client(server)
        await client.services.heartbeat("web1", BEAT)
        beats = [client.services.heartbeat(id, BEAT) for id in ("web1", "web2")]
        self.assertEqual(await gatherResults(beats), [{"token": BEAT}] * 2)

    async def test_idleConnectionsAreClosedAfterASuspend(self) -> None:
        """A request would hang on one. A new request has a new connection."""
        self.patch(SuspendWatch, "TICK", 0.01)
        slept = [0.0]
        server = self.registry(lambda call: call.answer(200, WEB1))
        client = self.client(server, suspended=lambda: slept[0])
        resumed: Deferred[float] = Deferred()
        client.services.context.suspends.add(resumed.callback)
        await client.services.get("web1")
        self.assertEqual(len(server.open), 1)
        slept[0] = 60.0
        await resumed
        client.services.context.suspends.discard(resumed.callback)
        await client.services.get("web1")
        self.assertEqual(server.opened, 2)

    async def test_connectionsToAnotherProgramAreClosed(self) -> None:
        """Since the connection was made, the registry's name may have got another address, which a new one finds."""
        for status in (200, 404, 502):
            await self.leaves(status)

    async def leaves(self, status: int) -> None:
        def handle(call: Call) -> None:
            isFormer = server.opened == 1 and call.nth > 2
            call.answer(*((status, b"<p>Another site</p>") if isFormer else (200, WEB1)))

        server = self.registry(handle)
        client = self.client(server)
        await client.services.get("web1")
        with self.assertRaises(ServiceRegistryError):
            await client.services.get("web1")
        self.assertEqual((await client.services.get("web1"))["id"], "web1")
        self.assertEqual(server.opened, 2)

    async def test_aCreateThatWasNotAnsweredIsNotRepeated(self) -> None:
        """A create whose answer is lost fails: it may have happened."""
        server = self.registry(lambda call: call.hangUp())
        client = self.client(server)
        with self.assertRaises(ConnectionFailed):
            await client.services.create("web1", 15)
        self.assertEqual(len(self.calls(server)), 1)

    async def test_aServerThatIsNotThere(self) -> None:
        """A refused connection is a ConnectionFailed that names the URL and says what to do."""
        url = self.unusedUrl()
        with self.assertRaises(ConnectionFailed) as caught:
            await self.client(url).services.list()
        text = str(caught.exception)
        self.assertIn(f"{url}/v2.0/tokens", text)
        self.assertIn("connection refused", text)
        self.assertIn("Check that it runs", text)

    async def test_silenceEndsInTime(self) -> None:
        """A server that says nothing, or stops in the middle of a body, costs the timeout and the connection."""

        def handle(call: Call) -> None:
            if "known" in call.path:
                call.answer(200, {"token": BEAT})
            elif "body" in call.path:
                call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        server = self.registry(handle)
        client = self.client(server)
        await client.services.heartbeat("known", BEAT)
        for id in ("silence", "body"):
            with self.assertRaises(RequestTimedOut) as caught:
                await client.services.heartbeat(id, BEAT, timeout=0.1)
            self.assertIn(f"/services/{id}/heartbeat timed out after 0.1 s", str(caught.exception))
        await self.until(lambda: not server.open)

    async def test_aCutAnswerIsMalformed(self) -> None:
        """A connection that ends in the middle of an answer is told as such."""

        def handle(call: Call) -> None:
            call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            call.hangUp()

        with self.assertRaises(MalformedResponse):
            await self.client(self.registry(handle)).services.get("web1")

    async def test_theNextUrlWhenOneIsDown(self) -> None:
        """Of several URLs one that works is found, for the Auth API too, and stayed with."""
        server = self.registry(lambda call: call.answer(200, WEB1))
        client = self.client(self.unusedUrl(), server)
        for _ in range(2):
            await client.services.get("web1")
        self.assertEqual(len(self.calls(server)), 2)

    async def test_localAddress(self) -> None:
        """localAddress() is the address under which this machine reaches the registry, however that is used."""
        for close in (False, True):
            client = self.client(
                self.registry(lambda call, close=close: call.answer(200, {"resource": {}, "rate": {}}, close=close))
            )
            addresses = await gatherResults([client.localAddress() for _ in range(10)])
            self.assertEqual(set(addresses), {"127.0.0.1"})

    async def test_treq(self) -> None:
        """client.treq is treq with the client's token and connections."""
        server = self.registry(lambda call: call.answer(200, {"path": call.path, "sent": call.body.decode()}))
        client = self.client(server)
        response = await client.treq.post(f"{server.url}/v1.0/7/heartbeats", json={"a": 1})
        self.assertEqual(await response.json(), {"path": "/v1.0/7/heartbeats", "sent": '{"a":1}'})
        self.assertEqual(self.calls(server)[0].headers["x-auth-token"], TOKEN)


class AuthenticationTests(ClientTestCase):
    """Staying authenticated."""

    async def test_aPurgedTokenCostsOneAuthentication(self) -> None:
        """60 requests in flight when the token expires: one authentication, and all succeed."""
        issued, valid = 0, "token-1"

        def handle(call: Call) -> None:
            nonlocal issued
            if call.isAuthentication:
                issued += 1
                call.answer(200, access(f"token-{issued}"))
            elif call.headers["x-auth-token"] == valid:
                call.answer(200, {"token": BEAT})
            else:
                call.answer(401, {"type": "unauthorizedError", "code": 401, "message": "forbidden"})

        # They take seconds, and each spends them on waiting for the others: more than a slow machine needs.
        client = self.client(self.serve(handle), timeout=60)
        await client.services.heartbeat("web1", BEAT)
        valid = "token-2"
        await gatherResults([client.services.heartbeat("web1", BEAT) for _ in range(60)])
        self.assertEqual(issued, 2)
        valid = "none"
        with self.assertRaises(Unauthorized):
            await client.services.heartbeat("web1", BEAT)

    async def test_aWrongKeyFailsAtOnce(self) -> None:
        """A refused key is one request and an AuthenticationFailed for everybody."""
        server = self.serve(lambda call: call.answer(401, {"unauthorized": {"code": 401, "message": "invalid"}}))
        client = self.client(server)
        for request in [client.services.list() for _ in range(10)]:
            with self.assertRaises(AuthenticationFailed):
                await request
        self.assertEqual(len(server.calls), 1)

    async def test_anAuthApiThatIsDownIsNotNoticed(self) -> None:
        """While the token is valid, the Auth API may be unreachable."""
        up = True

        def handle(call: Call) -> None:
            if not call.isAuthentication:
                call.answer(200, WEB1)
            elif up:
                call.answer(200, access(expires="2099-01-01T00:00:00.000-06:00"))
            else:
                call.reset()

        client = self.client(self.serve(handle))
        await client.services.get("web1")
        up = False
        await client.services.get("web1")


class CloseTests(ClientTestCase):
    """The end."""

    async def test_closingEndsEverything(self) -> None:
        """A request that is under way, queued or comes later fails with a clear ConnectionFailed; no socket is left."""
        server = self.registry(lambda call: None)
        client = self.client(server)
        requests = [client.services.get(f"web{n}") for n in range(5)]
        await self.until(lambda: len(self.calls(server)) == 2)
        first = client.close()
        for request in [*requests, client.services.list()]:
            error = self.failureResultOf(request, ConnectionFailed).value
            self.assertIn("this client has been closed", str(error))
        await first
        await client.close()
        await self.until(lambda: not server.open)

    async def test_closingDuringAuthentication(self) -> None:
        """A client that is closed while it waits for the Auth API leaves nothing behind either."""
        server = self.serve(lambda call: None)
        client = self.client(server)
        request = client.services.list()
        await self.until(lambda: server.calls)
        await client.close()
        self.failureResultOf(request, ConnectionFailed)
        await self.until(lambda: not server.open)

    async def test_withStatement(self) -> None:
        """`async with` closes the client."""
        server = self.registry(lambda call: call.answer(200, WEB1))
        async with Client("joe", API_KEY, "us", f"{server.url}/v1.0") as client:
            await client.services.get("web1")
        await self.until(lambda: not server.open)

    async def test_cancellingClosesTheSocket(self) -> None:
        """Cancelling a call at any stage fails it with CancelledError, and its connection is closed."""

        def handle(call: Call) -> None:
            if call.path.endswith("body"):
                call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

        server = self.registry(handle)
        client = self.client(server)
        for id in ("head", "body"):
            request = client.services.get(id)
            await self.until(lambda id=id: any(call.path.endswith(id) for call in server.calls))
            request.cancel()
            self.failureResultOf(request, CancelledError)
            await self.until(lambda: not server.open)


class SecretsTests(ClientTestCase):
    """Nothing tells."""

    async def test_noSecretIsShown(self) -> None:
        """However things fail, key, auth token and heartbeat token are in no text, repr, traceback or log line."""
        log = StringIO()
        observer = textFileLogObserver(log)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        details = f'"HeartbeatMarker" with key "{BEAT}"'
        echo = {"type": "notFoundError", "code": 404, "message": f"no {BEAT}", "details": details}
        ways = iter(
            [
                lambda call: call.answer(401, {"unauthorized": {"code": 401, "message": f"{API_KEY} is wrong"}}),
                lambda call: call.answer(503, {"fault": {"message": f"{API_KEY} is wrong"}}),
                lambda call: call.answer(200, {"access": TOKEN}),
                lambda call: call.hangUp(),
                lambda call: call.answer(404, echo),
                lambda call: call.answer(500, b"<html>"),
                lambda call: call.answer(200, b"<html>"),
                lambda call: call.hangUp(),
                lambda call: None,
            ]
        )
        shown = []
        kinds = set()
        for number, way in enumerate(ways):

            def handle(call: Call, way: Any = way, number: int = number) -> None:
                if call.isAuthentication and number > 3:
                    call.answer(200, access())
                else:
                    way(call)

            client = self.client(self.serve(handle))
            try:
                # The last way is to say nothing at all.
                await client.services.heartbeat("web1", BEAT, timeout=0.1 if number == 8 else None)
            except ServiceRegistryError as error:
                kinds.add(type(error))
                shown += [str(error), repr(error), repr(vars(error)), repr(client), repr(client.settings)]
            else:
                self.fail("the heartbeat went well")
        self.assertEqual(
            kinds, {AuthenticationFailed, ServerError, MalformedResponse, ConnectionFailed, NotFound, RequestTimedOut}
        )
        created = await self.client(self.registry(lambda call: call.answer(201, {"token": BEAT}))).services.create(
            "abc", 5
        )
        shown += [repr(created[1]), log.getvalue()]
        for secret in (API_KEY, TOKEN, BEAT):
            for text in shown:
                self.assertNotIn(secret, text)


class ConstructionTests(SynchronousTestCase):
    """How a client is made."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp())
        self.home.mkdir()

    def test_asInTheOldLibrary(self) -> None:
        """Client(username, apiKey, 'us', baseUrl, agent), by position."""
        agent = FakeApi(lambda sent: answer(200, WEB1))
        client = Client("joe", API_KEY, "us", "http://registry/v1.0", agent, reactor=Clock(), authUrl="http://a/v2.0")
        self.successResultOf(client.services.get("web1"))
        self.assertEqual(agent.calls[0].asked, "GET http://registry/v1.0/7/services/web1")
        self.assertEqual(repr(client), "<Client of 'joe' at http://registry/v1.0>")

    def test_maxConnections(self) -> None:
        """A client without connections is refused at once: its requests would only time out."""
        for number in (0, -1, "x", None):
            wrong = self.assertRaises(InvalidSettings, Client, "joe", API_KEY, maxConnections=number, reactor=Clock())
            self.assertIn("maxConnections: ", str(wrong))

    def test_fromSettings(self) -> None:
        """fromSettings() takes everything from where settings come from, or says what is missing."""
        self.patch(__import__("os"), "environ", {"HOME": str(self.home)})
        self.assertRaises(InvalidSettings, Client.fromSettings)
        (self.home / ".raxrc").write_text(
            f"[credentials]\nusername = joe\napi_key = {API_KEY}\n[api]\nurl = http://a/v1.0\n"
        )
        client = Client.fromSettings(Clock())
        self.assertEqual(client.settings.baseUrls, ("http://a/v1.0",))
        self.assertIsInstance(client.clock, Clock)
        self.successResultOf(client.close())

    def test_settingsCanBeGiven(self) -> None:
        """A client can be made of settings that were read before."""
        settings = readSettings(username="joe", apiKey=API_KEY, environ={}, home=self.home)
        client = Client(settings=settings, reactor=Clock())
        self.assertIs(client.settings, settings)
        self.successResultOf(client.close())

    def written(self, key: str, username: str = "joe", **urls: str) -> None:
        urls = {"api": "http://a/v1.0", "auth_api": "http://a/v2.0"} | urls
        sections = "".join(f"[{name}]\nurl = {url}\n" for name, url in urls.items())
        (self.home / ".raxrc").write_text(f"[credentials]\nusername = {username}\napi_key = {key}\n{sections}")

    def test_aChangedKeyIsReadFromItsFile(self) -> None:
        """
        When the key is refused, the one that its file has by then is used. But it must be there for the same user and
        the same registry: else nothing is sent, and the error says why.
        """
        valid, keys, clock = "first", [], Clock()

        def handle(sent: Sent) -> Any:
            if not sent.url.endswith("/tokens"):
                known = sent.token == f"token of {valid}"
                return answer(200, WEB1) if known else fault("unauthorizedError")
            keys.append((sent.url, sent.body["auth"]["RAX-KSKEY:apiKeyCredentials"]["apiKey"]))
            return answer(200, access(f"token of {valid}")) if keys[-1][1] == valid else authFault()

        self.written("first")
        state = self.home / ".local" / "state" / "txserviceregistry"
        state.mkdir(parents=True)
        (state / "raxrc").write_text("[credentials]\nusername = joe\napi_key = another\n[api]\nurl = http://a/v1.0\n")
        settings = readSettings(environ={}, home=self.home)
        client = Client(settings=settings, agent=FakeAgent(handle), reactor=clock)
        self.successResultOf(client.services.get("web1"))
        valid = "second"
        for wrong, why in (
            (lambda: None, "belong to this registry"),
            (lambda: self.written("second", api="http://elsewhere/v1.0"), "another URL of the registry now"),
            (lambda: self.written("second", auth_api="http://elsewhere/v2.0"), "another URL of the Auth API now"),
            (lambda: self.written("second", "jim"), "another user now"),
            (lambda: (self.home / ".raxrc").write_text("being written"), "the first line must be a [section]"),
            (
                lambda: (self.home / ".raxrc").write_text("[api]\nurl=http://a/v1.0\n[auth_api]\nurl=http://a/v2.0\n"),
                "another file for the API key now",
            ),
        ):
            wrong()
            error = self.failureResultOf(client.services.get("web1"), AuthenticationFailed).value
            self.assertIn(why, str(error))
            clock.advance(60)
        self.assertEqual({key for _, key in keys}, {"first"})
        self.written("second")
        self.successResultOf(client.services.get("web1"))
        self.assertEqual(client.settings, readSettings(environ={}, home=self.home))
        self.assertEqual(keys[-1][1], "second")
        self.assertEqual({url for url, _ in keys}, {"http://a/v2.0/tokens"})

    def test_theNextAuthApiWhenAGatewayAnswers(self) -> None:
        """A page of a gateway leads to the next URL of the Auth API; refused credentials do not."""
        for page, kind in ((answer(403, b"<html>"), None), (authFault(), AuthenticationFailed)):

            def handle(sent: Sent, page: Any = page) -> Any:
                if not sent.url.endswith("/tokens"):
                    return answer(200, WEB1)
                return page if sent.url.startswith("http://a/") else answer(200, access())

            client = Client(
                "joe",
                API_KEY,
                baseUrl="http://registry/v1.0",
                authUrl=["http://a/v2.0", "http://b/v2.0"],
                agent=FakeAgent(handle),
                reactor=Clock(),
                random=lambda: 0.0,
            )
            if kind is None:
                self.successResultOf(client.services.get("web1"))
            else:
                self.failureResultOf(client.services.get("web1"), kind)

    def test_aKeyThatWasGivenStays(self) -> None:
        """A key that is an argument, or in the environment, is not looked for in files."""
        for arguments, environ in (
            ({"username": "joe", "apiKey": "the key"}, {}),
            ({}, {"RAXSR_USERNAME": "joe", "RAXSR_API_KEY": "the key"}),
        ):
            self.written("the key")
            settings = readSettings(environ=environ, home=self.home, **arguments)
            agent = FakeAgent(lambda sent: authFault())
            client = Client(settings=settings, agent=agent, reactor=Clock())
            self.written("another")
            self.failureResultOf(client.services.get("web1"), AuthenticationFailed)
            self.assertEqual((len(agent.sent), client.settings.apiKey), (1, "the key"))

    def catalogued(self, regions: dict[str, str], region: str = "us") -> tuple[FakeAgent, Deferred[Any]]:
        endpoints = [{"region": name, "publicURL": f"{url}/7"} for name, url in regions.items()]
        body = access()
        body["access"]["serviceCatalog"] = [{"type": "rax:service-registry", "endpoints": endpoints}]
        agent = FakeAgent(lambda sent: answer(200, body if sent.url.endswith("tokens") else WEB1))
        client = Client("joe", API_KEY, region, agent=agent, authUrl="http://auth/v2.0", reactor=Clock())
        return agent, client.services.get("web1")

    def test_theRegistryOfTheCatalog(self) -> None:
        """With an Auth API only, its catalog says where the registry of the region is; one alone is the one."""
        self.patch(__import__("os"), "environ", {"HOME": str(self.home)})
        both = {"DFW": "http://dfw/v1.0", "LON": "http://lon/v1.0"}
        for regions, region, url in (
            (both, "lon", "http://lon/v1.0"),
            ({"DFW": "http://dfw/v1.0"}, "us", "http://dfw/v1.0"),
        ):
            agent, got = self.catalogued(regions, region)
            self.successResultOf(got)
            self.assertEqual(agent.sent[1].url, f"{url}/7/services/web1")
        error = self.failureResultOf(self.catalogued(both)[1], InvalidSettings).value
        self.assertIn("'us' (it has: DFW, LON)", str(error))
        self.failureResultOf(self.catalogued({})[1], InvalidSettings)

    def test_agentsThatCannotTellTheirAddress(self) -> None:
        """localAddress() over a given agent is what that one says, or an error: never a guess."""
        given: dict[str, Any] = {"authUrl": "http://a/v2.0", "reactor": Clock()}
        agent = FakeApi(lambda sent: answer(200, {"resource": {}, "rate": {}}))
        client = Client("joe", API_KEY, "us", "http://registry/v1.0", agent, **given)
        self.failureResultOf(client.localAddress(), InvalidSettings)
        agent.localAddress = lambda url: None
        self.failureResultOf(client.localAddress(), ConnectionFailed)
        agent.localAddress = lambda url: f"here, of {url}"
        self.assertEqual(self.successResultOf(client.localAddress()), "here, of http://registry/v1.0/7")

    def test_addressesThatConcernOthers(self) -> None:
        """onLocalAddress() reports connections to the registry, and not of those to other servers."""
        given: dict[str, Any] = {"authUrl": "http://a/v2.0", "reactor": Clock()}
        agent = FakeApi(lambda sent: answer(200, {"resource": {}, "rate": {}}))
        client = Client("joe", API_KEY, "us", "http://registry/v1.0", agent, **given)
        # A transport without addresses causes no error.
        client.onLocalAddress(lambda address: None)()
        listeners: list[Any] = []
        agent.onLocalAddress = lambda listener: listeners.append(listener)
        told: list[str] = []
        client.onLocalAddress(told.append)
        self.successResultOf(client.account.getLimits())
        for url in ("http://a:80/", "http://registry:81/", "https://registry:80/", "http://registry:80/"):
            listeners[0](url, f"for {url}")
        self.assertEqual(told, ["for http://registry:80/"])
