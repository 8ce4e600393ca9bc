"""
What the operations of a store do to the tables of the SQLite file (those of users and tokens:
:mod:`~txserviceregistry.registry.stores.sqlite.users`).

Plain functions that block and are called in the store's threads, each inside a transaction that somebody else begins
and ends. The text of a statement never changes, so that it is compiled once.

Python gives its lock away at every step of a statement, to a reactor that has enough to do to keep it for a while. So
what comes in numbers (services that are made or that die, values, events) is not changed row by row: one statement is
given many rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

from ... import eventids
from ...model import NewService, ServiceChanges
from .. import payloads
from ..interfaces import (
    Account,
    EventRecord,
    Expiration,
    LimitExceeded,
    LivingService,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
    StoreError,
)
from .file import BUSY_SECONDS
from .users import Users, asBytes, asText

_Rows = Sequence[Sequence[Any]]

_MOST_ROWS = 64
"""How many rows a statement is given at most; older versions of SQLite take no more than 999 values at once."""

_PROBE_BYTES = 32 * 1024
"""What a probe writes: where this has room, the changes that clients make have room too."""

_EVENT_TYPES = {
    "service.join": 1,
    "service.remove": 2,
    "service.timeout": 3,
    "configuration_value.update": 4,
    "configuration_value.remove": 5,
}
"""The numbers that stand for the types of events in the file; they must never change."""

_EVENT_TYPE_NAMES = {number: name for name, number in _EVENT_TYPES.items()}

_FIELDS = "SELECT s.id, s.incarnation, s.heartbeat_timeout, s.tags, s.metadata, l.milliseconds"
_LAST_SEEN = " LEFT JOIN last_seen l ON l.incarnation = s.incarnation"
_ALL = " FROM services s"
_FROM_MARKER = " WHERE s.tenant = ? AND s.id >= ? ORDER BY s.id"
_TAGGED = " FROM service_tags t CROSS JOIN services s ON s.tenant = t.tenant AND s.id = t.id"
_TAGGED_FROM_MARKER = " WHERE t.tenant = ? AND t.tag = ? AND t.id >= ? ORDER BY t.id"

_ONE_SERVICE = f"{_FIELDS}{_ALL}{_LAST_SEEN} WHERE s.tenant = ? AND s.id = ?"
_SERVICES = f"{_FIELDS}{_ALL}{_LAST_SEEN}{_FROM_MARKER}"
_SERVICES_BY_TAG = f"{_FIELDS}{_TAGGED}{_LAST_SEEN}{_TAGGED_FROM_MARKER}"

# Who comes next, many of them in one row.
_GLANCE = "SELECT max(id), group_concat(incarnation) FROM (SELECT s.id, s.incarnation{} LIMIT 100)"
_GLANCE_AT_SERVICES = _GLANCE.format(_ALL + _FROM_MARKER)
_GLANCE_AT_TAGGED = _GLANCE.format(_TAGGED + _TAGGED_FROM_MARKER)


#: The time of a heartbeat, in milliseconds since the epoch, behind the tenant, id and incarnation whose it is.
LastSeen: TypeAlias = tuple[tuple[str, str, str], int]


_asJson = json.JSONEncoder(separators=(",", ":")).encode


def _withRows(sql: str, rows: _Rows, *before: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """
    A statement for many rows, in as few parts as that can be done.

    :param sql: has ``{rows}`` in the place of a table, whose columns are ``column1``, ``column2``, ...
    :param before: the values for what comes before the table.
    :return: statements, each with its values.
    """
    for start in range(0, len(rows), _MOST_ROWS):
        part = rows[start : start + _MOST_ROWS]
        # Of powers of two there are few, so that few statements have to be kept.
        size = 1 << (len(part) - 1).bit_length()
        columns = len(part[0])
        filling = (0,) * ((size - len(part)) * columns)
        yield _text(sql, columns, size), (*before, *chain.from_iterable(part), *filling, len(part))


@cache
def _text(sql: str, columns: int, count: int) -> str:
    rows = ", ".join([f"({', '.join('?' * columns)})"] * count)
    return sql.format(rows=f"(SELECT * FROM (VALUES {rows}) LIMIT ?)")


def _tagRows(tenant: str, id: str, tags: Iterable[str]) -> list[tuple[str, bytes, str]]:
    return [(tenant, asBytes(tag), id) for tag in set(tags)]


def _byTenant(rows: _Rows) -> Iterator[tuple[str, _Rows]]:
    """The rows of each tenant, which is their first column, without it."""
    tenantOf = itemgetter(0)
    for tenant, those in groupby(sorted(rows, key=tenantOf), tenantOf):
        yield tenant, [row[1:] for row in those]


class Tables:
    """
    A connection to the file, and what can be done through it.

    :ivar users: the tables of users and tokens.
    """

    def __init__(self, connection: sqlite3.Connection, wallClock: Callable[[], float]) -> None:
        """
        :param connection: one from :func:`txserviceregistry.registry.stores.sqlite.file.connect`.
        :param wallClock: seconds since 1970.
        """
        self._connection = connection
        self._execute = connection.execute
        self._executeMany = connection.executemany
        self._wallClock = wallClock
        self.users = Users(connection, wallClock)
        self._ids = eventids.EventIds(wallClock, self._meta("tail"))
        self._lastWritten = 0
        self._checkpointsByItself = True

    # -- transactions

    @property
    def inTransaction(self) -> bool:
        """Whether the transaction that was begun is there still; SQLite ends it by itself after some errors."""
        return self._connection.in_transaction

    @property
    def changes(self) -> int:
        """How many rows have been changed through this connection."""
        return self._connection.total_changes

    def begin(self) -> None:
        """Begin a transaction that writes. Event ids go on from the last one in the file."""
        self._execute("BEGIN IMMEDIATE")
        self._lastWritten = self._meta("last_position")
        self._ids.last = max(self._ids.last, self._lastWritten)

    def commit(self) -> None:
        """Make all of the transaction durable."""
        if self._ids.last > self._lastWritten:
            self._execute("UPDATE meta SET value = ? WHERE name = 'last_position'", (self._ids.last,))
        self._execute("COMMIT")

    def beginOne(self) -> None:
        """Begin one operation among those of a transaction."""
        self._execute("SAVEPOINT operation")

    def endOne(self) -> None:
        """Keep what the operation did."""
        self._execute("RELEASE operation")

    def undoOne(self) -> None:
        """Undo what the operation did, and nothing else."""
        self._execute("ROLLBACK TO operation")
        self._execute("RELEASE operation")

    def undo(self) -> None:
        """Undo all of the transaction, and end it."""
        self._execute("ROLLBACK")

    def close(self) -> None:
        """Give up what has not been committed, and close the connection."""
        try:
            if self._connection.in_transaction:
                self.undo()
        finally:
            self._connection.close()

    def checkpoint(self) -> None:
        """Copy the write-ahead log into the file, as far as no reader needs it, while others may write."""
        self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def cutLog(self, seconds: float) -> None:
        """
        Copy the write-ahead log into the file and truncate it, unless a reader needs it.

        :param seconds: how long to wait for readers.
        """
        self._execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")

    def checkpointByItself(self, doesIt: bool) -> None:
        """Set whether a commit also copies the log into the file once the log has 4 MB."""
        if doesIt is not self._checkpointsByItself:
            self._execute(f"PRAGMA wal_autocheckpoint = {1000 if doesIt else 0}")
            self._checkpointsByItself = doesIt

    # -- what many need

    def _one(self, sql: str, *values: Any) -> Any:
        """The only row, or ``None``."""
        return self._execute(sql, values).fetchone()

    def _change(self, sql: str, rows: _Rows, *before: Any) -> None:
        """See :func:`_withRows`."""
        for statement, values in _withRows(sql, rows, *before):
            # As if there were many such: then Python does not ask for the last row's id, for which it would give its
            # lock away once more.
            self._executeMany(statement, [values])

    def _select(self, sql: str, rows: _Rows, *before: Any) -> Iterator[Any]:
        """See :func:`_withRows`."""
        for statement, values in _withRows(sql, rows, *before):
            yield from self._execute(statement, values)

    def _meta(self, name: str) -> Any:
        return self._one("SELECT value FROM meta WHERE name = ?", name)[0]

    def _milliseconds(self) -> int:
        return int(self._wallClock() * 1000)

    def _putEvent(self, tenant: str, position: int, type: str, payload: Mapping[str, Any]) -> None:
        self._putEvents([(tenant, position, self._milliseconds(), _EVENT_TYPES[type], _asJson(payload))])

    def _putEvents(self, rows: Sequence[tuple[str, int, int, int, str]]) -> None:
        self._change("INSERT INTO events (tenant, position, timestamp, type, payload) SELECT * FROM {rows}", rows)

    def _countServices(self, changes: Mapping[str, int]) -> None:
        self._executeMany(
            "INSERT INTO tenants (tenant, services) VALUES (?, ?)"
            " ON CONFLICT (tenant) DO UPDATE SET services = services + excluded.services",
            changes.items(),
        )

    def _countValues(self, changes: Mapping[str, int]) -> None:
        self._executeMany(
            "INSERT INTO tenants (tenant, configuration_values) VALUES (?, ?)"
            " ON CONFLICT (tenant) DO UPDATE"
            " SET configuration_values = configuration_values + excluded.configuration_values",
            changes.items(),
        )

    # -- the secret and accounts

    def probe(self) -> None:
        """See :meth:`IStore.probe`. It takes as many pages as a change of some size with its event."""
        # A row that is written as it was costs SQLite no write, and would prove nothing.
        self._execute(
            "INSERT INTO meta (name, value) VALUES ('probes', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
        )
        filling = self._meta("probes").to_bytes(8, "big") * (_PROBE_BYTES // 8)
        self._execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('probe_filling', ?)", (filling,))

    def secret(self) -> bytes:
        """See :meth:`IStore.secret`."""
        return bytes(self._meta("secret"))

    def findAccount(self, tenant: str) -> Account | None:
        """The account, if it has come into being."""
        row = self._one("SELECT created FROM tenants WHERE tenant = ? AND created IS NOT NULL", tenant)
        return None if row is None else Account(tenant, row[0])

    def makeAccount(self, tenant: str) -> Account:
        """The account, which comes into being here if nobody else was faster."""
        self._execute(
            "INSERT INTO tenants (tenant, created) VALUES (?, ?)"
            " ON CONFLICT (tenant) DO UPDATE SET created = coalesce(created, excluded.created)",
            (tenant, self._milliseconds()),
        )
        account = self.findAccount(tenant)
        assert account is not None
        return account

    # -- services

    def _service(self, row: Sequence[Any]) -> ServiceRecord:
        id, incarnation, heartbeatTimeout, tags, metadata, lastSeen = row
        return ServiceRecord(
            id,
            self._ids.idAt(incarnation),
            heartbeatTimeout,
            tuple(json.loads(tags)),
            json.loads(metadata),
            lastSeen,
        )

    def _living(self, tenant: str, id: str, incarnation: str) -> tuple[int, ServiceRecord] | None:
        """This life of a service, and the position of its join event."""
        row = self._one(_ONE_SERVICE, tenant, id)
        if row is None or self._ids.idAt(row[1]) != incarnation:
            return None
        return row[1], self._service(row)

    def createServices(self, creates: Sequence[tuple[str, NewService, int]]) -> list[ServiceRecord | StoreError]:
        """
        Create services, one after the other.

        :param creates: the arguments of :meth:`IStore.createService`.
        :return: what becomes of each.
        """
        taken = set(
            self._select(
                "SELECT s.tenant, s.id FROM {rows} n"
                " CROSS JOIN services s ON s.tenant = n.column1 AND s.id = n.column2",
                [(tenant, new.id) for tenant, new, _ in creates],
            )
        )
        counts = {
            tenant: (self._one("SELECT services FROM tenants WHERE tenant = ?", tenant) or (0,))[0]
            for tenant in {tenant for tenant, _, _ in creates}
        }
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
            outcomes.append(ServiceRecord.of(new, self._ids.idAt(position)))
            tagsInJson, metadataInJson = _asJson(new.tags), _asJson(new.metadata)
            services.append((tenant, new.id, position, new.heartbeatTimeout, tagsInJson, metadataInJson))
            tags += _tagRows(tenant, new.id, new.tags)
            payload = payloads.serviceStateInJson(_asJson(new.id), new.heartbeatTimeout, tagsInJson, metadataInJson)
            events.append((tenant, position, now, _EVENT_TYPES["service.join"], payload))
        self._change(
            "INSERT INTO services (tenant, id, incarnation, heartbeat_timeout, tags, metadata) SELECT * FROM {rows}",
            services,
        )
        self._addTags(tags)
        self._countServices(added)
        self._putEvents(events)
        return outcomes

    def _addTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        self._change("INSERT INTO service_tags (tenant, tag, id) SELECT * FROM {rows}", rows)

    def _dropTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        for tenant, those in _byTenant(rows):
            self._change(
                "DELETE FROM service_tags WHERE tenant = ? AND (tag, id) IN (SELECT * FROM {rows})", those, tenant
            )

    def getService(self, tenant: str, id: str) -> ServiceRecord:
        """See :meth:`IStore.getService`."""
        row = self._one(_ONE_SERVICE, tenant, id)
        if row is None:
            raise NoSuchObject(id)
        return self._service(row)

    def listServices(
        self, tenant: str, marker: str | None, count: int, tag: str | None, hidden: frozenset[str]
    ) -> list[ServiceRecord]:
        """See :meth:`IStore.listServices`."""
        services, glance = _SERVICES, _GLANCE_AT_SERVICES
        whose: tuple[Any, ...] = (tenant,)
        if tag is not None:
            services, glance = _SERVICES_BY_TAG, _GLANCE_AT_TAGGED
            whose = (tenant, asBytes(tag))
        if not hidden:
            rows = self._execute(f"{services} LIMIT ?", (*whose, marker or "", count))
            return [self._service(row) for row in rows.fetchall()]
        self._execute("BEGIN")  # so that all statements see the same
        try:
            return self._visible(services, glance, whose, marker or "", count, hidden)
        finally:
            self._execute("COMMIT")

    def _visible(
        self, services: str, glance: str, whose: tuple[Any, ...], start: str, count: int, hidden: frozenset[str]
    ) -> list[ServiceRecord]:
        """Those who are not hidden. Of thousands in a row that are, no row is read."""
        idAt = self._ids.idAt
        found: list[ServiceRecord] = []
        while len(found) < count:
            last, incarnations = self._one(glance, *whose, start)
            if last is None:
                break
            those = [idAt(int(incarnation)) for incarnation in incarnations.split(",")]
            visible = len(those) - len(hidden.intersection(those))
            if visible:
                rows = self._execute(services, (*whose, start))
                shown = (row for row in rows if idAt(row[1]) not in hidden)
                found += map(self._service, islice(shown, min(visible, count - len(found))))
                rows.close()  # it has not been read to its end
            start = last + "\0"  # there is no text between the two
        return found

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        """See :meth:`IStore.updateService`."""
        living = self._living(tenant, id, incarnation)
        if living is None:
            raise NoSuchObject(id)
        _, old = living
        new = old.changed(changes)
        if new != old:
            self._execute(
                "UPDATE services SET heartbeat_timeout = ?, tags = ?, metadata = ? WHERE tenant = ? AND id = ?",
                (new.heartbeatTimeout, _asJson(new.tags), _asJson(new.metadata), tenant, id),
            )
            before, after = set(old.tags), set(new.tags)
            self._dropTags(_tagRows(tenant, id, before - after))
            self._addTags(_tagRows(tenant, id, after - before))
        return new

    def removeService(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        """See :meth:`IStore.removeService`."""
        living = self._living(tenant, id, incarnation)
        if living is None:
            raise NoSuchObject(id)
        position, service = living
        self._dropServices([(tenant, position, service)])
        self._putEvent(tenant, self._ids.next(), "service.remove", payloads.serviceState(service))
        return service

    def _dropServices(self, services: Sequence[tuple[str, int, ServiceRecord]]) -> None:
        for tenant, those in _byTenant([(tenant, one.id) for tenant, _, one in services]):
            self._change("DELETE FROM services WHERE tenant = ? AND id IN {rows}", those, tenant)
            self._countServices({tenant: -len(those)})
        self._dropTags([row for tenant, _, one in services for row in _tagRows(tenant, one.id, one.tags)])
        self._change("DELETE FROM last_seen WHERE incarnation IN {rows}", [(position,) for _, position, _ in services])

    def expireServices(self, deaths: Sequence[Expiration]) -> None:
        """See :meth:`IStore.expireServices`; *deaths* is a part of them."""
        # Who dies twice dies once.
        due = list({(each.tenant, each.id, self._ids.owned(each.incarnation)): each for each in deaths}.items())
        # All of their fields in one row, for each row that is fetched is a step.
        found = self._select(
            "SELECT group_concat('[' || n.column4 || ',' || s.heartbeat_timeout || ',' || s.tags || ',' || s.metadata"
            " || ']') FROM {rows} n CROSS JOIN services s"
            " ON s.tenant = n.column1 AND s.id = n.column2 AND s.incarnation = n.column3",
            [(*whose, number) for number, (whose, _) in enumerate(due)],
        )
        fields = json.loads(f"[{','.join(text for (text,) in found if text)}]")
        dying, events = [], []
        # SQLite promises no order; the events have that of the deaths.
        for number, heartbeatTimeout, tags, metadata in sorted(fields, key=itemgetter(0)):
            (tenant, id, position), death = due[number]
            service = ServiceRecord(id, death.incarnation, heartbeatTimeout, tuple(tags), metadata)
            dying.append((tenant, position, service))
            state = _asJson(payloads.serviceState(service))
            events.append((tenant, self._ids.next(), death.timestamp, _EVENT_TYPES["service.timeout"], state))
        self._dropServices(dying)
        self._putEvents(events)

    def recordLastSeen(self, seen: Sequence[LastSeen]) -> None:
        """Write down when services were last seen, those of them that are in the same life still."""
        self._change(
            "INSERT OR REPLACE INTO last_seen (incarnation, milliseconds) SELECT s.incarnation, n.column4 FROM {rows} n"
            " CROSS JOIN services s ON s.tenant = n.column1 AND s.id = n.column2 AND s.incarnation = n.column3",
            [(tenant, id, self._ids.owned(incarnation), time) for (tenant, id, incarnation), time in seen],
        )

    def livingServices(self) -> list[LivingService]:
        """See :meth:`IStore.livingServices`."""
        rows = self._execute(
            "SELECT s.tenant, s.id, s.incarnation, s.heartbeat_timeout, l.milliseconds"
            " FROM services s LEFT JOIN last_seen l ON l.incarnation = s.incarnation"
        )
        idAt = self._ids.idAt
        return [
            LivingService(tenant, id, idAt(incarnation), heartbeatTimeout, lastSeen)
            for tenant, id, incarnation, heartbeatTimeout, lastSeen in rows
        ]

    # -- configuration

    def findValue(self, tenant: str, key: str) -> str | None:
        """The value, if there is one."""
        row = self._one("SELECT value FROM configuration_values WHERE tenant = ? AND key = ?", tenant, key)
        return None if row is None else asText(row[0])

    def getValue(self, tenant: str, key: str) -> str:
        """See :meth:`IStore.getValue`."""
        value = self.findValue(tenant, key)
        if value is None:
            raise NoSuchObject(key)
        return value

    def listValues(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[tuple[str, str]]:
        """See :meth:`IStore.listValues`."""
        start = marker or ""
        if namespace is None:
            rows = self._execute(
                "SELECT key, value FROM configuration_values WHERE tenant = ? AND key >= ? ORDER BY key LIMIT ?",
                (tenant, start, count),
            )
        else:
            # "0" is the character after "/": together they hold what begins with the namespace and a slash.
            prefix = namespace.rstrip("/")
            rows = self._execute(
                "SELECT key, value FROM configuration_values WHERE tenant = ?1 AND key = ?2 AND key >= ?3"
                " UNION ALL SELECT key, value FROM configuration_values"
                " WHERE tenant = ?1 AND key >= max(?3, ?4) AND key < ?5 ORDER BY key LIMIT ?6",
                (tenant, namespace, start, prefix + "/", prefix + "0", count),
            )
        return [(key, asText(value)) for key, value in rows]

    def setValues(self, sets: Sequence[tuple[str, str, str, int]]) -> list[StoreError | None]:
        """
        Set configuration values, one after the other.

        :param sets: the arguments of :meth:`IStore.setValue`.
        :return: what becomes of each: what it is refused for, or ``None``.
        """
        values = {
            (tenant, key): asText(value)
            for tenant, key, value in self._select(
                "SELECT v.tenant, v.key, v.value FROM {rows} n"
                " CROSS JOIN configuration_values v ON v.tenant = n.column1 AND v.key = n.column2",
                list({(tenant, key): None for tenant, key, _, _ in sets}),
            )
        }
        counts = {
            tenant: (self._one("SELECT configuration_values FROM tenants WHERE tenant = ?", tenant) or (0,))[0]
            for tenant in {tenant for tenant, _, _, _ in sets}
        }
        outcomes: list[StoreError | None] = []
        # Of each key the last value only: in which order the rows of a statement come is left to SQLite.
        changed: dict[tuple[str, str], str] = {}
        events, added = [], Counter[str]()
        now = self._milliseconds()
        for tenant, key, value, maximum in sets:
            oldValue = values.get((tenant, key))
            if oldValue is None and counts[tenant] + added[tenant] >= maximum:
                outcomes.append(LimitExceeded(maximum))
                continue
            outcomes.append(None)
            if oldValue == value:
                continue
            if oldValue is None:
                added[tenant] += 1
            values[tenant, key] = changed[tenant, key] = value
            payload = _asJson(payloads.updatedValue(key, oldValue, value))
            events.append((tenant, self._ids.next(), now, _EVENT_TYPES["configuration_value.update"], payload))
        self._change(
            "INSERT INTO configuration_values (tenant, key, value) SELECT * FROM {rows} WHERE true"
            " ON CONFLICT (tenant, key) DO UPDATE SET value = excluded.value",
            [(*whose, asBytes(value)) for whose, value in changed.items()],
        )
        self._countValues(added)
        self._putEvents(events)
        return outcomes

    def removeValue(self, tenant: str, key: str) -> None:
        """See :meth:`IStore.removeValue`."""
        oldValue = self.getValue(tenant, key)
        self._execute("DELETE FROM configuration_values WHERE tenant = ? AND key = ?", (tenant, key))
        self._countValues({tenant: -1})
        payload = payloads.removedValue(key, oldValue)
        self._putEvent(tenant, self._ids.next(), "configuration_value.remove", payload)

    # -- events

    def listEvents(self, tenant: str, position: int, count: int, type: str | None) -> list[EventRecord]:
        """See :meth:`IStore.listEvents`."""
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
                (tenant, _EVENT_TYPES.get(type), position, count),
            )
        return [
            EventRecord(self._ids.idAt(position), timestamp, _EVENT_TYPE_NAMES[number], json.loads(payload))
            for position, timestamp, number, payload in rows
        ]

    def hasEvent(self, tenant: str, id: str) -> bool:
        """See :meth:`IStore.hasEvent`."""
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
        Forget a tenant's oldest events.

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
