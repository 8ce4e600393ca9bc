"""
A test case for what endpoint strings share: over a registry in memory, on a reactor in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.discovery import endpoints
from txserviceregistry.discovery.endpoints import RegisteredPort
from txserviceregistry.settings import Settings
from txserviceregistry.testing import FakeRegistry


class Reactor(MemoryReactorClock):
    """A reactor in memory whose shutdown a test begins."""

    def __init__(self) -> None:
        super().__init__()
        self.beforeShutdown: list[Callable[[], Any]] = []

    def addSystemEventTrigger(self, phase: str, eventType: str, callable: Any, *args: Any, **kw: Any) -> Any:
        """See IReactorCore."""
        assert (phase, eventType) == ("before", "shutdown")
        self.beforeShutdown.append(callable)
        return callable

    def removeSystemEventTrigger(self, triggerID: Any) -> None:
        """See IReactorCore."""
        self.beforeShutdown.remove(triggerID)

    def callFromThread(self, callable: Any, *args: Any, **kw: Any) -> None:
        """See IReactorFromThreads."""
        callable(*args, **kw)


class SharedTestCase(SynchronousTestCase):
    """
    :ivar clients: those that were made for endpoint strings, closed ones included.
    """

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.reactor = Reactor()
        self.clients: list[Client] = []
        self.closed: list[Client] = []
        self.settings = Settings("fake", "fake-api-key", (self.fake.url,), ())
        self.patch(endpoints, "readSettings", lambda: self.settings)
        self.patch(endpoints, "Client", self.makeClient)
        self.own = self.fake.client()

    def makeClient(self, *, reactor: object, settings: Settings) -> Client:
        self.assertIs(reactor, self.reactor)
        client = self.fake.client()
        close = client.close

        def closing() -> Any:
            self.closed.append(client)
            return close()

        client.close = closing  # type: ignore[method-assign]  # to see it
        self.clients.append(client)
        return client

    def services(self) -> list[Any]:
        """The registered services."""
        result = self.own.services.list()
        self.fake.flush()
        return self.successResultOf(result)["values"]

    def stop(self, port: RegisteredPort) -> None:
        """Stop listening."""
        stopping = port.stopListening()
        self.fake.advance(1)
        self.successResultOf(stopping)
