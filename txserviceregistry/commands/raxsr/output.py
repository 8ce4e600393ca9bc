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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

import attrs

from ...util.parsing import formatMetadata, formatTags
from ..outcome import printable

_Names = Sequence[str]
_Rows = Sequence[Sequence[Any]]

# The least width of a column that is fitted to the terminal.
_NARROWEST = 12

# The first characters of a formula in a spreadsheet, which skips white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_QUOTE_MODES: dict[str, Literal[0, 1, 2, 3]] = {
    "all": csv.QUOTE_ALL,
    "minimal": csv.QUOTE_MINIMAL,
    "none": csv.QUOTE_NONE,
    "nonnumeric": csv.QUOTE_NONNUMERIC,
}


class Text:
    """A value that is written differently for people and for programs; here, a text of any length or ``None``."""

    #: Whether a table may break it into several lines. Ids are never broken, so they can be copied.
    wraps = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def machine(self) -> Any:
        """The value for JSON and YAML."""
        return self.value

    def flat(self) -> str | None:
        """The value as one text, for the formats without lists and objects."""
        value = self.machine()
        return None if value is None else str(value)

    def plain(self) -> str:
        """The value for ``-f value``."""
        return str(self.flat())

    def human(self) -> str:
        return self.flat() or ""

    def __lt__(self, other: Text) -> bool:
        return (self.flat() or "") < (other.flat() or "")


