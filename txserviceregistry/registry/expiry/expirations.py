"""
Burials: how the deaths that were found reach the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from ...util.logs import Logger
from ..faults import Fault, systemFailure
from ..servicelog import ServiceLog
from ..stores.interfaces import Expiration
from ..tasks import TaskOwner


class ExpirationQueue:
    """
    Brings deaths to the store in the order in which they were found, some at a time, each group in a turn of the
    reactor of its own. What could not be kept stays first in the queue until :meth:`work` is called again.

    :param bury: keeps some deaths.
    :param isDue: whether a death still has to be kept.
    :param onKept: is called with how many were kept, when none is left in the queue.
    """

    #: How many deaths are kept together: enough to share a commit, and few enough for one turn of the reactor.
    GROUP = 500

    _log = Logger()

    def __init__(
        self,
        persist: Callable[[Sequence[Expiration]], Deferred[None]],
        isDue: Callable[[Expiration], bool],
        clock: IReactorTime,
        work: TaskOwner,
        onKept: Callable[[int], None],
    ) -> None:
        self._persist = persist
        self._isDue = isDue
        self._clock = clock
        self._work = work
        self._onKept = onKept
        self._queue: deque[Expiration] = deque()
        self._underWay = False
        self._next: IDelayedCall | None = None
        self._waiting: list[tuple[int, Deferred[None]]] = []
        self._added = self._done = 0
        self._kept = 0
        # Services that are cut off expire one by one, over the length of a timeout.
        self._expired = ServiceLog(clock, "expired")
        self._troubled = False
        self._stopped = False

    def __len__(self) -> int:
        """How many deaths are still to be kept."""
        return len(self._queue)

    def add(self, deaths: Sequence[Expiration]) -> None:
        """Queue some deaths; :meth:`work` begins with them."""
        self._queue.extend(deaths)
        self._added += len(deaths)

    def work(self) -> None:
        """Go on until the queue is empty or the store refuses, unless that is being done already."""
        if self._queue and not (self._underWay or self._next or self._stopped):
            self._underWay = True
            self._work.start(self._buryGroup())

    def whenDone(self) -> Deferred[None]:
        """
        Go to work.

        :return: fires when all that has been added so far is kept.
        :raises Fault: if it could not be.
        """
        done: Deferred[None] = Deferred()
        if self._stopped:
            done.errback(_stopping())
        elif self._queue:
            self._waiting.append((self._added, done))
            self.work()
        else:
            done.callback(None)
        return done

    def stop(self) -> None:
        """Begin nothing new; what is under way belongs to the :class:`TaskOwner`. Nobody is left waiting."""
        self._stopped = True
        call, self._next = self._next, None
        if call is not None:
            call.cancel()
        self._expired.stop()
        self._refuse(Failure(_stopping()))

    async def _buryGroup(self) -> None:
        group = list(islice(self._queue, self.GROUP))
        due = [death for death in group if self._isDue(death)]
        try:
            if due:
                await self._persist(due)
        except Exception:
            self._underWay = False
            self._fail(Failure())
            return
        self._underWay = False
        for _ in group:
            self._queue.popleft()
        self._done += len(group)
        self._note(due)
        if self._queue and not self._stopped:
            self._next = self._clock.callLater(0, self._goOn)
        ready = [done for number, done in self._waiting if number <= self._done]
        self._waiting = self._waiting[len(ready) :]
        for done in ready:
            done.callback(None)

    def _goOn(self) -> None:
        self._next = None
        self.work()

    def _fail(self, reason: Failure) -> None:
        if not self._troubled:
            self._troubled = True
            if reason.check(Fault):
                self._log.warn(
                    "Cannot persist expirations ({count} by now); retrying",
                    count=len(self._queue),
                )
            else:
                self._log.failure("Services timed out, and keeping it failed; it will be tried again", reason)
        self._refuse(reason)

    def _refuse(self, reason: Failure) -> None:
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            done.errback(reason)

    def _note(self, deaths: Sequence[Expiration]) -> None:
        self._troubled = False
        self._kept += len(deaths)
        for death in deaths:
            self._expired.add(death.tenant, death.id)
        if self._queue or not self._kept:
            return
        kept, self._kept = self._kept, 0
        if self._stopped:
            self._expired.stop()
        else:
            self._expired.tell()
        self._onKept(kept)


def _stopping() -> Fault:
    return systemFailure("The registry is stopping")
