"""
Followers at a registry: ``python -m benchmarks.waiting``.

Each of 1,000 waits for events with a request of its own (``events-wait``), over a connection of its own, and asks again
as soon as it has been answered. They are as lean as can be, and all in this process, so that it is the registry that is
measured; ``ulimit -n`` has to be more than their number. The time counts from the moment before a service is created
until the event is in the hands of a follower, parsed. The CPU per follower and event is that of all of it, the next
request too, by which a follower waits again; what it takes to deliver the event is what is used until all have it, in
rounds without requests before that. Beside it stands what a bare twisted.web resource takes for a request that it
answers at once with as large a page, over as many connections. What followers cost that hear nothing is what a registry
does with them and without them: CPU, and how often it wakes up.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from .harness import Api, Costs, Figure, registry, run
from .load import bare

FOLLOWERS = 1000


class Follower:
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

    def read(self):
        """:return: whether an answer is there whole."""
        self._data += self.socket.recv(65536)
        head, _, body = self._data.partition(b"\r\n\r\n")
        length = next((line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), None)
        if length is None or len(body) < int(length[15:]):
            return False
        self._data = b""
        self._marker = json.loads(body)["values"][-1]["id"]
        self.heard = time.perf_counter()
        return True


class Crowd:
    """Followers, and a selector of them."""

    def __init__(self, stack, api, marker, count):
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self.followers = [Follower(api, marker) for _ in range(count)]
        for follower in self.followers:
            stack.enter_context(follower.socket)
            self._selector.register(follower.socket, selectors.EVENT_READ, follower)

    def ask(self):
        for follower in self.followers:
            follower.ask()

    def hear(self, seconds, answers=None, *, asking=True):
        """
        Let them hear for so long, or until there are so many answers; each that has heard asks again, if they are
        *asking*. :return: how many answers there were.
        """
        ends = time.monotonic() + seconds
        count = 0
        while (left := ends - time.monotonic()) > 0 and count != answers:
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


def news(measured, api, crowd, rounds):
    """:return: of each round, the seconds until the median follower had heard, and the registry's CPU for it all."""
    medians, spent = [], []
    for number in range(rounds):
        measured.costs.since()
        began = time.perf_counter()
        api.create(f"service-{len(crowd.followers)}-{number}")
        assert crowd.hear(30, len(crowd.followers)) == len(crowd.followers)
        medians.append(statistics.median(follower.heard for follower in crowd.followers) - began)
        # Until all of them wait again.
        crowd.hear(0.5)
        spent.append(measured.costs.since())
    return medians, spent


def deliveries(measured, api, crowd, rounds):
    """:return: of each round, the registry's CPU until all have heard, and not one has asked again."""
    spent = []
    for number in range(rounds):
        measured.costs.since()
        api.create(f"delivered-{number}")
        assert crowd.hear(30, len(crowd.followers), asking=False) == len(crowd.followers)
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


def measure(quick):
    """See the module."""
    count, seconds, rounds = (100, 5, 5) if quick else (FOLLOWERS, 20, 15)
    figures, idle = [], {}
    for followers in (0, 1, count):
        with ExitStack() as stack:
            measured = stack.enter_context(registry())
            api = stack.enter_context(closing(Api(measured.home)))
            api.create("first")
            (event,) = api.get("/events?limit=1")["values"]
            crowd = Crowd(stack, api, event["id"], followers)
            crowd.ask()
            crowd.hear(0.5)
            if followers != 1:
                idle[followers] = quiet(measured, crowd, seconds)
            if followers:
                medians, spent = news(measured, api, crowd, 20 * rounds if followers == 1 else rounds)
                who = f"{followers:,} follower{'s' if followers > 1 else ''}"
                title = f"from a create until the median of {who} has the event"
                bound = 5 if followers == 1 else 120
                figures.append(Figure(title, 1000 * statistics.median(medians), "ms", atMost=bound))
            if followers == count:
                cost = 1e6 * statistics.median(spent) / count
                title = f"registry's CPU per follower and event, {who}"
                figures.append(Figure(title, cost, "µs", atMost=120))
                cost = 1e6 * statistics.median(deliveries(measured, api, crowd, rounds)) / count
                title = f"registry's CPU per follower and event, without the next request, {who}"
                figures.append(Figure(title, cost, "µs", atMost=120))
                cost = 1e6 * statistics.median(bareRequests(count, rounds)) / count
                figures.append(Figure(f"CPU of a bare resource per request, {count:,} connections", cost, "µs"))
    for followers, (cpu, woken) in idle.items():
        figures.append(Figure(f"registry's CPU while {followers:,} followers hear nothing", 100 * cpu, "%"))
        figures.append(Figure(f"wake-ups of the registry while {followers:,} followers hear nothing", woken, "/s"))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
