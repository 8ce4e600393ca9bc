"""
What a node reads and writes in etcd for its membership, and the watch by which it sees the changes of others.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

from twisted.web.iweb import IAgent
from zope.interface import implementer

from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...scopes import isLockScope, tenantOf
from ..interfaces import StoreUnavailable
from ..shared import IStoreListener
from .batches import Batches, eventsIn
from .eventids import TenantIds
from .gateway import Compare, Etcd, EtcdError, KeyValue, Revision, Urgency, newLease, put
from .locks import LockRegistrations
from .node import Evidence, INodeKeys, Joined, Node
from .services import EtcdServices
from .votes import Registration, Status
from .watch import Change, Watch

_T = TypeVar("_T")


async def available(result: Awaitable[_T]) -> _T:
    """What etcd responds; what it refuses, it refuses for reasons that may pass."""
    try:
        return await result
    except EtcdError as error:
        raise StoreUnavailable(f"etcd refuses: {error}") from None


@implementer(INodeKeys)
class NodeKeys:
    """
    See the module.

    :param etcd: for the node's own key; requests to it are sent while others are refused.
    :param agent: sends the request of a watch.
    :param urls: etcd's members; the watch goes to one after the other.
    :param prefix: of all keys.
    :param batches: makes the changes.
    :param services: the services.
    :param locks: the locks.
    :param ids: the tenants' event ids.
    :param listener: is notified of changes.
    :ivar node: the node.
    """

    _log = Logger()

    def __init__(
        self,
        etcd: Etcd,
        agent: IAgent,
        urls: Sequence[str],
        prefix: str,
        batches: Batches,
        services: EtcdServices,
        locks: LockRegistrations,
        ids: TenantIds,
        listener: IStoreListener,
    ) -> None:
        self.node: Node
        self._etcd = etcd
        self._agent = agent
        self._urls = urls
        self._prefix = prefix
        self._batches = batches
        self._services = services
        self._locks = locks
        self._kinds = {"services": services, "seen": services, "locks": locks, "seen-locks": locks}
        self._ids = ids
        self._listener = services.listener = locks.listener = listener
        self._leases: dict[str, int] = {}
        self._watch: Watch | None = None
        self._loads = 0

    # -- the node's key

    def _key(self, name: str) -> str:
        return f"{self._prefix}nodes/{name}"

    def _put(self, name: str, status: Status) -> dict[str, Any]:
        kept = {**status.toJSON(self._positionOf), "commits": self._batches.process}
        return put(self._key(name), json.dumps(kept, separators=(",", ":")).encode("ascii"), self._leases[name])

    def _positionOf(self, registration: Registration) -> int:
        tenant, incarnation = registration
        position = self._ids.of(tenant).owned(incarnation)
        assert position is not None, incarnation
        return position

    @returnsDeferred
    async def join(self, name: str, seconds: int, status: Status) -> Joined:
        self._leases = {name: newLease()}
        granted = await available(self._etcd.grant(self._leases[name], seconds))
        condition = Compare(self._key(name), 0, Revision.created)
        changes = [self._put(name, status), put(f"{self._prefix}joins", b"1")]
        done = await available(self._etcd.txn([condition], changes, patience=0))
        if not done.succeeded:
            raise StoreUnavailable("etcd: the name of a new node is taken")
        return Joined(done.revision, granted)

    @returnsDeferred
    async def renew(self, name: str) -> bool:
        return await available(self._etcd.keepAlive(self._leases[name]))

    @returnsDeferred
    async def publish(self, name: str, created: int, status: Status) -> bool:
        condition = Compare(self._key(name), created, Revision.created)
        try:
            done = await self._etcd.txn([condition], [self._put(name, status)], patience=0)
        except EtcdError as error:
            # Its lease has ended, and the key with it.
            if error.code == 5:
                return False
            raise StoreUnavailable(f"etcd refuses: {error}") from None
        return done.succeeded

    @returnsDeferred
    async def leave(self, name: str) -> None:
        self.stopWatching()
        await available(self._etcd.revoke(self._leases[name], patience=0))

    # -- services and locks

    def _kind(self, registration: Registration) -> EtcdServices:
        return self._locks if isLockScope(registration[0]) else self._services

    @returnsDeferred
    async def touch(self, registration: Registration) -> bool:
        return await available(self._kind(registration).touch(registration))

    @returnsDeferred
    async def expire(self, name: str, created: int, registration: Registration, evidence: Evidence) -> bool:
        expiring = self._kind(registration).expire(self._key(name), created, registration, evidence)
        return await available(expiring)

    def seen(self, registration: Registration) -> int:
        return self._kind(registration).touchedAt(registration)

    # -- reading everything, and watching it

    @returnsDeferred
    async def load(self) -> None:
        self.stopWatching()
        self._loads += 1
        number = self._loads
        _, revision = await available(self._etcd.range(f"{self._prefix}meta", urgency=Urgency.vital))
        records, seen, locks, seenLocks, nodes = [
            await available(self._etcd.all(self._prefix + kind, revision=revision, urgency=Urgency.vital))
            for kind in ("services/", "seen/", "locks/", "seen-locks/", "nodes/")
        ]
        joins, _ = await available(self._etcd.range(f"{self._prefix}joins", revision=revision, urgency=Urgency.vital))
        if number != self._loads:
            raise StoreUnavailable("everything is being read for a later membership")
        registrations = [*self._services.load(records, seen, revision), *self._locks.load(locks, seenLocks, revision)]
        self._listener.synchronized(registrations)
        for tenant in {tenantOf(each.tenant) for each in registrations}:
            self._listener.eventAdded(tenant, None)
        self.node.joins = joins[0].modified if joins else 0
        self.node.membersAre({self._nameOf(each) for each in nodes})
        for each in nodes:
            self.node.statusChanged(self._nameOf(each), self._statusOf(each))
        self._watch = Watch(self._agent, self._changed, self._watchEnded)
        # Each time at another member: one may be what the last watch went deaf for.
        self._watch.start(self._urls[self._loads % len(self._urls)], self._prefix, revision + 1)

    def stopWatching(self) -> None:
        """End the watch."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def _watchEnded(self, reason: str) -> None:
        self._log.debug("The watch of etcd has ended: {reason}", reason=reason)
        self._watch = None
        self.node.watchEnded()

    def _nameOf(self, found: KeyValue) -> str:
        return found.key.rpartition("/")[2]

    def _statusOf(self, found: KeyValue) -> Status | None:
        try:
            return Status.of(json.loads(found.value), lambda tenant, position: self._ids.of(tenant).idAt(position))
        except ValueError:
            return None

    def _changed(self, change: Change) -> None:
        kind, _, rest = change.now.key[len(self._prefix) :].partition("/")
        if kind == "nodes":
            if change.isDeleted:
                self.node.nodeGone(rest)
            else:
                self.node.statusChanged(rest, self._statusOf(change.now))
        elif kind == "joins":
            self.node.joins = change.now.modified
        elif kind in ("services", "locks") and change.isDeleted:
            self._kinds[kind].recordDeleted(change.now, change.before)
        elif kind in ("services", "locks"):
            self._kinds[kind].recordChanged(change.now)
        elif kind in ("seen", "seen-locks") and not change.isDeleted:
            self._kinds[kind].seenChanged(change.now)
        elif kind == "clocks" and not change.isDeleted:
            self._batches.clockChanged(rest, change.now)
        elif kind == "commits" and not change.isDeleted:
            tenant, _, process = rest.partition("/")
            if process != self._batches.process:
                self._batches.committed(tenant, process)
        elif kind in ("events", "moreevents") and not change.isDeleted:
            for type in {event["type"] for event in eventsIn(change.now)}:
                self._listener.eventAdded(rest.partition("/")[0], type)
