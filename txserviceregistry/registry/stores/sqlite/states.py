"""The operations of a store on the table of the states of services."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..interfaces import LimitExceeded
from ..states import StateRecord, stateEvents
from .database import Database, asBytes, asText

_FIELDS = "SELECT r.id, r.state, r.reason, r.ends FROM states r WHERE r.tenant = ?"


def stateRecord(id: str, state: str, reason: bytes, ends: int | None) -> StateRecord:
    return StateRecord(id, state, asText(reason), ends)


class States(Database):
    """The states of services. The methods are the operations of :class:`IStore`, or parts of them."""

    def setState(self, tenant: str, record: StateRecord, maximum: int) -> bool:
        old = self._state(tenant, record.id)
        if record.isDefault:
            self._execute("DELETE FROM states WHERE tenant = ? AND id = ?", (tenant, record.id))
            self._count("states", {tenant: 0 if old is None else -1})
        elif old is None and self._counts("states", {tenant})[tenant] >= maximum:
            raise LimitExceeded(maximum)
        else:
            self._execute(
                "INSERT INTO states (tenant, id, state, reason, ends) VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, id)"
                " DO UPDATE SET state = excluded.state, reason = excluded.reason, ends = excluded.ends",
                (tenant, record.id, record.state, asBytes(record.reason), record.ends),
            )
            self._count("states", {tenant: 1 if old is None else 0})
        events = list(stateEvents(old or StateRecord(record.id), record, self._milliseconds()))
        for payload, moment in events:
            self._addEvent(tenant, "service.state", payload, moment)
        return bool(events)

    def _state(self, tenant: str, id: str) -> StateRecord | None:
        row = self._one(f"{_FIELDS} AND r.id = ?", tenant, id)
        return None if row is None else stateRecord(*row)

    def getState(self, tenant: str, id: str) -> StateRecord:
        return (self._state(tenant, id) or StateRecord(id)).at(self._milliseconds())

    def listStates(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        rows = self._execute(
            f"{_FIELDS} AND r.id >= ? AND (r.ends IS NULL OR r.ends > ?) ORDER BY r.id LIMIT ?",
            (tenant, marker or "", self._milliseconds(), count),
        )
        return [stateRecord(*row) for row in rows]

    def _statesOf(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StateRecord]:
        """The records of these tenants and ids that are not over."""
        rows = self._select(
            "SELECT r.tenant, r.id, r.state, r.reason, r.ends FROM {rows} n"
            " CROSS JOIN states r ON r.tenant = n.column1 AND r.id = n.column2",
            names,
        )
        now = self._milliseconds()
        found = {(tenant, id): stateRecord(id, *rest).at(now) for tenant, id, *rest in rows}
        return {name: record for name, record in found.items() if not record.isDefault}

    def overStates(self) -> tuple[list[tuple[str, str]], int | None]:
        """The tenants and ids of the records whose end has come, and when the next record ends."""
        now = self._milliseconds()
        over = "SELECT tenant, id FROM states WHERE ends IS NOT NULL AND ends <= ? ORDER BY ends"
        (next,) = self._one("SELECT min(ends) FROM states WHERE ends IS NOT NULL AND ends > ?", now)
        return self._execute(over, (now,)).fetchall(), next

    def endStates(self, names: Sequence[tuple[str, str]]) -> set[str]:
        """End the records with these tenants and ids whose end has come. Returns the tenants that have new events."""
        now = self._milliseconds()
        found = [(tenant, self._state(tenant, id)) for tenant, id in names]
        over = [(tenant, record) for tenant, record in found if record is not None and record.at(now) is not record]
        return {tenant for tenant, record in over if self.setState(tenant, StateRecord(record.id), 0)}

    def dropStates(self, before: int) -> Collection[str]:
        service = "EXISTS (SELECT 1 FROM services s WHERE s.tenant = states.tenant AND s.id = states.id)"
        self._execute(f"UPDATE states SET unused = NULL WHERE unused IS NOT NULL AND {service}")
        self._execute(f"UPDATE states SET unused = ? WHERE unused IS NULL AND NOT {service}", (self._milliseconds(),))
        old = self._execute("SELECT tenant, id FROM states WHERE unused < ?", (before,)).fetchall()
        return {tenant for tenant, id in old if self.setState(tenant, StateRecord(id), 0)}
