"""
Tests for :mod:`txserviceregistry.registry.http.resource`: tokens and credentials on requests. How tokens are
issued is in test_resource.
"""

from __future__ import annotations

import base64
import json

from twisted.trial.unittest import SynchronousTestCase

from tests import CHEAP
from txserviceregistry.registry.identity import hashKey
from txserviceregistry.registry.roles import Role

from ..wire import KEY, USER, Api, Connection, Reply, fired, requestBytes

KEYSTONE = 'Keystone uri="http://registry.example:8880/v2.0"'
BASIC = 'Basic realm="service registry", charset="UTF-8"'
NO_TOKEN = "No authentication token provided"
WRONG_TOKEN = "Invalid or expired authentication token"
WRONG_KEY = "Username or api key is invalid"


def basic(user: str = USER, key: str = KEY, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(f'{user}:{key}'.encode()).decode()}"


class AuthenticationCase(SynchronousTestCase):
    """A registry, and requests without ``X-Auth-Token``."""

    def setUp(self) -> None:
        self.api = Api()

    def ask(self, authorization: str | None, method: str = "GET", path: str = "/services", **more: str) -> Reply:
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        if authorization is not None:
            headers["Authorization"] = authorization
        body = {"value": "v"} if method == "PUT" else None
        return self.api.ask(method, path, body, headers, token=None)

    def assertRefused(self, reply: Reply, details: str) -> None:
        self.assertEqual((reply.code, reply.json["type"]), (401, "unauthorizedError"))
        self.assertEqual((reply.json["message"], reply.json["details"]), ("forbidden", details))
        self.assertEqual(reply.headers["www-authenticate"], [KEYSTONE, "Bearer", BASIC])


