"""
``client.services``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.services import ListCache
from txserviceregistry.client import Client
from txserviceregistry.errors import (
    BadRequest,
    ConnectionFailed,
    MalformedResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
    ServiceExists,
)
from txserviceregistry.testing import FakeRegistry

from ...fakeagent import API_KEY, WEB1, FakeApi, Sent, answer, fault

URL = "http://registry/v1.0"
SERVICES = f"{URL}/7/services"
EXISTS = {"type": "serviceWithThisIdExists", "code": 400, "message": "Service with id web1 already exists."}
GONE = {"type": "notFoundError", "code": 404, "message": "object does not exist", "details": 'Object "Service" …'}


def page(*ids: str, next: str | None = None) -> dict[str, Any]:
    values = [{**WEB1, "id": id} for id in ids]
    metadata = {"count": len(ids), "limit": 100, "marker": None, "next_marker": next, "next_href": None}
    return {"values": values, "metadata": metadata}


class ServicesTestCase(SynchronousTestCase):
    """A client over an agent that answers from memory."""

    def setUp(self) -> None:
        self.clock = Clock()

    def client(self, handler: Any, **options: Any) -> Client:
        self.agent = FakeApi(handler)
        given = {"baseUrl": URL, "authUrl": "http://auth/v2.0", "agent": self.agent, "reactor": self.clock}
        return Client("joe", API_KEY, **given, **options)

    @property
    def asked(self) -> list[str]:
        return [sent.asked for sent in self.agent.calls]


class RequestTests(ServicesTestCase):
    """The request of each method, and the result of its response."""

    def test_list(self) -> None:
        """list() is one page."""
        client = self.client(lambda sent: answer(200, page("a")))
        self.assertEqual(self.successResultOf(client.services.list()), page("a"))
        self.successResultOf(client.services.list("m/1", 5))
        self.assertEqual(self.asked, [f"GET {SERVICES}", f"GET {SERVICES}?marker=m%2F1&limit=5"])

    def test_listForTag(self) -> None:
        """listForTag() is one page of those with the tag."""
        client = self.client(lambda sent: answer(200, page()))
        self.successResultOf(client.services.listForTag("www", "m", limit=5))
        self.assertEqual(self.asked, [f"GET {SERVICES}?tag=www&marker=m&limit=5"])

    def test_get(self) -> None:
        """get() is the service."""
        client = self.client(lambda sent: answer(200, WEB1))
        self.assertEqual(self.successResultOf(client.services.get("web1")), WEB1)
        self.assertEqual(self.asked, [f"GET {SERVICES}/web1"])

    def test_create(self) -> None:
        """create() is the old client's: (body, heartBeater), with the token in both."""
        client = self.client(lambda sent: answer(201, {"token": "t1"}))
        body, heartBeater = self.successResultOf(
            client.services.create("web1", 15, {"tags": ["www"], "metadata": {"port": "80"}})
        )
        self.assertEqual(body, {"token": "t1"})
        self.assertEqual((heartBeater.heartbeatInterval, heartBeater.nextToken), (12.0, "t1"))
        self.assertEqual((heartBeater.serviceId, heartBeater.heartbeatTimeout), ("web1", 15))
        self.assertEqual(self.asked, [f"POST {SERVICES}"])
        self.assertEqual(
            self.agent.calls[0].body,
            {"id": "web1", "heartbeat_timeout": 15, "tags": ["www"], "metadata": {"port": "80"}},
        )

    def test_heartbeat(self) -> None:
        """heartbeat() presents a token and fires with the next one; its timeout can be its own."""
        client = self.client(lambda sent: answer(200, {"token": "t2"}))
        self.assertEqual(self.successResultOf(client.services.heartbeat("web1", "t1")), {"token": "t2"})
        self.assertEqual((self.asked, self.agent.calls[0].body), ([f"POST {SERVICES}/web1/heartbeat"], {"token": "t1"}))
        self.agent.handler = lambda sent: Deferred()
        beat = client.services.heartbeat("web1", "t1", timeout=0.5)
        self.clock.advance(0.5)
        self.failureResultOf(beat, RequestTimedOut)

    def test_timeoutsAreBounded(self) -> None:
        """A timeout that is not a number from 0 on fails each request at once, and nothing is sent."""
        client = self.client(lambda sent: answer(204))
        services = client.services
        for timeout in (float("inf"), float("nan"), -1.0, 1e300):
            for asked in (
                services.get("web1", timeout=timeout),
                services.create("web1", 10, timeout=timeout),
                services.heartbeat("web1", "t", timeout=timeout),
                services.heartbeats([{"id": "web1", "token": "t"}], timeout=timeout),
                services.remove("web1", timeout=timeout),
            ):
                self.failureResultOf(asked, ValueError)
        self.assertEqual(self.asked, [])

    def test_updateAndRemove(self) -> None:
        """update() and remove() fire with True."""
        client = self.client(lambda sent: answer(204))
        self.assertIs(self.successResultOf(client.services.update("web1", {"tags": []})), True)
        self.assertIs(self.successResultOf(client.services.remove("web1")), True)
        self.assertEqual(self.asked, [f"PUT {SERVICES}/web1", f"DELETE {SERVICES}/web1"])
        self.assertEqual(self.agent.calls[0].body, {"tags": []})

    def test_noIdChangesTheRoute(self) -> None:
        """An id that no service can have is refused with the reason, and there is no request."""
        client = self.client(lambda sent: answer(404, GONE))
        for id in ("", "a", "a/b", "..", "%2e%2e", "x?y", "web\n", "w" * 66):
            for call in (
                client.services.get,
                client.services.remove,
                partial(client.services.create, heartbeatTimeout=30),
                partial(client.services.register, heartbeatTimeout=30),
                partial(client.services.update, payload={}),
                partial(client.services.heartbeat, token="t"),
            ):
                refused = str(self.failureResultOf(call(id), BadRequest).value)
                self.assertIn("is not a service id: 3 to 65 characters of a-z A-Z 0-9 _ - .", refused)
        self.assertEqual(self.asked, [])

    def test_answersWithoutTheEssentialsAreMalformed(self) -> None:
        """A response that lacks what the API promises is not a success."""
        client = self.client(lambda sent: answer(200, {"values": {}}), cache=None)
        for call in (
            client.services.list(),
            client.services.get("web1"),
            client.services.create("web1", 15),
            client.services.heartbeat("web1", "t"),
        ):
            self.failureResultOf(call, MalformedResponse)


