"""FakeRegistry: it is a real registry, and each of its faults is what it says."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.errors import (
    APIError,
    AuthenticationFailed,
    ConnectionFailed,
    ForeignResponse,
    LimitReached,
    MalformedResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
)
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.testing import FakeRegistry, Request


class FakeRegistryTests(SynchronousTestCase):
    """The faults that the test of an application can inject."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client(cache=None)

    def ids(self) -> list[str]:
        return [service["id"] for service in self.successResultOf(self.client.services.list())["values"]]

    def create(self, id: str = "web1", timeout: int = 30) -> Deferred[Any]:
        return self.client.services.create(id, timeout)

    def failing(self, call: Deferred[Any], kind: type[Exception], seconds: float = 0) -> None:
        self.fake.advance(seconds)
        self.failureResultOf(call, kind)

    def test_expires(self) -> None:
        """A service without heartbeats is there until its deadline, and not after it."""
        self.successResultOf(self.create())
        self.fake.advance(29.9)
        self.assertEqual(self.ids(), ["web1"])
        self.fake.advance(0.2)
        self.assertEqual(self.ids(), [])

    def test_itsTimeIsThatOfItsClients(self) -> None:
        """A request that a client sends in the middle of a step of the time reaches it at that moment."""
        token = self.successResultOf(self.create())[0]["token"]
        self.fake.clock.callLater(0.2, lambda: self.client.services.heartbeat("web1", token))
        self.fake.clock.advance(0.2)
        self.fake.flush()
        seen = self.successResultOf(self.client.services.get("web1"))["last_seen"]
        self.assertEqual(seen % 1000, 200)

    def test_whatIsDueNow(self) -> None:
        """Calls that are due now, or become due by others of this moment, are made also if no time goes by."""
        made: list[str] = []
        clock = self.fake.clock

        def first() -> None:
            made.append("first")
            clock.callLater(0, made.append, "second")

        clock.callLater(0, first)
        clock.callLater(0.1, made.append, "later")
        self.fake.advance(0)
        self.assertEqual(made, ["first", "second"])

    def test_timeOfDay(self) -> None:
        """Its wall clock goes with the time of the test, also while the clients' machine is suspended."""
        began = self.fake.wallClock()
        self.fake.advance(10)
        self.fake.suspend(100)
        self.fake.advance(1)
        self.assertEqual(self.fake.wallClock() - began, 111)
        token = self.successResultOf(self.create())[0]["token"]
        self.successResultOf(self.client.services.heartbeat("web1", token))
        seen = self.successResultOf(self.client.services.get("web1"))["last_seen"]
        self.assertEqual(seen, self.fake.wallClock() * 1000)

    def test_startsAHeartBeater(self) -> None:
        """A real HeartBeater on the fake's clock keeps it alive for as long as it runs."""
        _, heartBeater = self.successResultOf(self.create())
        heartBeater.start()
        self.fake.advance(1000)
        self.assertEqual(self.ids(), ["web1"])
        heartBeater.stop()
        self.fake.advance(31)
        self.assertEqual(self.ids(), [])

    def test_listsWhatWasAsked(self) -> None:
        """Every request is listed with its method and path, the one for the auth token too."""
        self.successResultOf(self.create())
        self.assertEqual(self.fake.requests, [Request("POST", "/v2.0/tokens"), Request("POST", "/v1.0/1/services")])

    def test_refusesOtherKeys(self) -> None:
        """Clients with another API key are refused."""
        other = self.fake.client(apiKey="another")
        call = other.services.list()
        self.failing(call, AuthenticationFailed, seconds=5)

    def test_hasLimits(self) -> None:
        """The account's limits are the protocol's, or those that were given."""
        fake = FakeRegistry(limits=ResourceLimits(service=1))
        client = fake.client()
        self.successResultOf(client.services.create("web1", 30))
        self.failureResultOf(client.services.create("web2", 30), LimitReached)

    def test_failNext(self) -> None:
        """So many requests get the status, and the registry sees none of them."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.failNext(503, 2)
        for _ in range(2):
            self.failing(self.create(), ServerError)
        self.assertEqual(self.ids(), [])

    def test_failNextIsAFault(self) -> None:
        """A status that the API has comes as a fault of the API, any other one as the page of a gateway."""
        self.successResultOf(self.client.account.getLimits())
        types = {400: "badRequest", 403: "forbiddenError", 404: "notFoundError", 413: "requestTooLargeError", 502: ""}
        for status, type in types.items():
            self.fake.failNext(status)
            error = self.failureResultOf(self.client.services.get("web1"), APIError).value
            self.assertEqual((error.status, error.type), (status, type))
        self.fake.failNext(418)
        self.failing(self.client.services.get("web1"), ForeignResponse)

    def test_failNextOfTheAuthApi(self) -> None:
        """A request for an auth token gets a fault of the Auth API."""
        self.fake.failNext(401)
        self.failing(self.client.services.list(), AuthenticationFailed)

    def test_answerNext(self) -> None:
        """So many requests get a page as it was given, and the registry sees none of them."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.answerNext(200, b'{"token": "x"}', "text/plain", headers={"X-Proxy": "p"}, count=2)
        for _ in range(2):
            self.assertEqual(self.successResultOf(self.create())[0], {"token": "x"})
        response = self.successResultOf(self.fake.agent.request(b"GET", b"http://registry.invalid:8880/x"))
        self.assertEqual(response.code, 404)
        self.fake.answerNext(502, b"down", "text/plain", headers={"X-Proxy": "p"})
        response = self.successResultOf(self.fake.agent.request(b"GET", b"http://registry.invalid:8880/x"))
        self.assertEqual(response.code, 502)
        self.assertEqual(response.headers.getRawHeaders("Content-Type"), ["text/plain"])
        self.assertEqual(response.headers.getRawHeaders("X-Proxy"), ["p"])
        self.assertEqual(self.ids(), [])

    def test_answerNextWhen(self) -> None:
        """A page may be for some requests only, and for all of these, until that is over."""
        self.successResultOf(self.create())
        self.fake.answerNext(413, b"<h1>Too large</h1>", count=None, when=lambda request: len(request.body) > 200)
        update = {"metadata": {"k": "v" * 200}}
        for _ in range(3):
            self.failing(self.client.services.update("web1", update), ForeignResponse)
            self.assertEqual(self.ids(), ["web1"])
        self.fake.answerNormally()
        self.successResultOf(self.client.services.update("web1", update))

    def test_foreignTokenNext(self) -> None:
        """
        The registry has taken the heartbeat, alone or in a batch, but its token is lost, and another one comes, which
        it never issued. Other requests are not concerned.
        """
        token = self.successResultOf(self.create())[0]["token"]
        services = self.client.services
        for send in (
            lambda: services.heartbeat("web1", token),
            lambda: services.heartbeats([{"id": "web1", "token": token}]).addCallback(lambda values: values[0]),
        ):
            self.fake.advance(20)
            self.fake.foreignTokenNext()
            self.assertEqual(self.ids(), ["web1"])
            foreign = self.successResultOf(send())["token"]
            self.failing(services.heartbeat("web1", foreign), NotFound)
        self.fake.advance(20)
        self.assertEqual(self.ids(), ["web1"])

    def test_garbageNext(self) -> None:
        """A response that is not JSON."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.garbageNext()
        self.failing(self.create(), MalformedResponse)

    def test_truncateNext(self) -> None:
        """The registry has acted, but the response broke off."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.truncateNext()
        self.failing(self.create(), MalformedResponse)
        self.assertEqual(self.ids(), ["web1"])

    def test_dropNext(self) -> None:
        """The connection is lost before the registry sees the request."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.dropNext()
        self.failing(self.create(), ConnectionFailed)
        self.assertEqual(self.ids(), [])

    def test_loseNext(self) -> None:
        """The connection is lost after the registry has acted."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.loseNext()
        self.failing(self.create(), ConnectionFailed)
        self.assertEqual(self.ids(), ["web1"])

    def test_hangNext(self) -> None:
        """No response comes until the client gives up."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.hangNext()
        call = self.create()
        self.fake.advance(9)
        self.assertNoResult(call)
        self.failing(call, RequestTimedOut, seconds=2)
        self.assertEqual(self.ids(), [])

    def test_block(self) -> None:
        """While the application is blocked the registry's time goes by: what was due comes late, and at once."""
        _, heartBeater = self.successResultOf(self.create("short", 3))
        heartBeater.start()
        self.successResultOf(self.create("long"))
        called: list[float] = []
        for delay in (1, 2):
            self.fake.clock.callLater(delay, lambda: called.append(self.fake.clock.seconds()))
        self.fake.block(5)
        self.assertEqual(called, [5, 5])
        self.assertEqual(self.ids(), ["long"])
        self.failureResultOf(heartBeater.whenStopped(), NotFound)

    def test_partition(self) -> None:
        """Nothing gets through until the network heals."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.partition()
        self.failing(self.create(), RequestTimedOut, seconds=11)
        self.fake.heal()
        self.successResultOf(self.create())

    def test_pause(self) -> None:
        """A paused registry responds when it continues, and the time of the pause does not count for services."""
        self.successResultOf(self.create("old", 5))
        self.fake.pause()
        self.fake.advance(8)
        call = self.create("new")
        self.fake.advance(1)
        self.assertNoResult(call)
        self.fake.resume()
        self.fake.advance(0.1)
        self.successResultOf(call)
        self.assertEqual(self.ids(), ["new", "old"])

    def test_pauseOutlastsAClient(self) -> None:
        """A request that a client has given up has its effect when the registry goes on."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.pause()
        self.failing(self.create(), RequestTimedOut, seconds=11)
        self.fake.resume()
        self.fake.advance(0.1)
        self.assertEqual(self.ids(), ["web1"])

    def test_stopAndStart(self) -> None:
        """A stopped registry refuses connections; started again it has its data, and each service a full timeout."""
        self.successResultOf(self.create())
        self.fake.advance(20)
        self.fake.stop()
        self.failing(self.create("web2"), ConnectionFailed)
        self.fake.advance(100)
        self.fake.start()
        self.fake.advance(29)
        self.assertEqual(self.ids(), ["web1"])

    def test_restartWithoutData(self) -> None:
        """Nothing is left but the user."""
        self.successResultOf(self.create())
        self.fake.restart(keepData=False)
        self.failureResultOf(self.client.services.get("web1"), NotFound)

    def test_purgeTokens(self) -> None:
        """Tokens end, and clients get themselves new ones."""
        self.successResultOf(self.create())
        self.fake.purgeTokens()
        self.assertEqual(self.ids(), ["web1"])
        self.assertEqual(self.fake.requests.count(Request("POST", "/v2.0/tokens")), 2)

    def test_storeAway(self) -> None:
        """Without its store the registry answers 503, and goes on when it is back."""
        self.successResultOf(self.create())
        self.fake.storeAvailable(False)
        self.failing(self.client.services.list(), ServerError)
        self.fake.storeAvailable(True)
        self.assertEqual(self.ids(), ["web1"])

    def test_givesAnAddress(self) -> None:
        """A client has a local address, as if it had a connection."""
        self.assertEqual(self.successResultOf(self.client.localAddress()), "127.0.0.1")

    def test_leavesNothing(self) -> None:
        """A closed client leaves nothing on the clock, whatever was under way."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.hangNext()
        call = self.create()
        self.successResultOf(self.client.close())
        self.failureResultOf(call, ConnectionFailed)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])
