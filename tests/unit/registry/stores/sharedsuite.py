"""
The tests that every shared store passes: the real one over etcd, and the fake in memory that others are tested with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface import implementer
from zope.interface.verify import verifyObject

from txserviceregistry.registry.model import NewService, ServiceChanges
from txserviceregistry.registry.stores.interfaces import (
    Expiration,
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
    Notes what a store notifies of.

    :ivar calls: that, in its order.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def appeared(self, service: ServiceSummary) -> None:
        self.calls.append(("appeared", service.id, service.incarnation, service.heartbeatTimeout))

    def vanished(self, tenant: str, id: str, incarnation: str) -> None:
        self.calls.append(("vanished", id, incarnation))

    def eventAdded(self, tenant: str) -> None:
        self.calls.append(("eventAdded", tenant))

    def lost(self) -> None:
        self.calls.append(("lost",))

    def synchronized(self, services: Sequence[ServiceSummary], wasLost: bool) -> None:
        self.calls.append(("synchronized", sorted(each.id for each in services), wasLost))


class SharedSuite:
    """
    Mix this into a trial TestCase.

    :ivar a: one registry's view of the store, and
    :ivar b: another's. Both are open, with a :class:`Listener` of their own.
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
        await store.allServices()
        self.listeners.append(Listener())
        store.listen(self.listeners[-1])
        return store

    async def create(self, store: Any, id: str = "web", timeout: int = 30) -> ServiceRecord:
        return await store.createService(T, NewService(id, timeout), 1000)

    async def notifies(self, number: int, *what: Any) -> None:
        """Wait until this listener has been notified of that."""
        await self.until(lambda: what in self.listeners[number].calls)

    async def refuses(self, kind: type[Exception], work: Any) -> None:
        try:
            await work
        except kind:
            return
        raise AssertionError(f"{kind.__name__} was expected")

    async def left(self, store: Any, made: ServiceRecord) -> float:
        seconds: float = await store.secondsLeft(T, made.id, made.incarnation)
        return seconds

    async def expired(self, store: Any, made: ServiceRecord) -> None:
        """Wait until a service's deadline has surely passed, as this store sees it."""
        seconds = [0.0]
        asking: list[Deferred[Any]] = []

        def answered(left: float) -> None:
            asking.clear()
            seconds[0] = left

        def isExpired() -> bool:
            if not asking and seconds[0] >= 0:
                work = store.secondsLeft(T, made.id, made.incarnation)
                asking.append(work)
                work.addCallback(answered)
            return seconds[0] < 0

        await self.until(isExpired)

    async def types(self, store: Any) -> list[str]:
        return [each.type for each in await store.listEvents(T, 0, 100, None)]

    # -- the tests

    def test_providesTheInterface(self) -> None:
        """The store has all operations, with the arguments that they take."""
        verifyObject(ISharedStore, self.a)

    async def test_everyChangeIsAtOnceThereForAll(self) -> None:
        """A change that one has made, another one reads in the same moment."""
        made = await self.create(self.a)
        assert (await self.b.getService(T, "web")).incarnation == made.incarnation
        await self.b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
        assert (await self.a.getService(T, "web")).tags == ("x",)
        await self.b.removeService(T, "web", made.incarnation)
        await self.refuses(NoSuchObject, self.a.getService(T, "web"))
        assert await self.types(self.a) == ["service.join", "service.remove"]

    async def test_notifiesAllOfChanges(self) -> None:
        """All are notified within moments of services that come, change and go, and of new events."""
        made = await self.create(self.a)
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 30)
            await self.notifies(number, "eventAdded", T)
        await self.b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for number in range(2):
            await self.notifies(number, "appeared", "web", made.incarnation, 60)
        await self.b.removeService(T, "web", made.incarnation)
        for number in range(2):
            await self.notifies(number, "vanished", "web", made.incarnation)
        for listener in self.listeners:
            listener.calls.clear()
        await self.a.setValue(T, "key", "value", 10)
        for number in range(2):
            await self.notifies(number, "eventAdded", T)

    async def test_theIncarnationThatEndsIsNamed(self) -> None:
        """Removed and created again, the service that vanishes is the old one, whichever creates the new one."""
        for first, second in ((self.a, self.b), (self.b, self.a)):
            old = await self.create(first)
            await second.removeService(T, "web", old.incarnation)
            new = await self.create(second)
            for number in range(2):
                await self.notifies(number, "vanished", "web", old.incarnation)
                await self.notifies(number, "appeared", "web", new.incarnation, 30)
                assert ("vanished", "web", new.incarnation) not in self.listeners[number].calls
            assert await first.heartbeat(T, "web", new.incarnation)
            await second.removeService(T, "web", new.incarnation)

    async def test_heartbeatsAreForOneIncarnation(self) -> None:
        """Each takes heartbeats of an incarnation that is there, whichever created it; of another one none does."""
        made = await self.create(self.a)
        for store in (self.a, self.b):
            assert await store.heartbeat(T, "web", made.incarnation)
            assert not await store.heartbeat(T, "web", UNKNOWN)
            assert not await store.heartbeat(T, "unknown", made.incarnation)
        await self.a.removeService(T, "web", made.incarnation)
        again = await self.create(self.a)
        for store in (self.a, self.b):
            assert not await store.heartbeat(T, "web", made.incarnation)
            assert await store.heartbeat(T, "web", again.incarnation)

    async def test_whatIsLeftIsNeverTooMuch(self) -> None:
        """All say how long a service has at the least; of one that is not there, nothing."""
        made = await self.create(self.a)
        for store in (self.a, self.b):
            left = await self.left(store, made)
            assert 25 <= left <= 30, left
            assert await store.secondsLeft(T, "web", UNKNOWN) < 0
            assert await store.secondsLeft(T, "unknown", UNKNOWN) < 0
        await self.a.removeService(T, "web", made.incarnation)
        for store in (self.a, self.b):
            assert await self.left(store, made) < 0

    async def test_anotherTimeoutIsAFullOne(self) -> None:
        """A timeout that was changed on one counts on all from that moment on; so do heartbeats after it."""
        made = await self.create(self.a, timeout=3)
        assert await self.b.heartbeat(T, "web", made.incarnation)
        await self.a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for store in (self.b, self.a):
            # One that has not been notified yet knows of less.
            assert 0 <= await self.left(store, made) <= 60
            assert await store.heartbeat(T, "web", made.incarnation)
        for number, store in enumerate((self.a, self.b)):
            await self.notifies(number, "appeared", "web", made.incarnation, 60)
            left = await self.left(store, made)
            assert 55 <= left <= 60, left

    async def test_anExpirationIsFoundByAllAndPersistedOnce(self) -> None:
        """A deadline passes for all at the same time, not early, and at most a second late; it is one event."""
        began = self.seconds()
        made = await self.create(self.a, timeout=3)
        kept = await self.create(self.a, "kept", 30)
        await self.until(lambda: self.seconds() - began > 1)
        sent = self.seconds()
        assert await self.b.heartbeat(T, "web", made.incarnation)
        taken = self.seconds()
        await self.expired(self.a, made)
        assert self.seconds() - sent >= 3
        await self.expired(self.b, made)
        # The store returns whole seconds, and takes a while to do so.
        assert self.seconds() - taken < 4.5
        expiration = Expiration(T, "web", made.incarnation, 5)
        await gatherResults([store.expireServices([expiration]) for store in (self.a, self.b, self.a)])
        for number in range(2):
            await self.notifies(number, "vanished", "web", made.incarnation)
        assert await self.types(self.b) == ["service.join", "service.join", "service.timeout"]
        assert [each.id for each in await self.b.listServices(T, None, 10, None, ())] == ["kept"]
        assert not await self.a.heartbeat(T, "web", made.incarnation)
        assert await self.a.heartbeat(T, "kept", kept.incarnation)

    async def test_knowsWhetherThereWasEverAUser(self) -> None:
        """A store is new until it has had its first user, whichever added it, and not again when the user is gone."""
        assert (self.a.isNew, self.b.isNew) == (True, True)
        await self.a.addUser("joe", "hash", None)
        await self.a.removeUser("joe")
        later = await self.opened()
        assert not later.isNew

    async def test_closedItNotifiesNoMore(self) -> None:
        """A view that is closed fails, and its listener is not notified any more; the others go on."""
        made = await self.create(self.a)
        await self.notifies(1, "appeared", "web", made.incarnation, 30)
        await self.b.close()
        for work in (
            self.b.heartbeat(T, "web", made.incarnation),
            self.left(self.b, made),
            self.b.getService(T, "web"),
        ):
            await self.refuses(StoreUnavailable, work)
        self.listeners[1].calls.clear()
        assert await self.a.heartbeat(T, "web", made.incarnation)
        await self.a.removeService(T, "web", made.incarnation)
        await self.notifies(0, "vanished", "web", made.incarnation)
        assert self.listeners[1].calls == []
