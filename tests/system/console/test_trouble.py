"""The console where something goes wrong: in the browser, on the way, or because others work at the same time."""

from __future__ import annotations

import json
import unicodedata
from importlib.resources import files
from time import monotonic
from typing import TYPE_CHECKING, Any

from tests.system.browser import Watched
from tests.system.console.test_page import FAILED, Api, ConsoleTestCase, logIn, row, visit
from txserviceregistry.registry import console

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Request, Route

# Makes a page hidden, or to be seen again: under Playwright every tab is to be seen.
_HIDE = """(isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
# A script that acts as a browser that blocks a site's data.
_BLOCKED = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("Access is denied for this document.", "SecurityError"); }
})"""
_TWICE = "(element) => { element.click(); element.click(); }"
# Whether the selected row of the list is not cut off.
_SELECTED_IS_SEEN = """() => {
  const [row, list] = [document.querySelector(".row[aria-selected=true]"), document.querySelector(".table")];
  return row && row.getBoundingClientRect().bottom <= list.getBoundingClientRect().bottom + 1;
}"""


def withModules(browser: Browser, **more: Any) -> BrowserContext:
    """A context in which a script can import the modules of the page."""
    context = browser.new_context(bypass_csp=True, **more)

    def send(route: Route) -> None:
        name = route.request.url.rpartition("/")[2]
        route.fulfill(content_type="text/javascript", body=(files(console) / "assets" / name).read_text("utf-8"))

    context.route("**/console/*.js", send)
    return context


class BrowserTests(ConsoleTestCase):
    """Features that a browser may lack."""

    async def test_twoReleases(self) -> None:
        """The whole page is in one response: in no other is a part that a node of another release could have sent."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            asked: set[str] = set()
            context.on("request", lambda request: asked.add(request.url.removeprefix(api.root).partition("?")[0]))
            watched = self.opened(context, api)
            for view in ("Events", "Configuration", "Locks", "Cluster", "Account", "Services"):
                watched.page.click(f"#nav a:text-is('{view}')")
            own = {path for path in asked if not path.startswith("/console/api/")}
            self.assertEqual(own, {"/", "/console/", "/console/mark.svg"})
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_manyTabs(self) -> None:
        """More tabs than a browser has connections to a host: the one to be seen is current, and can send requests."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            tabs = [self.opened(context, api).page]
            for _ in range(7):
                tabs[-1].evaluate(_HIDE, True)
                tabs.append(context.new_page())
                tabs[-1].goto(f"{api.root}/console/")
                tabs[-1].wait_for_selector(".live:text-is('Live')")
            tabs[-1].evaluate(_HIDE, True)
            api.register("web1")
            tabs[0].evaluate(_HIDE, False)
            tabs[0].wait_for_selector("bdi:text-is('web1')")
            tabs[0].wait_for_selector(".live:text-is('Live')")

        await self.browse(walk)

    async def test_manyWindows(self) -> None:
        """More visible windows than a browser has connections: all follow changes, those used last without delay."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            windows = [self.opened(context, api).page]
            for _ in range(8):
                windows.append(context.new_page())
                windows[-1].goto(f"{api.root}/console/")
                windows[-1].wait_for_selector(".live:text-is('Live')")
            for number, window in enumerate(windows):
                window.wait_for_selector(f".live:text-is('{'Every 5 s' if number < 5 else 'Live'}')")
            api.register("web1")
            for window in windows:
                row(window, "web1").wait_for()
            windows[0].set_viewport_size({"width": 320, "height": 600})
            self.assertLess(windows[0].evaluate("document.getElementById('bar').clientHeight"), 90)
            windows[0].evaluate("window.dispatchEvent(new Event('focus'))")
            windows[0].wait_for_selector(".live:text-is('Live')")
            windows[5].wait_for_selector(".live:text-is('Every 5 s')")
            for window in windows[7:]:
                # The browser gives a page that is closed half a second for its last message.
                window.goto("about:blank")
                window.close()
            for number, window in enumerate(windows[:7]):
                window.wait_for_selector(f".live:text-is('{'Every 5 s' if number in (1, 2, 3) else 'Live'}')")
            api.register("web2")
            for window in windows[:7]:
                row(window, "web2").wait_for()
                self.assertEqual(window.locator(".live.stale").count(), 0)

        await self.browse(walk)

    async def test_tabsInTheBackground(self) -> None:
        """A tab that is opened in the background needs no stream: four visible windows keep theirs, without a break."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            page = self.opened(context, api).page
            streams: list[Request] = []
            page.on("request", lambda request: streams.append(request) if "/events/stream" in request.url else None)
            for isHidden in (False, False, False, True):
                tab = context.new_page()
                if isHidden:
                    tab.add_init_script(f"({_HIDE})(true)")
                tab.goto(f"{api.root}/console/")
                tab.wait_for_selector("#nav a:text-is('Account')" if isHidden else ".live:text-is('Live')")
            # Had its stream ended, this would come with the next one.
            api.register("web1")
            row(page, "web1").wait_for()
            self.assertEqual(streams, [])
            self.assertEqual(page.text_content("#live"), "Live")

        await self.browse(walk)

    async def test_blockedStorage(self) -> None:
        """Without the storage or the scripts that it needs, or where a proxy changes it, the page says so."""

        def walk(browser: Browser, api: Api) -> None:
            blocked = browser.new_context()
            blocked.add_init_script(_BLOCKED)
            changed = browser.new_context()

            def shorten(route: Route) -> None:
                response = route.fetch()
                route.fulfill(response=response, body=response.text().replace("\n\n", "\n"))

            changed.route("**/console/", shorten)
            for context in (blocked, changed, browser.new_context(java_script_enabled=False)):
                page = context.new_page()
                page.goto(f"{api.root}/console/")
                page.wait_for_selector("text=needs JavaScript, and a browser that does not block cookies")

        await self.browse(walk)

    async def test_cookiesOfOthers(self) -> None:
        """A login works beside cookies of the same name that other servers of the host have set."""

        def walk(browser: Browser, api: Api) -> None:
            for path in ("/", "/console", "/console/api", "/console/api/session"):
                context = browser.new_context()
                watched = Watched(context)
                watched.page.goto(f"{api.root}/")
                name = f"registry-console-{self.port}"
                context.add_cookies([{"name": name, "value": "planted", "domain": "127.0.0.1", "path": path}])
                logIn(watched.page, api.user, api.key)
                watched.page.wait_for_selector(".live:text-is('Live')")
                self.assertEqual(watched.complaints, [])

        await self.browse(walk)