class SchemeTests(AuthenticationCase):
    """The schemes of Authorization."""

    def test_bearer(self) -> None:
        """An auth token may be sent as Bearer."""
        for scheme in ("Bearer ", "bearer ", "BEARER   "):
            self.assertEqual(self.ask(scheme + self.api.token).code, 200)
        for wrong in ("wrong", "a b", f"{self.api.token}, Basic x", "\xe4"):
            self.assertRefused(self.ask("Bearer " + wrong), WRONG_TOKEN)
        for nothing in ("Bearer", "Bearer ", self.api.token):
            self.assertRefused(self.ask(nothing), NO_TOKEN)

    def test_basic(self) -> None:
        """A user's name and API key may be sent as Basic, in UTF-8."""
        for good in (basic(), basic(scheme="basic"), basic(scheme="BASIC  ")):
            self.assertEqual(self.ask(good).code, 200)
        fired(self.api.identity.addUser("ann", "1234", "k:ä:"))
        self.assertEqual(self.ask(basic("ann", "k:ä:")).code, 200)

    def test_wrongBasic(self) -> None:
        """Wrong and malformed credentials are one and the same 401."""
        malformed = ("", "!", "a", "QQ", "QQ==", base64.b64encode(b"\xff:\xff").decode(), basic()[6:] + "!", "a, b")
        for authorization in (
            *(f"Basic {value}" for value in malformed),
            *(basic(user, key) for user, key in ((USER, "wrong"), ("none", KEY), ("", KEY), (USER, ""), ("é\n", "\0"))),
        ):
            connection = Connection(self.api)
            connection.send(requestBytes("GET", "/v1.0/1234/services", None, {"Authorization": authorization}))
            self.api.advance(5)
            (reply,) = connection.replies()
            self.assertRefused(reply, WRONG_KEY)

    def test_otherSchemes(self) -> None:
        """Any other scheme counts as a missing token, and gets the challenges in their order."""
        for other in (None, "", " ", "Digest username=joe", "Negotiate abc", "Basic", "BearerX y"):
            self.assertRefused(self.ask(other), WRONG_KEY if other == "Basic" else NO_TOKEN)

    def test_tokenFirst(self) -> None:
        """Beside X-Auth-Token, whatever it is, Authorization is ignored, also several of them."""
        ofProxy = "Basic " + base64.b64encode(b"proxy:secret").decode()
        self.assertEqual(self.ask(ofProxy, X_Auth_Token=self.api.token).code, 200)
        self.assertRefused(self.ask(basic(), X_Auth_Token="wrong"), WRONG_TOKEN)
        self.assertRefused(self.ask(basic(), X_Auth_Token=""), NO_TOKEN)
        reply = self.severally("X-Auth-Token: " + self.api.token, f"Authorization: {ofProxy}", "Authorization: x")
        self.assertEqual(reply.code, 200)

    def test_several(self) -> None:
        """Several Authorization headers are a 400, valid or not."""
        for lines in ((basic(), basic()), (f"Bearer {self.api.token}", "Bearer x"), ("", "")):
            reply = self.severally(*(f"Authorization: {line}" for line in lines))
            self.assertEqual((reply.code, reply.json["type"]), (400, "badRequest"))
            self.assertEqual(reply.json["message"], "Several Authorization headers")

    def severally(self, *lines: str) -> Reply:
        connection = Connection(self.api)
        head = "\r\n".join(("GET /v1.0/1234/services HTTP/1.1", "Host: registry.example:8880", *lines))
        connection.send(f"{head}\r\n\r\n".encode())
        (reply,) = connection.replies()
        return reply

    def test_otherTenants(self) -> None:
        """Credentials open the user's own tenant only."""
        for authorization in (basic(), f"Bearer {self.api.token}"):
            reply = self.api.ask("GET", b"/v1.0/77/services", None, {"Authorization": authorization}, token=None)
            self.assertRefused(reply, WRONG_TOKEN)

    def test_recognizes(self) -> None:
        """A client that has authenticated so is known, as one with a token is."""
        for authorization in (basic(), f"Bearer {self.api.token}"):
            connection = Connection(self.api)
            connection.send(requestBytes("GET", "/v1.0/1234/limits", None, {"Authorization": authorization}))
            self.assertTrue(connection.protocol.isKnown)

    def test_vouches(self) -> None:
        """A request with a token or credentials that were valid is served during a flood, others wait."""
        self.ask(basic())
        waiting = [Connection(self.api) for _ in range(2)]
        self.api.site.connections.requests.spend(lambda: self.api.clock.advance(1))
        for each in waiting:
            each.send(requestBytes("GET", "/"))
        self.assertEqual([each.replies() for each in waiting], [[], []])
        for good in (basic(), basic(scheme="basic"), f"Bearer {self.api.token}"):
            self.assertEqual(self.ask(good).code, 200, good)
        for bad in (basic(key="wrong"), "Basic !", "Basic QQ==", "Bearer wrong", "Digest x"):
            connection = Connection(self.api)
            connection.send(requestBytes("GET", "/v1.0/1234/services", None, {"Authorization": bad}))
            self.assertEqual(connection.replies(), [], bad)


