"""
Cluster and failover: ``python -m benchmarks.cluster``.

Three members of etcd; a registry that is alone over them, one of three nodes, and one over sqlite for comparison. They
take turns, and all of them and the load share the cores of this machine. The load is the same for each: 50 connections
in all. Each request about a service goes to another node than the last one, as behind a proxy that deals them. It
registers services, reads them one by one, heartbeats them one by one, and in requests of 1,000 over three connections,
and removes them, all of one tenant. Creates are compared with bare transactions of etcd over as many connections, each
of which sets a key if it does not exist.

An event's way is measured with the registry of three nodes, which has nothing else to do then: from the sending of a
create to the first node to the moment in which a subscriber of the second node has the event.

Failing over is measured with a client that reads a service of a registry of three nodes as fast as it is answered: how
long it is not when its node is killed (``kill -9``), and when it hangs (SIGSTOP).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from txserviceregistry import Client
from txserviceregistry.discovery import EventsFeed

from .burst import request, send
from .etcd import Member, etcds
from .harness import Api, Costs, Figure, Registry, inReactor, registry, run

_BATCH = 1000
_CONNECTIONS = 50
_HEARTBEAT_TIMEOUT = 120
# Seconds until what was kept in the background is kept.
_SETTLING = 1.0
_USERNAME, _KEY = "bench", "0123456789abcdef" * 2
_BARE = "bare etcd transactions"
_CREATES, _READS, _REMOVES = "creates", "reads", "removes"
_BEATS = "heartbeats"
_BATCHES = f"heartbeats in batches of {_BATCH:,}"


@contextmanager
def node(**options: Any) -> Iterator[Registry]:
    """A registry that has the same user as all others."""
    with TemporaryDirectory() as home:
        Path(home, "raxrc").write_text(f"[credentials]\nusername = {_USERNAME}\napi_key = {_KEY}\n")
        with registry(home, **options) as one:
            yield one


class Contender:
    """
    A registry of one node or of several, under load.

    :param etcd: what its etcd uses.
    :ivar rates: how many there were in a second, by what and by round.
    :ivar cpu: seconds of CPU time for each: the nodes' and etcd's.
    """

    def __init__(self, nodes: Sequence[Registry], etcd: Sequence[Costs]) -> None:
        self.rates: dict[str, list[float]] = {}
        self.cpu: dict[str, list[tuple[float, float]]] = {}
        self._nodes = nodes
        self._etcd = etcd
        api = Api(nodes[0].home)
        api.close()
        self._token = api.authToken
        tenant = api.url.rpartition("/")[2]
        self._urls = [f"{one.settings.baseUrls[0]}/{tenant}" for one in nodes]
        self._turn = 0

    def round(self, number: int, count: int, batches: int) -> None:
        """Do all of it once, with new services."""
        ids = [f"service-{number:02}-{index:05}" for index in range(count)]
        beats = self.heartbeats(ids)
        self._do(_READS, "GET", [(f"/services/{id}", None) for id in ids])
        batch = [{"id": id, "token": body["token"]} for id, (_, body) in zip(ids, beats, strict=True)]
        # Of each service's heartbeats a node keeps the time of the first one, and none for five minutes.
        for first in range(0, count, _BATCH):
            some = {"heartbeats": batch[first : first + _BATCH]}
            send([request("POST", f"{url}/heartbeats", self._token, some) for url in self._urls], 1)
        time.sleep(_SETTLING)
        self._do(_BEATS, "POST", beats)
        batch = batch[:_BATCH]
        self._do(_BATCHES, "POST", [("/heartbeats", {"heartbeats": batch})] * batches, each=len(batch), connections=3)
        self._do(_REMOVES, "DELETE", [(f"/services/{id}", None) for id in ids])

    def requests(self, method: str, asked: Sequence[tuple[str, object]]) -> list[tuple[int, bytes]]:
        """Requests, by path and body; each one about the same object as before goes to another node than before."""
        urls = self._urls
        self._turn += 1
        return [
            request(method, urls[(number + self._turn) % len(urls)] + path, self._token, body)
            for number, (path, body) in enumerate(asked)
        ]

    def heartbeats(self, ids: Sequence[str]) -> list[tuple[str, Any]]:
        """Register services; the paths and bodies of their heartbeats."""
        created = self._do(
            _CREATES, "POST", [("/services", {"id": id, "heartbeat_timeout": _HEARTBEAT_TIMEOUT}) for id in ids]
        )
        # A token counts as long as its service lives, and may come again.
        return [(f"/services/{id}/heartbeat", json.loads(body)) for id, body in zip(ids, created, strict=True)]

    def fill(self, count: int) -> None:
        """Register services that have some data, as those have that one finds in practice."""
        data = {"tags": ["www", "production"], "metadata": {"host": "192.0.2.1", "port": "8000", "version": "1.2.3"}}
        services = [
            {"id": f"full-{number:05}", "heartbeat_timeout": _HEARTBEAT_TIMEOUT, **data} for number in range(count)
        ]
        self._do("", "POST", [("/services", service) for service in services])

    def empty(self, count: int) -> None:
        """Remove them."""
        self._do("", "DELETE", [(f"/services/full-{number:05}", None) for number in range(count)])

    def _do(
        self,
        what: str,
        method: str,
        asked: Sequence[tuple[str, object]],
        *,
        each: int = 1,
        connections: int = _CONNECTIONS,
    ) -> list[bytes]:
        requests = self.requests(method, asked)
        for costs in (*(one.costs for one in self._nodes), *self._etcd):
            costs.since()
        rate, answers = send(requests, connections // len(self._urls))
        count = len(requests) * each
        cpu = sum(one.costs.since() for one in self._nodes) / count, sum(c.since() for c in self._etcd) / count
        self.rates.setdefault(what, []).append(rate * each)
        self.cpu.setdefault(what, []).append(cpu)
        return answers


def bare(urls: Sequence[str], number: int, count: int) -> float:
    """The rate of transactions that etcd makes by itself, each of which sets a key that must not exist."""

    def text(value: str) -> str:
        return b64encode(value.encode()).decode()

    def transaction(index: int) -> object:
        key = text(f"/bare/{number:02}/{index:05}")
        compare = {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
        return {"compare": [compare], "success": [{"request_put": {"key": key, "value": text("x" * 100)}}]}

    requests = [
        request("POST", f"{urls[index % len(urls)]}/v3/kv/txn", "", transaction(index)) for index in range(count)
    ]
    rate, answers = send(requests, _CONNECTIONS // len(urls))
    assert all(json.loads(answer).get("succeeded") for answer in answers)
    return rate


def throughput(
    contenders: Mapping[str, Contender], urls: Sequence[str], rounds: int, count: int, batches: int
) -> Iterator[Figure]:
    """Let them take turns; the first round of each does not count."""
    alone = []
    for number in range(rounds + 1):
        alone.append(bare(urls, number, count))
        for contender in contenders.values():
            contender.round(number, count, batches)
    rates = {
        (what, name): statistics.median(of[1:])
        for name, contender in contenders.items()
        for what, of in contender.rates.items()
    }
    perCpu = {
        (what, name): 1 / statistics.median(nodes for nodes, _ in of[1:])
        for name, contender in contenders.items()
        for what, of in contender.cpu.items()
    }
    yield Figure(_BARE, statistics.median(alone[1:]), "/s")
    for name in ("one node", "three nodes"):
        ratio = rates[_CREATES, name] / statistics.median(alone[1:])
        yield Figure(f"{_CREATES}, {name} / {_BARE}", ratio, "x", atLeast=0.8)
    for what in (_BEATS, _BATCHES):
        ratio = rates[what, "three nodes"] / rates[what, "one node"]
        yield Figure(f"{what}, three nodes / one node", ratio, "x", atLeast=0.8)
    for what, least in ((_BEATS, 0.8), (_BATCHES, 0.6)):
        ratio = perCpu[what, "one node"] / perCpu[what, "sqlite"]
        yield Figure(f"{what} per CPU, one node / sqlite", ratio, "x", atLeast=least)
    for what in (_CREATES, _REMOVES, _READS, _BEATS, _BATCHES):
        for name, contender in contenders.items():
            yield Figure(f"{what}, {name}", statistics.median(contender.rates[what][1:]), "/s")
    for what in (_BEATS, _BATCHES):
        for name, contender in contenders.items():
            nodes, etcd = (statistics.median(of) for of in zip(*contender.cpu[what][1:], strict=True))
            yield Figure(f"nodes' CPU, {what}, {name}", 1e6 * nodes, "µs")
            if etcd:
                yield Figure(f"etcd's CPU, {what}, {name}", 1e6 * etcd, "µs")


def sizes(contender: Contender, of: Costs, member: Member, services: int) -> Iterator[Figure]:
    """The memory that a service takes of a node, and of etcd."""
    memory, size = of.memory(), member.databaseSize()
    contender.fill(services)
    yield Figure(f"memory per service, {services:,} services", (of.memory() - memory) / services / 1024, "KiB")
    yield Figure("etcd's database per registration", (member.databaseSize() - size) / services / 1024, "KiB")
    contender.empty(services)


# -- an event's way, and failing over


def _client(reactor: Any, nodes: Sequence[Registry], **options: Any) -> Client:
    """A client that begins with the first of some nodes."""
    urls = [one.settings.baseUrls[0] for one in nodes]
    return Client(_USERNAME, _KEY, baseUrl=urls, reactor=reactor, random=lambda: 0.0, **options)


async def eventsWay(reactor: Any, nodes: Sequence[Registry], count: int) -> list[Figure]:
    """From a create on one node to its event on another."""
    ways: list[float] = []
    acknowledged: list[float] = []
    here: Deferred[None] = Deferred()

    def heard(event: Any) -> None:
        ways.append(time.monotonic() - began)
        here.callback(None)

    async with _client(reactor, nodes[:1]) as by, _client(reactor, nodes[1:2]) as at:
        feed = EventsFeed(at)
        await by.account.getLimits()
        feed.onEvent(lambda event: heard(event) if event["payload"].get("id") == id else None)
        feed.startService()
        tries = 0
        while not here.called:
            # It has to read all that there is before it waits for what comes.
            id, tries, began = f"try-{tries:05}", tries + 1, time.monotonic()
            await by.services.create(id, _HEARTBEAT_TIMEOUT)
            await deferLater(reactor, 0.5, lambda: None)
        ways.clear()
        for number in range(count):
            here, id, began = Deferred(), f"event-{number:05}", time.monotonic()
            await by.services.create(id, _HEARTBEAT_TIMEOUT)
            acknowledged.append(time.monotonic() - began)
            await here
            await deferLater(reactor, 0.01, lambda: None)
        await feed.stopService()
    return [
        Figure("create until acknowledged, median", 1000 * statistics.median(acknowledged), "ms"),
        *_spread("create until its event at another node", ways, 1000, "ms"),
    ]


def _spread(what: str, seconds: Sequence[float], factor: float, unit: str) -> list[Figure]:
    ordered = sorted(seconds)
    return [
        Figure(f"{what}, median", factor * statistics.median(ordered), unit),
        Figure(f"{what}, p99", factor * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], unit),
    ]


async def silence(
    reactor: Any, ended: Registry, others: Sequence[Registry], how: signal.Signals, timeout: float
) -> float:
    """For how long a client of several nodes is not answered when the one that it is with is sent a signal."""
    async with _client(reactor, [ended, *others], timeout=timeout) as client:
        await client.services.get("failover")
        end = time.monotonic() + 0.5
        longest, hasHit = 0.0, False
        while time.monotonic() < end:
            if not hasHit:
                os.kill(ended.costs.pid, how)
                hasHit, end = True, time.monotonic() + 0.5
            began = time.monotonic()
            await client.services.get("failover")
            longest = max(longest, time.monotonic() - began)
    return longest


async def failover(reactor: Any, nodes: Sequence[Registry], store: Any, rounds: int) -> list[Figure]:
    """How long it takes a client to be with another node."""
    async with _client(reactor, nodes) as client:
        await client.services.create("failover", _HEARTBEAT_TIMEOUT)
    figures = []
    for what, how, timeout in (
        ("killed", signal.SIGKILL, 10.0),
        ("hanging, timeout 10 s", signal.SIGSTOP, 10.0),
        ("hanging, timeout 1 s", signal.SIGSTOP, 1.0),
    ):
        silences = []
        for _ in range(rounds):
            with node(etcd=store) as ended:
                try:
                    silences.append(await silence(reactor, ended, nodes[1:], how, timeout))
                finally:
                    os.kill(ended.costs.pid, signal.SIGKILL)
        figures.append(Figure(f"failover, node {what}, median", 1000 * statistics.median(silences), "ms"))
        figures.append(Figure(f"failover, node {what}, longest", 1000 * max(silences), "ms"))
    return figures


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    rounds, count, batches, events, kills = (2, 400, 9, 50, 2) if quick else (3, 1500, 30, 500, 7)
    figures: list[Figure] = []
    with ExitStack() as stack:
        members = stack.enter_context(etcds(3))
        urls = [member.url for member in members]
        costs = [Costs(member.pid) for member in members]
        alone = {"urls": urls, "prefix": "/alone/"}
        together = {"urls": urls, "prefix": "/together/"}
        three = [stack.enter_context(node(etcd=together)) for _ in range(3)]
        contenders = {
            "one node": Contender([stack.enter_context(node(etcd=alone))], costs),
            "three nodes": Contender(three, costs),
            "sqlite": Contender([stack.enter_context(node())], ()),
        }
        # While their memory has not grown for anything else.
        figures += sizes(contenders["three nodes"], three[1].costs, members[0], 5 * count)
        figures += throughput(contenders, urls, rounds, count, batches)

        async def rest(reactor: Any) -> None:
            figures.extend(await eventsWay(reactor, three, events))
            figures.extend(await failover(reactor, three, together, kills))

        inReactor(rest)
    return figures


if __name__ == "__main__":
    run(__doc__, measure)
