"""Nodes that lose etcd or each other."""

from __future__ import annotations

import json
from itertools import pairwise

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater

from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from tests.system.processes import isCrowded
from tests.unit.registry.stores.etcd.test_gateway import CLOCK
from txserviceregistry.registry.stores.etcd import node
from txserviceregistry.registry.stores.etcd import store as etcdStore
from txserviceregistry.registry.stores.etcd.gateway import PATIENCE
from txserviceregistry.registry.stores.etcd.keyvalues import encode, jsonBytes, put
from txserviceregistry.registry.stores.etcd.node import DEAF
from txserviceregistry.registry.stores.interfaces import (
    NoSuchObject,
    StoreUnavailable,
)


class NodeTests(EtcdStoreCase):
    """The statuses that other nodes publish in their keys."""

    async def test_aStatusThatIsNotUnderstoodIsWaitedFor(self) -> None:
        """
        The others go on reading and receiving. Nothing expires while such a node is there, which may have received
        heartbeats; when it is gone, each service has a full timeout.
        """
        odd = (b"12", b'{"v": 2}', b'{"v": 1, "serial": null}', b"not JSON")
        lease, _ = await self.asked.grant(60)
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/early{number}", said, lease)])
        a, b = await self.store(), await self.store()
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/late{number}", said, lease)])
        made = await self.created(b, a)
        self.passDeadline(made, a, b)
        await self.until(lambda: all(made.incarnation in each.closed(T) for each in (a, b)))
        await self.asked.txn(
            (),
            [
                {"request_delete_range": {"key": encode(f"{self.prefix}nodes/{when}{number}")}}
                for when in ("early", "late")
                for number in range(len(odd))
            ],
        )
        for store in (a, b):
            await self.until(lambda store=store: self.secondsLeft(store, made) > 25)
        await self.untilVotesEnd(made, a, b)
        self.assertEqual(await self.types(a), ["service.join"])
        self.passDeadline(made, a, b)
        await self.notifies(a, "vanished", "web", made.incarnation)
        self.assertEqual(await self.types(a), ["service.join", "service.timeout"])


class ManyTests(EtcdStoreCase):
    """A node that starts beside thousands of services."""

    async def test_theyAreTakenOverLittleByLittle(self) -> None:
        """Between two parts of them it does other work: it renews its lease, and answers requests."""
        first, count = await self.store(), 3000
        record = (await self.created(first), await self.key(f"services/{T}/web"))[1]
        assert record is not None
        kept = json.loads(record.value)
        for begin in range(0, count, 100):
            keys = [
                put(f"{self.prefix}services/{T}/web{each}", jsonBytes({**kept, "position": kept["position"] + each}))
                for each in range(begin + 1, begin + 101)
            ]
            await self.asked.txn((), keys)
        known: list[int] = []

        def look() -> None:
            known.append(sum(len(each.deadlines) for store, each in self.listeners.items() if store is not first))

        turns = LoopingCall(look)
        turns.start(0)
        self.addCleanup(turns.stop)
        store = await self.store()
        known.append(len(self.listeners[store].deadlines))
        self.assertEqual(known[-1], count + 1)
        self.assertLess(max(after - before for before, after in pairwise(known)), count / 2)


