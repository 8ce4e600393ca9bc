"""
The program in the wrapper's tests: a mode for each thing that a command may do. It says ``ready`` when it is, and ends
with its stdin at the latest.

Runs without the project and without site-packages: ``python -S -E wrapped.py MODE``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable


def say(text: str) -> None:
    """A line, whole, also out of a signal handler."""
    os.write(1, text.encode() + b"\n")


def untilTheEnd() -> None:
    """Read stdin until there is no more."""
    while os.read(0, 65536):
        pass


def signals() -> int:
    """Name each signal that comes."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, lambda got, frame: say(f"got {nameOf(got)}."))
    say("ready")
    untilTheEnd()
    return 5


def nameOf(number: int) -> str:
    """``SIGTERM`` for 15; the number for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def stubborn() -> int:
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("ready")
    untilTheEnd()
    return 3


def forks() -> int:
    """Leave a process behind that holds all that was inherited, and end."""
    say("ready")
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    return 4


def orphans() -> int:
    """Make orphans that end at once."""
    for _ in range(20):
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.wait()
    say("ready")
    untilTheEnd()
    return 6


def state() -> int:
    """Show what was inherited."""
    say("blocking " + " ".join(str(os.get_blocking(fd)) for fd in (0, 1, 2)))
    say("files " + " ".join(sorted(name for name in os.listdir("/proc/self/fd") if isOpen(int(name)))))
    return 0


def isOpen(fd: int) -> bool:
    """Whether there is such a descriptor: the one that listed the folder is closed by now."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


MODES: dict[str, Callable[[], int]] = {
    "signals": signals,
    "stubborn": stubborn,
    "forks": forks,
    "orphans": orphans,
    "state": state,
}

if __name__ == "__main__":
    # No handler of Python's own for SIGINT, so that a program in C is what this is like.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(MODES[sys.argv[1]]())
