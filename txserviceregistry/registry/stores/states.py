"""The states of services, as stores keep them: records that operators set for ids, apart from the services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

UP = "up"


@attrs.frozen(slots=True)
class StateRecord:
    """
    The state of the service with an id, whether or not there is one. Without a record it is up.

    :ivar state: ``up``, ``drain`` or ``out``.
    :ivar ends: when the record ends, in milliseconds since the epoch; ``None`` for a record without an end.
    """

    id: str
    state: str = UP
    reason: str = ""
    ends: int | None = None

    @property
    def isDefault(self) -> bool:
        """Whether it says no more than that the service is up, so that it need not be kept."""
        return self.state == UP and not self.reason

    def at(self, now: int) -> StateRecord:
        """The record for readers at a moment, in milliseconds since the epoch."""
        return self if self.ends is None or self.ends > now else StateRecord(self.id)

    def toJSON(self) -> dict[str, Any]:
        """As in the API."""
        return {"id": self.id, "state": self.state, "reason": self.reason, "expires_at": self.ends}


def stateEvents(old: StateRecord, new: StateRecord, now: int) -> Iterator[tuple[dict[str, Any], int]]:
    """
    The ``service.state`` events of a change, payloads and timestamps: of the end of the *old* record, if it was over
    at *now* (milliseconds since the epoch), and of what is new.
    """
    before = old.at(now)
    if before is not old:
        assert old.ends is not None
        yield {**before.toJSON(), "old_state": old.state}, old.ends
    if new != before:
        yield {**new.toJSON(), "old_state": before.state}, now
