"""
Several registries over one store: each takes all requests, and together they act as one.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.unit.registry.sharedmemory import SharedMemory, SharedMemoryStore
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.engine import Cluster
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.interfaces import ISharedStore, IStoreListener, NoSuchObject, StoreUnavailable

NOW = 1_700_000_000.0
T = "1234"


class ClusterCase(SynchronousTestCase):
    """Two registries, A and B, on one clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.shared = SharedMemory(self.clock, self.wallClock)
        self.successResultOf(self.shared.memory.open())
        self.stores: list[SharedMemoryStore] = []
        self.a = self.node()
        self.b = self.node()

    def wallClock(self) -> float:
        return NOW + self.clock.seconds()

    def node(self, **limits: int) -> Registry:
        store = self.shared.store()
        self.stores.append(store)
        registry = Registry(store, clock=self.clock, wallClock=self.wallClock, limits=ResourceLimits(**limits))
        self.successResultOf(registry.start())
        self.addCleanup(registry.stop)
        return registry

    def passes(self, seconds: float) -> None:
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(0.05, end - self.clock.seconds()))

    def create(self, node: Registry, id: str = "web1", timeout: int = 10) -> str:
        token: str = self.successResultOf(node.create(T, NewService(id, timeout)))
        return token

    def beat(self, node: Registry, token: str, id: str = "web1") -> str:
        following: str = self.successResultOf(node.heartbeat(T, id, token))
        return following

    def ids(self, node: Registry) -> list[str]:
        return [each["id"] for each in self.successResultOf(node.list(T, None, 1000, None)).values]

    def events(self, node: Registry) -> list[str]:
        return [each["type"] for each in self.successResultOf(node.feed.list(T, None, 1000)).values]

    def fault(self, deferred: Deferred[Any]) -> tuple[int, str]:
        fault = self.failureResultOf(deferred, Fault).value
        assert isinstance(fault, Fault)
        return fault.code, fault.details


class LeftTests(ClusterCase):
    """A service whose heartbeats another registry has received."""

    def test_theTimeOfItsEnd(self) -> None:
        """Whichever registry reports it: within a second of a timeout after its last heartbeat, wherever that was."""
        token = self.create(self.a)
        self.passes(9.5)
        self.beat(self.b, token)
        self.passes(9.75)
        # A has had no heartbeat, and asks again, before B does: it needs to know whether the id is free.
        again = self.a.create(T, NewService("web1", 10))
        self.passes(2)
        self.successResultOf(again)
        (event,) = [
            each
            for each in self.successResultOf(self.a.feed.list(T, None, 1000)).values
            if each["type"] == "service.timeout"
        ]
        self.assertTrue(abs(event["timestamp"] / 1000 - NOW - 19.5) <= 1, event)


