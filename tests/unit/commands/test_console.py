"""Tests for :mod:`txserviceregistry.commands.console`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.console import undecodable


class UndecodableTests(SynchronousTestCase):
    """What is text and what is not."""

    def test_text(self) -> None:
        """All of Unicode is text; the first word that is not is named by its option, also by a short one."""
        self.assertIsNone(undecodable(["--tags", "é\u20ac\U0001f600\x00"]))
        for words, name in (
            (["-t", "a\udce9"], "the value of -t"),
            (["--tags=a\udce9"], "the value of --tags"),
            (["x", "a\udce9"], "an argument"),
            (["a=b\udce9"], "an argument"),
        ):
            self.assertIn(f"{name} is not text", undecodable(words) or "")
