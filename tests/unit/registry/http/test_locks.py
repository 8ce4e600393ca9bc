"""Tests for :mod:`txserviceregistry.registry.http.handlers`: locks, as what a client sends and gets."""

from __future__ import annotations

import json
from typing import Any

from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.roles import Role

from ..wire import USER, Api, Connection, Reply, fired, requestBytes
from .test_resource import ApiCase

NAME = "/billing/scheduler"
NONCE = "8EE6EE28-5B6A-4A3A-A2DD-3A9A1A6D7A3B"
TOKEN = "00000000-0000-1000-8000-000000000000"


class LocksCase(ApiCase):
    """A whole registry over the memory store."""

    def acquire(self, name: str = NAME, **more: Any) -> Any:
        """Acquire a lock; the response's body."""
        reply = self.ask("POST", "/locks", {"name": name, "timeout": 15, **more})
        self.assertEqual(reply.code, 201, reply)
        return reply.json

    def post(self, what: str, **body: Any) -> Reply:
        return self.ask("POST", f"/locks/{what}", body)

    def names(self, query: str = "") -> list[str]:
        return [lock["name"] for lock in self.ask("GET", f"/locks{query}").json["values"]]


class LocksTests(LocksCase):
    """Requests of any client."""

    def test_extension(self) -> None:
        """The extension has a name."""
        extensions = self.ask("GET", "/limits").header("X-Service-Registry-Extensions") or ""
        self.assertIn("locks", extensions.split(", "))

    def test_acquireHeartbeatRelease(self) -> None:
        """A lock is acquired, kept, listed without token and nonce, and released."""
        body = self.acquire(holder="höst1/4711", nonce=NONCE, metadata={"zone": "b"})
        self.assertEqual(sorted(body), ["fence", "token"])
        reply = self.post("heartbeat", name=NAME, token=body["token"])
        self.assertEqual((reply.code, list(reply.json)), (200, ["token"]))
        (lock,) = self.ask("GET", "/locks").json["values"]
        self.assertEqual(
            lock,
            {
                "name": NAME,
                "holder": "höst1/4711",
                "fence": body["fence"],
                "timeout": 15,
                "acquired_at": 1_767_225_600_000,
                "metadata": {"zone": "b"},
            },
        )
        self.assertEqual(self.acquire(nonce=NONCE.lower()), body)
        self.assertEqual(self.post("release", name=NAME, token=reply.json["token"]).code, 204)
        self.assertEqual(self.names(), [])

    def test_held(self) -> None:
        """A lock that is held is a fault that says who holds it, beside the members of every fault."""
        body = self.acquire(holder="host1")
        self.api.advance(5)
        reply = self.ask("POST", "/locks", {"name": NAME, "timeout": 15, "holder": "host2"})
        self.assertEqual(reply.code, 409)
        fault = reply.json
        self.assertEqual(fault.pop("txnId"), reply.header("X-Response-Id"))
        self.assertEqual(
            fault,
            {
                "type": "lockHeld",
                "code": 409,
                "message": "Lock is held",
                "details": f"Lock {NAME} is held by host1",
                "lock": {"name": NAME, "holder": "host1", "fence": body["fence"], "seconds_left": 10},
            },
        )

    def test_batch(self) -> None:
        """A batch has heartbeats of services and locks, and each result says which it is of."""
        service, lock = self.api.create("web1"), self.acquire()["token"]
        entries: list[Any] = [
            {"lock": NAME, "token": lock},
            {"id": "web1", "token": service},
            {"lock": NAME, "token": service},
            {"lock": "/other/name", "token": lock},
            {"lock": "/a", "token": lock},
            {"lock": NAME},
            {"id": "web1", "token": "x"},
            {"id": "web1", "lock": NAME, "token": service},
        ]
        values = self.ask("POST", "/heartbeats", {"heartbeats": entries}).json["values"]
        self.assertEqual(
            [value.get("lock") for value in values], [NAME, None, NAME, "/other/name", "/a", NAME, None, None]
        )
        self.assertEqual(["token" in value for value in values], [True, True, *[False] * 5, True])
        self.assertEqual(
            [value["fault"]["details"] for value in values if "fault" in value],
            [
                f'Object "HeartbeatMarker" with key "{service}" does not exist',
                'Object "Lock" with key "/other/name" does not exist',
                "String is not in range (3..500)",
                "Missing required key (token)",
                "Invalid UUID",
            ],
        )

    def test_faultsNameTheField(self) -> None:
        """A body that is not valid is refused by the name of the field, and nothing changes."""
        good = {"name": NAME, "timeout": 15}
        for change, key, reason in (
            ({"name": None}, "name", "Not a string"),
            ({"name": "/a"}, "name", "String is not in range (3..500)"),
            ({"name": "/billing/"}, "name", "Invalid characters"),
            ({"name": "/billing/sché"}, "name", "Invalid characters"),
            ({"timeout": 2}, "timeout", "Value out of range (3..120)"),
            ({"timeout": 121}, "timeout", "Value out of range (3..120)"),
            ({"timeout": "soon"}, "timeout", "Invalid integer"),
            ({"holder": "x" * 256}, "holder", "String is not in range (0..255)"),
            ({"holder": 5}, "holder", "Not a string"),
            ({"nonce": "x"}, "nonce", "Invalid UUID"),
            ({"nonce": 5}, "nonce", "Not a string"),
            ({"wait": 61}, "wait", "Value out of range (0..60)"),
            ({"wait": -1}, "wait", "Value out of range (0..60)"),
            ({"metadata": []}, "metadata", "Not a hash"),
            ({"metadata": {"a": 1}}, "metadata", "Value for key 'a': Not a string"),
        ):
            reply = self.ask("POST", "/locks", {**good, **change})
            self.assertFault(reply, 400, "badRequest", f"Validation error for key '{key}'", reason)
        for missing in good:
            reply = self.ask("POST", "/locks", {key: value for key, value in good.items() if key != missing})
            reason = f"Missing required key ({missing})"
            self.assertFault(reply, 400, "badRequest", f"Validation error for key '{missing}'", reason)
        self.assertEqual(self.names(), [])
        self.acquire()
        for what, body, key, reason in (
            ("heartbeat", {"name": NAME}, "token", "Missing required key (token)"),
            ("heartbeat", {"name": NAME, "token": "x"}, "token", "Invalid UUID"),
            ("heartbeat", {"token": TOKEN}, "name", "Missing required key (name)"),
            ("release", {"name": NAME}, "token", "Missing required key (token)"),
            ("release", {"name": NAME, "force": False}, "token", "Missing required key (token)"),
            ("release", {"name": NAME, "force": "yes"}, "force", "Not a boolean"),
            ("release", {"name": NAME, "force": True, "token": TOKEN}, "force", "Only without token"),
            ("release", {"name": NAME, "token": TOKEN, "now": True}, "now", "Only with force"),
            ("release", {"force": True}, "name", "Missing required key (name)"),
        ):
            reply = self.post(what, **body)
            self.assertFault(reply, 400, "badRequest", f"Validation error for key '{key}'", reason)
        self.assertEqual(self.names(), [NAME])

    def test_notThere(self) -> None:
        """A lock that is not held, and a token of another acquisition, are two kinds of 404."""
        for what in ("heartbeat", "release"):
            reply = self.post(what, name=NAME, token=TOKEN)
            details = f'Object "Lock" with key "{NAME}" does not exist'
            self.assertFault(reply, 404, "notFoundError", "object does not exist", details)
        self.acquire()
        for what in ("heartbeat", "release"):
            reply = self.post(what, name=NAME, token=TOKEN)
            details = f'Object "HeartbeatMarker" with key "{TOKEN}" does not exist'
            self.assertFault(reply, 404, "notFoundError", "object does not exist", details)
        self.assertEqual(self.names(), [NAME])

    def test_force(self) -> None:
        """Anyone who may release the lock can end it by force, with or without its timeout."""
        token = self.acquire()["token"]
        self.assertEqual(self.post("release", name=NAME, force=True).code, 204)
        self.assertEqual(self.post("heartbeat", name=NAME, token=token).code, 404)
        self.assertEqual(self.names(), [NAME])
        self.assertEqual(self.post("release", name=NAME, force=True, now=True).code, 204)
        self.assertEqual(self.names(), [])

    def test_pages(self) -> None:
        """Locks come in pages, sorted by name; a name selects one."""
        for name in ("/beta/two", "/beta/one", "simple", "/alpha/three"):
            self.acquire(name)
        page = self.ask("GET", "/locks?limit=3").json
        self.assertEqual([lock["name"] for lock in page["values"]], ["/alpha/three", "/beta/one", "/beta/two"])
        self.assertEqual(page["metadata"]["next_marker"], "simple")
        self.assertEqual(self.names("?marker=simple"), ["simple"])
        self.assertEqual(self.names("?name=/beta/one"), ["/beta/one"])
        self.assertEqual(self.names("?name=%2Fbeta%2Fnone"), [])
        self.assertEqual(self.names("?name=/beta/one&marker=/beta/two"), [])
        reply = self.ask("GET", "/locks?name=x")
        self.assertFault(reply, 400, "badRequest", "Invalid value for 'name' query string parameter")

    def test_events(self) -> None:
        """Only requests that ask for them see the events of locks."""
        token = self.acquire()["token"]
        self.post("release", name=NAME, token=token)
        self.acquire(timeout=3)
        self.api.advance(4)
        self.assertEqual(self.ask("GET", "/events").json["values"], [])
        events = self.ask("GET", "/events?types=all").json["values"]
        types = ["lock.acquire", "lock.release", "lock.acquire", "lock.expire"]
        self.assertEqual([event["type"] for event in events], types)
        self.assertNotIn(token, json.dumps(events))

    def test_noService(self) -> None:
        """Locks are not services, and do not count as such."""
        self.acquire("web1")
        self.assertEqual(self.ask("GET", "/services").json["values"], [])
        self.assertEqual(self.ask("GET", "/services/web1").code, 404)
        self.assertNotIn("lock", self.ask("GET", "/limits").json["resource"])


