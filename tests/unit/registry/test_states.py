"""The states of services, as a registry keeps and ends them."""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.defer import fail

from tests.unit.registry.registrycase import NOW, TENANT, RegistryCase
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.model import EVENT_TYPES


class StatesTests(RegistryCase):
    """The rules of states over time."""

    limits = ResourceLimits(service=2)

    def set(self, state: str, id: str = "web1", **fields: Any) -> None:
        """Set a state."""
        self.successResultOf(self.registry.states.set(TENANT, id, state, **fields))

    def state(self, id: str = "web1") -> str:
        """The state of a service."""
        return str(self.successResultOf(self.registry.states.get(TENANT, id)).state)

    def shown(self) -> dict[str, Any]:
        """The services' states, as a listing that asks for them has them."""
        page = self.page(self.registry.list(TENANT, None, 100, None, True))
        return {service["id"]: (service.get("state"), service.get("state_reason")) for service in page.values}

    def stateEvents(self) -> list[tuple[str, float]]:
        """The new states, and when they began, in seconds."""
        page = self.page(self.registry.feed.list(TENANT, None, 1000, frozenset(EVENT_TYPES)))
        return [
            (event["payload"]["state"], event["timestamp"] / 1000 - NOW)
            for event in page.values
            if event["type"] == "service.state"
        ]

    def test_servicesThatAreUpLookAsBefore(self) -> None:
        """Only a service whose state is not up has it in a listing, and only if that is asked for."""
        self.create("web1")
        self.create("web2")
        self.set("drain", reason="rack move")
        self.assertEqual(self.shown(), {"web1": ("drain", "rack move"), "web2": (None, None)})
        self.set("up", reason="back")
        self.assertEqual(self.shown(), {"web1": (None, None), "web2": (None, None)})
        self.set("drain")
        self.assertNotIn("state", self.successResultOf(self.registry.get(TENANT, "web1")))
        self.assertNotIn("state", self.page(self.registry.list(TENANT, None, 100, None)).values[0])
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1", True))["state"], "drain")

    def test_theEndIsInTheFeedAtOnce(self) -> None:
        """A subscriber is notified when a state ends, without a request from anybody."""
        self.set("drain", seconds=100)
        self.set("out", "web2", seconds=3)
        waiting = self.registry.feed.wait(TENANT, None, 100, 60.0, frozenset({"service.state"}))
        self.pass_(2.75)
        self.assertEqual(self.stateEvents(), [("drain", 0.0), ("out", 0.0)])
        self.pass_(0.25)
        self.assertEqual(self.stateEvents()[2:], [("up", 3.0)])
        self.pass_(97)
        self.assertEqual(self.stateEvents()[3:], [("up", 100.0)])
        waiting.close()

    def test_manyEndsOneAfterTheOther(self) -> None:
        """Thousands of ends make a few looks a second, and each has its own time."""
        self.successResultOf(self.registry.states.set(TENANT, "web1", "out", "", 100))
        before = self.store.calls["endStates"]
        for number in range(100):
            self.stepTo(0.01)
            self.successResultOf(self.registry.states.set("99", "web1", "out", str(number), 1))
            self.clock.advance(0)
        self.assertLess(self.store.calls["endStates"] - before, 8)

    def test_theWallClockDecides(self) -> None:
        """A step of the wall clock ends a state within some seconds, and readers see it at once."""
        self.set("drain", seconds=3000)
        self.wallOffset += 3000
        self.assertEqual(self.state(), "up")
        self.pass_(self.registry.states.LOOK)
        self.assertEqual([state for state, _ in self.stateEvents()], ["drain", "up"])

    def test_restart(self) -> None:
        """A state survives a restart; one that ended meanwhile has its event after the start, with the right time."""
        self.set("drain", seconds=100)
        self.set("out", "web2")
        self.successResultOf(self.registry.stop())
        self.clock.advance(200)
        self.registry = self.started()
        self.assertEqual((self.state(), self.state("web2")), ("up", "out"))
        self.assertEqual(self.stateEvents()[2:], [("up", 100.0)])

    def test_anEndWhileTheStoreIsUnavailable(self) -> None:
        """The event of an end comes once the store works again."""
        self.set("drain", seconds=5)
        self.memory.unavailable = True
        self.pass_(60)
        self.memory.unavailable = False
        self.pass_(self.registry.states.LOOK)
        self.assertEqual(self.stateEvents(), [("drain", 0.0), ("up", 5.0)])

    def test_anUnexpectedError(self) -> None:
        """It is logged, and the next look finds the end."""
        self.set("drain", seconds=5)
        with mock.patch.object(self.memory, "endStates", lambda: fail(ZeroDivisionError())):
            self.pass_(5)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.pass_(self.registry.states.LOOK)
        self.assertEqual(self.stateEvents(), [("drain", 0.0), ("up", 5.0)])

    def test_limit(self) -> None:
        """An account has at most as many states as services, and ids without a service count."""
        self.set("drain", "aaa")
        self.set("drain", "bbb")
        fault = self.fault(self.registry.states.set(TENANT, "ccc", "drain"))
        self.assertEqual(
            (fault.code, fault.type, fault.details),
            (400, "limitReached", "Limit for resource service_state has been reached. Maximum allowed objects: 2"),
        )
        self.set("up", "ccc")

    def test_unusedStatesAreDropped(self) -> None:
        """A state whose id has had no service for the retention of events is dropped."""
        self.set("drain")
        self.clock.advance(3600)
        self.assertEqual(self.state(), "drain")
        self.wallOffset += 31 * 86_400
        self.clock.advance(3600)
        self.assertEqual(self.state(), "up")

    def test_stopLeavesNothing(self) -> None:
        """A registry that has stopped leaves nothing on the reactor, also if it stops during a look."""
        self.set("drain", seconds=5)
        held = self.store.hold("endStates")
        self.pass_(5)
        stopping = self.registry.stop()
        held[0].release()
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])