class OthersTests(ConsoleTestCase):
    """Late responses, and other editors."""

    async def test_lateResponse(self) -> None:
        """The response to a view's request does not replace another view that is open by then."""

        def walk(browser: Browser, api: Api) -> None:
            watched = self.opened(browser.new_context(), api)
            page = watched.page
            held: list[Route] = []
            page.route("**/console/api/cluster", lambda route: held.append(route))
            with page.expect_request("**/console/api/cluster"):
                visit(page, "cluster")
            visit(page, "services")
            page.wait_for_selector("text=No services yet")
            with page.expect_response("**/console/api/cluster"):
                held[0].continue_()
            page.evaluate("new Promise(requestAnimationFrame)")
            self.assertEqual(page.locator("text=No services yet").count(), 1)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_doubleClicks(self) -> None:
        """A double click opens one dialog, and saves once."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            watched = self.opened(browser.new_context(), api, "configuration/a_key")
            page = watched.page
            sent: list[str] = []

            def note(request: Request) -> None:
                # The page also asks for other things, when it wants to.
                if request.url.endswith("/configuration/a_key"):
                    sent.append(request.method)

            page.on("request", note)
            for action in ("Remove…", "Edit…"):
                page.locator(f"button:text-is('{action}')").evaluate(_TWICE)
                page.wait_for_selector("dialog[open]")
                page.keyboard.press("Escape")
                page.wait_for_selector("dialog", state="detached")
                self.assertEqual(sent.count("GET"), 1, action)
                sent.clear()
            page.click("text=Edit…")
            page.fill("#text", "2")
            page.locator("dialog [type=submit]").evaluate(_TWICE)
            page.wait_for_selector("pre.value:has-text('2')")
            page.wait_for_selector("dialog", state="detached")
            self.assertEqual(sent.count("PUT"), 1)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_setAndRemovedMeanwhile(self) -> None:
        """A value that another editor has set and removed while one is written: nothing of the text is lost."""

        def walk(browser: Browser, api: Api) -> None:
            watched = self.opened(browser.new_context(), api, "configuration", expected=(FAILED,))
            page = watched.page

            def remove(route: Route) -> None:
                if route.request.method == "GET":
                    api.ask("DELETE", "/configuration/a_key")
                route.continue_()

            page.click("text=New value…")
            page.fill("#key", "a_key")
            page.fill("#text", "mine")
            api.ask("PUT", "/configuration/a_key", {"value": "theirs"})
            page.route("**/configuration/a_key", remove)
            page.click("dialog [type=submit]")
            page.wait_for_selector("text=The value has changed meanwhile")
            page.unroute("**/configuration/a_key")
            page.click("text=Edit mine again…")
            page.wait_for_selector("#text")
            page.click("dialog [type=submit]")
            page.wait_for_selector(".leaf:has-text('mine')")
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_unreachable(self) -> None:
        """An action says that the registry does not answer. Nothing is lost, and no other change made up."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            page.click("text=Edit…")
            page.fill("#text", "mine")
            api.ask("PUT", "/configuration/a_key", {"value": "2"})
            reads: Any = lambda route: route.abort() if route.request.method == "GET" else route.continue_()  # noqa: E731
            page.route("**/configuration/a_key", reads)
            page.click("dialog [type=submit]")
            page.wait_for_selector("dialog .problem:text-is('The registry does not answer')")
            self.assertEqual(page.input_value("#text"), "mine")
            page.keyboard.press("Escape")
            for action in ("Edit…", "Remove…"):
                page.click(f"text={action}")
                page.wait_for_selector(".toast.error:text-is('The registry does not answer')")
                page.evaluate("document.querySelector('.toast').remove()")

        await self.browse(walk)

    async def test_lockWithAnotherHolder(self) -> None:
        """A lock that has another holder by the time that its release is confirmed is kept."""

        def walk(browser: Browser, api: Api) -> None:
            name = "/production/job"
            api.ask("POST", "/locks", {"name": name, "timeout": 120})
            page = self.opened(browser.new_context(), api, f"locks/{name}").page
            page.click("text=Force release…")
            page.check("#now")
            api.ask("POST", "/locks/release", {"name": name, "force": True, "now": True})
            api.ask("POST", "/locks", {"name": name, "timeout": 120, "holder": "another"})
            page.click("dialog [type=submit]")
            page.wait_for_selector(".toast.error:has-text('another holder')")
            self.assertEqual([lock["holder"] for lock in api.ask("GET", "/locks")["values"]], ["another"])

        await self.browse(walk)


