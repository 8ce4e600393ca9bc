"""
Tests for the extension ``event-stream``: events as they happen, on the wire.
"""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import patch

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.feed import PAGE, PING
from txserviceregistry.registry.http.connections import ConnectionLimits
from txserviceregistry.registry.stores.interfaces import StoreUnavailable

from .wire import Api, Connection, fired, requestBytes

STREAM = "/v1.0/1234/events/stream"


@attrs.frozen
class Sent:
    """A server-sent event."""

    type: str
    id: str | None
    data: Any


class Reader:
    """The client of a stream."""

    def __init__(
        self, api: Api, query: str = "", lastId: str | None = None, method: str = "GET", **headers: str
    ) -> None:
        self.connection = Connection(api)
        named = {"X-Auth-Token": api.token, **headers}
        if lastId is not None:
            named["Last-Event-ID"] = lastId
        self.connection.send(requestBytes(method, f"{STREAM}{query}", None, named))
        head, _, self._rest = self.connection.transport.value().partition(b"\r\n\r\n")
        self.connection.transport.clear()
        self.status = int(head.split(b" ")[1])
        self.head = head.decode("ascii").split("\r\n")[1:]

    def text(self) -> str:
        """The bytes that have come since the last time."""
        data, self._rest = self._rest + self.connection.transport.value(), b""
        self.connection.transport.clear()
        return data.decode("utf-8")

    def sent(self) -> list[Sent]:
        """The events that have come since the last time; without ``retry``, which is not one."""
        found = []
        for block in self.text().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            if "event" in fields:
                found.append(Sent(fields["event"], fields.get("id"), json.loads(fields["data"])))
        return found

    def events(self) -> list[tuple[str, str]]:
        """Types and services of what has come, without pings."""
        return [(each.type, each.data["payload"]["id"]) for each in self.sent() if each.type != "ping"]

    @property
    def isOpen(self) -> bool:
        return self.connection.isOpen


