"""
The pages beside the API, as bytes on the wire.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.registry.wire import Api, Connection, requestBytes
from txserviceregistry._version import __version__
from txserviceregistry.registry.health import Health
from txserviceregistry.registry.operations import Operations


class HealthPageTests(SynchronousTestCase):
    """``GET /health``."""

    def setUp(self) -> None:
        self.api = Api()
        self.api.resource.pages = Operations(Health(self.api.store, self.api.clock)).pages

    def ask(self, method: str = "GET", path: bytes = b"/health", **more: Any) -> Any:
        return self.api.ask(method, path, token=None, **more)

    def test_needsNoToken(self) -> None:
        """It is 200 while all is well, in the framing of all answers, and nothing that a cache may keep."""
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

    def test_head(self) -> None:
        """A load balancer that asks with HEAD gets the code, and no body."""
        connection = Connection(self.api)
        connection.send(requestBytes("HEAD", b"/health"))
        (reply,) = connection.replies(noBody=True)
        self.assertEqual((reply.code, reply.raw), (200, b""))

    def test_everythingElseIsAsBefore(self) -> None:
        """Other methods, and paths that are nearly the same, are no page."""
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
        """What comes after a question mark changes nothing."""
        self.assertEqual(self.ask(path=b"/health?verbose=1").code, 200)
