"""Expirations on their way to the store, and a warning when there are unusually many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import ClassVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ...util.deferred import Waiters
from ...util.logs import Logger, Outage
from ..faults import Fault, systemFailure
from ..scopes import isLockScope, tenantOf
from ..servicelog import ServiceLog
from ..stores.interfaces import Expiration
from ..tasks import TaskOwner


@attrs.define(eq=False, slots=False)
class ExpirationQueue:
    """
    Brings expirations to the store in the order in which they were found, in groups, each in a turn of the reactor of
    its own. Expirations that could not be persisted stay first in the queue until :meth:`work` is called again.

    :param isPending: whether an expiration still has to be persisted.
    :param onPersisted: is called with the number of services among the persisted expirations when the queue is empty.
    """

    #: How many are persisted together: enough to share a commit, and few enough for one turn of the reactor.
    GROUP: ClassVar = 500

    _log = Logger()

    _persist: Callable[[Sequence[Expiration]], Deferred[None]]
    _isPending: Callable[[Expiration], bool]
    _clock: IReactorTime
    _tasks: TaskOwner
    _onPersisted: Callable[[int], None]
    _queue: deque[Expiration] = attrs.field(init=False, factory=deque)
    _isBusy: bool = attrs.field(init=False, default=False)
    _turn: Deferred[object] = attrs.field(init=False, factory=lambda: succeed(None))
    _waiters: Waiters[None] = attrs.field(init=False, factory=Waiters)
    _persisted: int = attrs.field(init=False, default=0)
    _isStopped: bool = attrs.field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        # Services that lose their network expire one by one, over the length of a timeout.
        self._services = ServiceLog(self._clock, "Services expired")
        self._locks = ServiceLog(self._clock, "Locks expired")
        self._outage = Outage(self._log, self._clock, "Cannot persist expirations ({count} pending); retrying")

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, expirations: Sequence[Expiration]) -> None:
        """Queue some expirations; :meth:`work` begins with them."""
        self._queue.extend(expirations)

    def work(self) -> None:
        """Persist until the queue is empty or the store fails, unless that is under way."""
        if self._queue and not (self._isBusy or self._isStopped):
            self._isBusy = True
            self._tasks.start(self._persistAll())

    def nextGroup(self) -> Deferred[None]:
        """Begin to persist. Fires or fails when the next group has been tried; fires at once if nothing is pending."""
        if self._isStopped:
            return fail(_stopping())
        if not self._queue:
            return succeed(None)
        waiter = self._waiters.wait()
        self.work()
        return waiter

    def stop(self) -> None:
        """Begin nothing new. Running tasks belong to the :class:`TaskOwner`; waiting ones fail."""
        self._isStopped = True
        self._turn.cancel()
        self._services.stop()
        self._locks.stop()
        self._waiters.fire(Failure(_stopping()))

    async def _persistAll(self) -> None:
        try:
            while self._queue and not self._isStopped:
                await self._persistGroup()
                if self._queue and not self._isStopped:
                    # stop() cancels it, which is not a failure.
                    self._turn = deferLater(self._clock, 0).addErrback(lambda _: None)
                    await self._turn
        except Exception:
            failure = Failure()
            self._outage.failed(None if failure.check(Fault) else failure, count=len(self._queue))
            self._waiters.fire(failure)
        finally:
            self._isBusy = False

    async def _persistGroup(self) -> None:
        group = list(islice(self._queue, self.GROUP))
        pending = [expiration for expiration in group if self._isPending(expiration)]
        if pending:
            await self._persist(pending)
        for _ in group:
            self._queue.popleft()
        self.report(pending)
        self._waiters.fire(None)

    def report(self, expirations: Sequence[Expiration]) -> None:
        """Log expirations that are persisted."""
        self._outage.succeeded()
        for expiration in expirations:
            isLock = isLockScope(expiration.tenant)
            self._persisted += not isLock
            (self._locks if isLock else self._services).add(tenantOf(expiration.tenant), expiration.id)
        if not self._queue:
            for log in (self._services, self._locks):
                log.stop() if self._isStopped else log.flush()
            persisted, self._persisted = self._persisted, 0
            if persisted:
                self._onPersisted(persisted)


def _stopping() -> Fault:
    return systemFailure("The registry is stopping")


@attrs.define(eq=False, slots=False)
class MassExpiryWarning:
    """
    Warns when unusually many services expire, which rarely means that so many have stopped.

    When a network is cut, the services behind it do not expire together but each at its own deadline, over the length
    of their timeouts; so what counts is their number within a minute.

    :param clock: the reactor.
    :param population: how many services are left.
    """

    #: Seconds that are looked at together.
    WINDOW: ClassVar = 60.0
    #: How many services have to expire, and which part of all, before there is a warning.
    FEWEST: ClassVar = 20
    SHARE: ClassVar = 0.1

    _log = Logger()

    _clock: IReactorTime
    _population: Callable[[], int]
    _began: float | None = attrs.field(init=False, default=None)
    _count: int = attrs.field(init=False, default=0)

    def add(self, count: int) -> None:
        """Note that so many services have just expired."""
        now = self._clock.seconds()
        if self._began is None or now - self._began >= self.WINDOW:
            self._began = now
            self._count = 0
            self._before = self._population() + count
            # The number at which the next warning is due.
            self._threshold = max(self.FEWEST, self.SHARE * self._before)
        self._count += count
        if self._count >= self._threshold:
            # Some of them may have been registered since.
            self._before = max(self._before, self._population() + self._count)
            self._threshold = 2 * self._count
            self._log.warn(
                "{count} of {before} services expired within {seconds:.0f} s; "
                "check the network between them and this registry, and their machines",
                count=self._count,
                before=self._before,
                seconds=max(now - self._began, 1.0),
            )