class IterateTests(ServicesTestCase):
    """Page after page."""

    def collect(self, iterator: Any) -> Deferred[list[str]]:
        async def collect() -> list[str]:
            return [service["id"] async for service in iterator]

        return Deferred.fromCoroutine(collect())

    def test_turnsPages(self) -> None:
        """iterate() gives all services in their order, asking for a page only when it is needed."""
        pages = {"marker=c": page("c"), "": page("a", "b", next="c")}
        client = self.client(lambda sent: answer(200, pages[sent.url.partition("?")[2]]))
        self.assertEqual(self.successResultOf(self.collect(client.services.iterate())), ["a", "b", "c"])

    def test_iteratesOverATag(self) -> None:
        """iterate(tag) asks for those with the tag on every page."""
        pages = {"tag=www&marker=c": page("c"), "tag=www": page("a", next="c")}
        client = self.client(lambda sent: answer(200, pages[sent.url.partition("?")[2]]))
        self.assertEqual(self.successResultOf(self.collect(client.services.iterate("www"))), ["a", "c"])

    def test_aRegistryThatCirclesIsFound(self) -> None:
        """A page that names itself as the next one ends the iteration with an error, not never."""
        client = self.client(lambda sent: answer(200, page("a", next="a")))
        self.failureResultOf(self.collect(client.services.iterate()), MalformedResponse)

    def test_neverOutOfTheCache(self) -> None:
        """An iteration that the registry can't finish fails: what it gave would look complete."""
        client = self.client(lambda sent: answer(200, page("a")))
        self.successResultOf(client.services.list())
        self.agent.handler = lambda sent: ConnectionRefusedError()
        self.failureResultOf(self.collect(client.services.iterate()), ConnectionFailed)


class BatchTests(SynchronousTestCase):
    """Batches of heartbeats that an application sends by itself."""

    def test_oneRequest(self) -> None:
        """It is one request, with an outcome for each heartbeat."""
        fake = FakeRegistry()
        client = fake.client(cache=None)
        ids = [f"web{number}" for number in range(20)]
        made = [self.successResultOf(client.services.create(id, 30)) for id in ids]
        heartbeats = [{"id": id, "token": body["token"]} for id, (body, _) in zip(ids, made, strict=True)]
        heartbeats[3]["token"] = heartbeats[4]["token"]
        fake.requests.clear()
        outcomes = self.successResultOf(client.services.heartbeats(heartbeats))
        self.assertEqual(len(fake.requests), 1)
        self.assertEqual([number for number, each in enumerate(outcomes) if "token" not in each], [3])
        self.assertEqual(outcomes[3]["type"], "notFoundError")


