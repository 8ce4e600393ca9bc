"""The operations of a store on the table of configuration values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...model import UNCONDITIONAL, Precondition
from .. import payloads
from ..interfaces import LimitExceeded, NoSuchObject, PreconditionFailed, StoreError, ValueRecord
from .database import EVENT_TYPES, Database, asBytes, asJson, asText

_VALUES = "SELECT key, value, position FROM configuration_values"


def _value(key: str, value: bytes, position: int) -> ValueRecord:
    return ValueRecord(key, asText(value), position)


class Values(Database):
    """Configuration values. The methods are the operations of :class:`IStore`."""

    def getValue(self, tenant: str, key: str) -> ValueRecord:
        row = self._one(f"{_VALUES} WHERE tenant = ? AND key = ?", tenant, key)
        if row is None:
            raise NoSuchObject(key)
        return _value(*row)

    def listValues(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[ValueRecord]:
        start = marker or ""
        if namespace is None:
            rows = self._execute(
                f"{_VALUES} WHERE tenant = ? AND key >= ? ORDER BY key LIMIT ?", (tenant, start, count)
            )
        else:
            # "0" is the character after "/": together they hold what begins with the namespace and a slash.
            prefix = namespace.rstrip("/")
            rows = self._execute(
                f"{_VALUES} WHERE tenant = ?1 AND key = ?2 AND key >= ?3"
                f" UNION ALL {_VALUES}"
                " WHERE tenant = ?1 AND key >= max(?3, ?4) AND key < ?5 ORDER BY key LIMIT ?6",
                (tenant, namespace, start, prefix + "/", prefix + "0", count),
            )
        return [_value(*row) for row in rows]

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
            payload = asJson(payloads.updatedValue(key, oldValue, value))
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
        position = None if row is None else row[2]
        if not precondition.allows(position):
            raise PreconditionFailed(position)
        if row is None:
            raise NoSuchObject(key)
        self._execute("DELETE FROM configuration_values WHERE tenant = ? AND key = ?", (tenant, key))
        self._count("configuration_values", {tenant: -1})
        self._addEvent(tenant, "configuration_value.remove", payloads.removedValue(key, asText(row[1])))
