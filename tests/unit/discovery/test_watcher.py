"""ConfigurationWatcher: values that are kept current."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.discovery.mirror import ConfigurationChange, ConfigurationWatcher
from txserviceregistry.testing import FakeRegistry


class WatcherTests(SynchronousTestCase):
    """One watcher, over a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()

    def watcher(self, namespace: str | None = "/production/www", **options: Any) -> ConfigurationWatcher:
        watcher = ConfigurationWatcher(self.client, namespace, random=lambda: 0.5, **options)
        watcher.startService()
        self.addCleanup(lambda: self.successResultOf(watcher.stopService()))
        self.fake.flush()
        return watcher

    def set(self, key: str, value: str) -> None:
        self.successResultOf(self.client.configuration.set(key, value))
        self.fake.flush()

    def remove(self, key: str) -> None:
        self.successResultOf(self.client.configuration.remove(key))
        self.fake.flush()

    def test_isAMapping(self) -> None:
        """It holds what is below the namespace, and nothing that merely begins alike."""
        self.set("/production/www/workers", "4")
        self.set("/production/www2/workers", "5")
        watcher = self.watcher("/production/www/")
        self.successResultOf(watcher.whenReady())
        self.assertEqual(dict(watcher), {"/production/www/workers": "4"})
        self.set("/production/www/deep/value", "6")
        self.set("/production/wwww", "7")
        self.assertEqual(list(watcher), ["/production/www/deep/value", "/production/www/workers"])
        self.assertEqual((watcher["/production/www/deep/value"], len(watcher)), ("6", 2))
        self.assertNotIn("/production/wwww", watcher)
        self.assertEqual(len(self.watcher(None)), 4)
        with self.assertRaises(TypeError):
            watcher["/production/www/workers"] = "1"  # type: ignore[index] # that is what is shown

    def test_listeners(self) -> None:
        """By key, by namespace, or all of them; each until it is ended."""
        watcher = self.watcher()
        key, space, everything = [], [], []
        endings = [
            watcher.onKey("/production/www/workers", key.append),
            watcher.onNamespace("/production/www/deep", space.append),
            watcher.onChange(everything.append),
        ]
        self.set("/production/www/workers", "4")
        self.set("/production/www/workers", "5")
        self.set("/production/www/deep/value", "6")
        self.remove("/production/www/workers")
        self.assertEqual(key, ["4", "5", None])
        self.assertEqual(space, [ConfigurationChange("/production/www/deep/value", None, "6")])
        self.assertEqual(len(everything), 4)
        self.assertEqual(everything[1], ConfigurationChange("/production/www/workers", "4", "5"))
        for end in endings:
            end()
            end()
        self.set("/production/www/workers", "7")
        self.assertEqual((len(key), len(everything)), (3, 4))

    def test_allThatHaveANamespace(self) -> None:
        """``/`` is all keys that begin with a slash, from the listing and from events."""
        self.set("simple", "1")
        self.set("/production/one", "2")
        watcher = self.watcher("/")
        self.set("simpler", "3")
        self.set("/other", "4")
        self.assertEqual(dict(watcher), {"/production/one": "2", "/other": "4"})

    def test_changedWhileItIsListed(self) -> None:
        """A value that changes after its page was read is the new one."""
        self.set("/production/www/workers", "4")
        other = self.client.configuration

        class Meddling:
            """Changes a value when it has been listed."""

            async def iterate(self, namespace: str | None = None) -> Any:
                async for value in other.iterate(namespace):
                    yield value
                await other.set("/production/www/workers", "5")

        client = self.fake.client()
        client.configuration = Meddling()  # type: ignore[assignment] # what it uses of it
        watcher = ConfigurationWatcher(client, "/production/www")
        watcher.startService()
        self.addCleanup(lambda: self.successResultOf(watcher.stopService()))
        self.assertEqual(dict(watcher), {"/production/www/workers": "5"})

    def test_dataLostWithoutEvents(self) -> None:
        """If a registry without events loses its data, that is seen within a minute."""
        self.set("/production/www/workers", "4")
        self.fake.advance(4000)
        watcher = self.watcher()
        self.assertEqual(len(watcher), 1)
        self.fake.restart(keepData=False)
        self.fake.advance(61)
        self.assertEqual(len(watcher), 0)

    def test_stoppedByAListener(self) -> None:
        """A listener may stop the watcher from within."""
        watcher = self.watcher()
        stopped: list[Any] = []
        watcher.onChange(lambda change: stopped.append(watcher.stopService()))
        self.set("/production/www/workers", "4")
        self.successResultOf(stopped[0])

    def test_anIteratorThatIsDropped(self) -> None:
        """It is collected, with the changes that wait for it; one in a running loop is not."""
        collectOnlyNew(self)
        watcher = self.watcher()
        dropped = watcher.changes()
        reference = weakref.ref(dropped)
        seen: list[str | None] = []

        async def iterate() -> None:
            async for change in watcher.changes():
                seen.append(change.new)

        Deferred.fromCoroutine(iterate())
        del dropped
        gc.collect()
        self.assertIsNone(reference())
        self.set("/production/www/workers", "4")
        self.assertEqual(seen, ["4"])

    def test_aListenerThatRaises(self) -> None:
        """It is logged, and takes nothing from the others."""
        watcher = self.watcher()
        watcher.onKey("/production/www/workers", lambda value: 1 / 0)
        changed: list[Any] = []
        watcher.onKey("/production/www/workers", changed.append)
        self.set("/production/www/workers", "4")
        self.assertEqual(changed, ["4"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_iterates(self) -> None:
        """Changes can be awaited, those that come in between too, until the watcher stops."""
        watcher = self.watcher()
        seen: list[ConfigurationChange] = []

        async def iterate() -> None:
            async for change in watcher.changes():
                seen.append(change)

        done = Deferred.fromCoroutine(iterate())
        self.set("/production/www/workers", "4")
        self.set("/production/www/workers", "5")
        self.assertEqual([change.new for change in seen], ["4", "5"])
        self.successResultOf(watcher.stopService())
        self.successResultOf(done)

    def test_closesAnIterator(self) -> None:
        """A closed iterator has no more changes."""
        watcher = self.watcher()
        changes = watcher.changes()
        self.set("/production/www/workers", "4")
        self.set("/production/www/workers", "5")

        async def one() -> Any:
            return await changes.__anext__()

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(one())).new, "4")
        self.successResultOf(Deferred.fromCoroutine(changes.aclose()))  # type: ignore[attr-defined] # it has one
        self.failureResultOf(Deferred.fromCoroutine(one()), StopAsyncIteration, RuntimeError)

    def test_keepsWhatItHad(self) -> None:
        """While the registry is unreachable, also across a restart with a file."""
        path = self.mktemp()
        self.set("/production/www/workers", "4")
        first = self.watcher(path=path)
        self.fake.advance(6)
        self.fake.stop()
        self.fake.advance(60)
        self.assertEqual(first["/production/www/workers"], "4")
        self.assertGreater(first.stale, 20)
        self.successResultOf(first.stopService())
        second = self.watcher(path=path)
        self.successResultOf(second.whenReady())
        self.assertEqual(dict(second), {"/production/www/workers": "4"})
        self.fake.start()
        self.set("/production/www/workers", "5")
        self.fake.advance(15)
        self.assertEqual((dict(second), second.stale), ({"/production/www/workers": "5"}, 0.0))
