"""
What every console script has to see to, whatever it does: its streams, and an end without a traceback when it can't
write or is interrupted. Nothing of Twisted is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

__all__ = ["dropOutput", "runConsole"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def runConsole(name: str, run: Callable[[], int]) -> int:
    """
    Run a console script.

    :param name: what it is called, for texts.
    :param run: does what it is for, and returns the exit code.
    :return: the exit code: that one, 1 if the output can't be written, 130 after Ctrl-C, 141 when nobody reads it.
    """
    try:
        _prepareStreams()
        code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        dropOutput()
        code = _BROKEN_PIPE
    except OSError as error:
        dropOutput()
        print(f"{name}: can't write the output: {error.strerror}", file=sys.stderr)
        code = 1
    return code


def _prepareStreams() -> None:
    # A stream that was closed when the process began is None.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # it lasts as long as the process
        setattr(sys, name, stream)
        # What the terminal's encoding has no character for is still told.
        stream.reconfigure(errors="backslashreplace")


def dropOutput() -> None:
    """Let the interpreter's own flush at the end find a place that takes everything."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