class KeyTests(AuthenticationCase):
    """How Basic credentials are checked, on a clock of its own."""

    def later(self, authorization: str, seconds: float = 5.0) -> int:
        """The code of the response, which may be delayed."""
        connection = Connection(self.api)
        connection.send(requestBytes("GET", "/v1.0/1234/services", None, {"Authorization": authorization}))
        self.api.advance(seconds)
        (reply,) = connection.replies()
        return reply.code

    def test_once(self) -> None:
        """A key is hashed once in ten minutes, however many requests have it, and whichever way they authenticate."""
        before = self.api.hashes
        for _ in range(110):
            self.api.advance(5)
            self.assertEqual(self.ask(basic()).code, 200)
        self.assertLessEqual(self.api.hashes, before + 1)
        before = self.api.hashes
        self.api.advance(601)
        for _ in range(3):
            self.assertEqual(self.ask(basic()).code, 200)
        self.assertEqual(self.api.hashes, before + 1)

    def test_rotated(self) -> None:
        """A key that another process has replaced fails within a second, and the new one works at once."""
        self.assertEqual(self.ask(basic()).code, 200)
        fired(self.api.store.replaceUserKey(USER, hashKey("new", cost=CHEAP)))
        self.assertEqual(self.ask(basic(key="new")).code, 200)
        self.api.advance(1.0)
        self.assertEqual(self.later(basic()), 401)
        fired(self.api.identity.rotate(USER, "newer"))
        self.assertEqual(self.later(basic(key="new")), 401)
        self.assertEqual(self.ask(basic(key="newer")).code, 200)

    def test_removed(self) -> None:
        """The key of a user whom another process has removed fails within a second."""
        self.assertEqual(self.ask(basic()).code, 200)
        fired(self.api.store.removeUser(USER))
        self.api.advance(1.0)
        self.assertEqual(self.later(basic()), 401)

    def test_roles(self) -> None:
        """The user's role counts, within a second after another process has changed it."""
        self.assertEqual(self.ask(basic(), "PUT", "/configuration/key").code, 204)
        fired(self.api.store.changeRole(USER, Role("read")))
        self.api.advance(1.0)
        self.assertEqual(self.ask(basic(), "PUT", "/configuration/key").code, 403)
        self.assertEqual(self.ask(basic()).code, 200)

    def test_throttled(self) -> None:
        """Failures are delayed as those of logins are, and together with them; a valid key never is."""
        self.assertEqual(self.ask(basic()).code, 200)
        wrong = {"auth": {"passwordCredentials": {"username": USER, "password": "wrong"}}}
        for number in range(3):
            self.assertEqual(self.later(basic(key=f"wrong{number}")), 401)
        login = Connection(self.api)
        login.send(requestBytes("POST", "/v2.0/tokens", json.dumps(wrong).encode()))
        basics = Connection(self.api)
        basics.send(requestBytes("GET", "/v1.0/1234/services", None, {"Authorization": basic(key="wrong9")}))
        self.api.advance(0.3)
        self.assertEqual((login.replies(), basics.replies()), ([], []))
        self.assertEqual(self.ask(basic()).code, 200)
        self.api.advance(3)
        self.assertEqual([each.code for each in login.replies() + basics.replies()], [401, 401])
        self.assertEqual(self.api.identity.statistics.failed, 5)

    def test_overload(self) -> None:
        """When too many keys wait to be checked, further ones are a 503, and known ones are not affected."""
        self.ask(basic())
        self.api.hashesHang = True
        waiting = [Connection(self.api) for _ in range(520)]
        for number, connection in enumerate(waiting):
            authorization = basic(key=f"wrong{number}")
            connection.send(requestBytes("GET", "/v1.0/1234/services", None, {"Authorization": authorization}))
        codes = [reply.code for connection in waiting for reply in connection.replies()]
        self.assertEqual((len(codes) > 0, set(codes)), (True, {503}))
        self.assertEqual(self.ask(basic()).code, 200)

    def test_storeIsAway(self) -> None:
        """While the store is unavailable, credentials that were seen before stay valid; others can't be checked."""
        self.ask(basic())
        self.api.store.unavailable = True
        self.api.advance(5)
        self.assertEqual(self.ask(basic(), path="/limits").code, 200)
        self.assertEqual(self.ask(basic("none", "x"), path="/limits").code, 503)


