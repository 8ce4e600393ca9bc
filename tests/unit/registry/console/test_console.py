"""The console's requests, as bytes on the wire: the page, sessions, and what a session may do."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry import console
from txserviceregistry.registry.console.console import LIFETIME, LINK_LIFETIME
from txserviceregistry.registry.roles import Role

from ..wire import KEY, USER, Api, Connection, Reply, addConsole, fired, requestBytes

HOST = "127.0.0.1:8880"
ORIGIN = f"http://{HOST}"


class Browser:
    """
    A browser with the page open.

    :ivar cookie: what it sends as Cookie.
    :ivar secret: what the page sends beside it.
    """

    def __init__(self, api: Api, host: str = HOST, origin: str | None = ORIGIN) -> None:
        self.api = api
        self.host = host
        self.origin = origin
        self.cookie = self.secret = ""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        given = {"Host": self.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.origin is not None and method not in ("GET", "HEAD"):
            given.setdefault("Origin", self.origin)
        if self.cookie:
            given.setdefault("Cookie", self.cookie)
        if self.secret:
            given.setdefault("X-Console-Secret", self.secret)
        return self.api.ask(method, path.encode(), body, given, token=None)

    def logIn(self, body: Any = None) -> Reply:
        reply = self.ask("POST", "/console/api/login", body or {"user": USER, "key": KEY})
        if reply.code == 200:
            self.cookie = (reply.header("Set-Cookie") or "").partition(";")[0]
            self.secret = reply.json["secret"]
        return reply

    def session(self) -> int:
        return self.ask("GET", "/console/api/session").code


class ConsoleCase(SynchronousTestCase):
    names: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.api = Api()
        addConsole(self.api, self.names)
        self.browser = Browser(self.api)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        return self.browser.ask(method, path, body, **headers)


class PageTests(ConsoleCase):
    """The files."""

    def test_rootLeadsBrowsersToThePage(self) -> None:
        """A browser at the registry's address is redirected; every other client gets the 404 of the API."""
        reply = self.ask("GET", "/", Accept="text/html,application/xhtml+xml")
        self.assertEqual((reply.code, reply.header("Location")), (303, "/console/"))
        self.assertEqual(self.ask("GET", "/console").header("Location"), "/console/")
        for accept in ("application/json", "*/*"):
            reply = self.ask("GET", "/", Accept=accept)
            self.assertEqual((reply.code, reply.json["message"]), (404, "The page cannot be found."))
        self.assertEqual(self.ask("POST", "/", {}, Accept="text/html").code, 404)

    def test_files(self) -> None:
        """The page has all scripts and styles in it, and may use no other; its image is there."""
        page = self.ask("GET", "/console/")
        self.assertEqual((page.code, page.header("Content-Type")), (200, "text/html; charset=utf-8"))
        text = page.raw.decode()
        self.assertEqual(set(re.findall(r'(?:src|href)="([\w.]+)"', text)), {"mark.svg"})
        (script,) = re.findall(r"<script type=\"module\">(.*?)</script>", text, re.DOTALL)
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        self.assertNotRegex(script, r"(?m)^(?:import|export)\b")
        for file in (files(console) / "assets").iterdir():
            if file.name.endswith(".js"):
                self.assertIn(f"const ${file.name.removesuffix('.js')} = ", script)
        own = [b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (script, style)]
        policy = f"default-src 'none'; script-src 'sha256-{own[0]}'; style-src 'sha256-{own[1]}'; connect-src 'self';"
        for reply in (page, self.ask("GET", "/console/mark.svg"), self.ask("GET", "/console/api/session")):
            self.assertIn(policy, reply.header("Content-Security-Policy") or "")
            self.assertEqual(reply.header("X-Content-Type-Options"), "nosniff")

    def test_whatClientsMakeUp(self) -> None:
        """However many paths and methods are made up, with or without a session, they are counted in a few places."""
        for _ in range(2):
            for number in range(20):
                self.ask("GET", f"/console/api/nothing{number}")
                self.ask("GET", f"/console/nothing{number}")
                self.ask(f"METHOD{number}", "/console/")
                self.ask(f"METHOD{number}", "/console/api/session")
            self.browser.logIn()
        methods, routes = map(set, zip(*self.api.requestLog.routes, strict=True))
        self.assertEqual(methods, {b"GET", b"POST", b"other"})
        self.assertEqual(routes, {"/console", "/console/api", "other"})

    def test_whatIsNotThere(self) -> None:
        """Other files, paths that lead elsewhere, and other methods are 404."""
        for path in ("nothing.js", "../console.py", "..%2fconsole.py", "assets/app.js", "mark.svg/", "%00"):
            self.assertEqual(self.ask("GET", f"/console/{path}").code, 404, path)
        self.assertEqual(self.ask("PUT", "/console/mark.svg", {}).code, 404)

    def test_withoutAConsole(self) -> None:
        """If it is turned off, nothing of it is left."""
        self.api.resource.handlers.console = None
        for path in ("/console/", "/console/api/session", "/"):
            self.assertEqual(self.ask("GET", path, Accept="text/html").code, 404)


