"""
The tests of the states of services that every store passes.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet.defer import Deferred

from txserviceregistry.registry.model import ServiceChanges
from txserviceregistry.registry.stores.interfaces import LimitExceeded, ServiceRecord, StateRecord
from txserviceregistry.util.deferred import returnsDeferred

DAY = 86_400


class StateSuite:
    """A part of :class:`~tests.unit.registry.stores.storesuite.StoreSuite`."""

    now: float
    store: Any
    assertEqual: Any
    assertIsNone: Any
    assertIn: Any
    assertTrue: Any
    assertFalse: Any

    async def create(self, id: str, tenant: str = "1", maximum: int = 1000, **fields: Any) -> ServiceRecord:
        raise NotImplementedError

    async def raises(self, kind: type[Exception], operation: Awaitable[Any]) -> None:
        raise NotImplementedError

    async def setState(
        self, id: str, state: str, reason: str = "", seconds: float | None = None, tenant: str = "1", maximum: int = 100
    ) -> bool:
        ends = None if seconds is None else int((self.now + seconds) * 1000)
        changed = await self.store.setState(tenant, StateRecord(id, state, reason, ends), maximum)
        assert isinstance(changed, bool)
        return changed

    async def stateEvents(self, tenant: str = "1") -> list[Any]:
        events = await self.store.listEvents(tenant, 0, 1000, frozenset({"service.state"}))
        return [(event.payload["id"], event.payload["old_state"], event.payload["state"]) for event in events]

    async def states(self, tenant: str = "1", **query: Any) -> list[StateRecord]:
        found = await self.store.listStates(tenant, query.get("marker"), query.get("count", 100))
        assert isinstance(found, list)
        return found

    async def shown(self, tag: str | None = None) -> list[tuple[str, str | None]]:
        """The services with their states, as one listing has them."""
        services = await self.store.listServices("1", None, 100, tag, (), True)
        return [(service.id, None if service.state is None else service.state.state) for service in services]

    @returnsDeferred
    async def test_statesAreSetAndCleared(self):
        """A state stays as it was set, in the words given, until it is cleared; each change has one event."""
        self.assertEqual(await self.store.getState("1", "web"), StateRecord("web"))
        self.assertTrue(await self.setState("web", "drain", "☃ é"))
        self.assertFalse(await self.setState("web", "drain", "☃ é"))
        self.assertEqual(await self.store.getState("1", "web"), StateRecord("web", "drain", "☃ é"))
        self.assertTrue(await self.setState("web", "out", "☃ é"))
        self.assertTrue(await self.setState("web", "up", "a note"))
        self.assertEqual(await self.states(), [StateRecord("web", "up", "a note")])
        self.assertTrue(await self.setState("web", "up"))
        self.assertFalse(await self.setState("web", "up"))
        self.assertEqual(await self.states(), [])
        self.assertEqual(
            await self.stateEvents(),
            [("web", "up", "drain"), ("web", "drain", "out"), ("web", "out", "up"), ("web", "up", "up")],
        )

    @returnsDeferred
    async def test_theEventHasTheWholeState(self):
        """The payload of an event is the new state, and the old one's name."""
        await self.setState("web", "drain", "rack move", 60)
        (event,) = await self.store.listEvents("1", 0, 10, frozenset({"service.state"}))
        ends = int((self.now + 60) * 1000)
        self.assertEqual(
            event.payload,
            {"id": "web", "state": "drain", "reason": "rack move", "expires_at": ends, "old_state": "up"},
        )
        self.assertEqual(event.timestamp, int(self.now * 1000))

    @returnsDeferred
    async def test_statesOutliveServices(self):
        """A state may be set before the service exists, and stays when it is updated, removed and registered again."""
        await self.setState("web", "drain")
        service = await self.create("web", tags=("t",))
        self.assertEqual(service.state, StateRecord("web", "drain"))
        await self.store.updateService("1", "web", service.incarnation, ServiceChanges(metadata={"a": "b"}))
        self.assertEqual(await self.shown("t"), [("web", "drain")])
        await self.store.removeService("1", "web", service.incarnation)
        self.assertEqual(await self.shown(), [])
        await self.create("web")
        self.assertEqual(await self.shown(), [("web", "drain")])
        self.assertEqual((await self.store.getService("1", "web", True)).state, StateRecord("web", "drain"))

    @returnsDeferred
    async def test_statesAreShownOnlyIfAskedFor(self):
        """A service is read with its state only if that is asked for; services without one have none."""
        for id in ("aaa", "bbb", "ccc"):
            await self.create(id)
        self.assertEqual(await self.shown(), [("aaa", None), ("bbb", None), ("ccc", None)])
        await self.setState("bbb", "out")
        await self.setState("between", "out")
        self.assertEqual(await self.shown(), [("aaa", None), ("bbb", "out"), ("ccc", None)])
        self.assertIsNone((await self.store.getService("1", "bbb")).state)
        self.assertIsNone((await self.store.listServices("1", "bbb", 1, None, ()))[0].state)

    @returnsDeferred
    async def test_servicesAndStatesOfOneMoment(self):
        """A listing never has a state that was set after the version of the service that it shows."""
        service = await self.create("web", metadata={"number": "0"})

        async def write() -> None:
            for number in range(1, 30):
                changes = ServiceChanges(metadata={"number": str(number)})
                await self.store.updateService("1", "web", service.incarnation, changes)
                await self.setState("web", "out", str(number))

        writing = Deferred.fromCoroutine(write())
        while not writing.called:
            (found,) = await self.store.listServices("1", None, 10, None, (), True)
            number = int(found.metadata["number"])
            self.assertIn(0 if found.state is None else int(found.state.reason), (number - 1, number))
        await writing

    @returnsDeferred
    async def test_joinAndUpdateHaveTheState(self):
        """The events of a registration and of an update have the state, unless it is up."""
        await self.setState("web", "drain")
        service = await self.create("web")
        await self.store.updateService("1", "web", service.incarnation, ServiceChanges(tags=("t",)))
        await self.setState("web", "up", "with a note")
        await self.store.updateService("1", "web", service.incarnation, ServiceChanges(tags=()))
        await self.store.removeService("1", "web", service.incarnation)
        events = [
            (event.type, event.payload.get("state"), event.payload.get("changed"))
            for event in await self.store.listEvents("1", 0, 100, None)
            if event.type != "service.state"
        ]
        self.assertEqual(
            events,
            [
                ("service.join", "drain", None),
                ("service.update", "drain", ["tags"]),
                ("service.update", None, ["tags"]),
                ("service.remove", None, None),
            ],
        )

    @returnsDeferred
    async def test_pagesOfStates(self):
        """States are listed by id, from the marker on, apart for each tenant."""
        for id in ("ccc", "aaa", "bbb"):
            await self.setState(id, "out")
        await self.setState("ddd", "out", tenant="2")
        self.assertEqual([record.id for record in await self.states()], ["aaa", "bbb", "ccc"])
        self.assertEqual([record.id for record in await self.states(marker="ab", count=1)], ["bbb"])
        self.assertEqual([record.id for record in await self.states("2")], ["ddd"])

    @returnsDeferred
    async def test_limitOfStates(self):
        """A new record beyond the limit is refused, and changes nothing; a change of a record is not."""
        await self.setState("aaa", "drain", maximum=2)
        await self.setState("bbb", "drain", maximum=2)
        await self.raises(LimitExceeded, self.setState("ccc", "drain", maximum=2))
        await self.setState("bbb", "out", maximum=2)
        self.assertFalse(await self.setState("ccc", "up", maximum=2))
        await self.setState("aaa", "up", maximum=2)
        await self.setState("ccc", "drain", maximum=2)
        self.assertEqual([record.id for record in await self.states()], ["bbb", "ccc"])

    @returnsDeferred
    async def test_statesEnd(self):
        """Readers ignore a record from its end on; its end is one event, with the time of the end."""
        await self.create("web")
        await self.setState("web", "drain", seconds=60)
        await self.setState("api", "out", seconds=120)
        start = self.now
        self.assertEqual(await self.store.endStates(), (set(), int((start + 60) * 1000)))
        self.now += 60
        self.assertEqual(await self.shown(), [("web", None)])
        self.assertEqual([record.id for record in await self.states()], ["api"])
        self.assertEqual((await self.store.getState("1", "web")).state, "up")
        changed, next = await self.store.endStates()
        self.assertEqual((set(changed), next), ({"1"}, int((start + 120) * 1000)))
        changed, _ = await self.store.endStates()
        self.assertEqual(set(changed), set())
        events = await self.store.listEvents("1", 0, 100, frozenset({"service.state"}))
        self.assertEqual(events[-1].payload["old_state"], "drain")
        self.assertEqual(events[-1].timestamp, int((start + 60) * 1000))
        self.assertEqual(len(events), 3)
        self.now += 60
        self.assertEqual(await self.store.endStates(), ({"1"}, None))

    @returnsDeferred
    async def test_aChangeAfterTheEnd(self):
        """A change of a record that is over puts its end into the feed first; a new end replaces the old one."""
        await self.setState("web", "drain", seconds=10)
        self.now += 10
        self.assertTrue(await self.setState("web", "out", seconds=10))
        self.now += 5
        await self.setState("web", "out", seconds=10)
        self.now += 5
        self.assertEqual((await self.store.endStates())[0], set())
        self.now += 5
        self.assertTrue(await self.setState("web", "up"))
        self.assertEqual((await self.store.endStates())[0], set())
        self.assertEqual(
            await self.stateEvents(),
            [("web", "up", "drain"), ("web", "drain", "up"), ("web", "up", "out"), ("web", "out", "out"),
             ("web", "out", "up")],
        )  # fmt: skip

    @returnsDeferred
    async def test_unusedStatesAreDropped(self):
        """A record is dropped, with an event, when its id has had no service for long enough, and not before."""
        before = await self.create("web")
        await self.create("api")
        for id in ("web", "api", "new"):
            await self.setState(id, "drain")
        await self.store.removeService("1", "web", before.incarnation)

        async def drop(days: float) -> list[str]:
            dropped = await self.store.dropStates(int((self.now - days * DAY) * 1000))
            self.assertEqual(list(dropped), ["1"] if dropped else [])
            return [record.id for record in await self.states()]

        self.assertEqual(await drop(30), ["api", "new", "web"])
        self.now += 20 * DAY
        again = await self.create("web")
        await self.store.removeService("1", "web", again.incarnation)
        self.now += 11 * DAY
        self.assertEqual(await drop(30), ["api", "web"])
        self.now += 29 * DAY
        self.assertEqual(await drop(30), ["api", "web"])
        self.now += 2 * DAY
        self.assertEqual(await drop(30), ["api"])
        self.assertEqual((await self.stateEvents())[3:], [("new", "drain", "up"), ("web", "drain", "up")])
