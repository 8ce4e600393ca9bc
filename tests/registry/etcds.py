"""
A real etcd for tests, started when it is first asked for and shared by all tests of a run, each with its own prefix.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import cache

_names = itertools.count(1)
# Seconds: far more than an etcd takes to start.
_PATIENCE = 30.0


def freePorts(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def newPrefix() -> str:
    """A prefix for keys that no other test has."""
    return f"/test{next(_names)}/"


@cache
def sharedEtcd() -> str:
    """The URL of an etcd of one member: the one that the extra ``test`` brings."""
    folder = tempfile.mkdtemp()
    client, peer = (f"http://127.0.0.1:{port}" for port in freePorts(2))
    command = [
        os.path.join(os.path.dirname(sys.executable), "etcd"),
        f"--data-dir={folder}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--log-level=error",
        "--unsafe-no-fsync",
    ]
    etcd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        etcd.kill()
        etcd.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    latest = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{client}/health", timeout=1) as answer:
                if b"true" in answer.read():
                    return client
        except OSError:
            pass
        if etcd.poll() is not None or time.monotonic() > latest:
            raise AssertionError("etcd does not start")
        time.sleep(0.02)
