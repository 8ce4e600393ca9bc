"""
Tests for the extension ``events-wait``: the feed, for those who wait for something new in it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool

from txserviceregistry.registry.service import RegistryService
from txserviceregistry.registry.subscribers import Subscribers, Subscription

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

    def test_whoseTokenHasEndedHearsNothing(self) -> None:
        """A token that ends while its bearer waits brings a 401, and nothing of what has happened."""
        self.api.create("web1")
        connection = self.ask(f"wait=60&marker={self.lastEvent()}")
        fired(self.api.identity.purge(self.api.token))
        fired(self.api.registry.setValue("1234", "secret", "value"))
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
        """Everybody is answered after their own time, whoever has come before, or has gone meanwhile."""
        self.api.create("web1", 120)
        marker = self.lastEvent()
        calls = len(self.api.clock.getDelayedCalls())
        first, second = self.ask(f"marker={marker}&wait=5"), self.ask(f"marker={marker}&wait=5&type=service.remove")
        self.api.advance(1)
        third, fourth = self.ask(f"marker={marker}&wait=5"), self.ask(f"marker={marker}&wait=2")
        self.assertEqual(len(self.api.clock.getDelayedCalls()), calls + 2)
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

    def test_eachIsToldItsOwnLimit(self) -> None:
        """Those who wait for the same get the same page, with the limit that each has asked for, and never a marker."""
        self.api.create("web1")
        marker = self.lastEvent()
        asked = [(marker, 100), (marker.upper(), 100), (marker, 50), (marker, 100)]
        waiting = [self.ask(f"marker={text}&limit={limit}&wait=30") for text, limit in asked]
        self.api.create("web2")
        self.api.advance(0.1)
        told = [self.reply(each).json for each in waiting]
        expected = [(None, limit) for _, limit in asked]
        self.assertEqual([(each["metadata"]["marker"], each["metadata"]["limit"]) for each in told], expected)
        self.assertEqual([each["values"] for each in told], [told[0]["values"]] * 4)

    def test_oneLookIsEnoughForAll(self) -> None:
        """However many wait for the same, the store is asked once for them, and once more when there is news."""
        self.api.create("web1")
        marker = self.lastEvent()
        looks: list[Any] = []
        read = self.api.store.listEvents
        self.patch(self.api.store, "listEvents", lambda *args: looks.append(args) or read(*args))
        waiting = [self.ask(f"marker={marker}&wait=30") for _ in range(20)]
        self.assertEqual(len(looks), 1)
        self.api.create("web2")
        self.api.advance(0.1)
        self.assertEqual([self.ids(each) for each in waiting], [["web1", "web2"]] * 20)
        self.assertEqual(len(looks), 2)

    def test_whatWasSeenBeforeTheNewsIsForgotten(self) -> None:
        """Who comes after a change is shown it, whatever others were shown before, and whether or not they wait on."""
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
        """Without a marker everything of the last hour is new, and where there is nothing one waits for the first."""
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
        """A timeout, and a configuration value that is set or removed, are news as well."""
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

    def test_anUpdateIsNoNews(self) -> None:
        """What leaves no event ends no waiting, and neither do the events of another account."""
        self.api.create("web1")
        waiting = self.ask(f"marker={self.lastEvent()}&wait=30")
        self.api.ask("PUT", "/services/web1", {"tags": ["a"]})
        self.api.ask("PUT", "/services/nobody", {"tags": ["a"]})
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

    def test_aStoreThatIsAwayEndsIt(self) -> None:
        """When the feed can't be read, who waits is told so."""
        self.api.store.unavailable = True
        self.assertEqual(self.reply(self.ask("wait=30")).code, 503)

    def test_isForgottenWhenTheClientHangsUp(self) -> None:
        """Nothing is kept of a client that has gone: neither memory nor anything on the reactor."""
        calls = len(self.api.clock.getDelayedCalls())
        waiting = self.ask("wait=60")
        request = weakref.ref(waiting.protocol.requests[0])
        waiting.transport.abortConnection()
        del waiting
        gc.collect()
        self.assertIsNone(request())
        self.assertEqual(len(self.api.clock.getDelayedCalls()), calls)

    def test_stoppingEndsIt(self) -> None:
        """A registry that stops lets nobody wait, neither those who do nor those who come: the page comes as it is."""
        self.api.create("web1")
        marker = self.lastEvent()
        waiting = self.ask(f"marker={marker}&wait=60")
        self.api.registry.feed.endWaiting()
        self.assertEqual(self.ids(waiting), ["web1"])
        self.assertEqual(self.ids(self.ask(f"marker={marker}&wait=60")), ["web1"])

    def test_aThousand(self) -> None:
        """A thousand followers all hear of a change, within a few turns of the reactor, and cost nothing until then."""
        api = Api(rateLimit=10_000)
        calls = [self.ask("wait=60", api) for _ in range(1000)]
        read = api.store.listEvents
        looks: list[object] = []

        def counted(*arguments: Any) -> Any:
            looks.append(arguments)
            return read(*arguments)

        api.store.listEvents = counted  # type: ignore[method-assign]  # only counts
        api.advance(30)
        self.assertEqual(len(looks), 0)
        api.create("web1")
        for _ in range(20):
            api.clock.advance(0)
        self.assertEqual({self.reply(each).code for each in calls}, {200})
        self.assertEqual(len(looks), 1000)


