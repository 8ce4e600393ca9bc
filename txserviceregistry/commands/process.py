"""Helpers of the twistd commands: options, output, garbage collection, and the end of a failed start."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any, NoReturn, TextIO

from twisted.python import usage

from .._version import __version__
from ..errors import InvalidSettings
from ..util.logs import Logger
from ..util.redaction import escaped
from .console import dropOutput, holdDescriptors, show, whyNotWritten
from .outcome import printable, undecodable

_log = Logger()

# The objects of a few hundred requests: a few megabytes. A collection of so many takes 2 ms.
_NEW_OBJECTS = 20_000


def collectSeldom() -> None:
    """
    Run Python's garbage collection less often in a process that serves requests.

    The requests of some tens of clients are more objects than Python's threshold, and not garbage. Examining them again
    and again takes a tenth of the process's time, and a full collection with thousands of services delays all responses
    by tens of milliseconds.
    """
    young, *others = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *others)


def say(text: str) -> None:
    """Print *text* so that it can be copied, and not as lines of the log, into which twistd turns what is printed."""
    _print(printable(text), sys.__stdout__)


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    try:
        if stream is not None:
            print(text, file=stream, end=end, flush=True)
    except (OSError, ValueError):
        # No reader is left, as with a pipe into `head`. The process goes on.
        pass


def endProcess(reactor: Any, line: str) -> None:
    """End a process that could not start: a *line* on stderr and in the log, an orderly shutdown, exit code 1."""
    _log.error("{line}", line=line)
    _print(escaped(line), sys.__stderr__)
    # twistd itself sets no exit code once its reactor has run.
    atexit.register(_exitCode, 1)
    # The start may fail before the reactor runs.
    reactor.callWhenRunning(reactor.stop)


def _exitCode(code: int) -> NoReturn:
    for stream in (sys.__stdout__, sys.__stderr__):
        _print("", stream, end="")
    os._exit(code)


class OneLineOptions(usage.Options):
    """Options of a twistd command whose errors are one line. twistd itself would print the whole help before it."""

    #: The command's name, for the line.
    command = ""

    def parseOptions(self, options: Any = None) -> None:
        """:raises SystemExit: if they are wrong."""
        holdDescriptors()
        words = sys.argv[1:] if options is None else options
        try:
            problem = undecodable(words)
            if problem is not None:
                raise usage.UsageError(problem)
            usage.Options.parseOptions(self, words)
        except (usage.UsageError, InvalidSettings) as error:
            line = f"twistd {self.command}: {error} (see: twistd {self.command} --help)"
            raise SystemExit(escaped(line)) from None

    def opt_help(self) -> None:
        """Display this help and exit."""
        self._show(str(self))

    def opt_version(self) -> None:
        """Display the version and exit."""
        self._show(f"twistd {self.command} {__version__}")

    def _show(self, text: str) -> NoReturn:
        try:
            show(text)
        except OSError as error:
            if sys.stdout is not None:
                dropOutput()
            raise SystemExit(f"twistd {self.command}: can't write the output: {whyNotWritten(error)}") from None
        raise SystemExit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")
