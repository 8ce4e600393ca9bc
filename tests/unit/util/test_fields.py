"""Tests for :mod:`txserviceregistry.util.fields`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import errors
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.http import validation
from txserviceregistry.util.fields import (
    KEY,
    LONGEST_RETRY_AFTER,
    SERVICE_ID,
    boundedNumber,
    encodings,
    escaped,
    formatMetadata,
    formatTags,
    parseCount,
    parseDuration,
    parseMetadata,
    parseRate,
    parseRetryAfter,
    parseTags,
    redacted,
)
from txserviceregistry.util.logs import Logger


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


# Texts without blanks at their ends that are not empty.
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

    def test_saysWhatIsNotAPair(self) -> None:
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


LONG = "2d7ff6e8-c8e9-11f0-8de9-0242ac120002"


class RedactionTests(SynchronousTestCase):
    """Texts and the secrets in them."""

    def test_wordsStayWhole(self) -> None:
        """A short secret that is a piece of a longer word is not redacted there."""
        for text, secret in (
            ("400 badRequest: Bad request", "bad"),
            ("Validation error", "on"),
            ("Validation error", "Valid"),
            ("http://127.0.0.1:8880/v1.0", "v"),
            ("nothing", ""),
        ):
            self.assertEqual(redacted(text, [secret]), text)

    def test_secretsThatStandByThemselves(self) -> None:
        """In a sentence, in JSON, in a header or in a URL, whatever is beside it and however short it is."""
        for secret in ("bad", "x", "s3cret", "-a.b-", "ü", LONG):
            for before, after in (
                ("", ""),
                ("The token ", " is wrong"),
                ('"', '"'),
                ("'", "',"),
                ("X-Auth-Token: ", "\r\n"),
                ("http://joe:", "@host/"),
                ("/services/", "/heartbeat"),
                ("?token=", "&limit=1"),
                ("?q=a%3D", "%20b"),
                ('"line\\n', '\\n"'),
                ('"\\u0000', '\\u0000"'),
                (r"b'\x00", r"\x00'"),
                ("id_", "_id"),
            ):
                self.assertEqual(redacted(before + secret + after, [secret]), f"{before}…{after}")

    def test_aLongOneIsBlankedAnywhere(self) -> None:
        """A secret that can't be part of a word is redacted also within other text."""
        self.assertEqual(redacted(f"key{LONG}key", [LONG], "***"), "key***key")

    def test_oneWithinAnother(self) -> None:
        """When a secret is a piece of another one, nothing of the longer one stays."""
        self.assertEqual(redacted("a-b, a", ["a", "a-b"]), "…, …")

    def test_spellings(self) -> None:
        """A secret with characters that JSON or URLs escape is found there too."""
        secret = 'a"b/ü\\c'
        for text in (secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), quote(secret, safe="")):
            self.assertEqual(redacted(f"={text}=", encodings(secret)).strip('="'), "…")
        self.assertEqual(redacted("any text", encodings("")), "any text")
        self.assertNotIn("\udcff", redacted("\udcff", encodings("\udcff")))


#: Sequences that a terminal obeys: colours, titles, the cursor; the same in one byte; lines; a change of direction.
EVIL = "\x1b[31m \x1b]0;title\x07 \x9b2J \x7f \r\n \u202eabc\u2066 \u200b"


class EscapedTests(SynchronousTestCase):
    """The printable part of a text."""

    def test_nothingThatATerminalObeys(self) -> None:
        """Control characters of all kinds, and invisible ones, become escapes; all else stays."""
        found = escaped(EVIL)
        self.assertTrue(found.isprintable())
        self.assertEqual(
            found,
            r"\x1b[31m \x1b]0;title\x07 \x9b2J \x7f \r\n \u202eabc\u2066 \u200b",
        )
        for text in ("", "plain", "née 名前 🙂", "a\\b"):
            self.assertEqual(escaped(text), text)
        for number in [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]:
            self.assertTrue(escaped(chr(number)).isascii())

    def test_whatIsKept(self) -> None:
        """Line ends may be asked for, and nothing else comes with them."""
        self.assertEqual(escaped("a\nb\x1b\r", keep="\n"), "a\nb\\x1b\\r")


class ErrorsTests(SynchronousTestCase):
    """Text of a server in an error."""

    def test_theLineIsEscapedAndTheAttributesAreExact(self) -> None:
        """Every error of the library is a line that no terminal obeys; programs get what was sent."""
        fault = errors.NotFound(404, "notFoundError", EVIL, EVIL, EVIL, method="GET", url="http://a")
        self.assertTrue(str(fault).isprintable())
        self.assertIn("\\x1b[31m", str(fault))
        self.assertEqual((fault.message, fault.details, fault.txnId), (EVIL, EVIL, EVIL))
        for error in (
            errors.InvalidSettings(EVIL),
            errors.ConnectionFailed(EVIL),
            errors.MalformedResponse(EVIL),
            errors.NoServiceAvailable("www", 0.0, {EVIL: OSError(EVIL)}),
        ):
            self.assertTrue(str(error).isprintable(), error)


class LoggerTests(SynchronousTestCase):
    """Text that reaches a log."""

    _log = Logger()

    def test_textsAreEscaped(self) -> None:
        """A text in an event adds no line and no control character; other values are as they were."""
        events: list[Any] = []
        log = Logger(observer=events.append)
        log.warn("{id} of {count}: {reason}", id=EVIL, count=3, reason=errors.BadRequest(400, message=EVIL))
        line = formatEvent(events[0])
        self.assertTrue(line.isprintable(), line)
        self.assertEqual(events[0]["count"], 3)

    def test_namesItsPlace(self) -> None:
        """It is named like any other logger: by its module, or the class that has it."""
        self.assertEqual(Logger().namespace, __name__)
        self.assertEqual(self._log.namespace, f"{__name__}.LoggerTests")
        self.assertIs(self._log.source, self)
