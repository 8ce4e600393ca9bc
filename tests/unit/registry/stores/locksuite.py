"""
The tests of locks that every store passes: a part of the suite of stores.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from txserviceregistry.registry.model import NewLock
from txserviceregistry.registry.stores.interfaces import LimitExceeded, LockRecord, LockTaken, NoSuchObject

NAME = "/billing/scheduler"


class LockSuite:
    """Mixed into the suite of stores."""

    store: Any
    now: float

    async def acquire(self, name: str = NAME, tenant: str = "1", maximum: int = 1000, **more: Any) -> LockRecord:
        now = int(self.now * 1000)
        fence = more.pop("fence", now)
        lock = NewLock(name, more.pop("timeout", 15), **more)
        return await self.store.acquireLock(tenant, lock, maximum, now, fence)

    async def names(self, marker: str | None = None, count: int = 100, hidden: Any = (), tenant: str = "1") -> Any:
        return [one.name for one in await self.store.listLocks(tenant, marker, count, hidden)]

    async def lockFeed(self) -> list[tuple[str, Any, Any]]:
        """The events of locks: types, names, and whether a lock ended by force."""
        return [
            (event.type, event.payload["name"], event.payload.get("forced"))
            for event in await self.store.listEvents("1", 0, 1000, None)
            if event.type.startswith("lock.")
        ]

    async def lockRaises(self, kind: type[Exception], operation: Awaitable[Any]) -> Any:
        try:
            result = await operation
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was expected, but it returned {result!r}")

    async def test_lockIsKept(self):
        """A lock that was acquired is there as it was acquired, and its event has what clients see of it."""
        nonce = "b3b7a8f4-6d5e-4a8f-9d66-7b6a5a3e2f10"
        lock = await self.acquire(holder="höst/1 €", nonce=nonce, metadata={"zone": "é"})
        self.assertEqual(await self.store.getLock("1", NAME), lock)
        self.assertEqual((lock.timeout, lock.holder, lock.nonce, lock.isForced), (15, "höst/1 €", nonce, False))
        self.assertEqual((lock.metadata, lock.acquired, lock.fence), ({"zone": "é"}, *[int(self.now * 1000)] * 2))
        (event,) = [each for each in await self.store.listEvents("1", 0, 9, None) if each.type == "lock.acquire"]
        self.assertEqual(event.id, lock.incarnation)
        self.assertEqual(dict(event.payload), lock.shown())

    async def test_lockIsTaken(self):
        """A name that is taken is refused with the record of its lock, before the limit is looked at."""
        lock = await self.acquire()
        error = await self.lockRaises(LockTaken, self.acquire(maximum=1, holder="other"))
        self.assertEqual(error.record, lock)
        await self.lockRaises(LimitExceeded, self.acquire("/billing/other", maximum=1))
        await self.acquire(tenant="2", maximum=1)
        self.assertEqual(await self.lockFeed(), [("lock.acquire", NAME, None)])

    async def test_fencesGrow(self):
        """Each fence of a tenant exceeds those before, also of other names and after a step back of the clock."""
        first = await self.acquire()
        second = await self.acquire("/other/name")
        self.now -= 3600
        third = await self.acquire("/third/name")
        self.assertEqual((second.fence, third.fence), (first.fence + 1, first.fence + 2))
        await self.store.releaseLock("1", NAME, first.incarnation, False)
        self.assertEqual((await self.acquire()).fence, first.fence + 3)
        self.assertEqual((await self.acquire("/fourth/name", fence=10**15)).fence, 10**15)
        self.assertEqual((await self.acquire("/fifth/name")).fence, 10**15 + 1)
        self.assertEqual((await self.acquire(tenant="2", fence=7)).fence, 7)

    async def test_release(self):
        """A lock that is released is gone, with an event; another incarnation of it is not touched."""
        first = await self.acquire()
        await self.store.releaseLock("1", NAME, first.incarnation, False)
        await self.lockRaises(NoSuchObject, self.store.getLock("1", NAME))
        await self.lockRaises(NoSuchObject, self.store.releaseLock("1", NAME, first.incarnation, False))
        second = await self.acquire(maximum=1)
        await self.lockRaises(NoSuchObject, self.store.releaseLock("1", NAME, first.incarnation, False))
        await self.lockRaises(NoSuchObject, self.store.forceLock("1", NAME, first.incarnation))
        await self.store.releaseLock("1", NAME, second.incarnation, True)
        self.assertEqual(
            await self.lockFeed(),
            [
                ("lock.acquire", NAME, None),
                ("lock.release", NAME, False),
                ("lock.acquire", NAME, None),
                ("lock.release", NAME, True),
            ],
        )

    async def test_force(self):
        """A lock that is ended by force stays, and is marked."""
        lock = await self.acquire(nonce="b3b7a8f4-6d5e-4a8f-9d66-7b6a5a3e2f10")
        forced = await self.store.forceLock("1", NAME, lock.incarnation)
        self.assertEqual(await self.store.getLock("1", NAME), forced)
        self.assertTrue(forced.isForced)
        self.assertEqual((forced.fence, forced.nonce), (lock.fence, lock.nonce))

    async def test_listsLocks(self):
        """Locks are listed by name, from a marker on, without those that are hidden; other tenants see none."""
        locks = [await self.acquire(name) for name in ("/b/two", "/b/one", "simple", "/a/three")]
        self.assertEqual(await self.names(), ["/a/three", "/b/one", "/b/two", "simple"])
        self.assertEqual(await self.names("/b/one", 2), ["/b/one", "/b/two"])
        self.assertEqual(await self.names("/b/oneX"), ["/b/two", "simple"])
        self.assertEqual(await self.names(count=2, hidden={locks[1].incarnation}), ["/a/three", "/b/two"])
        self.assertEqual(await self.names(tenant="2"), [])
