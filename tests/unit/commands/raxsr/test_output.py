"""Tables, and how they are made to fit a terminal."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.raxsr.output import Column, Output, columns

COLUMNS = columns("id timeout tags metadata", id="Service ID")
NAMES = [column.heading for column in COLUMNS.values()]
VALUES = columns("id value", id="ID")


class TableTests(SynchronousTestCase):
    """Tables of a given width."""

    def table(
        self, records: Sequence[Mapping[str, Any]], width: int, shown: Mapping[str, Column] = COLUMNS
    ) -> list[str]:
        """The lines of a table; what is told beside it is in :attr:`notes`."""
        self.notes: list[str] = []
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            Output(shown, note=self.notes.append, width=width).write(records)
        return stdout.getvalue().splitlines()

    def row(self, tags: Sequence[str], **metadata: str) -> Mapping[str, Any]:
        return {"id": "web-server-1", "timeout": 30, "tags": tags, "metadata": metadata}

    def test_breaksBetweenWords(self) -> None:
        """If that is enough, all columns stay and all words are whole, those with hyphens too."""
        lines = self.table([self.row(["first-tag", "second-tag"], host="web-1.example.com", port="8000")], 75)
        self.assertEqual(self.notes, [])
        self.assertLessEqual(max(map(len, lines)), 75)
        for word in (*NAMES, "web-server-1", "first-tag", "second-tag", "host=web-1.example.com", "port=8000"):
            self.assertTrue(any(word in line for line in lines), word)

    def test_leavesColumnsOut(self) -> None:
        """If no word can stay whole, the least important columns are left out, and a note says so."""
        row = self.row(["first-tag", "second-tag"], host="web-1.example.com", port="8000")
        for width, leftOut in ((60, ["Timeout"]), (50, ["Timeout", "Tags"]), (40, ["Timeout", "Metadata"])):
            lines = self.table([row], width)
            self.assertLessEqual(max(map(len, lines)), width)
            self.assertEqual([name for name in NAMES if name not in lines[1]], leftOut)
            [note] = self.notes
            self.assertIn(f"too narrow for {', '.join(leftOut)}:", note)
            self.assertTrue(any("web-server-1" in line for line in lines))

    def test_aLongWordTakesNoOthersPlace(self) -> None:
        """A column for whose words there is never room does not push others out."""
        self.table([self.row(["www"], token="x" * 200)], 80)
        self.assertEqual(len(self.notes), 1)
        self.assertIn("too narrow for Metadata:", self.notes[0])

    def test_breaksWordsAtTheEnd(self) -> None:
        """If nothing can be left out, words are broken rather than lines of the table; ids never are."""
        lines = self.table([{"id": "/some/long/key", "value": "x" * 200}], 60, VALUES)
        self.assertEqual((self.notes, {len(line) for line in lines}), ([], {60}))
        self.assertEqual("".join(lines).count("x"), 200)
        self.assertTrue(any("/some/long/key" in line for line in lines))

    def test_anEndlessWord(self) -> None:
        """The time that a table takes grows with a word's length, and not with its square, which were minutes here."""
        lines = self.table([{"id": "key", "value": "x" * 500_000}], 60, VALUES)
        self.assertEqual({len(line) for line in lines}, {60})

    def test_lineEndsStay(self) -> None:
        """A value of several lines has them in a narrow table too, the empty ones included."""
        lines = self.table([{"id": "key", "value": "one\n\ntwo " + "three " * 20}], 40, VALUES)
        self.assertEqual(
            [line.split("|")[2].strip() for line in lines[3:6]], ["one", "", lines[5].split("|")[2].strip()]
        )
        self.assertTrue(lines[5].split("|")[2].strip().startswith("two three"))

    def test_numbersAreOnTheRight(self) -> None:
        """A column of numbers is, and nothing else, also not times, which are numbers in the registry."""
        given = columns("count timestamp", count="How many", timestamp="At")
        lines = self.table([{"count": 5, "timestamp": 1_700_000_000_000}], 0, given)
        self.assertIn("| How many | At   ", lines[1])
        self.assertIn("|        5 | 20", lines[3])

    def test_whatFitsStaysWhole(self) -> None:
        """A table that fits, or for which no width is known, is written as it is."""
        row = self.row(["a"], b="c")
        self.assertEqual(self.table([row], 80), self.table([row], 0))
        self.assertEqual(self.notes, [])


class RowsTests(SynchronousTestCase):
    """Records that come one by one."""

    def rows(self, format: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            show = Output(VALUES, format).rows()
            for number in range(2):
                show({"id": f"key{number}", "value": "a\nb"})
        return stdout.getvalue()

    def test_formats(self) -> None:
        """A table has its headings first, CSV its names; JSON has an object on a line."""
        self.assertEqual(self.rows("table"), "ID  Value\nkey0  a b\nkey1  a b\n")
        self.assertEqual(self.rows("csv"), '"id","value"\n"key0","a\nb"\n"key1","a\nb"\n')
        self.assertEqual(self.rows("json").splitlines()[1], '{"id": "key1", "value": "a\\nb"}')
        self.assertEqual(self.rows("value"), "key0 a\nb\nkey1 a\nb\n")
