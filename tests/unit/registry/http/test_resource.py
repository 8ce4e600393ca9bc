"""Tests for :mod:`txserviceregistry.registry.http.resource`: the API, as what a client sends and gets."""

from __future__ import annotations

import gc
import json
import re
import tracemalloc
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.registry.http import validation
from txserviceregistry.registry.http.operations import Operation
from txserviceregistry.registry.http.requestlog import GONE
from txserviceregistry.registry.limits import RATE_HEADERS, ResourceLimits

from ..wire import KEY, OPERATIONS, USER, Api, Connection, Reply, requestBytes

JSON_TYPE = "application/json; charset=UTF-8"
CREDENTIALS = {"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": USER, "apiKey": KEY}}}
# The store's operations that requests wait for.
STORE_OPERATIONS = (
    *("createService", "getService", "listServices", "updateService", "removeService"),
    *("getState", "setState", "listStates", "getValue", "listValues", "setValue", "removeValue"),
    *("listEvents", "lastEvent", "hasEvent", "acquireLock", "getLock", "listLocks", "releaseLock", "forceLock"),
)


class ApiCase(SynchronousTestCase):
    """A whole registry over the memory store."""

    def setUp(self) -> None:
        self.api = Api()
        self.ask = self.api.ask

    def assertFault(self, reply: Reply, code: int, type: str, message: str, details: str | None = None) -> None:
        self.assertEqual(reply.code, code, reply)
        body = reply.json
        self.assertEqual(sorted(body), ["code", "details", "message", "txnId", "type"])
        self.assertEqual((body["code"], body["type"], body["message"]), (code, type, message))
        self.assertEqual(body["txnId"], reply.header("X-Response-Id"))
        if details is not None:
            self.assertEqual(body["details"], details)

    def assertNoPage(self, reply: Reply) -> None:
        self.assertFault(reply, 404, "notFoundError", "The page cannot be found.")


