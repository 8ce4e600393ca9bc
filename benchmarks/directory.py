"""
Directory: ``python -m benchmarks.directory``.

A Directory of 1,000 and of 100,000 services, all in this process: its client is one that answers from memory, so that
nothing is measured but the directory and the balancer. Of the services 1,000 have the tag that is asked for; the others
have one of a hundred others. A change is a service that times out, or joins: a page of 1,000 such events is given to
the directory at once, and its CPU time is divided by their number.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from txserviceregistry import Client
from txserviceregistry.discovery import Directory
from txserviceregistry.discovery.balancing import Balancer

from .harness import Figure, run, timed

_TAG = "www"
_TAGGED = 1000
_PAGE = 1000


class _Registry:
    """The part of a client that a Directory uses, from memory."""

    extensions = frozenset({"events-wait"})

    def __init__(self, services: list[dict[str, Any]]) -> None:
        self.clock = Clock()
        self.services = self.events = self
        self.shared: dict[object, Any] = {}
        self._services = services
        self._last = {"id": "0", "type": "other", "payload": {}}
        self._count = 0
        self._waiting: Deferred[Any] | None = None

    async def iterate(self, tag: str | None = None) -> AsyncIterator[Any]:
        """services.iterate"""
        for service in self._services:
            yield service

    def list(self, marker: str | None, limit: int, *, wait: int | None, types: object) -> Deferred[Any]:
        """events.list"""
        if wait is None:
            return succeed({"values": [self._last]})
        self._waiting = Deferred()
        return self._waiting

    def pause(self, seconds: float) -> Deferred[None]:
        """Nothing waits here."""
        return succeed(None)

    def tell(self, news: list[tuple[str, dict[str, Any]]]) -> None:
        """Give events to the subscriber."""
        events = [self._last]
        for kind, payload in news:
            self._count += 1
            events.append({"id": str(self._count), "type": f"service.{kind}", "payload": payload})
        self._last = events[-1]
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        waiting.callback({"values": events})


def _service(number: int) -> dict[str, Any]:
    tag = _TAG if number < _TAGGED else f"tag{number % 100}"
    metadata = {"host": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "port": "8000", "version": "1"}
    return {
        "id": f"service-{number:06}",
        "heartbeat_timeout": 60,
        "tags": [tag, "all"],
        "metadata": metadata,
        "last_seen": None,
    }


class _Subject:
    """A Directory of so many, what is done with it, and how often."""

    CHANGES = _PAGE
    FINDS = 10_000
    BOTH = 20

    def __init__(self, count: int) -> None:
        self._services = [_service(number) for number in range(count)]
        self._registry = _Registry(self._services)
        self._directory = Directory(cast(Client, self._registry))
        self._directory.startService()
        assert len(self._directory.services()) == count
        self._balancer = Balancer(self._directory, _TAG, clock=self._registry.clock)
        self._draw = random.Random(7)

    def _change(self, services: list[dict[str, Any]]) -> None:
        """Each of these times out and joins again."""
        self._registry.tell([("timeout", service) for service in services])
        self._registry.tell([("join", service) for service in services])

    def change(self) -> None:
        """Any services."""
        self._change(self._draw.sample(self._services, self.CHANGES // 2))

    def find(self, times: int = FINDS) -> None:
        """One of the tag."""
        for _ in range(times):
            self._directory.forTag(_TAG)
            self._balancer.pick()

    def findAfterOthers(self) -> None:
        """One of the tag, after each change of another one."""
        for _ in range(self.BOTH):
            self._change([self._services[self._draw.randrange(_TAGGED, len(self._services))]])
            self.find(1)

    def findAfter(self) -> None:
        """One of the tag, after each change of this one."""
        for _ in range(self.BOTH):
            self._change([self._services[self._draw.randrange(_TAGGED)]])
            self.find(1)


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    large, rounds = (10_000, 3) if quick else (100_000, 9)
    costs: dict[int, float] = {}
    figures = []
    for count in (_TAGGED, large):
        subject, where = _Subject(count), f"{count:,} services"
        found = 1e6 * timed(subject.find, subject.FINDS, rounds)
        costs[count] = 1e6 * timed(subject.change, subject.CHANGES, rounds)
        figures += [
            Figure(f"forTag and a pick, {where}", found, "µs", atMost=3),
            Figure(f"change, {where}", costs[count], "µs"),
        ]
    others, same = (1e6 * timed(work, subject.BOTH, rounds) for work in (subject.findAfterOthers, subject.findAfter))
    return [
        *figures,
        Figure(f"change, {large:,} services / {_TAGGED:,}", costs[large] / costs[_TAGGED], "x"),
        Figure(f"pick after a change of another tag, {where}", others, "µs"),
        Figure(f"pick after a change of the tag ({_TAGGED:,} services), {where}", same, "µs"),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
