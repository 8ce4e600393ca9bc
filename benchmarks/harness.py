"""
Common parts of the benchmarks: figures, measured processes, contenders that take turns, and the command line.

A benchmark is a module with a docstring that says what it measures, and::

    def measure(quick: bool) -> list[Figure]:
        ...

    if __name__ == "__main__":
        run(__doc__, measure)

Machines are noisy, so contenders are child processes that take turns (:class:`Contender`, :func:`alternate`), what is
told of each is the median of several rounds, and what counts is the CPU time of the process rather than the clock's.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import attrs

from txserviceregistry.settings import Settings, readSettings


@attrs.frozen
class Figure:
    """
    One result.

    :ivar name: what was measured.
    :ivar value: how much it was.
    :ivar unit: of what: ``µs``, ``KiB``, ``x``, ….
    :ivar atMost: what it should not be above; ``None`` if there is no such bound.
    :ivar atLeast: what it should not be below; ``None`` if there is no such bound.
    """

    name: str
    value: float
    unit: str
    atMost: float | None = None
    atLeast: float | None = None

    @property
    def isReached(self) -> bool:
        """Whether it is within its bounds."""
        return (self.atMost is None or self.value <= self.atMost) and (
            self.atLeast is None or self.value >= self.atLeast
        )

    @property
    def wanted(self) -> str:
        """The bound, in words."""
        if self.atMost is not None:
            return f"at most {amount(self.atMost, self.unit)}"
        return "" if self.atLeast is None else f"at least {amount(self.atLeast, self.unit)}"

    def __str__(self) -> str:
        verdict = "" if not self.wanted else f" (wanted: {self.wanted}{'' if self.isReached else '; NOT REACHED'})"
        return f"{self.name}: {amount(self.value, self.unit)}{verdict}"


def amount(value: float, unit: str) -> str:
    """A number with its unit, with as many digits as mean something: ``0.57 x``, ``13.1 µs``, ``93,000 /s``."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f} {unit}"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


# -- the command line of a benchmark


def run(description: str | None, measure: Callable[[bool], list[Figure]]) -> None:
    """
    The command of a benchmark.

    :param description: its docstring.
    :param measure: gives the figures; is told whether to be quick about it.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: seconds, and rougher figures that are not judged"
    )
    options = parser.parse_args()
    figures = measure(options.quick)
    if options.quick:
        # A target counts only for a careful measurement, of as much as is said there.
        figures = [attrs.evolve(figure, atMost=None, atLeast=None) for figure in figures]
    if options.json:
        print(json.dumps([attrs.asdict(figure) for figure in figures], ensure_ascii=False))
    else:
        print(*figures, sep="\n")


# -- contenders that take turns


@attrs.frozen
class Cost:
    """
    The cost of one piece of work.

    :ivar cpu: seconds of CPU time that the contender's process used.
    :ivar wall: seconds that it took.
    """

    cpu: float
    wall: float


class Contender:
    """
    A child process that does rounds of some work, whenever it is told to, and tells what each has cost it.

    :param arguments: ``python``'s: it has to call :func:`answerRounds`.
    """

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self._process.args)} has ended")  # type: ignore[arg-type] # all strings
        return line

    def round(self, count: int) -> Cost:
        """Have so many pieces of work done. :return: what one of them has cost."""
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        cpu, wall = json.loads(self._line())
        return Cost(cpu / count, wall / count)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


async def answerRounds(work: Callable[[int], Awaitable[Any]]) -> None:
    """
    The other end of a :class:`Contender`: do rounds of *work* until there are no more, on any event loop.

    Nothing else happens in the process between two rounds: it waits for its input in the blocking way.

    :param work: does so many pieces of it.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        await work(int(line))
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


def alternate(contenders: Mapping[str, Contender], count: int, rounds: int) -> dict[str, Cost]:
    """
    Let them take turns.

    :param count: pieces of work in a round, of which the first does not count: caches are cold and connections new.
    :param rounds: how many that count.
    :return: the median of each.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            cost = contender.round(count)
            if number:
                costs[name].append(cost)
    return {
        name: Cost(statistics.median(cost.cpu for cost in of), statistics.median(cost.wall for cost in of))
        for name, of in costs.items()
    }


# -- processes that are looked at from outside


class Costs:
    """
    The resources that another process has used (Linux).

    :param pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._before = self.cpu()

    def cpu(self) -> float:
        """Seconds of CPU time since it began, to the nanosecond (``clock_getcpuclockid``)."""
        return time.clock_gettime((~self.pid << 3) | 2)

    def since(self) -> float:
        """Seconds of CPU time since this was asked for the last time, or since this object was made."""
        before, self._before = self._before, self.cpu()
        return self._before - before

    def memory(self) -> int:
        """Bytes in memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """
    A server in a process of its own.

    :param arguments: ``python``'s; the program prints a line when it listens.
    :return: that line, and the id of the process.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise SystemExit("The server did not start")
        yield line, process.pid
    finally:
        process.terminate()
        process.wait()


