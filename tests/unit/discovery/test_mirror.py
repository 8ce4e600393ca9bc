"""Mirror, by the example of a directory: outages, files, starting and stopping."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.logger import capturedLogs, formatEvent

from txserviceregistry.discovery import ConfigurationWatcher, EventsFeed, RegistryEndpoint
from txserviceregistry.discovery.directory import Directory
from txserviceregistry.errors import NotRunning

from .directorycase import DirectoryTestCase


class MirrorTests(DirectoryTestCase):
    """Random events in random order."""

    def test_theRegistryAway(self) -> None:
        """The directory keeps its services, with their age, and is current again when the registry is reachable."""
        self.create("web1")
        directory = self.directory()
        self.fake.advance(40)
        self.fake.stop()
        self.fake.advance(3600)
        self.assertEqual(self.ids(directory), ["web1"])
        self.assertGreater(directory.stale, 3500)
        self.assertLess(directory.stale, 3700)
        self.fake.start(keepData=False)
        self.create("web2")
        self.fake.advance(15)
        self.assertEqual((self.ids(directory), directory.stale), (["web2"], 0.0))
        self.assertEqual(self.changes, [("join", "web1"), ("remove", "web1"), ("join", "web2")])

    def test_aRestartWithOtherData(self) -> None:
        """A registry that has lost its data refuses or does not know the place in the feed: all is listed again."""
        self.create("web1")
        directory = self.directory()
        self.fake.restart(keepData=False)
        self.create("web2")
        self.fake.advance(15)
        self.assertEqual(self.ids(directory), ["web2"])

    def test_onlyAWholeListingCounts(self) -> None:
        """A listing that fails in the middle removes no service."""
        for number in range(150):
            self.create(f"web{number:03}")
        directory = self.directory(refresh=10)
        for fail in (
            lambda: self.fake.failNext(503, 3),
            lambda: self.fake.truncateNext(3),
            lambda: self.fake.garbageNext(3),
            lambda: self.fake.dropNext(3),
        ):
            self.fake.advance(9)
            fail()
            self.fake.advance(1.5)
            self.assertEqual(len(directory.services()), 150)
        self.fake.advance(30)
        self.assertEqual(directory.stale, 0.0)

    def test_startsBeforeTheRegistry(self) -> None:
        """Nothing is known at first, and it is ready as soon as the registry is."""
        self.fake.stop()
        directory = self.directory()
        ready = directory.whenReady()
        givenUp = directory.whenReady()
        givenUp.cancel()
        self.failureResultOf(givenUp)
        self.fake.advance(100)
        self.assertNoResult(ready)
        self.assertEqual(directory.stale, math.inf)
        self.fake.start()
        self.fake.advance(11)
        self.successResultOf(ready)
        self.assertEqual(directory.stale, 0.0)

    def test_fromDisk(self) -> None:
        """
        An application that starts while the registry is unreachable has the services of the last time, and their age.
        """
        path = self.mktemp()
        now = [1_800_000_000.0]
        self.create("web1", tags=["www"], metadata={"port": "80"})
        first = self.directory(path=path, wallClock=lambda: now[0])
        self.fake.advance(6)
        self.successResultOf(first.stopService())
        self.fake.stop()
        now[0] += 100
        second = self.directory(path=path, wallClock=lambda: now[0])
        self.successResultOf(second.whenReady())
        self.assertEqual([service["id"] for service in second.forTag("www")], ["web1"])
        self.assertAlmostEqual(second.stale, 100, delta=10)
        self.fake.start(keepData=False)
        self.fake.advance(15)
        self.assertEqual((second.services(), second.stale), ([], 0.0))

    def test_savedWhenItStops(self) -> None:
        """Changes that the file does not have yet are written when the directory stops."""
        path = self.mktemp()
        first = self.directory(path=path)
        self.create("web1")
        self.fake.flush()
        self.successResultOf(first.stopService())
        self.fake.stop()
        second = self.directory(path=path)
        self.assertEqual(self.ids(second), ["web1"])

    def test_aDamagedFile(self) -> None:
        """It is logged, and ignored."""
        self.create("web1")
        for text in ("", "{", "[]", '{"version": 9}', json.dumps({"version": 1, "current": 0, "values": {"a": 1}})):
            path = Path(self.mktemp())
            path.write_text(text)
            directory = self.directory(path=path)
            self.assertEqual(self.ids(directory), ["web1"])

    def test_aFileThatCantBeWritten(self) -> None:
        """It is logged, and everything else goes on."""
        directory = self.directory(path="/proc/nothing/here")
        self.create("web1")
        self.fake.advance(20)
        self.assertEqual(self.ids(directory), ["web1"])

    def test_stoppingLeavesNothing(self) -> None:
        """At any moment: during a listing, a wait or an outage."""
        for prepare in (lambda: None, self.fake.partition, self.fake.heal, self.fake.stop):
            directory = self.directory()
            prepare()
            self.fake.advance(7)
            self.successResultOf(directory.stopService())
            self.successResultOf(directory.stopService())
        self.fake.start()
        self.successResultOf(self.client.close())
        self.successResultOf(self.other.close())
        self.fake.advance(70)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_startsAgain(self) -> None:
        """A directory that was stopped can be started again, and is current then."""
        directory = self.directory()
        self.successResultOf(directory.stopService())
        self.create("web1")
        self.fake.advance(1)
        self.assertEqual(self.ids(directory), [])
        directory.startService()
        self.fake.advance(1)
        self.assertEqual((self.ids(directory), directory.stale), (["web1"], 0.0))

    def test_aDefectOfTheLibrary(self) -> None:
        """An error that nothing is prepared for is logged once, with its traceback, and does not end the directory."""
        client = self.fake.client()
        iterate = client.services.iterate
        broken = 5

        def fail(tag: str | None) -> Any:
            nonlocal broken
            broken -= 1
            return iterate(tag) if broken < 0 else 1 / 0

        client.services.iterate = fail  # type: ignore[assignment] # what a directory uses of it
        self.create("web1")
        directory = self.directory(client=client)
        with capturedLogs() as events:
            self.fake.advance(30)
        self.assertEqual((self.ids(directory), directory.stale), (["web1"], 0.0))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        lines = [str(formatEvent(event)) for event in events if event["log_namespace"].endswith("Directory")]
        self.assertEqual(len(lines), 1)
        self.assertRegex(lines[0], "^The services are current again after [0-9]+ s$")

    def test_stoppedAndStartedByAListener(self) -> None:
        """Both from a listener, during a listing and after it: one run goes on, and nothing is missed."""
        for isListed in (True, False):
            directory = Directory(self.client, random=lambda: 0.5)
            stopped: list[Any] = []

            def again(kind: str, service: Any, directory: Directory = directory, stopped: list[Any] = stopped) -> None:
                if not stopped:
                    stopped.append(directory.stopService())
                    directory.startService()

            directory.onChange(again)
            if isListed:
                self.create("web1")
            directory.startService()
            self.addCleanup(self.end, directory)
            if not isListed:
                self.create("web2")
            self.fake.advance(2)
            self.successResultOf(stopped[0])
            self.create("web3")
            self.fake.flush()
            self.assertEqual(self.ids(directory), ["web1", "web3"] if isListed else ["web1", "web2", "web3"])
            self.remove("web3")

    def test_whenReadyMayStopIt(self) -> None:
        """The first listing may be all that is needed."""
        self.create("web1")
        directory = Directory(self.client)
        # A service that a parent will start may be waited for before.
        parent = MultiService()
        directory.setServiceParent(parent)
        done = directory.whenReady().addCallback(lambda _: directory.stopService())
        parent.startService()
        self.successResultOf(done)
        self.assertEqual(self.ids(directory), ["web1"])

    def test_neverStarted(self) -> None:
        """Reading or waiting raises NotRunning before the first start."""
        directory = Directory(self.client)
        watcher = ConfigurationWatcher(self.client)
        feed = EventsFeed(self.client)
        for use in (
            directory.services,
            lambda: directory.forTag("www"),
            lambda: directory.get("web1"),
            lambda: len(watcher),
            lambda: "key" in watcher,
            lambda: dict(watcher),
        ):
            error = self.assertRaises(NotRunning, use)
            self.assertRegex(str(error), "^(Directory|ConfigurationWatcher) is not running; call startService\\(\\)$")
        for iterator in (aiter(feed), watcher.changes()):
            self.failureResultOf(Deferred.fromCoroutine(anext(iterator)), NotRunning)  # type: ignore[arg-type]
        for mirror in (directory, watcher):
            self.failureResultOf(mirror.whenReady(), NotRunning)
        endpoint = RegistryEndpoint(self.fake.clock, directory, "www")
        self.failureResultOf(endpoint.connect(Factory()), NotRunning)
        self.assertEqual(self.fake.requests, [])

    def test_retryAfter(self) -> None:
        """With any Retry-After of the registry, a directory tries again within the hour."""
        fault = json.dumps(
            {"type": "rateLimitReached", "code": 400, "message": "Rate limit has been reached."}
        ).encode()
        dates = "Fri, 31 Dec 9999 23:59:59 GMT"
        for said, seconds in (("inf", 60), ("nan", 60), ("1e308", 60), ("-1", 60), (dates, 60), ("9" * 400, 3660)):
            headers = {"Retry-After": said}
            self.fake.answerNext(
                400, fault, "application/json", headers=headers, when=lambda sent: sent.method == "GET"
            )
            directory = self.directory()
            self.assertEqual(directory.stale, math.inf)
            self.fake.advance(seconds)
            self.assertEqual(directory.stale, 0.0, said)
            self.successResultOf(directory.stopService())

    def test_anUpdateAfterALongAbsence(self) -> None:
        """A listing is newer than the events before it, a service that was made anew included."""
        self.create("web1")
        directory = self.directory(refresh=10_000)
        self.fake.stop()
        self.fake.advance(60)
        self.fake.start()
        self.remove("web1")
        self.create("web1", tags=["www"])
        self.successResultOf(self.other.services.update("web1", {"tags": ["dns"]}))
        self.fake.advance(15)
        self.assertEqual([service["tags"] for service in directory.services()], [["dns"]])
        self.assertEqual(self.changes, [("join", "web1"), ("remove", "web1"), ("join", "web1")])

    def test_dataLostWithoutEvents(self) -> None:
        """If a registry without events loses its data, the next listing shows it."""
        _, heartBeater = self.successResultOf(self.other.services.create("web1", 120))
        heartBeater.start()
        self.fake.advance(4000)
        directory = self.directory()
        self.assertEqual(self.ids(directory), ["web1"])
        self.successResultOf(heartBeater.stop())
        self.fake.restart(keepData=False)
        self.fake.advance(61)
        self.assertEqual(self.ids(directory), [])

    def test_cancelledByTheClient(self) -> None:
        """Closing the client under it ends nothing but what the client did."""
        directory = self.directory()
        self.create("web1")
        self.fake.flush()
        self.successResultOf(self.client.close())
        self.fake.advance(60)
        self.assertEqual(self.ids(directory), ["web1"])
        self.assertGreater(directory.stale, 50)
