"""
What the operations of a store do to the table of events.
"""

from __future__ import annotations

import json

from ..interfaces import EventRecord
from .database import EVENT_TYPES, Database

_TYPE_NAMES = {number: name for name, number in EVENT_TYPES.items()}


class Events(Database):
    """Events. The methods are the operations of :class:`IStore`, or parts of them."""

    def listEvents(self, tenant: str, position: int, count: int, type: str | None) -> list[EventRecord]:
        if type is None:
            rows = self._execute(
                "SELECT position, timestamp, type, payload FROM events"
                " WHERE tenant = ? AND position >= ? ORDER BY position LIMIT ?",
                (tenant, position, count),
            )
        else:
            rows = self._execute(
                "SELECT position, timestamp, type, payload FROM events INDEXED BY events_by_type"
                " WHERE tenant = ? AND type = ? AND position >= ? ORDER BY position LIMIT ?",
                (tenant, EVENT_TYPES.get(type), position, count),
            )
        return [
            EventRecord(self._ids.idAt(position), timestamp, _TYPE_NAMES[number], json.loads(payload))
            for position, timestamp, number, payload in rows
        ]

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
        """
        Drop a tenant's oldest events.

        :param before: only those before this position.
        :param count: how many at most.
        :return: how many there were.
        """
        rows = self._execute(
            "SELECT tenant, position FROM events WHERE tenant = ? AND position < ? ORDER BY position LIMIT ?",
            (tenant, before, count),
        ).fetchall()
        self._executeMany("DELETE FROM events WHERE tenant = ? AND position = ?", rows)
        return len(rows)
