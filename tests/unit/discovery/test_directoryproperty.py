"""
With random events in random order: at a quiet moment a directory holds what a full listing does, and a feed has given
each event once. So it is over an event stream, over requests that wait, over polling, and while these change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.discovery.directory import Directory
from txserviceregistry.discovery.feed import EventsFeed
from txserviceregistry.discovery.mirror import ConfigurationWatcher
from txserviceregistry.errors import ServiceRegistryError
from txserviceregistry.testing import FakeRegistry

from .standin import Limited

IDS = ["aaa", "bbb", "ccc", "ddd"]
TAGS = [[], ["one"], ["two"], ["one", "two"]]

# Seconds that the subscribers' requests take on their way, so that things happen in the middle of a listing.
SLOW = [0.0, 0.0, 0.1, 0.3, 1.0]

changes = (
    st.tuples(st.just("create"), st.sampled_from(IDS), st.sampled_from([3, 10, 120]), st.sampled_from(TAGS)),
    st.tuples(st.just("remove"), st.sampled_from(IDS)),
    st.tuples(st.just("set"), st.sampled_from(["/xyz/aaa", "/xyz/bbb", "/xyzz/aaa"]), st.sampled_from(["1", "2"])),
    st.tuples(st.just("unset"), st.sampled_from(["/xyz/aaa", "/xyz/bbb", "/xyzz/aaa"])),
    st.tuples(st.just("advance"), st.sampled_from([0.1, 1.0, 4.0, 31.0, 65.0])),
)
updates = (st.tuples(st.just("update"), st.sampled_from(IDS), st.sampled_from(TAGS)),)
faults = (
    st.tuples(
        st.just("fault"),
        st.sampled_from(["failNext", "garbageNext", "truncateNext", "dropNext", "loseNext", "hangNext"]),
        st.integers(1, 3),
    ),
    st.tuples(st.sampled_from(["partition", "heal", "pause", "resume", "stop", "start", "purge", "flush"])),
)
losses = (st.tuples(st.just("lose")),)
TRANSPORTS = ["stream", "stream", "wait", "poll"]
transports = st.sampled_from(TRANSPORTS)
switches = (st.tuples(st.just("switch"), transports),)


class SlowAgent:
    """A network on which every request takes its time."""

    def __init__(self, agent: Any, clock: Clock, seconds: float) -> None:
        self.agent = agent
        self.clock = clock
        self.seconds = seconds

    def request(self, *request: Any) -> Deferred[Any]:
        return deferLater(self.clock, self.seconds, self.agent.request, *request)


class World:
    """A registry, its subscribers, and a client that changes things."""

    def __init__(
        self,
        case: SynchronousTestCase,
        slow: float,
        transport: str,
        refresh: float | None = None,
        between: Callable[[Any], Any] = lambda agent: agent,
    ) -> None:
        self.case = case
        self.fake = FakeRegistry()
        agent = between(SlowAgent(self.fake.agent, self.fake.clock, slow) if slow else self.fake.agent)
        self.subscriber = Client(
            self.fake.username, self.fake.apiKey, baseUrl=self.fake.url, agent=agent, reactor=self.fake.clock
        )
        client: Any = Limited(self.subscriber, transport)
        self.client = client
        options: dict[str, Any] = {"random": lambda: 0.5, "wallClock": self.fake.wallClock}
        self.directory = Directory(client, refresh=refresh, **options)
        self.tagged = Directory(client, "one", refresh=refresh, **options)
        self.watcher = ConfigurationWatcher(client, "/xyz", **options)
        self.feed = EventsFeed(client, **options)
        self.events: list[Any] = []
        self.gaps: list[int] = []
        self.feed.onEvent(self.events.append)
        self.feed.onGap(lambda: self.gaps.append(len(self.events)))
        self.mirrors = [self.directory, self.tagged, self.watcher]
        self.reported: dict[str, Any] = {}
        self.directory.onChange(self.onChange)
        for mirror in self.mirrors:
            mirror.startService()
        self.feed.startService()
        self.fake.advance(5 * slow + 0.1)
        self.by = self.fake.client(cache=None, timeout=1.0)

    def onChange(self, kind: str, service: Any) -> None:
        if kind in ("join", "update"):
            self.case.assertEqual(service["id"] in self.reported, kind == "update")
            self.reported[service["id"]] = service["tags"]
        else:
            del self.reported[service["id"]]

    def do(self, step: tuple[Any, ...]) -> None:
        fake, by = self.fake, self.by
        match step:
            case ("create", id, timeout, tags):
                self.attempt(by.services.create(id, timeout, {"tags": tags}))
            case ("remove", id):
                self.attempt(by.services.remove(id))
            case ("update", id, tags):
                self.attempt(by.services.update(id, {"tags": tags}))
            case ("set", key, value):
                self.attempt(by.configuration.set(key, value))
            case ("unset", key):
                self.attempt(by.configuration.remove(key))
            case ("advance", seconds):
                fake.advance(seconds)
            case ("fault", "failNext", count):
                fake.failNext(503, count)
            case ("fault", name, count):
                getattr(fake, name)(count)
            case ("switch", transport):
                self.client.switch(transport)
            case ("lose",):
                fake.restart(keepData=False)
            case ("purge",):
                fake.purgeTokens()
            case (name,):
                getattr(fake, name)()

    def attempt(self, result: Deferred[Any]) -> None:
        result.addErrback(lambda failure: failure.trap(ServiceRegistryError))
        self.fake.flush()

    def settle(self, seconds: float) -> None:
        self.fake.heal()
        self.fake.resume()
        self.fake.start()
        self.fake.advance(seconds)

    def listing(self, tag: str | None = None) -> list[Any]:
        async def everything() -> list[Any]:
            return [_bare(service) async for service in self.by.services.iterate(tag)]

        return self.result(everything())

    def values(self) -> dict[str, str]:
        async def everything() -> dict[str, str]:
            return {value["id"]: value["value"] async for value in self.by.configuration.iterate("/xyz")}

        return self.result(everything())

    def feedOfAll(self) -> list[str]:
        async def everything() -> list[str]:
            return [event["id"] async for event in self.by.events.iterate()]

        return self.result(everything())

    def result(self, work: Any) -> Any:
        result = Deferred.fromCoroutine(work)
        self.fake.advance(2)
        return self.case.successResultOf(result)

    def end(self) -> None:
        for service in (*self.mirrors, self.feed):
            self.case.successResultOf(service.stopService())
        for client in (self.subscriber, self.by):
            self.case.successResultOf(client.close())


def _bare(service: Any) -> Any:
    return {key: value for key, value in service.items() if key != "last_seen"}


slow = st.sampled_from(SLOW)
Program = list[tuple[Any, ...]]


class PropertyTests(SynchronousTestCase):
    """Random programs."""

    def prove(self, world: World, program: Program, seconds: float) -> None:
        for step in program:
            world.do(step)
        world.settle(seconds)
        self.assertEqual([_bare(service) for service in world.directory.services()], world.listing())
        self.assertEqual([_bare(service) for service in world.tagged.services()], world.listing("one"))
        self.assertEqual(
            [_bare(service) for service in world.directory.forTag("one")], [_bare(s) for s in world.tagged.services()]
        )
        self.assertEqual(dict(world.watcher), world.values())
        self.assertEqual({s["id"]: s["tags"] for s in world.directory.services()}, world.reported)
        self.assertEqual([mirror.stale for mirror in world.mirrors], [0.0, 0.0, 0.0])

    def end(self, world: World) -> None:
        world.end()
        self.assertEqual(world.fake.clock.getDelayedCalls(), [])

    @example([("create", "aaa", 120, []), ("lose",), ("create", "bbb", 120, [])], 0.0, "wait")
    @example([("create", "aaa", 120, []), ("lose",), ("create", "bbb", 120, [])], 0.0, "stream")
    @given(st.lists(st.one_of(*changes, *updates, *faults, *losses, *switches), max_size=25), slow, transports)
    def test_equalsAFullListing(self, program: Program, slow: float, transport: str) -> None:
        """After outages, restarts with and without data, faults and changes of all kinds."""
        world = World(self, slow, transport)
        self.prove(world, program, 200)
        if not world.gaps:
            self.assertLessEqual(set(world.feedOfAll()), {event["id"] for event in world.events})
        self.end(world)

    @given(st.lists(st.one_of(*changes, *faults, *switches), max_size=25), slow, transports)
    def test_eventsAreEnough(self, program: Program, slow: float, transport: str) -> None:
        """Changes that have events need no second listing, and each event comes once and in order."""
        world = World(self, slow, transport, refresh=1_000_000)
        self.prove(world, program, 200)
        self.assertEqual([event["id"] for event in world.events], world.feedOfAll())
        self.assertEqual((world.gaps, [event for event in world.events if "redelivered" in event]), ([], []))
        self.end(world)