class ForeignTokenTests(SynchronousTestCase):
    """A registration that is answered with the token of another service."""

    def test_itIsMadeAnew(self) -> None:
        """The service of register() is removed and created again, and does not expire."""
        fake = FakeRegistry()
        client = fake.client(cache=None)
        self.successResultOf(client.account.getLimits())
        fake.foreignTokenNext()
        _, heartBeater = self.successResultOf(client.services.register("web1", 10))
        heartBeater.start()
        self.addCleanup(heartBeater.stop)
        fake.advance(60)
        self.assertTrue(heartBeater.healthy)
        events = self.successResultOf(client.events.list())["values"]
        self.assertEqual([event["type"] for event in events], ["service.join", "service.remove", "service.join"])


class CacheTests(ServicesTestCase):
    """Listings while the registry is away."""

    def test_theLastGoodPageWhileTheRegistryIsInTrouble(self) -> None:
        """Unreachable, silent, in trouble or talking nonsense: the kept page, with its age; then a fresh one again."""
        client = self.client(lambda sent: answer(200, page("a")))
        self.successResultOf(client.services.list())
        self.clock.advance(3)
        for trouble in (ConnectionRefusedError(), answer(500), answer(503), answer(200, b"<html>")):
            self.agent.handler = lambda sent, trouble=trouble: trouble
            stale = self.successResultOf(client.services.list())
            self.assertEqual(stale["metadata"].pop("stale"), 3.0)
            self.assertEqual(stale, page("a"))
        self.agent.handler = lambda sent: Deferred()
        late = client.services.list()
        self.clock.advance(10)
        self.assertEqual(self.successResultOf(late)["metadata"]["stale"], 13.0)
        self.agent.handler = lambda sent: answer(200, page("b"))
        self.assertEqual(self.successResultOf(client.services.list()), page("b"))

    def test_eachListingHasItsOwnPage(self) -> None:
        """Only the same tag, marker and limit give a kept page."""
        client = self.client(lambda sent: answer(200, page("a")))
        self.successResultOf(client.services.listForTag("www"))
        self.agent.handler = lambda sent: ConnectionRefusedError()
        self.successResultOf(client.services.listForTag("www"))
        for other in (
            client.services.list(),
            client.services.listForTag("api"),
            client.services.listForTag("www", "m"),
            client.services.listForTag("www", limit=5),
        ):
            self.failureResultOf(other, ConnectionFailed)

    def test_neverForRefusals(self) -> None:
        """A fault of the registry is not covered up; a gateway's page is an outage."""
        client = self.client(lambda sent: answer(200, page("a")))
        self.successResultOf(client.services.list())
        for type, kind in (("badRequest", BadRequest), ("notFoundError", NotFound)):
            self.agent.handler = lambda sent, type=type: fault(type)
            self.failureResultOf(client.services.list(), kind)
        self.agent.handler = lambda sent: answer(404, b"<html>")
        self.assertEqual(self.successResultOf(client.services.list())["values"], page("a")["values"])

    def test_canBeTurnedOff(self) -> None:
        """cache=None keeps nothing."""
        client = self.client(lambda sent: answer(200, page("a")), cache=None)
        self.successResultOf(client.services.list())
        self.agent.handler = lambda sent: answer(503)
        self.failureResultOf(client.services.list(), ServerError)

    def test_aClosedClientHasNoPages(self) -> None:
        """After close() a listing fails, kept page or not."""
        client = self.client(lambda sent: answer(200, page("a")), cache=ListCache())
        self.successResultOf(client.services.list())
        self.successResultOf(client.close())
        self.failureResultOf(client.services.list(), ConnectionFailed)


