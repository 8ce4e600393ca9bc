"""The operations of a store on the tables of services and of their states."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

import attrs

from ...model import NewService, ServiceChanges
from ..interfaces import (
    Expiration,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
    ServiceSummary,
    StateRecord,
    StoreError,
)
from .database import EVENT_TYPES, Database, asBytes, asJson, asText

_FIELDS = "SELECT s.id, s.incarnation, s.heartbeat_timeout, s.tags, s.metadata, l.milliseconds"
_LAST_SEEN = " LEFT JOIN last_seen l ON l.incarnation = s.incarnation"
_STATES = " LEFT JOIN states r ON r.tenant = s.tenant AND r.id = s.id"
_ALL = "services s"
_TAGGED = "service_tags t CROSS JOIN services s ON s.tenant = t.tenant AND s.id = t.id"
_PLACES = "FROM {rows} n CROSS JOIN services s ON s.tenant = n.column1 AND s.id = n.column2"
_STATE = "SELECT r.id, r.state, r.reason, r.ends FROM states r WHERE r.tenant = ?"

#: The time of a heartbeat, in milliseconds since the epoch, behind the service's tenant, id and incarnation.
LastSeen: TypeAlias = tuple[tuple[str, str, str], int]


def _statement(source: str, where: str, states: bool) -> str:
    """Reads services. Looking for their states takes a fourth of the time of a page, so that is done on demand only."""
    fields, joins = (f"{_FIELDS}, r.state, r.reason, r.ends", _LAST_SEEN + _STATES) if states else (_FIELDS, _LAST_SEEN)
    return f"{fields} FROM {source}{joins} WHERE {where}"


def _tagRows(tenant: str, id: str, tags: Iterable[str]) -> list[tuple[str, bytes, str]]:
    return [(tenant, asBytes(tag), id) for tag in set(tags)]


def _stateRecord(id: str, state: str, reason: bytes, ends: int | None) -> StateRecord:
    return StateRecord(id, state, asText(reason), ends)


class Services(Database):
    """Services and their states. The methods are the operations of :class:`IStore`, or those of many at once."""

    def _record(self, row: Sequence[Any]) -> ServiceRecord:
        id, incarnation, heartbeatTimeout, tags, metadata, lastSeen, *state = row
        record = _stateRecord(id, *state).at(self._milliseconds()) if state and state[0] is not None else None
        return ServiceRecord(
            *(id, self._ids.idAt(incarnation), heartbeatTimeout, tuple(json.loads(tags)), json.loads(metadata)),
            *(lastSeen, None if record is None or record.isDefault else record),
        )

    def _find(self, tenant: str, id: str, incarnation: str, states: bool = False) -> tuple[int, ServiceRecord]:
        """This incarnation of a service, and the position of its join event."""
        row = self._row(tenant, id, states)
        if self._ids.idAt(row[1]) != incarnation:
            raise NoSuchObject(id)
        return row[1], self._record(row)

    def _row(self, tenant: str, id: str, states: bool) -> Any:
        return self._found(id, _statement(_ALL, "s.tenant = ? AND s.id = ?", states), tenant, id)

    def createServices(self, creates: Sequence[tuple[str, NewService, int]]) -> list[ServiceRecord | StoreError]:
        """Create services, one after the other. *creates* are the arguments of :meth:`IStore.createService`."""
        names = [(tenant, new.id) for tenant, new, _ in creates]
        taken = set(self._select(f"SELECT s.tenant, s.id {_PLACES}", names))
        counts = self._counts("services", {tenant for tenant, _, _ in creates})
        states = self._statesOf(names)
        outcomes: list[ServiceRecord | StoreError] = []
        services, tags, events, added = [], [], [], Counter[str]()
        now = self._milliseconds()
        for tenant, new, maximum in creates:
            if (tenant, new.id) in taken:
                outcomes.append(ObjectExists(new.id))
                continue
            if counts[tenant] + added[tenant] >= maximum:
                outcomes.append(LimitExceeded(maximum))
                continue
            taken.add((tenant, new.id))
            added[tenant] += 1
            position = self._ids.next()
            record = ServiceRecord.of(new, self._ids.idAt(position), states.get((tenant, new.id)))
            outcomes.append(record)
            services.append((tenant, new.id, position, new.heartbeatTimeout, asJson(new.tags), asJson(new.metadata)))
            tags += _tagRows(tenant, new.id, new.tags)
            events.append((tenant, position, now, EVENT_TYPES["service.join"], asJson(record.payload())))
        self._change(
            "INSERT INTO services (tenant, id, incarnation, heartbeat_timeout, tags, metadata) SELECT * FROM {rows}",
            services,
        )
        self._addTags(tags)
        self._count("services", added)
        self._change("UPDATE states SET unused = NULL WHERE (tenant, id) IN {rows}", list(states))
        self._addEvents(events)
        return outcomes

    def _addTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        self._change("INSERT INTO service_tags (tenant, tag, id) SELECT * FROM {rows}", rows)

    def _dropTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        # Of three columns that have to be in a list, SQLite would look up the first one only.
        for tenant, those in groupby(sorted(rows), itemgetter(0)):
            self._change(
                "DELETE FROM service_tags WHERE tenant = ? AND (tag, id) IN {rows}", [row[1:] for row in those], tenant
            )

    def getService(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        return self._record(self._row(tenant, id, states))

    def listServices(
        self,
        tenant: str,
        marker: str | None,
        count: int,
        tag: str | None,
        hidden: Collection[str],
        states: bool = False,
    ) -> list[ServiceRecord]:
        table, source, where, whose = "s", _ALL, "s.tenant = ?", list[Any]([tenant])
        if tag is not None:
            table, source, where = "t", _TAGGED, "t.tenant = ? AND t.tag = ?"
            whose.append(asBytes(tag))
        sql = f"{_statement(source, where, states)} AND {table}.id >= ? ORDER BY {table}.id"
        # Those that are hidden may be many more than there are rows, so they are not given to the statement.
        rows = self._execute(sql, (*whose, marker or ""))
        visible = (row for row in rows if self._ids.idAt(row[1]) not in hidden)
        return [self._record(row) for row in islice(visible, count)]

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        _, old = self._find(tenant, id, incarnation, states=True)
        new = old.changed(changes)
        if new != old:
            self._execute(
                "UPDATE services SET heartbeat_timeout = ?, tags = ?, metadata = ? WHERE tenant = ? AND id = ?",
                (new.heartbeatTimeout, asJson(new.tags), asJson(new.metadata), tenant, id),
            )
            self._dropTags(_tagRows(tenant, id, old.tags))
            self._addTags(_tagRows(tenant, id, new.tags))
            self._addEvent(tenant, "service.update", new.updatePayload(old))
        return attrs.evolve(new, state=None)

    def removeService(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        position, service = self._find(tenant, id, incarnation)
        self._dropServices([(tenant, position, service)])
        self._addEvent(tenant, "service.remove", service.payload())
        return service

    def _dropServices(self, services: Sequence[tuple[str, int, ServiceRecord]]) -> None:
        self._change(
            "DELETE FROM services WHERE (tenant, id) IN {rows}", [(tenant, one.id) for tenant, _, one in services]
        )
        gone = Counter(tenant for tenant, _, _ in services)
        self._count("services", {tenant: -count for tenant, count in gone.items()})
        self._dropTags([row for tenant, _, one in services for row in _tagRows(tenant, one.id, one.tags)])
        self._change("DELETE FROM last_seen WHERE incarnation IN {rows}", [(position,) for _, position, _ in services])

    def expireServices(self, expirations: Sequence[Expiration]) -> None:
        # A service that is named twice expires once.
        due = list({(each.tenant, each.id, self._ids.owned(each.incarnation)): each for each in expirations}.items())
        # All of their fields in one row, because each row that is fetched is a step.
        found = self._select(
            "SELECT group_concat('[' || n.column4 || ',' || s.heartbeat_timeout || ',' || s.tags || ',' || s.metadata"
            f" || ']') {_PLACES} AND s.incarnation = n.column3",
            [(*whose, number) for number, (whose, _) in enumerate(due)],
        )
        fields = json.loads(f"[{','.join(text for (text,) in found if text)}]")
        services, events = [], []
        # SQLite promises no order; the events have that of the expirations.
        for number, heartbeatTimeout, tags, metadata in sorted(fields, key=itemgetter(0)):
            (tenant, id, position), expiration = due[number]
            service = ServiceRecord(id, expiration.incarnation, heartbeatTimeout, tuple(tags), metadata)
            services.append((tenant, position, service))
            state = asJson(service.payload())
            events.append((tenant, self._ids.next(), expiration.timestamp, EVENT_TYPES["service.timeout"], state))
        self._dropServices(services)
        self._addEvents(events)

    def recordLastSeen(self, seen: Sequence[LastSeen]) -> None:
        """Write down when services were last seen, for those incarnations that are still there."""
        self._change(
            "INSERT OR REPLACE INTO last_seen (incarnation, milliseconds)"
            f" SELECT s.incarnation, n.column4 {_PLACES} AND s.incarnation = n.column3",
            [(tenant, id, self._ids.owned(incarnation), time) for (tenant, id, incarnation), time in seen],
        )

    def allServices(self) -> list[ServiceSummary]:
        rows = self._execute(
            f"SELECT s.tenant, s.id, s.incarnation, s.heartbeat_timeout, l.milliseconds FROM {_ALL}{_LAST_SEEN}"
        )
        return [ServiceSummary(tenant, id, self._ids.idAt(position), *rest) for tenant, id, position, *rest in rows]

    # -- the states of services

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
        events = list((old or StateRecord(record.id)).events(record, self._milliseconds()))
        for payload, moment in events:
            self._addEvent(tenant, "service.state", payload, moment)
        return bool(events)

    def _state(self, tenant: str, id: str) -> StateRecord | None:
        row = self._one(f"{_STATE} AND r.id = ?", tenant, id)
        return None if row is None else _stateRecord(*row)

    def getState(self, tenant: str, id: str) -> StateRecord:
        return (self._state(tenant, id) or StateRecord(id)).at(self._milliseconds())

    def listStates(self, tenant: str, marker: str | None, count: int) -> list[StateRecord]:
        rows = self._execute(
            f"{_STATE} AND r.id >= ? AND (r.ends IS NULL OR r.ends > ?) ORDER BY r.id LIMIT ?",
            (tenant, marker or "", self._milliseconds(), count),
        )
        return [_stateRecord(*row) for row in rows]

    def _statesOf(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StateRecord]:
        """The records of these tenants and ids that are not over."""
        rows = self._select(
            "SELECT r.tenant, r.id, r.state, r.reason, r.ends FROM {rows} n"
            " CROSS JOIN states r ON r.tenant = n.column1 AND r.id = n.column2",
            names,
        )
        now = self._milliseconds()
        found = {(tenant, id): _stateRecord(id, *rest).at(now) for tenant, id, *rest in rows}
        return {name: record for name, record in found.items() if not record.isDefault}

    def endStates(self, most: int) -> tuple[set[str], bool, int | None]:
        """
        End *most* records whose end has come. Returns the tenants that have new events, whether there may be more
        such records, and when the next one ends.
        """
        over = "SELECT tenant, id FROM states WHERE ends <= ? ORDER BY ends LIMIT ?"
        found = self._execute(over, (self._milliseconds(), most)).fetchall()
        changed = {tenant for tenant, id in found if self.setState(tenant, StateRecord(id), 0)}
        (next,) = self._one("SELECT min(ends) FROM states WHERE ends IS NOT NULL")
        return changed, len(found) == most, next

    def dropStates(self, before: int) -> Collection[str]:
        service = "EXISTS (SELECT 1 FROM services s WHERE s.tenant = states.tenant AND s.id = states.id)"
        self._execute(f"UPDATE states SET unused = NULL WHERE unused IS NOT NULL AND {service}")
        self._execute(f"UPDATE states SET unused = ? WHERE unused IS NULL AND NOT {service}", (self._milliseconds(),))
        old = self._execute("SELECT tenant, id FROM states WHERE unused < ?", (before,)).fetchall()
        return {tenant for tenant, id in old if self.setState(tenant, StateRecord(id), 0)}
