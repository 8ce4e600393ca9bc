"""Settings whose first source is a program's options."""

from __future__ import annotations

import os
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.running import settingsOf
from txserviceregistry.errors import InvalidSettings


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
        """What is missing or wrong is named as the command line names it."""
        error = str(self.assertRaises(InvalidSettings, settingsOf, {"username": "joe"}))
        self.assertIn("No API key for http://127.0.0.1:9/v1.0. Set RAXSR_USERNAME and RAXSR_API_KEY", error)
        given = {"username": "joe", "apiKey": "secret", "baseUrl": "nonsense"}
        self.assertIn("--api-url", str(self.assertRaises(InvalidSettings, settingsOf, given)))
