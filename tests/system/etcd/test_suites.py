"""The etcd store passes the suites that all stores and all shared stores pass."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.system.etcd.storecase import toleratesStalls
from tests.unit.registry.stores.etcd.test_gateway import CLOCK, EtcdCase
from tests.unit.registry.stores.sharedsuite import SharedSuite
from tests.unit.registry.stores.storesuite import StoreSuite
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.util.deferred import returnsDeferred

# The most that the time advances from one look at etcd to the next, and the seconds between these.
_STEP = 0.2
_LOOKS = 0.05


class EtcdStoreSuiteTests(StoreSuite, TestCase):
    """The etcd store passes the suite, over a real etcd."""

    def makeStore(self) -> EtcdStore:
        toleratesStalls(self)
        return EtcdStore(reactor, [sharedEtcd()], prefix=newPrefix(), wallClock=self.wallClock)


class EtcdStoreSharedSuiteTests(SharedSuite, EtcdCase):
    """
    The etcd store passes the suite of shared stores, over a real etcd. The time goes on only while this process and
    etcd respond: an expiration is not late, nor a heartbeat, because the machine stood still for a moment.
    """

    @returnsDeferred
    async def setUp(self) -> None:
        toleratesStalls(self)
        self.prefix = newPrefix()
        self.asked = self.etcd(sharedEtcd())
        self.time, self.looked = 0.0, CLOCK.seconds()
        looks = LoopingCall(lambda: Deferred.fromCoroutine(self.look()))
        ended = looks.start(_LOOKS)
        self.addCleanup(lambda: ended)
        self.addCleanup(looks.stop)
        await SharedSuite.setUp(self)

    async def look(self) -> None:
        """Let the time go on, when etcd has answered."""
        await self.asked.get(f"{self.prefix}nothing")
        now = CLOCK.seconds()
        self.time += min(now - self.looked, _STEP)
        self.looked = now

    def makeStore(self) -> EtcdStore:
        return EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix)

    def seconds(self) -> float:
        return self.time

    async def until(self, condition: Callable[[], object]) -> None:
        await EtcdCase.until(self, condition)
