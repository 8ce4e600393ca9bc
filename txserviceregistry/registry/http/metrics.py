"""
Metrics: what a registry counts, in the words of Prometheus.

Everything is translated at the moment that it is asked for. Needs prometheus_client, which the extra ``metrics``
brings; nothing else of the registry imports this module before it is asked for metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

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
from ..model import Figures
from ..statistics import Histogram, RequestStatistics, Sources, StoreStatistics

#: The type of what :meth:`Metrics.text` returns.
CONTENT_TYPE: str = CONTENT_TYPE_LATEST
#: So many tenants, those with the most services, have a line of their own: there may be any number of them.
MOST_TENANTS = 100

_PREFIX = "service_registry_"


class Metrics:
    """
    The metrics of one registry.
    """

    def __init__(self, sources: Sources) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_RegistryCollector(sources))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """All metrics as they are now, in Prometheus's text format."""
        text: bytes = generate_latest(self._registry)
        return text


class _RegistryCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are not needed beforehand."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client each time that it is asked."""
        sources = self._sources
        yield InfoMetricFamily(
            _PREFIX.removesuffix("_"), "The registry.", {"version": __version__, "store": sources.store}
        )
        yield from _requests(sources.requests)
        yield _gauge("connections", "Connections that are open.", sources.connections())
        yield _counter("evictions", "Connections that were closed to make room for others.", sources.evictions())
        yield _waited(sources.waited())
        yield _counter("logins_refused", "Logins refused because too many waited.", sources.identity.overloaded)
        yield from _figures(sources.figures())
        yield from _store(sources.storeStatistics)
        yield _counter("tokens_issued", "New auth tokens.", sources.identity.issued)
        yield _counter("authentications_failed", "Wrong users or API keys.", sources.identity.failed)
        yield _counter("access_log_lost", "Lines that the access log could not write.", sources.accessLogLost())
        yield _counter("audit_log_lost", "Lines that the audit log could not write.", sources.auditLogLost())
        yield _certificates(sources.certificates())


def _waited(waited: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(
        _PREFIX + "unauthenticated_waits",
        "Times that work for clients without a valid token had to wait for its turn.",
        labels=["kind"],
    )
    for kind, count in waited.items():
        family.add_metric([kind], count)
    return family


def _requests(statistics: RequestStatistics) -> Iterator[Metric]:
    requests = CounterMetricFamily(_PREFIX + "requests", "Requests answered.", labels=["method", "route", "code"])
    seconds = HistogramMetricFamily(
        _PREFIX + "request_seconds",
        "Time from the arrival of a whole request to its response.",
        labels=["method", "route"],
    )
    for (method, route), one in sorted(statistics.routes.items()):
        labels = [method.decode("ascii"), route]
        for code, count in sorted(one.codes.items()):
            requests.add_metric([*labels, str(code)], count)
        seconds.add_metric(labels, _buckets(one.seconds), one.seconds.total)
    yield requests
    yield seconds


def _figures(figures: Figures) -> Iterator[Metric]:
    yield _gauge("services", "Registered services.", sum(figures.services.values()))
    tenants = GaugeMetricFamily(
        _PREFIX + "tenant_services",
        f"Registered services, by tenant: the {MOST_TENANTS} tenants that have the most.",
        labels=["tenant"],
    )
    largest = sorted(figures.services.items(), key=lambda item: (-item[1], item[0]))
    for tenant, count in largest[:MOST_TENANTS]:
        tenants.add_metric([tenant], count)
    yield tenants
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


def _store(statistics: StoreStatistics) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        _PREFIX + "store_up", "Whether the store could be read or written the last time.", labels=["operation"]
    )
    seconds = HistogramMetricFamily(
        _PREFIX + "store_seconds",
        "Time from an operation of the store to its result.",
        labels=["operation"],
    )
    for operation, isUp, times in (
        ("read", statistics.isReadable, statistics.reads),
        ("write", statistics.isWritable, statistics.writes),
    ):
        up.add_metric([operation], isUp)
        seconds.add_metric([operation], _buckets(times), times.total)
    yield up
    yield seconds
    commits = HistogramMetricFamily(_PREFIX + "store_commit_operations", "Operations that shared a commit.")
    commits.add_metric([], _buckets(statistics.commits), statistics.commits.total)
    yield commits
    wal = GaugeMetricFamily(_PREFIX + "store_wal_bytes", "Size of the write-ahead log of the sqlite store.")
    if statistics.walBytes is not None:
        wal.add_metric([], statistics.walBytes)
    yield wal
    votes = GaugeMetricFamily(
        _PREFIX + "votes", "Services whose expiration this node of a cluster has put to the vote."
    )
    if statistics.votes is not None:
        votes.add_metric([], statistics.votes())
    yield votes


def _certificates(certificates: Mapping[str, x509.Certificate]) -> Metric:
    expiry = GaugeMetricFamily(
        _PREFIX + "tls_expiry_timestamp_seconds",
        "When the TLS certificate in use expires, in seconds since the epoch.",
        labels=["file"],
    )
    for path, certificate in certificates.items():
        expiry.add_metric([path], certificate.not_valid_after_utc.timestamp())
    return expiry


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    ends = [*(format(bound, "g") for bound in histogram.bounds), "+Inf"]
    return list(zip(ends, accumulate(histogram.counts), strict=True))


def _gauge(name: str, help: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, help, value)


def _counter(name: str, help: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(_PREFIX + name, help, value)
