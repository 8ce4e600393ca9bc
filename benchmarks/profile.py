"""
Shows how a heartbeat's time is spent: ``python -m benchmarks.profile [--batched]``.

A HeartBeater sends heartbeats as in :mod:`benchmarks.oneservice`, to a registry in another process. A sample is taken
every millisecond of its CPU time (``SIGPROF``), which disturbs it far less than a profiler that is called for every
call. The output is each function's own time, including C code that it calls, by module and by function.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from contextlib import closing
from types import FrameType

from .contenders import heartbeating
from .harness import Api, inReactor, registry

_TIMEOUT = 120
_EVERY = 0.001


class Sampler:
    """Looks every so often at what this process does."""

    def __init__(self) -> None:
        self.samples: Counter[tuple[str, str]] = Counter()
        signal.signal(signal.SIGPROF, self._look)

    def start(self) -> None:
        """Begin to look."""
        signal.setitimer(signal.ITIMER_PROF, _EVERY, _EVERY)

    def stop(self) -> None:
        """Look no more."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _look(self, signum: int, frame: FrameType | None) -> None:
        if frame is not None:
            code = frame.f_code
            self.samples[frame.f_globals.get("__name__", "?"), code.co_qualname] += 1


def _shown(samples: Counter[str], perBeat: float, most: int) -> None:
    total = sum(samples.values())
    for name, count in samples.most_common(most):
        print(f"{100 * count / total:5.1f} % {perBeat * count / total:6.1f} µs  {name}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batched", action="store_true", help="send batches, rather than single heartbeats")
    parser.add_argument("--heartbeats", type=int, default=20000)
    parser.add_argument("--most", type=int, default=30, help="how many functions to show")
    options = parser.parse_args()
    sampler = Sampler()
    with registry() as measured:
        with closing(Api(measured.home)) as api:
            token = api.create("service", _TIMEOUT)["token"]

        async def work(reactor: object) -> None:
            async with heartbeating(reactor, measured.settings, "service", _TIMEOUT, token, options.batched) as beat:
                await beat(options.heartbeats // 10)
                began = time.process_time()
                sampler.start()
                await beat(options.heartbeats)
                sampler.stop()
            perBeat = 1e6 * (time.process_time() - began) / options.heartbeats
            byModule: Counter[str] = Counter()
            for (module, _), count in sampler.samples.items():
                byModule[module] += count
            print(f"{perBeat:.0f} µs of CPU time for a heartbeat, {sum(byModule.values()):,} samples\n")
            _shown(byModule, perBeat, options.most)
            print()
            _shown(Counter({": ".join(key): count for key, count in sampler.samples.items()}), perBeat, options.most)

        inReactor(work)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
