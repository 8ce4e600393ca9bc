"""
The console script: what can go wrong before there is a command line to speak of, and after it.
"""

from __future__ import annotations

import os
import sys

__all__ = ["main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main() -> int:
    """
    Run ``raxsr`` with the arguments of this process.

    :return: the exit code: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C, 141 when nobody reads the output.
    """
    try:
        _prepareStreams()
        code = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        _dropOutput()
        code = _BROKEN_PIPE
    except OSError as error:
        _dropOutput()
        print(f"raxsr: can't write the output: {error.strerror}", file=sys.stderr)
        code = 1
    return code


def _run() -> int:
    try:
        from .app import Raxsr
    except ImportError as error:
        if (error.name or "").startswith("txserviceregistry"):
            raise
        print(
            f"raxsr needs the extra 'cli', and {error.name or 'a part of it'} is not installed: "
            "pip install 'txserviceregistry[cli]'",
            file=sys.stderr,
        )
        return 1
    return Raxsr().run(sys.argv[1:])


def _prepareStreams() -> None:
    # A stream that was closed when the process began is None.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115  # it lasts as long as the process
        setattr(sys, name, stream)
        # What the terminal's encoding has no character for is still told.
        stream.reconfigure(errors="backslashreplace")


def _dropOutput() -> None:
    """Let the interpreter's own flush at the end find a place that takes everything."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
