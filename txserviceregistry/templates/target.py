"""Checking and reloading: a rendered file takes the place of the old one. If the reload fails, the old one returns."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from ..util.files import replaceFile, replacement
from .rendering import TemplateFailed

# Seconds after which a check or a reload is killed.
_COMMAND_SECONDS = 60.0
# Of a command's output in an error: its last characters. More bytes are read, because white space is left out.
_LONGEST_OUTPUT = 300
_LONGEST_TAIL = 4096


async def runCommand(command: str) -> None:
    """Run a shell command; TemplateFailed if it fails, or does not end. It is killed when this is cancelled."""
    # Not a pipe, which a daemon that the command starts would keep open.
    with tempfile.TemporaryFile() as output:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        process = subprocess.Popen(["/bin/sh", "-c", command], start_new_session=True, **streams)
        try:
            # A thread needs no reactor that handles SIGCHLD.
            code = await deferToThread(process.wait, _COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise TemplateFailed(f"{command!r} did not end within {_COMMAND_SECONDS:.0f} s") from None
        finally:
            if process.returncode is None:
                # It may have ended by itself just now.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code:
            output.seek(-min(_LONGEST_TAIL, output.seek(0, os.SEEK_END)), os.SEEK_END)
            said = " ".join(output.read().decode("utf-8", "replace").split())[-_LONGEST_OUTPUT:]
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise TemplateFailed(f"{command!r} failed with {how}{f': {said}' if said else ''}")


class Target:
    """A file that is kept current. *check* and *reload* are commands; ``{}`` in *check* is the new file's path."""

    def __init__(
        self,
        path: str,
        check: str | None = None,
        reload: str | None = None,
        run: Callable[[str], Awaitable[None]] = runCommand,
    ) -> None:
        self.path = os.path.realpath(path)
        self._check = check
        self._reload = reload
        self._run = run
        folder, name = os.path.split(self.path)
        # The old file, from before a change until the reload has succeeded.
        self._old = os.path.join(folder, f".{name}.before-reload")
        # Whether the file was changed and the reload has not succeeded: the process may have been killed.
        self._isPending = os.path.lexists(self._old)

    def content(self) -> str | None:
        """The content of the file; ``None`` if there is none."""
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise TemplateFailed(f"{self.path} is not a regular file, and is not replaced")
            with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TemplateFailed(f"can't read {self.path}: {error.strerror}") from None

    async def put(self, text: str) -> bool:
        """
        Make *text* the content of the file, and reload; whether anything changed, or a killed process did not finish
        its reload. TemplateFailed if that fails: the file has its old content.
        """
        isChanged = text != self.content()
        if not isChanged and not self._isPending:
            return False
        try:
            try:
                if isChanged:
                    await self._replace(text)
                if self._reload is not None:
                    await self._run(self._reload)
            except BaseException:
                # A restart of the program finds what it has now. If this fails, the next failure tries it again.
                with suppress(OSError):
                    os.replace(self._old, self.path)
                raise
            if os.path.lexists(self._old):
                os.unlink(self._old)
        except OSError as error:
            raise TemplateFailed(f"can't write {self.path}: {error.strerror}") from None
        except UnicodeError:
            raise TemplateFailed(f"can't write {self.path}: the text has characters that UTF-8 has not") from None
        self._isPending = False
        return True

    async def _replace(self, text: str) -> None:
        """Check the text, and make it the file's content. Mode and owner stay."""
        like = os.stat(self.path) if os.path.exists(self.path) else None
        with replacement(self.path, text, isDurable=True, like=like) as new:
            if like is None:
                umask = os.umask(0o077)
                os.umask(umask)
                os.chmod(new, 0o666 & ~umask)
            if self._check is not None:
                await self._run(self._check.replace("{}", shlex.quote(new)))
            if self._reload is not None and like is not None and not os.path.lexists(self._old):
                try:
                    os.link(self.path, self._old)
                except OSError:
                    # Not every file system has links, and the file may be another user's.
                    replaceFile(self._old, Path(self.path).read_bytes(), like=like)
            self._isPending = self._reload is not None
            os.rename(new, self.path)
