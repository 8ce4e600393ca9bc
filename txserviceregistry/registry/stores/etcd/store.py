"""
The store that keeps everything in a cluster of etcd, for any number of registries at once.

The keys below the prefix:

==============================  =======================================================================================
``meta``                        the registry's secret, and the tail of its event ids
``accounts/T``                  when the account was created
``clocks/T``                    the tenant's clock: :mod:`~txserviceregistry.registry.stores.etcd.batches`
``services/T/ID``               a service's record
``states/T/ID``                 the record of a state
``seen/T/ID``                   the time of a heartbeat, written by touches and now and then
``locks/T/NAME``                a lock's record, and
``seen-locks/T/NAME``           its touches
``values/T/KEY``                a configuration value
``events/T/POSITION``           events of version 1.0 up to this position, and
``moreevents/T/POSITION``       events of other types
``users/NAME`` ``tokens/HASH``  :class:`~txserviceregistry.registry.stores.etcd.objects.EtcdUsers`
``joins``                       written by every node that joins
``nodes/NODE``                  a node's status, with a lease: :mod:`~txserviceregistry.registry.stores.etcd.node`
==============================  =======================================================================================

Values are JSON with a version, ``v``. A service has no lease: the nodes vote on its expiration
(:mod:`~txserviceregistry.registry.stores.etcd.votes`).
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent, IPolicyForHTTPS
from zope.interface import implementer

from ....clock import bootTime
from ....http.jsontransport import JSONTransport
from ....http.pool import ConnectionPool, PooledAgent, QueueingAgent
from ....http.tls import tlsPolicy
from ....util.deferred import PrioritySemaphore, returnsDeferred
from ....util.files import Reloaded
from ....util.logs import Logger
from ...model import isLockScope
from ...statistics import StoreStatistics
from ...uuids import newTail
from ..interfaces import ISharedStore, IStoreListener, StoreRefused, StoreUnavailable
from . import DEFAULT_PREFIX, VERSION
from .batches import Batches, TenantIds
from .gateway import NOT_FOUND, PAGE, TRY, Cluster, Etcd, EtcdError, User, watch
from .keyvalues import KeyValue, createdAt, endOf, jsonBytes, logOnce, put, reading, readKept, unchanged, understood
from .node import INodeKeys, Node
from .objects import EtcdEvents, EtcdStates, EtcdUsers, EtcdValues, Part
from .registrations import Registrations
from .services import EtcdLocks, EtcdServices
from .votes import Evidence, Registration, Status

_log = Logger()

#: Connections to each member.
_CONNECTIONS = 8
#: Seconds without a response of etcd after which requests are refused at once.
GIVE_UP = 3.0
#: Seconds between two transactions with times of heartbeats.
_PACE = 1.0


async def openLayout(etcd: Etcd, prefix: str) -> Mapping[str, Any]:
    """
    Make sure that the data in etcd has this version; returns the registry's secret and the tail of its event ids.

    Version 1 kept services alive by leases, and its keys with leases end by themselves. Its nodes can't share etcd with
    nodes of this version: those that start afterwards refuse the data.
    """
    key, nodes = f"{prefix}meta", f"{prefix}nodes/"
    for _ in range(etcd.members):
        if await etcd.get(key) is not None:
            break
        # By mistake, this member may be of another cluster, which is empty.
        etcd.leave()
    found = await etcd.create(key, jsonBytes({"v": VERSION, "secret": secrets.token_hex(32), "tail": newTail()}))
    meta = readKept(key, found.value, {"v": int, "secret": str, "tail": str}, newest=math.inf)
    if meta["v"] == VERSION:
        return meta
    if meta["v"] != 1:
        raise StoreRefused(f"the data in etcd below {prefix} was written by another release (version {meta['v']})")
    done = await etcd.txn(
        [unchanged(key, found.modified), createdAt(nodes, 0, endOf(nodes))],
        [put(key, jsonBytes({**meta, "v": VERSION}))],
        [reading(key), reading(nodes, endOf(nodes), PAGE)],
    )
    if done.succeeded:
        _log.info("Data in etcd below {prefix} converted to version {version}", prefix=prefix, version=VERSION)
    elif (running := len(done.found[1])) and [each.modified for each in done.found[0]] == [found.modified]:
        raise StoreRefused(
            f"{running} node(s) of an earlier release use the data in etcd below {prefix}: stop them first"
        )
    # Else it was converted, by another node or by a try without a response.
    return await openLayout(etcd, prefix)


_REPLACED = "etcd has another registry's data now, or none: restart this node"


@implementer(INodeKeys)
@attrs.define(eq=False, repr=False)
class NodeKeys(Part):
    """
    A node's key, and what it reads and watches. Both send requests while those of others are refused: *etcd* takes the
    responses of any cluster, *own* those of the cluster that the node has joined.
    """

    _log = Logger()
    _own: Etcd
    _agent: IAgent
    _user: User | None
    _urls: Sequence[str]
    _services: EtcdServices
    _locks: EtcdLocks
    # These are set before the first use.
    node: Node = attrs.field(init=False)
    secret: str = attrs.field(init=False)
    listener: IStoreListener = attrs.field(init=False)
    isReplaced: bool = attrs.field(default=False, init=False)  # whether the data is another registry's
    _lease: int = attrs.field(default=0, init=False)
    _watching: Deferred[None] = attrs.field(factory=lambda: succeed(None), init=False)
    _loads: int = attrs.field(default=0, init=False)

    def _key(self, name: str) -> str:
        return f"{self._prefix}nodes/{name}"

    def _value(self, status: Status) -> bytes:
        def positionOf(registration: Registration) -> int:
            tenant, incarnation = registration
            position = self._ids.of(tenant).owned(incarnation)
            assert position is not None, incarnation
            return position

        return jsonBytes(status.toJSON(positionOf))

    @returnsDeferred
    async def join(self, name: str, seconds: int, status: Status) -> tuple[int, float]:
        read = await self._etcd.txn((), [reading(f"{self._prefix}meta")], patience=0)
        kept = [readKept(each.key, each.value, {"secret": str})["secret"] for each in read.found[0]]
        self.isReplaced = kept != [self.secret]
        if self.isReplaced:
            # Nodes with different secrets would refuse each other's tokens, and give the same event different ids.
            logOnce(_REPLACED)
            self._etcd.leave()
            raise StoreUnavailable(_REPLACED)
        if self._own.cluster.id != read.cluster:
            # The first one, or one restored from a backup. A read under way is of the one before.
            self._own.cluster.id, self._loads = read.cluster, self._loads + 1
            self._services.forget()
            self._locks.forget()
        self._lease, granted = await self._etcd.grant(seconds)
        changes = [put(self._key(name), self._value(status), self._lease), put(f"{self._prefix}joins", b"1")]
        done = await self._own.txn([createdAt(self._key(name), 0)], changes, patience=0)
        if not done.succeeded:
            raise StoreUnavailable("etcd: the name of a new node is taken")
        return done.revision, granted

    def renew(self, name: str) -> Deferred[bool]:
        return self._etcd.keepAlive(self._lease)

    @returnsDeferred
    async def publish(self, name: str, created: int, status: Status) -> bool:
        write = put(self._key(name), self._value(status), self._lease)
        try:
            done = await self._etcd.txn([createdAt(self._key(name), created)], [write], patience=0)
            # In another cluster, restored from a backup with this key, the node has to join.
            return done.succeeded and done.cluster == self._own.cluster.id
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
        joins, revision = await self._own.range(f"{self._prefix}joins")
        records, seen, locks, seenLocks, nodes = [
            await self._own.all(f"{self._prefix}{kind}/", revision=revision)
            for kind in ("services", "seen", "locks", "seen-locks", "nodes")
        ]
        steps = chain(self._services.load(records, seen, revision), self._locks.load(locks, seenLocks, revision))
        # Neither heartbeats nor the renewal of the lease may wait until a hundred thousand services are taken over.
        while number == self._loads and [*islice(steps, PAGE)]:
            await deferLater(self._clock, 0)
        if number != self._loads:
            raise StoreUnavailable("the node has joined again since")
        self._batches.forget()
        self.listener.synchronized([*self._services.all(), *self._locks.all()])
        self.node.joins = joins[0].modified if joins else 0
        # A node's key goes with its lease; copies of keys have none.
        statuses = {each.key.rpartition("/")[2]: self._statusOf(each) for each in nodes if each.lease}
        self.node.membersAre(set(statuses))
        for name, status in statuses.items():
            self.node.statusChanged(name, status)
        # Each time at another member: one may be what the last watch went deaf for.
        url = self._urls[self._loads % len(self._urls)]
        where = self._agent, self._user, url, self._prefix, revision + 1
        self._watching = watching = watch(*where, self._changed, self._own.cluster)
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


@implementer(ISharedStore)
class EtcdStore:
    """
    See the module. *urls* are those of etcd's members, without a path, and *credentials* name and password of a user of
    etcd's. The *prefix* ends with a slash. An *agent* must hand over bodies as they come.
    """

    name = "etcd"

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        *,
        prefix: str = DEFAULT_PREFIX,
        credentials: tuple[str, Reloaded[str, str]] | None = None,
        policy: IPolicyForHTTPS | None = None,
        agent: IAgent | None = None,
        wallClock: Callable[[], float] = time.time,
        seconds: Callable[[], float] = bootTime,
    ) -> None:
        policy = policy or tlsPolicy()
        self._pool = ConnectionPool(reactor, _CONNECTIONS)
        self._watchPool = ConnectionPool(reactor, 0, streams=True)
        watching = agent or PooledAgent(reactor, policy, TRY, self._watchPool)
        agent = QueueingAgent(agent or PooledAgent(reactor, policy, TRY, self._pool), _CONNECTIONS)
        user = None if credentials is None else User(*credentials)
        # Each member is given its own try.
        transport = JSONTransport(agent, reactor, urls, timeout=TRY * len(urls), name="etcd")
        self.statistics = StoreStatistics(votes=lambda: 0 if self._node.votes is None else self._node.votes.listed)
        self.isNew = False
        self._reactor = reactor
        self._prefix = prefix
        self._wallClock = wallClock
        # This one asks whether or not the store is open and etcd is there: so it finds out.
        self._asking = Etcd(transport, reactor, user=user, onContact=self._contact)
        turns = PrioritySemaphore(_CONNECTIONS)
        own = attrs.evolve(self._asking, cluster=Cluster())
        self._etcd = attrs.evolve(own, gate=self._check, statistics=self.statistics, turns=turns)
        self._ids = TenantIds(wallClock)
        self._batches = Batches(self._etcd, reactor, wallClock, prefix, secrets.token_hex(8))
        part = (self._etcd, self._batches, prefix, self._ids, reactor, wallClock)
        states = EtcdStates(*part)
        self._services = EtcdServices(*part, states=states)
        self._locks = EtcdLocks(*part)
        values = EtcdValues(*part)
        events = EtcdEvents(*part)
        self._users = EtcdUsers(*part)
        self._keys = NodeKeys(self._asking, *part[1:], own, watching, user, urls, self._services, self._locks)
        self._node = self._keys.node = Node(self._keys, reactor, seconds)
        self._isOpen = False
        # When a request was sent that etcd has answered, by the reactor's clock; counts from the join on.
        self._contacted = math.inf
        # Writes the times of heartbeats.
        self._writing: Deferred[Any] = succeed(None)
        self.createService = returnsDeferred(self._services.create)
        self.getService = returnsDeferred(self._services.get)
        self.listServices = returnsDeferred(self._services.list)
        self.updateService = returnsDeferred(self._services.update)
        self.removeService = returnsDeferred(self._services.remove)
        self.setState = returnsDeferred(states.set)
        self.getState = returnsDeferred(states.get)
        self.listStates = returnsDeferred(states.list)
        self.endStates = returnsDeferred(states.end)
        self.dropStates = returnsDeferred(states.drop)
        self.acquireLock = returnsDeferred(self._locks.acquire)
        self.getLock = returnsDeferred(self._locks.get)
        self.listLocks = returnsDeferred(self._locks.list)
        self.forceLock = returnsDeferred(self._locks.force)
        self.releaseLock = returnsDeferred(self._locks.release)
        self.getValue = returnsDeferred(values.get)
        self.listValues = returnsDeferred(values.list)
        self.setValue = returnsDeferred(values.set)
        self.removeValue = returnsDeferred(values.remove)
        self.listEvents = returnsDeferred(events.list)
        self.listChanges = returnsDeferred(events.changes)
        self.lastEvent = returnsDeferred(events.last)
        self.hasEvent = returnsDeferred(events.has)
        self.dropEvents = returnsDeferred(events.drop)
        self.addUser = returnsDeferred(self._users.add)
        self.replaceUserKey = returnsDeferred(self._users.replaceKey)
        self.changeRole = returnsDeferred(self._users.changeRole)
        self.removeUser = returnsDeferred(self._users.remove)
        self.getUser = returnsDeferred(self._users.get)
        self.listUsers = returnsDeferred(self._users.all)
        self.addToken = returnsDeferred(self._users.addToken)
        self.getToken = returnsDeferred(self._users.getToken)
        self.removeToken = returnsDeferred(self._users.removeToken)
        self.recordLastSeen = self._services.noteSeen
        self.tick, self.closed = self._node.tick, self._node.closed

    @returnsDeferred
    async def open(self) -> None:
        meta = await openLayout(self._asking, self._prefix)
        self._keys.secret = meta["secret"]
        self._ids.tail = meta["tail"]
        self.isNew = await self._asking.get(self._users.guard) is None
        self._isOpen = True
        self._writing = Deferred.fromCoroutine(self._writeSeen())
        self._writing.addErrback(lambda failure: failure.trap(CancelledError))

    def _contact(self, sent: float) -> None:
        self._contacted = max(self._contacted, sent)

    @returnsDeferred
    async def close(self) -> None:
        try:
            await self._batches.whenIdle()
        finally:
            # The caller may have stopped waiting for this.
            self._isOpen = False
            self._writing.cancel()
            await self._node.stop()
            await gatherResults([self._pool.close(), self._watchPool.close()], consumeErrors=True)

    def _check(self) -> None:
        if not self._isOpen:
            raise StoreUnavailable("the store is not open")
        if self._keys.isReplaced:
            raise StoreUnavailable(_REPLACED)
        if self._reactor.seconds() - self._contacted > GIVE_UP:
            raise StoreUnavailable("etcd can't be reached")

    def join(self, listener: IStoreListener) -> Deferred[None]:
        self._services.listener = self._locks.listener = self._keys.listener = listener
        self._contacted = self._reactor.seconds()
        return self._node.start(listener)

    @property
    def members(self) -> Sequence[str]:
        return self._node.members

    @property
    def isValid(self) -> bool:
        return self._node.isValid

    @returnsDeferred
    async def admit(self, tenant: str, incarnation: str) -> bool:
        return await self._node.admit((tenant, incarnation))

    @returnsDeferred
    async def probe(self) -> None:
        probe = f"{self._prefix}probe"
        await self._etcd.txn((), [put(probe, b""), reading(probe)], patience=0)

    @returnsDeferred
    async def secret(self) -> bytes:
        self._check()
        return bytes.fromhex(self._keys.secret)

    @returnsDeferred
    async def account(self, tenant: str) -> int:
        new = jsonBytes({"v": 1, "created": int(self._wallClock() * 1000)})
        found = await self._etcd.create(f"{self._prefix}accounts/{tenant}", new)
        return int(readKept(found.key, found.value, {"created": int})["created"])

    async def _writeSeen(self) -> None:
        while True:
            await deferLater(self._reactor, _PACE)
            # Times that can't be written are written some minutes later.
            with suppress(StoreUnavailable):
                await self._services.writeSeen()
