"""
The twistd commands as processes: options, output, logs, signals, the service manager, and the end of a failed start.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TextIO

from twisted.internet.task import LoopingCall
from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent
from twisted.python import usage
from twisted.python.logfile import LogFile

from ..registry.http.requestlog import timeText
from ..util.fields import escaped
from ..util.logs import Logger
from .console import printable

_log = Logger()

# The objects of a few hundred requests: a few megabytes. A collection of so many takes 2 ms.
_NEW_OBJECTS = 20_000
# How often the watchdog is notified within its time.
_SIGNS = 3


def collectSeldom() -> None:
    """
    Run Python's garbage collection less often in a process that serves requests: it would take a tenth of the time, and
    a full collection with thousands of services delays all responses by tens of milliseconds.
    """
    young, *others = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *others)


# -- output


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


def jsonLine(event: LogEvent) -> str | None:
    """An event of the log as JSON on a line; ``None`` for an event without a text."""
    message = formatEvent(event)
    if not message:
        return None
    found: dict[str, Any] = {
        "time": timeText(event["log_time"]),
        "level": event.get("log_level", LogLevel.info).name,
        "logger": event.get("log_namespace"),
        "message": message,
    }
    if event.get("log_failure") is not None:
        found["traceback"] = event["log_failure"].getTraceback()
    return json.dumps(found) + "\n"


def jsonObserver(twistd: Mapping[str, Any] | None) -> FileLogObserver:
    """Writes the log in JSON to where twistd, with these options, would write it."""
    options = twistd or {"nodaemon": True}
    if options.get("syslog"):
        raise usage.UsageError("--log-format json can't be used with --syslog")
    name = options.get("logfile")
    if name == "-" or (not name and options.get("nodaemon")):
        return FileLogObserver(sys.stdout, jsonLine)
    return FileLogObserver(LogFile.fromFullPath(name or "twistd.log"), jsonLine)


# -- signals, and the service manager


def onHangup(reactor: Any, reload: Callable[[], object]) -> Callable[[], object]:
    """
    Call *reload* at each SIGHUP. It stops the reactor when the process's terminal was closed.

    :return: a function that ends this.
    """

    def received() -> None:
        # A terminal that was closed is not a terminal any more.
        if terminal is not None and not os.isatty(terminal):
            reactor.stop()
        else:
            _log.info("SIGHUP received: reloading certificates")
            reload()

    previous = signal.signal(signal.SIGHUP, lambda number, frame: reactor.callFromThread(received))
    # nohup lets a process outlive its terminal.
    terminal = None if previous == signal.SIG_IGN else next(filter(os.isatty, (0, 1, 2)), None)
    return lambda: signal.signal(signal.SIGHUP, previous)


class Notifier:
    """
    Sends states to a service manager such as systemd that has started the process (sd_notify), if there is one.

    :ivar watchdogSeconds: the time within which the service manager expects ``WATCHDOG=1``; ``None`` if it does not.
    """

    _log = Logger()

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        isOurs = microseconds.isdecimal() and int(microseconds) > 0 and pid == str(os.getpid())
        self.watchdogSeconds = int(microseconds) / 1e6 if isOurs and address else None
        self._loop: LoopingCall | None = None

    def send(self, *states: bytes) -> None:
        """Send states such as ``READY=1``. A failure is logged."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(b"\n".join(states), self._address)
        except OSError as error:
            self._log.warn("Service manager not notified: {reason}", reason=error.strerror)

    def watch(self, reactor: Any, isWorking: Callable[[], Awaitable[bool]]) -> None:
        """Notify the watchdog regularly, if there is one, while the result of *isWorking* is true."""

        async def check() -> None:
            if await isWorking() and loop.running:
                self.send(b"WATCHDOG=1")

        if self.watchdogSeconds is not None:
            loop = self._loop = LoopingCall(check)
            loop.clock = reactor
            ended = loop.start(self.watchdogSeconds / _SIGNS)
            ended.addErrback(lambda failure: self._log.failure("The watchdog ended", failure))

    def stop(self) -> None:
        """End that."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()
