"""EventsFeed: each event once and in order."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import capturedLogs, formatEvent

from txserviceregistry.discovery import EventsFeed, poller

from .feedcase import FeedTestCase


class FeedTests(FeedTestCase):
    """Delivery, and starting and stopping, over requests that wait."""

    without = "event-stream"

    def test_fromNowOn(self) -> None:
        """Without a marker only what happens from the start on, at once and in order."""
        self.happen(2)
        self.feed()
        self.happen(3)
        self.assertEqual(self.numbers(), [3, 4, 5])
        self.assertNotIn("redelivered", self.delivered[0])

    def test_fromAMarker(self) -> None:
        """With a marker that event comes first."""
        self.happen()
        marker = self.lastId()
        self.happen(2)
        self.feed(marker)
        self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3, 4])

    def test_pages(self) -> None:
        """More than a page, many of the same moment: none is lost and none comes twice."""
        self.patch(poller, "PAGE", 100)
        self.happen()
        marker = self.lastId()
        self.happen(210)
        self.feed(marker)
        self.happen(5)
        self.assertEqual(self.numbers(), list(range(1, 217)))

    def test_typesAreSeveral(self) -> None:
        """One string in the place of the types is refused at once: its characters are not types."""
        wrong = self.assertRaises(TypeError, EventsFeed, self.client, types="service.join")
        self.assertIn("a list of strings, such as ['service.join']", str(wrong))

    def test_throughFaults(self) -> None:
        """With any failures meanwhile, each event comes once."""
        self.feed()
        for failing in (
            lambda: self.fake.failNext(503, 2),
            lambda: self.fake.truncateNext(2),
            lambda: self.fake.garbageNext(2),
            lambda: self.fake.dropNext(2),
            lambda: self.fake.loseNext(2),
            self.fake.purgeTokens,
            self.fake.restart,
        ):
            self.happen(2)
            failing()
            self.fake.advance(40)
            self.happen(1)
            self.fake.advance(20)
        self.assertEqual(self.numbers(), list(range(1, 22)))

    def test_theRegistryAway(self) -> None:
        """After an outage of an hour, the events of that time are delivered."""
        self.feed()
        self.happen()
        self.fake.partition()
        self.fake.advance(3600)
        self.fake.heal()
        self.happen()
        self.fake.advance(40)
        self.assertEqual(self.numbers(), [1, 2])

    def test_aListenerThatRaises(self) -> None:
        """It stops neither the feed nor the others."""
        feed = self.feed(listener=lambda event: 1 / 0)
        feed.onEvent(self.delivered.append)
        self.happen(2)
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_aListenerThatRaisesNoException(self) -> None:
        """SystemExit does not stop the feed either, nor does a cancelled asyncio task; that is not logged."""
        for error, logged in ((SystemExit(), 2), (asyncio.CancelledError(), 0)):
            feed = self.feed(listener=lambda event, error=error: fail(error))
            feed.onEvent(self.delivered.append)
            self.happen(2)
            self.assertEqual(len(self.flushLoggedErrors(SystemExit)), logged)
            self.end(feed)
        self.assertEqual(self.numbers(), [1, 2, 3, 4])

    def test_stopsAnAsyncioTask(self) -> None:
        """A stop cancels the work of a listener, which may fail with asyncio's own CancelledError."""
        feed = self.feed(listener=lambda event: Deferred(lambda work: work.errback(asyncio.CancelledError())))
        self.happen(1)
        self.end(feed)

    def test_waitsForListeners(self) -> None:
        """The next event comes when all listeners have finished with the last one, coroutines included."""
        gates: list[Deferred[None]] = []

        async def slow(event: Any) -> None:
            self.delivered.append(event)
            gate: Deferred[None] = Deferred()
            gates.append(gate)
            await gate

        self.feed(listener=slow)
        self.happen(2)
        self.assertEqual(self.numbers(), [1])
        gates[0].callback(None)
        self.assertEqual(self.numbers(), [1, 2])
        gates[1].callback(None)
        self.happen()
        gates[2].callback(None)
        self.assertEqual(self.numbers(), [1, 2, 3])

    def test_acrossARestart(self) -> None:
        """With a file nothing is missed, and events that may come a second time are marked."""
        path = self.mktemp()
        feed = self.feed(path=path)
        self.happen(2)
        self.successResultOf(feed.stopService())
        self.happen(2)
        again = self.feed(path=path)
        self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3, 4, 5])
        self.assertFalse(any(event.get("redelivered") for event in self.delivered))
        self.successResultOf(again.stopService())

    def test_acrossACrash(self) -> None:
        """Events that were being delivered when the process crashed come again, and are marked."""
        path = self.mktemp()
        self.happen()
        marker = self.lastId()
        self.happen(2)
        never: Deferred[None] = Deferred()
        crashed = self.makeFeed(marker, path=path)
        crashed.onEvent(lambda event: never)
        crashed.startService()
        self.fake.flush()
        kept = Path(path).read_bytes()
        never.callback(None)
        self.end(crashed)
        # That is how the file was when it crashed.
        Path(path).write_bytes(kept)
        self.happen()
        self.feed(path=path)
        self.assertEqual(self.numbers(), [1, 2, 3, 4])
        self.assertEqual([event.get("redelivered", False) for event in self.delivered], [True, True, True, False])

    def test_stoppedInTheMiddleOfAPage(self) -> None:
        """Finished events do not come again; the one in progress does, and is marked."""
        path = self.mktemp()
        gates: list[Deferred[None]] = []

        def wait(event: Any) -> Deferred[None]:
            gates.append(Deferred())
            return gates[-1]

        self.happen()
        first = self.lastId()
        self.happen(3)
        feed = self.makeFeed(first, path=path)
        feed.onEvent(wait)
        feed.startService()
        gates[0].callback(None)
        gates[1].callback(None)
        self.end(feed)
        self.feed(path=path)
        self.assertEqual(self.numbers(), [3, 4])
        self.assertEqual([event.get("redelivered", False) for event in self.delivered], [True, False])

    def test_iterates(self) -> None:
        """An event is finished when the next one is requested; dropped iterators delay no listener."""
        feed = self.feed()
        seen: list[Any] = []

        async def take(count: int) -> None:
            async for event in feed:
                seen.append(int(event["payload"]["new_value"]))
                if len(seen) == count:
                    return

        taken = Deferred.fromCoroutine(take(2))
        self.happen()
        self.assertEqual(seen, [1])
        self.happen()
        self.successResultOf(taken)
        self.happen(2)
        self.assertEqual((seen, self.numbers()), ([1, 2], [1, 2, 3, 4]))

        ended = Deferred.fromCoroutine(take(100))
        self.happen()
        self.successResultOf(feed.stopService())
        self.successResultOf(ended)
        self.assertEqual(seen, [1, 2, 5])

    def test_stoppedWhileAnIteratorHasAnEvent(self) -> None:
        """The event comes again, and is marked, when the feed is started again."""
        feed = self.feed(listener=lambda event: None)

        async def take() -> Any:
            return await anext(events)

        events = aiter(feed)
        feed.onEvent(self.delivered.append)
        taken = Deferred.fromCoroutine(take())
        self.happen(2)
        self.assertEqual(self.successResultOf(taken)["payload"]["new_value"], "1")
        self.successResultOf(feed.stopService())
        self.failureResultOf(Deferred.fromCoroutine(take()), StopAsyncIteration)
        self.assertEqual(self.delivered, [])
        feed.startService()
        self.fake.flush()
        self.assertEqual(self.numbers(), [1, 2])
        self.assertEqual([event.get("redelivered", False) for event in self.delivered], [True, False])

    def test_stoppedByAListener(self) -> None:
        """A listener may stop the feed; the event is finished then."""
        path = self.mktemp()
        stopped: list[Deferred[None]] = []

        def stop(event: Any) -> None:
            self.delivered.append(event)
            stopped.append(feed.stopService())

        feed = self.feed(path=path, listener=stop)
        self.happen(3)
        self.assertEqual(self.numbers(), [1])
        self.successResultOf(stopped[0])
        self.feed(path=path)
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assertFalse(self.delivered[1].get("redelivered", False))

    def test_stoppedWithinALoop(self) -> None:
        """The loop over a feed ends when it is stopped, also from within the loop."""
        feed = self.feed()
        seen: list[int] = []

        async def iterate() -> None:
            async for event in feed:
                seen.append(int(event["payload"]["new_value"]))
                await feed.stopService()

        done = Deferred.fromCoroutine(iterate())
        self.happen(2)
        self.fake.advance(4)
        self.successResultOf(done)
        self.assertEqual(seen, [1])

    def test_stoppingIsBounded(self) -> None:
        """A listener that does not end is cancelled after three seconds, and its event comes again."""
        path = self.mktemp()
        cancelled: list[Any] = []
        never: Deferred[None] = Deferred(cancelled.append)
        feed = self.feed(path=path, listener=lambda event: never)
        self.happen()
        stopped = feed.stopService()
        self.fake.advance(2.9)
        self.assertNoResult(stopped)
        self.fake.advance(0.5)
        self.successResultOf(stopped)
        self.assertEqual(cancelled, [never])
        self.feed(path=path)
        self.assertEqual(self.numbers(), [1])
        self.assertTrue(self.delivered[0]["redelivered"])

    def test_stoppingLeavesNothing(self) -> None:
        """At any moment."""
        for prepare in (lambda: None, self.fake.partition, self.fake.heal, self.fake.stop):
            feed = self.feed()
            prepare()
            self.fake.advance(7)
            self.successResultOf(feed.stopService())
            self.successResultOf(feed.stopService())
        self.fake.start()
        for client in (self.client, self.other):
            self.successResultOf(client.close())
        self.fake.advance(70)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_theLogOfOutages(self) -> None:
        """Each outage has one line when it begins and one as soon as it ends, also if no event comes after it."""
        self.feed()
        with capturedLogs() as events:
            for away in (60, 20):
                self.fake.stop()
                self.fake.advance(away)
                self.fake.start()
                self.fake.advance(50)
        lines = [str(formatEvent(event)) for event in events]
        lines = [line.split(": ")[0] for line in lines if line.startswith("Event feed")]
        self.assertEqual(
            [line.split(" after ")[0] for line in lines],
            ["Event feed unreachable (retrying)", "Event feed reachable again"] * 2,
        )
        for line, away in zip(lines[1::2], (60, 20), strict=True):
            seconds = float(line.split(" after ")[1].removesuffix(" s"))
            # It is tried every ten seconds at the latest.
            self.assertTrue(away - 2 < seconds < away + 11, line)
        self.assertEqual(self.delivered, [])

    def test_damagedFiles(self) -> None:
        """They are logged, each in a short line, and ignored."""
        self.happen()
        texts = ["", "[]", "{", "[" * 100_000]
        for marker in (1, [], "\ud800", "x" * 100_000):
            texts.append(json.dumps({"marker": marker, "begins": False, "given": None, "quietAt": None}))
            texts.append(json.dumps({"marker": None, "begins": False, "given": marker, "quietAt": None}))
        with capturedLogs() as events:
            for text in texts:
                path = Path(self.mktemp())
                path.write_text(text)
                self.feed(path=path)
        lines = [str(formatEvent(event)).split(" ignored: ")[1] for event in events]
        self.assertEqual((len(lines), max(map(len, lines)) <= 200), (len(texts), True))
        self.happen()
        self.assertEqual(self.numbers(), [2] * len(texts))
        self.feed(path="/proc/nothing/here")
        self.happen()
        self.assertEqual(self.numbers(), [2] * len(texts) + [3] * (len(texts) + 1))
