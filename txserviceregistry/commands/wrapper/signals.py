"""
The signals that reach this process, each with whether it was typed at the terminal.

A Python signal handler is not told where a signal comes from. ``sigwaitinfo`` is; so the signals are blocked, and a
thread of their own waits for them, as small init programs do it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from threading import Thread
from typing import Any

#: All but those that can't be caught, that tell of a fault or a limit of this very process, and that stop a whole
#: process group, us included, for reading or writing in the background.
FORWARDABLE = frozenset(
    signal.valid_signals()
    - {
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS),
        *(signal.SIGPIPE, signal.SIGXCPU, signal.SIGXFSZ),
    }
)

# <signal.h>, which Python's module does not have: the kernel itself has sent it, as the terminal's driver does.
_SI_KERNEL = 0x80
# What the terminal's driver sends to the whole foreground process group.
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH})


class Signals:
    """
    Takes the signals of this process from its making on, and tells of them once it is started.

    SIGHUP is left alone where it is ignored already, as ``nohup`` has it.

    :ivar kept: the signals that stay ignored.
    """

    def __init__(self) -> None:
        self.kept = frozenset({signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else ())
        self._taken = (FORWARDABLE | {signal.SIGCHLD}) - self.kept
        # Ignored, it would make the system forget how the children ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # Threads inherit this: it has to come before any is started.
        signal.pthread_sigmask(signal.SIG_SETMASK, self._taken)

    def start(self, reactor: Any, listener: Callable[[int, bool], None]) -> None:
        """
        Begin to tell, of those too that came meanwhile.

        :param reactor: calls the listener in its thread.
        :param listener: takes a signal's number, and whether the terminal has sent it to the whole process group.
        """

        def listen() -> None:
            while True:
                found = signal.sigwaitinfo(self._taken)
                typed = found.si_code == _SI_KERNEL and found.si_signo in _FROM_TERMINAL
                reactor.callFromThread(listener, found.si_signo, typed)

        Thread(target=listen, name="signals", daemon=True).start()


def stopAsThePersonAskedFor() -> None:
    """
    Stop this process as SIGTSTP does by default (not where there is no shell to continue it), until SIGCONT.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
