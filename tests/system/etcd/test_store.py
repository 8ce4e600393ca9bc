"""
What the etcd store does beside the suites: over a real etcd, reached by way of a relay that the tests cut.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.components import proxyForInterface
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.etcd.relay import Relay
from tests.unit.registry.stores.etcd.test_gateway import CLOCK, EtcdCase
from tests.unit.registry.stores.sharedsuite import Listener
from txserviceregistry.http.bodies import BytesProducer
from txserviceregistry.registry.eventids import position
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.etcd.gateway import KeyValue, endOf, put
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.etcd.watch import watchingAgent
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
    NoSuchObject,
    ServiceRecord,
    StoreRefused,
    StoreUnavailable,
    TokenRecord,
)

T = "1"


class EtcdStoreCase(EtcdCase):
    """Stores over one prefix."""

    timeout = 30

    def setUp(self) -> None:
        self.prefix = newPrefix()
        self.asked = self.etcd(sharedEtcd())
        self.listener = Listener()

    async def store(self, url: str | None = None, listens: bool = True, **options: Any) -> EtcdStore:
        store = EtcdStore(reactor, [url or sharedEtcd()], prefix=self.prefix, **options)
        self.addCleanup(store.close)
        await store.open()
        await store.allServices()
        if listens:
            store.listen(self.listener)
        return store

    def relay(self) -> Relay:
        relay = Relay(reactor, int(sharedEtcd().rpartition(":")[2]))
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    async def create(self, store: EtcdStore, id: str = "web", timeout: int = 30, tenant: str = T) -> ServiceRecord:
        return await store.createService(tenant, NewService(id, timeout), 10_000)

    async def key(self, name: str) -> KeyValue | None:
        return await self.asked.get(self.prefix + name)

    async def keys(self, below: str) -> list[str]:
        begin = self.prefix + below
        found, _ = await self.asked.range(begin, endOf(begin))
        return [each.key.removeprefix(begin) for each in found]

    async def endLease(self, made: ServiceRecord) -> int:
        """Let a service's lease end, as it does while etcd is stopped; which one it was."""
        record = await self.key(f"services/{T}/{made.id}")
        lease: int = json.loads(record.value)["lease"] if record else 0
        await self.asked.revoke(lease)
        return lease

    async def types(self, store: EtcdStore) -> list[str]:
        return [each.type for each in await store.listEvents(T, 0, 1000, None)]

    async def whenever(self, condition: Any) -> None:
        """Wait until *condition*, a function that returns something to await, is true."""
        found: list[Any] = [None]
        isAsking = [False]

        def look() -> bool:
            if not isAsking[0] and not found[0]:
                isAsking[0] = True
                Deferred.fromCoroutine(condition()).addCallback(answered)
            return bool(found[0])

        def answered(value: Any) -> None:
            found[0] = value
            isAsking[0] = False

        await self.until(look)


@implementer(IAgent)
class SlowAgent:
    """
    Holds back what is asked of one lease.

    :param what: what is: ``lease/keepalive`` or ``lease/timetolive``.
    :ivar lease: the lease.
    """

    def __init__(self, what: str = "lease/keepalive") -> None:
        self.what = what.encode("ascii")
        self.agent = watchingAgent(reactor, BrowserLikePolicyForHTTPS(), 1)
        self.lease = 0
        self.held: list[Deferred[Any]] = []

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        if not uri.endswith(b"/" + self.what) or not self.lease or str(self.lease).encode("ascii") not in body:
            return self.agent.request(method, uri, headers, bodyProducer)
        asked: Deferred[Any] = Deferred()
        self.held.append(asked)
        return asked.addCallback(lambda _: self.agent.request(method, uri, headers, bodyProducer))

    def release(self) -> None:
        """Hold nothing back any more."""
        self.lease = 0
        for asked in self.held:
            # What was not waited for any longer has been called too.
            if not asked.called:
                asked.callback(None)


