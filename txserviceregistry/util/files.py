"""Files that are replaced as a whole; paths that are safe for root; values from files that may change."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar, Generic, TypeVar

import attrs

from .logs import Logger

#: Seconds between two reads of files that have not changed, while they can't be used or after a failed handshake.
RETRY_SECONDS = 1.0
_ROOT = 0
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_Text = TypeVar("_Text")
_Made = TypeVar("_Made")


def absolutePath(path: str) -> str:
    """A path with the home directory for a ``~`` (``ValueError`` if there is none), from any working directory."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"{path!r} can't be used: {path.partition(os.sep)[0]} has no home directory here")
    return os.path.abspath(expanded)


def replaceFile(
    path: str | os.PathLike[str], text: str | bytes, *, isDurable: bool = False, like: os.stat_result | None = None
) -> None:
    """
    Replace the content of a file: a reader, also after an ``OSError``, sees either the old content or the new one. The
    mode is 0600, or *like* gives it, and the owner and group where the process may do that.
    """
    with replacement(path, text, isDurable=isDurable, like=like) as new:
        os.replace(new, path)


@contextmanager
def replacement(
    path: str | os.PathLike[str], text: str | bytes, *, isDurable: bool = False, like: os.stat_result | None = None
) -> Iterator[str]:
    """The path of a new file, to be renamed to *path*, as in :func:`replaceFile`; removed after an error."""
    name = os.fspath(path)
    # mkstemp creates a new file with mode 0600, whatever the mode of the old file is.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(name)}-", dir=os.path.dirname(name) or ".")
    try:
        with open(descriptor, "wb") as file:
            if like is not None:
                with suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            file.write(text.encode("utf-8") if isinstance(text, str) else text)
            file.flush()
            if isDurable:
                os.fsync(file.fileno())
        yield temporary
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


class UnsafePath(PermissionError):
    """Root must not use this path, because other users can change where it leads."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EPERM, reason, path)


def isPrivileged() -> bool:
    """Whether this process can change all users' files: root runs it, not in a user namespace without other users."""
    if os.geteuid() != _ROOT:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return sum(int(line.split()[2]) for line in file) != 1
    except (OSError, ValueError, IndexError):
        return True


def checkPath(path: str | os.PathLike[str]) -> None:
    """Raise :class:`UnsafePath` if this process is privileged and another user can change where *path* leads."""
    if isPrivileged() and (user := controllingUser(path)) != _ROOT:
        raise UnsafePath(os.fspath(path), f"user {user} can change where it leads, and this process is root's")


def controllingUser(path: str | os.PathLike[str]) -> int:
    """
    The owner of the first directory or symbolic link on *path* that is not root's, 0 if there is none. This user can
    change where it leads; :class:`UnsafePath` if others can too. The part that does not exist is left out.
    """
    found = _ROOT
    # Not os.path.abspath: ".." behind a symbolic link is not where the link is.
    for place, status in _places(os.path.join(os.getcwd(), path)):
        if status.st_uid not in (_ROOT, found):
            if found != _ROOT:
                raise UnsafePath(place, f"it belongs to user {status.st_uid}, and the path to it to user {found}")
            found = status.st_uid
    return found


def _places(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Each directory and symbolic link on a path, as the system resolves it."""
    ahead = deque(path.split(os.sep))
    here, links, isRoots = os.sep, 0, True
    status = os.lstat(here)

    def checkWriters(ignored: int) -> None:
        isOpen = status.st_uid == _ROOT and status.st_mode & _WRITABLE_BY_OTHERS
        if isRoots and isOpen and not status.st_mode & ignored:
            raise UnsafePath(here, "users other than root can write to it: chmod go-w")

    while ahead:
        name = ahead.popleft()
        if name == "..":
            here = os.path.dirname(here)
            status = os.lstat(here)
        if name in ("", ".", ".."):
            continue
        checkWriters(stat.S_ISVTX)
        place = os.path.join(here, name)
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return
        yield place, status
        isRoots = isRoots and status.st_uid == _ROOT
        if not stat.S_ISLNK(status.st_mode):
            here = place
            continue
        links += 1
        if links > 40:  # as many as Linux follows
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(place)
        if target.startswith(os.sep):
            here = os.sep
        ahead.extendleft(reversed(target.split(os.sep)))
        status = os.lstat(here)
    checkWriters(0)


def stampOf(path: str) -> tuple[int, ...] | None:
    """Changes when a file is replaced or written, also behind links; ``None`` if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if _isStream(found):
        # Its times change while it is read.
        return found.st_dev, found.st_ino
    # The ctime also changes with a file's permissions, and when it is written with its old date.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _isStream(found: os.stat_result) -> bool:
    """Whether reading it can take forever, and returns each byte only once: a pipe, a socket or a device."""
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return False
    return not os.path.samestat(found, os.stat(os.devnull))


@attrs.define(eq=False, slots=False)
class Reloaded(Generic[_Text, _Made]):
    """
    A value that *make* makes from the files that *read* reads, and again when they have changed. The previous value
    stays in use while they can't be used (*problem* says why), and while *whyNot* speaks against the new one only.
    """

    _log: ClassVar[Logger] = Logger()

    name: str
    _paths: Sequence[str]
    _read: Callable[[], _Text]
    _make: Callable[[_Text], _Made]
    _whyNot: Callable[[_Made], str | None] = attrs.field(default=lambda made: None, kw_only=True)
    _seconds: Callable[[], float] = attrs.field(default=time.monotonic, kw_only=True)
    problem: str | None = attrs.field(default=None, init=False)
    onChange: Callable[[], object] = attrs.field(default=lambda: None, init=False)
    _isSuspect: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        # Before they are read, so that a change meanwhile is noticed.
        self._stamps = self._look()
        self._readAt = self._seconds()
        self._text = self._read()
        self._made = self._make(self._text)

    def current(self) -> _Made:
        mayBeOld = self._isSuspect or self.problem is not None
        if self._look() != self._stamps or (mayBeOld and self._seconds() - self._readAt >= RETRY_SECONDS):
            self.reload()
        return self._made

    def suspect(self) -> None:
        """Let the next use read the files even if they seem unchanged: the value did not work."""
        self._isSuspect = True

    def reload(self) -> None:
        self._isSuspect = False
        self._stamps = self._look()
        self._readAt = self._seconds()
        try:
            for path in filter(os.path.exists, self._paths):
                if _isStream(os.stat(path)):
                    raise ValueError(f"{path} can't be read again, because it is not a regular file")
            text = self._read()
            made = self._made if text == self._text else self._make(text)
            whyNot = self._whyNot(made)
            if made is not self._made and whyNot is not None and self._whyNot(self._made) is None:
                raise ValueError(whyNot)
        # Invalid files raise many exceptions, none of which may end a connection.
        except Exception as error:
            if self.problem is None:
                warning = "{name} can't be reloaded: {reason} (the previous content stays in use)"
                self._log.warn(warning, name=self.name, reason=str(error))
            self.problem = str(error)
            return
        problem, self.problem = self.problem, None
        if made is not self._made:
            self._text, self._made = text, made
            self._log.info("{name} reloaded", name=self.name)
            self.onChange()
        elif problem is not None:
            self._log.info("{name} can be used again, and has not changed", name=self.name)

    def _look(self) -> list[tuple[int, ...] | None]:
        return [stampOf(path) for path in self._paths]
