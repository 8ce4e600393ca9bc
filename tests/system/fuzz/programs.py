"""
Runs random programs against registries, and compares each answer with that of a model of the API::

    python -m tests.system.fuzz.programs --programs 5000 --store memory,sqlite

Ends with 1 at the first difference, which it has made as small as it could.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.system.fuzz import nodes
from tests.system.fuzz.etcd import TwoNodes
from tests.system.fuzz.machine import Programs
from tests.system.fuzz.nodes import Backing

#: The stores of the registries; ``etcd2`` is two nodes over one etcd, requests dealt at random.
BACKINGS: Mapping[str, type[Backing]] = {**nodes.BACKINGS, "etcd2": TwoNodes}
#: How many steps a program has at most.
STEPS = 50
#: After how many programs the command says that it is still at work.
PROGRESS = 500


def machine(backing: type[Backing]) -> Any:
    """The programs for one kind of store, with counts of their own."""
    return type(f"{backing.__name__}Programs", (Programs,), {"make": backing, "counts": Counter(), "programs": 0})


def run(programs: Any, count: int, seed: int | None, steps: int = STEPS) -> None:
    """
    Run random programs.

    :param seed: the same programs for the same seed; ``None`` for those that are the same always.
    :raises AssertionError: for a difference.
    """
    if seed is not None:
        programs = hypothesis.seed(seed)(programs)
    run_state_machine_as_test(
        programs,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            derandomize=seed is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.fuzz.programs", description=__doc__.split("\n\n")[0])
    parser.add_argument("--programs", type=int, default=5000, help="how many of them for each store (5000)")
    parser.add_argument("--store", default="memory,sqlite", help=f"some of {','.join(BACKINGS)} (memory,sqlite)")
    parser.add_argument("--seed", type=int, default=None, help="to run the same programs again (the time)")
    options = parser.parse_args(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    for name in options.store.split(","):
        if name not in BACKINGS:
            parser.error(f"there is no store {name!r}, but {', '.join(BACKINGS)}")
    return max(_runOne(name, options.programs, seed) for name in options.store.split(","))


def _runOne(name: str, count: int, seed: int) -> int:
    print(f"{name}: {count} programs, seed {seed}", flush=True)
    programs = machine(BACKINGS[name])
    began = time.monotonic()

    def tell(number: int) -> None:
        if number % PROGRESS == 0:
            print(f"{name}: {number} programs begun in {time.monotonic() - began:.0f} s", flush=True)

    programs.onProgram = staticmethod(tell)
    code = 0
    try:
        run(programs, count, seed)
    except Exception:
        traceback.print_exc()
        code = 1
    seconds = time.monotonic() - began
    ran, counts = programs.programs, programs.counts
    for outcome, times in sorted(counts.items()):
        print(f"{times:9} {outcome}")
    found = "a difference" if code else "no difference"
    print(f"{name}: {ran} programs, {sum(counts.values())} requests in {seconds:.0f} s: {found}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