class IdentityTests(ApiCase):
    """The Auth API."""

    def authenticate(self, body: Any, path: bytes = b"/v2.0/tokens", **headers: str) -> Reply:
        return self.ask("POST", path, body, headers, token=None)

    def test_apiKey(self) -> None:
        """User name and API key bring a token, and the four entries where old clients look for the tenant."""
        reply = self.authenticate(CREDENTIALS)
        self.assertEqual((reply.code, reply.header("Content-Type")), (200, JSON_TYPE))
        access = reply.json["access"]
        url = "http://registry.example:8880/v1.0/1234"
        plain = [{"tenantId": "1234", "publicURL": url}]
        regional = [{"region": "LOCAL", "tenantId": "1234", "publicURL": url}]
        self.assertEqual(
            access["serviceCatalog"],
            [
                {"name": "cloudServersOpenStack", "type": "compute", "endpoints": regional},
                {"name": "cloudServers", "type": "compute", "endpoints": plain},
                {"name": "cloudMonitoring", "type": "rax:monitor", "endpoints": plain},
                {"name": "serviceRegistry", "type": "rax:service-registry", "endpoints": regional},
            ],
        )
        self.assertEqual(access["token"]["tenant"], {"id": "1234", "name": "1234"})
        self.assertEqual((access["user"]["name"], access["user"]["roles"]), (USER, []))
        self.assertEqual(self.ask("GET", "/services", token=access["token"]["id"]).code, 200)

    def test_expires(self) -> None:
        """The end of a token is written in the one form that every old client can read."""
        # The wall clock of the tests begins at midnight of 2026-01-01 in UTC, which is 18:00 the day before at -06:00.
        expires = self.authenticate(CREDENTIALS).json["access"]["token"]["expires"]
        self.assertEqual(expires, "2026-01-01T18:00:00.000-06:00")

    def test_passwordAndSlash(self) -> None:
        """The API key is accepted as a password, and ``/tokens/`` is ``/tokens``."""
        body = {"auth": {"passwordCredentials": {"username": USER, "password": KEY}, "tenantName": "x"}}
        for path in (b"/v2.0/tokens", b"/v2.0/tokens/", b"/v2.0//tokens", b"/v2.0%2Ftokens"):
            self.assertEqual(self.authenticate(body, path).code, 200, path)

    def test_wrong(self) -> None:
        """Wrong users and wrong keys get the very same answer, in the Auth API's own shape."""
        bodies = []
        for username, key in ((USER, "wrong"), ("unknown", KEY)):
            credentials = {"username": username, "apiKey": key}
            reply = self.authenticate({"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})
            self.assertEqual((reply.code, reply.header("Content-Type")), (401, JSON_TYPE))
            self.assertTrue(reply.header("X-Response-Id"))
            bodies.append(reply.json)
        expected = {"unauthorized": {"code": 401, "message": "Username or api key is invalid"}}
        self.assertEqual(bodies, [expected, expected])

    def test_malformed(self) -> None:
        """Bodies that hold no credentials are 400 in the Auth API's own shape."""
        kind = "RAX-KSKEY:apiKeyCredentials"
        for body in (
            b"",
            b"{",
            b"[]",
            b'"\xff"',
            {},
            {"auth": None},
            {"auth": []},
            {"auth": {}},
            {"auth": {kind: None}},
            {"auth": {kind: []}},
            {"auth": {kind: {}}},
            {"auth": {kind: {"username": USER}}},
            {"auth": {kind: {"apiKey": KEY}}},
            {"auth": {kind: {"username": "", "apiKey": KEY}}},
            {"auth": {kind: {"username": USER, "apiKey": 1}}},
            {"auth": {kind: {"username": [USER], "apiKey": KEY}}},
            {"auth": {"passwordCredentials": {"username": USER, "apiKey": KEY}}},
            {"auth": {kind: {"username": USER, "apiKey": "\ud800"}}},
        ):
            reply = self.authenticate(body)
            self.assertEqual((reply.code, list(reply.json)), (400, ["badRequest"]), body)
            self.assertEqual(reply.json["badRequest"]["code"], 400)
            self.assertIsInstance(reply.json["badRequest"]["message"], str)
        reply = self.authenticate(CREDENTIALS, **{"Content-Type": "text/xml"})
        self.assertEqual(reply.json["badRequest"]["message"], "Unsupported content type: text/xml")

    def test_otherPaths(self) -> None:
        """The Auth API has one path and one method."""
        for method, path in (
            ("GET", b"/v2.0/tokens"),
            ("POST", b"/v2.0"),
            ("POST", b"/v2.0/"),
            ("POST", b"/v2.0/tokens/x"),
            ("POST", b"/v2.0tokens"),
            ("DELETE", b"/v2.0/tokens/abc"),
        ):
            self.assertNoPage(self.ask(method, path, token=None))

    def test_storeIsAway(self) -> None:
        """Unknown users can't log in while the store is unreachable."""
        self.api.store.unavailable = True
        credentials = {"username": "ann", "apiKey": "k"}
        reply = self.authenticate({"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})
        self.assertFault(reply, 503, "systemFailureError", "Service unavailable")

    def test_overload(self) -> None:
        """When too many keys wait to be checked the next one is 503."""
        connections = [Connection(self.api) for _ in range(502)]
        self.api.hashesHang = True
        for number, connection in enumerate(connections):
            credentials = {"username": USER, "apiKey": f"wrong{number}"}
            body = json.dumps({"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}}).encode()
            connection.send(requestBytes("POST", "/v2.0/tokens", body))
        self.api.clock.advance(0)
        (reply,) = connections[-1].replies()
        self.assertFault(reply, 503, "systemFailureError", "Service unavailable")


class UnauthorizedTests(ApiCase):
    """Requests without a token that counts."""

    def assertUnauthorized(self, reply: Reply, details: str) -> None:
        self.assertFault(reply, 401, "unauthorizedError", "forbidden", details)
        challenges = ['Keystone uri="http://registry.example:8880/v2.0"', "Bearer"]
        challenges.append('Basic realm="service registry", charset="UTF-8"')
        self.assertEqual(reply.headers["www-authenticate"], challenges)

    def test_noToken(self) -> None:
        """Without a token every path below ``/v1.0`` is 401, whether there is such a page or not."""
        for path in (b"/v1.0/1234/services", b"/v1.0/1234/nothing", b"/v1.0", b"/v1.0/", b"/v1.0/1234"):
            self.assertUnauthorized(self.ask("GET", path, token=None), "No authentication token provided")
        empty = self.ask("GET", "/services", headers={"X-Auth-Token": ""}, token=None)
        self.assertUnauthorized(empty, "No authentication token provided")

    def test_wrongToken(self) -> None:
        """A token that is unknown, expired, or another tenant's opens nothing."""
        details = "Invalid or expired authentication token"
        for token in ("wrong", self.api.token + "x", "\xe4"):
            self.assertUnauthorized(self.ask("GET", "/services", token=token), details)
        for tenant in (b"1", b"12345", b"2147483647"):
            self.assertUnauthorized(self.ask("GET", b"/v1.0/" + tenant + b"/services"), details)
        self.api.advance(0.5)
        self.api.wallClock.advance(86_400)
        self.assertUnauthorized(self.ask("GET", "/services"), details)

    def test_severalTokens(self) -> None:
        """Of several tokens in one request the first counts."""
        connection = Connection(self.api)
        for first, second, code in ((self.api.token, "wrong", 200), ("wrong", self.api.token, 401)):
            connection.send(
                b"GET /v1.0/1234/services HTTP/1.1\r\nHost: h\r\n"
                b"X-Auth-Token: " + first.encode() + b"\r\nX-Auth-Token: " + second.encode() + b"\r\n\r\n"
            )
            self.assertEqual([reply.code for reply in connection.replies()], [code])

    def test_xTenantIdIsIgnored(self) -> None:
        """Only the path says whose objects are meant."""
        self.assertEqual(self.ask("GET", "/services", headers={"X-Tenant-Id": "99", "Accept": "text/html"}).code, 200)

    def test_noTenant(self) -> None:
        """With a good token, a path without a tenant is a page that can't be found."""
        for path in (b"/v1.0", b"/v1.0/", b"/v1.0//"):
            self.assertNoPage(self.ask("GET", path))


class OrderTests(ApiCase):
    """Which fault wins when a request has several."""

    def test_order(self) -> None:
        """Size, content type, JSON, token, page, limit, marker, other parameters, fields, existence: in this order."""
        xml = {"Content-Type": "text/xml"}
        large = b"x" * 5000
        for reply, message in [
            (self.ask("POST", "/nothing", large, xml, token=None), "Request body is too large"),
            (self.ask("POST", "/nothing", b"{", xml, token=None), "Unsupported content type: text/xml"),
            (self.ask("POST", "/nothing", b"[]", token=None), "Failed to parse request body: not an object"),
            (self.ask("POST", "/nothing?limit=x", b"{}", token=None), "forbidden"),
            (self.ask("GET", "/nothing?limit=x"), "The page cannot be found."),
            (self.ask("GET", "/services?limit=x&marker=%20&tag=%20"), "Invalid limit"),
            (self.ask("GET", "/services?marker=%20&tag=%20"), "Invalid value for 'marker' query string parameter"),
            (self.ask("GET", "/services?tag=%20"), "Invalid value for 'tag' query string parameter"),
            (self.ask("GET", "/configuration/a%20/?limit=0"), "Invalid limit"),
            (self.ask("GET", "/events?limit=0&marker=x&type=y"), "Invalid limit"),
            (self.ask("GET", "/events?marker=x&type=y"), "Invalid UUID"),
            (
                self.ask("PUT", "/services/x", {"tags": 1}),
                "Invalid value for 'serviceId' query string parameter",
            ),
            (self.ask("PUT", "/services/gone", {"tags": 1}), "Validation error for key 'tags'"),
            (self.ask("PUT", "/services/gone", {"tags": []}), "object does not exist"),
        ]:
            self.assertEqual(reply.json["message"], message)


class BodyTests(ApiCase):
    """The bodies that are accepted."""

    def test_notJSON(self) -> None:
        """A body that is not a JSON object is refused with a reason, and stores nothing."""
        for body in (
            b"[]",
            b'"x"',
            b"1",
            b"null",
            b"{",
            b" ",
            b'{"id": "web1", "heartbeat_timeout": 30,}',
            b'{"id": "web1", "heartbeat_timeout": NaN}',
            b'{"id": "web1", "heartbeat_timeout": Infinity}',
            b'{"id": "web1", "heartbeat_timeout": -Infinity}',
            b'\xef\xbb\xbf{"id": "web1", "heartbeat_timeout": 30}',
            '{"id": "web1", "heartbeat_timeout": 30}'.encode("utf-16"),
            b'{"id": "web1", "heartbeat_timeout": 30, "tags": ["\xff"]}',
            b'{"id": "web1", "heartbeat_timeout": 30, "tags": ["\xed\xa0\x80"]}',
            b'{"id": "web1", "heartbeat_timeout": 30, "tags": ["\\ud800"]}',
            b'{"id": "web1", "heartbeat_timeout": 30, "\\udc00": 1}',
            b"[" * 4999,
            b'{"a":' * 900,
            b'{"id": "web1", "heartbeat_timeout": 30, "x": ' + b"1" * 4900 + b"}",
            b'{"id": "web1", "heartbeat_timeout": 30, "x": "\n"}',
        ):
            reply = self.ask("POST", "/services", body)
            self.assertEqual((reply.code, reply.json["type"]), (400, "badRequest"), body[:60])
            self.assertTrue(reply.json["message"].startswith("Failed to parse request body: "), body[:60])
            self.assertIsInstance(reply.json["details"], str)
        self.assertEqual(self.ask("GET", "/services").json["values"], [])

    def test_nestedDeep(self) -> None:
        """
        A body that is nested as deep as there is room for is refused: as such, or, where Python reads it, for a field.
        """
        for key in ("id", "heartbeat_timeout", "tags", "metadata"):
            fields = {"id": '"web1"', "heartbeat_timeout": "30", key: "[" * 2400 + "]" * 2400}
            body = "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"
            reply = self.ask("POST", "/services", body.encode("ascii"))
            self.assertEqual((reply.code, reply.json["type"]), (400, "badRequest"))
            self.assertRegex(
                reply.json["message"],
                f"^(Failed to parse request body: nested too deep|Validation error for key '{key}')",
            )

    def test_tooManyDigits(self) -> None:
        """The error for a number with thousands of digits does not mention Python."""
        reply = self.ask("POST", "/services", b'{"id": "web1", "heartbeat_timeout": ' + b"3" * 4400 + b"}")
        message = "Failed to parse request body: a number has too many digits"
        self.assertFault(reply, 400, "badRequest", message, "a number has too many digits")

    def test_oddButJSON(self) -> None:
        """Valid JSON is taken, and values that it leaves open never break the registry."""
        for number, body in enumerate(
            [
                b'\r\n\t {"id": "%s", "heartbeat_timeout": 30} ',
                b'{"id": "x", "id": "%s", "heartbeat_timeout": 30}',
                b'{"id": "%s", "heartbeat_timeout": "30", "metadata": {"a": "\\ud83d\\ude00"}}',
                b'{"id": "%s", "heartbeat_timeout": 30.0, "unknown": 1e999, "more": [[[[]]]]}',
                b'{"id": "%s", "heartbeat_timeout": 30, "tags": null, "metadata": null}',
            ]
        ):
            reply = self.ask("POST", "/services", body % (b"web%d" % number))
            self.assertEqual(reply.code, 201, (body, reply))
        for body in (b'{"id": "webx", "heartbeat_timeout": 1e999}', b'{"id": "webx", "heartbeat_timeout": -1e999}'):
            reply = self.ask("POST", "/services", body)
            self.assertFault(reply, 400, "badRequest", "Validation error for key 'heartbeat_timeout'")

    def test_emptyBody(self) -> None:
        """An empty body is an object without fields, whatever it is said to be."""
        for headers in ({}, {"Content-Type": "text/xml"}, {"Content-Length": "0"}):
            reply = self.ask("POST", "/services", None, headers)
            self.assertFault(reply, 400, "badRequest", "Validation error for key 'id'", "Missing required key (id)")
        self.api.create("web1")
        self.assertEqual(self.ask("PUT", "/services/web1", b"").code, 204)

    def test_contentTypes(self) -> None:
        """JSON is JSON in whatever case, with whatever parameters, or unnamed; anything else is refused."""
        for index, good in enumerate(
            ("application/json", "Application/JSON;charset=utf-8", "application/json ; x=y", "", "application/json;")
        ):
            body = {"id": f"web{index}", "heartbeat_timeout": 30}
            self.assertEqual(self.ask("POST", "/services", body, {"Content-Type": good}).code, 201, good)
        for bad in (
            "text/xml",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "json",
            "multipart/form-data",
        ):
            reply = self.ask("POST", "/services", {"id": "web9", "heartbeat_timeout": 30}, {"Content-Type": bad})
            self.assertFault(reply, 400, "badRequest", f"Unsupported content type: {bad}")
        reply = self.ask("POST", "/services", b"{}", {"Content-Type": "foo/bar; charset=UTF-8"})
        self.assertEqual(reply.json["message"], "Unsupported content type: foo/bar")

    def test_contentTypeWithoutBody(self) -> None:
        """A GET or DELETE may be said to be of any type."""
        self.api.create("web1")
        for method, code in (("GET", 200), ("DELETE", 204)):
            reply = self.ask(method, "/services/web1", headers={"Content-Type": "text/xml"})
            self.assertEqual(reply.code, code)


class ServiceTests(ApiCase):
    """Services over HTTP."""

    def test_create(self) -> None:
        """A service is created with its place and its first heartbeat token."""
        reply = self.ask("POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        self.assertEqual(reply.code, 201)
        self.assertEqual(reply.header("Location"), "http://registry.example:8880/v1.0/1234/services/web1")
        self.assertEqual(list(reply.json), ["token"])

    def test_createTwice(self) -> None:
        """An id that is alive can't be taken."""
        self.api.create("web1")
        reply = self.ask("POST", "/services", {"id": "web1", "heartbeat_timeout": 30})
        self.assertFault(reply, 400, "serviceWithThisIdExists", "Service with id web1 already exists.")

    def test_getAndList(self) -> None:
        """A service is shown with all its fields, alone and in a page."""
        self.api.create("web1", 30, tags=["www", "\xe4"], metadata={"k": "\U0001f600"})
        service = {
            "id": "web1",
            "heartbeat_timeout": 30,
            "tags": ["www", "\xe4"],
            "metadata": {"k": "\U0001f600"},
            "last_seen": None,
        }
        self.assertEqual(self.ask("GET", "/services/web1").json, service)
        page = self.ask("GET", "/services").json
        self.assertEqual(page["values"], [service])
        self.assertEqual(
            page["metadata"],
            {"count": 1, "limit": 100, "marker": None, "next_marker": None, "next_href": None},
        )
        self.assertEqual(self.ask("GET", "/services?tag=WWW").json["values"], [])
        self.assertEqual(self.ask("GET", "/services?tag=www").json["values"], [service])

    def test_heartbeat(self) -> None:
        """A heartbeat returns the next token; unknown services and foreign tokens are different faults."""
        token = self.api.create("web1")
        reply = self.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.assertEqual((reply.code, list(reply.json)), (200, ["token"]))
        self.assertNotEqual(reply.json["token"], token)
        other = self.api.create("web2")
        self.assertFault(
            self.ask("POST", "/services/web1/heartbeat", {"token": other}),
            404,
            "notFoundError",
            "object does not exist",
            f'Object "HeartbeatMarker" with key "{other}" does not exist',
        )
        self.assertFault(
            self.ask("POST", "/services/gone/heartbeat", {"token": token}),
            404,
            "notFoundError",
            "object does not exist",
            'Object "Service" with key "gone" does not exist',
        )
        reply = self.ask("POST", "/services/web1/heartbeat", {"token": "x"})
        self.assertFault(reply, 400, "badRequest", "Validation error for key 'token'")

    def test_heartbeatNeedsNoStore(self) -> None:
        """Heartbeats are answered while the store is away; what needs it is 503."""
        token = self.api.create("web1")
        self.api.store.unavailable = True
        self.api.advance(20)
        self.assertEqual(self.ask("POST", "/services/web1/heartbeat", {"token": token}).code, 200)
        self.assertFault(self.ask("GET", "/services"), 503, "systemFailureError", "Service unavailable")

    def test_heartbeats(self) -> None:
        """A batch of heartbeats is answered in its order; each that fails says why, and the others count."""
        tokens = {id: self.api.create(id) for id in ("web1", "web2", "web3")}
        self.api.advance(20)
        entries = [
            {"id": "web2", "token": tokens["web2"]},
            {"id": "gone", "token": tokens["web1"]},
            {"id": "web3", "token": tokens["web1"]},
            {"id": "web1", "token": tokens["web1"].upper(), "more": 1},
            {"id": "web2", "token": tokens["web2"]},
        ]
        reply = self.ask("POST", "/heartbeats", {"heartbeats": entries})
        self.assertEqual((reply.code, list(reply.json)), (200, ["values"]))
        values = reply.json["values"]
        self.assertEqual([value["id"] for value in values], ["web2", "gone", "web3", "web1", "web2"])
        self.assertEqual(
            [sorted(value) for value in values],
            [["id", "token"], ["fault", "id"], ["fault", "id"], ["id", "token"], ["id", "token"]],
        )
        for value, kind, key in ((values[1], "Service", "gone"), (values[2], "HeartbeatMarker", tokens["web1"])):
            self.assertEqual(
                value["fault"],
                {
                    "type": "notFoundError",
                    "code": 404,
                    "message": "object does not exist",
                    "details": f'Object "{kind}" with key "{key}" does not exist',
                    "txnId": reply.header("X-Response-Id"),
                },
            )
        for value in (values[0], values[3], values[4]):
            self.assertNotIn(value["token"], tokens.values())
        self.api.advance(15)
        self.assertEqual([each["id"] for each in self.ask("GET", "/services").json["values"]], ["web1", "web2"])
        reply = self.ask("POST", "/services/web1/heartbeat", {"token": values[3]["token"]})
        self.assertEqual(reply.code, 200)

    def test_heartbeatsThatAreNone(self) -> None:
        """An invalid entry is refused in its place, with its id, if that is a string."""
        token = self.api.create("web1")
        entries = [
            5,
            None,
            [],
            {},
            {"id": 5},
            {"id": "x", "token": token},
            {"id": "web1"},
            {"id": "web1", "token": "x"},
        ]
        values = self.ask("POST", "/heartbeats", {"heartbeats": entries}).json["values"]
        self.assertEqual(
            [(value["id"], value["fault"]["message"].split()[-1], value["fault"]["details"]) for value in values],
            [
                (None, "'heartbeats'", "Not a hash"),
                (None, "'heartbeats'", "Not a hash"),
                (None, "'heartbeats'", "Not a hash"),
                (None, "'id'", "Missing required key (id)"),
                (None, "'id'", "Not a string"),
                ("x", "'id'", "String is not in range (3..65)"),
                ("web1", "'token'", "Missing required key (token)"),
                ("web1", "'token'", "Invalid UUID"),
            ],
        )
        self.assertEqual({(value["fault"]["code"], value["fault"]["type"]) for value in values}, {(400, "badRequest")})

    def test_batchesThatAreNone(self) -> None:
        """A batch is an array of 1 to 1,000, and no other method is taken."""
        for body, reason in [
            ({}, "Missing required key (heartbeats)"),
            ({"heartbeats": None}, "Not an array"),
            ({"heartbeats": {}}, "Not an array"),
            ({"heartbeats": []}, "Object needs to have between 1 and 1000 items"),
            ({"heartbeats": [0] * 1001}, "Object needs to have between 1 and 1000 items"),
        ]:
            reply = self.ask("POST", "/heartbeats", body)
            self.assertFault(reply, 400, "badRequest", "Validation error for key 'heartbeats'", reason)
        self.assertEqual(len(self.ask("POST", "/heartbeats", {"heartbeats": [0] * 1000}).json["values"]), 1000)
        for method, path in (("GET", "/heartbeats"), ("PUT", "/heartbeats"), ("POST", "/heartbeats/")):
            self.assertNoPage(self.ask(method, path))
        self.assertEqual(self.ask("POST", b"/v1.0/99/heartbeats", {"heartbeats": [0]}).code, 401)

    def test_heartbeatsNeedNoStore(self) -> None:
        """A batch is answered while the store is away, and is none of the rate limit's business."""
        entry = {"id": "web1", "token": self.api.create("web1")}
        used = self.ask("GET", "/limits").json["rate"]["/.*"]["used"]
        self.api.store.unavailable = True
        (value,) = self.ask("POST", "/heartbeats", {"heartbeats": [entry]}).json["values"]
        self.assertEqual(sorted(value), ["id", "token"])
        self.api.store.unavailable = False
        self.assertEqual(self.ask("GET", "/limits").json["rate"]["/.*"]["used"], used + 1)

    def test_update(self) -> None:
        """An update has no body to answer with, and says where the service is."""
        self.api.create("web1", tags=["a"])
        reply = self.ask("PUT", "/services/web1", {"id": "web1", "metadata": {"a": "b"}})
        self.assertEqual((reply.code, reply.raw), (204, b""))
        self.assertEqual(reply.header("Location"), "http://registry.example:8880/v1.0/1234/services/web1")
        self.assertEqual(self.ask("GET", "/services/web1").json["metadata"], {"a": "b"})
        self.assertFault(
            self.ask("PUT", "/services/web1", {"id": "web2"}),
            400,
            "badRequest",
            "Validation error for key 'id'",
            "Attempted to mutate immutable field",
        )
        self.assertEqual(self.ask("PUT", "/services/gone", {}).code, 404)

    def test_remove(self) -> None:
        """A service that is removed is gone."""
        self.api.create("web1")
        self.assertEqual(self.ask("DELETE", "/services/web1").code, 204)
        for method in ("DELETE", "GET"):
            self.assertFault(
                self.ask(method, "/services/web1"),
                404,
                "notFoundError",
                "object does not exist",
                'Object "Service" with key "web1" does not exist',
            )

    def test_ids(self) -> None:
        """Ids in a path that nothing can have are refused by name, with the reason."""
        for id, reason in [
            (b"ab", "String is not in range (3..65)"),
            (b"x" * 66, "String is not in range (3..65)"),
            (b"..", "String is not in range (3..65)"),
            (b"a%00b", "Invalid characters"),
            (b"abc%0A", "Invalid characters"),
            (b"a%20b", "Invalid characters"),
            (b"%C5%BFsss", "Invalid characters"),
        ]:
            for method in ("GET", "PUT", "DELETE"):
                self.assertFault(
                    self.ask(method, b"/v1.0/1234/services/" + id),
                    400,
                    "badRequest",
                    "Invalid value for 'serviceId' query string parameter",
                    reason,
                )
        self.assertNoPage(self.ask("GET", "/services/a%2Fb"))

    def test_limit(self) -> None:
        """Limits and markers are checked as the API says, on every collection."""
        for path in ("/services", "/configuration", "/events", "/configuration/production/"):
            for limit in ("0", "-1", "1001"):
                details = f"Invalid limit {limit}. Minimum limit is 1 and maximum limit is 1000."
                self.assertFault(
                    self.ask("GET", f"{path}?limit={limit}"), 400, "invalidLimit", "Invalid limit", details
                )
            for limit in ("abc", "", "1.5", "%zz", "%80", "1e2", "%D9%A1", "1%00", "5&limit=6", "5&limit=5"):
                self.assertFault(
                    self.ask("GET", f"{path}?limit={limit}"),
                    400,
                    "invalidLimit",
                    "Invalid limit",
                    "Limit must be a number",
                )
        for marker in ("%80", "a%20b", "x" * 256, "%00"):
            for path in ("/services", "/configuration"):
                self.assertFault(
                    self.ask("GET", f"{path}?marker={marker}"),
                    400,
                    "badRequest",
                    "Invalid value for 'marker' query string parameter",
                )

    def test_pages(self) -> None:
        """Following ``next_href`` as it is leads through a whole collection once."""
        ids = [f"web{number}" for number in range(7)]
        for id in ids:
            self.api.create(id, tags=["a&b=c"] if id != "web3" else ["other"])
        # The query of the first page is kept: an odd tag can't be asked for, but other parameters can be odd.
        url = b"/v1.0//1234/services?limit=2&x=%26%3D+%C3%A4&marker=web0"
        seen: list[str] = []
        pages = 0
        while url:
            page = self.ask("GET", url).json
            pages += 1
            seen += [service["id"] for service in page["values"]]
            href = page["metadata"]["next_href"]
            url = b""
            if href is not None:
                parts = urlsplit(href)
                self.assertEqual((parts.scheme, parts.netloc), ("http", "registry.example:8880"))
                self.assertEqual(parts.path, "/v1.0//1234/services")
                self.assertIn("limit=2&x=%26%3D+%C3%A4&marker=" + page["metadata"]["next_marker"], parts.query)
                url = f"{parts.path}?{parts.query}".encode()
        self.assertEqual((seen, pages), (ids, 4))

    def test_pagesOfLongKeys(self) -> None:
        """A page can begin at a key that is longer than a marker may be; other texts may not be longer."""
        long = "/" + "/".join(["x" * 50] * 7)
        for key in ("/aaa/bbb", long):
            self.assertEqual(self.ask("PUT", "/configuration/" + key, {"value": "x"}).code, 204)
        first = self.ask("GET", "/configuration?limit=1").json
        self.assertEqual(first["metadata"]["next_marker"], long)
        for path in ("/configuration", "/configuration//", "/configuration/" + "x" * 50 + "/"):
            second = self.ask("GET", f"{path}?limit=1&marker={long}").json
            self.assertEqual([value["id"] for value in second["values"]], [long])
        self.assertFault(
            self.ask("GET", "/configuration?marker=" + "x" * 256),
            400,
            "badRequest",
            "Invalid value for 'marker' query string parameter",
            validation.BAD_MARKER,
        )

    def test_nextHrefKeepsEscapes(self) -> None:
        """Characters that a client had to escape in a path are escaped in ``next_href``."""
        for number in range(3):
            self.ask("PUT", f"/configuration/production/key{number}", {"value": "x"})
        page = self.ask("GET", "/configuration/%2Fproduction%2F?limit=2").json
        self.assertEqual(
            page["metadata"]["next_href"],
            "http://registry.example:8880/v1.0/1234/configuration/%2Fproduction%2F?limit=2&marker=%2Fproduction%2Fkey2",
        )

    def test_markerIsShown(self) -> None:
        """A page repeats its marker."""
        self.assertEqual(self.ask("GET", "/services?marker=web5").json["metadata"]["marker"], "web5")


class ConfigurationTests(ApiCase):
    """Configuration over HTTP."""

    def test_spellings(self) -> None:
        """A value is found under every spelling of its key; the Location has its own."""
        for path, key in [
            ("/configuration/listen_ip", "listen_ip"),
            ("/configuration//abc_def", "/abc_def"),
            ("/configuration/abc_def", "abc_def"),
            ("/configuration/production/x_y", "/production/x_y"),
            ("/configuration//production/x_z", "/production/x_z"),
            ("/configuration/%2Fproduction%2Fcassandra%2Flisten_ip", "/production/cassandra/listen_ip"),
        ]:
            reply = self.ask("PUT", path, {"value": key})
            self.assertEqual((reply.code, reply.raw), (204, b""))
            self.assertEqual(reply.header("Location"), "http://registry.example:8880/v1.0/1234/configuration/" + key)
            self.assertEqual(self.ask("GET", path).json, {"id": key, "value": key})
        self.assertEqual(self.ask("GET", "/configuration/production/x_z").json["value"], "/production/x_z")
        every = ["/abc_def", "/production/cassandra/listen_ip", "/production/x_y", "/production/x_z"]
        for path, keys in [
            ("/configuration", [*every, "abc_def", "listen_ip"]),
            ("/configuration/", [*every, "abc_def", "listen_ip"]),
            ("/configuration//", every),
            ("/configuration/production/", every[1:]),
            ("/configuration//production/", every[1:]),
            ("/configuration/production/cassandra/", every[1:2]),
            ("/configuration/abc_def/", every[:1]),
            ("/configuration/nothing/", []),
        ]:
            page = self.ask("GET", path).json
            self.assertEqual([value["id"] for value in page["values"]], keys, path)

    def test_badKeys(self) -> None:
        """Keys and namespaces that nothing can have are refused by name."""
        for method, path in [
            ("PUT", "/configuration//"),
            ("PUT", "/configuration/production/"),
            ("DELETE", "/configuration//production/"),
            ("PUT", "/configuration/ab"),
            ("GET", "/configuration/a%20b"),
            ("GET", "/configuration/a%20b/"),
            ("GET", "/configuration///"),
            ("GET", "/configuration/production//"),
            ("GET", "/configuration///production/x_y"),
            ("PUT", "/configuration/" + "x" * 501),
            ("PUT", "/configuration/abc%0A"),
        ]:
            self.assertFault(
                self.ask(method, path, {"value": "x"} if method == "PUT" else None),
                400,
                "badRequest",
                "Invalid value for 'configurationId' query string parameter",
            )

    def test_values(self) -> None:
        """A value is a string, comes back as it was sent, and is gone when it is removed."""
        value = '\xe4\u2028\U0001f600 "\\\x00'
        self.assertEqual(self.ask("PUT", "/configuration/abc", {"value": value}).code, 204)
        self.assertEqual(self.ask("GET", "/configuration/abc").json["value"], value)
        reply = self.ask("PUT", "/configuration/abc", {"value": 1})
        self.assertFault(reply, 400, "badRequest", "Validation error for key 'value'", "Not a string")
        self.assertEqual(self.ask("DELETE", "/configuration/abc").code, 204)
        for method in ("GET", "DELETE"):
            self.assertFault(
                self.ask(method, "/configuration/abc"),
                404,
                "notFoundError",
                "object does not exist",
                'Object "ConfigurationValue" with key "abc" does not exist',
            )


class EventTests(ApiCase):
    """The events feed over HTTP."""

    def test_feed(self) -> None:
        """Events are filtered, paged, and found again by their ids."""
        self.api.create("web1")
        self.ask("PUT", "/configuration/abc", {"value": "x"})
        self.ask("DELETE", "/services/web1")
        feed = self.ask("GET", "/events").json["values"]
        self.assertEqual(
            [event["type"] for event in feed], ["service.join", "configuration_value.update", "service.remove"]
        )
        only = self.ask("GET", "/events?type=service.remove").json
        self.assertEqual(only["values"], feed[2:])
        page = self.ask("GET", f"/events?marker={feed[1]['id']}&limit=1").json
        self.assertEqual(page["values"], feed[1:2])
        self.assertEqual(page["metadata"]["next_marker"], feed[2]["id"])
        self.assertIn("marker=" + feed[2]["id"], page["metadata"]["next_href"])
        shouted = self.ask("GET", f"/events?marker={feed[1]['id'].upper()}&limit=1").json
        self.assertEqual(shouted["values"], feed[1:2])

    def test_longQueriesAreNotKept(self) -> None:
        """Queries with thousands of parameters are not kept in memory."""
        self.ask("GET", "/events")
        self.addCleanup(tracemalloc.stop)
        collectOnlyNew(self)
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(3):
            reply = self.ask("GET", f"/events?limit={number + 1}" + "".join([f"&{n:x}" for n in range(256, 3256)]))
            self.assertEqual(reply.json["metadata"]["limit"], number + 1)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        self.assertLess(after - before, 250_000)

    def test_refusals(self) -> None:
        """An invalid marker is a fault with the same words twice."""
        for query, reason in [
            ("marker=", "Invalid UUID"),
            ("marker=x", "Invalid UUID"),
            (
                "marker=f7f1c000-e6a4-11ff-81ce-0e9b51e43a39",
                "from parameter must be smaller than the current time",
            ),
            (
                "marker=d0c3c000-e6a4-11e0-81ce-0e9b51e43a39",
                "from parameter must be greater than or equal to the account creation date",
            ),
        ]:
            self.assertFault(self.ask("GET", "/events?" + query), 400, "badRequest", reason, reason)
        reply = self.ask("GET", "/events?type=x%80")
        self.assertEqual((reply.code, reply.json["type"]), (400, "badRequest"))
        self.assertTrue(reply.json["details"].startswith("Invalid type: x"))


class LimitTests(ApiCase):
    """Limits over HTTP."""

    def test_limits(self) -> None:
        """An account sees its limits, and that only GETs count."""
        self.api.create("web1")
        self.ask("PUT", "/configuration/abc", {"value": "x"})
        self.ask("GET", "/services")
        self.assertEqual(
            self.ask("GET", "/limits").json,
            {
                "resource": {"service": 100_000, "configuration_value": 100_000},
                "rate": {"/.*": {"limit": 500000, "used": 1, "window": "24.0 hours"}},
            },
        )

    def test_raised(self) -> None:
        """An operator's limits are shown, and are those that count."""
        self.api = Api(limits=ResourceLimits(service=1, configurationValue=2))
        self.assertEqual(self.api.ask("GET", "/limits").json["resource"], {"service": 1, "configuration_value": 2})
        self.api.create("web1")
        self.assertFault(
            self.api.ask("POST", "/services", {"id": "web2", "heartbeat_timeout": 30}),
            400,
            "limitReached",
            "Resource limit has been reached",
            "Limit for resource service has been reached. Maximum allowed objects: 1",
        )

    def test_rate(self) -> None:
        """Beyond the rate limit ``Retry-After`` says when to retry, and heartbeats still work."""
        self.api = Api(rateLimit=2)
        token = self.api.create("web1")
        for _ in range(2):
            self.assertEqual(self.api.ask("GET", "/services").code, 200)
        reply = self.api.ask("GET", "/services")
        self.assertFault(reply, 400, "rateLimitReached", "Rate limit has been reached.")
        self.assertTrue(int(reply.header("Retry-After") or "") > 86_000)
        self.assertEqual(self.api.ask("POST", "/services/web1/heartbeat", {"token": token}).code, 200)

    def test_unknownPagesDoNotCount(self) -> None:
        """A path that is no resource does not count."""
        self.assertNoPage(self.ask("GET", "/nothing"))
        self.assertEqual(self.ask("GET", "/limits").json["rate"]["/.*"]["used"], 0)

    def test_headers(self) -> None:
        """Every response to a request that counts, also a fault, has the rate headers; others do not."""
        paths = ("/services", "/services/unknown", "/events", "/limits?limit=x", "/configuration?marker=%20")
        for used, path in enumerate(paths):
            reply = self.ask("HEAD" if used == 1 else "GET", path)
            self.assertEqual(
                [reply.header(name) for name in RATE_HEADERS[:4]], ["/.*", "500000", str(used), "86400 seconds"]
            )
            self.assertTrue(reply.header("Reply-After").isdigit())
        for reply in (
            self.ask("GET", "/nothing"),
            self.ask("GET", "/services", token="wrong"),
            self.ask("PUT", "/configuration/abc", {"value": "x"}),
        ):
            self.assertFalse(set(map(str.lower, RATE_HEADERS)) & set(reply.headers))
        self.api = Api(rateLimit=0)
        reply = self.api.ask("GET", "/services")
        self.assertEqual((reply.code, reply.header("X-Ratelimit-Used")), (400, "0"))


class ErrorTests(ApiCase):
    """Internal errors."""

    def test_internalError(self) -> None:
        """An internal error is a 500 without details; the log has them, with the same id."""
        self.patch(self.api.registry, "list", lambda *args: 1 / 0)
        reply = self.ask("GET", "/services")
        self.assertFault(reply, 500, "internalError", "Internal Error", "Internal Error")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNotIn(b"ZeroDivision", reply.raw)

    def test_clientHangsUp(self) -> None:
        """A client that goes away before its answer is there leaves neither an error nor a connection."""
        slow: Deferred[Any] = Deferred()
        self.patch(self.api.registry, "get", lambda *args: slow)
        connection = Connection(self.api)
        connection.send(requestBytes("GET", "/v1.0/1234/services/web1", headers={"X-Auth-Token": self.api.token}))
        connection.transport.loseConnection()
        slow.callback({"id": "web1"})
        self.assertEqual((connection.replies(), self.flushLoggedErrors()), ([], []))

    def hangsUp(self, operation: Operation, isAnswered: bool) -> bool:
        """A client asks for this, and goes away before the store answers, or refuses; whether the store was asked."""
        api = Api()
        lock = api.ask("POST", "/locks", {"name": "/lock/one", "timeout": 30}).json
        fields = {"heartbeat_timeout": 30, "value": "a", "state": "out", "timeout": 30, "wait": 1, "heartbeats": [{}]}
        body = json.dumps({"id": "key1", "name": "/lock/one", "token": lock["token"], **fields}).encode()
        path = re.sub("{.*?}", "key1", operation.path) + ("?wait=1" if operation.path == "/events" else "")
        held = [api.held.hold(name) for name in STORE_OPERATIONS]
        connection, others = Connection(api), api.site.connections.count - 1
        headers = {"X-Auth-Token": api.token}
        connection.send(requestBytes(operation.method, f"/v1.0/1234{path}", operation.body and body, headers))
        isHeld = any(held)
        connection.transport.loseConnection()
        for _ in range(5):  # an answer may lead to the next question
            for call in [calls.pop() for calls in held if calls]:
                (call.release if isAnswered else call.refuse)()
        api.advance(2)
        registry = api.registry
        left = registry.followers.count, registry.feed.streams.places.count, api.site.connections.count - others
        self.assertEqual((left, self.flushLoggedErrors()), ((0, 0, 0), []), operation.name)
        gone = sum(one.codes[GONE] for one in api.requestLog.routes.values())
        self.assertEqual(gone, int(isHeld), operation.name)
        return isHeld

    def test_clientHangsUpWhateverItHasAskedFor(self) -> None:
        """Whether the store answers after that or not, the request is counted as one whose client is gone."""
        asked = [self.hangsUp(operation, isAnswered) for operation in OPERATIONS for isAnswered in (True, False)]
        self.assertGreater(sum(asked), 35)

    def test_slowAnswer(self) -> None:
        """An answer that takes a while comes when it is there."""
        slow: Deferred[Any] = Deferred()
        self.patch(self.api.registry, "get", lambda *args: slow)
        connection = Connection(self.api)
        connection.send(requestBytes("GET", "/v1.0/1234/services/web1", headers={"X-Auth-Token": self.api.token}))
        self.assertEqual(connection.replies(), [])
        slow.callback({"id": "web1"})
        self.assertEqual([reply.json for reply in connection.replies()], [{"id": "web1"}])

    def test_answerThatCanNotBeSent(self) -> None:
        """An answer that JSON has no words for is an error like any other."""
        self.patch(self.api.registry, "get", lambda *args: succeed({"id": object()}))
        reply = self.ask("GET", "/services/web1")
        self.assertFault(reply, 500, "internalError", "Internal Error", "Internal Error")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
