"""The event stream of a client, and what subscribers do where there is none."""

from __future__ import annotations

from itertools import product
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone

from txserviceregistry import Client
from txserviceregistry.api.events import EventStream
from txserviceregistry.clock import SuspendWatch
from txserviceregistry.discovery import ConfigurationWatcher, EventsFeed
from txserviceregistry.discovery.poller import FIRST_PING, IDLE_TIMEOUT, RETRY

from .directorycase import DirectoryTestCase


class StreamTests(DirectoryTestCase):
    """Directories and others over one stream."""

    def requests(self, since: int = 0) -> list[str]:
        """The kinds of requests for events, in order."""
        kinds = []
        for request in self.fake.requests[since:]:
            path, _, query = request.path.partition("?")
            if "/events" in path:
                kinds.append("stream" if path.endswith("stream") else "wait" if "wait=" in query else "read")
        return kinds

    def update(self, id: str, **fields: Any) -> None:
        self.successResultOf(self.other.services.update(id, fields))
        self.fake.flush()

    def test_aLostPositionIsReportedOnce(self) -> None:
        """A feed reports a loss of data once, however many requests, streams and subscribers notice it."""
        for isEventful, isAlone, seconds in product((True, False), (True, False), (0, 3, 30)):
            feed = EventsFeed(self.client, wallClock=self.fake.wallClock, random=lambda: 1.0)
            gaps: list[int] = []
            feed.onGap(lambda gaps=gaps: gaps.append(1))
            feed.startService()
            # It tries again before the feed does.
            beside = None if isAlone else self.directory()
            self.fake.advance(1)
            for count in (1, 2, 3):
                if isEventful:
                    self.successResultOf(self.other.configuration.set("key", str(count)))
                    self.fake.advance(5)
                with capturedLogs() as events:
                    self.fake.stop()
                    self.fake.advance(seconds)
                    self.fake.start(keepData=False)
                    self.fake.advance(100)
                lines = [str(formatEvent(event)) for event in events]
                logged = sum(line.endswith("events may be missing") for line in lines)
                self.assertEqual((len(gaps), logged), (count, 1), (isEventful, isAlone, seconds))
            for service in filter(None, (feed, beside)):
                self.successResultOf(service.stopService())

    def test_theLastHourIsRequestedOnce(self) -> None:
        """A client that does not know yet which types of events there are reads the page of the last hour once."""
        self.successResultOf(self.other.configuration.set("key", "value"))
        began = len(self.fake.requests)
        self.directory()
        paths = [request.path for request in self.fake.requests[began:] if "/events?" in request.path]
        self.assertEqual(["marker=" in path for path in paths], [False, True])

    def test_oneStreamForAll(self) -> None:
        """All subscribers of a client share one stream, and nothing else is requested; it ends with the last one."""
        directory = self.directory()
        watcher, feed = ConfigurationWatcher(self.client), EventsFeed(self.client, wallClock=self.fake.wallClock)
        events: list[str] = []
        feed.onEvent(lambda event: events.append(event["type"]))
        for service in (watcher, feed):
            service.startService()
        self.fake.flush()
        began = len(self.fake.requests)
        for number in range(5):
            self.create(f"web{number}")
            self.successResultOf(self.other.configuration.set("key", str(number)))
            self.fake.flush()
            self.assertEqual((len(directory.services()), watcher["key"]), (number + 1, str(number)))
        self.assertEqual(events, ["service.join", "configuration_value.update"] * 5)
        self.fake.advance(60)
        self.assertEqual(self.requests(began), [])
        self.assertEqual(self.requests().count("stream"), 1)
        for service in (watcher, feed, directory):
            self.successResultOf(service.stopService())
        self.fake.advance(1)
        self.create("web9")
        self.assertEqual(self.requests(began), [])

    def test_updatesAreSeenAtOnce(self) -> None:
        """An update is seen as it happens, also by directories of the service's old and new tags, and by feeds."""
        self.create("web1", tags=["a"])
        everything, a, b = self.directory(), self.directory("a"), self.directory("b")
        feed = EventsFeed(self.client, types=["service.update"], wallClock=self.fake.wallClock)
        events: list[Any] = []
        feed.onEvent(events.append)
        feed.startService()
        self.addCleanup(feed.stopService)
        self.fake.flush()
        self.changes.clear()
        self.update("web1", tags=["b"], metadata={"port": "80"})
        self.assertEqual([service["metadata"] for service in everything.services()], [{"port": "80"}])
        self.assertEqual((self.ids(a), self.ids(b)), ([], ["web1"]))
        self.assertEqual(sorted(self.changes), [("join", "web1"), ("remove", "web1"), ("update", "web1")])
        self.assertEqual([event["payload"]["changed"] for event in events], [["tags", "metadata"]])

    def test_aSafetyNet(self) -> None:
        """If updates are events, everything is listed again only every ten minutes."""
        self.create("web1")
        self.directory()
        began = len(self.fake.requests)
        self.fake.advance(470)
        self.assertEqual([request.path for request in self.fake.requests[began:]], [])
        self.fake.advance(140)
        listings = [request.path for request in self.fake.requests[began:] if "/services" in request.path]
        self.assertEqual(len(listings), 1)

    def test_goesOnAfterTheLastEvent(self) -> None:
        """A stream that breaks continues where it was: nothing is missed, and nothing is listed again."""
        directory = self.directory()
        self.create("web1")
        self.fake.advance(1)
        began = len(self.fake.requests)
        self.client.events.closeStreams()
        self.create("web2")
        self.fake.advance(1)
        self.create("web3")
        self.fake.flush()
        self.assertEqual(self.ids(directory), ["web1", "web2", "web3"])
        self.assertNotIn(
            "/v1.0/1/services", [request.path for request in self.fake.requests[began:] if not request.body]
        )
        self.assertEqual(self.requests(began).count("stream"), 1)

    def test_aSlowListener(self) -> None:
        """Events that the stream brings while a listener is busy come afterwards, each once and in order."""
        feed = EventsFeed(self.client, wallClock=self.fake.wallClock)
        busy: list[Deferred[None]] = []
        seen: list[str] = []

        async def listen(event: Any) -> None:
            seen.append(event["payload"]["new_value"])
            busy.append(Deferred())
            await busy[-1]

        feed.onEvent(listen)
        feed.startService()
        self.fake.advance(1)
        for number in range(6):
            self.successResultOf(self.other.configuration.set("key", str(number)))
            self.fake.flush()
            if number in (1, 4):
                busy[-1].callback(None)
                self.fake.flush()
        while len(seen) < 6:
            busy[-1].callback(None)
            self.fake.flush()
        busy[-1].callback(None)
        self.successResultOf(self.other.configuration.set("key", "6"))
        self.fake.flush()
        self.assertEqual(seen, [str(number) for number in range(7)])
        busy[-1].callback(None)
        self.fake.advance(30)
        self.assertEqual(len(seen), 7)
        self.successResultOf(feed.stopService())

    def test_noPing(self) -> None:
        """A stream without a ping, as behind a proxy that collects responses, is given up until ten minutes later."""
        proxy = _Collecting(self.fake.agent)
        client = Client(
            self.fake.username, self.fake.apiKey, baseUrl=self.fake.url, agent=proxy, reactor=self.fake.clock
        )
        directory = self.directory(client=client)
        self.fake.advance(FIRST_PING + 1)
        self.assertEqual(proxy.cancelled, 1)
        began = len(self.fake.requests)
        self.create("web1")
        self.fake.flush()
        self.assertEqual(self.ids(directory), ["web1"])
        self.fake.advance(RETRY - 60)
        self.assertIn("wait", self.requests(began))
        self.assertEqual(proxy.cancelled, 1)
        proxy.collects = False
        self.fake.advance(120)
        self.assertIn("stream", self.requests(began))
        began = len(self.fake.requests)
        self.create("web2")
        self.fake.advance(60)
        self.assertEqual((self.ids(directory), self.requests(began)), (["web2"], []))

    def test_tooManyStreams(self) -> None:
        """A registry that has no place for a stream is asked with requests that wait."""
        self.fake.answerNext(
            503, b"{}", "application/json", headers={"Retry-After": "5"}, when=lambda request: "stream" in request.path
        )
        directory = self.directory()
        self.fake.advance(1)
        self.create("web1")
        self.fake.flush()
        self.assertEqual(self.ids(directory), ["web1"])
        self.assertIn("wait", self.requests())

    def test_silence(self) -> None:
        """A connection on which nothing comes for 35 s is dead; the age of the copy counts from the last byte."""
        directory = self.directory()
        self.fake.advance(20)
        self.fake.partition()
        self.fake.advance(IDLE_TIMEOUT - 6)
        self.assertEqual(directory.stale, 0.0)
        self.fake.advance(60)
        self.assertGreater(directory.stale, 70)
        began = len(self.fake.requests)
        self.fake.heal()
        self.create("web1")
        self.fake.advance(15)
        self.assertEqual((self.ids(directory), directory.stale), (["web1"], 0.0))
        self.assertIn("stream", self.requests(began))

    def test_aReset(self) -> None:
        """When the registry says that events may be missing, everything is listed again, also where none was known."""
        for id in ("web1", "web2"):
            directory = self.directory()
            self.create(id)
            self.fake.advance(200)
            self.assertEqual(self.ids(directory), [])
            self.create(id)
            self.fake.advance(4)
            self.fake.restart(keepData=False)
            self.fake.advance(70)
            self.assertEqual((self.ids(directory), directory.stale), ([], 0.0))
            self.successResultOf(directory.stopService())

    def test_malformedEvents(self) -> None:
        """A stream with something else than events is not read on."""
        body = b"id: 11111111-1111-1111-8111-111111111111\nevent: ping\ndata: {}\n\n"
        body += b"id: 21111111-1111-1111-8111-111111111111\nevent: service.join\ndata: nonsense\n\n"
        self.fake.answerNext(200, body, "text/event-stream", when=lambda request: "stream" in request.path)
        directory = self.directory()
        self.create("web1")
        self.fake.advance(10)
        self.assertEqual(self.ids(directory), ["web1"])

    def test_theClientIsClosed(self) -> None:
        """Nothing of a stream is left when its client is closed."""
        directory = self.directory()
        self.fake.advance(20)
        self.successResultOf(self.client.close())
        self.fake.advance(60)
        self.assertGreater(directory.stale, 50)
        self.successResultOf(directory.stopService())
        self.successResultOf(self.other.close())
        self.fake.advance(1)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_otherTypesHaveTheirOwnStream(self) -> None:
        """A feed of types that few subscribers want does not burden the others."""
        self.directory()
        feed = EventsFeed(self.client, types=["lock.acquire"], wallClock=self.fake.wallClock)
        feed.startService()
        self.addCleanup(feed.stopService)
        self.fake.advance(1)
        paths = [request.path for request in self.fake.requests if "stream" in request.path]
        self.assertEqual(["lock" in path for path in paths], [False, True])