class EditorTests(ConsoleTestCase):
    """A user's text is not lost, and is saved under the key that the user wants."""

    async def test_sessionEnds(self) -> None:
        """The editor is open again, with its text, in the next session of its user in the tab, and in no other's."""
        key = await self.addReader()

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            context = browser.new_context()
            page = self.opened(context, api, "configuration/a_key").page
            page.click("text=Edit…")
            page.fill("#text", "mine")
            self.follow(page, api)
            page.wait_for_function("() => document.querySelector('dialog[open] #text')?.value === 'mine'")
            other = context.new_page()
            for _ in range(2):
                # A link begins another session of the same user, for which the page is loaded again.
                page.evaluate("window.isOld = true")
                other.goto("about:blank")
                other.goto(api.ask("POST", "/console-links")["href"])
                other.wait_for_selector(".live:text-is('Live')")
                page.wait_for_function("() => !window.isOld")
                page.wait_for_function("() => document.querySelector('dialog #text')?.value === 'mine'")
                api.ask("PUT", "/configuration/a_key", {"value": "2"})
                visit(other, "account")
                other.click("text=Log out")
                page.wait_for_selector("#user")
            logIn(page, api.user, api.key)
            page.click("dialog [type=submit]")
            page.wait_for_selector("text=The value has changed meanwhile")
            # The page is at this address already, and the click must not come before the login.
            other.goto("about:blank")
            other.goto(api.ask("POST", "/console-links")["href"])
            other.wait_for_selector(".live:text-is('Live')")
            visit(other, "account")
            other.click("text=Log out")
            page.wait_for_selector("#user")
            logIn(page, "ann", key)
            page.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(page.locator("dialog").count(), 0)
            page.keyboard.press("?")
            page.wait_for_selector("dialog[open]")
            self.follow(page, api)
            page.wait_for_selector("dialog", state="detached")

        await self.browse(walk)

    def follow(self, page: Page, api: Api) -> None:
        """Open a link in a page of the console, as from the address bar."""
        link = api.ask("POST", "/console-links")["href"]
        with page.expect_response("**/login"):
            page.evaluate("(link) => { location.hash = new URL(link).hash; }", link)

    async def test_sessionEndsMeanwhile(self) -> None:
        """A value that arrives after the session's end opens no editor."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            context = browser.new_context()
            page = self.opened(context, api, "configuration/a_key").page
            held: list[Route] = []
            page.route("**/configuration/a_key", lambda route: held.append(route))
            with page.expect_request("**/configuration/a_key"):
                page.click("text=Edit…")
            other = context.new_page()
            other.goto(f"{api.root}/console/#/account")
            other.click("text=Log out")
            page.wait_for_selector("#user")
            held.pop().fulfill(json={"id": "a_key", "value": "1"}, headers={"ETag": '"1"'})
            page.wait_for_selector(".toast.error:has-text('The session has ended')")
            self.assertEqual(page.locator("dialog").count(), 0)

        await self.browse(walk)

    async def test_clicksBesideTheText(self) -> None:
        """Neither a click beside the text nor a selection that ends outside the dialog closes it."""

        def walk(browser: Browser, api: Api) -> None:
            page = self.opened(browser.new_context(), api, "configuration").page
            page.click("text=New value…")
            page.fill("#text", "mine")
            box, text = (page.locator(each).bounding_box() for each in ("dialog", "#text"))
            assert box is not None and text is not None
            page.mouse.click(box["x"] + 8, text["y"] + 8)
            page.mouse.move(text["x"] + 30, text["y"] + 8)
            page.mouse.down()
            page.mouse.move(box["x"] - 30, text["y"] + 8)
            page.mouse.up()
            page.evaluate("new Promise(requestAnimationFrame)")
            self.assertEqual(page.input_value("dialog[open] #text"), "mine")

        await self.browse(walk)

    async def test_closedWhileItIsSaved(self) -> None:
        """A failure is shown, even if the dialog has been closed before."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            held: list[Route] = []
            for status, text in ((503, "The store is unavailable"), (412, "a_key is not set: the value has changed")):
                page.click("text=Edit…")
                page.wait_for_selector("#text")
                page.route("**/configuration/a_key", lambda route: held.append(route), times=1)
                with page.expect_request("**/configuration/a_key"):
                    page.click("dialog [type=submit]")
                page.keyboard.press("Escape")
                page.wait_for_selector("dialog", state="detached")
                held.pop().fulfill(status=status, json={"message": "The store is unavailable"})
                page.wait_for_selector(f".toast.error:has-text('{text}')")

        await self.browse(walk)

    async def test_longText(self) -> None:
        """Text that is too long for a value is neither cut off nor saved."""

        def walk(browser: Browser, api: Api) -> None:
            page = self.opened(browser.new_context(), api, "configuration").page
            page.click("text=New value…")
            page.fill("#key", "a_key")
            for text in ("\N{BLACK STAR}" * 1025, "word " * 2000):
                page.fill("#text", "")
                page.keyboard.insert_text(text)
                page.click("dialog [type=submit]")
                message = page.locator("#text").evaluate("(element) => element.validationMessage")
                self.assertEqual(message, f"A value has at most 1024 characters. These are {len(text)}.")
            page.fill("#text", "\N{GRINNING FACE}" * 1024)
            page.click("dialog [type=submit]")
            page.wait_for_selector(".leaf:has-text('a_key')")
            self.assertEqual(api.ask("GET", "/configuration/a_key")["value"], "\N{GRINNING FACE}" * 1024)

        await self.browse(walk)

    async def test_exactText(self) -> None:
        """A rollback restores the earlier value with its line ends, and no part of a key leads to another key."""

        def walk(browser: Browser, api: Api) -> None:
            for value in ("one\r\ntwo\r", "changed"):
                api.ask("PUT", "/configuration/a_key", {"value": value})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            page.click("text=Roll back to this…")
            page.click("dialog [type=submit]")
            page.wait_for_selector("pre.value:has-text('one')")
            self.assertEqual(api.ask("GET", "/configuration/a_key")["value"], "one\r\ntwo\r")
            page.click("text=New value…")
            page.fill("#text", "mine")
            for key in ("/app/../other", "./other", "/app/we", "/app/", "an app"):
                page.fill("#key", key)
                page.click("dialog [type=submit]")
                page.wait_for_selector("dialog .problem:has-text('Invalid key')")
                page.fill("#key", "")
                page.evaluate("document.querySelector('dialog .problem').textContent = ''")
            self.assertEqual([each["id"] for each in api.ask("GET", "/configuration")["values"]], ["a_key"])

        await self.browse(walk)

    async def test_withoutTags(self) -> None:
        """If a proxy removes the tag of a value, nothing is overwritten."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "1"})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            page.route("**/configuration/a_key", lambda route: route.fulfill(json={"id": "a_key", "value": "1"}))
            page.click("text=Edit…")
            page.fill("#text", "2")
            page.click("dialog [type=submit]")
            page.wait_for_selector("dialog .problem:has-text('Not changed')")

        await self.browse(walk)

    async def test_changesUnderThePointer(self) -> None:
        """A button of a value that keeps changing can be clicked, keeps the focus, and causes few requests."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", "/configuration/a_key", {"value": "value 0"})
            page, other = (self.opened(browser.new_context(), api, "configuration/a_key").page for _ in range(2))
            asked: dict[str, list[Request]] = {"value-history": [], "limits": []}

            def note(request: Request) -> None:
                for path, requests in asked.items():
                    if path in request.url:
                        requests.append(request)

            began = monotonic()
            page.on("request", note)

            def change(*numbers: int) -> None:
                for number in numbers:
                    api.ask("PUT", "/configuration/a_key", {"value": f"value {number}"})
                    other.wait_for_selector(f"pre.value:has-text('value {number}')")

            page.focus("text=Edit…")
            change(1)
            page.wait_for_selector("pre.value:has-text('value 1')")
            self.assertEqual(page.evaluate("document.activeElement.textContent"), "Edit…")
            page.hover("text=Edit…")
            page.mouse.down()
            # The page waits for the end of a click, but not for longer than five seconds: at first, ten times that.
            page.evaluate(
                """() => {
                  const given = setTimeout;
                  setTimeout = (call, time) => given(call, time === 50 ? window.pause : time);
                  window.pause = 500;
                }"""
            )
            change(2, 3)
            page.mouse.up()
            page.wait_for_selector("dialog #text")
            page.evaluate("window.pause = 50")
            page.keyboard.press("Escape")
            page.hover("text=Edit…")
            page.mouse.down()
            change(*range(4, 12))
            page.wait_for_selector("pre.value:has-text('value 11')")
            page.mouse.up()
            # One each second.
            self.assertLessEqual(len(asked["value-history"]), monotonic() - began + 1)
            page.wait_for_selector(".history .new:has-text('value 11')")
            visit(page, "account")
            for number in range(3):
                api.register(f"web{number}")
                api.ask("PUT", f"/configuration/key{number}", {"value": "1"})
                page.wait_for_selector(f"tr:has-text('Services') td:text-is('{number + 1}')")
                page.wait_for_selector(f"tr:has-text('Configuration') td:text-is('{number + 2}')")
            self.assertEqual(len(asked["limits"]), 1)

        await self.browse(walk)

    async def test_rollbackWhileValuesChange(self) -> None:
        """A button of the history can be clicked, and keeps the focus, while newer changes are listed."""

        def walk(browser: Browser, api: Api) -> None:
            for number in range(3):
                api.ask("PUT", "/configuration/a_key", {"value": f"value {number}"})
            page = self.opened(browser.new_context(), api, "configuration/a_key").page
            oldest = page.locator(".history li").last.locator("button")
            oldest.focus()
            api.ask("PUT", "/configuration/a_key", {"value": "value 3"})
            page.wait_for_selector(".history .new:has-text('value 3')")
            self.assertTrue(oldest.evaluate("(element) => element === document.activeElement"))
            held: list[Route] = []
            page.route("**/value-history*", lambda route: held.append(route), times=1)
            with page.expect_request("**/value-history*"):
                api.ask("PUT", "/configuration/a_key", {"value": "value 4"})
            page.wait_for_selector("pre.value:has-text('value 4')")
            page.evaluate("performance.now = ((now) => () => now() + 60_000)(performance.now.bind(performance))")
            oldest.hover()
            page.mouse.down()
            with page.expect_response("**/value-history*"):
                held.pop().continue_()
            page.evaluate("new Promise(requestAnimationFrame)")
            page.mouse.up()
            page.wait_for_selector("dialog #text")
            self.assertEqual(page.input_value("#text"), "value 0")
            page.wait_for_selector(".history .new:has-text('value 4')")
            # That one response took a minute does not delay the next request.
            api.ask("PUT", "/configuration/a_key", {"value": "value 5"})
            page.wait_for_selector(".history .new:has-text('value 5')")

        await self.browse(walk)


