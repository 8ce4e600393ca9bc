"""
Chromium, driven through Playwright: Debian's, so that nothing is downloaded. All tests of a process share one, with a
new profile each.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SkipTest

from tests.needs import SENTENCE, needs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_T = TypeVar("_T")
#: Another name of this machine, which the browser knows.
OTHER_NAME = "registry.test"
# Tests run as root, for whom Chromium has no sandbox.
_ARGUMENTS = ("--no-sandbox", f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1")


class _Shared:
    """The browser that tests share, and the one thread that may use it."""

    def __init__(self) -> None:
        self._threads = ThreadPool(1, 1, "browser")
        self._threads.start()
        self._browser: Browser | None = None
        self._playwright: Any = None
        reactor.addSystemEventTrigger("during", "shutdown", self._end)  # type: ignore[attr-defined]  # it has it

    def run(self, walk: Callable[[Browser], _T]) -> Deferred[_T]:
        return deferToThreadPool(reactor, self._threads, self._walk, walk)

    def _walk(self, walk: Callable[[Browser], _T]) -> _T:
        from playwright.sync_api import sync_playwright

        if self._browser is None or not self._browser.is_connected():
            self._playwright = self._playwright or sync_playwright().start()
            executable = shutil.which("chromium")
            self._browser = self._playwright.chromium.launch(executable_path=executable, args=_ARGUMENTS)
        try:
            return walk(self._browser)
        finally:
            for context in self._browser.contexts:
                context.close()

    def _end(self) -> Deferred[None]:
        ended: Deferred[None] = deferToThreadPool(reactor, self._threads, self._close)
        return ended.addBoth(lambda _ignored: self._threads.stop())

    def _close(self) -> None:
        if self._playwright is not None:
            self._playwright.stop()


_shared: _Shared | None = None


def browsing(walk: Callable[[Browser], _T]) -> Deferred[_T]:
    """
    Have a function drive the browser; what it opened is closed afterwards.

    :param walk: runs in a thread; what it does is synchronous.
    :return: fires with what it returns. The test is skipped where there is no browser.
    """
    global _shared
    needs("chromium")
    try:
        import playwright  # noqa: F401  # whether it is there
    except ImportError:
        raise SkipTest(SENTENCE)
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
