"""
How changes are made in etcd: two nodes at one tenant, over a real etcd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.faults.proxy import Proxy
from tests.unit.registry.stores.etcd.test_gateway import CLOCK, EtcdCase
from txserviceregistry.registry.stores.etcd.batches import GROUP, Batches, TenantIds, Transaction, eventsIn
from txserviceregistry.registry.stores.etcd.gateway import Etcd
from txserviceregistry.registry.stores.etcd.keyvalues import endOf, put
from txserviceregistry.registry.stores.etcd.objects import EtcdEvents
from txserviceregistry.registry.stores.interfaces import LimitExceeded, StoreUnavailable
from txserviceregistry.registry.uuids import position

NOW = 1_700_000_000.0
T = "7"


def _outcome(settled: Any) -> Any:
    succeeded, result = settled
    return result if succeeded else result.value


class _Meddling:
    """An etcd in which, after the first read, another client sets a key."""

    def __init__(self, etcd: Etcd, key: str) -> None:
        self._etcd = etcd
        self.statistics = etcd.statistics
        self._key = key
        self._count = 0

    async def txn(self, *arguments: Any, **options: Any) -> Any:
        self._count += 1
        done = await self._etcd.txn(*arguments, **options)
        if self._count == 1:
            await self._etcd.txn((), [put(self._key, b"1")])
        return done


class GroupsTests(EtcdCase):
    """Nodes that make changes of one tenant."""

    def setUp(self) -> None:
        self.prefix = newPrefix()
        self.asked = self.etcd(sharedEtcd())

    def node(self, name: str, ahead: float = 0.0, etcd: Any = None) -> Batches:
        """A node whose clock is so many seconds ahead."""
        return Batches(etcd or self.etcd(sharedEtcd()), CLOCK, lambda: NOW + ahead, self.prefix, name)

    def event(self, node: Batches, text: str) -> Deferred[int]:
        """Let a node put an event; its position."""
        return node.do(T, lambda draft: draft.addEvent("service.join", {"by": text}))

    async def events(self) -> list[int]:
        """The positions of all events."""
        below = f"{self.prefix}events/{T}/"
        found, _ = await self.asked.range(below, endOf(below))
        return [event["position"] for each in found for event in eventsIn(each)[1]]

    async def groups(self) -> set[str]:
        """The groups that have added events."""
        return {eventsIn(each)[0] for each in await self.asked.all(f"{self.prefix}events/{T}/")}

    async def test_whatComesTogetherGoesTogether(self) -> None:
        """Changes that wait at the same time share transactions, forty in each."""
        node = self.node("a")
        positions = await gatherResults([self.event(node, str(number)) for number in range(2 * GROUP + 1)])
        self.assertEqual(positions, sorted(set(positions)))
        self.assertEqual(len(await self.groups()), 3)
        self.assertEqual(await self.events(), positions)

    async def test_nodesDoNotStarveEachOther(self) -> None:
        """Two nodes that write all the time share the tenant, however their clocks differ; ids grow strictly."""
        nodes = [self.node("a", ahead=3600.0), self.node("b", ahead=-3600.0)]
        order: list[tuple[int, str]] = []

        async def write(node: Batches, name: str) -> None:
            for number in range(40):
                order.append((await self.event(node, f"{name}{number}"), name))

        await gatherResults(
            [
                Deferred.fromCoroutine(write(node, name))
                for node, name in zip(nodes, "ab", strict=True)
                for _ in range(5)
            ]
        )
        self.assertEqual(len({position for position, _ in order}), 400)
        self.assertEqual(await self.events(), sorted(position for position, _ in order))
        # Neither had to wait for the end of the other.
        for name in "ab":
            self.assertGreater(sum(name == by for _, by in order[:200]), 40)

    async def test_oneThatFailsHarmsNoOther(self) -> None:
        """A change that a rule forbids, and one that breaks, leave nothing behind, and their neighbours are made."""
        node = self.node("a")

        def forbidden(draft: Transaction) -> None:
            draft.put(f"{self.prefix}forbidden", b"x")
            draft.addEvent("service.join", {})
            draft.clock.services += 1
            raise LimitExceeded(1)

        def broken(draft: Transaction) -> None:
            draft.put(f"{self.prefix}broken", b"x")
            raise RuntimeError("broken")

        works: list[Deferred[Any]] = [
            self.event(node, "1"),
            node.do(T, forbidden),
            node.do(T, broken),
            self.event(node, "2"),
        ]
        outcomes: Any = [_outcome(each) for each in await DeferredList(works, consumeErrors=True)]
        self.assertEqual([type(each) for each in outcomes], [int, LimitExceeded, RuntimeError, int])
        self.assertEqual(await self.events(), [outcomes[0], outcomes[3]])
        for key in ("forbidden", "broken"):
            self.assertIsNone(await self.asked.get(self.prefix + key))
        found = await self.asked.get(f"{self.prefix}clocks/{T}")
        self.assertIn(b'"services":0', found.value if found else b"")

    async def test_whatIsTooLargeTogetherIsMadeInSeveralGroups(self) -> None:
        """Changes that etcd takes alone and would refuse together are all made, in their order."""
        node = self.node("a")

        def large(number: int) -> Callable[[Transaction], int]:
            def act(draft: Transaction) -> int:
                draft.put(f"{self.prefix}large{number}", b"x" * 250_000)
                return draft.addEvent("service.join", {})

            return act

        positions = await gatherResults([node.do(T, large(number)) for number in range(9)])
        self.assertEqual(await self.events(), positions)
        found = await self.asked.all(f"{self.prefix}large")
        self.assertEqual([len(each.value) for each in found], [250_000] * 9)

    async def test_eventsOfLargeGroupsAreRead(self) -> None:
        """Groups of events as large as etcd takes are read and dropped in parts that a response may have."""
        node = self.node("a")
        events = EtcdEvents(self.asked, node, self.prefix, TenantIds(lambda: NOW), CLOCK, lambda: NOW)
        made: list[int] = []
        for group in range(14):
            made += await gatherResults([self.event(node, f"{group:024000}") for _ in range(GROUP)])
        found = await events.list(T, made[3], 1000, None)
        self.assertEqual([position(each.id) for each in found], made[3:])
        self.assertEqual(await events.list(T, 0, 1000, {"lock.expire"}), [])
        self.assertEqual(await events.drop(made[-1]), len(made) - 1)
        self.assertEqual(await self.events(), made[-1:])

    async def test_aLostAnswerIsReadBack(self) -> None:
        """Over a network that loses every second answer each change is made once, beside another node's changes."""
        proxy = Proxy(reactor, int(sharedEtcd().rpartition(":")[2]))
        proxy.start()
        self.addCleanup(proxy.stop)
        proxy.lose(2)
        lossy, other = self.node("a", etcd=self.etcd(proxy.url.removesuffix("/v1.0"))), self.node("b")

        async def write(node: Batches) -> list[int]:
            return [await self.event(node, "x") for _ in range(12)]

        made = await gatherResults([Deferred.fromCoroutine(write(lossy)), Deferred.fromCoroutine(write(other))])
        self.assertGreater(proxy.counts["lost"], 5)
        self.assertEqual(await self.events(), sorted(made[0] + made[1]))

    async def test_aGuardedKeyIsLookedAtAgain(self) -> None:
        """A change that depends on a key which others set beside the clock is worked out over what is there then."""
        key = f"{self.prefix}alive"
        seen: list[bytes | None] = []

        def act(draft: Transaction) -> None:
            draft.need(key)
            seen.append(draft.get(key))
            draft.guard(key)
            draft.put(f"{self.prefix}done", b"x")

        node = self.node("a", etcd=_Meddling(self.etcd(sharedEtcd()), key))
        await node.do(T, act)
        self.assertEqual(seen, [None, b"1"])

    async def test_newObjectsAreMadeOnce(self) -> None:
        """Of two nodes that create the same objects, most of them without reading first, one creates each."""

        def create(number: int) -> Callable[[Transaction], int]:
            def act(draft: Transaction) -> int:
                if draft.get(f"{self.prefix}new{number:02}") is not None:
                    raise LimitExceeded(1)
                draft.put(f"{self.prefix}new{number:02}", b"x")
                draft.clock.services += 1
                return draft.addEvent("service.join", {})

            return act

        nodes = [self.node("a"), self.node("b", ahead=-1.0)]
        works = []
        for number in range(60):
            for node in nodes:
                works.append(node.do(T, create(number)))
            if number % 7 == 0:
                # Some groups are under way when the next changes come.
                await self.asked.get(f"{self.prefix}pause")
        outcomes = [_outcome(each) for each in await DeferredList(works, consumeErrors=True)]
        made = [each for each in outcomes if isinstance(each, int)]
        self.assertEqual(sorted(made), await self.events())
        self.assertEqual(len(made), 60)
        found = await self.asked.get(f"{self.prefix}clocks/{T}")
        self.assertIn(b'"services":60', found.value if found else b"")

    async def test_aKeyIsDeletedAndSetInTwoGroups(self) -> None:
        """A key that is deleted and made anew has a create revision of its own, however soon; the order stays."""
        key, node = f"{self.prefix}thing", self.node("a")
        await node.do(T, lambda draft: draft.put(key, b"1"))
        old = await self.asked.get(key)

        def delete(draft: Transaction) -> None:
            draft.need(key)
            draft.delete(key)

        done = await gatherResults(
            [
                node.do(T, delete),
                node.do(T, lambda draft: draft.put(key, b"2")),
                node.do(T, lambda draft: draft.put(key, b"3")),
                self.event(node, "x"),
            ]
        )
        self.assertEqual(done[:3], [None] * 3)
        new = await self.asked.get(key)
        assert old is not None and new is not None
        self.assertGreater(new.created, old.created)
        self.assertEqual(new.value, b"3")

    async def test_afterTroubleItGoesOn(self) -> None:
        """While etcd is unavailable changes fail; then they are made again, and what waits for the end fires."""
        etcd = self.etcd(sharedEtcd(), gate=self.gate)
        self.isClosed = True
        node = Batches(etcd, CLOCK, lambda: NOW, self.prefix, "a")
        await self.refuses(StoreUnavailable, self.event(node, "1"))
        self.isClosed = False
        await gatherResults([self.event(node, "2"), node.whenIdle()])
        await node.whenIdle()
        self.assertEqual(len(await self.events()), 1)

    def gate(self) -> None:
        if self.isClosed:
            raise StoreUnavailable("closed")
