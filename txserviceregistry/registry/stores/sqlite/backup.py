"""
Backups of a SQLite file: a verified copy, the comparison of two stores, and the replacement of one by a copy.

Everything here blocks.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import attrs

from ....util.files import replacement
from ... import eventids
from ..interfaces import StoreRefused
from .file import IMMUTABLE, checkFile, connect, opened, refuseIrregular, sync, uri

# The endings of the file and its companions.
_ENDINGS = ("", "-wal", "-shm", "-journal")

_TABLES = (
    ("service", "services"),
    ("configuration value", "configuration_values"),
    ("user", "users"),
    ("event", "events"),
)


def _without(columns: str, table: str, one: str = "main", other: str = "other") -> str:
    """The rows of a table in one store that the other has not."""
    return f"(SELECT {columns} FROM {one}.{table} EXCEPT SELECT {columns} FROM {other}.{table})"


# "other" is the older store.
_LOST = (
    ("event", "events WHERE position > (SELECT value FROM other.meta WHERE name = 'last_position')"),
    ("registration", _without("incarnation", "services")),
    ("new or changed configuration value", _without("tenant, key, value", "configuration_values")),
    ("removal of a configuration value", _without("tenant, key", "configuration_values", "other", "main")),
    ("new user or API key", _without("name, key_hash", "users")),
    ("removal of a user", _without("name", "users", "other", "main")),
    ("acquired lock", _without("incarnation", "locks")),
    ("state of a service", _without("tenant, id, state, reason", "states")),
)
_LAST_FENCE = "SELECT coalesce(max(last_fence), 0) FROM tenants"


@attrs.frozen
class Contents:
    """
    How many objects there are, by their names in the singular; the seconds since 1970 of the last event, if there has
    been one; and the users with the hashes of their keys.
    """

    counts: tuple[tuple[str, int], ...]
    end: float | None
    users: dict[str, str]


def copyStore(source: str, target: str) -> Contents:
    """
    Copy a store as it is at one moment, whether a registry uses it or not, and verify the copy. *target* is replaced
    only by a verified copy; its mode is 0600.

    :raises StoreRefused: if *source* is not a store of this or an earlier release, *target* is not a regular file, or
        the copy is damaged.
    :raises OSError, sqlite3.Error: if a file can't be read or written.
    """
    checkFile(source)
    refuseIrregular(target)
    with replacement(target, b"") as making:
        with opened(source) as connection:
            connection.execute("VACUUM INTO ?", (making,))
        contents = _verify(making)
        sync(making)
        os.replace(making, target)
    sync(os.path.dirname(os.path.abspath(target)))
    return contents


def _verify(path: str) -> Contents:
    """Let SQLite read all of a copy."""
    checkFile(path)
    with opened(path, IMMUTABLE) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise StoreRefused(f"the copy is damaged: {' '.join(verdict.split())}; the store may be damaged too")
        counts = tuple((name, _count(connection, table)) for name, table in _TABLES)
        (last,) = connection.execute("SELECT value FROM meta WHERE name = 'last_position'").fetchone()
        rows = connection.execute("SELECT name, key_hash FROM users")
        users = {bytes(name).decode("utf-8", "replace"): keyHash for name, keyHash in rows}
        return Contents(counts, eventids.secondsAt(last) if last else None, users)


def _count(connection: sqlite3.Connection, rows: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])


def comparedTo(older: str, path: str) -> list[tuple[str, int]]:
    """
    The objects that a store has and an older one has not: how many of each, by their names in the singular. Both must
    have the newest schema.
    """
    with opened(path) as connection:
        connection.execute("ATTACH ? AS other", (uri(older, IMMUTABLE),))
        found = [(name, _count(connection, rows)) for name, rows in _LOST]
        return [(name, count) for name, count in found if count]


def raiseFences(copy: str, path: str) -> int | None:
    """
    Make the fences of all further locks in a copy greater than those of the store that it replaces, and than the wall
    clock.

    :return: the greatest fence so far, in milliseconds since 1970 or above; ``None`` if there has never been a lock.
    """
    try:
        with opened(path) as replaced:
            (before,) = replaced.execute(_LAST_FENCE).fetchone()
    except sqlite3.Error:
        # It is not there, or damaged: there may have been locks.
        before = 1
    with closing(connect(copy)) as connection:
        fence = max(int(before), int(connection.execute(_LAST_FENCE).fetchone()[0]))
        if not fence:
            return None
        fence = max(fence, int(time.time() * 1000))
        connection.execute("UPDATE tenants SET last_fence = ?", (fence,))
        return fence


def replaceStore(path: Path, copy: Path) -> Path | None:
    """
    Put a copy in the place of a store that no program uses, and keep the old files.

    :param path: the store; where a symbolic link leads, if it is one.
    :return: the new folder beside *path* with the files that were there; ``None`` if there were none.
    :raises OSError: if that fails. A registry then refuses to start, or finds the old store or the new one.
    """
    there = [path.with_name(path.name + ending) for ending in _ENDINGS]
    there = [each for each in there if os.path.lexists(each)]
    folder = None
    if there:
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = Path(tempfile.mkdtemp(prefix=f"replaced-{moment}-", dir=path.parent))
        # The store before its log, which a registry refuses when it is alone.
        for each in there:
            each.rename(folder / each.name)
    copy.rename(path)
    sync(path.parent)
    return folder
