"""
The tests of locks that every shared store passes: a part of the suite of shared stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from txserviceregistry.registry.model import NewLock, lockScope
from txserviceregistry.registry.stores.interfaces import LockRecord, LockTaken, NoSuchObject

T = "1"
SCOPE = lockScope(T)
NAME = "/billing/scheduler"


class SharedLockSuite:
    """Mixed into the suite of shared stores."""

    a: Any
    b: Any
    listeners: list[Any]
    seconds: Callable[[], float]
    notifies: Callable[..., Any]
    refuses: Callable[..., Any]
    ticks: Callable[..., Any]

    async def acquireLock(self, store: Any, timeout: int = 30, fence: int = 1) -> LockRecord:
        return await store.acquireLock(T, NewLock(NAME, timeout, holder="me"), 10, 1, fence)

    async def lockTypes(self, store: Any) -> list[str]:
        return [each.type for each in await store.listEvents(T, 0, 100, None)]

    async def test_everyChangeOfALockIsAtOnceThereForAll(self) -> None:
        """A change that one has acknowledged, another one reads in the same moment; fences grow over all."""
        made = await self.acquireLock(self.a)
        assert await self.b.getLock(T, NAME) == made
        await self.refuses(LockTaken, self.acquireLock(self.b))
        await self.b.forceLock(T, NAME, made.incarnation)
        assert (await self.a.getLock(T, NAME)).isForced
        await self.b.releaseLock(T, NAME, made.incarnation, False)
        await self.refuses(NoSuchObject, self.a.getLock(T, NAME))
        assert (await self.acquireLock(self.b)).fence == made.fence + 1

    async def test_notifiesAllOfChangesOfLocks(self) -> None:
        """All are notified within moments of locks that are acquired, forced and released."""
        made = await self.acquireLock(self.a)
        for number in range(2):
            await self.notifies(number, "appeared", NAME, made.incarnation, 30)
            await self.notifies(number, "eventAdded", T, "lock.acquire")
        await self.b.forceLock(T, NAME, made.incarnation)
        for number in range(2):
            await self.notifies(number, "forced", NAME, made.incarnation)
        await self.b.releaseLock(T, NAME, made.incarnation, False)
        for number in range(2):
            await self.notifies(number, "vanished", NAME, made.incarnation)

    async def test_aLockExpiresOnce(self) -> None:
        """A lock without heartbeats expires for all, not early, and at most a second late; one event reports it."""
        made = await self.acquireLock(self.a, 3)
        await self.notifies(1, "appeared", NAME, made.incarnation, 3)
        began = self.seconds()
        await self.ticks(lambda: self.seconds() - began > 1)
        sent = self.seconds()
        self.listeners[1].heartbeat((SCOPE, made.incarnation))
        await self.ticks(lambda: any(("vanished", NAME, made.incarnation) in each.heard for each in self.listeners))
        assert 3 <= self.seconds() - sent < 4.5
        # Another registry's watch may show the end before the one that made it has its response.
        await self.ticks(lambda: any(("expired", made.incarnation) in each.heard for each in self.listeners))
        assert sum(("expired", made.incarnation) in each.heard for each in self.listeners) == 1
        assert await self.lockTypes(self.b) == ["lock.acquire", "lock.expire"]
        assert await self.b.listLocks(T, None, 10, ()) == []

    async def test_aTouchKeepsALock(self) -> None:
        """A heartbeat that arrives while a vote about a lock is under way is admitted, and the lock does not expire."""
        made = await self.acquireLock(self.a, 3)
        await self.notifies(1, "appeared", NAME, made.incarnation, 3)
        await self.ticks(lambda: made.incarnation in self.a.closed(SCOPE))
        admitted: list[bool] = []

        def answered(isThere: bool) -> None:
            admitted.append(isThere)
            if isThere:
                self.listeners[0].heartbeat((SCOPE, made.incarnation))

        self.a.admit(SCOPE, made.incarnation).addCallback(answered)
        await self.ticks(lambda: admitted)
        began = self.seconds()
        await self.ticks(lambda: self.seconds() - began > 1.5)
        types = await self.lockTypes(self.a)
        assert admitted == ["lock.expire" not in types], (admitted, types)
