"""
The output: columns, the cells of a row, and the formats in which rows are written.

Tables are for people: local time, fitted to the terminal. All other formats are for programs: ISO 8601 in UTC, nothing
cut; JSON and YAML keep lists and objects, and the flat formats write them as the command line reads them.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, TextIO, TypeVar

import attrs
from cliff.columns import FormattableColumn
from cliff.formatters.base import ListFormatter, SingleFormatter
from cliff.formatters.commaseparated import CSVLister
from cliff.formatters.json_format import JSONFormatter
from cliff.formatters.value import ValueFormatter
from cliff.formatters.yaml_format import YAMLFormatter

from ...util.parsing import formatMetadata, formatTags
from ..outcome import printable

_T = TypeVar("_T")
_Names = Sequence[str]
_Rows = Iterable[Sequence[Any]]

# The least width of a column that is fitted to the terminal.
_NARROWEST = 12

# The first characters of a formula in a spreadsheet, which skips white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Cell(FormattableColumn[_T]):
    """
    A value that is written differently for people and for programs.

    :ivar wraps: whether a table may break it into several lines. Ids are never broken, so they can be copied.
    """

    wraps = False

    def flat(self) -> str | None:
        """The value as one text, for the formats without lists and objects."""
        value = self.machine_readable()
        return None if value is None else str(value)

    def plain(self) -> str:
        """The value for ``-f value``."""
        return str(self.flat())

    def human_readable(self) -> str:
        """The value for people."""
        return self.flat() or ""

    def __lt__(self, other: object) -> bool:
        return isinstance(other, Cell) and self._order() < other._order()

    def _order(self) -> Any:
        return self.flat() or ""


class Timestamp(Cell[Any]):
    """A moment in milliseconds since the epoch, or ``None`` for never: local time for people, else ISO 8601 in UTC."""

    def machine_readable(self) -> str | None:
        if self._value is None:
            return None
        moment = datetime.fromtimestamp(self._value / 1000, timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def plain(self) -> str:
        return self.machine_readable() or "never"

    def human_readable(self) -> str:
        return self.plain() if self._value is None else f"{datetime.fromtimestamp(self._value / 1000):%F %T}"


class Text(Cell[Any]):
    """A text of any length, or ``None``."""

    wraps = True


class Tags(Cell[Sequence[str]]):
    """A service's tags, in flat formats as ``--tags`` reads them."""

    wraps = True

    def flat(self) -> str:
        return formatTags(self._value)

    def human_readable(self) -> str:
        return ", ".join(self._value)


class Metadata(Cell[Mapping[str, str]]):
    """A service's metadata, in flat formats as ``--metadata`` reads it."""

    wraps = True

    def flat(self) -> str:
        return formatMetadata(self._value)

    def human_readable(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self._value.items())


class Payload(Cell[Mapping[str, Any]]):
    """An event's payload, in flat formats as JSON."""

    wraps = True

    def flat(self) -> str:
        return json.dumps(self._value, ensure_ascii=False)


@attrs.frozen
class Column:
    """
    A column of a result.

    :ivar heading: its name in tables.
    :ivar cell: makes a cell of a value.
    :ivar width: its least width in a table whose rows come one by one.
    """

    heading: str
    cell: Callable[[Any], Any] = lambda value: value
    width: int = 0


def _flat(row: Iterable[Any]) -> list[Any]:
    return [cell.flat() if isinstance(cell, Cell) else cell for cell in row]


def _plain(row: Iterable[Any]) -> list[Any]:
    return [cell.plain() if isinstance(cell, Cell) else cell for cell in row]


