"""
Tests for :mod:`txserviceregistry.registry.locks`: who holds a lock, who waits for it, and when it is free again.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from tests.unit.registry.registrycase import NOW, TENANT, RegistryCase
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import Places, ResourceLimits
from txserviceregistry.registry.model import NewLock, NewService, lockScope

NAME = "/billing/scheduler"
SCOPE = lockScope(TENANT)


def nonce(number: int) -> str:
    """The nonce of an acquisition."""
    return f"8ee6ee28-5b6a-4a3a-a2dd-{number:012x}"


class LocksCase(RegistryCase):
    """A registry with locks."""

    options: dict[str, Any] = {}
    followers: Places | None = None

    def started(self) -> Registry:
        registry = Registry(
            self.store,  # type: ignore[arg-type]  # it passes everything on
            clock=self.clock,
            wallClock=self.wallClock,
            limits=self.limits,
            **self.options,
            followers=self.followers,
        )
        self.successResultOf(registry.start())
        self.addCleanup(registry.stop)
        return registry

    def asking(self, number: int = 1, wait: float = 0, name: str = NAME, **more: Any) -> Deferred[Any]:
        """A request for a lock; each number is another acquisition."""
        more.setdefault("holder", f"holder{number}")
        lock = NewLock(name, more.pop("timeout", 15), nonce=nonce(number), **more)
        asking = Deferred.fromCoroutine(self.registry.locks.acquire(TENANT, lock, wait))
        self.addCleanup(asking.addErrback, lambda _: None)
        return asking

    def acquire(self, number: int = 1, **more: Any) -> tuple[str, int]:
        """Acquire a lock; token and fence."""
        acquired = self.successResultOf(self.asking(number, **more))
        return acquired["token"], acquired["fence"]

    def heartbeat(self, token: str, name: str = NAME) -> Deferred[str]:
        return self.registry.heartbeat(SCOPE, name, token)

    def release(self, token: str | None, isNow: bool = False, name: str = NAME) -> None:
        self.successResultOf(self.registry.locks.release(TENANT, name, token, isNow))

    def assertHeld(self, asking: Deferred[Any], holder: str, fence: int, seconds: float) -> None:
        """A request is refused because of this holder."""
        fault = self.fault(asking)
        self.assertEqual((fault.code, fault.type, fault.message), (409, "lockHeld", "Lock is held"))
        lock = {"name": NAME, "holder": holder, "fence": fence, "seconds_left": seconds}
        self.assertEqual(fault.more, {"lock": lock})

    def assertMissing(self, deferred: Deferred[Any], kind: str = "Lock", key: str = NAME) -> None:
        fault = self.fault(deferred)
        self.assertEqual((fault.code, fault.details), (404, f'Object "{kind}" with key "{key}" does not exist'))

    def listed(self) -> list[Any]:
        return list(self.page(self.registry.locks.list(TENANT, None, 100, None)).values)

    def ends(self) -> list[tuple[str, bool]]:
        """How locks have ended, as the feed shows it."""
        return [
            (event.type, event.payload["forced"])
            for event in self.successResultOf(self.memory.listEvents(TENANT, 0, 100, ["lock.release", "lock.expire"]))
        ]


class AcquireTests(LocksCase):
    """Acquiring a lock, and keeping it."""

    limits = ResourceLimits(lock=2)

    def test_holds(self) -> None:
        """A lock is held as long as heartbeats come; others are refused, and told who holds it and for how long."""
        token, fence = self.acquire()
        self.assertEqual(fence, int(NOW * 1000))
        self.pass_(10)
        self.assertHeld(self.asking(2), "holder1", fence, 5)
        token = self.successResultOf(self.heartbeat(token))
        self.pass_(14)
        self.assertHeld(self.asking(2), "holder1", fence, 1)
        self.assertEqual(
            self.listed(),
            [
                {
                    "name": NAME,
                    "holder": "holder1",
                    "fence": fence,
                    "timeout": 15,
                    "acquired_at": int(NOW * 1000),
                    "metadata": {},
                }
            ],
        )

    def test_expires(self) -> None:
        """Without heartbeats a lock is free at its deadline, also while the expiration can't be persisted."""
        token, first = self.acquire()
        self.store.breakDown("expireLocks", RuntimeError("not now"))
        self.pass_(15)
        self.assertMissing(self.heartbeat(token))
        self.assertEqual(self.listed(), [])
        self.assertMissing(self.registry.locks.release(TENANT, NAME, token))
        self.store.repair("expireLocks")
        with capturedLogs() as logs:
            _, second = self.acquire(2)
        self.assertGreater(second, first)
        self.flushLoggedErrors(RuntimeError)
        self.assertEqual(self.ends(), [("lock.expire", False)])
        self.assertIn("Locks expired: 1234/billing/scheduler", [formatEvent(event) for event in logs])

    def test_momentOfAcquisition(self) -> None:
        """A lock is acquired, and its fence taken, when the earlier acquisition has expired, and not before."""
        self.acquire()
        held = self.store.hold("expireLocks")
        self.pass_(15)
        waiting = self.asking(2)
        self.pass_(0.5)
        self.assertNoResult(waiting)
        held.pop(0).release()
        self.assertEqual(self.successResultOf(waiting)["fence"], int((NOW + 15.5) * 1000))
        (lock,) = self.listed()
        self.assertEqual(lock["acquired_at"], int((NOW + 15.5) * 1000))

    def test_release(self) -> None:
        """A lock that is released is free at once, and its token is of no use any more."""
        token, _ = self.acquire()
        self.release(token)
        self.assertMissing(self.heartbeat(token))
        self.assertMissing(self.registry.locks.release(TENANT, NAME, token))
        other, _ = self.acquire(2)
        self.assertMissing(self.heartbeat(token), "HeartbeatMarker", token)
        self.assertMissing(self.registry.locks.release(TENANT, NAME, token), "HeartbeatMarker", token)
        self.successResultOf(self.heartbeat(other))
        self.assertEqual(self.ends(), [("lock.release", False)])

    def test_sameNonce(self) -> None:
        """A request with the holder's nonce is answered as the first one was, and is a heartbeat."""
        first = self.acquire()
        self.pass_(10)
        self.assertEqual(self.acquire(), first)
        self.pass_(10)
        self.successResultOf(self.heartbeat(first[0]))
        self.assertHeld(self.asking(2), "holder1", first[1], 15)
        self.pass_(15)
        self.assertGreater(self.acquire()[1], first[1])

    def test_withoutNonce(self) -> None:
        """Acquisitions without a nonce are different ones."""
        lock = NewLock(NAME, 15)
        self.successResultOf(Deferred.fromCoroutine(self.registry.locks.acquire(TENANT, lock)))
        again = Deferred.fromCoroutine(self.registry.locks.acquire(TENANT, lock))
        self.assertEqual(self.fault(again).type, "lockHeld")

    def test_lostResponses(self) -> None:
        """The outcome of a write without a response is found out: a lock without a known holder expires."""
        self.store.loseAnswer("acquireLock")
        self.assertUnavailable(self.asking())
        token, fence = self.acquire()
        self.store.loseAnswer("releaseLock")
        self.assertUnavailable(self.registry.locks.release(TENANT, NAME, token))
        self.pass_(1)
        self.assertMissing(self.heartbeat(token))
        self.store.loseAnswer("acquireLock")
        self.assertUnavailable(self.asking(2))
        self.pass_(1)
        self.assertHeld(self.asking(3), "holder2", fence + 1000, 14.25)
        self.pass_(15)
        self.acquire(3)

    def test_limit(self) -> None:
        """An account has a limit of locks, and expired ones do not count. It has nothing to do with services."""
        self.create()
        token, _ = self.acquire()
        self.acquire(2, name="/billing/other")
        fault = self.fault(self.asking(3, name="/billing/third"))
        self.assertEqual(
            (fault.type, fault.details),
            ("limitReached", "Limit for resource lock has been reached. Maximum allowed objects: 2"),
        )
        self.pass_(10)
        self.successResultOf(self.heartbeat(token))
        self.pass_(5)
        self.acquire(3, name="/billing/third")

    def test_isNotAService(self) -> None:
        """A lock and a service of the same name do not know each other, and heartbeats of one are none of the other."""
        self.acquire(name="web1")
        self.assertEqual(self.ids(), [])
        token = self.create("web1")
        self.assertMissing(self.registry.heartbeat(SCOPE, "web1", token), "HeartbeatMarker", token)
        self.assertEqual(self.registry.counts(), {TENANT: 1})
        self.pass_(15)
        self.assertEqual(
            (self.registry.counts(ofLocks=True), self.registry.engine.expirations["service.timeout"]), ({}, 0)
        )
        self.assertEqual((self.registry.locks.acquisitions, self.registry.engine.expirations["lock.expire"]), (1, 1))
        self.assertEqual(self.ids(), ["web1"])
        self.assertEqual(self.stored(), ["web1"])

    def test_restart(self) -> None:
        """After a restart each lock has its full timeout, its token and its fence."""
        token, fence = self.acquire()
        self.pass_(10)
        self.successResultOf(self.registry.stop())
        self.registry = self.started()
        self.assertHeld(self.asking(2), "holder1", fence, 15)
        self.pass_(14)
        self.successResultOf(self.heartbeat(token))
        self.assertEqual(self.acquire()[1], fence)

    def test_stall(self) -> None:
        """A stall of the registry is given back to the holders."""
        token, _ = self.acquire()
        self.clock.advance(60)
        self.pass_(10)
        self.successResultOf(self.heartbeat(token))

    def test_fencesGrow(self) -> None:
        """Fences grow when the wall clock is set back."""
        token, first = self.acquire()
        self.release(token)
        self.wallOffset -= 3600
        self.assertEqual(self.acquire()[1], first + 1)

    def test_batch(self) -> None:
        """Heartbeats of locks and of services are taken at the same moment."""
        token, _ = self.acquire()
        service = self.create()
        outcomes = self.successResultOf(
            self.registry.heartbeats(SCOPE, [(NAME, token), (NAME, service), ("x/y", token)])
        )
        self.assertIsInstance(outcomes[0], str)
        kinds = [outcome.details.split()[1] for outcome in outcomes[1:] if isinstance(outcome, Fault)]
        self.assertEqual(kinds, ['"HeartbeatMarker"', '"Lock"'])
        self.assertEqual(self.store.calls["recordLastSeen"], 0)

    def test_manyExpire(self) -> None:
        """That locks expire does not warn of services."""
        self.successResultOf(self.registry.create(TENANT, NewService("web1", 120)))
        self.registry.locks._maximum = 100
        for number in range(30):
            self.acquire(number, name=f"/many/lock{number}")
        with capturedLogs() as logs:
            self.pass_(16)
        self.assertEqual([formatEvent(event) for event in logs if "check the network" in str(formatEvent(event))], [])
        self.assertEqual(self.registry.engine.expirations["lock.expire"], 30)


