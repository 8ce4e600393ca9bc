"""
The fate of services when the store is slow or unavailable, or its responses are lost, and much happens at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.heldstore import HeldCall, HeldStore
from tests.unit.registry.registrycase import NOW, TENANT, RegistryCase
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.expiry import LiveServices, ServiceState
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.interfaces import ServiceRecord, ServiceSummary
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.registry.tasks import TaskOwner

JOIN, REMOVE, TIMEOUT = "service.join", "service.remove", "service.timeout"


class _Shared(LiveServices):
    """The services that a registry knows which shares its store."""

    isShared = True

    def __init__(self, clock: Clock) -> None:
        super().__init__(MemoryStore(), TaskOwner(), clock, lambda: NOW)
        self.due: list[ServiceState] = []
        self.ticks = 0

    def _passed(self, states: Sequence[ServiceState]) -> None:
        self.due.extend(states)

    def _onTick(self) -> None:
        self.ticks += 1


class SharedTests(SynchronousTestCase):
    """A registry that shares its store leaves it to others which services expire."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.live = _Shared(self.clock)
        self.live.begin(
            ServiceSummary(TENANT, f"web{number}", f"incarnation{number}", 3, None) for number in range(3000)
        )
        self.addCleanup(self.live.stop)

    def pass_(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def test_allThatAreDueAreReportedOnce(self) -> None:
        """However many deadlines pass at once, each service is reported once and stays active."""
        self.pass_(5)
        self.assertEqual(len({state.id for state in self.live.due}), 3000)
        self.assertEqual(len(self.live.due), 3000)
        self.assertIsNotNone(self.live.active(TENANT, "web0"))
        self.assertEqual(self.live.hidden(TENANT), frozenset())

    def test_afterAHeartbeatAServiceIsReportedAgain(self) -> None:
        """A service that was reported and has a new deadline is reported when that has passed."""
        self.pass_(4)
        state = self.live.registered((TENANT, "incarnation7"))
        assert state is not None
        self.live.due.clear()
        state.deadline = self.live.now() + state.timeout
        self.live.requeue(state)
        self.pass_(2.5)
        self.assertEqual(self.live.due, [])
        self.pass_(1)
        self.assertEqual(self.live.due, [state])

    def test_suspendedNoneIsReported(self) -> None:
        """Suspended, no service is reported; afterwards each has a full timeout."""
        self.live.suspend()
        self.pass_(5)
        self.assertEqual(self.live.due, [])
        self.live.renewAll()
        self.pass_(2.5)
        self.assertEqual(self.live.due, [])
        self.pass_(1)
        self.assertEqual(len(self.live.due), 3000)

    def test_ticks(self) -> None:
        """There are four ticks a second, and none when the process has stalled."""
        self.pass_(1.01)
        self.assertEqual(self.live.ticks, 4)
        self.clock.advance(10)
        self.assertEqual(self.live.ticks, 4)

    def test_anExpirationIsForgotten(self) -> None:
        """A service that has expired by the others' decision is unknown from then on."""
        state = self.live.registered((TENANT, "incarnation7"))
        assert state is not None
        self.live.forget(*state.name)
        self.live.logExpired(state)
        self.assertIsNone(self.live.registered((TENANT, "incarnation7")))
        self.assertIsNone(self.live.active(TENANT, "web7"))


class SlowStoreTests(RegistryCase):
    """Changes of one service that meet in a store that takes its time."""

    def creating(self, id: str = "web1", timeout: int = 30) -> Deferred[str]:
        """A registration under way."""
        return self.registry.create(TENANT, NewService(id, timeout))

    def release(self, held: list[HeldCall]) -> None:
        """Let the oldest call that is held go on."""
        held.pop(0).release()

    def test_manyCreatesOfOneId(self) -> None:
        """Of hundreds that come at once exactly one succeeds, and the others fail."""
        held = self.store.hold("createService")
        creates = [self.creating() for _ in range(400)]
        while held:
            self.release(held)
        outcomes: Counter[str] = Counter()
        for create in creates:
            create.addCallbacks(lambda _: outcomes.update(["token"]), lambda f: outcomes.update([f.value.type]))
        self.assertEqual(outcomes, {"token": 1, "serviceWithThisIdExists": 399})
        self.assertEqual(self.events(), [(JOIN, "web1")])

    def test_manyChangesThatWaitForOne(self) -> None:
        """A thousand changes of one service that wait for another are made in their order, as soon as that is done."""
        token = self.create()
        held = self.store.hold("updateService")
        changes = [self.registry.update(TENANT, "web1", ServiceChanges(tags=(f"t{n}",))) for n in range(1000)]
        self.store.pass_("updateService")
        held[0].release()
        for change in changes:
            self.successResultOf(change)
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1"))["tags"], ["t999"])
        self.beat(token)

    def test_theDeadlineCountsFromTheAnswer(self) -> None:
        """A service whose registration took long has a full timeout from when it was acknowledged."""
        held = self.store.hold("createService", acts=True)
        creating = self.creating(timeout=10)
        self.pass_(60)
        self.release(held)
        token = self.successResultOf(creating)
        self.pass_(9)
        self.beat(token)

    def test_aCreateWhoseClientHungUp(self) -> None:
        """A client that hung up while its registration was under way leaves a service with a deadline."""
        for acts in (False, True):
            held = self.store.hold("createService", acts=acts)
            creating = self.creating(timeout=10)
            creating.cancel()
            self.failureResultOf(creating, CancelledError)
            self.release(held)
            self.store.pass_("createService")
            self.assertEqual(self.ids(), ["web1"])
            self.pass_(9)
            self.assertEqual(self.ids(), ["web1"])
            self.pass_(2)
            self.assertEqual(self.stored(), [])
        self.assertEqual(self.events(), [(JOIN, "web1"), (TIMEOUT, "web1")] * 2)

    def test_otherChangesWhoseClientHungUp(self) -> None:
        """An update and a removal are seen through though their client hung up."""
        self.create(timeout=10)
        held = self.store.hold("updateService")
        updating = self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60))
        updating.cancel()
        self.failureResultOf(updating, CancelledError)
        self.release(held)
        self.pass_(50)
        self.assertEqual(self.ids(), ["web1"])
        held = self.store.hold("removeService")
        removing = self.registry.remove(TENANT, "web1")
        removing.cancel()
        self.failureResultOf(removing, CancelledError)
        self.release(held)
        self.assertEqual(self.ids(), [])
        self.pass_(60)
        self.assertEqual(self.events(), [(JOIN, "web1"), (REMOVE, "web1")])

    def test_cancellingOneLeavesTheOthers(self) -> None:
        """Of several that wait for the same thing one may hang up."""
        held = self.store.hold("account")
        first, second = self.registry.account(TENANT), self.registry.account(TENANT)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.release(held)
        self.assertGreater(self.successResultOf(second), 0)

    def test_createDuringARemoval(self) -> None:
        """A registration waits for the removal of the same id that came before it; both succeed."""
        old = self.create()
        held = self.store.hold("removeService", acts=True)
        removing = self.registry.remove(TENANT, "web1")
        creating = self.creating()
        self.assertNoResult(creating)
        self.release(held)
        self.successResultOf(removing)
        self.beat(self.successResultOf(creating))
        self.assertEqual(self.fault(self.registry.heartbeat(TENANT, "web1", old)).code, 404)
        self.assertEqual(self.events(), [(JOIN, "web1"), (REMOVE, "web1"), (JOIN, "web1")])

    def test_heartbeatDuringARemoval(self) -> None:
        """A heartbeat before the removal is made does not bring the service back after it."""
        token = self.create(timeout=10)
        held = self.store.hold("removeService")
        removing = self.registry.remove(TENANT, "web1")
        token = self.beat(token)
        self.release(held)
        self.successResultOf(removing)
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
        self.pass_(20)
        self.assertEqual(self.events(), [(JOIN, "web1"), (REMOVE, "web1")])

    def test_theDeadlinePassesDuringARemoval(self) -> None:
        """A service that expires while it is being removed has one end in the feed, whichever the store made first."""
        for acts, end in ((True, REMOVE), (False, TIMEOUT)):
            self.create(timeout=10)
            self.pass_(9)
            held = self.store.hold("removeService", acts=acts)
            removing = self.registry.remove(TENANT, "web1")
            self.pass_(2)
            self.assertEqual(self.ids(), [])
            self.release(held)
            self.store.pass_("removeService")
            if acts:
                self.successResultOf(removing)
            else:
                self.assertGone(removing)
            self.pass_(20)
            self.assertEqual(self.stored(), [])
            self.assertEqual(self.events()[-2:], [(JOIN, "web1"), (end, "web1")])

    def test_aRemovalIsNotATimeoutInTheLog(self) -> None:
        """A service whose removal was persisted before its expiration could be is not logged as expired."""
        with capturedLogs() as logs:
            self.create(timeout=10)
            self.pass_(9.5)
            held = self.store.hold("removeService", acts=True)
            removing = self.registry.remove(TENANT, "web1")
            self.stepTo(0.5)
            self.assertEqual(self.ids(), [])
            self.release(held)
            self.successResultOf(removing)
            self.pass_(1)
        lines = [formatEvent(event) for event in logs]
        self.assertEqual(lines, ["Services registered: 1234/web1", "Services deregistered: 1234/web1"])

    def test_theDeadlinePassesDuringAnUpdate(self) -> None:
        """An update that is made after the deadline does not bring the service back; it is a 404."""
        for acts in (False, True):
            token = self.create(timeout=10)
            self.pass_(9)
            held = self.store.hold("updateService", acts=acts)
            updating = self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60))
            self.stepTo(1)
            self.release(held)
            self.store.pass_("updateService")
            self.assertGone(updating)
            self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
            self.pass_(1)
            self.assertEqual(self.stored(), [])

    def test_heartbeatDuringAnUpdate(self) -> None:
        """A heartbeat while the timeout is being changed counts, and so does the change."""
        token = self.create(timeout=10)
        self.pass_(9)
        held = self.store.hold("updateService", acts=True)
        updating = self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60))
        token = self.beat(token)
        self.pass_(9)
        self.release(held)
        self.successResultOf(updating)
        self.pass_(59)
        self.beat(token)

    def test_updatesAreMadeInTheirOrder(self) -> None:
        """Of two updates the later one counts, in the store and for the deadline."""
        token = self.create(timeout=30)
        held = self.store.hold("updateService")
        first = self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=3))
        second = self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60))
        self.assertEqual(len(held), 1)
        self.release(held)
        self.release(held)
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertEqual(self.successResultOf(self.registry.get(TENANT, "web1"))["heartbeat_timeout"], 60)
        self.pass_(59)
        self.beat(token)

    def test_createDuringAnExpiration(self) -> None:
        """A registration of an id that has just expired waits until the store has that; it is a new incarnation."""
        for acts in (False, True):
            old = self.create(timeout=10)
            held = self.store.hold("expireServices", acts=acts)
            self.pass_(10.5)
            self.assertGone(self.registry.heartbeat(TENANT, "web1", old))
            creating = self.creating(timeout=10)
            if not acts:
                self.assertNoResult(creating)
            self.release(held)
            self.store.pass_("expireServices")
            token = self.successResultOf(creating)
            self.pass_(9)
            self.beat(token)
            self.pass_(11)
            self.assertEqual(self.events()[-4:], [(JOIN, "web1"), (TIMEOUT, "web1")] * 2)

    def test_createsDuringExpirations(self) -> None:
        """While expirations are being persisted, only registrations that need an expired id or place wait."""
        for number in range(10):
            self.create(f"expired{number}", timeout=10)
        held = self.store.hold("expireServices")
        self.pass_(10.5)
        other = self.creating("other")
        again = self.creating("expired7")
        self.successResultOf(other)
        self.assertNoResult(again)
        self.release(held)
        self.store.pass_("expireServices")
        self.successResultOf(again)
        self.assertEqual(self.events().count((TIMEOUT, "expired7")), 1)
        self.assertEqual(self.events()[-1], (JOIN, "expired7"))

    def test_anExpirationWhileACreateIsAtTheStore(self) -> None:
        """A registration that the store refuses because of a service that has expired meanwhile succeeds."""
        self.create(timeout=10)
        self.pass_(9.5)
        held = self.store.hold("createService", acts=True)
        creating = self.creating()
        self.stepTo(0.5)
        self.release(held)
        self.release(held)
        self.successResultOf(creating)
        self.assertEqual(self.events(), [(JOIN, "web1"), (TIMEOUT, "web1"), (JOIN, "web1")])

    def test_aSlowListing(self) -> None:
        """A listing shows no service that had expired before it, nor does it fail for those that expired since."""
        self.create("aaa", 10)
        self.create("bbb", 11)
        self.pass_(10)
        held = self.store.hold("listServices")
        listing = self.registry.list(TENANT, None, 100, None)
        self.pass_(0.5)
        self.release(held)
        self.assertEqual([value["id"] for value in self.page(listing).values], ["bbb"])

    def test_aSlowGet(self) -> None:
        """A service that expires while it is read is not shown; nor is one whose expiration was persisted meanwhile."""
        for acts in (True, False):
            self.create(timeout=10)
            self.pass_(9.5)
            held = self.store.hold("getService", acts=acts)
            getting = self.registry.get(TENANT, "web1")
            self.stepTo(0.5)
            self.release(held)
            self.store.pass_("getService")
            self.assertGone(getting)
            self.pass_(1)

    def test_readsThatAreLateBringNothingBack(self) -> None:
        """A service in an old response of the store is not taken for a service that memory has missed."""
        token = self.create(timeout=10)
        gets = self.store.hold("getService", acts=True)
        lists = self.store.hold("listServices", acts=True)
        getting = self.registry.get(TENANT, "web1")
        listing = self.registry.list(TENANT, None, 100, None)
        self.successResultOf(self.registry.remove(TENANT, "web1"))
        self.store.pass_("getService")
        self.store.pass_("listServices")
        self.release(gets)
        self.release(lists)
        self.successResultOf(getting)
        self.page(listing)
        self.pass_(1)
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
        self.assertEqual(self.ids(), [])
        self.pass_(30)
        self.assertEqual(self.events(), [(JOIN, "web1"), (REMOVE, "web1")])

    def test_stopWaitsForExpirations(self) -> None:
        """A registry that stops sees through what the store is at, and begins nothing new."""
        self.create(timeout=10)
        held = self.store.hold("expireServices")
        self.pass_(11)
        waiting = self.creating()
        stopping = self.registry.stop()
        self.assertNoResult(stopping)
        self.release(held)
        self.assertUnavailable(waiting)
        self.successResultOf(stopping)
        self.assertEqual(self.stored(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(held), 0)

    def test_stopWaitsForAllChanges(self) -> None:
        """A registration that is at the store when the registry stops is acknowledged first."""
        held = self.store.hold("createService")
        creating = self.creating()
        stopping = self.registry.stop()
        self.assertNoResult(stopping)
        self.release(held)
        self.successResultOf(stopping)
        self.successResultOf(creating)


class ManyExpirationsTests(RegistryCase):
    """Registering and stopping while there are more expirations than one group."""

    limits = ResourceLimits(service=200)

    def setUp(self) -> None:
        self.patch(LiveServices, "GROUP", 50)
        super().setUp()

    def test_aRegistrationWaitsForTheGroupOfItsId(self) -> None:
        """A registration of an id that has expired succeeds as soon as that is persisted, in whichever group."""
        for number in range(120):
            self.create(f"s{number}", 10)
        held = self.store.hold("expireServices")
        self.pass_(10.5)
        creating = self.registry.create(TENANT, NewService("s70", 10))
        for _ in range(2):
            self.assertNoResult(creating)
            held.pop().release()
            self.clock.advance(0)
        self.successResultOf(creating)
        about = [
            event.payload["id"] for event in self.successResultOf(self.memory.listEvents(TENANT, 0, 9999, {TIMEOUT}))
        ]
        self.assertEqual((len(about), about.count("s70")), (100, 1))
        self.store.pass_("expireServices")

    def test_theIdsThatAreRegisteredAgainComeFirst(self) -> None:
        """A registration waits for one group at most besides the one under way, however many others have expired."""
        for tenant in (TENANT, "99"):
            for number in range(180):
                self.create(f"s{number:03}", 10, tenant)
        self.create("alive")
        held = self.store.hold("expireServices")
        self.pass_(10.5)
        taken = self.registry.create(TENANT, NewService("alive", 10))
        self.assertEqual(self.fault(taken).type, "serviceWithThisIdExists")
        again = [
            self.registry.create(*each)
            for each in (
                (TENANT, NewService("s179", 10)),
                ("99", NewService("s179", 10)),
                ("99", NewService("s170", 10)),
            )
        ]
        for each in again:
            self.assertNoResult(each)
        for _ in range(2):
            held.pop().release()
            self.clock.advance(0)
        for each in again:
            self.successResultOf(each)
        self.store.pass_("expireServices")
        while held:
            held.pop().release()
        self.pass_(5)
        self.assertEqual([self.ids(), self.ids("99")], [["alive", "s179"], ["s170", "s179"]])

    def test_manyMoreThanAGroupAreRegisteredAgain(self) -> None:
        """Of more registrations than a group has room for, each asks the store once more when its turn has come."""
        for number in range(180):
            self.create(f"s{number:03}", 10)
        held = self.store.hold("expireServices")
        self.pass_(10.5)
        self.store.calls.clear()
        again = [self.registry.create(TENANT, NewService(f"s{number:03}", 10)) for number in reversed(range(180))]
        while held:
            held.pop().release()
            self.clock.advance(0)
        for each in again:
            self.successResultOf(each)
        self.assertEqual(self.store.calls["createService"], 2 * 180)

    def test_stopBetweenGroups(self) -> None:
        """Between two groups, and while one is kept, a registry stops with nothing left on the reactor."""
        for held in (self.store.hold("expireServices"), None):
            for number in range(120):
                self.create(f"s{number}", 10)
            self.pass_(9.75)
            self.clock.rightNow += 0.25
            for call in list(self.clock.calls):
                if call.getTime() <= self.clock.seconds():
                    self.clock.calls.remove(call)
                    call.called = True
                    call.func()
            stopping = self.registry.stop()
            if held is not None:
                self.assertNoResult(stopping)
                held.pop().release()
                self.store.pass_("expireServices")
            self.successResultOf(stopping)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertEqual(len(self.stored()), 70)
            self.assertUnavailable(self.registry.create(TENANT, NewService("s7", 10)))
            self.registry = self.started()
            self.pass_(20)
            self.assertEqual(self.stored(), [])


class StoreTroubleTests(RegistryCase):
    """Expirations and changes while the store is unavailable."""

    def test_expiredServicesStayHidden(self) -> None:
        """An expiration is persisted when the store is back; until then the service is hidden."""
        token = self.create(timeout=10)
        self.memory.unavailable = True
        self.pass_(15)
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
        self.assertUnavailable(self.registry.create(TENANT, NewService("web1", 10)))
        self.store.hold("expireServices")
        self.memory.unavailable = False
        self.assertEqual(self.ids(), [])
        self.assertGone(self.registry.get(TENANT, "web1"))
        self.assertEqual(self.stored(), ["web1"])
        self.store.pass_("expireServices")

    def test_expirationsAreTriedAgain(self) -> None:
        """With the first sweep after the store is back it is persisted, with the time of the deadline."""
        self.create(timeout=10)
        self.memory.unavailable = True
        self.pass_(100)
        self.memory.unavailable = False
        self.pass_(0.25)
        self.assertEqual(self.stored(), [])
        event = self.page(self.registry.feed.list(TENANT, None, 5, {TIMEOUT})).values[0]
        self.assertEqual(event["timestamp"], (NOW + 10) * 1000)

    def test_troubleIsLoggedOnce(self) -> None:
        """An outage is one line, and the expirations in it another when it is over."""
        self.create(timeout=10)
        with capturedLogs() as logs:
            self.memory.unavailable = True
            self.pass_(50)
            self.memory.unavailable = False
            self.pass_(1)
        self.assertEqual(
            [formatEvent(event) for event in logs],
            [
                "Cannot persist expirations (1 pending); retrying",
                "Services expired: 1234/web1",
            ],
        )

    def test_aDefectDoesNotEndExpirations(self) -> None:
        """When persisting fails for another reason, that is logged once, and it is tried again too."""
        self.create(timeout=10)
        self.store.breakDown("expireServices", ValueError("a defect"))
        self.pass_(20)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.store.repair("expireServices")
        self.pass_(1)
        self.assertEqual(self.stored(), [])

    def test_anExpirationWhoseResponseWasLost(self) -> None:
        """An expiration that was persisted, though the store seemed to be unavailable, is one event."""
        self.create(timeout=10)
        self.store.loseAnswer("expireServices")
        self.pass_(20)
        self.create()
        self.assertEqual(self.events(), [(JOIN, "web1"), (TIMEOUT, "web1"), (JOIN, "web1")])

    def test_aCreateWhoseResponseWasLost(self) -> None:
        """A service that was created, but not acknowledged, gets a deadline, and expires; then its id is free."""
        self.store.loseAnswer("createService")
        self.assertUnavailable(self.registry.create(TENANT, NewService("web1", 10)))
        self.assertEqual(self.ids(), ["web1"])
        refused = self.fault(self.registry.create(TENANT, NewService("web1", 10)))
        self.assertEqual(refused.type, "serviceWithThisIdExists")
        self.pass_(9)
        self.assertEqual(self.ids(), ["web1"])
        self.pass_(2)
        self.assertEqual(self.events(), [(JOIN, "web1"), (TIMEOUT, "web1")])
        self.create()

    def test_aServiceThatMemoryHasMissed(self) -> None:
        """A service that a request finds in the store without a deadline gets a full timeout."""
        for meet in (
            lambda: self.registry.get(TENANT, "web1"),
            lambda: self.registry.list(TENANT, None, 100, None),
            lambda: self.registry.create(TENANT, NewService("web1", 3)).addErrback(lambda f: f.trap(Fault)),
        ):
            self.successResultOf(self.memory.createService(TENANT, NewService("web1", 10), 100))
            self.pass_(100)
            self.successResultOf(meet())
            self.pass_(9)
            self.assertEqual(self.stored(), ["web1"])
            self.pass_(2)
            self.assertEqual(self.stored(), [])

    def test_aServiceThatTheStoreHasLost(self) -> None:
        """A service that the store has no more is gone for heartbeats too, once a request has found that."""
        removed: Any
        for meet in (
            lambda: self.registry.get(TENANT, "web1"),
            lambda: self.registry.update(TENANT, "web1", ServiceChanges(tags=("t",))),
            lambda: self.registry.remove(TENANT, "web1"),
        ):
            token = self.create()
            removed = self.successResultOf(self.memory.getService(TENANT, "web1"))
            assert isinstance(removed, ServiceRecord)
            self.successResultOf(self.memory.removeService(TENANT, "web1", removed.incarnation))
            self.assertGone(meet())
            self.pass_(0.25)
            self.assertGone(self.registry.heartbeat(TENANT, "web1", token))

    def test_aRemovalWhoseResponseWasLost(self) -> None:
        """A service that was removed, though the store seemed to be unavailable, does not stay in memory."""
        token = self.create()
        self.store.loseAnswer("removeService")
        self.assertUnavailable(self.registry.remove(TENANT, "web1"))
        self.pass_(0.25)
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))

    def test_aRemovalThatFailed(self) -> None:
        """A service that could not be removed stays registered."""
        token = self.create()
        self.memory.unavailable = True
        self.assertUnavailable(self.registry.remove(TENANT, "web1"))
        self.pass_(5)
        self.memory.unavailable = False
        self.pass_(5)
        self.beat(token)
        self.assertEqual(self.ids(), ["web1"])

    def test_anUpdateWhoseResponseWasLost(self) -> None:
        """The timeout that was kept is the one that counts, from when it was found."""
        token = self.create(timeout=10)
        self.store.loseAnswer("updateService")
        self.assertUnavailable(self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60)))
        self.pass_(59)
        self.beat(token)

    def test_anIdThatWasTakenOver(self) -> None:
        """If the store has another incarnation of an id than memory, that one counts."""
        token = self.create()
        record = self.successResultOf(self.memory.getService(TENANT, "web1"))
        self.successResultOf(self.memory.removeService(TENANT, "web1", record.incarnation))
        self.successResultOf(self.memory.createService(TENANT, NewService("web1", 10), 100))
        self.assertEqual(self.ids(), ["web1"])
        self.pass_(0.5)
        self.assertIn("HeartbeatMarker", self.fault(self.registry.heartbeat(TENANT, "web1", token)).details)
        self.pass_(10)
        self.assertEqual(self.stored(), [])
        self.pass_(30)
        self.assertEqual(self.events()[-1], (TIMEOUT, "web1"))

    def test_anExpiredServiceIsNotReconciled(self) -> None:
        """A service that expires while it is unsure is not taken for one that memory has missed."""
        token = self.create(timeout=10)
        self.pass_(9.75)
        self.store.loseAnswer("updateService")
        self.assertUnavailable(self.registry.update(TENANT, "web1", ServiceChanges(heartbeatTimeout=60)))
        held = self.store.hold("expireServices")
        self.pass_(1)
        self.assertEqual(self.stored(), ["web1"])
        self.assertGone(self.registry.get(TENANT, "web1"))
        self.assertGone(self.registry.heartbeat(TENANT, "web1", token))
        held.pop().release()
        self.pass_(1)
        self.assertEqual(self.events(), [(JOIN, "web1"), (TIMEOUT, "web1")])

    def test_reconciliationOutlastsAnOutage(self) -> None:
        """A service that could not be reconciled while the store was unavailable is reconciled when it is back."""
        self.store.loseAnswer("createService")
        self.assertUnavailable(self.registry.create(TENANT, NewService("web1", 10)))
        self.memory.unavailable = True
        self.pass_(60)
        self.memory.unavailable = False
        self.pass_(11)
        self.assertEqual(self.stored(), [])

    def test_aDefectInTheStoreIsNotHidden(self) -> None:
        """A failure that no rule foresees reaches the caller as it is, and is followed up."""
        self.store.breakDown("createService", ValueError("a defect"))
        self.failureResultOf(self.registry.create(TENANT, NewService("web1", 10)), ValueError)
        self.store.breakDown("getService", ValueError("another defect"))
        self.pass_(1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_aDefectWhoseClientHungUpIsLogged(self) -> None:
        """A failure that no rule foresees is in the log when the client has hung up."""
        self.create()
        self.store.breakDown("createService", ValueError("a defect"))
        held = self.store.hold("removeService")
        self.registry.remove(TENANT, "web1")
        creating = self.registry.create(TENANT, NewService("web1", 10))
        creating.cancel()
        self.failureResultOf(creating, CancelledError)
        held.pop().release()
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "remove", "update", "beat", "get", "list", "pass", "release", "release"]),
        st.integers(min_value=0, max_value=7),
    ),
    max_size=60,
)


