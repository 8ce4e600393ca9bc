"""The shapes of the API's JSON, for type checkers. At run time they are plain dicts and lists."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

__all__ = [
    "AcquiredLock",
    "ConfigurationPage",
    "ConfigurationValue",
    "ConsoleLink",
    "Event",
    "EventPage",
    "EventType",
    "FaultBody",
    "HeartbeatToken",
    "Limits",
    "Lock",
    "LockPage",
    "PageMetadata",
    "PlainEventType",
    "RateLimit",
    "Service",
    "ServicePage",
    "ServiceState",
    "ServiceStatePage",
    "State",
]

#: The types of events of version 1.0.
PlainEventType = Literal[
    "service.join",
    "service.remove",
    "service.timeout",
    "configuration_value.update",
    "configuration_value.remove",
]

#: All types of events. Types that version 1.0 does not have come only with a request that names them.
EventType = Literal[PlainEventType, "service.update", "service.state", "lock.acquire", "lock.release", "lock.expire"]


class _RequiredPageMetadata(TypedDict):
    count: int
    limit: int
    marker: str | None
    next_marker: str | None
    next_href: str | None


class PageMetadata(_RequiredPageMetadata, total=False):
    """The position of a page in its collection. Only a page from the client's cache has ``stale``, in seconds."""

    stale: float


#: The states of services: ``drain`` means no new work, ``out`` no traffic.
State = Literal["up", "drain", "out"]


class _RequiredService(TypedDict):
    id: str
    heartbeat_timeout: int
    tags: list[str]
    metadata: dict[str, str]
    last_seen: int | None


class Service(_RequiredService, total=False):
    """
    A registered service. ``last_seen`` is in milliseconds since the epoch, ``heartbeat_timeout`` in seconds.
    ``state`` (``drain`` or ``out``) and ``state_reason`` exist only while an operator has set that state.
    """

    state: str
    state_reason: str


class ServiceState(TypedDict):
    """The state that an operator has set. ``expires_at``, in milliseconds, is when it ends; ``None`` if it does not."""

    id: str
    state: State
    reason: str
    expires_at: int | None


class ServiceStatePage(TypedDict):
    """A page of states, sorted by id."""

    values: list[ServiceState]
    metadata: PageMetadata


class HeartbeatToken(TypedDict):
    """The response to a registration and to a heartbeat: the token for the next heartbeat."""

    token: str


class Lock(TypedDict):
    """
    A lock that is held. ``fence`` exceeds that of all earlier locks of the account; ``timeout`` is in seconds,
    ``acquired_at`` in milliseconds since the epoch.
    """

    name: str
    holder: str
    fence: int
    timeout: int
    acquired_at: int
    metadata: dict[str, str]


class LockPage(TypedDict):
    """A page of locks, sorted by name."""

    values: list[Lock]
    metadata: PageMetadata


class AcquiredLock(TypedDict):
    """The response to an acquisition: the token for the first heartbeat or the release, and the fence."""

    token: str
    fence: int


class ServicePage(TypedDict):
    """A page of services, sorted by id."""

    values: list[Service]
    metadata: PageMetadata


class _RequiredConfigurationValue(TypedDict):
    id: str
    value: str


class ConfigurationValue(_RequiredConfigurationValue, total=False):
    """One configuration value and its key. ``etag`` identifies its last change, and exists only if requested."""

    etag: str


class ConfigurationPage(TypedDict):
    """A page of configuration values, sorted by key."""

    values: list[ConfigurationValue]
    metadata: PageMetadata


class Event(TypedDict):
    """An event. ``timestamp`` is in milliseconds since the epoch."""

    id: str
    timestamp: int
    type: EventType
    payload: dict[str, Any]


class EventPage(TypedDict):
    """A page of the feed, oldest first."""

    values: list[Event]
    metadata: PageMetadata


class RateLimit(TypedDict):
    """A rate limit and how much of it is used."""

    limit: int
    used: int
    window: str


class Limits(TypedDict):
    """The account's limits: ``resource`` by resource type, ``rate`` by pattern of paths."""

    resource: dict[str, int]
    rate: dict[str, RateLimit]


class ConsoleLink(TypedDict):
    """A link that opens the web console once, within ``expires_in`` seconds."""

    href: str
    expires_in: int


class FaultBody(TypedDict):
    """The body of every error."""

    type: str
    code: int
    message: str
    details: str
    txnId: str
