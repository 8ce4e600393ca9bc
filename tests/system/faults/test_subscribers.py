"""Rows 24 to 27: responses that could mislead or stop subscribers."""

from __future__ import annotations

import json
import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakeagent import Proxy
from txserviceregistry import Client
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.testing import FakeRegistry, Request

from .faultcase import Figures

JSON = "application/json"


def isQuery(request: Request) -> bool:
    return request.method == "GET"


class SubscriberCase(Figures, SynchronousTestCase):
    """A directory, a watcher and an event feed, over a registry in memory."""

    retention = 30 * 86_400.0

    def setUp(self) -> None:
        self.fake = FakeRegistry(eventRetention=self.retention)
        # Over an event stream there are no responses that could mislead; this is what they fall back to.
        client = Client(
            self.fake.username,
            self.fake.apiKey,
            baseUrl=self.fake.url,
            agent=Proxy(self.fake.agent, without="event-stream"),
            reactor=self.fake.clock,
        )
        self.other = self.fake.client(cache=None)
        self.directory = Directory(client, random=lambda: 0.5)
        self.watcher = ConfigurationWatcher(client, random=lambda: 0.5)
        self.feed = EventsFeed(client, random=lambda: 0.5, wallClock=self.fake.wallClock)
        self.events: list[Any] = []
        self.gaps = 0
        self.feed.onEvent(self.events.append)
        self.feed.onGap(self.gap)
        self.changes = 0

    def gap(self) -> None:
        self.gaps += 1

    def start(self) -> None:
        for one in (self.directory, self.watcher, self.feed):
            one.startService()
            self.addCleanup(one.stopService)
        self.fake.flush()

    def change(self) -> None:
        """Change a value, which is an event."""
        self.changes += 1
        self.successResultOf(self.other.configuration.set("key", str(self.changes)))

    def assertCurrent(self) -> None:
        """All three have what the registry has, and each event came once."""
        self.assertEqual((self.directory.stale, self.watcher.stale), (0.0, 0.0))
        self.assertEqual(dict(self.watcher), {"key": str(self.changes)})
        values = [event["payload"]["new_value"] for event in self.events]
        self.assertEqual(values, [str(number + 1) for number in range(self.changes)])
        self.assertEqual([event for event in self.events if event.get("redelivered")], [])
        self.assertEqual(self.gaps, 0)


class MalformedTests(SubscriberCase):
    """Malformed responses with status 200."""

    row = 24
    fault = "Malformed responses with status 200"

    def test_goOn(self) -> None:
        """The three retry, and miss nothing."""
        bodies: list[Any] = [
            {"values": [{"id": "x"}], "metadata": {"next_marker": None}},
            {"values": 7, "metadata": {}},
            {"values": [], "metadata": {"next_marker": "x"}},
            {"values": [None], "metadata": {"next_marker": None}},
            {"values": [{"id": 10**400, "heartbeat_timeout": math.inf}], "metadata": {"next_marker": None}},
            [],
        ]
        self.start()
        rounds = 20 if self.isFull else 1
        for _ in range(rounds):
            for body in bodies:
                self.fake.answerNext(200, json.dumps(body).encode(), JSON, count=4, when=isQuery)
                self.change()
                self.fake.advance(60)
                self.change()
                self.fake.advance(1)
                self.assertCurrent()
        self.tell("responses", rounds * len(bodies) * 4)
        self.tell("events missed or delivered twice", 0)


class ForeignRefusalTests(SubscriberCase):
    """A proxy that answers 400."""

    row = 25
    fault = "A proxy responds to requests for events with a 400 of its own"

    def test_keepTheirPlace(self) -> None:
        """No gap is reported, and no event is delivered twice."""
        pages = [
            (b"<h1>Bad Request</h1>", "text/html"),
            (b'{"type": "about:blank", "title": "Bad Request"}', "application/problem+json"),
            (b'{"type": "invalidLimit", "code": 400, "message": "Invalid limit"}', JSON),
        ]
        self.start()
        rounds = 20 if self.isFull else 1
        for _ in range(rounds):
            for body, kind in pages:
                self.change()
                self.fake.answerNext(400, body, kind, count=4, when=isQuery)
                self.fake.advance(60)
                self.change()
                self.fake.advance(1)
                self.assertCurrent()
        self.tell("responses", rounds * len(pages) * 4)
        self.tell("gaps reported, events delivered twice", 0)


class QuietTests(SubscriberCase):
    """An account in which nothing happens."""

    row = 26
    fault = "A quiet account's last event is removed because of its age"
    retention = 5400.0

    def test_noGap(self) -> None:
        """No gap is reported to a connected subscriber, and it gets the next event."""
        self.start()
        times = 10 if self.isFull else 1
        for _ in range(times):
            self.change()
            self.fake.advance(3 * 3600)
            marker = self.events[-1]["id"]
            self.assertEqual(self.successResultOf(self.other.events.list(marker))["values"], [])
        self.change()
        self.fake.advance(1)
        self.assertCurrent()
        self.tell("removals", times)
        self.tell("gaps reported", 0)


class RetryAfterTests(SubscriberCase):
    """A registry that sends Retry-After."""

    row = 27
    fault = "rateLimitReached with Retry-After: inf, nan, 1e308, 10^400, or negative"

    def test_tryAgain(self) -> None:
        """The three retry within an hour."""
        self.start()
        fault = json.dumps({"type": "rateLimitReached", "code": 400, "message": "Rate limit has been reached."})
        longest = 0.0
        for said in ("inf", "nan", "1e308", "-1", "1" + "0" * 400):
            self.change()
            headers = {"Retry-After": said}
            self.fake.answerNext(400, fault.encode(), JSON, headers=headers, count=3, when=isQuery)
            self.fake.advance(31)
            began = self.fake.clock.seconds()
            while self.directory.stale or self.watcher.stale:
                self.assertLess(self.fake.clock.seconds() - began, 3700.0, said)
                self.fake.advance(30)
            longest = max(longest, self.fake.clock.seconds() - began)
            self.change()
            self.fake.advance(3700)
            self.fake.answerNormally()
            self.assertCurrent()
        self.tell("longest wait, s", round(longest))
