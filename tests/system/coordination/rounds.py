"""
Rounds of faults against processes that compete for one lock, and what must be true of all of them::

    python -m tests.system.coordination.rounds --rounds 200 --store sqlite,memory,etcd

In each round, the holder is killed, stopped for longer than its timeout, cut off from the registry, or ended in an
orderly way; a registry is killed and started again; or the wall clock of all processes steps by an hour. Over etcd
there are three members and three registries. Afterwards, no two holders have found the lock valid at the same time, by
the machine's clock, and a table that checks fences has accepted none after a larger one.
"""

from __future__ import annotations

import argparse
import configparser
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
from twisted.internet import reactor as globalReactor
from twisted.internet.threads import blockingCallFromThread

from tests.needs import fakeTime
from tests.system.cluster.clustercase import findEtcd
from tests.system.coordination.holder import TIMEOUT
from tests.system.etcd.etcds import etcdCommand
from tests.system.etcd.relay import Relay
from tests.system.ports import freePorts
from tests.system.processes import isCrowded

_FAULTS = ("kill", "stop", "term", "registry", "cut", "clock")
_STORES = ("sqlite", "memory", "etcd")
# Seconds that a takeover may take besides the timeout: one, what a loaded machine needs, and over etcd a node's lease.
_MARGIN = {"sqlite": 3.0, "memory": 3.0, "etcd": 9.0}
# Seconds that a takeover may take after an orderly end: a tenth, and what a loaded machine needs.
_HANDOVER = 1.5
_PATIENCE = 120.0
# Seconds between two looks at the holders after which this process has stood still.
_STALL = 0.3
reactor: Any = globalReactor


@attrs.define
class Holder:
    """A process that competes, and its ways to the registries."""

    process: subprocess.Popen[bytes]
    relays: Sequence[Relay]

    def cut(self) -> None:
        """Let nothing through between it and the registries; nothing is lost."""
        for relay in self.relays:
            blockingCallFromThread(reactor, relay.hang)

    def heal(self) -> None:
        for relay in self.relays:
            blockingCallFromThread(reactor, relay.heal)

    def gone(self) -> None:
        self.process.wait(_PATIENCE)
        for relay in self.relays:
            reactor.callFromThread(relay.stop)


