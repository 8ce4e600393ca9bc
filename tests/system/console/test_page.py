"""The console in a real browser, over a registry in a process of its own."""

from __future__ import annotations

import configparser
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from tests.system.browser import Watched, browsing, needsBrowser
from tests.system.ports import freePorts
from tests.system.processes import Child, ProcessTestCase

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_T = TypeVar("_T")
# Text of a hostile service.
PAYLOADS = (
    "<script>window.hostile = 1</script>",
    "<img src=x onerror='window.hostile = 1'>",
    "javascript:window.hostile=1",
    "\"'><svg onload=window.hostile=1>",
    "abc\u202edcba\u0007\u200b\u2066",
    "{{constructor.constructor('window.hostile=1')()}}",
)
# Sends a form of which the body is JSON, as any page may.
_SUBMIT = """(url) => {
  document.body.innerHTML = "<form method=post enctype=text/plain><input></form>";
  document.forms[0].action = url;
  document.querySelector("input").name = '{"id": "evil", "heartbeat_timeout": 120, "tags": ["';
  document.querySelector("input").value = '"]}';
  document.forms[0].submit();
}"""
# The line that the browser itself writes to its console when a request fails.
FAILED = "Failed to load resource"


class Api:
    """Requests to the registry, made in the thread of the browser."""

    def __init__(self, raxrc: Path) -> None:
        settings = configparser.ConfigParser()
        settings.read(raxrc)
        self.user, self.key = settings["credentials"]["username"], settings["credentials"]["api_key"]
        self.root = settings["api"]["url"].removesuffix("/v1.0")
        self._headers: dict[str, str] = {}
        credentials = {"auth": {"RAX-KSKEY:apiKeyCredentials": {"username": self.user, "apiKey": self.key}}}
        access = self._send("POST", "/v2.0/tokens", credentials)["access"]
        self._headers["X-Auth-Token"] = access["token"]["id"]
        self._base = "/v1.0/" + access["token"]["tenant"]["id"]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._send(method, self._base + path, body)

    def _send(self, method: str, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.root + path, data, headers, method=method)) as response:
            return json.loads(response.read() or b"null")

    def register(self, id: str, timeout: int = 120, **fields: Any) -> str:
        token: str = self.ask("POST", "/services", {"id": id, "heartbeat_timeout": timeout, **fields})["token"]
        return token


class ConsoleTestCase(ProcessTestCase):
    """A registry, and pages of its console."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        needsBrowser()
        super().setUp()
        (self.port,) = freePorts(1)
        self.registry = await self.start()

    async def start(self) -> Child:
        registry = self.twistd(
            "service-registry", f"--listen=tcp:{self.port}:interface=127.0.0.1", f"--data-dir={self.dataDir}"
        )
        await registry.says("The registry listens on http")
        return registry

    async def addReader(self) -> str:
        """Add the user ann, who may read only; her key."""
        return await self.addUser("ann", "--role", "read")

    async def addUser(self, name: str, *role: str) -> str:
        """Add a user of the first one's tenant; the key."""
        users = self.spawn("service-registry-users", "add", name, "--tenant", "1", *role, "--data-dir", self.dataDir)
        await users.ended
        self.assertEqual(users.exitCode, 0, users.errors)
        return users.output.partition("RAXSR_API_KEY=")[2].split()[0]

    async def browse(self, walk: Callable[[Browser, Api], _T]) -> _T:
        """Run *walk* in the browser's thread."""
        return await browsing(lambda browser: walk(browser, Api(Path(self.dataDir) / "raxrc")))

    def opened(self, context: BrowserContext, api: Api, view: str = "services", **more: Any) -> Watched:
        """A page of the console, logged in."""
        watched = Watched(context, **more)
        watched.page.goto(f"{api.root}/")
        logIn(watched.page, api.user, api.key)
        visit(watched.page, view)
        watched.page.wait_for_selector(".live:text-is('Live')")
        return watched


def logIn(page: Page, user: str, key: str) -> None:
    page.fill("#user", user)
    page.fill("#key", key)
    page.click("button[type=submit]")
    page.wait_for_selector("#nav a")


