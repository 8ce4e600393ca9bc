"""
Which server of several is asked.
"""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.http.jsontransport import Servers


class ServersTests(SynchronousTestCase):
    """Three servers, as one client sees them."""

    def setUp(self) -> None:
        self.clock = Clock()

    def servers(self, count: int = 3, draw: float = 0.0) -> Servers:
        return Servers(count, self.clock, lambda: draw)

    def first(self, servers: Servers, mayTry: bool = True) -> int:
        return servers.order(mayTry=mayTry)[0]

    def test_oneServerIsAskedWhateverHappens(self) -> None:
        """With a single one there is no choice, however often it has failed."""
        servers = self.servers(1)
        for _ in range(3):
            servers.failed(0)
            self.assertEqual(servers.order(mayTry=True), [0])

    def test_clientsSpread(self) -> None:
        """Clients begin with all servers alike."""
        draw = random.Random(20261124).random
        begins = [Servers(3, self.clock, draw).current for _ in range(300)]
        for server in range(3):
            self.assertLess(abs(begins.count(server) - 100), 30)

    def test_staysWithTheOneThatWorks(self) -> None:
        """After a failure the next one is asked first, and goes on to be while it works."""
        servers = self.servers()
        servers.failed(0)
        servers.worked(1)
        self.clock.advance(15)
        self.assertEqual(servers.order(mayTry=True), [1, 2, 0])

    def test_prefersThoseThatHaveNotFailed(self) -> None:
        """One that has failed a moment ago comes last, wherever it stands; after its penalty it counts as any other."""
        servers = self.servers()
        servers.failed(1)
        self.assertEqual(servers.order(mayTry=True), [0, 2, 1])
        self.clock.advance(10.1)
        self.assertEqual(servers.order(mayTry=True), [0, 1, 2])

    def test_goesBackAfterAWhile(self) -> None:
        """The server that a client began with is tried again by one request, and is the client's own if it works."""
        servers = self.servers()
        servers.failed(0)
        servers.worked(1)
        self.clock.advance(19)
        self.assertEqual(self.first(servers), 1)
        self.clock.advance(2)
        self.assertEqual(self.first(servers), 0)
        # The others don't wait for it.
        self.assertEqual(self.first(servers), 1)
        servers.worked(0)
        self.assertEqual(self.first(servers), 0)

    def test_doesNotGoBackToOneThatIsStillAway(self) -> None:
        """A server that fails when it is tried again leaves the client where it was, until the next time."""
        servers = self.servers()
        servers.failed(0)
        servers.worked(1)
        self.clock.advance(21)
        self.assertEqual(self.first(servers), 0)
        servers.failed(0)
        servers.worked(1)
        self.assertEqual(self.first(servers), 1)
        self.clock.advance(21)
        self.assertEqual(self.first(servers), 0)

    def test_whatMayNotBeRepeatedTriesNothing(self) -> None:
        """A request that can't be sent twice is never the one that finds out whether a server is back."""
        servers = self.servers()
        servers.failed(0)
        servers.worked(1)
        self.clock.advance(1000)
        self.assertEqual(self.first(servers, mayTry=False), 1)

    def test_clientsGoBackOneAfterTheOther(self) -> None:
        """Of a thousand clients of a server that is back, no second sees more than a few."""
        draw = random.Random(20261124).random
        clients = [Servers(3, self.clock, draw) for _ in range(1000)]
        away = [servers for servers in clients if servers.current == 0]
        for servers in away:
            servers.failed(0)
        returned = []
        for _ in range(90):
            self.clock.advance(1)
            back = [servers for servers in away if self.first(servers) == 0 and servers.current != 0]
            for servers in back:
                servers.worked(0)
            returned.append(len(back))
        self.assertEqual(sum(returned), len(away))
        self.assertLess(max(returned), len(away) / 20)