@implementer(IAgent)
class DeafAgent:
    """
    Hands over no more of a watch's answer.

    :ivar isDeaf: whether it has begun to.
    """

    def __init__(self) -> None:
        self.agent = watchingAgent(reactor, BrowserLikePolicyForHTTPS(), 1)
        self.isDeaf = False

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        answered = self.agent.request(method, uri, headers, bodyProducer)
        return answered.addCallback(Muffled, self) if uri.endswith(b"/watch") else answered


class Muffled(proxyForInterface(IResponse)):  # type: ignore[misc]  # made there and then
    """A response of which nothing arrives while an agent is deaf."""

    def __init__(self, response: IResponse, agent: DeafAgent) -> None:
        super().__init__(response)
        self.agent = agent

    def deliverBody(self, protocol: Any) -> None:
        """See IResponse."""
        receive = protocol.dataReceived
        protocol.dataReceived = lambda data: None if self.agent.isDeaf else receive(data)
        self.original.deliverBody(protocol)


class LeaseTests(EtcdStoreCase):
    """Leases that end, and which services expire then."""

    async def test_aLeaseThatIsGoneIsGrantedAgain(self) -> None:
        """A heartbeat of a service that is there gives it a full timeout, whatever has become of its lease."""
        a, b = await self.store(), await self.store()
        made = await self.create(a)
        for store in (a, b, a):
            await self.endLease(made)
            self.assertIsNone(await self.key(f"alive/{T}/web"))
            self.assertTrue(await store.heartbeat(T, "web", made.incarnation))
            alive, record = await self.key(f"alive/{T}/web"), await self.key(f"services/{T}/web")
            self.assertEqual(alive and alive.lease, json.loads(record.value)["lease"] if record else None)
            self.assertGreater(await b.secondsLeft(T, "web", made.incarnation), 25)

    async def test_manyFindItGoneTogether(self) -> None:
        """Heartbeats on two nodes that find the lease gone at the same moment are all taken."""
        a, b = await self.store(), await self.store()
        made = await self.create(a)
        for _ in range(5):
            await self.endLease(made)
            beats = [store.heartbeat(T, "web", made.incarnation) for store in (a, b) * 5]
            self.assertEqual(await gatherResults(beats), [True] * 10)
            self.assertGreater(await a.secondsLeft(T, "web", made.incarnation), 25)

    async def test_aHeartbeatAfterAnotherTimeoutIsAFullOne(self) -> None:
        """A node that knows only the lease from before finds the new one, and lets that begin anew."""
        # It does not listen, so it is never notified of the change.
        a, b = await self.store(), await self.store(listens=False)
        made = await self.create(a)
        await b.getService(T, "web")
        await a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=3))
        await self.whenever(lambda: self.oldLeaseIsGone(b, made))
        began = CLOCK.seconds()
        await self.until(lambda: CLOCK.seconds() - began > 1.2)
        await b.allServices()
        self.assertTrue(await b.heartbeat(T, "web", made.incarnation))
        self.assertGreaterEqual(await a.secondsLeft(T, "web", made.incarnation), 2)

    async def oldLeaseIsGone(self, store: EtcdStore, made: ServiceRecord) -> bool:
        return await store.secondsLeft(T, "web", made.incarnation) <= 3

    async def test_aHeartbeatAfterTheDeadlinePreventsTheExpiration(self) -> None:
        """An expiration that was found, but not persisted before a heartbeat gave the service a lease, is dropped."""
        a, b = await self.store(), await self.store()
        made = await self.create(a)
        await self.endLease(made)
        self.assertLess(await a.secondsLeft(T, "web", made.incarnation), 0)
        self.assertTrue(await b.heartbeat(T, "web", made.incarnation))
        self.listener.calls.clear()
        expiration = Expiration(T, "web", made.incarnation, 5)
        await a.expireServices([expiration])
        # The registry has forgotten it, and is notified that it is there.
        await self.until(lambda: ("appeared", "web", made.incarnation, 30) in self.listener.calls)
        self.assertEqual(await self.types(a), ["service.join"])
        self.assertTrue(await a.heartbeat(T, "web", made.incarnation))

    async def test_anExpirationStaysGuardedWhenItIsTriedAgain(self) -> None:
        """So it is when etcd was unavailable in between, and the expiration was refused once."""
        relay = self.relay()
        a, b = await self.store(relay.url, listens=False), await self.store()
        made, other = await self.create(a), await self.create(a, "other")
        for each in (made, other):
            await self.endLease(each)
            self.assertLess(await a.secondsLeft(T, each.id, each.incarnation), 0)
        expirations = [Expiration(T, each.id, each.incarnation, 5) for each in (made, other)]
        await relay.refuse()
        relay.reset()
        await self.refuses(StoreUnavailable, a.expireServices(expirations))
        self.assertTrue(await b.heartbeat(T, "web", made.incarnation))
        relay.heal()
        await a.expireServices(expirations)
        self.assertEqual(await self.keys(f"services/{T}/"), ["other", "web"])
        # What was found out so long ago is no ground any more; found out again, it is.
        self.assertLess(await a.secondsLeft(T, "other", other.incarnation), 0)
        self.assertGreater(await a.secondsLeft(T, "web", made.incarnation), 0)
        await a.expireServices(expirations[1:])
        self.assertEqual(await self.keys(f"services/{T}/"), ["web"])

    async def test_aHeartbeatThatWaitsCountsOnEveryNode(self) -> None:
        """While a node could not tell etcd of it yet, no other one takes the lease that is gone for an expiration."""
        slow = SlowAgent()
        a, b = await self.store(agent=slow), await self.store()
        made = await self.create(a)
        slow.lease = await self.endLease(made)
        beat = a.heartbeat(T, "web", made.incarnation)
        for store in (a, b):
            await self.whenever(lambda store=store: self.isUndecided(store, made))
        self.assertFalse(beat.called)
        slow.release()
        self.assertTrue(await beat)
        await self.whenever(lambda: self.isLeft(b, made, 25))
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_aHeartbeatThatWaitsCountsUntilTheEnd(self) -> None:
        """It may also have come to wait for too long while another node was finding out what is left of the lease."""
        slow, looking = SlowAgent(), SlowAgent("lease/timetolive")
        a, b, c = await self.store(agent=slow), await self.store(agent=looking), await self.store()
        made = await self.create(a)
        await self.whenever(lambda: self.isLeft(b, made, 25))
        slow.lease = looking.lease = await self.endLease(made)
        beat, left = a.heartbeat(T, "web", made.incarnation), b.secondsLeft(T, "web", made.incarnation)
        await self.whenever(lambda: self.isUndecided(c, made))
        self.assertFalse(left.called)
        looking.release()
        self.assertEqual(await left, 0)
        slow.release()
        self.assertTrue(await beat)

    async def test_aDeafNodeExpiresNoServices(self) -> None:
        """A node whose watch does not work may not know how far behind the others are."""
        deaf = DeafAgent()
        a, b = await self.store(), await self.store(agent=deaf)
        made = await self.create(a)
        await self.whenever(lambda: self.isLeft(b, made, 25))
        deaf.isDeaf = True
        await self.endLease(made)
        await self.whenever(lambda: self.isUndecided(b, made))

    async def isUndecided(self, store: EtcdStore, made: ServiceRecord) -> bool:
        return await store.secondsLeft(T, made.id, made.incarnation) == 0

    async def isLeft(self, store: EtcdStore, made: ServiceRecord, seconds: float) -> bool:
        return await store.secondsLeft(T, made.id, made.incarnation) > seconds

    async def test_manyDieTogether(self) -> None:
        """Hundreds of expirations, from two nodes at once, are persisted once each, and other services stay."""
        a, b = await self.store(), await self.store()
        made = await gatherResults([self.made(a, f"web{number:03}") for number in range(120)])
        await gatherResults([Deferred.fromCoroutine(self.endLease(each)) for each in made])
        for store in (a, b):
            left = await gatherResults([store.secondsLeft(T, each.id, each.incarnation) for each in made])
            self.assertTrue(all(each < 0 for each in left))
        kept = made[::10]
        await gatherResults([b.heartbeat(T, each.id, each.incarnation) for each in kept])
        expirations = [Expiration(T, each.id, each.incarnation, 5) for each in made]
        await gatherResults([a.expireServices(expirations), b.expireServices(expirations[::-1])])
        self.assertEqual(await self.keys(f"services/{T}/"), [each.id for each in kept])
        timeouts = [each.payload["id"] for each in await a.listEvents(T, 0, 1000, "service.timeout")]
        self.assertEqual(sorted(timeouts), [each.id for each in made if each not in kept])
        # What is counted for the limit is what is there.
        self.assertEqual(json.loads((await self.clock_()).value)["services"], len(kept))

    def made(self, store: EtcdStore, id: str) -> Deferred[ServiceRecord]:
        return Deferred.fromCoroutine(self.create(store, id))

    async def clock_(self) -> Any:
        return await self.key(f"clocks/{T}")

    async def test_aNodeThatHasForgottenAServiceExpiresNone(self) -> None:
        """What a node does not hold proves nothing: it looks."""
        a, b = await self.store(), await self.store(listens=False)
        made = await self.create(a)
        # It has had no requests and no notifications.
        self.assertGreater(await b.secondsLeft(T, "web", made.incarnation), 25)


