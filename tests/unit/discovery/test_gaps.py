"""EventsFeed: which events may be missing, and which may come a second time."""

from __future__ import annotations

import json
from typing import Any

from txserviceregistry import testing
from txserviceregistry.testing import FakeRegistry

from .feedcase import FeedTestCase

JSON = "application/json"
REFUSED = json.dumps(
    {
        "type": "badRequest",
        "code": 400,
        "message": "from parameter must be greater than or equal to the account creation date",
        "details": "from parameter must be greater than or equal to the account creation date",
    }
).encode()


class GapTests(FeedTestCase):
    """Gaps, absences and repetitions."""

    without = "event-stream"

    def setUp(self) -> None:
        super().setUp()
        # These tests take many hours.
        self.patch(testing, "_STEP", 60.0)

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

    def test_otherTypes(self) -> None:
        """A feed of other types than those of version 1.0 begins without a gap, and gets what happens from then on."""
        self.happen()
        self.successResultOf(self.other.services.create("web1", 120))
        self.successResultOf(self.other.services.update("web1", {"tags": ["a"]}))
        updates = self.makeFeed(types=["service.update"])
        updates.onEvent(self.delivered.append)
        updates.startService()
        self.addCleanup(self.end, updates)
        self.fake.advance(1)
        self.assertEqual(self.delivered, [])
        feed = self.makeFeed(types=["lock.acquire"])
        feed.onGap(lambda: self.fail("there was none"))
        feed.onEvent(self.delivered.append)
        feed.startService()
        self.addCleanup(self.end, feed)
        self.fake.advance(1)
        self.successResultOf(self.other.locks.acquire("/tests/lock"))
        self.fake.advance(60)
        self.assertEqual([event["type"] for event in self.delivered], ["lock.acquire"])

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

    def test_anExpiredEventIsNotAGap(self) -> None:
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
            self.fake.advance(2 * 3600)
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
        self.fake.advance(2 * 3600)
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
