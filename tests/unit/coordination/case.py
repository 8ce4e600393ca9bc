"""The common parts of the tests of coordination."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.testing import FakeRegistry

NAME = "/billing/scheduler"


class CoordinationTestCase(SynchronousTestCase):
    """A registry in memory, on the test's clock, and clients of it."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.newClient()

    def newClient(self) -> Client:
        client = self.fake.client(random=lambda: 0.5)
        self.addCleanup(self.close, client)
        return client

    def close(self, client: Client) -> None:
        client.close()
        self.fake.advance(0)

    def result(self, deferred: Deferred[Any]) -> Any:
        """The result of a Deferred as soon as the responses have come."""
        self.fake.advance(0.01)
        return self.successResultOf(deferred)

    def failure(self, deferred: Deferred[Any], kind: type[Exception]) -> Any:
        """The error with which a Deferred fails as soon as the responses have come."""
        self.fake.advance(0.01)
        return self.failureResultOf(deferred, kind).value

    def sent(self, path: str) -> int:
        """How many requests for a path there were."""
        return sum(request.path.endswith(path) for request in self.fake.requests)
