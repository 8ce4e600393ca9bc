"""Keeping files current, in simulated time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from tests.unit.commands.raxsr.templatecase import TemplateCase
from txserviceregistry.commands.raxsr.templates import TemplateFailed, TemplateKeeper, Views
from txserviceregistry.discovery.directory import THRESHOLD

IDS = "{{ services('www')|map(attribute='id')|join(',') }}"


class KeeperCase(TemplateCase):
    """A keeper of one file."""

    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []
        globalLogPublisher.addObserver(self.logged)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged)

    def logged(self, event: LogEvent) -> None:
        """Note the keeper's lines."""
        if str(event.get("log_namespace")).endswith("TemplateKeeper"):
            self.lines.append(formatEvent(event))

    def keeper(self, text: str = IDS, panicThreshold: float = THRESHOLD, **options: Any) -> TemplateKeeper:
        """A keeper of the file, whose template is *text*."""
        templates = [self.template(text, reload="reload")]
        return TemplateKeeper(
            self.fake.clock, Views(self.client, panicThreshold), templates, random=lambda: 0.0, **options
        )

    def start(self, text: str = IDS, **options: Any) -> None:
        """Keep the file current until the test ends."""
        running = Deferred.fromCoroutine(self.keeper(text, **options).run())
        self.addCleanup(lambda: (running.cancel(), self.failureResultOf(running, CancelledError)))
        self.fake.flush()


class RunTests(KeeperCase):
    """Until it is cancelled."""

    def test_followsChanges(self) -> None:
        """Each change is in the file at once, with one reload; what the template does not show needs none."""
        self.create("web1")
        self.start()
        self.fake.advance(1)
        self.assertEqual(self.file.read_text(), "web1")
        self.create("web2")
        self.fake.advance(1)
        self.assertEqual((self.file.read_text(), len(self.commands)), ("web1,web2", 2))
        self.create("db1", ("db",))
        self.set("color", "red")
        self.fake.advance(1)
        self.assertEqual(len(self.commands), 2)
        self.assertEqual(self.lines, [f"Template {self.source} rendered"] * 2)

    def test_waitsForQuiet(self) -> None:
        """Changes that come together are one reload; changes that do not end are one after the longest wait."""
        self.create("web1")
        self.start(quiet=2.0, longest=5.0)
        self.fake.advance(1)
        self.create("web2")
        self.fake.advance(1.5)
        self.create("web3")
        self.fake.advance(1.5)
        self.assertEqual(self.file.read_text(), "web1")
        self.fake.advance(1)
        self.assertEqual((self.file.read_text(), len(self.commands)), ("web1,web2,web3", 2))
        for number in range(4, 8):
            self.create(f"web{number}")
            self.fake.advance(1.3)
        self.assertGreaterEqual(len(self.commands), 3)

    def test_theLastServiceOfATag(self) -> None:
        """When a tag falls to zero the file stays, which is logged once; the next service ends that."""
        self.create("web1")
        self.start()
        self.fake.advance(1)
        self.successResultOf(self.other.services.remove("web1"))
        self.fake.advance(600)
        self.assertEqual((self.file.read_text(), len(self.commands)), ("web1", 1))
        self.assertEqual(len(self.lines), 2)
        self.assertIn("failed (retrying): no service with tag 'www'", self.lines[1])
        self.create("web2")
        self.fake.advance(1)
        self.assertEqual(self.file.read_text(), "web2")
        self.assertIn("succeeded after 600 s", self.lines[-1])

    def test_manyExpireAtOnce(self) -> None:
        """When most services of a tag expire at once they stay in the file, until they return or are deregistered."""
        for name in ("web1", "web2", "web3"):
            self.create(name, timeout=10)
        self.create("web4")
        self.start(quiet=1.0, longest=5.0)
        self.fake.advance(30)
        self.assertEqual((self.file.read_text(), len(self.commands)), ("web1,web2,web3,web4", 1))
        for name in ("web1", "web2"):
            self.create(name, timeout=100)
        self.fake.advance(10)
        self.assertEqual(self.file.read_text(), "web1,web2,web4")

    def test_manyExpireAtOnceWithoutAThreshold(self) -> None:
        """With a threshold of 0 they are removed."""
        for name in ("web1", "web2", "web3"):
            self.create(name, timeout=10)
        self.create("web4")
        self.start(panicThreshold=0.0)
        self.fake.advance(30)
        self.assertEqual(self.file.read_text(), "web4")

    def test_aReloadIsRetried(self) -> None:
        """A reload that fails is retried without a change, later and later, and logged once."""
        self.create("web1")
        self.start()
        self.fake.advance(1)
        self.failing.add("reload")
        self.create("web2")
        self.fake.advance(60)
        self.assertEqual(self.file.read_text(), "web1")
        # 1, 1, 2, 4, 8, 16 seconds later, and so on.
        self.assertEqual(len(self.commands), 8)
        self.assertEqual(len(self.lines), 2)
        self.failing.clear()
        self.fake.advance(32)
        self.assertEqual(self.file.read_text(), "web1,web2")

    def test_anOutageOfTheRegistry(self) -> None:
        """While the registry is unreachable the file stays; afterwards it is made of a complete listing."""
        self.create("web1")
        self.create("web2")
        self.start()
        self.fake.advance(1)
        self.fake.stop()
        self.fake.advance(300)
        self.fake.start()
        self.successResultOf(self.other.services.remove("web2"))
        self.fake.advance(20)
        self.assertEqual((self.file.read_text(), len(self.commands)), ("web1", 2))

    def test_startsBeforeTheRegistry(self) -> None:
        """A registry that is not there yet is waited for."""
        self.create("web1")
        self.fake.stop()
        self.start()
        self.fake.advance(60)
        self.assertFalse(self.file.exists())
        self.fake.start()
        self.fake.advance(20)
        self.assertEqual(self.file.read_text(), "web1")


class OnceTests(KeeperCase):
    """Once."""

    def test_succeeds(self) -> None:
        """It ends when the file is made."""
        self.create("web1")
        running = Deferred.fromCoroutine(self.keeper().once())
        self.fake.advance(1)
        self.successResultOf(running)
        self.assertEqual((self.file.read_text(), self.commands), ("web1", ["reload"]))

    def test_fails(self) -> None:
        """It ends with the error, without another try."""
        running = Deferred.fromCoroutine(self.keeper().once())
        self.fake.advance(1)
        error = self.failureResultOf(running, TemplateFailed)
        self.assertIn(f"template {self.source} failed: no service with tag 'www'", error.getErrorMessage())
