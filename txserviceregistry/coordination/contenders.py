"""Services that compete for locks: elections, and partitioners, whose members each own a part of a set of items."""

from __future__ import annotations

import json
import random as randomModule
import re
import uuid
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults, maybeDeferred

from ..client import Client
from ..discovery.feed import EventsFeed, FeedEvent
from ..discovery.mirror import Settling
from ..discovery.subscriber import BackgroundService, BackgroundTask
from ..errors import LockHeld, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.deferred import CANCELLED, Backoff, cancelWith, returnsDeferred
from ..util.logs import Listeners, Logger, Outage
from .lock import Held, Lock

# Seconds until a process that has held a lock competes again, so that others are first; longer while it keeps failing.
_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

_RETRY = 5.0  # seconds after which what has failed is tried again; events cause all other tries
_AT_ONCE = 20  # locks that are acquired at once
# An item whose name a lock can't have is named by a hash.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,160}")
_DISAGREE = "Members of {group} have other items than this one ({members}); items do not move until all have the same"

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
        except CANCELLED:
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
    impossible = ""  # for the log, when the lock can't be acquired

    def __init__(self, client: Client, lock: Lock, name: str, random: Callable[[], float]) -> None:
        outage = Outage(self._log, client.clock, self.impossible, name=name)
        super().__init__(client, Backoff(_PAUSE, _LONGEST_PAUSE, random), outage)
        self._lock = lock
        self._name = name
        self._random = random

    async def _hold(self, run: BackgroundTask, held: Held) -> bool:
        """Use the lock, and release it; returns whether nothing has failed."""
        raise NotImplementedError

    def _happened(self, event: FeedEvent | None) -> None:
        """An event of a lock; ``None`` at the start and after a gap, when the locks are to be read."""
        raise NotImplementedError

    async def _run(self, run: BackgroundTask) -> None:
        feed = LockFeed(self._client)
        feed.onEvent(self._happened)
        feed.onGap(lambda: self._happened(None))
        feed.startService()
        try:
            await super()._run(run)
        finally:
            await feed.stopService()

    async def _step(self, run: BackgroundTask) -> None:
        held = await run.wait(self._lock.acquire())
        self._outage.succeeded()
        if await self._hold(run, held):
            self._backoff.reset()
            self._backoff.next()
        await run.wait(self._client.pause(max(_PAUSE / 2, self._backoff.next())))

    def _succeeded(self) -> None:
        """Work with the lock, not its acquisition, is a success."""


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
        self._fence = 0  # the last known leader's, or one more after its end: lower ones are outdated
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

    async def _hold(self, run: BackgroundTask, held: Held) -> bool:
        self._leadership = leadership = Leadership(held)
        self._log.info("This process leads {name}, fence {fence}", name=self._name, fence=held.fence)
        self._setLeader(self._lock.holder, held.fence)
        try:
            await leadership.run(self._lead)
            return True
        except GeneratorExit:
            raise
        except BaseException:
            self._log.failure("Leading {name} failed; another process may lead", name=self._name)
            return False
        finally:
            self._leadership = None
            self._log.info("This process does not lead {name} any more", name=self._name)
            self._setLeader(None, held.fence)

    def _setLeader(self, leader: str | None, fence: int) -> None:
        if fence >= self._fence:
            self._fence = fence + (leader is None)
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


def _digest(*parts: str) -> bytes:
    return blake2b(json.dumps(parts).encode(), digest_size=16).digest()


def planFor(member: str, members: Collection[str], items: Iterable[str]) -> set[str]:
    """The items that belong to a member: for each item, the member with the largest hash of both has it."""
    return {item for item in items if all(_digest(other, item) <= _digest(member, item) for other in members)}


class Assignment(Tenure):
    """The time for which this member owns an item."""

    def __init__(self, item: str, held: Held) -> None:
        super().__init__(held)
        #: The item.
        self.item = item


