"""
What the etcd store does beside the suites: over a real etcd, reached by way of a relay that the tests cut.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock, LoopingCall
from twisted.python.components import proxyForInterface
from twisted.web.client import BrowserLikePolicyForHTTPS, readBody
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
from txserviceregistry.registry.stores.etcd.batches import Batches
from txserviceregistry.registry.stores.etcd.eventids import TenantIds
from txserviceregistry.registry.stores.etcd.gateway import KeyValue, encode, endOf, newLease, put
from txserviceregistry.registry.stores.etcd.layout import openLayout
from txserviceregistry.registry.stores.etcd.node import DEAF, PRESENCE, SAFETY
from txserviceregistry.registry.stores.etcd.services import EtcdServices
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.etcd.watch import watchingAgent
from txserviceregistry.registry.stores.interfaces import (
    NoSuchObject,
    ServiceRecord,
    StoreRefused,
    StoreUnavailable,
    TokenRecord,
)
from txserviceregistry.util.deferred import returnsDeferred

T = "1"
TICK = 0.1
_marks = itertools.count()


class EtcdStoreCase(EtcdCase):
    """
    Stores over one prefix.

    :ivar listeners: by store, of those that have joined.
    :ivar ticking: the stores that take part in votes.
    """

    timeout = 40

    def setUp(self) -> None:
        self.prefix = newPrefix()
        self.asked = self.etcd(sharedEtcd())
        self.listeners: dict[EtcdStore, Listener] = {}
        self.ticking: list[EtcdStore] = []
        ticks = LoopingCall(self.tick)
        ticks.start(TICK, now=False)
        self.addCleanup(ticks.stop)

    def tick(self) -> None:
        for store in self.ticking:
            store.tick()

    async def store(self, url: str | None = None, joins: bool = True, **options: Any) -> EtcdStore:
        store = EtcdStore(reactor, [url or sharedEtcd()], prefix=self.prefix, **options)
        self.addCleanup(store.close)
        await store.open()
        if joins:
            self.listeners[store] = Listener(CLOCK.seconds)
            await store.join(self.listeners[store])
            self.ticking.append(store)
        return store

    def relay(self) -> Relay:
        relay = Relay(reactor, int(sharedEtcd().rpartition(":")[2]))
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    async def create(self, store: EtcdStore, id: str = "web", timeout: int = 30, tenant: str = T) -> ServiceRecord:
        return await store.createService(tenant, NewService(id, timeout), 10_000)

    async def created(self, *stores: EtcdStore, id: str = "web", timeout: int = 30) -> ServiceRecord:
        """A service that all of these stores know."""
        made = await self.create(stores[0], id, timeout)
        for store in stores:
            await self.notifies(store, "appeared", id, made.incarnation, timeout)
        return made

    async def notifies(self, store: EtcdStore, *what: Any) -> None:
        """Wait until the listener of a store has been notified of that."""
        await self.until(lambda: what in self.listeners[store].heard)

    def heartbeat(self, store: EtcdStore, made: ServiceRecord) -> None:
        """A store's registry receives a heartbeat."""
        self.listeners[store].heartbeat((T, made.incarnation))

    def passDeadline(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """The deadline of a service passes, as these stores' registries know it."""
        for store in stores:
            self.listeners[store].deadlines[T, made.incarnation] = 0.0

    def passSilently(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """As :meth:`passDeadline`, but these stores open no vote about it."""
        self.passDeadline(made, *stores)
        for store in stores:
            self.listeners[store].due(1000)

    def secondsLeft(self, store: EtcdStore, made: ServiceRecord) -> float:
        """As a store's registry knows it."""
        return self.listeners[store].secondsLeft((T, made.incarnation))

    async def admitted(self, store: EtcdStore, made: ServiceRecord) -> bool:
        """A heartbeat that a store's registry lets pass or not."""
        isThere = await store.admit(T, made.incarnation)
        if isThere:
            self.heartbeat(store, made)
        return isThere

    def beginAdmitted(self, store: EtcdStore, made: ServiceRecord) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.admitted(store, made))

    async def voteOf(self, store: EtcdStore, made: ServiceRecord, *others: EtcdStore) -> None:
        """A store opens a vote about a service, whose deadline has passed there; only the *others* answer."""
        self.ticking = [store, *others]
        self.passDeadline(made, store)
        self.passSilently(made, *others)
        await self.until(lambda: all(made.incarnation in each.closed(T) for each in (store, *others)))

    async def untilVotesEnd(self, made: ServiceRecord, *stores: EtcdStore) -> None:
        """Wait until a service is open on these stores, and no node publishes a vote."""
        await self.whenever(lambda: self.areVotesOver(made, *stores))

    async def areVotesOver(self, made: ServiceRecord, *stores: EtcdStore) -> bool:
        if any(made.incarnation in store.closed(T) for store in stores):
            return False
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return not any(json.loads(each.value)["votes"] for each in found)

    async def newestNode(self) -> KeyValue:
        """The key of the node that has joined last. A join whose response comes too late leaves one for a while."""
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return max(found, key=lambda each: each.created)

    async def key(self, name: str) -> KeyValue | None:
        return await self.asked.get(self.prefix + name)

    async def keys(self, below: str) -> list[str]:
        begin = self.prefix + below
        found, _ = await self.asked.range(begin, endOf(begin))
        return [each.key.removeprefix(begin) for each in found]

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

    async def catchesUp(self, store: EtcdStore) -> None:
        """Wait until a store has been shown all that has happened by now."""
        tenant = f"mark{next(_marks)}"
        await self.asked.txn((), [put(f"{self.prefix}events/{tenant}/0", b"x")])
        await self.notifies(store, "eventAdded", tenant)

    async def haveJoined(self, count: int) -> bool:
        return len(await self.keys("nodes/")) == count

    async def isGone(self, name: str) -> bool:
        return await self.key(name) is None


def _nothing(body: bytes) -> bool:
    return False


@implementer(IAgent)
class TroubledAgent:
    """
    A network to etcd that does to some requests what a test says.

    :ivar holds: says of a request's body whether it does not arrive before :meth:`release`.
    :ivar delays: says of a request's body whether its response waits for :meth:`release`.
    :ivar loses: says of a request's body whether its response gets lost.
    :ivar isDeaf: whether nothing arrives any more of a watch's response.
    :ivar isDelayed: whether that waits for :meth:`catchUp`.
    :ivar watching: what receives the responses of watches.
    :ivar lost: how many responses got lost.
    :ivar held: how many requests do not arrive now.
    """

    def __init__(self) -> None:
        self.holds: Callable[[bytes], bool] = _nothing
        self.delays: Callable[[bytes], bool] = _nothing
        self.loses: Callable[[bytes], bool] = _nothing
        self.isDeaf = False
        self.isDelayed = False
        self.watching: set[Any] = set()
        self.lost = 0
        self._agent = watchingAgent(reactor, BrowserLikePolicyForHTTPS(), 1)
        self._held: list[Callable[[], None]] = []
        self._delayed: list[Callable[[], None]] = []

    @property
    def held(self) -> int:
        """How many requests and responses do not arrive now."""
        return len(self._held)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        body = bodyProducer.body if isinstance(bodyProducer, BytesProducer) else b""
        if uri.endswith(b"/watch"):
            return self._agent.request(method, uri, headers, bodyProducer).addCallback(Muffled, self)
        if self.holds(body):
            asked: Deferred[Any] = Deferred()

            def arrive() -> None:
                # Also after the sender has stopped to wait for it.
                answered = self._agent.request(method, uri, headers, BytesProducer(body))
                if not asked.called:
                    answered.chainDeferred(asked)
                else:
                    answered.addCallback(readBody).addErrback(lambda failure: None)

            self._held.append(arrive)
            return asked
        answered = self._agent.request(method, uri, headers, bodyProducer)
        if self.delays(body):
            return answered.addCallback(self._delay)
        return answered.addCallback(self._lose) if self.loses(body) else answered

    def _delay(self, response: IResponse) -> Deferred[IResponse]:
        answered: Deferred[IResponse] = Deferred()

        def arrive() -> None:
            if not answered.called:
                answered.callback(response)

        self._held.append(arrive)
        return answered

    async def _lostResponse(self, response: IResponse) -> IResponse:
        await readBody(response)
        self.lost += 1
        raise ConnectionLost()

    def _lose(self, response: IResponse) -> Deferred[IResponse]:
        return Deferred.fromCoroutine(self._lostResponse(response))

    def release(self) -> None:
        """What was held arrives, and nothing is held any more."""
        self.holds = self.delays = _nothing
        held, self._held = self._held, []
        for arrive in held:
            arrive()

    def watched(self, receive: Callable[[bytes], None], data: bytes) -> None:
        """A part of a watch's response has come."""
        if self.isDelayed:
            self._delayed.append(lambda: receive(data))
        elif not self.isDeaf:
            receive(data)

    def catchUp(self) -> None:
        """What was delayed arrives, and nothing is delayed any more."""
        self.isDelayed = False
        delayed, self._delayed = self._delayed, []
        for arrive in delayed:
            arrive()


class Muffled(proxyForInterface(IResponse)):  # type: ignore[misc]  # made there and then
    """A watch's response, of which an agent decides when it arrives."""

    def __init__(self, response: IResponse, agent: TroubledAgent) -> None:
        super().__init__(response)
        self.agent = agent

    def deliverBody(self, protocol: Any) -> None:
        """See IResponse."""
        receive = protocol.dataReceived
        protocol.dataReceived = lambda data: self.agent.watched(receive, data)
        end = protocol.connectionLost

        def ended(reason: Any) -> None:
            self.agent.watching.discard(protocol)
            end(reason)

        protocol.connectionLost = ended
        self.agent.watching.add(protocol)
        self.original.deliverBody(protocol)


class VoteTests(EtcdStoreCase):
    """Which services expire by a vote, and which do not."""

    def isExpiration(self, body: bytes) -> bool:
        """Whether a request deletes a record."""
        return b"request_delete_range" in body

    def isTouch(self, body: bytes) -> bool:
        """Whether a request writes the time of a heartbeat of the service, and no more."""
        return b"request_put" in body and encode(f"{self.prefix}seen/{T}/web").encode() in body

    async def test_aTouchMakesTheExpirationFail(self) -> None:
        """A heartbeat that comes before the last node has answered keeps the service, on whichever node it comes."""
        a, b, c = [await self.store() for _ in range(3)]
        made = await self.created(a, b, c)
        for receiver in (a, b):
            await self.voteOf(a, made, b)
            self.assertTrue(await self.admitted(receiver, made))
            self.passSilently(made, c)
            self.ticking = [a, b, c]
            await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(a), ["service.join"])

    async def test_manyTouchTogether(self) -> None:
        """Heartbeats on two nodes that find the service closed at the same moment are all admitted."""
        a, b, c = [await self.store() for _ in range(3)]
        made = await self.created(a, b, c)
        for _ in range(3):
            await self.voteOf(a, made, b)
            beats = [self.beginAdmitted(store, made) for store in (a, b) * 5]
            self.assertEqual(await gatherResults(beats), [True] * 10)
            self.passSilently(made, c)
            self.ticking = [a, b, c]
            await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(a), ["service.join"])

    async def test_anotherTimeoutIsATouch(self) -> None:
        """An update of the timeout during a vote keeps the service; each node counts from when it notices."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        await b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for store in (a, b):
            await self.notifies(store, "appeared", "web", made.incarnation, 60)
            self.assertGreater(self.secondsLeft(store, made), 50)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.untilVotesEnd(made, a, b)
        self.assertEqual(await self.types(a), ["service.join"])

    async def test_anUpdateInTheSameGroupIsATouchToo(self) -> None:
        """Although etcd does not show it yet when the expiration is worked out."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        value = encode(f"{self.prefix}values/{T}/key").encode()
        wire.holds = lambda body: value in body
        setting = a.setValue(T, "key", "x", 10)
        await self.until(lambda: wire.held)
        updating = a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: made.incarnation in b.closed(T))
        # The vote is decided, and its transaction waits for the end of the group that is held.
        await self.catchesUp(a)
        wire.release()
        await gatherResults([setting, updating])
        await self.untilVotesEnd(made, a, b)
        self.assertEqual((await b.getService(T, "web")).heartbeatTimeout, 60)
        self.assertNotIn("service.timeout", await self.types(a))

    async def test_anUpdateOfOtherFieldsIsNone(self) -> None:
        """Tags that change during a vote do not keep the service; its event shows it as it was last."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        await b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.notifies(b, "vanished", "web", made.incarnation)
        self.assertEqual((await a.listEvents(T, 0, 10, "service.timeout"))[0].payload["tags"], ["x"])

    async def test_aTouchThatIsUnderWayCountsOnEveryNode(self) -> None:
        """While a node could not touch a service yet, it answers the votes of others with a full timeout."""
        wire = TroubledAgent()
        a, b, c = await self.store(agent=wire), await self.store(), await self.store()
        made = await self.created(a, b, c)
        await self.voteOf(a, made)
        wire.holds = self.isTouch
        beat = self.beginAdmitted(a, made)
        await self.until(lambda: wire.held)
        self.passSilently(made, c)
        self.passDeadline(made, b)
        self.ticking = [b]
        await self.until(lambda: made.incarnation in b.closed(T))
        self.ticking = [a, b]
        await self.whenever(self.isAnswered)
        wire.release()
        self.assertTrue(await beat)
        self.ticking = [a, b, c]
        await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(b), ["service.join"])

    async def isAnswered(self) -> bool:
        """Whether a node has answered a vote with the timeout of a service."""
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return any(b'{"0":30.0}' in each.value for each in found)

    async def test_aLostResponseIsFoundOut(self) -> None:
        """An expiration whose first response is lost has happened once, and is found out."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.loses = lambda body: self.isExpiration(body) and not wire.lost
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.notifies(a, "expired", made.incarnation)
        self.assertEqual(wire.lost, 1)
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])

    async def test_lostResponsesAreDecidedByATouch(self) -> None:
        """When no response comes at all, a touch finds that the service has expired; until then it is closed."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.loses = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.lost)
        self.assertIn(made.incarnation, a.closed(T))
        await self.untilVotesEnd(made, a, b)
        self.assertFalse(await self.admitted(a, made))
        self.assertFalse(await self.admitted(b, made))
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])

    async def test_anExpirationThatIsLateFailsAfterATouch(self) -> None:
        """One that arrives at etcd after its sender has decided the vote by a touch changes nothing."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.holds = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.held)
        self.heartbeat(b, made)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        await self.untilVotesEnd(made, a, b)
        wire.release()
        await self.catchesUp(a)
        self.assertTrue(await self.admitted(a, made))
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_anExpirationOfANodeThatIsGoneFails(self) -> None:
        """A transaction that arrives when the key of its node is gone changes nothing."""
        wire = TroubledAgent()
        a = await self.store(agent=wire)
        own = await self.newestNode()
        b = await self.store()
        made = await self.created(a, b)
        wire.holds = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.held)
        self.ticking = []
        # It cannot join again, which would make the transaction fail too.
        wire.holds = lambda body: True
        await self.asked.revoke(own.lease)
        await self.until(lambda: self.secondsLeft(b, made) > 0)
        self.assertNotIn(made.incarnation, b.closed(T))
        wire.release()
        await self.notifies(a, "suspend")
        await self.until(lambda: a.isValid)
        self.assertTrue(await self.admitted(a, made))
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_oneThatIsCreatedAgainStays(self) -> None:
        """A vote is about one registration: another node removes it and creates the service again meanwhile."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        await b.removeService(T, "web", made.incarnation)
        again = await self.create(b)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.untilVotesEnd(made, a, b)
        await self.notifies(a, "appeared", "web", again.incarnation, 30)
        self.assertFalse(await self.admitted(a, made))
        self.assertTrue(await self.admitted(a, again))
        self.assertEqual(await self.types(a), ["service.join", "service.remove", "service.join"])

    async def test_aTouchOfOneThatWasCreatedAgainFails(self) -> None:
        """Also on a node that knows nothing of it yet."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        wire.isDeaf = True
        await b.removeService(T, "web", made.incarnation)
        await self.create(b)
        self.assertFalse(await self.admitted(a, made))
        self.assertIsNone(await self.key(f"seen/{T}/web"))

    async def test_manyExpireTogether(self) -> None:
        """Hundreds of expirations, found by two nodes at once, are persisted once each, and other services stay."""
        a, b = await self.store(), await self.store()
        self.ticking = []
        made = await gatherResults([self.create_(a, f"web{number:03}") for number in range(120)])
        for store in (a, b):
            await self.until(lambda store=store: len(self.listeners[store].deadlines) == 120)
        kept = made[::10]
        for each in made:
            self.passDeadline(each, a, b)
        for each in kept:
            self.heartbeat(b, each)
        self.ticking = [a, b]
        await self.whenever(lambda: self.areThere([each.id for each in kept]))
        timeouts = [each.payload["id"] for each in await a.listEvents(T, 0, 1000, "service.timeout")]
        self.assertEqual(sorted(timeouts), [each.id for each in made if each not in kept])
        # What is counted for the limit is what is there.
        clock = await self.key(f"clocks/{T}")
        self.assertEqual(json.loads(clock.value)["services"] if clock else 0, len(kept))
        expired = [each for store in (a, b) for each in self.listeners[store].heard if each[0] == "expired"]
        self.assertEqual(len(expired), len(set(expired)))

    def create_(self, store: EtcdStore, id: str) -> Deferred[ServiceRecord]:
        return Deferred.fromCoroutine(self.create(store, id))

    async def areThere(self, ids: list[str]) -> bool:
        return await self.keys(f"services/{T}/") == ids


