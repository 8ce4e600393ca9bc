"""The operations log in JSON: an object on a line for each event, where twistd's log would be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from twisted.python.usage import UsageError

from ..registry.http.accesslog import timeText

TEXT = "text"
JSON = "json"

_DEFAULT_FILE = "twistd.log"


def jsonLine(event: LogEvent) -> str | None:
    """An event of the log as a line; ``None`` for an event without a text."""
    message = formatEvent(event)
    if not message:
        return None
    level: LogLevel = event.get("log_level", LogLevel.info)
    found: dict[str, Any] = {
        "time": timeText(event["log_time"]),
        "level": level.name,
        "logger": event.get("log_namespace"),
        "message": message,
    }
    failure: Failure | None = event.get("log_failure")
    if failure is not None:
        found["traceback"] = failure.getTraceback()
    return json.dumps(found) + "\n"


def jsonObserver(twistd: Mapping[str, Any] | None) -> FileLogObserver:
    """
    Writes the log to where twistd would write it.

    :param twistd: twistd's own options; ``None`` for the standard output.
    :raises UsageError: if that is syslog.
    """
    options = twistd or {"nodaemon": True}
    if options.get("syslog"):
        raise UsageError("--log-format json can't be used with --syslog")
    name = options.get("logfile")
    if name == "-" or (not name and options.get("nodaemon")):
        return FileLogObserver(sys.stdout, jsonLine)
    return FileLogObserver(LogFile.fromFullPath(name or _DEFAULT_FILE), jsonLine)