class StreamTests(ConsoleTestCase):
    """Whether what is shown is current."""

    async def test_manyEvents(self) -> None:
        """The page is current before it has the last hour's events, of which there may be very many."""

        def walk(browser: Browser, api: Api) -> None:
            watched = Watched(browser.new_context())
            page = watched.page
            held: list[Route] = []
            page.route("**/console/api/events?**", lambda route: held.append(route))
            api.register("web1")
            page.goto(f"{api.root}/")
            with page.expect_request("**/console/api/events?**"):
                logIn(page, api.user, api.key)
            page.wait_for_selector(".live:text-is('Live')")
            row(page, "web1").click()
            page.wait_for_selector(".detail p:text-is('Loading')")
            api.register("web2")
            row(page, "web2").wait_for()
            held[0].continue_()
            page.wait_for_selector(".short-events:has-text('registered')")
            visit(page, "events")
            for id in ("web1", "web2"):
                page.wait_for_selector(f".cell.object bdi:text-is('{id}')")
            self.assertEqual(page.locator(".rows .row").count(), 2)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)

    async def test_streamEndsMeanwhile(self) -> None:
        """A list that arrives after the stream has ended is not called current."""

        def walk(browser: Browser, api: Api) -> None:
            page = self.scripted(browser, api, ["event: ping\n\n"])
            page.wait_for_selector(".live.stale")
            self.held.pop().continue_()
            page.wait_for_selector("text=No services yet")
            self.assertEqual(page.locator(".live.stale").count(), 1)

        await self.browse(walk)

    async def test_reset(self) -> None:
        """After events have been missed the page is not current until it has listed all, and applies no older event."""

        def walk(browser: Browser, api: Api) -> None:
            service = {"id": "old", "heartbeat_timeout": 120, "tags": [], "metadata": {}}
            event = {"id": "1", "type": "service.join", "timestamp": 1, "payload": service}
            join = f"event: service.join\nid: 1\ndata: {json.dumps(event)}\n\n"
            page = self.scripted(browser, api, [f"event: ping\n\n{join}", "event: reset\ndata: {}\n\n"])
            page.wait_for_function("() => window.streams === 2")
            first, second = self.held
            api.register("new")
            second.continue_()
            row(page, "new").wait_for()
            self.assertEqual(row(page, "old").count(), 0)
            first.abort()

        await self.browse(walk)

    async def test_silentNetwork(self) -> None:
        """A request to which no response comes is given up, and the page goes on when others are answered."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            # Timeouts elapse when the test says so.
            context.add_init_script(
                """
                const begun = [];
                AbortSignal.timeout = () => {
                  begun.push(new AbortController());
                  return begun.at(-1).signal;
                };
                window.endTimeouts = () => {
                  for (const each of begun.splice(0)) each.abort(new DOMException("", "TimeoutError"));
                };
                """
            )
            page = Watched(context).page
            page.goto(f"{api.root}/")
            held: list[Route] = []
            page.route("**/console/api/services?**", lambda route: held.append(route), times=1)
            with page.expect_request("**/console/api/services?**"):
                logIn(page, api.user, api.key)
            page.evaluate("window.endTimeouts()")
            page.wait_for_selector(".live.stale")
            page.wait_for_selector(".live:text-is('Live')")
            held[0].abort()

        await self.browse(walk)

    async def test_liveWithTheRows(self) -> None:
        """The page is live only when it shows what it has read, also if it looks at the time before that."""

        def walk(browser: Browser, api: Api) -> None:
            api.register("web1")
            context = browser.new_context()
            context.add_init_script(
                """
                const given = setTimeout;
                setTimeout = (call, time) => given(call, time > 0 && time <= 250 ? 900 : time);
                new MutationObserver(() => {
                  if (document.querySelector(".live")?.textContent === "Live")
                    window.rowsWhenLive ??= document.querySelectorAll(".rows .row").length;
                }).observe(document, { subtree: true, childList: true, characterData: true });
                """
            )
            page = Watched(context).page
            page.goto(f"{api.root}/")
            logIn(page, api.user, api.key)
            page.wait_for_selector(".live:text-is('Live')")
            self.assertEqual(page.evaluate("window.rowsWhenLive"), 1)

        await self.browse(walk)

    async def test_silentStream(self) -> None:
        """The page counts from the last data that it received, not from when it gave the stream up."""

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            context.add_init_script(
                "const given = setTimeout; setTimeout = (call, time) => given(call, time === 35_000 ? 300 : time)"
            )
            page = Watched(context).page
            page.goto(f"{api.root}/")
            logIn(page, api.user, api.key)
            isSilent = "[title^='The event stream is silent']"
            page.wait_for_selector(f".live.stale{isSilent}:text-matches('Not current for 3[5-9] s')")

        await self.browse(walk)

    def scripted(self, browser: Browser, api: Api, streams: list[str]) -> Page:
        """A page whose event streams are these and then none, and whose lists of services wait in ``held``."""
        self.held: list[Route] = []
        page = Watched(browser.new_context()).page

        def stream(route: Route) -> None:
            if streams:
                route.fulfill(content_type="text/event-stream", body=streams.pop(0))
            else:
                page.evaluate("window.streams = 2")
                route.abort()

        page.route("**/console/api/services?**", lambda route: self.held.append(route))
        page.route("**/console/api/events/stream**", stream)
        page.goto(f"{api.root}/")
        with page.expect_request("**/console/api/services?**"):
            logIn(page, api.user, api.key)
        return page


class WindowTests(ConsoleTestCase):
    """Windows, clocks and texts of all kinds."""

    async def test_highWindow(self) -> None:
        """Every row of a very high window has the age of its last heartbeat."""

        def walk(browser: Browser, api: Api) -> None:
            for number in range(70):
                token = api.register(f"web{number:02}")
                api.ask("POST", f"/services/web{number:02}/heartbeat", {"token": token})
            context = browser.new_context(viewport={"width": 1400, "height": 2800})
            page = self.opened(context, api).page
            for id in ("web00", "web69"):
                row(page, id).locator(".age .text:not(:has-text('none'))").wait_for()

        await self.browse(walk)

    async def test_lowWindow(self) -> None:
        """At a zoom of 400 % nothing is cut off: the whole form to log in, and rows of the list, can be scrolled to."""

        def walk(browser: Browser, api: Api) -> None:
            for number in range(10):
                api.register(f"web{number}")
            page = browser.new_context(viewport={"width": 320, "height": 256}).new_page()
            page.goto(f"{api.root}/")
            page.wait_for_selector("#user")
            page.mouse.move(160, 200)
            page.mouse.wheel(0, -5000)
            page.wait_for_function("() => document.querySelector('main h1').getBoundingClientRect().top >= 0")
            logIn(page, api.user, api.key)
            row(page, "web0").wait_for()
            self.assertGreaterEqual(page.evaluate("document.querySelector('.table').clientHeight"), 88 + 33)
            self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 320)

        await self.browse(walk)

    async def test_openRow(self) -> None:
        """A link scrolls the list to its row, beside the details, also in a new page, and if newer rows come first."""

        def walk(browser: Browser, api: Api) -> None:
            for number in range(40):
                api.register(f"web{number:02}")
            oldest = api.ask("GET", "/events?limit=1")["values"][0]["id"]
            page = self.opened(browser.new_context(viewport={"width": 1000, "height": 500}), api).page
            for view in ("services?id=web39", f"events/{oldest}"):
                visit(page, view)
                page.wait_for_function(_SELECTED_IS_SEEN)
                page.reload()
                page.wait_for_function(_SELECTED_IS_SEEN)
            held: list[Route] = []
            page.route("**/console/api/events?**", lambda route: held.append(route), times=1)
            with page.expect_request("**/console/api/events?**"):
                page.reload()
            page.wait_for_selector(".live:text-is('Live')")
            api.register("newest")
            page.wait_for_selector(".cell.object bdi:text-is('newest')")
            held[0].continue_()
            page.wait_for_function(_SELECTED_IS_SEEN)

        await self.browse(walk)

    async def test_narrowWindow(self) -> None:
        """All states to filter by, folders, and a link of the navigation that has the focus are not cut off."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("PUT", f"/configuration//{'n' * 50}/key", {"value": "1"})
            page = self.opened(browser.new_context(viewport={"width": 320, "height": 640}), api).page
            edges = "(elements) => elements.map((each) => each.getBoundingClientRect().right)"
            self.assertLessEqual(max(page.eval_on_selector_all(".segments button", edges)), 320)
            page.focus(".brand")
            for _ in range(6):
                page.keyboard.press("Tab")
                self.assertLessEqual(page.eval_on_selector_all("#nav a:focus", edges)[0], 320)
            visit(page, "configuration")
            page.wait_for_selector("summary")
            self.assertLessEqual(max(page.eval_on_selector_all("summary *", edges)), 320)

        await self.browse(walk)

    async def test_coloursOfTheSystem(self) -> None:
        """With forced colours, states and the selection remain visible."""

        def walk(browser: Browser, api: Api) -> None:
            for id in ("web1", "web2"):
                api.register(id)
            page = self.opened(browser.new_context(forced_colors="active"), api, "services?id=web2").page
            style = "(element, name) => getComputedStyle(element)[name]"
            for id, outline in (("web1", "none"), ("web2", "solid")):
                self.assertEqual(row(page, id).evaluate(style, "outlineStyle"), outline)
                self.assertEqual(row(page, id).locator(".dot").evaluate(style, "forcedColorAdjust"), "none")

        await self.browse(walk)

    async def test_clocks(self) -> None:
        """Ages are those of the registry's clock, also when the browser's is set; midnight is 00 in every locale."""

        def walk(browser: Browser, api: Api) -> None:
            api.ask("POST", "/locks", {"name": "/production/job", "timeout": 120})
            for locale in ("en-US", "de-DE"):
                context = withModules(browser, locale=locale, timezone_id="Asia/Tokyo")
                page = self.opened(context, api, "locks").page
                for shift in (7_200_000, -7_200_000):
                    page.evaluate(f"Date.now = ((now) => () => now)(Date.now() + {shift})")
                    page.locator(".rows .when").evaluate("(element) => { element.textContent = ''; }")
                    page.wait_for_selector(".rows .when:text-matches('^(now|[0-9.]+ s ago)$')")
                midnight = "new Date(2026, 10, 28, 0, 5).getTime()"
                shown = page.evaluate(f"import('/console/time.js').then((time) => time.moment({midnight}))")
                self.assertTrue(shown.endswith("00:05:00"), shown)

        await self.browse(walk)

    async def test_invisibleCharacters(self) -> None:
        """Every control or format character is shown as an escape."""
        wanted = [
            character
            for character in map(chr, range(0x110000))
            if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
        ]

        def walk(browser: Browser, api: Api) -> None:
            page = withModules(browser).new_page()
            page.goto(f"{api.root}/console/")
            shown = page.evaluate("(texts) => import('/console/dom.js').then((dom) => texts.map(dom.visible))", wanted)
            self.assertEqual(shown, [f"\\u{{{ord(character):x}}}" for character in wanted])

        await self.browse(walk)


