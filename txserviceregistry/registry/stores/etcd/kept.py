"""The values that nodes keep in etcd: JSON objects with a version. Their fields are checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import UnionType
from typing import Any, TypeAlias

from ....util.logs import Logger
from ..interfaces import StoreUnavailable
from .votes import VERSION

Fields: TypeAlias = Mapping[str, type | UnionType]

_log = Logger()


class Unreadable(StoreUnavailable):
    """A key has a value that neither this release nor an earlier one has written."""


def readKept(key: str, value: bytes, fields: Fields, newest: float = VERSION) -> dict[str, Any]:
    """
    The value of a key, if it has these *fields*, and no version above the *newest* one. Other values are logged, each
    once, and raise :class:`Unreadable`.
    """
    try:
        kept: dict[str, Any] = json.loads(value)
        wrong = [name for name, kind in fields.items() if not isinstance(kept[name], kind)]
        if wrong or kept.get("v", 0) > newest:
            raise ValueError(f"unexpected {wrong[0]}" if wrong else f"version {kept['v']} is of a newer release")
        return kept
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"the value of key {key!r} in etcd is damaged or of a newer release ({error})"
        _logOnce(f"Requests receive 503: {reason}; restore it from a backup")
        raise Unreadable(reason) from None


@contextmanager
def understood(key: str) -> Iterator[None]:
    """Log and skip a key that no registry has written, so that the node still reads the others."""
    try:
        yield
    except Unreadable:
        pass
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        _logOnce(f"Ignored key {key!r} in etcd: no registry has written its value ({error!r})")


@lru_cache(maxsize=1000)
def _logOnce(text: str) -> None:
    _log.error("{text}", text=text)
