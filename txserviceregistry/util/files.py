"""Files that are replaced as a whole, and that only their owner may read; locks on files."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from twisted.internet.interfaces import IReactorTime

from .logs import Logger
from .outage import Outage

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:

    def lockFile(descriptor: int) -> None:
        """Windows has no such locks: nothing keeps two processes from the same file."""

else:

    def lockFile(descriptor: int) -> None:
        """
        Lock an open file until it is closed, as it is at the end of the process.

        :raises BlockingIOError: if another process has it, or another descriptor of this one.
        :raises OSError: if the file system has no locks.
        """
        flock(descriptor, LOCK_EX | LOCK_NB)


def absolutePath(path: str) -> str:
    """
    A path that does not depend on the working directory, with the home directory for a ``~``; ``ValueError`` if there
    is none.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path!r} can't be used: {path.partition(os.sep)[0]} has no home directory here")
    return os.path.abspath(expanded)


def replaceFile(
    path: str | os.PathLike[str], text: str | bytes, *, isDurable: bool = False, like: os.stat_result | None = None
) -> None:
    """
    Replace the content of a file. A reader sees either the old content or the new one. The mode is 0600.

    :param text: the new content; a ``str`` is written as UTF-8.
    :param isDurable: whether to sync the content to the disk before it replaces the old one.
    :param like: gives the file this mode instead, and this owner and group where the process may do that.
    :raises OSError: if the file can't be written; it keeps its old content then.
    """
    with replacement(path, text, isDurable=isDurable, like=like) as new:
        os.replace(new, path)


@contextmanager
def replacement(
    path: str | os.PathLike[str], text: str | bytes, *, isDurable: bool = False, like: os.stat_result | None = None
) -> Iterator[str]:
    """
    The path of a new file beside *path*, to be renamed to it; see :func:`replaceFile`. It is removed if an error is
    raised.
    """
    name = os.fspath(path)
    # mkstemp creates a new file with mode 0600, whatever the mode of the old file is.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(name)}-", dir=os.path.dirname(name) or ".")
    try:
        with open(descriptor, "wb") as file:
            if like is not None:
                _resemble(descriptor, like)
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            if isDurable:
                os.fsync(file.fileno())
        yield temporary
    except BaseException:
        # The error is the one that was raised, also if the file is not there.
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _resemble(descriptor: int, like: os.stat_result) -> None:
    try:
        os.fchown(descriptor, like.st_uid, like.st_gid)
    except PermissionError:
        pass  # only root may give files away
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))


class WriteOutage(Outage):
    """Logs once when a file can't be written any more, and once when it can; *loss* is the consequence, as a clause."""

    def __init__(self, path: str, log: Logger, clock: IReactorTime, loss: str) -> None:
        begins = "File {path} can't be written: {reason}. Until it can, {loss}"
        super().__init__(log, clock, begins, "File {path} is written again", path=path, loss=loss)

    def notWritten(self, error: OSError) -> None:
        """Writing the file failed; see :meth:`failed`."""
        self.failed(reason=error.strerror or type(error).__name__)
