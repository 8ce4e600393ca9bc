"""
A process that has imported what our programs import, and starts each program as a fork of itself. Half of what the
short programs of a test cost is the import of Twisted.

The tests' end sends a packet per program, ``{"command": …, "environment": …, "folder": …}``, with four descriptors:
standard input, output and error, and a socket on which it is told the program's id, and its status when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

#: The most that a packet has: an environment, and a command.
PACKET = 1 << 17
_IMPORTED = (
    "treq",
    "twisted.internet.epollreactor",
    "twisted.scripts.twistd",
    "txserviceregistry.client",
    "txserviceregistry.commands.agent",
    "txserviceregistry.commands.raxsr.main",
    "txserviceregistry.commands.registry",
    "txserviceregistry.commands.users",
    "txserviceregistry.commands.wrapper.main",
    "txserviceregistry.discovery",
    "txserviceregistry.registry.stores.etcd.store",
)


def load() -> None:
    """Import all that programs import, except for the reactor, of which each has its own."""
    from twisted.application.service import IServiceMaker
    from twisted.plugin import getPlugins

    for name in _IMPORTED:
        import_module(name)
    list(getPlugins(IServiceMaker))
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    gc.freeze()


def serve(channel: socket.socket) -> Callable[[], Any] | None:
    """
    Start programs until the tests have ended.

    :returns: in each program's process what it has to run; ``None`` at the end.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                pid, told = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                told.send(os.waitpid(pid, 0)[1].to_bytes(4, "big"))
                told.close()
                continue
            packet, descriptors, _, _ = socket.recv_fds(channel, PACKET, 4)
            if not packet:
                return None
            pid = os.fork()
            if pid == 0:
                return lambda: become(descriptors[:3], **json.loads(packet))
            for each in descriptors[:3]:
                os.close(each)
            told = socket.socket(fileno=descriptors[3])
            told.send(pid.to_bytes(4, "big"))
            ended = os.pidfd_open(pid)
            running[ended] = (pid, told)
            poll.register(ended, select.POLLIN)


def become(streams: list[int], command: list[str], environment: dict[str, str], folder: str) -> None:
    """Run a Python program, as if this process had just begun with it."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # These may have been files before.
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    if "COVERAGE_PROCESS_START" in environment:
        coverage = import_module("coverage")
        coverage.process_startup()
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(":"))
    if command[1:2] == ["-m"]:
        sys.argv, sys.path[0] = command[2:], folder
        if not hasattr(sys.modules.get(command[2]), "__path__"):
            sys.modules.pop(command[2], None)
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        isScript = not os.path.basename(command[0]).startswith("python")
        sys.argv = command if isScript else command[1:]
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # Typed, it is for the tests, which end this process by their own end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load()
    program = serve(socket.socket(fileno=int(sys.argv[1])))
    if program is not None:
        program()
