"""The states of services, over HTTP."""

from __future__ import annotations

from typing import Any

from ..wire import Connection, requestBytes
from .test_resource import ApiCase


class StatesTests(ApiCase):
    """``/services/{id}/state``, ``/states``, and services with ``states=true``."""

    def set(self, body: Any, id: str = "web1", code: int = 204) -> Any:
        """Set a state; the body of the response."""
        reply = self.ask("PUT", f"/services/{id}/state", body)
        self.assertEqual(reply.code, code, reply)
        return reply.json if reply.raw else None

    def get(self, path: str) -> Any:
        """The body of a resource that is there."""
        reply = self.ask("GET", path)
        self.assertEqual(reply.code, 200, reply)
        return reply.json

    def wait(self, marker: str, query: str) -> Connection:
        """A request that waits for events."""
        connection = Connection(self.api)
        path = f"/v1.0/1234/events?marker={marker}&wait=30{query}"
        connection.send(requestBytes("GET", path, headers={"X-Auth-Token": self.api.token}))
        return connection

    def register(self, id: str = "web1", **metadata: str) -> None:
        """Register a service."""
        body = {"id": id, "heartbeat_timeout": 30, "metadata": metadata}
        self.assertEqual(self.ask("POST", "/services", body).code, 201)

    def test_setGetClear(self) -> None:
        """A state is set, read and cleared, whether or not there is a service."""
        none = {"id": "web1", "state": "up", "reason": "", "expires_at": None}
        self.assertEqual(self.get("/services/web1/state"), none)
        self.set({"state": "drain", "reason": "rack move", "expires_in": 600})
        ends = self.get("/services/web1/state")["expires_at"]
        self.assertEqual(
            self.get("/states")["values"],
            [{"id": "web1", "state": "drain", "reason": "rack move", "expires_at": ends}],
        )
        self.assertIsInstance(ends, int)
        for _ in range(2):
            self.assertEqual(self.ask("DELETE", "/services/web1/state").code, 204)
        self.assertEqual(self.get("/services/web1/state"), none)
        self.set({"state": "out", "reason": None, "expires_in": "2592000"})
        self.set({"state": "up"})
        self.assertEqual(self.get("/states")["values"], [])

    def test_invalidStates(self) -> None:
        """A fault names the field and the values that it can have, and nothing is set."""
        for body, key, details in (
            ({}, "state", "Missing required key (state)"),
            ({"state": "down"}, "state", "Invalid state: down. Valid states are: up,drain,out"),
            ({"state": None}, "state", "Invalid state: None. Valid states are: up,drain,out"),
            ({"state": "out", "reason": "x" * 256}, "reason", "String is not in range (0..255)"),
            ({"state": "out", "reason": 5}, "reason", "Not a string"),
            ({"state": "out", "expires_in": 0}, "expires_in", "Value out of range (1..2592000)"),
            ({"state": "out", "expires_in": 2592001}, "expires_in", "Value out of range (1..2592000)"),
            ({"state": "out", "expires_in": True}, "expires_in", "Invalid integer"),
        ):
            reply = self.ask("PUT", "/services/web1/state", body)
            self.assertFault(reply, 400, "badRequest", f"Validation error for key '{key}'", details)
        self.assertEqual(self.get("/states")["values"], [])

    def test_impossibleIds(self) -> None:
        """A state can't be set for an id that no service can have, and there is none to get."""
        self.assertEqual(self.set({"state": "out"}, "x", 400)["type"], "badRequest")
        self.assertEqual(self.ask("DELETE", "/services/x/state").code, 400)
        self.assertEqual(self.ask("GET", "/services/x/state").code, 404)

    def test_pagesOfStates(self) -> None:
        """States come in pages, as services do."""
        for id in ("aaa", "bbb", "ccc"):
            self.set({"state": "out"}, id)
        page = self.get("/states?limit=2")
        self.assertEqual([one["id"] for one in page["values"]], ["aaa", "bbb"])
        self.assertEqual(page["metadata"]["next_marker"], "ccc")
        self.assertTrue(page["metadata"]["next_href"].endswith("/states?limit=2&marker=ccc"))

    def test_servicesWithStates(self) -> None:
        """Version 1.0 never has states; with states=true a service that is not up has its own."""
        self.register()
        plain = self.get("/services/web1")
        self.assertEqual(self.get("/services/web1?states=true"), plain)
        self.set({"state": "drain", "reason": "rack move"})
        self.assertEqual(self.get("/services/web1"), plain)
        self.assertEqual(self.get("/services?states=false")["values"], [plain])
        withState = {**plain, "state": "drain", "state_reason": "rack move"}
        self.assertEqual(self.get("/services/web1?states=true"), withState)
        self.assertEqual(self.get("/services?states=true")["values"], [withState])
        for path in ("/services", "/services/web1"):
            self.assertFault(
                self.ask("GET", f"{path}?states=1"),
                400,
                "badRequest",
                "Invalid value for 'states' query string parameter",
                "Invalid value: 1. Valid values are: true,false",
            )

    def test_events(self) -> None:
        """Only a request that asks for types gets events of states, and the state of a registration."""
        self.set({"state": "drain", "reason": "rack move"})
        self.register()
        plain = self.get("/events")["values"]
        self.assertEqual([event["type"] for event in plain], ["service.join"])
        self.assertNotIn("state", plain[0]["payload"])
        self.assertEqual(self.get("/events?type=service.join")["values"], plain)
        change, join = self.get("/events?types=all")["values"]
        self.assertEqual(
            (change["type"], change["payload"]),
            (
                "service.state",
                {"id": "web1", "state": "drain", "reason": "rack move", "expires_at": None, "old_state": "up"},
            ),
        )
        self.assertEqual(join["payload"], {**plain[0]["payload"], "state": "drain"})
        self.assertEqual(self.get("/events?types=service.join")["values"], [join])

    def test_waitingRequestsOfBothKinds(self) -> None:
        """Of two requests that wait for the same event, only the one that asked for types has the state."""
        self.set({"state": "drain"})
        (marker,) = [event["id"] for event in self.get("/events?types=all")["values"]]
        waiting = [self.wait(marker, query) for query in ("", "&types=service.join", "", "&types=service.join")]
        self.register()
        self.api.advance(0.5)
        replies = [connection.replies()[0].json["values"] for connection in waiting]
        self.assertEqual(
            [
                [event["payload"].get("state") for event in values if event["type"] == "service.join"]
                for values in replies
            ],
            [[None], ["drain"]] * 2,
        )

    def test_prometheus(self) -> None:
        """A service that drains stays a target and has its state as a label; one that is out is none."""
        for id in ("web1", "web2", "web3"):
            self.register(id, host="10.0.0.1", port="80")
        self.set({"state": "drain"}, "web1")
        self.set({"state": "out"}, "web2")
        found = self.get("/prometheus")
        labels = [group["labels"] for group in found]
        self.assertEqual(
            [(each["__meta_service_registry_id"], each["__meta_service_registry_state"]) for each in labels],
            [("web1", "drain"), ("web3", "up")],
        )
