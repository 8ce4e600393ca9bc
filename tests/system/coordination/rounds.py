"""
Rounds of faults against processes that compete for one lock, and what must be true of all of them::

    python -m tests.system.coordination.rounds --rounds 200

In each round, the holder is killed, stopped for longer than its timeout, or ended in an orderly way, or the registry is
killed and started again. Afterwards, no two holders have found the lock valid at the same time, by the machine's clock,
and a table that checks fences has accepted none after a larger one.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tests.system.coordination.holder import TIMEOUT
from tests.system.ports import freePorts

_FAULTS = ("kill", "stop", "term", "registry")
# Seconds that a takeover may take besides the timeout: one, and what a loaded machine needs.
_MARGIN = 3.0


class Rounds:
    """Three holders and a registry in a folder of their own."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        (self.port,) = freePorts(1)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAXSR_")}
        data = str(self.folder / "data")
        self.environment = {**environment, "HOME": folder, "RAXSR_DATA_DIR": data}
        table = sqlite3.connect(self.folder / "resource.db")
        table.execute("PRAGMA journal_mode = WAL")
        table.execute("CREATE TABLE resource (fence INTEGER NOT NULL)")
        table.execute("INSERT INTO resource VALUES (0)")
        table.execute("CREATE TABLE writes (id INTEGER PRIMARY KEY, fence INTEGER NOT NULL)")
        table.commit()
        table.close()
        self.holders: dict[str, subprocess.Popen[bytes]] = {}
        self.started = 0
        self.registry = self._registry()
        while not Path(data, "raxrc").exists():
            time.sleep(0.05)
        for _ in range(3):
            self.start()

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("ab")
        return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def _registry(self) -> subprocess.Popen[bytes]:
        twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        return self._spawn(twistd, "-n", "--pidfile=", "service-registry", f"--listen={listen}")

    def start(self) -> None:
        """Start another holder."""
        self.started += 1
        label = f"h{self.started}"
        command = (sys.executable, "-m", "tests.system.coordination.holder", label, str(self.folder))
        self.holders[label] = self._spawn(*command)

    def seen(self) -> list[tuple[int, float, str]]:
        """When each holder has found the lock valid, in the order in which they have written it."""
        path = self.folder / "seen"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(fence), float(at), label) for fence, at, label in (line.split() for line in lines)]

    def nextAfter(self, fence: int, patience: float) -> tuple[int, float, str]:
        """The first time at which the lock is valid with a larger fence."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            found = [each for each in self.seen() if each[0] > fence]
            if found:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"no holder after fence {fence} within {patience:g} s")

    def round(self, fault: str) -> float:
        """Do it to the present holder; returns the seconds until another one has the lock."""
        fence, _, label = self.seen()[-1]
        holder, began = self.holders[label], time.clock_gettime(time.CLOCK_BOOTTIME)
        if fault == "registry":
            self.registry.kill()
            self.registry.wait()
            self.registry = self._registry()
            time.sleep(1.0)
            # The holder may go on, or lose its lock.
            holder.kill()
        else:
            number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[fault]
            holder.send_signal(number)
        _, at, _ = self.nextAfter(fence, 30.0)
        if fault == "stop":
            holder.send_signal(signal.SIGCONT)
            time.sleep(0.2)
        else:
            holder.wait(10)
            del self.holders[label]
            self.start()
        if fault in ("kill", "stop"):
            assert at - began <= TIMEOUT + _MARGIN, f"{fault}: took over after {at - began:.2f} s"
        return at - began

    def check(self) -> int:
        """What must be true; returns the number of holders there were."""
        seen = self.seen()
        ends = {fence: max(at for each, at, _ in seen if each == fence) for fence, _, _ in seen}
        begins = {fence: min(at for each, at, _ in seen if each == fence) for fence, _, _ in seen}
        fences = sorted(ends)
        for earlier, later in pairwise(fences):
            assert ends[earlier] < begins[later], f"fences {earlier} and {later} were valid at the same time"
        assert len({(fence, label) for fence, _, label in seen}) == len(fences), "two holders had one fence"
        with sqlite3.connect(self.folder / "resource.db") as table:
            accepted = [fence for (fence,) in table.execute("SELECT fence FROM writes ORDER BY id")]
        assert accepted == sorted(accepted), "an older fence was accepted after a newer one"
        return len(fences)

    def end(self) -> None:
        """End all processes."""
        for process in (*self.holders.values(), self.registry):
            process.kill()
            process.wait()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args(arguments)
    draw = random.Random(parsed.seed)
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(folder)
        took: dict[str, list[float]] = {}
        try:
            rounds.nextAfter(0, 30.0)
            for number in range(parsed.rounds):
                fault = _FAULTS[number] if number < len(_FAULTS) else draw.choice(_FAULTS)
                took.setdefault(fault, []).append(rounds.round(fault))
            holders = rounds.check()
        except AssertionError:
            print((rounds.folder / "log").read_text()[-5000:], file=sys.stderr)
            raise
        finally:
            rounds.end()
    for fault, seconds in took.items():
        seconds.sort()
        median = seconds[len(seconds) // 2]
        print(f"{fault}: {len(seconds)} times, next holder after {median:.2f} s, at most {seconds[-1]:.2f} s")
    print(f"{holders} holders, one at a time")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
