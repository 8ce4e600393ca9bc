"""
DNS server: ``python -m benchmarks.dns``.

A process with the server's view and zone answers over UDP on the loopback interface; this process asks. An answer costs
the CPU time that the server used for all of them. There are 1,000 tags of ten services each, and one of 10,000. After a
change, nothing may keep the server from answering for long: the work on changes, and the first answer for a name after
it, are measured as the CPU time that each turn takes.
"""

from __future__ import annotations

import random
import socket
import sys
import time

import dns.edns
import dns.message
import dns.name
from twisted.application.service import Service
from twisted.internet.defer import succeed

from txserviceregistry.commands.dns import settle
from txserviceregistry.dns.server import UdpServer, View
from txserviceregistry.dns.zone import LARGEST_UDP, Zone, readQuery

from .harness import Costs, Figure, run, serving

TAGS, EACH, CHANGES = 1_000, 10, 1_000
WINDOW = 64
NAMES = [f"_tag-{number}._tcp.service.registry" for number in range(TAGS)]


class _Directory(Service):
    """The part of a Directory that a view uses, with the services."""

    def onChange(self, listener):
        """See Directory."""
        self.tell = listener
        return lambda: None

    def whenReady(self):
        """See Directory."""
        return succeed(None)


def _service(number, tags):
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    metadata = {"host": address, "port": "8000", "version": "1.0"}
    return {"id": f"service-{number}", "heartbeat_timeout": 60, "tags": tags, "metadata": metadata, "last_seen": None}


def _services():
    return [_service(number, [f"tag-{number % TAGS}", "all"]) for number in range(TAGS * EACH)]


def _view(clock, whenReady):
    directory = _Directory()
    view = View(directory, Zone(dns.name.from_text("registry."), 5), clock, whenReady=whenReady)
    view.startService()
    for service in _services():
        directory.tell("join", service)
    return directory, view


def serve():
    """The server's process."""
    from twisted.internet import reactor

    def ready():
        settle()
        print(port.getHost().port, flush=True)

    _, view = _view(reactor, ready)
    port = reactor.listenUDP(0, UdpServer(view, reactor), "127.0.0.1")
    reactor.run()


class _Turns:
    """A clock whose calls are made by :meth:`run`, one after the other, and measured."""

    def __init__(self):
        self.calls = []

    def callLater(self, delay, function):
        """See IReactorTime."""
        self.calls.append(function)

    def seconds(self):
        """See IReactorTime."""
        return time.monotonic()

    def run(self):
        """
        Make all calls.

        :return: the longest one, in seconds.
        """
        longest = 0.0
        while self.calls:
            began = time.process_time()
            self.calls.pop(0)()
            longest = max(longest, time.process_time() - began)
        return longest


def _turns():
    """The longest turns after changes, in seconds: of 1,000 at once, and the first answer of a tag of 10,000."""
    clock = _Turns()
    directory, view = _view(clock, settle)
    clock.run()
    query = readQuery(
        dns.message.make_query("_all._tcp.service.registry", "SRV", use_edns=0, payload=LARGEST_UDP).to_wire()
    )
    assert len(view.zone.response(query, LARGEST_UDP)) > 8000
    for service in _services()[:CHANGES]:
        service["metadata"]["version"] = "1.1"
        directory.tell("update", service)
    changes = clock.run()
    began = time.process_time()
    assert len(view.zone.response(query, LARGEST_UDP)) > 8000
    return changes, time.process_time() - began


def _ask(port, queries, count):
    """Have *count* queries answered, some at a time. :return: how many answers there were."""
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("127.0.0.1", port))
        asking.settimeout(1.0)
        for begin in range(0, count, WINDOW):
            for number in range(begin, begin + WINDOW):
                asking.send(queries[number % len(queries)])
            for _ in range(WINDOW):
                data = asking.recv(LARGEST_UDP)
                answered += data[7] == EACH
    return answered


def _queries(names, hasCookies):
    draw = random.Random(7)
    queries = []
    for name in names:
        if hasCookies:
            name = "".join(draw.choice((letter.upper(), letter)) for letter in name)
        options = [dns.edns.CookieOption(draw.randbytes(8), b"")] if hasCookies else []
        query = dns.message.make_query(name, "SRV", use_edns=0, payload=4096, options=options, id=draw.randrange(65536))
        queries.append(query.to_wire())
    return queries


def measure(quick):
    """See the module."""
    figures = []
    count = WINDOW * (100 if quick else 1000)
    with serving("-m", "benchmarks.dns", "--serve") as (line, pid):
        costs = Costs(pid)
        for text, queries, least in (
            ("one question", _queries(NAMES[:1], False), 20_000),
            (f"{TAGS:,} names in random case, with cookies", _queries([*NAMES] * 10, True), 5_000),
        ):
            _ask(int(line), queries, WINDOW * 10)
            costs.since()
            answered = _ask(int(line), queries, count)
            figures.append(
                Figure(f"answers with {EACH} SRV records, {text}", answered / costs.since(), "/s", atLeast=least)
            )
        figures.append(Figure(f"memory, {TAGS * EACH:,} services", costs.memory() / 2**20, "MiB"))
    changes, answer = (1000 * min(those) for those in zip(*[_turns() for _ in range(2 if quick else 5)], strict=True))
    figures.append(Figure(f"longest reactor turn, {CHANGES:,} changes", changes, "ms", atMost=5))
    figures.append(Figure(f"first answer after a change, tag of {TAGS * EACH:,}", answer, "ms", atMost=5))
    return figures


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        run(__doc__, measure)
