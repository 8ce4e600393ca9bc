"""The documentation: what it has to have. (That it can be built without a warning is shown by building it.)"""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.docblocks import DOCS, PageTestCase


class PagesTests(SynchronousTestCase):
    """What holds for all pages."""

    def test_codeSaysWhatItIs(self) -> None:
        """Each block of code names its language."""
        for page in DOCS.glob("**/*.rst"):
            bare = [line for line in page.read_text().splitlines() if re.search(r"^(?!\.\. ).*::$", line)]
            self.assertEqual((page.name, bare), (page.name, []))

    def test_linksAreLinks(self) -> None:
        """Pages are named by a role that is checked, not by their files' names."""
        for page in DOCS.glob("**/*.rst"):
            text = re.sub(r"\.\. include:: .*", "", page.read_text())
            self.assertEqual((page.name, re.findall(r"[\w-]+\.rst\b", text)), (page.name, []))


class ShellTests(PageTestCase):
    """What pages tell the reader to type: whoever does so sees what is shown."""

    async def test_tutorial(self) -> None:
        """The tutorial, from its first line to its last."""
        await self.perform(DOCS / "tutorial.rst")

    async def test_applications(self) -> None:
        """Other frameworks."""
        await self.perform(DOCS / "applications.rst")

    async def test_httpApi(self) -> None:
        """The API with curl."""
        await self.perform(DOCS / "http-api.rst")
