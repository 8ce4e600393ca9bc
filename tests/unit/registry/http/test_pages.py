"""The pages beside the API, as bytes on the wire."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.trial.unittest import SynchronousTestCase

from tests import ROOT
from tests.certificates import commonHolder
from tests.unit.registry.wire import KEY, USER, Api, Connection, Reply, requestBytes
from txserviceregistry._version import __version__
from txserviceregistry.registry.http.messages import Response
from txserviceregistry.registry.http.pages import ANYWHERE, LOOPBACK, OFF, Health, statusPages

DOCUMENTATION = ROOT / "docs" / "metrics.rst"


def metricsOf(api: Api) -> Callable[[], Callable[[], Response]]:
    def make() -> Callable[[], Response]:
        from txserviceregistry.registry.http.metrics import Metrics

        certificates = {"/cert.pem": commonHolder().x509}
        return Metrics(api.registry, api.store, api.identity.statistics, api.site, lambda: certificates).page

    api.site.connections.requests.waited, api.site.connections.handshakes.waited = 3, 2
    return make


class HealthPageTests(SynchronousTestCase):
    """``GET /health``."""

    def setUp(self) -> None:
        self.api = Api()
        self.api.resource.pages = statusPages(Health(self.api.store, self.api.clock), metricsOf(self.api))

    def ask(self, method: str = "GET", path: bytes = b"/health", **more: Any) -> Any:
        return self.api.ask(method, path, token=None, **more)

    def test_needsNoToken(self) -> None:
        """It is 200 while all is well, framed as every response, and not to be cached."""
        self.api.advance(2.5)
        reply = self.ask()
        self.assertEqual(reply.code, 200)
        self.assertEqual(
            reply.json, {"store": {"name": "memory", "state": "ok"}, "uptime": 2.5, "version": __version__}
        )
        self.assertEqual(reply.header("Content-Type"), "application/json; charset=UTF-8")
        self.assertEqual(reply.header("Cache-Control"), "no-store")
        self.assertTrue(reply.header("X-Response-Id"))

    def test_storeIsAway(self) -> None:
        """It is 503 while the store can't be used, with the same fields."""
        self.api.store.unavailable = True
        reply = self.ask()
        self.assertEqual((reply.code, reply.json["store"]), (503, {"name": "memory", "state": "unavailable"}))
        self.assertEqual(set(reply.json), {"store", "uptime", "version"})

    def test_readinessAndLife(self) -> None:
        """Readiness is the health; a registry lives as long as it responds, whatever its store does."""
        self.assertEqual(self.ask(path=b"/health/ready").json, self.ask().json)
        self.api.store.unavailable = True
        self.api.advance(2)
        self.assertEqual((self.ask(path=b"/health/ready").code, self.ask().code), (503, 503))
        live = self.ask(path=b"/health/live")
        self.assertEqual((live.code, live.json, live.header("Cache-Control")), (200, {"state": "alive"}, "no-store"))

    def test_head(self) -> None:
        """A load balancer that asks with HEAD gets the code, and no body."""
        connection = Connection(self.api)
        connection.send(requestBytes("HEAD", b"/health"))
        (reply,) = connection.replies(noBody=True)
        self.assertEqual((reply.code, reply.raw), (200, b""))

    def test_everythingElseIsAsBefore(self) -> None:
        """Other methods, and paths that are nearly the same, are not a page."""
        for method, path in (
            ("POST", b"/health"),
            ("DELETE", b"/health"),
            ("GET", b"/health/"),
            ("GET", b"//health"),
            ("GET", b"/v1.0/health"),
            ("GET", b"/"),
        ):
            reply = self.ask(method, path)
            self.assertEqual(reply.code, 401 if path.startswith(b"/v1.0") else 404, (method, path))
            self.assertIn(reply.json["type"], ("notFoundError", "unauthorizedError"))

    def test_queryIsIgnored(self) -> None:
        """A query changes nothing."""
        self.assertEqual(self.ask(path=b"/health?verbose=1").code, 200)


