"""The SQLite file itself: how it is made, checked, migrated, opened, claimed, and watched while it is open."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import chain
from urllib.parse import quote

import attrs

from ....util.files import replacement
from ... import uuids
from ..interfaces import StoreRefused

if sys.platform != "win32":  # where FakeRegistry runs too, whose store is in memory
    import fcntl

#: ``txSR``: what sets our files apart from other programs' databases (bytes 68 to 71 of the file).
APPLICATION_ID = 0x74785352

#: The statements that make each version of the schema from the one before. ``PRAGMA user_version`` is the number of the
#: present version.
MIGRATIONS: Sequence[Sequence[str]] = (
    # Version 1.
    (
        # secret, tail (of event ids), last_position (the last event's), probe_filling
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
#: The size to which the write-ahead log is cut. SQLite reuses it from 4 MB on, unless a reader needs it.
LOG_BYTES = 16 * 1024 * 1024

# Start and length of a byte that no file reaches and SQLite does not lock, and of those that SQLite locks alone before
# it deletes the log (SHARED_FIRST and SHARED_SIZE in its os.h).
_CLAIMED = (1 << 62, 1)
_SHARED = (0x40000002, 510)
_SECRET = "SELECT value FROM meta WHERE name = 'secret'"
#: How to open a file so that SQLite looks at it alone: at no log, and without a lock or a new file.
IMMUTABLE = "mode=ro&immutable=1"


def uri(path: str, options: str) -> str:
    return f"file:{quote(os.path.abspath(path))}?{options}"


def openFile(path: str, options: str = "mode=ro") -> sqlite3.Connection:
    """A connection to any database; *options* are the query of SQLite's URI."""
    location = uri(path, options)
    return sqlite3.connect(location, uri=True, isolation_level=None, timeout=BUSY_SECONDS, cached_statements=256)


def connect(path: str, *, readOnly: bool = False) -> sqlite3.Connection:
    """A connection to a file that has been prepared. If it has vanished, that is an error, and no empty one is made."""
    forWriting = "journal_mode = WAL", "synchronous = FULL", f"journal_size_limit = {LOG_BYTES}"
    connection = openFile(path, "mode=rw")
    try:
        for setting in (*(("query_only = ON",) if readOnly else forWriting), "cache_size = -16384"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute(_SECRET).fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def connectToMemory() -> sqlite3.Connection:
    """A connection to a new store in memory, for any thread."""
    connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=256, check_same_thread=False)
    _migrate(connection, MIGRATIONS)
    return connection


