"""
Tests for the limits of :mod:`txserviceregistry.registry.http.connections`, on the wire: what clients may take of a
registry.
"""

from __future__ import annotations

import json
import resource
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.http.connections import ConnectionLimits, availableFiles, peerOf, raiseFileLimit

from ..wire import Api, Connection, Reply, requestBytes

SERVICES = "/v1.0/1234/services"
EVENTS = "/v1.0/1234/events"


class LimitsCase(SynchronousTestCase):
    """A registry that has small limits."""

    limits = ConnectionLimits(connections=4, perClient=3, followers=3, followersPerTenant=2)

    def setUp(self) -> None:
        self.api = Api(connectionLimits=self.limits)
        self.warnings: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.warnings.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.warnings.append)

    def connect(self, host: str = "10.0.0.1") -> Connection:
        return Connection(self.api, IPv4Address("TCP", host, 50_000))

    def request(self, method: str = "GET", path: str = SERVICES, body: bytes | None = None) -> bytes:
        return requestBytes(method, path, body, {"X-Auth-Token": self.api.token})

    def known(self, host: str = "10.0.0.1") -> Connection:
        """A connection that has brought a request with a token."""
        connection = self.connect(host)
        connection.send(self.request())
        self.assertEqual(self.codes(connection), [200])
        return connection

    def busy(self, host: str = "10.0.0.1") -> Connection:
        """A connection on which a request is being answered for a long time."""
        connection = self.connect(host)
        with_ = self.patch(self.api.registry, "get", lambda *args: Deferred())
        connection.send(self.request("GET", SERVICES + "/web1"))
        with_.restore()
        return connection

    def codes(self, connection: Connection) -> list[int]:
        return [reply.code for reply in connection.replies()]

    def assertOpen(self, *connections: Connection) -> None:
        self.assertEqual([connection.isOpen for connection in connections], [True] * len(connections))

    def assertClosed(self, *connections: Connection) -> None:
        self.assertEqual([connection.isOpen for connection in connections], [False] * len(connections))


class SlowTests(LimitsCase):
    """Slow clients."""

    def drip(self, connection: Connection, data: bytes, seconds: int) -> None:
        """Send a byte a second."""
        for second in range(seconds):
            connection.send(data[second : second + 1])
            self.api.clock.advance(1)

    def test_bytesDoNotKeepAConnection(self) -> None:
        """A request has half a minute to come in whole, however busily its bytes come."""
        for data in (self.request(), self.request("POST", SERVICES, b"{" + b" " * 100)[-90:]):
            for connection in (self.connect(), self.known()):
                self.drip(connection, data, 29)
                self.assertOpen(connection)
                self.drip(connection, data[29:], 2)
                self.assertClosed(connection)

    def test_aBodyIsPartOfIt(self) -> None:
        """A slow body is treated as a slow head."""
        connection = self.connect()
        connection.send(self.request("POST", SERVICES, b"x" * 1000)[:-1000])
        self.drip(connection, b"x" * 30, 30)
        self.assertClosed(connection)

    def test_aNewConnectionHasToBringSomething(self) -> None:
        """A connection without a request is closed after half a minute."""
        connection = self.connect()
        self.api.clock.advance(29)
        self.assertOpen(connection)
        self.api.clock.advance(2)
        self.assertClosed(connection)

    def test_eachRequestHasItsTime(self) -> None:
        """The limit is for the time of one request, not of all on a connection."""
        connection = self.connect()
        for _ in range(4):
            data = self.request()
            self.drip(connection, data, 20)
            connection.send(data[20:])
            self.assertEqual(self.codes(connection), [200])
            self.api.clock.advance(100)
        self.assertOpen(connection)

    def test_anAnswerTakesTheTimeThatItTakes(self) -> None:
        """A request that is there is not hurried, also when the next one has begun."""
        connection = self.busy()
        connection.send(b"GET / HT")
        self.api.clock.advance(300)
        self.assertOpen(connection)

    def test_aMomentThatIsRounded(self) -> None:
        """A connection whose time ends within a rounding error is looked at again later, not without end at once."""
        clock = self.api.clock
        clock.advance(39.750000000000014)
        self.known()
        clock.advance(119)
        callLater, calls = clock.callLater, iter(range(100))

        def bounded(*args: Any) -> IDelayedCall:
            next(calls)
            return callLater(*args)

        self.patch(clock, "callLater", bounded)
        clock.advance(159.75 - clock.seconds())

    def test_nothingIsLeft(self) -> None:
        """Connections that are closed leave nothing on the reactor."""
        before = len(self.api.clock.getDelayedCalls())
        for connection in (self.connect(), self.known()):
            connection.send(b"GET /")
            connection.transport.loseConnection()
        self.assertEqual(len(self.api.clock.getDelayedCalls()), before)