_REGISTRY = """
import json, sys
from functools import partial
from twisted.internet import reactor
from txserviceregistry.clock import useMonotonic
from txserviceregistry.commands.twistd import collectSeldom
from txserviceregistry.registry.http.connections import ConnectionLimits
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.service import RegistryService

useMonotonic()
collectSeldom()
options = {"store": "sqlite", "rateLimit": 10**9, **json.loads(sys.argv[2])}
options["connectionLimits"] = ConnectionLimits(**options.pop("connectionLimits", {}))
etcd = options.pop("etcd", None)
if etcd is not None:
    from txserviceregistry.registry.stores.etcd.store import EtcdStore
    options["store"] = partial(EtcdStore, reactor, **etcd)
registry = RegistryService(
    reactor,
    dataDir=sys.argv[1],
    endpoints=["tcp:0:interface=127.0.0.1"],
    limits=ResourceLimits(service=10**6, configurationValue=10**6),
    **options,
)
registry.startService()
registry.whenListening().addCallback(lambda _: print("listening", flush=True))
reactor.addSystemEventTrigger("before", "shutdown", registry.stopService)
reactor.run()
"""


@attrs.frozen
class Registry:
    """
    A registry in a process of its own.

    :ivar settings: how to reach it.
    :ivar home: its data directory.
    :ivar costs: what it uses.
    """

    settings: Settings
    home: Path
    costs: Costs


def settingsOf(home: str | Path) -> Settings:
    """How to reach the registry that has this data directory."""
    return readSettings(environ={"RAXSR_DATA_DIR": str(home)}, home=Path(home))


@contextmanager
def registry(home: str | Path | None = None, *, before: str = "", **options: Any) -> Iterator[Registry]:
    """
    Run a registry.

    :param home: its data directory; one of its own that is removed at the end if it is not given.
    :param before: code that its process runs first.
    :param options: RegistryService's, over sqlite and without a limit worth mentioning if they say nothing else; or
        ``etcd`` with the EtcdStore's, to run it over that.
    """
    with TemporaryDirectory() as temporary:
        home = Path(temporary if home is None else home)
        with serving("-c", before + _REGISTRY, str(home), json.dumps(options)) as (_, pid):
            yield Registry(settingsOf(home), home, Costs(pid))


class Api:
    """
    A connection to a registry, made of as little as possible: for what has to be there before anything is measured, and
    to be the load rather than what is measured.

    :param home: the registry's data directory.
    :ivar authToken: what goes into ``X-Auth-Token``.
    :ivar url: the tenant's URL.
    :ivar root: the part of it without a path.
    :ivar path: the rest.
    """

    def __init__(self, home: str | Path) -> None:
        settings = settingsOf(home)
        self._connection = http.client.HTTPConnection(urlsplit(settings.baseUrls[0]).netloc)
        self.authToken = ""
        credentials = {"username": settings.username, "apiKey": settings.apiKey}
        access = self.ask("/v2.0/tokens", {"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})["access"]
        self.authToken = access["token"]["id"]
        self.url = f"{settings.baseUrls[0]}/{access['token']['tenant']['id']}"
        self.path = urlsplit(self.url).path
        self.root = self.url.removesuffix(self.path)

    def ask(self, path: str, body: object) -> Any:
        """POST a *body*. :return: the answer's, which has to be one of success."""
        return self._exchange("POST", path, json.dumps(body))

    def get(self, path: str) -> Any:
        """GET what is at *path* below the tenant's. :return: the body of the answer, which has to be one of success."""
        return self._exchange("GET", self.path + path, None)

    def _exchange(self, method: str, path: str, body: str | None) -> Any:
        headers = {"Content-Type": "application/json", "X-Auth-Token": self.authToken}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status in (200, 201), (answer.status, data)
        return json.loads(data)

    def create(self, id: str, timeout: int = 120, **payload: object) -> Any:
        """Register a service. :return: ``{"token": ...}``."""
        return self.ask(self.path + "/services", {"id": id, "heartbeat_timeout": timeout, **payload})

    def beat(self, id: str, token: str) -> Any:
        """Heartbeat a service. :return: ``{"token": ...}``."""
        return self.ask(f"{self.path}/services/{id}/heartbeat", {"token": token})

    def beatTogether(self, beats: Sequence[Mapping[str, str]]) -> Any:
        """Heartbeat several services, each ``{"id": ..., "token": ...}``. :return: the same with the next tokens."""
        return self.ask(self.path + "/heartbeats", {"heartbeats": beats})["values"]

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def inReactor(work: Callable[[Any], Coroutine[Any, Any, object]]) -> None:
    """
    Run the reactor of this process until some work is done. It can be done once.

    :param work: is given the reactor. Its result has to be told in another way.
    """
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    try:
        react(lambda reactor: Deferred.fromCoroutine(work(reactor)))
    except SystemExit as end:
        if end.code:
            raise


def timed(work: Callable[[], object], count: int, rounds: int) -> float:
    """
    The median of some rounds of work in this process that takes no time but CPU time.

    :param work: does it *count* times.
    :return: seconds of CPU time for one.
    """
    spent: Sequence[float] = [_timed(work) for _ in range(rounds + 1)][1:]
    return statistics.median(spent) / count


def _timed(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
