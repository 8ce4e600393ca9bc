"""
The audit log: a line of JSON for each request that changes something, or was refused to.

Heartbeats are left out. A line has the id or key of the object, and no value.
"""

from __future__ import annotations

import json

import attrs

from .accesslog import timeText

# How many characters of an id or key are logged: all of one that is valid.
_LONGEST_OBJECT = 500


@attrs.frozen(slots=True)
class Change:
    """
    The content of a line of the audit log.

    :ivar moment: when the request was answered, in seconds since the epoch.
    :ivar user: empty if the request was not authenticated; so is the tenant.
    :ivar operation: the name of the operation, as in ``/openapi.json``.
    :ivar object: the id, key or name of the object; empty if the request has none.
    :ivar result: the HTTP status code.
    """

    moment: float
    user: str
    tenant: str
    operation: str
    object: str
    result: int
    txnId: str

    def line(self) -> str:
        """See :class:`~txserviceregistry.registry.http.accesslog.Entry`."""
        fields = attrs.asdict(self)
        time = timeText(fields.pop("moment"))
        fields["object"] = fields["object"][:_LONGEST_OBJECT]
        return json.dumps({"time": time, **{name: value or None for name, value in fields.items()}})