def prepare(path: str, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """
    Make sure that *path* is a store's file with the newest schema; make it (mode 0600) if there is none. It appears
    under its name only when it is complete, and :class:`StoreRefused` leaves all files as they were.
    """
    refuseIrregular(path)
    if not _sizeOf(path):
        # A symbolic link to an empty file stays one.
        file = os.path.realpath(path)
        folder = os.open(os.path.dirname(file), os.O_RDONLY)
        try:
            # Of several processes that find no file at the same time, one makes it.
            fcntl.flock(folder, fcntl.LOCK_EX)
            if not _sizeOf(path):
                # Only here: until another process has given the lock back, its log may be there before its file.
                _refuseLoneLog(path)
                with replacement(file, b"") as making:
                    with closing(openFile(making, "mode=rw")) as connection:
                        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                        _migrate(connection, migrations)
                        connection.execute("PRAGMA journal_mode = WAL")
                    os.replace(making, file)
                os.fsync(folder)
        finally:
            os.close(folder)
    if checkFile(path, migrations) < len(migrations):
        with closing(connect(path)) as connection:
            _migrate(connection, migrations)


def sync(path: str | os.PathLike[str]) -> None:
    """Make a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def isThere(path: str) -> bool:
    return _sizeOf(path) > 0 or _sizeOf(_logOf(path)) > 0


def refuseIrregular(path: str) -> None:
    """Refuse a pipe or a device, which may block its reader indefinitely. A folder fails when it is opened."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise StoreRefused(f"{path} is not a regular file; move it away, or choose another path")


def _sizeOf(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _logOf(path: str) -> str:
    # SQLite puts it beside the file itself, wherever a symbolic link to that is.
    return os.path.realpath(path) + "-wal"


def _refuseLoneLog(path: str) -> None:
    """Refuse a log whose file is not there: SQLite would delete it, or apply it to another file."""
    log = _logOf(path)
    if _sizeOf(log):
        state = "missing" if not os.path.exists(path) else "empty" if not _sizeOf(path) else "cut short"
        raise StoreRefused(
            f"{path} is {state}, but {log} holds changes that were acknowledged;"
            " restore it, or move the log away to go on without it"
        )


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Sequence[str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        for statement in chain.from_iterable(migrations[version:]):
            connection.execute(statement)
        constants = ("secret", secrets.token_bytes(32)), ("tail", uuids.newTail()), ("last_position", 0)
        connection.executemany("INSERT OR IGNORE INTO meta (name, value) VALUES (?, ?)", constants)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")


def checkFile(path: str, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Refuse what is not a store, without a change to any file. Returns the version of its schema."""
    refuseIrregular(path)
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100:
        _refuseLoneLog(path)
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise StoreRefused(f"{path} is not a SQLite database; move it away, or choose another file")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreRefused(f"{path} is a database of another program, or damaged; move it away, or choose another file")
    # Without a log it is opened as immutable, so that SQLite makes no other files. An empty log may be that of another
    # process which is about to write to it.
    options = "mode=ro" if os.path.exists(_logOf(path)) else IMMUTABLE
    try:
        with closing(openFile(path, options)) as connection:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version <= len(migrations):
                _checkLog(connection, path)
                _checkTables(connection, path)
    except sqlite3.OperationalError:
        raise  # it can't be read now, which says nothing about its content
    except sqlite3.DatabaseError as error:
        raise StoreRefused(f"{path} is damaged ({error}); restore it from a backup") from None
    if version > len(migrations):
        raise StoreRefused(
            f"{path} was written by a newer release (its schema is version {version}, this release knows"
            f" {len(migrations)}); upgrade txserviceregistry"
        )
    return version


def _checkLog(connection: sqlite3.Connection, path: str) -> None:
    """Refuse a log that another registry's file has left: SQLite, by whose *connection* it is seen, applies any log."""
    if not _sizeOf(_logOf(path)):
        return
    try:
        with closing(openFile(path, IMMUTABLE)) as alone:
            found = alone.execute(_SECRET).fetchone()
    except sqlite3.Error:
        return  # without its log a file may be half a checkpoint, which says nothing
    # Each store has a secret of its own, which never changes.
    if found is not None and found != connection.execute(_SECRET).fetchone():
        raise StoreRefused(
            f"{_logOf(path)} belongs to another database than {path}; restore files that belong together, or move the"
            " log away"
        )


def _checkTables(connection: sqlite3.Connection, path: str) -> None:
    """Have SQLite check the structure of all tables; in a large file not of the events, which make it large."""
    names = ["1"]
    if os.path.getsize(path) > _CHECKED_COMPLETELY:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'events'"
        names = [name for (name,) in connection.execute(tables)]
    for name in names:
        (verdict,) = connection.execute(f"PRAGMA quick_check({name})").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(" ".join(verdict.split()))


def _lock(descriptor: int, kind: int, *place: int) -> None:
    """Lock bytes for an open file (not a process), until it is closed; BlockingIOError if another one has them."""
    if sys.platform != "linux":
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, *place, 0))  # struct flock
    except OSError as error:
        # A file system without such locks goes without.
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None


def claimFile(path: str) -> int:
    """
    Claim a file for one registry, under whatever name (a lock file beside it does not know of links), until the
    returned descriptor is closed. Both when this process has no connection to the file: closing any descriptor of it
    ends the locks of SQLite. :class:`StoreRefused` if another registry has claimed it.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        _lock(descriptor, fcntl.F_WRLCK, *_CLAIMED)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreRefused(
            f"another registry uses the file {os.path.realpath(path)}, under this or another name (a symbolic"
            " or hard link); stop the other registry, or choose another path"
        ) from None
    return descriptor


class FileLost(OSError):
    """An open file was removed, replaced or overwritten, or another registry may use it: a write would be lost."""


@attrs.define(eq=False, repr=False)
class OpenFiles:
    """
    The files of a store that is open, by device and inode: SQLite continues to write to a file that was removed or
    replaced and reports no error, and all of that is lost when the file is closed. The first connection decides which
    file is the store, until the process ends. The log and its index may be other files after a new connection.
    """

    _path: str
    _guard: Callable[[], None]
    claim: int | None = None  # the descriptor from claimFile
    _known: dict[str, os.stat_result] = attrs.field(factory=dict, init=False)

    def opened(self) -> None:
        """Note the files of the connection that was just opened."""
        known = {self._path: self._known.get(self._path) or os.stat(self._path)}
        for path in (_logOf(self._path), os.path.realpath(self._path) + "-shm"):
            with suppress(FileNotFoundError):  # a file that may only be read can be without them
                known[path] = os.stat(path)
        self._known = known

    def closing(self) -> None:
        """Note that the connection is about to be closed: SQLite may remove the log, and make another one."""
        self._known = {path: known for path, known in self._known.items() if path == self._path}

    def check(self) -> int:
        """
        Raise :exc:`FileLost` unless the files are those under their names, a claimed one is still a store, and the
        guard agrees. Returns how many bytes the log has.
        """
        size = 0
        for path, known in self._known.items():
            try:
                found = os.stat(path)
                loss = None if os.path.samestat(found, known) else "was replaced by another file"
            except (FileNotFoundError, NotADirectoryError):
                loss = "was removed or moved away"
            except OSError as error:
                loss = f"can't be reached ({error.strerror})"
            if loss is not None:
                loss = f"{path} {loss} while the registry uses it"
                raise FileLost(f"{loss}; put the same file back, or restart the registry")
            if path.endswith("-wal"):
                size = found.st_size
        if self.claim is not None and os.pread(self.claim, 4, 68) != APPLICATION_ID.to_bytes(4, "big"):
            # SQLite would move the log into what is there now, and delete it, when the last connection is closed.
            _lock(self.claim, fcntl.F_RDLCK, *_SHARED)
            raise FileLost(
                f"{self._path} was overwritten while the registry uses it; stop the registry, and restore a backup"
            )
        try:
            self._guard()
        except Exception as error:
            raise FileLost(str(error)) from None
        return size
