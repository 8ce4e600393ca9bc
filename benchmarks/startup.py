"""
Start of a process: ``python -m benchmarks.startup``.

Each contender is a process that begins, does nothing but import or help, and ends. They take turns, and what is told is
the median of their CPU times. ``import txserviceregistry`` brings in what is used when it is used; so all that it has
to offer stands beside it. Of ``raxsr --help`` the shortest time by the clock is told as well: the longer ones are those
of a machine that does something else.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .harness import Cost, Figure, run

_RAXSR = str(Path(sys.executable).with_name("raxsr"))
_ALL = "from txserviceregistry import *"
_CONTENDERS = {
    "python": [sys.executable, "-c", "pass"],
    "import treq": [sys.executable, "-c", "import treq"],
    "import txserviceregistry": [sys.executable, "-c", "import txserviceregistry"],
    _ALL: [sys.executable, "-c", _ALL],
    "raxsr --help": [_RAXSR, "--help"],
}


def _cost(command: list[str]) -> Cost:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    costs: dict[str, list[Cost]] = {name: [] for name in _CONTENDERS}
    for number in range(4 if quick else 22):
        for name, command in _CONTENDERS.items():
            cost = _cost(command)
            # The first reads the disk.
            if number:
                costs[name].append(cost)
    cpu = {name: statistics.median(cost.cpu for cost in of) for name, of in costs.items()}
    wall = min(cost.wall for cost in costs["raxsr --help"])
    return [
        *(Figure(f"CPU, {name}", 1000 * seconds, "ms") for name, seconds in cpu.items()),
        Figure(
            "CPU, import txserviceregistry / import treq",
            cpu["import txserviceregistry"] / cpu["import treq"],
            "x",
            atMost=1.1,
        ),
        Figure(f"CPU, {_ALL} / import treq", cpu[_ALL] / cpu["import treq"], "x"),
        Figure("time, raxsr --help", 1000 * wall, "ms", atMost=300),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
