"""
How requests are counted, and what the access log has of them.
"""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.wire import KEY, USER, Api, Connection, requestBytes
from txserviceregistry.registry.http.accesslog import Access
from txserviceregistry.registry.http.requestlog import GONE, OTHER, WAITING, newTxnId


class _Log:
    """Keeps the entries of the access log."""

    def __init__(self) -> None:
        self.accesses: list[Access] = []

    def add(self, access: Access) -> None:
        self.accesses.append(access)


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
        self.log = _Log()
        self.api = Api(accessLog=self.log)  # type: ignore[arg-type]  # all that is asked of one

    def counts(self) -> dict[tuple[bytes, str], dict[int, int]]:
        return {key: one.codes for key, one in self.api.requestLog.statistics.routes.items()}

    def last(self) -> Access:
        return self.log.accesses[-1]

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
        statistics = self.api.requestLog.statistics.routes[(b"GET", WAITING)]
        self.assertEqual((statistics.codes, statistics.seconds.total), ({200: 1}, 5.0))
        self.assertEqual(statistics.seconds.counts[statistics.seconds.bounds.index(5.0)], 1)

    def test_clientThatHasGone(self) -> None:
        """A client that leaves before its answer is counted as such."""
        connection = Connection(self.api)
        headers = {"X-Auth-Token": self.api.token}
        connection.send(requestBytes("GET", "/v1.0/1234/events?wait=5", headers=headers))
        connection.transport.loseConnection()
        self.assertEqual(self.counts(), {(b"GET", WAITING): {GONE: 1}})
        self.assertEqual(self.last().code, GONE)

    def test_bodyThatIsTooLarge(self) -> None:
        """What is refused before it is there whole is noticed, once, with its id."""
        connection = Connection(self.api)
        connection.send(requestBytes("POST", "/v1.0/1234/services?x=y", b"x" * 6000))
        (reply,) = connection.replies()
        self.assertEqual(self.counts(), {(b"POST", "/services"): {413: 1}})
        self.assertEqual(
            [(each.method, each.path, each.code, each.txnId) for each in self.log.accesses],
            [(b"POST", b"/v1.0/1234/services", 413, reply.header("X-Response-Id"))],
        )

    def test_whatIsNoHttp(self) -> None:
        """Invalid HTTP is counted and logged once, with its id."""
        connection = Connection(self.api)
        connection.send(b"GARBAGE\r\n\r\n")
        (reply,) = connection.replies()
        self.assertEqual(sum(sum(codes.values()) for codes in self.counts().values()), 1)
        self.assertEqual(
            [(each.code, each.txnId) for each in self.log.accesses], [(400, reply.header("X-Response-Id"))]
        )

    def test_tellsWhoAskedForWhat(self) -> None:
        """An entry has the client, the tenant, the path as it was written, and the id of the response."""
        reply = self.api.ask("GET", "/services/web%2D1?marker=a")
        access = self.last()
        self.assertEqual(
            (access.tenant, access.method, access.path, access.code, access.txnId),
            ("1234", b"GET", b"/v1.0/1234/services/web%2D1", 404, reply.header("X-Response-Id")),
        )
        self.assertEqual(getattr(access.address, "host", None), "127.0.0.1")
        self.assertEqual(access.moment, self.api.wallClock.seconds())

    def test_aTenantIsOneThatATokenTold(self) -> None:
        """Without a valid token an entry has no tenant, whatever the path says."""
        self.api.ask("GET", "/services", token=None)
        self.assertEqual(self.last().tenant, "")
        self.api.ask("GET", b"/v1.0/77/services")
        self.assertEqual((self.last().tenant, self.last().code), ("1234", 401))

    def test_tellsNoSecret(self) -> None:
        """Neither tokens nor keys nor values are in the entries."""
        token = self.api.create("web1", metadata={"a": "s3cret-metadata"})
        self.api.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.api.ask("PUT", "/configuration/key", {"value": "s3cret-value"})
        self.api.ask("GET", "/configuration/key")
        self.api.ask("GET", "/services?token=s3cret-query")
        credentials: Any = {"auth": {"passwordCredentials": {"username": USER, "password": KEY}}}
        self.api.ask("POST", b"/v2.0/tokens", credentials, token=None)
        entries = repr(self.log.accesses)
        self.assertEqual(len(self.log.accesses), 6)
        for secret in (token, self.api.token, KEY, "s3cret"):
            self.assertNotIn(secret, entries)
