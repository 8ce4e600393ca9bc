"""EventPoller: the requests of subscribers, and what they return."""

from __future__ import annotations

import gc
import json
from typing import Any
from weakref import ref

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakeagent import Proxy
from tests.unit.garbage import collectOnlyNew
from txserviceregistry import Client
from txserviceregistry.discovery import Directory, EventsFeed, poller
from txserviceregistry.discovery.poller import Cursor, EventPoller, Page, StaleCursor, pollerOf
from txserviceregistry.errors import MalformedResponse
from txserviceregistry.testing import FakeRegistry


class PollerTests(SynchronousTestCase):
    """Over a registry in memory, without a stream unless there is a subscriber."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client()
        self.poller = pollerOf(self.client)
        self.count = 0

    def change(self) -> None:
        self.count += 1
        self.successResultOf(self.other.configuration.set("key", str(self.count)))

    def happen(self) -> str:
        """An event; its id."""
        self.change()
        self.fake.flush()
        events: list[Any] = self.successResultOf(self.other.events.list(limit=1000))["values"]
        id: str = events[-1]["id"]
        return id

    def after(self, position: Cursor) -> Deferred[Page]:
        result = self.poller.after(position)
        self.fake.flush()
        return result

    def waits(self, since: int) -> int:
        """How many requests waited for events."""
        return sum("wait=" in request.path for request in self.fake.requests[since:])

    def test_garbageWithTheClient(self) -> None:
        """The shared part of subscribers does not keep a client that is not used any more."""
        collectOnlyNew(self)
        client = self.fake.client()
        directory = Directory(client)
        directory.startService()
        self.fake.flush()
        self.successResultOf(directory.stopService())
        self.successResultOf(client.close())
        self.fake.advance(60)
        dropped = ref(client)
        del client, directory
        gc.collect()
        self.assertIsNone(dropped())

    def test_anotherCursor(self) -> None:
        """A subscriber that is behind gets the missing events at once."""
        first = Cursor(self.happen(), True)
        second = Cursor(self.happen(), True)
        waiting = self.after(second)
        behind = self.successResultOf(self.after(first))
        self.assertEqual([event["id"] for event in behind.events], [second.marker])
        self.assertNoResult(waiting)
        self.happen()
        self.successResultOf(waiting)

    def test_endOfABusyFeed(self) -> None:
        """If there is a stream, it shows the end of the feed; its last hour is not read."""
        self.patch(poller, "PAGE", 10)
        for _ in range(300):
            self.change()
        began = len(self.fake.requests)
        with self.poller.used():
            end = self.poller.end()
            self.fake.flush()
            found = self.successResultOf(end)
            self.assertLess(len(self.fake.requests) - began, 5)
            waiting = self.after(found)
            self.assertNoResult(waiting)
            new = self.happen()
            self.assertEqual([event["id"] for event in self.successResultOf(waiting).events], [new])

    def test_aResetSinceTheEnd(self) -> None:
        """A subscriber that has found the end, and no event, is told of a reset since."""
        using = self.poller.used()
        using.__enter__()
        self.addCleanup(using.__exit__, None, None, None)
        finding = self.poller.end()
        self.fake.advance(1)
        end = self.successResultOf(finding)
        waiting = self.after(end)
        self.assertTrue(self.poller.isLive)
        self.happen()
        self.successResultOf(waiting)
        self.fake.restart(keepData=False)
        self.fake.advance(60)
        reading = self.poller.read(Cursor())
        self.fake.advance(1)
        self.successResultOf(reading)
        self.assertTrue(self.poller.isLive)
        self.failureResultOf(self.after(end), StaleCursor)

    def test_cancelling(self) -> None:
        """A subscriber that cancels changes nothing for the others, and leaves nothing."""
        position = Cursor(self.happen(), True)
        one, two = self.after(position), self.after(position)
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.assertNoResult(two)
        two.cancel()
        self.failureResultOf(two, CancelledError)
        for client in (self.client, self.other):
            self.successResultOf(client.close())
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_aRefusedMarker(self) -> None:
        """A marker that the registry refuses fails for the subscribers at that place only."""
        good = Cursor(self.happen(), True)
        bad = Cursor("nonsense")
        refused = self.after(bad)
        self.failureResultOf(refused, StaleCursor)
        waiting = self.after(good)
        self.failureResultOf(self.after(bad), StaleCursor)
        self.assertNoResult(waiting)
        self.happen()
        self.successResultOf(waiting)

    def test_theEndOfTheFeed(self) -> None:
        """It is found over several pages; a registry that has lost its data has no such place."""
        self.patch(poller, "PAGE", 10)
        for _ in range(25):
            self.change()
        events: list[Any] = []
        end = self.successResultOf(self.poller.readToEnd(Cursor(), events))
        self.assertEqual((end.marker, len(events)), (events[-1]["id"], 25))
        self.fake.advance(1)
        self.fake.restart(keepData=False)
        self.happen()
        self.failureResultOf(self.poller.readToEnd(end, events), StaleCursor)

    def test_aPageFromBeforeTheMarker(self) -> None:
        """It is malformed: its events would come again and again."""
        self.happen()
        page = self.successResultOf(self.other.events.list())
        self.fake.advance(1)
        after = Cursor(self.happen(), True)
        self.fake.answerNext(200, json.dumps(page).encode(), "application/json")
        self.failureResultOf(self.poller.read(after), MalformedResponse)

    def test_nothingIsKeptWithoutSubscribers(self) -> None:
        """After a time without subscribers the registry is asked: it may have lost the events of the time before."""
        first = Cursor(self.happen(), True)
        with self.poller.used():
            waiting = self.after(first)
            self.happen()
            self.successResultOf(waiting)
        self.fake.restart(keepData=False)
        with self.poller.used():
            self.failureResultOf(self.after(first), StaleCursor)

    def test_manyEventsWithoutWaits(self) -> None:
        """If the registry can't wait, a full page is followed by the next one at once."""
        self.patch(poller, "PAGE", 10)
        agent = Proxy(self.fake.agent, isPlain=True)
        client = Client(
            self.fake.username, self.fake.apiKey, baseUrl=self.fake.url, agent=agent, reactor=self.fake.clock
        )
        feed = EventsFeed(client, self.happen())
        seen: list[Any] = []
        feed.onEvent(seen.append)
        feed.startService()
        self.fake.advance(12)
        self.assertEqual(len(seen), 1)
        for _ in range(95):
            self.change()
        self.fake.advance(5.5)
        self.assertEqual(len(seen), 96)
        self.successResultOf(feed.stopService())

    def test_nothingHappens(self) -> None:
        """While nothing happens, a request ends after half a minute, and the next one begins."""
        position = Cursor(self.happen(), True)
        waiting = self.after(position)
        began = len(self.fake.requests)
        self.fake.advance(300)
        self.assertNoResult(waiting)
        self.assertIn(self.waits(began), range(9, 12))
        self.happen()
        self.successResultOf(waiting)

    def test_aRegistryThatStops(self) -> None:
        """After an early response without events the next request comes a second later."""
        position = Cursor(self.happen(), True)
        waiting = self.after(position)
        began = len(self.fake.requests)
        self.fake.restart()
        self.fake.advance(0.9)
        self.assertLessEqual(len(self.fake.requests) - began, 1)
        self.fake.advance(3)
        self.happen()
        self.successResultOf(waiting)

    def test_refusedWaits(self) -> None:
        """
        If only requests that wait fail, at a proxy or for lack of capacity, there is a request every five seconds,
        and about every half minute one that waits.
        """
        proxy = Proxy(self.fake.agent, forwardsWaits=False)
        client = Client(
            self.fake.username, self.fake.apiKey, baseUrl=self.fake.url, agent=proxy, reactor=self.fake.clock
        )
        position = Cursor(self.happen(), True)
        waiting = EventPoller(client).after(position)
        began = len(self.fake.requests)
        self.fake.advance(300)
        self.assertNoResult(waiting)
        self.assertIn(len(self.fake.requests) - began, range(60, 90))
        self.assertIn(proxy.refused, range(9, 13))
        self.happen()
        self.fake.advance(5)
        self.successResultOf(waiting)

    def test_oneRefusedWait(self) -> None:
        """One request that fails, as when a server behind a load balancer restarts, delays events by 5 s at most."""
        position = Cursor(self.happen(), True)
        waiting = self.after(position)
        self.fake.dropNext(1)
        self.fake.advance(40)
        self.assertNoResult(waiting)
        self.happen()
        self.fake.advance(5)
        self.successResultOf(waiting)
