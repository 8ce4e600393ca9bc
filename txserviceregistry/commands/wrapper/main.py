"""``service-registry-wrapper``: runs a command as a registered service. Here is the order of events."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import implementer

from ...client import Client
from ...clock import useMonotonic
from ...coordination import Held, Lock
from ...errors import ServiceRegistryError
from ...registration import REGISTERED_AT
from ...util.deferred import cancelWith, returnsDeferred
from .. import console
from ..console import settingsOf
from . import process
from .checks import Checker, makeProbe
from .options import Options
from .registration import Drain, NotRegistered, WrapperRegistration, tokenFileOf

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

_OURS = "txserviceregistry."
_HEARTBEATS = f"{_OURS}heartbeats."
_HEALTH_CHECKS = f"{_HEARTBEATS}healthcheck."


def tell(text: str) -> None:
    """Write a line to stderr, if it can be written: the command goes on in any case."""
    console.tell(f"{_NAME}: {text}")


@attrs.define(eq=False, slots=False)
class Wrapper:
    """
    One command, from before its start to after its end.

    :param held: called when the tries before the start are over, and their result has been told.
    """

    _clock: Any
    _options: Options
    _start: Callable[[], process.Child]
    _connect: Callable[[], Client]
    _tokenFile: Path | None = None
    _tell: Callable[[str], None] = tell
    _held: Callable[[], None] = lambda: None
    _holding: Deferred[None] | None = attrs.field(init=False, default=None)
    _interruption: int = attrs.field(init=False, default=0)
    _child: process.Child | None = attrs.field(init=False, default=None)
    _aborting: bool = attrs.field(init=False, default=False)
    _passedOn: set[int] = attrs.field(init=False, factory=set)
    _leader: Client | None = attrs.field(init=False, default=None)
    _leadership: Held | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        clock, options = self._clock, self._options
        self._checker: Checker | None = None
        if options["check"] is not None:
            probe = makeProbe(clock, options["check"], options["id"])
            self._checker = Checker(options, probe, clock, self._register)
        registration = self._registration = WrapperRegistration(
            clock, options, self._connect, self._lost, self._checker, self._tokenFile
        )
        self._drain = None if options["drain"] is None else Drain(clock, registration, options, self._tell)

    @returnsDeferred
    async def run(self) -> int:
        """Register the service, start the command, and wait for its end; fires with the exit code."""
        try:
            return await self._run()
        finally:
            if self._leadership is not None:
                await self._leadership.release()
            if self._leader is not None:
                await self._leader.close()

    async def _run(self) -> int:
        try:
            process.findProgram(self._options.command[0])
            self._holding = self._hold()
            await self._holding
            self._held()
            if self._leadership is not None and not self._leadership.isValid:
                self._registration.abandon()
                return ABORTED
            child = self._child = self._start()
        except CancelledError:
            self._registration.abandon()
            return 128 + self._interruption
        except process.CantStart as error:
            self._tell(str(error))
            await self._registration.leave()
            return error.exitCode
        except NotRegistered as error:
            self._tell(f"{error}. The command is not started (--abort-on-failure)")
            self._registration.abandon()
            return ABORTED
        except ServiceRegistryError as error:
            self._tell(f"{error}. The command is not started (--only-leader)")
            return ABORTED
        if self._checker is not None:
            self._checker.start()
        status = await child.ended
        if self._drain is not None:
            self._drain.stop()
        if self._checker is not None:
            self._checker.stop()
        if self._aborting:
            return ABORTED
        code = process.exitCode(status)
        if self._options["deregister"] and (code == 0 or code - 128 in self._passedOn):
            await self._registration.leave()
        else:
            self._registration.abandon()
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
        elif number == signal.SIGTERM and self._drain is not None and (drained := self._drain.begin()) is not None:
            drained.addCallback(lambda _: self._passOn(child, number, typed))
        else:
            self._passOn(child, number, typed)

    def _passOn(self, child: process.Child, number: int, typed: bool) -> None:
        if not (typed and child.sharesTerminalSignals):
            child.signal(number)
        self._passedOn.add(number)
        if number == signal.SIGTSTP:
            process.stopUntilContinued()

    # -- the registration

    @returnsDeferred
    async def _hold(self) -> None:
        """Register the service before the command starts, as far as that is possible."""
        if self._options["only-leader"] is not None:
            self._leader = self._connect()
            lock = Lock(self._leader, self._options["only-leader"], LOCK_TIMEOUT)
            self._leadership = await lock.acquire()
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
            isLate = isinstance(error, TimeoutError)
            reason = f"The registry did not answer within {_LONGEST_HOLD:g} s" if isLate else str(error)
            self._tell(f"{reason}. The command is started unregistered; registration is retried")

    def _register(self) -> None:
        self._registration.begin().addErrback(self._notRegistered)

    def _notRegistered(self, failure: Failure) -> None:
        failure.trap(NotRegistered)
        reason = failure.getErrorMessage()
        if self._options["abort-on-failure"]:
            self._lost(reason)
        else:
            self._tell(f"{reason}. Registration is retried")

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
class LogLines:
    """Writes changes of the registration, and errors, as lines."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.isStarting = True
        self.isEnding = False
        self._write = write

    def startIsOver(self) -> None:
        self.isStarting = False

    def __call__(self, event: LogEvent) -> None:
        level, namespace = event.get("log_level", LogLevel.info), str(event.get("log_namespace", ""))
        if not (
            self.isEnding
            or event.get("log_format") == REGISTERED_AT
            or level < (LogLevel.info if namespace.startswith(_OURS) else LogLevel.warn)
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
    for warning in options.warnings:
        tell(warning)
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

    def end(code: int) -> None:
        codes.append(code)
        # Requests that are under way fail now.
        lines.isEnding = True
        late = Timer(_LONGEST_END, os._exit, [code])
        late.daemon = True
        late.start()
        reactor.stop()

    def run() -> None:
        signals.start(reactor, wrapper.signalled)
        wrapper.run().addErrback(failed).addCallback(end)

    def failed(failure: Failure) -> int:
        tell(f"internal error: {failure.value!r}")
        return 1

    reactor.callWhenRunning(run)
    reactor.run(installSignalHandlers=False)
    return codes[0]
