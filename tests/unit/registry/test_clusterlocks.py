"""
Locks of several registries over one store: any of them grants, keeps and releases them, and together they act as one.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from tests.unit.registry.sharedmemory import SharedMemoryStore
from tests.unit.registry.test_cluster import ClusterCase, T
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.model import NewLock, lockScope

SCOPE = lockScope(T)
NAME = "/billing/scheduler"


class ClusterLocksTests(ClusterCase):
    """Locks on A and B."""

    def asking(self, node: Registry, number: int = 1, wait: float = 0, timeout: int = 10) -> Deferred[Any]:
        nonce = f"8ee6ee28-5b6a-4a3a-a2dd-{number:012x}"
        lock = NewLock(NAME, timeout, holder=f"holder{number}", nonce=nonce)
        asking = Deferred.fromCoroutine(node.locks.acquire(T, lock, wait))
        self.addCleanup(asking.addErrback, lambda _: None)
        return asking

    def heartbeat(self, node: Registry, token: str) -> str:
        following: str = self.successResultOf(node.heartbeat(SCOPE, NAME, token))
        return following

    def holder(self, node: Registry) -> str | None:
        locks = self.successResultOf(node.locks.list(T, None, 10, None)).values
        return locks[0]["holder"] if locks else None

    def lockEvents(self) -> list[str]:
        events = self.successResultOf(self.shared.memory.listEvents(T, 0, 100, None))
        return [event.type for event in events]

    def test_oneHolder(self) -> None:
        """Acquired on A, a lock is held for B at once, and any takes its heartbeats."""
        token = self.successResultOf(self.asking(self.a))["token"]
        self.assertEqual(self.failureResultOf(self.asking(self.b, 2), Fault).value.type, "lockHeld")
        for node in (self.b, self.a):
            for _ in range(4):
                self.passes(8)
                token = self.heartbeat(node, token)
        self.assertEqual((self.holder(self.a), self.holder(self.b)), ("holder1", "holder1"))
        self.assertEqual(self.lockEvents(), ["lock.acquire"])

    def test_repeatedAtANodeThatIsNotValid(self) -> None:
        """The holder's repeated request is a heartbeat: 503 while the node may not acknowledge any."""
        lock = self.successResultOf(self.asking(self.a))
        with mock.patch.object(SharedMemoryStore, "isValid", False):
            self.assertEqual(self.failureResultOf(self.asking(self.a), Fault).value.code, 503)
        self.assertEqual(self.successResultOf(self.asking(self.a)), lock)

    def test_waitsForAnother(self) -> None:
        """A waiter on B has the lock a moment after its release on A, before one that came later there."""
        lock = self.successResultOf(self.asking(self.a))
        first, second = self.asking(self.b, 2, 60), self.asking(self.b, 3, 60)
        self.passes(1)
        self.successResultOf(self.a.locks.release(T, NAME, lock["token"]))
        self.passes(0.05)
        self.assertGreater(self.successResultOf(first)["fence"], lock["fence"])
        self.assertNoResult(second)

    def test_oneOfTwoWaiters(self) -> None:
        """At a release the first waiter of each node tries, and one of them has the lock; the other goes on waiting."""
        token = self.successResultOf(self.asking(self.a))["token"]
        waiting = [self.asking(self.a, 2, 60), self.asking(self.b, 3, 60)]
        self.successResultOf(self.b.locks.release(T, NAME, token))
        self.passes(0.1)
        token = self.successResultOf(waiting.pop(1 if self.holder(self.a) == "holder3" else 0))["token"]
        self.assertNoResult(waiting[0])
        self.successResultOf(self.a.locks.release(T, NAME, token))
        self.passes(0.1)
        self.successResultOf(waiting[0])

    def test_releasedUnnoticed(self) -> None:
        """A waiter has a lock that was acquired and released while its node's watch had a gap."""
        self.stores[1].cutOff()
        token = self.successResultOf(self.asking(self.a))["token"]
        self.passes(0.1)
        self.stores[1].reconnect()
        waiting = self.asking(self.b, 2, 60)
        self.assertNoResult(waiting)
        self.stores[1].cutOff()
        self.successResultOf(self.a.locks.release(T, NAME, token))
        self.passes(0.1)
        self.stores[1].reconnect()
        self.stores[1].node.watchEnded()
        self.passes(2)
        self.successResultOf(waiting)

    def test_expires(self) -> None:
        """Without heartbeats a lock expires by vote, once, and a waiter has it at most a second later."""
        self.successResultOf(self.asking(self.a))
        waiting = self.asking(self.b, 2, 60)
        self.passes(9.9)
        self.assertNoResult(waiting)
        self.passes(1.1)
        self.successResultOf(waiting)
        self.assertEqual(self.lockEvents(), ["lock.acquire", "lock.expire", "lock.acquire"])
        self.assertEqual(sum(node.engine.expirations["lock.expire"] for node in (self.a, self.b)), 1)

    def test_aNodeThatIsGone(self) -> None:
        """A lock whose heartbeats the node received that is gone has a full timeout from then, and then expires."""
        token = self.successResultOf(self.asking(self.a))["token"]
        self.passes(8)
        self.heartbeat(self.a, token)
        self.stores[0].cutOff()
        waiting = self.asking(self.b, 2, 60)
        self.passes(14)
        self.assertNoResult(waiting)
        self.passes(3)
        self.successResultOf(waiting)

    def test_sameNonceElsewhere(self) -> None:
        """A request that is repeated on another node is answered as the first one was, and is a heartbeat there."""
        lock = self.successResultOf(self.asking(self.a))
        self.passes(8)
        self.assertEqual(self.successResultOf(self.asking(self.b)), lock)
        self.passes(8)
        self.assertEqual(self.holder(self.a), "holder1")
        self.passes(3.5)
        self.assertIsNone(self.holder(self.a))

    def test_forceElsewhere(self) -> None:
        """A lock that is ended by force on B takes no more heartbeats on A, and expires."""
        token = self.successResultOf(self.asking(self.a))["token"]
        self.passes(1)
        self.successResultOf(self.b.locks.release(T, NAME, None))
        self.passes(0.1)
        for node in (self.a, self.b):
            code, details = self.fault(node.heartbeat(SCOPE, NAME, token))
            self.assertEqual((code, details.split()[1]), (404, '"Lock"'))
        self.passes(8)
        self.assertEqual(self.holder(self.a), "holder1")
        self.passes(2)
        self.assertIsNone(self.holder(self.a))
        self.assertEqual(self.lockEvents(), ["lock.acquire", "lock.expire"])

    def test_forceBeforeAReleaseElsewhere(self) -> None:
        """A knows of the release on B before the response of its own change comes: it does not bring the lock back."""
        token = self.successResultOf(self.asking(self.a))["token"]
        self.passes(0.1)
        force, response = self.stores[0].forceLock, Deferred[None]()

        def forceLate(*args: Any) -> Deferred[Any]:
            return force(*args).addCallback(lambda record: response.addCallback(lambda _: record))

        self.patch(self.stores[0], "forceLock", forceLate)
        forcing = self.a.locks.release(T, NAME, None)
        self.successResultOf(self.b.locks.release(T, NAME, token))
        self.passes(0.1)
        response.callback(None)
        self.successResultOf(forcing)
        self.assertEqual([node.engine.counts(ofLocks=True) for node in (self.a, self.b)], [{}, {}])

    def test_notValid(self) -> None:
        """A node that is cut off from the store acknowledges no heartbeats of locks for long."""
        token = self.successResultOf(self.asking(self.a, timeout=120))["token"]
        self.stores[0].cutOff()
        self.passes(5)
        self.assertEqual(self.fault(self.a.heartbeat(SCOPE, NAME, token))[0], 503)
        self.heartbeat(self.b, token)

    def test_batches(self) -> None:
        """Heartbeats of locks that another node granted a moment ago are taken in a batch."""
        token = self.successResultOf(self.asking(self.a))["token"]
        outcomes = self.successResultOf(self.b.heartbeats(SCOPE, [(NAME, token), ("/other/name", token)]))
        self.assertIsInstance(outcomes[0], str)
        self.assertEqual(outcomes[1].code, 404)
