"""
A node's membership in etcd: its key, and the watch that shows the changes of other nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from ....http.bodies import BytesProducer
from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ...model import isLockScope, tenantOf
from ..interfaces import StoreUnavailable
from ..shared import IStoreListener
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
from .node import Evidence, INodeKeys, Joined, Node
from .objects import Part
from .registrations import Registrations
from .services import EtcdLocks, EtcdServices
from .votes import Registration, Status

# No group of changes of one revision is this large; it bounds what a broken server can make us hold.
_LONGEST_LINE = 64 * 1024 * 1024


class Watch(Protocol):
    """
    One watch of the changes below a prefix, in their order: a request whose answer never ends, JSON with a line per
    group of changes. It may go deaf silently: its owner ends a watch that does not show a key that changes regularly.

    :param agent: does the request; it must hand over the body as it comes.
    :param user: in whose name the request is sent; ``None`` where etcd asks for no user.
    :param onChange: called with each changed key, and whether the revision has deleted it: then it has no value.
    :param onEnd: called with the reason when the watch ends, unless it was stopped: changes may be missed from then on.
    """

    def __init__(
        self, agent: IAgent, user: User | None, onChange: Callable[[KeyValue, bool], None], onEnd: Callable[[str], None]
    ) -> None:
        self._agent = agent
        self._user = user
        self._onChange = onChange
        self._onEnd = onEnd
        self._isOver = False
        self._request: Deferred[IResponse] | None = None
        # The received part of a line.
        self._line = bytearray()

    def start(self, url: str, prefix: str, revision: int) -> None:
        """Begin, at the member with this *url*, with the changes below a prefix from this revision on."""
        create = {"key": encode(prefix), "range_end": encode(endOf(prefix)), "start_revision": str(revision)}
        headers = Headers({b"Content-Type": [b"application/json"]})
        if self._user is not None and self._user.header is not None:
            headers.addRawHeader(*self._user.header)
        body = BytesProducer(jsonBytes({"create_request": create}))
        self._request = self._agent.request(b"POST", f"{url}/v3/watch".encode("ascii"), headers, body)
        self._request.addCallbacks(self._answered, self._failed)

    def stop(self) -> None:
        self._isOver = True
        if self.transport is not None:
            self.transport.loseConnection()
        elif self._request is not None:
            self._request.cancel()

    def _answered(self, response: IResponse) -> None:
        if response.code != 200:
            self._end(f"it was refused with {response.code}")
        response.deliverBody(self)
        if self._isOver:
            self.stop()

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._end(failure.getErrorMessage())

    def dataReceived(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            whole, self._line = bytes(self._line + line), bytearray()
            if whole.strip() and not self._isOver:
                self._lineReceived(whole)
        self._line += rest
        if len(self._line) > _LONGEST_LINE:
            self._end("a line has no end")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end(reason.getErrorMessage())

    def _lineReceived(self, line: bytes) -> None:
        try:
            result = json.loads(line)["result"]
        except (ValueError, KeyError, TypeError):
            self._end("unexpected response to a watch")
            return
        if result.get("canceled"):
            # The answer stays open all the same.
            isCompacted = "compact_revision" in result
            self._end(str(result.get("cancel_reason") or ("it was compacted" if isCompacted else "canceled")))
            return
        for event in result.get("events", ()):
            if not self._isOver:
                self._onChange(KeyValue.of(event["kv"]), event.get("type") == "DELETE")

    def _end(self, why: str) -> None:
        if not self._isOver:
            self.stop()
            self._onEnd(why)


_REPLACED = "etcd has another registry's data now, or none: restart this node"


@implementer(INodeKeys)
@attrs.define(eq=False)
class NodeKeys(Part):
    """
    A node's key, and what it reads and watches. Its *etcd* may be asked while others are refused.

    :param agent: sends the request of a watch, in the name of *user*, to one of the *urls* after the other.
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
    _lease: int = attrs.field(default=0, init=False)
    _watch: Watch | None = attrs.field(default=None, init=False)
    _loads: int = attrs.field(default=0, init=False)

    # -- the node's key

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

    def _statusOf(self, found: KeyValue) -> Status | None:
        try:
            return Status.of(json.loads(found.value), lambda tenant, position: self._ids.of(tenant).idAt(position))
        except ValueError:
            return None

    def _changed(self, now: KeyValue, isDeleted: bool) -> None:
        with understood(now.key):
            self._take(now, isDeleted)

    def _take(self, now: KeyValue, isDeleted: bool) -> None:
        kind, _, rest = now.key[len(self._prefix) :].partition("/")
        registrations = self._locks if kind in ("locks", "seen-locks") else self._services
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
