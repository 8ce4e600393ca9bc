"""Settling: many changes as one call, of a watcher and of a directory, in simulated time."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery import ConfigurationWatcher, Directory
from txserviceregistry.discovery.mirror import Settling
from txserviceregistry.testing import FakeRegistry


class SettlingTests(SynchronousTestCase):
    """When the listener is called."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: list[tuple[float, list[Any]]] = []
        self.settling = self.settlingFor(1.0)

    def settlingFor(self, settle: Any) -> Settling:
        return Settling(self.clock, settle, lambda found: self.calls.append((self.clock.seconds(), found)))

    def change(self, *moments: float) -> None:
        for moment in moments:
            self.clock.advance(moment - self.clock.seconds())
            self.settling.add(moment)

    def test_afterSomeQuiet(self) -> None:
        """One call has all changes, as soon as nothing has changed for so long; then it begins anew."""
        self.change(10.0, 10.5, 11.25)
        self.clock.advance(0.75)
        self.assertEqual(self.calls, [])
        self.clock.advance(0.25)
        self.assertEqual(self.calls, [(12.25, [10.0, 10.5, 11.25])])
        self.change(20.0)
        self.clock.advance(1.0)
        self.assertEqual(self.calls[1:], [(21.0, [20.0])])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_changesWithoutAnEnd(self) -> None:
        """The call comes four times as long after the first change at the latest."""
        moments = [number * 0.5 for number in range(20)]
        self.change(*moments)
        self.assertEqual([moment for moment, _ in self.calls], [4.0, 8.0])
        self.clock.advance(1.0)
        self.assertEqual([each for _, found in self.calls for each in found], moments)

    def test_atOnce(self) -> None:
        """With 0 seconds, the changes of one turn of the reactor come together."""
        self.settling = self.settlingFor(0)
        for changes in ([1, 2], [3]):
            for change in changes:
                self.settling.add(change)
            self.clock.advance(0)
        self.assertEqual(self.calls, [(0.0, [1, 2]), (0.0, [3])])

    def test_flushAndDrop(self) -> None:
        """Changes can be handed over early, or forgotten; nothing stays on the reactor."""
        self.settling.flush()
        self.change(1.0)
        self.settling.flush()
        self.change(1.5)
        self.assertEqual(self.settling.drop(), [1.5])
        self.assertEqual((self.calls, self.clock.getDelayedCalls()), ([(1.0, [1.0])], []))

    def test_aListenerThatFails(self) -> None:
        """Its error is logged, and the next changes come all the same."""
        calls = []

        def fail(found: Any) -> None:
            calls.append(found)
            raise RuntimeError("a defect of the application")

        self.settling = Settling(self.clock, 1.0, fail)
        for moment in (1.0, 5.0):
            self.change(moment)
            self.clock.advance(1.0)
        self.assertEqual((calls, len(self.flushLoggedErrors(RuntimeError))), ([[1.0], [5.0]], 2))

    def test_impossibleTimes(self) -> None:
        """A time that is none is refused."""
        for settle in (-1, float("nan"), float("inf"), "x", True):
            self.assertRaises(ValueError, self.settlingFor, settle)


