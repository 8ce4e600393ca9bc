"""
The output: columns, and the formats in which records are written.

Tables are for people: local time, fitted to the terminal. All other formats are for programs: ISO 8601 in UTC, nothing
cut; JSON and YAML keep lists and objects, and the flat formats write them as the command line reads them.
"""

from __future__ import annotations

import argparse
import csv
import html
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal

import attrs

from ...util.parsing import formatMetadata, formatTags
from ..outcome import printable

_Record = Mapping[str, Any]

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


@attrs.frozen
class Column:
    """
    A column of a result.

    :ivar heading: its name in tables.
    :ivar width: its least width in a table whose rows come one by one.
    :ivar wraps: whether a table may break it into several lines. Ids are never broken, so they can be copied.
    :ivar machine: makes of a value what JSON and YAML have.
    :ivar flat: makes of it one text, for the formats without lists and objects.
    :ivar plain: makes of it the text for ``-f value``.
    :ivar human: makes of it the text for people.
    """

    heading: str
    width: int = 0
    wraps: bool = False
    machine: Callable[[Any], Any] = lambda value: value
    flat: Callable[[Any], Any] = attrs.Factory(lambda self: self.machine, takes_self=True)
    plain: Callable[[Any], str] = attrs.Factory(lambda self: lambda value: str(self.flat(value)), takes_self=True)
    human: Callable[[Any], str] = attrs.Factory(lambda self: self.plain, takes_self=True)


def text(heading: str) -> Column:
    """A column of texts of any length, or ``None``."""
    return Column(heading, wraps=True, human=lambda value: "" if value is None else str(value))


def timestamp(heading: str, width: int = 0) -> Column:
    """A column of moments in milliseconds since the epoch, or ``None``: local time for people, else ISO 8601 in UTC."""

    def iso(value: int | None) -> str | None:
        if value is None:
            return None
        moment = datetime.fromtimestamp(value / 1000, timezone.utc)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def local(value: int | None) -> str:
        return "never" if value is None else f"{datetime.fromtimestamp(value / 1000):%F %T}"

    return Column(heading, width, machine=iso, plain=lambda value: iso(value) or "never", human=local)


def tags(heading: str) -> Column:
    """A column of services' tags, in flat formats as ``--tags`` reads them."""
    return Column(heading, wraps=True, flat=formatTags, human=", ".join)


def metadata(heading: str) -> Column:
    """A column of metadata, in flat formats as ``--metadata`` reads it."""

    def human(value: Mapping[str, str]) -> str:
        return ", ".join(f"{key}={each}" for key, each in value.items())

    return Column(heading, wraps=True, flat=formatMetadata, human=human)


def payload(heading: str) -> Column:
    """A column of events' payloads, in flat formats as JSON."""
    return Column(heading, wraps=True, flat=partial(json.dumps, ensure_ascii=False))


_Columns = Mapping[str, Column]


def _texts(columns: _Columns, record: _Record) -> list[str]:
    return [printable(column.human(record[name])) for name, column in columns.items()]


def _object(columns: _Columns, record: _Record) -> dict[str, Any]:
    return {name: column.machine(record[name]) for name, column in columns.items()}


# -- the formats


def _grid(columns: _Columns, records: Sequence[_Record], isOne: bool) -> tuple[list[str], list[list[str]]]:
    """The headings and the lines of a table; of one object, it has a line for each column."""
    headings = [column.heading for column in columns.values()]
    lines = [_texts(columns, record) for record in records]
    return (["Field", "Value"], list(map(list, zip(headings, lines[0], strict=True)))) if isOne else (headings, lines)


def writeTable(columns: _Columns, records: Sequence[_Record], options: Any, isOne: bool = False) -> None:
    """
    A table. On a terminal it is made to fit: texts are broken between words, then columns are left out, and then words
    are broken. In a pipe it is not changed.
    """
    # The import is slow, and not needed for any other format.
    from prettytable import PrettyTable

    headings, lines = _grid(columns, records, isOne)
    wraps = [column.wraps for column in columns.values()]
    kept: Sequence[int] = range(len(headings))
    width = options.max_width if options.max_width > 0 else _terminalWidth(options.fit_width)
    if width:
        important = [] if isOne else [list(columns).index(name) for name in options.important]
        kept = _fit(headings, lines, [False, any(wraps)] if isOne else wraps, important, width)
        leftOut = [heading for column, heading in enumerate(headings) if column not in kept]
        if leftOut:
            options.note(f"the terminal is too narrow for {', '.join(leftOut)}: choose columns with -c, or use -f json")
    table = PrettyTable([headings[column] for column in kept])
    table.align = "l"
    for column, name in enumerate(columns):
        if (
            column in kept
            and not isOne
            and records
            and all(_isNumber(columns[name], record[name]) for record in records)
        ):
            table.align[headings[column]] = "r"
    table.add_rows([[line[column] for column in kept] for line in lines])
    print(table.get_string())


def _isNumber(column: Column, value: Any) -> bool:
    # A time is one in the registry, but a text for programs.
    return isinstance(column.machine(value), int)


