"""The operations of a store on all other tables: configuration values, events, accounts, users, tokens and locks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import count as naturals
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import attrs

from ...model import UNCONDITIONAL, NewLock, Precondition, tenantOf
from ...roles import WRITE, Role
from ..interfaces import (
    EventRecord,
    Expiration,
    LimitExceeded,
    LockRecord,
    LockTaken,
    NoSuchObject,
    ObjectExists,
    PreconditionFailed,
    ServiceSummary,
    StoreError,
    TokenRecord,
    UserRecord,
    ValueRecord,
    valuePayload,
)
from .database import EVENT_TYPES, asBytes, asJson, asText
from .services import Services

_C = TypeVar("_C")
_T = TypeVar("_T")

_TYPE_NAMES = {number: name for name, number in EVENT_TYPES.items()}

_VALUES = "SELECT key, value, position FROM configuration_values"
_EVENTS = "SELECT position, timestamp, type, payload FROM events"
_OF_TYPE = f"{_EVENTS} INDEXED BY events_by_type WHERE tenant = ?1 AND type = {{}} AND position >= ?2"
_PAGE = "ORDER BY position LIMIT ?3"
_USERS = "SELECT name, tenant, key_hash, role FROM users"
_END_TOKENS = "DELETE FROM tokens WHERE user = ?"
_LOCKS = "SELECT name, timeout, holder, nonce, metadata, incarnation, fence, acquired, is_forced FROM locks"


def _value(key: str, value: bytes, position: int) -> ValueRecord:
    return ValueRecord(key, asText(value), position)


def _user(name: bytes, tenant: str, keyHash: str, role: str) -> UserRecord:
    return UserRecord(asText(name), tenant, keyHash, Role(**json.loads(role)))


class Tables(Services):
    """
    A connection to the file, and what the operations of a store do through it. The methods are the operations of
    :class:`IStore`, parts of them, or those of many at once.
    """

    # -- configuration values

    def getValue(self, tenant: str, key: str) -> ValueRecord:
        return _value(*self._found(key, f"{_VALUES} WHERE tenant = ? AND key = ?", tenant, key))

    def listValues(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[ValueRecord]:
        sql, bounds = f"{_VALUES} WHERE tenant = ? AND key >= ?", [tenant, max(marker or "", namespace or "")]
        if namespace is not None:
            # "0" is the character after "/".
            sql += " AND key < ? AND (key = ? OR key >= ?)"
            bounds += [namespace.rstrip("/") + "0", namespace, namespace.rstrip("/") + "/"]
        return [_value(*row) for row in self._execute(f"{sql} ORDER BY key LIMIT ?", (*bounds, count))]

    def setValues(self, sets: Sequence[tuple[str, str, str, int, Precondition]]) -> list[int | StoreError]:
        """Set values, one after the other. *sets* are the arguments of :meth:`IStore.setValue`."""
        values = {
            (tenant, key): (asText(value), position)
            for tenant, key, value, position in self._select(
                "SELECT v.tenant, v.key, v.value, v.position FROM {rows} n"
                " CROSS JOIN configuration_values v ON v.tenant = n.column1 AND v.key = n.column2",
                list({(tenant, key): None for tenant, key, *_ in sets}),
            )
        }
        counts = self._counts("configuration_values", {tenant for tenant, *_ in sets})
        outcomes: list[int | StoreError] = []
        # Of each key the last value only: in which order the rows of a statement come is left to SQLite.
        changed: dict[tuple[str, str], tuple[str, int]] = {}
        events, added = [], Counter[str]()
        now = self._milliseconds()
        for tenant, key, value, maximum, precondition in sets:
            oldValue, oldPosition = values.get((tenant, key), (None, None))
            if not precondition.allows(oldPosition):
                outcomes.append(PreconditionFailed(oldPosition))
                continue
            if oldPosition is None:
                if counts[tenant] + added[tenant] >= maximum:
                    outcomes.append(LimitExceeded(maximum))
                    continue
                added[tenant] += 1
            elif oldValue == value:
                outcomes.append(oldPosition)
                continue
            position = self._ids.next()
            outcomes.append(position)
            values[tenant, key] = changed[tenant, key] = value, position
            payload = asJson(valuePayload(key, oldValue, value))
            events.append((tenant, position, now, EVENT_TYPES["configuration_value.update"], payload))
        self._change(
            "INSERT INTO configuration_values (tenant, key, value, position) SELECT * FROM {rows} WHERE true"
            " ON CONFLICT (tenant, key) DO UPDATE SET value = excluded.value, position = excluded.position",
            [(*whose, asBytes(value), position) for whose, (value, position) in changed.items()],
        )
        self._count("configuration_values", added)
        self._addEvents(events)
        return outcomes

    def removeValue(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        row = self._one(f"{_VALUES} WHERE tenant = ? AND key = ?", tenant, key)
        if not precondition.allows(position := None if row is None else row[2]):
            raise PreconditionFailed(position)
        if row is None:
            raise NoSuchObject(key)
        self._execute("DELETE FROM configuration_values WHERE tenant = ? AND key = ?", (tenant, key))
        self._count("configuration_values", {tenant: -1})
        self._addEvent(tenant, "configuration_value.remove", valuePayload(key, asText(row[1]), None))

    # -- events

    def listEvents(self, tenant: str, position: int, count: int, types: Collection[str] | None) -> list[EventRecord]:
        if types is None:
            rows = self._execute(f"{_EVENTS} WHERE tenant = ?1 AND position >= ?2 {_PAGE}", (tenant, position, count))
        else:
            # SQLite merges what it finds by the index, and reads no further than the last row.
            numbers = sorted(EVENT_TYPES[type] for type in types if type in EVENT_TYPES)
            statement = " UNION ALL ".join(map(_OF_TYPE.format, numbers)) or _OF_TYPE.format(0)
            rows = self._execute(f"{statement} {_PAGE}", (tenant, position, count))
        return [self._event(*row) for row in rows]

    def listChanges(self, tenant: str, key: str, count: int) -> list[EventRecord]:
        # Each payload begins with the key. Those of other values are not parsed.
        begin = asJson({"configuration_value_id": key}).removesuffix("}") + ","
        numbers = (EVENT_TYPES[f"configuration_value.{each}"] for each in ("update", "remove"))
        of = " UNION ALL ".join(f"{_OF_TYPE} AND substr(payload, 1, length(?4)) = ?4".format(each) for each in numbers)
        rows = self._execute(f"{of} ORDER BY position DESC LIMIT ?3", (tenant, 0, count, begin))
        return [self._event(*row) for row in rows][::-1]

    def _event(self, position: int, timestamp: int, number: int, payload: str) -> EventRecord:
        return EventRecord(self._ids.idAt(position), timestamp, _TYPE_NAMES[number], json.loads(payload))

    def lastEvent(self, tenant: str) -> str | None:
        (position,) = self._one("SELECT max(position) FROM events WHERE tenant = ?", tenant)
        return None if position is None else self._ids.idAt(position)

    def hasEvent(self, tenant: str, id: str) -> bool:
        position = self._ids.owned(id)
        return self._one("SELECT 1 FROM events WHERE tenant = ? AND position = ?", tenant, position) is not None

    def tenants(self) -> list[str]:
        """All tenants that have ever had an event."""
        return [tenant for (tenant,) in self._execute("SELECT tenant FROM tenants")]

    def dropEvents(self, tenant: str, before: int, count: int) -> int:
        """Drop a tenant's oldest events, *count* at most, before a position. Returns how many there were."""
        return self._execute(
            "DELETE FROM events WHERE tenant = ?1 AND position IN"
            " (SELECT position FROM events WHERE tenant = ?1 AND position < ?2 ORDER BY position LIMIT ?3)",
            (tenant, before, count),
        ).rowcount

    # -- accounts, users and auth tokens

    def findAccount(self, tenant: str) -> int | None:
        return (self._one("SELECT created FROM tenants WHERE tenant = ?", tenant) or (None,))[0]

    def makeAccount(self, tenant: str) -> int:
        """The account, which is created if it does not exist."""
        self._execute(
            "INSERT INTO tenants (tenant, created) VALUES (?, ?)"
            " ON CONFLICT (tenant) DO UPDATE SET created = coalesce(created, excluded.created)",
            (tenant, self._milliseconds()),
        )
        return int(self._one("SELECT created FROM tenants WHERE tenant = ?", tenant)[0])

    def addUser(self, name: str, keyHash: str, tenant: str | None, role: Role = WRITE) -> UserRecord:
        if self._one("SELECT 1 FROM users WHERE name = ?", asBytes(name)):
            raise ObjectExists(name)
        if tenant is None:
            taken = {row[0] for row in self._execute("SELECT tenant FROM users UNION SELECT tenant FROM tenants")}
            tenant = next(number for number in map(str, naturals(1)) if number not in taken)
        self._execute(
            "INSERT INTO users (name, tenant, key_hash, role) VALUES (?, ?, ?, ?)",
            (asBytes(name), tenant, keyHash, asJson(role.asJson())),
        )
        return UserRecord(name, tenant, keyHash, role)

    def replaceUserKey(self, name: str, keyHash: str) -> UserRecord:
        self._execute("UPDATE users SET key_hash = ? WHERE name = ?", (keyHash, asBytes(name)))
        self._execute(_END_TOKENS, (asBytes(name),))
        return self.getUser(name)

    def changeRole(self, name: str, role: Role) -> UserRecord:
        self._execute("UPDATE users SET role = ? WHERE name = ?", (asJson(role.asJson()), asBytes(name)))
        return self.getUser(name)

    def removeUser(self, name: str) -> None:
        self.getUser(name)
        self._execute("DELETE FROM users WHERE name = ?", (asBytes(name),))
        self._execute(_END_TOKENS, (asBytes(name),))

    def getUser(self, name: str) -> UserRecord:
        return _user(*self._found(name, f"{_USERS} WHERE name = ?", asBytes(name)))

    def listUsers(self) -> list[UserRecord]:
        return [_user(*row) for row in self._execute(f"{_USERS} ORDER BY name")]

    def addToken(self, token: TokenRecord) -> None:
        self._execute("DELETE FROM tokens WHERE expires <= ?", (self._wallClock(),))
        self._execute(
            "INSERT OR REPLACE INTO tokens (hash, user, tenant, expires) VALUES (?, ?, ?, ?)",
            (token.tokenHash, asBytes(token.user), token.tenant, token.expires),
        )

    def getToken(self, tokenHash: str) -> tuple[TokenRecord, UserRecord]:
        sql = "SELECT tokens.tenant, expires, name, users.tenant, key_hash, role FROM tokens JOIN users ON name = user"
        tenant, expires, *row = self._found("token", f"{sql} WHERE hash = ?", tokenHash)
        user = _user(*row)
        return TokenRecord(tokenHash, user.name, tenant, expires), user

    def removeToken(self, tokenHash: str) -> bool:
        return self._execute("DELETE FROM tokens WHERE hash = ?", (tokenHash,)).rowcount > 0

    # -- locks

    def acquireLock(self, tenant: str, lock: NewLock, maximum: int, now: int, fence: int) -> LockRecord:
        with suppress(NoSuchObject):
            raise LockTaken(self.getLock(tenant, lock.name))
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

    def getLock(self, tenant: str, name: str, incarnation: str | None = None) -> LockRecord:
        record = self._lock(self._found(name, f"{_LOCKS} WHERE tenant = ? AND name = ?", tenant, name))
        if incarnation not in (None, record.incarnation):
            raise NoSuchObject(name)
        return record

    def listLocks(self, tenant: str, marker: str | None, count: int, hidden: Collection[str]) -> list[LockRecord]:
        rows = self._execute(f"{_LOCKS} WHERE tenant = ? AND name >= ? ORDER BY name", (tenant, marker or ""))
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
        self._addEvent(tenant, "lock.release", attrs.evolve(record, isForced=isForced).payload())

    def expireLocks(self, expirations: Sequence[Expiration]) -> None:
        for each in expirations:
            tenant = tenantOf(each.tenant)
            with suppress(NoSuchObject):
                record = self._removeLock(tenant, each.id, each.incarnation)
                self._addEvent(tenant, "lock.expire", record.payload(), each.timestamp)

    def allLocks(self) -> list[ServiceSummary]:
        rows = self._execute(_LOCKS.replace("SELECT", "SELECT tenant,"))
        return [self._lock(row[1:]).summary(row[0]) for row in rows]


#: Does something for many at once, each described by a value; returns what became of each.
Together: TypeAlias = Callable[[Tables, Sequence[_C]], Sequence[_T | StoreError]]


def single(operation: Callable[[Tables], _T]) -> Together[None, _T]:
    """An operation that is not done for many at once."""

    def do(tables: Tables, changes: Sequence[None]) -> Sequence[_T | StoreError]:
        try:
            return [operation(tables)]
        except StoreError as error:
            return [error]

    return do