class UnreadTests(LimitsCase):
    """Clients that do not read what they are sent."""

    def test_noAnswersForWhoDoesNotRead(self) -> None:
        """Requests that come after what is not read wait; they are answered in order when it is."""
        connection = self.connect()
        connection.protocol.pauseProducing()
        connection.send(self.request() + self.request("GET", "/nowhere"))
        self.assertEqual(connection.replies(), [])
        connection.protocol.resumeProducing()
        self.assertEqual(self.codes(connection), [200, 404])

    def test_oneAnswerAtATime(self) -> None:
        """An answer that is too much to send at once stops those after it, and the reading, until it is read."""
        connection = self.connect()
        slow: Deferred[Any] = Deferred()
        with_ = self.patch(self.api.registry, "get", lambda *args: slow)
        connection.send(self.request("GET", SERVICES + "/web1") + self.request("GET", "/nowhere"))
        with_.restore()
        connection.protocol.pauseProducing()
        connection.send(self.request("GET", "/v1.0/1234/limits"))
        slow.callback({"id": "web1"})
        self.assertEqual(self.codes(connection), [200])
        self.assertEqual(connection.transport.producerState, "paused")
        connection.protocol.resumeProducing()
        self.assertEqual(connection.transport.producerState, "producing")
        self.assertEqual(self.codes(connection), [404, 200])

    def test_readsNoFurtherAhead(self) -> None:
        """While a request is answered, so much is read of what comes after it and no more."""
        for isRead in (True, False):
            connection = self.busy()
            if not isRead:
                connection.protocol.pauseProducing()
            connection.send(b"x" * 10_000)
            self.assertEqual(connection.transport.producerState, "producing" if isRead else "paused")
            connection.send(b"x" * 10_000)
            self.assertEqual(connection.transport.producerState, "paused")
            connection.transport.loseConnection()

    def test_theWaitForTheLastResponseIsBounded(self) -> None:
        """A connection whose last answer is not read is cut."""
        connection = self.connect()
        self.patch(connection.transport, "loseConnection", lambda: None)
        connection.send(requestBytes("GET", SERVICES, None, {"Connection": "close"}))
        self.api.clock.advance(14)
        self.assertOpen(connection)
        self.api.clock.advance(2)
        self.assertClosed(connection)

    def test_anAnswerBetweenOthersNeither(self) -> None:
        """Nor is one kept whose client neither reads nor sends any more."""
        connection = self.known()
        self.patch(connection.transport, "loseConnection", lambda: None)
        self.api.clock.advance(121)
        self.assertOpen(connection)
        self.api.clock.advance(16)
        self.assertClosed(connection)