class SeenTests(EtcdStoreCase):
    """The times of heartbeats, which are written now and then."""

    async def test_onceForEachIncarnationAndThenRarely(self) -> None:
        """
        The first heartbeat of an incarnation is written, and for minutes no other one; a new one begins with its own.
        """
        store = await self.store()
        made = await self.create(store)
        for time in (1000, 2000, 3000):
            store.recordLastSeen(T, "web", made.incarnation, time)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        seen = await self.key(f"seen/{T}/web")
        self.assertEqual(seen and seen.value, b"1000")
        self.assertEqual((await store.getService(T, "web")).lastSeen, 3000)
        store.recordLastSeen(T, "web", made.incarnation, 4000)
        await store.removeService(T, "web", made.incarnation)
        await self.whenever(lambda: self.isGone(f"seen/{T}/web"))
        again = await self.create(store)
        self.assertIsNone((await store.getService(T, "web")).lastSeen)
        store.recordLastSeen(T, "web", made.incarnation, 5000)
        store.recordLastSeen(T, "web", again.incarnation, 6000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        seen = await self.key(f"seen/{T}/web")
        self.assertEqual(seen and seen.value, b"6000")

    async def isGone(self, name: str) -> bool:
        return await self.key(name) is None

    async def test_othersAreNotifiedOfThem(self) -> None:
        """What one node writes all show, those that start later too."""
        a, b = await self.store(), await self.store()
        made = await self.create(a)
        a.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.isSeen(b, 1000))
        later = await self.store()
        self.assertTrue(await self.isSeen(later, 1000))

    async def isSeen(self, store: EtcdStore, time: int) -> bool:
        return (await store.getService(T, "web")).lastSeen == time

    async def test_writingGoesOnAfterTrouble(self) -> None:
        """However many could not be written while etcd was away, those that come later are."""
        relay = self.relay()
        store = await self.store(relay.url, listens=False)
        made = await gatherResults([Deferred.fromCoroutine(self.create(store, f"web{n:02}")) for n in range(40)])
        await relay.refuse()
        relay.reset()
        for each in made[:30]:
            store.recordLastSeen(T, each.id, each.incarnation, 1000)
        await self.refuses(StoreUnavailable, store.probe())
        relay.heal()
        for each in made[30:]:
            store.recordLastSeen(T, each.id, each.incarnation, 2000)
        await self.whenever(lambda: self.areSeen([each.id for each in made[30:]]))

    async def areSeen(self, ids: list[str]) -> bool:
        return set(await self.keys(f"seen/{T}/")) >= set(ids)


