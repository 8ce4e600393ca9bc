"""
The records of the model of the API: requests, services, events and accounts.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import attrs

from tests.system.fuzz.expectations import Form, difference, positionOf

HOUR = 3600.0
_EPOCH = 0x01B21DD213814000


def timeUUID(moment: float) -> str:
    """A version-1 UUID of this moment that no registry has made."""
    position = int(moment * 10_000_000) + _EPOCH
    return f"{position & 0xFFFFFFFF:08x}-{position >> 32 & 0xFFFF:04x}-1{position >> 48:03x}-8000-0123456789ab"


@attrs.frozen
class Request:
    """
    A request.

    :ivar tenant: the one in the path.
    :ivar path: what follows the tenant.
    :ivar user: whose auth token it has: a tenant, ``"unknown"`` for an unknown token, ``None`` for none.
    :ivar role: which user of that tenant it is; a key of ``ROLES``.
    :ivar conditions: its ``If-Match`` or ``If-None-Match`` headers.
    :ivar body: bytes as they are, anything else as JSON; ``None`` for no body.
    """

    method: str
    path: str
    body: Any = None
    query: tuple[tuple[str, str], ...] = ()
    tenant: str = "1"
    user: str | None = "1"
    contentType: str | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    role: str = ""

    @property
    def raw(self) -> bytes:
        """The body as it travels."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return json.dumps(self.body).encode()

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return dict(reversed(self.query)).get(name)


@attrs.define
class Event:
    """
    :ivar stamp: when it happened by the wall clock.
    :ivar earliest: when it can have been put into the feed first, and *latest* when last: times of the model, each
        with a number to tell moments at the same time apart.
    :ivar id: as soon as it is known.
    :ivar late: seconds by which its time may be later than it was; or earlier, because the node that begins a vote need
        not know the last heartbeat.
    :ivar tag: the tag that it gave to a value, as soon as it is known.
    """

    type: str
    payload: dict[str, Any]
    stamp: float
    earliest: tuple[float, float]
    latest: tuple[float, float]
    id: str | None = None
    late: float = 0.0
    tag: str | None = None

    def isThis(self, shown: Any) -> bool:
        """Whether what the feed shows can be this event."""
        milliseconds = shown.get("timestamp")
        return (
            type(milliseconds) is int
            and math.floor((self.stamp - self.late) * 1000)
            <= milliseconds
            <= math.ceil((self.stamp + self.late) * 1000)
            and difference([self.type, self.payload], [shown.get("type"), shown.get("payload")]) is None
            and (self.tag is None or shown.get("id") is None or self.tag == f'"{positionOf(shown["id"])}"')
        )

    @property
    def etag(self) -> Form:
        """The tag that it gives to a value: the position of its id."""

        def learn(tag: Any) -> str | None:
            if not isinstance(tag, str) or not re.fullmatch('"[0-9]+"', tag):
                return "is not a tag"
            if self.tag is None and (self.id is None or tag == f'"{positionOf(self.id)}"'):
                self.tag = tag
            return None if tag == self.tag else f"is not {self.tag}"

        return Form(learn)


@attrs.define
class Service:
    """
    :ivar tokens: the heartbeat tokens of this registration.
    :ivar moments: when it was seen, if not every node knows the last time.
    """

    id: str
    timeout: int
    tags: list[str]
    metadata: dict[str, str]
    deadline: float
    lastSeen: int | None = None
    tokens: set[str] = attrs.field(factory=set)
    moments: list[int] | None = None

    @property
    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        return {**self.payload, "last_seen": self.lastSeen if self.moments is None else Form(self._wasSeen)}

    def _wasSeen(self, moment: Any) -> str | None:
        assert self.moments is not None
        return None if moment is None or moment in self.moments else f"is none of {self.moments}"

    @property
    def payload(self) -> dict[str, Any]:
        """As its events show it."""
        return {"id": self.id, "heartbeat_timeout": self.timeout, "tags": self.tags, "metadata": self.metadata}


@attrs.frozen(eq=False)
class Value:
    """:ivar change: the event of its last change."""

    text: str
    change: Event


@attrs.define
class Account:
    """:ivar created: when, by the wall clock."""

    created: float
    services: dict[str, Service] = attrs.field(factory=dict)
    values: dict[str, Value] = attrs.field(factory=dict)
    states: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    locks: dict[str, Any] = attrs.field(factory=dict)
    lastFence: int = 0
    events: list[Event] = attrs.field(factory=list)
    tokens: list[tuple[str, str]] = attrs.field(factory=list)
    """Every heartbeat token that was given out, and for which id."""
