"""
What the operations of a store do to the table of configuration values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .. import payloads
from ..interfaces import LimitExceeded, NoSuchObject, StoreError
from .database import EVENT_TYPES, Database, asBytes, asJson, asText


class Values(Database):
    """Configuration values. The methods are the operations of :class:`IStore`."""

    def getValue(self, tenant: str, key: str) -> str:
        row = self._one("SELECT value FROM configuration_values WHERE tenant = ? AND key = ?", tenant, key)
        if row is None:
            raise NoSuchObject(key)
        return asText(row[0])

    def listValues(self, tenant: str, marker: str | None, count: int, namespace: str | None) -> list[tuple[str, str]]:
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
        Set values, one after the other.

        :param sets: the arguments of :meth:`IStore.setValue`.
        :return: what each is refused for, or ``None``.
        """
        values = {
            (tenant, key): asText(value)
            for tenant, key, value in self._select(
                "SELECT v.tenant, v.key, v.value FROM {rows} n"
                " CROSS JOIN configuration_values v ON v.tenant = n.column1 AND v.key = n.column2",
                list({(tenant, key): None for tenant, key, _, _ in sets}),
            )
        }
        counts = self._counts("configuration_values", {tenant for tenant, _, _, _ in sets})
        outcomes: list[StoreError | None] = []
        # Of each key the last value only: in which order the rows of a statement come is left to SQLite.
        changed: dict[tuple[str, str], tuple[str, int]] = {}
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
            position = self._ids.next()
            values[tenant, key] = value
            changed[tenant, key] = value, position
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

    def removeValue(self, tenant: str, key: str) -> None:
        oldValue = self.getValue(tenant, key)
        self._execute("DELETE FROM configuration_values WHERE tenant = ? AND key = ?", (tenant, key))
        self._count("configuration_values", {tenant: -1})
        self._addEvent(tenant, "configuration_value.remove", payloads.removedValue(key, oldValue))
