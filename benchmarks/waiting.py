"""
Events, from a create to their subscribers: ``python -m benchmarks.waiting``.

Each of 1,000 has an event stream, or waits for events with a request of its own (``events-wait``) and asks again as
soon as it has been answered. Each has a connection of its own. They are as lean as can be, and all in this process,
so that it is the registry that is measured; ``ulimit -n`` has to be more than their number. The time counts from the
moment before a service is created until the event is in the hands of a subscriber, parsed. The CPU per subscriber and
event is that of all of it, the next request too, by which a subscriber waits again; what it takes to deliver the event
is what is used until all have it, in rounds without requests before that. Beside it stands what a bare twisted.web
resource takes for a request that it answers at once with as large a page, over as many connections. The cost of those
that receive nothing is what a registry does with them and without them: CPU, and how often it wakes up. Then 10,000
have a stream: what that takes of memory, for how long the registry does nothing else while an event goes to all of
them, and how long heartbeats take meanwhile, from the moment at which each was to be sent.

An event is there when it is durable, so the disk takes a part of the time from a create: what one ``fdatasync`` takes
stands beside it. The time of a single stream is measured in memory (``/dev/shm``) too, and judged there.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import SimpleNamespace
from urllib.parse import urlsplit

from .harness import Api, Costs, Figure, registry, run
from .load import bare

SUBSCRIBERS = 1000
STREAMS = 10_000

# Writes down the longest turn of the reactor, in seconds of CPU, whenever there is a longer one.
_TURNS = """
import sys, time
from pathlib import Path
from twisted.internet import reactor


class Poller:
    def __init__(self, poller):
        self._poller, self._file, self._began, self._most = poller, Path(sys.argv[1], "turns"), None, 0.0

    def poll(self, *args):
        took = 0.0 if self._began is None else time.thread_time() - self._began
        if not self._file.exists():
            self._file.write_text("0")
            self._most = 0.0
        elif took > self._most:
            self._most = took
            self._file.write_text(repr(took))
        found = self._poller.poll(*args)
        self._began = time.thread_time()
        return found

    def __getattr__(self, name):
        return getattr(self._poller, name)


reactor._poller = Poller(reactor._poller)
"""


# Sends a heartbeat every 20 ms from one line of its input to the next, and prints what each has taken, in seconds.
_BEATS = """
import http.client, json, select, sys, time
netloc, path, authToken, token = sys.argv[1:]
connection = http.client.HTTPConnection(netloc)
headers = {"Content-Type": "application/json", "X-Auth-Token": authToken}
while sys.stdin.readline():
    took, due = [], time.perf_counter()
    while not select.select([sys.stdin], [], [], max(0, due - time.perf_counter()))[0]:
        connection.request("POST", path, json.dumps({"token": token}), headers)
        token = json.loads(connection.getresponse().read())["token"]
        took.append(time.perf_counter() - due)
        due += 0.02
    sys.stdin.readline()
    print(json.dumps(took), flush=True)
