"""``--log-file``: a file to which a command appends lines with the time."""

from __future__ import annotations

import os
import time

from ..console import tell
from ..outcome import CommandFailed


class LogFile:
    """
    The file. A new one has mode 0600.

    :raises CommandFailed: if it can't be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            # Buffered by lines, so that other commands can append to it meanwhile.
            self._file = open(  # noqa: SIM115  # it lasts as long as the process
                path, "a", 1, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)
            )
        except OSError as error:
            raise CommandFailed(f"can't write the log file {path}: {error.strerror}") from None
        self._isFailing = False

    def write(self, line: str) -> None:
        """Append a line. The first failure is reported, and the command goes on."""
        if self._isFailing:
            return
        try:
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {line}\n")
        except OSError as error:
            self._isFailing = True
            tell(f"raxsr: can't write the log file {self._path} any more: {error.strerror}")
