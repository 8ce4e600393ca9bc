"""A node's membership in etcd: its key, and the watch that shows the changes of other nodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from ....http.messages import BytesProducer
from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...model import isLockScope, tenantOf
from ..interfaces import IStoreListener, StoreUnavailable
from .gateway import (
    NOT_FOUND,
    Clause,
    EtcdError,
    KeyValue,
    User,
    createdAt,
    encode,
    endOf,
    jsonBytes,
    logOnce,
    newLease,
    put,
    readKept,
    understood,
)
from .node import INodeKeys, Joined, Node
from .objects import Part
from .registrations import Registrations
from .services import EtcdLocks, EtcdServices
from .votes import Evidence, Registration, Status


class _Lines(LineOnlyReceiver):
    """The lines of a body that never ends. *ended* fails when it ends all the same; cancelling it ends the body."""

    delimiter = b"\n"
    # No group of changes of one revision is this large; it bounds what a broken server can make us hold.
    MAX_LENGTH = 64 * 1024 * 1024

    def __init__(self, onLine: Callable[[bytes], None]) -> None:
        self._onLine = onLine
        self.ended: Deferred[None] = Deferred(lambda _: self._close())

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def lineReceived(self, line: bytes) -> None:
        try:
            if line.strip() and not self.ended.called:
                self._onLine(line)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        self.connectionLost(Failure(error))
        self._close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.ended.called:
            self.ended.errback(reason)


@returnsDeferred
async def watch(
    agent: IAgent, user: User | None, url: str, prefix: str, revision: int, onChange: Callable[[KeyValue, bool], None]
) -> None:
    """
    Watch the changes below a prefix from a revision on, in their order, until that fails or is cancelled. It may go
    deaf silently. *onChange* is called with each changed key, and whether it was deleted: then it has no value.
    """
    create = {"key": encode(prefix), "range_end": encode(endOf(prefix)), "start_revision": str(revision)}
    headers = Headers({b"Content-Type": [b"application/json"]})
    if user is not None and user.header is not None:
        headers.addRawHeader(*user.header)
    body = BytesProducer(jsonBytes({"create_request": create}))
    response: IResponse = await agent.request(b"POST", f"{url}/v3/watch".encode("ascii"), headers, body)

    def read(line: bytes) -> None:
        result = json.loads(line)["result"]
        if result.get("canceled"):
            # The answer stays open all the same.
            raise ValueError(result.get("cancel_reason") or f"canceled or compacted: {result}")
        for event in result.get("events", ()):
            if not lines.ended.called:
                onChange(KeyValue.of(event["kv"]), event.get("type") == "DELETE")

    lines = _Lines(read)
    response.deliverBody(lines)
    if response.code != 200:
        lines.fail(ValueError(f"it was refused with {response.code}"))
    await lines.ended


_REPLACED = "etcd has another registry's data now, or none: restart this node"


@implementer(INodeKeys)
@attrs.define(eq=False, repr=False)
class NodeKeys(Part):
    """A node's key, and what it reads and watches. Its *etcd* may be asked while others are refused."""

    _log = Logger()
    _agent: IAgent
    _user: User | None
    _urls: Sequence[str]
    _services: EtcdServices
    _locks: EtcdLocks
    # These are set before the first use.
    node: Node = attrs.field(init=False)
    secret: str = attrs.field(init=False)
    listener: IStoreListener = attrs.field(init=False)
    _lease: int = attrs.field(default=0, init=False)
    _watching: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    _loads: int = attrs.field(default=0, init=False)

    def _key(self, name: str) -> str:
        return f"{self._prefix}nodes/{name}"

    def _put(self, name: str, status: Status) -> Clause:
        return put(self._key(name), jsonBytes(status.toJSON(self._positionOf)), self._lease)

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
            logOnce(_REPLACED)
            raise StoreUnavailable(_REPLACED)
        self._lease = newLease()
        granted = await self._etcd.grant(self._lease, seconds)
        changes = [self._put(name, status), put(f"{self._prefix}joins", b"1")]
        done = await self._etcd.txn([createdAt(self._key(name), 0)], changes, patience=0)
        if not done.succeeded:
            raise StoreUnavailable("etcd: the name of a new node is taken")
        return Joined(done.revision, granted)

    def renew(self, name: str) -> Deferred[bool]:
        return self._etcd.keepAlive(self._lease)

    @returnsDeferred
    async def publish(self, name: str, created: int, status: Status) -> bool:
        condition = createdAt(self._key(name), created)
        try:
            return (await self._etcd.txn([condition], [self._put(name, status)], patience=0)).succeeded
        except EtcdError as error:
            if error.code == NOT_FOUND:
                # Its lease has ended, and the key with it.
                return False
            raise

    @returnsDeferred
    async def leave(self, name: str) -> None:
        self._stopWatching()
        if name:
            await self._etcd.revoke(self._lease, patience=0)

    def _kind(self, registration: Registration) -> Registrations[Any]:
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
        joins, revision = await self._etcd.range(f"{self._prefix}joins")
        records, seen, locks, seenLocks, nodes = [
            await self._etcd.all(f"{self._prefix}{kind}/", revision=revision)
            for kind in ("services", "seen", "locks", "seen-locks", "nodes")
        ]
        if number != self._loads:
            raise StoreUnavailable("the node has joined again since")
        self._batches.forget()
        registrations = [*self._services.load(records, seen, revision), *self._locks.load(locks, seenLocks, revision)]
        self.listener.synchronized(registrations)
        for tenant in {tenantOf(each.tenant) for each in registrations}:
            self.listener.eventAdded(tenant, None)
        self.node.joins = joins[0].modified if joins else 0
        # A node's key goes with its lease; copies of keys have none.
        statuses = {each.key.rpartition("/")[2]: self._statusOf(each) for each in nodes if each.lease}
        self.node.membersAre(set(statuses))
        for name, status in statuses.items():
            self.node.statusChanged(name, status)
        # Each time at another member: one may be what the last watch went deaf for.
        url = self._urls[self._loads % len(self._urls)]
        self._watching = watching = watch(self._agent, self._user, url, self._prefix, revision + 1, self._changed)
        watching.addErrback(self._watchEnded, watching)

    def _stopWatching(self) -> None:
        watching, self._watching = self._watching, succeed(None)
        watching.cancel()

    def _watchEnded(self, failure: Failure, watching: Deferred[None]) -> None:
        if self._watching is watching:
            self._log.debug("The watch of etcd has ended: {reason}", reason=failure.getErrorMessage())
            self.node.watchEnded()

    def _statusOf(self, found: KeyValue) -> Status | None:
        try:
            return Status.of(json.loads(found.value), lambda tenant, position: self._ids.of(tenant).idAt(position))
        except ValueError:
            return None

    def _changed(self, now: KeyValue, isDeleted: bool) -> None:
        kind, _, rest = now.key[len(self._prefix) :].partition("/")
        registrations = self._locks if kind in ("locks", "seen-locks") else self._services
        with understood(now.key):
            if kind in ("services", "locks"):
                (registrations.recordDeleted if isDeleted else registrations.recordChanged)(now)
            elif kind in ("seen", "seen-locks"):
                registrations.seenChanged(now)
            elif kind == "nodes" and now.lease:
                self.node.statusChanged(rest, self._statusOf(now))
            elif kind == "nodes":
                self.node.nodeGone(rest)
            elif kind == "joins":
                self.node.joins = now.modified if now.created else 0
            elif kind == "clocks" and not isDeleted:
                self._batches.clockChanged(rest, now)
            elif kind in ("events", "moreevents") and not isDeleted:
                tenant = rest.partition("/")[0]
                for type in self._batches.eventsAdded(tenant, now):
                    self.listener.eventAdded(tenant, type)
