"""The console where something goes wrong: in the browser, on the way, or because others work at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.system.browser import Watched
from tests.system.console.test_page import FAILED, Api, ConsoleTestCase, logIn

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

# Makes a page hidden, or to be seen again: under Playwright every tab is to be seen.
_HIDE = """(isHidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: isHidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
# What a browser does that blocks a site's data.
_BLOCKED = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("Access is denied for this document.", "SecurityError"); }
})"""
_TWICE = "(element) => { element.click(); element.click(); }"


class BrowserTests(ConsoleTestCase):
    """What a browser has, and may lack."""

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

    async def test_blockedStorage(self) -> None:
        """Without the storage or the scripts that it needs, the page says so."""

        def walk(browser: Browser, api: Api) -> None:
            blocked = browser.new_context()
            blocked.add_init_script(_BLOCKED)
            for context in (blocked, browser.new_context(java_script_enabled=False)):
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
        """What a view has asked for does not replace another view that is open by then."""

        def walk(browser: Browser, api: Api) -> None:
            watched = self.opened(browser.new_context(), api)
            page = watched.page
            held: list[Route] = []
            page.route("**/console/api/cluster", lambda route: held.append(route))
            with page.expect_request("**/console/api/cluster"):
                page.evaluate("location.hash = '#/cluster'")
            page.evaluate("location.hash = '#/services'")
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
            page.on("request", lambda request: sent.append(request.method))
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
