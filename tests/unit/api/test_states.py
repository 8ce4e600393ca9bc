"""The states of services, from the client's side."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.client import Client
from txserviceregistry.errors import BadRequest, MalformedResponse, NotFound, RequestTimedOut
from txserviceregistry.testing import FakeRegistry

from ...fakeagent import API_KEY, WEB1, FakeApi, answer

URL = "http://registry/v1.0"


class StatesTests(SynchronousTestCase):
    """Calls for states, to a registry that has them."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client(cache=None)
        self.services = self.client.services

    def test_setGetClear(self) -> None:
        """A state is set, read, listed and cleared."""
        self.successResultOf(self.services.setState("web1", "drain", "rack move", expiresIn=600))
        state = self.successResultOf(self.services.getState("web1"))
        self.assertEqual((state["state"], state["reason"]), ("drain", "rack move"))
        self.assertIsInstance(state["expires_at"], int)
        self.successResultOf(self.services.setState("web2", "out"))
        page = self.successResultOf(self.services.listStates(limit=1))
        self.assertEqual((page["values"], page["metadata"]["next_marker"]), ([state], "web2"))
        self.successResultOf(self.services.clearState("web1"))
        self.successResultOf(self.services.setState("web2", "up"))
        self.assertEqual(self.successResultOf(self.services.listStates())["values"], [])

    def test_refused(self) -> None:
        """An invalid value is a BadRequest that names the field."""
        failure = self.failureResultOf(self.services.setState("web1", "down"), BadRequest)
        self.assertIn("'state'", str(failure.value))
        self.failureResultOf(self.services.setState("x", "out"), BadRequest)

    def test_servicesWithStates(self) -> None:
        """Services that are not up have their states in every call."""
        self.successResultOf(self.services.create("web1", 30, {"tags": ["www"]}))
        self.successResultOf(self.services.setState("web1", "drain", "rack move"))

        async def all_() -> list[Any]:
            return [service async for service in self.services.iterate()]

        found = [
            self.successResultOf(self.services.get("web1")),
            *self.successResultOf(self.services.list())["values"],
            *self.successResultOf(self.services.listForTag("www"))["values"],
            *self.successResultOf(Deferred.fromCoroutine(all_())),
        ]
        self.assertEqual([(one["state"], one["state_reason"]) for one in found], [("drain", "rack move")] * 4)

    def test_firstRequest(self) -> None:
        """A client's first request gets them too, although it can't know that the registry has them."""
        self.successResultOf(self.services.create("web1", 30, {"tags": ["www"]}))
        self.successResultOf(self.services.setState("web1", "drain"))
        for ask in (
            lambda services: services.get("web1"),
            lambda services: services.list().addCallback(lambda page: page["values"][0]),
            lambda services: Deferred.fromCoroutine(anext(services.iterate())),
        ):
            self.assertEqual(self.successResultOf(ask(self.fake.client().services))["state"], "drain")

    def test_firstRequestInTime(self) -> None:
        """Both requests that this takes have one timeout."""
        for ask in (
            lambda client: client.services.get("web1", timeout=10),
            lambda client: client.services.list(),
            lambda client: Deferred.fromCoroutine(anext(client.services.iterate())),
            lambda client: client.events.list(types=["lock.expire"]),
        ):
            clock, agent = Clock(), FakeApi(lambda sent: Deferred())
            asking = ask(Client("joe", API_KEY, baseUrl=URL, authUrl=URL, agent=agent, reactor=clock))
            clock.advance(6)
            named = {"X_Service_Registry_Extensions": "service-state, event-types"}
            empty = {"values": [], "metadata": {"count": 0, "limit": 1, "marker": None, "next_marker": None}}
            agent.pending.pop().callback(answer(200, WEB1 if "web1" in agent.sent[-1].url else empty, **named))
            self.assertEqual(len(agent.calls), 2)
            clock.advance(4)
            self.failureResultOf(asking, RequestTimedOut)

    def test_aRegistryThatIsUpgradedMeanwhile(self) -> None:
        """A request that has waited, and is sent again for a new extension, may wait again."""
        clock, agent = Clock(), FakeApi(lambda sent: Deferred())
        client = Client("joe", API_KEY, baseUrl=URL, authUrl=URL, agent=agent, reactor=clock)
        empty = {"values": [], "metadata": {"count": 0, "limit": 1, "marker": None, "next_marker": None}}
        client.events.list()
        agent.pending.pop().callback(answer(200, empty, X_Service_Registry_Extensions="events-wait"))
        asking = client.events.list(wait=30, types=["lock.expire"])
        for _ in range(2):
            clock.advance(30)
            answered = answer(200, empty, X_Service_Registry_Extensions="events-wait, event-types")
            agent.pending.pop().callback(answered)
        self.assertEqual(self.successResultOf(asking)["values"], [])


class OtherRegistryTests(SynchronousTestCase):
    """Registries without the extension, or with invalid responses."""

    def client(self, *responses: Any) -> Client:
        left = list(responses)
        self.agent = FakeApi(lambda sent: left.pop(0))
        return Client("joe", API_KEY, baseUrl=URL, authUrl=URL, agent=self.agent, reactor=Clock(), cache=None)

    def test_notAskedFor(self) -> None:
        """A registry that does not have states is not asked for them."""
        page = {"values": [], "metadata": {"next_marker": None}}
        client = self.client(answer(200, page), answer(200, page))
        for _ in range(2):
            self.successResultOf(client.services.list())
        self.assertNotIn("states", "".join(sent.asked for sent in self.agent.calls))

    def test_withoutTheExtension(self) -> None:
        """Setting a state fails with NotFound."""
        gone = {
            "type": "notFoundError",
            "code": 404,
            "message": "The page cannot be found.",
            "details": "",
            "txnId": "x",
        }
        client = self.client(answer(404, gone))
        self.failureResultOf(client.services.setState("web1", "drain"), NotFound)

    def test_malformed(self) -> None:
        """A response that is not a state is refused."""
        good = {"id": "web1", "state": "drain", "reason": "", "expires_at": None}
        for bad in ({"state": 5}, {"reason": None}, {"expires_at": "x"}, {"id": ""}):
            client = self.client(answer(200, {**good, **bad}))
            self.failureResultOf(client.services.getState("web1"), MalformedResponse)
        self.assertEqual(self.successResultOf(self.client(answer(200, good)).services.getState("web1")), good)
