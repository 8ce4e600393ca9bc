"""The states of services in etcd, with several nodes."""

from __future__ import annotations

from twisted.internet.defer import gatherResults

from tests.system.etcd.storecase import EtcdStoreCase, T
from txserviceregistry.registry.stores.interfaces import LimitExceeded, StateRecord

NOW = 1_767_225_600.0


class StatesTests(EtcdStoreCase):
    """Two nodes over one etcd."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        super().setUp()
        self.now = NOW
        self.first, self.second = [await self.store(joins=False, wallClock=lambda: self.now) for _ in range(2)]

    async def stateEvents(self) -> list[tuple[str, str]]:
        events = await self.first.listEvents(T, 0, 1000, frozenset({"service.state"}))
        return [(event.payload["old_state"], event.payload["state"]) for event in events]

    async def test_oneEnd(self) -> None:
        """However many nodes end a state, its end is one event, and a change meanwhile is not undone."""
        for number in range(5):
            await self.first.setState(T, StateRecord(f"web{number}", "out", "", int((NOW + 10) * 1000)), 100)
        self.now += 10
        changed = StateRecord("web0", "drain", "rack move")
        results = await gatherResults(
            [
                self.first.endStates(),
                self.second.setState(T, changed, 100),
                self.second.endStates(),
                self.first.endStates(),
            ]
        )
        self.assertIn(T, [*results[0][0], *results[2][0], *results[3][0]])
        self.assertEqual(await self.first.listStates(T, None, 100), [changed])
        self.assertEqual(
            sorted(await self.stateEvents()), [("out", "up")] * 5 + [("up", "drain")] + [("up", "out")] * 5
        )

    async def test_endsAtTheSameTime(self) -> None:
        """They share transactions: a node that waits for its turn with each one would end the last one much later."""
        ends = int((NOW + 10) * 1000)
        await gatherResults(
            [self.first.setState(T, StateRecord(f"web{number}", "out", "", ends), 100) for number in range(30)]
        )
        self.now += 10
        before = sum(self.second.statistics.writes.counts)
        self.assertEqual(await self.second.endStates(), ({T}, None))
        self.assertLess(sum(self.second.statistics.writes.counts) - before, 3)
        self.assertEqual(await self.stateEvents(), [("up", "out")] * 30 + [("out", "up")] * 30)

    async def test_theLimitIsTheTenants(self) -> None:
        """The limit counts the records of all nodes, and a node that joins later finds them."""
        await self.first.setState(T, StateRecord("web1", "out"), 2)
        await self.second.setState(T, StateRecord("web2", "out"), 2)
        with self.assertRaises(LimitExceeded):
            await self.first.setState(T, StateRecord("web3", "out"), 2)
        third = await self.store(wallClock=lambda: self.now)
        self.assertEqual([record.id for record in await third.listStates(T, None, 10)], ["web1", "web2"])

    async def test_theFirstStateIsSeenByAllNodes(self) -> None:
        """A node that knows of no states creates services with those that another one has set since, also meanwhile."""
        await self.create(self.first, "web0")
        states = [StateRecord(f"web{number}", "drain") for number in range(1, 11)]
        await self.second.setState(T, states[0], 100)
        made = await self.create(self.first, "web1")
        self.assertEqual(made.state, states[0])
        for record in states[1:]:
            await gatherResults([self.beginCreate(self.first, record.id), self.second.setState(T, record, 100)])
        drained = set()
        for event in await self.first.listEvents(T, 0, 1000, None):
            if event.type == "service.state":
                drained.add(event.payload["id"])
            else:
                self.assertEqual("state" in event.payload, event.payload["id"] in drained)
        shown = await self.second.listServices(T, None, 100, None, (), True)
        self.assertEqual({one.state for one in shown}, {None, *states})

    async def test_manyAreLookedAt(self) -> None:
        """Other changes of the tenant do not wait until all records have been looked at."""
        await gatherResults([self.first.setState(T, StateRecord(f"web{n:04}", "out"), 2000) for n in range(1000)])
        writes, order = self.first.statistics.writes, list[str]()
        before = sum(writes.counts)
        dropping = self.first.dropStates(0).addCallback(lambda _: order.append("states"))
        while sum(writes.counts) == before:
            await self.first.getState(T, "web0000")
        changing = [
            self.first.setValue(T, f"key{n}", "value", 100).addCallback(lambda _: order.append("value"))
            for n in range(3)
        ]
        await gatherResults([dropping, *changing])
        self.assertEqual(order, ["value"] * 3 + ["states"])

    async def test_moreRecordsThanAPage(self) -> None:
        """Thousands of records are set together, listed and shown with their services."""
        records = [StateRecord(f"web{number:04}", "out") for number in range(1100)]
        await gatherResults([self.first.setState(T, record, 2000) for record in records])
        await self.create(self.second, "web0000")
        await self.create(self.second, "web1099")
        self.assertEqual(await self.second.listStates(T, None, 2000), records)
        shown = await self.second.listServices(T, None, 10, None, (), True)
        self.assertEqual([one.state for one in shown], [records[0], records[-1]])
