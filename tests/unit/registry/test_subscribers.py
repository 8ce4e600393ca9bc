"""
Tests for the extension ``events-wait``: requests that wait for new events.
"""

from __future__ import annotations

import gc
import json
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import treq
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool

from tests import CHEAP
from tests.unit.garbage import collectOnlyNew
from txserviceregistry.registry import service as registryService
from txserviceregistry.registry.model import EVENT_TYPES, Page
from txserviceregistry.registry.service import RegistryService
from txserviceregistry.registry.tasks import Turns

from .registrycase import TENANT, RegistryCase
from .wire import Api, Connection, Reply, fired, requestBytes

EVENTS = "/v1.0/1234/events"


class WaitingTests(SynchronousTestCase):
    """
    ``GET /events?wait=SECONDS``, on the wire.
    """

    def setUp(self) -> None:
        self.api = Api(rateLimit=50)

    def ask(self, query: str, api: Api | None = None) -> Connection:
        """Ask, and leave the connection open."""
        api = api or self.api
        connection = Connection(api)
        connection.send(requestBytes("GET", f"{EVENTS}?{query}", None, {"X-Auth-Token": api.token}))
        return connection

    def reply(self, connection: Connection) -> Reply:
        (reply,) = connection.replies()
        return reply

    def ids(self, connection: Connection) -> list[str]:
        """The services that the events of an answer are about."""
        reply = self.reply(connection)
        self.assertEqual(reply.code, 200)
        return [event["payload"]["id"] for event in reply.json["values"]]

    def lastEvent(self) -> str:
        id: str = self.api.ask("GET", "/events").json["values"][-1]["id"]
        return id

    def test_aTokenThatHasEndedGetsNoEvents(self) -> None:
        """A request whose token ends while it waits gets a 401, and no events."""
        self.api.create("web1")
        connection = self.ask(f"wait=60&marker={self.lastEvent()}")
        fired(self.api.identity.purgeAll())
        fired(self.api.registry.configuration.set("1234", "secret", "value"))
        self.api.advance(0.1)
        reply = self.reply(connection)
        self.assertEqual(reply.code, 401)
        self.assertNotIn(b"secret", reply.raw)

    def test_answersAsSoonAsThereIsSomethingNew(self) -> None:
        """The answer comes with the event, in the same turn of the reactor or the next."""
        self.api.create("web1")
        waiting = self.ask(f"marker={self.lastEvent()}&wait=30")
        self.api.advance(10)
        self.assertEqual(waiting.replies(), [])
        self.api.create("web2")
        self.api.clock.advance(0)
        self.assertEqual(self.ids(waiting), ["web1", "web2"])

    def test_typesOfEventsAreOptIn(self) -> None:
        """
        An update is only in the feed of those who ask for it, and wakes only those. Its id is a marker
        for any request.
        """
        self.api.create("web1")
        first = self.lastEvent()
        waiting = [self.ask(f"marker={first}&wait=30{types}") for types in ("", "&types=", "&types=service.join")]
        others = [self.ask(f"marker={first}&wait=30&types={types}") for types in ("all", "service.update")]
        self.api.ask("PUT", "/services/web1", {"tags": ["a"]})
        self.api.advance(0.1)
        self.assertEqual([each.replies() for each in waiting], [[], [], []])
        everything, updates = (self.reply(each).json["values"] for each in others)
        self.assertEqual([event["type"] for event in everything], ["service.join", "service.update"])
        self.assertEqual(updates, everything[1:])
        self.api.create("web2")
        self.api.advance(0.1)
        self.assertEqual([self.ids(each) for each in waiting], [["web1", "web2"]] * 3)
        page = self.api.ask("GET", f"/events?marker={updates[0]['id']}").json["values"]
        self.assertEqual([event["payload"]["id"] for event in page], ["web2"])

    def test_badTypes(self) -> None:
        """A type that does not exist is refused with all that do, and types can't stand beside type."""
        known = "service.join,service.remove,service.timeout,configuration_value.update,configuration_value.remove"
        for query, reason in [
            ("types=service.join,x,y", f"Invalid type: x. Valid types are: {','.join(EVENT_TYPES)}"),
            ("type=service.update", f"Invalid type: service.update. Valid types are: {known}"),
            ("type=service.join&types=all", "type can't be combined with types"),
        ]:
            fault = self.api.ask("GET", f"/events?{query}").json
            self.assertEqual((fault["code"], fault["message"], fault["details"]), (400, reason, reason))

    def test_answersAtOnceWhenThereIsSomethingNewAlready(self) -> None:
        """An event newer than the marker does not have to wait; the marker's own is none."""
        self.api.create("web1")
        first = self.lastEvent()
        self.api.create("web2")
        self.assertEqual(self.ids(self.ask(f"marker={first}&wait=30")), ["web1", "web2"])
        self.assertEqual(self.ids(self.ask(f"marker={first.upper()}&wait=30&limit=1")), ["web1"])

    def test_answersInTheEnd(self) -> None:
        """When nothing happens, the page comes as it is after the time that was asked for."""
        self.api.create("web1", 120)
        waiting = self.ask(f"marker={self.lastEvent()}&wait=5")
        self.api.advance(4.5)
        self.assertEqual(waiting.replies(), [])
        self.api.advance(0.5)
        self.assertEqual(self.ids(waiting), ["web1"])

    def test_eachAtItsTime(self) -> None:
        """Each request is answered after its own time, whatever requests came before, or have gone meanwhile."""
        self.api.create("web1", 120)
        marker = self.lastEvent()
        calls = len(self.api.clock.getDelayedCalls())
        first, second = self.ask(f"marker={marker}&wait=5"), self.ask(f"marker={marker}&wait=5&type=service.remove")
        self.api.advance(1)
        third, fourth = self.ask(f"marker={marker}&wait=5"), self.ask(f"marker={marker}&wait=2")
        self.assertEqual(len(self.api.clock.getDelayedCalls()), calls + 4)
        first.transport.abortConnection()
        self.api.advance(2)
        self.assertEqual(self.ids(fourth), ["web1"])
        self.api.create("web2")
        self.api.advance(1)
        self.assertEqual(self.ids(third), ["web1", "web2"])
        self.assertEqual(second.replies(), [])
        fifth = self.ask(f"marker={marker}&wait=5&type=service.remove")
        self.api.advance(1)
        self.assertEqual(self.ids(second), [])
        self.api.advance(3.5)
        self.assertEqual(fifth.replies(), [])
        self.api.advance(0.5)
        self.assertEqual(self.ids(fifth), [])

    def test_eachGetsItsOwnLimit(self) -> None:
        """Requests for the same get the same page, each with its own limit, and never a marker."""
        self.api.create("web1")
        marker = self.lastEvent()
        asked = [(marker, 100), (marker.upper(), 100), (marker, 50), (marker, 100)]
        waiting = [self.ask(f"marker={text}&limit={limit}&wait=30") for text, limit in asked]
        self.api.create("web2")
        self.api.advance(0.1)
        bodies = [self.reply(each).json for each in waiting]
        expected = [(None, limit) for _, limit in asked]
        self.assertEqual([(each["metadata"]["marker"], each["metadata"]["limit"]) for each in bodies], expected)
        self.assertEqual([each["values"] for each in bodies], [bodies[0]["values"]] * 4)

    def test_resultsFromBeforeAnEventAreDropped(self) -> None:
        """A request after a change gets it, whatever others got before, and whether or not they still wait."""
        self.api.create("web1")
        marker = self.lastEvent()
        self.ask(f"marker={marker}&wait=30")
        other = self.ask(f"marker={marker}&wait=30&type=service.remove")
        self.api.create("web2")
        self.assertEqual(self.ids(self.ask(f"marker={marker}&wait=30")), ["web1", "web2"])
        self.api.create("web3")
        self.assertEqual(self.ids(self.ask(f"marker={marker}&wait=30")), ["web1", "web2", "web3"])
        self.assertEqual(other.replies(), [])

    def test_withoutAMarker(self) -> None:
        """Without a marker all events of the last hour are new; where there is none, the first is waited for."""
        waiting = self.ask("wait=30")
        self.assertEqual(waiting.replies(), [])
        self.api.create("web1")
        self.api.clock.advance(0)
        self.assertEqual(self.ids(waiting), ["web1"])
        self.assertEqual(self.ids(self.ask("wait=30")), ["web1"])

    def test_withAType(self) -> None:
        """With a type, events of another type end no waiting."""
        self.api.create("web1")
        waiting = self.ask(f"marker={self.lastEvent()}&wait=30&type=service.remove")
        self.api.create("web2")
        self.api.advance(1)
        self.assertEqual(waiting.replies(), [])
        self.api.ask("DELETE", "/services/web1")
        self.api.advance(1)
        self.assertEqual(self.ids(waiting), ["web1"])

    def test_everyKindOfChangeEndsIt(self) -> None:
        """A timeout, and a configuration value that is set or removed, end the waiting as well."""
        self.api.create("web1", 3)
        for change in (
            lambda: self.api.advance(4),
            lambda: self.api.ask("PUT", "/configuration/abc", {"value": "1"}),
            lambda: self.api.ask("DELETE", "/configuration/abc"),
        ):
            waiting = self.ask(f"marker={self.lastEvent()}&wait=60")
            change()
            self.api.advance(1)
            self.assertEqual(self.reply(waiting).json["metadata"]["count"], 2)

    def test_anUpdateEndsNoWaiting(self) -> None:
        """A request without an event ends no waiting, and neither do the events of another account."""
        self.api.create("web1")
        waiting = self.ask(f"marker={self.lastEvent()}&wait=30")
        self.api.ask("PUT", "/services/web1", {"tags": ["a"]})
        self.api.ask("PUT", "/services/unknown", {"tags": ["a"]})
        self.api.advance(1)
        self.assertEqual(waiting.replies(), [])

    def test_refusesOtherTimes(self) -> None:
        """The time is an integer from 1 to 60, checked after limit and marker and before anything else."""
        for wait, details in [
            ("0", "Value out of range (1..60)"),
            ("61", "Value out of range (1..60)"),
            ("", "Invalid integer"),
            ("soon", "Invalid integer"),
            ("1.5", "Invalid integer"),
        ]:
            fault = self.reply(self.ask(f"wait={wait}"))
            self.assertEqual((fault.code, fault.json["type"]), (400, "badRequest"))
            self.assertEqual(fault.json["message"], "Invalid value for 'wait' query string parameter")
            self.assertEqual(fault.json["details"], details)
        self.assertEqual(self.reply(self.ask("wait=0&marker=x")).json["details"], "Invalid UUID")
        self.assertEqual(self.reply(self.ask("wait=0&limit=0")).json["type"], "invalidLimit")

    def test_refusesAMarkerAtOnce(self) -> None:
        """A marker that the feed refuses is refused without waiting."""
        waiting = self.ask("marker=ffffffff-ffff-1fff-8000-000000000000&wait=30")
        self.assertEqual(self.reply(waiting).code, 400)

    def test_countsOnceAgainstTheRate(self) -> None:
        """However often the registry looks, a request that waits is one request."""
        waiting = self.ask("wait=60&type=service.remove")
        for number in range(20):
            self.api.create(f"web{number}")
        self.api.advance(60)
        self.assertEqual(self.ids(waiting), [])
        self.assertEqual(self.api.ask("GET", "/limits").json["rate"]["/.*"]["used"], 1)

    def test_anUnavailableStoreEndsIt(self) -> None:
        """When the feed can't be read, the request fails."""
        self.api.store.unavailable = True
        self.assertEqual(self.reply(self.ask("wait=30")).code, 503)

    def test_isForgottenWhenTheClientHangsUp(self) -> None:
        """Nothing is kept of a client that has gone: neither memory nor anything on the reactor."""
        collectOnlyNew(self)
        calls = len(self.api.clock.getDelayedCalls())
        waiting = self.ask("wait=60")
        request = weakref.ref(waiting.protocol.requests[0])
        waiting.transport.abortConnection()
        del waiting
        gc.collect()
        self.assertIsNone(request())
        self.assertEqual(len(self.api.clock.getDelayedCalls()), calls)

    def test_stoppingEndsIt(self) -> None:
        """When a registry stops, no request waits, neither earlier nor later ones: the page comes as it is."""
        self.api.create("web1")
        marker = self.lastEvent()
        waiting = self.ask(f"marker={marker}&wait=60")
        self.api.registry.feed.endWaiting()
        self.assertEqual(self.ids(waiting), ["web1"])
        self.assertEqual(self.ids(self.ask(f"marker={marker}&wait=60")), ["web1"])

    def test_aThousand(self) -> None:
        """A thousand subscribers are notified within a few turns of the reactor, and cost nothing until then."""
        api = Api(rateLimit=10_000)
        calls = [self.ask("wait=60", api) for _ in range(1000)]
        read = api.store.listEvents
        reads: list[object] = []

        def counted(*arguments: Any) -> Any:
            reads.append(arguments)
            return read(*arguments)

        api.store.listEvents = counted  # type: ignore[method-assign]  # only counts
        api.advance(30)
        self.assertEqual(len(reads), 0)
        api.create("web1")
        for _ in range(60):
            api.clock.advance(0)
        self.assertEqual({self.reply(each).code for each in calls}, {200})
        self.assertEqual(len(reads), 1000)


