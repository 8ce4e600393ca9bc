"""
A connection to the SQLite file: transactions, statements for many rows, and what all tables need.

Python releases its lock at every step of a statement, to a reactor that has enough to do to keep it for a while. So
what comes in numbers (services that are created or expire, values, events) is not changed row by row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain
from typing import Any, TypeAlias

from ... import uuids
from ..interfaces import NoSuchObject
from .file import BUSY_SECONDS

Rows: TypeAlias = Sequence[Sequence[Any]]

asJson = json.JSONEncoder(separators=(",", ":")).encode

#: The numbers that stand for the types of events in the file; they must never change.
EVENT_TYPES = {
    "service.join": 1,
    "service.remove": 2,
    "service.timeout": 3,
    "configuration_value.update": 4,
    "configuration_value.remove": 5,
    "service.update": 6,
    "service.state": 7,
    "lock.acquire": 8,
    "lock.release": 9,
    "lock.expire": 10,
}

#: How many rows a statement is given at most; older versions of SQLite take no more than 999 values at once.
_MOST_ROWS = 64
#: How much a probe writes: where this has room, the changes that clients make have room too.
_PROBE_BYTES = 32 * 1024


def asBytes(text: str) -> bytes:
    """Text that may hold halves of surrogate pairs, which SQLite's text can't. It sorts as the code points do."""
    return text.encode("utf-8", "surrogatepass")


def asText(value: bytes) -> str:
    return value.decode("utf-8", "surrogatepass")


@cache
def _text(sql: str, columns: int, count: int) -> str:
    rows = ", ".join([f"({', '.join('?' * columns)})"] * count)
    return sql.format(rows=f"(SELECT * FROM (VALUES {rows}) LIMIT ?)")


class Database:
    """
    A connection to the file. Its methods block, and those that write are called inside a transaction. They raise a
    :exc:`StoreError` before they change anything.
    """

    def __init__(self, connection: sqlite3.Connection, wallClock: Callable[[], float]) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._executeMany = connection.executemany
        self._wallClock = wallClock
        self._ids = uuids.EventIds(wallClock, self._meta("tail"))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A transaction that writes; an error undoes it. Event ids go on from the last one in the file."""
        self._execute("BEGIN IMMEDIATE")
        try:
            last = self._meta("last_position")
            self._ids.last = max(self._ids.last, last)
            yield
            if self._ids.last > last:
                self._execute("UPDATE meta SET value = ? WHERE name = 'last_position'", (self._ids.last,))
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it by itself after some errors
                self._execute("ROLLBACK")
            raise

    @property
    def changes(self) -> int:
        return self._connection.total_changes

    def close(self) -> None:
        self._connection.close()

    def cutLog(self) -> None:
        """Copy the write-ahead log into the file and truncate it, unless a reader needs it for a tenth of a second."""
        self._execute("PRAGMA busy_timeout = 100")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")

    def _one(self, sql: str, *values: Any) -> Any:
        """The only row, or ``None``."""
        return self._execute(sql, values).fetchone()

    def _found(self, name: str, sql: str, *values: Any) -> Any:
        """The only row of an object with this *name*; :class:`NoSuchObject` if there is none."""
        row = self._one(sql, *values)
        if row is None:
            raise NoSuchObject(name)
        return row

    def _select(self, sql: str, rows: Rows, *before: Any) -> Iterator[Any]:
        """
        Execute a statement for many rows, which has ``{rows}`` in the place of a table, whose columns are ``column1``,
        ``column2``, …, after the values *before* it.
        """
        for start in range(0, len(rows), _MOST_ROWS):
            part = rows[start : start + _MOST_ROWS]
            # There are few powers of two, so that few statements have to be kept.
            size = 1 << (len(part) - 1).bit_length()
            columns = len(part[0])
            filling = (0,) * ((size - len(part)) * columns)
            values = *before, *chain.from_iterable(part), *filling, len(part)
            yield from self._execute(_text(sql, columns, size), values)

    def _change(self, sql: str, rows: Rows, *before: Any) -> None:
        for _ in self._select(sql, rows, *before):
            pass

    def _meta(self, name: str) -> Any:
        return self._one("SELECT value FROM meta WHERE name = ?", name)[0]

    def _milliseconds(self) -> int:
        return int(self._wallClock() * 1000)

    def _counts(self, column: str, tenants: set[str]) -> dict[str, int]:
        """How many objects each of some tenants has, by a column of the table of tenants."""
        sql = f"SELECT {column} FROM tenants WHERE tenant = ?"
        return {tenant: (self._one(sql, tenant) or (0,))[0] for tenant in tenants}

    def _count(self, column: str, changes: Mapping[str, int]) -> None:
        """Change such counts."""
        self._executeMany(
            f"INSERT INTO tenants (tenant, {column}) VALUES (?, ?)"
            f" ON CONFLICT (tenant) DO UPDATE SET {column} = {column} + excluded.{column}",
            changes.items(),
        )

    def _addEvent(self, tenant: str, type: str, payload: Mapping[str, Any], timestamp: int | None = None) -> None:
        moment = self._milliseconds() if timestamp is None else timestamp
        self._addEvents([(tenant, self._ids.next(), moment, EVENT_TYPES[type], asJson(payload))])

    def _addEvents(self, rows: Sequence[tuple[str, int, int, int, str]]) -> None:
        self._change("INSERT INTO events (tenant, position, timestamp, type, payload) SELECT * FROM {rows}", rows)

    def probe(self) -> None:
        # Random, because a row that is written as it was costs SQLite no write, and would prove nothing.
        probe = "INSERT OR REPLACE INTO meta (name, value) VALUES ('probe_filling', randomblob(?))"
        self._execute(probe, (_PROBE_BYTES,))

    def secret(self) -> bytes:
        return bytes(self._meta("secret"))
