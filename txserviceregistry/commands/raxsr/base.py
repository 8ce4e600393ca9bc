"""The base of all commands: their parsers, their requests, and the columns and pages of what they show."""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from cliff.command import Command
from cliff.display import DisplayCommandBase
from cliff.lister import Lister
from cliff.show import ShowOne

from ...errors import MalformedResponse, NotFound
from ...util.escaping import escaped
from ..console import useUTF8
from ..outcome import CommandFailed, UsageError, didYouMean
from .output import FOLLOWED_FORMATS, FOR_PEOPLE, FORMATS, Column, rowWriter
from .parser import Parser

if TYPE_CHECKING:
    from ...client import Client
    from .app import Raxsr

# The registry's largest page.
_LARGEST_PAGE = 1000

# Seconds of work before progress is shown, and between two times that it is.
_FIRST_PROGRESS = 1.0
_REFRESH = 0.2

# Requests a page by its marker and its limit.
_Page = Callable[[str | None, int | None], Awaitable[Any]]


class RaxsrCommand(Command):
    """
    A command.

    :ivar example: a command line, for the help.
    :ivar kind: what the command's ID names, for the error when the registry does not have it.
    """

    app: Raxsr
    example = ""
    kind = ""

    def addArguments(self, parser: Parser) -> None:
        """Add the command's arguments to *parser*."""

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        """
        Send the command's requests.

        :return: what :meth:`take_action` shows: here, the line that confirms what was done.
        """
        raise NotImplementedError

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = Parser(
            prog=prog_name,
            description=self.get_description(),
            epilog=f"Example: {self.example}" if self.example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # --help is one of the options of every command.
            add_help=False,
        )
        parser.furtherOptions = list(self.app.parser._option_string_actions)
        self.addArguments(parser)
        return parser

    def hasOutput(self, parsed: argparse.Namespace) -> bool:
        """Whether the command writes to the standard output."""
        return not self.app.options.quiet

    def take_action(self, parsed: argparse.Namespace) -> Any:
        """Run the command."""
        self.say(self.ask(parsed))

    def ask(self, parsed: argparse.Namespace) -> Any:
        """Run the reactor for as long as :meth:`perform` takes, and return its result."""
        # This import takes most of the time of a start.
        from .running import withClient

        self.progress = Progress(self.app.stderr, self.app.stderr.isatty() and not self.app.options.quiet)
        try:
            return withClient(
                self.app.options, self.app.stderr, lambda client: self.perform(client, parsed), self.app.log
            )
        except NotFound:
            if not self.kind:
                raise
            raise CommandFailed(f'there is no {self.kind} "{parsed.id}"') from None
        finally:
            self.progress.done()

    def say(self, text: str) -> None:
        """Confirm what was done."""
        if not self.app.options.quiet:
            print(escaped(text), file=self.app.stdout)

    async def onePageOrAll(self, parsed: argparse.Namespace, what: str, page: _Page) -> list[Any]:
        """The values of one page, or of all, as the options of :func:`addPaging` say. *what* names them."""
        if parsed.all:
            return [value async for value in self.allPages(what, page, parsed.marker)]
        one = await page(parsed.marker, parsed.limit)
        following = one["metadata"]["next_marker"]
        if following is not None:
            self.app.note(f"there are more {what}: --all shows all, --marker {following} shows the next page")
        return list(one["values"])

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


# The help of options that cliff adds, where its own is wrong or hard to read.
_HELP = {
    "formatter": "the output format (default: table)",
    "columns": "show this column; may be given several times (default: all)",
    "sort_columns": "sort by this column; by a second one where the first is equal",
    "quote_mode": "the values to quote in CSV (default: nonnumeric)",
    "noindent": "write JSON on one line",
}


