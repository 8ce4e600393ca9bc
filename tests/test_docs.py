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


class TutorialTests(PageTestCase):
    """The tutorial, from its first line to its last."""

    async def test_doesWhatItSays(self) -> None:
        """Whoever types what is there sees what is shown."""
        await self.perform(DOCS / "tutorial.rst")
