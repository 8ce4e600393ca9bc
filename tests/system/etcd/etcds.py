"""
A real etcd for tests, started when it is first asked for and shared by all tests of a run, each with its own prefix.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import cache

from tests.system.ports import freePorts

_names = itertools.count(1)
# Seconds: far more than an etcd takes to start.
_PATIENCE = 30.0


def newPrefix() -> str:
    """A prefix for keys that no other test has."""
    return f"/test{next(_names)}/"


#: The etcd that the extra ``test`` brings, or another one that the environment names. It does not suit tests that kill
#: it: it loses what it has acknowledged.
BROUGHT = os.environ.get("TEST_ETCD") or os.path.join(os.path.dirname(sys.executable), "etcd")
#: The etcd of the system, which is made for that.
SYSTEMS = "/usr/bin/etcd"


def etcdCommand(
    folder: str, client: str, peer: str, *more: str, program: str = BROUGHT, name: str = "default", cluster: str = ""
) -> list[str]:
    """
    The command that starts an etcd.

    :param folder: for its data.
    :param client: the URL for its clients,
    :param peer: and the one for the other members.
    :param cluster: all members, as ``--initial-cluster`` takes them; it alone if not given.
    """
    return [
        program,
        f"--name={name}",
        f"--data-dir={folder}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={cluster or f'{name}={peer}'}",
        "--log-level=error",
        *more,
    ]


def startEtcd(*more: str, files: tuple[str, str, str] | None = None) -> tuple[str, Callable[[], None]]:
    """
    Start an etcd of one member, and wait until it answers.

    :param more: arguments.
    :param files: with the certificate to trust, and the certificate and the key to show, to ask it over TLS.
    :return: its URL, and what ends it.
    """
    folder = tempfile.mkdtemp()
    ports = freePorts(2)
    scheme, context = "http", None
    if files is not None:
        scheme, context = "https", ssl.create_default_context(cafile=files[0])
        context.load_cert_chain(*files[1:])
    client, peer = f"{scheme}://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    command = etcdCommand(folder, client, peer, "--unsafe-no-fsync", *more)
    etcd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        etcd.kill()
        etcd.wait()
        shutil.rmtree(folder, ignore_errors=True)

    latest = time.monotonic() + _PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"{client}/health", timeout=1, context=context) as answer:
                if b"true" in answer.read():
                    return client, end
        except OSError:
            pass
        if etcd.poll() is not None or time.monotonic() > latest:
            end()
            raise AssertionError("etcd does not start")
        time.sleep(0.02)


@cache
def sharedEtcd() -> str:
    """The URL of an etcd of one member: the one that the extra ``test`` brings."""
    url, end = startEtcd()
    atexit.register(end)
    return url
