"""Processes: how they are started and reaped, and what passes between the wrapped command and its surroundings."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping
from contextlib import suppress
from threading import Thread
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from ...util.deferred import returnsDeferred, waitFor
from ..console import CommandFailed
from ..twistd import Notifier

_NOT_FOUND = 127
_NOT_RUNNABLE = 126
# systemd passes sockets and the watchdog to the process with the id in these variables.
_OWN_PID = (b"LISTEN_PID", b"WATCHDOG_PID")
# Of a shell command's output in an error: its last characters. More bytes are read, because white space is left out.
_LONGEST_OUTPUT = 180
_LONGEST_TAIL = 4096
# The processes that were started, by their ids.
_children: dict[int, Child] = {}

# All signals but those that can't be caught, report a fault or limit of this process, or stop a process group that
# reads or writes in the background.
_FORWARDABLE = frozenset(
    signal.valid_signals()
    - {
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        *(signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ),
    }
)
# <signal.h>, missing in Python's module: the kernel has sent the signal, as the terminal's driver does.
_SI_KERNEL = 0x80
# The signals that the terminal's driver sends to the whole foreground process group.
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH})

_SOCKET = b"NOTIFY_SOCKET"
_LARGEST = 65536
_CREDENTIALS = struct.Struct("iii")
# The wrapper stays the main process, and file descriptors are not passed on.
_DROPPED = (b"MAINPID", b"MAINPIDFDID", b"FDSTORE", b"FDSTOREREMOVE", b"FDNAME", b"FDPOLL", b"BARRIER")


class CantStart(CommandFailed):
    """A program was not found, or can't be run. The exit code is the one that a shell would have."""


class Child:
    """A process that was started. *ended* fires with its wait status, by :func:`reap` or :meth:`reapInThread`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: Deferred[int] = Deferred()
        _children[pid] = self

    def reapInThread(self) -> None:
        """Reap it where nothing calls :func:`reap`, as without a handler of SIGCHLD."""
        del _children[self.pid]
        deferToThread(os.waitpid, self.pid, 0).addCallback(lambda found: self.ended.callback(found[1]))

    @property
    def sharesTerminalSignals(self) -> bool:
        """Whether it is still in our process group, to which the terminal sends signals."""
        with suppress(ProcessLookupError):
            return os.getpgid(self.pid) == os.getpgrp()
        return False

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.ended.called:
            return
        # It runs as another user, as a setuid program does; or a thread has just reaped it.
        with suppress(PermissionError, ProcessLookupError):
            os.kill(self.pid, number)


def findProgram(word: str) -> str:
    """Find a program as a shell does; :class:`CantStart` if it does not exist, or can't be run."""
    path = shutil.which(word)
    if path is not None:
        return path
    folders = [""] if os.sep in word else os.environ.get("PATH", os.defpath).split(os.pathsep)
    if word and any(os.path.exists(os.path.join(folder, word)) for folder in folders):
        raise CantStart(f"can't run {word}: {os.strerror(errno.EACCES)}", _NOT_RUNNABLE)
    raise CantStart(f"{word}: command not found", _NOT_FOUND)


def startEnvironment() -> dict[bytes, bytes]:
    """The environment of this process at its start. In the C locale Python adds ``LC_CTYPE`` to its own (PEP 538)."""
    with suppress(OSError), open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        return {name: value for name, equals, value in pairs if name and equals}
    return dict(os.environb)


def startChild(
    command: list[str], environment: Mapping[bytes, bytes], keepIgnored: frozenset[int], *, output: int | None = None
) -> Child:
    """
    Start a process with our standard streams, terminal and folder, and with no signal blocked or ignored but those of
    *keepIgnored*. With an open file for both outputs it has no input and no terminal: it has a session of its own.
    """
    path = findProgram(command[0])
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # The system would not keep the wait status.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - keepIgnored
    if output is None and str(os.getpid()).encode() in [environment.get(name) for name in _OWN_PID]:
        return _forked(path, command, environment, defaults)
    apart: dict[str, Any] = {}
    if output is not None:
        nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        streams = [(os.POSIX_SPAWN_DUP2, output, stream) for stream in (1, 2)]
        apart = {"file_actions": [nothing, *streams], "setsid": True}
    try:
        return Child(os.posix_spawn(path, command, environment, setsigmask=(), setsigdef=defaults, **apart))
    except OSError as error:
        raise CantStart(f"can't run {command[0]}: {_whyNotRunnable(path, error)}", _NOT_RUNNABLE)


