"""``service-registry-wrapper``: runs a command as a registered service. Its options, and the order of events."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from ..._version import __version__
from ...client import Client
from ...clock import useMonotonic
from ...coordination import Held, Lock
from ...errors import ServiceRegistryError
from ...registration import REGISTERED_AT
from ...util.deferred import cancelWith, returnsDeferred
from ...util.fields import ID_RULE, parseCount, parseDuration, parseMetadata, parseTags
from .. import console
from ..console import settingsOf, undecodable
from ..twistd import Option, TableOptions, parseHeartbeatTimeout, parseServiceId
from . import process
from .checks import Checker, makeProbe
from .registration import NotRegistered, WrapperRegistration, tokenFileOf

_NAME = "service-registry-wrapper"

#: The exit code of --abort-on-failure.
ABORTED = 100
#: Seconds until another host can run the command of --only-leader when this one was lost.
LOCK_TIMEOUT = 15

# Seconds that a request may take. Heartbeats have deadlines of their own.
_TIMEOUT = 5.0
# Without --abort-on-failure the command waits at most so many seconds for its registration.
_LONGEST_HOLD = 3.0
# Seconds from SIGTERM to SIGKILL for a command that must not go on unregistered.
_GRACE = 10.0
# The same for a command whose lock was lost: less than the tenth of the timeout that is left.
_LOCK_GRACE = 0.05 * LOCK_TIMEOUT
# Seconds that the end of the process may take: a name server that does not answer can hold a thread.
_LONGEST_END = 1.0

# The signals that end the wrapper before the command has started.
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP})

_HEARTBEATS = "txserviceregistry.heartbeats."
_HEALTH_CHECKS = f"{_HEARTBEATS}attempts.HealthCheck"

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


_seconds = partial(parseDuration, least="0.001s", most="1d")


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

    def opt_heartbeat_timeout(self, seconds: str) -> None:
        """Another name of --interval."""
        self.onCommandLine["interval"] = [seconds]

    def opt_session_metadata(self, text: str) -> None:
        """Ignored: services have no sessions any more."""
        tell("--session-metadata is ignored, because services have no sessions: use --metadata")

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


def tell(text: str) -> None:
    """Write a line to stderr, if it can be written: the command goes on in any case."""
    console.tell(f"{_NAME}: {text}")


@attrs.define(eq=False, repr=False, slots=False)
class Wrapper:
    """One command, from before its start to after its end."""

    _clock: Any
    _options: Options
    _start: Callable[[], process.Child]
    _connect: Callable[[], Client]
    _tokenFile: Path | None = None
    _tell: Callable[[str], None] = tell
    # Called when the tries before the start are over, and their result has been told.
    _held: Callable[[], None] = lambda: None
    _holding: Deferred[None] | None = attrs.field(init=False, default=None)
    _interruption: int = attrs.field(init=False, default=0)
    _child: process.Child | None = attrs.field(init=False, default=None)
    _aborting: bool = attrs.field(init=False, default=False)
    _passedOn: set[int] = attrs.field(init=False, factory=set)
    _checker: Checker | None = attrs.field(init=False)
    # Ends the lock and its client.
    _exits: AsyncExitStack = attrs.field(init=False, factory=AsyncExitStack)
    _leadership: Held | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        clock, options, self._checker = self._clock, self._options, None
        if options["check"] is not None:
            probe = makeProbe(clock, options["check"], options["id"])
            self._checker = Checker(options, probe, clock, self._register)
        self._registration = WrapperRegistration(
            clock, options, self._connect, self._lost, self._checker, self._tokenFile
        )

    @returnsDeferred
    async def run(self) -> int:
        """Register the service, start the command, and wait for its end; fires with the exit code."""
        async with self._exits:
            try:
                return await self._run()
            finally:
                self._registration.abandon()

    async def _run(self) -> int:
        try:
            process.findProgram(self._options.command[0])
            self._holding = self._hold()
            await self._holding
            self._held()
            if self._leadership is not None and not self._leadership.isValid:
                return ABORTED
            child = self._child = self._start()
        except CancelledError:
            return 128 + self._interruption
        except process.CantStart as error:
            self._tell(str(error))
            await self._registration.leave()
            return error.exitCode
        except (NotRegistered, ServiceRegistryError) as error:
            option = "--abort-on-failure" if isinstance(error, NotRegistered) else "--only-leader"
            self._tell(f"{error}. The command is not started ({option})")
            return ABORTED
        if self._checker is not None:
            self._checker.start()
        status = await child.ended
        self._registration.stopDraining()
        if self._checker is not None:
            self._checker.stop()
        if self._aborting:
            return ABORTED
        code = process.exitCode(status)
        if self._options["deregister"] and (code == 0 or code - 128 in self._passedOn):
            await self._registration.leave()
        return code

    def signalled(self, number: int, typed: bool) -> None:
        """Handle a signal, which the terminal has sent to the whole process group if it was *typed*."""
        child = self._child
        if number == signal.SIGCHLD:
            process.reap()
        elif child is None:
            if number in _ENDING and self._holding is not None:
                self._interruption = number
                self._holding.cancel()
        elif number == signal.SIGTERM and (drained := self._registration.drain(self._tell)) is not None:
            drained.addCallback(lambda _: self._passOn(child, number, typed))
        else:
            self._passOn(child, number, typed)

    def _passOn(self, child: process.Child, number: int, typed: bool) -> None:
        if not (typed and child.sharesTerminalSignals):
            child.signal(number)
        self._passedOn.add(number)
        if number == signal.SIGTSTP:
            process.stopUntilContinued(child)

    # -- the registration

    @returnsDeferred
    async def _hold(self) -> None:
        """Register the service before the command starts, as far as that is possible."""
        if self._options["only-leader"] is not None:
            client = await self._exits.enter_async_context(self._connect())
            lock = Lock(client, self._options["only-leader"], LOCK_TIMEOUT)
            self._leadership = await self._exits.enter_async_context(await lock.acquire())
            # Another host may run the command soon.
            self._leadership.lost.addCallback(self._abort, "leadership", "--only-leader", _LOCK_GRACE)
        abort = self._options["abort-on-failure"]
        if self._checker is not None:
            # The check can't pass before the command runs.
            if abort:
                await self._registration.reach()
            return
        tried = self._registration.begin()
        if abort:
            await tried
            return
        try:
            await tried.addTimeout(_LONGEST_HOLD, self._clock)
        except (NotRegistered, TimeoutError) as error:
            late = self._registration.reason or f"The registry did not answer within {_LONGEST_HOLD:g} s"
            reason = late if isinstance(error, TimeoutError) else str(error)
            self._tell(f"{reason}. The command is started unregistered; registration is retried")

    @returnsDeferred
    async def _register(self) -> None:
        try:
            await self._registration.begin()
        except NotRegistered as error:
            if self._options["abort-on-failure"]:
                self._lost(str(error))
            else:
                self._tell(f"{error}. Registration is retried")

    def _lost(self, reason: str) -> None:
        if self._options["abort-on-failure"]:
            self._abort(reason, "registration", "--abort-on-failure", _GRACE)

    def _abort(self, reason: str, lost: str, option: str, grace: float) -> None:
        """End the command, which gets SIGKILL after *grace* seconds."""
        child = self._child
        if child is None:
            return
        self._tell(f"{lost} lost: {reason}. The command is ended ({option})")
        self._aborting = True
        self._registration.abandon()
        child.signal(signal.SIGTERM)
        cancelWith(self._clock.callLater(grace, child.signal, signal.SIGKILL), child.ended)


@implementer(ILogObserver)
@attrs.define(eq=False)
class LogLines:
    """Writes changes of the registration, and errors, as lines."""

    _write: Callable[[str], None]
    isStarting: bool = True
    isEnding: bool = False

    def startIsOver(self) -> None:
        self.isStarting = False

    def __call__(self, event: LogEvent) -> None:
        level, namespace = event.get("log_level", LogLevel.info), str(event.get("log_namespace", ""))
        if not (
            self.isEnding
            or event.get("log_format") == REGISTERED_AT
            or level < (LogLevel.info if namespace.startswith("txserviceregistry.") else LogLevel.warn)
            # The wrapper tells itself why the tries at the start have failed.
            or (self.isStarting and level >= LogLevel.warn and namespace.startswith(_HEARTBEATS))
            # The Checker has logged the reason before.
            or namespace.startswith(_HEALTH_CHECKS)
        ):
            failure: Failure | None = event.get("log_failure")
            self._write(f"{formatEvent(event)}{'' if failure is None else f': {failure.value!r}'}")


def main() -> int:
    return console.runConsole(_NAME, _run)


def _run() -> int:
    options = Options()
    try:
        options.parseOptions()
    except usage.UsageError as error:
        raise console.UsageError(f"{error} (see: {_NAME} --help)") from None
    signals = process.Signals()

    from twisted.internet import reactor as installed

    reactor: Any = installed
    useMonotonic(reactor)
    lines, given = LogLines(tell), {"username": options["username"], "apiKey": options["api-key"]}
    globalLogBeginner.beginLoggingTo([lines], redirectStandardIO=False, discardBuffer=True)
    environment = {**process.startEnvironment(), b"SERVICE_REGISTRY_ID": os.fsencode(options["id"])}
    if environment.get(b"NOTIFY_SOCKET"):
        process.NotificationRelay(reactor, environment)
    wrapper = Wrapper(
        reactor,
        options,
        start=lambda: process.startChild(options.command, environment, signals.kept),
        connect=lambda: Client(reactor=reactor, settings=settingsOf(given), timeout=_TIMEOUT),
        tokenFile=tokenFileOf(options["id"], tell),
        held=lines.startIsOver,
    )
    codes: list[int] = []

    @returnsDeferred
    async def run() -> None:
        signals.start(reactor, wrapper.signalled)
        try:
            codes.append(await wrapper.run())
        except Exception as error:
            tell(f"internal error: {error!r}")
            codes.append(1)
        # Requests that are under way fail now.
        lines.isEnding = True
        late = Timer(_LONGEST_END, os._exit, codes)
        late.daemon = True
        late.start()
        reactor.stop()

    reactor.callWhenRunning(run)
    reactor.run(installSignalHandlers=False)
    return codes[0]
