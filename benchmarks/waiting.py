"""
Followers at a registry: ``python -m benchmarks.waiting``.

Each of 1,000 waits for events with a request of its own (``events-wait``), over a connection of its own, and asks again
as soon as it has been answered. They are as lean as can be, and all in this process, so that it is the registry that is
measured; ``ulimit -n`` has to be more than their number. The time counts from the moment before a service is created
until the event is in the hands of a follower, parsed. What followers cost that hear nothing is what a registry does
with them and without them: CPU, and how often it wakes up.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

from .harness import Api, Figure, registry, run

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

    def __init__(self, stack, api, count):
        api.create("first")
        (event,) = api.get("/events?limit=1")["values"]
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self.followers = [Follower(api, event["id"]) for _ in range(count)]
        for follower in self.followers:
            stack.enter_context(follower.socket)
            self._selector.register(follower.socket, selectors.EVENT_READ, follower)
            follower.ask()
        self.hear(0.5)

    def hear(self, seconds, answers=None):
        """Let them hear for so long, or until there are so many answers. :return: how many there were."""
        ends = time.monotonic() + seconds
        count = 0
        while (left := ends - time.monotonic()) > 0 and count != answers:
            for key, _ in self._selector.select(left):
                if key.data.read():
                    key.data.ask()
                    count += 1
        return count


def wakeUps(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)


def quiet(measured, crowd, seconds):
    """:return: the CPU, in parts of one, and the wake-ups in a second of a registry that nobody asks anything."""
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


def measure(quick):
    """See the module."""
    count, seconds, rounds = (100, 5, 5) if quick else (FOLLOWERS, 20, 15)
    figures, idle = [], {}
    for followers in (0, 1, count):
        with ExitStack() as stack:
            measured = stack.enter_context(registry())
            api = stack.enter_context(closing(Api(measured.home)))
            crowd = Crowd(stack, api, followers)
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
    for followers, (cpu, woken) in idle.items():
        figures.append(Figure(f"registry's CPU while {followers:,} followers hear nothing", 100 * cpu, "%"))
        figures.append(Figure(f"wake-ups of the registry while {followers:,} followers hear nothing", woken, "/s"))
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
