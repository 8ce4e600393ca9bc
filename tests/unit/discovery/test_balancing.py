"""
Load balancing: locality, ejections, disabled instances, and attempts with one instance after another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.discovery.balancing import Balancer, Instance, TryNext, tryEach
from txserviceregistry.errors import NoServiceAvailable
from txserviceregistry.types import Service

from .standin import FakeDirectory, numbers, service


class BalancingTestCase(SynchronousTestCase):
    """A test with a directory and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()

    def balancer(self, *services: Service, near: Mapping[str, str] | None = None, **options: Any) -> Balancer:
        self.directory = FakeDirectory(*services)
        return Balancer(self.directory, "web", clock=self.clock, near=near, **{"random": lambda: 0.0, **options})

    def picks(self, balancer: Balancer, count: int) -> list[str]:
        picked = [balancer.pick() for _ in range(count)]
        return [one.id if one is not None else "-" for one in picked]


class PickTests(BalancingTestCase):
    """Which instances are picked."""

    def test_picksByTheStrategy(self) -> None:
        """The strategy that is named, or given, decides; round robin if none is."""
        services = [service(name) for name in ("aaa", "bbb", "ccc")]
        self.assertEqual(self.picks(self.balancer(*services), 4), ["aaa", "bbb", "ccc", "aaa"])
        balancer = self.balancer(*services, strategy="random", random=numbers(0.9, 0.1))
        self.assertEqual(self.picks(balancer, 2), ["ccc", "aaa"])
        balancer = self.balancer(*services, strategy="least-connections")
        first = balancer.pick()
        assert first is not None
        balancer.strategy.began(first)
        self.assertNotEqual(self.picks(balancer, 1), [first.id])
        balancer.strategy.ended(first)

    def test_followsTheDirectory(self) -> None:
        """New services are picked, removed ones are not; services of other tags never are."""
        balancer = self.balancer(service("aaa"), service("xxx", tags=("mail",)))
        self.assertEqual(self.picks(balancer, 2), ["aaa", "aaa"])
        self.directory.put(service("bbb"))
        self.assertEqual(self.picks(balancer, 2), ["bbb", "aaa"])
        self.directory.remove("aaa")
        self.assertEqual(self.picks(balancer, 2), ["bbb", "bbb"])
        self.directory.remove("bbb")
        self.assertEqual(self.picks(balancer, 1), ["-"])
        self.assertTrue(balancer.isEmpty)

    def test_drainedOnesAreNotPicked(self) -> None:
        """The state ``drain`` or ``out`` takes an instance out until it is up; so does a weight of 0."""
        balancer = self.balancer(service("aaa"), service("bbb"), service("ccc", weight="0"))
        for state in ("drain", "out"):
            self.directory.put({**service("aaa"), "state": state, "state_reason": ""})  # type: ignore[typeddict-item]
            self.assertEqual(self.picks(balancer, 2), ["bbb", "bbb"])
        self.directory.put(service("aaa"))
        self.assertEqual(set(self.picks(balancer, 4)), {"aaa", "bbb"})

    def test_disabledOnesAreNotPicked(self) -> None:
        """``status=disabled`` takes an instance out until it says otherwise."""
        balancer = self.balancer(service("aaa", status="disabled"), service("bbb"))
        self.assertEqual(self.picks(balancer, 2), ["bbb", "bbb"])
        self.directory.put(service("aaa"))
        self.assertEqual(self.picks(balancer, 2), ["aaa", "bbb"])

    def test_onlyDisabledOnes(self) -> None:
        """If all are disabled none is picked, and the error says so."""
        balancer = self.balancer(service("aaa", status="disabled"), service("bbb", host=" "))
        self.assertEqual(self.picks(balancer, 1), ["-"])
        self.assertIn("all 2 are drained or disabled", str(balancer.unavailable()))

    def test_aServiceWithoutAnAddressIsLoggedOnce(self) -> None:
        """A service without a valid address has one line in the log, however often the directory changes."""
        logged: list[LogEvent] = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        balancer = self.balancer(service("aaa", host=" "), service("bbb"))
        self.assertEqual(self.picks(balancer, 1), ["bbb"])
        self.directory.put(service("aaa", host=" ", note="another"))
        self.assertEqual(self.picks(balancer, 1), ["bbb"])
        self.assertEqual([event["id"] for event in logged if "why" in event], ["aaa"])

    def test_nearOnesAreTaken(self) -> None:
        """Of the same zone, else of the same region, else any; a zone of the same name elsewhere is far."""
        here = {"region": "eu", "zone": "a"}
        services = [
            service("far", region="us", zone="a"),
            service("next", region="eu", zone="b"),
            service("same", region="eu", zone="a"),
        ]
        balancer = self.balancer(*services, near=here)
        self.assertEqual(self.picks(balancer, 2), ["same", "same"])
        self.directory.remove("same")
        self.assertEqual(self.picks(balancer, 2), ["next", "next"])
        self.directory.remove("next")
        self.assertEqual(self.picks(balancer, 2), ["far", "far"])

    def test_fallsBackWhileTheNearOneFails(self) -> None:
        """While a near one is ejected, a far one is picked."""
        balancer = self.balancer(service("far"), service("same", zone="a"), near={"zone": "a"})
        near = balancer.pick()
        assert near is not None
        balancer.failed(near)
        self.assertEqual(self.picks(balancer, 1), ["far"])
        self.clock.advance(1)
        self.assertEqual(self.picks(balancer, 1), ["same"])

    def test_unknownWords(self) -> None:
        """Unknown strategies and unknown keys of *near* are ValueErrors."""
        self.assertRaises(ValueError, self.balancer, strategy="best")
        text = str(self.assertRaises(ValueError, self.balancer, near={"rack": "1"}))
        self.assertEqual(text, "near takes region and zone only, not rack")


