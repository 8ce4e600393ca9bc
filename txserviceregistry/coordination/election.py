"""Election: one of several processes leads; and what elections and partitioners have in common."""

from __future__ import annotations

import random as randomModule
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.python.failure import Failure

from ..client import Client
from ..discovery.feed import EventsFeed, FeedEvent
from ..discovery.subscriber import BackgroundService, BackgroundTask
from ..errors import ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.deferred import Backoff, cancelWith
from ..util.logs import Listeners, Logger, Outage
from .lock import Held, Lock

# Seconds until a process that has held a lock competes again, so that others are first; and longer while it keeps
# failing.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

_Self = TypeVar("_Self", bound="Tenure")


class Tenure:
    """The time for which a lock is held."""

    def __init__(self, held: Held) -> None:
        #: The fencing token: it is larger than that of every earlier holder.
        self.fence = held.fence
        self._held = held
        self._ending: Deferred[None] = Deferred()

    @property
    def isValid(self) -> bool:
        """Whether no other process can have it now; see :attr:`Held.isValid`."""
        return self._held.isValid

    async def run(self: _Self, work: Callable[[_Self], Any], *, isLasting: bool = False) -> None:
        """Do the work, which is cancelled at the end; if this *isLasting*, wait for the end. Then release the lock."""
        lost = self._held.lost.addCallback(lambda _: self.end())
        working = maybeDeferred(work, self)

        def cancelSoon(_: None) -> None:
            # Not now: the work may have called end(), and a coroutine that is running can't be cancelled.
            cancelWith(self._held.clock.callLater(0, working.cancel), working)

        self._ending.addCallback(cancelSoon)
        try:
            await working
            if isLasting:
                await self._ending
        except CancelledError:
            if not self._ending.called:
                raise
        finally:
            lost.addErrback(lambda _: None).cancel()
            await self._held.release()

    def end(self) -> None:
        """End it: cancel the work. The lock is released when the work has ended."""
        if not self._ending.called:
            self._ending.callback(None)


class Contender(BackgroundService):
    """A service that acquires a lock, uses it, and competes for it again, until it is stopped."""

    _log = Logger()
    # For the log, when the lock can't be acquired.
    impossible = ""

    def __init__(self, client: Client, lock: Lock, name: str, random: Callable[[], float]) -> None:
        self._client = client
        self._lock = lock
        self._name = name
        self._random = random
        self._outage = Outage(self._log, client.clock, self.impossible, name=name)

    async def _hold(self, task: BackgroundTask, held: Held) -> bool:
        """Use the lock, and release it; returns whether nothing has failed."""
        raise NotImplementedError

    def _happened(self, event: FeedEvent | None) -> None:
        """An event of a lock; ``None`` at the start and after a gap, when the locks are to be read."""
        raise NotImplementedError

    async def _run(self, task: BackgroundTask) -> None:
        backoff = Backoff(_PAUSE, _LONGEST_PAUSE, self._random)
        feed = LockFeed(self._client)
        feed.onEvent(self._happened)
        feed.onGap(lambda: self._happened(None))
        feed.startService()
        try:
            while not task.isStopping:
                try:
                    held = await task.wait(self._lock.acquire())
                    self._outage.succeeded()
                    if await self._hold(task, held):
                        backoff.reset()
                        backoff.next()
                except CancelledError:
                    pass
                except ClientClosed:
                    return
                except ServiceRegistryError as error:
                    self._outage.failed(reason=str(error))
                await task.wait(self._client.pause(max(_PAUSE / 2, backoff.next())))
        except ClientClosed:
            pass
        finally:
            await feed.stopService()

    def _failed(self, failure: Failure) -> None:
        self._log.failure("{what} {name} failed unexpectedly", failure, what=type(self).__name__, name=self._name)