class UnfinishedTests(LimitsCase):
    """Large unfinished requests of unauthenticated clients."""

    limits = ConnectionLimits(connections=100, perClient=100, unfinishedBytes=500_000)

    def head(self, **headers: str) -> bytes:
        """The beginning of a batch of 200,000 bytes."""
        headers["Content-Length"] = "200000"
        return requestBytes("POST", "/v1.0/1234/heartbeats", None, headers)

    def test_theLongestUnderWayGoes(self) -> None:
        """If all together are too large, the oldest one is closed; the others go on."""
        first, second, third = (self.connect() for _ in range(3))
        for each in (first, second, third):
            each.send(self.head() + b" " * 150_000)
        self.assertOpen(first, second, third)
        second.send(b" " * 49_999)
        self.assertOpen(first, second, third)
        third.send(b" " * 49_999)
        self.assertClosed(first)
        for each in (second, third):
            each.send(b" ")
            self.assertEqual(self.codes(each), [400])
        self.assertEqual(self.api.site.connections.evictions, 1)
        self.assertIn("requests without a token", self.warnings[-1]["log_format"])

    def test_whoIsKnownIsNotAmongThem(self) -> None:
        """However much unauthenticated clients send, a request of a client that has shown a token comes in."""
        known = self.known()
        known.send(self.head(**{"X-Auth-Token": self.api.token}) + b" " * 150_000)
        guests = [self.connect() for _ in range(9)]
        for guest in guests:
            guest.send(self.head() + b" " * 190_000)
        self.assertClosed(*guests[:7])
        self.assertOpen(known, *guests[7:])
        known.send(b" " * 49_999 + b"{")
        self.assertEqual(self.codes(known), [400])

    def test_whatIsAnsweredIsKeptNoLonger(self) -> None:
        """A request that has been answered or refused, and a connection that is gone, count for nothing."""
        first = self.connect()
        first.send(self.head() + b" " * 150_000)
        for _ in range(5):
            answered, refused, gone = (self.connect() for _ in range(3))
            answered.send(self.head() + b" " * 200_000)
            self.assertEqual(self.codes(answered), [400])
            gone.send(self.head() + b" " * 199_000)
            gone.transport.loseConnection()
            head = requestBytes("POST", "/v1.0/1234/heartbeats", None, {"Transfer-Encoding": "chunked"})
            refused.send(head + b"40000\r\n" + b" " * 200_000)
            refused.send(b" " * 62_144)
            self.assertEqual(self.codes(refused), [413])
            self.assertOpen(first, answered)

    def test_whatComesWhileOthersWaitCounts(self) -> None:
        """Bytes that come while requests of unauthenticated clients wait for their turn count as well."""
        self.api.site.connections.requests.spend(lambda: self.api.clock.advance(1))
        guests = [self.connect() for _ in range(9)]
        for guest in guests:
            guest.send(self.head() + b" " * 60_000)
        self.assertClosed(guests[0])
        self.assertOpen(*guests[1:])

    def test_nothingIsLeftWhenAllAreGone(self) -> None:
        """When the last connection is gone, no work waits, and no delayed call is left for it."""
        before = list(self.api.clock.getDelayedCalls())
        connections = [self.connect() for _ in range(3)]

        def work() -> None:
            self.api.clock.rightNow += 1

        for line in (self.api.site.connections.requests, self.api.site.connections.handshakes):
            line.spend(work)
        for each in connections:
            each.send(requestBytes("GET", SERVICES))
        self.assertEqual([self.codes(each) for each in connections], [[], [], []])
        for each in connections:
            each.transport.loseConnection()
        self.assertEqual(self.api.clock.getDelayedCalls(), before)


