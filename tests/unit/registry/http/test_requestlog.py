"""How requests are counted, and what the access log has of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.protocols.haproxy import proxyEndpoint
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.wire import KEY, USER, Api, Connection, fired, requestBytes
from txserviceregistry.registry.http.requestlog import GONE, OTHER, WAITING, lineOf, newTxnId
from txserviceregistry.registry.roles import Role


class _Log:
    """Keeps the lines of a log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, moment: float, fields: Mapping[str, Any]) -> None:
        self.lines.append(lineOf(moment, fields))

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


class TxnIdTests(SynchronousTestCase):
    """Ids of requests."""

    def test_areNoneOfTheApplicationsBusiness(self) -> None:
        """A program that seeds its random numbers gets other ids every time, and the numbers that it expects."""
        self.addCleanup(random.setstate, random.getstate())
        random.seed(1)
        first = newTxnId(), random.random()
        random.seed(1)
        second = newTxnId(), random.random()
        self.assertNotEqual(first[0], second[0])
        self.assertEqual(first[1], second[1])
        self.assertEqual(random.Random(1).random(), first[1])
        self.assertRegex(first[0], "^[0-9a-f]{32}$")


class RequestLogTests(SynchronousTestCase):
    """One entry for every response."""

    def setUp(self) -> None:
        self.log, self.audit = _Log(), _Log()
        self.api = Api(accessLog=self.log, auditLog=self.audit)  # type: ignore[arg-type]  # all that is asked of one

    def counts(self) -> dict[tuple[bytes, str], dict[int, int]]:
        return {key: one.codes for key, one in self.api.requestLog.routes.items()}

    def last(self) -> dict[str, Any]:
        return self.log.entries[-1]

    def changes(self) -> list[tuple[Any, ...]]:
        """The lines of the audit log, without times and txnIds."""
        names = ("user", "tenant", "operation", "object", "result")
        return [tuple(each[name] for name in names) for each in self.audit.entries]

    def test_countsByRouteAndCode(self) -> None:
        """Requests are counted by the pattern of their path: never by an id in it."""
        token = self.api.create("web1")
        self.api.create("web2")
        self.api.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.api.ask("POST", "/services/none/heartbeat", {"token": token})
        self.api.ask("PUT", "/configuration//production/x_y", {"value": "v"})
        self.api.ask("GET", "/configuration/production/")
        self.assertEqual(
            self.counts(),
            {
                (b"POST", "/services"): {201: 2},
                (b"POST", "/services/{serviceId}/heartbeat"): {200: 1, 404: 1},
                (b"PUT", "/configuration/{configurationId}"): {204: 1},
                (b"GET", "/configuration/{namespace}/"): {200: 1},
            },
        )

    def test_countsWhatIsRefusedBeforeItIsRouted(self) -> None:
        """A request without a token, or with a body that is none, is counted where it wanted to go."""
        self.api.ask("GET", "/services/web1", token=None)
        self.api.ask("POST", "/services", b"{")
        self.api.ask("GET", "/limits", token="wrong")
        self.assertEqual(
            self.counts(),
            {
                (b"GET", "/services/{serviceId}"): {401: 1},
                (b"POST", "/services"): {400: 1},
                (b"GET", "/limits"): {401: 1},
            },
        )

    def test_whatClientsMakeUpIsOne(self) -> None:
        """However many paths and methods are made up, they are counted in a few places."""
        for number in range(50):
            self.api.ask("GET", f"/nothing{number}")
            self.api.ask(f"METHOD{number}", "/services")
            self.api.ask("GET", b"/%zz" + str(number).encode())
        self.assertEqual(self.counts(), {(b"GET", OTHER): {404: 50, 400: 50}, (b"other", OTHER): {404: 50}})

    def test_countsTimes(self) -> None:
        """The time from a whole request to its answer is counted."""
        connection = Connection(self.api)
        headers = {"X-Auth-Token": self.api.token}
        connection.send(requestBytes("GET", "/v1.0/1234/events?wait=5", headers=headers))
        self.api.advance(5)
        self.assertEqual(len(connection.replies()), 1)
        statistics = self.api.requestLog.routes[(b"GET", WAITING)]
        self.assertEqual((statistics.codes, statistics.seconds.total), ({200: 1}, 5.0))
        self.assertEqual(statistics.seconds.counts[statistics.seconds.bounds.index(5.0)], 1)

    def test_clientThatHasGone(self) -> None:
        """A client that leaves before its answer is counted as such."""
        connection = Connection(self.api)
        headers = {"X-Auth-Token": self.api.token}
        connection.send(requestBytes("GET", "/v1.0/1234/events?wait=5", headers=headers))
        connection.transport.loseConnection()
        self.assertEqual(self.counts(), {(b"GET", WAITING): {GONE: 1}})
        self.assertEqual(self.last()["code"], GONE)

    def test_bodyThatIsTooLarge(self) -> None:
        """A request that is refused before it is complete is logged, once, with its id."""
        connection = Connection(self.api)
        connection.send(requestBytes("POST", "/v1.0/1234/services?x=y", b"x" * 6000))
        (reply,) = connection.replies()
        self.assertEqual(self.counts(), {(b"POST", "/services"): {413: 1}})
        self.assertEqual(
            [(each["method"], each["path"], each["code"], each["txnId"]) for each in self.log.entries],
            [("POST", "/v1.0/1234/services", 413, reply.header("X-Response-Id"))],
        )

    def test_whatIsNotHttp(self) -> None:
        """Invalid HTTP is counted and logged once, with its id."""
        connection = Connection(self.api)
        connection.send(b"GARBAGE\r\n\r\n")
        (reply,) = connection.replies()
        self.assertEqual(sum(sum(codes.values()) for codes in self.counts().values()), 1)
        self.assertEqual(
            [(each["code"], each["txnId"]) for each in self.log.entries], [(400, reply.header("X-Response-Id"))]
        )

    def test_tellsTheTrace(self) -> None:
        """A valid traceparent is in the entry, beside the request's id; anything else is ignored."""
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for given, logged in (
            (trace, trace),
            (None, None),
            ("00-x", None),
            (trace.upper(), None),
            (trace + "-x", None),
        ):
            connection = Connection(self.api)
            headers = {"X-Auth-Token": self.api.token, **({} if given is None else {"traceparent": given})}
            connection.send(requestBytes("GET", "/v1.0/1234/limits", headers=headers))
            (reply,) = connection.replies()
            self.assertEqual((reply.code, self.last().get("traceparent")), (200, logged))

    def test_tellsWhoAskedForWhat(self) -> None:
        """An entry has the client, the user, the tenant, the path as it was written, and the id of the response."""
        reply = self.api.ask("GET", "/services/web%2D1?marker=a")
        access = self.last()
        self.assertEqual(
            [access[name] for name in ("user", "tenant", "method", "path", "code", "txnId", "client", "time")],
            [
                "joe",
                "1234",
                "GET",
                "/v1.0/1234/services/web%2D1",
                404,
                reply.header("X-Response-Id"),
                "127.0.0.1",
                "2026-01-01T00:00:00.000Z",
            ],
        )

    def test_clientBehindAProxy(self) -> None:
        """With the PROXY protocol, the client is the one that the proxy names."""
        reactor = MemoryReactor()
        proxyEndpoint(TCP4ServerEndpoint(reactor, 8880)).listen(self.api.site)  # type: ignore[no-untyped-call]  # Twisted's
        connection: Any = reactor.tcpServers[0][1].buildProtocol(None)
        connection.makeConnection(StringTransport(peerAddress=IPv4Address("TCP", "127.0.0.1", 50_000)))
        connection.dataReceived(b"PROXY TCP4 10.9.8.7 10.0.0.1 50001 8880\r\n" + requestBytes("GET", "/metrics"))
        self.assertEqual(self.last()["client"], "10.9.8.7")

    def test_aTenantIsOneThatATokenTold(self) -> None:
        """Without a valid token an entry has no user and no tenant, whatever the path says."""
        self.api.ask("GET", "/services", token=None)
        self.assertEqual((self.last()["user"], self.last()["tenant"]), (None, None))
        self.api.ask("GET", b"/v1.0/77/services")
        self.assertEqual((self.last()["tenant"], self.last()["code"]), ("1234", 401))

    def test_tellsNoSecret(self) -> None:
        """Neither tokens nor keys nor values are in the entries."""
        token = self.api.create("web1", metadata={"a": "s3cret-metadata"})
        self.api.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.api.ask("PUT", "/configuration/key", {"value": "s3cret-value"})
        self.api.ask("GET", "/configuration/key")
        self.api.ask("GET", "/services?token=s3cret-query")
        credentials: Any = {"auth": {"passwordCredentials": {"username": USER, "password": KEY}}}
        self.api.ask("POST", b"/v2.0/tokens", credentials, token=None)
        entries = repr(self.log.lines + self.audit.lines)
        self.assertEqual(len(self.log.lines), 6)
        for secret in (token, self.api.token, KEY, "s3cret"):
            self.assertNotIn(secret, entries)

    def test_auditsChanges(self) -> None:
        """The audit log has each change, and each that was refused, with the user, the object and the code."""
        self.api.create("web1")
        self.api.ask("PUT", "/services/web1", {"tags": ["a"]})
        self.api.ask("DELETE", "/services/web2")
        self.api.ask("PUT", "/configuration/production/x_y", {"value": "v"})
        self.api.ask("DELETE", "/configuration//production/x_y")
        reply = self.api.ask("POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        self.assertEqual(
            self.changes(),
            [
                ("joe", "1234", "createService", "web1", 201),
                ("joe", "1234", "updateService", "web1", 204),
                ("joe", "1234", "removeService", "web2", 404),
                ("joe", "1234", "setValue", "/production/x_y", 204),
                ("joe", "1234", "removeValue", "/production/x_y", 204),
                ("joe", "1234", "createService", "web1", 400),
            ],
        )
        line = self.audit.entries[-1]
        self.assertEqual(line["txnId"], reply.header("X-Response-Id"))
        self.assertEqual(line["time"], "2026-01-01T00:00:00.000Z")

    def test_auditsRefusals(self) -> None:
        """Requests without valid credentials, with an invalid body and beyond the user's role are there too."""
        self.api.ask("PUT", "/services/web1", {}, token="wrong")
        self.api.ask("POST", "/services", b"{")
        self.api.ask("DELETE", b"/v1.0/77/services/web1")
        fired(self.api.identity.changeRole(USER, Role("read")))
        self.api.ask("POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        self.assertEqual(
            self.changes(),
            [
                (None, None, "updateService", "web1", 401),
                (None, None, "createService", None, 400),
                ("joe", "1234", "removeService", "web1", 401),
                ("joe", "1234", "createService", "web1", 403),
            ],
        )

    def test_auditsNothingElse(self) -> None:
        """Reads, heartbeats, logins and unknown paths are not changes."""
        token = self.api.create("web1")
        self.audit.lines.clear()
        self.api.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.api.ask("POST", "/heartbeats", {"heartbeats": [{"id": "web1", "token": token}]})
        for method in ("GET", "HEAD"):
            self.api.ask(method, "/services/web1")
        self.api.ask("POST", "/nothing", {})
        self.api.ask("DELETE", "/services")
        self.api.ask("POST", b"/v2.0/tokens", {}, token=None)
        self.assertEqual(self.changes(), [])

    def test_auditsAChangeWhoseClientIsGone(self) -> None:
        """The result is what the registry did, also if the client did not wait for it."""
        held = self.api.held.hold("setValue")
        connection = Connection(self.api)
        headers = {"X-Auth-Token": self.api.token}
        connection.send(requestBytes("PUT", "/v1.0/1234/configuration/key", b'{"value": "v"}', headers))
        connection.transport.loseConnection()
        held[0].release()
        self.assertEqual(self.last()["code"], GONE)
        self.assertEqual(self.changes(), [("joe", "1234", "setValue", "key", 204)])

    def test_whatIsMadeUpForgesNoLine(self) -> None:
        """For any path, a line of the audit log is one line of printable ASCII, and not long."""
        for id in (b"a%0A%22", b"%E2%80%A8", b"x" * 9_000):
            self.api.ask("DELETE", b"/v1.0/1234/services/" + id)
            line = self.audit.lines[-1]
            self.assertTrue(line.isascii() and line.isprintable() and len(line) < 1_000, line)
