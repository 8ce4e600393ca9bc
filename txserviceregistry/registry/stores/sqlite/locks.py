"""The operations of a store on the table of locks."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import attrs

from ...model import NewLock
from ...scopes import tenantOf
from ..interfaces import Expiration, LimitExceeded, LockRecord, LockTaken, NoSuchObject, ServiceSummary
from .database import EVENT_TYPES, Database, asBytes, asJson, asText

_FIELDS = "SELECT name, timeout, holder, nonce, metadata, incarnation, fence, acquired, is_forced FROM locks"


class LockTables(Database):
    """Locks. The methods are the operations of :class:`IStore`."""

    def acquireLock(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> LockRecord:
        held = self._findLock(tenant, lock.name)
        if held is not None:
            raise LockTaken(held)
        count, last = self._one("SELECT locks, last_fence FROM tenants WHERE tenant = ?", tenant) or (0, 0)
        if count >= maximum:
            raise LimitExceeded(maximum)
        fence = max(last + 1, fence)
        self._execute(
            "INSERT INTO tenants (tenant, locks, last_fence) VALUES (?, 1, ?)"
            " ON CONFLICT (tenant) DO UPDATE SET locks = locks + 1, last_fence = excluded.last_fence",
            (tenant, fence),
        )
        position = self._ids.next()
        record = LockRecord.of(lock, self._ids.idAt(position), fence, now)
        given = tenant, lock.name, lock.timeout, asBytes(lock.holder), lock.nonce, asJson(lock.metadata)
        self._execute(
            "INSERT INTO locks (tenant, name, timeout, holder, nonce, metadata, incarnation, fence, acquired)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*given, position, fence, now),
        )
        self._addEvents([(tenant, position, self._milliseconds(), EVENT_TYPES["lock.acquire"], asJson(record.shown()))])
        return record

    def _lock(self, row: Sequence[Any]) -> LockRecord:
        name, timeout, holder, nonce, metadata, position, fence, acquired, isForced = row
        new = NewLock(name, timeout, asText(holder), nonce, json.loads(metadata))
        return attrs.evolve(LockRecord.of(new, self._ids.idAt(position), fence, acquired), isForced=bool(isForced))

    def _findLock(self, tenant: str, name: str) -> LockRecord | None:
        row = self._one(f"{_FIELDS} WHERE tenant = ? AND name = ?", tenant, name)
        return None if row is None else self._lock(row)

    def getLock(self, tenant: str, name: str, incarnation: str | None = None) -> LockRecord:
        record = self._findLock(tenant, name)
        if record is None or incarnation not in (None, record.incarnation):
            raise NoSuchObject(name)
        return record

    def listLocks(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> list[LockRecord]:
        rows = self._execute(f"{_FIELDS} WHERE tenant = ? AND name >= ? ORDER BY name", (tenant, marker or ""))
        return list(islice((lock for lock in map(self._lock, rows) if lock.incarnation not in hidden), count))

    def forceLock(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        record = self.getLock(tenant, name, incarnation)
        self._execute("UPDATE locks SET is_forced = 1 WHERE tenant = ? AND name = ?", (tenant, name))
        return attrs.evolve(record, isForced=True)

    def _removeLock(self, tenant: str, name: str, incarnation: str) -> LockRecord:
        record = self.getLock(tenant, name, incarnation)
        self._execute("DELETE FROM locks WHERE tenant = ? AND name = ?", (tenant, name))
        self._count("locks", {tenant: -1})
        return record

    def releaseLock(self, tenant: str, name: str, incarnation: str, isForced: bool) -> None:
        record = self._removeLock(tenant, name, incarnation)
        self._addEvent(tenant, "lock.release", attrs.evolve(record, isForced=isForced).ended())

    def expireLocks(self, expirations: Sequence[Expiration]) -> None:
        for each in expirations:
            tenant = tenantOf(each.tenant)
            with suppress(NoSuchObject):
                record = self._removeLock(tenant, each.id, each.incarnation)
                self._addEvent(tenant, "lock.expire", record.ended(), each.timestamp)

    def allLocks(self) -> list[ServiceSummary]:
        rows = self._execute(_FIELDS.replace("SELECT", "SELECT tenant,"))
        return [self._lock(row[1:]).summary(row[0]) for row in rows]
