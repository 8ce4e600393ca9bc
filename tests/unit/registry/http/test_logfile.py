"""The access log: its lines, and what becomes of them when they can't be written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from txserviceregistry.registry.http import requestlog
from txserviceregistry.registry.http.requestlog import LogFile, RequestLog, lineOf

NOW = 1_767_225_600.0625


def access(path: bytes = b"/v1.0/1234/services", **fields: Any) -> tuple[float, dict[str, Any]]:
    """The moment and the content of a line."""
    return NOW, {"path": path.decode(), **fields}


class _Kept:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, moment: float, fields: Mapping[str, Any]) -> None:
        self.lines.append(lineOf(moment, fields))


class LineTests(SynchronousTestCase):
    """One line."""

    def line(self, method: bytes = b"GET", path: bytes = b"/v1.0/1234/services", address: Any = None) -> str:
        kept = _Kept()
        log = RequestLog(kept, seconds=lambda: 5.0, wallClock=lambda: NOW)  # type: ignore[arg-type]  # all that it asks
        log.refused(method, path, "", address or IPv4Address("TCP", "192.0.2.1", 4711), 400, "abc")
        return kept.lines[0]

    def test_fields(self) -> None:
        """It is JSON, with the time in UTC, and milliseconds."""
        self.assertEqual(
            json.loads(self.line()),
            {
                "time": "2026-01-01T00:00:00.062Z",
                "client": "192.0.2.1",
                "user": None,
                "tenant": None,
                "method": "GET",
                "path": "/v1.0/1234/services",
                "code": 400,
                "milliseconds": 0.0,
                "txnId": "abc",
            },
        )

    def test_whatIsNotKnownIsNull(self) -> None:
        """An unknown user, tenant, method or path, and the host of a client on a UNIX socket, are null."""
        found = json.loads(self.line(b"", b"", UNIXAddress(None)))
        self.assertEqual([found[name] for name in ("user", "tenant", "method", "path", "client")], [None] * 5)

    def test_nothingForgesALine(self) -> None:
        """For any bytes of a client, a line is one line of printable ASCII."""
        for path in (b'/"}\r\n{"time": "x"}', bytes(range(256)), "/\u2028\u0085é".encode(), b"/\x1b[31m"):
            text = self.line(path, path)
            self.assertTrue(text.isascii() and text.isprintable(), text)
            json.loads(text)

    def test_longPathsAreCut(self) -> None:
        """A path of 16 KB does not make a line of 16 KB."""
        self.assertLess(len(self.line(path=b"/" + b"x" * 16_000)), 2_500)


class _LogFile(LogFile):
    """A log whose thread does its work at once, unless it is held."""

    held: list[tuple[Callable[[], None], Deferred[None]]] | None = None

    def inThread(self, work: Callable[[], None]) -> Deferred[None]:
        if self.held is None:
            return maybeDeferred(work)
        waiting: Deferred[None] = Deferred()
        self.held.append((work, waiting))
        return waiting

    def release(self) -> None:
        held, self.held = self.held or [], None
        for work, waiting in held:
            maybeDeferred(work).chainDeferred(waiting)


class AccessLogTests(SynchronousTestCase):
    """A log over a file, on a clock that the test moves."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = Path(self.mktemp())
        self.log = self.newLog(str(self.path))
        self.messages: list[LogLevel] = []
        globalLogPublisher.addObserver(self._observe)
        self.addCleanup(globalLogPublisher.removeObserver, self._observe)

    def _observe(self, event: Any) -> None:
        if event.get("name") == "access log":
            self.messages.append(event["log_level"])

    def newLog(self, target: str) -> _LogFile:
        log = _LogFile(target, self.clock)
        log.start()
        return log

    def paths(self) -> list[str]:
        return [json.loads(text)["path"] for text in self.path.read_text().splitlines()]

    def test_writesWithinASecond(self) -> None:
        """Lines are in the file after a second, in their order."""
        self.log.add(*access(b"/a"))
        self.log.add(*access(b"/b"))
        self.assertEqual(self.paths(), [])
        self.clock.advance(1)
        self.assertEqual(self.paths(), ["/a", "/b"])
        self.log.add(*access(b"/c"))
        self.clock.advance(1)
        self.assertEqual(self.paths(), ["/a", "/b", "/c"])

    def test_theFileIsItsOwners(self) -> None:
        """Only the owner can read the file."""
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_addsToWhatIsThere(self) -> None:
        """A registry that starts again goes on with the same file."""
        self.log.add(*access(b"/a"))
        self.successResultOf(self.log.stop())
        log = self.newLog(str(self.path))
        log.add(*access(b"/b"))
        self.successResultOf(log.stop())
        self.assertEqual(self.paths(), ["/a", "/b"])

    def test_stopWritesWhatWaits(self) -> None:
        """No line is lost at the end, and nothing is left on the reactor."""
        self.log.add(*access(b"/a"))
        self.successResultOf(self.log.stop())
        self.assertEqual(self.paths(), ["/a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_canBeRotatedByMovingItAway(self) -> None:
        """A file that is moved away, or removed, is made anew by the next lines: no signal is needed."""
        self.log.add(*access(b"/a"))
        self.clock.advance(1)
        moved = self.path.with_suffix(".1")
        self.path.rename(moved)
        self.log.add(*access(b"/b"))
        self.clock.advance(1)
        self.assertEqual(self.paths(), ["/b"])
        self.assertEqual(len(moved.read_text().splitlines()), 1)

    def test_troubleIsToldOnceAndOver(self) -> None:
        """While the file can't be written, lines are lost and counted, which is logged once; so is the end of that."""
        self.path.unlink()
        self.path.mkdir()
        for _ in range(3):
            self.log.add(*access(b"/lost"))
            self.clock.advance(1)
        self.assertEqual((self.log.lost, self.messages), (3, [LogLevel.error]))
        self.path.rmdir()
        self.log.add(*access(b"/kept"))
        self.clock.advance(1)
        self.assertEqual(self.paths(), ["/kept"])
        self.assertEqual(self.messages, [LogLevel.error, LogLevel.info])

    def test_aDiskThatIsFullInTheMiddleOfALine(self) -> None:
        """The part of a line that was written before the disk was full stays alone on its line."""
        write, room = os.write, [50]

        def fill(file: int, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = write(file, data[: room[0]])
            room[0] -= written
            return written

        patched = self.patch(os, "write", fill)
        self.log.add(*access(b"/torn"))
        self.clock.advance(1)
        patched.restore()
        self.assertEqual(self.messages, [LogLevel.error])
        self.log.add(*access(b"/whole"))
        self.clock.advance(1)
        torn, whole = self.path.read_text().splitlines()
        self.assertEqual(len(torn), 50)
        self.assertEqual(json.loads(whole)["path"], "/whole")

    def test_aTargetThatHangs(self) -> None:
        """While a write hangs so many lines are kept and no more, and the end waits for it for two seconds only."""
        self.patch(requestlog, "MOST_WAITING", 50)
        self.log.held = []
        self.log.add(*access(b"/first"))
        self.clock.advance(1)
        for _ in range(55):
            self.log.add(*access(b"/more"))
        self.assertEqual(self.log.lost, 5)
        self.assertEqual(self.messages, [LogLevel.error])
        ending = self.log.stop()
        self.assertNoResult(ending)
        self.clock.advance(2)
        self.successResultOf(ending)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.log.release()

    def test_linesThatComeWhileOneIsWritten(self) -> None:
        """They are written after it, a second later."""
        self.log.held = []
        self.log.add(*access(b"/a"))
        self.clock.advance(1)
        self.log.add(*access(b"/b"))
        self.log.release()
        self.assertEqual(self.paths(), ["/a"])
        self.clock.advance(1)
        self.assertEqual(self.paths(), ["/a", "/b"])

    def test_aDefectIsLogged(self) -> None:
        """A line that can't be made is a defect: it is logged, and requests go on."""
        self.log.add(float("nan"), {})
        self.clock.advance(1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(self.log.lost, 1)


class LogThreadTests(TestCase):
    """The real thread."""

    async def test_writesInItsThread(self) -> None:
        """A log with a thread of its own writes its lines, and the thread ends with it."""
        path = Path(self.mktemp())
        log = LogFile(str(path), reactor)
        log.start()
        for number in range(1000):
            log.add(*access(b"/%d" % number))
        await log.stop()
        self.assertEqual(len(path.read_text().splitlines()), 1000)

    async def test_standardOutput(self) -> None:
        """The standard output is a target, and is left open."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        saved = os.dup(1)
        os.dup2(writing, 1)
        os.close(writing)
        try:
            log = LogFile("-", reactor)
            log.start()
            log.add(*access(b"/a"))
            await log.stop()
            os.fstat(1)
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        self.assertEqual(json.loads(os.read(reading, 10_000))["path"], "/a")
