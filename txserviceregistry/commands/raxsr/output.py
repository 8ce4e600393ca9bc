"""The output: columns, and the formats in which records are written."""

from __future__ import annotations

import csv
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

import attrs

from ...util.fields import formatMetadata, formatTags
from ..console import printable

#: The formats of ``-f``, without one for shells, whose output would run a ``$(…)`` in a value.
FORMATS = ("csv", "html", "json", "table", "value", "yaml")

Record = Mapping[str, Any]
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
    :ivar machine: makes of a value what JSON and YAML have, *flat* one text that the command line reads, *plain* that
        of ``-f value``, and *human* that for people.
    """

    heading: str = ""
    width: int = 0
    isExtra: bool = False
    wraps: bool = False
    machine: Callable[[Any], Any] = lambda value: value
    flat: Callable[[Any], Any] = attrs.Factory(lambda self: self.machine, takes_self=True)
    plain: Callable[[Any], str] = attrs.Factory(lambda self: lambda value: str(self.flat(value)), takes_self=True)
    human: Callable[[Any], str] = attrs.Factory(lambda self: self.plain, takes_self=True)


def _iso(value: int | None) -> str | None:
    if value is None:
        return None
    moment = datetime.fromtimestamp(value / 1000, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _localTime(value: int | None) -> str:
    return "never" if value is None else f"{datetime.fromtimestamp(value / 1000):%F %T}"


_TEXT = Column(wraps=True, human=lambda value: "" if value is None else str(value))
# Milliseconds since the epoch, or None.
_MOMENT = Column(width=19, machine=_iso, plain=lambda value: _iso(value) or "never", human=_localTime)
_COLUMNS = {
    **dict.fromkeys(("value", "old_value", "new_value", "reason", "holder"), _TEXT),
    **dict.fromkeys(("timestamp", "last_seen", "expires_at", "acquired_at"), _MOMENT),
    "tags": Column(wraps=True, flat=formatTags, human=", ".join),
    "metadata": Column(wraps=True, flat=formatMetadata, human=lambda pairs: ", ".join(map("=".join, pairs.items()))),
    "payload": Column(wraps=True, flat=partial(json.dumps, ensure_ascii=False)),
}
# The columns that a narrow terminal may leave out, by their headings, the most important one first.
_OPTIONAL = (
    *("Metadata", "Tags", "Payload", "State", "Reason", "Holder", "Last Seen", "Acquired At", "Old Value", "Ends"),
    *("Heartbeat Timeout", "Timeout", "Fence", "Event ID"),
)


def columns(names: str, **headings: str | Column) -> dict[str, Column]:
    """The columns of a result by their *names* in the API. A heading that is not given is the name in words."""
    found: dict[str, Column] = {}
    for name in names.split():
        given = headings.get(name, name.replace("_", " ").title())
        found[name] = attrs.evolve(_COLUMNS.get(name, Column()), heading=given) if isinstance(given, str) else given
    return found


@attrs.frozen
class Output:
    """Writes records to the standard output. An ``ImportError`` if what the format needs is not installed."""

    columns: Mapping[str, Column]
    format: str = "table"
    # Whether a table has all columns, however narrow the terminal is.
    isWhole: bool = False
    note: Callable[[str], None] = lambda text: None
    # The width of tables; 0 for any, None for the terminal's.
    width: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.format in _MODULES:
            importlib.import_module(_MODULES[self.format])

    def write(self, records: Sequence[Record], *, isOne: bool = False) -> None:
        if self.format in ("table", "html"):
            self._writeTable(records, isOne)
        elif self.format == "value" and isOne:
            print(*self._plain(records[0]), sep="\n")
        elif self.format in ("csv", "value"):
            show = self.rows()
            for record in records:
                show(record)
        else:
            objects = [self._object(record) for record in records]
            found = objects[0] if isOne else objects
            if self.format == "json":
                print(json.dumps(found, indent=2))
            else:
                # The import is slow.
                import yaml

                yaml.safe_dump(found, sys.stdout, default_flow_style=False, sort_keys=False)

    def rows(self) -> Callable[[Record], None]:
        """Write what comes before the first of the records that come one by one; the result writes a record at once."""
        writer = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")

        def writeLine(texts: Iterable[str]) -> None:
            padded = (text.ljust(column.width) for text, column in zip(texts, self.columns.values(), strict=True))
            print("  ".join(padded).rstrip(), flush=True)

        def show(record: Record) -> None:
            if self.format == "table":
                writeLine(text.replace("\n", " ") for text in self._texts(record))
            elif self.format == "json":
                print(json.dumps(self._object(record)))
            elif self.format == "csv":
                writer.writerow(_harmless(column.flat(record[name])) for name, column in self.columns.items())
            elif self.format == "value":
                print(*self._plain(record))
            else:
                self.write([record])
            sys.stdout.flush()

        if self.format == "table":
            writeLine(column.heading for column in self.columns.values())
        elif self.format == "csv":
            writer.writerow(self.columns)
            sys.stdout.flush()
        return show

    def _texts(self, record: Record) -> list[str]:
        return [printable(column.human(record[name])) for name, column in self.columns.items()]

    def _plain(self, record: Record) -> list[str]:
        return [column.plain(record[name]) for name, column in self.columns.items()]

    def _object(self, record: Record) -> dict[str, Any]:
        return {name: column.machine(record[name]) for name, column in self.columns.items()}

    def _writeTable(self, records: Sequence[Record], isOne: bool) -> None:
        from prettytable import PrettyTable

        headings, lines = [column.heading for column in self.columns.values()], [self._texts(each) for each in records]
        wraps = [column.heading for column in self.columns.values() if column.wraps]
        if isOne:
            # A line for each column.
            lines = list(map(list, zip(headings, lines[0], strict=True)))
            headings, wraps = ["Field", "Value"], ["Value"] if wraps else []
        table = PrettyTable(headings)
        table.align, table.break_on_hyphens = "l", False
        if self.format == "html":
            table.add_rows(lines)
            print(table.get_html_string())
            return
        for name, column in self.columns.items():
            # A time is a number in the registry, but a text for programs.
            if records and not isOne and all(isinstance(column.machine(each[name]), int) for each in records):
                table.align[column.heading] = "r"
        shown = headings
        width = _terminalWidth() if self.width is None else self.width
        if width:
            texts = {heading: [line[index] for line in lines] for index, heading in enumerate(headings)}
            optional = [] if isOne or self.isWhole else [heading for heading in _OPTIONAL if heading in headings]
            widths = _fittedWidths(texts, wraps, optional, width)
            shown, omitted = list(widths), [heading for heading in headings if heading not in widths]
            for heading in shown:
                table.max_width[heading] = widths[heading]
            lines = [[_broken(*each, widths) for each in zip(headings, line, strict=True)] for line in lines]
            if omitted:
                narrow = f"the terminal is too narrow for {', '.join(omitted)}"
                self.note(f"{narrow}: choose columns with -c, or use -f json")
        table.add_rows(lines)
        print(table.get_string(fields=shown))


def _broken(heading: str, text: str, widths: Mapping[str, int]) -> str:
    """The text, with long words broken as prettytable breaks them, which needs a second for 20,000 characters."""
    width = widths.get(heading, len(text))
    if all(len(word) <= width for word in text.split()):
        return text
    return "\n".join("\n".join(textwrap.wrap(line, width, break_on_hyphens=False)) for line in text.split("\n"))


def _harmless(cell: Any) -> Any:
    # A spreadsheet computes a formula, which may send the content of other cells to a server.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def _terminalWidth() -> int:
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ and sys.stdout.isatty() else 0
    except OSError:
        return 0


def _fittedWidths(
    columns: Mapping[str, Sequence[str]], wraps: Collection[str], optional: Sequence[str], width: int
) -> dict[str, int]:
    """
    The widths of those *columns* (texts by heading) that a table of a *width* keeps: texts are broken between words,
    then *optional* columns are left out, and then words are broken.
    """
    # The widths of the columns as they are, with whole words, and with broken words.
    present, whole, least = {}, {}, {}
    for heading, texts in columns.items():
        widest = max(len(line) for text in [heading, *texts] for line in text.split("\n"))
        words = [word for text in texts for word in text.split()] if heading in wraps else []
        present[heading] = widest
        least[heading] = min(widest, max(len(heading), _NARROWEST)) if heading in wraps else widest
        whole[heading] = max([least[heading], *map(len, words)])

    def fits(headings: Iterable[str], widths: Mapping[str, int]) -> bool:
        return sum(widths[heading] + 3 for heading in headings) < width

    kept = [heading for heading in columns if heading not in optional]
    for heading in optional:
        if fits([*kept, heading], whole):
            kept.append(heading)
    widths = {heading: min(present[heading], max(width, least[heading])) for heading in columns if heading in kept}
    # Between words if that is enough, else within them; always the widest column.
    for bound in (whole, least):
        while not fits(widths, widths) and (wide := [each for each in widths if widths[each] > bound[each]]):
            widths[max(wide, key=lambda heading: widths[heading])] -= 1
    return widths
