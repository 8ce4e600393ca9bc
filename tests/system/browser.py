"""
Chromium, driven through Playwright in a thread: Debian's, so that nothing is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from tests.needs import SENTENCE, needs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

_T = TypeVar("_T")


def browsing(walk: Callable[[Browser], _T], *arguments: str) -> Deferred[_T]:
    """
    Have a function drive a browser with a new profile, which is there while it runs.

    :param walk: runs in a thread; what it does is synchronous.
    :param arguments: more words of the browser's command line.
    :return: fires with what it returns. The test is skipped where there is no browser.
    """
    needs("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SkipTest(SENTENCE)

    def drive() -> _T:
        # Tests run as root, for whom Chromium has no sandbox.
        options: Any = {"executable_path": shutil.which("chromium"), "args": ["--no-sandbox", *arguments]}
        with sync_playwright() as playwright, playwright.chromium.launch(**options) as browser:
            return walk(browser)

    return deferToThread(drive)


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