class Partitioner(Contender):
    """
    Shares items with the other members of a group, each of which runs a partitioner with the same items::

        async def assigned(assignment):
            consumer = await queues.consume(assignment.item)
            try:
                await consumer.whenDone()
            finally:
                await consumer.stop()

        Partitioner(client, "/workers/mail", ["queue-1", "queue-2"], assigned).setServiceParent(application)

    Each item is owned by at most one member at a time, and by exactly one while members do not come and go. It moves to
    another member only after what *assigned* has returned was cancelled and has ended. ``stopService`` ends all of that
    and releases the items; its Deferred fires when that is done.
    """

    impossible = "Partitioning of {name} failed (retrying): {reason}"

    def __init__(
        self,
        client: Client,
        group: str,
        items: Iterable[str],
        assigned: Callable[[Assignment], Any],
        *,
        settle: float = 5.0,
        timeout: int = 15,
        member: str | None = None,
        random: Callable[[], float] = randomModule.random,
    ) -> None:
        """
        :param client: sends the requests. The caller closes it, after this service has stopped.
        :param group: the name of the group: a key such as ``/workers/mail``, below which its locks are.
        :param items: the same for all members, in any order.
        :param assigned: called with an :class:`Assignment` for each item that this member owns from now on. Returns a
            Deferred or a coroutine, which is cancelled when the item has to go. If it ends before, the member still
            owns the item; if it fails, that is logged, and the item is assigned anew after some seconds.
        :param settle: seconds without a change of the members until items move; at most four times as long in all.
        :param timeout: seconds, 3 to 120, after which the others notice that this process was killed.
        :param member: the name of this process, for people; by default the host's name and the process id.
        :param random: returns numbers from 0 to 1.
        :raises ValueError: if *timeout* or *settle* is not valid.
        """
        self.items = frozenset(items)
        self._group = group.rstrip("/")
        self._id = uuid.uuid4().hex
        self._itemsDigest = _digest(*sorted(self.items)).hex()
        lock, metadata = f"{self._group}/member.{self._id}", {"items": self._itemsDigest}
        super().__init__(client, Lock(client, lock, timeout, member, metadata=metadata, random=random), group, random)
        self._assigned = assigned
        self._timeout = timeout
        self._locks = {self._nameOf(item): item for item in self.items}
        self._settling = Settling(client.clock, settle, self._settled)
        self._retrying = Settling(client.clock, _RETRY, self._retry)
        self._places = DeferredSemaphore(_AT_ONCE)
        self._failures: Listeners[[str | None]] = Listeners(self._log, f"errors of {group}")
        self._listing = DeferredSemaphore(1)
        self._mustList = False  # the last listing has failed
        #: Why items do not move at the moment; ``None`` if they do.
        self.error: str | None = None
        # The items that this member should own, those that it owns, and those that it is acquiring or releasing.
        self._plan: set[str] = set()
        self._owned: dict[str, Assignment] = {}
        self._working: dict[str, Deferred[None]] = {}
        self._resting: set[str] = set()  # those whose work has failed, until the next retry

    @property
    def owned(self) -> frozenset[str]:
        """The items that this member owns now."""
        return frozenset(item for item, assignment in self._owned.items() if assignment.isValid)

    def onError(self, listener: Callable[[str | None], object]) -> Callable[[], None]:
        """Call *listener* with :attr:`error` whenever it changes; returns a function that removes it."""
        return self._failures.add(listener)

    async def _run(self, run: BackgroundTask) -> None:
        try:
            await super()._run(run)
        finally:
            self._settling.drop()
            self._retrying.drop()
            self._follow(set())
            await gatherResults(list(self._working.values()))
            self._resting.clear()

    async def _hold(self, run: BackgroundTask, held: Held) -> bool:
        async with held:
            await run.wait(held.lost)
        return True

    def _happened(self, event: FeedEvent | None) -> None:
        if event is None or event["payload"]["name"].startswith(f"{self._group}/member."):
            self._settling.add(event)
        elif event["type"] != "lock.acquire" and event["payload"]["name"] in self._locks:
            self._work(self._locks[event["payload"]["name"]])

    def _settled(self, _: object) -> None:
        self._listing.run(self._list).addErrback(self._failed)

    @returnsDeferred
    async def _list(self) -> None:
        """Read the members, and follow the plan that they result in."""
        self._mustList = True
        prefix = f"{self._group}/member."
        members: dict[str, str | None] = {}  # the digests of their items
        try:
            async for lock in self._client.locks.iterate(prefix):
                if not lock["name"].startswith(prefix):
                    break
                members[lock["name"].removeprefix(prefix)] = lock["metadata"].get("items")
        except ServiceRegistryError as error:
            self._retryLater(error)
            return
        self._mustList = False
        if self._id not in members:
            return
        others = [member for member, digest in members.items() if digest != self._itemsDigest]
        text = _DISAGREE.format(group=self._group, members=f"{len(others)} of {len(members)}") if others else None
        if text != self.error:
            self.error = text
            if text is not None:
                self._log.error("{error}", error=text)
            self._failures.call(text)
        if self._task is not None and not self._task.isStopping:
            self._follow(planFor(self._id, members, self.items) if text is None else self._plan)

    def _nameOf(self, item: str) -> str:
        part = f"item.{item}" if _PLAIN.fullmatch(item) else f"hash.{_digest(item).hex()}"
        return f"{self._group}/{part}"

    def _follow(self, plan: set[str]) -> None:
        """Release what does not belong to this member any more, and acquire what does now."""
        self._plan = plan
        for item in self._owned.keys() - plan:
            self._owned[item].end()
        for item in sorted(plan):
            self._work(item)

    def _work(self, item: str) -> None:
        """Acquire an item that belongs to this member, unless that is under way."""
        working = self._working
        if item not in self._plan or item in working or item in self._resting:
            return
        working[item] = Deferred()
        owned = Deferred.fromCoroutine(self._own(item)).addErrback(self._failed)
        owned.addCallback(lambda _: working.pop(item).callback(None))

    async def _own(self, item: str) -> None:
        lock = Lock(self._client, self._nameOf(item), self._timeout, self._lock.holder, random=self._random)
        while item in self._plan:
            try:
                held = await self._places.run(lock.acquire, 0)
            except ServiceRegistryError as error:
                # When another member has released it there is an event, which may have come before the response.
                self._retryLater(None if isinstance(error, LockHeld) else error)
                return
            self._outage.succeeded()
            if item not in self._plan:
                await held.release()
                continue
            self._owned[item] = assignment = Assignment(item, held)
            try:
                await assignment.run(self._assigned, isLasting=True)
            except GeneratorExit:
                raise
            except BaseException:
                self._log.failure("Assignment of {item} failed; it is retried", item=item)
                # The event of its release must not assign it at once.
                self._resting.add(item)
                self._retryLater()
                return
            finally:
                del self._owned[item]

    def _retry(self, _: object) -> None:
        self._resting.clear()
        # Members are listed after they have settled only: a registry that has just lost its data shows few of them.
        if self._mustList:
            self._settled(None)
        else:
            self._follow(self._plan)

    def _retryLater(self, error: ServiceRegistryError | None = None) -> None:
        # Work that began before a stop may fail after it.
        if self._task is None or self._task.isStopping or isinstance(error, ClientClosed):
            return
        if error is not None:
            self._outage.failed(reason=str(error), cause=error)
        self._retrying.add(error)