class CrowdTests(LimitsCase):
    """More connections than may be."""

    def test_theOldestGuestGoes(self) -> None:
        """Of those that never showed a token, the one that has waited longest makes room."""
        known = self.known("10.0.0.1")
        guests = [self.connect(f"10.0.1.{n}") for n in range(3)]
        guests[0].send(b"GET / HTTP/1.1\r\nX: y")
        guests[1].send(requestBytes("GET", SERVICES))  # 401: it has brought a request just now
        more = [self.connect(f"10.0.2.{n}") for n in range(2)]
        self.assertClosed(guests[0], guests[2])
        self.assertOpen(known, guests[1], *more)

    def test_whoIsKnownStays(self) -> None:
        """However many unauthenticated clients connect, known connections and those being answered stay."""
        known, busy = self.known("10.0.0.1"), self.busy("10.0.0.1")
        for n in range(100):
            self.connect(f"10.0.1.{n}").send(b"G")
        self.assertOpen(known, busy)
        known.send(self.request())
        self.assertEqual(self.codes(known), [200])
        self.assertOpen(self.known("10.0.0.1"))

    def test_aKnownOneDoesNotGoForTheBusy(self) -> None:
        """If no connection of an unauthenticated client can be closed, the newcomer goes, not a known one."""
        known = self.known("10.0.0.1")
        busy = [self.busy(f"10.0.1.{n}") for n in range(3)]
        self.assertClosed(self.connect("10.0.2.1"))
        self.assertOpen(known, *busy)

    def test_whoHasAuthenticatedIsKnown(self) -> None:
        """Credentials count as a token does."""
        known = self.connect("10.0.0.1")
        body = {"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": "joe", "apiKey": "the-key-of-joe"}}}
        known.send(requestBytes("POST", "/v2.0/tokens", json.dumps(body).encode()))
        self.assertEqual(self.codes(known), [200])
        for n in range(10):
            self.connect(f"10.0.1.{n}")
        self.assertOpen(known)

    def test_theLongestIdleGoes(self) -> None:
        """If all are known, the one that has been idle for longest goes."""
        first, *others = [self.known(f"10.0.0.{n}") for n in range(4)]
        first.send(self.request())
        self.known("10.0.0.9")
        self.assertClosed(others[0])
        self.assertOpen(first, *others[1:])

    def test_noRequestIsCutOff(self) -> None:
        """If all are being answered, the newcomer goes."""
        busy = [self.busy(f"10.0.0.{n}") for n in range(4)]
        self.assertClosed(self.connect("10.0.0.9"))
        self.assertOpen(*busy)

    def test_oneAddressIsNotAll(self) -> None:
        """An address has its own limit, which costs no other address anything."""
        others = [self.connect("10.0.0.1")]
        mine = [self.connect("10.0.0.2") for _ in range(3)]
        more = [self.connect("10.0.0.2") for _ in range(2)]
        self.assertOpen(*others, mine[2], *more)
        self.assertClosed(*mine[:2])
        mine[2].transport.loseConnection()
        self.assertOpen(self.connect("10.0.0.2"), *more)

    def test_oneAddressThatIsBusy(self) -> None:
        """An address on whose connections all are being answered gets no further one."""
        busy = [self.busy("10.0.0.2") for _ in range(3)]
        self.assertClosed(self.connect("10.0.0.2"))
        self.assertOpen(self.connect("10.0.0.1"), *busy)

    def test_saysSoNowAndThen(self) -> None:
        """The log has one line a minute about it, with the number."""
        for n in range(100):
            self.connect(f"10.0.0.{n % 50}")
        self.api.clock.advance(20)
        self.connect()
        lines = [event for event in self.warnings if "Too many connections" in event["log_format"]]
        self.assertEqual([line["evicted"] for line in lines], [1])
        self.api.clock.advance(41)
        for n in range(10):
            self.connect(f"10.0.1.{n}")
        lines = [event for event in self.warnings if "Too many connections" in event["log_format"]]
        self.assertEqual([line["evicted"] for line in lines][:1], [1])
        self.assertEqual(lines[1]["evicted"] > 90, True)
        self.assertEqual(len(lines), 2)


