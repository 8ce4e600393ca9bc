"""The changes of one configuration value, from the event feed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..eventids import position
from ..stores.interfaces import IStore
from ..tasks import available

_TYPES = frozenset({"configuration_value.update", "configuration_value.remove"})
_PAGE = 1000


async def changesOf(store: IStore, tenant: str, key: str) -> list[Mapping[str, Any]]:
    """The events of a value that the store still has, oldest first."""
    changes: list[Mapping[str, Any]] = []
    since = 0
    while True:
        records = await available(store.listEvents(tenant, since, _PAGE, _TYPES))
        changes += [
            {"id": record.id, "timestamp": record.timestamp, "type": record.type, "payload": record.payload}
            for record in records
            if record.payload["configuration_value_id"] == key
        ]
        if len(records) < _PAGE:
            return changes
        since = position(records[-1].id) + 1
