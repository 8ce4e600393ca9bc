"""
The tests that every store passes. A store's own test case mixes this in and says how the store is made.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater
from zope.interface.verify import verifyObject

from tests.unit.registry.stores.locksuite import NAME, LockSuite
from tests.unit.registry.stores.statesuite import StateSuite
from txserviceregistry.registry.model import PLAIN_TYPES, NewService, Precondition, ServiceChanges, lockScope
from txserviceregistry.registry.roles import WRITE, Role
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    IOwnStore,
    IStore,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    PreconditionFailed,
    ServiceRecord,
    ServiceSummary,
    StoreError,
    StoreUnavailable,
    TokenRecord,
    UserRecord,
    ValueRecord,
)
from txserviceregistry.registry.uuids import position, positionOf
from txserviceregistry.util.deferred import returnsDeferred

NOW = 1_700_000_000.5


async def countServices(store: Any, tenant: str = "1") -> int:
    """How many services a tenant has: as a list has them, and as the limit counts them."""
    count = len(await store.listServices(tenant, None, 100_000, None, ()))
    await _refusesOneMore(store.createService(tenant, NewService("one-more", 30), count))
    made = await store.createService(tenant, NewService("one-more", 30), count + 1)
    await store.removeService(tenant, "one-more", made.incarnation)
    return count


async def countValues(store: Any, tenant: str = "1") -> int:
    """How many configuration values a tenant has: as a list has them, and as the limit counts them."""
    count = len(await store.listValues(tenant, None, 100_000, None))
    await _refusesOneMore(store.setValue(tenant, "one-more", "x", count))
    await store.setValue(tenant, "one-more", "x", count + 1)
    await store.removeValue(tenant, "one-more")
    return count


async def _refusesOneMore(operation: Awaitable[Any]) -> None:
    try:
        await operation
    except LimitExceeded:
        return
    raise AssertionError("the limit counts fewer than there are")


class StoreSuite(LockSuite, StateSuite):
    """
    Mix this into a trial TestCase.

    :ivar now: what the wall clock shows, in seconds; tests set it.
    """

    now = NOW
    store: Any

    def makeStore(self) -> Any:
        """A new store without anything in it, not open."""
        raise NotImplementedError

    async def lastSeenIsWritten(self) -> None:
        """Wait until the times of heartbeats have been written."""

    def wallClock(self) -> float:
        return self.now

    @returnsDeferred
    async def setUp(self) -> None:
        self.store = self.makeStore()
        await self.store.open()

    @returnsDeferred
    async def tearDown(self) -> None:
        await self.store.close()

    async def create(self, id: str, tenant: str = "1", maximum: int = 1000, **fields: Any) -> ServiceRecord:
        return await self.store.createService(tenant, NewService(id, fields.pop("timeout", 30), **fields), maximum)

    async def raises(self, kind: type[Exception], operation: Awaitable[Any]) -> None:
        try:
            result = await operation
        except kind:
            return
        self.fail(f"{kind.__name__} was expected, but it returned {result!r}")

    async def ids(self, *, tenant: str = "1", marker: str | None = None, count: int = 100, **more: Any) -> list[str]:
        services = await self.store.listServices(tenant, marker, count, more.get("tag"), more.get("hidden", ()))
        return [service.id for service in services]

    async def keys(self, namespace: str | None = None, marker: str | None = None, count: int = 100) -> list[str]:
        return [value.key for value in await self.store.listValues("1", marker, count, namespace)]

    async def events(self, tenant: str = "1", type: str | None = None) -> list[Any]:
        return await self.store.listEvents(tenant, 0, 1000, None if type is None else {type})

    async def feed(self, tenant: str = "1") -> list[tuple[str, Any]]:
        """The feed in short: types, and the ids of services and values."""
        return [
            (event.type, event.payload.get("id", event.payload.get("configuration_value_id")))
            for event in await self.events(tenant)
        ]

    # -- the store itself

    def test_providesTheInterface(self):
        """A store has every operation of IStore, with its arguments."""
        verifyObject(IStore, self.store)

    async def test_failsBeforeItIsOpenAndAfterItIsClosed(self):
        """Operations on a store that is not open fail with StoreUnavailable, and closing it is always possible."""
        new = self.makeStore()
        await self.raises(StoreUnavailable, new.secret())
        await new.close()
        await self.store.close()
        await self.store.close()
        await self.raises(StoreUnavailable, self.create("web"))
        await self.raises(StoreUnavailable, self.store.listServices("1", None, 1, None, ()))
        self.store.recordLastSeen("1", "web", "x", 1)

    async def test_probeChangesNothing(self):
        """A store that can be written and read passes its probe, of which nothing is seen; one that is closed fails."""
        await self.create("web1")
        before = await self.feed(), await self.ids(), await self.keys()
        for _ in range(3):
            self.assertIsNone(await self.store.probe())
        self.assertEqual((await self.feed(), await self.ids(), await self.keys()), before)
        await self.store.close()
        await self.raises(StoreUnavailable, self.store.probe())

    async def test_secretStaysTheSame(self):
        """The secret has 32 bytes, is not another store's, and does not change."""
        secret = await self.store.secret()
        self.assertEqual(len(secret), 32)
        self.assertEqual(await self.store.secret(), secret)
        other = self.makeStore()
        await other.open()
        self.addCleanup(other.close)
        self.assertNotEqual(await other.secret(), secret)

    async def test_accountComesIntoBeingOnce(self):
        """An account has the time when it was first asked for."""
        await self.create("web", tenant="7")
        self.now = NOW + 10
        self.assertEqual(await self.store.account("7"), 1_700_000_010_500)
        self.now = NOW + 20
        self.assertEqual(await self.store.account("7"), 1_700_000_010_500)
        self.assertEqual(await self.store.account("8"), 1_700_000_020_500)
        self.assertEqual(await countServices(self.store, "7"), 1)

    async def test_accountAskedForByManyIsOne(self):
        """Simultaneous first requests of an account get the same one."""
        accounts = await gatherResults([self.store.account("7") for _ in range(5)])
        self.assertEqual(accounts, [1_700_000_000_500] * 5)

    # -- services

    async def test_createdServiceIsThereWithItsEvent(self):
        """A new service can be read, and its event has the id that is the service's incarnation."""
        made = await self.create("web", timeout=15, tags=("b", "a"), metadata={"port": "80", "host": "h"})
        self.assertEqual(await self.store.getService("1", "web"), made)
        self.assertEqual((made.heartbeatTimeout, made.tags, made.lastSeen), (15, ("b", "a"), None))
        self.assertEqual(list(made.metadata.items()), [("port", "80"), ("host", "h")])
        (event,) = await self.events()
        self.assertEqual((event.id, event.timestamp), (made.incarnation, 1_700_000_000_500))
        self.assertEqual(event.type, "service.join")
        expected = {
            "id": "web",
            "heartbeat_timeout": 15,
            "tags": ["b", "a"],
            "metadata": {"port": "80", "host": "h"},
        }
        self.assertEqual(event.payload, expected)

    async def test_takenIdIsRefusedAndNothingChanges(self):
        """A create of a taken id fails, and leaves the service and the feed as they were."""
        made = await self.create("web")
        await self.raises(ObjectExists, self.create("web", timeout=99))
        self.assertEqual(await self.store.getService("1", "web"), made)
        self.assertEqual(await self.feed(), [("service.join", "web")])

    async def test_idsDifferInTheirCase(self):
        """Two ids that differ only in case are two services."""
        await self.create("web")
        await self.create("Web")
        self.assertEqual(await self.ids(), ["Web", "web"])

    async def test_limitHoldsAndIsReportedAfterATakenId(self):
        """A tenant has no more services than it may; a taken id is reported first."""
        await self.create("a", maximum=2)
        made = await self.create("b", maximum=2)
        await self.raises(LimitExceeded, self.create("c", maximum=2))
        await self.raises(ObjectExists, self.create("a", maximum=2))
        await self.create("c", tenant="2", maximum=2)
        await self.store.removeService("1", "b", made.incarnation)
        await self.create("c", maximum=2)
        self.assertEqual(await self.ids(), ["a", "c"])

    async def test_oneOfManySimultaneousCreatesWins(self):
        """Of ten creates of one id at once exactly one succeeds."""
        outcomes: list[Any] = []
        for _ in range(10):
            creating = self.store.createService("1", NewService("web", 30), 100)
            creating.addErrback(lambda failure: failure.trap(ObjectExists))
            outcomes.append(creating)
        results = await gatherResults(outcomes)
        self.assertEqual(results.count(ObjectExists), 9)
        self.assertEqual(await self.feed(), [("service.join", "web")])

    async def test_limitHoldsAmongSimultaneousCreates(self):
        """Creates that come together do not get past the limit together."""
        creating = [self.store.createService("1", NewService(f"web{n}", 30), 3) for n in range(8)]
        for one in creating:
            one.addErrback(lambda failure: failure.trap(LimitExceeded))
        results = await gatherResults(creating)
        self.assertEqual(results.count(LimitExceeded), 5)
        self.assertEqual(await countServices(self.store), 3)

    async def test_cancelledWaiterDoesNotDisturbTheOthers(self):
        """An operation that is cancelled harms none that runs together with it."""
        creating = [self.store.createService("1", NewService(f"web{n}", 30), 100) for n in range(5)]
        creating[2].addErrback(lambda failure: None)
        creating[2].cancel()
        await gatherResults(creating)
        await self.create("last")
        for n in (0, 1, 3, 4):
            await self.store.getService("1", f"web{n}")

    async def test_unknownServiceIsNoSuchObject(self):
        """A service that was never there, or belongs to another tenant, is not found."""
        await self.create("web", tenant="2")
        await self.raises(NoSuchObject, self.store.getService("1", "web"))

    async def test_listBeginsAtItsMarkerInCodePointOrder(self):
        """A page begins at the marker, or at the next id after it, and holds as many as were asked for."""
        for id in ("b-1", "a", "B", "b.1", "b_1", "c", "b1"):
            await self.create(id)
        self.assertEqual(await self.ids(), ["B", "a", "b-1", "b.1", "b1", "b_1", "c"])
        self.assertEqual(await self.ids(marker="b1", count=2), ["b1", "b_1"])
        self.assertEqual(await self.ids(marker="b0"), ["b1", "b_1", "c"])
        self.assertEqual(await self.ids(marker="d"), [])

    async def test_listByTagHasTheCurrentTags(self):
        """A list by tag holds those that have it, once each, also after an update."""
        await self.create("a", tags=("www", "www", "api"))
        made = await self.create("b", tags=("api",))
        await self.create("c", tags=("www",))
        await self.create("d", tags=("WWW",))
        self.assertEqual(await self.ids(tag="www"), ["a", "c"])
        self.assertEqual(await self.ids(tag="www", marker="b", count=1), ["c"])
        self.assertEqual(await self.ids(tag="none"), [])
        self.assertEqual((await self.store.getService("1", "a")).tags, ("www", "www", "api"))
        await self.store.updateService("1", "b", made.incarnation, ServiceChanges(tags=("www", "\ud800", "ü")))
        self.assertEqual(await self.ids(tag="www"), ["a", "b", "c"])
        self.assertEqual(await self.ids(tag="api"), ["a"])
        self.assertEqual(await self.ids(tag="\ud800"), ["b"])
        await self.store.removeService("1", "b", made.incarnation)
        self.assertEqual(await self.ids(tag="www"), ["a", "c"])

    async def test_hiddenServicesAreLeftOut(self):
        """Hidden incarnations are in no list, and do not shorten a page."""
        made = [await self.create(id, tags=("t",)) for id in "abcde"]
        hidden = {made[0].incarnation, made[2].incarnation, "no such incarnation"}
        self.assertEqual(await self.ids(count=2, hidden=hidden), ["b", "d"])
        self.assertEqual(await self.ids(count=2, hidden=hidden, tag="t", marker="c"), ["d", "e"])
        self.assertEqual(await countServices(self.store), 5)
        self.assertEqual(await countServices(self.store, "2"), 0)

    async def test_manyHiddenServicesAreLeftOut(self):
        """However many are hidden before, between and behind those that are not, a page is made of the others."""
        names = [f"s{n:03}" for n in range(330)]
        made = await gatherResults(
            [
                self.store.createService("1", NewService(name, 30, ("t",) if name < "s320" else ()), 1000)
                for name in names
            ]
        )
        visible = ["s000", *names[130:140], "s299", "s300", "s325"]
        hidden = frozenset(service.incarnation for service in made if service.id not in visible)
        self.assertEqual(await self.ids(hidden=hidden), visible)
        self.assertEqual(await self.ids(hidden=hidden, tag="t"), visible[:-1])
        self.assertEqual(await self.ids(hidden=hidden, marker="s001", count=3), visible[1:4])
        self.assertEqual(await self.ids(hidden=hidden, marker="s135", count=7), visible[6:13])
        self.assertEqual(await self.ids(hidden=hidden, marker="s326"), [])
        self.assertEqual(await self.ids(hidden=hidden, tag="t", marker="s301"), [])
        self.assertEqual(await self.ids(hidden=hidden, tag="other"), [])

    async def test_updateReplacesWhatIsGiven(self):
        """An update replaces whole fields, and keeps the others."""
        made = await self.create("web", tags=("a",), metadata={"k": "v", "l": "w"})
        changed = await self.store.updateService(
            "1", "web", made.incarnation, ServiceChanges(heartbeatTimeout=60, metadata={"k": "x"})
        )
        self.assertEqual((changed.heartbeatTimeout, changed.tags, changed.metadata), (60, ("a",), {"k": "x"}))
        self.assertEqual(changed.incarnation, made.incarnation)
        self.assertEqual(await self.store.getService("1", "web"), changed)
        changed = await self.store.updateService("1", "web", made.incarnation, ServiceChanges(tags=()))
        self.assertEqual((changed.heartbeatTimeout, changed.tags, changed.metadata), (60, (), {"k": "x"}))
        self.assertEqual(await self.store.updateService("1", "web", made.incarnation, ServiceChanges()), changed)

    async def test_anotherIncarnationIsNotTouched(self):
        """An operation on an earlier incarnation of an id does nothing to the present one."""
        old = await self.create("web")
        removed = await self.store.removeService("1", "web", old.incarnation)
        self.assertEqual(removed, old)
        new = await self.create("web")
        self.assertNotEqual(new.incarnation, old.incarnation)
        await self.raises(NoSuchObject, self.store.removeService("1", "web", old.incarnation))
        await self.raises(
            NoSuchObject, self.store.updateService("1", "web", old.incarnation, ServiceChanges(heartbeatTimeout=99))
        )
        await self.raises(
            NoSuchObject, self.store.updateService("1", "other", old.incarnation, ServiceChanges(heartbeatTimeout=99))
        )
        self.store.recordLastSeen("1", "web", old.incarnation, 5)
        await self.lastSeenIsWritten()
        self.assertEqual(await self.store.getService("1", "web"), new)
        expected = [("service.join", "web"), ("service.remove", "web"), ("service.join", "web")]
        self.assertEqual(await self.feed(), expected)

    async def test_theEventOfARemovalHasTheServiceAsItWas(self):
        """The event of a removal has the service's last state."""
        made = await self.create("web", tags=("a",))
        await self.store.updateService(
            "1", "web", made.incarnation, ServiceChanges(heartbeatTimeout=77, tags=("b",), metadata={"k": "v"})
        )
        self.now = NOW + 1
        await self.store.removeService("1", "web", made.incarnation)
        await self.raises(NoSuchObject, self.store.getService("1", "web"))
        *_, event = await self.events()
        self.assertEqual((event.type, event.timestamp), ("service.remove", 1_700_000_001_500))
        expected = {"id": "web", "heartbeat_timeout": 77, "tags": ["b"], "metadata": {"k": "v"}}
        self.assertEqual(event.payload, expected)

    async def test_heartbeatTimesAreKept(self):
        """The time of the last heartbeat is seen in the service, by whichever way it is read."""
        made = await self.create("web", tags=("t",))
        await self.create("quiet")
        self.store.recordLastSeen("1", "web", made.incarnation, 1000)
        self.store.recordLastSeen("1", "web", made.incarnation, 2000)
        self.store.recordLastSeen("1", "none", made.incarnation, 3000)
        await self.lastSeenIsWritten()
        self.assertEqual((await self.store.getService("1", "web")).lastSeen, 2000)
        self.assertEqual([s.lastSeen for s in await self.store.listServices("1", None, 9, None, ())], [None, 2000])
        self.assertEqual([s.lastSeen for s in await self.store.listServices("1", None, 9, "t", ())], [2000])
        changed = await self.store.updateService("1", "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        self.assertEqual(changed.lastSeen, 2000)

    async def test_recordsAreTheCallersOwn(self):
        """A caller who changes what was returned changes nothing in the store."""
        made = await self.create("web", tags=("t",), metadata={"k": "v"})
        made.metadata.clear()
        (await self.store.getService("1", "web")).metadata.clear()
        (await self.events())[0].payload["metadata"].clear()
        self.assertEqual((await self.store.getService("1", "web")).metadata, {"k": "v"})
        self.assertEqual((await self.events())[0].payload["metadata"], {"k": "v"})

    # -- configuration

    async def test_valuesAreKeptWithTheirEvents(self):
        """Each change of a value is one event with what it was and what it is; the same value again is none."""
        await self.store.setValue("1", "key", "old", 100)
        await self.store.setValue("1", "key", "new", 100)
        await self.store.setValue("1", "key", "new", 100)
        self.assertEqual((await self.store.getValue("1", "key")).value, "new")
        await self.store.removeValue("1", "key")
        await self.raises(NoSuchObject, self.store.getValue("1", "key"))
        await self.raises(NoSuchObject, self.store.removeValue("1", "key"))
        events = [(event.type, event.payload) for event in await self.events()]
        update, remove = "configuration_value.update", "configuration_value.remove"
        expected = [
            (update, {"configuration_value_id": "key", "old_value": None, "new_value": "old"}),
            (update, {"configuration_value_id": "key", "old_value": "old", "new_value": "new"}),
            (remove, {"configuration_value_id": "key", "old_value": "new"}),
        ]
        self.assertEqual(events, expected)

    async def test_aValueIsSetManyTimesAtOnce(self):
        """Of values that are set at once, each key keeps its last one; every change has its event, in their order."""
        texts = [f"{n}" for n in range(30)]
        await gatherResults(
            [self.store.setValue("1", key, text, 2) for text in [*texts, "29"] for key in ("key", "other")]
        )
        found = await self.store.listValues("1", None, 9, None)
        self.assertEqual([(value.key, value.value) for value in found], [("key", "29"), ("other", "29")])
        self.assertEqual(await countValues(self.store), 2)
        for key in ("key", "other"):
            payloads = [event.payload for event in await self.events()]
            changes = [(p["old_value"], p["new_value"]) for p in payloads if p["configuration_value_id"] == key]
            self.assertEqual(changes, list(zip([None, *texts], texts, strict=False)))

    async def test_anyTextIsAValue(self):
        """A value comes back as it was, whatever characters are in it."""
        for text in ("\x00a\x00", "ü\u2028😀", "\ud800 half a pair", " '\"\\", "9"):
            await self.store.setValue("1", "key", text, 100)
            self.assertEqual((await self.store.getValue("1", "key")).value, text)
            self.assertEqual([value.value for value in await self.store.listValues("1", None, 9, None)], [text])
            self.assertEqual((await self.events())[-1].payload["new_value"], text)

    async def test_valuesHaveALimit(self):
        """A tenant has no more values than it may; those that are there can still be changed."""
        await self.store.setValue("1", "one", "1", 2)
        await self.store.setValue("1", "two", "1", 2)
        await self.raises(LimitExceeded, self.store.setValue("1", "three", "1", 2))
        await self.store.setValue("1", "two", "2", 2)
        await self.store.setValue("2", "three", "1", 2)
        self.assertEqual(await countValues(self.store), 2)
        await self.store.removeValue("1", "one")
        self.assertEqual(await countValues(self.store), 1)
        await self.store.setValue("1", "three", "1", 2)
        self.assertEqual(await countValues(self.store, "3"), 0)

    async def test_aValueHasThePositionOfItsLastChange(self):
        """Setting a value returns the position of its event; the same value again keeps it, a new registration too."""
        for value in ("old", "new", "new", "old"):
            kept = await self.store.setValue("1", "key", value, 100)
            await self.store.setValue("1", "other", value, 100)
            last = [event for event in await self.events() if event.payload["configuration_value_id"] == "key"][-1]
            self.assertEqual(kept, position(last.id))
            self.assertEqual(await self.store.getValue("1", "key"), ValueRecord("key", value, kept))
            self.assertEqual((await self.store.listValues("1", None, 1, None)), [ValueRecord("key", value, kept)])
        await self.store.removeValue("1", "key")
        self.assertGreater(await self.store.setValue("1", "key", "old", 100), kept)

    async def refused(self, operation: Awaitable[Any]) -> int | None:
        """The position that a refused write has found."""
        try:
            result = await operation
        except PreconditionFailed as refusal:
            return refusal.position
        self.fail(f"PreconditionFailed was expected, but it returned {result!r}")

    async def test_aConditionalWriteOfAMissingValue(self):
        """It succeeds if there must be none; what must be there is looked for before the limit."""
        anyTag, oneTag, none = Precondition(True), Precondition(True, frozenset(["0", "None"])), Precondition(False)
        for precondition in (anyTag, oneTag):
            self.assertIsNone(await self.refused(self.store.setValue("1", "key", "x", 0, precondition)))
            self.assertIsNone(await self.refused(self.store.removeValue("1", "key", precondition)))
        await self.raises(LimitExceeded, self.store.setValue("1", "key", "x", 0, none))
        await self.raises(NoSuchObject, self.store.removeValue("1", "key", none))
        self.assertEqual(await self.events(), [])
        made = await self.store.setValue("1", "key", "x", 1, none)
        self.assertEqual(await self.store.getValue("1", "key"), ValueRecord("key", "x", made))

    async def test_aConditionalWriteOfAValue(self):
        """It succeeds with the position of the last change, and is refused with any other, also for the same value."""
        first = await self.store.setValue("1", "key", "old", 9)
        second = await self.store.setValue("1", "key", "new", 9)
        none, stale = Precondition(False), Precondition(True, frozenset([f"{first}", f"0{second}", f"{second} ", "*"]))
        for precondition in (none, stale):
            for value in ("new", "newest"):
                self.assertEqual(await self.refused(self.store.setValue("1", "key", value, 9, precondition)), second)
            self.assertEqual(await self.refused(self.store.removeValue("1", "key", precondition)), second)
        fresh = Precondition(True, frozenset([f"{first}", f"{second}"]))
        self.assertEqual(await self.store.setValue("1", "key", "new", 9, fresh), second)
        third = await self.store.setValue("1", "key", "newer", 9, fresh)
        fourth = await self.store.setValue("1", "key", "newest", 9, Precondition(True))
        self.assertEqual(
            await self.refused(self.store.removeValue("1", "key", Precondition(True, [f"{third}"]))), fourth
        )
        await self.store.removeValue("1", "key", Precondition(True, frozenset([f"{fourth}"])))
        self.assertEqual(len(await self.events()), 5)

    async def test_ofConditionalWritesAtOnceOneSucceeds(self):
        """Writes that come together are checked one after the other."""
        made = await self.store.setValue("1", "key", "0", 9)
        same = Precondition(True, frozenset([f"{made}"]))
        writes = [self.store.setValue("1", "key", f"{n}", 9, same) for n in range(1, 20)]
        writes += [self.store.removeValue("1", "key", same)]
        outcomes = await DeferredList(writes, consumeErrors=True)
        self.assertEqual([succeeded for succeeded, _ in outcomes].count(True), 1)
        kept = await self.store.getValue("1", "key")
        refusals = {result.value.position for succeeded, result in outcomes if not succeeded}
        self.assertEqual(refusals, {kept.position})

    async def test_conditionalWritesLoseNoUpdate(self):
        """Of ten writers that read, increment and write one value ten times each, every increment counts."""
        await self.store.setValue("1", "key", "0", 9)

        turns = DeferredSemaphore(4)

        async def write() -> int:
            async with turns:
                old = await self.store.getValue("1", "key")
                # The others read as well before this one writes.
                await deferLater(reactor, 0)
                precondition = Precondition(True, frozenset([f"{old.position}"]))
                try:
                    await self.store.setValue("1", "key", f"{int(old.value) + 1}", 9, precondition)
                except PreconditionFailed:
                    return 0
                return 1

        async def writeAll() -> None:
            done = 0
            while done < 10:
                done += await write()

        await gatherResults([Deferred.fromCoroutine(writeAll()) for _ in range(10)])
        self.assertEqual((await self.store.getValue("1", "key")).value, "100")

    async def test_namespacesHoldWhatIsBelowThem(self):
        """A namespace lists its own key and everything below, and nothing that merely begins alike."""
        below = ["/pro/cas", "/pro/cas/a", "/pro/cas/b/c"]
        others = ["/pro", "/pro/cas-2/x", "/pro/cas.x", "/pro/cas0", "/pro/cas2", "pro/cas/a", "simple"]
        for key in below + others:
            await self.store.setValue("1", key, key.upper(), 100)
        self.assertEqual(await self.keys(), sorted(below + others))
        self.assertEqual(await self.keys("/pro/cas"), below)
        self.assertEqual(await self.keys("/pro/cas", marker="/pro/cas", count=2), below[:2])
        self.assertEqual(await self.keys("/pro/cas", marker="/pro/cas."), below[1:])
        self.assertEqual(await self.keys("/pro/cas", marker="/pro/cas/aa"), below[2:])
        self.assertEqual(await self.keys("/pro/cas", marker="/pro/d"), [])
        self.assertEqual(await self.keys("/"), sorted(key for key in below + others if key[0] == "/"))
        self.assertEqual(await self.keys(marker="/pro/cas2", count=2), ["/pro/cas2", "pro/cas/a"])
        self.assertEqual(await self.keys("/none"), [])
        (found,) = await self.store.listValues("1", None, 1, "/pro/cas")
        self.assertEqual((found.key, found.value), ("/pro/cas", "/PRO/CAS"))

    # -- events

    async def test_feedBeginsAtAPosition(self):
        """The feed is read from a position on, that one included, oldest first, and filtered before it is cut."""
        for n in range(3):
            await self.store.setValue("1", "key", str(n), 100)
            await self.create(f"s{n}")
        events = await self.events()
        self.assertEqual(len(events), 6)
        self.assertEqual(events, sorted(events, key=lambda event: position(event.id)))
        start = position(events[2].id)
        self.assertEqual(await self.store.listEvents("1", start, 2, None), events[2:4])
        self.assertEqual(await self.store.listEvents("1", start + 1, 2, None), events[3:5])
        self.assertEqual(await self.store.listEvents("1", start, 1, {"service.join"}), events[3:4])
        self.assertEqual(await self.store.listEvents("1", start, 9, {"service.join"}), events[3::2])
        self.assertEqual(await self.store.listEvents("1", start, 9, {"service.sixth"}), [])

    async def test_changesOfAValue(self):
        """The newest changes of one value, oldest first, whatever its key; none of other values and tenants."""
        keys = ["key", "key2", 'a"key', "\u00e4\U0001f600", "%", "events", "old_value"]
        await self.store.createService("1", NewService("key", 30, metadata={"configuration_value_id": "key"}), 100)
        for number in range(3):
            for key in keys:
                await self.store.setValue("1", key, f"{key} {number}", 100)
            await self.store.setValue("2", "key", str(number), 100)
        for key in keys:
            await self.store.removeValue("1", key)
            await self.store.setValue("1", key, key, 100)
        events = await self.events()
        for key in keys:
            wanted = [event for event in events if event.payload.get("configuration_value_id") == key]
            self.assertEqual(len(wanted), 5)
            for count in (1, 4, 5, 9):
                self.assertEqual(await self.store.listChanges("1", key, count), wanted[-count:])
        for key in ("ke", "none", "key\\", ""):
            self.assertEqual(await self.store.listChanges("1", key, 9), [])

    async def test_anUpdateHasAnEventThatSaysWhatChanged(self):
        """An update adds one event with the names of the changed fields; one that changes nothing adds none."""
        made = await self.create("web", tags=("old",))
        state = {"id": "web", "heartbeat_timeout": 30, "tags": ["old"], "metadata": {}}
        for changes, changed in [
            (ServiceChanges(heartbeatTimeout=30, tags=("old",)), None),
            (ServiceChanges(heartbeatTimeout=60), {"heartbeat_timeout": 60, "changed": ["heartbeat_timeout"]}),
            (
                ServiceChanges(tags=("new", "old"), metadata={"a": "b"}),
                {
                    "tags": ["new", "old"],
                    "metadata": {"a": "b"},
                    "changed": ["tags", "metadata"],
                    "old_tags": ["old"],
                },
            ),
        ]:
            before = await self.events()
            await self.store.updateService("1", "web", made.incarnation, changes)
            events = (await self.events())[len(before) :]
            state = {**state, **{name: value for name, value in (changed or {}).items() if name in state}}
            self.assertEqual([event.type for event in events], [] if changed is None else ["service.update"])
            self.assertEqual([event.payload for event in events], [] if changed is None else [{**state, **changed}])

    async def test_pagesOfSomeTypesSkipTheOthers(self):
        """A page has as many events as were asked for of the types that were asked for, in the feed's order."""
        made = await self.create("web")
        self.assertEqual(await self.store.lastEvent("1"), made.incarnation)
        for n in range(4):
            await self.store.updateService("1", "web", made.incarnation, ServiceChanges(heartbeatTimeout=40 + n))
            await self.store.setValue("1", "key", str(n), 100)
        events = await self.events()
        self.assertEqual(len(events), 9)
        self.assertEqual(await self.store.lastEvent("1"), events[-1].id)
        self.assertIsNone(await self.store.lastEvent("2"))
        some = {"service.update", "service.join"}
        for types in (PLAIN_TYPES, some, {"service.update"}, {*PLAIN_TYPES, "service.update"}):
            wanted = [event for event in events if event.type in types]
            for count in (1, 2, 3, 9):
                self.assertEqual(await self.store.listEvents("1", 0, count, types), wanted[:count])
            start = position(wanted[1].id)
            self.assertEqual(await self.store.listEvents("1", start, 2, types), wanted[1:3])
        self.assertTrue(await self.store.hasEvent("1", events[1].id))
        await self.store.dropEvents(position(events[2].id) + 1)
        self.assertEqual(await self.events(), events[3:])
        self.assertFalse(await self.store.hasEvent("1", events[1].id))

    async def test_eventIdsAreTimesThatNeverStepBack(self):
        """Ids are the time where that is possible, and grow when the wall clock steps back or stands still."""
        await self.create("a")
        self.now = NOW - 3600
        await self.create("b")
        await self.create("c")
        self.now = NOW + 10
        await self.create("d")
        positions = [position(event.id) for event in await self.events()]
        start = positionOf(NOW)
        self.assertEqual(positions, [start, start + 1, start + 2, positionOf(NOW + 10)])
        timestamps = [event.timestamp for event in await self.events()]
        self.assertEqual(timestamps, [1_700_000_000_500, 1_699_996_400_500, 1_699_996_400_500, 1_700_000_010_500])

    async def test_knowsTheEventsOfAFeed(self):
        """Only the very ids that this tenant's feed has given out, and has kept, are its events."""
        made = await self.create("web")
        other = self.makeStore()
        await other.open()
        self.addCleanup(other.close)
        foreign = await other.createService("1", NewService("web", 30), 100)
        self.assertTrue(await self.store.hasEvent("1", made.incarnation))
        self.assertTrue(await self.store.hasEvent("1", made.incarnation.upper()))
        self.assertFalse(await self.store.hasEvent("2", made.incarnation))
        self.assertFalse(await self.store.hasEvent("1", foreign.incarnation))
        self.assertFalse(await self.store.hasEvent("1", "9b6dbd5e-6ab4-4bb3-8f0a-ab1c56b5bf62"))
        self.assertFalse(await self.store.hasEvent("1", "no id"))

    async def test_forgetsOldEvents(self):
        """Events before a position are dropped, for all tenants, and ids go on after them."""
        await self.create("a")
        await self.create("a", tenant="2")
        self.now = NOW + 60
        made = await self.create("b")
        self.assertEqual(await self.store.dropEvents(positionOf(NOW + 60)), 2)
        self.assertEqual(await self.store.dropEvents(positionOf(NOW + 60)), 0)
        self.assertEqual(await self.feed(), [("service.join", "b")])
        self.assertEqual(await self.feed("2"), [])
        self.assertEqual(await self.store.dropEvents(positionOf(NOW + 61)), 1)
        self.assertFalse(await self.store.hasEvent("1", made.incarnation))
        self.now = NOW
        again = await self.create("c")
        self.assertGreater(position(again.incarnation), position(made.incarnation))

    async def test_tenantsAreApart(self):
        """Nothing that one tenant does is seen in, or done to, what belongs to another."""
        one = await self.create("web", tags=("t",))
        two = await self.create("web", tenant="2", tags=("t",))
        await self.store.setValue("1", "key", "one", 100)
        await self.store.setValue("2", "key", "two", 100)
        await self.raises(NoSuchObject, self.store.removeService("2", "web", one.incarnation))
        await self.raises(
            NoSuchObject, self.store.updateService("2", "web", one.incarnation, ServiceChanges(heartbeatTimeout=99))
        )
        self.store.recordLastSeen("2", "web", one.incarnation, 1)
        await self.lastSeenIsWritten()
        await self.store.removeService("1", "web", one.incarnation)
        await self.store.removeValue("1", "key")
        self.assertEqual(await self.store.getService("2", "web"), two)
        self.assertEqual(await self.ids(tenant="2", tag="t"), ["web"])
        self.assertEqual(await self.ids(tag="t"), [])
        self.assertEqual((await self.store.getValue("2", "key")).value, "two")
        self.assertEqual(await self.keys(), [])
        self.assertEqual(await self.feed("2"), [("service.join", "web"), ("configuration_value.update", "key")])

    # -- identity

    async def test_usersGetTheSmallestFreeTenant(self):
        """A user without a wish gets the smallest number that no user has; several may share one by wish."""
        self.assertEqual(await self.store.addUser("joe", "hash", None), UserRecord("joe", "1", "hash"))
        await self.store.addUser("ann", "hash", "3")
        await self.store.addUser("bob", "hash", "3")
        self.assertEqual((await self.store.addUser("cid", "hash", None)).tenant, "2")
        self.assertEqual((await self.store.addUser("\ud800", "hash", None)).tenant, "4")
        await self.store.removeUser("joe")
        self.assertEqual((await self.store.addUser("eve", "hash", None)).tenant, "1")
        self.assertEqual([user.name for user in await self.store.listUsers()], ["ann", "bob", "cid", "eve", "\ud800"])
        self.assertEqual(await self.store.getUser("bob"), UserRecord("bob", "3", "hash"))

    async def test_theTenantOfARemovedUserIsNotReused(self):
        """A tenant that has an account, or objects, is given to no user that does not ask for it."""
        await self.store.account("1")
        await self.store.setValue("2", "key", "value", 1000)
        self.assertEqual((await self.store.addUser("joe", "hash", None)).tenant, "3")
        self.assertEqual((await self.store.addUser("ann", "hash", "1")).tenant, "1")

    async def test_userNamesAreUnique(self):
        """A name that is taken is refused, and the user stays as it was."""
        await self.store.addUser("joe", "hash", "1")
        await self.raises(ObjectExists, self.store.addUser("joe", "other", "2"))
        self.assertEqual(await self.store.listUsers(), [UserRecord("joe", "1", "hash")])
        await self.raises(NoSuchObject, self.store.getUser("Joe"))

    async def test_tokensEndWithTheirUserOrKey(self):
        """A new key ends all tokens of a user, and so does the user's removal; those of others stay."""
        for name in ("joe", "ann"):
            await self.store.addUser(name, "hash", None)
            await self.store.addToken(TokenRecord(f"{name}'s", name, "1", NOW + 60))
        changed = await self.store.replaceUserKey("joe", "new")
        self.assertEqual(changed, UserRecord("joe", "1", "new"))
        self.assertEqual(await self.store.getUser("joe"), changed)
        await self.raises(NoSuchObject, self.store.getToken("joe's"))
        token, user = await self.store.getToken("ann's")
        self.assertEqual(token, TokenRecord("ann's", "ann", "1", NOW + 60))
        self.assertEqual(user, await self.store.getUser("ann"))
        await self.store.removeUser("ann")
        await self.raises(NoSuchObject, self.store.getToken("ann's"))
        await self.raises(NoSuchObject, self.store.getUser("ann"))
        await self.raises(NoSuchObject, self.store.removeUser("ann"))
        await self.raises(NoSuchObject, self.store.replaceUserKey("ann", "new"))

    async def test_tokensEndAndAreForgotten(self):
        """A token can be ended, more than once, and those that have run out are forgotten when one is added."""
        await self.store.addUser("joe", "hash", None)
        for n in range(3):
            await self.store.addToken(TokenRecord(f"t{n}", "joe", "1", NOW + n))
        removed = await gatherResults([self.store.removeToken("t1") for _ in range(3)])
        self.assertEqual(sorted(removed), [False, False, True])
        self.assertFalse(await self.store.removeToken("t1"))
        await self.raises(NoSuchObject, self.store.getToken("t1"))
        self.now = NOW + 0.5
        await self.store.addToken(TokenRecord("t3", "joe", "1", NOW + 3))
        await self.raises(NoSuchObject, self.store.getToken("t0"))
        self.assertEqual((await self.store.getToken("t2"))[0].expires, NOW + 2)
        self.assertEqual((await self.store.getToken("t3"))[0].user, "joe")

    async def test_rolesAreKept(self):
        """A user has the role that was given last, also after a new key; a new role ends no token, a new key does."""
        role = Role(services=("web-", "w"), configuration=("/a",), locks=("/a", ""))
        added = await self.store.addUser("joe", "hash", None, role)
        self.assertEqual(added.role, role)
        self.assertEqual(await self.store.getUser("joe"), added)
        self.assertEqual((await self.store.addUser("ann", "hash", None)).role, WRITE)
        for n, given in enumerate((WRITE, Role("read"), role)):
            await self.store.addToken(TokenRecord(f"t{n}", "joe", "1", NOW + 60))
            changed = await self.store.changeRole("joe", given)
            self.assertEqual(changed, UserRecord("joe", "1", "hash", given))
            self.assertEqual(await self.store.getUser("joe"), changed)
            for token in range(n + 1):
                self.assertEqual((await self.store.getToken(f"t{token}"))[1], changed)
        self.assertEqual((await self.store.replaceUserKey("joe", "new")).role, role)
        self.assertEqual([user.role for user in await self.store.listUsers()], [WRITE, role])
        for token in range(3):
            await self.raises(NoSuchObject, self.store.getToken(f"t{token}"))
        await self.raises(NoSuchObject, self.store.changeRole("bob", role))

    async def test_outcomesAreOneFamily(self):
        """StoreError is the base class of every outcome that is not a success."""
        await self.raises(StoreError, self.store.getService("1", "none"))


class OwnStoreSuite(StoreSuite):
    """Tests of a store that one registry has to itself."""

    def test_isAnOwnStore(self):
        """A store has every operation of IOwnStore, with its arguments."""
        verifyObject(IOwnStore, self.store)

    async def test_allAreThere(self):
        """Services have the time of their last heartbeat at the start; locks are not services."""
        made = await self.create("web")
        await self.create("quiet")
        self.store.recordLastSeen("1", "web", made.incarnation, 2000)
        await self.lastSeenIsWritten()
        lock = await self.acquire()
        self.assertEqual({s.id: s.lastSeen for s in await self.store.allServices()}, {"web": 2000, "quiet": None})
        self.assertEqual(await self.store.allLocks(), [lock.summary("1")])
        forced = await self.store.forceLock("1", NAME, lock.incarnation)
        self.assertEqual(await self.store.allLocks(), [forced.summary("1")])

    async def test_otherIncarnationsDoNotExpire(self):
        """An expiration of an earlier incarnation, or of another tenant's service, changes nothing."""
        old = await self.create("web")
        await self.store.removeService("1", "web", old.incarnation)
        new = await self.create("web")
        two = await self.create("web", tenant="2")
        await self.store.expireServices([Expiration("1", "web", old.incarnation, 5)])
        await self.store.expireServices([Expiration("2", "web", new.incarnation, 1)])
        self.assertEqual(await self.store.getService("1", "web"), new)
        self.assertEqual(await self.store.getService("2", "web"), two)
        expected = [("service.join", "web"), ("service.remove", "web"), ("service.join", "web")]
        self.assertEqual(await self.feed(), expected)

    async def test_theEventHasTheTimeOfTheExpiration(self):
        """Services that expire are gone, and their events have the deadline, whatever the time is."""
        one = await self.create("one", tags=("t",), metadata={"k": "v"})
        two = await self.create("two", tenant="2")
        await self.create("three", tags=("t",))
        expirations = [Expiration("1", "one", one.incarnation, 123), Expiration("2", "two", two.incarnation, 456)]
        await self.store.expireServices([*expirations, expirations[0], Expiration("1", "gone", one.incarnation, 789)])
        await self.store.expireServices(expirations)
        await self.store.expireServices([])
        self.assertEqual(await self.ids(), ["three"])
        self.assertEqual(await self.ids(tag="t"), ["three"])
        self.assertEqual(await countServices(self.store), 1)
        (event,) = await self.events(type="service.timeout")
        self.assertEqual(event.timestamp, 123)
        self.assertEqual(event.payload["metadata"], {"k": "v"})
        (event,) = await self.events("2", "service.timeout")
        self.assertEqual((event.timestamp, event.payload["id"]), (456, "two"))

    async def test_manyExpireTogether(self):
        """A large number of expirations is persisted completely."""
        made = await gatherResults(
            [self.store.createService("1", NewService(f"s{n:04}", 30), 9999) for n in range(950)]
        )
        await self.store.expireServices([Expiration("1", one.id, one.incarnation, 7) for one in made[50:]])
        self.assertEqual(await countServices(self.store), 50)
        timeouts = await self.events(type="service.timeout")
        self.assertEqual([event.payload["id"] for event in timeouts], [one.id for one in made[50:]])

    async def test_expirationsOfManyKindsTogether(self):
        """Each expiration removes its own service with all its tags, and no others."""
        made = []
        for n in range(70):
            made.append(await self.create(f"s{n}", f"{n % 3}", tags=("t", f"t{n}", "\0é"), metadata={"k": '"\0é'}))
        spared = await self.create("spared", "0", tags=("t", "t0"))
        expirations = [Expiration(f"{n % 3}", one.id, one.incarnation, n) for n, one in enumerate(made)]
        others = [
            Expiration("1", "s0", made[0].incarnation, 1),
            Expiration("0", "spared", made[0].incarnation, 1),
            Expiration("0", "spared", "no such incarnation", 1),
            Expiration("0", "gone", spared.incarnation, 1),
        ]
        await self.store.expireServices([*expirations[:10], *others, *expirations[:5], *expirations[10:]])
        for tenant in ("0", "1", "2"):
            expired = await self.events(tenant, "service.timeout")
            expected = [(n, one) for n, one in enumerate(made) if f"{n % 3}" == tenant]
            self.assertEqual(
                [(event.timestamp, event.payload["id"], event.payload["tags"]) for event in expired],
                [(n, one.id, list(one.tags)) for n, one in expected],
            )
            self.assertEqual(await self.ids(tenant=tenant, tag="\0é"), [])
            self.assertEqual(await self.ids(tenant=tenant, tag="t"), ["spared"] if tenant == "0" else [])
        self.assertEqual(await self.ids(tenant="0", tag="t0"), ["spared"])
        self.assertEqual(await countServices(self.store, "0"), 1)

    async def test_allServicesAreThoseOfAllTenants(self):
        """At its start the registry learns of every service."""
        one = await self.create("web", timeout=15)
        two = await self.create("web", tenant="2", timeout=60)
        gone = await self.create("gone")
        await self.store.removeService("1", "gone", gone.incarnation)
        services = await self.store.allServices()
        expected = [
            ServiceSummary("1", "web", one.incarnation, 15, None),
            ServiceSummary("2", "web", two.incarnation, 60, None),
        ]
        self.assertEqual(sorted(services, key=lambda service: service.tenant), expected)

    async def test_lockExpires(self):
        """The incarnations that are still there expire, each with an event at the time of its expiration."""
        lock = await self.acquire()
        gone = await self.acquire("/other/name")
        await self.store.releaseLock("1", gone.name, gone.incarnation, False)
        again = await self.acquire("/other/name")
        await self.store.expireLocks(
            [Expiration(lockScope("1"), each.name, each.incarnation, 1_700_000_123_456) for each in (lock, gone, lock)]
        )
        self.assertEqual(await self.store.allLocks(), [again.summary("1")])
        event = (await self.store.listEvents("1", 0, 99, None))[-1]
        self.assertEqual((event.type, event.timestamp), ("lock.expire", 1_700_000_123_456))
        self.assertEqual(dict(event.payload), {**lock.shown(), "forced": False})
        await self.acquire(maximum=2)