class LimitTests(LocksCase):
    """A small account."""

    def setUp(self) -> None:
        super().setUp()
        self.api = Api(ResourceLimits(lock=1))
        self.ask = self.api.ask

    def test_limit(self) -> None:
        """The account's limit names the resource."""
        self.acquire()
        reply = self.ask("POST", "/locks", {"name": "/other/name", "timeout": 15})
        details = "Limit for resource lock has been reached. Maximum allowed objects: 1"
        self.assertFault(reply, 400, "limitReached", "Resource limit has been reached", details)


class WaitTests(LocksCase):
    """Requests that wait."""

    def waiting(self, **more: Any) -> Connection:
        """A request that waits for the lock, on a connection of its own."""
        connection = Connection(self.api)
        body = json.dumps({"name": NAME, "timeout": 15, "wait": 60, **more}).encode()
        connection.send(requestBytes("POST", "/v1.0/1234/locks", body, {"X-Auth-Token": self.api.token}))
        return connection

    def test_granted(self) -> None:
        """The response comes when the lock is released, and in time if it is not."""
        token = self.acquire()["token"]
        first, second = self.waiting(), self.waiting(wait=5)
        self.assertEqual(first.replies(), [])
        self.post("release", name=NAME, token=token)
        (reply,) = first.replies()
        self.assertEqual(reply.code, 201)
        self.api.advance(5)
        (reply,) = second.replies()
        self.assertEqual((reply.code, reply.json["lock"]["seconds_left"]), (409, 10))

    def test_connectionClosed(self) -> None:
        """A waiter whose connection is closed is skipped; a holder's closed connection does not release the lock."""
        token = self.acquire()["token"]
        first, second = self.waiting(holder="first"), self.waiting(holder="second")
        first.transport.loseConnection()
        self.post("release", name=NAME, token=token)
        (reply,) = second.replies()
        self.assertEqual(reply.code, 201)
        second.transport.loseConnection()
        self.assertEqual(self.ask("GET", "/locks").json["values"][0]["holder"], "second")

    def test_keyIsReplaced(self) -> None:
        """A waiter whose token ends while it waits gets no lock."""
        token = self.acquire()["token"]
        waiting = self.waiting()
        _, key = fired(self.api.identity.rotate(USER))
        self.api.token = fired(self.api.identity.authenticate(USER, key)).id
        self.post("release", name=NAME, token=token)
        self.api.advance(2)
        (reply,) = waiting.replies()
        self.assertEqual(reply.code, 401)
        self.assertEqual(self.names(), [])


