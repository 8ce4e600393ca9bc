"""The output: columns, and the formats in which records are written."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import attrs

from ...util.parsing import formatMetadata, formatTags
from ..console import printable

if TYPE_CHECKING:
    from prettytable import PrettyTable

#: The formats of ``-f``, without one for shells, whose output would run a ``$(…)`` in a value.
FORMATS = ("csv", "html", "json", "table", "value", "yaml")

_Record = Mapping[str, Any]
# The least width of a column that is fitted to the terminal.
_NARROWEST = 12
# The first characters of a formula in a spreadsheet, which skips white space.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
# Modules that formats import, which takes a while.
_MODULES = {"table": "prettytable", "html": "prettytable", "yaml": "yaml"}


@attrs.frozen
class Column:
    """
    A column of a result.

    :ivar width: its least width in a table whose rows come one by one.
    :ivar isExtra: whether it is shown only if it is chosen.
    :ivar wraps: whether a table may break it into several lines. Ids are never broken, so they can be copied.
    :ivar machine: makes of a value what JSON and YAML have.
    :ivar flat: makes of it one text, as the command line reads it.
    :ivar plain: makes of it the text for ``-f value``.
    :ivar human: makes of it the text for people.
    """

    heading: str
    width: int = 0
    isExtra: bool = False
    wraps: bool = False
    machine: Callable[[Any], Any] = lambda value: value
    flat: Callable[[Any], Any] = attrs.Factory(lambda self: self.machine, takes_self=True)
    plain: Callable[[Any], str] = attrs.Factory(lambda self: lambda value: str(self.flat(value)), takes_self=True)
    human: Callable[[Any], str] = attrs.Factory(lambda self: self.plain, takes_self=True)


def text(heading: str) -> Column:
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
    return Column(heading, wraps=True, flat=formatTags, human=", ".join)


def metadata(heading: str) -> Column:
    return Column(heading, wraps=True, flat=formatMetadata, human=lambda value: ", ".join(map("=".join, value.items())))


@attrs.frozen
class Output:
    """
    Writes records to the standard output.

    :ivar important: the columns that a table may leave out, the most important one first.
    :ivar note: takes a text for the user.
    :ivar width: the width of tables; 0 for any, ``None`` for the terminal's.
    """

    columns: Mapping[str, Column]
    format: str = "table"
    important: Sequence[str] = ()
    note: Callable[[str], None] = lambda text: None
    width: int | None = None

    def checkFormat(self) -> None:
        """Import what the format needs; an ``ImportError`` if it is not installed."""
        if self.format in _MODULES:
            importlib.import_module(_MODULES[self.format])

    def write(self, records: Sequence[_Record], *, isOne: bool = False) -> None:
        if self.format == "table":
            self._writeTable(records, isOne)
        elif self.format == "html":
            print(self._table(*self._grid(records, isOne)).get_html_string())
        elif self.format == "csv":
            self._writeCSV(records)
        elif self.format == "value":
            for record in records:
                texts = [column.plain(record[name]) for name, column in self.columns.items()]
                print(*texts, sep="\n" if isOne else " ")
        else:
            objects = [self._object(record) for record in records]
            found = objects[0] if isOne else objects
            if self.format == "json":
                print(json.dumps(found, indent=2))
            else:
                # The import is slow.
                import yaml

                yaml.safe_dump(found, sys.stdout, default_flow_style=False, sort_keys=False)

    def rows(self) -> Callable[[_Record], None]:
        """Write what comes before the first of the records that come one by one; the result writes a record at once."""

        def writeLine(texts: Iterable[str]) -> None:
            padded = (text.ljust(column.width) for text, column in zip(texts, self.columns.values(), strict=True))
            print("  ".join(padded).rstrip(), flush=True)

        def writeRecord(record: _Record) -> None:
            if self.format == "table":
                writeLine(text.replace("\n", " ") for text in self._texts(record))
            elif self.format == "json":
                print(json.dumps(self._object(record)))
            elif self.format == "csv":
                self._writeCSV([record], hasNames=False)
            else:
                self.write([record])
            sys.stdout.flush()

        if self.format == "table":
            writeLine(column.heading for column in self.columns.values())
        elif self.format == "csv":
            self._writeCSV([])
            sys.stdout.flush()
        return writeRecord

    def _texts(self, record: _Record) -> list[str]:
        return [printable(column.human(record[name])) for name, column in self.columns.items()]

    def _object(self, record: _Record) -> dict[str, Any]:
        return {name: column.machine(record[name]) for name, column in self.columns.items()}

    def _writeCSV(self, records: Iterable[_Record], hasNames: bool = True) -> None:
        writer = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        if hasNames:
            writer.writerow(self.columns)
        for record in records:
            writer.writerow([_harmless(column.flat(record[name])) for name, column in self.columns.items()])

    # -- tables

    def _grid(self, records: Sequence[_Record], isOne: bool) -> tuple[list[str], list[list[str]]]:
        """The headings and the lines of a table; of one object, it has a line for each column."""
        headings = [column.heading for column in self.columns.values()]
        lines = [self._texts(record) for record in records]
        if isOne:
            return ["Field", "Value"], list(map(list, zip(headings, lines[0], strict=True)))
        return headings, lines

    def _table(self, headings: list[str], lines: list[list[str]]) -> PrettyTable:
        from prettytable import PrettyTable

        table = PrettyTable(headings)
        table.align = "l"
        table.add_rows(lines)
        return table

    def _writeTable(self, records: Sequence[_Record], isOne: bool) -> None:
        headings, lines = self._grid(records, isOne)
        kept = list(range(len(headings)))
        width = _terminalWidth() if self.width is None else self.width
        if width:
            wraps = [column.wraps for column in self.columns.values()]
            important = [] if isOne else [list(self.columns).index(name) for name in self.important]
            kept = _fit(headings, lines, [False, any(wraps)] if isOne else wraps, important, width)
            omitted = [heading for column, heading in enumerate(headings) if column not in kept]
            if omitted:
                narrow = f"the terminal is too narrow for {', '.join(omitted)}"
                self.note(f"{narrow}: choose columns with -c, or use -f json")
        table = self._table(headings, lines)
        for name, column in self.columns.items():
            # A time is a number in the registry, but a text for programs.
            if records and not isOne and all(isinstance(column.machine(each[name]), int) for each in records):
                table.align[column.heading] = "r"
        print(table.get_string(fields=[headings[column] for column in kept]))


def _harmless(cell: Any) -> Any:
    # A spreadsheet computes a formula, which may send the content of other cells to a server.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _terminalWidth() -> int:
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ and sys.stdout.isatty() else 0
    except OSError:
        return 0


def _fit(
    headings: Sequence[str], lines: list[list[str]], wraps: Sequence[bool], important: Sequence[int], width: int
) -> list[int]:
    """
    Fit *lines* into a *width*: texts are broken between words, then columns are left out, and then words are broken.

    :return: the columns that are kept.
    """
    # The widths of the columns as they are, with whole words, and with broken words.
    present, whole, least = [], [], []
    for column, heading in enumerate(headings):
        texts = [line[column] for line in lines]
        present.append(max([len(heading), *(len(part) for text in texts for part in text.split("\n"))]))
        breaks = bool(lines) and wraps[column]
        least.append(min(present[column], max(len(heading), _NARROWEST)) if breaks else present[column])
        whole.append(max([least[column], *(len(word) for text in texts for word in text.split() if breaks)]))

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
