"""``raxsr events follow``: which events it shows, and its notes while the registry is unreachable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.commands.raxsr.events import followed
from txserviceregistry.errors import BadRequest
from txserviceregistry.settings import readSettings
from txserviceregistry.testing import FakeRegistry


class FollowTests(SynchronousTestCase):
    """Beside a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        self.notes: list[str] = []
        self.shown: list[Any] = []
        self.count = 0
        globalLogPublisher.addObserver(self.logged)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged)

    def logged(self, event: LogEvent) -> None:
        """The command shows what the library logs."""
        if str(event.get("log_namespace")).endswith("EventsFeed"):
            self.notes.append(formatEvent(event))

    def happen(self) -> str:
        """Set a value; what it is."""
        self.count += 1
        self.done(self.other.configuration.set("key", str(self.count)))
        return str(self.count)

    def done(self, result: Deferred[Any]) -> Any:
        self.fake.flush()
        return self.successResultOf(result)

    def follow(self, client: Client | None = None, type: str | None = None, since: str | None = None) -> Deferred[None]:
        """Follow events until the end of the test."""
        following = Deferred.fromCoroutine(
            followed(
                client or self.fake.client(),
                type,
                since,
                lambda: self.shown.append,
            )
        )
        self.fake.flush()
        following.addErrback(lambda failure: failure.trap(CancelledError))
        self.addCleanup(following.cancel)
        return following

    def values(self) -> list[str]:
        """The values of the events that have been shown since the last call."""
        self.fake.flush()
        shown, self.shown[:] = list(self.shown), []
        return [event["payload"]["new_value"] for event in shown]

    def test_showsEventsAtOnce(self) -> None:
        """An event is shown as soon as it happens, the first one of an account too; one of another type never."""
        self.follow(type="configuration_value.update")
        for _ in range(3):
            self.fake.advance(7)
            self.done(self.other.services.create("web1", 30))
            self.done(self.other.services.remove("web1"))
            self.fake.advance(7)
            self.assertEqual(self.values(), [])
            new = self.happen()
            self.assertEqual(self.values(), [new])
        self.assertEqual(self.notes, [])

    def test_beginsAtAnEvent(self) -> None:
        """With the id of an event, that one and all later ones are shown, each once."""
        self.happen()
        second, third = self.happen(), self.happen()
        since = self.done(self.other.events.list())["values"][1]["id"]
        for type in (None, "configuration_value.update"):
            self.follow(since=since, type=type)
            self.assertEqual(self.values(), [second, third])
        new = self.happen()
        self.assertEqual(self.values(), [new, new])

    def test_aMarkerThatIsRefused(self) -> None:
        """The first request fails with the registry's reason."""
        following = Deferred.fromCoroutine(followed(self.fake.client(), None, "nonsense", lambda: self.shown.append))
        self.fake.flush()
        self.failureResultOf(following, BadRequest)

    def test_anUnreachableRegistry(self) -> None:
        """There is one note when it becomes unreachable and one when it is reachable again; no event is lost."""
        self.follow()
        self.fake.partition()
        self.fake.advance(120)
        self.assertEqual([note.partition(":")[0] for note in self.notes], ["Event feed unreachable (retrying)"])
        self.fake.heal()
        new = self.happen()
        self.fake.advance(21)
        self.assertEqual(self.values(), [new])
        self.fake.dropNext(3)
        self.fake.restart()
        self.fake.advance(10)
        self.assertEqual(
            [note.partition(" after ")[0].partition(":")[0] for note in self.notes],
            ["Event feed unreachable (retrying)", "Event feed reachable again"] * 2,
        )
        self.assertEqual(self.values(), [])
        new = self.happen()
        self.assertEqual(self.values(), [new])

    def test_aRegistryThatLosesItsEvents(self) -> None:
        """There is a note, and the events that follow are shown."""
        self.happen()
        self.follow()
        self.happen()
        self.values()
        self.fake.restart(keepData=False)
        self.fake.advance(10)
        self.fake.advance(60)
        self.assertTrue(any("no longer has the last event" in note for note in self.notes), self.notes)
        new = self.happen()
        self.fake.advance(1)
        self.assertEqual(self.values(), [new])

    def test_aChangedKey(self) -> None:
        """A key that is changed ends nothing, also when the file with the new one comes later."""
        raxrc = Path(self.mktemp())

        def write() -> None:
            raxrc.write_text(
                f"[credentials]\nusername = {self.fake.username}\napi_key = {self.fake.apiKey}\n"
                f"[api]\nurl = {self.fake.url}\n"
            )

        write()
        settings = readSettings(environ={"RAXSR_RAXRC": str(raxrc), "HOME": self.mktemp()})
        following = self.follow(Client(settings=settings, agent=self.fake.agent, reactor=self.fake.clock))
        self.fake.apiKey = "another"
        self.fake.restart(keepData=False)
        self.fake.advance(60)
        self.assertEqual([note.partition(":")[0] for note in self.notes], ["Event feed unreachable (retrying)"])
        self.other = self.fake.client()
        new = self.happen()
        write()
        self.fake.advance(10)
        self.assertEqual(self.values(), [new])
        self.assertIn("Event feed reachable again", self.notes[-1])
        self.assertNoResult(following)
