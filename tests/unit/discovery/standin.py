"""
Stand-ins: a directory with the services that a test adds, services, and instances.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from txserviceregistry import Client
from txserviceregistry.discovery.instances import Instance, readInstance
from txserviceregistry.types import Service


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

    def put(self, *services: Service) -> None:
        """Add or change services."""
        self.content.update((one["id"], one) for one in services)
        self.version += 1

    def remove(self, *ids: str) -> None:
        """Remove services."""
        for id in ids:
            del self.content[id]
        self.version += 1

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


class Plain:
    """A client of a registry without extensions."""

    extensions: frozenset[str] = frozenset()

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)
