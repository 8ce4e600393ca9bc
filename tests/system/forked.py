"""Starts our programs as forks of a process that has imported what they need: see forkserver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol, IProcessTransport
from twisted.internet.process import ProcessReader, ProcessWriter
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.system import forkserver

reactor: Any = globalReactor
# Variables that Python and the dynamic linker read as a process begins.
_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "FAKETIME")
# The wrapper asks the system for the environment that its process was started with.
_NOT_FORKED = ("service-registry-wrapper",)


def isPossible(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command is a program in Python that a fork can become."""
    if not hasattr(os, "pidfd_open"):
        return False
    read = {name for name in (*environment, *os.environ) if name.startswith(_READ_AT_START)} - {"PYTHONPATH"}
    if any(environment.get(name) != os.environ.get(name) for name in read):
        return False
    folder, name = os.path.split(command[0])
    if folder != os.path.dirname(sys.executable):
        return False
    if name.startswith("python"):
        return len(command) > 1 and (command[1] == "-m" or command[1].endswith(".py"))
    return _isScript(command[0])


@cache
def _isScript(program: str) -> bool:
    with open(program, "rb") as file:
        isPython = os.fsencode(sys.executable) in file.readline()
    return isPython and os.path.basename(program) not in _NOT_FORKED


@cache
def _server() -> socket.socket:
    """The forkserver's end, which ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * forkserver.PACKET)
    with theirs:
        command = [sys.executable, forkserver.__file__, str(theirs.fileno())]
        # The forks' coverage is measured, each by itself.
        environment = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"}
        subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
    return ours


@implementer(IProcessTransport)
class ForkedProcess(FileDescriptor):
    """A program that runs in a fork, for a ProcessProtocol; it is read for its end."""

    def __init__(
        self, protocol: IProcessProtocol, command: Sequence[str], environment: Mapping[str, str], folder: str
    ) -> None:
        super().__init__(reactor)
        self.proto = protocol
        (stdin, ours0), (ours1, stdout), (ours2, stderr) = os.pipe(), os.pipe(), os.pipe()
        self._told, told = socket.socketpair()
        request = {"command": list(command), "environment": dict(environment), "folder": folder}
        theirs = [stdin, stdout, stderr, told.detach()]
        socket.send_fds(_server(), [json.dumps(request).encode()], theirs)
        for each in theirs:
            os.close(each)
        pid = self._told.recv(4)
        if not pid:
            raise RuntimeError("The forkserver has ended")
        self.pid: int | None = int.from_bytes(pid, "big")
        self.status: int | None = None
        self.pipes: dict[int, Any] = {0: ProcessWriter(reactor, self, 0, ours0)}
        for number, descriptor in ((1, ours1), (2, ours2)):
            self.pipes[number] = ProcessReader(reactor, self, number, descriptor)
        self.startReading()
        protocol.makeConnection(self)

    def fileno(self) -> int:
        """See FileDescriptor."""
        return self._told.fileno()

    def doRead(self) -> None:
        """The program has ended."""
        self.status = int.from_bytes(self._told.recv(4), "big")
        self.pid = None
        self.stopReading()
        self._told.close()
        self.proto.processExited(self._reason(self.status))
        self._lookWhetherEnded()

    def signalProcess(self, signalID: str | int) -> None:
        """See IProcessTransport."""
        if self.pid is None:
            raise ProcessExitedAlready()
        number = signal.Signals[f"SIG{signalID}"] if isinstance(signalID, str) else signalID
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            raise ProcessExitedAlready() from None

    def write(self, data: bytes) -> None:
        """See IProcessTransport."""
        self.pipes[0].write(data)

    def closeStdin(self) -> None:
        """See IProcessTransport."""
        self.closeChildFD(0)

    def closeChildFD(self, descriptor: int) -> None:
        """See IProcessTransport."""
        if descriptor in self.pipes:
            self.pipes[descriptor].loseConnection()

    def childDataReceived(self, name: int, data: bytes) -> None:
        """A pipe has read this."""
        self.proto.childDataReceived(name, data)

    def childConnectionLost(self, childFD: int, reason: Failure) -> None:
        """A pipe has ended."""
        del self.pipes[childFD]
        self.proto.childConnectionLost(childFD)
        self._lookWhetherEnded()

    def _lookWhetherEnded(self) -> None:
        if self.status is not None and not self.pipes:
            self.proto.processEnded(self._reason(self.status))

    @staticmethod
    def _reason(status: int) -> Failure:
        if os.WIFSIGNALED(status):
            return Failure(ProcessTerminated(signal=os.WTERMSIG(status), status=status))
        code = os.WEXITSTATUS(status)
        return Failure(ProcessTerminated(exitCode=code, status=status) if code else ProcessDone(status))
