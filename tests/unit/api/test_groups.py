"""
``client.configuration``, ``client.events`` and ``client.account``.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.client import Client
from txserviceregistry.errors import BadRequest, MalformedResponse, NotFound

from ...fakeagent import API_KEY, FakeApi, answer, fault

URL = "http://registry/v1.0"
TENANT = f"{URL}/7"
A = {"id": "/a", "value": "1"}
B = {"id": "/b", "value": "2"}
GONE = {
    "id": "59a8f3a0-e0ac-11f0-8000-000000000000",
    "timestamp": 1767225600000,
    "type": "configuration_value.remove",
    "payload": {"configuration_value_id": "/a", "old_value": "1"},
}
SET = {
    "id": "59a8f3a1-e0ac-11f0-8000-000000000000",
    "timestamp": 1767225600000,
    "type": "configuration_value.update",
    "payload": {"configuration_value_id": "/b", "old_value": None, "new_value": "2"},
}


class GroupTestCase(SynchronousTestCase):
    """A client over an agent that answers from memory."""

    def client(self, handler: Any) -> Client:
        self.agent = FakeApi(handler)
        return Client("joe", API_KEY, baseUrl=URL, authUrl=URL, agent=self.agent, reactor=Clock())

    @property
    def asked(self) -> list[str]:
        return [sent.asked.replace(TENANT, "") for sent in self.agent.calls]

    def collect(self, iterator: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [value async for value in iterator]

        return self.successResultOf(Deferred.fromCoroutine(collect()))


def page(*values: Any, next: str | None = None) -> dict[str, Any]:
    return {"values": list(values), "metadata": {"next_marker": next}}


class ConfigurationTests(GroupTestCase):
    """Configuration values."""

    def test_keysTravelAsTheProtocolHasIt(self) -> None:
        """A simple key is one segment; a qualified key keeps its own slashes, the first one too."""
        client = self.client(lambda sent: answer(200, {"id": "x", "value": "1"}))
        for key in ("listen_ip", "/production/cassandra/listen_ip", "/abc_def", "/production/Web-1.x"):
            self.successResultOf(client.configuration.get(key))
        self.assertEqual(
            self.asked,
            [
                "GET /configuration/listen_ip",
                "GET /configuration//production/cassandra/listen_ip",
                "GET /configuration//abc_def",
                "GET /configuration//production/Web-1.x",
            ],
        )

    def test_aKeyIsNeverAListing(self) -> None:
        """A text that is not a key is refused with the reason, without a request; the path of a listing above all."""
        client = self.client(lambda sent: answer(204))
        for key in ("", "/", "/production/", "ab", "a b%2f", "/production/../c", "/p/abc", "x" * 171, "abc\n"):
            for call in (client.configuration.get, client.configuration.remove):
                self.failureResultOf(call(key), BadRequest)
            refused = str(self.failureResultOf(client.configuration.set(key, "v"), BadRequest).value)
            self.assertIn("is not a configuration key: 3 to 170 characters", refused)
        refused = self.failureResultOf(client.configuration.listForNamespace("/a b"), BadRequest).getErrorMessage()
        self.assertIn("'/a b' is not a namespace: ", refused)
        self.assertEqual(self.asked, [])

    def test_getSetRemove(self) -> None:
        """get() is the value; set() and remove() fire with True."""
        client = self.client(
            lambda sent: answer(200, {"id": "abc", "value": "1"}) if sent.method == "GET" else answer(204)
        )
        self.assertEqual(self.successResultOf(client.configuration.get("abc")), {"id": "abc", "value": "1"})
        self.assertIs(self.successResultOf(client.configuration.set("abc", "2")), True)
        self.assertIs(self.successResultOf(client.configuration.remove("abc")), True)
        self.assertEqual(self.asked, ["GET /configuration/abc", "PUT /configuration/abc", "DELETE /configuration/abc"])
        self.assertEqual(self.agent.calls[1].body, {"value": "2"})

    def test_lists(self) -> None:
        """list() is a page of all values, listForNamespace() one of those below a namespace, however it is written."""
        client = self.client(lambda sent: answer(200, page({"id": "abc", "value": "1"})))
        listed = self.successResultOf(client.configuration.list("m", 5))
        self.assertEqual(listed["values"], [{"id": "abc", "value": "1"}])
        for namespace in ("/production/cassandra", "/production/cassandra/", "production", "/"):
            self.successResultOf(client.configuration.listForNamespace(namespace, "m"))
        self.assertEqual(
            self.asked,
            [
                "GET /configuration?marker=m&limit=5",
                "GET /configuration//production/cassandra/?marker=m",
                "GET /configuration//production/cassandra/?marker=m",
                "GET /configuration/production/?marker=m",
                "GET /configuration//?marker=m",
            ],
        )

    def test_iterates(self) -> None:
        """iterate() goes over all values, or over those below a namespace, page by page."""
        client = self.client(lambda sent: answer(200, page(B) if "marker" in sent.url else page(A, next="/b")))
        self.assertEqual(self.collect(client.configuration.iterate()), [A, B])
        self.assertEqual(self.collect(client.configuration.iterate("/production")), [A, B])
        self.assertEqual(
            self.asked,
            [
                "GET /configuration",
                "GET /configuration?marker=%2Fb",
                "GET /configuration//production/",
                "GET /configuration//production/?marker=%2Fb",
            ],
        )

    def test_failures(self) -> None:
        """A missing value is NotFound, and an invalid response is malformed."""
        client = self.client(lambda sent: fault("notFoundError"))
        self.failureResultOf(client.configuration.get("abc"), NotFound)
        self.agent.handler = lambda sent: answer(200, {"id": "abc"})
        self.failureResultOf(client.configuration.get("abc"), MalformedResponse)
        self.failureResultOf(client.configuration.list(), MalformedResponse)


class EventsTests(GroupTestCase):
    """The feed."""

    def test_list(self) -> None:
        """list() is a page, from a marker on, of one type if it is wanted."""
        client = self.client(lambda sent: answer(200, page(SET)))
        self.assertEqual(self.successResultOf(client.events.list())["values"], [SET])
        self.successResultOf(client.events.list("m", 5, "service.join"))
        self.assertEqual(self.asked, ["GET /events", "GET /events?marker=m&limit=5&type=service.join"])

    def test_extensions(self) -> None:
        """The first request, too, asks for types and waits, as soon as its response names the extensions."""
        named = {"X_Service_Registry_Extensions": "event-types, events-wait"}
        client = self.client(lambda sent: answer(200, page(SET), **named))
        self.successResultOf(client.events.list("m", types=["lock.expire"], wait=5))
        self.assertEqual(self.asked, ["GET /events?marker=m", "GET /events?marker=m&types=lock.expire&wait=5"])

    def test_iterates(self) -> None:
        """iterate() goes from the marker to the feed's end."""
        client = self.client(lambda sent: answer(200, page(SET) if "marker=n" in sent.url else page(GONE, next="n")))
        self.assertEqual(self.collect(client.events.iterate("m")), [GONE, SET])
        self.assertEqual(self.asked, ["GET /events?marker=m", "GET /events?marker=n"])


class AccountTests(GroupTestCase):
    """The account."""

    def test_limits(self) -> None:
        """getLimits() is both kinds of limits."""
        limits = {"resource": {"service": 200}, "rate": {"/.*": {"limit": 1, "used": 0, "window": "24.0 hours"}}}
        client = self.client(lambda sent: answer(200, limits))
        self.assertEqual(self.successResultOf(client.account.getLimits()), limits)
        self.assertEqual(self.asked, ["GET /limits"])
