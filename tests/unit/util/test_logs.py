"""Tests for :mod:`txserviceregistry.util.logs`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import errors
from txserviceregistry.util.logs import Listeners, Logger, Outage, encodings, escaped, redacted


class ListenersTests(SynchronousTestCase):
    """Listeners."""

    def setUp(self) -> None:
        self.listeners: Listeners[[str]] = Listeners(Logger(), "the weather")
        self.heard: list[str] = []

    def test_areCalledInOrder(self) -> None:
        """Each is called each time, in the order in which they were added."""
        self.listeners.add(lambda text: self.heard.append(f"first {text}"))
        self.listeners.add(lambda text: self.heard.append(f"second {text}"))
        self.listeners.call("rain")
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["first rain", "second rain", "first sun", "second sun"])

    def test_end(self) -> None:
        """One that has ended is not called any more, however often it is ended."""
        end = self.listeners.add(self.heard.append)
        self.assertEqual(len(self.listeners), 1)
        end()
        end()
        self.listeners.call("rain")
        self.assertEqual((self.heard, len(self.listeners)), ([], 0))

    def test_theSameFunctionTwice(self) -> None:
        """A function that was added twice is called twice, and ended one by one."""
        end, _ = (self.listeners.add(self.heard.append) for _ in range(2))
        self.listeners.call("rain")
        end()
        end()
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["rain", "rain", "sun"])

    def test_oneThatFails(self) -> None:
        """What a listener raises is logged, and the others are called all the same."""
        self.listeners.add(lambda text: self.fail("no umbrella"))
        self.listeners.add(self.heard.append)
        with capturedLogs() as events:
            self.listeners.call("rain")
        self.assertEqual(self.heard, ["rain"])
        self.assertEqual([formatEvent(event) for event in events], ["Listener to the weather failed"])
        self.assertIn("no umbrella", events[0]["log_failure"].getErrorMessage())
        self.assertEqual(len(self.flushLoggedErrors(self.failureException)), 1)

    def test_endsAnother(self) -> None:
        """One that another one ends is not called, not even for the same event."""
        ends: list[Callable[[], None]] = []
        self.listeners.add(lambda text: ends[0]())
        ends.append(self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])

    def test_addsAnother(self) -> None:
        """One that is added during a call is first called for the next event."""
        self.listeners.add(lambda text: self.listeners.add(self.heard.append))
        self.listeners.call("rain")
        self.assertEqual(self.heard, [])
        self.listeners.call("sun")
        self.assertEqual(self.heard, ["sun"])


class OutageTests(SynchronousTestCase):
    """Outage."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def outage(self, **options: Any) -> Outage:
        return Outage(
            Logger(), self.clock, "{what} failed: {reason}", "{what} works after {seconds:.0f} s", what="It", **options
        )

    def logged(self) -> list[str]:
        """The lines since the last time."""
        lines = [formatEvent(event) for event in self.events]
        self.events.clear()
        return lines

    def test_isLoggedTwice(self) -> None:
        """One line when it begins, with the first reason, and one when it ends; the next outage is another one."""
        outage = self.outage()
        outage.succeeded()
        self.assertEqual((self.logged(), outage.isOn), ([], False))
        for reason in ("full", "broken"):
            outage.failed(reason=reason)
            self.clock.advance(10)
        self.assertTrue(outage.isOn)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.warn])
        self.assertEqual(self.logged(), ["It failed: full"])
        for _ in range(2):
            outage.succeeded()
        self.assertFalse(outage.isOn)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.info])
        self.assertEqual(self.logged(), ["It works after 20 s"])
        outage.failed(reason="broken")
        self.assertEqual(self.logged(), ["It failed: broken"])

    def test_valuesOfBothLines(self) -> None:
        """The last line has the values of the first one, and values of its own."""
        outage = Outage(Logger(), self.clock, "{name} failed", "{name} works, {lost} lost", level=LogLevel.error)
        outage.failed(name="First")
        outage.failed(name="Second")
        outage.succeeded(lost=3)
        self.assertEqual([event["log_level"] for event in self.events], [LogLevel.error, LogLevel.info])
        self.assertEqual(self.logged(), ["First failed", "First works, 3 lost"])

    def test_noLastLine(self) -> None:
        """There may be nothing to say when it ends."""
        outage = Outage(Logger(), self.clock, "It failed")
        for _ in range(2):
            outage.failed()
            outage.succeeded()
        self.assertEqual(self.logged(), ["It failed"] * 2)

    def test_theSecondFailure(self) -> None:
        """It may take several failures in a row to be one; its time counts from the first."""
        outage = self.outage(after=2)
        outage.failed(reason="slow")
        outage.succeeded()
        outage.failed(reason="slow")
        self.assertEqual((self.logged(), outage.isOn), ([], False))
        self.clock.advance(5)
        outage.failed(reason="slower")
        self.clock.advance(5)
        outage.succeeded()
        self.assertEqual(self.logged(), ["It failed: slower", "It works after 10 s"])

    def test_aCertainFailure(self) -> None:
        """One that another try does not mend is one at once."""
        outage = self.outage(after=2)
        outage.failed(isCertain=True, reason="gone")
        self.assertEqual(self.logged(), ["It failed: gone"])

    def test_anUnexpectedError(self) -> None:
        """An error that was not expected is one at once, with its traceback in the log."""
        outage = self.outage(after=2)
        outage.failed(Failure(KeyError("web1")), reason="a defect")
        self.assertEqual(self.events[0]["log_failure"].type, KeyError)
        self.assertEqual(self.logged(), ["It failed: a defect"])
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


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
