"""The lines of the log that the wrapper writes, from a real RegisteredService over a registry in memory."""

from __future__ import annotations

from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import RegisteredService
from txserviceregistry.commands.wrapper.main import LogLines
from txserviceregistry.testing import FakeRegistry


class LogLinesTests(SynchronousTestCase):
    """The lines that the user sees."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.written: list[str] = []
        self.lines = LogLines(self.written.append)
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: LogEvent) -> None:
        """Of a log without the registry's own lines."""
        if not event["log_namespace"].startswith("txserviceregistry.registry."):
            self.lines(event)

    def service(self) -> RegisteredService:
        """A service that is being registered."""
        service = RegisteredService(self.fake.client(), "web1", 10)
        service.startService()
        self.addCleanup(service.abandon)
        return service

    def test_theStart(self) -> None:
        """The wrapper tells itself why the tries at the start have failed, and the log tells only what follows."""
        self.fake.stop()
        self.service()
        self.fake.advance(5)
        self.assertEqual(self.written, [])
        self.lines.startIsOver()
        self.fake.advance(60)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual(len(self.written), 1, self.written)
        self.assertIn("Heartbeats for service web1 succeed again", self.written[0])

    def test_refusedCredentials(self) -> None:
        """There is one line about them, however long the key stays wrong."""
        service = RegisteredService(self.fake.client(apiKey="not-the-key"), "web1", 10)
        service.startService()
        self.addCleanup(service.abandon)
        self.lines.startIsOver()
        self.fake.advance(200)
        self.assertEqual(len(self.written), 1, self.written)
        self.assertNotIn("not-the-key", self.written[0])

    def test_anOutageLater(self) -> None:
        """There is a line when heartbeats begin to fail, and one when they succeed again."""
        self.service()
        self.lines.startIsOver()
        self.fake.stop()
        self.fake.advance(60)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual(len(self.written), 2, self.written)
        self.assertRegex(self.written[0], "^Heartbeats? failed for service web1: ")
        self.assertIn("succeed again", self.written[1])

    def test_theEnd(self) -> None:
        """A deregistration is written, and nothing after the end."""
        service = self.service()
        self.successResultOf(service.stopService())
        self.assertEqual(self.written, ["Service web1 deregistered"])
        self.lines.isEnding = True
        self.fake.stop()
        self.service()
        self.fake.advance(60)
        self.assertEqual(len(self.written), 1)
