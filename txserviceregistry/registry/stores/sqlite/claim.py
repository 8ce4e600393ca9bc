"""
A registry's claim on its SQLite file: no other registry uses the file under whatever name, and its content stays that
of the store.

A lock file in the data directory does not know of symbolic and hard links to the file, and a name with the same device
and inode says nothing about what is in the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from ..interfaces import StoreRefused
from .file import APPLICATION_ID, FileLost, applicationIdIn, readHeader

# The lock is one of the open file, not of the process as SQLite's own: those end when the process closes any
# descriptor of the file. It is on a byte that no file reaches and SQLite does not lock.
_CLAIMED = (1 << 62, 1)

# The bytes that SQLite locks alone before it deletes the log (SHARED_FIRST and SHARED_SIZE in its os.h).
_SHARED = (0x40000002, 510)


class FileClaim:
    """:param path: the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """
        Claim the file, until :meth:`release`. To be called when this process has no connection to it.

        :raises StoreRefused: if another registry has claimed it.
        :raises OSError: if it can't be opened.
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
        """
        Check that the file still holds a store, as far as its first 100 bytes tell.

        :raises FileLost: if not: it was emptied, or something else was written over it.
        """
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
    Lock some bytes, with a lock of the open file. Systems and file systems that have none go without.

    :raises BlockingIOError: if another open file has locked them.
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
