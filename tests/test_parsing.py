"""Tests for :mod:`txserviceregistry.parsing`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.parsing import formatMetadata, formatTags, parseMetadata, parseTags

# What has no blanks at its ends and is not empty.
words = st.text(min_size=1).filter(lambda text: text == text.strip())


class TagsTests(SynchronousTestCase):
    """``--tags``."""

    def test_commasSeparate(self) -> None:
        """Each piece is a tag, without the blanks around it; what is empty is none."""
        self.assertEqual(parseTags("api,www"), ["api", "www"])
        self.assertEqual(parseTags(" api , www,,"), ["api", "www"])
        self.assertEqual(parseTags(""), [])

    def test_backslashEscapes(self) -> None:
        """A comma may be part of a tag, and so may a backslash; one before anything else is just a backslash."""
        self.assertEqual(parseTags(r"a\,b,c"), ["a,b", "c"])
        self.assertEqual(parseTags(r"a\\,b"), ["a\\", "b"])
        self.assertEqual(parseTags(r"a\b,c" + "\\"), [r"a\b", "c\\"])

    @given(st.lists(words))
    def test_whatIsWrittenIsReadAgain(self, tags: list[str]) -> None:
        """Any tags can be written so that they are read again."""
        self.assertEqual(parseTags(formatTags(tags)), tags)


class MetadataTests(SynchronousTestCase):
    """``--metadata``."""

    def test_readsPairs(self) -> None:
        """A key ends at the first equals sign, and a value may hold more of them, or be empty."""
        self.assertEqual(
            parseMetadata("port=8000,host=localhost,is_public=true"),
            {"port": "8000", "host": "localhost", "is_public": "true"},
        )
        self.assertEqual(parseMetadata("query=a=b&c=d, empty="), {"query": "a=b&c=d", "empty": ""})
        self.assertEqual(parseMetadata(""), {})

    def test_aValueMayHoldACommaAndBlanks(self) -> None:
        """The comma is escaped; blanks of a value are its own."""
        self.assertEqual(parseMetadata(r"list=1\,2 ,b=C:\x"), {"list": "1,2 ", "b": r"C:\x"})

    def test_saysWhatIsNoPair(self) -> None:
        """A piece without an equals sign, or without a key, or a key that is there twice is told."""
        for text, said in (("a=b,novalue", "'novalue'"), ("=x", "'=x'"), ("a=1,a=2", "'a' is there twice")):
            error = self.assertRaises(ValueError, parseMetadata, text)
            self.assertIn(said, str(error))

    @given(st.dictionaries(words.filter(lambda text: "=" not in text), st.text()))
    def test_whatIsWrittenIsReadAgain(self, metadata: dict[str, str]) -> None:
        """Any metadata whose keys hold no equals sign can be written so that they are read again."""
        self.assertEqual(parseMetadata(formatMetadata(metadata)), metadata)
