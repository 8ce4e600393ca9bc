"""Text from outside, for terminals and logs."""

from __future__ import annotations

from typing import Any

from twisted.logger import formatEvent
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import errors
from txserviceregistry.util.escaping import escaped
from txserviceregistry.util.logs import Logger

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