class LostContactTests(EtcdStoreCase):
    """A node that loses etcd for longer than it may, and finds it again."""

    isPatient = False

    async def test_lostAndRegained(self) -> None:
        """It refuses heartbeats, and soon all at once; then all is read anew, and each service has a full timeout."""
        relay = self.relay()
        store, other = await self.store(relay.url), await self.store(joins=False)
        made, kept = await self.created(store), await self.created(store, id="kept")
        relay.hang()
        await self.notifies(store, "suspend")
        await self.create(other, "new")
        await other.removeService(T, "web", made.incarnation)
        await self.refuses(StoreUnavailable, store.admit(T, made.incarnation))
        await self.refuses(StoreUnavailable, store.getService(T, "web"))
        began, stalled = CLOCK.seconds(), self.stalled
        await self.refuses(StoreUnavailable, store.getService(T, "web"))
        # Not after the time for which requests are repeated.
        self.assertLess(CLOCK.seconds() - began - (self.stalled - stalled), PATIENCE / 2)
        healed = CLOCK.seconds()
        relay.heal()
        await self.notifies(store, "synchronized", ["kept", "new"])
        await self.until(lambda: store.isValid)
        self.assertFull(store, kept, healed)
        # It is notified again.
        await other.setValue(T, "key", "value", 1)
        self.listeners[store].heard.clear()
        await other.setValue(T, "key", "another", 1)
        await self.notifies(store, "eventAdded", T, "configuration_value.update")

    async def test_cutOffFromEtcdOnly(self) -> None:
        """
        A node that its clients still reach acknowledges for a while and then refuses; the others let nothing expire
        before its key is gone, and give each service a full timeout then.
        """
        relay = self.relay()
        # So long that a machine which stands still for seconds changes nothing.
        presence, safety = 12, 6
        for name, seconds in (("PRESENCE", presence), ("SAFETY", safety), ("DEAF", 60)):
            self.patch(node, name, seconds)
        self.patch(etcdStore, "GIVE_UP", 60)
        a, b = await self.store(relay.url), await self.store()
        made = await self.created(b, a)
        relay.hang()
        began = CLOCK.seconds()
        self.passDeadline(made, b)
        await self.until(lambda: made.incarnation in b.closed(T))
        self.assertTrue(await self.admitted(a, made))
        await self.until(lambda: not a.isValid)
        self.assertTrue(presence - safety - 1 < CLOCK.seconds() - began < presence)
        await self.refuses(StoreUnavailable, a.admit(T, made.incarnation))
        self.assertTrue(await self.haveJoined(2))
        self.assertIn(made.incarnation, b.closed(T))
        refused = CLOCK.seconds()
        await self.until(lambda: self.secondsLeft(b, made) > 0)
        self.assertTrue(await self.haveJoined(1))
        self.assertFull(b, made, refused)
        self.assertEqual(await self.types(b), ["service.join"])
        relay.heal()
        await self.until(lambda: a.isValid)
        self.assertTrue(await self.haveJoined(2))
        # It takes part again.
        self.passDeadline(made, a, b)
        await self.notifies(a, "vanished", "web", made.incarnation)
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])


