"""The operations of the stores whose content is in tables: in a SQLite file, or in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred

from ....util.deferred import returnsDeferred
from ...model import UNCONDITIONAL, NewService, Precondition
from ..interfaces import Account, Expiration, ServiceRecord
from .tables import Tables, Together

_C = TypeVar("_C")
_P = ParamSpec("_P")
_T = TypeVar("_T")

#: Parts of large operations, small enough that an operation which comes in between waits a few milliseconds.
_EXPIRATIONS_PER_CHUNK = 200
_EVENTS_PER_CHUNK = 500


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _reads(
    operation: Callable[Concatenate[Tables, _P], _T], isWrite: bool = False
) -> Callable[Concatenate[TableStore, _P], Deferred[_T]]:
    """The operation of a store that the tables do."""

    @wraps(operation)
    def do(self: TableStore, /, *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        way = self._write if isWrite else self._read
        return way(lambda tables: operation(tables, *args, **kwargs))

    return do


def _writes(
    operation: Callable[Concatenate[Tables, _P], _T],
) -> Callable[Concatenate[TableStore, _P], Deferred[_T]]:
    return _reads(operation, isWrite=True)


class TableStore(ABC):
    """
    A store does its operations by :class:`Tables`, and says how it reaches them. Large ones are done in parts, between
    which others have their turn: if a part fails, the earlier ones are done, and the operation can be repeated.
    """

    @abstractmethod
    def _read(self, operation: Callable[[Tables], _T]) -> Deferred[_T]:
        """Do an operation that changes nothing."""

    @abstractmethod
    def _write(self, operation: Callable[[Tables], _T]) -> Deferred[_T]:
        """Do all of an operation, or nothing of it."""

    @abstractmethod
    def _writeAmong(self, together: Together[_C, _T], change: _C) -> Deferred[_T]:
        """Make one change of a kind of which many may come."""

    secret = _reads(Tables.secret)

    @returnsDeferred
    async def account(self, tenant: str) -> Account:
        found = await self._read(lambda tables: tables.findAccount(tenant))
        return await self._write(lambda tables: tables.makeAccount(tenant)) if found is None else found

    def createService(self, tenant: str, service: NewService, maximum: int) -> Deferred[ServiceRecord]:
        return self._writeAmong(Tables.createServices, (tenant, service, maximum))

    getService = _reads(Tables.getService)
    listServices = _reads(Tables.listServices)
    updateService = _writes(Tables.updateService)
    removeService = _writes(Tables.removeService)
    allServices = _reads(Tables.allServices)

    @returnsDeferred
    async def expireServices(self, expirations: Sequence[Expiration]) -> None:
        for part in chunks(expirations, _EXPIRATIONS_PER_CHUNK):
            await self._write(partial(Tables.expireServices, expirations=part))

    setState = _writes(Tables.setState)
    getState = _reads(Tables.getState)
    listStates = _reads(Tables.listStates)
    dropStates = _writes(Tables.dropStates)

    @returnsDeferred
    async def endStates(self) -> tuple[Collection[str], int | None]:
        over, next = await self._read(Tables.overStates)
        changed: set[str] = set()
        for part in chunks(over, _EXPIRATIONS_PER_CHUNK):
            changed |= await self._write(partial(Tables.endStates, names=part))
        return changed, next

    acquireLock = _writes(Tables.acquireLock)
    getLock = _reads(Tables.getLock)
    listLocks = _reads(Tables.listLocks)
    forceLock = _writes(Tables.forceLock)
    releaseLock = _writes(Tables.releaseLock)
    expireLocks = _writes(Tables.expireLocks)
    allLocks = _reads(Tables.allLocks)

    getValue = _reads(Tables.getValue)
    listValues = _reads(Tables.listValues)
    removeValue = _writes(Tables.removeValue)

    def setValue(
        self, tenant: str, key: str, value: str, maximum: int, precondition: Precondition = UNCONDITIONAL
    ) -> Deferred[int]:
        return self._writeAmong(Tables.setValues, (tenant, key, value, maximum, precondition))

    listEvents = _reads(Tables.listEvents)
    lastEvent = _reads(Tables.lastEvent)
    hasEvent = _reads(Tables.hasEvent)

    @returnsDeferred
    async def dropEvents(self, before: int) -> int:
        dropped = 0
        for tenant in await self._read(Tables.tenants):
            drop = partial(Tables.dropEvents, tenant=tenant, before=before, count=_EVENTS_PER_CHUNK)
            while part := await self._write(drop):
                dropped += part
        return dropped

    addUser = _writes(Tables.addUser)
    replaceUserKey = _writes(Tables.replaceUserKey)
    changeRole = _writes(Tables.changeRole)
    removeUser = _writes(Tables.removeUser)
    getUser = _reads(Tables.getUser)
    listUsers = _reads(Tables.listUsers)
    addToken = _writes(Tables.addToken)
    getToken = _reads(Tables.getToken)
    removeToken = _writes(Tables.removeToken)
