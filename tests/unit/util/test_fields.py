"""Tests for :mod:`txserviceregistry.util.fields`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http import validation
from txserviceregistry.util.fields import (
    KEY,
    LONGEST_RETRY_AFTER,
    SERVICE_ID,
    boundedNumber,
    formatMetadata,
    formatTags,
    parseCount,
    parseDuration,
    parseMetadata,
    parseRate,
    parseRetryAfter,
    parseTags,
)


class AgreementTests(SynchronousTestCase):
    """The library refuses just what the registry refuses."""

    @given(st.text("aZ0/_-. \n", max_size=70) | st.from_regex(r"(/[a-z]{3,4}/?){1,11}[a-z.]{0,3}", fullmatch=True))
    def test_idsAndKeys(self, text: str) -> None:
        """Any text is an id, or a key, to both or to neither."""
        for pattern, check in ((SERVICE_ID, validation.SERVICE_ID.value), (KEY, validation.KEY.value)):
            try:
                check(text)
            except Fault:
                self.assertIsNone(pattern.fullmatch(text), text)
            else:
                self.assertIsNotNone(pattern.fullmatch(text), text)


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


class NumbersTests(SynchronousTestCase):
    """Numbers that come from outside."""

    def test_bounded(self) -> None:
        """A finite number within the bounds, and nothing else."""
        for good in (0, 1.5, "2", 3):
            self.assertEqual(boundedNumber(good, 0, 3), float(good))
        for bad in (-1, 3.1, "inf", "nan", float("inf"), float("nan"), 10**400, "1e308", "", "x", None, True, [1], {}):
            self.assertRaises(ValueError, boundedNumber, bad, 0, 3)
        for bad, shown in ((-1, "-1"), (3.1, "3.1"), ("x", "'x'"), (None, "NoneType"), (10**5000, "int")):
            error = self.assertRaises(ValueError, boundedNumber, bad, 0, 3)
            self.assertEqual(str(error), f"{shown} is not a number from 0 to 3")

    def test_retryAfter(self) -> None:
        """Seconds, an hour at most; anything but a decimal number counts as absent."""
        self.assertEqual([parseRetryAfter(text) for text in ("0", " 7 ", "1.5")], [0.0, 7.0, 1.5])
        self.assertEqual(parseRetryAfter("9" * 400), LONGEST_RETRY_AFTER)
        for text in (None, "", "inf", "nan", "1e308", "-1", "Fri, 31 Dec 9999 23:59:59 GMT", "٣"):
            self.assertIsNone(parseRetryAfter(text))


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
        """A piece without an equals sign, or without a key, or a key that occurs twice is an error."""
        for text, said in (("a=b,novalue", "'novalue'"), ("=x", "'=x'"), ("a=1,a=2", "key 'a' occurs twice")):
            error = self.assertRaises(ValueError, parseMetadata, text)
            self.assertIn(said, str(error))

    @given(st.dictionaries(words.filter(lambda text: "=" not in text), st.text()))
    def test_whatIsWrittenIsReadAgain(self, metadata: dict[str, str]) -> None:
        """Any metadata whose keys hold no equals sign can be written so that they are read again."""
        self.assertEqual(parseMetadata(formatMetadata(metadata)), metadata)


class DurationTests(SynchronousTestCase):
    """``--token-lifetime`` and what else is a time."""

    def test_units(self) -> None:
        """Seconds, minutes, hours and days; without a unit they are seconds."""
        for text, seconds in [("90", 90), ("90s", 90), ("1.5m", 90), ("24h", 86_400), ("30d", 2_592_000), ("0", 0)]:
            self.assertEqual(parseDuration(text), seconds)

    def test_whatIsNone(self) -> None:
        """Anything else is refused with a line that shows it."""
        for text in ("", "h", "1w", "-1", "1 h", "1e3", "inf", "1h30m", "\u0661s", "1" * 13):
            self.assertIn(repr(text), str(self.assertRaises(ValueError, parseDuration, text)))

    def test_bounds(self) -> None:
        """One that is too short or too long is refused with what would do."""
        self.assertEqual(parseDuration("60m", "1h"), 3600)
        for text in ("59m", "2d"):
            error = self.assertRaises(ValueError, parseDuration, text, "1h", "1d")
            self.assertEqual(str(error), f"{text!r} is not a duration from 1h to 1d")


class RateTests(SynchronousTestCase):
    """``--rate-limit``, and numbers."""

    def test_rates(self) -> None:
        """A number, and a time whose 1 goes without saying; or none at all."""
        for text, rate in [
            ("500000/24h", (500_000, 86_400)),
            ("100/1m", (100, 60)),
            ("10/s", (10, 1)),
            ("10/m", (10, 60)),
            ("10/90", (10, 90)),
            ("off", (None, 86_400)),
        ]:
            self.assertEqual(parseRate(text), rate)

    def test_whatIsNone(self) -> None:
        """Half a rate, a rate of nothing and a time of nothing are refused with a line that shows what is wrong."""
        for text in ("", "10", "10/", "/s", "0/s", "-1/s", "1.5/s", "10/0s", "10/0.5s", "10/367d", "ten/s", "10/s/s"):
            self.assertRaises(ValueError, parseRate, text)
        self.assertIn("10/s", str(self.assertRaises(ValueError, parseRate, "10")))

    def test_counts(self) -> None:
        """A count is digits, in bounds that the registry can count to."""
        self.assertEqual([parseCount("0"), parseCount("200"), parseCount("2147483647")], [0, 200, 2147483647])
        for text in ("", "-1", "1.0", "1e3", "2147483648", "\u0661", "9" * 50):
            self.assertIn(repr(text), str(self.assertRaises(ValueError, parseCount, text)))
