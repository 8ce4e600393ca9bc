"""The operations of a store on the table of events."""

from __future__ import annotations

import json
from collections.abc import Collection

from ..interfaces import EventRecord
from .database import EVENT_TYPES, Database

_TYPE_NAMES = {number: name for name, number in EVENT_TYPES.items()}

_EVENTS = "SELECT position, timestamp, type, payload FROM events"
_OF_TYPE = f"{_EVENTS} INDEXED BY events_by_type WHERE tenant = ?1 AND type = {{}} AND position >= ?2"
_PAGE = "ORDER BY position LIMIT ?3"


class Events(Database):
    """Events. The methods are the operations of :class:`IStore`, or parts of them."""

    def listEvents(self, tenant: str, position: int, count: int, types: Collection[str] | None) -> list[EventRecord]:
        if types is None:
            rows = self._execute(f"{_EVENTS} WHERE tenant = ?1 AND position >= ?2 {_PAGE}", (tenant, position, count))
        else:
            # SQLite merges what it finds by the index, and reads no further than the last row.
            numbers = sorted(EVENT_TYPES[type] for type in types if type in EVENT_TYPES)
            statement = " UNION ALL ".join(map(_OF_TYPE.format, numbers)) or _OF_TYPE.format(0)
            rows = self._execute(f"{statement} {_PAGE}", (tenant, position, count))
        return [
            EventRecord(self._ids.idAt(position), timestamp, _TYPE_NAMES[number], json.loads(payload))
            for position, timestamp, number, payload in rows
        ]

    def lastEvent(self, tenant: str) -> str | None:
        (position,) = self._one("SELECT max(position) FROM events WHERE tenant = ?", tenant)
        return None if position is None else self._ids.idAt(position)

    def hasEvent(self, tenant: str, id: str) -> bool:
        position = self._ids.owned(id)
        return self._one("SELECT 1 FROM events WHERE tenant = ? AND position = ?", tenant, position) is not None

    def tenantsWithEvents(self) -> list[str]:
        """The tenants that have events, found by a jump from each to the next."""
        tenants: list[str] = []
        sql = "SELECT tenant FROM events WHERE tenant > ? ORDER BY tenant LIMIT 1"
        while (row := self._one(sql, tenants[-1] if tenants else "")) is not None:
            tenants.append(row[0])
        return tenants

    def dropEvents(self, tenant: str, before: int, count: int) -> int:
        """Drop a tenant's oldest events, *count* at most, before a position. Returns how many there were."""
        rows = self._execute(
            "SELECT tenant, position FROM events WHERE tenant = ? AND position < ? ORDER BY position LIMIT ?",
            (tenant, before, count),
        ).fetchall()
        self._executeMany("DELETE FROM events WHERE tenant = ? AND position = ?", rows)
        return len(rows)
