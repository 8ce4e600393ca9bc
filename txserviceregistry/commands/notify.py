"""The service manager that has started a process, as systemd does: readiness, states and the watchdog (sd_notify)."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.task import LoopingCall

from ..util.logs import Logger

# How often the watchdog is notified within its time.
_SIGNS = 3


class Notifier:
    """
    Sends states to the service manager; without one, nothing happens.

    :param environ: the process's environment.
    :ivar watchdogSeconds: the time within which the service manager expects ``WATCHDOG=1``; ``None`` if it does not.
    """

    _log = Logger()

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        isOurs = microseconds.isdecimal() and int(microseconds) > 0 and pid == str(os.getpid())
        self.watchdogSeconds = int(microseconds) / 1e6 if isOurs and address else None

    def send(self, *states: str | bytes) -> None:
        """Send states such as ``READY=1``. A failure is logged."""
        if not self._address:
            return
        data = b"\n".join(state.encode() if isinstance(state, str) else state for state in states)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(data, self._address)
        except OSError as error:
            self._log.warn("Service manager not notified: {reason}", reason=error.strerror)


class Watchdog:
    """Tells the service manager regularly that the process works, while the result of *isWorking* is true."""

    _log = Logger()

    def __init__(self, reactor: Any, notifier: Notifier, isWorking: Callable[[], Awaitable[bool]]) -> None:
        self._notifier = notifier
        self._isWorking = isWorking
        self._loop = LoopingCall(self._check)
        self._loop.clock = reactor

    def start(self) -> None:
        """Begin, if the service manager expects it."""
        if self._notifier.watchdogSeconds is not None:
            self._loop.start(self._notifier.watchdogSeconds / _SIGNS).addErrback(
                lambda failure: self._log.failure("The watchdog ended", failure)
            )

    def stop(self) -> None:
        if self._loop.running:
            self._loop.stop()

    async def _check(self) -> None:
        if await self._isWorking() and self._loop.running:
            self._notifier.send("WATCHDOG=1")
