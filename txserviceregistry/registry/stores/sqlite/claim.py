"""
Checks of an open SQLite file: that its name leads to it and its content is that of the store; and a registry's
claim, by which no other registry uses it under whatever name.

A lock file in the data directory does not know of symbolic and hard links to the file, and a name with the same device
and inode says nothing about what is in the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

from ..interfaces import StoreRefused
from .file import APPLICATION_ID, applicationIdIn, readHeader

# The lock is one of the open file, not of the process as SQLite's own: those end when the process closes any
# descriptor of the file. It is on a byte that no file reaches and SQLite does not lock.
_CLAIMED = (1 << 62, 1)

# The bytes that SQLite locks alone before it deletes the log (SHARED_FIRST and SHARED_SIZE in its os.h).
_SHARED = (0x40000002, 510)


class FileLost(OSError):
    """A file that is open is not under its name any more: it was removed, moved away, replaced or overwritten."""

    def __str__(self) -> str:
        return str(self.args[0])


class FileClaim:
    """:param path: the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """
        Claim the file, until :meth:`release`. To be called when this process has no connection to it. It raises
        :exc:`StoreRefused` if another registry has claimed it.
        """
        descriptor = os.open(self._path, os.O_RDWR)
        try:
            _lock(descriptor, fcntl.F_WRLCK, _CLAIMED)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreRefused(
                f"another registry uses the file {os.path.realpath(self._path)}, under this or another name (a symbolic"
                " or hard link); stop the other registry, or choose another path"
            ) from None
        self._descriptor = descriptor

    def check(self) -> None:
        """Raise :exc:`FileLost` if it was emptied, or something else was written over its first 100 bytes."""
        if self._descriptor is not None and applicationIdIn(readHeader(self._descriptor)) != APPLICATION_ID:
            # SQLite would move the log into what is there now, and delete it, when the last connection is closed.
            _lock(self._descriptor, fcntl.F_RDLCK, _SHARED)
            raise FileLost(
                f"{self._path} was overwritten while the registry uses it; stop the registry, and restore a backup"
            )

    def release(self) -> None:
        """Give the file back. To be called when this process has no connection to it any more."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, kind: int, place: tuple[int, int]) -> None:
    """
    Lock some bytes, with a lock of the open file. Systems and file systems that have none go without. It raises
    BlockingIOError if another open file has locked them.
    """
    if sys.platform != "linux":
        return
    # struct flock
    wanted = struct.pack("hhqqi", kind, os.SEEK_SET, *place, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None


class OpenFiles:
    """
    The files of a store, by device and inode.

    SQLite continues to write to a file that was removed or replaced and reports no error, and all of that is lost when
    the file is closed. The first connection decides which file is the store, until the process ends. The log and its
    index may be other files after a new connection.

    :param guard: see :class:`~txserviceregistry.registry.stores.sqlite.store.SqliteStore`.
    :param claim: the claim on the file, if there is one.
    """

    def __init__(self, path: str, guard: Callable[[], None], claim: FileClaim | None) -> None:
        self._path = path
        self._guard = guard
        self._claim = claim
        self._main: os.stat_result | None = None
        self._beside: dict[str, os.stat_result] = {}

    def opened(self) -> None:
        """Note the files of the connection that was just opened."""
        if self._main is None:
            self._main = os.stat(self._path)
        real = os.path.realpath(self._path)
        self._beside = {}
        for ending in ("-wal", "-shm"):
            with suppress(FileNotFoundError):  # a file that may only be read can be without them
                self._beside[real + ending] = os.stat(real + ending)

    def closing(self) -> None:
        """Note that the connection is about to be closed: SQLite may remove the log, and make another one."""
        self._beside = {}

    def check(self, isToWrite: bool = False) -> int:
        """
        Raise :exc:`FileLost` unless the files are those under their names, and the main one has the store's content;
        also see the guard if something is to be written. Returns how many bytes the log has.
        """
        if self._main is not None:
            self._checkOne(self._path, self._main)
        if self._claim is not None:
            self._claim.check()
        sizes = {path: self._checkOne(path, known) for path, known in self._beside.items()}
        if isToWrite:
            self._guard()
        return next((size for path, size in sizes.items() if path.endswith("-wal")), 0)

    def _checkOne(self, path: str, known: os.stat_result) -> int:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            what = f"{path} was removed or moved away"
        except OSError as error:
            what = f"{path} can't be reached ({error.strerror})"
        else:
            if os.path.samestat(found, known):
                return found.st_size
            what = f"{path} was replaced by another file"
        raise FileLost(f"{what} while the registry uses it; put the same file back, or restart the registry")
