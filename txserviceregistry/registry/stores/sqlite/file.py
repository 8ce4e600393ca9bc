"""
The SQLite file itself: how it is made, checked, migrated and opened.

A file appears under its name only when it is complete. A file that can't be a store is refused before anything has
changed it. Everything here blocks, and is called in the store's threads.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cache, partial
from itertools import chain
from urllib.parse import quote

from ... import eventids
from ..interfaces import StoreRefused

#: ``txSR``: what sets our files apart from other programs' databases (bytes 68 to 71 of the file).
APPLICATION_ID = 0x74785352

#: The statements that make each version of the schema from the one before. ``PRAGMA user_version`` is the number of the
#: present version.
MIGRATIONS: Sequence[Sequence[str]] = (
    # Version 1. In this order the tables of a large file are checked.
    (
        # secret, tail (of event ids), last_position (the last event's), probes (how often one was made), probe_filling
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
        "CREATE TABLE users (name BLOB PRIMARY KEY, tenant TEXT NOT NULL, key_hash TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE tokens (hash TEXT PRIMARY KEY, user BLOB NOT NULL, tenant TEXT NOT NULL, expires REAL NOT NULL)"
        " WITHOUT ROWID",
        "CREATE INDEX tokens_by_user ON tokens (user)",
        "CREATE INDEX tokens_by_end ON tokens (expires)",
        # created is NULL until the account is asked for; the other two count the rows of the tables below.
        "CREATE TABLE tenants (tenant TEXT PRIMARY KEY, created INTEGER, services INTEGER NOT NULL DEFAULT 0,"
        " configuration_values INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID",
        # incarnation is the position of the join event; tags and metadata are JSON.
        "CREATE TABLE services (tenant TEXT NOT NULL, id TEXT NOT NULL, incarnation INTEGER NOT NULL,"
        " heartbeat_timeout INTEGER NOT NULL, tags TEXT NOT NULL, metadata TEXT NOT NULL,"
        " PRIMARY KEY (tenant, id)) WITHOUT ROWID",
        "CREATE TABLE service_tags (tenant TEXT NOT NULL, tag BLOB NOT NULL, id TEXT NOT NULL,"
        " PRIMARY KEY (tenant, tag, id)) WITHOUT ROWID",
        # A table of its own with narrow rows, because it is written all the time.
        "CREATE TABLE last_seen (incarnation INTEGER PRIMARY KEY, milliseconds INTEGER NOT NULL)",
        "CREATE TABLE configuration_values (tenant TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (tenant, key)) WITHOUT ROWID",
        "CREATE TABLE events (tenant TEXT NOT NULL, position INTEGER NOT NULL, timestamp INTEGER NOT NULL,"
        " type INTEGER NOT NULL, payload TEXT NOT NULL, PRIMARY KEY (tenant, position)) WITHOUT ROWID",
        "CREATE INDEX events_by_type ON events (tenant, type, position)",
    ),
    # Version 2.
    (
        # The position of the event of the last change; 0 for what version 1 has written.
        "ALTER TABLE configuration_values ADD COLUMN position INTEGER NOT NULL DEFAULT 0",
        # JSON: what of the role is not the default.
        "ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT '{}'",
        # How many rows the table below has, and the greatest fence that there was.
        "ALTER TABLE tenants ADD COLUMN locks INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE tenants ADD COLUMN last_fence INTEGER NOT NULL DEFAULT 0",
        # incarnation is the position of the event of the acquisition; metadata is JSON.
        "CREATE TABLE locks (tenant TEXT NOT NULL, name TEXT NOT NULL, timeout INTEGER NOT NULL, holder BLOB NOT NULL,"
        " nonce TEXT, metadata TEXT NOT NULL, incarnation INTEGER NOT NULL, fence INTEGER NOT NULL,"
        " acquired INTEGER NOT NULL, is_forced INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (tenant, name)) WITHOUT ROWID",
        # The states of services, and how many a tenant has. ends is when a record ends, unused when it was noticed that
        # there is no service with the id.
        "CREATE TABLE states (tenant TEXT NOT NULL, id TEXT NOT NULL, state TEXT NOT NULL, reason BLOB NOT NULL,"
        " ends INTEGER, unused INTEGER, PRIMARY KEY (tenant, id)) WITHOUT ROWID",
        "CREATE INDEX states_by_end ON states (ends) WHERE ends IS NOT NULL",
        "ALTER TABLE tenants ADD COLUMN states INTEGER NOT NULL DEFAULT 0",
    ),
)

#: How long to wait for another process that writes.
BUSY_SECONDS = 5.0
#: Bytes up to which a file is checked completely at the start: what a slow disk reads in half a second.
_CHECKED_COMPLETELY = 32 * 1024 * 1024
#: How long a larger file is checked, table by table; the events, which make it large, are left out.
_CHECK_SECONDS = 0.5
#: The size to which the write-ahead log is cut. SQLite reuses it from 4 MB on, unless a reader needs it.
LOG_BYTES = 16 * 1024 * 1024

_CACHE_KIBIBYTES = 16_384
_SECRET = "SELECT value FROM meta WHERE name = 'secret'"
# The constants of each store, in the table meta, and how they are made.
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "secret": partial(secrets.token_bytes, 32),
    "tail": eventids.newTail,
    "last_position": int,
}
#: How to open a file so that SQLite looks at it alone: at no log, and without a lock or a new file.
IMMUTABLE = "mode=ro&immutable=1"
#: SQLite's suffixes for the logs of a file, which hold changes that are not in the file itself.
_LOGS = ("-wal", "-journal")
_HEADER = 100
_MAGIC = b"SQLite format 3\0"
_VERSION_BYTES = slice(60, 64)
_APPLICATION_BYTES = slice(68, 72)


def uri(path: str, options: str) -> str:
    """How a file is opened with *options*, the query of SQLite's URI."""
    return f"file:{quote(os.path.abspath(path))}?{options}"


