"""
What our processes have in common: how they take their options, talk, look for garbage, and end when they can't start.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import Any, NoReturn, TextIO

from twisted.python import usage

from .._version import __version__
from ..errors import InvalidSettings
from ..util.escaping import escaped
from ..util.logs import Logger
from .console import dropOutput, holdDescriptors, show, whyNotWritten
from .outcome import printable, undecodable

_log = Logger()

_NEW_OBJECTS = 50_000
"""More than a thousand requests under way are made of; as garbage they would be some ten megabytes."""


def collectSeldom() -> None:
    """
    Let Python look for garbage (objects that only refer to each other) less often than it does by itself, in a process
    that is there to serve: when there are 50,000 objects more than the last time, if Python's own threshold is lower.

    The requests of some tens of clients are more objects than that threshold, and no garbage. To look at them time and
    again takes a tenth of the process's time; and once in a while Python looks at all that it has, which with thousands
    of services are tens of milliseconds in which nobody is answered.
    """
    young, *others = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *others)


def say(text: str) -> None:
    """
    Tell the person at the terminal something: as it stands, so that it can be copied, and not as lines of the log,
    into which twistd turns what is printed.
    """
    _print(printable(text), sys.__stdout__)


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    try:
        if stream is not None:
            print(text, file=stream, end=end, flush=True)
    except (OSError, ValueError):
        # Whoever read it has gone, as with a pipe into `head`. The process has more to do than to talk.
        pass


def endProcess(reactor: Any, line: str) -> None:
    """
    End a process that could not start: one *line* on stderr and in the log, an orderly shutdown, exit code 1.

    Nobody hears the stderr of a process in the background, and its log may be in a file in any case. For failures that
    show only when the reactor runs; before it does, ``SystemExit(line)`` is all that is needed.
    """
    _log.error("{line}", line=line)
    _print(escaped(line), sys.__stderr__)
    # twistd has no way to give an exit code once its reactor has run. The last thing that happens in the process has.
    atexit.register(_exitCode, 1)
    # What fails at once fails before the reactor runs.
    reactor.callWhenRunning(reactor.stop)


def _exitCode(code: int) -> NoReturn:
    for stream in (sys.__stdout__, sys.__stderr__):
        _print("", stream, end="")
    os._exit(code)


class OneLineOptions(usage.Options):
    """
    Options of a twistd command whose mistakes are told in one line on stderr, with exit code 1 and nothing started.

    twistd itself would print the whole help and lose the line below it.
    """

    #: The command's name, for the line.
    command = ""

    def parseOptions(self, options: Any = None) -> None:
        """
        :raises SystemExit: if they can't be used.
        """
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
        """Refuse what is no option."""
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")
