"""
Suspects: services that stay in use because too many have expired at once.
"""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.discovery.balancing import Balancer
from txserviceregistry.discovery.directory import Suspects
from txserviceregistry.types import Service

from .standin import FakeDirectory, service


class _Service(dict[str, Any]):
    """A service to which there may be a weak reference."""


class SuspectsTests(SynchronousTestCase):
    """Which services stay in use."""

    def setUp(self) -> None:
        self.clock = Clock()

    def suspects(self, count: int, threshold: float = 0.5, **options: Any) -> Suspects:
        """Over a directory with services ``a0``, ``a1``, …"""
        self.directory: Any = FakeDirectory(*(service(f"a{number}", **options) for number in range(count)))
        suspects = Suspects(self.directory, self.clock, threshold)
        self.changes: list[tuple[str, str]] = []
        suspects.onChange(lambda kind, one: self.changes.append((kind, one["id"])))
        return suspects

    def expire(self, *numbers: int, apart: float = 0.0) -> None:
        for number in numbers:
            self.directory.expire(f"a{number}")
            self.clock.advance(apart)

    def ids(self, suspects: Suspects, tag: str = "web") -> str:
        """The numbers of the services of a tag."""
        return "".join(one["id"][1:] for one in suspects.forTag(tag))

    def test_moreThanHalf(self) -> None:
        """When more than half expire they stay in use, those included that expired first."""
        suspects = self.suspects(6)
        self.expire(0, 2, 4)
        self.assertEqual(self.ids(suspects), "135")
        self.expire(5)
        self.assertEqual(self.ids(suspects), "012345")
        self.assertEqual([one["id"] for one in suspects.services()], [f"a{number}" for number in range(6)])
        self.expire(1, 3)
        self.assertEqual(self.ids(suspects), "012345")

    def test_threeAtLeast(self) -> None:
        """Two services that expire are gone, also if there were no others."""
        suspects = self.suspects(2)
        self.expire(0, 1)
        self.assertEqual(self.ids(suspects), "")
        suspects = self.suspects(3)
        self.expire(0, 1)
        self.assertEqual(self.ids(suspects), "2")
        self.expire(2)
        self.assertEqual(self.ids(suspects), "012")

    def test_withinOneTimeout(self) -> None:
        """Services that expire one by one, over more than their heartbeat timeout, are gone."""
        suspects = self.suspects(5)
        self.expire(0, 1, 2, 3, 4, apart=16.0)
        self.assertEqual(self.ids(suspects), "")
        suspects = self.suspects(5)
        self.expire(0, 1, 2, 3, 4, apart=7.0)
        self.assertEqual(self.ids(suspects), "01234")

    def test_tagsThatNeverChangeAgain(self) -> None:
        """Services that have expired are forgotten in the end, also if each has a tag of its own."""
        suspects = self.suspects(0)
        for number in range(1000):
            one: Any = _Service(service(f"a{number}", tags=(f"tag{number}",)))
            if not number:
                first = ref(one)
            self.directory.put(one)
            self.expire(number, apart=1.0)
        del one
        gc.collect()
        self.assertIsNone(first())
        self.assertEqual(suspects.services(), [])

    def test_deregisteredServicesAreGone(self) -> None:
        """A service that was deregistered never stays in use, whatever happens to the others."""
        suspects = self.suspects(8)
        self.directory.remove("a0", "a1")
        self.expire(2, 3, 4, 5)
        self.assertEqual(self.ids(suspects), "234567")
        self.directory.remove("a6")
        self.assertEqual(self.ids(suspects), "23457")

    def test_theyReturn(self) -> None:
        """A suspect that is registered again is an ordinary service; when half are, the other suspects are dropped."""
        suspects = self.suspects(6)
        self.expire(0, 1, 2, 3, 4, 5)
        self.directory.put(service("a0", 81), service("a1"))
        self.assertEqual(self.ids(suspects), "012345")
        self.assertEqual(suspects.forTag("web")[0]["metadata"]["port"], "81")
        self.directory.put(service("a2"))
        self.assertEqual(self.ids(suspects), "012")
        self.expire(0)
        self.assertEqual(self.ids(suspects), "12")

    def test_deregisteredAfterItsReturn(self) -> None:
        """A suspect that returns and is deregistered is gone."""
        suspects = self.suspects(4)
        self.expire(0, 1, 2, 3)
        self.directory.put(service("a0"))
        self.directory.remove("a0")
        self.assertEqual(self.ids(suspects), "123")

    def test_threshold(self) -> None:
        """Another threshold is another part; with 0 there are no suspects."""
        suspects = self.suspects(10, 0.25)
        self.expire(0, 1, 2)
        self.assertEqual(self.ids(suspects), "0123456789")
        suspects = self.suspects(4, 0)
        self.expire(0, 1, 2, 3)
        self.assertEqual((self.ids(suspects), suspects.services()), ("", []))
        for wrong in (-0.1, 1.1, float("nan"), "x", None):
            with self.assertRaisesRegex(ValueError, "panicThreshold"):
                Suspects(self.directory, self.clock, wrong)  # type: ignore[arg-type]

    def test_eachTagHasItsOwnSuspects(self) -> None:
        """A service may be a suspect of one tag and gone for another, and ends with its last tag."""
        suspects = self.suspects(4, tags=("web", "all"))
        self.directory.put(*(service(f"b{number}", tags=("all",)) for number in range(6)))
        self.expire(0, 1, 2)
        self.assertEqual((self.ids(suspects), self.ids(suspects, "all")), ("0123", "3012345"))
        self.assertEqual(len(suspects.services()), 10)
        self.directory.put(service("a0", tags=("all",)), service("a1", tags=("web", "all")))
        self.assertEqual((self.ids(suspects), self.ids(suspects, "all")), ("13", "013012345"))

    def test_changes(self) -> None:
        """Listeners are told what changes for those who use suspects, too."""
        self.suspects(4)
        self.expire(0, 1)
        self.assertEqual(self.changes, [("timeout", "a0"), ("timeout", "a1")])
        self.expire(2)
        self.assertEqual(self.changes[2:], [("join", "a0"), ("join", "a1")])
        self.expire(3)
        self.assertEqual(self.changes[4:], [])
        self.directory.put(service("a3"), service("a2"))
        self.assertEqual(self.changes[4:], [("join", "a3"), ("join", "a2"), ("timeout", "a0"), ("timeout", "a1")])

    def test_changesOverSeveralTags(self) -> None:
        """With random events, the calls of listeners add up to the services."""
        suspects = self.suspects(5, tags=("web", "all"))
        shown = {one["id"] for one in suspects.services()}

        def changed(kind: str, one: Service) -> None:
            (shown.discard if kind in ("remove", "timeout") else shown.add)(one["id"])

        suspects.onChange(changed)
        steps: list[Any] = [
            lambda: self.expire(0, 1, 2),
            lambda: self.directory.put(service("a5", tags=("all",)), service("a6", tags=("all",))),
            lambda: self.directory.put(service("a0", tags=("web",))),
            lambda: self.expire(5, 6, 3),
            lambda: self.directory.remove("a0"),
            lambda: self.directory.put(*(service(f"a{number}", tags=("web",)) for number in range(4))),
            lambda: self.expire(0, 1, 2, 3, 4),
            lambda: self.directory.put(*(service(f"a{number}", tags=("all",)) for number in range(7))),
        ]
        for step in steps:
            step()
            self.assertEqual(shown, {one["id"] for one in suspects.services()})

    def test_theSameUntilSomethingChanges(self) -> None:
        """As long as nothing changes, the services of a tag are the same object."""
        suspects = self.suspects(3)
        self.directory.forTag = lambda tag: given
        given: tuple[Service, ...] = ()
        self.expire(0, 1, 2)
        self.assertIs(suspects.forTag("web"), suspects.forTag("web"))

    def test_saysSo(self) -> None:
        """The log has a line when suspects come into use, and one when they no longer are."""
        self.suspects(4)
        with capturedLogs() as events:
            self.expire(0, 1, 2, 3)
            self.directory.put(service("a0"), service("a1"))
        self.assertEqual(
            [formatEvent(event) for event in events],
            [
                "3 of 4 services with tag web expired at once: they stay in use as suspects; check the network between"
                " them and the registry",
                "Enough services with tag web are registered again; 2 suspects dropped",
            ],
        )

    def test_endsByItself(self) -> None:
        """An object without references no longer listens."""
        collectOnlyNew(self)
        suspects = self.suspects(3)
        self.assertEqual(self.directory.listeners, 1)
        del suspects
        gc.collect()
        self.assertEqual(self.directory.listeners, 0)

    def test_balancers(self) -> None:
        """A balancer picks suspects, and those that can't be connected to only if there are no others."""
        suspects = self.suspects(4)
        balancer = Balancer(self.directory, "web", clock=self.clock, suspects=suspects, random=lambda: 0.0)
        self.expire(0, 1, 2, 3)
        picked = [balancer.pick() for _ in range(4)]
        self.assertEqual([one and one.id for one in picked], ["a0", "a1", "a2", "a3"])
        assert picked[1] is not None
        balancer.failed(picked[1])
        self.assertEqual({one.id for one in (balancer.pick() for _ in range(6)) if one}, {"a0", "a2", "a3"})
