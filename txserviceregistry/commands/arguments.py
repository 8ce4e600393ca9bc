"""The command lines of the programs that work on a data directory, with argparse."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from .._version import __version__
from ..errors import InvalidSettings
from ..registry.datadir import DataDirectory
from ..settings import defaultDataDir
from .outcome import UsageError, typeOf, undecodable


class ArgumentParser(argparse.ArgumentParser):
    """Reports wrong usage in one line, and keeps the lines of its texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog.split()[0]} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own ignores errors.
        (file or sys.stderr).write(message)

    def addVersion(self) -> None:
        self.add_argument("--version", action="version", version=f"{self.prog} {__version__}")

    def addDataDir(self) -> None:
        self.add_argument(
            "--data-dir", dest="dataDir", type=typeOf(_folder), metavar="DIR", help="the registry's data directory"
        )

    def parseWords(self) -> argparse.Namespace:
        """
        Parse the process's command line.

        :raises UsageError: if it is wrong.
        """
        problem = undecodable(sys.argv[1:])
        if problem is not None:
            raise UsageError(problem)
        return self.parse_args()


def dataDirectory(options: argparse.Namespace) -> DataDirectory:
    """The data directory of ``--data-dir``, or the default one; :class:`UsageError` if there is no default."""
    try:
        return DataDirectory(getattr(options, "dataDir", None) or defaultDataDir())
    except InvalidSettings as error:
        raise UsageError(str(error)) from None


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("the value is empty")
    return Path(text)
