"""Watching keys of an etcd."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.web.client import Agent

from tests.system.etcd.etcds import newPrefix, sharedEtcd
from tests.unit.registry.stores.etcd.test_watch import WatchCase
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.http.pool import ConnectionPool, QueueingAgent
from txserviceregistry.registry.stores.etcd.gateway import Etcd
from txserviceregistry.registry.stores.etcd.keyvalues import encode, put


class WatchTests(WatchCase):
    """Over etcd."""

    def etcd(self) -> Etcd:
        """A real one."""
        pool = ConnectionPool(reactor, 2)
        self.addCleanup(pool.close)
        agent = QueueingAgent(Agent(reactor, pool=pool), 2)
        return Etcd(JSONTransport(agent, reactor, [sharedEtcd()], name="etcd"), reactor)  # type: ignore[arg-type]  # it keeps time

    async def test_overEtcd(self) -> None:
        """etcd itself notifies of changes from a revision on, a value of a megabyte included; and what is compacted."""
        etcd, prefix = self.etcd(), newPrefix()
        begun = await etcd.txn((), [put(f"{prefix}a", b"1")])
        self.watch(sharedEtcd(), begun.revision, prefix)
        await self.until(lambda: self.changes)
        await etcd.txn((), [put(f"{prefix}a", b"x" * 1_000_000)])
        done = await etcd.txn((), [put(f"{prefix}b", b"2"), {"request_delete_range": {"key": encode(f"{prefix}a")}}])
        await self.until(lambda: len(self.changes) == 4)
        self.assertEqual(len(self.changes[1][0].value), 1_000_000)
        self.assertEqual({now.key[-1]: isDeleted for now, isDeleted in self.changes[2:]}, {"a": True, "b": False})
        await etcd.compact(done.revision)
        await etcd.compact(done.revision)
        self.watch(sharedEtcd(), begun.revision, prefix)
        await self.until(lambda: self.why)
        self.assertIn("compacted", str(self.why[0]))
