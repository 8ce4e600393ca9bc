"""The arguments and results of :mod:`~txserviceregistry.registry.core`: checked requests, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import attrs

from ..types import EventType, PlainEventType

#: All types of events, and those that a request gets which names none.
EVENT_TYPES: tuple[str, ...] = get_args(EventType)
PLAIN_TYPES: frozenset[str] = frozenset(get_args(PlainEventType))


@attrs.frozen
class NewService:
    id: str
    heartbeatTimeout: int
    tags: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=dict)


@attrs.frozen
class ServiceChanges:
    """Changes of a service; a field that is ``None`` stays."""

    heartbeatTimeout: int | None = None
    tags: tuple[str, ...] | None = attrs.field(default=None, converter=attrs.converters.optional(tuple))
    metadata: Mapping[str, str] | None = attrs.field(default=None, converter=attrs.converters.optional(dict))


@attrs.frozen
class NewLock:
    """A lock to be acquired. *holder* is for people; *nonce* names this acquisition, if it has a name."""

    name: str
    timeout: int
    holder: str = ""
    nonce: str | None = None
    metadata: Mapping[str, str] = attrs.field(factory=dict, converter=dict)


@attrs.frozen
class Precondition:
    """The condition of a write of a configuration value, whose *position* is that of its last change in the feed."""

    exists: bool | None = None  # whether the value must be there; None where that does not matter
    positions: frozenset[str] | None = None  # it must have one of these, in decimal

    def allows(self, position: int | None) -> bool:
        """Whether the value with this *position*, which is ``None`` if there is no value, may be written."""
        if self.exists not in (None, position is not None):
            return False
        return self.positions is None or str(position) in self.positions


#: Lets every write pass.
UNCONDITIONAL = Precondition()


@attrs.frozen
class Page:
    """A part of a collection: values as in the API's JSON, and the id that the next page begins at, if there is one."""

    values: Sequence[Mapping[str, Any]]
    nextMarker: str | None

    @classmethod
    def of(cls, values: Sequence[Mapping[str, Any]], limit: int, key: str = "id") -> Page:
        """The first *limit* of the values; a further one is there if the next page begins with it."""
        return cls(values[:limit], values[limit][key] if len(values) > limit else None)


# Deadlines, heartbeat tokens and votes treat locks as they treat services. To keep them apart, each tenant has two
# scopes in which ids are unique: that of its services, which is the tenant's number, and that of its locks.
_LOCKS = "/locks"


def lockScope(tenant: str) -> str:
    return tenant + _LOCKS


def isLockScope(scope: str) -> bool:
    return scope.endswith(_LOCKS)


def tenantOf(scope: str) -> str:
    return scope.removesuffix(_LOCKS)


def kindOf(scope: str) -> str:
    """The kind of the objects in a scope, as faults call it."""
    return "Lock" if isLockScope(scope) else "Service"