class Rounds:
    """Three holders and a registry, or a cluster of them, in a folder of their own."""

    def __init__(self, folder: str, store: str, draw: random.Random) -> None:
        self.folder = Path(folder)
        self.store = store
        self.draw = draw
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAXSR_", "ETCD_"))}
        self.environment = {**clean, "HOME": folder}
        self.wallClock = self.folder / "faketime"
        self.clocks = fakeTime(self.wallClock)
        table = sqlite3.connect(self.folder / "resource.db")
        table.execute("PRAGMA journal_mode = WAL")
        table.execute("CREATE TABLE resource (fence INTEGER NOT NULL)")
        table.execute("INSERT INTO resource VALUES (0)")
        table.execute("CREATE TABLE writes (id INTEGER PRIMARY KEY, fence INTEGER NOT NULL)")
        table.commit()
        table.close()
        self.others: list[subprocess.Popen[bytes]] = []
        self.registries: dict[int, subprocess.Popen[bytes]] = {}
        self.holders: dict[str, Holder] = {}
        self.started = 0
        self.late = 0
        # Seconds for which this process has stood still while it waited for a holder, as a machine does now and then.
        self.stalled = 0.0
        isCluster = store == "etcd"
        self.options = {"sqlite": [], "memory": [f"--no-locks-for={TIMEOUT}s"], "etcd": []}[store]
        if isCluster:
            self.options.append(f"--etcd={self._startEtcd()}")
        for port in freePorts(3 if isCluster else 1):
            self.startRegistry(port)
        raxrc = configparser.ConfigParser(interpolation=None)
        raxrc.read(self.folder / f"data{next(iter(self.registries))}" / "raxrc")
        self.credentials = {
            "RAXSR_USERNAME": raxrc["credentials"]["username"],
            "RAXSR_API_KEY": raxrc["credentials"]["api_key"],
        }
        for _ in range(3):
            self.startHolder()

    def _spawn(self, environment: Mapping[str, str], *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, env={**self.environment, **environment}, stdout=log, stderr=log)

    def _startEtcd(self) -> str:
        """Three members; their URLs."""
        program = findEtcd()
        assert program is not None, "there is no etcd"
        urls = [f"http://127.0.0.1:{port}" for port in freePorts(6)]
        cluster = ",".join(f"m{number}={url}" for number, url in enumerate(urls[3:]))
        for number in range(3):
            at, peer, name = urls[number], urls[3 + number], f"m{number}"
            command = etcdCommand(str(self.folder / name), at, peer, program=program, name=name, cluster=cluster)
            self.others.append(self._spawn({}, *command))
        for url in urls[:3]:
            _until(partial(_isHealthy, url), f"no etcd at {url}")
        return ",".join(urls[:3])

    def startRegistry(self, port: int) -> None:
        """Start a registry, and wait until it responds."""
        twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
        options = [f"--listen=tcp:{port}:interface=127.0.0.1", f"--data-dir={self.folder / f'data{port}'}"]
        options += [f"--store={self.store}", *self.options]
        # A registry that has lost its data can't give larger fences while its clock is behind.
        environment = {} if self.store == "memory" else self.clocks
        self.registries[port] = self._spawn(environment, twistd, "-n", "--pidfile=", "service-registry", *options)
        _until(lambda: _isHealthy(f"http://127.0.0.1:{port}"), f"no registry at port {port}")

    def startHolder(self) -> None:
        """Start another holder."""
        self.started += 1
        label = f"h{self.started}"
        relays = [Relay(reactor, port) for port in self.registries]
        for relay in relays:
            blockingCallFromThread(reactor, relay.start)
        urls = {"RAXSR_API_URL": ",".join(f"{relay.url}/v1.0" for relay in relays)}
        command = (sys.executable, "-m", "tests.system.coordination.holder", label, str(self.folder))
        self.holders[label] = Holder(self._spawn({**self.credentials, **urls, **self.clocks}, *command), relays)

    def seen(self) -> list[tuple[int, float, str]]:
        """When each holder has found the lock valid, in the order in which they have written it."""
        path = self.folder / "seen"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(fence), float(at), label) for fence, at, label in (line.split() for line in lines)]

    def stalls(self) -> int:
        """How often registries have said that they stood still."""
        return (self.folder / "log").read_text().count("Registry stalled")

    def nextAfter(self, fence: int) -> tuple[int, float, str]:
        """The first time at which the lock is valid with a larger fence."""
        found: list[tuple[int, float, str]] = []
        looked = time.monotonic()

        def isThere() -> bool:
            nonlocal looked
            before, looked = looked, time.monotonic()
            if looked - before > _STALL:
                self.stalled += looked - before
            found[:] = [each for each in self.seen() if each[0] > fence]
            return bool(found)

        _until(isThere, f"no holder after fence {fence}")
        return found[0]

    def round(self, fault: str) -> float:
        """Do it to the present holder; returns the seconds until another one has the lock."""
        fence, _, label = self.seen()[-1]
        holder = self.holders[label]
        if fault == "registry":
            port = self.draw.choice(list(self.registries))
            self.registries[port].kill()
            self.registries[port].wait()
            self.startRegistry(port)
            # The holder may have lost its lock meanwhile.
            fence, _, label = self.seen()[-1]
            holder = self.holders[label]
        elif fault == "clock":
            self.wallClock.write_text(f"{self.draw.choice(['+3600', '-3600', '+0'])}\n")
            time.sleep(0.5)
        stalls, stalled = self.stalls(), self.stalled
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        if fault == "cut":
            holder.cut()
        else:
            number = {"stop": signal.SIGSTOP, "term": signal.SIGTERM}.get(fault, signal.SIGKILL)
            holder.process.send_signal(number)
        _, at, _ = self.nextAfter(fence)
        if fault in ("stop", "cut"):
            holder.process.send_signal(signal.SIGCONT)
            holder.heal()
            time.sleep(0.2)
        else:
            holder.gone()
            del self.holders[label]
            self.startHolder()
        took = at - began
        if took - (self.stalled - stalled) > (_HANDOVER if fault == "term" else TIMEOUT + _MARGIN[self.store]):
            self.late += 1
            if not isCrowded():
                # A registry that was not let run says so, once it runs again.
                _until(lambda: self.stalls() > stalls, f"{fault}: took over after {took:.2f} s", 3.0)
        return took

    def check(self) -> int:
        """Check the invariants; returns the number of holders there were."""
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
        for process in (*(each.process for each in self.holders.values()), *self.registries.values(), *self.others):
            process.kill()
            process.wait()


def _until(condition: Callable[[], bool], otherwise: str, patience: float = _PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"{otherwise} (waited for {patience:g} s)"
        time.sleep(0.02)


def _isHealthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def run(store: str, count: int, seed: int) -> None:
    """Rounds over one store; prints what they took."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        rounds = Rounds(folder, store, draw)
        took: dict[str, list[float]] = {}
        try:
            rounds.nextAfter(0)
            for number in range(count):
                fault = _FAULTS[number] if number < len(_FAULTS) else draw.choice(_FAULTS)
                took.setdefault(fault, []).append(rounds.round(fault))
            holders = rounds.check()
        except AssertionError:
            print((rounds.folder / "log").read_text()[-5000:], file=sys.stderr)
            raise
        finally:
            rounds.end()
    print(f"over {store}:")
    for fault, seconds in took.items():
        seconds.sort()
        median = seconds[len(seconds) // 2]
        print(f"  {fault}: {len(seconds)} times, next holder after {median:.2f} s, at most {seconds[-1]:.2f} s")
    late = f"; {rounds.late} came late, on a machine that was crowded or stood still" if rounds.late else ""
    print(f"  {holders} holders, one at a time{late}", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--store", default=",".join(_STORES), help="separated by commas (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args(arguments)
    # For the relays.
    thread = threading.Thread(target=reactor.run, kwargs={"installSignalHandlers": False}, daemon=True)
    thread.start()
    for store in parsed.store.split(","):
        run(store, parsed.rounds, parsed.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
