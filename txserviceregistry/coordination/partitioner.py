"""
Partitioner: a set of items, such as queues, that is shared by the members of a group. Each member has a lock, by which
the others know it, and a lock for each item that it owns.
"""

from __future__ import annotations

import json
import random as randomModule
import re
import uuid
from collections.abc import Callable, Collection, Iterable
from hashlib import blake2b
from typing import Any

from twisted.internet.defer import Deferred, DeferredLock, DeferredSemaphore, gatherResults

from ..client import Client
from ..discovery.feed import FeedEvent
from ..discovery.mirror import Settling
from ..discovery.subscriber import BackgroundTask
from ..errors import LockHeld, ServiceRegistryError
from ..http.jsontransport import ClientClosed
from ..util.deferred import returnsDeferred
from ..util.logs import Listeners
from .election import Contender, Tenure
from .lock import Held, Lock

# Seconds after which what has failed is tried again; events cause all other tries.
_RETRY = 5.0
# Locks that are acquired at once.
_AT_ONCE = 20
# An item whose name a lock can't have is named by a hash.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,160}")
_DISAGREE = "Members of {group} have other items than this one ({members}); items do not move until all have the same"


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
        self._listing = DeferredLock()
        self._mustList = False  # the last listing has failed
        #: Why items do not move at the moment; ``None`` if they do.
        self.error: str | None = None
        # The items that this member should own, those that it owns, and those that it is acquiring or releasing.
        self._plan: set[str] = set()
        self._owned: dict[str, Assignment] = {}
        self._working: dict[str, Deferred[None]] = {}

    @property
    def owned(self) -> frozenset[str]:
        """The items that this member owns now."""
        return frozenset(item for item, assignment in self._owned.items() if assignment.isValid)

    def onError(self, listener: Callable[[str | None], object]) -> Callable[[], None]:
        """Call *listener* with :attr:`error` whenever it changes; returns a function that removes it."""
        return self._failures.add(listener)

    async def _run(self, task: BackgroundTask) -> None:
        try:
            await super()._run(task)
        finally:
            self._settling.drop()
            self._retrying.drop()
            self._follow(set())
            await gatherResults(list(self._working.values()))

    async def _hold(self, task: BackgroundTask, held: Held) -> bool:
        async with held:
            await task.wait(held.lost)
        return True

    def _happened(self, event: FeedEvent | None) -> None:
        if event is None or event["payload"]["name"].startswith(f"{self._group}/member."):
            self._settling.add(event)
        elif event["type"] != "lock.acquire" and event["payload"]["name"] in self._locks:
            self._work(self._locks[event["payload"]["name"]])

    def _settled(self, _: object) -> None:
        """No member has come or gone for a while."""
        self._listing.run(self._list).addErrback(self._failed)

    @returnsDeferred
    async def _list(self) -> None:
        """Read the members, and follow the plan that they result in."""
        self._mustList = True
        prefix = f"{self._group}/member."
        # The digests of the items of each.
        members: dict[str, str | None] = {}
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
        if item not in self._plan or item in working:
            return
        done = working[item] = Deferred()

        def over(_: None) -> None:
            del working[item]
            done.callback(None)

        Deferred.fromCoroutine(self._own(item)).addErrback(self._failed).addCallback(over)

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
                return
            self._owned[item] = assignment = Assignment(item, held)
            try:
                await assignment.run(self._assigned, isLasting=True)
            except Exception:
                self._log.failure("Assignment of {item} failed; it is retried", item=item)
                self._retryLater()
                return
            finally:
                del self._owned[item]

    def _retry(self, _: object) -> None:
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
            self._outage.failed(reason=str(error))
        self._retrying.add(error)
