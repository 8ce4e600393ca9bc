"""The values that nodes keep in etcd: JSON objects with a version, whose fields are checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from types import UnionType
from typing import Any, TypeAlias

from ....util.logs import Logger
from ...eventids import EventIds, newTail
from ...model import tenantOf
from ..interfaces import StoreUnavailable
from . import VERSION

#: The fields that a value must have.
Fields: TypeAlias = Mapping[str, type | UnionType]

_log = Logger()


class Unreadable(StoreUnavailable):
    """A key has a value that neither this release nor an earlier one has written."""


def readKept(key: str, value: bytes, fields: Fields, newest: float = VERSION) -> dict[str, Any]:
    """
    The value of a key: a JSON object with these *fields*, and a version up to the *newest* one. Other values are
    logged, each once, and raise :class:`Unreadable`.
    """
    try:
        kept: dict[str, Any] = json.loads(value)
        wrong = [name for name, kind in fields.items() if not isinstance(kept[name], kind)]
        if wrong or kept.get("v", 0) > newest:
            raise ValueError(f"unexpected {wrong[0]}" if wrong else f"version {kept['v']} is of a newer release")
        return kept
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"the value of key {key!r} in etcd is damaged or of a newer release ({error})"
        logOnce(f"Requests receive 503: {reason}; restore it from a backup")
        raise Unreadable(reason) from None


@contextmanager
def understood(key: str) -> Iterator[None]:
    """Log and skip a key that no registry has written, so that the node still reads the others."""
    try:
        yield
    except Unreadable:
        pass
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        logOnce(f"Ignored key {key!r} in etcd: no registry has written its value ({error!r})")


@lru_cache(maxsize=1000)
def logOnce(text: str) -> None:
    _log.error("{text}", text=text)


class TenantIds:
    """
    The tenants' event ids. Each tenant has positions of its own, and a tail of its own, made of the registry's *tail*,
    so that no two events of different tenants have the same id.
    """

    def __init__(self, wallClock: Callable[[], float]) -> None:
        self.tail = ""
        self._wallClock = wallClock
        self._ids: dict[str, EventIds] = {}

    def of(self, tenant: str) -> EventIds:
        """The event ids of one tenant, which may be given by one of its scopes."""
        tenant = tenantOf(tenant)
        if tenant not in self._ids:
            drawn = int.from_bytes(blake2b(f"{self.tail} {tenant}".encode(), digest_size=8).digest(), "big")
            self._ids[tenant] = EventIds(self._wallClock, newTail(lambda bits: drawn & (1 << bits) - 1))
        return self._ids[tenant]