class SessionTests(ConsoleCase):
    """Logging in and out, and how sessions end."""

    def test_logIn(self) -> None:
        """A session has a cookie that scripts can't read and a secret; the page learns who it is for."""
        reply = self.browser.logIn()
        self.assertEqual(reply.code, 200)
        cookie = reply.header("Set-Cookie") or ""
        self.assertRegex(
            cookie, r"^registry-console-8880=[\w.-]+; Path=/console/api; HttpOnly; SameSite=Strict; Max-Age=28800$"
        )
        self.assertEqual((reply.json["user"], reply.json["tenant"], reply.json["role"]), (USER, "1234", "write"))
        self.assertNotIn(reply.json["secret"], cookie)
        self.assertEqual(self.browser.session(), 200)
        self.assertNotIn("secret", self.ask("GET", "/console/api/session").json)

    def test_behindAProxyWithTLS(self) -> None:
        """If the browser uses HTTPS, the cookie is for HTTPS only; one from a visit without does no harm."""
        self.browser.origin = f"https://{HOST}"
        cookie = self.browser.logIn().header("Set-Cookie") or ""
        self.assertRegex(
            cookie, r"^__Host-registry-console-8880=[\w.-]+; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=28800$"
        )
        self.assertEqual(self.browser.session(), 200)
        secure = self.browser.cookie
        for both in (f"registry-console-8880=other; {secure}", f"{secure}; registry-console-8880=other"):
            self.browser.cookie = both
            self.assertEqual(self.browser.session(), 200)
        self.browser.origin = ORIGIN
        self.browser.logIn()
        self.browser.cookie += f"; {secure}"
        self.assertEqual(self.browser.session(), 200)

    def test_wrongKey(self) -> None:
        """It is 401, without a challenge for which a browser would open a window of its own."""
        for body in ({"user": USER, "key": "wrong"}, {"user": "unknown", "key": KEY}, {"once": "unknown"}):
            reply = self.browser.logIn(body)
            self.assertEqual((reply.code, reply.header("WWW-Authenticate")), (401, None), body)
            self.assertIsNone(reply.header("Set-Cookie"))
            self.api.advance(60)

    def test_badBodies(self) -> None:
        """Each is a fault that names the field."""
        for body, field in (
            ({}, "user"),
            ({"user": 1, "key": KEY}, "user"),
            ({"user": USER}, "key"),
            ({"once": 1}, "once"),
        ):
            reply = self.ask("POST", "/console/api/login", body)
            self.assertEqual((reply.code, reply.json["message"]), (400, f"Validation error for key '{field}'"), body)

    def test_bothSecretsAreNeeded(self) -> None:
        """A cookie alone, a secret alone, or those of two sessions are worth nothing."""
        self.browser.logIn()
        other = Browser(self.api)
        other.logIn()
        mine, secret = self.browser.cookie, self.browser.secret
        for cookie, header in ((mine, ""), ("", secret), (mine, other.secret), (other.cookie, secret), (mine, "\xff")):
            self.browser.cookie, self.browser.secret = cookie, header
            self.assertEqual(self.browser.session(), 401, (cookie, header))

    def test_worthNothingToTheApi(self) -> None:
        """Below /v1.0 neither the cookie nor any of its parts is a credential."""
        self.browser.logIn()
        cookie = self.browser.cookie.partition("=")[2]
        for path in ("/v1.0/1234/services", "/v1.0/1234/events"):
            self.assertEqual(self.ask("GET", path).code, 401)
            for token in (
                cookie,
                cookie.partition(".")[0],
                self.browser.secret,
                f'["{cookie}", "{self.browser.secret}"]',
            ):
                self.assertEqual(self.ask("GET", path, X_Auth_Token=token).code, 401)

    def test_otherCookies(self) -> None:
        """Cookies of the same name, for more or fewer paths, and those of a registry on another port do no harm."""
        self.browser.logIn()
        own = self.browser.cookie
        for other in ("registry-console-8880=planted", "registry-console-8881=other", "registry-console-8880"):
            for both in (f"{other}; {own}", f"{own}; {other}"):
                self.browser.cookie = both
                self.assertEqual(self.browser.session(), 200, both)
        self.browser.cookie = own.replace("-8880", "-8881")
        self.assertEqual(self.browser.session(), 401)

    def test_logOut(self) -> None:
        """It ends this session only, and takes the cookie away."""
        self.browser.logIn()
        other = Browser(self.api)
        other.logIn()
        reply = self.ask("POST", "/console/api/logout", {})
        self.assertEqual(reply.code, 204)
        self.assertIn("registry-console-8880=; ", reply.header("Set-Cookie") or "")
        self.assertEqual((self.browser.session(), other.session()), (401, 200))

    def test_ends(self) -> None:
        """After eight hours."""
        self.browser.logIn()
        self.api.wallClock.advance(LIFETIME - 1)
        self.assertEqual(self.browser.session(), 200)
        self.api.wallClock.advance(1)
        self.assertEqual(self.browser.session(), 401)

    def test_endsWithKeyAndRole(self) -> None:
        """Within a second after the key or the role of its user has changed, or the user was removed."""
        identity = self.api.identity
        changes: list[tuple[str, Callable[[], Any]]] = [
            (KEY, lambda: identity.changeRole(USER, Role("read"))),
            (KEY, lambda: identity.rotate(USER, "another")),
            ("another", lambda: identity.removeUser(USER)),
        ]
        for key, change in changes:
            self.assertEqual(self.browser.logIn({"user": USER, "key": key}).code, 200)
            fired(change())
            self.api.advance(1.5)
            self.assertEqual(self.browser.session(), 401)

    def test_keyChangedElsewhere(self) -> None:
        """A key that another process has replaced a moment ago begins no session or link that outlives that moment."""
        self.browser.logIn()
        self.api.ask("GET", "/services")
        fired(self.api.store.replaceUserKey(USER, "another"))
        self.assertEqual(self.browser.logIn().code, 401)
        self.assertEqual(self.api.ask("POST", "/console-links", headers={"Host": HOST}).code, 401)
        self.api.advance(2)
        self.assertEqual(self.browser.session(), 401)

    def test_survivesARestart(self) -> None:
        """Another process over the same store knows the session."""
        self.browser.logIn()
        addConsole(self.api)
        self.assertEqual(self.browser.session(), 200)


