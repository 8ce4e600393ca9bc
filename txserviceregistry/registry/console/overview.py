"""The registry itself, as the console shows it: its version, store, nodes and load."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime

from ..core import Registry
from ..http.statuspages import Health
from ..statistics import RequestStatistics
from ..stores.shared import ISharedStore

#: Rates are those of the last so many seconds.
_SECONDS = 10.0


@attrs.define(eq=False)
class Overview:
    """Describes the registry."""

    _registry: Registry
    _store: Any
    _health: Health
    _requests: RequestStatistics
    _clock: IReactorTime
    _wallClock: Callable[[], float] = time.time
    # When something was counted, and the heartbeats and requests until then.
    _counts: deque[tuple[float, int, int]] = attrs.field(init=False, factory=deque)

    def now(self) -> int:
        """The time, in milliseconds since the epoch."""
        return int(self._wallClock() * 1000)

    async def report(self, tenant: str) -> dict[str, Any]:
        """The state of the registry, with the number of services of a tenant, as JSON."""
        health = await self._health.report()
        registry = self._registry
        heartbeats, requests = self._rates()
        return {
            **health,
            "figures": {
                "services": registry.counts().get(tenant, 0),
                "subscribers": registry.followers.count + registry.feed.streams.places.count,
                "heartbeats_per_second": heartbeats,
                "requests_per_second": requests,
            },
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        store = self._store
        if not ISharedStore.providedBy(store):
            return []
        return [
            {"name": name, "is_this": place == 0, "may_acknowledge": store.isValid if place == 0 else None}
            for place, name in enumerate(store.members)
        ]

    def _rates(self) -> tuple[float | None, float | None]:
        """Heartbeats and requests per second, of the last seconds in which the console was looked at."""
        now = self._clock.seconds()
        requests = sum(sum(route.codes.values()) for route in self._requests.routes.values())
        counted = now, self._registry.engine.heartbeats, requests
        while len(self._counts) > 1 and self._counts[1][0] < now - _SECONDS:
            self._counts.popleft()
        if not self._counts or now - self._counts[-1][0] >= 1:
            self._counts.append(counted)
        passed = now - self._counts[0][0]
        if passed < 1:
            return None, None
        before = self._counts[0]
        return (counted[1] - before[1]) / passed, (counted[2] - before[2]) / passed