class _Table(ListFormatter, SingleFormatter):
    """
    Tables. On a terminal they are made to fit: texts are broken between words, then columns are left out, and then
    words are broken. In a pipe they are not changed.
    """

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("table formatter")
        group.add_argument("--max-width", type=int, default=0, metavar="N", help="fit tables into so many characters")
        group.add_argument("--fit-width", action="store_true", help="fit tables into the terminal, also in a pipe")
        # Empty tables are always printed; the option is for scripts that other tools were written for.
        group.add_argument("--print-empty", action="store_true", help=argparse.SUPPRESS)

    def emit_list(self, column_names: _Names, data: _Rows, stdout: TextIO, parsed_args: Any) -> None:
        self._emit(column_names, [list(row) for row in data], stdout, parsed_args, range(len(column_names)))

    def emit_one(self, column_names: _Names, data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        rows = [[name, value] for name, value in zip(column_names, data, strict=True)]
        self._emit(("Field", "Value"), rows, stdout, parsed_args, ())

    def _emit(self, names: _Names, rows: list[list[Any]], stdout: TextIO, options: Any, numeric: Iterable[int]) -> None:
        # The import is slow, and not needed for any other format.
        from prettytable import PrettyTable

        texts = [[self.text(cell) for cell in row] for row in rows]
        kept = list(range(len(names)))
        width = options.max_width if options.max_width > 0 else self._terminalWidth(options.fit_width)
        if width:
            columns = [
                _Width.of(name, [row[column] for row in rows], [row[column] for row in texts])
                for column, name in enumerate(names)
            ]
            important = [names.index(name) for name in options.importance]
            kept = _keep(columns, important, width)
            for column in _fit(columns, kept, width):
                for row in texts:
                    row[column] = _broken(row[column], columns[column].now)
            leftOut = [name for column, name in enumerate(names) if column not in kept]
            if leftOut:
                options.note(
                    f"the terminal is too narrow for {', '.join(leftOut)}: choose columns with -c, or use -f json"
                )
        table = PrettyTable([names[column] for column in kept])
        table.align = "l"
        for column in kept:
            if column in numeric and rows and all(isinstance(row[column], int) for row in rows):
                table.align[names[column]] = "r"
        table.add_rows([[row[column] for column in kept] for row in texts])
        print(table.get_string(), file=stdout)

    @staticmethod
    def text(cell: object) -> str:
        """A cell for people."""
        return printable(cell.human_readable() if isinstance(cell, FormattableColumn) else str(cell))

    @staticmethod
    def _terminalWidth(always: bool) -> int:
        if not always and not sys.stdout.isatty():
            return 0
        for stream in (sys.__stdout__, sys.__stderr__):
            try:
                return os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
            except OSError:
                # The other one may be a terminal.
                continue
        return 0


@attrs.define
class _Width:
    """
    How wide a column is.

    :ivar now: its present width.
    :ivar whole: the least width that breaks no word.
    :ivar least: the least width.
    """

    now: int
    whole: int
    least: int

    @classmethod
    def of(cls, name: str, cells: Sequence[Any], texts: Sequence[str]) -> _Width:
        """The width of a column of these *cells*, and the *texts* that are written for them."""
        now = max([len(name), *(len(line) for text in texts for line in text.split("\n"))])
        if not any(isinstance(cell, Cell) and cell.wraps for cell in cells):
            return cls(now, now, now)
        least = min(now, max(len(name), _NARROWEST))
        return cls(now, max([least, *(len(word) for text in texts for word in text.split())]), least)

    def bound(self, breaksWords: bool) -> int:
        """How narrow it can become."""
        return self.least if breaksWords else self.whole


def _space(columns: int, width: int) -> int:
    """The width that a table has for the texts of so many columns."""
    return width - 3 * columns - 1


def _keep(columns: Sequence[_Width], important: Sequence[int], width: int) -> list[int]:
    """The columns that fit without a broken word, of which *important* may be left out, the last one first."""
    kept = [column for column in range(len(columns)) if column not in important]
    for column in important:
        more = [*kept, column]
        if sum(columns[each].whole for each in more) <= _space(len(more), width):
            kept = more
    return sorted(kept)


def _fit(columns: Sequence[_Width], kept: Sequence[int], width: int) -> list[int]:
    """
    Make columns narrower, the widest one first, until all fit or all have their least width: first by breaking between
    words, then within them. The result is the columns that are narrower now.
    """
    narrowed = set()
    for breaksWords in (False, True):
        while sum(columns[column].now for column in kept) > _space(len(kept), width):
            wide = [column for column in kept if columns[column].now > columns[column].bound(breaksWords)]
            if not wide:
                break
            widest = max(wide, key=lambda column: columns[column].now)
            columns[widest].now -= 1
            narrowed.add(widest)
    return sorted(narrowed)


def _broken(text: str, width: int) -> str:
    """*text* in lines that are not longer than *width*, broken between words where that is possible."""
    lines = (textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


class _CSV(CSVLister, SingleFormatter):
    def emit_list(self, column_names: _Names, data: _Rows, stdout: TextIO, parsed_args: Any) -> None:
        # cliff's own doubles each backslash, which few readers of CSV expect.
        writer = csv.writer(stdout, quoting=self.QUOTE_MODES[parsed_args.quote_mode], lineterminator="\n")
        writer.writerow(column_names)
        writer.writerows([_asText(cell) for cell in _flat(row)] for row in data)

    def emit_one(self, column_names: _Names, data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        self.emit_list(column_names, [data], stdout, parsed_args)


def _asText(cell: Any) -> Any:
    # A spreadsheet computes a formula, which may send the content of other cells to a server.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


class _Value(ValueFormatter):
    def emit_list(self, column_names: _Names, data: _Rows, stdout: TextIO, parsed_args: Any) -> None:
        super().emit_list(column_names, map(_plain, data), stdout, parsed_args)

    def emit_one(self, column_names: _Names, data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        super().emit_one(column_names, _plain(data), stdout, parsed_args)


class _HTML(ListFormatter, SingleFormatter):
    """A table for a browser, with the texts of tables."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        pass

    def emit_list(self, column_names: _Names, data: _Rows, stdout: TextIO, parsed_args: Any) -> None:
        print("<table>\n<thead>", file=stdout)
        print(self._row("th", column_names), file=stdout)
        print("</thead>\n<tbody>", file=stdout)
        for row in data:
            print(self._row("td", row), file=stdout)
        print("</tbody>\n</table>", file=stdout)

    def emit_one(self, column_names: _Names, data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        self.emit_list(("Field", "Value"), zip(column_names, data, strict=True), stdout, parsed_args)

    @staticmethod
    def _row(tag: str, cells: Iterable[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(_Table.text(cell))}</{tag}>' for cell in cells)}</tr>"


def rowWriter(
    format: str, columns: _Names, widths: Mapping[str, int], stdout: TextIO, options: argparse.Namespace
) -> Callable[[Sequence[Any]], None]:
    """
    Write what comes before the first of the rows that come one by one; the result writes a row at once.

    :param widths: the least widths of the columns of a table.
    :param options: the formats' options.
    """
    formatter = FORMATS[format].obj

    def writeTable(texts: Sequence[str]) -> None:
        padded = [text.ljust(widths.get(name, 0)) for name, text in zip(columns, texts, strict=True)]
        print("  ".join(padded).rstrip(), file=stdout)

    def write(row: Sequence[Any]) -> None:
        if format == "table":
            writeTable([_Table.text(cell).replace("\n", " ") for cell in row])
        elif format == "json":
            values = [cell.machine_readable() if isinstance(cell, FormattableColumn) else cell for cell in row]
            print(json.dumps(dict(zip(columns, values, strict=True))), file=stdout)
        else:
            rows = io.StringIO()
            formatter.emit_list(columns, [row], rows, options)
            # The header of CSV has been written.
            stdout.write(rows.getvalue().partition("\n")[2] if format == "csv" else rows.getvalue())
        stdout.flush()

    if format == "table":
        writeTable(columns)
    elif format == "csv":
        formatter.emit_list(columns, [], stdout, options)
    stdout.flush()
    return write


class Formats:
    """
    Formats by their names, as cliff uses its plugins. Searching all installed packages for plugins would take longer
    than all the rest of a help text.
    """

    def __init__(self, formatters: Mapping[str, ListFormatter]) -> None:
        self._plugins = {name: SimpleNamespace(obj=formatter) for name, formatter in formatters.items()}

    def names(self) -> list[str]:
        return list(self._plugins)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self._plugins.values())

    def __getitem__(self, name: str) -> SimpleNamespace:
        return self._plugins[name]


#: The formats of ``-f``, without cliff's format for shells, whose output runs a ``$(…)`` in a value.
FORMATS = Formats(
    {
        "table": _Table(),
        "csv": _CSV(),
        "json": JSONFormatter(),
        "yaml": YAMLFormatter(),
        "value": _Value(),
        "html": _HTML(),
    }
)
#: The formats for rows that come one by one. A table of HTML needs an end.
FOLLOWED_FORMATS = Formats({name: FORMATS[name].obj for name in FORMATS.names() if name != "html"})
#: The formats in which columns have headings; in all others they have their names in the API.
FOR_PEOPLE = ("table", "html")
