"""
The tests that every shared store passes: the real one over etcd, and the fake in memory that others are tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import gatherResults
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.unit.registry.stores.sharedlocksuite import SharedLockSuite
from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.interfaces import (
    ISharedStore,
    IStoreListener,
    NoSuchObject,
    ServiceRecord,
    ServiceSummary,
    StoreUnavailable,
)
from txserviceregistry.util.deferred import returnsDeferred

__all__ = ["Listener", "SharedSuite"]

T = "1"
UNKNOWN = "00000000-0000-11ee-8000-000000000000"


@implementer(IStoreListener)
class Listener:
    """
    Notes what a store notifies of, and keeps deadlines as a registry does.

    :param seconds: the time.
    :ivar heard: the notifications in their order.
    :ivar deadlines: of the services that are known, by tenant and incarnation.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.deadlines: dict[tuple[str, str], float] = {}
        self._seconds = seconds
        self._timeouts: dict[tuple[str, str], float] = {}
        self._waiting: set[tuple[str, str]] = set()

    def _keep(self, service: ServiceSummary) -> None:
        registration = service.tenant, service.incarnation
        if self._timeouts.get(registration) != service.heartbeatTimeout:
            self._timeouts[registration] = service.heartbeatTimeout
            self.heartbeat(registration)

    def heartbeat(self, registration: tuple[str, str]) -> None:
        """A heartbeat is acknowledged."""
        self.deadlines[registration] = self._seconds() + self._timeouts[registration]
        self._waiting.add(registration)

    def appeared(self, service: ServiceSummary) -> None:
        self.heard.append(("appeared", service.id, service.incarnation, service.heartbeatTimeout))
        if service.isForced:
            self.heard.append(("forced", service.id, service.incarnation))
        self._keep(service)

    def renew(self, registration: tuple[str, str]) -> None:
        self.heard.append(("renew", registration[1]))
        self.heartbeat(registration)

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self.heard.append(("vanished", id, incarnation))
        self.deadlines.pop((tenant, incarnation), None)

    def eventAdded(self, tenant: str, type: str | None) -> None:
        self.heard.append(("eventAdded", tenant, type))

    def synchronized(self, services: Sequence[ServiceSummary]) -> None:
        self.heard.append(("synchronized", sorted(each.id for each in services)))
        for each in services:
            self._keep(each)

    def suspend(self) -> None:
        self.heard.append(("suspend",))

    def renewAll(self) -> None:
        for registration in list(self.deadlines):
            self.heartbeat(registration)

    def secondsLeft(self, registration: tuple[str, str]) -> float:
        return self.deadlines.get(registration, 0.0) - self._seconds()

    def timeout(self, registration: tuple[str, str]) -> float:
        return self._timeouts[registration] if registration in self.deadlines else 0.0

    def due(self, count: int) -> dict[tuple[str, str], int]:
        due = [each for each in self._waiting if each in self.deadlines and self.secondsLeft(each) <= 0][:count]
        self._waiting.difference_update(due)
        return dict.fromkeys(due, 5)

    def lookAgain(self, registration: tuple[str, str]) -> None:
        self._waiting.add(registration)

    def leaveTo(self, registration: tuple[str, str], seconds: float) -> None:
        if self.secondsLeft(registration) > 0:
            self._waiting.add(registration)

    def expired(self, registration: tuple[str, str]) -> None:
        self.heard.append(("expired", registration[1]))
        self.deadlines.pop(registration, None)

    def ended(self, registration: tuple[str, str]) -> None:
        self.deadlines.pop(registration, None)