class SeenTests(EtcdStoreCase):
    """The times of heartbeats, which are written now and then."""

    async def test_onceForEachIncarnationAndThenRarely(self) -> None:
        """The first heartbeat of an incarnation is written, and no other one soon; a new one begins with its own."""
        store = await self.store()
        made = await self.create(store)
        store.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        for time in (2000, 3000):
            store.recordLastSeen(T, "web", made.incarnation, time)
        self.assertEqual((await store.getService(T, "web")).lastSeen, 3000)
        await store.removeService(T, "web", made.incarnation)
        self.assertTrue(await self.isGone(f"seen/{T}/web"))
        again = await self.create(store)
        self.assertIsNone((await store.getService(T, "web")).lastSeen)
        store.recordLastSeen(T, "web", made.incarnation, 5000)
        store.recordLastSeen(T, "web", again.incarnation, 6000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        seen = await self.key(f"seen/{T}/web")
        self.assertEqual(seen and seen.value, b"6000")

    async def test_everyFiveMinutes(self) -> None:
        """Of a service that is seen all the time, one time in five minutes is written."""
        clock, batches = Clock(), Batches(self.asked, CLOCK, lambda: 1e9, self.prefix, "a")
        ids = TenantIds(lambda: 1e9)
        services = EtcdServices(self.asked, batches, clock, self.prefix, ids)
        made = await services.create(T, NewService("web", 30), 10)
        written: list[int] = []
        for second in range(0, 1000, 10):
            if services.noteSeen(T, "web", made.incarnation, second):
                writing = Deferred.fromCoroutine(services.writeSeen())
                # It pauses after each group.
                await self.until(clock.getDelayedCalls)
                seen = await self.key(f"seen/{T}/web")
                written.append(int(seen.value) if seen else -1)
                clock.advance(5)
                await writing
                clock.advance(5)
            else:
                clock.advance(10)
        self.assertEqual(written, [0, 300, 600, 900])

    async def test_itIsGuardedByTheRecord(self) -> None:
        """A node that does not know yet that a service has ended writes nothing about it."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.isDeaf = True
        await b.removeService(T, "web", made.incarnation)
        await self.create(b)
        writing = encode(f"{self.prefix}seen/{T}/web").encode()
        wire.holds = lambda body: writing in body
        a.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.until(lambda: wire.held)
        wire.release()
        await a.probe()
        self.assertIsNone(await self.key(f"seen/{T}/web"))

    async def test_othersAreNotifiedOfThem(self) -> None:
        """What one node writes all show, those that start later too."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        a.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.isSeen(b, 1000))
        later = await self.store()
        self.assertTrue(await self.isSeen(later, 1000))

    async def isSeen(self, store: EtcdStore, time: int | None) -> bool:
        return (await store.getService(T, "web")).lastSeen == time

    async def test_aTouchBeforeTheFirstHeartbeatIsNone(self) -> None:
        """After an update of the timeout, a service that has sent no heartbeat has no such time on any node."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for store in (a, b):
            await self.notifies(store, "appeared", "web", made.incarnation, 60)
            await self.catchesUp(store)
            self.assertTrue(await self.isSeen(store, None))
        self.assertTrue(await self.isSeen(await self.store(), None))

    async def test_anEarlierRegistrationsTimeIsNotTheNextOnes(self) -> None:
        """A node that creates a service again, and is notified of the old one's time after that."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.isDelayed = True
        b.recordLastSeen(T, "web", made.incarnation, 1000)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        await a.removeService(T, "web", made.incarnation)
        again = await self.create(a)
        wire.catchUp()
        await self.notifies(a, "appeared", "web", again.incarnation, 30)
        self.assertTrue(await self.isSeen(a, None))

    async def test_writingGoesOnAfterTrouble(self) -> None:
        """However many could not be written while etcd was away, those that come later are."""
        relay = self.relay()
        store = await self.store(relay.url, joins=False)
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
    """What other nodes publish in their keys."""

    async def test_aStatusThatIsNotUnderstoodIsWaitedFor(self) -> None:
        """
        The others go on reading and receiving. Nothing expires while such a node is there, which may have received
        heartbeats; when it is gone, each service has a full timeout.
        """
        odd = (b"12", b'{"v": 2}', b'{"v": 1, "serial": null}', b"not JSON")
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/early{number}", said)])
        a, b = await self.store(), await self.store()
        for number, said in enumerate(odd):
            await self.asked.txn((), [put(f"{self.prefix}nodes/late{number}", said)])
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


class HousekeepingTests(EtcdStoreCase):
    """A key space that does not grow for ever."""

    async def test_forgetsThePast(self) -> None:
        """Old events, the marks of nodes that are gone, and etcd's own history go; what is there stays."""
        gone, store = await self.store(), await self.store()
        await gone.setValue(T, "key1", "x", 10)
        await store.setValue(T, "key2", "x", 10)
        first, second = await store.listEvents(T, 0, 10, None)
        self.assertTrue(await self.haveJoined(2))
        await store.dropEvents(0)
        self.assertEqual(len(await self.keys(f"commits/{T}/")), 2)
        await gone.close()
        self.assertTrue(await self.haveJoined(1))
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
        stores = await gatherResults([Deferred.fromCoroutine(self.store(joins=False)) for _ in range(5)])
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
        self.assertTrue(await self.haveJoined(2))
        self.ticking = []
        relay.hang()
        await gatherResults([store.close() for store in stores])
        self.assertEqual(len(await self.keys("nodes/")), 1)


class UpgradeTests(EtcdStoreCase):
    """Keys of version 1, whose services had leases."""

    @returnsDeferred
    async def setUp(self) -> None:
        super().setUp()
        self.meta = {"v": 1, "secret": "ab" * 32, "tail": "8000-0123456789ab"}
        self.lease = newLease()
        await self.asked.grant(self.lease, 60)
        self.addCleanup(self.asked.revoke, self.lease)
        position_ = 0x1EE000000000000
        service = {"v": 1, "position": position_, "timeout": 30, "tags": ["a"], "metadata": {}, "lease": self.lease}
        event = {"id": "web", "heartbeat_timeout": 30, "tags": ["a"], "metadata": {}}
        await self.asked.txn(
            (),
            [
                self.put_("meta", self.meta),
                self.put_(f"clocks/{T}", {"v": 1, "last": position_, "services": 1, "values": 0}),
                self.put_(f"services/{T}/web", service),
                self.put_(
                    f"events/{T}/{position_:016x}",
                    {"v": 1, "timestamp": 1, "type": "service.join", "payload": event},
                ),
                put(f"{self.prefix}alive/{T}/web", b"1", self.lease),
                put(f"{self.prefix}seen/{T}/web", b"5000", self.lease),
            ],
        )

    def put_(self, name: str, value: Any) -> Any:
        return put(self.prefix + name, json.dumps(value).encode())

    async def isConverted(self) -> Any:
        """What has become of it: all is there, without leases."""
        meta, seen = await self.key("meta"), await self.key(f"seen/{T}/web")
        assert meta is not None and seen is not None
        self.assertEqual(json.loads(meta.value), {**self.meta, "v": 2})
        self.assertEqual((seen.value, seen.lease), (b"5000", 0))
        self.assertEqual(await self.keys("alive/"), [])
        self.assertEqual(await self.keys("converting"), [])

    async def test_itIsConverted(self) -> None:
        """Alone, a node converts it; each service is as it was, has a full timeout, and expires by votes from then."""
        store = await self.store()
        await self.isConverted()
        self.assertEqual(await store.secret(), bytes.fromhex(self.meta["secret"]))
        kept = await store.getService(T, "web")
        self.assertEqual((kept.heartbeatTimeout, kept.tags, kept.lastSeen), (30, ("a",), 5000))
        self.assertGreater(self.secondsLeft(store, kept), 25)
        await self.asked.revoke(self.lease)
        await self.isConverted()
        self.passDeadline(kept, store)
        await self.notifies(store, "expired", kept.incarnation)
        self.assertEqual(await self.types(store), ["service.join", "service.timeout"])

    async def test_itIsConvertedOnce(self) -> None:
        """Of nodes that start together one converts it; the others wait for that, and find it converted."""
        outcomes: list[Any] = []
        works = [Deferred.fromCoroutine(self.store(joins=False)) for _ in range(3)]
        for each in works:
            each.addBoth(outcomes.append)
        await self.until(lambda: len(outcomes) == 3)
        stores = [each for each in outcomes if isinstance(each, EtcdStore)]
        self.assertTrue(stores)
        for failure in outcomes:
            if failure not in stores:
                failure.trap(StoreUnavailable)
        await self.isConverted()
        meta = await self.key("meta")
        await self.store(joins=False)
        self.assertEqual(await self.key("meta"), meta)

    async def test_notWhileANodeOfVersion1IsRunning(self) -> None:
        """That is said in one line, and nothing has changed; when the node's key has ended, it is converted."""
        lease = newLease()
        await self.asked.grant(lease, 60)
        await self.asked.txn((), [put(f"{self.prefix}nodes/old", b'{"v": 1}', lease)])
        clock = Clock()
        opening = Deferred.fromCoroutine(self.opened(clock))
        advancing = LoopingCall(clock.advance, 0.5)
        advancing.start(0.005)
        self.addCleanup(lambda: advancing.running and advancing.stop())
        text = await self.refuses(StoreRefused, opening)
        for part in ("1 node(s)", "earlier release", self.prefix, "stop them first"):
            self.assertIn(part, text)
        self.assertLess(len(text), 200)
        meta, seen = await self.key("meta"), await self.key(f"seen/{T}/web")
        self.assertEqual(json.loads(meta.value if meta else b""), self.meta)
        self.assertEqual(seen and seen.lease, self.lease)
        self.assertEqual(await self.keys("alive/"), [f"{T}/web"])
        opening = Deferred.fromCoroutine(self.opened(clock))
        await self.asked.revoke(lease)
        await opening
        await self.isConverted()

    async def opened(self, clock: Clock) -> Any:
        return await openLayout(self.asked, clock, self.prefix)

    async def test_anInterruptedConversionIsRepeated(self) -> None:
        """From its first change on an old node refuses to start; another node goes on with it."""
        for share in range(1, 6):
            wire = TroubledAgent()
            asked: list[bytes] = []

            def holds(body: bytes, share: int = share, asked: list[bytes] = asked) -> bool:
                if b"request_put" in body or b"request_delete_range" in body:
                    asked.append(body)
                    return len(asked) > share
                return False

            wire.holds = holds
            broken = EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix, agent=wire)
            opening = broken.open()
            await self.until(lambda wire=wire, opening=opening: wire.held or opening.called)
            meta = await self.key("meta")
            assert meta is not None
            hasBegun = json.loads(meta.value) != self.meta
            self.assertEqual(json.loads(meta.value)["v"], 2 if hasBegun else 1)
            ended: list[Any] = []
            opening.addBoth(ended.append)
            opening.cancel()
            await self.until(lambda ended=ended: ended)
            await broken.close()
            await (await self.store(joins=False)).close()
            await self.isConverted()
            await self.again()

    async def again(self) -> None:
        """What is there is of version 1 again."""
        await self.asked.txn(
            (),
            [
                self.put_("meta", self.meta),
                put(f"{self.prefix}alive/{T}/web", b"1", self.lease),
                put(f"{self.prefix}seen/{T}/web", b"5000", self.lease),
            ],
        )


