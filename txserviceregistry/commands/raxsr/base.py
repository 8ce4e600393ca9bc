"""The base of all commands: their parsers, their requests, and the columns and pages of what they show."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from ...errors import MalformedResponse, NotFound
from ...util.parsing import parseCount
from ...util.redaction import escaped
from ..console import tell, useUTF8
from ..outcome import CommandFailed, UsageError, didYouMean, oneLine, typeOf
from .output import FOLLOWED_FORMATS, FORMATS, Column, addFormats, checkFormat, recordWriter, write
from .parser import GlobalParser, Parser

if TYPE_CHECKING:
    from ...client import Client

NAME = "raxsr"

# The registry's largest page.
_LARGEST_PAGE = 1000

# Seconds of work before progress is shown, and between updates of it.
_FIRST_PROGRESS = 1.0
_REFRESH = 0.2

# Requests a page by its marker and its limit.
_Page = Callable[[str | None, int | None], Awaitable[Any]]


class Program:
    """
    The process of ``raxsr``: the options of every command, and messages on stderr.

    :ivar parser: the parser of the options of every command.
    :ivar options: the options on the command line.
    :ivar log: takes lines for ``--log-file``, if it is given.
    """

    options: argparse.Namespace
    log: Callable[[str], None] | None = None

    def __init__(self, parser: GlobalParser) -> None:
        self.parser = parser

    def complain(self, text: str) -> None:
        self._write(text, quiet=False)

    def note(self, text: str) -> None:
        self._write(text, quiet=self.options.quiet)

    def _write(self, text: str, quiet: bool) -> None:
        line = f"{NAME}: {oneLine(text)}"
        if not quiet:
            tell(line)
        if self.log is not None:
            self.log(line)


class RaxsrCommand:
    """
    A command. Its help is the class's docstring.

    :ivar example: a command line, for the help.
    :ivar idOf: the meaning of its ID, for the help; empty if it has none.
    :ivar kind: the kind of object that the ID names, for the error when it does not exist.
    :ivar paged: the name of the objects in its result, if that has pages: for ``--limit``, ``--all`` and ``--marker``.
    :ivar parsed: its arguments.
    :ivar client: a client, while :meth:`perform` runs.
    """

    parsed: argparse.Namespace
    client: Client

    example = ""
    idOf = ""
    kind = ""
    paged = ""

    def __init__(self, program: Program) -> None:
        self.program = program

    def addArguments(self, parser: Parser) -> None:
        """Add the command's arguments, after its ID, to *parser*."""

    def complete(self) -> None:
        """Check and complete the arguments; raises :class:`UsageError`."""

    async def perform(self) -> Any:
        """
        Send the command's requests.

        :return: the result to show: here, the line that confirms the change.
        """
        raise NotImplementedError

    @classmethod
    def description(cls) -> str:
        """The help: the first line is a summary."""
        return cleandoc(cls.__doc__ or "")

    def parser(self, name: str) -> Parser:
        parser = Parser(
            prog=f"{NAME} {name}",
            description=self.description(),
            epilog=f"Example: {self.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # --help is one of the options of every command.
            add_help=False,
        )
        parser.furtherOptions = list(self.program.parser._option_string_actions)
        if self.idOf:
            given = parser.add_mutually_exclusive_group(required=True)
            given.add_argument("id", nargs="?", default=argparse.SUPPRESS, metavar="ID", help=f"the {self.idOf}")
            given.add_argument("--id", metavar="ID", help="the same, as an option")
        self.addArguments(parser)
        if self.paged:
            amount = parser.add_mutually_exclusive_group()
            shown = f"at most N {self.paged}, 1 to {_LARGEST_PAGE} (default: 100)"
            size = typeOf(partial(parseCount, least=1, most=_LARGEST_PAGE))
            amount.add_argument("--limit", type=size, metavar="N", help=shown)
            amount.add_argument("--all", action="store_true", help=f"all {self.paged}, page by page")
            parser.add_argument("--marker", metavar="ID", help="begin at the one with this id")
        return parser

    def hasOutput(self) -> bool:
        """Whether the command writes to the standard output."""
        return not self.program.options.quiet

    def run(self) -> int | None:
        """Run the command, and return its exit code; ``None`` for 0."""
        self.say(self.ask())
        return None

    def ask(self) -> Any:
        """Run the reactor for as long as :meth:`perform` takes, and return its result."""
        # This import takes most of the time of a start.
        from .running import withClient

        async def work(client: Client) -> Any:
            self.client = client
            return await self.perform()

        self.progress = Progress(sys.stderr.isatty() and not self.program.options.quiet)
        try:
            return withClient(self.program.options, work, self.program.log)
        except NotFound:
            if not self.kind:
                raise
            raise CommandFailed(f'there is no {self.kind} "{self.parsed.id}"') from None
        finally:
            self.progress.done()

    def say(self, text: str) -> None:
        if not self.program.options.quiet:
            print(escaped(text))

    async def allPages(self, what: str, page: _Page, marker: str | None = None) -> AsyncIterator[Any]:
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
            self.progress.show(f"{count} {what} so far …")
            marker = following


