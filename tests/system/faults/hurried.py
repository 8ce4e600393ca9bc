"""
``python -m tests.system.faults.hurried SPEED PROGRAM [ARGUMENT …]``: a real process whose time goes faster than ours.

The program (``twistd``, or a module that has a ``main``) is run as it is, in this process: what it reads of
``time.monotonic`` and ``time.time``, and how long its reactor waits for the next call, is all that differs. Time goes
at its own pace at first, and at *SPEED* from the first SIGUSR1 on, so that what needs work rather than time (starting,
registering thousands of services) may take as long as it takes.

A hurried process has to do in a second of ours what others do in *SPEED* seconds. A pause of 0.1 s of ours is one of
``0.1 * SPEED`` seconds to it: this is stricter than the real thing, never milder.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["main"]


class _Hurry:
    """A clock that goes on from where the real one is, at a speed that can be changed."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real
        self._since = self._shown = real()
        self.speed = 1.0

    def seconds(self) -> float:
        return self._shown + (self._real() - self._since) * self.speed

    def go(self, speed: float) -> None:
        self._shown, self._since, self.speed = self.seconds(), self._real(), speed


def main(arguments: list[str]) -> None:
    """Run a program."""
    speed, program = float(arguments[0]), arguments[1]
    # Before anything else is imported that may keep one of these functions.
    clocks = _Hurry(time.monotonic), _Hurry(time.time)
    time.monotonic, time.time = (clock.seconds for clock in clocks)

    from twisted.internet import reactor

    anyReactor: Any = reactor
    wait = anyReactor.timeout

    def timeout() -> float | None:
        seconds: float | None = wait()
        return None if seconds is None else seconds / clocks[0].speed

    anyReactor.timeout = timeout

    def hurry(signum: int, frame: object) -> None:
        for clock in clocks:
            clock.go(speed)

    signal.signal(signal.SIGUSR1, hurry)
    if program == "twistd":
        from twisted.scripts.twistd import run

        sys.argv = arguments[1:]
        run()
    else:
        import_module(program).main(arguments[2:])


if __name__ == "__main__":
    main(sys.argv[1:])
