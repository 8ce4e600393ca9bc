"""
The store that keeps everything in memory, for tests and for throw-away use.

It uses no threads and no time except the wall clock that it is given: every Deferred that it returns has fired
already. It passes the same suite of tests as the durable stores, so that it can stand for them in tests.
"""

from __future__ import annotations

import copy
import secrets
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import wraps
from itertools import count as naturals
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import attrs
from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from .. import eventids
from ..model import PLAIN_TYPES, UNCONDITIONAL, NewService, Precondition, ServiceChanges
from ..roles import WRITE, Role
from ..statistics import StoreStatistics
from . import payloads
from .interfaces import (
    Account,
    EventRecord,
    Expiration,
    IStore,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    PreconditionFailed,
    ServiceRecord,
    ServiceSummary,
    StoreError,
    StoreUnavailable,
    TokenRecord,
    UserRecord,
    ValueRecord,
)
from .memorylocks import MemoryLocks
from .memorystates import StateTable
from .states import StateRecord

_P = ParamSpec("_P")
_T = TypeVar("_T")


@attrs.define
class _Tenant:
    """All that belongs to one tenant. Ids, keys and positions are kept sorted beside the tables that they lead to."""

    account: Account | None = None
    services: dict[str, ServiceRecord] = attrs.Factory(dict)
    serviceIds: list[str] = attrs.Factory(list)
    idsByTag: defaultdict[str, list[str]] = attrs.Factory(lambda: defaultdict(list))
    values: dict[str, ValueRecord] = attrs.Factory(dict)
    keys: list[str] = attrs.Factory(list)
    states: StateTable = attrs.Factory(StateTable)
    events: dict[int, EventRecord] = attrs.Factory(dict)
    positions: list[int] = attrs.Factory(list)
    plainPositions: list[int] = attrs.Factory(list)

    def put(self, service: ServiceRecord) -> None:
        self.services[service.id] = service
        insort(self.serviceIds, service.id)
        for tag in set(service.tags):
            insort(self.idsByTag[tag], service.id)

    def take(self, id: str, incarnation: str) -> ServiceRecord:
        service = self.service(id, incarnation)
        del self.services[id]
        _takeFrom(self.serviceIds, id)
        for tag in set(service.tags):
            ids = self.idsByTag[tag]
            _takeFrom(ids, id)
            if not ids:
                del self.idsByTag[tag]
        return service

    def service(self, id: str, incarnation: str) -> ServiceRecord:
        service = self.services.get(id)
        if service is None or service.incarnation != incarnation:
            raise NoSuchObject(id)
        return service


def _takeFrom(values: list[str], value: str) -> None:
    del values[bisect_left(values, value)]


def _from(values: Sequence[_T], index: int) -> Iterator[_T]:
    """The *values* from *index* on, without a walk over those before."""
    return map(values.__getitem__, range(index, len(values)))


def _own(service: ServiceRecord, state: StateRecord | None = None) -> ServiceRecord:
    """A copy whose metadata the caller may change without changing the store, with its state."""
    return attrs.evolve(service, metadata=dict(service.metadata), state=state)


