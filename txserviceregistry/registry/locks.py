"""The rules of locks. To the engine a lock that is held is a registration in the scope of its tenant's locks."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from .engine import Engine
from .expiry import REFUSED, ServiceState
from .faults import Fault, limitReached, notFound, systemFailure
from .feed import TOO_MANY_WAIT
from .limits import Places
from .model import NewLock, Page, isLockScope, lockScope, tenantOf
from .stores.interfaces import LimitExceeded, LockRecord, LockTaken, NoSuchObject
from .tasks import Part, available, owned, serialized


@attrs.define(eq=False, repr=False)
class _Waiter:
    """A request that waits for a lock; it is replaced if the same acquisition waits in a later request."""

    nonce: str | None
    isReplaced: bool = False
    hasPlace: bool = False
    change: Deferred[bool] = attrs.Factory(Deferred)

    def wake(self) -> None:
        if not self.change.called:
            self.change.callback(True)


@attrs.define(eq=False)
class _Queue:
    """The requests that wait for one lock, in their order; *isDue* if it may be free, as far as is known."""

    waiters: list[_Waiter] = attrs.Factory(list)
    isDue: bool = True

    def enter(self, nonce: str | None) -> _Waiter:
        """Add one; a request that repeats an acquisition takes the place of the one that it repeats."""
        waiter = _Waiter(nonce)
        for number, earlier in enumerate(self.waiters):
            if nonce is not None and earlier.nonce == nonce:
                self.waiters[number] = waiter
                earlier.isReplaced = True
                earlier.wake()
                return waiter
        self.waiters.append(waiter)
        return waiter

    def proceed(self, *, isDue: bool = False) -> None:
        self.isDue = self.isDue or isDue
        if self.isDue and self.waiters:
            self.waiters[0].wake()


@attrs.define(eq=False, slots=False)
class Locks(Part):
    """The locks of all tenants; each may have a *maximum*. They are *heldBack* for some seconds after the start."""

    _engine: Engine
    _places: Places
    _maximum: int
    _fenceFrom: int
    _heldBack: float
    acquisitions: int = attrs.field(init=False, default=0)
    # By tenant and name.
    _queues: dict[tuple[str, str], _Queue] = attrs.field(init=False, factory=dict)
    _isEnded: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._engine.onForgotten = self._forgotten
        self._engine.onSynchronized = self._lookAgain
        self._heldBackUntil = self._clock.seconds() + self._heldBack

    async def acquire(
        self, tenant: str, lock: NewLock, wait: float = 0.0, check: Callable[[], Awaitable[None]] | None = None
    ) -> dict[str, Any]:
        """
        Acquire a lock, after *wait* seconds at most, in the order of the requests; with the nonce of the present
        holder, it is a heartbeat. Returns token and fence. *check* raises a fault if the user may not acquire it now.
        """
        left = self._heldBackUntil - self._clock.seconds()
        if left > 0:
            raise systemFailure(f"Locks are held back for {left:.0f} s after the start", math.ceil(left))
        if not wait:
            return await self._try(tenant, lock)
        latest = self._clock.seconds() + wait
        key = tenant, lock.name
        queue = self._queues.setdefault(key, _Queue())
        waiter = queue.enter(lock.nonce)
        try:
            if queue.waiters[0] is not waiter and await self._isHeldBy(tenant, lock):
                return await self._try(tenant, lock)
            while True:
                isNext = await self._waitForTurn(tenant, queue, waiter, latest)
                if check is not None:
                    await check()
                queue.isDue = queue.isDue and not isNext
                try:
                    return await self._try(tenant, lock)
                except BaseException as error:
                    isHeld = isinstance(error, Fault) and error.type == "lockHeld"
                    # If that is not known, it is for the next one to find out.
                    queue.isDue = queue.isDue or not isHeld
                    if not (isHeld and isNext):
                        raise
        finally:
            if waiter.hasPlace:
                self._places.give(tenant)
            if not waiter.isReplaced:
                queue.waiters.remove(waiter)
            # A request that was replaced may have made the acquisition that the later one waits for.
            queue.proceed(isDue=waiter.isReplaced)
            if not queue.waiters and self._queues.get(key) is queue:
                del self._queues[key]

    async def _waitForTurn(self, tenant: str, queue: _Queue, waiter: _Waiter, latest: float) -> bool:
        """Returns whether it is the waiter's turn; ``False`` if its time is over, or it was replaced."""
        while not (queue.isDue and queue.waiters[:1] == [waiter]):
            if waiter.isReplaced:
                return False
            if self._isEnded:
                raise systemFailure("The registry is stopping")
            if not waiter.hasPlace:
                self._places.take(tenant, TOO_MANY_WAIT)
                waiter.hasPlace = True
            waiter.change = Deferred()
            left = max(0.0, latest - self._clock.seconds())
            if not await waiter.change.addTimeout(left, self._clock, lambda *_: False):
                return False
        return True

    async def _isHeldBy(self, tenant: str, lock: NewLock) -> bool:
        """Whether this very acquisition was successful before."""
        try:
            record = await available(self._store.getLock(tenant, lock.name))
        except NoSuchObject:
            return False
        return lock.nonce is not None and bool(record.nonce == lock.nonce)

    def _forgotten(self, state: ServiceState) -> None:
        queue = self._queues.get((tenantOf(state.tenant), state.id))
        if queue is not None and isLockScope(state.tenant):
            queue.proceed(isDue=True)

    def _lookAgain(self) -> None:
        # One may have been acquired and released since the last change that was noticed.
        for queue in list(self._queues.values()):
            queue.proceed(isDue=True)

    def endWaiting(self) -> None:
        self._isEnded = True
        for queue in list(self._queues.values()):
            for waiter in list(queue.waiters):
                waiter.wake()

    @serialized(lambda tenant, lock: (lockScope(tenant), lock.name))
    async def _try(self, tenant: str, lock: NewLock) -> dict[str, Any]:
        scope = lockScope(tenant)

        def acquire() -> Any:
            # Each time anew: the one before may have waited until an earlier acquisition expired.
            now = int(self._wallClock() * 1000)
            return self._store.acquireLock(tenant, lock, self._maximum, now, max(now, self._fenceFrom))

        while True:
            try:
                record = await self._engine.create(scope, lock.name, acquire)
            except LimitExceeded:
                raise limitReached("lock", self._maximum)
            except LockTaken as taken:
                record = taken.record
                if lock.nonce is None or record.nonce != lock.nonce or record.isForced:
                    raise self._held(tenant, record)
                # The response to the first request was lost.
                self._engine.track(record.summary(tenant))
                try:
                    await self._engine.heartbeat(scope, lock.name, self._token(scope, record))
                except Fault as fault:
                    if fault.code != 404:
                        raise
                    continue  # it has just expired
            else:
                self.acquisitions += 1
            return {"token": self._token(scope, record), "fence": record.fence}

    def _token(self, scope: str, record: LockRecord) -> str:
        return self._engine.tokens.initial(scope, record.name, record.incarnation)

    def _held(self, tenant: str, record: LockRecord) -> Fault:
        state = self._engine.find(lockScope(tenant), record.name, record.incarnation)
        left = record.timeout if state is None else max(0.0, state.deadline - self._engine.now())
        details = f"Lock {record.name} is held" + (f" by {record.holder}" if record.holder else "")
        lock = {"name": record.name, "holder": record.holder, "fence": record.fence, "seconds_left": round(left, 3)}
        return Fault("lockHeld", "Lock is held", details, more={"lock": lock})

    @serialized(lambda tenant, name, *_, **__: (lockScope(tenant), name))
    async def release(self, tenant: str, name: str, token: str | None, isNow: bool = False) -> None:
        """
        Release a lock. Without a token it ends by force: heartbeats are refused, and it is free when the timeout has
        passed, or at once if *isNow*.
        """
        scope = lockScope(tenant)
        state = await self._engine.stateOf(scope, name)
        if token is None and not isNow:
            await self._engine.applied(state, self._store.forceLock(tenant, name, state.incarnation), None)
            state.proof = REFUSED
            return
        tokens = self._engine.tokens
        if token is not None and tokens.following()(tokens.proof(*state.name), token) is None:
            raise notFound("HeartbeatMarker", token)
        releasing = self._store.releaseLock(tenant, name, state.incarnation, token is None)
        await self._engine.applied(state, releasing, "lock.release", isEnd=True)

    @owned
    async def list(self, tenant: str, marker: str | None, limit: int, name: str | None) -> Page:
        start, count = (marker, limit + 1) if name is None else (max(name, marker or ""), 1)
        hidden = self._engine.hidden(lockScope(tenant))
        records = await available(self._store.listLocks(tenant, start, count, hidden))
        return Page.of([record.shown() for record in records if name in (None, record.name)], limit, "name")
