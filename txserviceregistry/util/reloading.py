"""Values made from files that may change while the program runs, such as certificates and keys."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .logs import Logger

#: Seconds between two reads of files that have not changed, while they can't be used or after a failed handshake.
RETRY_SECONDS = 1.0

_Text = TypeVar("_Text")
_Made = TypeVar("_Made")


def stampOf(path: str) -> tuple[int, ...] | None:
    """A value that changes when a file is replaced or written, also behind links; ``None`` if there is none."""
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
    """
    Whether it is a pipe, a socket or a device other than the null device: reading it can take forever, and returns each
    byte only once.
    """
    if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode):
        return False
    return not os.path.samestat(found, os.stat(os.devnull))


class Reloaded(Generic[_Text, _Made]):
    """
    A value made from files, and made again when they have changed. While the new files can't be used, the previous
    value stays in use. That is logged once when it begins and once when it ends.

    :param name: the subject of log lines.
    :param paths: the files. The first time, they may be pipes.
    :param make: makes the value from the result of *read*.
    :param whyNot: why a value can't be used at this time. Such a value does not replace one that can.
    :param seconds: monotonic time.
    :raises Exception: as *read* and *make*.
    """

    _log = Logger()

    def __init__(
        self,
        name: str,
        paths: Sequence[str],
        read: Callable[[], _Text],
        make: Callable[[_Text], _Made],
        *,
        whyNot: Callable[[_Made], str | None] = lambda made: None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        #: Why the files can't be used as they are now; ``None`` if they are in use.
        self.problem: str | None = None
        #: Called when the value has changed.
        self.onChange: Callable[[], object] = lambda: None
        self._paths = paths
        self._read = read
        self._make = make
        self._whyNot = whyNot
        self._seconds = seconds
        self._isSuspect = False
        # Before they are read, so that a change meanwhile is noticed.
        self._stamps = self._look()
        self._readAt = seconds()
        self._text = read()
        self._made = make(self._text)

    def current(self) -> _Made:
        """The value, which is made again if the files have changed. It takes one ``stat`` for each file."""
        if self._look() != self._stamps or (
            (self._isSuspect or self.problem is not None) and self._seconds() - self._readAt >= RETRY_SECONDS
        ):
            self.reload()
        return self._made

    def suspect(self) -> None:
        """Read the files the next time, even if they seem unchanged: the value did not work."""
        self._isSuspect = True

    def reload(self) -> None:
        """Read the files now."""
        self._isSuspect = False
        self._stamps = self._look()
        self._readAt = self._seconds()
        try:
            self._refuseStreams()
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

    def _refuseStreams(self) -> None:
        for path in filter(os.path.exists, self._paths):
            if _isStream(os.stat(path)):
                raise ValueError(f"{path} can't be read again, because it is not a regular file")

    def _look(self) -> list[tuple[int, ...] | None]:
        return [stampOf(path) for path in self._paths]
