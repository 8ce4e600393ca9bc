"""Files that are replaced as a whole: their mode, and the log lines when they can't be written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.util.files import replaceFile


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
        # What a file holds must not depend on the umask.
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