class NodeTests(EtcdStoreCase):
    """What other nodes say in their keys."""

    async def test_aWordThatIsNotUnderstoodSaysNothing(self) -> None:
        """One of another release may report something else: the others go on reading, receiving and confirming."""
        odd = (b"12", b'{"v": 2}', b'{"v": 1, "behind": null}', b"not JSON")
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/early{number}", said)])
        a, b = await self.store(), await self.store(listens=False)
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/late{number}", said)])
        made = await self.create(b)
        await self.until(lambda: ("appeared", "web", made.incarnation, 30) in self.listener.calls)
        await self.endLease(made)
        await self.whenever(lambda: self.isExpired(a, made))

    async def isExpired(self, store: EtcdStore, made: ServiceRecord) -> bool:
        return await store.secondsLeft(T, made.id, made.incarnation) < 0


class HousekeepingTests(EtcdStoreCase):
    """A key space that does not grow for ever."""

    async def test_forgetsThePast(self) -> None:
        """Old events, the marks of nodes that are gone, and etcd's own history go; what is there stays."""
        gone, store = await self.store(), await self.store()
        await gone.setValue(T, "key1", "x", 10)
        await store.setValue(T, "key2", "x", 10)
        first, second = await store.listEvents(T, 0, 10, None)
        await self.whenever(lambda: self.nodes(2))
        await store.dropEvents(0)
        self.assertEqual(len(await self.keys(f"commits/{T}/")), 2)
        await gone.close()
        await self.whenever(lambda: self.nodes(1))
        _, old = await self.asked.range("/")
        self.assertEqual(await store.dropEvents(position(second.id)), 1)
        self.assertEqual([each.id for each in await store.listEvents(T, 0, 10, None)], [second.id])
        self.assertFalse(await store.hasEvent(T, first.id))
        self.assertEqual(len(await self.keys(f"commits/{T}/")), 1)
        await store.setValue(T, "key2", "y", 10)
        await store.dropEvents(0)
        # The next to last time is what is forgotten.
        history = {"key": "AA==", "range_end": "AA==", "revision": str(old - 1), "limit": "1"}
        text = await self.refuses(Exception, self.asked.txn((), [{"request_range": history}]))
        self.assertIn("compacted", text)
        self.assertEqual(await store.getValue(T, "key2"), "y")

    async def nodes(self, count: int) -> bool:
        return len(await self.keys("nodes/")) == count

    async def test_manyOldEvents(self) -> None:
        """More than a page of them, while another node drops them too."""
        a, b = await self.store(), await self.store()
        await gatherResults([a.setValue(T, "key", str(number), 10) for number in range(1100)])
        dropped = await gatherResults([store.dropEvents(1 << 59) for store in (a, b)])
        self.assertGreaterEqual(sum(dropped), 1100)
        self.assertEqual(await a.listEvents(T, 0, 10, None), [])


