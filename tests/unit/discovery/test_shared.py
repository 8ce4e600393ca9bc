"""
The objects that endpoint strings share, from the first user to the last.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.discovery import endpoints
from txserviceregistry.discovery.endpoints import RegisteredEndpoint, RegisteredPort, closeShared, share
from txserviceregistry.errors import InvalidSettings, NoServiceAvailable, RegistrationEnded
from txserviceregistry.settings import Settings

from .sharedcase import SharedTestCase


class UserTests(SharedTestCase):
    """Sharing and releasing."""

    def test_oneForAll(self) -> None:
        """There is one client, and one directory, however many use them; they are closed with the last."""
        [shared] = {share(self.reactor, user) for user in range(3)}
        self.assertEqual(len(self.clients), 1)
        directory = shared.directory
        self.assertIs(shared.directory, directory)
        self.fake.advance(1)
        for user in (0, 0, 1, 1):
            self.successResultOf(shared.release(user))
            self.assertTrue(directory.running)
        self.assertIsNone(shared.ending)
        for _ in range(2):
            self.successResultOf(shared.release(2))
            self.assertFalse(directory.running)
            self.assertEqual(self.closed, self.clients)
        self.fake.advance(1)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])
        self.assertEqual(self.reactor.beforeShutdown, [])

    def test_theDirectoryIsThereForReaders(self) -> None:
        """Servers need no directory: it starts with its first use."""
        shared = share(self.reactor, "server")
        self.fake.advance(1)
        self.assertEqual(self.fake.requests, [])
        self.assertTrue(shared.directory.running)
        self.successResultOf(shared.release("server"))
        self.assertFalse(shared.directory.running)

    def test_otherSettings(self) -> None:
        """Other settings mean another registry, or another user: another client."""
        first = share(self.reactor, 1)
        self.settings = Settings("another user", "key", (self.fake.url,), ())
        second = share(self.reactor, 2)
        self.assertIsNot(first.client, second.client)
        self.successResultOf(first.release(1))
        self.assertEqual(self.closed, [first.client])
        self.successResultOf(second.release(2))
        self.assertEqual(self.closed, [first.client, second.client])

    def test_anotherKeyInTheSameFile(self) -> None:
        """A client takes up the key that its file has by now; one that was given a key is another one with another."""
        for path, clients in ((Path("/raxrc"), 1), (None, 2)):
            found = []
            for key in ("the key", "another key"):
                self.settings = Settings("fake", key, (self.fake.url,), (), raxrcPath=path)
                found.append(share(self.reactor, key))
            self.assertEqual(len({id(shared.client) for shared in found}), clients)
            for shared, key in zip(found, ("the key", "another key"), strict=True):
                self.successResultOf(shared.release(key))

    def test_notOnAReactorThatEnds(self) -> None:
        """A clock that is not a whole reactor is enough."""
        self.reactor = Clock()  # type: ignore[assignment]  # on purpose
        shared = share(self.reactor, "user")
        self.successResultOf(closeShared(self.reactor))
        self.assertIsNotNone(shared.ending)


class CloseTests(SharedTestCase):
    """Closing everything."""

    def listen(self, id: str = "web1") -> RegisteredPort:
        description = rf"registered:id={id}:endpoint=tcp\:8080\:interface=10.1.1.1"
        port = self.successResultOf(serverFromString(self.reactor, description).listen(Factory()))
        assert isinstance(port, RegisteredPort)
        self.fake.advance(1)
        return port

    def server(self, endpoint: Any) -> RegisteredEndpoint:
        return RegisteredEndpoint(lambda user: share(self.reactor, user), endpoint, "web1")

    def test_nothingThere(self) -> None:
        """If nothing is shared, there is nothing to close, on the global reactor neither."""
        self.successResultOf(closeShared(self.reactor))
        self.successResultOf(closeShared())

    def test_serversLeaveFirst(self) -> None:
        """Servers that still listen leave the registry, and only then the client is closed."""
        ports = [self.listen("web1"), self.listen("web2")]
        self.fake.pause()
        closing = closeShared(self.reactor)
        self.fake.advance(1)
        self.assertNoResult(closing)
        self.assertEqual(self.closed, [])
        self.fake.resume()
        self.fake.advance(1)
        self.successResultOf(closing)
        self.assertEqual((self.services(), self.closed), ([], self.clients))
        for port in ports:
            self.stop(port)

    def test_whileAServerLeaves(self) -> None:
        """A server that is just deregistering is waited for, and so is whatever is being closed already."""
        port = self.listen()
        self.fake.pause()
        stopping = port.stopListening()
        closings = [closeShared(self.reactor) for _ in range(2)]
        self.fake.advance(1)
        self.assertEqual(self.closed, [])
        self.fake.resume()
        self.fake.advance(1)
        for closing in [stopping, *closings]:
            self.successResultOf(closing)
        self.assertEqual((self.services(), self.closed), ([], self.clients))

    def test_withTheReactor(self) -> None:
        """When the reactor shuts down all is closed, in the same order."""
        self.listen()
        [shutdown] = self.reactor.beforeShutdown
        closing = shutdown()
        self.fake.advance(1)
        self.successResultOf(closing)
        self.assertEqual((self.services(), self.closed, self.reactor.beforeShutdown), ([], self.clients, []))

    def test_aTriggerThatIsGone(self) -> None:
        """A reactor that has removed the trigger, because its shutdown has begun, causes no error."""
        shared = share(self.reactor, "user")
        self.reactor.beforeShutdown.clear()
        self.successResultOf(shared.release("user"))
        self.assertEqual(self.closed, self.clients)

    def test_whatFailsToLeave(self) -> None:
        """A server that fails to leave is logged, and delays no other one."""

        def leave() -> None:
            raise RuntimeError("no")

        share(self.reactor, "user").users["user"] = leave
        self.successResultOf(closeShared(self.reactor))
        self.assertEqual(self.closed, self.clients)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_usedAgain(self) -> None:
        """Endpoints that are used afterwards begin anew."""
        self.listen()
        closing = closeShared(self.reactor)
        self.fake.advance(1)
        self.successResultOf(closing)
        self.stop(self.listen())
        self.assertEqual(len(self.clients), 2)
        self.assertEqual(self.closed, self.clients)

    def test_whileItIsOpening(self) -> None:
        """A server whose port opens while all is closed does not register, and closes its port."""
        opening: Deferred[Any] = Deferred()

        class Slow:
            def listen(self, factory: object) -> Deferred[Any]:
                return opening

        closed: list[str] = []

        class Port:
            def stopListening(self) -> Deferred[None]:
                closed.append("port")
                return succeed(None)

        listening = self.server(Slow()).listen(Factory())
        self.successResultOf(closeShared(self.reactor))
        opening.callback(Port())
        self.failureResultOf(listening, RegistrationEnded)
        self.assertEqual(closed, ["port"])

    def test_aPortThatIsTaken(self) -> None:
        """A server that can't listen releases its user."""

        class Broken:
            def listen(self, factory: object) -> Deferred[Any]:
                raise OSError("taken")

        self.failureResultOf(self.server(Broken()).listen(Factory()), OSError)
        self.assertEqual(self.closed, self.clients)


