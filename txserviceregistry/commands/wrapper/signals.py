"""
The signals that reach this process, each with whether it was typed at the terminal. Only ``sigwaitinfo`` gets the
origin of a signal, so the signals are blocked, and a thread waits for them, as in small init programs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread
from typing import Any

#: All signals but those that can't be caught, report a fault or limit of this process, or stop a process group that
#: reads or writes in the background.
FORWARDABLE = frozenset(
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


class Signals:
    """
    Receives the signals of this process from its construction on, and passes them on from its start on.

    :ivar kept: the signals that stay ignored, as SIGHUP under ``nohup``.
    """

    def __init__(self) -> None:
        self.kept = frozenset({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else ())
        self._taken = (FORWARDABLE | {signal.SIGCHLD}) - self.kept
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
