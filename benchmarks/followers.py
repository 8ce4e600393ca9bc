"""
Many followers on one registry: ``python benchmarks/followers.py [COUNT]``.

Each is a Client with a Directory and sockets of its own, in this process; the registry is a second process. It shows
how long it takes until all of them have heard of a change, and what that and the silence after it cost the registry.
Every follower takes two or three sockets on either side: ``ulimit -n`` has to be four times their number.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from txserviceregistry import Client
from txserviceregistry.discovery import Directory
from txserviceregistry.settings import readSettings

REGISTRY = """
import sys
from twisted.internet import reactor
from txserviceregistry.registry.service import RegistryService

registry = RegistryService(
    reactor, dataDir=sys.argv[1], store="sqlite", endpoints=["tcp:0:interface=127.0.0.1"], rateLimit=10**9
)
registry.startService()
registry.whenListening().addCallback(lambda _: print("listening", flush=True))
reactor.addSystemEventTrigger("before", "shutdown", registry.stopService)
reactor.run()
"""

CHANGES = 5
SILENCE = 20.0


class Costs:
    """What a process has used."""

    def __init__(self, pid):
        self.pid = pid
        self.seconds = self.cpu()

    def cpu(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // 2**20

    def since(self):
        before, self.seconds = self.seconds, self.cpu()
        return self.seconds - before


async def follow(reactor, home, costs, count):
    settings = readSettings(environ={"RAXSR_DATA_DIR": home}, home=Path(home))
    by = Client(reactor=reactor, settings=settings)
    began = time.monotonic()
    clients, directories = [], []
    while len(directories) < count:
        some = [Client(reactor=reactor, settings=settings) for _ in range(min(50, count - len(directories)))]
        clients += some
        started = [Directory(client) for client in some]
        directories += started
        for directory in started:
            directory.startService()
        await gatherResults([directory.whenReady() for directory in started])
    took = time.monotonic() - began
    print(f"{count} followers: ready after {took:.1f} s; registry: {costs.since():.1f} s CPU, {costs.memory()} MB")
    heard = []
    for directory in directories:
        directory.onChange(lambda kind, service: heard.append(time.monotonic()))
    for change in range(CHANGES):
        await deferLater(reactor, 2, lambda: None)
        heard.clear()
        costs.since()
        began = time.monotonic()
        await by.services.create(f"service{change}", 120)
        while len(heard) < count and time.monotonic() - began < 30:
            await deferLater(reactor, 0.01, lambda: None)
        seconds = [moment - began for moment in heard]
        print(
            f"change {change + 1}: heard by {len(heard)}: first after {min(seconds) * 1000:.0f} ms, half after "
            f"{statistics.median(seconds) * 1000:.0f} ms, last after {max(seconds) * 1000:.0f} ms; "
            f"registry: {costs.since():.2f} s CPU"
        )
    await deferLater(reactor, 2, lambda: None)
    costs.since()
    await deferLater(reactor, SILENCE, lambda: None)
    print(f"silence: registry: {100 * costs.since() / SILENCE:.1f} % CPU, {costs.memory()} MB")
    await gatherResults([directory.stopService() for directory in directories])
    await gatherResults([client.close() for client in (*clients, by)])


async def main(reactor, count):
    with TemporaryDirectory() as home:
        registry = subprocess.Popen([sys.executable, "-c", REGISTRY, home], stdout=subprocess.PIPE)
        try:
            assert registry.stdout is not None
            registry.stdout.readline()
            await follow(reactor, home, Costs(registry.pid), count)
        finally:
            registry.terminate()
            registry.wait()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, int((sys.argv[1:] or ["1000"])[0]))))
