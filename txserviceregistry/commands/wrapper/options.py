"""The options of ``service-registry-wrapper``, which end at the first word that is not an option."""

from __future__ import annotations

import getopt
import re
import sys
from typing import Any

from twisted.internet.defer import succeed
from twisted.python import usage

from ..._version import __version__
from ...util.fields import HEARTBEAT_TIMEOUTS, ID_RULE, SERVICE_ID
from ...util.parsing import parseCount, parseMetadata, parseTags
from ..console import undecodable
from .checks import makeProbe

_EXAMPLE = """
Example:
  service-registry-wrapper --id=my-host1-api0 --tags=api,www \\
      --metadata=port=8000,host=localhost --interval=20 \\
      --check=tcp:8000 /opt/my-app/bin/api --port=8000

Exit codes: the command's own, 128 + N after signal N; 127 command not found,
126 it can't be run, 100 --abort-on-failure or --only-leader, 2 wrong usage.
"""

_CHECK = (
    "Health check: register when it first passes, and send heartbeats only while it passes. tcp:PORT, tcp:HOST:PORT, "
    "an http or https URL, or exec:COMMAND for a shell command."
)
_ONLY_LEADER = "Run the command on one host at a time: while this wrapper holds the lock of this name."
_LONGEST_DRAIN = 86_400


class Options(usage.Options):
    """
    The command line: an attribute for each option, *command* with the program and its arguments, and

    :ivar credentials: the user's name and API key, if they are given, by the names of the settings.
    :ivar warnings: warnings about options without effect.
    """

    synopsis = "Usage: service-registry-wrapper --id=ID [options] [--] COMMAND [ARGUMENT …]"
    longdesc = (
        "Runs COMMAND, and keeps it registered in the service registry as long as it runs. The command begins at the "
        "first word that is not an option. SERVICE_REGISTRY_ID in its environment is the service's id."
    )
    optParameters = [
        ["id", "i", None, f"The service's id: {ID_RULE}"],
        ["username", None, None, "The user's name (default: from the settings)."],
        ["api-key", None, None, "The user's API key. Other users can see it: prefer RAXSR_API_KEY or ~/.raxrc."],
        ["interval", None, "30", "Heartbeat timeout: seconds, 3 to 120, without a heartbeat until expiration."],
        ["retries", None, "2", "How often to retry a failed registration before the command starts."],
        ["check", None, None, _CHECK],
        ["check-interval", None, "5", "Seconds from one check to the next."],
        ["check-timeout", None, "2", "Seconds that a check may take."],
        [
            "drain",
            None,
            None,
            "Seconds that the command still serves after SIGTERM, while the service gets no new work.",
        ],
        ["only-leader", None, None, _ONLY_LEADER],
        ["rise", None, "1", "How many checks in a row must succeed until the health check passes."],
        ["fall", None, "1", "How many checks in a row must fail until the health check fails."],
    ]
    optFlags = [
        ["abort-on-failure", None, "Don't start the command unregistered; end it when its registration is lost."],
        ["deregister", None, "Deregister when the command ends with 0, or by a signal that was forwarded."],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # Twisted has no types there
        self.tags: list[str] = []
        self.metadata: dict[str, str] = {}
        self.command: list[str] = []
        self.warnings: list[str] = []

    def opt_heartbeat_timeout(self, seconds: str) -> None:
        """Another name of --interval."""
        self["interval"] = seconds

    def opt_session_metadata(self, text: str) -> None:
        """Ignored: services have no sessions any more."""
        self.warnings.append("--session-metadata is ignored, because services have no sessions: use --metadata")

    def opt_tags(self, text: str) -> None:
        """Tags, separated by commas; may be given several times."""
        self.tags += [tag for tag in parseTags(text) if tag not in self.tags]

    opt_t = opt_tags

    def opt_metadata(self, text: str) -> None:
        """key=value pairs, separated by commas (a comma in a value is written \\,); may be given several times."""
        try:
            self.metadata.update(parseMetadata(text))
        except ValueError as error:
            raise usage.UsageError(f"--metadata: {error}")

    opt_m = opt_metadata

    def opt_version(self) -> None:
        """Show the version."""
        print(f"service-registry-wrapper {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Any = None) -> None:
        words = sys.argv[1:] if options is None else options
        try:
            command = getopt.getopt(words, self.shortOpt, self.longOpt)[1]
        except getopt.error:
            command = []
        # The command's arguments may be in any encoding.
        problem = undecodable(words[: len(words) - len(command)])
        if problem is not None:
            raise usage.UsageError(problem)
        super().parseOptions(words)  # type: ignore[no-untyped-call] # as above

    def getUsage(self, width: int | None = None) -> str:
        return super().getUsage(width) + _EXAMPLE

    def parseArgs(self, *words: str) -> None:
        self.command = list(words)

    def postOptions(self) -> None:
        if self["id"] is None:
            raise usage.UsageError("--id is required")
        if not SERVICE_ID.fullmatch(self["id"]):
            raise usage.UsageError(f"invalid --id {self['id']!r}: use {ID_RULE}")
        self.serviceId: str = self["id"]
        self.interval = int(self._number("interval"))
        if self["interval"] != str(self.interval) or self.interval not in HEARTBEAT_TIMEOUTS:
            raise usage.UsageError("--interval (--heartbeat-timeout) must be a whole number of seconds from 3 to 120")
        for option in ("username", "api-key"):
            if self[option] == "":
                raise usage.UsageError(f"--{option}: the value is empty")
        self.credentials: dict[str, str | None] = {"username": self["username"], "apiKey": self["api-key"]}
        self.retries = int(self._number("retries"))
        if self["retries"] != str(self.retries):
            raise usage.UsageError("--retries must be a whole number")
        self.drain = None if self["drain"] is None else self._number("drain")
        if self.drain is not None and not 0 < self.drain <= _LONGEST_DRAIN:
            raise usage.UsageError(f"--drain must be more than 0 and at most {_LONGEST_DRAIN} seconds")
        self.check: str | None = self["check"]
        self.checkInterval, self.checkTimeout = self._number("check-interval"), self._number("check-timeout")
        if not self.checkInterval or not self.checkTimeout:
            raise usage.UsageError("--check-interval and --check-timeout must be more than 0 seconds")
        try:
            self.rise, self.fall = parseCount(self["rise"], 1), parseCount(self["fall"], 1)
        except ValueError as error:
            raise usage.UsageError(f"--rise and --fall: {error}")
        if self.check is not None:
            from twisted.internet import reactor

            try:
                makeProbe(reactor, self.check, lambda command: lambda: succeed(True))
            except ValueError as error:
                raise usage.UsageError(f"--check: {error}")
        if not self.command:
            raise usage.UsageError("a command to run is required")

    def _number(self, option: str) -> float:
        text: str = self[option]
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
            raise usage.UsageError(f"--{option}: {text!r} is not a number")
        return float(text)