class _Displaying(DisplayCommandBase[Any], RaxsrCommand):
    """
    A command whose result has columns.

    :ivar columns: the columns by their names in the API, which the formats for programs have.
    :ivar important: the columns that a table may leave out if the terminal is too narrow, the most important one first.
    :ivar alone: the column that ``-f value`` shows if none are chosen; ``None`` for all.
    """

    columns: Mapping[str, Column] = {}
    important: Sequence[str] = ()
    alone: str | None = None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        parser = super().get_parser(prog_name)
        for action in parser._actions:
            action.help = _HELP.get(action.dest, action.help)
        return parser

    def hasOutput(self, parsed: argparse.Namespace) -> bool:
        return True

    def row(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        """The cells of something that the registry has, in the order of :attr:`columns`."""
        return tuple(column.cell(record[name]) for name, column in self.columns.items())

    def _load_formatter_plugins(self) -> Any:
        return FORMATS

    def run(self, parsed_args: argparse.Namespace) -> int:
        if parsed_args.formatter != "table":
            useUTF8()
        if self.alone is not None and parsed_args.formatter == "value" and not parsed_args.columns:
            parsed_args.columns = [self.alone]
        # Not every cliff knows columns by other words than their own.
        for asked in ("columns", "sort_columns"):
            if hasattr(parsed_args, asked):
                setattr(parsed_args, asked, [self._column(word) for word in getattr(parsed_args, asked)])
        # Columns that are chosen are not left out.
        parsed_args.importance = [] if parsed_args.columns else [self.columns[name].heading for name in self.important]
        parsed_args.note = self.app.note
        return super().run(parsed_args)

    def _column(self, word: str) -> str:
        """The name of the column with this name or heading, in any case."""
        for name, column in self.columns.items():
            if _simplified(word) in (name, _simplified(column.heading)):
                return name
        hint = didYouMean(word.lower(), self.columns) or "."
        raise UsageError(f"unknown column {word!r}{hint} Choose from: {', '.join(self.columns)}")

    def _generate_columns_and_selector(self, parsed_args: Any, column_names: Any) -> Any:
        names, selector = super()._generate_columns_and_selector(parsed_args, column_names)
        if parsed_args.formatter in FOR_PEOPLE:
            names = [self.columns[name].heading for name in names]
        return names, selector


def _simplified(column: str) -> str:
    return column.strip().lower().replace(" ", "_")


class ListCommand(_Displaying, Lister):
    """A command that shows a list: :meth:`perform` returns records."""

    def take_action(self, parsed: argparse.Namespace) -> Any:
        return list(self.columns), list(map(self.row, self.ask(parsed)))


class ShowCommand(_Displaying, ShowOne):
    """A command that shows one object: :meth:`perform` returns its record."""

    def take_action(self, parsed: argparse.Namespace) -> Any:
        return list(self.columns), self.row(self.ask(parsed))


class FollowCommand(_Displaying):
    """A command that shows records as they come: :meth:`perform` goes on until it is cancelled."""

    formatter_namespace = ""
    formatter_default = "table"

    def _load_formatter_plugins(self) -> Any:
        return FOLLOWED_FORMATS

    def take_action(self, parsed: argparse.Namespace) -> Any:
        self.ask(parsed)
        return list(self.columns), ()

    def writer(self, parsed: argparse.Namespace) -> Callable[[Mapping[str, Any]], None]:
        """Write what comes before the first row; the result writes a record."""
        columns, selector = self._generate_columns_and_selector(parsed, list(self.columns))
        widths = {column.heading: column.width for column in self.columns.values()}
        writeRow = rowWriter(parsed.formatter, columns, widths, self.app.stdout, parsed)

        def write(record: Mapping[str, Any]) -> None:
            row = self.row(record)
            writeRow(row if selector is None else list(self._compress_iterable(row, selector)))

        return write

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        return 0


class Progress:
    """
    Shows the progress of long work on one line of a terminal, and removes it at the end.

    :param stream: the terminal.
    :param enabled: whether anything is shown.
    """

    def __init__(self, stream: TextIO, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled
        self._next = time.monotonic() + _FIRST_PROGRESS
        self._width = 0

    def show(self, text: str) -> None:
        """Show *text*, unless it is too early."""
        now = time.monotonic()
        if self._enabled and now >= self._next:
            self._next = now + _REFRESH
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._stream.flush()
            self._width = len(text)

    def done(self) -> None:
        """Remove the line."""
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0


def _pageSize(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST_PAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_LARGEST_PAGE}")
    return int(text)


def addPaging(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--limit``, ``--marker`` and ``--all`` for a list of *what*."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--limit", type=_pageSize, metavar="N", help=f"at most N {what}, 1 to 1000 (default: 100)")
    amount.add_argument("--all", action="store_true", help=f"all {what}, page by page")
    parser.add_argument("--marker", metavar="ID", help="begin at the one with this id")


def addId(parser: argparse.ArgumentParser, what: str) -> None:
    """Add an id that can be given with ``--id`` or without."""
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("id", nargs="?", default=argparse.SUPPRESS, metavar="ID", help=f"the {what}")
    given.add_argument("--id", metavar="ID", help="the same, as an option")
