"""
The wrapped command as a process: started as if nobody stood between it and whoever called, and reaped.

Nothing here reads or writes what the process says: its standard streams are this process's own.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence

from twisted.internet.defer import Deferred

_NOT_FOUND = 127
_NOT_RUNNABLE = 126


class CantStart(Exception):
    """
    There is no such program, or it can't be run; the text says which and why.

    :ivar exitCode: what a shell would end with.
    """

    def __init__(self, text: str, exitCode: int) -> None:
        super().__init__(text)
        self.exitCode = exitCode


class Child:
    """
    A process that was started.

    :ivar pid: its id.
    :ivar ended: fires with its wait status, when whoever reaps it says so.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: Deferred[int] = Deferred()

    @property
    def sharesTerminalSignals(self) -> bool:
        """Whether it still is in our process group, to which the terminal sends what is typed."""
        try:
            return os.getpgid(self.pid) == os.getpgrp()
        except ProcessLookupError:
            return False

    def signal(self, number: int) -> None:
        """Send it a signal. One that has ended takes none."""
        if self.ended.called:
            return
        try:
            os.kill(self.pid, number)
        except PermissionError:
            # It runs as somebody else now, as a setuid program does.
            pass


def findProgram(word: str) -> str:
    """
    Where a program is.

    :param word: as a shell would take it: a path if there is a slash in it, else a name to look for in ``PATH``.
    :raises CantStart: if there is none.
    """
    path = shutil.which(word)
    if path is not None:
        return path
    folders = [""] if os.sep in word else os.environ.get("PATH", os.defpath).split(os.pathsep)
    if word and any(os.path.exists(os.path.join(folder, word)) for folder in folders):
        raise CantStart(f"{word}: can't be run: {os.strerror(errno.EACCES)}", _NOT_RUNNABLE)
    raise CantStart(f"{word}: there is no such program", _NOT_FOUND)


def startEnvironment() -> dict[bytes, bytes]:
    """
    The environment that this process was started with. Python may have changed its own since: in the C locale it adds
    ``LC_CTYPE`` (PEP 538).
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
            return {name: value for name, equals, value in pairs if name and equals}
    except OSError:
        return dict(os.environb)


def startChild(command: Sequence[str], environment: Mapping[bytes, bytes], keepIgnored: frozenset[int]) -> Child:
    """
    Start a process with our standard streams, terminal and folder, no signal blocked and none ignored.

    :param command: the program and its arguments.
    :param environment: its environment.
    :param keepIgnored: the signals that it ignores as we do.
    :raises CantStart: if it can't be.
    """
    path = findProgram(command[0])
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - keepIgnored
    try:
        return Child(os.posix_spawn(path, list(command), environment, setsigmask=(), setsigdef=defaults))
    except OSError as error:
        text = error.strerror
        if error.errno == errno.ENOENT and os.path.exists(path):
            text = "the interpreter that its first line names is missing"
        elif error.errno == errno.ENOEXEC:
            text = _whyNotRunnable(path)
        raise CantStart(f"{command[0]}: can't be run: {text}", _NOT_RUNNABLE)


def _whyNotRunnable(path: str) -> str:
    """Why the system does not know how to run a file."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        start = b""
    if start and b"\0" not in start:
        return "it is a script without #! in its first line, which names the interpreter, such as #!/bin/sh"
    return "it is not a program for this machine"


def reap() -> Iterator[tuple[int, int]]:
    """
    All children that have ended, orphans too that were handed to us as PID 1: their ids and wait statuses.

    Nobody else in this process waits for children, so there is nobody to take one from.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status


def exitCode(status: int) -> int:
    """What a shell makes of a wait status: the exit code, or 128 + N after signal N."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
