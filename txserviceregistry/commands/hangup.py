"""SIGHUP reloads files, as in other daemons. When the terminal was closed, it ends the process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from ..util.logs import Logger

_STREAMS = (0, 1, 2)


class Hangup:
    """Calls *reload* at each SIGHUP; stops the reactor when the process's terminal was closed."""

    _log = Logger()

    def __init__(self, reactor: Any, reload: Callable[[], object]) -> None:
        self._reactor = reactor
        self._reload = reload
        self._previous: Any = None
        self._terminal: int | None = None

    def start(self) -> None:
        """Handle the signal from now on."""
        self._previous = signal.signal(signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._taken))
        # nohup lets a process outlive its terminal.
        outlives = self._previous == signal.SIG_IGN
        self._terminal = None if outlives else next(filter(os.isatty, _STREAMS), None)

    def stop(self) -> None:
        signal.signal(signal.SIGHUP, self._previous)

    def _taken(self) -> None:
        # A terminal that was closed is not a terminal any more.
        if self._terminal is not None and not os.isatty(self._terminal):
            self._reactor.stop()
        else:
            self._log.info("SIGHUP received: reloading certificates")
            self._reload()