class EjectionTests(BalancingTestCase):
    """Ejections."""

    def failing(self, balancer: Balancer) -> float:
        """Let the only instance but one fail; how long it is ejected."""
        [failing] = [one for one in (balancer.pick(), balancer.pick()) if one is not None and one.id == "aaa"]
        balancer.failed(failing)
        began = self.clock.seconds()
        while "aaa" not in self.picks(balancer, 2):
            self.clock.advance(0.5)
        return self.clock.seconds() - began

    def test_growingEjections(self) -> None:
        """After a failure an instance is ejected for a second, then two, four, and so on, a minute at most."""
        balancer = self.balancer(service("aaa"), service("bbb"))
        self.assertEqual([self.failing(balancer) for _ in range(8)], [1, 2, 4, 8, 16, 32, 60, 60])
        first = balancer.pick({("bbb", "h", 80)})
        assert first is not None
        balancer.succeeded(first)
        self.assertEqual(self.failing(balancer), 1)

    def test_failuresTogetherAreOne(self) -> None:
        """Ten connections that are refused at the same time are one failure, not ten in a row."""
        balancer = self.balancer(service("aaa"), service("bbb"))
        first = balancer.pick()
        assert first is not None
        for _ in range(10):
            balancer.failed(first)
        self.clock.advance(1)
        self.assertIn("aaa", self.picks(balancer, 2))

    def test_comesBack(self) -> None:
        """The others are picked meanwhile; then it is picked again, and a success ends the row of failures."""
        balancer = self.balancer(service("aaa"), service("bbb"))
        first = balancer.pick()
        assert first is not None
        balancer.failed(first)
        self.assertEqual(self.picks(balancer, 2), ["bbb", "bbb"])
        self.clock.advance(1)
        self.assertEqual(self.picks(balancer, 2), ["aaa", "bbb"])
        balancer.succeeded(first)
        balancer.failed(first)
        self.clock.advance(1)
        self.assertIn("aaa", self.picks(balancer, 2))

    def test_whenAllHaveFailed(self) -> None:
        """If all have failed, the one whose failure is oldest is picked."""
        balancer = self.balancer(service("aaa"), service("bbb"))
        for _ in range(2):
            picked = balancer.pick()
            assert picked is not None
            balancer.failed(picked)
            self.clock.advance(0.1)
        self.assertEqual(self.picks(balancer, 2), ["aaa", "aaa"])

    def test_anotherAddressIsAnotherInstance(self) -> None:
        """A service that is registered again, with another port, is another instance."""
        balancer = self.balancer(service("aaa", 1), service("bbb"))
        first = balancer.pick()
        assert first is not None
        balancer.failed(first)
        self.directory.put(service("aaa", 2))
        self.assertEqual(sorted(self.picks(balancer, 2)), ["aaa", "bbb"])
        self.directory.put(service("aaa", 1))
        self.assertEqual(sorted(self.picks(balancer, 2)), ["aaa", "bbb"])


