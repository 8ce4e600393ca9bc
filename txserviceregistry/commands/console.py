"""The standard streams of a console script, and its end without a traceback. This module imports nothing of Twisted."""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import TextIO

from .outcome import Interrupted, describe, oneLine

_INTERRUPTED = 130
_BROKEN_PIPE = 141

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def runConsole(name: str, run: Callable[[], int]) -> int:
    """
    Run a console script, and report its error in one line.

    :param run: returns the exit code, or raises ``SystemExit`` with it.
    :return: that exit code, or that of an error; 1 if the output can't be written, 128 + N after signal N, 141 if the
        reader of a pipe has ended.
    """
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
        _drop(sys.stderr)
    return code


def holdDescriptors() -> None:
    """
    Open the descriptors of standard streams that were closed when the process began, so that they can't be read or
    written: else the next connection or file would get the number of one, and the data that is meant for the stream.
    """
    for descriptor, (_, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            # This gets the lowest free number. Open for writing only, it can't be read, and the other way round.
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
    """
    Check before anything is done that the standard output is open, and not a full device or a pipe without a reader. A
    full disk is found only when a file is written.

    :raises OSError: if it is not.
    """
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
    """
    Write to the standard output at once, and to the disk if it is a file.

    :raises OSError: if that fails, or the process began without a standard output.
    """
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    print(text, flush=True)
    descriptor = sys.stdout.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fsync(descriptor)


def tell(line: str) -> None:
    """Write a text to stderr as one line, escaped, if it can be written: there is an exit code too."""
    try:
        print(oneLine(line), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def whyNotWritten(error: OSError) -> str:
    """Why the standard output can't be written."""
    return "it is closed" if error.errno == errno.EBADF else error.strerror or str(error)


def dropOutput() -> None:
    """Make the interpreter's own flush at its end succeed."""
    _drop(sys.stdout)


def _drop(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