def _operation(
    function: Callable[Concatenate[MemoryStore, _P], _T],
) -> Callable[Concatenate[MemoryStore, _P], Deferred[_T]]:
    """Let a method that returns at once return a Deferred, as an operation of a store does."""

    @wraps(function)
    def operation(self: MemoryStore, /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        try:
            self._checkAvailable()
            return succeed(function(self, *args, **kwargs))
        except StoreError as error:
            return fail(error)

    return operation


@implementer(IStore)
class MemoryStore:
    """
    See the module. Its content lasts as long as the object: it may be closed and opened again.

    :param wallClock: seconds since 1970.
    :ivar unavailable: while it is true, every operation except ``close`` fails with :class:`StoreUnavailable`, and
        nothing changes.
    """

    name = "memory"

    def __init__(self, wallClock: Callable[[], float] = time.time) -> None:
        self.unavailable: bool = False
        self.statistics = StoreStatistics()
        self._isOpen = False
        self._wallClock = wallClock
        self._eventIds = eventids.EventIds(wallClock, eventids.newTail())
        self._secret = secrets.token_bytes(32)
        self._tenants: defaultdict[str, _Tenant] = defaultdict(_Tenant)
        self._users: dict[str, UserRecord] = {}
        self._tokens: dict[str, TokenRecord] = {}
        self.locks = MemoryLocks(self._checkAvailable, self._addEvent)

    def _checkAvailable(self) -> None:
        if self.unavailable:
            raise StoreUnavailable("the store is set to be unavailable")
        if not self._isOpen:
            raise StoreUnavailable("the store is not open")

    def _milliseconds(self) -> int:
        return int(self._wallClock() * 1000)

    def _putEvent(
        self, tenant: _Tenant, position: int, type: str, payload: Mapping[str, Any], timestamp: int | None = None
    ) -> None:
        tenant.positions.append(position)
        if type in PLAIN_TYPES:
            tenant.plainPositions.append(position)
        moment = self._milliseconds() if timestamp is None else timestamp
        tenant.events[position] = EventRecord(self._eventIds.idAt(position), moment, type, payload)

    def _addEvent(self, tenant: str, type: str, payload: Mapping[str, Any], timestamp: int | None = None) -> str:
        position = self._eventIds.next()
        self._putEvent(self._tenants[tenant], position, type, payload, timestamp)
        return self._eventIds.idAt(position)

    def open(self) -> Deferred[None]:
        if self.unavailable:
            return fail(StoreUnavailable("the store is set to be unavailable"))
        self._isOpen = True
        return succeed(None)

    def close(self) -> Deferred[None]:
        self._isOpen = False
        return succeed(None)

    @_operation
    def probe(self) -> None:
        pass

    @_operation
    def secret(self) -> bytes:
        return self._secret

    @_operation
    def account(self, tenant: str) -> Account:
        kept = self._tenants[tenant]
        if kept.account is None:
            kept.account = Account(tenant, self._milliseconds())
        return kept.account

    @_operation
    def createService(self, tenant: str, service: NewService, maximum: int) -> ServiceRecord:
        kept = self._tenants[tenant]
        if service.id in kept.services:
            raise ObjectExists(service.id)
        if len(kept.services) >= maximum:
            raise LimitExceeded(maximum)
        position = self._eventIds.next()
        state = kept.states.find(service.id, self._milliseconds())
        record = ServiceRecord.of(service, self._eventIds.idAt(position), state)
        kept.put(attrs.evolve(record, state=None))
        kept.states.used(service.id)
        self._putEvent(kept, position, "service.join", payloads.serviceState(record))
        return _own(record, state)

    @_operation
    def getService(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        kept = self._tenants[tenant]
        service = kept.services.get(id)
        if service is None:
            raise NoSuchObject(id)
        return self._shown(kept, service, states)

    def _shown(self, kept: _Tenant, service: ServiceRecord, states: bool) -> ServiceRecord:
        return _own(service, kept.states.find(service.id, self._milliseconds()) if states else None)

    @_operation
    def listServices(
        self,
        tenant: str,
        marker: str | None,
        count: int,
        tag: str | None,
        hidden: Collection[str],
        states: bool = False,
    ) -> list[ServiceRecord]:
        kept = self._tenants[tenant]
        ids = kept.serviceIds if tag is None else kept.idsByTag.get(tag, [])
        services = (kept.services[id] for id in _from(ids, bisect_left(ids, marker or "")))
        found = islice((one for one in services if one.incarnation not in hidden), count)
        return [self._shown(kept, service, states) for service in found]

    @_operation
    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        kept = self._tenants[tenant]
        old = kept.take(id, incarnation)
        service = old.changed(changes)
        kept.put(service)
        if service != old:
            payload = payloads.updatedService(old, self._shown(kept, service, True))
            self._putEvent(kept, self._eventIds.next(), "service.update", payload)
        return _own(service)

    @_operation
    def removeService(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        kept = self._tenants[tenant]
        service = kept.take(id, incarnation)
        self._putEvent(kept, self._eventIds.next(), "service.remove", payloads.serviceState(service))
        return service

    @_operation
    def expireServices(self, expirations: Sequence[Expiration]) -> None:
        for expiration in expirations:
            kept = self._tenants[expiration.tenant]
            try:
                service = kept.take(expiration.id, expiration.incarnation)
            except NoSuchObject:
                continue
            state = payloads.serviceState(service)
            self._putEvent(kept, self._eventIds.next(), "service.timeout", state, expiration.timestamp)

    def recordLastSeen(self, tenant: str, id: str, incarnation: str, lastSeen: int) -> None:
        kept = self._tenants[tenant]
        try:
            self._checkAvailable()
            kept.services[id] = attrs.evolve(kept.service(id, incarnation), lastSeen=lastSeen)
        except StoreError:
            pass  # the time of a heartbeat may be lost

    # -- the states of services

    @_operation
    def setState(self, tenant: str, record: StateRecord, maximum: int) -> bool:
        kept = self._tenants[tenant]
        return self._putStateEvents(kept, kept.states.set(record, self._milliseconds(), maximum))

    def _putStateEvents(self, kept: _Tenant, events: Sequence[tuple[Mapping[str, Any], int]]) -> bool:
        for payload, timestamp in events:
            self._putEvent(kept, self._eventIds.next(), "service.state", payload, timestamp)
        return bool(events)

    @_operation
    def getState(self, tenant: str, id: str) -> StateRecord:
        return self._tenants[tenant].states.find(id, self._milliseconds()) or StateRecord(id)

    @_operation
    def listStates(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        return self._tenants[tenant].states.all(marker or "", self._milliseconds())[:count]

    @_operation
    def endStates(self) -> tuple[Collection[str], int | None]:
        now, tenants = self._milliseconds(), self._tenants.items()
        changed = {name for name, kept in tenants if self._putStateEvents(kept, kept.states.end(now))}
        ends = [end for _, kept in tenants if (end := kept.states.nextEnd()) is not None]
        return changed, min(ends, default=None)

    @_operation
    def dropStates(self, before: int) -> Collection[str]:
        now, tenants = self._milliseconds(), self._tenants.items()
        dropped = ((name, kept.states.drop(kept.services, before, now)) for name, kept in tenants)
        return {name for name, events in dropped if self._putStateEvents(self._tenants[name], events)}

    @_operation
    def allServices(self) -> list[ServiceSummary]:
        return [one.summary(tenant) for tenant, kept in self._tenants.items() for one in kept.services.values()]

    @_operation
    def getValue(self, tenant: str, key: str) -> ValueRecord:
        kept = self._tenants[tenant].values.get(key)
        if kept is None:
            raise NoSuchObject(key)
        return kept

    @_operation
    def listValues(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[ValueRecord]:
        kept = self._tenants[tenant]
        below = "" if namespace is None else namespace.rstrip("/") + "/"
        first = bisect_left(kept.keys, max(marker or "", namespace or ""))
        keys = (key for key in _from(kept.keys, first) if key == namespace or key.startswith(below))
        return [kept.values[key] for key in islice(keys, count)]

    @_operation
    def setValue(
        self, tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> int:
        kept, old = self._tenants[tenant], self._valueFor(tenant, key, precondition)
        if old is not None and old.value == value:
            return old.position
        if old is None:
            if len(kept.values) >= maximum:
                raise LimitExceeded(maximum)
            insort(kept.keys, key)
        new = kept.values[key] = ValueRecord(key, value, self._eventIds.next())
        payload = payloads.updatedValue(key, None if old is None else old.value, value)
        self._putEvent(kept, new.position, "configuration_value.update", payload)
        return new.position

    @_operation
    def removeValue(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        kept, old = self._tenants[tenant], self._valueFor(tenant, key, precondition)
        if old is None:
            raise NoSuchObject(key)
        del kept.values[key]
        _takeFrom(kept.keys, key)
        payload = payloads.removedValue(key, old.value)
        self._putEvent(kept, self._eventIds.next(), "configuration_value.remove", payload)

    def _valueFor(self, tenant: str, key: str, precondition: Precondition) -> ValueRecord | None:
        """The value that is to be written; it is ``None`` if there is none."""
        kept = self._tenants[tenant].values.get(key)
        position = None if kept is None else kept.position
        if not precondition.allows(position):
            raise PreconditionFailed(position)
        return kept

    @_operation
    def listEvents(self, tenant: str, position: int, count: int, types: Collection[str] | None) -> list[EventRecord]:
        kept = self._tenants[tenant]
        positions = kept.plainPositions if types is not None and PLAIN_TYPES.issuperset(types) else kept.positions
        events = (kept.events[each] for each in _from(positions, bisect_left(positions, position)))
        return copy.deepcopy(list(islice((each for each in events if types is None or each.type in types), count)))

    @_operation
    def lastEvent(self, tenant: str) -> str | None:
        positions = self._tenants[tenant].positions
        return self._eventIds.idAt(positions[-1]) if positions else None

    @_operation
    def hasEvent(self, tenant: str, id: str) -> bool:
        return self._eventIds.owned(id) in self._tenants[tenant].events

    @_operation
    def dropEvents(self, before: int) -> int:
        dropped = 0
        for kept in self._tenants.values():
            end = bisect_left(kept.positions, before)
            for position in kept.positions[:end]:
                del kept.events[position]
            del kept.positions[:end], kept.plainPositions[: bisect_left(kept.plainPositions, before)]
            dropped += end
        return dropped

    @_operation
    def addUser(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        if name in self._users:
            raise ObjectExists(name)
        if tenant is None:
            taken = {user.tenant for user in self._users.values()}
            taken |= {number for number, kept in self._tenants.items() if kept.account is not None or kept.events}
            tenant = next(number for number in map(str, naturals(1)) if number not in taken)
        self._users[name] = UserRecord(name, tenant, keyHash, role)
        return self._users[name]

    @_operation
    def replaceUserKey(self, name: str, keyHash: str) -> UserRecord:
        user = self._users[name] = attrs.evolve(self._user(name), keyHash=keyHash)
        self._endTokensOf(name)
        return user

    @_operation
    def changeRole(self, name: str, role: Role) -> UserRecord:
        user = self._users[name] = attrs.evolve(self._user(name), role=role)
        return user

    @_operation
    def removeUser(self, name: str) -> None:
        del self._users[self._user(name).name]
        self._endTokensOf(name)

    @_operation
    def getUser(self, name: str) -> UserRecord:
        return self._user(name)

    @_operation
    def listUsers(self) -> list[UserRecord]:
        return [self._users[name] for name in sorted(self._users)]

    def _user(self, name: str) -> UserRecord:
        user = self._users.get(name)
        if user is None:
            raise NoSuchObject(name)
        return user

    def _endTokensOf(self, user: str) -> None:
        self._tokens = {key: token for key, token in self._tokens.items() if token.user != user}

    @_operation
    def addToken(self, token: TokenRecord) -> None:
        now = self._wallClock()
        self._tokens = {key: kept for key, kept in self._tokens.items() if kept.expires > now}
        self._tokens[token.tokenHash] = token

    @_operation
    def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        token = self._tokens.get(tokenHash)
        if token is None:
            raise NoSuchObject("token")
        return token, self._user(token.user)

    @_operation
    def removeToken(self, tokenHash: str) -> bool:
        return self._tokens.pop(tokenHash, None) is not None
