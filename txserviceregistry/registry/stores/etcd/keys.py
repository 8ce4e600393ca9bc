"""
A node's membership in etcd: its key, and the watch that shows the changes of other nodes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.web.iweb import IAgent
from zope.interface import implementer

from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...scopes import isLockScope, tenantOf
from ..interfaces import StoreUnavailable
from ..shared import IStoreListener
from .batches import eventsIn
from .gateway import EtcdError, KeyValue, Revision, Urgency, User, jsonBytes, newLease, put, unchanged
from .kept import readKept, understood
from .locks import EtcdLocks
from .node import Evidence, INodeKeys, Joined, Node
from .part import Part
from .registrations import Registrations
from .services import EtcdServices
from .votes import Registration, Status
from .watch import Change, Watch

_REPLACED = "etcd has another registry's data now, or none: restart this node"


@implementer(INodeKeys)
@attrs.define(eq=False)
class NodeKeys(Part):
    """
    See the module. Its *etcd* may be asked while others are refused.

    :param agent: sends the request of a watch, to one of the *urls* of etcd's members after the other.
    :param user: in whose name the watch is; ``None`` where etcd asks for no user.
    :ivar node: the owner of the keys. It, *secret*, the registry's, and *listener*, which is notified of changes, are
        set before the first use.
    """

    _log = Logger()
    _agent: IAgent
    _user: User | None
    _urls: Sequence[str]
    _services: EtcdServices
    _locks: EtcdLocks
    node: Node = attrs.field(init=False)
    secret: str = attrs.field(init=False)
    listener: IStoreListener = attrs.field(init=False)
    _leases: dict[str, int] = attrs.field(factory=dict, init=False)
    _watch: Watch | None = attrs.field(default=None, init=False)
    _loads: int = attrs.field(default=0, init=False)
    # Whether the log says that etcd has other data now.
    _isReplaced: bool = attrs.field(default=False, init=False)

    # -- the node's key

    def _key(self, name: str) -> str:
        return f"{self._prefix}nodes/{name}"

    def _put(self, name: str, status: Status) -> dict[str, Any]:
        kept = {**status.toJSON(self._positionOf), "commits": self._batches.process}
        return put(self._key(name), jsonBytes(kept), self._leases[name])

    def _positionOf(self, registration: Registration) -> int:
        tenant, incarnation = registration
        position = self._ids.of(tenant).owned(incarnation)
        assert position is not None, incarnation
        return position

    @returnsDeferred
    async def join(self, name: str, seconds: int, status: Status) -> Joined:
        meta = await self._etcd.get(f"{self._prefix}meta")
        if meta is None or readKept(meta.key, meta.value, {"secret": str})["secret"] != self.secret:
            # Nodes with different secrets would refuse each other's tokens, and give the same event different ids.
            if not self._isReplaced:
                self._isReplaced = True
                self._log.error(_REPLACED)
            raise StoreUnavailable(_REPLACED)
        self._leases = {name: newLease()}
        granted = await self._etcd.grant(self._leases[name], seconds)
        condition = unchanged(self._key(name), 0, Revision.created)
        changes = [self._put(name, status), put(f"{self._prefix}joins", b"1")]
        done = await self._etcd.txn([condition], changes, patience=0)
        if not done.succeeded:
            raise StoreUnavailable("etcd: the name of a new node is taken")
        return Joined(done.revision, granted)

    def renew(self, name: str) -> Deferred[bool]:
        return self._etcd.keepAlive(self._leases[name])

    @returnsDeferred
    async def publish(self, name: str, created: int, status: Status) -> bool:
        condition = unchanged(self._key(name), created, Revision.created)
        try:
            done = await self._etcd.txn([condition], [self._put(name, status)], patience=0)
        except EtcdError as error:
            # Its lease has ended, and the key with it.
            if error.code == 5:
                return False
            raise
        return done.succeeded

    @returnsDeferred
    async def leave(self, name: str) -> None:
        self._stopWatching()
        if name:
            await self._etcd.revoke(self._leases[name], patience=0)

    # -- services and locks

    def _kind(self, registration: Registration) -> Registrations:
        return self._locks if isLockScope(registration[0]) else self._services

    @returnsDeferred
    async def touch(self, registration: Registration) -> bool:
        return await self._kind(registration).touch(registration)

    @returnsDeferred
    async def expire(self, name: str, created: int, registration: Registration, evidence: Evidence) -> bool:
        return await self._kind(registration).expireByVote(self._key(name), created, registration, evidence)

    def seen(self, registration: Registration) -> int:
        return self._kind(registration).touchedAt(registration)

    # -- reading everything, and watching it

    @returnsDeferred
    async def load(self) -> None:
        self._stopWatching()
        self._loads += 1
        number = self._loads
        joins, revision = await self._etcd.range(f"{self._prefix}joins", urgency=Urgency.vital)
        records, seen, locks, seenLocks, nodes = [
            await self._etcd.all(self._prefix + kind, revision=revision, urgency=Urgency.vital)
            for kind in ("services/", "seen/", "locks/", "seen-locks/", "nodes/")
        ]
        if number != self._loads:
            raise StoreUnavailable("the node has joined again since")
        # A node's key goes with its lease; copies of keys have none.
        nodes = [each for each in nodes if each.lease]
        self._batches.forget()
        registrations = [*self._services.load(records, seen, revision), *self._locks.load(locks, seenLocks, revision)]
        self.listener.synchronized(registrations)
        for tenant in {tenantOf(each.tenant) for each in registrations}:
            self.listener.eventAdded(tenant, None)
        self.node.joins = joins[0].modified if joins else 0
        self.node.membersAre({self._nameOf(each) for each in nodes})
        for each in nodes:
            self.node.statusChanged(self._nameOf(each), self._statusOf(each))
        self._watch = Watch(self._agent, self._user, self._changed, self._watchEnded)
        # Each time at another member: one may be what the last watch went deaf for.
        self._watch.start(self._urls[self._loads % len(self._urls)], self._prefix, revision + 1)

    def _stopWatching(self) -> None:
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
        with understood(change.now.key):
            self._take(change)

    def _take(self, change: Change) -> None:
        now = change.now
        kind, _, rest = now.key[len(self._prefix) :].partition("/")
        registrations = self._locks if kind in ("locks", "seen-locks") else self._services
        if kind in ("services", "locks"):
            if change.isDeleted:
                registrations.recordDeleted(now, change.before)
            else:
                registrations.recordChanged(now)
        elif kind == "nodes" and now.lease:
            self.node.statusChanged(rest, self._statusOf(now))
        elif kind == "nodes":
            self.node.nodeGone(rest)
        elif kind == "joins":
            self.node.joins = now.modified if now.created else 0
        elif kind in ("seen", "seen-locks"):
            registrations.seenChanged(now)
        elif change.isDeleted:
            return
        elif kind == "clocks":
            self._batches.clockChanged(rest, now)
        elif kind == "commits":
            tenant, _, process = rest.partition("/")
            if process != self._batches.process:
                self._batches.committed(tenant, process)
        elif kind in ("events", "moreevents"):
            for type in {event["type"] for event in eventsIn(now)}:
                self.listener.eventAdded(rest.partition("/")[0], type)