class PeerTests(SynchronousTestCase):
    """For whom connections are counted."""

    def test_addresses(self) -> None:
        """An IPv4 address, the network of an IPv6 address, and all local sockets together."""
        addresses: list[tuple[IAddress, str]] = [
            (IPv4Address("TCP", "10.0.0.1", 1), "10.0.0.1"),
            (IPv6Address("TCP", "2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
            (IPv6Address("TCP", "fe80::1%eth0", 1), "fe80::/64"),
            (IPv6Address("TCP", "::ffff:10.0.0.1", 1), "10.0.0.1"),
            (UNIXAddress(b"/tmp/socket"), "local sockets"),
        ]
        for address, peer in addresses:
            self.assertEqual(peerOf(address), peer)


class SubscriberLimitTests(LimitsCase):
    """Too many requests that wait for events."""

    limits = ConnectionLimits(followers=3, followersPerTenant=2)

    def setUp(self) -> None:
        super().setUp()
        self.api.create("web1")
        self.marker = self.api.ask("GET", "/events").json["values"][-1]["id"]

    def follow(self, marker: str | None = None) -> Connection:
        connection = self.connect()
        connection.send(self.request("GET", f"{EVENTS}?wait=60&marker={marker or self.marker}"))
        return connection

    def reply(self, connection: Connection) -> Reply:
        (reply,) = connection.replies()
        return reply

    def test_oneTooMany(self) -> None:
        """One too many is 503, with the time to retry after; the connection stays."""
        waiting = [self.follow() for _ in range(2)]
        late = self.follow()
        reply = self.reply(late)
        self.assertEqual((reply.code, reply.json["type"]), (503, "systemFailureError"))
        self.assertEqual(reply.header("Retry-After"), "5")
        self.assertIn("requests are waiting", reply.json["details"])
        self.assertOpen(late)
        self.api.create("web2")
        self.api.clock.advance(0)
        self.assertEqual([self.codes(each) for each in waiting], [[200], [200]])

    def test_newsIsForAll(self) -> None:
        """A request that need not wait needs no place."""
        first = self.marker
        self.api.create("web2")
        self.marker = self.api.ask("GET", "/events").json["values"][-1]["id"]
        for _ in range(2):
            self.follow()
        self.assertEqual(self.reply(self.follow(first)).code, 200)
        self.assertEqual(self.api.ask("GET", f"/events?marker={self.marker}").code, 200)

    def test_placesAreGivenBack(self) -> None:
        """A response, and a client that hangs up, free a place."""
        for _ in range(3):
            answered, gone = self.follow(), self.follow()
            gone.transport.loseConnection()
            self.follow().transport.loseConnection()
            self.api.advance(61)
            self.assertEqual(self.codes(answered), [200])

    def test_inAll(self) -> None:
        """There is a limit for all tenants together."""
        for tenant in ("1", "2", "3"):
            self.api.registry.account(tenant)
        waiting = [
            Deferred.fromCoroutine(self.api.registry.feed.wait(tenant, None, 10, 60)) for tenant in ("1", "2", "3", "3")
        ]
        for each in waiting[:3]:
            self.assertNoResult(each)
        self.assertEqual(self.failureResultOf(waiting[3]).value.code, 503)  # type: ignore[attr-defined]
        self.api.advance(61)
        for each in waiting[:3]:
            self.successResultOf(each)


class FilesTests(SynchronousTestCase):
    """How many files a process may open, and what follows from it."""

    def test_fewerWhereThereAreNoMoreFiles(self) -> None:
        """Never more connections than files are allowed, and some remain for requests that do not wait."""
        limits = ConnectionLimits(connections=10_000, followers=9_000)
        self.assertEqual(limits.within(1024).connections, 824)
        self.assertEqual(limits.within(1024).held, 659)
        self.assertEqual(limits.within(100_000).connections, 10_000)
        self.assertEqual(limits.within(100_000).held, 8_000)
        self.assertEqual(ConnectionLimits().within(100_000), ConnectionLimits())
        self.assertEqual(limits.within(64).connections, 32)
        self.assertEqual(limits.within(1).connections, 1)

    def test_raisesTheLimit(self) -> None:
        """A process takes what it needs, as far as it may, and never less than it has."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        hard = before[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
        raiseFileLimit(ConnectionLimits(connections=1200))
        self.assertEqual(availableFiles(), 1400)
        raiseFileLimit(ConnectionLimits(connections=10))
        self.assertEqual(availableFiles(), 1400)
        if hard != resource.RLIM_INFINITY:
            raiseFileLimit(ConnectionLimits(connections=hard))
            self.assertEqual(availableFiles(), hard)
