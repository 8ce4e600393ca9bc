"""The payloads of events, for all stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .interfaces import UP, ServiceRecord, StateRecord


def serviceState(service: ServiceRecord) -> dict[str, Any]:
    """The payload of ``service.join`` (with the state if it is not up), ``service.remove`` and ``service.timeout``."""
    payload = {
        "id": service.id,
        "heartbeat_timeout": service.heartbeatTimeout,
        "tags": list(service.tags),
        "metadata": dict(service.metadata),
    }
    if service.state is not None and service.state.state != UP:
        payload["state"] = service.state.state
    return payload


def updatedService(old: ServiceRecord, new: ServiceRecord) -> dict[str, Any]:
    """The payload of ``service.update``; the *new* service may have its state."""
    before, after = serviceState(old), serviceState(new)
    payload = {**after, "changed": [name for name in before if after[name] != before[name]]}
    return {**payload, "old_tags": before["tags"]} if "tags" in payload["changed"] else payload


def updatedValue(key: str, oldValue: str | None, newValue: str) -> dict[str, Any]:
    """The payload of ``configuration_value.update``; *oldValue* is ``None`` the first time."""
    return {"configuration_value_id": key, "old_value": oldValue, "new_value": newValue}


def removedValue(key: str, oldValue: str) -> dict[str, Any]:
    """The payload of ``configuration_value.remove``."""
    return {"configuration_value_id": key, "old_value": oldValue}


def stateEvents(old: StateRecord, new: StateRecord, now: int) -> Iterator[tuple[dict[str, Any], int]]:
    """
    The payloads and timestamps of the ``service.state`` events of a change: of the end of the *old* record, if it was
    over at *now*, and of what is new.
    """
    before = old.at(now)
    if before is not old:
        assert old.ends is not None
        yield {**before.toJSON(), "old_state": old.state}, old.ends
    if new != before:
        yield {**new.toJSON(), "old_state": before.state}, now
