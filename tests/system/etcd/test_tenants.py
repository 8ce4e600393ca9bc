"""Tenants are strictly apart over etcd as well."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.trial.unittest import TestCase

from tests.unit.registry.test_tenants import TenantsTestsMixin
from txserviceregistry.registry.stores.etcd.store import EtcdStore
from txserviceregistry.registry.stores.interfaces import IStore

from .etcds import newPrefix, sharedEtcd
from .storecase import toleratesStalls

reactor: Any = globalReactor


class EtcdTenantsTests(TenantsTestsMixin, TestCase):
    """Over etcd."""

    def makeStore(self) -> IStore:
        toleratesStalls(self)
        return EtcdStore(reactor, [sharedEtcd()], prefix=newPrefix())