def visit(page: Page, view: str) -> None:
    """Show a view, as if its URL had been typed."""
    page.evaluate(
        """(hash) => hash === location.hash || new Promise((shown) => {
          addEventListener("hashchange", shown, { once: true });
          location.hash = hash;
        })""",
        f"#/{view}",
    )


def row(page: Page, id: str) -> Any:
    """The row of a table with this id in its first cell."""
    return page.locator(".rows .row", has=page.locator(f'bdi:text-is("{id}")'))


class SessionTests(ConsoleTestCase):
    """Logging in and out."""

    async def test_logInAndOut(self) -> None:
        """A wrong key is said to be wrong; a session survives a reload and another tab, and ends everywhere at once."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            # A cookie that another page of this host has planted.
            context.add_cookies(
                [
                    {
                        "name": f"registry-console-{self.port}",
                        "value": "planted",
                        "domain": "127.0.0.1",
                        "path": "/console/api",
                    }
                ]
            )
            watched = Watched(context, expected=(FAILED,))
            page = watched.page
            page.goto(f"{api.root}/")
            self.assertEqual(page.url, f"{api.root}/console/")
            page.fill("#user", api.user)
            page.fill("#key", "wrong")
            page.click("button[type=submit]")
            page.wait_for_selector("text=The user name or the API key is wrong.")
            logIn(page, api.user, api.key)
            page.wait_for_selector(".live:text-is('Live')")
            (cookie,) = context.cookies()
            self.assertEqual((cookie["httpOnly"], cookie["sameSite"], cookie["path"]), (True, "Strict", "/console/api"))
            self.assertNotEqual(cookie["value"], "planted")
            self.assertEqual(page.evaluate("document.cookie"), "")
            page.reload()
            other = context.new_page()
            other.goto(f"{api.root}/console/#/account")
            for each in (page, other):
                each.wait_for_selector(".live:text-is('Live')")
            other.click("text=Log out")
            for each in (page, other):
                each.wait_for_selector("#user")
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_link(self) -> None:
        """The link of raxsr console opens the page without a key, once; the address bar does not keep it."""
        raxsr = self.spawn("raxsr", "console", "--print", environment={"RAXSR_DATA_DIR": self.dataDir})
        await raxsr.ended
        self.assertEqual(raxsr.exitCode, 0, raxsr.errors)
        link = raxsr.output.split()[-1]

        def walk(browser: Browser, api: Api) -> None:
            page = browser.new_context().new_page()
            page.goto(link)
            page.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(page.url, f"{api.root}/console/#/services")
            again = browser.new_context().new_page()
            again.goto(link)
            again.wait_for_selector("text=This link has been used, or is too old.")
            self.assertNotIn("once", again.url)
            # Into the address bar of a page that is open.
            again.goto(api.ask("POST", "/console-links")["href"])
            again.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(again.url, f"{api.root}/console/#/services")

        await self.browse(walk)

    async def test_pageOfAnotherPort(self) -> None:
        """A page on another port, to whose requests the browser adds the cookie, changes and ends nothing."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            page = self.opened(context, api).page
            evil = context.new_page()
            evil.route("http://127.0.0.1:9/", lambda route: route.fulfill(body="<p>hello", content_type="text/html"))
            codes = []
            for path in ("services", "logout", "login"):
                evil.goto("http://127.0.0.1:9/")
                with evil.expect_navigation() as navigation:
                    evil.evaluate(_SUBMIT, f"{api.root}/console/api/{path}")
                codes.append(navigation.value.status)
            self.assertEqual(codes, [403, 403, 403])
            page.reload()
            page.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(api.ask("GET", "/services")["values"], [])

        await self.browse(walk)

    async def test_anotherUserInAnotherTab(self) -> None:
        """When another user logs in in one tab, the others become that user's, and nothing is done as the wrong one."""
        key = await self.addReader()

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            page = self.opened(context, api, "account").page
            other = context.new_page()
            other.goto(f"{api.root}/console/#/services")
            other.wait_for_selector(".live:text-is('Live')")
            # As a tab does that has not noticed: its own secret beside the cookie of the new session.
            page.evaluate("window.addEventListener('storage', (event) => event.stopImmediatePropagation(), true)")
            credentials = {"user": "ann", "key": key}
            other.evaluate(
                """async (credentials) => {
                  const response = await fetch("/console/api/login", {
                    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(credentials)
                  });
                  localStorage.setItem("registry-console-secret", (await response.json()).secret);
                }""",
                credentials,
            )
            other.reload()
            for each in (page, other):
                visit(each, "account")
                # A page that asks for nothing learns it at the next ping, which is due within 15 s.
                each.wait_for_selector(".card:has-text('ann')", timeout=60_000)
                self.assertEqual(each.locator(".badge:text-is('write')").count(), 0)

        await self.browse(walk)