class IdentityTests(EtcdStoreCase):
    """Users and tokens on several nodes."""

    async def test_aReplacedKeyEndsAllTokensAtOnce(self) -> None:
        """On every node, in the moment in which it is replaced; so does the removal of the user, also a namesake's."""
        a, b = await self.store(), await self.store()
        await a.addUser("joe", "hash1", None)
        expires = 4_000_000_000.0

        async def token(name: str) -> None:
            await a.addToken(TokenRecord(name, "joe", "1", expires))
            self.assertEqual((await b.getToken(name)).tenant, "1")

        await token("t1")
        await token("t2")
        await b.replaceUserKey("joe", "hash2")
        for name in ("t1", "t2"):
            for store in (a, b):
                await self.refuses(NoSuchObject, store.getToken(name))
        await token("t3")
        await b.removeUser("joe")
        await self.refuses(NoSuchObject, a.getToken("t3"))
        await a.addUser("joe", "hash3", "1")
        await self.refuses(NoSuchObject, b.getToken("t3"))

    async def test_usersOfSeveralNodesHaveTenantsOfTheirOwn(self) -> None:
        """However many are added at the same moment on both, no two are given the same tenant."""
        a, b = await self.store(), await self.store()
        users = await gatherResults([store.addUser(f"u/{n}", "h", None) for n, store in enumerate((a, b) * 6)])
        self.assertEqual(len({user.tenant for user in users}), 12)
        self.assertEqual({user.name for user in await b.listUsers()}, {f"u/{n}" for n in range(12)})

    async def test_anAccountIsOne(self) -> None:
        """Asked for on all nodes at once, it has come into being at one time."""
        wall = iter(range(1000, 2000))
        stores = [await self.store(wallClock=lambda: float(next(wall))) for _ in range(3)]
        accounts = await gatherResults([store.account("77") for store in stores * 4])
        self.assertEqual(len(set(accounts)), 1)


