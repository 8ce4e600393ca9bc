"""
Stand-ins: a directory with the services that a test adds, services, and instances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from txserviceregistry import Client
from txserviceregistry.discovery.balancing import Instance, readInstance
from txserviceregistry.discovery.directory import Change
from txserviceregistry.types import Service
from txserviceregistry.util.logs import Listeners, Logger


def service(id: str, port: int = 80, *, host: str = "h", tags: tuple[str, ...] = ("web",), **metadata: str) -> Service:
    """A service with an address."""
    return {
        "id": id,
        "heartbeat_timeout": 30,
        "tags": list(tags),
        "metadata": {"host": host, "port": str(port), **metadata},
        "last_seen": None,
    }


def instance(id: str, port: int = 80, **metadata: str) -> Instance:
    """An instance to pick."""
    return readInstance(service(id, port, **metadata))


class FakeDirectory:
    """The part of a Directory that balancing uses."""

    def __init__(self, *services: Service, ready: bool = True) -> None:
        self.version = 0
        self.stale = 0.0 if ready else math.inf
        self.content = {one["id"]: one for one in services}
        self._waiting: list[Deferred[None]] = []
        self._listeners: Listeners[[Change, Service]] = Listeners(Logger(), "changes")
        self.onChange = self._listeners.add

    def put(self, *services: Service) -> None:
        """Add or change services."""
        for one in services:
            kind: Change = "update" if one["id"] in self.content else "join"
            self.content[one["id"]] = one
            self.version += 1
            self._listeners.call(kind, one)

    def remove(self, *ids: str) -> None:
        """Remove services."""
        self._end("remove", ids)

    def expire(self, *ids: str) -> None:
        """Let services expire."""
        self._end("timeout", ids)

    def _end(self, kind: Change, ids: tuple[str, ...]) -> None:
        for id in ids:
            one = self.content.pop(id)
            self.version += 1
            self._listeners.call(kind, one)

    @property
    def listeners(self) -> int:
        """How many listen to changes."""
        return len(self._listeners)

    def services(self) -> list[Service]:
        """See Directory."""
        return [one for _, one in sorted(self.content.items())]

    def becomeReady(self) -> None:
        """Have the first listing."""
        self.stale = 0.0
        self.version += 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def forTag(self, tag: str) -> list[Service]:
        """See Directory."""
        return [one for _, one in sorted(self.content.items()) if tag in one["tags"]]

    def whenReady(self) -> Deferred[None]:
        """See Directory."""
        if not math.isinf(self.stale):
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter


def numbers(*values: float) -> Callable[[], float]:
    """A source of these numbers."""
    left = iter(values)
    return lambda: next(left)


class Limited:
    """
    A client that sees a part of the registry's extensions.

    :param transport: how subscribers can get events: ``stream``, ``wait`` or ``poll``; the last one without extensions.
    """

    def __init__(self, client: Client, transport: str) -> None:
        self._client = client
        self._transport = transport

    def switch(self, transport: str) -> None:
        """Change the transport; a stream ends."""
        self._transport = transport
        self._client.events.closeStreams()

    @property
    def extensions(self) -> frozenset[str]:
        """See Client."""
        if self._transport == "poll":
            return frozenset()
        return self._client.extensions - ({"event-stream"} if self._transport == "wait" else set())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
