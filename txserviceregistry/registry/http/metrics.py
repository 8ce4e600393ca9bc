"""Metrics, in the words of Prometheus. Needs the extra ``metrics``: only their page imports this module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Any

import attrs
from cryptography import x509
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from ..._version import __version__
from ..core import Registry
from ..identity import IdentityStatistics
from ..statistics import Histogram
from ..stores.interfaces import IStore
from .messages import Response
from .server import ApiSite

#: So many tenants, those with the most services, have a line of their own: there may be any number of them.
MOST_TENANTS = 100

_PREFIX = "service_registry"


def _family(kind: Any, name: str, help: str, value: Any, *labels: str) -> Metric:
    """Metrics of one name; with *labels*, their values by those of the labels."""
    family = kind(f"{_PREFIX}_{name}", help, labels=labels)
    values: Mapping[Any, Any] = value if isinstance(value, Mapping) else {} if value is None else {(): value}
    for key, one in values.items():
        sample = [one]
        if isinstance(one, Histogram):
            ends = [*(format(bound, "g") for bound in one.bounds), "+Inf"]
            sample = [list(zip(ends, accumulate(one.counts), strict=True)), one.total]
        family.add_metric([key] if isinstance(key, str) else key, *sample)
    metric: Metric = family
    return metric


_counter, _gauge = partial(_family, CounterMetricFamily), partial(_family, GaugeMetricFamily)
_histogram = partial(_family, HistogramMetricFamily)


@attrs.define(eq=False)
class Metrics(Collector):
    """The metrics of a registry; *certificates* returns those of its listeners by their files."""

    _registry: Registry
    _store: IStore
    _identity: IdentityStatistics
    _site: ApiSite
    _certificates: Callable[[], Mapping[str, x509.Certificate]]
    _collectors: CollectorRegistry = attrs.field(init=False, factory=partial(CollectorRegistry, auto_describe=False))

    def __attrs_post_init__(self) -> None:
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._collectors)
        self._collectors.register(self)

    def page(self) -> Response:
        return Response(200, headers={"Content-Type": CONTENT_TYPE_LATEST}, text=generate_latest(self._collectors))

    def collect(self) -> Iterator[Metric]:
        registry, store, identity, log = self._registry, self._store.statistics, self._identity, self._site.requestLog
        connections = self._site.connections
        services, engine, stalls = registry.counts(), registry.engine, registry.engine.time
        routes = {(method.decode(), route): one for (method, route), one in sorted(log.routes.items())}
        requests = {(*key, str(code)): n for key, one in routes.items() for code, n in sorted(one.codes.items())}
        seconds = {key: one.seconds for key, one in routes.items()}
        largest = sorted(services.items(), key=lambda item: (-item[1], item[0]))[:MOST_TENANTS]
        expiry = {path: each.not_valid_after_utc.timestamp() for path, each in self._certificates().items()}

        yield InfoMetricFamily(_PREFIX, "The registry.", {"version": __version__, "store": self._store.name})
        yield _counter("requests", "Requests answered.", requests, "method", "route", "code")
        text = "Time from the arrival of a whole request to its response."
        yield _histogram("request_seconds", text, seconds, "method", "route")
        yield _gauge("connections", "Connections that are open.", connections.count)
        yield _counter("evictions", "Connections closed to make room for others.", connections.evictions)
        text = "Delays of clients without a valid token."
        handshakes = connections.handshakes.waited
        waited = {"request": connections.requests.waited, "handshake": handshakes, "login": identity.waited}
        yield _counter("unauthenticated_waits", text, waited, "kind")
        yield _counter("logins_refused", "Logins refused because too many waited.", identity.overloaded)
        yield _gauge("services", "Registered services.", sum(services.values()))
        text = f"Registered services, by tenant: the {MOST_TENANTS} tenants that have the most."
        yield _gauge("tenant_services", text, dict(largest), "tenant")
        yield _gauge("followers", "Requests that wait for events or locks.", registry.followers.count)
        yield _gauge("streams", "Open event streams.", registry.feed.streams.places.count)
        yield _counter("heartbeats", "Accepted heartbeats, single or batched.", engine.heartbeats)
        yield _gauge("heartbeats_waiting", "Heartbeats that wait for the store.", engine.waiting)
        yield _counter("expirations", "Expired services.", engine.expirations["service.timeout"])
        yield _gauge("locks", "Locks that are held.", sum(registry.counts(ofLocks=True).values()))
        yield _counter("lock_acquisitions", "Locks acquired.", registry.locks.acquisitions)
        yield _counter("lock_expirations", "Expired locks.", engine.expirations["lock.expire"])
        yield _counter("stalls", "Stalls of the process of more than a second.", stalls.stalls)
        yield _counter("stalled_seconds", "Total duration of stalls, in seconds.", stalls.stalledSeconds)
        up = {"read": store.isReadable, "write": store.isWritable}
        yield _gauge("store_up", "Whether the store could be read or written the last time.", up, "operation")
        times = {"read": store.reads, "write": store.writes}
        yield _histogram("store_seconds", "Time from an operation of the store to its result.", times, "operation")
        yield _histogram("store_commit_operations", "Operations that shared a commit.", store.commits)
        yield _gauge("store_wal_bytes", "Size of the write-ahead log of the sqlite store.", store.walBytes)
        text = "Services whose expiration this node of a cluster has put to the vote."
        yield _gauge("votes", text, None if store.votes is None else store.votes())
        yield _counter("tokens_issued", "New auth tokens.", identity.issued)
        yield _counter("authentications_failed", "Wrong users or API keys.", identity.failed)
        for name, each in (("access", log.accessLog), ("audit", log.auditLog)):
            text = f"Lines that the {name} log could not write."
            yield _counter(f"{name}_log_lost", text, 0 if each is None else each.lost)
        text = "When the TLS certificate in use expires, in seconds since the epoch."
        yield _gauge("tls_expiry_timestamp_seconds", text, expiry, "file")