def opened(path: str, options: str = "mode=ro") -> closing[sqlite3.Connection]:
    """A connection to a file, opened with *options*, which the end of a ``with`` closes."""
    connection = sqlite3.connect(uri(path, options), uri=True, isolation_level=None, timeout=BUSY_SECONDS)
    return closing(connection)


def readHeader(descriptor: int) -> bytes:
    """The header of an open file: its first 100 bytes, or as many as there are."""
    return os.pread(descriptor, _HEADER, 0)


def applicationIdIn(header: bytes) -> int | None:
    """Which program's SQLite database it is, :data:`APPLICATION_ID` if ours; ``None`` if it is not a database."""
    isDatabase = header.startswith(_MAGIC) and len(header) == _HEADER
    return int.from_bytes(header[_APPLICATION_BYTES], "big") if isDatabase else None


def connect(path: str, *, readOnly: bool = False) -> sqlite3.Connection:
    """
    A connection to a file that has been prepared; transactions are left to the caller. It never makes a file, so that
    one that has vanished is not taken for an empty one.
    """
    connection = sqlite3.connect(
        uri(path, "mode=rw"), uri=True, isolation_level=None, timeout=BUSY_SECONDS, cached_statements=256
    )
    try:
        if readOnly:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
        connection.execute(_SECRET).fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


@cache
def _pattern(migrations: Sequence[Sequence[str]]) -> sqlite3.Connection:
    """A database in memory with the tables and indices that these migrations make, for any thread."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    for statement in chain.from_iterable(migrations):
        connection.execute(statement)
    return connection


def connectToMemory() -> sqlite3.Connection:
    """A connection to a new store in memory, for any thread."""
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256, check_same_thread=False)
    _pattern(MIGRATIONS).backup(connection)
    _addConstants(connection)
    return connection


def prepare(path: str, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """
    Make sure that *path* is a store's file with the newest schema; make it (mode 0600) if there is none.

    :raises StoreRefused: if it is another kind of file, damaged, or of a newer release; if it is missing, empty or cut
        short and a log with changes lies beside it; or if it is a symbolic link to a file that is missing. All files
        are left as they were.
    :raises OSError, sqlite3.Error: if it can't be made or read.
    """
    refuseIrregular(path)
    if _leadsNowhere(path):
        # A file made in place of the link would be an empty store, and hide the one that is elsewhere.
        raise StoreRefused(
            f"{path} is a symbolic link to {os.path.realpath(path)}, which does not exist; mount or restore what is"
            " there, or remove the link to begin with an empty store"
        )
    if not _sizeOf(path):
        # Here, because FakeRegistry, whose store is in memory, also runs on systems without it.
        import fcntl

        # A symbolic link to an empty file stays one.
        file = os.path.realpath(path)
        folder = os.open(os.path.dirname(file), os.O_RDONLY)
        try:
            # Of several processes that find no file at the same time, one makes it.
            fcntl.flock(folder, fcntl.LOCK_EX)
            if not _sizeOf(path):
                # Only here: until another process has given the lock back, its log may be there before its file.
                _refuseLoneLog(path)
                _create(file, migrations)
                os.fsync(folder)
        finally:
            os.close(folder)
    if checkFile(path, migrations) < len(migrations):
        with closing(connect(path)) as connection:
            _migrate(connection, migrations)


def isThere(path: str) -> bool:
    """
    Whether there is anything of a store under this name: the file with something in it, a log that has changes, or a
    symbolic link to a file that is missing.
    """
    return _sizeOf(path) > 0 or _leadsNowhere(path) or _findLog(path) is not None


def refuseIrregular(path: str) -> None:
    """Refuse a pipe or a device, which may block its reader indefinitely. A folder fails when it is opened."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise StoreRefused(f"{path} is not a regular file; move it away, or choose another path")


