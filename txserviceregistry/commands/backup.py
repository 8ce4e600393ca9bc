"""``service-registry-backup``: copies the store of a registry while it runs, and restores such a copy."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ..registry.datadir import HELD_BACK, DataDirectory, DataDirectoryError
from ..registry.identity.apikeys import keyMatches
from ..registry.stores.interfaces import StoreRefused
from ..registry.stores.sqlite.backup import Contents, comparedTo, copyStore, raiseFences, replaceStore
from ..registry.stores.sqlite.file import claimFile, prepare
from ..util.redaction import escaped
from .console import CommandFailed, UsageError, runConsole, tell
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


def main() -> int:
    return runConsole(_NAME, _run)


def _run() -> int:
    parser = DataParser(prog=_NAME, description=_DESCRIPTION, epilog=_EXAMPLES)
    parser.addVersion()
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
        (_restore if options.restore else _backUp)(directory, file)
    except (DataDirectoryError, StoreRefused) as error:
        raise CommandFailed(str(error)) from None
    return 0


def _backUp(directory: DataDirectory, file: str) -> None:
    if not directory.hasStore():
        reason = "; its registry has another store" if directory.isTaken() else ""
        raise CommandFailed(f"there is no sqlite store in {directory.path}{reason}")
    contents = _copied(directory.storePath, file, directory)
    print(escaped(f"Backed up {directory.storePath} to {file}, and verified it: {_listed(contents.counts)}."))


def _restore(directory: DataDirectory, file: str) -> None:
    # A registry can't start meanwhile.
    directory.open()
    path = Path(os.path.realpath(directory.storePath))
    claim = None
    making = path.with_name(f"{path.name}.restored")
    try:
        if path.exists():
            # It may be another directory's registry that uses it.
            claim = claimFile(str(path))
        contents = _copied(file, str(making), directory)
        # As the next start does, but before the other store is gone.
        prepare(str(making))
        lost = _lost(str(making), str(path)) if directory.hasStore() else None
        fence = raiseFences(str(making), str(path))
        if fence is not None:
            directory.holdBack()
        replaced = replaceStore(path, making)
    except OSError as error:
        raise CommandFailed(f"can't replace {path}: {error.strerror}") from None
    finally:
        if claim is not None:
            os.close(claim)
        making.unlink(missing_ok=True)
        directory.close()
    until = (
        ""
        if contents.end is None
        else f", whose last event is of {time.strftime('%F %T UTC', time.gmtime(contents.end))}"
    )
    print(escaped(f"Restored {path} from {file}{until}: {_listed(contents.counts)}."))
    if replaced is not None:
        print(escaped(f"Lost: {lost}. The replaced store is in {replaced}."))
    if fence is not None:
        print(f"Locks: fences go on above {fence}; none can be acquired for {HELD_BACK:.0f} s after the next start.")
    _checkCredentials(directory, contents)


def _copied(source: str | Path, target: str, directory: DataDirectory) -> Contents:
    try:
        if os.path.exists(target) and os.path.samefile(source, target):
            raise CommandFailed(f"{target} is the registry's store itself; choose another file")
        return copyStore(str(source), target)
    except OSError as error:
        raise CommandFailed(f"can't copy {source} to {target} as user {os.geteuid()}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise CommandFailed(f"can't copy {source} to {target}: {error}") from None


def _lost(copy: str, path: str) -> str:
    try:
        return _listed(comparedTo(copy, path)) or "nothing"
    except sqlite3.Error as error:
        return f"unknown, because the replaced store can't be read ({error})"


def _checkCredentials(directory: DataDirectory, contents: Contents) -> None:
    """Warn about credentials for this machine that the restored store does not know."""
    credentials = directory.credentials()
    if credentials is None:
        return
    name, key = credentials
    if name not in contents.users or not keyMatches(key, contents.users[name]):
        tell(
            f'The API key of user "{name}" in {directory.raxrcPath} is not the one of the backup: restore the raxrc '
            f"of that time, or give the user a new key with service-registry-users"
        )


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {name if count == 1 else _plural(name)}" for name, count in counts)


def _plural(name: str) -> str:
    first, of, rest = name.partition(" of ")
    return f"{first}s{of}{rest}"


if __name__ == "__main__":
    sys.exit(main())