class RegisterTests(ServicesTestCase):
    """Registering an id whose last service may not have expired yet."""

    def registry(self, gone: float, timeout: Any = 10) -> Any:
        """A registry in which the id's old service expires at the second *gone*."""

        def handle(sent: Sent) -> Any:
            alive = self.clock.seconds() < gone
            if sent.method == "GET":
                return answer(200, {**WEB1, "heartbeat_timeout": timeout}) if alive else answer(404, GONE)
            return answer(400, EXISTS) if alive else answer(201, {"token": "t1"})

        return handle

    def creates(self) -> int:
        return sum(sent.method == "POST" for sent in self.agent.calls)

    def test_atOnceWhenTheIdIsFree(self) -> None:
        """register() is create() when nothing is in the way."""
        client = self.client(self.registry(0))
        body, heartBeater = self.successResultOf(client.services.register("web1", 15))
        self.assertEqual((body, heartBeater.nextToken), ({"token": "t1"}, "t1"))
        self.assertEqual(len(self.asked), 1)

    def test_aDelayThatIsNone(self) -> None:
        """It is refused before anything is asked."""
        client = self.client(self.registry(0))
        for delay in (float("nan"), float("inf"), -1.0):
            self.failureResultOf(client.services.register("web1", 15, retryDelay=delay), ValueError)
        self.assertEqual(self.asked, [])

    def test_waitsForTheOldOneToExpire(self) -> None:
        """It tries again every retryDelay seconds until the id is free."""
        client = self.client(self.registry(gone=7))
        registering = client.services.register("web1", 60, retryDelay=2)
        self.clock.pump([1.0] * 7)
        self.assertNoResult(registering)
        self.clock.advance(1)
        self.successResultOf(registering)
        self.assertEqual(self.creates(), 5)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_givesUpWhenTheOldOneIsKeptAlive(self) -> None:
        """When an old service with the same timeout must have expired and the id is still taken, another has it."""
        client = self.client(self.registry(gone=1000))
        registering = client.services.register("web1", 10)
        self.clock.pump([1.0] * 11)
        self.assertNoResult(registering)
        self.clock.pump([1.0] * 2)
        self.failureResultOf(registering, ServiceExists)

    def test_otherFailuresAreTheCallersAffair(self) -> None:
        """Anything but ServiceExists passes through."""
        client = self.client(lambda sent: answer(503))
        self.failureResultOf(client.services.register("web1", 15), ServerError)

    def test_cancellingEndsIt(self) -> None:
        """A cancelled register() makes no more tries, and leaves nothing on the clock."""
        client = self.client(self.registry(gone=1000))
        registering = client.services.register("web1", 15)
        registering.cancel()
        self.failureResultOf(registering, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closingTheClientEndsIt(self) -> None:
        """close() fails a register() that waits for its next try."""
        client = self.client(self.registry(gone=1000))
        registering = client.services.register("web1", 15)
        self.successResultOf(client.close())
        self.failureResultOf(registering, ConnectionFailed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_itsHeartBeaterRegistersAgain(self) -> None:
        """When the registry has lost the service, the HeartBeater of register() creates it again, as it was."""
        client = self.client(self.registry(0))
        payload = {"tags": ["www"]}
        _, heartBeater = self.successResultOf(client.services.register("web1", 15, payload))
        beats = iter([answer(404, GONE), answer(200, {"token": "t3"})])
        self.agent.handler = lambda sent: next(beats) if "heartbeat" in sent.url else answer(201, {"token": "t2"})
        heartBeater.start()
        self.clock.pump([1.0] * 60)
        creates = [sent.body for sent in self.agent.calls if sent.asked == f"POST {SERVICES}"]
        self.assertEqual(creates, [{"id": "web1", "heartbeat_timeout": 15, "tags": ["www"], "metadata": {}}] * 2)
        self.successResultOf(client.close())


class HeartBeaterOwnershipTests(ServicesTestCase):
    """HeartBeaters and the client that they belong to."""

    def test_closingStopsTheHeartBeaters(self) -> None:
        """A closed client leaves no running HeartBeater behind."""
        client = self.client(lambda sent: answer(200, {"token": "t"}))
        _, heartBeater = self.successResultOf(client.services.create("web1", 15))
        heartBeater.start()
        self.clock.advance(1)
        self.assertTrue(heartBeater.running)
        self.successResultOf(client.close())
        self.assertFalse(heartBeater.running)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_theQueueIsTheClients(self) -> None:
        """All requests of a client go through one queue: at most two requests to a server at once."""
        client = self.client(lambda sent: Deferred())
        waiting = [client.services.get(f"web{n}") for n in range(10)]
        self.assertEqual(len(self.agent.calls), 2)
        self.successResultOf(client.close())
        for request in waiting:
            self.failureResultOf(request, ConnectionFailed)
