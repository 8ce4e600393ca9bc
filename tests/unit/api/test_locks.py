"""
Tests for :mod:`txserviceregistry.api.groups`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.shapes import readAcquiredLock, readHolder, readLock
from txserviceregistry.errors import BadRequest, Forbidden, LockHeld, NotFound, NotSupported, apiErrorFor
from txserviceregistry.testing import FakeRegistry

from .test_groups import GroupTestCase, answer

NAME = "/billing/scheduler"
NONCE = "8ee6ee28-5b6a-4a3a-a2dd-3a9a1a6d7a3b"


class LocksTests(SynchronousTestCase):
    """Locks of a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.locks = self.client.locks

    def result(self, deferred: Deferred[Any]) -> Any:
        self.fake.flush()
        return self.successResultOf(deferred)

    def failure(self, deferred: Deferred[Any], kind: type[Exception]) -> Exception:
        self.fake.flush()
        error = self.failureResultOf(deferred, kind).value
        assert isinstance(error, Exception)
        return error

    def acquire(self, **options: Any) -> Any:
        return self.result(self.locks.acquire(NAME, **options))

    def test_life(self) -> None:
        """A lock is acquired, shown, kept and released."""
        lock = self.acquire(timeout=10, holder="host1", metadata={"zone": "b"})
        shown = self.result(self.locks.get(NAME))
        self.assertEqual(
            shown,
            {
                "name": NAME,
                "holder": "host1",
                "fence": lock["fence"],
                "timeout": 10,
                "acquired_at": 1_767_225_600_000,
                "metadata": {"zone": "b"},
            },
        )
        self.fake.advance(9)
        token = self.result(self.locks.heartbeat(NAME, lock["token"]))
        self.fake.advance(9)
        self.assertEqual(self.result(self.locks.list())["values"], [shown])
        self.assertIs(self.result(self.locks.release(NAME, token["token"])), True)
        self.assertEqual(self.result(self.locks.list())["values"], [])
        self.failure(self.locks.get(NAME), NotFound)
        self.failure(self.locks.release(NAME, lock["token"]), NotFound)

    def test_names(self) -> None:
        """An invalid lock name fails before a request is sent, and the error states the rule."""
        for name in ("db/host", "/billing/", "", None):
            error = self.failure(self.locks.acquire(name), BadRequest)  # type: ignore[arg-type]  # bad input
            self.assertIn("'name'", str(error))
            self.assertIn("3 to 170 characters of a-z A-Z 0-9", str(error))
        self.assertEqual(self.fake.requests, [])

    def test_held(self) -> None:
        """The error of a lock that another holds says who does, and for how long."""
        lock = self.acquire(timeout=10, holder="host1")
        self.fake.advance(4)
        error = self.failure(self.locks.acquire(NAME), LockHeld)
        assert isinstance(error, LockHeld)
        self.assertEqual((error.holder, error.fence, error.secondsLeft), ("host1", lock["fence"], 6))
        self.assertIn("is held by host1", str(error))

    def test_waits(self) -> None:
        """A request may wait longer than others, and has the lock as soon as it is released."""
        lock = self.acquire(timeout=120)
        waiting = self.locks.acquire(NAME, wait=60)
        self.fake.advance(59)
        self.assertNoResult(waiting)
        self.result(self.locks.release(NAME, lock["token"]))
        self.fake.advance(0.25)
        self.assertGreater(self.successResultOf(waiting)["fence"], lock["fence"])

    def test_nonce(self) -> None:
        """A call that is repeated with its nonce has the same result, and others have nonces of their own."""
        first = self.acquire(nonce=NONCE)
        self.assertEqual(self.acquire(nonce=NONCE), first)
        self.failure(self.locks.acquire(NAME), LockHeld)

    def test_force(self) -> None:
        """Another's lock can be ended, at once or when its timeout has passed."""
        lock = self.acquire(timeout=10)
        self.result(self.locks.forceRelease(NAME))
        self.failure(self.locks.heartbeat(NAME, lock["token"]), NotFound)
        self.failure(self.locks.acquire(NAME), LockHeld)
        self.result(self.locks.forceRelease(NAME, now=True))
        self.acquire()

    def test_iterates(self) -> None:
        """All locks, page by page."""
        names = [f"/many/lock{number:03}" for number in range(150)]
        for name in names:
            self.result(self.locks.acquire(name))

        async def collect() -> list[str]:
            return [lock["name"] async for lock in self.locks.iterate()]

        self.assertEqual(self.result(Deferred.fromCoroutine(collect())), names)

    def test_closedConnections(self) -> None:
        """Cancelling a call that waits ends the waiting at the registry, too."""
        lock = self.acquire(timeout=120)
        waiting = self.locks.acquire(NAME, wait=60)
        self.fake.flush()
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        self.fake.flush()
        self.result(self.locks.release(NAME, lock["token"]))
        self.assertEqual(self.result(self.locks.list())["values"], [])


class ShapesTests(GroupTestCase):
    """The responses of a registry."""

    def test_notSupported(self) -> None:
        """A registry without locks is said to have none, and no lock is asked for."""
        client = self.client(lambda sent: answer(200, {"resource": {}, "rate": {}}))
        for call in (
            client.locks.acquire(NAME),
            client.locks.list(),
            client.locks.get(NAME),
            client.locks.forceRelease(NAME),
        ):
            self.assertEqual(self.failureResultOf(call, NotSupported).value.extension, "locks")
        self.assertEqual(set(self.asked), {"GET /limits"})

    def test_errors(self) -> None:
        """The fault has an error of its own."""
        self.assertIs(apiErrorFor(409, "lockHeld"), LockHeld)
        self.assertIs(apiErrorFor(403, "forbiddenError"), Forbidden)

    def test_malformed(self) -> None:
        """An invalid lock or acquisition is refused, and the error names the wrong member."""
        good = {"name": NAME, "holder": "", "fence": 1, "timeout": 15, "acquired_at": 1, "metadata": {}}
        self.assertEqual(readLock(dict(good)), good)
        for name, bad in (
            ("name", 5),
            ("holder", None),
            ("fence", "1"),
            ("timeout", 0),
            ("acquired_at", -1),
            ("metadata", []),
        ):
            with self.assertRaisesRegex(ValueError, name):
                readLock({**good, name: bad})
        for value in ({}, {"token": "x"}, {"token": "", "fence": 1}, {"token": "x", "fence": True}):
            with self.assertRaises(ValueError):
                readAcquiredLock(value)
        for held in (None, [], {}, {"holder": 5, "fence": True, "seconds_left": -1}):
            self.assertEqual(readHolder(held), ("", None, None))
