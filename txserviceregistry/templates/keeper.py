"""Keeping files current: render, check, replace, reload, and wait for the next change."""

from __future__ import annotations

import os
import random
import shlex
import signal
import stat
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from ..discovery.directory import THRESHOLD
from ..util.backoff import Backoff
from ..util.files import replaceFile, replacement
from ..util.logs import Logger, Outage
from .rendering import NotCurrent, Renderer, TemplateFailed, Views

if TYPE_CHECKING:
    from ..client import Client

# Seconds between two tries after a failure.
_SHORTEST_RETRY = 1.0
_LONGEST_RETRY = 60.0
# Seconds until the next look at views that are stale.
_STALE_RETRY = 0.5
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


@attrs.define(eq=False, repr=False, slots=False)
class Target:
    """A file that is kept current. *check* and *reload* are commands; ``{}`` in *check* is the new file's path."""

    path: str = attrs.field(converter=os.path.realpath)
    _check: str | None = None
    _reload: str | None = None
    _run: Callable[[str], Awaitable[None]] = runCommand

    def __attrs_post_init__(self) -> None:
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


@attrs.frozen
class Job:
    """A template and its destination: *put* takes the text, and returns whether it is another one than before."""

    name: str
    renderer: Renderer
    put: Callable[[str], Awaitable[bool]]


class TemplateKeeper:
    """
    Renders templates: :meth:`run` each time something changes, or :meth:`once`.

    :param quiet: seconds without a change until files are rendered again.
    :param longest: seconds after the first change until they are rendered even if more changes come.
    """

    _log = Logger()

    def __init__(
        self,
        client: Client,
        jobs: Sequence[Job],
        quiet: float = 0.0,
        longest: float = 0.0,
        *,
        panicThreshold: float = THRESHOLD,
        allowEmpty: bool = False,
        randomNumber: Callable[[], float] = random.random,
    ) -> None:
        self._clock = client.clock
        self._views = Views(client, panicThreshold, allowEmpty)
        self._quiet = quiet
        self._longest = longest
        self._backoff = Backoff(_SHORTEST_RETRY, _LONGEST_RETRY, randomNumber)
        begins, ends = "Template {name} failed (retrying): {reason}", "Template {name} succeeded after {seconds:.0f} s"
        self._jobs = {job: Outage(self._log, self._clock, begins, ends, name=job.name) for job in jobs}

    async def once(self) -> None:
        """Render each template once, as soon as all that it needs is known; raises :class:`TemplateFailed`."""
        try:
            for job in self._jobs:
                await self._update(job)
        except TemplateFailed as error:
            raise TemplateFailed(f"template {job.name} failed: {error}") from None
        finally:
            await self._views.stop()

    async def run(self) -> None:
        """Keep all files current, until this is cancelled."""
        try:
            while True:
                seen = self._views.version
                if await self._updateAll():
                    self._backoff.reset()
                    if self._views.version == seen:
                        await self._views.whenChanged()
                elif self._views.version == seen:
                    delay = max(self._backoff.next(), _SHORTEST_RETRY)
                    await self._views.whenChanged().addTimeout(delay, self._clock, lambda _, seconds: None)
                if self._views.version != seen:
                    await self._untilQuiet()
        finally:
            await self._views.stop()

    async def _updateAll(self) -> bool:
        """Make all files current; whether that succeeded."""
        isDone = True
        for job, outage in self._jobs.items():
            try:
                await self._update(job)
            except TemplateFailed as error:
                isDone = False
                outage.failed(reason=str(error))
            else:
                outage.succeeded()
        return isDone

    async def _update(self, job: Job) -> None:
        """Make a file current, once what it needs is known."""
        while True:
            try:
                text = job.renderer.render(self._views)
                break
            except NotCurrent:
                await self._views.whenReady()
                if not self._views.areCurrent:
                    await deferLater(self._clock, _STALE_RETRY)
        if await job.put(text):
            self._log.info("Template {name} rendered", name=job.name)

    async def _untilQuiet(self) -> None:
        end, seen = self._clock.seconds() + self._longest, -1
        while self._views.version != seen:
            seen, left = self._views.version, end - self._clock.seconds()
            if left < 0:
                return
            await deferLater(self._clock, min(self._quiet, left))
