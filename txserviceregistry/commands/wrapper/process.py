"""The wrapped command as a process: started with the wrapper's own standard streams, and reaped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred

_NOT_FOUND = 127
_NOT_RUNNABLE = 126
# systemd passes sockets and the watchdog to the process with the id in these variables.
_OWN_PID = (b"LISTEN_PID", b"WATCHDOG_PID")


class CantStart(Exception):
    """A program was not found, or can't be run. *exitCode* is the one that a shell would have."""

    def __init__(self, text: str, exitCode: int) -> None:
        super().__init__(text)
        self.exitCode = exitCode


class Child:
    """A process that was started. *ended* fires with its wait status; the caller of :func:`reap` fires it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: Deferred[int] = Deferred()

    @property
    def sharesTerminalSignals(self) -> bool:
        """Whether it is still in our process group, to which the terminal sends signals."""
        try:
            return os.getpgid(self.pid) == os.getpgrp()
        except ProcessLookupError:
            return False

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.ended.called:
            return
        try:
            os.kill(self.pid, number)
        except PermissionError:
            # It runs as another user, as a setuid program does.
            pass


def findProgram(word: str) -> str:
    """
    Find a program as a shell does: by its path, or by a name without a slash in ``PATH``.

    :raises CantStart: if it does not exist, or can't be run.
    """
    path = shutil.which(word)
    if path is not None:
        return path
    folders = [""] if os.sep in word else os.environ.get("PATH", os.defpath).split(os.pathsep)
    if word and any(os.path.exists(os.path.join(folder, word)) for folder in folders):
        raise CantStart(f"can't run {word}: {os.strerror(errno.EACCES)}", _NOT_RUNNABLE)
    raise CantStart(f"{word}: command not found", _NOT_FOUND)


def startEnvironment() -> dict[bytes, bytes]:
    """
    The environment that this process was started with. In the C locale Python adds ``LC_CTYPE`` to its own (PEP 538).
    """
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
            return {name: value for name, equals, value in pairs if name and equals}
    except OSError:
        return dict(os.environb)


def startChild(
    command: list[str],
    environment: Mapping[bytes, bytes],
    keepIgnored: frozenset[int],
    *,
    output: int | None = None,
) -> Child:
    """
    Start a process with our standard streams, terminal and folder, and with no signal blocked or ignored but those of
    *keepIgnored*. Variables for our own process id have that of the new process.

    :param output: an open file for both outputs. The process then has no input, and a process group of its own.
    :raises CantStart: if it can't be started.
    """
    path = findProgram(command[0])
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - keepIgnored
    if str(os.getpid()).encode() in [environment.get(name) for name in _OWN_PID]:
        return _forked(path, command, environment, defaults)
    apart: dict[str, Any] = {}
    if output is not None:
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        streams = [(os.POSIX_SPAWN_DUP2, output, stream) for stream in (1, 2)]
        apart = {"file_actions": [nothing, *streams], "setpgroup": 0}
    try:
        return Child(os.posix_spawn(path, command, environment, setsigmask=(), setsigdef=defaults, **apart))
    except OSError as error:
        raise CantStart(f"can't run {command[0]}: {_whyNotRunnable(path, error)}", _NOT_RUNNABLE)


def _forked(path: str, command: list[str], environment: Mapping[bytes, bytes], defaults: Collection[int]) -> Child:
    """The same, with the process's own id in its environment, which is known only when it has been made."""
    ours = str(os.getpid()).encode()
    pid = os.fork()
    if pid:
        return Child(pid)
    try:
        own = {name: str(os.getpid()).encode() for name in _OWN_PID if environment.get(name) == ours}
        for number in defaults:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(path, command, {**environment, **own})
    except OSError as error:
        line = f"service-registry-wrapper: can't run {command[0]}: {_whyNotRunnable(path, error)}\n"
        os.write(2, line.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(_NOT_RUNNABLE)


def _whyNotRunnable(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT and os.path.exists(path):
        return "the interpreter in its first line does not exist"
    if error.errno != errno.ENOEXEC:
        return error.strerror or str(error)
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        start = b""
    if start and b"\0" not in start:
        return "it is a script whose first line does not name an interpreter, such as #!/bin/sh"
    return "it is not a program for this machine"


def reap() -> Iterator[tuple[int, int]]:
    """
    The ids and wait statuses of all children that have ended, which for PID 1 include orphans. Nothing else in this
    process waits for children.
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
    """A shell's exit code for a wait status: the process's own, or 128 + N after signal N."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
