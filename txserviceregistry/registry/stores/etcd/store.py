"""
The store that keeps everything in a cluster of etcd, for any number of registries at once.

The keys below the prefix:

==============================  =======================================================================================
``meta``                        the registry's secret, and the tail of its event ids
``accounts/T``                  when the account was created
``clocks/T``                    the tenant's clock: :mod:`~txserviceregistry.registry.stores.etcd.batches`
``commits/T/PROCESS``           the number of a process's last group of changes for this tenant
``services/T/ID``               a service's record
``states/T/ID``                 the record of a state: :mod:`~txserviceregistry.registry.stores.etcd.states`
``seen/T/ID``                   the time of a heartbeat, written by touches and now and then
``locks/T/NAME``                a lock's record, and
``seen-locks/T/NAME``           its touches
``values/T/KEY``                a configuration value
``events/T/POSITION``           events of version 1.0 up to this position, and
``moreevents/T/POSITION``       events of other types
``users/NAME`` ``tokens/HASH``  :mod:`~txserviceregistry.registry.stores.etcd.users`
``joins``                       written by every node that joins
``nodes/NODE``                  a node's status, with a lease: :mod:`~txserviceregistry.registry.stores.etcd.node`
==============================  =======================================================================================

Values are JSON with a version, ``v``. A service has no lease: the nodes vote on its expiration
(:mod:`~txserviceregistry.registry.stores.etcd.votes`).
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.web.iweb import IAgent, IPolicyForHTTPS
from zope.interface import implementer

from ....http.jsontransport import JSONTransport
from ....http.pool import ConnectionPool, PooledAgent
from ....http.queueing import QueueingAgent
from ....http.tls import tlsPolicy
from ....util.concurrency import PrioritySemaphore
from ....util.deferred import returnsDeferred
from ....util.files import Reloaded
from ....util.suspend import bootTime
from ...statistics import StoreStatistics
from ..interfaces import Account, StoreUnavailable
from ..shared import ISharedStore, IStoreListener
from . import DEFAULT_PREFIX
from .batches import Batches
from .events import EtcdEvents
from .gateway import TRY, Etcd, User, jsonBytes, put, reading, unchanged
from .kept import readKept
from .keys import NodeKeys
from .layout import openLayout
from .locks import EtcdLocks
from .node import Node
from .part import TenantIds
from .services import EtcdServices
from .states import EtcdStates
from .users import EtcdUsers
from .values import EtcdValues

#: Connections to each member.
_CONNECTIONS = 8
#: Seconds without a response of etcd after which requests are refused at once.
_GIVE_UP = 3.0


@implementer(ISharedStore)
class EtcdStore:
    """
    See the module.

    :param urls: of etcd's members, without a path.
    :param prefix: the beginning of all keys, with a slash at its end.
    :param credentials: name and password of a user of etcd's, or the file that has the password; ``None`` where it asks
        for none.
    :param policy: whom to trust behind an ``https`` URL, and who to be there; the platform decides if not given.
    :param agent: does the requests, instead of connections of its own; it must hand over bodies as they come.
    :param wallClock: seconds since the epoch; *seconds*: those that count on while the machine sleeps.
    """

    name = "etcd"

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
        self.statistics = StoreStatistics(votes=self._countVotes)
        self.isNew = False
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
        self._ids = TenantIds(wallClock)
        self._batches = Batches(self._etcd, reactor, wallClock, prefix, secrets.token_hex(8))
        part = (self._etcd, self._batches, prefix, self._ids, reactor, wallClock)
        states = EtcdStates(*part)
        self._services = EtcdServices(*part, states=states)
        self._locks = EtcdLocks(*part)
        values = EtcdValues(*part)
        events = EtcdEvents(*part)
        self._users = EtcdUsers(*part)
        self._keys = NodeKeys(self._asking, *part[1:], watching, user, urls, self._services, self._locks)
        self._node = self._keys.node = Node(self._keys, reactor, seconds)
        self._isOpen = False
        self._secret = b""
        # When a request was sent that etcd has answered, by the reactor's clock; counts from the join on.
        self._contacted = math.inf
        # Writes the times of heartbeats.
        self._writing: Deferred[Any] | None = None
        self.createService = self._services.create
        self.getService = self._services.get
        self.listServices = self._services.list
        self.updateService = self._services.update
        self.removeService = self._services.remove
        self.setState = states.set
        self.getState = states.get
        self.listStates = states.list
        self.endStates = states.end
        self.dropStates = states.drop
        self.acquireLock = self._locks.acquire
        self.getLock = self._locks.get
        self.listLocks = self._locks.list
        self.forceLock = self._locks.force
        self.releaseLock = self._locks.release
        self.getValue = values.get
        self.listValues = values.list
        self.setValue = values.set
        self.removeValue = values.remove
        self.listEvents = events.list
        self.lastEvent = events.last
        self.hasEvent = events.has
        self.dropEvents = events.drop
        self.addUser = self._users.add
        self.replaceUserKey = self._users.replaceKey
        self.changeRole = self._users.changeRole
        self.removeUser = self._users.remove
        self.getUser = self._users.get
        self.listUsers = self._users.all
        self.addToken = self._users.addToken
        self.getToken = self._users.getToken
        self.removeToken = self._users.removeToken

    def _countVotes(self) -> int:
        return 0 if self._node.votes is None else self._node.votes.listed

    # -- opening and closing

    @returnsDeferred
    async def open(self) -> None:
        meta = await openLayout(self._asking, self._reactor, self._prefix)
        self._keys.secret = meta["secret"]
        self._secret = bytes.fromhex(meta["secret"])
        self._ids.tail = meta["tail"]
        self.isNew = not await self._users.hasBeenUsed(self._asking)
        self._isOpen = True

    def _contact(self, sent: float) -> None:
        self._contacted = max(self._contacted, sent)

    @returnsDeferred
    async def close(self) -> None:
        try:
            await self._batches.whenIdle()
            if self._writing is not None:
                self._writing.cancel()
        finally:
            # The caller may have stopped waiting for this.
            self._isOpen = False
            await self._node.stop()
            await gatherResults([self._pool.close(), self._watchPool.close()], consumeErrors=True)

    def _check(self) -> None:
        if not self._isOpen:
            raise StoreUnavailable("the store is not open")
        if self._reactor.seconds() - self._contacted > _GIVE_UP:
            raise StoreUnavailable("etcd can't be reached")

    # -- the registries that share the store

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

    def tick(self) -> None:
        self._node.tick()

    def closed(self, tenant: str) -> Container[str]:
        return self._node.closed(tenant)

    @returnsDeferred
    async def admit(self, tenant: str, incarnation: str) -> bool:
        return await self._node.admit((tenant, incarnation))

    # -- the registry itself

    @returnsDeferred
    async def probe(self) -> None:
        probe = f"{self._prefix}probe"
        await self._etcd.txn((), [put(probe, b""), reading(probe)], patience=0)

    @returnsDeferred
    async def secret(self) -> bytes:
        self._check()
        return self._secret

    @returnsDeferred
    async def account(self, tenant: str) -> Account:
        key = f"{self._prefix}accounts/{tenant}"
        new = jsonBytes({"v": 1, "created": int(self._wallClock() * 1000)})
        done = await self._etcd.txn([unchanged(key, 0)], [put(key, new), reading(key)], [reading(key)])
        found = next(kept for kept in done.found if kept)
        return Account(tenant, readKept(key, found[0].value, {"created": int})["created"])

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        if self._isOpen and self._services.noteSeen(tenant, id, incarnation, lastSeen):
            self._writing = Deferred.fromCoroutine(self._services.writeSeen())
            self._writing.addErrback(lambda failure: failure.trap(StoreUnavailable, CancelledError))
