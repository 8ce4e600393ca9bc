"""Whatever happens, in whatever order: at a quiet moment a directory holds what a full listing does."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.directory import Directory
from txserviceregistry.discovery.watcher import ConfigurationWatcher
from txserviceregistry.errors import ServiceRegistryError
from txserviceregistry.testing import FakeRegistry

IDS = ["aaa", "bbb", "ccc", "ddd"]
TAGS = [[], ["one"], ["two"], ["one", "two"]]

# More of them: HYPOTHESIS_EXAMPLES=2000 trial tests.discovery.test_directoryproperty
EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "60"))

steps = st.one_of(
    st.tuples(st.just("create"), st.sampled_from(IDS), st.sampled_from([3, 10, 120]), st.sampled_from(TAGS)),
    st.tuples(st.just("remove"), st.sampled_from(IDS)),
    st.tuples(st.just("update"), st.sampled_from(IDS), st.sampled_from(TAGS)),
    st.tuples(st.just("set"), st.sampled_from(["/xyz/aaa", "/xyz/bbb", "/xyzz/aaa"]), st.sampled_from(["1", "2"])),
    st.tuples(st.just("unset"), st.sampled_from(["/xyz/aaa", "/xyz/bbb", "/xyzz/aaa"])),
    st.tuples(st.just("advance"), st.sampled_from([0.1, 1.0, 4.0, 31.0, 65.0])),
    st.tuples(
        st.just("fault"),
        st.sampled_from(["failNext", "garbageNext", "truncateNext", "dropNext", "loseNext", "hangNext"]),
        st.integers(1, 3),
    ),
    st.tuples(st.sampled_from(["partition", "heal", "pause", "resume", "stop", "start", "lose", "purge", "flush"])),
)


class World:
    """A registry, what follows it, and somebody who changes things."""

    def __init__(self, case: SynchronousTestCase) -> None:
        self.case = case
        self.fake = FakeRegistry()
        self.follower = self.fake.client()
        self.directory = Directory(self.follower, random=lambda: 0.5)
        self.tagged = Directory(self.follower, "one", random=lambda: 0.5)
        self.watcher = ConfigurationWatcher(self.follower, "/xyz", random=lambda: 0.5)
        self.mirrors = [self.directory, self.tagged, self.watcher]
        self.told: dict[str, Any] = {}
        self.directory.onChange(self.hear)
        for mirror in self.mirrors:
            mirror.startService()
        self.by = self.fake.client(cache=None, timeout=1.0)

    def hear(self, kind: str, service: Any) -> None:
        if kind in ("join", "update"):
            self.case.assertEqual(service["id"] in self.told, kind == "update")
            self.told[service["id"]] = service["tags"]
        else:
            del self.told[service["id"]]

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
            case ("fault", name, count):
                getattr(fake, name)(count)
            case ("lose",):
                fake.restart(keepData=False)
            case ("purge",):
                fake.purgeTokens()
            case (name,):
                getattr(fake, name)()

    def attempt(self, result: Deferred[Any]) -> None:
        result.addErrback(lambda failure: failure.trap(ServiceRegistryError))
        self.fake.flush()

    def settle(self) -> None:
        self.fake.heal()
        self.fake.resume()
        self.fake.start()
        self.fake.advance(130)

    def listing(self, tag: str | None = None) -> list[Any]:
        async def everything() -> list[Any]:
            return [_bare(service) async for service in self.by.services.iterate(tag)]

        return self.result(everything())

    def values(self) -> dict[str, str]:
        async def everything() -> dict[str, str]:
            return {value["id"]: value["value"] async for value in self.by.configuration.iterate("/xyz")}

        return self.result(everything())

    def result(self, work: Any) -> Any:
        result = Deferred.fromCoroutine(work)
        self.fake.advance(2)
        return self.case.successResultOf(result)

    def end(self) -> None:
        for mirror in self.mirrors:
            self.case.successResultOf(mirror.stopService())
        for client in (self.follower, self.by):
            self.case.successResultOf(client.close())


def _bare(service: Any) -> Any:
    return {key: value for key, value in service.items() if key != "last_seen"}


class PropertyTests(SynchronousTestCase):
    """Random programs."""

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 60, database=None)
    @given(st.lists(steps, max_size=25))
    def test_equalsAFullListing(self, program: list[tuple[Any, ...]]) -> None:
        """After outages, restarts with and without data, faults and changes of all kinds."""
        world = World(self)
        for step in program:
            world.do(step)
        world.settle()
        self.assertEqual([_bare(service) for service in world.directory.services()], world.listing())
        self.assertEqual([_bare(service) for service in world.tagged.services()], world.listing("one"))
        self.assertEqual(
            [_bare(service) for service in world.directory.forTag("one")], [_bare(s) for s in world.tagged.services()]
        )
        self.assertEqual(dict(world.watcher), world.values())
        self.assertEqual({s["id"]: s["tags"] for s in world.directory.services()}, world.told)
        self.assertEqual([mirror.stale for mirror in world.mirrors], [0.0, 0.0, 0.0])
        world.end()
        self.assertEqual(world.fake.clock.getDelayedCalls(), [])
