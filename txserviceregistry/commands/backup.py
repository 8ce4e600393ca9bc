"""``service-registry-backup``: copies the store of a registry while it runs, and restores such a copy."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from ..registry import uuids
from ..registry.datadir import HELD_BACK, DataDirectory, DataDirectoryError
from ..registry.stores.interfaces import StoreRefused
from ..registry.stores.sqlite import file as sqlitefile
from ..util.fields import escaped
from ..util.files import replacement
from .console import CommandFailed, UsageError, runConsole
from .stores import DataParser, becomeOwner, dataDirectory

_NAME = "service-registry-backup"

_DESCRIPTION = """\
Makes a verified copy of a registry's sqlite store while the registry runs, or
restores such a copy while it is stopped. The default of the data directory is
RAXSR_DATA_DIR or ~/.local/state/txserviceregistry.
"""

_EXAMPLES = f"""\
examples:
  {_NAME} /var/backups/registry.sqlite
  {_NAME} --data-dir /srv/registry "/var/backups/$(date +%F).sqlite"
  {_NAME} --restore /var/backups/registry.sqlite

FILE is replaced only by a complete copy that was verified. --restore keeps the
store that it replaces, and says which changes are lost. Back up the raxrc in
the data directory too. A registry over etcd is backed up with etcdctl. Exit
codes: 0 success, 1 failure, 2 wrong usage. Run by root, this works as the data
directory's owner, who must be able to write or read FILE.
"""

# The endings of the store's file and its companions.
_ENDINGS = ("", "-wal", "-shm", "-journal")


def _without(columns: str, table: str, one: str = "main", other: str = "other") -> str:
    """The rows of a table in one store that the other has not."""
    return f"(SELECT {columns} FROM {one}.{table} EXCEPT SELECT {columns} FROM {other}.{table})"


# Kinds of objects, and the rows that they are.
_CONTENTS = (
    ("service{s}", "services"),
    ("configuration value{s}", "configuration_values"),
    ("user{s}", "users"),
    ("event{s}", "events"),
)
# In what a store has more than an older one, "other".
_LOST = (
    ("event{s}", "events WHERE position > (SELECT value FROM other.meta WHERE name = 'last_position')"),
    ("registration{s}", _without("incarnation", "services")),
    ("new or changed configuration value{s}", _without("tenant, key, value", "configuration_values")),
    ("removal{s} of a configuration value", _without("tenant, key", "configuration_values", "other", "main")),
    ("new user{s} or API key{s}", _without("name, key_hash", "users")),
    ("removal{s} of a user", _without("name", "users", "other", "main")),
    ("acquired lock{s}", _without("incarnation", "locks")),
    ("state{s} of a service", _without("tenant, id, state, reason", "states")),
)
_LAST_FENCE = "SELECT coalesce(max(last_fence), 0) FROM tenants"


def main() -> int:
    return runConsole(_NAME, _run)


def _run() -> int:
    parser = DataParser(prog=_NAME, description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.addDataDir()
    parser.add_argument("--restore", action="store_true", help="replace the store by FILE")
    parser.add_argument("file", metavar="FILE", help="the backup")
    options = parser.parseWords()
    if not options.file:
        raise UsageError("FILE is empty")
    directory = dataDirectory(options)
    # The working directory may be closed to the data directory's owner.
    file = os.path.abspath(options.file)
    becomeOwner(directory.path)
    try:
        directory.checkOwners()
        if options.restore:
            _restore(directory, file)
        elif directory.hasStore():
            contents, _ = _copy(str(directory.storePath), file)
            print(escaped(f"Backed up {directory.storePath} to {file}, and verified it: {contents}."))
        else:
            reason = "; its registry has another one (over etcd: etcdctl snapshot save)" if directory.isTaken() else ""
            raise CommandFailed(f"there is no sqlite store in {directory.path}{reason}")
    except (DataDirectoryError, StoreRefused) as error:
        raise CommandFailed(str(error)) from None
    return 0


def _copy(source: str, target: str) -> tuple[str, float | None]:
    """
    Copy a store as it is at one moment, whether a registry uses it or not, and verify the copy. *target* is replaced
    only by a verified copy; its mode is 0600.

    :return: what it has, and the seconds since 1970 of its last event, if there has been one.
    """
    try:
        if os.path.realpath(target) in map(str, _withEndings(Path(os.path.realpath(source)))):
            raise CommandFailed(f"{target} is the registry's store itself; choose another file")
        sqlitefile.checkFile(source)
        sqlitefile.refuseIrregular(target)
        with replacement(target, b"") as making, ExitStack() as ending:
            # A full disk leaves a part of it.
            ending.callback(Path(f"{making}-journal").unlink, missing_ok=True)
            with closing(sqlitefile.openFile(source)) as connection:
                connection.execute("VACUUM INTO ?", (making,))
            sqlitefile.checkFile(making)
            with closing(sqlitefile.openFile(making, sqlitefile.IMMUTABLE)) as copy:
                (verdict,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
                if verdict != "ok":
                    raise StoreRefused(f"the copy is damaged: {verdict}; the store may be damaged too")
                contents = _counted(copy, _CONTENTS)
                (last,) = copy.execute("SELECT value FROM meta WHERE name = 'last_position'").fetchone()
            sqlitefile.sync(making)
            os.replace(making, target)
        sqlitefile.sync(os.path.dirname(target))
        return contents, uuids.secondsAt(last) if last else None
    except OSError as error:
        raise CommandFailed(f"can't copy {source} to {target} as user {os.geteuid()}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise CommandFailed(f"can't copy {source} to {target}: {error}") from None


def _counted(connection: sqlite3.Connection, kinds: Sequence[tuple[str, str]]) -> str:
    """How many objects of these kinds there are, in words."""
    counts = [(name, connection.execute(f"SELECT count(*) FROM {rows}").fetchone()[0]) for name, rows in kinds]
    words = [f"{count} {name.format(s='' if count == 1 else 's')}" for name, count in counts if count]
    return ", ".join(words) or "nothing"


def _restore(directory: DataDirectory, file: str) -> None:
    with ExitStack() as ending:
        ending.callback(directory.close)
        # A registry can't start meanwhile.
        directory.open()
        path = Path(os.path.realpath(directory.storePath))
        making = path.with_name(f"{path.name}.restored")
        if os.path.realpath(file) == str(making):
            raise CommandFailed(f"{file} would be overwritten by the restore; rename it first")
        try:
            if path.exists():
                # It may be another directory's registry that uses it.
                ending.callback(os.close, sqlitefile.claimFile(str(path)))
            # A killed restore may have left one: SQLite would take its log for that of the new copy.
            for each in _withEndings(making):
                each.unlink(missing_ok=True)
            ending.callback(making.unlink, missing_ok=True)
            contents, end = _copy(file, str(making))
            # As the next start does, but before the other store is gone.
            sqlitefile.prepare(str(making))
            lost = _lost(str(making), str(path)) if directory.hasStore() else None
            fence = _raiseFences(str(making), str(path))
            if fence is not None:
                directory.holdBack()
            replaced = _replaceStore(path, making)
        except (OSError, sqlite3.Error) as error:
            raise CommandFailed(f"can't replace {path}: {getattr(error, 'strerror', None) or error}") from None
    until = "" if end is None else f", whose last event is of {time.strftime('%F %T UTC', time.gmtime(end))}"
    print(escaped(f"Restored {path} from {file}{until}: {contents}."))
    if replaced is not None:
        print(escaped(f"Lost: {lost}. The replaced store is in {replaced}."))
    if fence is not None:
        print(f"Locks: fences go on above {fence}; none can be acquired for {HELD_BACK:.0f} s after the next start.")


def _lost(copy: str, path: str) -> str:
    """The content of a store that a copy of an older one lacks. Both must have the newest schema."""
    try:
        with closing(sqlitefile.openFile(path)) as connection:
            connection.execute("ATTACH ? AS other", (sqlitefile.uri(copy, sqlitefile.IMMUTABLE),))
            return _counted(connection, _LOST)
    except sqlite3.Error as error:
        return f"unknown, because the replaced store can't be read ({error})"


def _raiseFences(copy: str, path: str) -> int | None:
    """
    Make the fences of all further locks in a copy greater than those of the store that it replaces, and than the wall
    clock.

    :return: the greatest fence so far, in milliseconds since 1970 or above; ``None`` if there has never been a lock.
    """
    try:
        with closing(sqlitefile.openFile(path)) as replaced:
            (before,) = replaced.execute(_LAST_FENCE).fetchone()
    except sqlite3.Error:
        # It is not there, or damaged: there may have been locks.
        before = 1
    with closing(sqlitefile.connect(copy)) as connection:
        fence = max(int(before), int(connection.execute(_LAST_FENCE).fetchone()[0]))
        if not fence:
            return None
        fence = max(fence, int(time.time() * 1000))
        connection.execute("UPDATE tenants SET last_fence = ?", (fence,))
        # The end of the connection does that too, but without an error.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return fence


def _withEndings(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in _ENDINGS]


def _replaceStore(path: Path, copy: Path) -> Path | None:
    """
    Put a copy in the place of a store that no program uses. If an OSError ends that, a registry refuses to start, or
    finds the old store or the new one.

    :return: the new folder beside *path* with the files that were there; ``None`` if there were none.
    """
    there = [each for each in _withEndings(path) if os.path.lexists(each)]
    folder = None
    if there:
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = Path(tempfile.mkdtemp(prefix=f"replaced-{moment}-", dir=path.parent))
        # The store before its log, which a registry refuses when it is alone.
        for each in there:
            each.rename(folder / each.name)
    copy.rename(path)
    sqlitefile.sync(path.parent)
    return folder


if __name__ == "__main__":
    sys.exit(main())
