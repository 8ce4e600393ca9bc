"""
The common parts of the twistd commands: options in a table, for the command line and for a file (``--config``); output,
logs, signals, the service manager, and the end of a failed start.
"""

from __future__ import annotations

import atexit
import configparser
import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import attrs
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import FileLogObserver, LogEvent, LogLevel, formatEvent
from twisted.python import usage
from twisted.python.logfile import LogFile

from .._version import __version__
from ..clock import useMonotonic
from ..errors import InvalidSettings
from ..registry.http.requestlog import timeText
from ..util.fields import HEARTBEAT_TIMEOUTS, ID_RULE, SERVICE_ID, escaped
from ..util.logs import Logger
from .console import didYouMean, dropOutput, holdDescriptors, printable, show, undecodable, whyNotWritten

_log = Logger()

# The objects of a few hundred requests: a few megabytes. A collection of so many takes 2 ms.
_NEW_OBJECTS = 20_000
# How often the watchdog is notified within its time.
_SIGNS = 3


@attrs.frozen
class Option:
    """
    An option with a value: *parse* makes it of its text, or raises ``ValueError`` with a line that has the text and the
    problem. The value of a repeatable one is a list.
    """

    name: str
    short: str | None
    default: str | None
    help: str
    parse: Callable[[str], Any] = str
    isRepeatable: bool = False

    @property
    def defaultValue(self) -> Any:
        if self.default is None:
            return [] if self.isRepeatable else None
        return self.value([self.default], f"--{self.name}")

    def value(self, texts: Sequence[str], where: str) -> Any:
        """The value of the texts that are given, *where* in the words of an error."""
        if not texts or "" in texts:
            raise usage.UsageError(f"{where}: the value is empty")
        if len(texts) > 1 and not self.isRepeatable:
            raise usage.UsageError(f"{where}: only one value is allowed")
        try:
            values = [self.parse(text) for text in texts]
        except ValueError as error:
            raise usage.UsageError(f"{where}: {error}")
        return values if self.isRepeatable else values[0]


def oneOf(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"{text!r} is not one of {', '.join(words)}")
        return text

    return parse


def parseServiceId(text: str) -> str:
    if not SERVICE_ID.fullmatch(text):
        raise ValueError(f"invalid id {text!r}: use {ID_RULE}")
    return text


def parseHeartbeatTimeout(text: str) -> int:
    if not text.isdecimal() or int(text) not in HEARTBEAT_TIMEOUTS:
        raise ValueError(f"{text!r} is not a whole number of seconds from 3 to 120")
    return int(text)


class TableOptions(usage.Options):
    """Options in a table. After :meth:`postOptions` the values are here by the options' names."""

    #: The program's name, for errors and in a file.
    program = ""
    table: Sequence[Option] = ()
    #: The names of those that were given.
    given: frozenset[str] = frozenset()
    file: str | None = None

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for option in cls.table:
            handler = _handler(option)
            setattr(cls, f"opt_{option.name.replace('-', '_')}", handler)
            if option.short is not None:
                setattr(cls, f"opt_{option.short}", handler)

    def __init__(self) -> None:
        usage.Options.__init__(self)
        # For --help. postOptions sets the values.
        self.defaults.update({option.name: option.default for option in self.table})
        self.onCommandLine: dict[str, list[str]] = {}

    def postOptions(self) -> None:
        inFile = self.readFile()
        self.given = frozenset({*self.onCommandLine, *inFile})
        for option in self.table:
            name = option.name
            if name in self.onCommandLine:
                self[name] = option.value(self.onCommandLine[name], f"--{name}")
            elif name in inFile:
                self[name] = option.value(inFile[name], f"{self.file}: {name}")
            else:
                self[name] = option.defaultValue

    def readFile(self) -> dict[str, list[str]]:
        """The texts of options that are in :attr:`file`."""
        if self.file is None:
            return {}
        try:
            inFile = readConfigFile(self.file, self.program)
        except ValueError as error:
            raise usage.UsageError(str(error))
        names = [option.name for option in self.table]
        for name in inFile:
            if name not in names:
                raise usage.UsageError(f"{self.file}: unknown option {name!r}{didYouMean(name, names)}")
        return inFile


def _handler(option: Option) -> Callable[[TableOptions, str], None]:
    def handler(self: TableOptions, text: str) -> None:
        values = self.onCommandLine.setdefault(option.name, [])
        if not option.isRepeatable:
            values.clear()
        values.append(text)

    handler.__doc__ = option.help
    return handler


class TwistdOptions(TableOptions):
    """Options that may be in a file too. Errors are one line; twistd would print the whole help."""

    def parseOptions(self, options: Any = None) -> None:
        """:raises SystemExit: if they are wrong."""
        holdDescriptors()
        words = sys.argv[1:] if options is None else options
        try:
            problem = undecodable(words)
            if problem is not None:
                raise usage.UsageError(problem)
            super().parseOptions(words)  # type: ignore[no-untyped-call] # Twisted has no types there
        except (usage.UsageError, InvalidSettings) as error:
            line = f"twistd {self.program}: {error} (see: twistd {self.program} --help)"
            raise SystemExit(escaped(line)) from None

    def postOptions(self) -> None:
        super().postOptions()
        path = _logPath(self.parent)
        if path is not None:
            isNew = not os.path.lexists(path)
            try:
                LogFile.fromFullPath(path).close()
                if isNew:
                    # The start may still fail before it has a log.
                    os.unlink(path)
            except OSError as error:
                raise usage.UsageError(f"can't write the log {path}: {error.strerror or error}")

    def opt_help(self) -> None:
        """Display this help and exit."""
        self._show(str(self))

    def opt_version(self) -> None:
        """Display the version and exit."""
        self._show(f"twistd {self.program} {__version__}")

    def _show(self, text: str) -> NoReturn:
        try:
            show(text)
        except OSError as error:
            if sys.stdout is not None:
                dropOutput()
            raise SystemExit(f"twistd {self.program}: can't write the output: {whyNotWritten(error)}") from None
        raise SystemExit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"unexpected argument {rest[0]!r}")

    def opt_config(self, path: str) -> None:
        """File with any of these options: INI, or TOML if it ends in .toml; the command line wins."""
        self.file = path

    opt_c = opt_config


