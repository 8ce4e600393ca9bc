"""Health checks that are commands: they pass if the exit code is 0."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import IO

from twisted.internet.defer import Deferred

from ...heartbeats.healthcheck import HealthCheckFailed
from .checks import Probe
from .process import Child, exitCode, startChild, startEnvironment

# What the service manager has for the wrapped command.
_NOT_INHERITED = (b"NOTIFY_SOCKET", b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"WATCHDOG_PID", b"WATCHDOG_USEC")
# Of a command's output in the log: its end.
_LONGEST_OUTPUT = 100


class CommandChecks:
    """The checks that run, each in a process group of its own."""

    def __init__(self) -> None:
        self._running: dict[int, Child] = {}

    def probe(self, command: str, serviceId: str) -> Probe:
        """A check that runs a shell *command*; when it is cancelled, its processes are killed."""
        environment = {**startEnvironment(), b"SERVICE_REGISTRY_ID": os.fsencode(serviceId)}
        for name in _NOT_INHERITED:
            environment.pop(name, None)

        def probe() -> Deferred[bool]:
            # Not a pipe, which a process that the command leaves behind would keep open.
            output = tempfile.TemporaryFile()  # noqa: SIM115  # _report closes it
            child = startChild(["/bin/sh", "-c", command], environment, frozenset(), output=output.fileno())
            self._running[child.pid] = child
            checked: Deferred[bool] = Deferred(lambda _: os.killpg(child.pid, signal.SIGKILL))
            child.ended.addCallback(_report, output, checked)
            return checked

        return probe

    def ended(self, pid: int, status: int) -> None:
        """Note that a process has ended, which may have been a check."""
        child = self._running.pop(pid, None)
        if child is not None:
            child.ended.callback(status)


def _report(status: int, output: IO[bytes], checked: Deferred[bool]) -> None:
    with output:
        output.seek(max(0, os.fstat(output.fileno()).st_size - 8 * _LONGEST_OUTPUT))
        said = " ".join(output.read().decode("utf-8", "replace").split())[-_LONGEST_OUTPUT:]
    if checked.called:
        return
    if status == 0:
        checked.callback(True)
    else:
        checked.errback(HealthCheckFailed(f"exit code {exitCode(status)}{f': {said}' if said else ''}"))
