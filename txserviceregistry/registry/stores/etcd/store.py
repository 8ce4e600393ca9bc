"""
The store that keeps everything in a cluster of etcd, for any number of registries at once.

What the keys below the prefix are:

==============================  =======================================================================================
``meta``                        the registry's secret, and the tail of its event ids
``accounts/T``                  when the account came into being
``clocks/T``                    the tenant's clock: :mod:`~txserviceregistry.registry.stores.etcd.batches`
``commits/T/NODE``              the number of a node's last group for this tenant
``services/T/ID``               a service's record; no lease
``alive/T/ID``                  goes with the service's lease; every heartbeat lets that begin anew, without a write
``seen/T/ID``                   the time of a heartbeat, written now and then; goes with the same lease
``values/T/KEY``                a configuration value
``events/T/POSITION``           an event
``users/NAME`` ``tokens/HASH``  :mod:`~txserviceregistry.registry.stores.etcd.users`
``nodes/NODE``                  which nodes are there: :mod:`~txserviceregistry.registry.stores.etcd.node`
==============================  =======================================================================================

Values are JSON with a version, ``v``. The lease is evidence, not proof: a service has expired when a registry has found
that its deadline has passed and has persisted that, in one transaction that deletes the record and puts the event.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.web.iweb import IAgent, IPolicyForHTTPS
from zope.interface import implementer

from ....http.agent import httpAgent
from ....http.jsontransport import JSONTransport
from ....http.pool import ConnectionPool
from ....http.queueing import QueueingAgent
from ....http.tls import tlsPolicy
from ....util.concurrency import PrioritySemaphore
from ....util.deferred import returnsDeferred
from ....util.logs import Logger
from ....util.reloading import Reloaded
from ...eventids import EventIds, newTail
from ...model import NewService, ServiceChanges
from ...statistics import StoreStatistics
from .. import payloads
from ..interfaces import (
    Account,
    EventRecord,
    Expiration,
    ISharedStore,
    IStoreListener,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
    ServiceSummary,
    StoreRefused,
    StoreUnavailable,
    TokenRecord,
    UserRecord,
)
from .backlog import Backlog
from .batches import Batches, Transaction
from .events import EtcdEvents
from .gateway import PAGE, TRY, Compare, Etcd, EtcdError, KeyValue, Urgency, User, endOf, put, reading
from .leases import MARGIN, KeepAlives, newLease, secondsLeft
from .node import Node
from .users import EtcdUsers
from .values import EtcdValues
from .watch import Change, watchingAgent

_T = TypeVar("_T")

#: What all keys begin with unless told otherwise.
DEFAULT_PREFIX = "/txserviceregistry/"

#: Connections to each member.
_CONNECTIONS = 8
#: Seconds between two times that the time of a service's heartbeats is written.
_SEEN_INTERVAL = 300.0
_SEEN_AT_ONCE = 8
#: Seconds after which what was found out about a lease does not justify an expiration: this process, or etcd, may have
#: stalled meanwhile.
_EVIDENCE_AGE = 3.0
#: Seconds that a change may take before the lease that was granted for it begins anew.
_PROMPT = 0.5
#: Seconds without etcd after which operations fail at once.
_GIVE_UP = 3.0


@attrs.frozen
class _Held:
    """What is held of each service's record, for heartbeats and deadlines."""

    incarnation: str
    timeout: int
    lease: int


@attrs.frozen
class _Record:
    """A service's record as it is kept."""

    position: int
    timeout: int
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    lease: int

    @classmethod
    def of(cls, value: bytes) -> _Record:
        """From the key's value."""
        kept = json.loads(value)
        return cls(kept["position"], kept["timeout"], tuple(kept["tags"]), kept["metadata"], kept["lease"])

    def toBytes(self) -> bytes:
        """The key's value."""
        return json.dumps({"v": 1, **attrs.asdict(self)}, separators=(",", ":")).encode("ascii")