class AnyOrderTests(SynchronousTestCase):
    """With random operations on a slow store, a few promises hold."""

    @settings(suppress_health_check=list(HealthCheck))
    @given(OPERATIONS, st.booleans())
    def test_oneEndForEachIncarnation(self, operations: list[tuple[str, int]], acts: bool) -> None:
        """
        Each incarnation in the feed begins once and ends once, in turn; without heartbeats all services expire, in
        memory and in the store.
        """
        clock = Clock()
        memory = MemoryStore(wallClock=lambda: NOW + clock.seconds())
        self.successResultOf(memory.open())
        store = HeldStore(memory)
        registry = Registry(store, clock=clock, wallClock=lambda: NOW + clock.seconds())  # type: ignore[arg-type]  # it passes everything on
        self.successResultOf(registry.start())
        names = ("createService", "removeService", "updateService", "expireServices", "getService", "listServices")
        held = [store.hold(name, acts=acts) for name in names]
        tokens: list[str] = []

        def release(which: int) -> None:
            waiting = [calls for calls in held if calls]
            if waiting:
                waiting[which % len(waiting)].pop(0).release()

        def ignore(deferred: Deferred[Any]) -> None:
            deferred.addErrback(lambda failure: failure.trap(Fault))

        for operation, number in operations:
            id = f"web{number % 2}"
            if operation == "create":
                ignore(registry.create(TENANT, NewService(id, 3 + number)).addCallback(tokens.append))
            elif operation == "remove":
                ignore(registry.remove(TENANT, id))
            elif operation == "update":
                ignore(registry.update(TENANT, id, ServiceChanges(heartbeatTimeout=3 + number)))
            elif operation == "beat" and tokens:
                ignore(registry.heartbeat(TENANT, id, tokens[number % len(tokens)]).addCallback(tokens.append))
            elif operation == "get":
                ignore(registry.get(TENANT, id))
            elif operation == "list":
                ignore(registry.list(TENANT, None, 10, None))
            elif operation == "pass":
                clock.pump([0.25] * (1 + number) * 2)
            elif operation == "release":
                release(number)

        for name in names:
            store.pass_(name)
        while any(held):
            release(0)
        clock.pump([0.25] * 4 * 20)
        self.assertEqual(self.successResultOf(memory.allServices()), [])
        for token in tokens:
            for id in ("web0", "web1"):
                failure = self.failureResultOf(registry.heartbeat(TENANT, id, token), Fault)
                self.assertEqual(failure.value.details, f'Object "Service" with key "{id}" does not exist')
        feed = self.successResultOf(memory.listEvents(TENANT, 0, 1000, frozenset({JOIN, REMOVE, TIMEOUT})))
        for id in ("web0", "web1"):
            types = [event.type for event in feed if event.payload["id"] == id]
            self.assertEqual(set(types[::2]) - {JOIN}, set())
            self.assertEqual(set(types[1::2]) - {REMOVE, TIMEOUT}, set())
            self.assertEqual(len(types) % 2, 0)
        self.successResultOf(registry.stop())
        self.assertEqual(clock.getDelayedCalls(), [])
