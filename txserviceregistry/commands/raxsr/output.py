"""
What results look like: the cells of a row, and the formats that rows are written in.

Tables are for people: local time, and fitted to the terminal. All else is for programs: ISO 8601 in UTC, nothing cut;
JSON and YAML keep lists and objects, and the flat formats write them as the command line reads them.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TextIO, TypeVar

from cliff.columns import FormattableColumn
from cliff.formatters.base import ListFormatter, SingleFormatter
from cliff.formatters.commaseparated import CSVLister
from cliff.formatters.json_format import JSONFormatter
from cliff.formatters.value import ValueFormatter
from cliff.formatters.yaml_format import YAMLFormatter

from ..outcome import printable
from ..parsing import formatMetadata, formatTags

__all__ = [
    "FOLLOWED_FORMATS",
    "FORMATS",
    "FOR_PEOPLE",
    "Cell",
    "Formats",
    "Lines",
    "Metadata",
    "Payload",
    "Tags",
    "Text",
    "Timestamp",
]

_T = TypeVar("_T")

# No column of a table is made narrower than this to fit the terminal.
_NARROWEST = 12

# What formulas of spreadsheets begin with; they skip the white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


class Cell(FormattableColumn[_T]):
    """
    A value that is written differently for people and for programs.

    :ivar wraps: whether a table may break it into several lines; ids are never broken, so that they can be copied.
    """

    wraps = False

    def flat(self) -> str | None:
        """The value as one text, for formats that know nothing else."""
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
    """A moment: milliseconds since the epoch, or ``None`` for never."""

    def machine_readable(self) -> str | None:
        """ISO 8601, UTC."""
        if self._value is None:
            return None
        moment = datetime.fromtimestamp(self._value / 1000, timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def plain(self) -> str:
        """As programs read it, and in a word for never."""
        return self.machine_readable() or "never"

    def human_readable(self) -> str:
        """Local time."""
        return (
            self.plain() if self._value is None else f"{datetime.fromtimestamp(self._value / 1000):%Y-%m-%d %H:%M:%S}"
        )


class Text(Cell[Any]):
    """A text of any length, or ``None``."""

    wraps = True


class Tags(Cell[Sequence[str]]):
    """A service's tags."""

    wraps = True

    def flat(self) -> str:
        """As ``--tags`` reads them."""
        return formatTags(self._value)

    def human_readable(self) -> str:
        """The tags with room between them, where a line can be broken."""
        return ", ".join(self._value)


class Metadata(Cell[Mapping[str, str]]):
    """A service's metadata."""

    wraps = True

    def flat(self) -> str:
        """As ``--metadata`` reads it."""
        return formatMetadata(self._value)

    def human_readable(self) -> str:
        """The pairs with room between them."""
        return ", ".join(f"{key}={value}" for key, value in self._value.items())


class Payload(Cell[Mapping[str, Any]]):
    """An event's payload."""

    wraps = True

    def flat(self) -> str:
        """JSON on one line."""
        return json.dumps(self._value, ensure_ascii=False)


def _flat(row: Iterable[Any]) -> list[Any]:
    return [cell.flat() if isinstance(cell, Cell) else cell for cell in row]


def _plain(row: Iterable[Any]) -> list[Any]:
    return [cell.plain() if isinstance(cell, Cell) else cell for cell in row]