def _forked(path: str, command: list[str], environment: Mapping[bytes, bytes], defaults: Collection[int]) -> Child:
    """The same, with the process's own id in its environment."""
    ours = str(os.getpid()).encode()
    if pid := os.fork():
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
    if error.errno == errno.ENOEXEC:
        return "it is not a program for this machine, or a script without a first line such as #!/bin/sh"
    return error.strerror or str(error)


def reap() -> None:
    """Note which children have ended. Orphans of PID 1 are among them. Nothing else here waits for children."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            child = _children.pop(found[0], None)
            if child is not None:
                child.ended.callback(found[1])


def exitCode(status: int) -> int:
    """A shell's exit code for a wait status: the process's own, or 128 + N after signal N."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


@returnsDeferred
async def runShell(command: str, environment: Mapping[bytes, bytes], *, inThread: bool = False) -> str | None:
    """
    Run a shell command in a session of its own, which has no terminal; its process group is killed when this is
    cancelled. Fires with ``None``, or with the reason why it has failed and the end of its output. *inThread* is for
    :meth:`Child.reapInThread`.
    """
    # Not a pipe, which a process that the command leaves behind would keep open.
    with tempfile.TemporaryFile() as output:
        child = startChild(["/bin/sh", "-c", command], environment, frozenset(), output=output.fileno())
        if inThread:
            child.reapInThread()
        try:
            status = await waitFor(child.ended)
        except CancelledError:
            # It may have ended by itself just now.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
        if status == 0:
            return None
        output.seek(-min(_LONGEST_TAIL, output.seek(0, os.SEEK_END)), os.SEEK_END)
        said = " ".join(output.read().decode("utf-8", "replace").split())[-_LONGEST_OUTPUT:]
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {exitCode(status)}"
    return f"{how}{f': {said}' if said else ''}"


# -- what is passed on


class Signals:
    """
    Receives the signals of this process, from before its start on. Only ``sigwaitinfo`` gets the origin of a signal, so
    the signals are blocked, and a thread waits for them. Those *kept* stay ignored, as SIGHUP under ``nohup``.
    """

    def __init__(self) -> None:
        self.kept = frozenset({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else ())
        self._taken = (_FORWARDABLE | {signal.SIGCHLD}) - self.kept
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Threads inherit this, so it comes before the first thread.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._taken)

    def start(self, reactor: Any, listener: Callable[[int, bool], None]) -> None:
        """Pass to a *listener* each signal's number, and whether the terminal sent it to the whole process group."""

        def listen() -> None:
            while True:
                found = signal.sigwaitinfo(self._taken)
                typed = found.si_code == _SI_KERNEL and found.si_signo in _FROM_TERMINAL
                reactor.callFromThread(listener, found.si_signo, typed)

        Thread(target=listen, name="signals", daemon=True).start()


def stopUntilContinued(child: Child) -> None:
    """
    Stop this process until SIGCONT, as SIGTSTP does by default, unless there is no shell to continue it. *child* stops
    first, if it does so within two seconds: else it could read what is typed into the shell, or change its terminal.
    """
    with suppress(ChildProcessError):
        for _ in range(200):
            if os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                break
            time.sleep(0.01)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


@implementer(IReadDescriptor)
class NotificationRelay:
    """Passes on the notifications of this user's and root's processes: systemd takes only those of the main process."""

    def __init__(self, reactor: Any, environment: MutableMapping[bytes, bytes]) -> None:
        name = f"service-registry-wrapper-{secrets.token_hex(8)}"
        self._notifier = Notifier({"NOTIFY_SOCKET": os.fsdecode(environment[_SOCKET])})
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # Linux removes a name of this kind with its socket.
        self._socket.bind(f"\0{name}")
        environment[_SOCKET] = f"@{name}".encode()
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "notifications"

    def connectionLost(self, reason: object) -> None:
        self._socket.close()

    def doRead(self) -> None:
        try:
            # There is room for credentials only: the system closes descriptors that come with them.
            data, extra, _, _ = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
        except OSError:
            return
        users = [_CREDENTIALS.unpack(each)[1] for _, kind, each in extra if kind == socket.SCM_CREDENTIALS]
        states = [line for line in data.split(b"\n") if line and line.partition(b"=")[0] not in _DROPPED]
        if states and users and users[0] in (0, os.geteuid()):
            self._notifier.send(*states)
