"""
What the commands have in common: their parsers, the way to the registry, and turning pages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from cliff.command import Command
from cliff.display import DisplayCommandBase
from cliff.lister import Lister
from cliff.show import ShowOne

from ...errors import MalformedResponse
from ...util.escaping import escaped
from ..console import useUTF8
from ..outcome import UsageError
from .output import FOLLOWED_FORMATS, FOR_PEOPLE, FORMATS, Lines
from .parser import Parser, didYouMean

if TYPE_CHECKING:
    from ...client import Client
    from .app import Raxsr

_T = TypeVar("_T")

# The most that a page may hold: what is turned through page by page goes fastest so.
_LARGEST_PAGE = 1000

# Seconds after which long work begins to say how far it is, and between two times that it does.
_PATIENCE = 1.0
_REFRESH = 0.2


class RaxsrCommand(Command):
    """
    A command.

    :ivar example: a command line that shows it at work.
    """

    app: Raxsr
    example = ""

    def addArguments(self, parser: Parser) -> None:
        """Add to *parser* what this command takes."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """
        :param prog_name: the program and the command.
        :return: the parser of what follows them.
        """
        parser = Parser(
            prog=prog_name,
            description=self.get_description(),
            epilog=f"Example: {self.example}" if self.example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.furtherOptions = list(self.app.parser._option_string_actions)
        self.addArguments(parser)
        return parser

    def hasOutput(self, parsed: argparse.Namespace) -> bool:
        """Whether the command writes to the standard output."""
        return not self.app.options.quiet

    def ask(self, work: Callable[[Client, Progress], Awaitable[_T]]) -> _T:
        """
        Do something with the registry.

        :param work: gets a client, and something to tell its progress to.
        :return: what *work* gives.
        """
        # Only now: this is what takes most of the start.
        from .running import withClient

        progress = Progress(self.app.stderr, self.app.stderr.isatty() and not self.app.options.quiet)

        async def working(client: Client) -> _T:
            return await work(client, progress)

        try:
            return withClient(self.app.options, self.app.stderr, working, self.app.log)
        finally:
            progress.done()

    def say(self, text: str) -> None:
        """Confirm what was done."""
        if not self.app.options.quiet:
            print(escaped(text), file=self.app.stdout)


class _Displaying(DisplayCommandBase[Any], RaxsrCommand):
    """
    A command whose result has columns.

    :ivar columns: their names in the API, which the formats for programs have, and the headings of tables for these.
    :ivar important: the columns that a table may leave out if the terminal is too narrow, the most important one first.
    :ivar alone: the column that ``-f value`` shows if none are chosen; ``None`` for all.
    """

    columns: Mapping[str, str] = {}
    important: Sequence[str] = ()
    alone: str | None = None

    def hasOutput(self, parsed: argparse.Namespace) -> bool:
        """See :class:`RaxsrCommand`."""
        return True

    def _load_formatter_plugins(self) -> Any:
        return FORMATS

    def run(self, parsed_args: argparse.Namespace) -> int:
        """
        Do it, and show the result.

        :raises UsageError: if a column is asked for that there is not.
        """
        if parsed_args.formatter != "table":
            useUTF8()
        if self.alone is not None and parsed_args.formatter == "value" and not parsed_args.columns:
            parsed_args.columns = [self.alone]
        # Not every cliff knows columns by other words than their own.
        for asked in ("columns", "sort_columns"):
            if hasattr(parsed_args, asked):
                setattr(parsed_args, asked, [self._column(word) for word in getattr(parsed_args, asked)])
        # What is asked for by name is not left out.
        parsed_args.importance = [] if parsed_args.columns else [self.columns[name] for name in self.important]
        parsed_args.note = self.app.note
        return super().run(parsed_args)

    def _column(self, word: str) -> str:
        """The name of the column that is meant by *word*, which may be the heading too, in any case."""
        for column, heading in self.columns.items():
            if _simplified(word) in (column, _simplified(heading)):
                return column
        hint = didYouMean(word.lower(), self.columns) or "."
        raise UsageError(f"there is no column {word!r}{hint} There are: {', '.join(self.columns)}")

    def _generate_columns_and_selector(self, parsed_args: Any, column_names: Any) -> Any:
        """The names of the chosen columns as the format has them, and which these are."""
        names, selector = super()._generate_columns_and_selector(parsed_args, column_names)
        return [self.columns[name] for name in names] if parsed_args.formatter in FOR_PEOPLE else names, selector


def _simplified(column: str) -> str:
    return column.strip().lower().replace(" ", "_")


class ListCommand(_Displaying, Lister):
    """A command that shows a list."""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """See :class:`RaxsrCommand`."""
        parser = super().get_parser(prog_name)
        for action in parser._actions:
            if action.dest == "sort_columns":
                # What cliff says of columns that there are not is not so here.
                action.help = "sort by this column; again for a second one, which decides where the first does not"
        return parser


class ShowCommand(_Displaying, ShowOne):
    """A command that shows one thing."""


class FollowCommand(_Displaying):
    """A command that shows things as they come. It has no result: :meth:`take_action` goes on until it is ended."""

    formatter_namespace = ""
    formatter_default = "table"

    #: How wide the columns of a table are, but for the last, by their headings.
    widths: Mapping[str, int] = {}

    def _load_formatter_plugins(self) -> Any:
        return FOLLOWED_FORMATS

    def lines(self, parsed: argparse.Namespace) -> Callable[[Sequence[Any]], None]:
        """
        Write what comes before the first row.

        :return: writes a row.
        """
        columns, selector = self._generate_columns_and_selector(parsed, list(self.columns))
        lines = Lines(parsed.formatter, columns, self.widths, self.app.stdout, parsed)
        lines.begin()
        return lambda row: lines.write(row if selector is None else list(self._compress_iterable(row, selector)))

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Sequence[str], data: Any) -> int:
        """There is nothing left to show."""
        return 0


class Progress:
    """
    Says on a terminal how far long work is, on one line that goes away at the end.

    :param stream: the terminal.
    :param enabled: whether anything is said at all.
    """

    def __init__(self, stream: TextIO, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled
        self._next = time.monotonic() + _PATIENCE
        self._width = 0

    def show(self, text: str) -> None:
        """Say *text*, unless it is too early for it."""
        now = time.monotonic()
        if self._enabled and now >= self._next:
            self._next = now + _REFRESH
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._stream.flush()
            self._width = len(text)

    def done(self) -> None:
        """Leave nothing behind."""
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0


def _pageSize(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LARGEST_PAGE:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_LARGEST_PAGE}")
    return int(text)


def addPaging(parser: argparse.ArgumentParser, what: str) -> None:
    """
    Add ``--limit``, ``--marker`` and ``--all``.

    :param what: what the list is of.
    """
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--limit", type=_pageSize, metavar="N", help=f"at most so many {what}, 1 to 1000; 100 if not given"
    )
    amount.add_argument("--all", action="store_true", help=f"all {what}, however many pages they take")
    parser.add_argument("--marker", metavar="ID", help="begin at this one")


def addId(parser: argparse.ArgumentParser, what: str) -> None:
    """Add an id that can be given with ``--id`` or without; :func:`idOf` tells which it is."""
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("id", nargs="?", metavar="ID", help=f"the {what}")
    given.add_argument("--id", dest="idOption", metavar="ID", help="the same, as an option")


def idOf(parsed: argparse.Namespace) -> str:
    """What :func:`addId` has asked for."""
    return str(parsed.id if parsed.idOption is None else parsed.idOption)


async def collect(
    command: RaxsrCommand,
    progress: Progress,
    parsed: argparse.Namespace,
    what: str,
    page: Callable[[str | None, int | None], Awaitable[Any]],
) -> list[Any]:
    """
    One page, or all of them.

    :param command: whose command line it is.
    :param parsed: the command line, with what :func:`addPaging` has added.
    :param what: what the list is of.
    :param page: asks for a page, by its marker and its limit.
    :return: the values.
    """
    if not parsed.all:
        one = await page(parsed.marker, parsed.limit)
        following = one["metadata"]["next_marker"]
        if following is not None:
            command.app.note(f"there are more {what}: --all shows all, --marker {following} goes on from here")
        return list(one["values"])
    return [value async for value in turnPages(progress, parsed.marker, what, page)]


async def turnPages(
    progress: Progress,
    marker: str | None,
    what: str,
    page: Callable[[str | None, int | None], Awaitable[Any]],
) -> AsyncIterator[Any]:
    """
    The values of all pages.

    :param marker: where to begin.
    :param what: what they are, for the progress.
    :param page: asks for a page, by its marker and its limit.
    """
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
        progress.show(f"{count} {what} so far …")
        marker = following
