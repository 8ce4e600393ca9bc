"""
Many services in one client: ``python -m benchmarks.manyservices``.

HeartBeaters of one Client, in a process of their own, keep services of one registry (in memory, in another process)
registered, with a heartbeat timeout of 10 s. They are measured when each has sent two heartbeats: then everything that
is measured is what goes on for years. The CPU time is all that the process uses in some seconds, divided by the
heartbeats that were answered in them. A process with few services and one with many run side by side; their ratio is
the median of those of the rounds. A LoopingCall's tick stands beside it: so much would a timer for each cost alone.

The memory is what the process has grown by from an idle client to one whose services are all heartbeated (ids of 12
characters, no tags). The delayed calls are those of its reactor: each is a time at which the process wakes up.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .harness import Api, Figure, inReactor, registry, run, settingsOf

_TIMEOUT = 10
# Seconds between two heartbeats of one, at most.
_INTERVAL = 6.0


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    counts, rounds, seconds = ((100, 1000), 2, 6.0) if quick else ((1000, 10_000), 9, 12.0)
    figures = []
    with ExitStack() as stack:
        processes = {count: stack.enter_context(_services(count, rounds, seconds)) for count in counts}
        for process in processes.values():
            _begin(process)
        found = {count: json.loads(_line(process)) for count, process in processes.items()}
    costs = {count: [cpu / beats for cpu, beats in of["rounds"]] for count, of in found.items()}
    for count, of in found.items():
        figures += [
            Figure(f"CPU per heartbeat, {count:,} services", 1e6 * statistics.median(costs[count]), "µs", atMost=25),
            Figure(f"heartbeats per request, {count:,} services", of["inRequest"], ""),
            Figure(f"connections, {count:,} services", of["connections"], "", atMost=1),
            Figure(f"delayed calls, {count:,} services", of["calls"], ""),
            Figure(f"memory per service, {count:,} services", of["memory"] / count / 1024, "KiB", atMost=2.25),
        ]
    few, many = counts
    ratio = statistics.median(large / small for small, large in zip(costs[few], costs[many], strict=True))
    figures.append(Figure(f"CPU per heartbeat, {many:,} services / {few:,}", ratio, "x", atMost=1.2))
    return [*figures, Figure("CPU per LoopingCall tick", _tick(), "µs")]


def _tick() -> float:
    command = [sys.executable, "-m", "benchmarks.manyservices", "tick"]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


@contextmanager
def _services(count: int, rounds: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process with services that have sent two heartbeats each. It waits until it is told to measure."""
    with registry(store="memory") as measured, closing(Api(measured.home)) as api, TemporaryDirectory() as folder:
        ids = [f"named-{number:06}" for number in range(count)]
        tokens = Path(folder, "tokens")
        tokens.write_text(json.dumps({id: api.create(id, 120)["token"] for id in ids}))
        command = [sys.executable, "-m", "benchmarks.manyservices", "services", str(measured.home), str(tokens)]
        command += [str(rounds), str(seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            _line(process)
            yield process


def _begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    print(file=process.stdin, flush=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("The process with the services has ended")
    return line


# -- in processes of their own


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _sockets() -> int:
    """How many connections this process has."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass
    return count


def services(home: str, tokens: str, rounds: str, seconds: str) -> None:
    """A process whose services are all heartbeated. Prints what was found."""
    from twisted.internet.task import deferLater
    from twisted.internet.threads import deferToThread

    from txserviceregistry import Client, HeartBeater, useMonotonic

    useMonotonic()

    async def main(reactor: Any) -> None:
        def wait(time: float) -> Any:
            return deferLater(reactor, time, lambda: None)

        sockets = _sockets()
        async with Client(settings=settingsOf(home), reactor=reactor) as client:
            api = client.services
            # A client that has registered something knows the registry's extensions.
            await client.account.getLimits()
            requests = beats = 0
            heartbeats = api.heartbeats

            def counted(together: Any, **options: Any) -> Any:
                nonlocal requests, beats
                requests += 1
                beats += len(together)
                return heartbeats(together, **options)

            api.heartbeats = counted  # type: ignore[method-assign] # it is only looked at
            before = _resident()
            registered = json.loads(Path(tokens).read_text())
            heartBeaters = [
                HeartBeater(api, id, _TIMEOUT, token, clock=reactor, context=api.context)
                for id, token in registered.items()
            ]
            del registered
            for heartBeater in heartBeaters:
                heartBeater.start()
            while not all(heartBeater.lastSeen for heartBeater in heartBeaters):
                await wait(0.1)
            # Two more heartbeats of each.
            await wait(2 * _INTERVAL)
            memory = _resident() - before
            print("ready", flush=True)
            await deferToThread(sys.stdin.readline)
            found = []
            allBeats = requests = 0
            for _ in range(int(rounds)):
                beats, cpu = 0, time.process_time()
                await wait(float(seconds))
                found.append((time.process_time() - cpu, beats))
                allBeats += beats
            result = {
                "rounds": found,
                "inRequest": allBeats / requests,
                "connections": _sockets() - sockets,
                "calls": len(reactor.getDelayedCalls()),
                "memory": memory,
            }
            print(json.dumps(result), flush=True)
            for heartBeater in heartBeaters:
                heartBeater.stop()

    inReactor(main)


def tick() -> None:
    """Prints the microseconds of a LoopingCall's tick: the median of some rounds of a thousand that run at once."""
    from twisted.internet.task import LoopingCall, deferLater

    async def main(reactor: Any) -> None:
        ticks = 0

        def count() -> None:
            nonlocal ticks
            ticks += 1

        loops = [LoopingCall(count) for _ in range(1000)]
        for number, loop in enumerate(loops):
            loop.start(0.5 + number / 2000, now=False)
        costs = []
        for _ in range(5):
            before, cpu = ticks, time.process_time()
            await deferLater(reactor, 1.5, lambda: None)
            costs.append(1e6 * (time.process_time() - cpu) / (ticks - before))
        for loop in loops:
            loop.stop()
        print(statistics.median(costs), flush=True)

    inReactor(main)


if __name__ == "__main__":
    if sys.argv[1:2] == ["services"]:
        services(*sys.argv[2:])
    elif sys.argv[1:2] == ["tick"]:
        tick()
    else:
        run(__doc__, measure)