class SharedSuite(SharedLockSuite):
    """
    Mix this into a trial TestCase.

    :ivar a: one registry's view of the store, and
    :ivar b: another's. Both have joined, each with a :class:`Listener` of its own.
    """

    a: Any
    b: Any
    listeners: list[Listener]

    def makeStore(self) -> Any:
        """One more view of the one store, not open."""
        raise NotImplementedError

    def seconds(self) -> float:
        """The time by which services expire."""
        raise NotImplementedError

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until *condition* is true."""
        raise NotImplementedError

    @returnsDeferred
    async def setUp(self) -> None:
        self.listeners = []
        self.stores: list[Any] = []
        self.a, self.b = await self.opened(), await self.opened()

    @returnsDeferred
    async def tearDown(self) -> None:
        await gatherResults([store.close() for store in self.stores])

    async def opened(self) -> Any:
        store = self.makeStore()
        self.stores.append(store)
        await store.open()
        self.listeners.append(Listener(self.seconds))
        await self.joined(store, self.listeners[-1])
        return store

    async def joined(self, store: Any, listener: Listener) -> None:
        """Let a store join."""
        joining: list[Any] = []
        store.join(listener).addBoth(joining.append)
        await self.until(lambda: joining)

    async def create(self, store: Any, id: str = "web", timeout: int = 30) -> ServiceRecord:
        return await store.createService(T, NewService(id, timeout), 1000)

    async def notifies(self, number: int, *what: Any) -> None:
        """Wait until this listener has been notified of that."""
        await self.until(lambda: what in self.listeners[number].heard)

    async def refuses(self, kind: type[Exception], work: Any) -> None:
        try:
            await work
        except kind:
            return
        raise AssertionError(f"{kind.__name__} was expected")

    async def ticks(self, condition: Callable[[], object]) -> None:
        """Let time pass, with the ticks of all registries, until *condition* is true."""
        latest = self.seconds()

        def isTrue() -> object:
            nonlocal latest
            if self.seconds() - latest >= 0.25:
                latest = self.seconds()
                for store in self.stores:
                    store.tick()
            return condition()

        await self.until(isTrue)

    async def types(self, store: Any) -> list[str]:
        return [each.type for each in await store.listEvents(T, 0, 100, None)]

    # -- the tests

    def test_providesTheInterface(self) -> None:
        """The store has all operations, with the arguments that they take."""
        verifyObject(ISharedStore, self.a)

    async def test_everyChangeIsAtOnceThereForAll(self) -> None:
        """A change that one has acknowledged, another one reads in the same moment."""
        made = await self.create(self.a)
        assert (await self.b.getService(T, "web")).incarnation == made.incarnation
        await self.b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
        assert (await self.a.getService(T, "web")).tags == ("x",)
        await self.b.removeService(T, "web", made.incarnation)
        await self.refuses(NoSuchObject, self.a.getService(T, "web"))
        assert await self.types(self.a) == ["service.join", "service.update", "service.remove"]

    async def test_notifiesAllOfChanges(self) -> None:
        """All are notified within moments of services that come, change and go, and of new events."""
        made = await self.create(self.a)
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 30)
            await self.notifies(number, "eventAdded", T, "service.join")
        await self.b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 60)
            await self.notifies(number, "eventAdded", T, "service.update")
        await self.b.removeService(T, "web", made.incarnation)
        for number in range(2):
            await self.notifies(number, "vanished", "web", made.incarnation)
        for listener in self.listeners:
            listener.heard.clear()
        await self.a.setValue(T, "key", "value", 10)
        for number in range(2):
            await self.notifies(number, "eventAdded", T, "configuration_value.update")

    async def test_theIncarnationThatEndsIsNamed(self) -> None:
        """Removed and created again, the service that vanishes is the old one, whichever creates the new one."""
        for first, second in ((self.a, self.b), (self.b, self.a)):
            old = await self.create(first)
            await second.removeService(T, "web", old.incarnation)
            new = await self.create(second)
            for number in range(2):
                await self.notifies(number, "vanished", "web", old.incarnation)
                await self.notifies(number, "appeared", "web", new.incarnation, 30)
                assert ("vanished", "web", new.incarnation) not in self.listeners[number].heard
            await second.removeService(T, "web", new.incarnation)

    async def test_heartbeatsOfOpenServicesPass(self) -> None:
        """While no vote is about a service, its heartbeats are admitted at once, and nothing is closed."""
        made = await self.create(self.a)
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 30)
        for store in (self.a, self.b):
            assert store.isValid
            assert made.incarnation not in store.closed(T)
            assert await store.admit(T, made.incarnation)

    async def test_anExpirationIsPersistedOnce(self) -> None:
        """A service without heartbeats expires for all, not early, and at most a second late; one event reports it."""
        began = self.seconds()
        made = await self.create(self.a, timeout=3)
        await self.create(self.a, "kept", 30)
        await self.notifies(1, "appeared", "web", made.incarnation, 3)
        await self.ticks(lambda: self.seconds() - began > 1)
        sent = self.seconds()
        self.listeners[1].heartbeat((T, made.incarnation))
        await self.ticks(lambda: any(("vanished", "web", made.incarnation) in each.heard for each in self.listeners))
        assert 3 <= self.seconds() - sent < 4.5
        # Another registry's watch may show the end before the one that made it has its response.
        await self.ticks(lambda: any(("expired", made.incarnation) in each.heard for each in self.listeners))
        assert sum(("expired", made.incarnation) in each.heard for each in self.listeners) == 1
        assert await self.types(self.b) == ["service.join", "service.join", "service.timeout"]
        assert [each.id for each in await self.b.listServices(T, None, 10, None, ())] == ["kept"]

    async def test_aHeartbeatElsewhereKeepsAService(self) -> None:
        """A service whose heartbeats one registry receives does not expire by the deadline that another one knows."""
        made = await self.create(self.a, timeout=3)
        await self.notifies(1, "appeared", "web", made.incarnation, 3)
        began = latest = self.seconds()

        def beats() -> bool:
            nonlocal latest
            if self.seconds() - latest >= 1:
                latest = self.seconds()
                self.listeners[1].heartbeat((T, made.incarnation))
            return self.seconds() - began > 6

        await self.ticks(beats)
        assert await self.types(self.b) == ["service.join"]

    async def test_aTouchMakesAnExpirationFail(self) -> None:
        """A heartbeat that arrives while a vote is under way is admitted, and the service does not expire."""
        made = await self.create(self.a, timeout=3)
        await self.notifies(1, "appeared", "web", made.incarnation, 3)
        await self.ticks(lambda: made.incarnation in self.a.closed(T))
        admitted: list[bool] = []

        def answered(isThere: bool) -> None:
            admitted.append(isThere)
            if isThere:
                self.listeners[0].heartbeat((T, made.incarnation))

        self.a.admit(T, made.incarnation).addCallback(answered)
        await self.ticks(lambda: admitted)
        began = self.seconds()
        await self.ticks(lambda: self.seconds() - began > 1.5)
        # Either the heartbeat came in time, or the service had expired, and then it was not admitted.
        types = await self.types(self.a)
        assert admitted == ["service.timeout" not in types], (admitted, types)

    async def test_anotherTimeoutIsAFullOne(self) -> None:
        """A timeout that was changed on one counts on all."""
        made = await self.create(self.a, timeout=3)
        await self.notifies(1, "appeared", "web", made.incarnation, 3)
        began = self.seconds()
        await self.a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 60)
        await self.ticks(lambda: self.seconds() - began > 5)
        assert await self.types(self.b) == ["service.join", "service.update"]

    async def test_knowsWhetherThereWasEverAUser(self) -> None:
        """A store is new until it has had its first user, whichever added it, and not again when the user is gone."""
        assert (self.a.isNew, self.b.isNew) == (True, True)
        await self.a.addUser("joe", "hash", None)
        await self.a.removeUser("joe")
        later = await self.opened()
        assert not later.isNew

    async def test_closedItTellsNothing(self) -> None:
        """A view that is closed answers nothing, and its listener hears no more; the others go on."""
        made = await self.create(self.a)
        await self.notifies(1, "appeared", "web", made.incarnation, 30)
        await self.b.close()
        assert not self.b.isValid
        for work in (self.b.admit(T, made.incarnation), self.b.getService(T, "web")):
            await self.refuses(StoreUnavailable, work)
        self.listeners[1].heard.clear()
        await self.a.removeService(T, "web", made.incarnation)
        await self.notifies(0, "vanished", "web", made.incarnation)
        assert self.listeners[1].heard == []