class ContactTests(EtcdStoreCase):
    """A node whose contact with etcd is disturbed."""

    async def test_whileANodeCannotAnswerNothingExpires(self) -> None:
        """When its network has stood still for a moment, it answers then, and knows of a heartbeat."""
        relay = self.relay()
        a, b = await self.store(relay.url), await self.store()
        made = await self.created(b, a)
        relay.hang()
        began = CLOCK.seconds()
        self.passDeadline(made, b)
        await self.until(lambda: CLOCK.seconds() - began > 0.95)
        self.assertIn(made.incarnation, b.closed(T))
        relay.heal()
        await self.untilVotesEnd(made, b)
        self.assertNotIn(("suspend",), self.listeners[a].heard)
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_aWatchThatBreaksIsBegunAgain(self) -> None:
        """Changes meanwhile are found by reading all; the node stays a member, and gives full timeouts."""
        relay = self.relay()
        store, other = await self.store(relay.url), await self.store(joins=False)
        kept = await self.created(store, id="kept")
        names = await self.keys("nodes/")
        self.ticking = []
        self.passDeadline(kept, store)
        await relay.refuse()
        relay.reset()
        await self.create(other)
        relay.heal()
        await self.notifies(store, "synchronized", ["kept", "web"])
        await self.until(lambda: self.secondsLeft(store, kept) > 29)
        self.assertNotIn(("suspend",), self.listeners[store].heard)
        self.assertEqual(await self.keys("nodes/"), names)
        await store.probe()

    async def test_aDeafWatchIsBegunAgain(self) -> None:
        """A node that is shown nothing any more, not even its own status, lets nothing expire and reads all anew."""
        self.readAgainSoon()
        wire = TroubledAgent()
        a, b = await self.store(), await self.store(agent=wire)
        made = await self.created(a, b)
        wire.isDeaf = True
        began, stalled = CLOCK.seconds(), self.stalled
        self.passDeadline(made, a, b)
        await self.create(a, "new")
        await self.notifies(b, "synchronized", ["new", "web"])
        took = CLOCK.seconds() - began
        self.assertGreater(took, DEAF - 1)
        if not isCrowded():
            self.assertLess(took - (self.stalled - stalled), DEAF + 2)
        wire.isDeaf = False
        await self.until(lambda: self.secondsLeft(b, made) > 25)
        later = await self.create(a, "later")
        await self.until(lambda: "later" in str(self.listeners[b].heard))
        self.assertNotIn(("suspend",), self.listeners[b].heard)
        self.assertTrue(b.isValid)
        self.assertTrue(await self.admitted(b, later))
        self.assertNotIn("service.timeout", await self.types(a))

    async def test_watchesThatLag(self) -> None:
        """Nodes that see what happens at different times let nothing expire early, nor twice, nor never."""
        wires = [TroubledAgent() for _ in range(3)]
        stores = [await self.store(agent=wire) for wire in wires]
        made = await self.created(*stores, id="web", timeout=4)
        began = CLOCK.seconds()

        async def lag(wire: TroubledAgent, seconds: float) -> None:
            # Again and again, less than what counts as deaf.
            while CLOCK.seconds() - began < 6:
                wire.isDelayed = True
                await deferLater(reactor, seconds, lambda: None)
                wire.catchUp()
                await deferLater(reactor, 0.1, lambda: None)

        lags = [Deferred.fromCoroutine(lag(*each)) for each in ((wires[1], 0.5), (wires[2], 1.1))]
        last = 0.0
        for turn in range(4):
            await deferLater(reactor, 1, lambda: None)
            store = stores[(turn + 1) % 3]
            if made.incarnation not in store.closed(T) or await store.admit(T, made.incarnation):
                self.heartbeat(store, made)
                last = CLOCK.seconds()
        await self.notifies(stores[0], "vanished", "web", made.incarnation)
        self.assertGreater(CLOCK.seconds() - last, 4)
        await gatherResults(lags)
        self.assertEqual(await self.types(stores[0]), ["service.join", "service.timeout"])

    async def test_aMembershipThatEndsWhileAllIsRead(self) -> None:
        """The data that the next membership reads replace it: there is one watch afterwards."""
        self.readAgainSoon()
        wire = TroubledAgent()
        store = await self.store(agent=wire)
        await self.until(lambda: len(wire.watching) == 1)
        own = await self.newestNode()
        reading = encode(f"{self.prefix}services/").encode()
        wire.holds = lambda body: reading in body
        for watch in wire.watching:
            watch.transport.loseConnection()
        await self.until(lambda: wire.held)
        await self.asked.revoke(own.lease)
        held = wire.held
        await self.notifies(store, "suspend")
        await self.until(lambda: wire.held > held)
        self.listeners[store].heard.clear()
        wire.release()
        await self.until(lambda: store.isValid)
        await self.catchesUp(store)
        self.assertEqual(len(wire.watching), 1)
        self.assertEqual(self.listeners[store].heard.count(("synchronized", [])), 1)

    async def test_aRenewalThatIsLateIsOfNoUse(self) -> None:
        """A keep-alive that is answered when the node has joined again under another name changes nothing."""
        wire = TroubledAgent()
        store = await self.store(agent=wire)
        own = await self.newestNode()
        wire.delays = lambda body: b'"ID"' in body and b'"TTL"' not in body
        await self.until(lambda: wire.held)
        await self.asked.txn((), [{"request_delete_range": {"key": encode(own.key)}}])
        await self.notifies(store, "suspend")
        await self.until(lambda: store.isValid)
        wire.release()
        self.assertNotEqual((await self.newestNode()).key, own.key)
        await self.catchesUp(store)
        self.assertTrue(store.isValid)

    async def test_aReadThatIsOlderThanTheWatchIsRepeated(self) -> None:
        """A service that was read before its end, which the watch shows before that, is not there."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(b, a)
        record = encode(f"{self.prefix}services/{T}/web").encode()
        wire.delays = lambda body: record in body
        reading = a.getService(T, "web")
        await self.until(lambda: wire.held)
        await b.removeService(T, "web", made.incarnation)
        await self.notifies(a, "vanished", "web", made.incarnation)
        wire.release()
        await self.refuses(NoSuchObject, reading)
        self.assertFalse(await a.admit(T, made.incarnation))

    async def test_aNodeWhoseLeaseIsGoneJoinsAgain(self) -> None:
        """Under another name; it refuses heartbeats until all is read, and gives full timeouts."""
        wire = TroubledAgent()
        store = await self.store(agent=wire)
        made = await self.created(store)
        own = await self.newestNode()
        self.ticking = []
        self.passDeadline(made, store)
        self.listeners[store].heard.clear()
        revoked = CLOCK.seconds()
        wire.holds = lambda body: b'"TTL"' in body
        await self.asked.revoke(own.lease)
        await self.until(lambda: wire.held)
        self.assertEqual(self.listeners[store].heard, [("suspend",)])
        await self.refuses(StoreUnavailable, store.admit(T, made.incarnation))
        wire.release()
        await self.until(lambda: store.isValid)
        self.assertIn(("synchronized", ["web"]), self.listeners[store].heard)
        self.assertFull(store, made, revoked)
        self.assertNotEqual((await self.newestNode()).key, own.key)