"""


class Beats:
    """Heartbeats of a service, from a process of their own."""

    def __init__(self, stack, api):
        path, netloc = f"{api.path}/services/beating/heartbeat", urlsplit(api.root).netloc
        arguments = [netloc, path, api.authToken, api.create("beating")["token"]]
        self._process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _BEATS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )
        stack.callback(self._process.stdin.close)

    def during(self, work):
        """:return: what the heartbeats took that were sent while *work* was done."""
        print(file=self._process.stdin, flush=True)
        work()
        print(file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


class Subscriber:
    """
    One who waits.

    :ivar heard: when its last answer was there whole.
    """

    heard = 0.0

    def __init__(self, api, marker):
        root = urlsplit(api.root)
        self._head = f"HTTP/1.1\r\nHost: {root.netloc}\r\nX-Auth-Token: {api.authToken}\r\n\r\n"
        self._path = api.path
        self._marker = marker
        self._data = b""
        self.socket = socket.create_connection((root.hostname, root.port))

    def ask(self):
        self.socket.sendall(f"GET {self._path}/events?marker={self._marker}&wait=60 {self._head}".encode())

    def receive(self):
        data = self.socket.recv(65536)
        assert data, "the registry has closed a connection"
        self._data += data

    def read(self):
        """:return: whether an answer is there whole."""
        self.receive()
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = next((line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), None)
        if length is None or len(body) < int(length[15:]):
            return False
        self._data = b""
        self._marker = json.loads(body)["values"][-1]["id"]
        self.heard = time.perf_counter()
        return True


class Reader(Subscriber):
    """A subscriber with an event stream, which it requests once."""

    hasAsked = False
    isReady = False

    def ask(self):
        if not self.hasAsked:
            self.hasAsked = True
            self.socket.sendall(f"GET {self._path}/events/stream {self._head}".encode())

    def read(self):
        """:return: whether an event has come whole; pings are none."""
        self.receive()
        *blocks, self._data = self._data.split(b"\n\n")
        self.isReady = self.isReady or bool(blocks)
        event = next((block for block in blocks if b"\nevent: service" in block), None)
        if event is None:
            return False
        json.loads(event.partition(b"\ndata: ")[2])
        self.heard = time.perf_counter()
        return True


class Crowd:
    """Subscribers, and a selector of them."""

    def __init__(self, stack, api, marker, count, kind=Subscriber):
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self.subscribers = []
        self.add(stack, [kind(api, marker) for _ in range(count)])

    def add(self, stack, subscribers):
        self.subscribers += subscribers
        for subscriber in subscribers:
            stack.enter_context(subscriber.socket)
            self._selector.register(subscriber.socket, selectors.EVENT_READ, subscriber)

    def becomeReady(self):
        """Hear until all streams have begun."""
        while not all(reader.isReady for reader in self.subscribers):
            self.hear(0.1)

    def ask(self):
        for subscriber in self.subscribers:
            subscriber.ask()

    def hear(self, seconds, answers=None, *, asking=True):
        """
        Let them hear for so long, or until there are so many answers; each that has heard asks again, if they are
        *asking*. :return: how many answers there were.
        """
        ends = time.monotonic() + seconds
        count = 0
        while (left := ends - time.monotonic()) > 0 and (answers is None or count < answers):
            for key, _ in self._selector.select(left):
                if key.data.read():
                    count += 1
                    if asking:
                        key.data.ask()
        return count


def wakeUps(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)


def quiet(measured, crowd, seconds):
    """:return: the CPU, in parts of one, and the wake-ups in a second of a registry without requests."""
    crowd.hear(1)
    measured.costs.since()
    before = wakeUps(measured.costs.pid)
    assert not crowd.hear(seconds)
    return measured.costs.since() / seconds, (wakeUps(measured.costs.pid) - before) / seconds


def syncing(count):
    """:return: the median of the seconds that the disk takes to make a few bytes durable."""
    took = []
    with TemporaryFile() as file:
        for number in range(count):
            os.pwrite(file.fileno(), bytes(4096), 4096 * number)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def news(measured, api, crowd, rounds):
    """
    :return: of each round, the seconds until the median subscriber and the last one had the event, and the registry's
        CPU for all.
    """
    settling = 0.5 if len(crowd.subscribers) > 1 else 0.02
    medians, lasts, spent = [], [], []
    for number in range(rounds):
        measured.costs.since()
        began = time.perf_counter()
        api.create(f"service-{len(crowd.subscribers)}-{number}")
        assert crowd.hear(60, len(crowd.subscribers)) == len(crowd.subscribers)
        medians.append(statistics.median(subscriber.heard for subscriber in crowd.subscribers) - began)
        lasts.append(max(subscriber.heard for subscriber in crowd.subscribers) - began)
        # Until all of them wait again.
        crowd.hear(settling)
        spent.append(measured.costs.since())
    return medians, lasts, spent


def deliveries(measured, api, crowd, rounds):
    """:return: of each round, the registry's CPU until all have heard, and not one has asked again."""
    spent = []
    for number in range(rounds):
        measured.costs.since()
        api.create(f"delivered-{number}")
        assert crowd.hear(30, len(crowd.subscribers), asking=False) == len(crowd.subscribers)
        spent.append(measured.costs.since())
        crowd.ask()
        crowd.hear(0.5)
    return spent


def bareRequests(count, rounds):
    """:return: of each round, the CPU of a bare resource that answers a request on each of so many connections."""
    spent = []
    with ExitStack() as stack:
        port, pid = stack.enter_context(bare(forms=False))
        costs = Costs(pid)
        api = SimpleNamespace(root=f"http://127.0.0.1:{port}", authToken="t" * 43, path="/v1.0/1")
        crowd = Crowd(stack, api, "3f8c2b1e-c9d0-11f0-8000-0123456789ab", count)
        for _ in range(rounds):
            costs.since()
            crowd.ask()
            assert crowd.hear(30, count, asking=False) == count
            spent.append(costs.since())
    return spent


