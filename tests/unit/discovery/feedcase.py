"""
A test case for the event feed, over a registry in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.fakeagent import Proxy
from txserviceregistry import Client
from txserviceregistry.discovery.feed import EventsFeed
from txserviceregistry.testing import FakeRegistry


class FeedTestCase(SynchronousTestCase):
    """
    One feed, and a client that makes events.

    :cvar without: an extension that the registry does not have.
    :ivar delivered: the events that the feed has delivered.
    """

    without = ""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = Client(
            self.fake.username,
            self.fake.apiKey,
            baseUrl=self.fake.url,
            agent=Proxy(self.fake.agent, without=self.without),
            reactor=self.fake.clock,
        )
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
