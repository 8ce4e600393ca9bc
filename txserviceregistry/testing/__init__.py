"""
FakeRegistry: a whole registry in memory, for the test suites of applications that use this library.

It is the real registry (its HTTP layer, its rules, a store in memory), reached without a socket, on a
:class:`~twisted.internet.task.Clock` that only the test moves::

    class MyTests(SynchronousTestCase):
        def test_isRegistered(self):
            fake = FakeRegistry()
            client = fake.client()
            service = RegisteredService(client, "web1", 30)
            service.startService()
            self.successResultOf(service.whenRegistered())
            fake.advance(3600)
            self.assertEqual(self.successResultOf(client.services.get("web1"))["id"], "web1")

A test can simulate everything that can go wrong between an application and a registry: see
:meth:`FakeRegistry.failNext` and the methods after it. A scripted fault happens to the next request of any client.
"""

from .fakeregistry import FakeRegistry
from .faults import Request

__all__ = ["FakeRegistry", "Request"]