class LinkTests(ConsoleCase):
    """Links that begin a session, for ``raxsr console``."""

    def link(self) -> str:
        reply = self.api.ask("POST", "/console-links", headers={"Host": HOST})
        self.assertEqual((reply.code, reply.json["expires_in"]), (201, 60))
        page, _, link = reply.json["href"].partition("#once=")
        self.assertEqual(page, f"http://{HOST}/console/")
        assert isinstance(link, str)
        return link

    def test_once(self) -> None:
        """It begins one session, within a minute."""
        link = self.link()
        self.assertEqual(self.browser.logIn({"once": link}).code, 200)
        self.assertEqual(self.browser.session(), 200)
        self.assertEqual(Browser(self.api).logIn({"once": link}).code, 401)
        late = self.link()
        self.api.wallClock.advance(LINK_LIFETIME)
        self.assertEqual(Browser(self.api).logIn({"once": late}).code, 401)

    def test_twoNodes(self) -> None:
        """Two nodes that are sent the same link at the same time begin one session."""
        link = self.link()
        held = self.api.held.hold("getToken", acts=True)
        connections = [Connection(self.api) for _ in range(2)]
        body = json.dumps({"once": link}).encode()
        for connection in connections:
            addConsole(self.api, store=self.api.held)
            connection.send(requestBytes("POST", "/console/api/login", body, {"Host": HOST, "Origin": ORIGIN}))
        self.assertEqual(len(held), 2)
        for call in held:
            call.release()
        self.api.advance(1)
        self.assertEqual([reply.code for each in connections for reply in each.replies()], [200, 401])

    def test_spentWhenRefused(self) -> None:
        """A link that came from a page of another site is spent."""
        link = self.link()
        self.assertEqual(Browser(self.api, origin="http://evil.example").logIn({"once": link}).code, 403)
        self.assertEqual(self.browser.logIn({"once": link}).code, 401)

    def test_ofASession(self) -> None:
        """A session can't make a link, which would begin one that lasts longer, and after a logout."""
        self.browser.logIn()
        for path, code in (("console-links", 403), ("console-links/", 404), ("console%2Dlinks", 403)):
            self.assertEqual(self.ask("POST", f"/console/api/{path}", {}).code, code, path)

    def test_withoutAConsole(self) -> None:
        """If the console is turned off, there are no links."""
        self.api.resource.handlers.console = None
        self.assertEqual(self.api.ask("POST", "/console-links").code, 404)

    def test_notAToken(self) -> None:
        """It is not a credential for anything else."""
        link = self.link()
        self.assertEqual(self.api.ask("GET", "/services", token=link).code, 401)
        self.browser.cookie, self.browser.secret = f"registry-console-8880={link}", link
        self.assertEqual(self.browser.session(), 401)