class OpeningTests(EtcdStoreCase):
    """Beginning, and ending."""

    async def test_oneSecretForAllThatBeginTogether(self) -> None:
        """Nodes that meet over an empty key space agree about secret and event ids."""
        stores = await gatherResults([Deferred.fromCoroutine(self.store(listens=False)) for _ in range(5)])
        self.assertEqual(len({await store.secret() for store in stores}), 1)
        await stores[0].setValue(T, "key", "value", 1)
        self.assertEqual(len({(await store.listEvents(T, 0, 1, None))[0].id for store in stores}), 1)

    async def test_anotherReleasesKeysAreRefused(self) -> None:
        """What a later release has written is left alone."""
        await (await self.store()).close()
        meta = await self.key("meta")
        assert meta is not None
        changed = json.dumps({**json.loads(meta.value), "v": 99}).encode()
        await self.asked.txn((), [put(f"{self.prefix}meta", changed)])
        text = await self.refuses(StoreRefused, self.store())
        self.assertIn("another release", text)

    async def test_whatIsUnderWayIsFinished(self) -> None:
        """A change that was begun before the store is closed is made, and answered."""
        store = await self.store()
        changes = [store.setValue(T, f"key{number}", "x", 1000) for number in range(100)]
        closing = store.close()
        await gatherResults(changes)
        await closing
        self.assertEqual(len(await self.keys(f"values/{T}/")), 100)

    async def test_closedItLeavesNothing(self) -> None:
        """Neither its own key, nor anything on the reactor, also while etcd is away."""
        relay = self.relay()
        stores = [await self.store(), await self.store(relay.url)]
        await self.whenever(lambda: self.haveBegun(2))
        relay.hang()
        await gatherResults([store.close() for store in stores])
        self.assertEqual(len(await self.keys("nodes/")), 1)

    async def haveBegun(self, count: int) -> bool:
        return len(await self.keys("nodes/")) == count


