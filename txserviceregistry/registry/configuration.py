"""
The configuration values of a registry, and their tags: a tag says which change of a value was the last one.
"""

from __future__ import annotations

from typing import Any

import attrs

from .faults import Fault, limitReached, notFound, preconditionFailed
from .feed import EventFeed
from .model import UNCONDITIONAL, Page, Precondition
from .stores.interfaces import IStore, LimitExceeded, NoSuchObject, PreconditionFailed, ValueRecord
from .tasks import TaskOwner, available, owned


@attrs.define(eq=False)
class Configuration:
    """The configuration values of all tenants; each may have a *maximum* of them."""

    _store: IStore
    _feed: EventFeed
    _tasks: TaskOwner
    _maximum: int

    @owned
    async def list(
        self, tenant: str, marker: str | None, limit: int, namespace: str | None, *, tagged: bool = False
    ) -> Page:
        """
        A page of configuration values by key, from *marker* on, each with its ``etag`` if *tagged*: all, or for ``"/"``
        all qualified keys, for ``"/a/b"`` that key and all below it.
        """
        records = await available(self._store.listValues(tenant, marker, limit + 1, namespace))
        return Page.of([_shown(record, tagged) for record in records], limit)

    @owned
    async def get(self, tenant: str, key: str) -> ValueRecord:
        """One value; the fault 404 if it is not there."""
        try:
            return await available(self._store.getValue(tenant, key))
        except NoSuchObject:
            raise notFound("ConfigurationValue", key)

    @owned
    async def set(self, tenant: str, key: str, value: str, precondition: Precondition = UNCONDITIONAL) -> int:
        """
        Set a value, with an event if it is new or changed; returns the position of its last change. Faults:
        ``preconditionFailed``, ``limitReached`` if it is new and the account is full.
        """
        try:
            position = await available(self._store.setValue(tenant, key, value, self._maximum, precondition))
        except PreconditionFailed as refusal:
            raise _refused(key, refusal.position)
        except LimitExceeded:
            raise limitReached("configuration_value", self._maximum)
        self._feed.notify((tenant,), "configuration_value.update")
        return position

    @owned
    async def remove(self, tenant: str, key: str, precondition: Precondition = UNCONDITIONAL) -> None:
        """Remove a value, with an event; the faults ``preconditionFailed``, and 404 if it is not there."""
        try:
            await available(self._store.removeValue(tenant, key, precondition))
        except PreconditionFailed as refusal:
            raise _refused(key, refusal.position)
        except NoSuchObject:
            raise notFound("ConfigurationValue", key)
        self._feed.notify((tenant,), "configuration_value.remove")


def etagAt(position: int) -> str:
    """The tag of a value, as HTTP has it."""
    return f'"{position}"'


def _shown(record: ValueRecord, tagged: bool) -> dict[str, Any]:
    value = {"id": record.key, "value": record.value}
    return {**value, "etag": etagAt(record.position)} if tagged else value


def _refused(key: str, position: int | None) -> Fault:
    if position is None:
        return preconditionFailed(f'Object "ConfigurationValue" with key "{key}" does not exist')
    tag = etagAt(position)
    return preconditionFailed(f'Object "ConfigurationValue" with key "{key}" has the tag {tag}', tag)
