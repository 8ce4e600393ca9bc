"""Which user controls a path: root must not work in a directory where another user can put symbolic links."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator

# As many as Linux follows.
_MOST_LINKS = 40
_ROOT = 0
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class UnsafePath(PermissionError):
    """Root must not use this path, because other users can change where it leads; the text says which and why."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EPERM, reason, path)


def isPrivileged() -> bool:
    """Whether this process can change all users' files: root runs it, not in a user namespace without other users."""
    if not hasattr(os, "geteuid") or os.geteuid() != _ROOT:
        return False
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return sum(int(line.split()[2]) for line in file) != 1
    except (OSError, ValueError, IndexError):
        return True


def controllingUser(path: str | os.PathLike[str]) -> int:
    """
    The id of the user besides root who can change where *path* leads, 0 if there is none: the owner of the first
    directory or symbolic link in it that is not root's. The part that does not exist is left out.

    :raises UnsafePath: if it is more than one user.
    :raises OSError: if a directory on the way can't be read.
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
    here = os.sep
    links = 0
    isRoots = True
    status = os.lstat(here)
    while ahead:
        name = ahead.popleft()
        if name == "..":
            here = os.path.dirname(here)
            status = os.lstat(here)
            continue
        if name in ("", "."):
            continue
        if isRoots and _isOpenToOthers(status) and not status.st_mode & stat.S_ISVTX:
            raise UnsafePath(here, "users other than root can write to it: chmod go-w")
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
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(place)
        if target.startswith(os.sep):
            here = os.sep
        ahead.extendleft(reversed(target.split(os.sep)))
        status = os.lstat(here)
    if isRoots and _isOpenToOthers(status):
        raise UnsafePath(here, "users other than root can write to it: chmod go-w")


def _isOpenToOthers(status: os.stat_result) -> bool:
    return status.st_uid == _ROOT and bool(status.st_mode & _WRITABLE_BY_OTHERS)


def checkPath(path: str | os.PathLike[str]) -> None:
    """
    Check that no other user can change where *path* leads, if this process is privileged. For another process every
    path is safe, because it can do only what its user can do.

    :raises UnsafePath: if another user can.
    :raises OSError: if a directory on the way can't be read.
    """
    if isPrivileged() and (user := controllingUser(path)) != _ROOT:
        raise UnsafePath(os.fspath(path), f"user {user} can change where it leads, and this process is root's")