class TryEachTests(BalancingTestCase):
    """Trying one after the other."""

    def setUp(self) -> None:
        super().setUp()
        self.tried: list[str] = []

    async def refuse(self, instance: Instance, ended: object) -> str:
        self.tried.append(instance.id)
        raise TryNext(OSError(f"no {instance.id}"))

    async def onlyC(self, instance: Instance, ended: object) -> str:
        return instance.id if instance.id == "ccc" else await self.refuse(instance, ended)

    def test_triesTheNextOne(self) -> None:
        """The first that works is the result, and those that did not are ejected."""
        balancer = self.balancer(service("aaa"), service("bbb"), service("ccc"))
        self.assertEqual(self.successResultOf(tryEach(balancer, self.onlyC, timeout=1)), "ccc")
        self.assertEqual(self.tried, ["aaa", "bbb"])
        self.assertEqual(self.successResultOf(tryEach(balancer, self.onlyC, timeout=1)), "ccc")
        self.assertEqual(self.tried, ["aaa", "bbb"])

    def test_triesEachOnce(self) -> None:
        """If none works, each was tried once, and the error has each reason and the age of the directory."""
        balancer = self.balancer(service("aaa", 1), service("bbb", 2))
        self.directory.stale = 12.25
        error = self.failureResultOf(tryEach(balancer, self.refuse, timeout=1), NoServiceAvailable).value
        self.assertEqual(sorted(self.tried), ["aaa", "bbb"])
        self.assertEqual(
            str(error),
            "No service with the tag 'web' could be reached (as of 12.2 s ago): aaa at h:1: no aaa; bbb at h:2: no bbb",
        )

    def test_noInstance(self) -> None:
        """Without any service it fails at once."""
        result = tryEach(self.balancer(), self.refuse, timeout=1)
        self.assertIn("is registered", str(self.failureResultOf(result, NoServiceAvailable).value))

    def test_otherErrorsEndIt(self) -> None:
        """Any other error is the result, and no other instance is tried."""

        async def fail(instance: Instance, ended: object) -> None:
            self.tried.append(instance.id)
            raise KeyError("mine")

        result = tryEach(self.balancer(service("aaa"), service("bbb")), fail, timeout=1)
        self.failureResultOf(result, KeyError)
        self.assertEqual(self.tried, ["aaa"])

    def test_reachedOnesAreNotEjected(self) -> None:
        """When the last one was reached, its own error is the result, and it is picked again next time."""

        async def fail(instance: Instance, ended: object) -> None:
            self.tried.append(instance.id)
            raise TryNext(KeyError("mine"), wasReached=True)

        balancer = self.balancer(service("aaa"))
        for _ in range(2):
            self.failureResultOf(tryEach(balancer, fail, timeout=1), KeyError)
        self.directory.put(service("bbb"))
        self.failureResultOf(tryEach(balancer, fail, timeout=1), KeyError)
        self.assertEqual(sorted(self.tried), ["aaa", "aaa", "aaa", "bbb"])

    def test_waitsForTheFirstListing(self) -> None:
        """Before anything was ever listed it waits for it."""
        balancer = self.balancer()
        self.directory.stale = math.inf
        result = tryEach(balancer, self.onlyC, timeout=5)
        self.clock.advance(4)
        self.assertNoResult(result)
        self.directory.put(service("ccc"))
        self.directory.becomeReady()
        self.assertEqual(self.successResultOf(result), "ccc")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timeout(self) -> None:
        """After its timeout the error says that there is no listing yet."""
        balancer = self.balancer()
        self.directory.stale = math.inf
        result = tryEach(balancer, self.refuse, timeout=5)
        self.clock.advance(5)
        self.assertIn("no response from the registry yet", str(self.failureResultOf(result, NoServiceAvailable).value))

    def test_cancellingWhileItWaits(self) -> None:
        """Cancelled while it waits for the listing, it leaves nothing behind."""
        balancer = self.balancer()
        self.directory.stale = math.inf
        result = tryEach(balancer, self.refuse, timeout=5)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancellingEndsTheAttempt(self) -> None:
        """Cancelling ends the attempt, and no other instance is tried, whatever the attempt raises."""

        async def hang(instance: Instance, ended: object) -> None:
            self.tried.append(instance.id)
            try:
                await Deferred()
            except CancelledError:
                raise TryNext(OSError("it was cancelled"))

        result = tryEach(self.balancer(service("aaa"), service("bbb")), hang, timeout=5)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertEqual(self.tried, ["aaa"])

    def test_cancellingAnAttemptThatTakesItsTime(self) -> None:
        """An attempt that takes long to end does not delay the cancellation."""
        ending: Deferred[None] = Deferred()

        async def slow(instance: Instance, ended: object) -> None:
            try:
                await Deferred()
            finally:
                await ending

        result = tryEach(self.balancer(service("aaa")), slow, timeout=5)
        result.cancel()
        self.failureResultOf(result, CancelledError)
        ending.callback(None)
