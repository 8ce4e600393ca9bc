"""
Tests for :mod:`txserviceregistry.coordination.lock`.
"""

from __future__ import annotations

import gc
import json
import os
import socket
from itertools import pairwise
from typing import Any
from weakref import ref

from twisted.internet.defer import CancelledError, Deferred

from txserviceregistry.coordination import Held, Lock
from txserviceregistry.errors import BadRequest, ConnectionFailed, ForeignResponse, LockHeld, ServerError

from .case import NAME, CoordinationTestCase


class LockTests(CoordinationTestCase):
    """Two clients that want one lock."""

    def setUp(self) -> None:
        super().setUp()
        self.lock = Lock(self.client, NAME, 10, "first")
        self.other = Lock(self.newClient(), NAME, 10, "second")

    def held(self, lock: Lock | None = None) -> Held:
        held: Held = self.result((lock or self.lock).acquire())
        return held

    def shown(self) -> Any:
        return self.result(self.client.locks.get(NAME))

    def test_isKept(self) -> None:
        """A lock that is held stays held for as long as its holder runs, without being lost."""
        held = self.held()
        lost = held.lost
        for _ in range(100):
            self.fake.advance(1)
            self.assertTrue(held.isValid)
        self.assertNoResult(lost)
        self.assertEqual((self.shown()["fence"], self.shown()["holder"]), (held.fence, "first"))

    def test_namesItsProcess(self) -> None:
        """The default holder has the id of the process that acquires the lock, not of one that has forked since."""
        lock = Lock(self.client, NAME, 10)
        self.patch(os, "getpid", lambda: 4711)
        self.held(lock)
        self.assertEqual(self.shown()["holder"], f"{socket.gethostname()}/4711")

    def test_isReleased(self) -> None:
        """After a release, the lock is free, it is not valid any more, and it was not lost."""
        held = self.held()
        lost = held.lost
        self.assertIsNone(self.result(held.release()))
        self.assertIsNone(self.result(held.release()))
        self.assertFalse(held.isValid)
        self.assertNoResult(lost)
        self.assertEqual(self.sent("/locks/release"), 1)
        self.assertGreater(self.held(self.other).fence, held.fence)

    def test_waits(self) -> None:
        """The next one has the lock as soon as it is released, after a wait of any length, without polling."""
        held = self.held()
        waiting = self.other.acquire()
        self.fake.advance(300)
        self.assertNoResult(waiting)
        self.assertLess(self.sent("/locks"), 10)
        held.release()
        got = self.result(waiting)
        self.assertTrue(got.isValid)
        self.assertGreater(got.fence, held.fence)
        self.fake.advance(9)
        self.assertTrue(got.isValid)

    def test_timeout(self) -> None:
        """An acquisition fails with the holder when its time is over; with a time of 0 it does not wait."""
        self.held()
        self.assertEqual(self.failure(self.other.acquire(0), LockHeld).holder, "first")
        waiting = self.other.acquire(2.5)
        self.fake.advance(2.4)
        self.assertNoResult(waiting)
        self.fake.advance(0.7)
        self.failureResultOf(waiting, LockHeld)

    def test_takesOverFromOneThatWasKilled(self) -> None:
        """A lock whose holder has ended without a word is acquired by the next one after its timeout."""
        held = self.held()
        waiting = self.other.acquire()
        self.fake.advance(0)
        self.client.close()
        self.fake.advance(9.9)
        self.assertNoResult(waiting)
        self.fake.advance(1.1)
        self.assertGreater(self.successResultOf(waiting).fence, held.fence)

    def test_isLostInAPartition(self) -> None:
        """A holder that is cut off loses the lock nine tenths of the timeout after its last answered request."""
        held = self.held()
        lost = held.lost
        self.fake.partition()
        self.fake.advance(8.9)
        self.assertTrue(held.isValid)
        self.assertNoResult(lost)
        self.fake.advance(0.2)
        self.assertFalse(held.isValid)
        self.assertEqual(self.successResultOf(lost), "no heartbeat was answered in time")

    def test_manyWaitForALoss(self) -> None:
        """A wait for the loss that is cancelled leaves nothing behind; one that begins after it fires at once."""
        held = self.held()
        lost = held.lost
        cancelled = held.lost
        cancelled.addErrback(lambda failure: failure.trap(CancelledError))
        cancelled.cancel()
        left = ref(cancelled)
        del cancelled
        gc.collect()
        self.assertIsNone(left())
        self.fake.partition()
        self.fake.advance(10)
        self.assertEqual(self.successResultOf(held.lost), self.successResultOf(lost))

    def test_survivesAShortOutage(self) -> None:
        """Heartbeats that fail for a while do not lose the lock."""
        held = self.held()
        self.fake.advance(1)
        self.fake.partition()
        self.fake.advance(6)
        self.fake.heal()
        self.fake.advance(30)
        self.assertTrue(held.isValid)

    def test_waitsAgainSoonAfterAnOutage(self) -> None:
        """However long an outage takes, half a second after it a release hands over at once."""
        for seconds in (2.0, 6.5):
            held = self.held()
            waiting = Lock(self.newClient(), NAME, 10, "second", random=lambda: 0.0).acquire()
            self.fake.advance(1)
            self.fake.stop()
            self.fake.advance(seconds)
            self.fake.start()
            self.fake.advance(0.6)
            self.assertTrue(held.isValid)
            held.release()
            self.fake.advance(0.05)
            self.result(self.successResultOf(waiting).release())

    def test_isNotValidAfterAStop(self) -> None:
        """After a stop of the process, or a suspend of the machine, the lock is not valid before any timer fires."""
        held = self.held()
        self.fake.suspend(9.5)
        self.assertFalse(held.isValid)
        another = self.result(Lock(self.client, "/another/lock", 10).acquire())
        self.fake.clock.rightNow += 9.5
        self.assertFalse(another.isValid)

    def test_twoAreNeverValid(self) -> None:
        """In all cases the first holder is not valid any more when the second one has the lock."""
        for happens in (self.fake.suspend, self.fake.block, self.fake.advance):
            held = self.held()
            waiting = self.other.acquire()
            self.fake.advance(0)
            self.fake.partition()
            happens(20.0)
            self.fake.heal()
            self.assertFalse(held.isValid)
            self.fake.advance(70)
            second = self.successResultOf(waiting)
            self.assertTrue(second.isValid)
            self.result(second.release())

    def test_aStepOfTheClockExtendsNothing(self) -> None:
        """When the reactor's clock steps back while a heartbeat is under way, the response counts from its sending."""
        step = [0.0]
        self.patch(self.client, "bootTime", lambda: self.fake.clock.seconds() + step[0])
        held = self.held()
        self.fake.advance(2)
        self.fake.pause()
        self.fake.advance(2.5)
        step[0] = 20.0
        self.fake.resume()
        self.fake.flush()
        self.assertTrue(self.shown())
        self.assertFalse(held.isValid)

    def test_isLostWhenItIsEndedByForce(self) -> None:
        """A lock that is ended by force is lost with the next heartbeat."""
        held = self.held()
        lost = held.lost
        self.result(self.other._client.locks.forceRelease(NAME))
        self.fake.advance(5)
        self.assertIn("does not exist", self.successResultOf(lost))
        self.assertFalse(held.isValid)

    def test_isLostWithTheDataOfTheRegistry(self) -> None:
        """A registry that has lost its data has no locks; one that was restarted has."""
        held = self.held()
        self.fake.restart()
        self.fake.advance(20)
        self.assertTrue(held.isValid)
        self.fake.restart(keepData=False)
        self.fake.advance(5)
        self.assertFalse(held.isValid)

    def test_isFreeAfterALoss(self) -> None:
        """A lock that was lost stays held until its holder has released it, or its timeout is over."""
        held = self.held()
        self.fake.partition()
        self.fake.advance(9.2)
        self.fake.heal()
        self.assertFalse(held.isValid)
        self.assertEqual(self.shown()["fence"], held.fence)
        self.failure(self.other.acquire(0), LockHeld)
        self.result(held.release())
        self.assertTrue(self.held(self.other).isValid)

    def test_aLostResponseIsRepeated(self) -> None:
        """When the response to an acquisition is lost, the repetition gets the same lock."""
        self.fake.loseNext(1)
        waiting = self.lock.acquire()
        self.fake.advance(0)
        self.fake.loseNext(1)
        self.fake.advance(5)
        held = self.successResultOf(waiting)
        nonces = {json.loads(each.body)["nonce"] for each in self.fake.requests if each.path.endswith("/locks")}
        self.assertEqual(len(nonces), 1)
        self.assertTrue(held.isValid)

    def test_aLostAcquisitionBeforeALimit(self) -> None:
        """If a response was lost, and a proxy rejected the repetition, no lock is left over."""
        self.result(self.held().release())
        self.fake.loseNext(1)
        self.fake.answerNext(429, b"<html>", count=2)
        waiting = self.lock.acquire(0.01)
        self.fake.advance(1)
        self.assertEqual(self.failureResultOf(waiting, ForeignResponse).value.status, 429)
        self.fake.advance(1)
        self.assertTrue(self.held(self.other).isValid)

    def test_waitsForARegistryThatIsDown(self) -> None:
        """While the registry is down an acquisition goes on, and with a time limit it fails in the end."""
        self.fake.stop()
        waiting, limited = self.lock.acquire(), self.other.acquire(20)
        self.fake.advance(21)
        self.failureResultOf(limited, ConnectionFailed)
        self.fake.start()
        self.fake.advance(6)
        self.assertTrue(self.successResultOf(waiting).isValid)

    def test_waitsAsLongAsTheRegistrySays(self) -> None:
        """A registry that gives no locks for a while says how long, and is asked then; at least every five seconds."""
        asked: list[float] = []

        def when(request: Any) -> bool:
            isLock = "/locks" in request.path
            asked.extend([self.fake.clock.seconds()] if isLock else [])
            return isLock

        for told, seconds in (("2", 2.0), ("120", 5.0), ("0.001", 0.2)):
            asked.clear()
            self.fake.answerNext(503, headers={"Retry-After": told}, count=None, when=when)
            waiting = self.lock.acquire()
            self.fake.advance(22)
            self.fake.answerNormally()
            self.fake.advance(5.1)
            self.result(self.successResultOf(waiting).release())
            pauses = {round(after - before, 1) for before, after in pairwise(asked)}
            self.assertEqual(pauses, {seconds}, told)

    def test_aSingleTryFailsAtOnce(self) -> None:
        """A single try of a registry that is unavailable fails with its error."""
        self.fake.failNext(503, count=2)
        self.failure(self.lock.acquire(0), ServerError)

    def test_refusesBadInput(self) -> None:
        """A timeout or a name that is not valid is refused, without a retry."""
        self.assertRaises(ValueError, Lock, self.client, NAME, 2)
        wrong = self.assertRaises(ValueError, Lock, self.client, NAME, 121)
        self.assertRegex(str(wrong), "^timeout is 121, but ")
        error = self.failure(Lock(self.client, "/a").acquire(), BadRequest)
        self.assertIn("name", str(error))
        self.failureResultOf(self.lock.acquire(-1), ValueError)

    def test_cancel(self) -> None:
        """A cancelled acquisition leaves no lock behind, whether or not it was granted at that moment."""
        held = self.held()
        waiting = self.other.acquire()
        self.fake.advance(1)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.result(held.release())
        held = self.held()
        waiting = self.other.acquire()
        self.fake.advance(0)
        held.release()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.fake.advance(1)
        self.assertTrue(self.held().isValid)

    def test_blocks(self) -> None:
        """``async with`` holds the lock within its block, and the blocks of one Lock come one after the other."""
        inside: list[Held] = []
        leave: list[Deferred[None]] = [Deferred(), Deferred()]

        async def block(number: int) -> None:
            async with self.lock as held:
                inside.append(held)
                await leave[number]

        first, second = (Deferred.fromCoroutine(block(number)) for number in (0, 1))
        self.fake.advance(30)
        self.assertEqual([held.isValid for held in inside], [True])
        leave[0].callback(None)
        self.result(first)
        self.assertEqual([held.isValid for held in inside], [False, True])
        leave[1].errback(RuntimeError())
        self.failure(second, RuntimeError)
        self.assertEqual([held.isValid for held in inside], [False, False])

    def test_isLostWhenTheClientIsClosed(self) -> None:
        """Closing the client ends what it holds at once."""
        held = self.held()
        lost = held.lost
        self.client.close()
        self.fake.advance(0)
        self.assertEqual(self.successResultOf(lost), "the client was closed")
        self.assertFalse(held.isValid)

    def test_manyShareTheirHeartbeats(self) -> None:
        """The heartbeats of many locks, and those of services, travel in the same few requests."""
        heldOnes = [self.held(Lock(self.client, f"/many/lock-{n}", 30)) for n in range(50)]
        _, heartBeater = self.result(self.client.services.create("web1", 30))
        heartBeater.start()
        del self.fake.requests[:]
        self.fake.advance(120)
        self.assertTrue(all(held.isValid for held in heldOnes) and heartBeater.healthy)
        self.assertEqual({request.path.rpartition("/")[2] for request in self.fake.requests}, {"heartbeats"})
        self.assertLess(len(self.fake.requests), 40)
        self.assertTrue(any(b'"lock"' in each.body and b'"web1"' in each.body for each in self.fake.requests))
        heartBeater.stop()

    def test_fewRequestsPerHandover(self) -> None:
        """A hundred contenders need at most four requests for each hand-over, and each of them has its turn."""
        del self.fake.requests[:]
        turns: dict[int, int] = {}

        async def contend(number: int) -> None:
            lock = Lock(self.newClient() if number % 10 == 0 else self.client, NAME, 10)
            for _ in range(3):
                async with lock as held:
                    assert held.isValid
                    turns[number] = turns.get(number, 0) + 1

        contending = [Deferred.fromCoroutine(contend(number)) for number in range(100)]
        self.fake.advance(1)
        for each in contending:
            self.successResultOf(each)
        self.assertEqual(turns, dict.fromkeys(range(100), 3))
        self.assertLessEqual(sum("/locks" in each.path for each in self.fake.requests), 4 * 300)
