"""
The states of one tenant's services, in memory.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .interfaces import LimitExceeded
from .states import StateRecord, stateEvents


class StateTable:
    """
    The records of one tenant. Moments are in milliseconds since the epoch; changes return the events that they make,
    payloads and timestamps.
    """

    def __init__(self) -> None:
        self._records: dict[str, StateRecord] = {}
        # Since when an id with a record has had no service.
        self._unused: dict[str, int] = {}

    def find(self, id: str, now: int) -> StateRecord | None:
        """The record of an id, unless it is over."""
        record = self._records.get(id, StateRecord(id)).at(now)
        return None if record.isDefault else record

    def all(self, marker: str, now: int) -> list[StateRecord]:
        """All records from *marker* on, by id."""
        found = (self.find(id, now) for id in sorted(self._records) if id >= marker)
        return [record for record in found if record is not None]

    def set(self, record: StateRecord, now: int, maximum: int) -> list[tuple[dict[str, Any], int]]:
        """Set a record; see :meth:`IStateStore.setState`."""
        old = self._records.get(record.id)
        if record.isDefault:
            self._records.pop(record.id, None)
            self._unused.pop(record.id, None)
        elif old is None and len(self._records) >= maximum:
            raise LimitExceeded(maximum)
        else:
            self._records[record.id] = record
        return list(stateEvents(old or StateRecord(record.id), record, now))

    def used(self, id: str) -> None:
        """There is a service with this id."""
        self._unused.pop(id, None)

    def end(self, now: int) -> list[tuple[dict[str, Any], int]]:
        """End the records that are over."""
        over = [record.id for record in self._records.values() if record.at(now) is not record]
        return [event for id in over for event in self.set(StateRecord(id), now, 0)]

    def nextEnd(self) -> int | None:
        """When the next record ends."""
        return min((record.ends for record in self._records.values() if record.ends is not None), default=None)

    def drop(self, services: Collection[str], before: int, now: int) -> list[tuple[dict[str, Any], int]]:
        """Drop records that are not used; see :meth:`IStateStore.dropStates`."""
        self._unused = {id: self._unused.get(id, now) for id in self._records if id not in services}
        old = [id for id, since in self._unused.items() if since < before]
        return [event for id in old for event in self.set(StateRecord(id), now, 0)]