@implementer(ISharedStore)
class EtcdStore:
    """
    See the module.

    :param reactor: the reactor.
    :param urls: of etcd's members, without a path.
    :param prefix: what all keys begin with, a slash at its end.
    :param credentials: name and password of a user of etcd's, or the file that has the password; ``None`` where it asks
        for none.
    :param policy: the certificates to trust and to show for ``https`` URLs; the platform decides if not given.
    :param agent: does the requests, instead of connections of its own; it must hand over bodies as they come.
    :param wallClock: seconds since the epoch.
    """

    name = "etcd"
    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        urls: Sequence[str],
        *,
        prefix: str = DEFAULT_PREFIX,
        credentials: tuple[str, str | Reloaded[str, str]] | None = None,
        policy: IPolicyForHTTPS | None = None,
        agent: IAgent | None = None,
        wallClock: Callable[[], float] = time.time,
    ) -> None:
        policy = policy or tlsPolicy()
        self._pool = ConnectionPool(reactor, _CONNECTIONS)
        # The watch's answer is read as it comes, which the pool's connections don't do.
        watching = agent or watchingAgent(reactor, policy, TRY)
        agent = QueueingAgent(agent or httpAgent(reactor, policy, TRY, self._pool), _CONNECTIONS)
        user = None
        if credentials is not None:
            user = User(*credentials)
            agent, watching = user.over(agent), user.over(watching)
        # Each member is given its own try.
        transport = JSONTransport(agent, reactor, urls, timeout=TRY * len(urls), name="etcd")
        name = secrets.token_hex(8)
        self.statistics = StoreStatistics()
        self._reactor = reactor
        self._prefix = prefix
        self._wallClock = wallClock
        # This one asks whether or not the store is open and etcd is there: so it finds out.
        self._asking = Etcd(transport, reactor, user=user, onContact=self._contact)
        self._etcd = Etcd(
            transport,
            reactor,
            user=user,
            gate=self._check,
            onContact=self._contact,
            statistics=self.statistics,
            turns=PrioritySemaphore(_CONNECTIONS),
        )
        self._groups = Batches(self._etcd, reactor, wallClock, prefix, name)
        self._keepAlives = KeepAlives(self._etcd, reactor)
        self._backlog = Backlog(reactor, name)
        self._values = EtcdValues(self._etcd, self._groups, prefix)
        self._events = EtcdEvents(self._etcd, prefix, self._idsOf)
        self._users = EtcdUsers(self._etcd, prefix, wallClock)
        self._node = Node(
            self._asking,
            reactor,
            watching,
            urls,
            prefix,
            name,
            onChange=self._changed,
            load=self._load,
            onLost=self._lost,
            backlog=self._backlog,
        )
        self._listener: IStoreListener | None = None
        self.isNew = False
        self._isOpen = False
        self._secret = b""
        self._tail = ""
        self._ids: dict[str, EventIds] = {}
        self._held: dict[tuple[str, str], _Held] = {}
        self._seen: dict[tuple[str, str], int] = {}
        # When the time of an incarnation's heartbeats was written last, and those that are to be.
        self._seenWritten: dict[tuple[str, str], tuple[str, float]] = {}
        self._seenDue: dict[tuple[str, str], int] = {}
        self._background: set[Deferred[Any]] = set()
        self._seenWriters = 0
        # What the alive key's revision was when a deadline was found to have passed, and when that was.
        self._evidence: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._revision = 0

    # -- opening and closing

    @returnsDeferred
    async def open(self) -> None:
        try:
            meta = await self._meta()
        except EtcdError as error:
            raise StoreUnavailable(f"etcd refuses: {error}") from None
        if meta.get("v") != 1:
            raise StoreRefused(
                f"what is in etcd below {self._prefix} was written by another release (version {meta.get('v')})"
            )
        self._secret = bytes.fromhex(meta["secret"])
        self._tail = meta["tail"]
        self.isNew = not await self._users.hasBeenUsed(self._asking)
        self._isOpen = True

    async def _meta(self) -> Any:
        key = f"{self._prefix}meta"
        new = json.dumps({"v": 1, "secret": secrets.token_hex(32), "tail": newTail()}).encode("ascii")
        done = await self._asking.txn([Compare(key, 0)], [put(key, new), reading(key)], [reading(key)])
        found = next(kept for kept in done.found if kept)
        return json.loads(found[0].value)

    def _contact(self, sent: float) -> None:
        self._node.contact(sent)

    @returnsDeferred
    async def close(self) -> None:
        self._listener = None
        try:
            await self._groups.whenIdle()
            await DeferredList(list(self._background))
        finally:
            # The caller may have stopped waiting.
            self._isOpen = False
            await self._node.stop()
            await self._pool.close()

    def _check(self) -> None:
        if not self._isOpen:
            raise StoreUnavailable("the store is not open")
        if self._listener is not None and self._node.secondsAway() > _GIVE_UP:
            raise StoreUnavailable("etcd can't be reached")

    async def _asked(self, answer: Awaitable[_T]) -> _T:
        """The response of etcd; what it refuses, it refuses for reasons that may pass."""
        try:
            return await answer
        except EtcdError as error:
            raise StoreUnavailable(f"etcd refuses: {error}") from None

    def _inBackground(self, work: Deferred[Any]) -> None:
        self._background.add(work)

        def done(result: Any) -> None:
            self._background.discard(work)

        work.addErrback(lambda reason: reason.trap(StoreUnavailable, EtcdError)).addBoth(done)

    # -- changes of others

    def listen(self, listener: IStoreListener) -> None:
        self._listener = listener
        self._backlog.listen()
        self._node.start(self._revision)

    def _lost(self) -> None:
        if self._listener is not None:
            self._listener.lost()

    @returnsDeferred
    async def _load(self, wasLost: bool) -> int:
        services = await self._everything()
        if self._listener is not None:
            self._listener.synchronized(services, wasLost)
            for tenant in {one.tenant for one in services} | {tenant for tenant, _ in self._held}:
                self._listener.eventAdded(tenant)
        return self._revision

    async def _everything(self) -> list[ServiceSummary]:
        """All services; from the revision at which this began, changes are to be watched."""
        _, revision = await self._etcd.range(f"{self._prefix}meta", urgency=Urgency.vital)
        seen = {self._name(each): int(each.value) for each in await self._below("seen/")}
        held: dict[tuple[str, str], _Held] = {}
        for each in await self._below("services/"):
            name = self._name(each)
            held[name] = self._hold(each)
            if name in self._seen and self._held.get(name) == held[name]:
                # The time that is known here may be newer than the one in etcd.
                seen[name] = max(seen.get(name, 0), self._seen[name])
        self._held, self._seen = held, seen
        self._seenWritten = {name: kept for name, kept in self._seenWritten.items() if name in held}
        nodes = await self._below("nodes/")
        self._backlog.receivedAll({each.key.rpartition("/")[2]: _waitOf(each) for each in nodes})
        self._revision = revision
        return [
            ServiceSummary(tenant, id, one.incarnation, one.timeout, seen.get((tenant, id)))
            for (tenant, id), one in held.items()
        ]

    def _below(self, name: str) -> Deferred[list[KeyValue]]:
        return self._etcd.all(self._prefix + name, urgency=Urgency.vital)

    def _idsOf(self, tenant: str) -> EventIds:
        """
        A tenant's event ids. Positions are the tenant's own; so that no two events have the same id, their tails are.
        """
        if tenant not in self._ids:
            drawn = int.from_bytes(blake2b(f"{self._tail} {tenant}".encode(), digest_size=8).digest(), "big")
            self._ids[tenant] = EventIds(self._wallClock, newTail(lambda bits: drawn & (1 << bits) - 1))
        return self._ids[tenant]

    def _name(self, found: KeyValue) -> tuple[str, str]:
        _, tenant, id = found.key[len(self._prefix) :].split("/", 2)
        return tenant, id

    def _hold(self, found: KeyValue) -> _Held:
        record = _Record.of(found.value)
        tenant, _ = self._name(found)
        return _Held(self._idsOf(tenant).idAt(record.position), record.timeout, record.lease)

    def _changed(self, change: Change) -> None:
        listener = self._listener
        if listener is None:
            return
        kind, _, rest = change.now.key[len(self._prefix) :].partition("/")
        if kind == "services":
            tenant, id = self._name(change.now)
            if change.isDeleted:
                # What is held may be a later incarnation, which was created here, and which this change is not about.
                held = self._held.get((tenant, id)) if change.before is None else self._hold(change.before)
                if held is not None:
                    self._forget(tenant, id, held.incarnation)
                    listener.vanished(tenant, id, held.incarnation)
            else:
                held = self._held[tenant, id] = self._hold(change.now)
                seen = self._seen.get((tenant, id))
                listener.appeared(ServiceSummary(tenant, id, held.incarnation, held.timeout, seen))
        elif kind == "seen":
            if change.isDeleted:
                self._seen.pop(self._name(change.now), None)
            else:
                # The time that is known here may be newer than the one in etcd.
                name = self._name(change.now)
                self._seen[name] = max(self._seen.get(name, 0), int(change.now.value))
        elif kind == "events" and not change.isDeleted:
            listener.eventAdded(rest.partition("/")[0])
        elif kind == "nodes":
            if change.isDeleted:
                self._backlog.gone(rest)
            else:
                self._backlog.received(rest, _waitOf(change.now))

    # -- the registry itself

    @returnsDeferred
    async def probe(self) -> None:
        probe = f"{self._prefix}probe"
        await self._asked(self._etcd.txn((), [put(probe, b""), reading(probe)], patience=0))

    @returnsDeferred
    async def secret(self) -> bytes:
        self._check()
        return self._secret

    @returnsDeferred
    async def account(self, tenant: str) -> Account:
        key = f"{self._prefix}accounts/{tenant}"
        new = json.dumps({"v": 1, "created": int(self._wallClock() * 1000)}).encode("ascii")
        done = await self._asked(self._etcd.txn([Compare(key, 0)], [put(key, new), reading(key)], [reading(key)]))
        found = next(kept for kept in done.found if kept)
        return Account(tenant, json.loads(found[0].value)["created"])

    # -- services

    def _serviceKeys(self, tenant: str, id: str) -> tuple[str, str]:
        return f"{self._prefix}services/{tenant}/{id}", f"{self._prefix}alive/{tenant}/{id}"

    def _service(self, tenant: str, id: str, record: _Record) -> ServiceRecord:
        incarnation = self._idsOf(tenant).idAt(record.position)
        return ServiceRecord(
            id, incarnation, record.timeout, record.tags, record.metadata, self._seenOf(tenant, id, incarnation)
        )

    def _seenOf(self, tenant: str, id: str, incarnation: str) -> int | None:
        held = self._held.get((tenant, id))
        if held is not None and held.incarnation != incarnation:
            return None
        return self._seen.get((tenant, id))

    @returnsDeferred
    async def createService(self, tenant: str, service: NewService, maximum: int) -> ServiceRecord:
        id, timeout = service.id, service.heartbeatTimeout
        key, aliveKey = self._serviceKeys(tenant, id)
        lease = newLease()
        granted = self._reactor.seconds()
        await self._asked(self._etcd.grant(lease, timeout + MARGIN))

        def create(transaction: Transaction) -> _Record:
            if transaction.get(key) is not None:
                raise ObjectExists(id)
            if transaction.clock.services >= maximum:
                raise LimitExceeded(maximum)
            position = transaction.addEvent("service.join", payloads.serviceState(ServiceRecord.of(service, "")))
            record = _Record(position, timeout, service.tags, service.metadata, lease)
            transaction.put(key, record.toBytes())
            transaction.put(aliveKey, b"1", lease)
            transaction.clock.services += 1
            return record

        try:
            record = await self._asked(self._groups.do(tenant, [key], create))
        except Exception:
            self._inBackground(self._etcd.revoke(lease))
            raise
        incarnation = self._idsOf(tenant).idAt(record.position)
        self._held[tenant, id] = _Held(incarnation, timeout, lease)
        self._seen.pop((tenant, id), None)
        await self._begin(lease, granted)
        return self._service(tenant, id, record)

    async def _begin(self, lease: int, granted: float) -> None:
        """A service has a full timeout from when its registration, or its change, is acknowledged."""
        if self._reactor.seconds() - granted > _PROMPT:
            try:
                await self._keepAlives.keep(lease)
            except (StoreUnavailable, EtcdError):
                pass  # it has what is left of it; the change has been made

    @returnsDeferred
    async def getService(self, tenant: str, id: str) -> ServiceRecord:
        key, _ = self._serviceKeys(tenant, id)
        found = await self._asked(self._etcd.get(key))
        if found is None:
            raise NoSuchObject(id)
        self._held[tenant, id] = self._hold(found)
        return self._service(tenant, id, _Record.of(found.value))

    @returnsDeferred
    async def listServices(
        self, tenant: str, marker: str | None, count: int, tag: str | None, hidden: Collection[str]
    ) -> list[ServiceRecord]:
        prefix = f"{self._prefix}services/{tenant}/"
        begin, end = prefix + (marker or ""), endOf(prefix)
        services: list[ServiceRecord] = []
        while True:
            size = PAGE if tag is not None else min(PAGE, count - len(services) + len(hidden))
            found, _ = await self._asked(self._etcd.range(begin, end, size))
            for each in found:
                record = _Record.of(each.value)
                if self._idsOf(tenant).idAt(record.position) in hidden or (tag is not None and tag not in record.tags):
                    continue
                services.append(self._service(tenant, each.key[len(prefix) :], record))
                if len(services) == count:
                    return services
            if len(found) < size:
                return services
            begin = found[-1].key + "\0"

    @returnsDeferred
    async def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        key, aliveKey = self._serviceKeys(tenant, id)
        lease = 0
        granted = self._reactor.seconds()
        timeout, tags, metadata = changes.heartbeatTimeout, changes.tags, changes.metadata
        if timeout is not None:
            lease = newLease()
            await self._asked(self._etcd.grant(lease, timeout + MARGIN))

        def update(transaction: Transaction) -> tuple[_Record, int]:
            record = self._recordIn(transaction, tenant, key, incarnation)
            changed = attrs.evolve(
                record,
                timeout=record.timeout if timeout is None else timeout,
                tags=record.tags if tags is None else tags,
                metadata=record.metadata if metadata is None else metadata,
                lease=lease or record.lease,
            )
            transaction.put(key, changed.toBytes())
            if lease:
                transaction.put(aliveKey, b"1", lease)
            return changed, record.lease

        try:
            changed, oldLease = await self._asked(self._groups.do(tenant, [key], update))
        except Exception:
            if lease:
                self._inBackground(self._etcd.revoke(lease))
            raise
        self._held[tenant, id] = _Held(incarnation, changed.timeout, changed.lease)
        if lease:
            self._seenWritten.pop((tenant, id), None)
            self._inBackground(self._etcd.revoke(oldLease))
            await self._begin(lease, granted)
        return self._service(tenant, id, changed)

    def _recordIn(self, transaction: Transaction, tenant: str, key: str, incarnation: str) -> _Record:
        value = transaction.get(key)
        record = None if value is None else _Record.of(value)
        if record is None or self._idsOf(tenant).idAt(record.position) != incarnation:
            raise NoSuchObject(key)
        return record

    @returnsDeferred
    async def removeService(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        key, aliveKey = self._serviceKeys(tenant, id)

        def remove(transaction: Transaction) -> _Record:
            record = self._recordIn(transaction, tenant, key, incarnation)
            self._take(transaction, id, key, aliveKey, record, "service.remove")
            return record

        record = await self._asked(self._groups.do(tenant, [key], remove))
        service = self._service(tenant, id, record)
        self._letGo(tenant, id, incarnation, record.lease)
        return service

    def _take(
        self,
        transaction: Transaction,
        id: str,
        key: str,
        aliveKey: str,
        record: _Record,
        type: str,
        timestamp: int | None = None,
    ) -> None:
        transaction.delete(key)
        transaction.delete(aliveKey)
        service = ServiceRecord(id, "", record.timeout, record.tags, record.metadata)
        transaction.addEvent(type, payloads.serviceState(service), timestamp)
        transaction.clock.services -= 1

    def _letGo(self, tenant: str, id: str, incarnation: str, lease: int) -> None:
        self._forget(tenant, id, incarnation)
        self._inBackground(self._etcd.revoke(lease))

    def _forget(self, tenant: str, id: str, incarnation: str) -> None:
        self._evidence.pop((tenant, id, incarnation), None)
        held = self._held.get((tenant, id))
        if held is not None and held.incarnation == incarnation:
            del self._held[tenant, id]
            self._seen.pop((tenant, id), None)
            self._seenWritten.pop((tenant, id), None)

    @returnsDeferred
    async def expireServices(self, expirations: Sequence[Expiration]) -> None:
        self._check()
        outcomes: Any = await DeferredList([self._persist(each) for each in expirations], consumeErrors=True)
        for succeeded, result in outcomes:
            if not succeeded and not result.check(NoSuchObject):
                result.raiseException()
        for each in expirations:
            self._evidence.pop((each.tenant, each.id, each.incarnation), None)
        active = [each for each, (_, hasExpired) in zip(expirations, outcomes, strict=True) if hasExpired is False]
        if active:
            # In the next turn, when the registry has forgotten them.
            self._reactor.callLater(0, self._reappear, active)

    @returnsDeferred
    async def _persist(self, expiration: Expiration) -> bool:
        """Whether it has expired after all."""
        key, aliveKey = self._serviceKeys(expiration.tenant, expiration.id)
        # It stays until all of them are kept: what fails is tried again.
        evidence = self._evidence.get((expiration.tenant, expiration.id, expiration.incarnation))

        def expire(transaction: Transaction) -> _Record | None:
            record = self._recordIn(transaction, expiration.tenant, key, expiration.incarnation)
            if evidence is not None:
                modified, found = evidence
                # It was heartbeated, and found its lease gone: it has another one. Or it may have been meanwhile.
                if (
                    transaction.modified(aliveKey) not in (0, modified)
                    or self._reactor.seconds() - found > _EVIDENCE_AGE
                ):
                    return None
            transaction.guard(aliveKey)
            self._take(transaction, expiration.id, key, aliveKey, record, "service.timeout", expiration.timestamp)
            return record

        record = await self._asked(self._groups.do(expiration.tenant, [key, aliveKey], expire))
        if record is None:
            return False
        self._letGo(expiration.tenant, expiration.id, expiration.incarnation, record.lease)
        return True

    def _reappear(self, active: Sequence[Expiration]) -> None:
        for each in active:
            held = self._held.get((each.tenant, each.id))
            if self._listener is not None and held is not None:
                seen = self._seen.get((each.tenant, each.id))
                self._listener.appeared(ServiceSummary(each.tenant, each.id, held.incarnation, held.timeout, seen))

    @returnsDeferred
    async def heartbeat(self, tenant: str, id: str, incarnation: str) -> bool:
        number = self._backlog.begin()
        try:
            return await self._keep(tenant, id, incarnation)
        finally:
            self._backlog.end(number)

    async def _keep(self, tenant: str, id: str, incarnation: str) -> bool:
        held = self._held.get((tenant, id))
        isKnown = held is not None and held.incarnation == incarnation
        if held is not None and isKnown and await self._asked(self._keepAlives.keep(held.lease)):
            return True
        # The lease is gone: etcd was stopped, or the service has been updated, or has ended. The record shows which.
        _, aliveKey = self._serviceKeys(tenant, id)
        while True:
            found, alive = await self._recordOf(tenant, id, incarnation, Urgency.vital)
            if found is None:
                return False
            held = self._held[tenant, id] = self._hold(found)
            if not await self._asked(self._keepAlives.keep(held.lease)):
                await self._asked(self._etcd.grant(held.lease, held.timeout + MARGIN, urgency=Urgency.vital))
            elif alive is not None and alive.lease == held.lease:
                return True
            revisions = [Compare(found.key, found.modified), Compare(aliveKey, alive.modified if alive else 0)]
            begins = self._etcd.txn(revisions, [put(aliveKey, b"1", held.lease)], urgency=Urgency.vital)
            done = await self._asked(begins)
            if done.succeeded:
                self._seenWritten.pop((tenant, id), None)
                return True

    async def _recordOf(
        self, tenant: str, id: str, incarnation: str, urgency: Urgency
    ) -> tuple[KeyValue | None, KeyValue | None]:
        """A service's record and its alive key as they are at one moment; ``None`` for what is not there."""
        reads = [reading(key) for key in self._serviceKeys(tenant, id)]
        done = await self._asked(self._etcd.txn((), reads, urgency=urgency))
        found, alive = (kept[0] if kept else None for kept in done.found)
        if found is None or self._hold(found).incarnation != incarnation:
            return None, None
        return found, alive

    @returnsDeferred
    async def secondsLeft(self, tenant: str, id: str, incarnation: str) -> float:
        self._check()
        if self._backlog.mayBeLong:
            # Asking would only add to it.
            return 0.0
        held = self._held.get((tenant, id))
        if held is not None and held.incarnation == incarnation:
            left = await self._left(held)
            if left >= 0:
                return left
        # A lease that seems to have ended is looked at once more, so that one that begins anew from now on is seen,
        # and so is another one: that what is held here is old proves nothing.
        found, alive = await self._recordOf(tenant, id, incarnation, Urgency.pressing)
        if found is None:
            return -1.0
        held = self._held[tenant, id] = self._hold(found)
        left = await self._left(held)
        if left < 0:
            if self._backlog.mayBeLong or (self._listener is not None and not self._node.isSteady):
                return 0.0
            self._evidence[tenant, id, incarnation] = alive.modified if alive else 0, self._reactor.seconds()
        return left

    async def _left(self, held: _Held) -> float:
        left, granted = await self._asked(self._etcd.timeToLive(held.lease))
        return secondsLeft(left, granted, held.timeout)

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        held = self._held.get((tenant, id))
        if held is None or held.incarnation != incarnation or not self._isOpen:
            return
        self._seen[tenant, id] = lastSeen
        known = self._seenWritten.get((tenant, id))
        now = self._reactor.seconds()
        if known is not None and known[0] == incarnation and now - known[1] < _SEEN_INTERVAL:
            return
        self._seenWritten[tenant, id] = incarnation, now
        self._seenDue[tenant, id] = lastSeen
        if self._seenWriters < _SEEN_AT_ONCE:
            self._inBackground(self._writeSeen())

    @returnsDeferred
    async def _writeSeen(self) -> None:
        self._seenWriters += 1
        try:
            while self._seenDue:
                (tenant, id), lastSeen = self._seenDue.popitem()
                held = self._held.get((tenant, id))
                if held is not None:
                    key = f"{self._prefix}seen/{tenant}/{id}"
                    try:
                        written = put(key, str(lastSeen).encode("ascii"), held.lease)
                        await self._etcd.txn((), [written], patience=0, urgency=Urgency.idle)
                    except EtcdError:
                        pass  # the lease is gone, and with it the service, or it begins anew
        finally:
            self._seenWriters -= 1

    @returnsDeferred
    async def allServices(self) -> list[ServiceSummary]:
        services: list[ServiceSummary] = await self._asked(self._everything())
        return services

    # -- configuration

    def getValue(self, tenant: str, key: str) -> Deferred[str]:
        return self._start(self._values.get(tenant, key))

    def listValues(
        self, tenant: str, marker: str | None, count: int, namespace: str | None
    ) -> Deferred[list[tuple[str, str]]]:
        return self._start(self._values.list(tenant, marker, count, namespace))

    def setValue(self, tenant: str, key: str, value: str, maximum: int) -> Deferred[None]:
        return self._start(self._values.set(tenant, key, value, maximum))

    def removeValue(self, tenant: str, key: str) -> Deferred[None]:
        return self._start(self._values.remove(tenant, key))

    # -- events

    def listEvents(self, tenant: str, position: int, count: int, type: str | None) -> Deferred[list[EventRecord]]:
        return self._start(self._events.list(tenant, position, count, type))

    def hasEvent(self, tenant: str, id: str) -> Deferred[bool]:
        return self._start(self._events.has(tenant, id))

    def dropEvents(self, before: int) -> Deferred[int]:
        """See :meth:`IStore.dropEvents`, and :meth:`EtcdEvents.drop`."""
        return self._start(self._events.drop(before))

    # -- identity

    def addUser(self, name: str, keyHash: str, tenant: str | None) -> Deferred[UserRecord]:
        return self._start(self._users.add(name, keyHash, tenant))

    def replaceUserKey(self, name: str, keyHash: str) -> Deferred[UserRecord]:
        return self._start(self._users.replaceKey(name, keyHash))

    def removeUser(self, name: str) -> Deferred[None]:
        return self._start(self._users.remove(name))

    def getUser(self, name: str) -> Deferred[UserRecord]:
        return self._start(self._users.get(name))

    def listUsers(self) -> Deferred[list[UserRecord]]:
        return self._start(self._users.all())

    def addToken(self, token: TokenRecord) -> Deferred[None]:
        return self._start(self._users.addToken(token))

    def getToken(self, tokenHash: str) -> Deferred[TokenRecord]:
        return self._start(self._users.getToken(tokenHash))

    def removeToken(self, tokenHash: str) -> Deferred[None]:
        return self._start(self._users.removeToken(tokenHash))

    def _start(self, answer: Coroutine[Deferred[Any], Any, _T]) -> Deferred[_T]:
        return Deferred.fromCoroutine(self._asked(answer))


def _waitOf(node: KeyValue) -> float:
    """How long a node's oldest heartbeat has been waiting, by the node's key; 0 if that does not say."""
    try:
        return float(json.loads(node.value)["behind"])
    except (ValueError, TypeError, LookupError):
        # A node of another release may say something else there, and must not keep this one from hearing the rest.
        return 0.0
