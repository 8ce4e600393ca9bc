"""What the wrapper passes on: signals to the command, and the command's notifications to the service manager."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import struct
from collections.abc import Callable, MutableMapping
from threading import Thread
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from zope.interface import implementer

from ..process import Notifier

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


class Signals:
    """
    Receives the signals of this process from its construction on, and passes them on from its start on. Only
    ``sigwaitinfo`` gets the origin of a signal, so the signals are blocked, and a thread waits for them.

    :ivar kept: the signals that stay ignored, as SIGHUP under ``nohup``.
    """

    def __init__(self) -> None:
        self.kept = frozenset({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else ())
        self._taken = (_FORWARDABLE | {signal.SIGCHLD}) - self.kept
        # If it were ignored, the system would not keep the wait statuses of children.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Threads inherit this, so it comes before the first thread.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._taken)

    def start(self, reactor: Any, listener: Callable[[int, bool], None]) -> None:
        """
        Begin to pass signals on, those included that came before, to a *listener* in the reactor's thread: the signal's
        number, and whether the terminal sent it to the whole process group.
        """

        def listen() -> None:
            while True:
                found = signal.sigwaitinfo(self._taken)
                typed = found.si_code == _SI_KERNEL and found.si_signo in _FROM_TERMINAL
                reactor.callFromThread(listener, found.si_signo, typed)

        Thread(target=listen, name="signals", daemon=True).start()


def stopUntilContinued() -> None:
    """Stop this process until SIGCONT, as SIGTSTP does by default, unless there is no shell to continue it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})


@implementer(IReadDescriptor)
class NotificationRelay:
    """
    Passes on the notifications of the processes of this user, and of root: systemd takes those of the main process
    only, which is the wrapper.

    :param environment: the command's; its ``NOTIFY_SOCKET`` is replaced.
    """

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