class _Displaying(RaxsrCommand):
    """
    A command whose result has columns.

    :ivar columns: the columns by their names in the API, which the formats for programs have.
    :ivar important: the columns that a table may leave out if the terminal is too narrow, the most important one first.
    :ivar alone: the column that ``-f value`` shows if none are chosen; ``None`` for all.
    """

    formats: Sequence[str] = FORMATS
    columns: Mapping[str, Column] = {}
    important: Sequence[str] = ()
    alone: str | None = None
    isSortable = False

    def parser(self, name: str) -> Parser:
        parser = super().parser(name)
        group = parser.add_argument_group("output formatters", "output formatter options")
        several: dict[str, Any] = {"action": "append", "default": []}
        group.add_argument(
            *("-f", "--format"),
            dest="formatter",
            choices=self.formats,
            default="table",
            help="the output format (default: table)",
        )
        shown = "show this column; may be given several times (default: all)"
        group.add_argument("-c", "--column", dest="columns", metavar="COLUMN", help=shown, **several)
        addFormats(parser)
        if self.isSortable:
            shown = "sort by this column; by a second one where the first is equal"
            group.add_argument("--sort-column", dest="sortColumns", metavar="SORT_COLUMN", help=shown, **several)
            direction = group.add_mutually_exclusive_group()
            for each in ("ascending", "descending"):
                shown = f"sort the column(s) in {each} order"
                direction.add_argument(f"--sort-{each}", action="store_const", dest="order", const=each, help=shown)
        return parser

    def hasOutput(self) -> bool:
        return True

    def run(self) -> int | None:
        if self.parsed.formatter != "table":
            useUTF8()
        asked = {self.named(word) for word in self.parsed.columns}
        if not asked and self.parsed.formatter == "value" and self.alone is not None:
            asked = {self.alone}
        self.chosen = {name: column for name, column in self.columns.items() if name in asked or not asked}
        # Columns that are chosen are not left out.
        self.parsed.important = [] if asked else self.important
        self.parsed.note = self.program.note
        # Before anything is changed: the result could not be shown.
        checkFormat(self.parsed.formatter)
        self.show()
        return None

    def show(self) -> None:
        raise NotImplementedError

    def named(self, word: str) -> str:
        for name, column in self.columns.items():
            if _simplified(word) in (name, _simplified(column.heading)):
                return name
        hint = didYouMean(word.lower(), self.columns) or "."
        raise UsageError(f"unknown column {word!r}{hint} Choose from: {', '.join(self.columns)}")


def _simplified(column: str) -> str:
    return column.strip().lower().replace(" ", "_")


class ListCommand(_Displaying):
    """A command that shows a list: :meth:`perform` returns records."""

    isSortable = True

    def show(self) -> None:
        names = [self.named(word) for word in self.parsed.sortColumns]
        records = list(self.ask())
        for name in reversed(names):

            def rank(record: Mapping[str, Any], name: str = name) -> Any:
                value = self.columns[name].flat(record[name])
                return value is not None, 0 if value is None else value

            records.sort(key=rank, reverse=self.parsed.order == "descending")
        write(self.chosen, records, self.parsed)

    async def onePageOrAll(self, page: _Page) -> list[Any]:
        """The values of one page, or of all, as the options say."""
        if self.parsed.all:
            return [value async for value in self.allPages(self.paged, page, self.parsed.marker)]
        one = await page(self.parsed.marker, self.parsed.limit)
        following = one["metadata"]["next_marker"]
        if following is not None:
            more = f"--all shows all, --marker {following} shows the next page"
            self.program.note(f"there are more {self.paged}: {more}")
        return list(one["values"])


class ShowCommand(_Displaying):
    """A command that shows one object: :meth:`perform` returns its record."""

    def show(self) -> None:
        write(self.chosen, [self.ask()], self.parsed, isOne=True)


class FollowCommand(_Displaying):
    """A command that shows records as they come: :meth:`perform` goes on until it is cancelled."""

    formats = FOLLOWED_FORMATS

    def show(self) -> None:
        self.ask()

    def writer(self) -> Callable[[Mapping[str, Any]], None]:
        """Write what comes before the first row; the result writes a record."""
        return recordWriter(self.chosen, self.parsed)


@contextmanager
def explainedToken(owner: str) -> Iterator[None]:
    """Raise :class:`CommandFailed` if the token of a request is not that of *owner*."""
    try:
        yield
    except NotFound as error:
        if "HeartbeatMarker" not in error.details:
            raise
        raise CommandFailed(f"the token does not belong to the {owner}") from None


class Progress:
    """Shows the progress of long work on one line of a terminal, if it is *enabled*, and removes it at the end."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._next = time.monotonic() + _FIRST_PROGRESS
        self._width = 0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._enabled and now >= self._next:
            self._next = now + _REFRESH
            print(f"\r{text.ljust(self._width)}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def done(self) -> None:
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)
            self._width = 0
