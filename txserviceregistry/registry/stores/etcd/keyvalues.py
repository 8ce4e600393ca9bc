"""Keys and their values in etcd, and the clauses of its transactions."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import attrs

from ....util.logs import Logger
from ..interfaces import StoreUnavailable
from . import VERSION

#: A condition or an operation of a transaction, as etcd takes it.
Clause: TypeAlias = dict[str, Any]

_log = Logger()


@attrs.frozen
class KeyValue:
    """A key with its value, the revisions that created it and changed it last, and its lease (0: none)."""

    key: str
    value: bytes
    created: int
    modified: int
    lease: int

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> KeyValue:
        return cls(
            b64decode(found["key"]).decode("utf-8", "surrogatepass"),
            b64decode(found.get("value", "")),
            int(found.get("create_revision", 0)),
            int(found.get("mod_revision", 0)),
            int(found.get("lease", 0)),
        )


@attrs.frozen
class Txn:
    succeeded: bool  # whether its conditions held
    revision: int  # etcd's then
    found: Sequence[list[KeyValue]]  # the result of each read
    cluster: str = ""  # the id of the cluster

    @property
    def byKey(self) -> Mapping[str, KeyValue]:
        return {each.key: each for kept in self.found for each in kept}

    @classmethod
    def of(cls, answer: Any) -> Txn:
        reads = (response.get("response_range", {}) for response in answer.get("responses", ()))
        found = [[KeyValue.of(each) for each in read.get("kvs", ())] for read in reads]
        header = answer["header"]
        return cls(bool(answer.get("succeeded")), int(header["revision"]), found, header.get("cluster_id", ""))


def encode(text: str | bytes) -> str:
    # A user may have any name, half of a surrogate pair included.
    return b64encode(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).decode("ascii")


def jsonBytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def endOf(prefix: str) -> str:
    """The end of the range of all keys that begin with *prefix*."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Unreadable(StoreUnavailable):
    """A key has a value that neither this release nor an earlier one has written."""


def readKept(key: str, value: bytes, fields: Mapping[str, Any], newest: float = VERSION) -> dict[str, Any]:
    """A key's JSON object with these *fields*, of a version up to the *newest*. Others raise :class:`Unreadable`."""
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
    """Log and skip a key that no registry has written."""
    try:
        yield
    except Unreadable:
        pass
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        logOnce(f"Ignored key {key!r} in etcd: no registry has written its value ({error!r})")


@lru_cache(maxsize=1000)
def logOnce(text: str) -> None:
    _log.error("{text}", text=text)


# etcd parses JSON slowly, so fields with their default values are left out, as etcd does.


def _keys(key: str, end: str | None) -> Clause:
    return {"key": encode(key)} if end is None else {"key": encode(key), "range_end": encode(end)}


def unchanged(key: str, revision: int) -> Clause:
    """A condition: the key was changed last by this *revision*; 0 if it does not exist."""
    return {"key": encode(key), "target": "MOD", **({"mod_revision": str(revision)} if revision else {})}


def createdAt(key: str, revision: int, end: str | None = None) -> Clause:
    """A condition: the key, and every key up to *end*, was created by this *revision*; 0 if it does not exist."""
    return {**_keys(key, end), "target": "CREATE", **({"create_revision": str(revision)} if revision else {})}


def put(key: str, value: bytes, lease: int = 0) -> Clause:
    kept = {"key": encode(key), "value": encode(value)}
    return {"request_put": {**kept, "lease": str(lease)} if lease else kept}


def putGreater(key: str, value: bytes) -> Clause:
    """Set a key, unless its value is greater, which is written again then."""
    isGreater = {"key": encode(key), "target": "VALUE", "result": "GREATER", "value": encode(value)}
    again = {"request_put": {"key": encode(key), "ignore_value": True}}
    return {"request_txn": {"compare": [isGreater], "success": [again], "failure": [put(key, value)]}}


def deletion(key: str, end: str | None = None) -> Clause:
    """Delete a key, or all from it up to *end*."""
    return {"request_delete_range": _keys(key, end)}


def reading(key: str, end: str | None = None, limit: int = 0, revision: int = 0) -> Clause:
    """Read a key, or up to *limit* (0: all) from it up to *end*, as they were at a *revision*."""
    bounds = {name: str(value) for name, value in (("limit", limit), ("revision", revision)) if value}
    return {"request_range": {**_keys(key, end), **bounds}}
