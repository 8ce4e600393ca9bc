"""Tests for :mod:`txserviceregistry.commands.console`."""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.console import settingsOf, undecodable
from txserviceregistry.errors import InvalidSettings


class UndecodableTests(SynchronousTestCase):
    """Arguments that are text, and others."""

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


class OptionSettingsTests(SynchronousTestCase):
    """In an environment without other settings."""

    def setUp(self) -> None:
        environ = {"HOME": os.path.abspath(self.mktemp()), "RAXSR_API_URL": "http://127.0.0.1:9/v1.0"}
        patched = mock.patch.dict(os.environ, environ, clear=True)
        patched.start()
        self.addCleanup(patched.stop)

    def test_optionsComeFirst(self) -> None:
        """They are used before environment variables."""
        settings = settingsOf({"username": "joe", "apiKey": "secret", "baseUrl": "http://h:8880/v1.0"})
        self.assertEqual((settings.username, settings.apiKey), ("joe", "secret"))
        self.assertEqual(settings.baseUrls, ("http://h:8880/v1.0",))

    def test_errorsNameOptions(self) -> None:
        """A missing or wrong argument is named as the command line names it."""
        error = str(self.assertRaises(InvalidSettings, settingsOf, {"username": "joe"}))
        self.assertIn("No API key for http://127.0.0.1:9/v1.0. Set RAXSR_USERNAME and RAXSR_API_KEY", error)
        given = {"username": "joe", "apiKey": "secret", "baseUrl": "nonsense"}
        self.assertIn("--api-url", str(self.assertRaises(InvalidSettings, settingsOf, given)))
