"""Files: how they are replaced, the log lines when they cannot be, and values that are made again when they change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.util.files import RETRY_SECONDS, Reloaded, replaceFile


class ReplaceFileTests(SynchronousTestCase):
    """replaceFile()."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "file"
        self.addCleanup(os.umask, os.umask(0))

    def test_isPrivate(self) -> None:
        """Its mode is 0600, whatever the umask is and whatever mode the old file had."""
        for _ in range(2):
            replaceFile(self.path, "née")
            self.assertEqual(self.path.read_bytes(), "née".encode())
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
            self.path.chmod(0o644)

    def test_aFailureLeavesTheOldContent(self) -> None:
        """A failed write keeps the old content and leaves no other file."""
        self.path.write_text("old")
        self.assertRaises(UnicodeEncodeError, replaceFile, self.path, "new \udc80")
        self.assertEqual(self.path.read_text(), "old")
        self.assertEqual(os.listdir(self.folder), ["file"])

    def test_aLinkIsReplaced(self) -> None:
        """A symbolic link is replaced by the file; its target stays."""
        target = self.folder / "target"
        target.write_text("stays")
        self.path.symlink_to("target")
        replaceFile(self.path, "text")
        self.assertEqual(target.read_text(), "stays")
        self.assertFalse(self.path.is_symlink())

    def test_inTheWorkingDirectory(self) -> None:
        """A name without a folder is one in the working directory."""
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        os.chdir(self.folder)
        replaceFile("file", "content")
        self.assertEqual(os.listdir("."), ["file"])