class ContactTests(EtcdStoreCase):
    """A node that loses etcd, and finds it again."""

    async def test_lostAndRegained(self) -> None:
        """
        It says so once; it refuses at once after a while; then all is read anew, and each service has a full timeout.
        """
        relay = self.relay()
        store, other = await self.store(relay.url), await self.store(listens=False)
        made = await self.create(store)
        await self.until(lambda: ("appeared", "web", made.incarnation, 30) in self.listener.calls)
        relay.hang()
        await self.until(lambda: ("lost",) in self.listener.calls)
        await self.create(other, "new")
        await other.removeService(T, "web", made.incarnation)
        began = CLOCK.seconds()
        await self.refuses(StoreUnavailable, store.heartbeat(T, "web", made.incarnation))
        self.assertLess(CLOCK.seconds() - began, 5)
        began = CLOCK.seconds()
        await self.refuses(StoreUnavailable, store.heartbeat(T, "web", made.incarnation))
        self.assertLess(CLOCK.seconds() - began, 0.5)
        relay.heal()
        await self.until(lambda: ("synchronized", ["new"], True) in self.listener.calls)
        self.assertEqual(self.listener.calls.count(("lost",)), 1)
        self.assertFalse(await store.heartbeat(T, "web", made.incarnation))
        # It listens again.
        await other.setValue(T, "key", "value", 1)
        self.listener.calls.clear()
        await other.setValue(T, "key", "another", 1)
        await self.until(lambda: ("eventAdded", T) in self.listener.calls)

    async def test_aWatchThatBreaksIsBegunAgain(self) -> None:
        """Changes meanwhile are found by reading all; no contact was lost."""
        relay = self.relay()
        store, other = await self.store(relay.url), await self.store(listens=False)
        await self.whenever(self.hasNode)
        relay.reset()
        await self.create(other)
        await self.until(lambda: ("synchronized", ["web"], False) in self.listener.calls)
        self.assertNotIn(("lost",), self.listener.calls)
        await store.probe()

    async def hasNode(self) -> bool:
        return len(await self.keys("nodes/")) == 1

    async def test_aNodeWhoseLeaseIsGoneGetsAnother(self) -> None:
        """Its own key comes back, and is set all the time."""
        await self.store()
        await self.whenever(self.hasNode)
        (name,) = await self.keys("nodes/")
        own = await self.key(f"nodes/{name}")
        assert own is not None
        await self.asked.revoke(own.lease)
        await self.whenever(self.hasNode)
        self.assertNotIn(("lost",), self.listener.calls)

    async def test_responsesAfterAPauseProveNoExpiration(self) -> None:
        """When etcd has stood still for less than what counts as lost, heartbeats still wait in front of it."""
        relay = self.relay()
        store = await self.store(relay.url)
        made = await self.create(store)
        await self.whenever(self.hasNode)
        await self.endLease(made)
        relay.hang()
        began = CLOCK.seconds()
        asking = store.secondsLeft(T, "web", made.incarnation)
        await self.until(lambda: CLOCK.seconds() - began > 0.95)
        relay.heal()
        self.assertEqual(await asking, 0)
        self.assertNotIn(("lost",), self.listener.calls)
        await self.whenever(lambda: self.isExpired(store, made))

    async def isExpired(self, store: EtcdStore, made: ServiceRecord) -> bool:
        return await store.secondsLeft(T, "web", made.incarnation) < 0


class StatisticsTests(EtcdStoreCase):
    """What ``/metrics`` shows of the store."""

    async def test_countsItsTransactions(self) -> None:
        """Those that read, those that write, and how many changes shared one of those."""
        store = await self.store(listens=False)
        await store.account(T)
        counted = store.statistics
        reads, writes = sum(counted.reads.counts), sum(counted.writes.counts)
        await gatherResults([store.setValue(T, f"/key/{number}", "x", 100) for number in range(5)])
        await store.getValue(T, "/key/1")
        self.assertEqual((sum(counted.commits.counts), counted.commits.total), (1, 5))
        self.assertEqual(sum(counted.writes.counts), writes + 1)
        # A group reads what it is about to change.
        self.assertEqual(sum(counted.reads.counts), reads + 2)
        self.assertGreater(counted.reads.total, 0)
        self.assertGreater(counted.writes.total, 0)

    async def test_tellsWhetherEtcdIsThere(self) -> None:
        """It is up until it can't be reached, and again when it can; what it refuses for good reason is an answer."""
        relay = self.relay()
        store = await self.store(relay.url, listens=False)
        counted = store.statistics
        await self.refuses(NoSuchObject, store.getValue(T, "/nothing"))
        self.assertEqual((counted.isReadable, counted.isWritable), (True, True))
        await relay.refuse()
        relay.reset()
        await self.refuses(StoreUnavailable, store.probe())
        self.assertEqual((counted.isReadable, counted.isWritable), (True, False))
        await self.refuses(StoreUnavailable, store.getValue(T, "/key"))
        self.assertEqual((counted.isReadable, counted.isWritable), (False, False))
        relay.heal()
        await store.probe()
        await self.refuses(NoSuchObject, store.getValue(T, "/key"))
        self.assertEqual((counted.isReadable, counted.isWritable), (True, True))
