"""
The rules of locks: who holds one, who waits for it, and when it is free again.

To the engine a lock is a registration in the scope of its tenant's locks, which lasts as long as it is held.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime

from .engine import Engine
from .expiry.deadlines import ServiceState
from .faults import Fault, limitReached, lockHeld, notFound, systemFailure
from .limits import ResourceLimits
from .model import Page
from .places import Places
from .scopes import isLockScope, lockScope, tenantOf
from .stores.interfaces import LimitExceeded, NoSuchObject
from .stores.locks import ILockStore, LockRecord, LockTaken, NewLock
from .subscribers import Subscribers
from .tasks import available, owned


@attrs.frozen
class LockOptions:
    """
    What an operator says after the restore of a backup.

    :ivar fenceFrom: the least fence of a lock that is acquired.
    :ivar heldBack: seconds after the start in which no lock can be acquired.
    """

    fenceFrom: int = 0
    heldBack: float = 0.0

    def heldBackFor(self, seconds: float) -> LockOptions:
        """The same, with at least so many seconds in which no lock can be acquired."""
        return LockOptions(self.fenceFrom, max(self.heldBack, seconds))


@attrs.define(eq=False)
class _Waiter:
    """
    A request that waits for a lock.

    :ivar nonce: of its acquisition.
    :ivar isDue: whether the lock may be free, as far as is known.
    :ivar isReplaced: whether the same acquisition waits in a later request.
    :ivar hasPlace: whether it has one of the places for requests that wait.
    :ivar change: what it waits for now.
    """

    nonce: str | None
    isDue: bool
    isReplaced: bool = False
    hasPlace: bool = False
    change: Deferred[None] = attrs.Factory(Deferred)

    def wake(self) -> None:
        """Let it look again."""
        if not self.change.called:
            self.change.callback(None)


async def _doNothing() -> None:
    pass


class Locks:
    """
    The locks of all tenants.

    :param store: keeps them.
    :param engine: their deadlines and heartbeats.
    :param places: for requests that wait.
    :param limits: how many locks an account may have.
    :ivar acquisitions: how many were acquired.
    """

    def __init__(
        self,
        store: ILockStore,
        engine: Engine,
        places: Places,
        *,
        clock: IReactorTime,
        wallClock: Callable[[], float],
        limits: ResourceLimits,
        options: LockOptions,
    ) -> None:
        self.acquisitions = 0
        self._store = store
        self._engine = engine
        self._tasks = engine.tasks
        self._live = engine.live
        self._deadlines = engine.live.deadlines
        self._deadlines.onForgotten = self._forgotten
        self._places = places
        self._clock = clock
        self._wallClock = wallClock
        self._maximum = limits.lock
        self._options = options
        self._heldBackUntil = clock.seconds() + options.heldBack
        # By tenant and name, those who wait: the first one comes next.
        self._waiting: dict[tuple[str, str], list[_Waiter]] = {}
        self._isEnded = False

    # -- acquiring

    async def acquire(
        self, tenant: str, lock: NewLock, wait: float = 0.0, check: Callable[[], Awaitable[None]] = _doNothing
    ) -> dict[str, Any]:
        """
        Acquire a lock. A coroutine; cancelling what awaits it ends the waiting only.

        Those who wait are served in the order in which they came. A request that repeats an acquisition takes the
        place of the one that it repeats.

        :param lock: with the nonce of the present holder, it is a heartbeat of it.
        :param wait: seconds to wait while another holds it.
        :param check: raises a fault if the one who waits may not acquire it any more.
        :return: token and fence. The deadline counts from now.
        :raises Fault: ``lockHeld`` if another holds it, ``limitReached`` if the account is full; 503 if there are too
            many that wait, or locks are held back.
        """
        left = self._heldBackUntil - self._clock.seconds()
        if left > 0:
            raise systemFailure(f"Locks are held back for {left:.0f} s after the start", math.ceil(left))
        if not wait:
            return await self._try(tenant, lock)
        latest = self._clock.seconds() + wait
        key = tenant, lock.name
        waiter, waiting = self._enter(key, lock)
        try:
            isRepeated = waiting[0] is not waiter and await self._isHeldBy(tenant, lock)
            isLast = False
            while True:
                isLast = isLast or waiter.isReplaced
                if isLast or isRepeated or (waiter.isDue and waiting[0] is waiter):
                    isRepeated = waiter.isDue = False
                    try:
                        return await self._try(tenant, lock)
                    except Fault as fault:
                        if isLast or fault.type != "lockHeld":
                            waiter.isDue = True
                            raise
                    except BaseException:
                        # Whether it is free is for the next one to find out.
                        waiter.isDue = True
                        raise
                if not waiter.isDue:
                    isLast = not await self._wait(tenant, waiter, latest)
                    await check()
        finally:
            self._leave(key, waiter)

    def _enter(self, key: tuple[str, str], lock: NewLock) -> tuple[_Waiter, list[_Waiter]]:
        waiting = self._waiting.setdefault(key, [])
        waiter = _Waiter(lock.nonce, isDue=not waiting)
        for number, earlier in enumerate(waiting):
            if lock.nonce is not None and earlier.nonce == lock.nonce:
                waiter.isDue = earlier.isDue
                waiting[number] = waiter
                earlier.isReplaced = True
                earlier.wake()
                break
        else:
            waiting.append(waiter)
        return waiter, waiting

    def _leave(self, key: tuple[str, str], waiter: _Waiter) -> None:
        if waiter.hasPlace:
            self._places.give(key[0])
        waiting = self._waiting.get(key, [])
        if waiter in waiting:
            waiting.remove(waiter)
        if not waiting:
            self._waiting.pop(key, None)
        elif waiter.isDue or waiter.isReplaced:
            self._letTry(*key)

    async def _wait(self, tenant: str, waiter: _Waiter, latest: float) -> bool:
        """Wait until it may be the waiter's turn; returns whether it has time left."""
        if self._isEnded:
            raise systemFailure("The registry is stopping")
        if not waiter.hasPlace and not self._places.take(tenant):
            details = "Too many requests are waiting; retry later, or without wait"
            raise systemFailure(details, Subscribers.RETRY_AFTER)
        waiter.hasPlace = True
        left = latest - self._clock.seconds()
        if left <= 0:
            return False
        waiter.change = Deferred()
        try:
            await waiter.change.addTimeout(left, self._clock)
        except TimeoutError:
            return False
        return True

    async def _isHeldBy(self, tenant: str, lock: NewLock) -> bool:
        """Whether this very acquisition was successful before."""
        try:
            record: LockRecord = await available(self._store.get(tenant, lock.name))
        except NoSuchObject:
            return False
        return lock.nonce is not None and record.nonce == lock.nonce

    def _letTry(self, tenant: str, name: str) -> None:
        """A lock may be free: let the first one try who waits for it."""
        waiting = self._waiting.get((tenant, name))
        if waiting:
            waiting[0].isDue = True
            waiting[0].wake()

    def _forgotten(self, state: ServiceState) -> None:
        if isLockScope(state.tenant):
            self._letTry(tenantOf(state.tenant), state.id)

    def endWaiting(self) -> None:
        """End all waiting, now and in the future, with the fault 503."""
        self._isEnded = True
        for waiting in list(self._waiting.values()):
            for waiter in list(waiting):
                waiter.wake()

    def _try(self, tenant: str, lock: NewLock) -> Deferred[dict[str, Any]]:
        """Acquire a lock without waiting."""
        return self._tasks.serialized((lockScope(tenant), lock.name), lambda: self._acquire(tenant, lock))

    async def _acquire(self, tenant: str, lock: NewLock) -> dict[str, Any]:
        scope = lockScope(tenant)
        while True:
            now = int(self._wallClock() * 1000)
            fence = max(now, self._options.fenceFrom)
            try:
                record = await self._engine.create(
                    scope, lock.name, partial(self._store.acquire, tenant, lock, self._maximum, now, fence)
                )
            except LimitExceeded:
                raise limitReached("lock", self._maximum)
            except LockTaken as taken:
                record = taken.record
                if lock.nonce is None or record.nonce != lock.nonce or record.isForced:
                    raise self._held(tenant, record)
                # The response to the first request was lost.
                self._live.track(record.summary(tenant))
                try:
                    await self._engine.heartbeat(scope, lock.name, self._token(scope, record))
                except Fault as fault:
                    if fault.code != 404:
                        raise
                    continue  # it has just expired
            else:
                self.acquisitions += 1
                self._live.track(record.summary(tenant))
            return {"token": self._token(scope, record), "fence": record.fence}

    def _token(self, scope: str, record: LockRecord) -> str:
        return self._engine.tokens.initial(scope, record.name, record.incarnation)

    def _held(self, tenant: str, record: LockRecord) -> Fault:
        state = self._deadlines.find(lockScope(tenant), record.name, record.incarnation)
        left = record.timeout if state is None else max(0.0, state.deadline - self._deadlines.now())
        return lockHeld(record.name, record.holder, record.fence, left)

    # -- releasing

    def release(self, tenant: str, name: str, token: str | None, isNow: bool = False) -> Deferred[None]:
        """
        Release a lock.

        :param token: any that was given out for this acquisition; ``None`` to end one by force. Then its heartbeats
            are refused, and it is free when its holder's timeout has passed.
        :param isNow: whether one that is ended by force is free at once.
        :raises Fault: 404 if it is not held, or the token is not its own.
        """
        return self._tasks.serialized((lockScope(tenant), name), lambda: self._release(tenant, name, token, isNow))

    async def _release(self, tenant: str, name: str, token: str | None, isNow: bool) -> None:
        scope = lockScope(tenant)
        state = await self._engine.stateOf(scope, name)
        if token is None and not isNow:
            record = await self._engine.applied(state, available(self._store.force(tenant, name, state.incarnation)))
            self._live.track(record.summary(tenant))
            return
        if token is not None and self._engine.tokens.next(scope, name, state.incarnation, token) is None:
            raise notFound("HeartbeatMarker", token)
        releasing = self._store.release(tenant, name, state.incarnation, token is None)
        await self._engine.applied(state, self._engine.changed((tenant,), releasing, "lock.release"))
        self._deadlines.forget(scope, name, state.incarnation)

    # -- reading

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, name: str | None) -> Page:
        """A page of locks by name, from *marker* on: all, or the one with this *name*."""
        hidden = self._live.hidden(lockScope(tenant))
        if name is None:
            records = await available(self._store.list(tenant, marker, limit + 1, hidden))
        else:
            try:
                records = [await available(self._store.get(tenant, name))]
            except NoSuchObject:
                records = []
            hidden = self._live.hidden(lockScope(tenant))
        shown = [record.shown() for record in records[:limit] if record.incarnation not in hidden]
        return Page(shown, records[limit].name if len(records) > limit else None)