class _Collecting:
    """A proxy that sends a response only when it is whole, which a stream never is."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.collects = True
        self.cancelled = 0

    def request(self, method: bytes, uri: bytes, *rest: Any) -> Deferred[Any]:
        if b"stream" not in uri or not self.collects:
            return self.agent.request(method, uri, *rest)  # type: ignore[no-any-return]
        return Deferred(self._cancel)

    def _cancel(self, request: Deferred[Any]) -> None:
        self.cancelled += 1


class _Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, str]] = []
        self.ends = 0

    def received(self) -> None:
        pass

    def happened(self, type: str, id: str | None, data: str) -> None:
        self.heard.append((type, id, data))

    def ended(self) -> None:
        self.ends += 1


class ParserTests(SynchronousTestCase):
    """The parts of a stream."""

    @given(st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(1, 40), max_size=30))
    def test_howeverItIsCut(self, end: str, cuts: list[int]) -> None:
        """Ends of lines of all kinds, comments and unknown fields, in pieces of any size."""
        text = ": hi\nretry: 2000\n\nid: 1\nevent: a\ndata: {}\n\nevent:b\ndata: x\ndata:  y\nother: z\n\n"
        text += ": ping\n\ndata: é\n\nid: 9\n\n"
        listener = _Listener()
        response: Any = _Response()
        stream = EventStream(succeed(response), listener, SuspendWatch(Clock()), lambda stream: None)
        left = text.replace("\n", end).encode()
        for cut in cuts:
            stream.dataReceived(left[:cut])
            left = left[cut:]
        stream.dataReceived(left)
        # The last end of a line may be half of one.
        stream.dataReceived(b": more\n")
        expected = [("a", "1", "{}"), ("b", None, "x\n y"), ("message", None, "é")]
        self.assertEqual(listener.heard, expected)
        stream.connectionLost(Failure(ResponseDone()))
        self.assertEqual((listener.ends, stream.isOpen), (1, False))

    def test_anEventWithoutEnd(self) -> None:
        """Endless data are not kept: neither a line nor an event of many lines."""
        for part, count in ((b"data: " + b"x" * 100_000, 20), (b"data: x\n" * 100, 2000), (b"id: 1\n" * 100, 2000)):
            listener = _Listener()
            response: Any = _Response()
            stream = EventStream(succeed(response), listener, SuspendWatch(Clock()), lambda stream: None)
            for _ in range(count):
                stream.dataReceived(part)
            self.assertEqual((listener.heard, listener.ends, response.aborted), ([], 1, 1), part[:10])

    def test_closedBeforeItsResponse(self) -> None:
        """A stream that is closed while it is being opened cancels its request."""
        listener = _Listener()
        request: Deferred[Any] = Deferred()
        stream = EventStream(request, listener, SuspendWatch(Clock()), lambda stream: None)
        stream.close()
        self.assertEqual((request.called, listener.ends), (True, 0))


class _Response:
    aborted = 0

    def deliverBody(self, protocol: Any) -> None:
        pass

    def abort(self) -> None:
        self.aborted += 1
