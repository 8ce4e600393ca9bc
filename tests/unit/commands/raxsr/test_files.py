"""Files of configuration values: what is written is what is read."""

from __future__ import annotations

import os
import resource
import stat
import sys
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.console import CommandFailed
from txserviceregistry.commands.raxsr.configuration import (
    FORMATS,
    formatValues,
    parseValues,
    problemOf,
    readText,
    writeText,
)

# All that the protocol allows: 1 to 1,024 characters of Unicode, in which halves of surrogate pairs are none.
VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
KEYS = st.from_regex(r"(/[a-z0-9_\-]{3,8}){0,3}/?[a-z0-9_\-.]{3,9}", fullmatch=True).filter(
    lambda key: problemOf(key, "x") is None
)

# Characters that one of the formats takes for the end of a line, for a sign of its own, or for no character at all.
TROUBLESOME = [
    *("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x00", "\x07", "\x1b", "\x7f", "\x9b"),
    *("\t", " ", "\ufeff", "\ufffe", "\uffff", "\ufffd", "\U0001f600", "\U0010ffff", "\xa0", "\u202e", "\xad"),
    *("~", "null", "no", "1.10", "1_000", "0x1f", "2026-11-24", "=", "<<", "---", "...", "- a", "a: b", "#", "%", "@"),
    *("&a", "*a", "!!str", "|", ">", "'", '"', "\\", "\\n", "{", "[", "`", "?", ":"),
]


class ValueFileTests(SynchronousTestCase):
    """Writing and reading."""

    def assertSurvives(self, values: dict[str, str]) -> None:
        """Assert that *values* are the same after they were in a file, in each format."""
        for format in FORMATS:
            path = os.path.join(os.path.abspath("."), f"values.{format}")
            writeText(path, formatValues(values, format))
            self.assertEqual(parseValues(readText(path), format, path, None), values, format)

    def test_troublesomeCharactersSurvive(self) -> None:
        """Each is kept in every place of a value: alone, first, last, within, doubled, beside spaces and line ends."""
        for each in TROUBLESOME:
            texts = (each, f"{each}b", f"a{each}", f"a{each}b", f"a{each}{each}b", f"a {each} b", f"\n{each}\nb")
            self.assertSurvives({f"key{number}": text for number, text in enumerate(texts)})

    def test_aFileThatCantBeWrittenKeepsItsContent(self) -> None:
        """An export that fails, as on a full disk, leaves the earlier one whole, and nothing beside it."""
        folder = self.mktemp()
        os.mkdir(folder)
        path = os.path.join(folder, "values.json")
        writeText(path, "earlier")
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal that comes with it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
        try:
            self.assertRaises(CommandFailed, writeText, path, "x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        self.assertEqual(readText(path), "earlier")
        self.assertEqual(os.listdir(folder), ["values.json"])

    def test_aFileStaysWhatItIs(self) -> None:
        """It keeps its mode and the links that lead to it; a pipe stays a pipe."""
        path, link, pipe = (os.path.abspath(self.mktemp()) for _ in range(3))
        writeText(path, "first")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        os.chmod(path, 0o644)
        os.symlink(path, link)
        writeText(link, "second")
        self.assertEqual(readText(path), "second")
        self.assertTrue(os.path.islink(link))
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o644)
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        writeText(pipe, "third")
        self.assertEqual(os.read(reader, 100), b"third")

    def test_unprintableCharactersSurvive(self) -> None:
        """Each that Unicode calls a control, a format or a separator, by itself between two others."""
        characters = [chr(code) for code in range(sys.maxunicode + 1)]
        found = [each for each in characters if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Zs")]
        self.assertSurvives({f"key{number}": f"a{each}b" for number, each in enumerate(found)})

    @given(st.dictionaries(KEYS, VALUES, max_size=4))
    @example({"key": "a\x85b"})
    def test_allTheProtocolAllowsSurvives(self, values: dict[str, str]) -> None:
        """Files with any values of a namespace."""
        self.assertSurvives(values)

    def test_theMarkThatWindowsPutsFirst(self) -> None:
        """A byte order mark at the beginning of a file is not part of its content."""
        for format, text in (("json", '{"key": "value"}'), ("yaml", "key: value\n")):
            with open("marked", "w", encoding="utf-8-sig") as file:
                file.write(text)
            self.assertEqual(parseValues(readText("marked"), format, "marked", None), {"key": "value"})

    def test_halvesOfSurrogatePairs(self) -> None:
        """An escape that stands for no character is refused with its key, and so is a file in another encoding."""
        for format in FORMATS:
            refused = self.assertRaises(CommandFailed, parseValues, '{"key": "a\\ud800"}', format, "f", None)
            self.assertIn("'key': the value has half of a surrogate pair", str(refused))
        with open("latin", "wb") as file:
            file.write(b"key: caf\xe9\n")
        self.assertIn("not UTF-8", str(self.assertRaises(CommandFailed, readText, "latin")))