class MetricsPageTests(SynchronousTestCase):
    """``GET /metrics``: which clients may read it, and what it has."""

    def setUp(self) -> None:
        self.api = Api()

    def ask(self, audience: str = LOOPBACK, host: str = "127.0.0.1", method: str = "GET") -> Reply:
        api = self.api
        api.resource.pages = statusPages(Health(api.store, api.clock), metricsOf(api), audience)
        kind = IPv6Address if ":" in host else IPv4Address
        connection = Connection(api, kind("TCP", host, 4711))
        connection.send(requestBytes(method, b"/metrics"))
        (reply,) = connection.replies(noBody=method == "HEAD")
        connection.transport.loseConnection()
        return reply

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        reply = self.ask()
        self.assertEqual(reply.code, 200)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(reply.raw.decode("utf-8"))
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[f"service_registry_{name}", frozenset(labels.items())]

    def test_isForThisMachine(self) -> None:
        """
        Clients on this machine get it, others a 403, also those whose proxy names no address; an operator may open it
        to all, or close it.
        """
        for host in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
            self.assertEqual(self.ask(host=host).code, 200, host)
        others = ("192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "fe80::1%eth0", "0.0.0.0", "", "localhost")
        for host in others:
            reply = self.ask(host=host)
            self.assertEqual((reply.code, reply.json["type"]), (403, "forbiddenError"), host)
            self.assertIn("--metrics", reply.json["details"])
            self.assertEqual(self.ask(ANYWHERE, host).code, 200, host)
        self.assertEqual(self.ask(OFF).code, 404)

    def test_isFramedAsEverythingElse(self) -> None:
        """It has a type that Prometheus knows, a length and an id; HEAD brings no body."""
        reply = self.ask()
        self.assertTrue((reply.header("Content-Type") or "").startswith("text/plain; version="))
        self.assertTrue(reply.header("X-Response-Id"))
        self.assertEqual(self.ask(method="HEAD").raw, b"")

    def test_withoutPrometheusClient(self) -> None:
        """If the package is not installed, a fault says what to install."""
        self.ask()
        with patch.dict(sys.modules, {"prometheus_client": None}):
            del sys.modules["txserviceregistry.registry.http.metrics"]
            reply = self.ask()
        self.assertEqual((reply.code, reply.json["type"]), (501, "notImplementedError"))
        self.assertIn("pip install 'twisted-service-registry[metrics]'", reply.json["details"])

    def test_allNamesAreOurs(self) -> None:
        """The metrics are those of this registry, its process and its Python, and all are documented."""
        for family in text_string_to_metric_families(self.ask().raw.decode("utf-8")):
            self.assertRegex(family.name, "^(service_registry|process|python)_")
            self.assertTrue(family.documentation)

    def test_theDocumentationHasAllOfThem(self) -> None:
        """The table of metrics names every one, and none that is not there."""
        documented = re.findall(r"^``(service_registry_\w+)``  ", DOCUMENTATION.read_text(), re.MULTILINE)
        found = re.findall(r"^# TYPE (service_registry_\w+)", self.ask().raw.decode("utf-8"), re.MULTILINE)
        self.assertEqual(documented, found)

    def test_tellsWhatHappened(self) -> None:
        """Requests, heartbeats, services and users show in the numbers."""
        token = self.api.create("web1", 5)
        self.api.create("web2", 30)
        self.api.ask("POST", "/services/web1/heartbeat", {"token": token})
        self.api.ask("POST", "/heartbeats", {"heartbeats": [{"id": "web1", "token": token}] * 2})
        self.api.ask("POST", "/services/web9/heartbeat", {"token": token})
        heartbeat = "/services/{serviceId}/heartbeat"
        self.assertEqual(self.value("heartbeats_total"), 3)
        self.assertEqual(self.value("requests_total", method="POST", route=heartbeat, code="200"), 1)
        self.assertEqual(self.value("requests_total", method="POST", route=heartbeat, code="404"), 1)
        self.assertEqual(self.value("request_seconds_count", method="POST", route=heartbeat), 2)
        self.assertEqual(self.value("request_seconds_bucket", method="POST", route=heartbeat, le="+Inf"), 2)
        self.assertEqual(self.value("services"), 2)
        self.assertEqual(self.value("tenant_services", tenant="1234"), 2)
        self.api.advance(6)
        self.assertEqual((self.value("services"), self.value("expirations_total")), (1, 1))

    def test_tellsWhenCertificatesExpire(self) -> None:
        """The certificate of each listener with TLS has a line of its own."""
        self.assertEqual(
            self.value("tls_expiry_timestamp_seconds", file="/cert.pem"),
            commonHolder().x509.not_valid_after_utc.timestamp(),
        )

    def test_tellsWhoWaits(self) -> None:
        """Requests that wait for events are counted."""
        self.api.ask("GET", "/limits")
        connection = Connection(self.api)
        headers = {"X-Auth-Token": self.api.token}
        connection.send(requestBytes("GET", "/v1.0/1234/events?wait=5", headers=headers))
        self.assertEqual(self.value("followers"), 1)
        self.assertGreaterEqual(self.value("connections"), 2)
        self.api.advance(5)
        self.assertEqual(self.value("followers"), 0)

    def test_tellsAuthentications(self) -> None:
        """New tokens and wrong keys are counted."""
        issued = self.value("tokens_issued_total")
        self.assertEqual(self.value("authentications_failed_total"), 0)
        for key in ("wrong", KEY, KEY):
            credentials = {"auth": {"passwordCredentials": {"username": USER, "password": key}}}
            self.api.ask("POST", b"/v2.0/tokens", credentials, token=None)
        self.assertEqual(self.value("authentications_failed_total"), 1)
        self.assertEqual(self.value("tokens_issued_total"), issued, "the user had one already")

    def test_tellsStalls(self) -> None:
        """A process that stood still shows, with the time."""
        self.api.clock.advance(10)
        for _ in range(4):
            self.api.clock.advance(0.25)
        self.assertEqual(self.value("stalls_total"), 1)
        self.assertAlmostEqual(self.value("stalled_seconds_total"), 9.75, 3)

    def test_thereAreNotAsManyLinesAsTenants(self) -> None:
        """Of a thousand tenants, those with the most services have a metric, and there is the sum of all."""
        counts = {str(number): number for number in range(1, 1001)}
        self.patch(self.api.registry, "counts", lambda ofLocks=False: counts)
        tenants = {
            dict(labels)["tenant"]: value
            for (name, labels), value in self.samples().items()
            if name == "service_registry_tenant_services"
        }
        self.assertEqual((len(tenants), min(tenants.values())), (100, 901))
        self.assertEqual(self.value("services"), 500_500)

    def test_tellsTheSizeOfTheLog(self) -> None:
        """The size of the write-ahead log is there as soon as the store has one."""
        self.assertNotIn(b"\nservice_registry_store_wal_bytes ", self.ask().raw)
        self.api.store.statistics.walBytes = 4096
        self.assertEqual(self.value("store_wal_bytes"), 4096)

    def test_tellsVotes(self) -> None:
        """A node of a cluster shows how many services it has put to the vote; others do not."""
        self.assertNotIn(b"\nservice_registry_votes ", self.ask().raw)
        self.api.store.statistics.votes = lambda: 3
        self.assertEqual((self.value("votes"), self.value("heartbeats_waiting")), (3, 0))

    def test_histogramsAreWhatPrometheusExpects(self) -> None:
        """Each value is in every class whose end it does not exceed, and the last class has them all."""
        statistics = self.api.store.statistics
        for seconds in (0.0, 0.0005, 0.0006, 3.0, 1000.0):
            statistics.reads.add(seconds)
        statistics.commits.add(1000)
        statistics.isWritable = False
        read = {"operation": "read"}
        found = [self.value("store_seconds_bucket", le=end, **read) for end in ("0.0005", "0.001", "2.5", "5", "+Inf")]
        self.assertEqual(found, [2, 3, 3, 4, 5])
        self.assertEqual(self.value("store_seconds_count", **read), 5)
        self.assertAlmostEqual(self.value("store_seconds_sum", **read), 1003.0011)
        self.assertEqual(self.value("store_commit_operations_bucket", le="1000"), 1)
        self.assertEqual((self.value("store_up", **read), self.value("store_up", operation="write")), (1, 0))
