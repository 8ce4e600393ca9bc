"""EventsFeed: each event once and in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.feed import EventsFeed
from txserviceregistry.testing import FakeRegistry

JSON = "application/json"
REFUSED = json.dumps(
    {
        "type": "badRequest",
        "code": 400,
        "message": "from parameter must be greater than or equal to the account creation date",
        "details": "from parameter must be greater than or equal to the account creation date",
    }
).encode()


class FeedTests(SynchronousTestCase):
    """One feed, over a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client()
        self.delivered: list[Any] = []
        self.count = 0

    def feed(self, marker: str | None = None, listener: Any = None, **options: Any) -> EventsFeed:
        feed = self.makeFeed(marker, **options)
        feed.onEvent(listener or self.delivered.append)
        feed.startService()
        self.addCleanup(self.end, feed)
        self.fake.flush()
        return feed

    def makeFeed(self, marker: str | None = None, **options: Any) -> EventsFeed:
        return EventsFeed(self.client, marker, **{"random": lambda: 0.5, "wallClock": self.fake.wallClock, **options})

    def end(self, feed: EventsFeed) -> None:
        stopped = feed.stopService()
        self.fake.advance(4)
        self.successResultOf(stopped)

    def happen(self, times: int = 1) -> None:
        """So many events; the values count them."""
        for _ in range(times):
            self.count += 1
            self.successResultOf(self.other.configuration.set("key", str(self.count)))
        self.fake.flush()

    def numbers(self) -> list[int]:
        return [int(event["payload"]["new_value"]) for event in self.delivered]

    def lastId(self) -> str:
        events: list[Any] = []

        async def read() -> None:
            async for event in self.other.events.iterate():
                events.append(event)

        self.successResultOf(Deferred.fromCoroutine(read()))
        id: str = events[-1]["id"]
        return id

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
        self.happen()
        marker = self.lastId()
        self.happen(2100)
        self.feed(marker)
        self.happen(50)
        self.assertEqual(self.numbers(), list(range(1, 2152)))

    def test_throughFaults(self) -> None:
        """Whatever fails meanwhile, each event comes once."""
        self.feed()
        for fail in (
            lambda: self.fake.failNext(503, 2),
            lambda: self.fake.truncateNext(2),
            lambda: self.fake.garbageNext(2),
            lambda: self.fake.dropNext(2),
            lambda: self.fake.loseNext(2),
            self.fake.purgeTokens,
            self.fake.restart,
        ):
            self.happen(2)
            fail()
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

    def test_acrossALongAbsence(self) -> None:
        """With a file nothing is missed after an absence of hours, also if there was no event before."""
        path = self.mktemp()
        self.successResultOf(self.feed(path=path).stopService())
        self.happen(2)
        self.fake.advance(7200)
        again = self.feed(path=path)
        again.onGap(lambda: self.fail("there was none"))
        self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assertFalse(any(event.get("redelivered") for event in self.delivered))

    def test_anAbsenceWithWrongClocks(self) -> None:
        """If the clocks differ too much for that, a gap is reported."""
        path = self.mktemp()
        options: dict[str, Any] = {"path": path, "wallClock": lambda: 1800000000.0 + self.fake.clock.seconds()}
        self.successResultOf(self.feed(**options).stopService())
        self.happen(2)
        self.fake.advance(7200)
        again = self.makeFeed(**options)
        gaps: list[int] = []
        again.onGap(lambda: gaps.append(1))
        again.onEvent(self.delivered.append)
        again.startService()
        self.addCleanup(self.end, again)
        self.happen()
        self.assertEqual((self.numbers(), gaps), ([3], [1]))

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

    def test_aGap(self) -> None:
        """A registry that has lost its data is a gap, and its new events are delivered."""
        feed = self.feed()
        gaps: list[int] = []
        end = feed.onGap(lambda: gaps.append(len(self.delivered)))
        feed.onGap(lambda: 1 / 0)  # type: ignore[arg-type, return-value] # it raises
        self.happen(2)
        self.fake.advance(1)
        self.fake.restart(keepData=False)
        self.count = 10
        self.happen(2)
        self.fake.advance(40)
        self.assertEqual(self.numbers(), [1, 2, 11, 12])
        self.assertEqual(gaps, [2])
        end()
        end()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_aGapRightAfterTheLastEvent(self) -> None:
        """A registry that loses its data at the very moment of the last event is a gap too."""
        feed = self.feed()
        gaps: list[int] = []
        feed.onGap(lambda: gaps.append(len(self.delivered)))
        self.happen()
        self.fake.restart(keepData=False)
        self.happen()
        self.fake.advance(40)
        self.assertEqual((self.numbers(), gaps), ([1, 2], [1]))

    def test_aPageOfAProxy(self) -> None:
        """A 400 that is not a fault of the API is an outage: there is no gap, and no event comes twice."""
        feed = self.feed()
        feed.onGap(lambda: self.fail("there was none"))
        self.happen(2)
        for status, body, kind in (
            (400, b"<h1>Bad Request</h1>", "text/html"),
            (400, b'{"type": "about:blank", "title": "Bad Request"}', "application/problem+json"),
            (400, b'{"type": "badRequest", "code": 400, "message": "Validation error for key \'tags\'"}', JSON),
            (400, b'{"type": "invalidLimit", "code": 400, "message": "Invalid limit"}', JSON),
        ):
            self.fake.answerNext(status, body, kind, count=3)
            self.fake.advance(60)
            self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3, 4, 5, 6])
        self.assertFalse(any(event.get("redelivered") for event in self.delivered))

    def test_repetitionsAreMarked(self) -> None:
        """If the registry refuses the marker, exactly the events that may come a second time are marked."""
        for path in (None, self.mktemp()):
            self.delivered.clear()
            first = self.count + 1
            feed = self.feed(path=path)
            gaps: list[int] = []
            feed.onGap(lambda gaps=gaps: gaps.append(1))
            self.happen(3)
            if path is not None:
                self.successResultOf(feed.stopService())
            self.fake.answerNext(400, REFUSED, JSON, when=lambda request: "marker=" in request.path)
            if path is None:
                self.fake.advance(40)
            else:
                again = self.feed(path=path)
                again.onGap(lambda gaps=gaps: gaps.append(1))
                self.fake.advance(5)
            self.happen(2)
            again_ = self.numbers()[3:]
            self.assertEqual(again_, list(range(1, first + 5)))
            marked = [event.get("redelivered", False) for event in self.delivered]
            self.assertEqual(marked, [False] * 3 + [True] * (first + 2) + [False] * 2)
            self.end(feed)

    def forgetful(self) -> None:
        """A registry that keeps events for an hour and a half only, so that this needs no month."""
        self.fake = FakeRegistry(eventRetention=5400)
        self.client = self.fake.client()
        self.other = self.fake.client()

    def test_anExpiredEventIsNoGap(self) -> None:
        """A connected subscriber reports no gap when the last event is too old to be kept."""
        self.forgetful()
        path = self.mktemp()
        feed = self.feed(path=path)
        feed.onGap(lambda: self.fail("there was none"))
        self.happen(2)
        self.fake.advance(3 * 3600)
        self.assertEqual(self.successResultOf(self.other.events.list(self.delivered[0]["id"]))["values"], [])
        self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3])
        self.assertFalse(any(event.get("redelivered") for event in self.delivered))
        # Nor is there a gap after an absence of a few minutes at that time.
        self.fake.advance(5400 - 300)
        self.successResultOf(feed.stopService())
        self.fake.advance(900)
        again = self.feed(path=path)
        again.onGap(lambda: self.fail("there was none"))
        self.fake.advance(3600)
        self.happen()
        self.assertEqual(self.numbers(), [1, 2, 3, 4])

    def test_aLongAbsenceIsAGap(self) -> None:
        """A subscriber that was not connected for longer than events are kept reports a gap."""
        for isRunning in (True, False):
            self.forgetful()
            path = self.mktemp()
            gaps: list[int] = []
            feed = self.feed(path=path)
            feed.onGap(lambda gaps=gaps: gaps.append(1))
            self.happen()
            self.fake.advance(60)
            if isRunning:
                self.fake.partition()
            else:
                self.successResultOf(feed.stopService())
            self.fake.advance(4 * 3600)
            self.fake.heal()
            self.assertEqual(gaps, [])
            if not isRunning:
                feed = self.makeFeed(path=path)
                feed.onGap(lambda gaps=gaps: gaps.append(1))
                feed.startService()
            self.fake.advance(60)
            self.assertEqual(gaps, [1], isRunning)
            self.end(feed)

    def test_dataLostDuringAnAbsence(self) -> None:
        """
        If the registry refuses the position after a long absence, one gap is reported, and the last hour is delivered.
        """
        feed = self.feed()
        gaps: list[int] = []
        feed.onGap(lambda: gaps.append(len(self.delivered)))
        self.happen()
        self.fake.stop()
        self.fake.advance(4 * 3600)
        self.fake.start(keepData=False)
        self.happen(2)
        self.fake.advance(40)
        self.assertEqual((self.numbers(), gaps), ([1, 2, 3], [1]))

    def test_aLongAbsenceWithoutAnEvent(self) -> None:
        """Without a last event, an absence for longer than the protocol keeps events is a gap."""
        for days, expected in ((29, []), (31, [1])):
            path = self.mktemp()
            gaps: list[int] = []
            first = self.makeFeed(path=path)
            first.startService()
            self.fake.advance(60)
            self.end(first)
            late = days * 86400.0
            again = self.makeFeed(path=path, wallClock=lambda late=late: self.fake.wallClock() + late)
            again.onGap(lambda gaps=gaps: gaps.append(1))
            again.startService()
            self.fake.advance(60)
            self.end(again)
            self.assertEqual(gaps, expected, days)

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
        """Each outage has one line when it begins and one when it ends, also if no event comes after it."""
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
            self.assertTrue(away - 2 < seconds < away + 45, line)
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