class ClientEndpointTests(SharedTestCase):
    """``registry:…``, from its first connect on."""

    def setUp(self) -> None:
        super().setUp()
        creating = self.own.services.create(
            "web1", 120, {"tags": ["web"], "metadata": {"host": "10.1.1.1", "port": "80"}}
        )
        self.fake.flush()
        self.successResultOf(creating)

    def connect(self, endpoint: IStreamClientEndpoint) -> Deferred[Any]:
        connecting = endpoint.connect(Factory.forProtocol(Protocol))
        self.fake.advance(1)
        return connecting

    def abandon(self, connecting: Deferred[Any]) -> None:
        connecting.cancel()
        self.failureResultOf(connecting, CancelledError)

    def test_connectsToWhatIsRegistered(self) -> None:
        """It connects to the service that is registered; there is one directory for all connects and all strings."""
        collectOnlyNew(self)
        endpoints = [clientFromString(self.reactor, text) for text in ("registry:web", "registry:web:timeout=2")]
        for endpoint in endpoints * 2:
            connecting = self.connect(endpoint)
            self.assertEqual(self.reactor.tcpClients[-1][:2], ("10.1.1.1", 80))
            self.reactor.tcpClients[-1][2].buildProtocol(None).makeConnection(object())
            self.successResultOf(connecting)
        self.assertEqual([client[3] for client in self.reactor.tcpClients], [5.0, 2.0] * 2)
        self.assertEqual((len(self.clients), self.closed), (1, []))
        endpoints.clear()
        del endpoint
        gc.collect()
        self.fake.advance(1)
        self.assertEqual(self.closed, self.clients)

    def test_closedWithItsLastUser(self) -> None:
        """Everything is closed when the last endpoint is garbage, and its connect has ended."""
        collectOnlyNew(self)
        connecting = self.connect(clientFromString(self.reactor, "registry:web"))
        gc.collect()
        self.assertEqual(self.closed, [])
        self.reactor.tcpClients[0][2].clientConnectionFailed(
            self.reactor.connectors[0], Failure(ConnectionRefusedError())
        )
        self.failureResultOf(connecting, NoServiceAvailable)
        del connecting
        gc.collect()
        self.fake.advance(1)
        self.assertEqual(self.closed, self.clients)

    def test_afterClosing(self) -> None:
        """An endpoint that is used again after closeShared begins anew."""
        endpoint = clientFromString(self.reactor, "registry:web")
        self.abandon(self.connect(endpoint))
        closing = closeShared(self.reactor)
        self.fake.advance(1)
        self.successResultOf(closing)
        self.abandon(self.connect(endpoint))
        self.assertEqual((len(self.clients), len(self.reactor.tcpClients)), (2, 2))
        closing = closeShared(self.reactor)
        self.fake.advance(1)
        self.successResultOf(closing)
        self.assertEqual(self.closed, self.clients)

    def test_unknownTags(self) -> None:
        """A tag without a service is NoServiceAvailable."""
        endpoint = clientFromString(self.reactor, "registry:mail")
        self.failureResultOf(self.connect(endpoint), NoServiceAvailable)


class SettingsTests(SynchronousTestCase):
    """Without settings."""

    def setUp(self) -> None:
        def readSettings() -> None:
            raise InvalidSettings("there are none")

        self.patch(endpoints, "readSettings", readSettings)

    def test_connecting(self) -> None:
        """Connecting fails with what is wrong with the settings."""
        endpoint = clientFromString(globalReactor, "registry:web")
        self.failureResultOf(endpoint.connect(Factory()), InvalidSettings)

    def test_listening(self) -> None:
        """Listening fails at once, before any port is opened."""
        endpoint = serverFromString(globalReactor, r"registered:id=web1:endpoint=tcp\:0")
        self.failureResultOf(endpoint.listen(Factory()), InvalidSettings)