class UnwritableFileTests(SynchronousTestCase):
    """Each object with a file runs without it, and logs that once."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.folder = Path(self.mktemp())
        self.path = self.folder / "kept"
        self.lines: list[tuple[str, str]] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)

    def observe(self, event: Any) -> None:
        line = formatEvent(event)
        if str(self.path) in line:
            self.lines.append((event["log_level"].name, line))

    def assertLogsOnce(self, keeper: Any, loss: str) -> None:
        """*keeper* writes its file many times, at first in vain; the log has a line for the beginning and the end."""
        # The mode of a file must not depend on the umask.
        self.addCleanup(os.umask, os.umask(0))
        keeper.startService()
        self.change(20)
        began = (
            "warn",
            f"File {self.path} can't be written: No such file or directory. Until it can, {loss}",
        )
        self.assertEqual(self.lines, [began])
        self.folder.mkdir(0o700)
        self.change(20)
        ended = ("info", f"File {self.path} is written again")
        self.assertEqual(self.lines, [began, ended])
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.path.unlink()
        self.folder.joinpath("kept.claim").unlink(missing_ok=True)
        self.assertEqual(os.listdir(self.folder), [])
        self.change(20)
        self.assertEqual(self.lines, [began, ended])
        keeper.stopService()
        self.fake.advance(1)

    def change(self, count: int) -> None:
        """Change something that each of them writes to its file."""
        for number in range(count):
            self.successResultOf(self.client.services.create(f"other{number}", 3))
            self.client.configuration.set("/production/www/number", f"{number}")
            self.fake.advance(4)

    def test_directory(self) -> None:
        """A Directory: its services."""
        directory = Directory(self.client, path=self.path)
        self.assertLogsOnce(directory, "a restart finds an older copy")

    def test_configurationWatcher(self) -> None:
        """A ConfigurationWatcher: its values, which may be secrets."""
        watcher = ConfigurationWatcher(self.client, "/production", path=self.path)
        self.assertLogsOnce(watcher, "a restart finds an older copy")

    def test_eventsFeed(self) -> None:
        """An EventsFeed: its position."""
        feed = EventsFeed(self.client, path=self.path)
        feed.onEvent(lambda event: None)
        self.assertLogsOnce(feed, "a restart delivers again what came since")

    def test_registeredService(self) -> None:
        """A RegisteredService: its token."""
        service = RegisteredService(self.client, "web1", 10, state=self.path)
        self.assertLogsOnce(service, "a restarted program can't continue service web1")


class ReloadedTests(SynchronousTestCase):
    """A number in one file, and its unit in another."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.number, self.unit = self.folder / "number", self.folder / "unit"
        self.number.write_text("1")
        self.unit.write_text("m")
        self.clock = Clock()
        self.reads = 0

    def reloaded(self) -> Reloaded[tuple[str, str], tuple[int, str]]:
        def read() -> tuple[str, str]:
            self.reads += 1
            return self.number.read_text(), self.unit.read_text()

        def make(texts: tuple[str, str]) -> tuple[int, str]:
            return int(texts[0]), texts[1]

        def whyNot(made: tuple[int, str]) -> str | None:
            return "it is negative" if made[0] < 0 else None

        paths = [str(self.number), str(self.unit)]
        return Reloaded("Length", paths, read, make, whyNot=whyNot, seconds=self.clock.seconds)

    @contextmanager
    def logged(self, *lines: str) -> Iterator[None]:
        with capturedLogs() as events:
            yield
        self.assertEqual([formatEvent(event) for event in events], list(lines))

    def replace(self, path: Path, text: str) -> None:
        new = self.folder / "new"
        new.write_text(text)
        new.replace(path)

    def test_filesThatStayAreReadOnce(self) -> None:
        """Looking at the value reads no file that has not changed."""
        reloaded = self.reloaded()
        for _ in range(3):
            self.assertEqual(reloaded.current(), (1, "m"))
            self.clock.advance(3600)
        self.assertEqual(self.reads, 1)

    def test_aFileThatIsReplaced(self) -> None:
        """A file that is replaced is read before the value is used again; the log and the listener are told."""
        changes: list[tuple[int, str]] = []
        reloaded = self.reloaded()
        reloaded.onChange = lambda: changes.append(reloaded.current())
        self.replace(self.number, "2")
        with self.logged("Length reloaded"):
            self.assertEqual(reloaded.current(), (2, "m"))
            self.assertEqual(reloaded.current(), (2, "m"))
        self.assertEqual(changes, [(2, "m")])

    def test_aFileThatIsWritten(self) -> None:
        """So is one that is written in place, also with the same size and its date set back."""
        reloaded = self.reloaded()
        before = self.number.stat()
        self.number.write_text("2")
        os.utime(self.number, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.assertEqual(reloaded.current(), (2, "m"))

    def test_symbolicLinks(self) -> None:
        """A link that leads elsewhere, directly or by way of a linked folder, is a change."""
        for name in ("1", "2", "3"):
            (self.folder / name).mkdir()
            (self.folder / name / "number").write_text(name)
        data, self.number = self.folder / "..data", self.folder / "link"
        data.symlink_to("1")
        self.number.symlink_to("..data/number")
        reloaded = self.reloaded()
        self.assertEqual(reloaded.current(), (1, "m"))
        (self.folder / "..tmp").symlink_to("2")
        (self.folder / "..tmp").replace(data)
        self.assertEqual(reloaded.current(), (2, "m"))
        (self.folder / "..tmp").symlink_to("3/number")
        (self.folder / "..tmp").replace(self.number)
        self.assertEqual(reloaded.current(), (3, "m"))

    def test_aBrokenFile(self) -> None:
        """
        The previous value stays in use while a file can't be used, whatever becomes of it. The log says so when it
        begins and when it ends.
        """
        reloaded = self.reloaded()
        with self.logged(
            "Length can't be reloaded: invalid literal for int() with base 10: 'x' (the previous content stays in use)"
        ):
            for text in ("x", ""):
                self.number.write_text(text)
                self.assertEqual(reloaded.current(), (1, "m"))
            self.number.unlink()
            self.assertEqual(reloaded.current(), (1, "m"))
        self.assertIn("No such file", reloaded.problem or "")
        with self.logged("Length reloaded"):
            self.number.write_text("2")
            self.assertEqual(reloaded.current(), (2, "m"))
        self.assertIsNone(reloaded.problem)

    def countingReads(self) -> Reloaded[int, int]:
        """One whose reading can't wait."""

        def read() -> int:
            self.reads += 1
            return self.reads

        return Reloaded("Count", [str(self.number)], read, int, seconds=self.clock.seconds)

    def test_aPipeInPlaceOfAFile(self) -> None:
        """A pipe from which nothing comes, or a device without an end, is not read, also when a reload is forced."""
        reloaded = self.countingReads()
        self.number.unlink()
        os.mkfifo(self.number)
        with self.logged(
            f"Count can't be reloaded: {self.number} can't be read again, because it is not a regular file "
            "(the previous content stays in use)"
        ):
            self.assertEqual(reloaded.current(), 1)
            reloaded.reload()
            self.number.unlink()
            self.number.symlink_to("/dev/zero")
            self.assertEqual(reloaded.current(), 1)
        with self.logged("Count reloaded"):
            self.number.unlink()
            self.number.write_text("2")
            self.assertEqual(reloaded.current(), 2)

    def test_aPipeAtTheStart(self) -> None:
        """The content of a pipe at the start, as a shell's process substitution hands it over, stays in use."""
        self.number.unlink()
        os.mkfifo(self.number)
        reloaded = self.countingReads()
        pipe = os.open(self.number, os.O_RDWR)
        self.addCleanup(os.close, pipe)
        with self.logged():
            os.write(pipe, b"2")
            self.assertEqual(reloaded.current(), 1)

    def test_theSameAgain(self) -> None:
        """A file that is written with what it had changes nothing; after a fault, the log says that this is over."""
        reloaded = self.reloaded()
        made = reloaded.current()
        with self.logged():
            self.replace(self.number, "1")
            self.assertIs(reloaded.current(), made)
        self.number.write_text("x")
        reloaded.current()
        with self.logged("Length can be used again, and has not changed"):
            self.number.write_text("1")
            self.assertIs(reloaded.current(), made)

    def test_aBrokenFileIsReadAgain(self) -> None:
        """A file that can't be used is read again, at most once in RETRY_SECONDS, even if it seems not to change."""
        reloaded = self.reloaded()
        self.number.write_text("x")
        for _ in range(5):
            reloaded.current()
        self.assertEqual(self.reads, 2)
        self.clock.advance(RETRY_SECONDS)
        for _ in range(5):
            reloaded.current()
        self.assertEqual(self.reads, 3)

    def test_aSuspectIsReadAgain(self) -> None:
        """A value that has failed is read again, once, and not before RETRY_SECONDS have passed since the last time."""
        reloaded = self.reloaded()
        reloaded.suspect()
        reloaded.current()
        self.assertEqual(self.reads, 1)
        self.clock.advance(RETRY_SECONDS)
        reloaded.current()
        reloaded.current()
        self.assertEqual(self.reads, 2)

    def test_aValueOfNoUse(self) -> None:
        """One of no use at this time does not replace one that is, but one that is no better."""
        reloaded = self.reloaded()
        with self.logged("Length can't be reloaded: it is negative (the previous content stays in use)"):
            self.replace(self.number, "-1")
            self.assertEqual(reloaded.current(), (1, "m"))
        self.number.write_text("-2")
        reloaded = self.reloaded()
        self.replace(self.number, "-3")
        self.assertEqual(reloaded.current(), (-3, "m"))

    def test_forced(self) -> None:
        """Reading now does not ask whether anything has changed."""
        reloaded = self.reloaded()
        reloaded.reload()
        self.assertEqual(self.reads, 2)

    def test_theFirstTime(self) -> None:
        """A file that can't be used the first time is an error."""
        self.number.write_text("x")
        self.assertRaises(ValueError, self.reloaded)
        self.number.unlink()
        self.assertRaises(FileNotFoundError, self.reloaded)


class LevelTests(SynchronousTestCase):
    """How loud it is."""

    def test_levels(self) -> None:
        """A fault is a warning, its end is not."""
        path = Path(self.mktemp())
        path.write_text("1")
        reloaded = Reloaded("Number", [str(path)], path.read_text, int)
        with capturedLogs() as events:
            for text in ("x", "22"):
                path.write_text(text)
                reloaded.current()
        self.assertEqual([event["log_level"] for event in events], [LogLevel.warn, LogLevel.info])
