"""The etcd store passes the suites that all stores and all shared stores pass."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tests.loopback import LoopbackTestCase
from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.unit.registry.stores.sharedsuite import SharedSuite
from tests.unit.registry.stores.storesuite import StoreSuite
from txserviceregistry.registry.stores.etcd.store import EtcdStore


class EtcdStoreSuiteTests(StoreSuite, TestCase):
    """The etcd store passes the suite, over a real etcd."""

    def makeStore(self) -> EtcdStore:
        return EtcdStore(reactor, [sharedEtcd()], prefix=newPrefix(), wallClock=self.wallClock)


class EtcdStoreSharedSuiteTests(SharedSuite, LoopbackTestCase):
    """The etcd store passes the suite of shared stores, over a real etcd."""

    def makeStore(self) -> EtcdStore:
        if not hasattr(self, "prefix"):
            self.prefix = newPrefix()
        return EtcdStore(reactor, [sharedEtcd()], prefix=self.prefix)

    def seconds(self) -> float:
        return time.monotonic()

    async def until(self, condition: Callable[[], object]) -> None:
        await LoopbackTestCase.until(self, condition)