class LimitTests(ConsoleTestCase):
    """More than the page can show."""

    async def test_foldersStayOpen(self) -> None:
        """Folders that are open stay open when there are more values than an open tree begins with."""
        values = [{"id": f"/app{n % 2}/key{n:03}", "value": str(n)} for n in range(400)]

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            body = {"values": values, "metadata": {"next_marker": None}}
            context.route("**/console/api/configuration?**", lambda route: route.fulfill(json=body))
            page = self.opened(context, api, "configuration").page
            self.assertEqual(page.locator("details[open]").count(), 2)
            api.ask("PUT", "/configuration//app0/another", {"value": "1"})
            page.wait_for_selector("summary:has-text('app0') .count:text-is('201')")
            self.assertEqual(page.locator("details[open]").count(), 2)

        await self.browse(walk)

    async def test_manyOfEverything(self) -> None:
        """Of very many tags, values and events some are shown, and the page says so; counts are of all."""
        services = [
            {"id": f"web{n}", "heartbeat_timeout": 120, "last_seen": 1, "tags": [f"tag{n:04}", "web"], "metadata": {}}
            for n in range(1200)
        ]
        values = [{"id": f"/app{n % 2}/key{n:04}", "value": str(n)} for n in range(2400)]
        events = [
            {"id": f"event{n}", "timestamp": 1, "type": "service.join", "payload": services[n % 1200]}
            for n in range(5001)
        ]

        def answer(route: Route) -> None:
            lists = {"services": services, "configuration": values, "events": events}
            path = route.request.url.partition("/api/")[2].partition("?")[0]
            route.fulfill(json={"values": lists[path], "metadata": {"next_marker": None}})

        def walk(browser: Browser, api: Api) -> None:
            context = browser.new_context()
            for path in ("services", "configuration", "events"):
                context.route(f"**/console/api/{path}?**", answer)
            watched = self.opened(context, api, "services?tag=tag1199&id=web7")
            page = watched.page
            page.wait_for_selector(".tag-list:has-text('Only the 200 most frequent of 1,201 tags are listed')")
            for name, count in (("web", "1200"), ("tag1199", "1")):
                page.wait_for_selector(f".tag-list a:has(bdi:text-is('{name}')) .count:text-is('{count}')")
            self.assertLess(page.locator(".tag-list a").count(), 205)
            page.set_viewport_size({"width": 800, "height": 600})
            page.wait_for_selector("option:has-text('Only the 200 most frequent')", state="attached")
            page.wait_for_selector(".detail:has-text('The page keeps the newest 5,000')")
            visit(page, "events")
            page.wait_for_selector("text=Only the newest 5,000 events are kept")
            visit(page, "configuration?view=flat")
            page.wait_for_selector("text=Only 400 of 2,400 are listed")
            self.assertEqual(page.locator(".leaf").count(), 400)
            page.fill("input[type=search]", "key2399")
            page.locator(".leaf", has_text="2399").wait_for()
            self.assertEqual(page.locator("text=are listed").count(), 0)
            visit(page, "configuration")
            page.wait_for_selector("summary:has-text('app0') .count:text-is('1200')")
            # Every folder is there, and can be opened.
            self.assertEqual(page.locator(".leaf").count(), 0)
            page.click("summary:has-text('app1')")
            page.wait_for_selector("details[open]:has-text('Only 400 of 1,200 are listed')")
            self.assertEqual(page.locator(".leaf").count(), 400)
            page.click(".leaf >> nth=0")
            page.wait_for_selector(".detail:has-text('/app1/key0001')")
            visit(page, "configuration//app0/key0002")
            page.wait_for_selector(".leaf[data-key='/app0/key0002'][aria-current]")
            self.assertEqual(page.locator(".leaf").count(), 800)
            page.click("summary:has-text('app1')")
            page.wait_for_selector("details:not([open]):has-text('app1')")
            visit(page, "configuration")
            page.wait_for_selector(".detail", state="hidden")
            self.assertEqual(page.locator("details[open]").count(), 1)
            self.assertEqual(watched.complaints, [])

        await self.browse(walk)