class OriginTests(ConsoleCase):
    """Which names the console has, and which pages may send it requests."""

    names = ("Registry.Example", "[fd00::7]")

    def test_names(self) -> None:
        """Those of the loopback, the address that was connected to, and those of the operator."""
        for host in ("localhost:8880", "127.0.0.1", "127.9.9.9:1", "[::1]:8880", "registry.example",
                     "REGISTRY.EXAMPLE:1", "[FD00:0::7]:80", "a.localhost"):  # fmt: skip
            self.assertEqual(self.ask("GET", "/console/", Host=host).code, 200, host)
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "registry.example.evil", "",
                     "[", "10.0.0.1", "::1", "evil.example:8880@localhost"):  # fmt: skip
            for path in ("/console/", "/console/api/session"):
                reply = self.ask("GET", path, Host=host)
                self.assertEqual(reply.code, 403, host)
        self.assertIn("--console-host", reply.json["details"])

    def test_theApiHasEveryName(self) -> None:
        """The names concern the console only."""
        reply = self.api.ask("GET", "/services", headers={"Host": "anything.example"})
        self.assertEqual(reply.code, 200)

    def test_changesNeedTheOrigin(self) -> None:
        """A change from another site, another port, or without an Origin is refused, with both secrets of a session."""
        self.browser.logIn()
        for origin in (
            "http://evil.example",
            "http://127.0.0.1:8881",
            "null",
            "",
            "http://127.0.0.1:8880.evil.example",
            "http://evil.example@127.0.0.1:8880",
            "http://[",
            "http://[::1",
            "http://a]b",
        ):
            reply = self.ask("PUT", "/console/api/configuration/key", {"value": "x"}, Origin=origin)
            self.assertEqual(reply.code, 403, origin)
            if origin:
                # An operator whose proxy does not pass Host on sees which two differ.
                self.assertIn(f"Origin {origin!r} is not Host '127.0.0.1:8880'", reply.json["details"])
        self.browser.origin = None
        self.assertEqual(self.ask("DELETE", "/console/api/services/web1").code, 403)
        self.assertEqual(self.api.ask("GET", "/configuration").json["values"], [])