class ContactTests(EtcdStoreCase):
    """A node that loses etcd, and finds it again."""

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
        began = CLOCK.seconds()
        await self.refuses(StoreUnavailable, store.getService(T, "web"))
        self.assertLess(CLOCK.seconds() - began, 0.5)
        relay.heal()
        await self.notifies(store, "synchronized", ["kept", "new"])
        await self.until(lambda: store.isValid)
        self.assertGreater(self.secondsLeft(store, kept), 29)
        # It is notified again.
        await other.setValue(T, "key", "value", 1)
        self.listeners[store].heard.clear()
        await other.setValue(T, "key", "another", 1)
        await self.notifies(store, "eventAdded", T)

    async def test_cutOffFromEtcdOnly(self) -> None:
        """
        A node that its clients still reach acknowledges for a while and then refuses; the others let nothing expire
        before its key is gone, and give each service a full timeout then.
        """
        relay = self.relay()
        a, b = await self.store(relay.url), await self.store()
        made = await self.created(b, a)
        relay.hang()
        began = CLOCK.seconds()
        self.passDeadline(made, b)
        await self.until(lambda: made.incarnation in b.closed(T))
        self.assertTrue(await self.admitted(a, made))
        await self.until(lambda: not a.isValid)
        self.assertTrue(PRESENCE - SAFETY - 1 < CLOCK.seconds() - began < PRESENCE - SAFETY + 1)
        await self.refuses(StoreUnavailable, a.admit(T, made.incarnation))
        self.assertTrue(await self.haveJoined(2))
        self.assertIn(made.incarnation, b.closed(T))
        await self.until(lambda: self.secondsLeft(b, made) > 0)
        self.assertTrue(await self.haveJoined(1))
        self.assertGreater(self.secondsLeft(b, made), 29)
        self.assertEqual(await self.types(b), ["service.join"])
        relay.heal()
        await self.until(lambda: a.isValid)
        self.assertTrue(await self.haveJoined(2))
        # It takes part again.
        self.passDeadline(made, a, b)
        await self.notifies(a, "vanished", "web", made.incarnation)
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])

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
        wire = TroubledAgent()
        a, b = await self.store(), await self.store(agent=wire)
        made = await self.created(a, b)
        wire.isDeaf = True
        began = CLOCK.seconds()
        self.passDeadline(made, a, b)
        await self.create(a, "new")
        await self.notifies(b, "synchronized", ["new", "web"])
        self.assertTrue(DEAF - 1 < CLOCK.seconds() - began < DEAF + 2)
        wire.isDeaf = False
        await self.until(lambda: self.secondsLeft(b, made) > 25)
        later = await self.create(a, "later")
        await self.until(lambda: "later" in str(self.listeners[b].heard))
        self.assertNotIn(("suspend",), self.listeners[b].heard)
        self.assertTrue(b.isValid)
        self.assertTrue(await self.admitted(b, later))
        self.assertNotIn("service.timeout", await self.types(a))

    async def test_aMembershipThatEndsWhileAllIsRead(self) -> None:
        """What the next membership reads replaces it: there is one watch afterwards."""
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
        store = await self.store()
        made = await self.created(store)
        own = await self.newestNode()
        self.ticking = []
        self.passDeadline(made, store)
        self.listeners[store].heard.clear()
        await self.asked.revoke(own.lease)
        await self.notifies(store, "suspend")
        await self.refuses(StoreUnavailable, store.admit(T, made.incarnation))
        await self.until(lambda: store.isValid)
        self.assertIn(("synchronized", ["web"]), self.listeners[store].heard)
        self.assertGreater(self.secondsLeft(store, made), 29)
        self.assertNotEqual((await self.newestNode()).key, own.key)


class StatisticsTests(EtcdStoreCase):
    """What ``/metrics`` shows of the store."""

    async def test_countsItsTransactions(self) -> None:
        """Those that read, those that write, and how many changes shared one of those."""
        store = await self.store(joins=False)
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
        store = await self.store(relay.url, joins=False)
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