class _Table(ListFormatter, SingleFormatter):
    """Tables. On a terminal their wide columns are broken into lines that fit; in a pipe nothing is."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("table formatter")
        group.add_argument("--max-width", type=int, default=0, metavar="N", help="fit tables into so many characters")
        group.add_argument("--fit-width", action="store_true", help="fit tables into the terminal, also in a pipe")
        # Empty tables are always printed; scripts from elsewhere may ask for it.
        group.add_argument("--print-empty", action="store_true", help=argparse.SUPPRESS)

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Sequence[Any]], stdout: TextIO, parsed_args: Any
    ) -> None:
        self._emit(column_names, [list(row) for row in data], stdout, parsed_args, range(len(column_names)))

    def emit_one(self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        rows = [[name, value] for name, value in zip(column_names, data, strict=True)]
        self._emit(("Field", "Value"), rows, stdout, parsed_args, ())

    def _emit(
        self, names: Sequence[str], rows: list[list[Any]], stdout: TextIO, options: Any, numeric: Iterable[int]
    ) -> None:
        # The import is slow, and not needed for any other format.
        from prettytable import PrettyTable

        table = PrettyTable(list(names))
        table.align = "l"
        for column in numeric:
            if rows and all(isinstance(row[column], int) for row in rows):
                table.align[names[column]] = "r"
        texts = [[self.text(cell) for cell in row] for row in rows]
        table.add_rows(texts)
        width = options.max_width if options.max_width > 0 else self._terminalWidth(options.fit_width)
        if width:
            wrapping = [
                column
                for column in range(len(names))
                if any(isinstance(row[column], Cell) and row[column].wraps for row in rows)
            ]
            widths = [
                max([len(name), *(len(line) for row in texts for line in row[column].split("\n"))])
                for column, name in enumerate(names)
            ]
            for column in _fit(widths, wrapping, width - 3 * len(names) - 1):
                table.max_width[names[column]] = widths[column]
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
                # Not a terminal, though the other one may be.
                continue
        return 0


def _fit(widths: list[int], wrapping: Sequence[int], available: int) -> list[int]:
    """
    Make the wrapping columns narrower, the widest one first, until all fit or none can give any more.

    :return: the columns that have become narrower.
    """
    narrowed = set()
    while sum(widths) > available:
        widest = max(wrapping, key=lambda column: widths[column], default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
        narrowed.add(widest)
    return sorted(narrowed)


class _CSV(CSVLister, SingleFormatter):
    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Sequence[Any]], stdout: TextIO, parsed_args: Any
    ) -> None:
        # cliff's own doubles each backslash, which few readers of CSV undo.
        writer = csv.writer(stdout, quoting=self.QUOTE_MODES[parsed_args.quote_mode], lineterminator="\n")
        writer.writerow(column_names)
        writer.writerows([_asText(cell) for cell in _flat(row)] for row in data)

    def emit_one(self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        self.emit_list(column_names, [data], stdout, parsed_args)


def _asText(cell: Any) -> Any:
    # What begins like this, a spreadsheet takes for a formula and computes, which may send what is in other cells away.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


class _Value(ValueFormatter):
    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Sequence[Any]], stdout: TextIO, parsed_args: Any
    ) -> None:
        super().emit_list(column_names, map(_plain, data), stdout, parsed_args)

    def emit_one(self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        super().emit_one(column_names, _plain(data), stdout, parsed_args)


class _HTML(ListFormatter, SingleFormatter):
    """A table for a browser, with what tables have."""

    def add_argument_group(self, parser: argparse.ArgumentParser) -> None:
        pass

    def emit_list(
        self, column_names: Sequence[str], data: Iterable[Sequence[Any]], stdout: TextIO, parsed_args: Any
    ) -> None:
        print("<table>\n<thead>", file=stdout)
        print(self._row("th", column_names), file=stdout)
        print("</thead>\n<tbody>", file=stdout)
        for row in data:
            print(self._row("td", row), file=stdout)
        print("</tbody>\n</table>", file=stdout)

    def emit_one(self, column_names: Sequence[str], data: Sequence[Any], stdout: TextIO, parsed_args: Any) -> None:
        self.emit_list(("Field", "Value"), zip(column_names, data, strict=True), stdout, parsed_args)

    @staticmethod
    def _row(tag: str, cells: Iterable[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(_Table.text(cell))}</{tag}>' for cell in cells)}</tr>"


class Lines:
    """
    Rows that are written one by one, as they come.

    :param format: the format's name.
    :param columns: the columns' names.
    :param widths: of the columns of a table but the last, for nobody knows what will come.
    :param stdout: where to write.
    :param options: the formats' options.
    """

    def __init__(
        self,
        format: str,
        columns: Sequence[str],
        widths: Mapping[str, int],
        stdout: TextIO,
        options: argparse.Namespace,
    ) -> None:
        self._format = format
        self._columns = columns
        self._widths = widths
        self._stdout = stdout
        self._options = options

    def begin(self) -> None:
        """Write what comes before the first row."""
        if self._format == "table":
            self._table(self._columns)
        elif self._format == "csv":
            FORMATS[self._format].obj.emit_list(self._columns, [], self._stdout, self._options)
        self._stdout.flush()

    def write(self, row: Sequence[Any]) -> None:
        """Write a row, so that whoever reads has it now."""
        if self._format == "table":
            self._table([_Table.text(cell).replace("\n", " ") for cell in row])
        elif self._format == "json":
            values = {
                name: cell.machine_readable() if isinstance(cell, FormattableColumn) else cell
                for name, cell in zip(self._columns, row, strict=True)
            }
            print(json.dumps(values), file=self._stdout)
        else:
            rows = io.StringIO()
            FORMATS[self._format].obj.emit_list(self._columns, [row], rows, self._options)
            # Each list in CSV begins with the columns' names; this one has begun already.
            self._stdout.write(rows.getvalue().partition("\n")[2] if self._format == "csv" else rows.getvalue())
        self._stdout.flush()

    def _table(self, texts: Sequence[str]) -> None:
        padded = [text.ljust(self._widths.get(name, 0)) for name, text in zip(self._columns, texts, strict=True)]
        print("  ".join(padded).rstrip(), file=self._stdout)


class _Format:
    """A format, as cliff expects a plugin to be."""

    def __init__(self, obj: ListFormatter) -> None:
        self.obj = obj


class Formats:
    """
    Formats by their names, as cliff expects its plugins to be. Looking for plugins in all that is installed takes
    longer than all the rest of a help text.

    :param formatters: the formats.
    """

    def __init__(self, formatters: Mapping[str, ListFormatter]) -> None:
        self._formats = {name: _Format(formatter) for name, formatter in formatters.items()}

    def names(self) -> list[str]:
        """The formats' names."""
        return list(self._formats)

    def __iter__(self) -> Iterator[_Format]:
        return iter(self._formats.values())

    def __getitem__(self, name: str) -> _Format:
        return self._formats[name]


#: What ``-f`` takes. cliff's format for shells is not among them: what it prints does not survive an ``eval`` of values
#: that hold a ``$(…)``.
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
#: What ``-f`` takes where there is no end, which a table of HTML has to have.
FOLLOWED_FORMATS = Formats({name: FORMATS[name].obj for name in FORMATS.names() if name != "html"})
#: The formats in which columns have headings; in all others they have the names of the API.
FOR_PEOPLE = ("table", "html")
