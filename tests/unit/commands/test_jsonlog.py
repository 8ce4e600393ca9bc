"""The operations log in JSON."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from twisted.logger import LogLevel
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.twistd import jsonLine, jsonObserver


class JsonLogTests(SynchronousTestCase):
    """Events of the log, and where they are written."""

    def line(self, **event: Any) -> dict[str, Any]:
        """An event as JSON, which is one line."""
        text = jsonLine({"log_time": 1767225600.5, "log_namespace": "x.y", "log_level": LogLevel.warn, **event})
        assert text is not None
        self.assertEqual((text.count("\n"), text.isascii()), (1, True))
        found: dict[str, Any] = json.loads(text)
        return found

    def test_anEvent(self) -> None:
        """It has the time, the level, the logger and the text."""
        self.assertEqual(
            self.line(log_format="Service {id} é\nexpired", id="web1"),
            {
                "time": "2026-01-01T00:00:00.500Z",
                "level": "warn",
                "logger": "x.y",
                "message": "Service web1 é\nexpired",
            },
        )

    def test_aFailure(self) -> None:
        """It has the traceback too."""
        try:
            raise ValueError("wrong")
        except ValueError:
            found = self.line(log_format="failed", log_failure=Failure())
        self.assertIn("ValueError: wrong", found["traceback"])

    def test_anEventWithoutText(self) -> None:
        """It is left out."""
        self.assertIsNone(jsonLine({"log_time": 0.0}))

    def test_where(self) -> None:
        """It is written where twistd would write it, and not to syslog."""
        path = os.path.abspath(self.mktemp())
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        observer = jsonObserver({"logfile": path})
        observer({"log_time": 0.0, "log_format": "started", "log_level": LogLevel.info})
        with open(path) as file:
            self.assertEqual(json.load(file)["message"], "started")
        with self.assertRaises(UsageError):
            jsonObserver({"syslog": True, "nodaemon": True})
