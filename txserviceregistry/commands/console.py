"""
Console scripts: failures and exit codes, the reactor, settings, texts for a terminal, and standard streams. This module
imports nothing of Twisted at first.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import select
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import attrs

from ..errors import InvalidSettings, ServiceRegistryError
from ..settings import Settings, readSettings
from ..util.fields import escaped

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

_T = TypeVar("_T")

# The settings that a program has options for.
_OPTIONS = {
    "username": "--username",
    "apiKey": "--api-key",
    "baseUrl": "--api-url",
    "authUrl": "--auth-url",
    "region": "--region",
}
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
# Python's characters for bytes of the command line that the locale's encoding can't decode.
_UNDECODED = re.compile("[\udc80-\udcff]")


class UsageError(Exception):
    exitCode = 2


class CommandFailed(Exception):
    def __init__(self, text: str, exitCode: int = 1) -> None:
        super().__init__(text)
        self.exitCode = exitCode


@attrs.define
class Interrupted(Exception):
    """A signal ended the command: exit code 128 and its number."""

    signal: int


def runConsole(name: str, run: Callable[[], int]) -> int:
    """Run a console script, and report its error in one line; returns the exit code, as *run* does."""
    try:
        _prepareStreams()
        try:
            code = run()
        except SystemExit as end:
            if not isinstance(end.code, int):
                raise
            code = end.code
        except OSError:
            # Other files than the output are CommandFailed.
            raise
        except Interrupted as interrupted:
            code = 128 + interrupted.signal
        except Exception as error:
            code, problem = describe(error)
            tell(f"{name}: {problem}")
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        dropOutput()
        code = _BROKEN_PIPE
    except OSError as error:
        dropOutput()
        tell(f"{name}: can't write the output: {whyNotWritten(error)}")
        code = 1
    try:
        sys.stderr.flush()
    except OSError:
        dropOutput(sys.stderr)
    return code


def describe(error: Exception) -> tuple[int, str]:
    """The exit code after an error, and the line that reports it."""
    if isinstance(error, (UsageError, CommandFailed, ServiceRegistryError)):
        return getattr(error, "exitCode", 1), str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return 1, f"internal error: {type(error).__name__} in {place.filename}:{place.lineno}: {error}"


def runReactor(reactor: Any, work: Callable[[], Coroutine[Deferred[Any], Any, _T]]) -> _T:
    """Run the reactor, once in a process, for as long as *work* takes; :class:`Interrupted` if a signal ended it."""
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    outcome: list[_T | Failure] = []
    under: list[Deferred[_T]] = []
    received: list[int] = []

    def finished(result: _T | Failure) -> None:
        outcome.append(result)
        reactor.stop()

    def start() -> None:
        under.append(Deferred.fromCoroutine(work()))
        under[0].addBoth(finished)

    def interrupt(number: int, frame: object) -> None:
        # The same signal again ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        received.append(number)
        reactor.callFromThread(lambda: under[0].cancel())

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    reactor.callWhenRunning(start)
    try:
        reactor.run(installSignalHandlers=False)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
    return result


def settingsOf(given: Mapping[str, Any]) -> Settings:
    """The settings with the values of options, by the settings' names; :class:`InvalidSettings` names the options."""
    arguments: dict[str, Any] = {name: given.get(name) for name in _OPTIONS}
    try:
        return readSettings(**arguments)
    except InvalidSettings as error:
        raise InvalidSettings(inOptions(str(error))) from None


def inOptions(text: str) -> str:
    for name, option in _OPTIONS.items():
        text = text.replace(f"the argument {name}", option)
    return text


# -- texts


def printable(text: str) -> str:
    return escaped(text, keep="\n")


def oneLine(text: str) -> str:
    return printable(" ".join(text.split()))


def undecodable(words: Sequence[str]) -> str | None:
    """
    The error about the first word of a command line that is not text in the locale's encoding; ``None`` if there is
    none. The word is not repeated, because it can be a secret.
    """
    for before, word in zip(["", *words], words, strict=False):
        if _UNDECODED.search(word):
            options = (each for each in (word.partition("=")[0], before) if re.fullmatch("--?[a-zA-Z-]+", each))
            where = next((f"the value of {option}" for option in options), "an argument")
            encoding = sys.getfilesystemencoding().upper()
            utf8 = "Write it in UTF-8, in a UTF-8 locale such as LC_ALL=C.UTF-8"
            return f"{where} is not text in {encoding}, the encoding of the locale. {utf8}"
    return None


def didYouMean(word: str, known: Iterable[str]) -> str:
    """A sentence that suggests known words that are similar to *word*, or nothing."""
    close = get_close_matches(word, list(known), n=2, cutoff=0.6)
    return f". Did you mean {' or '.join(close)}?" if close else ""


def typeOf(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an argument for argparse, whose *parse* raises ``ValueError`` with a text for the user."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


class Parser(argparse.ArgumentParser):
    """Raises a :class:`UsageError`, whose text is one line, and keeps the lines of its own texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def checkText(self, words: Sequence[str]) -> None:
        problem = undecodable(words)
        if problem is not None:
            self.error(problem)

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        raise UsageError(f"{message}{end} See {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own ignores errors.
        (file or sys.stderr).write(message)


# -- streams


def holdDescriptors() -> None:
    """Open standard streams that are closed, so that no connection or file gets the number and data of one."""
    for descriptor, (_, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            # This gets the lowest free number, and can't be used as the stream.
            os.open(os.devnull, os.O_WRONLY if mode == "r" else os.O_RDONLY)


def _prepareStreams() -> None:
    holdDescriptors()
    for descriptor, (name, mode) in enumerate(_STREAMS):
        # A stream that was closed when the process began is None.
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115  # it lasts as long as the process
    for stream in (sys.stdout, sys.stderr):
        # The terminal's encoding may not have a character.
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="backslashreplace")


def useUTF8() -> None:
    """Write UTF-8 to the standard output in every locale, for the programs that read it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def checkOutput() -> None:
    """Raise an OSError if the standard output is closed, a full device, or a pipe without a reader."""
    sys.stdout.flush()
    descriptor = sys.stdout.fileno()
    # To a socket this could be a message.
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        os.write(descriptor, b"")
    poll = select.poll()
    poll.register(descriptor, 0)
    if any(events & select.POLLERR for _, events in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def show(text: str) -> None:
    """Write to the standard output at once, and to the disk if it is a file; raises OSError if that fails."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    print(text, flush=True)
    descriptor = sys.stdout.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fsync(descriptor)


def tell(line: str) -> None:
    """Write a line to stderr, escaped, if it can be written: there is an exit code too."""
    with suppress(OSError, ValueError):
        print(oneLine(line), file=sys.stderr, flush=True)


def whyNotWritten(error: OSError) -> str:
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def dropOutput(stream: TextIO | None = None) -> None:
    """Make the interpreter's own flush at its end succeed, of the standard output or another *stream*."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, (stream or sys.stdout).fileno())
    os.close(nowhere)
