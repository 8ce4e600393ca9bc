"""
The common parts of the tests of the registry's rules.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.registry.heldstore import HeldStore
from txserviceregistry.registry.core import Registry
from txserviceregistry.registry.faults import Fault
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.registry.model import NewService, Page
from txserviceregistry.registry.stores.memory import MemoryStore

NOW = 1_700_000_000.0
TENANT = "1234"


class RegistryCase(SynchronousTestCase):
    """
    A registry over a store whose answers can be held back, on a clock of its own.

    :ivar wallOffset: seconds that the wall clock is ahead of the reactor's.
    """

    limits = ResourceLimits()

    def setUp(self) -> None:
        self.clock = Clock()
        self.wallOffset = NOW
        self.memory = MemoryStore(wallClock=self.wallClock)
        self.successResultOf(self.memory.open())
        self.store = HeldStore(self.memory)
        self.registry = self.started()

    def started(self) -> Registry:
        """A registry over the same store, as after a restart of the process."""
        registry = Registry(self.store, clock=self.clock, wallClock=self.wallClock, limits=self.limits)  # type: ignore[arg-type]  # it passes everything on
        self.successResultOf(registry.start())
        self.addCleanup(registry.stop)
        return registry

    def wallClock(self) -> float:
        """Seconds since the epoch."""
        return self.clock.seconds() + self.wallOffset

    def pass_(self, seconds: float) -> None:
        """Time passes, as it does on a reactor that turns."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(0.25, end - self.clock.seconds()))

    def stepTo(self, seconds: float) -> None:
        """Time passes by less than a second, and no delayed call has had a turn yet."""
        self.clock.rightNow += seconds

    def create(self, id: str = "web1", timeout: int = 30, tenant: str = TENANT, **fields: Any) -> str:
        """Register a service; its token."""
        token = self.successResultOf(self.registry.create(tenant, NewService(id, timeout, **fields)))
        assert isinstance(token, str)
        return token

    def beat(self, token: str, id: str = "web1", tenant: str = TENANT) -> str:
        """A heartbeat that is taken; the next token."""
        following = self.successResultOf(self.registry.heartbeat(tenant, id, token))
        assert isinstance(following, str)
        return following

    def fault(self, deferred: Deferred[Any]) -> Fault:
        """The fault that it has failed with."""
        failure = self.failureResultOf(deferred, Fault)
        assert isinstance(failure.value, Fault)
        return failure.value

    def assertGone(self, deferred: Deferred[Any], id: str = "web1") -> None:
        """It has failed because there is no such service."""
        fault = self.fault(deferred)
        self.assertEqual(
            (fault.code, fault.type, fault.message, fault.details),
            (404, "notFoundError", "object does not exist", f'Object "Service" with key "{id}" does not exist'),
        )

    def assertUnavailable(self, deferred: Deferred[Any]) -> None:
        """It has failed because the store can't be reached."""
        fault = self.fault(deferred)
        self.assertEqual((fault.code, fault.type), (503, "systemFailureError"))

    def page(self, deferred: Deferred[Page]) -> Page:
        """The page that it has fired with."""
        page = self.successResultOf(deferred)
        assert isinstance(page, Page)
        return page

    def ids(self, tenant: str = TENANT, tag: str | None = None) -> list[str]:
        """The ids of all services, as a listing shows them."""
        return [value["id"] for value in self.page(self.registry.list(tenant, None, 1000, tag)).values]

    def events(self, tenant: str = TENANT) -> list[tuple[str, str]]:
        """The type, and the id of the service or value, of each event of the last hour."""
        return [
            (event["type"], event["payload"].get("id") or event["payload"]["configuration_value_id"])
            for event in self.page(self.registry.feed.list(tenant, None, 1000)).values
        ]

    def stored(self, tenant: str = TENANT) -> list[str]:
        """The ids of the services that are in the store, expired ones included."""
        services = self.successResultOf(self.memory.allServices())
        return sorted(service.id for service in services if service.tenant == tenant)
