"""The programs that work on a data directory: their command lines, and dropping root's privileges."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
from pathlib import Path
from typing import Any, NoReturn

from .._version import __version__
from ..errors import InvalidSettings
from ..registry.datadir import DataDirectory
from ..settings import defaultDataDir
from ..util.files import UnsafePath, controllingUser, isPrivileged
from .console import CommandFailed, UsageError, typeOf, undecodable

# "nogroup", for a user without a passwd entry. Root may have given the directory a group that its owner is not in.
_NO_GROUP = 65534


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
        problem = undecodable(sys.argv[1:])
        if problem is not None:
            raise UsageError(problem)
        return self.parse_args()


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("the value is empty")
    return Path(text)


def dataDirectory(options: argparse.Namespace) -> DataDirectory:
    """The data directory of ``--data-dir``, or the default one; :class:`UsageError` if there is no default."""
    try:
        return DataDirectory(getattr(options, "dataDir", None) or defaultDataDir())
    except InvalidSettings as error:
        raise UsageError(str(error)) from None


def becomeOwner(path: Path) -> None:
    """
    If root runs this process and another user controls *path*, become that user for good: this process may follow that
    user's symbolic links. :class:`CommandFailed` if several users control it.
    """
    if not isPrivileged():
        return
    try:
        user = controllingUser(path)
    except UnsafePath as error:
        raise CommandFailed(
            f"root can't use the data directory {path} safely: {error.filename}: {error.strerror}; run this as the "
            "directory's owner"
        ) from None
    except OSError as error:
        raise CommandFailed(f"can't read {path}: {error.strerror}") from None
    if user == 0:
        return
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        os.setgroups([])
        os.setgid(_NO_GROUP)
    else:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
    os.setuid(user)