class BrowserTests(AuthenticationCase):
    """Browsers send remembered Basic credentials for pages of other origins too."""

    def test_pagesOfOtherOrigins(self) -> None:
        """Basic credentials in the request of such a page are a 403, before the key is looked at."""
        for headers in (
            {"Sec_Fetch_Site": "same-site"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": ""},
            {"Sec_Fetch_Site": "anything", "Origin": "http://registry.example:8880"},
            {"Origin": "http://registry.example:9000"},
            {"Origin": "http://registry.example"},
            {"Origin": "null"},
        ):
            for key in (KEY, "wrong"):
                reply = self.ask(basic(key=key), "PUT", "/configuration/key", **headers)
                self.assertEqual((reply.code, reply.json["type"]), (403, "forbiddenError"), headers)
        self.assertEqual(self.ask(basic(), path="/configuration").json["values"], [])

    def test_ownPages(self) -> None:
        """Of the registry's own pages, and of what is typed into the address bar, they are accepted."""
        for headers in (
            {"Sec_Fetch_Site": "same-origin"},
            {"Sec_Fetch_Site": "none"},
            {"Sec_Fetch_Site": "same-origin", "Origin": "http://behind.proxy"},
            {"Origin": "http://registry.example:8880"},
            {"Origin": "https://registry.example:8880"},
        ):
            self.assertEqual(self.ask(basic(), "PUT", "/configuration/key", **headers).code, 204, headers)

    def test_tokens(self) -> None:
        """A token is nothing that a browser remembers, so that it is accepted from anywhere."""
        for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"}):
            self.assertEqual(self.ask(f"Bearer {self.api.token}", **headers).code, 200)
            self.assertEqual(self.ask(basic(), X_Auth_Token=self.api.token, **headers).code, 200)

    def test_noPrompt(self) -> None:
        """A page is never challenged for Basic credentials, which would open the browser's own dialog."""
        for name in ("Sec_Fetch_Site", "Sec_Fetch_Mode", "sec_fetch_dest"):
            reply = self.ask(None, **{name: "same-origin"})
            self.assertEqual(reply.headers["www-authenticate"], [KEYSTONE, "Bearer"])


class OwnTenantTests(AuthenticationCase):
    """Paths without a tenant."""

    def test_everyResource(self) -> None:
        """They are the same resources of the user's tenant, and all other paths stay what they were."""
        token = self.api.create("web1", tags=["a"])
        for path in (
            "services",
            "services/",
            "services/web1",
            "configuration",
            "events",
            "/services",
            "prometheus",
        ):
            own = self.api.ask("GET", f"/v1.0/{path}".encode())
            self.assertEqual((own.code, own.json), (200, self.api.ask("GET", "/" + path.lstrip("/")).json), path)
        self.assertEqual(self.api.ask("POST", b"/v1.0/services/web1/heartbeat", {"token": token}).code, 200)
        batch = {"heartbeats": [{"id": "web1", "token": token}]}
        self.assertNotIn("fault", self.api.ask("POST", b"/v1.0/heartbeats", batch).json["values"][0])
        for path in (
            b"/v1.0/nothing",
            b"/v1.0/Services",
            b"/v1.0/services2",
            b"/v1.0/",
            b"/v1.0/services/a/b",
            b"/services",
        ):
            self.assertEqual(self.api.ask("GET", path).code, 404, path)
        self.assertRefused(self.api.ask("GET", b"/v1.0/services", token=None), NO_TOKEN)

    def test_configuration(self) -> None:
        """Each slash of a key counts as behind a tenant."""
        for path in (b"/v1.0/configuration//abc_def", b"/v1.0/configuration/abc/def", b"/v1.0/configuration/abc"):
            self.assertEqual(self.api.ask("PUT", path, {"value": "v"}).code, 204)
        values = self.api.ask("GET", b"/v1.0/configuration//").json["values"]
        self.assertEqual([value["id"] for value in values], ["/abc/def", "/abc_def"])
        (value,) = self.api.ask("GET", b"/v1.0/configuration/abc/").json["values"]
        self.assertEqual(value["id"], "/abc/def")

    def test_links(self) -> None:
        """Location names the tenant, and next_href repeats the path that was asked for."""
        base = "http://registry.example:8880/v1.0"
        for number in range(2):
            body = {"id": f"web{number}", "heartbeat_timeout": 30}
            reply = self.api.ask("POST", b"/v1.0/services", body)
            self.assertEqual(reply.header("Location"), f"{base}/1234/services/web{number}")
        page = self.api.ask("GET", b"/v1.0/services?limit=1").json
        self.assertEqual(page["metadata"]["next_href"], f"{base}/services?limit=1&marker=web1")

    def test_ofTheUser(self) -> None:
        """Each user has the own tenant there."""
        self.api.create("web1")
        fired(self.api.identity.addUser("ann", "77", "key"))
        reply = self.api.ask("GET", b"/v1.0/services", None, {"Authorization": basic("ann", "key")}, token=None)
        self.assertEqual(reply.json["values"], [])