class Timestamp(Text):
    """A moment in milliseconds since the epoch, or ``None`` for never: local time for people, else ISO 8601 in UTC."""

    wraps = False

    def machine(self) -> str | None:
        if self.value is None:
            return None
        moment = datetime.fromtimestamp(self.value / 1000, timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def plain(self) -> str:
        return self.machine() or "never"

    def human(self) -> str:
        return "never" if self.value is None else f"{datetime.fromtimestamp(self.value / 1000):%F %T}"


class Tags(Text):
    """A service's tags, in flat formats as ``--tags`` reads them."""

    def flat(self) -> str:
        return formatTags(self.value)

    def human(self) -> str:
        return ", ".join(self.value)


class Metadata(Text):
    """A service's metadata, in flat formats as ``--metadata`` reads it."""

    def flat(self) -> str:
        return formatMetadata(self.value)

    def human(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.value.items())


class Payload(Text):
    """An event's payload, in flat formats as JSON."""

    def flat(self) -> str:
        return json.dumps(self.value, ensure_ascii=False)


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


def _human(cell: object) -> str:
    return printable(cell.human() if isinstance(cell, Text) else str(cell))


def _object(names: _Names, row: Sequence[Any]) -> dict[str, Any]:
    return {name: cell.machine() if isinstance(cell, Text) else cell for name, cell in zip(names, row, strict=True)}


# -- the formats


def writeTable(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool = False) -> None:
    """
    A table. On a terminal it is made to fit: texts are broken between words, then columns are left out, and then words
    are broken. In a pipe it is not changed.
    """
    # The import is slow, and not needed for any other format.
    from prettytable import PrettyTable

    texts = [[_human(cell) for cell in row] for row in rows]
    kept: Sequence[int] = range(len(names))
    width = options.max_width if options.max_width > 0 else _terminalWidth(options.fit_width)
    if width:
        important = [] if isOne else [names.index(name) for name in options.importance]
        kept = _fit(names, rows, texts, important, width)
        leftOut = [name for column, name in enumerate(names) if column not in kept]
        if leftOut:
            options.note(f"the terminal is too narrow for {', '.join(leftOut)}: choose columns with -c, or use -f json")
    table = PrettyTable([names[column] for column in kept])
    table.align = "l"
    for column in kept:
        if not isOne and rows and all(isinstance(row[column], int) for row in rows):
            table.align[names[column]] = "r"
    table.add_rows([[row[column] for column in kept] for row in texts])
    print(table.get_string(), file=stdout)


def _terminalWidth(always: bool) -> int:
    if always or sys.stdout.isatty():
        for stream in (sys.__stdout__, sys.__stderr__):
            try:
                return os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
            except OSError:
                # The other one may be a terminal.
                continue
    return 0


def _fit(names: _Names, rows: _Rows, texts: list[list[str]], important: Sequence[int], width: int) -> list[int]:
    """
    Fit *texts* into a *width*, and return the columns that are kept. Of the *important* ones, the last may be left out
    first.
    """
    present, whole, least = [], [], []
    for column, name in enumerate(names):
        cells = [row[column] for row in texts]
        present.append(max([len(name), *(len(line) for text in cells for line in text.split("\n"))]))
        if any(isinstance(row[column], Text) and row[column].wraps for row in rows):
            least.append(min(present[column], max(len(name), _NARROWEST)))
            whole.append(max([least[column], *(len(word) for text in cells for word in text.split())]))
        else:
            least.append(present[column])
            whole.append(present[column])

    def fits(columns: Sequence[int], widths: Sequence[int]) -> bool:
        return sum(widths[column] for column in columns) <= width - 3 * len(columns) - 1

    kept = [column for column in range(len(names)) if column not in important]
    for column in important:
        if fits([*kept, column], whole):
            kept.append(column)
    kept.sort()
    widths = list(present)
    # Between words if that is enough, else within them; always the widest column.
    for bound in (whole, least):
        while not fits(kept, widths) and (wide := [column for column in kept if widths[column] > bound[column]]):
            widths[max(wide, key=lambda column: widths[column])] -= 1
    for column in kept:
        if widths[column] < present[column]:
            for row in texts:
                row[column] = _broken(row[column], widths[column])
    return kept


def _broken(text: str, width: int) -> str:
    """*text* in lines that are not longer than *width*, broken between words where that is possible."""
    lines = (textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def _writeCSV(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool) -> None:
    writer = csv.writer(stdout, quoting=_QUOTE_MODES[options.quote_mode], lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_harmless(cell.flat() if isinstance(cell, Text) else cell) for cell in row] for row in rows)


def _harmless(cell: Any) -> Any:
    # A spreadsheet computes a formula, which may send the content of other cells to a server.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _writeJSON(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool) -> None:
    records = [_object(names, row) for row in rows]
    json.dump(records[0] if isOne else records, stdout, indent=None if options.noindent else 2)
    stdout.write("\n")


def _writeYAML(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool) -> None:
    # The import is slow.
    import yaml

    records = [_object(names, row) for row in rows]
    # One object is in the order of its columns.
    yaml.safe_dump(records[0] if isOne else records, stdout, default_flow_style=False, sort_keys=not isOne)


def _writeValues(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool) -> None:
    for row in rows:
        cells = (cell.plain() if isinstance(cell, Text) else str(cell) for cell in row)
        print(*cells, sep="\n" if isOne else " ", file=stdout)


def _writeHTML(names: _Names, rows: _Rows, stdout: TextIO, options: Any, isOne: bool) -> None:
    """A table for a browser, with the texts of tables."""

    def line(tag: str, cells: Iterable[Any]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(_human(cell))}</{tag}>' for cell in cells)}</tr>"

    body = [line("td", row) for row in rows]
    print(
        "<table>\n<thead>", line("th", names), "</thead>\n<tbody>", *body, "</tbody>\n</table>", sep="\n", file=stdout
    )


# Without a format for shells, whose output would run a $(…) in a value.
_FORMATS = {
    "table": writeTable,
    "csv": _writeCSV,
    "json": _writeJSON,
    "yaml": _writeYAML,
    "value": _writeValues,
    "html": _writeHTML,
}
#: The names of the formats of ``-f``.
FORMATS = tuple(_FORMATS)
#: The formats for rows that come one by one. A table of HTML needs an end.
FOLLOWED_FORMATS = FORMATS[:-1]
#: The formats in which columns have headings; in all others they have their names in the API.
FOR_PEOPLE = ("table", "html")


def addFormats(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group("table formatter")
    table.add_argument("--max-width", type=int, default=0, metavar="N", help="fit tables into so many characters")
    table.add_argument("--fit-width", action="store_true", help="fit tables into the terminal, also in a pipe")
    # Empty tables are always printed; the option is for scripts that other tools were written for.
    table.add_argument("--print-empty", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument_group("CSV Formatter").add_argument(
        "--quote",
        choices=sorted(_QUOTE_MODES),
        dest="quote_mode",
        default="nonnumeric",
        help="the values to quote in CSV (default: nonnumeric)",
    )
    json = parser.add_argument_group("json formatter")
    json.add_argument("--noindent", action="store_true", help="write JSON on one line")


def write(format: str, names: _Names, rows: _Rows, stdout: TextIO, options: Any, *, isOne: bool = False) -> None:
    """
    Write rows, or one object.

    :param options: the options of :func:`addFormats`; *importance*, the headings of columns that a table may leave out,
        the most important one first; and *note*, which takes a text for the user.
    """
    if isOne and format in FOR_PEOPLE:
        names, rows = ("Field", "Value"), list(zip(names, rows[0], strict=True))
    _FORMATS[format](names, rows, stdout, options, isOne)


def rowWriter(
    format: str, columns: _Names, widths: Mapping[str, int], stdout: TextIO, options: argparse.Namespace
) -> Callable[[Sequence[Any]], None]:
    """
    Write what comes before the first of the rows that come one by one; the result writes a row at once.

    :param widths: the least widths of the columns of a table.
    :param options: the formats' options.
    """

    def writeLine(texts: Sequence[str]) -> None:
        padded = [text.ljust(widths.get(name, 0)) for name, text in zip(columns, texts, strict=True)]
        print("  ".join(padded).rstrip(), file=stdout)

    def writeRow(row: Sequence[Any]) -> None:
        if format == "table":
            writeLine([_human(cell).replace("\n", " ") for cell in row])
        elif format == "json":
            print(json.dumps(_object(columns, row)), file=stdout)
        else:
            rows = io.StringIO()
            write(format, columns, [row], rows, options)
            # The header of CSV has been written.
            stdout.write(rows.getvalue().partition("\n")[2] if format == "csv" else rows.getvalue())
        stdout.flush()

    if format == "table":
        writeLine(columns)
    elif format == "csv":
        write(format, columns, [], stdout, options)
    stdout.flush()
    return writeRow
