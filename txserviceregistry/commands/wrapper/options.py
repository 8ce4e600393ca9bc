"""The options of ``service-registry-wrapper``, which end at the first word that is not an option."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from twisted.python import usage

from ..._version import __version__
from ...util.fields import ID_RULE
from ...util.parsing import parseCount, parseDuration, parseMetadata, parseTags
from ..console import undecodable
from ..options import Option, TableOptions, parseHeartbeatTimeout, parseServiceId
from .checks import makeProbe

_EXAMPLE = """
Example:
  service-registry-wrapper --id=my-host1-api0 --tags=api,www \\
      --metadata=port=8000,host=localhost --interval=20 \\
      --check=tcp:8000 /opt/my-app/bin/api --port=8000

Exit codes: the command's own, 128 + N after signal N; 127 command not found,
126 it can't be run, 100 --abort-on-failure or --only-leader, 2 wrong usage.
"""

_KEY = "The user's API key. Other users can see it: prefer RAXSR_API_KEY or ~/.raxrc."
_METADATA = "key=value pairs, separated by commas (a comma in a value is written \\,); may be given several times."
_INTERVAL = "Heartbeat timeout: seconds, 3 to 120, without a heartbeat until expiration."
_CHECK = (
    "Health check: register when it first passes, and send heartbeats only while it passes. tcp:PORT, tcp:HOST:PORT, "
    "an http or https URL, or exec:COMMAND for a shell command."
)
_DRAIN = "Seconds that the command still serves after SIGTERM, while the service gets no new work."
_ONLY_LEADER = "Run the command on one host at a time: while this wrapper holds the lock of this name."
_RISE = "How many checks in a row must succeed until the health check passes."
_FALL = "How many checks in a row must fail until the health check fails."


def _seconds(text: str) -> float:
    seconds = parseDuration(text, most="1d")
    if not seconds:
        raise ValueError(f"{text!r} is not more than 0 seconds")
    return seconds


def _check(text: str) -> str:
    from twisted.internet import reactor

    makeProbe(reactor, text)
    return text


class Options(TableOptions):
    """The command line, with the program and its arguments in ``command``."""

    synopsis = "Usage: service-registry-wrapper --id=ID [options] [--] COMMAND [ARGUMENT …]"
    longdesc = (
        "Runs COMMAND, and keeps it registered in the service registry as long as it runs. The command begins at the "
        "first word that is not an option. SERVICE_REGISTRY_ID in its environment is the service's id."
    )
    table = (
        Option("id", "i", None, f"The service's id: {ID_RULE}", parseServiceId),
        Option("tags", "t", None, "Tags, separated by commas; may be given several times.", parseTags, True),
        Option("metadata", "m", None, _METADATA, parseMetadata, True),
        Option("username", None, None, "The user's name (default: from the settings)."),
        Option("api-key", None, None, _KEY),
        Option("interval", None, "30", _INTERVAL, parseHeartbeatTimeout),
        Option("retries", None, "2", "How often to retry a failed registration before the command starts.", parseCount),
        Option("check", None, None, _CHECK, _check),
        Option("check-interval", None, "5", "Seconds from one check to the next.", _seconds),
        Option("check-timeout", None, "2", "Seconds that a check may take.", _seconds),
        Option("rise", None, "1", _RISE, partial(parseCount, least=1)),
        Option("fall", None, "1", _FALL, partial(parseCount, least=1)),
        Option("drain", None, None, _DRAIN, _seconds),
        Option("only-leader", None, None, _ONLY_LEADER),
    )
    optFlags = [
        ["abort-on-failure", None, "Don't start the command unregistered; end it when its registration is lost."],
        ["deregister", None, "Deregister when the command ends with 0, or by a signal that was forwarded."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self.command: list[str] = []
        self.warnings: list[str] = []

    def opt_heartbeat_timeout(self, seconds: str) -> None:
        """Another name of --interval."""
        self.onCommandLine["interval"] = [seconds]

    def opt_session_metadata(self, text: str) -> None:
        """Ignored: services have no sessions any more."""
        self.warnings.append("--session-metadata is ignored, because services have no sessions: use --metadata")

    def opt_version(self) -> None:
        """Show the version."""
        print(f"service-registry-wrapper {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        self._words = sys.argv[1:] if options is None else options
        super().parseOptions(self._words)  # type: ignore[no-untyped-call] # Twisted has no types there

    def getUsage(self, width: int | None = None) -> str:
        return super().getUsage(width) + _EXAMPLE

    def parseArgs(self, *words: str) -> None:
        self.command = list(words)
        # The command's arguments may be in any encoding.
        problem = undecodable(self._words[: len(self._words) - len(words)])
        if problem is not None:
            raise usage.UsageError(problem)

    def postOptions(self) -> None:
        super().postOptions()
        self["tags"] = list(dict.fromkeys(tag for tags in self["tags"] for tag in tags))
        self["metadata"] = {key: value for pairs in self["metadata"] for key, value in pairs.items()}
        if self["id"] is None:
            raise usage.UsageError("--id is required")
        if not self.command:
            raise usage.UsageError("a command to run is required")