class StreamTests(SynchronousTestCase):
    """
    ``GET /events/stream``.
    """

    def setUp(self) -> None:
        self.api = Api()

    def lastEvent(self) -> Any:
        return self.api.ask("GET", "/events?types=all").json["values"][-1]

    def update(self, id: str, **fields: Any) -> None:
        self.api.ask("PUT", f"/services/{id}", fields)

    def test_begins(self) -> None:
        """
        The response has no length and ends with its connection. It begins with the delay for reconnecting and a ping
        with the position, and then has each event in the form of a page, on one line.
        """
        self.api.create("web1")
        last = self.lastEvent()
        reader = Reader(self.api)
        self.assertEqual(reader.status, 200)
        lines = [line for line in reader.head if not line.startswith(("Date", "X-R", "X-S", "Reply"))]
        expected = ["Cache-Control: no-store", "Connection: close", "Content-Type: text/event-stream"]
        self.assertEqual(sorted(lines), [*expected, "X-Accel-Buffering: no"])
        self.assertIn("X-Ratelimit-Used: 1", reader.head)
        self.assertEqual(reader.text(), f"retry: 2000\n\nid: {last['id']}\nevent: ping\ndata: {{}}\n\n")
        self.api.create("web2", metadata={"a": "b\nc\u2028", "d": "é"})
        event = self.lastEvent()
        text = reader.text()
        self.assertEqual(text.split("\n")[:2], [f"id: {event['id']}", "event: service.join"])
        self.assertEqual(json.loads(text.split("\n")[2].removeprefix("data: ")), event)
        self.assertTrue(text.endswith("\n\n"))
        self.assertTrue(reader.isOpen)

    def test_sharesTheStoresAnswer(self) -> None:
        """Streams that begin together wait for one answer of the store; a client may have left before it comes."""
        held = self.api.held.hold("lastEvent")
        connections = [Connection(self.api) for _ in range(3)]
        for each in connections:
            each.send(requestBytes("GET", STREAM, None, {"X-Auth-Token": self.api.token}))
        connections[0].transport.loseConnection()
        [call] = held
        call.refuse()
        codes = [[reply.code for reply in each.replies()] for each in connections]
        self.assertEqual((codes, self.flushLoggedErrors()), ([[], [503], [503]], []))

    def test_anEventWhileItsPlaceIsLookedUp(self) -> None:
        """An event that the store's answer does not have yet, and that is persisted before it arrives, is sent."""
        self.api.create("web1")
        first = self.lastEvent()["id"]
        held = self.api.held.hold("lastEvent", acts=True)
        connections = [Connection(self.api) for _ in range(2)]
        for connection, named in zip(connections, ({}, {"Last-Event-ID": first}), strict=True):
            connection.send(requestBytes("GET", STREAM, None, {"X-Auth-Token": self.api.token, **named}))
        self.api.create("web2")
        held.pop().release()
        self.assertEqual([each.transport.value().count(b'"id": "web2"') for each in connections], [1, 1])

    def test_head(self) -> None:
        """HEAD gets the head alone, and takes no place."""
        reader = Reader(self.api, method="HEAD")
        self.assertEqual(reader.status, 200)
        self.assertIn("Content-Type: text/event-stream", reader.head)
        self.assertEqual((reader.text(), reader.isOpen), ("", False))
        self.assertEqual(self.api.registry.feed.streams.places.count, 0)

    def test_onlyTheTypesAskedFor(self) -> None:
        """A stream has the five types of version 1.0, unless it asks for others; pings name what is left out."""
        plain, everything = Reader(self.api), Reader(self.api, "?types=all")
        updates, nothing = Reader(self.api, "?types=service.update"), Reader(self.api, "?types=")
        self.api.create("web1")
        self.update("web1", tags=["a"])
        self.assertEqual(plain.events(), [("service.join", "web1")])
        self.assertEqual(nothing.events(), [("service.join", "web1")])
        self.assertEqual(updates.events(), [("service.update", "web1")])
        self.assertEqual(everything.events(), [("service.join", "web1"), ("service.update", "web1")])
        last = self.lastEvent()["id"]
        self.api.advance(PING)
        for reader in (plain, everything, updates):
            self.assertEqual(reader.sent(), [Sent("ping", last, {})])

    def test_onlyTheServicesOfATag(self) -> None:
        """With a tag there are the events of services that have it or had it before, and no others."""
        reader = Reader(self.api, "?types=all&tag=a")
        self.api.create("web1", tags=["a"])
        self.api.create("web2", tags=["b"])
        self.api.ask("PUT", "/configuration/key", {"value": "x"})
        self.update("web1", tags=["b"])
        self.update("web1", heartbeat_timeout=60)
        self.update("web2", tags=["a", "b"])
        self.api.ask("DELETE", "/services/web2")
        expected = [("service.join", "web1"), ("service.update", "web1"), ("service.update", "web2")]
        self.assertEqual(reader.events(), [*expected, ("service.remove", "web2")])

    def test_goesOnAfterTheLastEventThatTheClientHas(self) -> None:
        """Last-Event-ID names the event that was the last one, and wins over the marker."""
        self.api.create("web1", 120)
        first = self.lastEvent()["id"]
        self.api.create("web2", 120)
        second = self.lastEvent()["id"]
        self.update("web2", tags=["x"])
        third = self.lastEvent()["id"]
        for lastId, query, expected in [
            (first, "", [("service.join", "web2")]),
            (first.upper(), f"?marker={second}&types=all", [("service.join", "web2"), ("service.update", "web2")]),
            (second, f"?marker={first}", []),
            (third, "?types=all", []),
            ("", f"?marker={first}", [("service.join", "web1"), ("service.join", "web2")]),
            (None, f"?marker={second}&types=all", [("service.join", "web2"), ("service.update", "web2")]),
            (None, "", []),
        ]:
            reader = Reader(self.api, query, lastId)
            ping, *events = reader.sent()
            self.assertEqual(ping.type, "ping")
            if lastId:
                self.assertEqual(ping.id, lastId)
            found = [(each.type, each.data["payload"]["id"]) for each in events]
            self.assertEqual(found, expected, (lastId, query))
            self.api.advance(PING)
            self.assertEqual(reader.sent(), [Sent("ping", third, {})])

    def test_aPlaceThatIsUnknownIsAReset(self) -> None:
        """
        If events may be missing, the stream begins now and says so. Until the reset has come, the client keeps
        its own position.
        """
        self.api.create("web1")
        last = self.lastEvent()["id"]
        for lastId in ("x", "9b6dbd5e-6ab4-4bb3-8f0a-ab1c56b5bf62", "11111111-1111-1111-8111-111111111111"):
            reader = Reader(self.api, lastId=lastId)
            self.assertEqual(reader.sent(), [Sent("ping", None, {}), Sent("reset", last, {})])
            self.api.create(f"web-{lastId[:8]}")
            self.assertEqual(reader.events(), [("service.join", f"web-{lastId[:8]}")])
            last = self.lastEvent()["id"]

    def test_aDroppedEventIsAReset(self) -> None:
        """After an event that is no longer kept, others may be missing."""
        self.api.create("web1")
        last = self.lastEvent()["id"]
        self.api.create("web2")
        fired(self.api.store.dropEvents(2**59))
        (_, reset) = Reader(self.api, lastId=last).sent()
        self.assertEqual(reset.type, "reset")

    def test_anEmptyFeedHasAPlaceToo(self) -> None:
        """The ping of a feed without events names a place from which a client can go on, and a marker for pages."""
        reader = Reader(self.api)
        self.api.advance(1)
        (ping,) = reader.sent()
        assert ping.id is not None
        self.assertEqual(self.api.ask("GET", f"/events?marker={ping.id}").json["values"], [])
        self.api.create("web1")
        self.api.advance(PING)
        again = Reader(self.api, lastId=ping.id)
        self.assertEqual(again.sent()[0], ping)
        self.assertEqual(self.api.ask("GET", f"/events?marker={ping.id}").json["metadata"]["count"], 1)

    def test_badQueries(self) -> None:
        """Invalid parameters of a stream are refused in the words of /events; nothing is begun."""
        for query, reason in [
            ("marker=x", "Invalid UUID"),
            ("marker=ffffffff-ffff-1fff-8000-000000000000", "from parameter must be smaller than the current time"),
            ("types=x", "Invalid type: x. Valid types are: "),
            ("tag=%20", "Invalid characters"),
        ]:
            reply = self.api.ask("GET", f"/events/stream?{query}")
            self.assertEqual((reply.code, reply.header("Connection")), (400, None))
            self.assertTrue(reply.json["details"].startswith(reason), reply.json)
        self.assertEqual(self.api.ask("GET", "/events/stream", token=None).code, 401)
        self.assertEqual(self.api.registry.feed.streams.places.count, 0)

    def test_catchesUpPageByPage(self) -> None:
        """However much was missed, all of it comes once and in order, with what happens meanwhile."""
        self.api.create("web1")
        first = self.lastEvent()["id"]
        for number in range(PAGE * 2 + 50):
            fired(self.api.registry.configuration.set("1234", "key", str(number)))
        read = self.api.store.listEvents

        def listEvents(*args: Any) -> Deferred[Any]:
            # Another one happens while each page is read.
            found = read(*args)
            if len(self.values) < 5:
                self.values.append(f"late {len(self.values)}")
                fired(self.api.registry.configuration.set("1234", "key", self.values[-1]))
            return found

        self.values: list[str] = []
        self.patch(self.api.store, "listEvents", listEvents)
        reader = Reader(self.api, lastId=first)
        self.api.advance(1)
        values = [each.data["payload"]["new_value"] for each in reader.sent() if each.type != "ping"]
        self.assertEqual(values, [*map(str, range(PAGE * 2 + 50)), *self.values])

    def test_placesAreBounded(self) -> None:
        """There are limits for all streams, for those of a tenant, and together with requests that wait."""
        for limits, open in [
            (ConnectionLimits(streams=2), 2),
            (ConnectionLimits(streamsPerTenant=1), 1),
            (ConnectionLimits(connections=3), 2),
        ]:
            api = Api(connectionLimits=limits)
            readers = [Reader(api) for _ in range(open)]
            reply = api.ask("GET", "/events/stream")
            self.assertEqual((reply.code, reply.json["type"]), (503, "systemFailureError"))
            self.assertEqual((reply.header("Retry-After"), reply.header("Connection")), ("5", None))
            self.assertEqual(api.registry.feed.streams.places.count, open)
            readers[0].connection.transport.abortConnection()
            self.assertEqual(api.registry.feed.streams.places.count, open - 1)
            self.assertEqual(Reader(api).status, 200)

    def test_endsWithTheToken(self) -> None:
        """When the token ends, the stream does with the next ping, and nothing comes after."""
        reader = Reader(self.api)
        reader.text()
        fired(self.api.identity.purgeAll())
        self.api.advance(PING)
        self.assertEqual((reader.isOpen, reader.text()), (False, ""))

    def test_endsWhileItsTokenIsChecked(self) -> None:
        """A stream may end while a ping checks its token, and new streams get their pings."""
        reader = Reader(self.api)
        userOf, asked = self.api.identity.userOf, Deferred()
        with patch.multiple(
            self.api.identity,
            knownUser=lambda token: None,
            userOf=lambda token: asked.addCallback(lambda _: userOf(token)),
        ):
            self.api.advance(PING)
            self.api.registry.feed.streams.endAll()
            self.assertFalse(reader.isOpen)
            asked.callback(None)
        other = Reader(self.api)
        other.text()
        self.api.advance(PING)
        self.assertEqual([each.type for each in other.sent()], ["ping"])

    def test_endsWithTheRegistry(self) -> None:
        """When the registry stops, streams end in good order, new ones are refused, and nothing is left."""
        reader = Reader(self.api)
        self.api.registry.feed.endWaiting()
        self.assertFalse(reader.isOpen)
        self.assertEqual(self.api.ask("GET", "/events/stream").code, 503)
        fired(self.api.registry.stop())
        left = [call for call in self.api.clock.getDelayedCalls() if "streams" in repr(call)]
        self.assertEqual(left, [])

    def test_tagsOfStates(self) -> None:
        """
        A change of a state does not tell the tags of the service. They are looked up, also for streams that began while
        the change was read.
        """
        self.api.create("web1", tags=["a"])
        first = self.lastEvent()["id"]
        readers = [Reader(self.api, "?types=all")]
        fired(self.api.registry.states.set("1234", "web1", "draining"))
        self.assertEqual(readers[0].events(), [("service.state", "web1")])
        listEvents = self.api.store.listEvents
        held: Deferred[Any] = Deferred()
        self.patch(self.api.store, "listEvents", lambda *args: held.addCallback(lambda _: listEvents(*args)))
        fired(self.api.registry.states.set("1234", "web1", "down"))
        readers += [Reader(self.api, f"?types=all&tag={tag}") for tag in ("a", "a", "b")]
        held.callback(None)
        expected = [("service.state", "web1")]
        self.assertEqual([each.events() for each in readers], [expected, expected, expected, []])
        late = Reader(self.api, "?types=all&tag=a", lastId=first)
        self.assertEqual(late.events(), expected * 2)

    def test_goneBeforeItHasBegun(self) -> None:
        """Nothing is left of a client that goes while the end of the feed is looked up."""
        looked: Deferred[Any] = Deferred()
        lastEvent = self.api.store.lastEvent
        self.patch(self.api.store, "lastEvent", lambda *args: looked.addCallback(lambda _: lastEvent(*args)))
        connection = Connection(self.api)
        connection.send(requestBytes("GET", STREAM, None, {"X-Auth-Token": self.api.token}))
        connection.transport.abortConnection()
        looked.callback(None)
        self.api.advance(PING)
        self.assertEqual(self.api.registry.feed.streams.places.count, 0)
        self.assertEqual([call for call in self.api.clock.getDelayedCalls() if "streams" in repr(call)], [])

    def test_endsBeforeItHasBegun(self) -> None:
        """A stream that must end while its place is looked for is refused, and its place is free."""
        self.api.create("web1")
        first = self.lastEvent()["id"]
        self.api.create("web2")
        looked: Deferred[bool] = Deferred()
        self.patch(self.api.store, "hasEvent", lambda *args: looked)
        other, connection = Reader(self.api), Connection(self.api)
        named = {"X-Auth-Token": self.api.token, "Last-Event-ID": first}
        connection.send(requestBytes("GET", STREAM, None, named))
        self.assertEqual(self.api.registry.feed.streams.places.count, 2)
        self.api.registry.feed.streams.endAll()
        looked.callback(True)
        self.assertTrue(connection.transport.value().startswith(b"HTTP/1.1 503 "))
        self.assertFalse(other.isOpen)
        self.assertEqual(self.api.registry.feed.streams.places.count, 0)

    def slowReader(self) -> Reader:
        """A client that catches up, and does not read."""
        self.api.create("web1")
        first = self.lastEvent()["id"]
        self.api.create("web2")
        held = self.api.held.hold("listEvents")
        reader = Reader(self.api, lastId=first)
        reader.connection.protocol.pauseProducing()
        self.api.held.pass_("listEvents")
        for call in held:
            call.release()
        return reader

    def test_endsWhileASlowClientCatchesUp(self) -> None:
        """The registry stops, also while a client that catches up does not read."""
        self.slowReader()
        self.api.registry.feed.endWaiting()
        fired(self.api.registry.stop())

    def test_endsWithTheTokenOfASlowClient(self) -> None:
        """When the token ends, so does the stream of a client that catches up."""
        self.slowReader()
        streams = self.api.registry.feed.streams.places
        self.assertEqual(streams.count, 1)
        self.api.advance(PING)
        self.assertEqual(streams.count, 1)
        fired(self.api.identity.purgeAll())
        self.api.advance(PING)
        self.assertEqual(streams.count, 0)

    def test_endsWhenTheStoreIsUnavailable(self) -> None:
        """A registry that does not reach its store ends its streams within a ping, and begins none."""
        reader = Reader(self.api)
        self.api.store.unavailable = True
        self.api.advance(PING)
        self.assertFalse(reader.isOpen)
        self.assertEqual(self.api.ask("GET", "/events/stream").code, 503)
        self.api.store.unavailable = False
        self.assertEqual(Reader(self.api).status, 200)

    def test_endsWhenTheStoreHangs(self) -> None:
        """So it does if the store does not respond."""
        reader = Reader(self.api)
        self.patch(self.api.store, "listEvents", lambda *args: Deferred())
        self.api.advance(PING)
        self.assertTrue(reader.isOpen)
        self.api.advance(10)
        self.assertFalse(reader.isOpen)

    def test_aStoreThatFailsWhileAStreamCatchesUp(self) -> None:
        """A stream that can't catch up ends; the client comes again."""
        self.api.create("web1")
        first = self.lastEvent()["id"]
        self.api.create("web2")
        self.patch(self.api.store, "listEvents", lambda *args: fail(StoreUnavailable("gone")))
        reader = Reader(self.api, lastId=first)
        self.assertEqual([each.type for each in reader.sent()], ["ping"])
        self.assertFalse(reader.isOpen)
        self.assertEqual(self.api.registry.feed.streams.places.count, 0)

    def test_aClientThatReadsTooSlowlyIsDisconnected(self) -> None:
        """
        Data that a client does not read are kept up to 256 KiB. A client that reads again in time misses nothing;
        others notice nothing.
        """
        slow, slower, other = Reader(self.api), Reader(self.api), Reader(self.api)
        for reader in (slow, slower):
            reader.text()
            reader.connection.protocol.pauseProducing()
        value = "x" * 1024
        for number in range(80):
            fired(self.api.registry.configuration.set("1234", "key", f"{value[3:]}{number:03}"))
        self.assertEqual((slow.text(), slow.isOpen), ("", True))
        slow.connection.protocol.resumeProducing()
        for number in range(80, 160):
            fired(self.api.registry.configuration.set("1234", "key", f"{value[3:]}{number:03}"))
        self.assertFalse(slower.isOpen)
        for reader in (slow, other):
            numbers = [int(each.data["payload"]["new_value"][-3:]) for each in reader.sent() if each.type != "ping"]
            self.assertEqual(numbers, list(range(160)))

    def test_severalTenantsHaveTheirOwn(self) -> None:
        """A stream has the events of its tenant only."""
        reader = Reader(self.api)
        fired(self.api.registry.configuration.set("99", "key", "x"))
        self.assertEqual(reader.events(), [])