class LockFeed(EventsFeed):
    """The events of locks from now on, with a gap at the start."""

    what = "locks"
    outageBegins = "Events of locks are unreachable (retrying): {reason}"
    outageEnds = None

    def __init__(self, client: Client) -> None:
        super().__init__(client, types=("lock.acquire", "lock.expire", "lock.release"))

    async def _step(self, run: BackgroundTask) -> None:
        isBeginning = self._progress is None
        await super()._step(run)
        if isBeginning:
            self._gapListeners.call()


class Leadership(Tenure):
    """The time for which this process leads."""

    def stepDown(self) -> None:
        """Give the leadership up: ``lead`` is cancelled, and when it has ended, another process can lead."""
        self.end()


class Election(Contender):
    """
    Competes for a leadership, and leads when it has won it::

        async def lead(leadership):
            while True:
                await doTheWork(leadership.fence)

        Election(client, "/billing/leader", lead).setServiceParent(application)

    At most one process leads at a time. When this one may no longer be the leader, ``lead`` is cancelled, and this
    process competes again only after it has ended. A stop ends ``lead`` too, then releases the leadership.
    """

    impossible = "Election {name} failed (retrying): {reason}"

    def __init__(
        self,
        client: Client,
        name: str,
        lead: Callable[[Leadership], Any],
        *,
        timeout: int = 15,
        holder: str | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after this service has stopped.
        :param name: the name of a lock, which is a configuration key.
        :param lead: called with a :class:`Leadership` when this process leads. Returns a Deferred or a coroutine, which
            lasts for as long as the process wants to lead. When it fails, that is logged, and another process leads.
        :param timeout: seconds, 3 to 120, after which another process leads when this one was killed.
        :param holder: the name of this process, for people; by default the host's name and the process id.
        :param random: returns numbers from 0 to 1.
        :raises ValueError: if *timeout* is not valid.
        """
        super().__init__(client, Lock(client, name, timeout, holder, random=random), name, random)
        self._lead = lead
        #: The ``holder`` of the leader, as far as is known; ``None`` if there is none.
        self.leader: str | None = None
        # The fence of the last leader that is known: what is about earlier ones comes too late.
        self._fence = 0
        self._listeners: Listeners[[str | None]] = Listeners(self._log, f"the leader of {name}")
        self._leadership: Leadership | None = None

    @property
    def isLeading(self) -> bool:
        """Whether this process leads now; see :attr:`Held.isValid`."""
        return self._leadership is not None and self._leadership.isValid

    def onChange(self, listener: Callable[[str | None], object]) -> Callable[[], None]:
        """Call *listener* with the :attr:`leader` whenever it changes; returns a function that removes it."""
        return self._listeners.add(listener)

    def stopService(self) -> Deferred[None]:
        """Fires when ``lead`` has ended, and the leadership is released."""
        stopped = super().stopService()
        if self._leadership is not None:
            self._leadership.end()
        return stopped

    async def _hold(self, task: BackgroundTask, held: Held) -> bool:
        self._leadership = leadership = Leadership(held)
        self._log.info("This process leads {name}, fence {fence}", name=self._name, fence=held.fence)
        self._setLeader(self._lock.holder, held.fence)
        try:
            await leadership.run(self._lead)
            return True
        except Exception:
            self._log.failure("Leading {name} failed; another process may lead", name=self._name)
            return False
        finally:
            self._leadership = None
            self._log.info("This process does not lead {name} any more", name=self._name)
            self._setLeader(None, held.fence)

    def _setLeader(self, leader: str | None, fence: int | None) -> None:
        if fence is not None and fence < self._fence:
            return
        self._fence = fence or self._fence
        if leader != self.leader:
            self.leader = leader
            self._listeners.call(leader)

    def _happened(self, event: FeedEvent | None) -> None:
        if event is None:
            self._client.locks.get(self._name).addCallbacks(
                lambda lock: self._setLeader(lock["holder"], lock["fence"]),
                lambda failure: failure.trap(ServiceRegistryError),
            ).addErrback(self._failed)
        elif event["payload"]["name"] == self._name:
            lock = event["payload"]
            self._setLeader(lock["holder"] if event["type"] == "lock.acquire" else None, lock["fence"])