class SubscribersTests(SynchronousTestCase):
    """
    Which subscribers are notified, and when.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.subscribers = Subscribers(self.clock)

    def test_aLookThatIsOlderThanTheNews(self) -> None:
        """A look that was under way when there was news is good for nobody who looks after them."""
        looks: list[Deferred[str]] = []

        def read() -> Deferred[str]:
            looks.append(Deferred())
            return looks[-1]

        def look() -> Deferred[str]:
            return self.subscribers.read("1", "all", read, lambda result: True)

        self.subscribers.wait("1", "all")
        before = [look(), look()]
        self.subscribers.notify(["1"])
        self.subscribers.wait("1", "all")
        after = [look(), look()]
        self.assertEqual(len(looks), 2)
        looks[0].callback("old")
        self.assertEqual([self.successResultOf(each) for each in before], ["old", "old"])
        for each in after:
            self.assertNoResult(each)
        looks[1].errback(ValueError("the store is away"))
        for each in after:
            self.failureResultOf(each, ValueError)
        again = look()
        looks[2].callback("new")
        self.assertEqual(self.successResultOf(again), "new")
        self.assertEqual(self.successResultOf(look()), "new")
        self.assertEqual(len(looks), 3)

    def waitHavingSeen(self, count: int) -> tuple[list[Deferred[bool]], list[Deferred[str]]]:
        """Some who have seen the same of a feed, and wait. Their looks from now on are put into the second list."""
        looks: list[Deferred[str]] = []

        def read() -> Deferred[str]:
            looks.append(Deferred())
            return looks[-1]

        self.subscribers.read("1", "all", read, lambda result: True)
        looks.pop().callback("old")
        self.assertEqual(self.subscribers.cached("1", "all"), "old")
        return [self.subscribers.wait("1", "all") for _ in range(count)], looks

    def test_newsAreThereWhenTheyAreHeard(self) -> None:
        """What all have seen is looked at once more before anybody hears that there is news, and then each finds it."""
        waiting, looks = self.waitHavingSeen(3)
        self.subscribers.notify(["1"])
        self.clock.advance(0)
        for news in waiting:
            self.assertNoResult(news)
        self.assertIsNone(self.subscribers.cached("1", "all"))
        (look,) = looks
        look.callback("new")
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(news) for news in waiting], [True] * 3)
        self.assertEqual((self.subscribers.cached("1", "all"), len(looks)), ("new", 1))

    def test_whatNobodyWaitsForIsNotLookedAt(self) -> None:
        """Others may have seen something else of the feed, and be gone; and who is alone looks without help."""
        (alone,), looks = self.waitHavingSeen(1)
        self.subscribers.notify(["1"])
        self.clock.advance(0)
        self.assertTrue(self.successResultOf(alone))
        self.waitHavingSeen(0)
        others = [self.subscribers.wait("1", "something else") for _ in range(2)]
        self.subscribers.notify(["1"])
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(news) for news in others], [True] * 2)
        self.assertEqual(looks, [])

    def test_newsThatCantBeLookedAt(self) -> None:
        """When that look fails they hear all the same: each finds out why, and is told."""
        waiting, looks = self.waitHavingSeen(2)
        self.subscribers.notify(["1"])
        looks[0].errback(ValueError("the store is away"))
        self.clock.advance(0)
        self.assertEqual([self.successResultOf(news) for news in waiting], [True] * 2)

    def test_endsWhileNewsAreLookedAt(self) -> None:
        """Whoever is about to hear of news hears at the end, too, and once."""
        (news, gone), looks = self.waitHavingSeen(2)
        self.subscribers.notify(["1"])
        gone.cancel()
        self.failureResultOf(gone)
        self.subscribers.end()
        self.assertTrue(self.successResultOf(news))
        looks[0].callback("new")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hearsOnce(self) -> None:
        """News that comes while one is about to hear of some is heard as one."""
        news = self.subscribers.wait("1", "all")
        self.subscribers.notify(["1"])
        self.subscribers.notify(["1", "2"])
        self.assertNoResult(news)
        self.clock.advance(0)
        self.assertTrue(self.successResultOf(news))

    def test_cancelled(self) -> None:
        """Who has been told already can still leave."""
        told, waiting = self.subscribers.wait("1", "all"), self.subscribers.wait("2", "all")
        self.subscribers.notify(["1"])
        for news in (told, waiting):
            news.cancel()
            self.failureResultOf(news)

    def place(self, latest: float) -> Subscription:
        """Somebody who may wait for ten seconds in all has a place, and waits."""
        place = self.subscribers.subscribe("1", 10, latest)
        place.change = self.subscribers.wait("1", "all")
        return place

    def heard(self, place: Subscription) -> bool:
        """Whether what it waits for has come."""
        assert place.change is not None
        return place.change.called

    def test_takesAPlaceAfterALongLook(self) -> None:
        """Everybody is answered in time, in whatever order they took their places, with one timer for all."""
        latest = [7.0, 6.0, 9.0, 5.0, 8.0, 6.0]
        places = [self.place(each) for each in latest]
        self.assertEqual([call.getTime() for call in self.clock.getDelayedCalls()], [5.0])
        answered: dict[Subscription, float] = {}
        while len(answered) < len(places):
            self.clock.advance(0.5)
            for place in places:
                if place not in answered and self.heard(place):
                    self.subscribers.unsubscribe(place)
                    answered[place] = self.clock.seconds()
            self.assertEqual(len(self.clock.getDelayedCalls()), min(1, len(places) - len(answered)))
        self.assertEqual([answered[place] for place in places], latest)

    def test_endsWhileSomebodyLooks(self) -> None:
        """When nobody may wait any more nothing is left on the reactor, whatever those with a place are about."""
        waits, looks = self.place(5), self.subscribers.subscribe("1", 60, 60)
        self.subscribers.end()
        self.assertTrue(self.heard(waits))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        late = self.place(5)
        self.assertTrue(self.heard(late))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        for place in (waits, looks, late):
            self.subscribers.unsubscribe(place)
        self.assertEqual(self.subscribers.count, 0)
        self.clock.advance(0)
        self.subscribers.notify(["2"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_end(self) -> None:
        """At the end those who have been told hear the news, the others that there is none."""
        told, waiting = self.subscribers.wait("1", "all"), self.subscribers.wait("2", "all")
        self.subscribers.notify(["1"])
        self.subscribers.end()
        self.assertTrue(self.successResultOf(told))
        self.assertFalse(self.successResultOf(waiting))
        self.assertFalse(self.successResultOf(self.subscribers.wait("1", "all")))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SocketTests(TestCase):
    """
    Followers of a registry that runs, over sockets.
    """

    timeout = 60

    async def started(self) -> RegistryService:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        service = RegistryService(
            reactor, dataDir=directory.name, store="memory", endpoints=["tcp:0:interface=127.0.0.1"]
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

    def following(self, count: int) -> Sequence[Deferred[tuple[int, list[Any]]]]:
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

    async def test_hundredFollowers(self) -> None:
        """A hundred followers on a hundred sockets hear of a change at once."""
        service = await self.started()
        followers = self.following(100)
        await self.connected(service, 100)
        began = reactor.seconds()
        body = {"id": "web1", "heartbeat_timeout": 30}
        await self.client.post(f"{self.url}/services", headers=self.headers, json=body)
        answers = await gatherResults(followers)
        self.assertLess(reactor.seconds() - began, 5)
        self.assertEqual({values[0]["payload"]["id"] for _, values in answers}, {"web1"})

    async def test_stoppingTakesNoLongerBecauseOfThem(self) -> None:
        """Who waits when the registry stops gets the page as it is, and nobody waits out the time that others have."""
        service = await self.started()
        followers = self.following(20)
        await self.connected(service, 20)
        began = reactor.seconds()
        await service.stopService()
        self.assertLess(reactor.seconds() - began, 0.9)
        self.assertEqual(await gatherResults(followers), [(200, [])] * 20)
