"""The file that is made of a template: checked, replaced, and brought back when the reload fails."""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable

from twisted.internet.defer import CancelledError, Deferred, succeed

from tests.unit.commands.raxsr.templatecase import TemplateCase
from txserviceregistry.commands.raxsr.templates import Target, TemplateFailed


class TargetTests(TemplateCase):
    """One file."""

    def put(self, target: Target, text: str) -> bool:
        """Put a text into the file."""
        return self.successResultOf(Deferred.fromCoroutine(target.put(text)))

    def refuses(self, target: Target, text: str) -> str:
        """Put a text into the file, which fails; why."""
        failure = self.failureResultOf(Deferred.fromCoroutine(target.put(text)), TemplateFailed)
        return failure.getErrorMessage()

    def files(self) -> list[str]:
        """The files in the folder."""
        return sorted(os.listdir(self.folder))

    def test_aNewFile(self) -> None:
        """It is made with the mode of any new file, checked before it has its name, and then reloaded."""
        target = self.target(check="check {}", reload="reload")
        self.assertTrue(self.put(target, "one"))
        self.assertEqual(self.file.read_text(), "one")
        umask = os.umask(0)
        os.umask(umask)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o666 & ~umask)
        check, reload = self.commands
        self.assertRegex(check, rf"^check {self.folder}/\.made-")
        self.assertEqual((reload, self.files()), ("reload", ["made"]))

    def test_anUnchangedFile(self) -> None:
        """It is left alone: no check, no reload."""
        target = self.target(check="check {}", reload="reload")
        self.file.write_text("one\r\n")
        before = self.file.stat()
        self.assertFalse(self.put(target, "one\r\n"))
        self.assertEqual((self.file.stat().st_ino, self.commands), (before.st_ino, []))

    def test_keepsModeAndLink(self) -> None:
        """The mode stays; a symbolic link leads to the new file."""
        self.file.write_text("one")
        self.file.chmod(0o640)
        link = self.folder / "link"
        link.symlink_to(self.file)
        self.assertTrue(self.put(Target(str(link), run=self.run_), "two"))
        self.assertTrue(link.is_symlink())
        self.assertEqual((self.file.read_text(), self.file.stat().st_mode & 0o777), ("two", 0o640))

    def test_aCheckThatFails(self) -> None:
        """The old file stays, and there is no reload; the next text that passes is put."""
        self.file.write_text("one")
        target = self.target(check="check {}", reload="reload")
        self.failing.add("check")
        self.assertIn("'check' failed", self.refuses(target, "two"))
        self.assertEqual((self.file.read_text(), self.files()), ("one", ["made"]))
        self.assertEqual(len(self.commands), 1)
        self.failing.clear()
        self.assertTrue(self.put(target, "two"))
        self.assertEqual(self.commands[2:], ["reload"])

    def test_aReloadThatFails(self) -> None:
        """The old file comes back, so that a restart of the program works; the next try reloads again."""
        self.file.write_text("one")
        target = self.target(reload="reload")
        self.failing.add("reload")
        self.assertIn("'reload' failed", self.refuses(target, "two"))
        self.assertEqual((self.file.read_text(), self.files()), ("one", ["made"]))
        self.failing.clear()
        self.assertTrue(self.put(target, "two"))
        self.assertEqual((self.file.read_text(), self.commands), ("two", ["reload", "reload"]))
        self.assertFalse(self.put(target, "two"))

    def test_aFullDisk(self) -> None:
        """The old file stays whole if there is no space for the copy of it that a failed reload would need."""
        self.file.write_text("one" * 1000)
        _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
        try:
            self.assertIn(f"can't write {self.file}", self.refuses(self.target(reload="reload"), "two"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.assertEqual((self.file.read_text(), self.files()), ("one" * 1000, ["made"]))

    def test_anEmptyFileComesBack(self) -> None:
        """A file that was there is brought back, even if it was empty, also after a process that was killed."""
        self.file.touch()
        self.failing.add("reload")
        self.refuses(self.target(reload="reload"), "one")
        self.assertEqual((self.file.read_text(), self.files()), ("", ["made"]))
        waiting = Deferred.fromCoroutine(Target(str(self.file), reload="reload", run=lambda _: Deferred()).put("two"))
        self.refuses(self.target(reload="reload"), "three")
        self.assertEqual((self.file.read_text(), self.files()), ("", ["made"]))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    def test_theFirstReloadThatFails(self) -> None:
        """A new file stays, because its program may not run yet and needs it; the reload is retried."""
        target = self.target(reload="reload")
        self.failing.add("reload")
        self.refuses(target, "one")
        self.assertEqual(self.file.read_text(), "one")
        self.failing.clear()
        self.assertTrue(self.put(target, "one"))
        self.assertEqual(self.commands, ["reload", "reload"])

    def test_theFirstReloadAfterARestart(self) -> None:
        """A new process makes the first reload, after a failure as well as after a process that was killed."""
        self.failing.add("reload")
        self.refuses(self.target(reload="reload"), "one")
        self.refuses(self.target(reload="reload"), "one")
        self.assertEqual(self.commands, ["reload", "reload"])
        self.failing.clear()
        self.assertTrue(self.put(self.target(reload="reload"), "one"))
        self.assertEqual((self.file.read_text(), self.files()), ("one", ["made"]))
        self.file.unlink()
        waiting = Deferred.fromCoroutine(Target(str(self.file), reload="reload", run=lambda _: Deferred()).put("two"))
        self.assertTrue(self.put(self.target(reload="reload"), "two"))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)

    def test_killedBeforeTheReload(self) -> None:
        """A reload that a killed process did not finish is made by the next one."""
        self.file.write_text("one")

        def hang(command: str) -> Deferred[None]:
            return Deferred()

        # The process is killed while this waits.
        waiting = Deferred.fromCoroutine(Target(str(self.file), reload="reload", run=hang).put("two"))
        self.assertEqual(self.file.read_text(), "two")
        self.assertEqual(len(self.files()), 2)
        self.assertTrue(self.put(self.target(reload="reload"), "two"))
        self.assertEqual((self.commands, self.files()), (["reload"], ["made"]))
        waiting.addErrback(lambda failure: None)
        waiting.cancel()

    def test_killedBeforeAReloadThatFails(self) -> None:
        """The next process brings back the file of the last reload that succeeded, and not the one in between."""
        self.file.write_text("one")
        waiting = Deferred.fromCoroutine(Target(str(self.file), reload="reload", run=lambda _: Deferred()).put("two"))
        self.failing.add("reload")
        self.refuses(self.target(reload="reload"), "three")
        self.assertEqual((self.file.read_text(), self.files()), ("one", ["made"]))
        waiting.addErrback(lambda failure: None)
        waiting.cancel()

    def test_aCheckThatRemovesTheFile(self) -> None:
        """The error is that of the check."""

        def remove(command: str) -> Awaitable[None]:
            os.unlink(command.split()[1])
            return self.run_(command)

        self.failing.add("check")
        self.assertIn("'check' failed", self.refuses(Target(str(self.file), "check {}", run=remove), "one"))

    def test_aFolderThatVanishes(self) -> None:
        """A failure to bring back or remove the old file is an error like any other, and a cancelled put ends."""
        self.file.write_text("one")
        old = self.folder / ".made.before-reload"
        running: Deferred[None] = Deferred()

        def spoil(command: str) -> Awaitable[None]:
            old.unlink()
            old.mkdir()
            return running

        putting = Deferred.fromCoroutine(Target(str(self.file), reload="reload", run=spoil).put("two"))
        putting.cancel()
        self.failureResultOf(putting, CancelledError)
        old.rmdir()
        running = succeed(None)
        self.assertIn(f"can't write {self.file}", self.refuses(Target(str(self.file), reload="r", run=spoil), "three"))

    def test_whatIsNotAFile(self) -> None:
        """A device or a pipe is not replaced."""
        os.mkfifo(self.file)
        self.assertIn("is not a regular file", self.refuses(self.target(), "one"))
        self.assertTrue(self.file.is_fifo())

    def test_whatCantBeWritten(self) -> None:
        """The error names the file and the reason; nothing is left beside it."""
        self.assertIn("characters that UTF-8", self.refuses(self.target(), "\ud800"))
        self.assertEqual(self.files(), [])
        self.file.mkdir()
        self.assertIn(f"{self.file} is not a regular file", self.refuses(self.target(), "one"))
        missing = Target(str(self.folder / "missing" / "made"), run=self.run_)
        self.assertIn("No such file or directory", self.refuses(missing, "one"))
