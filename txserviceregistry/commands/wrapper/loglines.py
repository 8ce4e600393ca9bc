"""The lines of the log that the wrapper writes to stderr."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from ...heartbeats.attempts import HEARTBEAT_FAILED
from ...registration import REGISTERED_AT

_OURS = "txserviceregistry."
_HEARTBEATS = f"{_OURS}heartbeats."
_HEALTH_CHECKS = f"{_HEARTBEATS}healthcheck."


@implementer(ILogObserver)
class LogLines:
    """
    Writes changes of the registration, and errors. It leaves out what the wrapper has told itself.

    :param write: writes a line.
    :ivar isEnding: whether the wrapper ends, so that requests under way fail.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.isEnding = False
        self._write = write
        self._isStarting = True
        self._isRegistered = False
        self._told = ""

    def tell(self, text: str) -> None:
        self._told = text
        self._write(text)

    def startIsOver(self) -> None:
        """The wrapper has told the result of the tries at the start."""
        self._isStarting = False

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level", LogLevel.info)
        namespace = str(event.get("log_namespace", ""))
        format = event.get("log_format")
        if format == REGISTERED_AT:
            self._isRegistered = True
            return
        if self.isEnding or level < (LogLevel.info if namespace.startswith(_OURS) else LogLevel.warn):
            return
        if self._isStarting and level >= LogLevel.warn and namespace.startswith(_HEARTBEATS):
            return
        if format == HEARTBEAT_FAILED and not self._isRegistered and event["reason"] in self._told:
            return
        if namespace.startswith(_HEALTH_CHECKS):
            # The Checker has logged the reason before.
            return
        failure: Failure | None = event.get("log_failure")
        reason = "" if failure is None else f": {failure.value!r}"
        self._write(f"{formatEvent(event)}{reason}")
