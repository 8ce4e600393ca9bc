"""
Chromium, driven through Playwright: Debian's, so that nothing is downloaded. All tests of a process share one, with a
new profile each.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest

from tests.needs import SENTENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_T = TypeVar("_T")
#: Another name of this machine, which the browser knows.
OTHER_NAME = "registry.test"
# The one without a window opens a page with a sixth of the CPU time.
_CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
# Tests run as root, for whom Chromium has no sandbox.
_ARGUMENTS = ("--no-sandbox", f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1")


class _Shared:
    """
    The browser that tests share, and the one thread that may use it. Threads of Twisted's pools do not do: they end
    with each test where trial runs tests in several processes.
    """

    def __init__(self) -> None:
        self._walks: SimpleQueue[tuple[Callable[[Browser], Any], Deferred[Any]] | None] = SimpleQueue()
        self._browser: Browser | None = None
        self._playwright: Any = None
        self._thread = Thread(target=self._serve, name="browser", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def run(self, walk: Callable[[Browser], _T]) -> Deferred[_T]:
        done: Deferred[_T] = Deferred()
        self._walks.put((walk, done))
        return done

    def _serve(self) -> None:
        while (work := self._walks.get()) is not None:
            walk, done = work
            try:
                result: Any = self._walk(walk)
            except BaseException:
                result = Failure()
            reactor.callFromThread(done.callback, result)  # type: ignore[attr-defined]  # it has it
        if self._playwright is not None:
            self._playwright.stop()

    def _walk(self, walk: Callable[[Browser], _T]) -> _T:
        from playwright.sync_api import sync_playwright

        if self._browser is None or not self._browser.is_connected():
            self._playwright = self._playwright or sync_playwright().start()
            self._browser = self._playwright.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
        try:
            return walk(self._browser)
        finally:
            for context in self._browser.contexts:
                context.close()

    def _end(self) -> None:
        self._walks.put(None)
        self._thread.join(10)


_shared: _Shared | None = None


def needsBrowser() -> None:
    """Skip the calling test if the browser is missing, before it starts any program."""
    if _CHROMIUM is None or find_spec("playwright") is None:
        raise SkipTest(SENTENCE)


def browsing(walk: Callable[[Browser], _T]) -> Deferred[_T]:
    """
    Have a function drive the browser; what it opened is closed afterwards.

    :param walk: runs in a thread; what it does is synchronous.
    :return: fires with what it returns. The test is skipped where there is no browser.
    """
    global _shared
    needsBrowser()
    if _shared is None:
        _shared = _Shared()
    return _shared.run(walk)


class Watched:
    """
    A page of which nothing goes unnoticed.

    :ivar complaints: errors of its scripts, what it writes to the console as an error, and everything that its content
        security policy prevents.
    """

    def __init__(self, context: BrowserContext, *, expected: tuple[str, ...] = ()) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self._expected = expected
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error('CSP ' + event.violatedDirective))"
        )

    def _note(self, kind: str, text: str) -> None:
        if kind == "error" and not any(each in text for each in self._expected):
            self.complaints.append(text)