def streams(count, rounds, waitingCost):
    """:return: the figures of one stream, and of so many."""
    figures = [Figure("fdatasync", 1000 * syncing(20 * rounds), "ms")]
    for readers, where in ((1, None), (1, "/dev/shm"), (count, None)):
        with ExitStack() as stack:
            home = stack.enter_context(TemporaryDirectory(dir=where))
            measured = stack.enter_context(registry(home))
            api = stack.enter_context(closing(Api(measured.home)))
            crowd = Crowd(stack, api, None, readers, Reader)
            crowd.ask()
            crowd.becomeReady()
            medians, lasts, spent = news(measured, api, crowd, 20 * rounds if readers == 1 else rounds)
            if readers == 1:
                title = f"event at one stream{', data in memory' if where else ''}"
                figures.append(Figure(title, 1000 * statistics.median(medians), "ms", atMost=2.5 if where else None))
            else:
                title = f"event at the last of {count:,} streams"
                figures.append(Figure(title, 1000 * statistics.median(lasts), "ms", atMost=60))
                cost = 1e6 * statistics.median(spent) / count
                figures.append(Figure(f"CPU per event and stream, {count:,} streams", cost, "µs", atMost=42))
                title = "CPU per event, stream / waiting request"
                figures.append(Figure(title, cost / waitingCost, "x", atMost=0.5))
    return figures


def manyStreams(count, rounds):
    """:return: the figures of very many streams."""
    limits = {"connections": 2 * count, "perClient": 2 * count, "streams": count, "streamsPerTenant": count}
    with ExitStack() as stack:
        measured = stack.enter_context(registry(before=_TURNS, connectionLimits=limits))
        api = stack.enter_context(closing(Api(measured.home)))
        crowd = Crowd(stack, api, None, 0, Reader)
        while len(crowd.subscribers) < count:
            # Not faster than they are accepted.
            crowd.add(stack, [Reader(api, None) for _ in range(min(200, count - len(crowd.subscribers)))])
            crowd.ask()
            crowd.becomeReady()
        memory = measured.costs.memory() / 2**20
        beats = Beats(stack, api)
        assert crowd.hear(60, count) == count
        turns, meanwhile, otherwise = [], [], []

        def event(id):
            api.create(id)
            assert crowd.hear(60, count) == count

        for number in range(rounds):
            crowd.hear(0.5)
            otherwise += beats.during(lambda: crowd.hear(0.5))
            (measured.home / "turns").unlink()
            crowd.hear(0.2)
            meanwhile += beats.during(partial(event, f"service-{number}"))
            turns.append(float((measured.home / "turns").read_text()))
    return [
        Figure(f"memory, {count:,} streams", memory, "MiB", atMost=160),
        Figure(f"longest reactor turn, event for {count:,} streams", 1000 * max(turns), "ms", atMost=5),
        Figure(f"heartbeat meanwhile, p99 ({len(meanwhile)} sent)", 1000 * p99(meanwhile), "ms"),
        Figure(f"heartbeat otherwise, p99 ({len(otherwise)} sent)", 1000 * p99(otherwise), "ms"),
    ]


def p99(values):
    return sorted(values)[int(0.99 * len(values))]


def measure(quick):
    """See the module."""
    count, seconds, rounds = (100, 3, 5) if quick else (SUBSCRIBERS, 15, 15)
    figures, idle = [], {}
    for subscribers in (0, 1, count):
        with ExitStack() as stack:
            measured = stack.enter_context(registry())
            api = stack.enter_context(closing(Api(measured.home)))
            api.create("first")
            (event,) = api.get("/events?limit=1")["values"]
            crowd = Crowd(stack, api, event["id"], subscribers)
            crowd.ask()
            crowd.hear(0.5)
            if subscribers != 1:
                idle[subscribers] = quiet(measured, crowd, seconds)
            if subscribers:
                medians, _, spent = news(measured, api, crowd, 20 * rounds if subscribers == 1 else rounds)
                who = f"{subscribers:,} waiting request{'s' if subscribers > 1 else ''}"
                title = f"event at the median of {who}"
                figures.append(Figure(title, 1000 * statistics.median(medians), "ms"))
            if subscribers == count:
                cost = waitingCost = 1e6 * statistics.median(spent) / count
                title = f"CPU per event, next request included, {who}"
                figures.append(Figure(title, cost, "µs"))
                cost = 1e6 * statistics.median(deliveries(measured, api, crowd, rounds)) / count
                title = f"CPU per event, {who}"
                figures.append(Figure(title, cost, "µs"))
                cost = 1e6 * statistics.median(bareRequests(count, rounds)) / count
                figures.append(Figure(f"CPU per request, bare resource, {count:,} connections", cost, "µs"))
    figures += streams(count, rounds, waitingCost)
    figures += manyStreams(1000 if quick else STREAMS, rounds)
    for subscribers, (cpu, woken) in idle.items():
        figures.append(Figure(f"CPU while {subscribers:,} requests wait", 100 * cpu, "%"))
        figures.append(Figure(f"wake-ups while {subscribers:,} requests wait", woken, "/s"))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