class ForceTests(LocksCase):
    """Ending a lock that another holds."""

    def test_force(self) -> None:
        """The holder's heartbeats are refused, and the lock is free when the timeout has passed."""
        token, fence = self.acquire()
        self.pass_(5)
        self.successResultOf(self.heartbeat(token))
        self.release(None)
        self.release(None)
        self.assertMissing(self.heartbeat(token))
        outcomes = self.successResultOf(self.registry.heartbeats(SCOPE, [(NAME, token)]))
        self.assertIn("Lock", outcomes[0].details)
        self.assertHeld(self.asking(2), "holder1", fence, 15)
        self.assertHeld(self.asking(), "holder1", fence, 15)
        self.pass_(14.75)
        self.assertHeld(self.asking(2), "holder1", fence, 0.25)
        self.pass_(0.25)
        self.acquire(2)
        self.assertEqual(self.ends(), [("lock.expire", True)])

    def test_survivesRestart(self) -> None:
        """A restart does not forget that heartbeats are refused."""
        token, _ = self.acquire()
        self.release(None)
        self.successResultOf(self.registry.stop())
        self.registry = self.started()
        self.assertMissing(self.heartbeat(token))
        self.pass_(15)
        self.acquire(2)

    def test_holderReleases(self) -> None:
        """The holder of a lock that is ended by force can still release it."""
        token, _ = self.acquire()
        self.release(None)
        self.release(token)
        self.acquire(2)

    def test_now(self) -> None:
        """With now the lock is free at once."""
        token, _ = self.acquire()
        waiting = self.asking(2, wait=60)
        self.release(None, isNow=True)
        self.successResultOf(waiting)
        self.assertMissing(self.heartbeat(token), "HeartbeatMarker", token)
        self.assertEqual(self.ends(), [("lock.release", True)])

    def test_nothingThere(self) -> None:
        """A lock that is not held can't be ended by force."""
        for isNow in (False, True):
            self.assertMissing(self.registry.locks.release(TENANT, NAME, None, isNow))


