"""
What the operations of a store do to the tables of services.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, TypeAlias

import attrs

from ...model import NewService, ServiceChanges
from .. import payloads
from ..interfaces import (
    Expiration,
    LimitExceeded,
    NoSuchObject,
    ObjectExists,
    ServiceRecord,
    ServiceSummary,
    StoreError,
)
from .database import EVENT_TYPES, Rows, asBytes, asJson
from .states import States

_FIELDS = "SELECT s.id, s.incarnation, s.heartbeat_timeout, s.tags, s.metadata, l.milliseconds"
_LAST_SEEN = " LEFT JOIN last_seen l ON l.incarnation = s.incarnation"
_ALL = " FROM services s"
_FROM_MARKER = " WHERE s.tenant = ? AND s.id >= ? ORDER BY s.id"
_TAGGED = " FROM service_tags t CROSS JOIN services s ON s.tenant = t.tenant AND s.id = t.id"
_TAGGED_FROM_MARKER = " WHERE t.tenant = ? AND t.tag = ? AND t.id >= ? ORDER BY t.id"

_ONE_SERVICE = f"{_FIELDS}{_ALL}{_LAST_SEEN} WHERE s.tenant = ? AND s.id = ?"
_SERVICES = f"{_FIELDS}{_ALL}{_LAST_SEEN}{_FROM_MARKER}"
_SERVICES_BY_TAG = f"{_FIELDS}{_TAGGED}{_LAST_SEEN}{_TAGGED_FROM_MARKER}"

# Which services come next, many of them in one row.
_GLANCE = "SELECT max(id), group_concat(incarnation) FROM (SELECT s.id, s.incarnation{} LIMIT 100)"
_GLANCE_AT_SERVICES = _GLANCE.format(_ALL + _FROM_MARKER)
_GLANCE_AT_TAGGED = _GLANCE.format(_TAGGED + _TAGGED_FROM_MARKER)

#: The time of a heartbeat, in milliseconds since the epoch, behind the service's tenant, id and incarnation.
LastSeen: TypeAlias = tuple[tuple[str, str, str], int]


def _tagRows(tenant: str, id: str, tags: Iterable[str]) -> list[tuple[str, bytes, str]]:
    return [(tenant, asBytes(tag), id) for tag in set(tags)]


def _byTenant(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """The rows of each tenant, which is their first column, without it."""
    tenantOf = itemgetter(0)
    for tenant, those in groupby(sorted(rows, key=tenantOf), tenantOf):
        yield tenant, [row[1:] for row in those]


class Services(States):
    """Services. The methods are the operations of :class:`IStore`, or those of many at once."""

    def _record(self, row: Sequence[Any]) -> ServiceRecord:
        id, incarnation, heartbeatTimeout, tags, metadata, lastSeen = row
        return ServiceRecord(
            id, self._ids.idAt(incarnation), heartbeatTimeout, tuple(json.loads(tags)), json.loads(metadata), lastSeen
        )

    def _find(self, tenant: str, id: str, incarnation: str) -> tuple[int, ServiceRecord]:
        """This incarnation of a service, and the position of its join event."""
        row = self._one(_ONE_SERVICE, tenant, id)
        if row is None or self._ids.idAt(row[1]) != incarnation:
            raise NoSuchObject(id)
        return row[1], self._record(row)

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
        counts = self._counts("services", {tenant for tenant, _, _ in creates})
        states = {
            (tenant, id): record
            for tenant, those in _byTenant([(tenant, new.id) for tenant, new, _ in creates])
            for id, record in self._statesOf(tenant, [id for (id,) in those]).items()
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
            record = ServiceRecord.of(new, self._ids.idAt(position), states.get((tenant, new.id)))
            outcomes.append(record)
            tagsInJson, metadataInJson = asJson(new.tags), asJson(new.metadata)
            services.append((tenant, new.id, position, new.heartbeatTimeout, tagsInJson, metadataInJson))
            tags += _tagRows(tenant, new.id, new.tags)
            payload = (
                payloads.serviceStateInJson(asJson(new.id), new.heartbeatTimeout, tagsInJson, metadataInJson)
                if record.state is None
                else asJson(payloads.serviceState(record))
            )
            events.append((tenant, position, now, EVENT_TYPES["service.join"], payload))
        self._change(
            "INSERT INTO services (tenant, id, incarnation, heartbeat_timeout, tags, metadata) SELECT * FROM {rows}",
            services,
        )
        self._addTags(tags)
        self._count("services", added)
        self._markUsed(list(states))
        self._addEvents(events)
        return outcomes

    def _addTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        self._change("INSERT INTO service_tags (tenant, tag, id) SELECT * FROM {rows}", rows)

    def _dropTags(self, rows: Sequence[tuple[str, bytes, str]]) -> None:
        for tenant, those in _byTenant(rows):
            self._change(
                "DELETE FROM service_tags WHERE tenant = ? AND (tag, id) IN (SELECT * FROM {rows})", those, tenant
            )

    def getService(self, tenant: str, id: str, states: bool = False) -> ServiceRecord:
        with self.moment():
            row = self._one(_ONE_SERVICE, tenant, id)
            if row is None:
                raise NoSuchObject(id)
            return self._withStates(tenant, [self._record(row)], states)[0]

    def _withStates(self, tenant: str, services: list[ServiceRecord], states: bool) -> list[ServiceRecord]:
        found = self._statesOf(tenant, [one.id for one in services]) if states else None
        return [attrs.evolve(one, state=found.get(one.id)) for one in services] if found else services

    def listServices(
        self,
        tenant: str,
        marker: str | None,
        count: int,
        tag: str | None,
        hidden: Collection[str],
        states: bool = False,
    ) -> list[ServiceRecord]:
        services, glance = _SERVICES, _GLANCE_AT_SERVICES
        whose: tuple[Any, ...] = (tenant,)
        if tag is not None:
            services, glance = _SERVICES_BY_TAG, _GLANCE_AT_TAGGED
            whose = (tenant, asBytes(tag))
        with self.moment():
            if hidden:
                found = self._visible(services, glance, whose, marker or "", count, frozenset(hidden))
            else:
                rows = self._execute(f"{services} LIMIT ?", (*whose, marker or "", count))
                found = [self._record(row) for row in rows.fetchall()]
            return self._withStates(tenant, found, states)

    def _visible(
        self, services: str, glance: str, whose: tuple[Any, ...], start: str, count: int, hidden: frozenset[str]
    ) -> list[ServiceRecord]:
        """Those that are not hidden. Where thousands in a row are, none of their rows is read."""
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
                found += map(self._record, islice(shown, min(visible, count - len(found))))
                rows.close()  # it has not been read to its end
            start = last + "\0"  # there is no text between the two
        return found

    def updateService(self, tenant: str, id: str, incarnation: str, changes: ServiceChanges) -> ServiceRecord:
        _, old = self._find(tenant, id, incarnation)
        new = old.changed(changes)
        if new != old:
            self._execute(
                "UPDATE services SET heartbeat_timeout = ?, tags = ?, metadata = ? WHERE tenant = ? AND id = ?",
                (new.heartbeatTimeout, asJson(new.tags), asJson(new.metadata), tenant, id),
            )
            before, after = set(old.tags), set(new.tags)
            self._dropTags(_tagRows(tenant, id, before - after))
            self._addTags(_tagRows(tenant, id, after - before))
            (shown,) = self._withStates(tenant, [new], True)
            self._addEvent(tenant, "service.update", payloads.updatedService(old, shown))
        return new

    def removeService(self, tenant: str, id: str, incarnation: str) -> ServiceRecord:
        position, service = self._find(tenant, id, incarnation)
        self._dropServices([(tenant, position, service)])
        self._addEvent(tenant, "service.remove", payloads.serviceState(service))
        return service

    def _dropServices(self, services: Sequence[tuple[str, int, ServiceRecord]]) -> None:
        for tenant, those in _byTenant([(tenant, one.id) for tenant, _, one in services]):
            self._change("DELETE FROM services WHERE tenant = ? AND id IN {rows}", those, tenant)
            self._count("services", {tenant: -len(those)})
        self._dropTags([row for tenant, _, one in services for row in _tagRows(tenant, one.id, one.tags)])
        self._change("DELETE FROM last_seen WHERE incarnation IN {rows}", [(position,) for _, position, _ in services])

    def expireServices(self, expirations: Sequence[Expiration]) -> None:
        # A service that is named twice expires once.
        due = list({(each.tenant, each.id, self._ids.owned(each.incarnation)): each for each in expirations}.items())
        # All of their fields in one row, because each row that is fetched is a step.
        found = self._select(
            "SELECT group_concat('[' || n.column4 || ',' || s.heartbeat_timeout || ',' || s.tags || ',' || s.metadata"
            " || ']') FROM {rows} n CROSS JOIN services s"
            " ON s.tenant = n.column1 AND s.id = n.column2 AND s.incarnation = n.column3",
            [(*whose, number) for number, (whose, _) in enumerate(due)],
        )
        fields = json.loads(f"[{','.join(text for (text,) in found if text)}]")
        services, events = [], []
        # SQLite promises no order; the events have that of the expirations.
        for number, heartbeatTimeout, tags, metadata in sorted(fields, key=itemgetter(0)):
            (tenant, id, position), expiration = due[number]
            service = ServiceRecord(id, expiration.incarnation, heartbeatTimeout, tuple(tags), metadata)
            services.append((tenant, position, service))
            state = asJson(payloads.serviceState(service))
            events.append((tenant, self._ids.next(), expiration.timestamp, EVENT_TYPES["service.timeout"], state))
        self._dropServices(services)
        self._addEvents(events)

    def recordLastSeen(self, seen: Sequence[LastSeen]) -> None:
        """Write down when services were last seen, for those incarnations that are still there."""
        self._change(
            "INSERT OR REPLACE INTO last_seen (incarnation, milliseconds) SELECT s.incarnation, n.column4 FROM {rows} n"
            " CROSS JOIN services s ON s.tenant = n.column1 AND s.id = n.column2 AND s.incarnation = n.column3",
            [(tenant, id, self._ids.owned(incarnation), time) for (tenant, id, incarnation), time in seen],
        )

    def allServices(self) -> list[ServiceSummary]:
        rows = self._execute(
            "SELECT s.tenant, s.id, s.incarnation, s.heartbeat_timeout, l.milliseconds"
            " FROM services s LEFT JOIN last_seen l ON l.incarnation = s.incarnation"
        )
        idAt = self._ids.idAt
        return [
            ServiceSummary(tenant, id, idAt(incarnation), heartbeatTimeout, lastSeen)
            for tenant, id, incarnation, heartbeatTimeout, lastSeen in rows
        ]