class LiveTests(ConsoleTestCase):
    """The page shows the registry's data."""

    async def test_changesAppear(self) -> None:
        """Registrations, updates, states and removals appear without a reload, and the counts are of instances."""

        def walk(browser: Browser, api: Api) -> None:
            watched = self.opened(browser.new_context(), api)
            page = watched.page
            page.wait_for_selector("text=No services yet")
            for number in range(1, 4):
                api.register(f"web{number}", tags=["web", "web"], metadata={"host": "10.0.0.1", "port": "80"})
            row(page, "web3").wait_for()
            page.wait_for_selector(".tag-list a:has-text('web') .count:text-is('3')")
            api.ask("PUT", "/services/web1", {"tags": ["edge"]})
            page.wait_for_selector(".tag-list a:has-text('edge') .count:text-is('1')")
            api.ask("PUT", "/services/web2/state", {"state": "drain", "reason": "upgrade"})
            row(page, "web2").locator(".badge:text-is('drain')").wait_for()
            api.ask("DELETE", "/services/web1")
            row(page, "web1").wait_for(state="detached")
            page.click(".tag-list a:has-text('web')")
            api.ask("PUT", "/services/web2", {"metadata": {"port": "80", "city": "Orle\u0301ans"}})
            page.fill("input[type=search]", "web2 port=80 city=orl\u00e9")
            row(page, "web3").wait_for(state="detached")
            self.assertIn("tag=web", page.url)
            page.reload()
            row(page, "web2").wait_for()
            self.assertEqual(row(page, "web3").count(), 0)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_expiredServicesStay(self) -> None:
        """A service that has expired stays visible as such, with the reason and its last metadata."""

        def walk(browser: Browser, api: Api) -> None:
            page = self.opened(browser.new_context(), api).page
            api.register("web1", 3, tags=["web"], metadata={"version": "17"})
            row(page, "web1").locator(".badge:text-is('expired')").wait_for()
            # The counts are of the rows that a button shows, and of the registered services with a tag.
            for counted in ("[data-state='']", "[data-state=expired]"):
                self.assertEqual(page.locator(f"{counted} .count").inner_text(), "1")
            page.click(".tag-list a:has-text('web'):has(.count:text-is('0'))")
            row(page, "web1").click()
            detail = page.locator(".detail")
            detail.get_by_text("no heartbeat arrived for 3 s").wait_for()
            self.assertIn("17", detail.inner_text())

        await self.browse(walk)

    async def test_openedWhileItIsAway(self) -> None:
        """A page that is opened while requests fail waits, and goes on with its session by itself."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            page = self.opened(context, api, expected=(FAILED,)).page
            api.register("web1")
            row(page, "web1").wait_for()
            failing = 503
            fault = {"message": "The store is unavailable"}
            context.route(
                "**/console/api/**",
                lambda route: route.fulfill(status=failing, json=fault) if failing else route.continue_(),
            )
            for failing in (503, 429):
                page.reload()
                page.wait_for_selector("text=The store is unavailable")
                self.assertEqual(page.locator("#user").count(), 0)
                failing = 0
                row(page, "web1").wait_for()

        await self.browse(walk)

    async def test_restart(self) -> None:
        """While the registry is killed, the page says since when it is not current; then it catches up by itself."""
        from twisted.internet import reactor
        from twisted.internet.threads import blockingCallFromThread

        async def kill() -> None:
            self.registry.kill("KILL")
            await self.registry.ended

        async def again() -> None:
            self.registry = await self.start()

        def walk(browser: Browser, api: Api) -> None:
            watched = self.opened(browser.new_context(), api, expected=(FAILED, "net::ERR"))
            page = watched.page
            api.register("web1")
            row(page, "web1").wait_for()
            blockingCallFromThread(reactor, kill)
            page.wait_for_selector(".live.stale:has-text('Not current for')")
            self.assertEqual(page.text_content("#spoken"), "Not current")
            reasons = ("The event stream ended", "The registry does not answer")
            self.assertIn(
                page.get_attribute("#live", "title"), [f"{each}. The page reconnects by itself." for each in reasons]
            )
            blockingCallFromThread(reactor, again)
            api.register("web2")
            row(page, "web2").wait_for()
            page.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(row(page, "web1").count(), 1)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)


class ActionTests(ConsoleTestCase):
    """Changes that users make in the page."""

    async def test_drain(self) -> None:
        """An instance is drained with a reason, and put back."""

        def walk(browser: Browser, api: Api) -> None:
            api.register("web1")
            page = self.opened(browser.new_context(), api, "services?id=web1").page
            page.click("text=Drain…")
            page.fill("#reason", "kernel upgrade")
            page.select_option("#time", "600")
            page.click("dialog button[type=submit]")
            page.wait_for_selector(".note:has-text('Draining: kernel upgrade (until')")
            state = api.ask("GET", "/services/web1/state")
            self.assertEqual((state["state"], state["reason"]), ("drain", "kernel upgrade"))
            page.click(".detail button:text-is('Up')")
            page.wait_for_selector(".note", state="detached")
            self.assertEqual(api.ask("GET", "/services/web1/state")["state"], "up")

        await self.browse(walk)

    async def test_forceRelease(self) -> None:
        """A lock is shown with its metadata, as text, and is released by force at once."""

        def walk(browser: Browser, api: Api) -> None:
            fields = {"holder": PAYLOADS[0], "metadata": {"key": PAYLOADS[1]}}
            api.ask("POST", "/locks", {"name": "/production/job", "timeout": 120, **fields})
            watched = self.opened(browser.new_context(), api, "locks//production/job")
            page = watched.page
            page.locator(".metadata", has_text=PAYLOADS[1]).wait_for()
            page.locator(".rows .row[aria-selected=true]", has_text=PAYLOADS[0]).wait_for()
            page.click("text=Force release…")
            page.check("#now")
            page.click("dialog button[type=submit]")
            page.wait_for_selector("text=The lock is free.")
            page.wait_for_selector("text=No locks are held")
            self.assertEqual(api.ask("GET", "/locks")["values"], [])
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_twoEditors(self) -> None:
        """The second of two editors of one value overwrites nothing: the page shows both changes."""

        def walk(browser: Browser, api: Api) -> None:
            key = "/production/web/workers"
            api.ask("PUT", f"/configuration/{key}", {"value": "1"})
            pages = [
                self.opened(browser.new_context(), api, f"configuration/{key}", expected=(FAILED,)) for _ in range(2)
            ]
            first, second = (each.page for each in pages)
            for page in (first, second):
                page.click("text=Edit…")
                # An editor that reads the value later replaces the first one's.
                page.wait_for_selector("#text")
            first.fill("#text", "2")
            first.click("dialog button[type=submit]")
            second.wait_for_selector("pre.value:has-text('2')")
            second.fill("#text", "3")
            second.click("dialog button[type=submit]")
            second.wait_for_selector("text=The value has changed meanwhile")
            self.assertEqual(api.ask("GET", f"/configuration/{key}")["value"], "2")
            second.click("text=Edit mine again…")
            second.wait_for_selector(".diff .new:has-text('3')")
            second.click("dialog button[type=submit]")
            first.wait_for_selector("pre.value:has-text('3')")
            first.click("li:has(.new:has-text('2')) >> text=Roll back to this…")
            first.click("dialog button[type=submit]")
            second.wait_for_selector("pre.value:has-text('2')")
            # A new value may have the key of an old one, without a change by another editor.
            first.click("text=New value…")
            first.fill("#key", key)
            first.fill("#text", "4")
            first.click("dialog button[type=submit]")
            first.wait_for_selector("text=The key has a value already")
            first.wait_for_selector("[aria-label='Difference between the value now and yours']")
            first.click("text=Keep it")
            self.assertEqual(api.ask("GET", f"/configuration/{key}")["value"], "2")
            self.assertEqual([each.complaints for each in pages], [[], []])

        await self.browse(walk)

    async def test_readers(self) -> None:
        """A user with the role read sees everything and has no buttons that change something."""
        key = await self.addReader()

        def walk(browser: Browser, api: Api) -> None:
            api.register("web1")
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            api.user, api.key = "ann", key
            page = self.opened(browser.new_context(), api, "services?id=web1").page
            page.wait_for_selector(".detail dl")
            self.assertEqual(page.locator("text=Drain…").count(), 0)
            visit(page, "configuration/a_key")
            page.wait_for_selector("pre.value:has-text('1')")
            self.assertEqual(page.locator("text=/Edit…|Remove…|New value…/").count(), 0)

        await self.browse(walk)

    async def test_prefixes(self) -> None:
        """A user with prefixes has buttons for what matches one, none for other kinds, and is told so."""
        web = await self.addUser("joe", "--services", "web")
        values = await self.addUser("jim", "--configuration", "")

        def walk(browser: Browser, api: Api) -> None:
            api.register("web1")
            api.register("api1")
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            api.ask("POST", "/locks", {"name": "/nightly", "timeout": 120})
            asked = {
                "services?id=web1": "Drain…",
                "services?id=api1": "Drain…",
                "configuration/a_key": "Edit…",
                "configuration": "New value…",
                "locks//nightly": "Force release…",
            }
            shown = {}
            for api.user, api.key in (("joe", web), ("jim", values)):
                page = self.opened(browser.new_context(), api).page
                for view, button in asked.items():
                    visit(page, view)
                    page.wait_for_selector(".keys" if view == "configuration" else ".detail :is(dl, pre)")
                    shown[api.user, view] = page.locator(f"button:text-is('{button}')").count() > 0
                visit(page, "account")
                page.set_viewport_size({"width": 320, "height": 640})
                texts = [each.strip() for each in page.locator(".card dd").all_text_contents()[3:6]]
                joes, jims = ["beginning with web", "none", "none"], ["none", "all", "none"]
                self.assertEqual(texts, joes if api.user == "joe" else jims)
                cut = "(elements) => elements.filter((each) => each.scrollWidth > each.clientWidth).length"
                self.assertEqual(page.eval_on_selector_all(".card dd", cut), 0)
            buttons = {key for key, isShown in shown.items() if isShown}
            of = {("joe", "services?id=web1"), ("jim", "configuration/a_key"), ("jim", "configuration")}
            self.assertEqual(buttons, of)

        await self.browse(walk)


class HostileTests(ConsoleTestCase):
    """Text from services that means harm."""

    async def test_hostileText(self) -> None:
        """In ids, tags, metadata, values and reasons it is shown as text, and nothing is loaded or run."""

        def walk(browser: Browser, api: Api) -> None:
            for number, payload in enumerate(PAYLOADS):
                id = f"evil{number}"
                metadata = {"host": payload, "port": payload, "zone": payload, "weight": payload, payload: payload}
                api.register(id, tags=[payload[:55]], metadata=metadata)
                api.ask("PUT", f"/services/{id}/state", {"state": "out", "reason": payload})
                api.ask("PUT", f"/configuration//evil/key{number}", {"value": payload})
            watched = self.opened(browser.new_context(), api)
            page = watched.page
            for number in range(len(PAYLOADS)):
                row(page, f"evil{number}").click()
                page.wait_for_selector(f".detail h2:has-text('evil{number}')")
                visit(page, f"configuration//evil/key{number}")
                page.wait_for_selector("pre.value")
                visit(page, "services")
            for view in (
                "services?q=evil",
                "events",
                "configuration?view=flat",
                "services?tag=%3Cscript%3E",
                "x?y=%3Cb%3E",
            ):
                visit(page, view)
                self.assertEqual(page.locator("main script, main svg, main img").count(), 0)
            visit(page, "services?id=evil4")
            page.wait_for_selector(".metadata")
            shown = page.inner_text(".metadata")
            self.assertIn("abc\\u{202e}dcba\\u{7}\\u{200b}\\u{2066}", shown)
            self.assertNotIn("\u202e", shown)
            self.assertIsNone(page.evaluate("window.hostile ?? null"))
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)


class AccessTests(ConsoleTestCase):
    """Everybody can use it."""

    async def test_axe(self) -> None:
        """axe-core has no serious finding in any view, in both themes, wide and narrow."""

        def walk(browser: Browser, api: Api) -> None:
            from axe_playwright_python.sync_playwright import Axe

            for number in range(30):
                api.register(f"web{number}", tags=["web"], metadata={"host": "10.0.0.1", "port": "80"})
            api.ask("PUT", "/services/web1/state", {"state": "drain"})
            api.ask("PUT", "/configuration//production/key", {"value": "1"})
            views = (
                *("services", "services?id=web1", "events", "configuration//production/key"),
                *("cluster", "account", "services?q=nothing"),
            )
            sizes = (("light", 1400, 800), ("dark", 1400, 800), ("light", 320, 640), ("dark", 640, 400))
            for scheme, width, height in sizes:
                context = browser.new_context(
                    color_scheme=scheme,  # type: ignore[arg-type]  # a Literal
                    viewport={"width": width, "height": height},
                )
                page = self.opened(context, api).page
                for view in views:
                    visit(page, view)
                    page.wait_for_selector("main .loading", state="detached")
                    for found in Axe().run(page).response["violations"]:
                        if found["impact"] in ("serious", "critical"):
                            targets = [node["target"] for node in found["nodes"]][:3]
                            self.fail(f"{view}, {scheme}, {width}: {found['id']}: {targets}")
                    self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width, view)
                context.close()

        await self.browse(walk)

    async def test_keyboard(self) -> None:
        """Without a pointer: log in, find a service, drain it, change a value, log out."""

        def walk(browser: Browser, api: Api) -> None:
            for id in ("api1", "web1", "web2"):
                api.register(id)
            page = browser.new_context().new_page()
            page.goto(f"{api.root}/")
            page.wait_for_selector("#user:focus")
            press = page.keyboard.press
            page.keyboard.type(api.user)
            press("Tab")
            page.keyboard.type(api.key)
            press("Enter")
            page.wait_for_selector(".live:text-is('Live')")
            press("/")
            page.keyboard.type("web")
            press("Enter")
            press("ArrowDown")
            press("ArrowDown")
            press("Enter")
            page.wait_for_selector(".detail h2:has-text('web2')")
            self.tabTo(page, "Drain…")
            press("Enter")
            page.wait_for_selector("#reason:focus")
            page.keyboard.type("by hand")
            press("Enter")
            page.wait_for_selector(".note:has-text('by hand')")
            press("Escape")
            page.wait_for_selector(".detail", state="hidden")
            # A busy page handles the second key late.
            page.evaluate(
                """addEventListener("keydown", (event) => {
                  const now = performance.now.bind(performance);
                  if (event.key === "g") performance.now = () => now() + 5000;
                })"""
            )
            self.goTo(page, "c")
            page.wait_for_selector("text=No configuration yet")
            self.tabTo(page, "New value…")
            press("Enter")
            page.keyboard.type("a_key")
            press("Tab")
            page.keyboard.type("a value")
            self.tabTo(page, "Save")
            press("Enter")
            page.wait_for_selector(".leaf:has-text('a_key')")
            self.assertEqual(api.ask("GET", "/configuration/a_key")["value"], "a value")
            # The event may have come before the response, and a dialog has the keys.
            page.wait_for_selector("dialog", state="detached")
            press("?")
            page.wait_for_selector("dialog:has-text('Keyboard')")
            press("Escape")
            self.goTo(page, "a")
            self.tabTo(page, "Log out")
            press("Enter")
            page.wait_for_selector("#user")

        await self.browse(walk)

    async def test_focus(self) -> None:
        """Without a pointer: each list has the keys, and the focus is never lost, or on what the details cover."""

        def walk(browser: Browser, api: Api) -> None:
            for number in range(2):
                api.register(f"web{number}", metadata={"host": "10.0.0.1", "port": "80"})
                api.ask("PUT", f"/configuration/key{number}", {"value": "1"})
                api.ask("POST", "/locks", {"name": f"job{number}", "timeout": 120})
            for width in (1400, 320):
                page = self.opened(browser.new_context(viewport={"width": width, "height": 800}), api).page
                press = page.keyboard.press
                press("j")
                press("ArrowDown")
                page.wait_for_selector(".table:focus .row[aria-selected=true] bdi:text-is('web1')")
                press("k")
                press("Enter")
                for key, name in (("e", "web0"), ("l", "job1"), ("c", "key1"), ("s", "web1")):
                    page.wait_for_selector(".detail h2")
                    press("Escape")
                    page.wait_for_selector(".detail", state="hidden")
                    page.wait_for_selector(":is(.table, .leaf):focus")
                    self.goTo(page, key)
                    press("/")
                    page.keyboard.type(name)
                    # The events are listed last.
                    page.wait_for_selector(f":is(.rows .row, .leaf):has-text('{name}')")
                    press("ArrowDown" if width == 320 else "Enter")
                    page.wait_for_selector(":is(.table, .leaf):focus")
                    press("Enter")
                    page.wait_for_selector(f".detail:has-text('{name}')")
                    press("Tab")
                    isReachable = "document.activeElement.checkVisibility({ visibilityProperty: true })"
                    self.assertTrue(page.evaluate(isReachable))
                self.tabTo(page, "Take out…")
                press("Enter")
                page.wait_for_selector("#reason:focus")
                press("Enter")
                page.wait_for_selector(".note:has-text('Out of service')")
                self.assertEqual(page.evaluate("document.activeElement.textContent"), "Take out…")
                press("Enter")
                self.tabTo(page, "Up")
                press("Enter")
                page.wait_for_selector(".note", state="detached")
                self.assertEqual(page.evaluate("document.activeElement.textContent"), "Up")
                self.tabTo(page, "Copy")
                self.assertEqual(page.evaluate("getComputedStyle(document.activeElement).opacity"), "1")
                while page.evaluate("document.activeElement.ariaLabel") != "Close":
                    press("Shift+Tab")
                press("Enter")
                page.wait_for_selector(".table:focus")

        await self.browse(walk)

    async def test_skipLink(self) -> None:
        """The first link leads to the content of the view, and leaves it open."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            page.wait_for_selector("pre.value")
            page.focus(".skip")
            page.keyboard.press("Enter")
            page.wait_for_selector("main:focus")
            page.evaluate("new Promise(requestAnimationFrame)")
            self.assertEqual(page.inner_text("pre.value").strip(), "1")

        await self.browse(walk)

    def goTo(self, page: Page, key: str) -> None:
        """Press g and the key of a view, again if the machine lets more time go by than the page allows."""
        for _ in range(20):
            began = monotonic()
            page.keyboard.press("g")
            page.keyboard.press(key)
            if monotonic() - began < 1.5:
                return
        self.fail("The keys can't be pressed in time")

    def tabTo(self, page: Page, text: str) -> None:
        """Press Tab until the element with this text has the focus."""
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == text:
                return
        self.fail(f"Tab does not reach {text}")