class ClusterTests(ClusterCase):
    """The services and events on A and B."""

    def test_members(self) -> None:
        """Each registry knows the names of all, its own first."""
        self.passes(1)
        first, second = (store.members for store in self.stores)
        self.assertEqual(len(first), 2)
        self.assertEqual(first, second[::-1])

    def test_theFakeAndTheListenerAreWhatTheySay(self) -> None:
        """The store in memory has all operations of a shared one, and a registry has all methods of a listener."""
        verifyObject(ISharedStore, self.stores[0])
        self.assertTrue(IStoreListener.implementedBy(Cluster))

    def test_whatOneDoesTheOtherSeesAtOnce(self) -> None:
        """Created on A, a service is heartbeated, changed and removed on B in the same moment."""
        token = self.create(self.a)
        token = self.beat(self.b, token)
        self.successResultOf(self.b.update(T, "web1", ServiceChanges(tags=("x",))))
        self.assertEqual(self.successResultOf(self.a.get(T, "web1"))["tags"], ["x"])
        self.successResultOf(self.b.remove(T, "web1"))
        self.assertEqual(self.ids(self.a), [])
        # Heartbeats are acknowledged from memory until the removal is noticed.
        self.passes(0.1)
        self.assertEqual(self.fault(self.a.heartbeat(T, "web1", token))[0], 404)

    def test_aServiceThatWasNotFoundTakesNoHeartbeats(self) -> None:
        """Once A has answered that a service is not there, it does not acknowledge heartbeats for it."""
        token = self.create(self.a)
        self.successResultOf(self.b.remove(T, "web1"))
        self.assertEqual(self.fault(self.a.get(T, "web1"))[0], 404)
        self.assertEqual(self.fault(self.a.heartbeat(T, "web1", token))[0], 404)

    def test_anyTakesAnyHeartbeat(self) -> None:
        """A service that is heartbeated on B alone stays registered on A too, and the other way round."""
        token = self.create(self.a)
        for node in (self.b, self.a):
            for _ in range(6):
                self.passes(8)
                token = self.beat(node, token)
        self.assertEqual(self.ids(self.a), ["web1"])
        self.assertEqual(self.events(self.b), ["service.join"])

    def test_manyHeartbeatsAtOnce(self) -> None:
        """A batch is answered in its order, whichever registry registered the services."""
        tokens = {id: self.create(self.a, id) for id in ("web1", "web2")}
        beats = [("web2", tokens["web2"]), ("unknown", tokens["web1"]), ("web1", tokens["web1"])]
        answers = self.successResultOf(self.b.heartbeats(T, beats))
        self.assertIsInstance(answers[0], str)
        self.assertEqual(answers[1].code, 404)
        self.assertIsInstance(answers[2], str)

    def test_anExpirationIsOneEvent(self) -> None:
        """Without heartbeats a service is gone everywhere, at most a second late, with one event."""
        token = self.create(self.a)
        self.passes(5)
        self.beat(self.b, token)
        self.passes(9.9)
        self.assertEqual((self.ids(self.a), self.ids(self.b)), (["web1"], ["web1"]))
        self.passes(1.1)
        self.assertEqual((self.ids(self.a), self.ids(self.b)), ([], []))
        self.passes(30)
        for node in (self.a, self.b):
            self.assertEqual(self.events(node), ["service.join", "service.timeout"])

    def test_anExpirationIsLogged(self) -> None:
        """By the registry that removes the service, and by no other."""
        self.create(self.a)
        with capturedLogs() as logs:
            self.passes(11)
        self.assertEqual([formatEvent(event) for event in logs], ["Services expired: 1234/web1"])

    def test_anExpirationIsFoundByAnyRegistry(self) -> None:
        """With A gone, B finds that a service of A's has expired."""
        self.create(self.a)
        self.passes(1)
        self.stop(0)
        self.passes(11)
        self.assertEqual(self.ids(self.b), [])
        self.assertEqual(self.events(self.b), ["service.join", "service.timeout"])

    def stop(self, number: int) -> None:
        """Let a registry leave in order."""
        self.successResultOf((self.a, self.b)[number].stop())
        self.successResultOf(self.stores[number].close())

    def test_aRegistryThatStopsBeforeItHasJoined(self) -> None:
        """Its start, which waits for the store, ends."""
        store = self.shared.store()
        store.cutOff()
        registry = Registry(store, clock=self.clock, wallClock=self.wallClock)
        starting = registry.start()
        self.passes(3)
        self.assertNoResult(starting)
        self.successResultOf(store.close())
        self.failureResultOf(starting, CancelledError)
        self.successResultOf(registry.stop())

    def test_aRegistryThatIsKilledDelaysExpirations(self) -> None:
        """
        A registry that is killed may have received heartbeats: when its key has ended, after five seconds, each service
        has a full timeout.
        """
        self.create(self.a)
        self.passes(9)
        self.stores[0].cutOff()
        self.passes(14.5)
        self.assertEqual(self.ids(self.b), ["web1"])
        self.passes(1.5)
        self.assertEqual(self.ids(self.b), [])
        self.assertEqual(self.events(self.b), ["service.join", "service.timeout"])

    def test_aRegistryThatStartsLaterExpiresNoServices(self) -> None:
        """A registry that starts later knows the services, and confirms before it lets one expire."""
        token = self.create(self.a)
        self.passes(1)
        late = self.node()
        for _ in range(5):
            self.passes(8)
            token = self.beat(self.a, token)
        self.assertEqual(self.ids(late), ["web1"])
        self.beat(late, token)

    def test_afterAnOutageOfAllEachServiceHasAFullTimeout(self) -> None:
        """After all registries were down, services have a full timeout from the next start, and expire once."""
        token = self.create(self.a, "kept")
        self.create(self.a, "expired")
        self.stop(0)
        self.stop(1)
        self.passes(60)
        again = self.node()
        self.passes(9.5)
        self.beat(again, token, "kept")
        self.passes(2)
        self.assertEqual(self.ids(again), ["kept"])
        self.assertEqual(self.events(again), ["service.join", "service.join", "service.timeout"])

    def test_aRegistryThatIsCutOffAnswers503AndExpiresNoServices(self) -> None:
        """
        Without its store A acknowledges heartbeats for three seconds, then answers 503; services whose heartbeats it
        missed meanwhile do not expire.
        """
        token = self.create(self.a)
        self.passes(1)
        self.stores[0].cutOff()
        self.passes(2)
        token = self.beat(self.a, token)
        self.passes(1.5)
        self.assertEqual(self.fault(self.a.heartbeat(T, "web1", token))[0], 503)
        for _ in range(4):
            self.passes(8)
            token = self.beat(self.b, token)
        self.stores[0].reconnect()
        self.passes(5)
        self.assertEqual(self.ids(self.a), ["web1"])
        self.beat(self.a, token)
        self.assertEqual(self.events(self.a), ["service.join"])

    def test_subscribersOfARegistryThatIsCutOffAreNotified(self) -> None:
        """A request that waits for events is answered with 503 when A is no longer a valid member."""
        self.create(self.a)
        marker = self.successResultOf(self.a.feed.list(T, None, 1)).values[-1]["id"]
        waiting = [Deferred.fromCoroutine(node.feed.wait(T, marker, 100, 30)) for node in (self.a, self.b)]
        self.passes(1)
        self.stores[0].cutOff()
        self.passes(3.5)
        self.assertEqual(self.fault(waiting[0])[0], 503)
        self.assertNoResult(waiting[1])
        waiting[1].cancel()
        self.failureResultOf(waiting[1])

    def test_whenAllAreCutOffDeadlinesWait(self) -> None:
        """After the time without a store every service has a full timeout."""
        token = self.create(self.a)
        self.passes(9)
        for store in self.stores:
            store.cutOff()
        self.passes(60)
        for store in self.stores:
            store.reconnect()
        self.passes(9)
        self.assertEqual(self.ids(self.b), ["web1"])
        self.beat(self.b, token)
        self.passes(5)
        self.assertEqual(self.events(self.a), ["service.join"])

    def test_aRegistryThatWasCutOffExpiresServicesAgain(self) -> None:
        """When A is back, services without heartbeats expire as before, also if there is no other registry."""
        self.stop(1)
        self.create(self.a)
        self.stores[0].cutOff()
        self.passes(5)
        self.stores[0].reconnect()
        self.passes(12)
        self.assertEqual(self.events(self.a), ["service.join", "service.timeout"])

    def test_whatWasMissedIsMadeUpFor(self) -> None:
        """A knows the changes from while it was cut off when it is back."""
        gone = self.create(self.a, "gone")
        self.passes(1)
        self.stores[0].cutOff()
        came = self.create(self.b, "came")
        self.successResultOf(self.b.remove(T, "gone"))
        self.create(self.b, "other")
        self.stores[0].reconnect()
        self.passes(5)
        self.assertEqual(self.a.counts(), {T: 2})
        self.beat(self.a, came, "came")
        self.assertEqual(self.fault(self.a.heartbeat(T, "gone", gone))[0], 404)

    def test_tokensOfAnEarlierIncarnationAreRefused(self) -> None:
        """Removed and created again on B, a service does not accept its tokens from A, on neither of them."""
        old = self.create(self.a)
        self.passes(1)
        self.successResultOf(self.b.remove(T, "web1"))
        new = self.create(self.b)
        self.passes(0.1)
        for node in (self.a, self.b):
            self.assertIn("HeartbeatMarker", self.fault(node.heartbeat(T, "web1", old))[1])
            new = self.beat(node, new)

    def test_anIdIsTakenForAll(self) -> None:
        """An id that is in use on A can't be created on B, in the same moment or later."""
        self.create(self.a)
        self.assertEqual(self.fault(self.b.create(T, NewService("web1", 10)))[0], 400)
        self.passes(1)
        self.assertEqual(self.fault(self.b.create(T, NewService("web1", 10)))[0], 400)

    def test_anIdThatIsHeartbeatedElsewhereIsRefusedAtOnce(self) -> None:
        """
        Its deadline on B has passed. As soon as a vote has shown that A gets its heartbeats, B lets no create wait;
        when the deadline that A had told has passed too, one create waits for another vote.
        """
        token = self.create(self.a)
        self.passes(8)
        token = self.beat(self.a, token)
        self.passes(3.5)
        self.assertEqual(self.fault(self.b.create(T, NewService("web1", 10)))[0], 400)
        self.passes(4)
        for _ in range(3):
            token = self.beat(self.a, token)
            self.passes(7)
            creating = self.b.create(T, NewService("web1", 10))
            self.assertNoResult(creating)
            self.passes(1)
            self.assertEqual(self.fault(creating)[0], 400)
            self.assertEqual(self.fault(self.b.create(T, NewService("web1", 10)))[0], 400)
        self.assertEqual(self.events(self.b), ["service.join"])

    def test_anIdThatExpiresElsewhereIsWaitedFor(self) -> None:
        """When the deadline that a vote told B of has passed too, a create on B waits until it is decided."""
        token = self.create(self.a)
        self.passes(8)
        self.beat(self.a, token)
        self.passes(10.05)
        creating = self.b.create(T, NewService("web1", 10))
        self.passes(1)
        self.successResultOf(creating)
        self.assertEqual(self.events(self.b), ["service.join", "service.timeout", "service.join"])

    def test_aPlaceThatMayBeFreeIsWaitedFor(self) -> None:
        """At the account's limit, a create waits until a vote about any service is over; else it is refused at once."""
        c = self.node(service=2)
        self.create(self.a, "web1", 60)
        self.create(self.b, "web2")
        self.passes(9)
        self.assertEqual(self.fault(c.create(T, NewService("web3", 10)))[0], 400)
        while not self.stores[-1].closed(T):
            self.passes(0.05)
        creating = c.create(T, NewService("web3", 10))
        self.assertNoResult(creating)
        self.passes(1)
        self.successResultOf(creating)
        self.assertEqual(self.ids(c), ["web1", "web3"])

    def test_anotherTimeoutCountsForAll(self) -> None:
        """A timeout that was changed on A is the one that B goes by."""
        self.create(self.a, timeout=60)
        self.passes(1)
        self.successResultOf(self.a.update(T, "web1", ServiceChanges(heartbeatTimeout=3)))
        self.passes(4.1)
        self.assertEqual((self.ids(self.a), self.ids(self.b)), ([], []))

    def test_anUpdateBeforeARemovalElsewhere(self) -> None:
        """A change is acknowledged, also by a registry that knows of the later removal first."""
        self.create(self.a)
        self.passes(0.1)
        update, response = self.stores[0].updateService, Deferred[None]()

        def updateLate(*args: Any) -> Deferred[Any]:
            return update(*args).addCallback(lambda record: response.addCallback(lambda _: record))

        self.patch(self.stores[0], "updateService", updateLate)
        updating = self.a.update(T, "web1", ServiceChanges(heartbeatTimeout=20))
        self.successResultOf(self.b.remove(T, "web1"))
        self.passes(0.1)
        self.assertNoResult(updating)
        response.callback(None)
        self.successResultOf(updating)
        self.passes(30)
        self.assertEqual(self.events(self.b), ["service.join", "service.remove"])

    def test_subscribersAreNotifiedOfOthersChanges(self) -> None:
        """A request that waits on B for events gets one that A has made."""
        waiting = Deferred.fromCoroutine(self.b.feed.wait(T, None, 100, 30))
        self.passes(1)
        self.create(self.a)
        self.passes(0.1)
        self.assertEqual([each["type"] for each in self.successResultOf(waiting).values], ["service.join"])

    def test_subscribersAreNotifiedAfterAGap(self) -> None:
        """Of changes that B's watch has missed, also of a tenant that has no services."""
        waiting = Deferred.fromCoroutine(self.b.feed.wait(T, None, 10, 60))
        self.passes(3)
        self.stores[1].cutOff()
        self.successResultOf(self.a.configuration.set(T, "/color", "blue"))
        self.passes(0.1)
        self.stores[1].reconnect()
        self.stores[1].node.watchEnded()
        self.passes(2)
        (event,) = self.successResultOf(waiting).values
        self.assertEqual(event["type"], "configuration_value.update")

    def test_manyLookUpsWhenTheStoreGoesAway(self) -> None:
        """However many wait to be looked up when the store becomes unavailable, each of them is answered."""
        token = self.create(self.a)
        asked: list[Deferred[Any]] = []
        store: Any = self.stores[1]
        store.getService = lambda tenant, id: asked.append(Deferred()) or asked[-1]
        beats = [self.b.heartbeat(T, f"made-up{number}", token) for number in range(400)]
        self.assertEqual(self.b.engine.waiting, 400)
        store.getService = lambda tenant, id: fail(StoreUnavailable("away"))
        for each in asked:
            each.errback(StoreUnavailable("away"))
        self.passes(1)
        self.assertEqual({self.fault(beat)[0] for beat in beats}, {503})
        self.assertEqual(self.b.engine.waiting, 0)
        self.assertEqual(self.fault(self.b.heartbeat(T, "another", token))[0], 503)

    def test_otherRequestsReadTheStoreAtOnce(self) -> None:
        """Requests about services, unlike heartbeats with made-up tokens, do not wait for each other's reads."""
        asked: list[Deferred[Any]] = []
        self.stores[1].getService = lambda tenant, id: asked.append(Deferred()) or asked[-1]  # type: ignore[method-assign]  # a store that takes its time
        removals = [self.b.remove(T, f"web{number}") for number in range(20)]
        self.assertEqual(len(asked), 20)
        for each in asked:
            each.errback(NoSuchObject("none"))
        self.assertEqual({self.fault(each)[0] for each in removals}, {404})

    def test_unknownTokensAreLookedUpAFewAtATime(self) -> None:
        """Made-up ids and tokens cause a few reads of the store at a time, and are refused beyond."""
        token = self.create(self.a)
        asked: list[Deferred[Any]] = []
        self.stores[1].getService = lambda tenant, id: asked.append(Deferred()) or asked[-1]  # type: ignore[method-assign]  # a store that takes its time
        beats = [self.b.heartbeat(T, f"made-up{number}", token) for number in range(500)]
        self.assertLessEqual(len(asked), 4)
        refused = [beat for beat in beats if beat.called]
        self.assertEqual(len(refused), 100)
        self.assertEqual({self.fault(beat)[0] for beat in refused}, {503})
        while asked:
            asked.pop().errback(NoSuchObject("made up"))
        self.assertEqual({self.fault(beat)[0] for beat in beats if beat not in refused}, {404})
