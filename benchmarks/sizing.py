"""
``python -m benchmarks.sizing --services 5000``: what a service and an event take of memory and disk.

Runs a registry over a sqlite file in a folder of its own, registers so many services (two tags, three pairs of
metadata), and looks at the process (Linux: ``/proc``) and the file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from twisted.internet.defer import gatherResults
from twisted.internet.task import react

from txserviceregistry import Client
from txserviceregistry.settings import readSettings
from txserviceregistry.util.deferred import returnsDeferred

_AT_ONCE = 100


def residentKilobytes(pid: int) -> int:
    """The memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def bytesOnDisk(folder: Path) -> int:
    """The store's file, with what is still in the log beside it."""
    return sum(path.stat().st_size for path in folder.glob("registry.sqlite*"))


@returnsDeferred
async def measure(reactor: Any, services: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "--logfile=/dev/null"]
        options = [f"--data-dir={name}", "--listen=tcp:0:interface=127.0.0.1", f"--max-services={services}"]
        registry = Popen([*command, "service-registry", *options], stdout=PIPE, cwd=name)
        try:
            assert registry.stdout is not None
            registry.stdout.readline()
            settings = readSettings(environ={"RAXSR_DATA_DIR": name}, home=Path(name))
            async with Client(settings=settings, reactor=reactor, maxConnections=8, timeout=60.0) as client:
                await client.account.getLimits()
                memory, disk = residentKilobytes(registry.pid), bytesOnDisk(Path(name))
                files = len(os.listdir(f"/proc/{registry.pid}/fd"))
                metadata = {"host": "192.0.2.1", "port": "8000", "version": "1.2.3"}
                payload = {"tags": ["www", "production"], "metadata": metadata}
                for first in range(0, services, _AT_ONCE):
                    ids = [f"service-{number}" for number in range(first, min(services, first + _AT_ONCE))]
                    await gatherResults([client.services.create(id, 120, payload) for id in ids])
                print(f"empty: {memory / 1024:.0f} MiB of memory, {disk} bytes on disk, {files} file descriptors")
                grown = (residentKilobytes(registry.pid) - memory) * 1024 / services
                print(f"each of {services} services: {grown:.0f} bytes of memory")
        finally:
            registry.terminate()
            registry.wait()
        print(f"each service with its event: {(bytesOnDisk(Path(name)) - disk) / services:.0f} bytes on disk")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=5000)
    arguments = parser.parse_args()
    react(measure, (arguments.services,))


if __name__ == "__main__":
    main()