def _leadsNowhere(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _sizeOf(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _findLog(path: str) -> str | None:
    """The path of a log beside the file that is not empty, if there is one."""
    # SQLite puts it beside the file itself, wherever a symbolic link to that is.
    logs = (os.path.realpath(path) + ending for ending in _LOGS)
    return next((log for log in logs if _sizeOf(log)), None)


def _refuseLoneLog(path: str) -> None:
    """Refuse a log whose file is not there: SQLite would delete it, or apply it to another file."""
    log = _findLog(path)
    if log is not None:
        state = "missing" if not os.path.exists(path) else "empty" if not _sizeOf(path) else "cut short"
        raise StoreRefused(
            f"{path} is {state}, but {log} holds changes that were acknowledged;"
            " restore it, or move the log away to go on without it"
        )


def _create(path: str, migrations: Sequence[Sequence[str]]) -> None:
    """Make a complete file beside *path*, and only then give it its name."""
    making = f"{path}.new-{secrets.token_hex(4)}"
    os.close(os.open(making, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        with opened(making, "mode=rw") as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection, migrations)
            connection.execute("PRAGMA journal_mode = WAL")
        for leftOver in (*_LOGS, "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(path + leftOver)  # an empty log, or the index of one
        os.replace(making, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(making)


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for statement in chain.from_iterable(migrations[version:]):
            connection.execute(statement)
        _addConstants(connection)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def _addConstants(connection: sqlite3.Connection) -> None:
    statement = "INSERT OR IGNORE INTO meta (name, value) VALUES (?, ?)"
    connection.executemany(statement, [(name, make()) for name, make in _CONSTANTS.items()])


def checkFile(path: str, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Refuse what is not a store, without a change to any file. Returns the version of its schema."""
    refuseIrregular(path)
    with open(path, "rb") as file:
        header = readHeader(file.fileno())
    if len(header) < _HEADER:
        _refuseLoneLog(path)
    application = applicationIdIn(header)
    if application is None:
        raise StoreRefused(f"{path} is not a SQLite database; move it away, or choose another file")
    if application != APPLICATION_ID:
        raise StoreRefused(f"{path} is a database of another program, or damaged; move it away, or choose another file")
    newest = len(migrations)
    version = int.from_bytes(header[_VERSION_BYTES], "big")
    if version <= newest:
        try:
            version = _look(path, migrations)
        except sqlite3.OperationalError:
            raise  # it can't be read now, which says nothing about its content
        except sqlite3.DatabaseError as error:
            raise StoreRefused(f"{path} is damaged ({error}); restore it from a backup") from None
    if version > newest:
        raise StoreRefused(
            f"{path} was written by a newer release (its schema is version {version}, this release knows"
            f" {newest}); upgrade txserviceregistry"
        )
    return version


def _look(path: str, migrations: Sequence[Sequence[str]]) -> int:
    """
    Check the content of the file, as far as that takes a moment only. If nothing is beside it, it is opened as
    immutable, so that SQLite makes no other files.
    """
    log = _findLog(path)
    # An empty one may be another process's, which is about to write to it.
    companions = any(os.path.exists(os.path.realpath(path) + ending) for ending in _LOGS)
    options = "mode=ro" if companions else IMMUTABLE
    with opened(path, options) as connection:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version <= len(migrations):
            _checkNames(connection, migrations[:version])
            if log is not None:
                _checkLog(connection, path, log)
            _checkTables(connection, isLarge=os.path.getsize(path) > _CHECKED_COMPLETELY)
        return version


def _checkNames(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    """Check that there are the tables, indices and constants that these versions have made."""
    query = "SELECT type, name FROM sqlite_master"
    for missing in sorted({*_pattern(migrations).execute(query)} - {*connection.execute(query)}):
        raise sqlite3.DatabaseError("the {} {} is missing".format(*missing))
    if migrations:
        for name in sorted(_CONSTANTS.keys() - {name for (name,) in connection.execute("SELECT name FROM meta")}):
            raise sqlite3.DatabaseError(f"the {name} in the table meta is missing")


def _checkLog(connection: sqlite3.Connection, path: str, log: str) -> None:
    """Refuse a log that another registry's file has left: SQLite, by whose *connection* it is seen, applies any log."""
    try:
        with opened(path, IMMUTABLE) as alone:
            found = alone.execute(_SECRET).fetchone()
    except sqlite3.Error:
        return  # without its log a file may be half a checkpoint, which says nothing
    # Each store has a secret of its own, which never changes.
    if found is not None and found != connection.execute(_SECRET).fetchone():
        raise StoreRefused(
            f"{log} belongs to another database than {path}; restore files that belong together, or move the log away"
        )


def _checkTables(connection: sqlite3.Connection, *, isLarge: bool) -> None:
    """Have SQLite check the structure of all tables, or, in a large file, of those that hold what is now."""
    checks = ["PRAGMA quick_check(1)"]
    if isLarge:
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'events' ORDER BY rootpage"
        )
        checks = [f"PRAGMA quick_check({name})" for (name,) in names]
    end = time.monotonic() + _CHECK_SECONDS
    for check in checks:
        (verdict,) = connection.execute(check).fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))
        if time.monotonic() > end:
            break
