"""
Metrics: what a registry counts, in the words of Prometheus, translated at the moment that it is asked for.

Needs prometheus_client, which the extra ``metrics`` brings: only the page of metrics imports this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

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
from ..model import Figures
from ..statistics import Histogram, RequestStatistics, Sources, StoreStatistics

#: The type of what :meth:`Metrics.text` returns.
CONTENT_TYPE: str = CONTENT_TYPE_LATEST
#: So many tenants, those with the most services, have a line of their own: there may be any number of them.
MOST_TENANTS = 100

_PREFIX = "service_registry"


class Metrics(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics as they are now, in Prometheus's text format."""
        text: bytes = generate_latest(self._registry)
        return text

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are not needed beforehand."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client each time that it is asked."""
        sources, identity = self._sources, self._sources.identity
        yield InfoMetricFamily(_PREFIX, "The registry.", {"version": __version__, "store": sources.store})
        yield from _requests(sources.requests)
        yield _gauge("connections", "Connections that are open.", sources.connections())
        yield _counter("evictions", "Connections that were closed to make room for others.", sources.evictions())
        yield _family(
            CounterMetricFamily,
            "unauthenticated_waits",
            "Times that work for clients without a valid token had to wait for its turn.",
            ["kind"],
            (([kind], count) for kind, count in sources.waited().items()),
        )
        yield _counter("logins_refused", "Logins refused because too many waited.", identity.overloaded)
        yield from _figures(sources.figures())
        yield from _store(sources.storeStatistics)
        yield _counter("tokens_issued", "New auth tokens.", identity.issued)
        yield _counter("authentications_failed", "Wrong users or API keys.", identity.failed)
        yield _counter("access_log_lost", "Lines that the access log could not write.", sources.accessLogLost())
        yield _counter("audit_log_lost", "Lines that the audit log could not write.", sources.auditLogLost())
        yield _family(
            GaugeMetricFamily,
            "tls_expiry_timestamp_seconds",
            "When the TLS certificate in use expires, in seconds since the epoch.",
            ["file"],
            (([path], each.not_valid_after_utc.timestamp()) for path, each in sources.certificates().items()),
        )


def _requests(statistics: RequestStatistics) -> Iterator[Metric]:
    routes = [([method.decode("ascii"), route], one) for (method, route), one in sorted(statistics.routes.items())]
    yield _family(
        CounterMetricFamily,
        "requests",
        "Requests answered.",
        ["method", "route", "code"],
        (([*labels, str(code)], count) for labels, one in routes for code, count in sorted(one.codes.items())),
    )
    yield _family(
        HistogramMetricFamily,
        "request_seconds",
        "Time from the arrival of a whole request to its response.",
        ["method", "route"],
        ((labels, *_buckets(one.seconds)) for labels, one in routes),
    )


def _figures(figures: Figures) -> Iterator[Metric]:
    largest = sorted(figures.services.items(), key=lambda item: (-item[1], item[0]))
    yield _gauge("services", "Registered services.", sum(figures.services.values()))
    yield _family(
        GaugeMetricFamily,
        "tenant_services",
        f"Registered services, by tenant: the {MOST_TENANTS} tenants that have the most.",
        ["tenant"],
        (([tenant], count) for tenant, count in largest[:MOST_TENANTS]),
    )
    yield _gauge("followers", "Requests that wait for events.", figures.subscribers)
    yield _gauge("streams", "Open event streams.", figures.streams)
    yield _counter("heartbeats", "Heartbeats taken, alone or in batches.", figures.heartbeats)
    yield _gauge("heartbeats_waiting", "Heartbeats that wait for the store.", figures.waiting)
    yield _counter("expirations", "Expired services.", figures.expirations)
    yield _gauge("locks", "Locks that are held.", figures.locks)
    yield _counter("lock_acquisitions", "Locks acquired.", figures.acquisitions)
    yield _counter("lock_expirations", "Expired locks.", figures.lockExpirations)
    yield _counter("stalls", "Stalls of the process of more than a second.", figures.stalls)
    yield _counter("stalled_seconds", "Total duration of stalls, in seconds.", figures.stalledSeconds)


def _store(store: StoreStatistics) -> Iterator[Metric]:
    yield _family(
        GaugeMetricFamily,
        "store_up",
        "Whether the store could be read or written the last time.",
        ["operation"],
        [(["read"], store.isReadable), (["write"], store.isWritable)],
    )
    yield _family(
        HistogramMetricFamily,
        "store_seconds",
        "Time from an operation of the store to its result.",
        ["operation"],
        [(["read"], *_buckets(store.reads)), (["write"], *_buckets(store.writes))],
    )
    yield _family(
        HistogramMetricFamily,
        "store_commit_operations",
        "Operations that shared a commit.",
        [],
        [([], *_buckets(store.commits))],
    )
    yield _gauge("store_wal_bytes", "Size of the write-ahead log of the sqlite store.", store.walBytes)
    votes = None if store.votes is None else store.votes()
    yield _gauge("votes", "Services whose expiration this node of a cluster has put to the vote.", votes)


def _buckets(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    ends = [*(format(bound, "g") for bound in histogram.bounds), "+Inf"]
    return list(zip(ends, accumulate(histogram.counts), strict=True)), histogram.total


def _gauge(name: str, help: str, value: float | None) -> Metric:
    return _family(GaugeMetricFamily, name, help, [], [] if value is None else [([], value)])


def _counter(name: str, help: str, value: float) -> Metric:
    return _family(CounterMetricFamily, name, help, [], [([], value)])


def _family(kind: Any, name: str, help: str, labels: Sequence[str], samples: Iterable[Sequence[Any]]) -> Metric:
    """Metrics of one name; each sample has the values of the labels and what belongs to them."""
    family = kind(f"{_PREFIX}_{name}", help, labels=labels)
    for sample in samples:
        family.add_metric(*sample)
    metric: Metric = family
    return metric