def _terminalWidth(always: bool) -> int:
    if always or sys.stdout.isatty():
        for stream in (sys.__stdout__, sys.__stderr__):
            try:
                return os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
            except OSError:
                # The other one may be a terminal.
                continue
    return 0


def _fit(
    headings: Sequence[str], lines: list[list[str]], wraps: Sequence[bool], important: Sequence[int], width: int
) -> list[int]:
    """
    Fit *lines* into a *width*, and return the columns that are kept. Of the *important* ones, the last may be left out
    first.
    """
    present, whole, least = [], [], []
    for column, heading in enumerate(headings):
        texts = [line[column] for line in lines]
        present.append(max([len(heading), *(len(part) for text in texts for part in text.split("\n"))]))
        if lines and wraps[column]:
            least.append(min(present[column], max(len(heading), _NARROWEST)))
            whole.append(max([least[column], *(len(word) for text in texts for word in text.split())]))
        else:
            least.append(present[column])
            whole.append(present[column])

    def fits(columns: Sequence[int], widths: Sequence[int]) -> bool:
        return sum(widths[column] for column in columns) <= width - 3 * len(columns) - 1

    kept = [column for column in range(len(headings)) if column not in important]
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
            for line in lines:
                line[column] = _broken(line[column], widths[column])
    return kept


def _broken(text: str, width: int) -> str:
    """*text* in lines that are not longer than *width*, broken between words where that is possible."""
    lines = (textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def _writeCSV(columns: _Columns, records: Sequence[_Record], options: Any, hasNames: bool = True) -> None:
    writer = csv.writer(sys.stdout, quoting=_QUOTE_MODES[options.quote_mode], lineterminator="\n")
    if hasNames:
        writer.writerow(columns)
    writer.writerows([_harmless(column.flat(record[name])) for name, column in columns.items()] for record in records)


def _harmless(cell: Any) -> Any:
    # A spreadsheet computes a formula, which may send the content of other cells to a server.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _writeHTML(columns: _Columns, records: Sequence[_Record], isOne: bool) -> None:
    """A table for a browser, with the texts of tables."""

    def row(tag: str, texts: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"

    headings, lines = _grid(columns, records, isOne)
    body = [row("td", line) for line in lines]
    print("<table>\n<thead>", row("th", headings), "</thead>\n<tbody>", *body, "</tbody>\n</table>", sep="\n")


#: The formats of ``-f``, without one for shells, whose output would run a ``$(…)`` in a value.
FORMATS = ("csv", "html", "json", "table", "value", "yaml")
#: The formats for records that come one by one. A table of HTML needs an end.
FOLLOWED_FORMATS = ("csv", "json", "table", "value", "yaml")


# Modules that formats import, which takes a while.
_MODULES = {"table": "prettytable", "yaml": "yaml"}


def checkFormat(name: str) -> None:
    """Import what a format needs; an ``ImportError`` if it is not installed."""
    if name in _MODULES:
        importlib.import_module(_MODULES[name])


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


def write(columns: _Columns, records: Sequence[_Record], options: Any, *, isOne: bool = False) -> None:
    """
    Write records, or one object, to the standard output.

    :param options: *formatter*, the name of the format; the options of :func:`addFormats`; *important*, the columns
        that a table may leave out, the most important one first; and *note*, which takes a text for the user.
    """
    if options.formatter == "table":
        writeTable(columns, records, options, isOne)
    elif options.formatter == "html":
        _writeHTML(columns, records, isOne)
    elif options.formatter == "csv":
        _writeCSV(columns, records, options)
    elif options.formatter == "value":
        for record in records:
            texts = [column.plain(record[name]) for name, column in columns.items()]
            print(*texts, sep="\n" if isOne else " ")
    else:
        objects = [_object(columns, record) for record in records]
        found = objects[0] if isOne else objects
        if options.formatter == "json":
            print(json.dumps(found, indent=None if options.noindent else 2))
        else:
            # The import is slow.
            import yaml

            # One object is in the order of its columns, and what is below them sorted.
            parts = [{name: value} for name, value in objects[0].items()] if isOne else [objects]
            for part in parts:
                yaml.safe_dump(part, sys.stdout, default_flow_style=False)


def recordWriter(columns: _Columns, options: Any) -> Callable[[_Record], None]:
    """Write what comes before the first of the records that come one by one; the result writes a record at once."""

    def writeLine(texts: Iterable[str]) -> None:
        padded = (text.ljust(column.width) for text, column in zip(texts, columns.values(), strict=True))
        print("  ".join(padded).rstrip())

    def writeRecord(record: _Record) -> None:
        if options.formatter == "table":
            writeLine(text.replace("\n", " ") for text in _texts(columns, record))
        elif options.formatter == "json":
            print(json.dumps(_object(columns, record)))
        elif options.formatter == "csv":
            _writeCSV(columns, [record], options, hasNames=False)
        else:
            write(columns, [record], options)
        sys.stdout.flush()

    if options.formatter == "table":
        writeLine(column.heading for column in columns.values())
    elif options.formatter == "csv":
        _writeCSV(columns, [], options)
    sys.stdout.flush()
    return writeRecord