class ViewCase(SynchronousTestCase):
    """A view of a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.calls: list[Any] = []

    def started(self, view: Any) -> Any:
        view.startService()
        self.addCleanup(lambda: self.successResultOf(view.stopService()))
        self.fake.flush()
        return view

    def set(self, **values: str) -> None:
        for key, value in values.items():
            self.client.configuration.set(f"/production/{key}", value)
        self.fake.flush()


class WatcherTests(ViewCase):
    """ConfigurationWatcher."""

    def setUp(self) -> None:
        super().setUp()
        self.watcher = ConfigurationWatcher(self.client, "/production", random=lambda: 0.5)

    def keep(self, changes: Any) -> None:
        self.calls.append([(change.key.rpartition("/")[2], change.old, change.new) for change in changes])

    def test_keysThatAreChangedTogether(self) -> None:
        """They are seen together, and the mapping has them when the listener is called."""
        self.started(self.watcher)
        seen: list[Any] = []
        self.watcher.onChange(lambda changes: seen.append(dict(self.watcher)), settle=2)
        self.watcher.onChange(self.keep, settle=2)
        self.set(host="a", port="1")
        self.fake.advance(1.5)
        self.set(port="2")
        self.fake.advance(1.5)
        self.assertEqual(self.calls, [])
        self.fake.advance(1)
        self.assertEqual(self.calls, [[("host", None, "a"), ("port", None, "1"), ("port", "1", "2")]])
        self.assertEqual(seen, [{"/production/host": "a", "/production/port": "2"}])

    def test_theFirstListing(self) -> None:
        """It is one call as well."""
        self.set(host="a", port="1")
        self.watcher.onChange(self.keep, settle=0.5)
        self.started(self.watcher)
        self.fake.advance(1)
        self.assertEqual(self.calls, [[("host", None, "a"), ("port", None, "1")]])

    def test_keysAndNamespaces(self) -> None:
        """Only changes that a listener wants delay its call; that of a key gets the last value."""
        self.started(self.watcher)
        values: list[Any] = []
        ends = [
            self.watcher.onKey("/production/port", values.append, settle=1),
            self.watcher.onNamespace("/production/www", self.keep, settle=1),
        ]
        self.set(**{"port": "1", "www/name": "x"})
        for number in range(8):
            self.set(host=f"{number}")
            if number < 2:
                self.set(port=f"{number + 2}")
            self.fake.advance(0.25)
        self.assertEqual((values, self.calls), (["3"], [[("name", None, "x")]]))
        self.client.configuration.remove("/production/port")
        self.set(**{"www/name": "y"})
        ends[1]()
        ends[1]()
        self.fake.advance(2)
        self.assertEqual((values, len(self.calls)), (["3", None], 1))

    def test_aStop(self) -> None:
        """Stopping reports the changes that wait, so that none is lost; a new start reports only those in between."""
        self.watcher.onChange(self.keep, settle=60)
        self.set(host="a")
        self.started(self.watcher)
        self.successResultOf(self.watcher.stopService())
        self.assertEqual(self.calls, [[("host", None, "a")]])
        self.set(port="1")
        self.watcher.startService()
        self.fake.advance(61)
        self.assertEqual(self.calls[1:], [[("port", None, "1")]])

    def test_aListenerThatStops(self) -> None:
        """A listener of single changes may stop the watcher in the middle of others' changes: nothing is left."""
        self.set(host="a", port="1")
        self.watcher.onChange(self.keep, settle=60)
        self.watcher.onChange(lambda change: self.watcher.stopService())
        self.started(self.watcher)
        self.assertEqual(self.calls, [[("host", None, "a"), ("port", None, "1")]])
        self.client.close()
        self.fake.advance(0)
        self.assertEqual([call for call in self.fake.clock.getDelayedCalls() if call.getTime() > 30], [])


class DirectoryTests(ViewCase):
    """Directory."""

    def test_changes(self) -> None:
        """Services that come and go within the time are one call, in their order."""
        directory = self.started(Directory(self.client, random=lambda: 0.5))
        directory.onChange(
            lambda changes: self.calls.append([(kind, service["id"]) for kind, service in changes]), settle=1
        )
        for id in ("web1", "web2"):
            self.client.services.create(id, 30)
        self.fake.flush()
        self.client.services.remove("web1")
        self.fake.advance(0.5)
        self.assertEqual(self.calls, [])
        self.fake.advance(1)
        self.assertEqual(self.calls, [[("join", "web1"), ("join", "web2"), ("remove", "web1")]])
        self.fake.advance(32)
        self.assertEqual(self.calls[1:], [[("timeout", "web2")]])