class WaitTests(LocksCase):
    """Waiting for a lock."""

    def test_inOrder(self) -> None:
        """Those who wait get the lock in the order in which they came, each at the release of the one before."""
        token, fence = self.acquire()
        waiting = [self.asking(number, wait=60) for number in range(2, 102)]
        for each in waiting:
            self.assertNoResult(each)
            self.release(token)
            acquired = self.successResultOf(each)
            token = acquired["token"]
            self.assertGreater(acquired["fence"], fence)
            fence = acquired["fence"]
        # The first request, the first one that had to wait, and one for each hand-over.
        self.assertEqual(self.store.calls["acquireLock"], 102)

    def test_atExpiration(self) -> None:
        """The first who waits gets the lock when it expires, a full timeout long."""
        self.acquire()
        first, second = self.asking(2, wait=60), self.asking(3, wait=60)
        self.pass_(14.75)
        self.assertNoResult(first)
        self.pass_(0.25)
        token = self.successResultOf(first)["token"]
        self.pass_(14)
        self.successResultOf(self.heartbeat(token))
        self.assertNoResult(second)
        self.pass_(15)
        self.successResultOf(second)

    def test_timeIsOver(self) -> None:
        """One whose time is over is told who holds the lock, and the next one comes before it."""
        token, fence = self.acquire()
        short, long = self.asking(2, wait=5), self.asking(3, wait=60)
        self.pass_(5)
        self.assertHeld(short, "holder1", fence, 10)
        self.assertNoResult(long)
        self.release(token)
        self.successResultOf(long)

    def test_gone(self) -> None:
        """One that has gone is skipped, wherever it stands."""
        token, _ = self.acquire()
        waiting = [self.asking(number, wait=60) for number in range(2, 6)]
        for gone in (waiting[0], waiting[2]):
            gone.addErrback(lambda _: None)
            gone.cancel()
        self.release(token)
        token = self.successResultOf(waiting[1])["token"]
        self.release(token)
        self.successResultOf(waiting[3])

    def test_goneWhileItTries(self) -> None:
        """If the first one goes while the store is asked for it, the next one finds out whether the lock is free."""
        token, _ = self.acquire()
        first, second = self.asking(2, wait=60), self.asking(3, wait=60)
        held = self.store.hold("acquireLock")
        self.release(token)
        first.addErrback(lambda _: None)
        first.cancel()
        held.pop(0).refuse()
        held.pop(0).release()
        self.successResultOf(second)

    def test_storeFails(self) -> None:
        """The first one is told that the store has failed, and the next one is not forgotten."""
        token, _ = self.acquire()
        first, second = self.asking(2, wait=60), self.asking(3, wait=60)
        held = self.store.hold("acquireLock")
        self.release(token)
        held.pop(0).refuse()
        self.assertUnavailable(first)
        self.store.pass_("acquireLock")
        held.pop(0).release()
        self.successResultOf(second)

    def test_releasedWhileItTries(self) -> None:
        """A release that comes while the store refuses is not missed."""
        token, _ = self.acquire()
        held = self.store.hold("acquireLock", acts=True)
        waiting = self.asking(2, wait=60)
        self.store.pass_("acquireLock")
        releasing = self.registry.locks.release(TENANT, NAME, token)
        held.pop().release()
        self.successResultOf(releasing)
        self.successResultOf(waiting)

    def test_repeated(self) -> None:
        """A request that repeats one that waits takes its place; one that repeats the holder's is answered at once."""
        token, fence = self.acquire()
        lost, other = self.asking(2, wait=60), self.asking(3, wait=60)
        again = self.asking(2, wait=60)
        self.assertHeld(lost, "holder1", fence, 15)
        self.assertEqual(self.acquire(1, wait=60), (token, fence))
        self.release(token)
        token = self.successResultOf(again)["token"]
        self.assertNoResult(other)
        self.release(token)
        self.successResultOf(other)

    def test_repeatedWhileItTries(self) -> None:
        """If the first request is granted while it is repeated, the second one is answered in the same way."""
        token, _ = self.acquire()
        lost = self.asking(2, wait=60)
        held = self.store.hold("acquireLock", acts=True)
        self.release(token)
        again = self.asking(2, wait=60)
        self.store.pass_("acquireLock")
        held.pop().release()
        self.assertEqual(self.successResultOf(lost), self.successResultOf(again))

    def test_otherNames(self) -> None:
        """A release lets no request try that waits for another lock."""
        token, _ = self.acquire()
        self.acquire(2, name="/billing/other")
        other = self.asking(3, wait=60, name="/billing/other")
        calls = self.store.calls["acquireLock"]
        self.release(token)
        self.assertNoResult(other)
        self.assertEqual(self.store.calls["acquireLock"], calls)

    def test_end(self) -> None:
        """When the registry stops, those who wait are told so, and nothing is left."""
        self.acquire()
        waiting = [self.asking(number, wait=60) for number in (2, 3)]
        self.registry.endWaiting()
        for each in waiting:
            self.assertEqual(self.fault(each).details, "The registry is stopping")
        self.assertEqual(self.fault(self.asking(4, wait=60)).code, 503)
        self.successResultOf(self.registry.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_mayNotAnyMore(self) -> None:
        """One that may no longer acquire locks when its turn comes gets none, and the next one does."""
        token, _ = self.acquire()

        async def refuse() -> None:
            raise Fault("forbiddenError", "forbidden")

        lock = NewLock(NAME, 15, nonce=nonce(2))
        refused = Deferred.fromCoroutine(self.registry.locks.acquire(TENANT, lock, 60, refuse))
        other = self.asking(3, wait=60)
        self.release(token)
        self.assertEqual(self.fault(refused).code, 403)
        self.successResultOf(other)


class CrowdTests(LocksCase):
    """As many wait as may."""

    def setUp(self) -> None:
        super().setUp()
        self.followers = Places(2)
        self.registry = self.started()

    def test_oneTooMany(self) -> None:
        """One more is refused, and those who are answered make room."""
        token, _ = self.acquire()
        first, second = self.asking(2, wait=60), self.asking(3, wait=60)
        fault = self.fault(self.asking(4, wait=60))
        self.assertEqual((fault.code, dict(fault.headers)), (503, {"Retry-After": "5"}))
        self.release(token)
        self.successResultOf(first)
        self.assertNoResult(self.asking(5, wait=60))
        self.assertNoResult(second)


class RestoredTests(LocksCase):
    """After the restore of a backup."""

    options: dict[str, Any] = {"fenceFrom": 10**15, "locksHeldBack": 120}

    def test_heldBack(self) -> None:
        """No lock can be acquired for a while, and then fences begin where the operator says."""
        fault = self.fault(self.asking())
        self.assertEqual((fault.code, dict(fault.headers)), (503, {"Retry-After": "120"}))
        self.pass_(119.75)
        self.assertEqual(self.fault(self.asking(wait=60)).code, 503)
        self.pass_(0.25)
        self.assertEqual(self.acquire()[1], 10**15)
        self.assertEqual(self.acquire(name="/billing/other")[1], 10**15 + 1)