class RoleTests(LocksCase):
    """Users that may not change all locks."""

    def refused(self, role: Role) -> list[int]:
        """The codes of all changes of a lock that another user holds."""
        token = self.acquire()["token"]
        fired(self.api.identity.changeRole(USER, role))
        self.api.advance(2)
        bodies: list[tuple[str, Any]] = [
            ("/locks", {"name": NAME, "timeout": 15}),
            ("/locks/heartbeat", {"name": NAME, "token": token}),
            ("/locks/release", {"name": NAME, "token": token}),
            ("/locks/release", {"name": NAME, "force": True, "now": True}),
        ]
        codes = [self.ask("POST", path, body).code for path, body in bodies]
        batch = self.ask("POST", "/heartbeats", {"heartbeats": [{"lock": NAME, "token": token}]}).json
        self.assertEqual(self.names(), [NAME])
        return [*codes, batch["values"][0]["fault"]["code"]]

    def test_read(self) -> None:
        """A user with the role read changes no lock."""
        self.assertEqual(self.refused(Role("read")), [403] * 5)

    def test_prefix(self) -> None:
        """A user with a prefix changes no other locks, and a body that is not valid is reported first."""
        self.assertEqual(self.refused(Role(locks=["/web"])), [403] * 5)
        self.acquire("/web/leader")
        self.assertEqual(self.ask("POST", "/locks", {"name": NAME, "timeout": 1}).code, 400)
