"""The permissions of each role: every operation of the API, alone and in batches."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid1

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.http.operations import Operation
from txserviceregistry.registry.roles import KINDS, WRITE, Role

from ..test_tenants import ARGUMENTS, BODIES
from ..wire import OPERATIONS, Api, Reply, addConsole, fired

# By the first segment of a path: the kind of the object that an operation below it changes, and a prefix of the objects
# that the walk is about.
PREFIXES = {"services": "web", "heartbeats": "web", "configuration": "/production", "locks": "/production/l"}
ELSEWHERE = {"services": "db", "configuration": "/production/key/below", "locks": "/other"}


def kindOf(operation: Operation) -> str | None:
    """The kind of the object that an operation changes; ``None`` if it changes none."""
    if operation.method == "GET" or operation.name == "createConsoleLink":
        return None
    kind = operation.path.split("/")[1]
    return {"heartbeats": "services"}.get(kind, kind)


class RolesCase(SynchronousTestCase):
    """A registry with a service, a value and a lock, and a second user of their tenant."""

    def setUp(self) -> None:
        self.api = Api()
        addConsole(self.api)
        self.mine = self.api.create("web1")
        self.api.ask("PUT", "/configuration/production/key", {"value": "old"})
        self.lock = self.api.ask("POST", "/locks", BODIES["acquireLock"]).json["token"]
        _, key = fired(self.api.identity.addUser("ann", "1234"))
        self.ann = fired(self.api.identity.authenticate("ann", key)).id

    def become(self, role: Role) -> None:
        fired(self.api.identity.changeRole("ann", role))

    def as_(self, method: str, path: str, body: Any = None) -> Reply:
        return self.api.ask(method, path, body, token=self.ann)

    def call(self, operation: Operation) -> Reply:
        """The reply to an operation on what is there, as the second user."""
        path = operation.path
        for placeholder, argument in ARGUMENTS.items():
            path = path.replace(placeholder, argument)
        body = json.dumps(BODIES[operation.name]).replace("{token}", self.mine).replace("{lockToken}", self.lock)
        return self.as_(operation.method, path, None if body == "null" else body.encode())

    def everything(self) -> list[Any]:
        return [
            self.api.ask("GET", path).json["values"]
            for path in ("/services", "/configuration", "/locks", "/events", "/states")
        ]


class WalkTests(RolesCase):
    """
    Every operation with every role. An operation that is added fails here until its handler asks whether the user may
    change the object.
    """

    def test_read(self) -> None:
        """The role read may read, also with HEAD, and change nothing."""
        self.become(Role("read"))
        before = self.everything()
        for operation in OPERATIONS:
            reply = self.call(operation)
            if kindOf(operation) is None:
                self.assertIn(reply.code, (200, 201), operation.name)
            elif reply.code == 200:
                # A batch.
                for value in reply.json["values"]:
                    self.assertEqual(value["fault"]["type"], "forbiddenError", operation.name)
            else:
                self.assertEqual((reply.code, reply.json["type"]), (403, "forbiddenError"), operation.name)
                self.assertIn("may only read", reply.json["details"])
        self.assertEqual(self.as_("HEAD", "/services").code, 200)
        self.assertEqual(self.everything(), before)

    def test_prefixes(self) -> None:
        """With prefixes, a user reads everything and changes what matches; prefixes of other kinds match nothing."""
        for operation in OPERATIONS:
            kind = kindOf(operation)
            roles = [(WRITE, True)]
            for each in KINDS:
                matches = kind in (None, each)
                roles += [
                    (Role(**{each: [PREFIXES[each]]}), matches),
                    (Role(**{each: ["zzz", PREFIXES[each]]}), matches),
                ]
                roles.append((Role(**{each: [ELSEWHERE[each]]}), kind is None))
            for role, isAllowed in roles:
                self.become(role)
                reply = self.call(operation)
                faults = [reply] if reply.code >= 400 else []
                codes = [fault.json["code"] for fault in faults]
                if operation.name == "heartbeats":
                    # Its second entry is about a lock.
                    codes = [value["fault"]["code"] for value in reply.json["values"][:1] if "fault" in value]
                # A service that is there can't be created again.
                expected = [400] if operation.name == "createService" else []
                self.assertEqual(codes, expected if isAllowed else [403], (operation.name, role))
                if isAllowed and kind is not None:
                    self.setUp()


class OrderTests(RolesCase):
    """When a role is looked at, in the order of checks."""

    def test_afterTheBodyAndBeforeExistence(self) -> None:
        """An invalid field is a 400 for every role, and a refusal does not disclose whether the object exists."""
        self.become(Role("read"))
        token = str(uuid1())
        for method, path, bad, good in (
            ("POST", "/services", {"id": "web1"}, {"id": "web1", "heartbeat_timeout": 30}),
            ("POST", "/services", {"id": "x"}, {"id": "web2", "heartbeat_timeout": 30}),
            ("PUT", "/services/web2", {"tags": 1}, {}),
            ("PUT", "/services/web2", {"id": "other"}, {"id": "web2"}),
            ("POST", "/services/web2/heartbeat", {"token": "x"}, {"token": token}),
            ("POST", "/heartbeats", {"heartbeats": []}, None),
            ("POST", "/locks", {"name": "/x"}, {"name": "/other/lock", "timeout": 15}),
            ("POST", "/locks/heartbeat", {"name": "/other/lock"}, {"name": "/other/lock", "token": token}),
            ("POST", "/locks/release", {"name": "/other/lock"}, {"name": "/other/lock", "force": True}),
            ("PUT", "/configuration/production/other", {}, {"value": "v"}),
            ("DELETE", "/configuration/x", None, None),
            ("DELETE", "/configuration/other", None, None),
        ):
            if bad is not None or path.endswith("/x"):
                self.assertEqual(self.as_(method, path, bad).code, 400, path)
            if good is not None or path.endswith("/other"):
                self.assertEqual(self.as_(method, path, good).code, 403, path)

    def test_inABatch(self) -> None:
        """Each entry of a batch is refused or accepted by itself, in its place."""
        tokens = {"web1": self.mine, "web2": self.api.create("web2"), "db1": self.api.create("db1")}
        self.become(Role(services=["web"]))
        ids = ("db1", "web1", "db2", "web2", "db1", "web3")
        entries: list[Any] = [{"id": id, "token": tokens.get(id, str(uuid1()))} for id in ids]
        entries.insert(3, {"id": "db1", "token": "bad"})
        values = self.as_("POST", "/heartbeats", {"heartbeats": entries}).json["values"]
        self.assertEqual([value["id"] for value in values], [entry["id"] for entry in entries])
        codes = [value["fault"]["code"] if "fault" in value else 200 for value in values]
        self.assertEqual(codes, [403, 200, 403, 400, 200, 403, 404])
        self.assertIn('services that begin with "web"', values[0]["fault"]["details"])
        seen = {each["id"]: each["last_seen"] for each in self.api.ask("GET", "/services").json["values"]}
        self.assertIsNone(seen["db1"])
        self.assertTrue(seen["web1"] and seen["web2"])

    def test_keysAreComparedAsTheyAreKept(self) -> None:
        """However a key is written in the path, the role is about the key itself."""
        self.become(Role(configuration=["/production"]))
        for path in ("production/a_b", "/production/a_b", "%2Fproduction%2Fa_b", "//production/a_b"[1:]):
            self.assertEqual(self.as_("PUT", "/configuration/" + path, {"value": "v"}).code, 204, path)
        for path in (
            "production",
            "productionx/a_b",
            "%2Fproductionx/a_b",
            "other/production/a_b",
            "other/..%2Fproduction",
        ):
            self.assertIn(self.as_("PUT", "/configuration/" + path, {"value": "v"}).code, (400, 403), path)


class ChangeTests(RolesCase):
    """A role that changes while tokens and services are there."""

    def test_inThisProcess(self) -> None:
        """A new role counts with the next request, with the same token."""
        body = {"token": self.mine}
        self.assertEqual(self.as_("POST", "/services/web1/heartbeat", body).code, 200)
        self.become(Role("read"))
        self.assertEqual(self.as_("POST", "/services/web1/heartbeat", body).code, 403)
        self.become(Role(services=["web"]))
        self.assertEqual(self.as_("POST", "/services/web1/heartbeat", body).code, 200)

    def test_inAnotherProcess(self) -> None:
        """A role that another process has changed counts within a second."""
        self.assertEqual(self.as_("DELETE", "/services/web2").code, 404)
        fired(self.api.store.changeRole("ann", Role("read")))
        self.api.advance(1.0)
        self.assertEqual(self.as_("DELETE", "/services/web2").code, 403)
        fired(self.api.store.changeRole("ann", WRITE))
        self.api.advance(1.0)
        self.assertEqual(self.as_("DELETE", "/services/web2").code, 404)

    def test_servicesOfAReaderExpire(self) -> None:
        """The heartbeats of a user that became read are refused, and the service expires."""
        self.become(Role("read"))
        for _ in range(4):
            self.api.advance(10)
            self.as_("POST", "/services/web1/heartbeat", {"token": self.mine})
        self.assertEqual(self.api.ask("GET", "/services/web1").code, 404)
