"""Commands: their declaration, the parsers of their arguments, and what one does while it runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import cleandoc, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from ...errors import MalformedResponse, NotFound
from ...util.fields import escaped, parseCount
from ..console import CommandFailed, Parser, UsageError, checkOutput, didYouMean, oneLine, tell, typeOf, useUTF8
from .output import FORMATS, Column, Output

if TYPE_CHECKING:
    from ...client import Client

_T = TypeVar("_T")
#: Adds an argument to a parser or a group.
Argument = Callable[[Any], object]
#: Requests a page by its marker and its limit.
Page = Callable[[str | None, int | None], Awaitable[Any]]

NAME = "raxsr"
# The registry's largest page.
_LARGEST_PAGE = 1000
# Seconds of work before progress is shown, and between updates of it.
_FIRST_PROGRESS = 1.0
_REFRESH = 0.2


def argument(*names: str, **options: Any) -> Argument:
    """An argument, as argparse takes it."""
    return lambda container: container.add_argument(*names, **options)


def either(name: str, metavar: str, shown: str) -> Argument:
    """A required argument, which may be given as an option, too."""
    position = argument(name, nargs="?", default=argparse.SUPPRESS, metavar=metavar, help=shown)
    option = argument(f"--{name}", metavar=metavar, help=f"the same, as an option; --{name}=-x if it begins with -")
    return oneOf(position, option, required=True)


def oneOf(*arguments: Argument, required: bool = False) -> Argument:
    """Arguments that exclude each other."""

    def add(container: Any) -> None:
        group = container.add_mutually_exclusive_group(required=required)
        for each in arguments:
            each(group)

    return add


@attrs.frozen
class Command:
    """
    A command. Its help is the docstring of *work*: a coroutine function that returns the result to show, or a function
    that does everything, and returns the exit code (``None``: 0). *work* is called with the :class:`Run`.

    :ivar idOf: the meaning of its ID, for the help; *kind* is the kind of object, for the error when it does not exist.
    :ivar columns: the columns of its result; none if the result is a line for the user.
    :ivar alone: the column that ``-f value`` shows if none are chosen.
    :ivar paged: the name of the objects in its list, if that has pages: for ``--limit``, ``--all`` and ``--marker``.
    :ivar takesCommand: whether the words after ``--`` are another program's. They become ``command``.
    """

    name: str
    work: Callable[[Run], Any]
    example: str
    arguments: Sequence[Argument]
    idOf: str = ""
    kind: str = ""
    columns: Mapping[str, Column] = attrs.field(factory=dict)
    alone: str | None = None
    paged: str = ""
    shows: Literal["one", "list", "stream"] = attrs.Factory(lambda self: "list" if self.paged else "one", True)
    takesCommand: bool = False
    help: str = attrs.Factory(lambda self: cleandoc(self.work.__doc__ or ""), takes_self=True)

    @property
    def summary(self) -> str:
        return self.help.partition("\n")[0].rstrip(".")

    def parser(self) -> Parser:
        parser = Parser(
            prog=f"{NAME} {self.name}",
            description=self.help,
            epilog=f"Example: {NAME} {self.name} {self.example}",
            # --help is one of the options of every command.
            add_help=False,
        )
        if self.idOf:
            either("id", "ID", f"the {self.idOf}")(parser)
        for add in self.arguments:
            add(parser)
        if self.takesCommand:
            parser.usage = f"{parser.format_usage().partition(': ')[2].strip()} -- COMMAND [ARGUMENT]…"
        if self.paged:
            size = typeOf(partial(parseCount, least=1, most=_LARGEST_PAGE))
            shown = f"at most N {self.paged}, 1 to {_LARGEST_PAGE} (default: 100)"
            every = argument("--all", action="store_true", help=f"all {self.paged}, page by page")
            oneOf(argument("--limit", type=size, metavar="N", help=shown), every)(parser)
            parser.add_argument("--marker", metavar="ID", help="begin at the one with this id")
        if self.columns:
            group = parser.add_argument_group("output")
            # A table of HTML needs an end.
            formats = [each for each in FORMATS if each != "html" or self.shows != "stream"]
            shown = "the output format (default: table)"
            group.add_argument("-f", "--format", dest="formatter", choices=formats, default="table", help=shown)
            several: dict[str, Any] = {"action": "append", "default": [], "metavar": "COLUMN"}
            shown = "show this column; may be given several times (default: all)"
            group.add_argument("-c", "--column", dest="columns", help=shown, **several)
            if self.shows == "list":
                shown = "sort by this column; by a second one where the first is equal"
                group.add_argument("--sort-column", dest="sortColumns", help=shown, **several)
        return parser

    def parse(self, words: Sequence[str], common: argparse.ArgumentParser) -> Any:
        """The values of arguments; *common* is the parser of other options, for suggestions."""
        parser, words = self.parser(), list(words)
        end = words.index("--") if self.takesCommand and "--" in words else len(words)
        parser.checkText(words[:end])
        parsed, unknown = parser.parse_known_args(words[:end])
        # After the first word that is not an option, the options may be those of the command to run.
        for each in unknown[:1] if self.takesCommand else unknown:
            if each.startswith("-") and each != "--":
                option = each.partition("=")[0]
                known = [*parser._option_string_actions, *common._option_string_actions]
                parser.error(f"unknown option {option}{didYouMean(option, known)}")
        if unknown:
            hint = ": the command to run comes after --" if self.takesCommand else ""
            parser.error(f"unexpected argument {unknown[0]!r}{hint}")
        parsed.command = words[end + 1 :]
        return parsed


#: All commands by their names. The modules that declare them are imported by :mod:`.main`.
COMMANDS: dict[str, Command] = {}


def command(name: str, example: str, *arguments: Argument, **details: Any) -> Callable[[_T], _T]:
    """Declare a function to be the work of a :class:`Command`."""

    def declare(work: Any) -> Any:
        COMMANDS[name] = Command(name, work, example, arguments, **details)
        return work

    return declare


@attrs.define(eq=False, repr=False, slots=False)
class Run:
    """
    One run of a command. *parsed* are its own arguments, *options* those of every command. *client* is there while
    requests are sent, *output* if the result has columns.
    """

    command: Command
    parsed: Any
    options: argparse.Namespace
    # Takes lines for --log-file.
    log: Callable[[str], None] | None
    client: Client = attrs.field(init=False)
    output: Output = attrs.field(init=False)
    _nextProgress: float = attrs.field(init=False, factory=lambda: time.monotonic() + _FIRST_PROGRESS)
    _progressWidth: int = attrs.field(init=False, default=0)

    def start(self) -> int:
        """Run the command, and return its exit code."""
        command, parsed = self.command, self.parsed
        if not iscoroutinefunction(command.work):
            return command.work(self) or 0
        if command.columns:
            if parsed.formatter != "table":
                useUTF8()
            asked = {self._named(word) for word in parsed.columns}
            if not asked and parsed.formatter == "value" and command.alone is not None:
                asked = {command.alone}
            shown = asked or {name for name, column in command.columns.items() if not column.isExtra}
            chosen = {name: column for name, column in command.columns.items() if name in shown}
            self.output = Output(chosen, parsed.formatter, isWhole=bool(asked), note=self.note)
        self.checkOutput(always=bool(command.columns))
        orders = [self._named(word) for word in parsed.sortColumns] if command.shows == "list" else []

        def key(record: Any) -> list[tuple[bool, Any]]:
            values = [command.columns[name].flat(record[name]) for name in orders]
            return [(value is not None, value) for value in values]

        result = self.ask(partial(command.work, self))
        if command.shows == "list":
            self.output.write(sorted(result, key=key))
        elif command.shows == "one" and command.columns:
            self.output.write([result], isOne=True)
        elif result is not None:
            self.say(result)
        return 0

    def _named(self, word: str) -> str:
        columns = self.command.columns
        simple = word.strip().lower().replace(" ", "_")
        for name, column in columns.items():
            if simple in (name, column.heading.lower().replace(" ", "_")):
                return name
        hint = didYouMean(word.lower(), columns) or "."
        raise UsageError(f"unknown column {word!r}{hint} Choose from: {', '.join(columns)}")

    def checkOutput(self, *, always: bool) -> None:
        """Before anything is changed, raise an error if the output of this command can't be written."""
        if always or not self.options.quiet:
            checkOutput()

    def ask(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Run the reactor for as long as *work* takes, and return its result."""
        # This import takes most of the time of a start.
        from .running import withClient

        async def working(client: Client) -> _T:
            self.client = client
            return await work()

        try:
            return withClient(self.options, working, self.log)
        except NotFound as error:
            kind = self.command.kind
            if not kind:
                raise
            isForeign = "HeartbeatMarker" in error.details
            problem = "the token does not belong to the" if isForeign else "there is no"
            raise CommandFailed(f'{problem} {kind} "{self.parsed.id}"') from None
        finally:
            if self._progressWidth:
                print(f"\r{' ' * self._progressWidth}\r", end="", file=sys.stderr, flush=True)

    # -- messages

    def say(self, text: str) -> None:
        """Confirm a change."""
        if not self.options.quiet:
            print(escaped(text))

    def note(self, text: str, *, always: bool = False) -> None:
        """Tell the user something beside the result; *always* also with ``--quiet``."""
        line = f"{NAME}: {oneLine(text)}"
        if always or not self.options.quiet:
            tell(line)
        if self.log is not None:
            self.log(line)

    def progress(self, text: str) -> None:
        """Show the progress of long work on one line of a terminal."""
        now = time.monotonic()
        if now >= self._nextProgress and sys.stderr.isatty() and not self.options.quiet:
            self._nextProgress = now + _REFRESH
            print(f"\r{text.ljust(self._progressWidth)}", end="", file=sys.stderr, flush=True)
            self._progressWidth = len(text)

    @contextmanager
    def loggedNotes(self) -> Iterator[None]:
        """Show what the library logs."""
        from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

        def observe(event: LogEvent) -> None:
            level = event.get("log_level", LogLevel.info)
            if str(event.get("log_namespace", "")).startswith("txserviceregistry.") and level >= LogLevel.info:
                self.note(formatEvent(event), always=level >= LogLevel.warn)

        # It is a function, which has the only method of the interface.
        observer: Any = observe
        globalLogPublisher.addObserver(observer)
        try:
            yield
        finally:
            globalLogPublisher.removeObserver(observer)

    # -- pages

    async def onePageOrAll(self, page: Page) -> list[Any]:
        """The values of one page, or of all, as the options say."""
        parsed, what = self.parsed, self.command.paged
        if parsed.all:
            return [value async for value in self.allPages(what, page, parsed.marker)]
        one = await page(parsed.marker, parsed.limit)
        following = one["metadata"]["next_marker"]
        if following is not None:
            self.note(f"there are more {what}: --all shows all, --marker {following} shows the next page")
        return list(one["values"])

    async def allPages(self, what: str, page: Page, marker: str | None = None) -> AsyncIterator[Any]:
        """The values of all pages from *marker* on. *what* names them."""
        count = 0
        while True:
            one = await page(marker, _LARGEST_PAGE)
            for value in one["values"]:
                yield value
            count += len(one["values"])
            following = one["metadata"]["next_marker"]
            if following is None:
                return
            if following == marker:
                raise MalformedResponse(f"The page of {what} at {marker} names itself as its next page")
            self.progress(f"{count} {what} so far …")
            marker = following
