"""
Starting a command whose environment has its own process id: systemd passes sockets and the watchdog to the process with
the id in ``LISTEN_PID`` and ``WATCHDOG_PID``, which is the wrapper. The id of the command is known only when it has
been started. So this file, as a program in the new process, changes the variables, and then becomes the command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

_NAMES = (b"LISTEN_PID", b"WATCHDOG_PID")
_NOT_RUNNABLE = 126


def withOwnPid(command: Sequence[str], path: str, environment: Mapping[bytes, bytes]) -> tuple[str, list[str]]:
    """
    The program and the command line that start a command with the process id that it needs.

    :param path: the command's own program.
    """
    ours = str(os.getpid()).encode()
    names = [name.decode() for name in _NAMES if environment.get(name) == ours]
    if not names:
        return path, list(command)
    return sys.executable, [sys.executable, "-I", "-S", __file__, ",".join(names), path, *command]


def _main(names: str, path: str, *command: str) -> None:
    with open("/proc/self/environ", "rb") as file:
        # Not Python's own: it may add LC_CTYPE.
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0"))
        environment = {name: value for name, equals, value in pairs if name and equals}
    environment.update(dict.fromkeys(names.encode().split(b","), str(os.getpid()).encode()))
    # Python ignores these two.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execve(path, command, environment)
    except OSError as error:
        sys.stderr.write(f"service-registry-wrapper: can't run {command[0]}: {error.strerror}\n")
        sys.exit(_NOT_RUNNABLE)


if __name__ == "__main__":
    _main(*sys.argv[1:])
