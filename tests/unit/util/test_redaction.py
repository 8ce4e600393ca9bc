"""Redaction: no secret is shown, no other word is spoilt, and nothing that a terminal obeys."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import errors
from txserviceregistry.util.logs import Logger
from txserviceregistry.util.redaction import encodings, escaped, redacted

LONG = "2d7ff6e8-c8e9-11f0-8de9-0242ac120002"


class BlankingTests(SynchronousTestCase):
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
        """What can't be a piece of a word is blanked also where something is stuck to it."""
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


#: What a terminal obeys: colours, titles, the cursor; the same in one byte; lines; and what turns the direction.
EVIL = "\x1b[31m \x1b]0;title\x07 \x9b2J \x7f \r\n \u202eabc\u2066 \u200b"


class EscapedTests(SynchronousTestCase):
    """What is left of a text."""

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
    """What a server has put into an error."""

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
    """What reaches a log."""

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