# -- files


def readConfigFile(path: str, section: str) -> dict[str, list[str]]:
    """
    The options of a file, which are in a *section* or in none, each as a list of the texts that a command line would
    have. Several values are lines in an INI file, and an array in a TOML file. ``ValueError`` has the file's name.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"can't read {path}: it is not UTF-8 text") from None
    sections = _toml(path, text, section) if path.endswith(".toml") else _ini(path, text, section)
    for each in sections:
        if each != section:
            raise ValueError(f"{path}: unknown section [{each}]; options belong under [{section}]")
    return sections.get(section, {})


def _ini(path: str, text: str, section: str) -> dict[str, dict[str, list[str]]]:
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # the documented way to keep names as they are
    try:
        try:
            parser.read_string(text, path)
        except configparser.MissingSectionHeaderError:
            parser.read_string(f"[{section}]\n{text}", path)
    except configparser.Error as error:
        raise ValueError(f"{path} is not a valid INI file: {' '.join(error.message.split())}") from None
    return {
        each: {name: [line for line in value.split("\n") if line] for name, value in parser.items(each)}
        for each in parser.sections()
    }


def _toml(path: str, text: str, section: str) -> dict[str, dict[str, list[str]]]:
    try:
        try:
            reader: Any = importlib.import_module("tomllib")
        except ImportError:
            reader = importlib.import_module("tomli")
        content: dict[str, Any] = reader.loads(text)
    except ImportError:
        raise ValueError(f"can't read {path}: before Python 3.11 TOML needs tomli (pip install tomli); INI does not")
    # Both modules raise a subclass of it.
    except ValueError as error:
        raise ValueError(f"{path} is not a valid TOML file: {' '.join(str(error).split())}") from None
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    options = {name: value for name, value in content.items() if name not in tables}
    if options and section in tables:
        raise ValueError(f"{path}: {next(iter(options))} must stand under [{section}], like the others")
    tables = {section: options, **tables}
    return {each: {name: _texts(path, name, value) for name, value in tables[each].items()} for each in tables}


def _texts(path: str, name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, (str, int, float)) for each in values):
        raise ValueError(f"{path}: {name}: must be a string, a number, or an array of them")
    # A boolean is an int in Python, and "true" in the file.
    return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]


# -- output


def say(text: str) -> None:
    """Print *text* so that it can be copied, and not as lines of the log, into which twistd turns what is printed."""
    _print(printable(text), sys.__stdout__)


def _print(text: str, stream: TextIO | None, end: str = "\n") -> None:
    # The process goes on if no reader is left, as with a pipe into `head`.
    with suppress(OSError, ValueError):
        if stream is not None:
            print(text, file=stream, end=end, flush=True)


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


def _logPath(twistd: Mapping[str, Any] | None) -> str | None:
    """The file of the log that twistd, with these options, writes; ``None`` if it writes none."""
    options = twistd or {"nodaemon": True}
    name: str | None = options.get("logfile")
    isElsewhere = options.get("syslog") or options.get("logger") or (not name and options.get("nodaemon"))
    # twistd opens it before it changes to its --rundir.
    return None if isElsewhere or name == "-" else name or "twistd.log"


def jsonObserver(twistd: Mapping[str, Any] | None) -> FileLogObserver:
    """Writes the log in JSON to where twistd, with these options, would write it."""
    if twistd is not None and twistd.get("syslog"):
        raise usage.UsageError("--log-format json can't be used with --syslog")
    path = _logPath(twistd)
    if path is None:
        return FileLogObserver(sys.stdout, jsonLine)
    file = LogFile.fromFullPath(path)

    def rotate(number: int, frame: object) -> None:
        from twisted.internet import reactor

        reactor.callFromThread(file.rotate)  # type: ignore[attr-defined]  # the module is replaced by the reactor

    # As twistd does with a log of its own; else the signal would end the process.
    signal.signal(signal.SIGUSR1, rotate)
    return FileLogObserver(file, jsonLine)


# -- the reactor, garbage, signals, and the service manager


def prepare(reactor: Any) -> None:
    """Let *reactor* count monotonic time, and end once, however many signals come meanwhile."""
    useMonotonic(reactor)
    stop = reactor.stop

    def stopOnce() -> None:
        with suppress(ReactorNotRunning):
            stop()

    reactor.stop = stopOnce


def collectSeldom() -> None:
    """
    Run Python's garbage collection less often in a process that serves requests: it would take a tenth of the time, and
    a full collection with thousands of services delays all responses by tens of milliseconds.
    """
    young, *others = gc.get_threshold()
    if 0 < young < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *others)


def onHangup(reactor: Any, reload: Callable[[], object]) -> Callable[[], object]:
    """
    Call *reload* at each SIGHUP, until the returned function is called. If the process's terminal was closed, SIGHUP
    stops the reactor.
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
    """Sends states to a service manager such as systemd that has started the process (sd_notify), if there is one."""

    _log = Logger()

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", str(os.getpid()))
        isOurs = microseconds.isdecimal() and int(microseconds) > 0 and pid == str(os.getpid())
        #: Within so many seconds the service manager expects ``WATCHDOG=1``; ``None`` if it does not.
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
        if self._loop is not None and self._loop.running:
            self._loop.stop()
