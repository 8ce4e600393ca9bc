"""
Measures what a registry takes after an hour of work: ``python -m benchmarks soak --minutes 60 --store sqlite``.

A registry over sqlite, or two nodes over one etcd, have all kinds of work at once, at rates that a small machine
can do: services that stay registered by their heartbeats, others that come and go or expire, configuration values that
change, directories and event feeds that start and stop, lists, clients that connect and leave, and logins with a
wrong key.

Memory, descriptors and sizes are printed at the start (after a tenth of the time), in between, and at the end. The
exit code is 1 if they are not bounded: descriptors or the write-ahead log have grown, memory grows in the second half
by more than a tenth, or the database by more than 1 KiB for each event.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall, deferLater

from txserviceregistry import Client, RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.errors import AuthenticationFailed, NotFound, ServiceRegistryError

from .etcd import Member, etcds
from .harness import Registry, inReactor, registry

# Services that stay, and how often each of the others happens in a second.
_SERVICES = 500
_TIMEOUT = 10
_RATES: dict[str, float] = {
    "create, read and remove": 2,
    "create and let expire": 2,
    "set a value": 4,
    "read lists": 1,
    "connect and leave": 1,
    "start subscribers": 0.2,
    "a wrong key": 0.5,
}
_CONNECTIONS = 16
# How many of these are under way at most.
_MOST = 50
_KEYS = 200
_PAYLOAD = {"tags": ["www", "production"], "metadata": {"host": "192.0.2.1", "port": "8000", "version": "1.2.3"}}
_SAMPLES = 10
_MEBI = 1024.0 * 1024.0


@attrs.frozen
class Sample:
    """The size of processes and files at a moment; bytes, and numbers of descriptors."""

    minute: float
    memory: tuple[int, ...]
    descriptors: tuple[int, ...]
    log: int
    database: int
    own: int
    cpu: float

    def row(self) -> str:
        """A line of the table."""
        memory = " + ".join(f"{each / _MEBI:.1f}" for each in self.memory)
        descriptors = " + ".join(map(str, self.descriptors))
        log, database, own = (each / _MEBI for each in (self.log, self.database, self.own))
        sizes = f"{log:10.1f} {database:14.1f} {own:14.1f} {100 * self.cpu:10.0f}"
        return f"{self.minute:6.1f} {memory:>16} {descriptors:>12} {sizes}"


HEADER = "minute      memory, MiB  descriptors   WAL, MiB  database, MiB   clients, MiB     CPU, %"


class Soak:
    """
    The work, from one process.

    :ivar done: how much of each kind succeeded.
    :ivar failed: how much failed.
    :ivar skipped: how much was not begun, because too much was under way.
    """

    def __init__(self, reactor: Any, nodes: list[Registry]) -> None:
        self.done = dict.fromkeys(_RATES, 0)
        self.failed: dict[str, int] = {}
        self.skipped = 0
        self._reactor = reactor
        self._nodes = nodes
        self._settings = nodes[0].settings
        self._urls = [url for node in nodes for url in node.settings.baseUrls]
        self._client = self._newClient()
        self._number = 0
        self._loops: list[LoopingCall] = []
        self._under: set[Deferred[Any]] = set()
        self._services: list[RegisteredService] = []
        self._sampled = time.monotonic()

    def _newClient(self, **options: Any) -> Client:
        settings = attrs.evolve(self._settings, baseUrls=tuple(self._urls), **options)
        return Client(reactor=self._reactor, settings=settings, maxConnections=_CONNECTIONS)

    async def start(self) -> None:
        """Begin all of it."""
        for number in range(_SERVICES):
            service = RegisteredService(self._client, f"stays-{number}", _TIMEOUT, **_PAYLOAD)
            service.startService()
            self._services.append(service)
        for service in self._services:
            await service.whenRegistered()
        # The thread that checks API keys keeps 16 MiB from the first one on.
        await self._logIn(-1)
        works = (self._comeAndGo, self._expire, self._set, self._list, self._connect, self._subscribe, self._logIn)
        for (name, rate), work in zip(_RATES.items(), works, strict=True):
            loop = LoopingCall(self._begin, name, work)
            loop.clock = self._reactor
            loop.start(1 / rate)
            self._loops.append(loop)

    async def stop(self) -> None:
        """End all of it."""
        for loop in self._loops:
            loop.stop()
        await DeferredList(list(self._under))
        await DeferredList([service.stopService() for service in self._services])
        await self._client.close()

    def _begin(self, name: str, work: Callable[[int], Any]) -> None:
        if len(self._under) >= _MOST:
            # The machine has other things to do.
            self.skipped += 1
            return
        self._number += 1
        under = Deferred.fromCoroutine(work(self._number))
        self._under.add(under)

        def ended(outcome: Any) -> None:
            self._under.discard(under)
            if outcome is None:
                self.done[name] += 1
            else:
                reason = f"{name}: {re.sub('[0-9.]+', 'N', outcome.getErrorMessage())[:150]}"
                self.failed[reason] = self.failed.get(reason, 0) + 1

        under.addBoth(ended)

    # -- one of each kind

    async def _comeAndGo(self, number: int) -> None:
        id = f"comes-{number % 50}-{number}"
        body, _ = await self._client.services.create(id, 30, _PAYLOAD)
        await self._client.services.heartbeat(id, body["token"])
        await self._client.services.get(id)
        await self._client.services.update(id, {"tags": ["www"]})
        await self._client.services.remove(id)

    async def _expire(self, number: int) -> None:
        # Few ids, so that an id that expired is registered again.
        try:
            await self._client.services.create(f"expires-{number % 500}", 3, _PAYLOAD)
        except ServiceRegistryError as error:
            if getattr(error, "type", "") != "serviceWithThisIdExists":
                raise

    async def _set(self, number: int) -> None:
        await self._client.configuration.set(f"/soak/key{number % _KEYS}", f"{number} {'x' * 100}")

    async def _list(self, number: int) -> None:
        await self._client.services.listForTag("www", limit=1000)
        await self._client.events.list(limit=100)
        await self._client.configuration.listForNamespace("/soak")

    async def _connect(self, number: int) -> None:
        async with self._newClient() as client:
            await client.account.getLimits()

    async def _subscribe(self, number: int) -> None:
        async with self._newClient() as client:
            subscribers = [Directory(client, "www"), ConfigurationWatcher(client, "/soak"), EventsFeed(client)]
            for each in subscribers:
                each.startService()
            await subscribers[0].whenReady()
            await deferLater(self._reactor, 20.0)
            for each in subscribers:
                await each.stopService()

    async def _logIn(self, number: int) -> None:
        async with self._newClient(apiKey=f"wrong{number}", raxrcPath=None) as client:
            try:
                await client.account.getLimits()
            except (AuthenticationFailed, NotFound):
                pass

    # -- what it takes

    def sample(self, began: float, members: list[Member]) -> Sample:
        """The sizes now."""
        files = [path for node in self._nodes for path in node.home.glob("registry.sqlite*")]
        log = sum(path.stat().st_size for path in files if path.name.endswith("-wal"))
        database = sum(path.stat().st_size for path in files if path.suffix == ".sqlite")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Sample(
            (time.monotonic() - began) / 60,
            tuple(node.costs.memory() for node in self._nodes),
            tuple(len(os.listdir(f"/proc/{node.costs.pid}/fd")) for node in self._nodes),
            log,
            database + sum(member.databaseSize() for member in members),
            pages * os.sysconf("SC_PAGE_SIZE"),
            sum(node.costs.since() for node in self._nodes) / self._sinceLast(),
        )

    def _sinceLast(self) -> float:
        now, before = time.monotonic(), self._sampled
        self._sampled = now
        return now - before


def problems(samples: list[Sample], events: int) -> list[str]:
    """A line for each resource whose use grew without a bound."""
    first, middle, last = samples[0], samples[len(samples) // 2], samples[-1]
    found = []
    for number in range(len(last.memory)):
        # Caches of the feed and of the allocator settle in the first half.
        if last.memory[number] > 1.1 * middle.memory[number]:
            found.append("memory grows in the second half")
        if last.descriptors[number] > first.descriptors[number] + 40:
            found.append("descriptors grow")
    if last.log > 16 * _MEBI:
        found.append("the write-ahead log is larger than 16 MiB")
    if last.database - first.database > 1024 * events:
        found.append("the database grows by more than 1 KiB for each event")
    return found


@contextmanager
def registries(store: str) -> Iterator[tuple[list[Registry], list[Member]]]:
    """A registry over sqlite, or two over one etcd."""
    if store == "sqlite":
        with registry() as one:
            yield [one], []
        return
    with ExitStack() as stack:
        members = stack.enter_context(etcds(1, isSystems=True))
        nodes = []
        for _ in range(2):
            home = stack.enter_context(TemporaryDirectory())
            if nodes:
                Path(home, "raxrc").write_text(Path(nodes[0].home, "raxrc").read_text())
            nodes.append(stack.enter_context(registry(home, etcd={"urls": [members[0].url]})))
        yield nodes, members


async def _soak(
    reactor: Any, nodes: list[Registry], members: list[Member], options: argparse.Namespace, outcome: list[str]
) -> None:
    soak = Soak(reactor, nodes)
    await soak.start()
    began = time.monotonic()
    print(HEADER, flush=True)
    samples = []
    for part in range(1, _SAMPLES + 1):
        await deferLater(reactor, max(0.0, began + part * options.minutes * 6 - time.monotonic()))
        samples.append(soak.sample(began, members))
        print(samples[-1].row(), flush=True)
    await soak.stop()
    done = sum(soak.done.values())
    print(f"\nStore {options.store}, {_SERVICES} services with heartbeats, {done} pieces of other work:")
    for name, count in soak.done.items():
        print(f"    {name}: {count}")
    if soak.skipped:
        print(f"    not begun: {soak.skipped}")
    for reason, count in soak.failed.items():
        print(f"    FAILED {count} times: {reason}")
    outcome.extend(problems(samples, 4 * done))
    if sum(soak.failed.values()) > done / 1000:
        outcome.append("more than one piece of work in a thousand failed")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="how long (default: 60)")
    parser.add_argument("--store", choices=("sqlite", "etcd"), default="sqlite", help="the store (default: sqlite)")
    options = parser.parse_args(arguments)
    outcome: list[str] = []

    with registries(options.store) as (nodes, members):
        # Outside of the reactor, so that an interrupted soak leaves no process behind.
        inReactor(lambda reactor: _soak(reactor, nodes, members, options, outcome))
    for problem in outcome:
        print(f"NOT BOUNDED: {problem}")
    return 1 if outcome else 0


if __name__ == "__main__":
    sys.exit(main())
