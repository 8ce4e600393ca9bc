"""
Many directories on one registry: ``python -m benchmarks.subscribers``.

Each of 1,000 is a Client with a Directory and sockets of its own, in this process; the registry is a second process. It
shows how long it takes until all of them have heard of a change, and what that and the silence after it cost the
registry. Every subscriber takes two or three sockets on either side: ``ulimit -n`` has to be four times their number.
"""

from __future__ import annotations

import statistics
import time

from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from txserviceregistry import Client
from txserviceregistry.discovery import Directory

from .harness import Figure, inReactor, registry, run

CHANGES = 5
SILENCE = 20.0


async def subscribe(reactor, measured, count, silence, figures):
    settings, costs = measured.settings, measured.costs
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
    figures.append(Figure(f"until {count:,} directories are ready", time.monotonic() - began, "s"))
    heard = []
    for directory in directories:
        directory.onChange(lambda kind, service: heard.append(time.monotonic()))
    halves, lasts, cpu = [], [], []
    for change in range(CHANGES):
        await deferLater(reactor, 2, lambda: None)
        heard.clear()
        costs.since()
        began = time.monotonic()
        await by.services.create(f"service{change}", 120)
        while len(heard) < count and time.monotonic() - began < 30:
            await deferLater(reactor, 0.01, lambda: None)
        cpu.append(costs.since())
        halves.append(statistics.median(heard) - began)
        lasts.append(max(heard) - began)
    figures += [
        Figure("change at half of them", 1000 * statistics.median(halves), "ms"),
        Figure("change at all of them", 1000 * statistics.median(lasts), "ms"),
        Figure("CPU per directory and event", 1e6 * statistics.median(cpu) / count, "µs"),
    ]
    await deferLater(reactor, 2, lambda: None)
    costs.since()
    await deferLater(reactor, silence, lambda: None)
    figures.append(Figure("CPU while idle", 100 * costs.since() / silence, "%"))
    figures.append(Figure(f"memory, {count:,} directories", costs.memory() / 2**20, "MiB"))
    await gatherResults([directory.stopService() for directory in directories])
    await gatherResults([client.close() for client in (*clients, by)])


def measure(quick):
    """See the module."""
    figures = []
    count, silence = (100, 5.0) if quick else (1000, SILENCE)
    with registry() as measured:
        inReactor(lambda reactor: subscribe(reactor, measured, count, silence, figures))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