class OperationTests(ConsoleCase):
    """The API as the user of a session."""

    def setUp(self) -> None:
        super().setUp()
        self.api.create("web1", tags=["web"])
        self.browser.logIn()

    def test_reads(self) -> None:
        """A session reads what its tenant has."""
        reply = self.ask("GET", "/console/api/services?tag=web")
        self.assertEqual([each["id"] for each in reply.json["values"]], ["web1"])
        self.assertEqual(self.ask("GET", "/console/api/services/web1").json["id"], "web1")
        self.assertEqual(self.ask("GET", "/console/api/nothing").code, 404)

    def test_writes(self) -> None:
        """A session changes what its user may change; each slash of a key counts."""
        self.assertEqual(self.ask("PUT", "/console/api/configuration//production/key", {"value": "1"}).code, 204)
        self.assertEqual(self.api.ask("GET", "/configuration//production/key").json["value"], "1")

    def test_role(self) -> None:
        """The role of the user counts, as everywhere."""
        fired(self.api.identity.addUser("ann", "1234", "annskey", Role("read")))
        ann = Browser(self.api)
        self.assertEqual(ann.logIn({"user": "ann", "key": "annskey"}).json["role"], "read")
        self.assertEqual(ann.ask("GET", "/console/api/services").code, 200)
        self.assertEqual(ann.ask("PUT", "/console/api/configuration/key", {"value": "1"}).code, 403)

    def test_otherTenants(self) -> None:
        """There is no way to another tenant's objects."""
        fired(self.api.identity.addUser("eve", "99", "eveskey"))
        eve = Browser(self.api)
        eve.logIn({"user": "eve", "key": "eveskey"})
        self.assertEqual(eve.ask("GET", "/console/api/services").json["values"], [])
        self.assertEqual(eve.ask("GET", "/console/api/services/web1").code, 404)
        self.assertEqual(eve.ask("POST", "/console/api/heartbeats-seen", {"ids": ["web1"]}).json["seen"], {})

    def test_heartbeatsSeen(self) -> None:
        """When the last heartbeats arrived, and what time it is; services that are not there are left out."""
        token = self.api.create("web2")
        self.api.advance(5)
        self.api.ask("POST", "/services/web2/heartbeat", {"token": token})
        self.api.advance(2)
        reply = self.ask("POST", "/console/api/heartbeats-seen", {"ids": ["web1", "web2", "web3"]}).json
        now = int(self.api.wallClock.seconds() * 1000)
        self.assertEqual(reply, {"now": now, "seen": {"web1": None, "web2": now - 2000}})
        for ids in (None, "web1", [1], ["web1"] * 61):
            self.assertEqual(self.ask("POST", "/console/api/heartbeats-seen", {"ids": ids}).code, 400)

    def test_history(self) -> None:
        """All changes of one value, oldest first, and none of another."""
        for key, value in (("/app/a_key", "1"), ("/app/b_key", "2"), ("/app/a_key", "3")):
            self.api.ask("PUT", f"/configuration/{key}", {"value": value})
        self.api.ask("DELETE", "/configuration//app/a_key")
        values = self.ask("GET", "/console/api/value-history?key=%2Fapp%2Fa_key").json["values"]
        self.assertEqual([(each["payload"].get("old_value"), each["payload"].get("new_value")) for each in values],
                         [(None, "1"), ("1", "3"), ("3", None)])  # fmt: skip

    def test_historyAmongManyEvents(self) -> None:
        """The store looks for a value's changes; the registry reads none of the others."""
        self.api.ask("PUT", "/configuration/a_key", {"value": "1"})
        self.patch(self.api.store, "listEvents", lambda *args: self.fail("reads the feed"))
        self.assertEqual(len(self.ask("GET", "/console/api/value-history?key=a_key").json["values"]), 1)

    def test_longHistory(self) -> None:
        """Of very many changes of a value, the newest 100."""
        for number in range(102):
            self.api.ask("PUT", "/configuration/a_key", {"value": str(number)})
        values = self.ask("GET", "/console/api/value-history?key=a_key").json["values"]
        self.assertEqual([each["payload"]["new_value"] for each in values], [str(number) for number in range(2, 102)])

    def test_overview(self) -> None:
        """The registry itself: its version and store, and what it has counted so far."""
        first = self.ask("GET", "/console/api/cluster").json
        self.assertEqual((first["store"], first["figures"]["services"]), ({"name": "memory", "state": "ok"}, 1))
        token = self.api.create("web2")
        for _ in range(10):
            self.api.ask("POST", "/services/web2/heartbeat", {"token": token})
        self.api.advance(5)
        Connection(self.api).send(
            requestBytes("GET", "/v1.0/1234/events/stream", headers={"X-Auth-Token": self.api.token})
        )
        second = self.ask("GET", "/console/api/cluster").json
        self.assertEqual(second["figures"]["subscribers"], 1)
        self.assertEqual(second["figures"]["heartbeats"] - first["figures"]["heartbeats"], 10)
        self.assertGreater(second["figures"]["requests"] - first["figures"]["requests"], 10)
        self.assertEqual(second["uptime"] - first["uptime"], 5)

    def test_storeIsAway(self) -> None:
        """A session that was seen before goes on; the page is told that the store is unavailable."""
        self.browser.session()
        self.api.store.unavailable = True
        self.assertEqual(self.ask("GET", "/console/api/services").code, 503)
        self.assertEqual(self.ask("GET", "/console/api/cluster").json["store"]["state"], "unavailable")
        self.assertEqual(Browser(self.api).logIn().code, 503)