class FeedTests(RegistryCase):
    """Those who wait for events while the store, the reactor or the registry's end let them wait."""

    def setUp(self) -> None:
        super().setUp()
        self.create("web1", 120)
        self.marker = self.successResultOf(self.memory.lastEvent(TENANT))
        self.calls = len(self.clock.getDelayedCalls())

    def waiting(self, seconds: float = 60) -> Deferred[Page]:
        return Deferred.fromCoroutine(self.registry.feed.wait(TENANT, self.marker, 100, seconds))

    def about(self, waiting: Deferred[Page]) -> list[str]:
        return [event["payload"]["id"] for event in self.page(waiting).values]

    def takeTime(self) -> None:
        """Let each read of the feed take a turn of the reactor."""
        read = self.memory.listEvents

        def slow(*arguments: Any) -> Any:
            self.clock.rightNow += Turns.SLICE
            return read(*arguments)

        self.patch(self.memory, "listEvents", slow)

    def test_aChangeAfterTheEnd(self) -> None:
        """A change is answered that is made while those who read the feed at the end still do so."""
        held = self.store.hold("listEvents")
        waiting = self.waiting()
        self.registry.endWaiting()
        self.create("web2")
        held.pop().release()
        self.assertEqual(self.about(waiting), ["web1", "web2"])

    def test_aChangeWhileTheFeedIsRead(self) -> None:
        """An event that comes after the feed was read, and before the answer of the store, is not missed."""
        held = self.store.hold("listEvents", acts=True)
        waiting = self.waiting()
        self.create("web2")
        while held:
            held.pop().release()
        self.assertEqual(self.about(waiting), ["web1", "web2"])

    def test_aHundredAreAnsweredOneByOne(self) -> None:
        """A change holds the reactor up for a moment only, however many wait for it; all are answered in order."""
        answered: list[int] = []
        for number in range(100):
            self.waiting().addCallback(lambda _, number=number: answered.append(number))
        self.takeTime()
        self.create("web2")
        self.assertEqual(answered, [0])
        # The others have not been touched: they still have their timers.
        self.assertGreaterEqual(len(self.clock.getDelayedCalls()), self.calls + 99)
        self.clock.advance(0)
        self.assertEqual(answered, list(range(100)))

    def test_goneBeforeItsTurn(self) -> None:
        """Those who go, or whose time is over, before they are told of an event keep no others waiting."""
        first, gone, late, last = self.waiting(), self.waiting(), self.waiting(Turns.SLICE), self.waiting()
        self.takeTime()
        self.create("web2")
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.clock.advance(0)
        self.assertEqual([self.about(each)[0] for each in (first, late)], ["web1"] * 2)
        self.assertEqual(self.about(last), ["web1", "web2"])
        self.assertEqual(self.registry.followers.count, 0)

    def test_theEndBeforeTheirTurn(self) -> None:
        """At the end all have the event, and nothing is left on the reactor."""
        waiting = [self.waiting() for _ in range(5)]
        self.takeTime()
        self.create("web2")
        self.registry.endWaiting()
        self.assertEqual([self.about(each) for each in waiting], [["web1", "web2"]] * 5)
        self.assertEqual(self.about(self.waiting()), ["web1", "web2"])
        self.assertEqual(self.registry.followers.count, 0)
        self.successResultOf(self.registry.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SocketTests(TestCase):
    """
    Subscribers of a running registry, over sockets.
    """

    timeout = 60

    async def started(self) -> RegistryService:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        service = RegistryService(
            reactor, dataDir=directory.name, store="memory", endpoints=["tcp:0:interface=127.0.0.1"], keyCost=CHEAP
        )
        ready = service.whenListening()
        service.startService()
        self.addCleanup(lambda: service.stopService() if service.running else None)
        await ready
        raxrc = Path(service.raxrcPath).read_text()
        key = raxrc.partition("api_key")[2].partition("\n")[0].strip(" =")
        pool = HTTPConnectionPool(reactor, persistent=False)
        self.client = treq.client.HTTPClient(Agent(reactor, pool=pool))
        credentials = {"username": "local", "apiKey": key}
        answer = await self.client.post(
            service.urls[0].replace("/v1.0", "/v2.0") + "/tokens",
            json={"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}},
        )
        token = (await answer.json())["access"]["token"]
        self.url = f"{service.urls[0]}/{token['tenant']['id']}"
        self.headers = {"X-Auth-Token": token["id"]}
        return service

    async def page(self, query: str) -> tuple[int, list[Any]]:
        answer = await self.client.get(f"{self.url}/events?{query}", headers=self.headers)
        return answer.code, (await answer.json())["values"]

    def subscribed(self, count: int) -> Sequence[Deferred[tuple[int, list[Any]]]]:
        return [Deferred.fromCoroutine(self.page("wait=60")) for _ in range(count)]

    async def connected(self, service: RegistryService, count: int) -> None:
        """Wait until the registry has these requests."""
        began = reactor.seconds()
        self.looks = 0

        async def look() -> None:
            answer = await self.client.get(f"{self.url}/limits", headers=self.headers)
            used = (await answer.json())["rate"]["/.*"]["used"]
            if used - self.looks >= count:
                loop.stop()
            elif reactor.seconds() - began > 30:
                raise AssertionError(f"waited in vain: {used} requests")
            self.looks += 1

        loop = LoopingCall(lambda: Deferred.fromCoroutine(look()))
        await loop.start(0.01)

    async def test_hundredSubscribers(self) -> None:
        """A hundred subscribers on a hundred sockets are notified of a change at once."""
        service = await self.started()
        subscribers = self.subscribed(100)
        await self.connected(service, 100)
        began = reactor.seconds()
        body = {"id": "web1", "heartbeat_timeout": 30}
        await self.client.post(f"{self.url}/services", headers=self.headers, json=body)
        answers = await gatherResults(subscribers)
        # Else they would wait for a minute; a busy machine takes its time.
        self.assertLess(reactor.seconds() - began, 30)
        self.assertEqual({values[0]["payload"]["id"] for _, values in answers}, {"web1"})

    async def test_stoppingTakesNoLongerBecauseOfThem(self) -> None:
        """Requests that wait when the registry stops get the page as it is, before their time is over."""
        self.patch(registryService, "DRAIN_SECONDS", 60)
        service = await self.started()
        subscribers = self.subscribed(20)
        await self.connected(service, 20)
        began = reactor.seconds()
        await service.stopService()
        self.assertLess(reactor.seconds() - began, 30)
        self.assertEqual(await gatherResults(subscribers), [(200, [])] * 20)

    def stream(self, lastId: str = "", receives: int | None = None) -> socket.socket:
        """A socket with a stream of all events, which reads nothing by itself, and has room for so many bytes."""
        url = urlsplit(self.url)
        reader = socket.socket()
        self.addCleanup(reader.close)
        if receives is not None:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
        reader.connect((url.hostname, url.port))
        headers = {**self.headers, "Last-Event-ID": lastId}
        reader.sendall(requestBytes("GET", f"{url.path}/events/stream?types=all", None, headers))
        reader.setblocking(False)
        return reader

    async def test_aSlowReader(self) -> None:
        """A stream that is not read is disconnected. Others miss nothing, and its client goes on where it was."""
        service = await self.started()
        (port,) = await service.whenListening()
        # Connections inherit it: most of what is not read is with the registry and not with the kernel.
        port.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow, quick = self.stream(receives=4096), Received(self.stream())
        metadata = {f"key{number}": "x" * 255 for number in range(15)}
        body = {"id": "web1", "heartbeat_timeout": 120, "metadata": metadata}
        await self.client.post(f"{self.url}/services", headers=self.headers, json=body)
        for number in range(120):
            tags = {"tags": [str(number)]}
            answer = await self.client.put(f"{self.url}/services/web1", headers=self.headers, json=tags)
            await answer.content()
            self.assertEqual(answer.code, 204)
            quick.read()
        expected = [["service.join"], *([str(number)] for number in range(120))]
        await quick.until(len(expected))
        self.assertEqual(quick.shown(), expected)
        read = Received(slow)
        read.read()
        self.assertTrue(read.isClosed)
        self.assertLess(len(read.shown()), len(expected))
        again = Received(self.stream(lastId=read.lastId()))
        await again.until(len(expected) - len(read.shown()))
        self.assertEqual([*read.shown(), *again.shown()], expected)


class Received:
    """The data that a socket with a stream has received."""

    def __init__(self, reader: socket.socket) -> None:
        self._socket = reader
        self._data = b""
        self.isClosed = False

    def read(self) -> None:
        """Read what there is."""
        try:
            while data := self._socket.recv(65536):
                self._data += data
            self.isClosed = True
        except BlockingIOError:
            pass
        except ConnectionResetError:
            self.isClosed = True

    def _values(self, field: str) -> list[str]:
        """The values of a field, of all that has come whole."""
        whole, _, _ = self._data.decode("utf-8").rpartition("\n\n")
        return [line.removeprefix(field) for line in whole.split("\n") if line.startswith(field)]

    def lastId(self) -> str:
        """The place of the client, as the registry has told it."""
        return self._values("id: ")[-1]

    def shown(self) -> list[Any]:
        """The mark of each event: the tags of an update, or else the type."""
        return [
            event["payload"]["tags"] if event["type"] == "service.update" else [event["type"]]
            for event in map(json.loads, self._values("data: "))
            if event
        ]

    async def until(self, count: int) -> None:
        """Read until there are so many events."""
        ends = reactor.seconds() + 30
        while len(self.shown()) < count and reactor.seconds() < ends:
            await deferLater(reactor, 0.01)
            self.read()
