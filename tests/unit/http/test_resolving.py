"""
Host names: own threads, the last known addresses, and what is reported while a name does not resolve.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Sequence
from socket import AF_INET, SOCK_STREAM, gaierror
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IAddress, IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from txserviceregistry import Client
from txserviceregistry.commands.wrapper.checks import Checker, makeProbe
from txserviceregistry.errors import ConnectionFailed, RequestTimedOut
from txserviceregistry.heartbeats.attempts import HealthCheckFailed
from txserviceregistry.http.agent import PATIENCE, ResolvingTimedOut, endpointTo, hostName

ONE, OTHER = IPv4Address("TCP", "192.0.2.1", 80), IPv4Address("TCP", "192.0.2.2", 80)


@implementer(IHostnameResolver)
class SlowNames:
    """A resolver that the application has installed, controlled by the test."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *rest: Any) -> Any:
        """See IHostnameResolver."""
        resolutionReceiver.resolutionBegan(None)
        self.asked.append(resolutionReceiver)

    def answer(self, *addresses: IAddress) -> None:
        """Answer the oldest lookup."""
        receiver = self.asked.pop(0)
        for address in addresses:
            receiver.addressResolved(address)
        receiver.resolutionComplete()


class SlowNamesTestCase(SynchronousTestCase):
    """A reactor in memory, with that resolver."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.names = SlowNames()
        self.reactor.installNameResolver(self.names)
        self.logged: list[LogLevel] = []

        def observe(event: Any) -> None:
            if event["log_namespace"].startswith("txserviceregistry"):
                self.logged.append(event["log_level"])

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def connect(self, timeout: float = 5.0, name: str = "name") -> Deferred[Any]:
        return endpointTo(self.reactor, name, 80, timeout).connect(Factory.forProtocol(Protocol))

    @property
    def tried(self) -> list[str]:
        """The addresses of its connection attempts."""
        return [host for host, *_ in self.reactor.tcpClients]


class HangingTests(SlowNamesTestCase):
    """Lookups that never end."""

    def test_anotherOneBeginsBesideIt(self) -> None:
        """When a lookup has hung for long, the next connection looks the name up anew, and all get its addresses."""
        first = self.connect(timeout=100)
        self.reactor.advance(20)
        self.connect(timeout=100)
        self.assertEqual(len(self.names.asked), 1)
        self.reactor.advance(20)
        self.connect(timeout=100)
        self.assertEqual(len(self.names.asked), 2)
        self.names.asked.pop(0)
        self.names.answer(ONE)
        self.assertEqual(self.tried, ["192.0.2.1"] * 3)
        self.assertNoResult(first)


class LastKnownTests(SlowNamesTestCase):
    """The last known addresses."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.names.answer(ONE)
        self.assertEqual(self.tried, ["192.0.2.1"])

    def test_aSlowLookup(self) -> None:
        """They are used after a short wait; the next connection does not wait at all."""
        self.connect()
        self.reactor.advance(PATIENCE - 0.01)
        self.assertEqual(self.tried, ["192.0.2.1"])
        self.reactor.advance(0.02)
        self.assertEqual(self.tried, ["192.0.2.1"] * 2)
        self.connect()
        self.assertEqual(self.tried, ["192.0.2.1"] * 3)
        self.assertEqual(len(self.names.asked), 1)
        self.assertEqual(self.logged, [])

    def test_aFailedLookup(self) -> None:
        """When the lookup fails, they are used at once."""
        self.connect()
        self.names.answer()
        self.assertEqual(self.tried, ["192.0.2.1"] * 2)

    def test_newAddresses(self) -> None:
        """The result of a lookup, in time or late, replaces them."""
        self.connect()
        self.reactor.advance(PATIENCE)
        self.names.answer(OTHER)
        self.assertEqual(self.tried, ["192.0.2.1"] * 2)
        self.connect()
        self.reactor.advance(PATIENCE)
        self.assertEqual(self.tried[2:], ["192.0.2.2"])

    def test_nothingIsLeft(self) -> None:
        """A connection that is cancelled while it waits leaves nothing on the reactor, and nothing is logged."""
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting)
        self.names.answer(ONE)
        self.assertEqual(self.tried, ["192.0.2.1"])


class UnknownTests(SlowNamesTestCase):
    """A host name without known addresses."""

    def test_oneLookupForAll(self) -> None:
        """Simultaneous connections share one lookup; cancelling one does not affect the others."""
        connecting = [self.connect() for _ in range(3)]
        self.assertEqual(len(self.names.asked), 1)
        connecting[0].cancel()
        self.failureResultOf(connecting[0])
        self.names.answer(ONE)
        self.assertEqual(self.tried, ["192.0.2.1"] * 2)

    def test_namesThatAreNoDomainNames(self) -> None:
        """A name with an underscore, as containers have, is one like any other if it has an address."""
        self.connect(name="my_app")
        self.names.answer(ONE)
        self.assertEqual(self.tried, ["192.0.2.1"])

    def test_takesTooLong(self) -> None:
        """Connecting fails after the timeout, and the error names the stage."""
        connecting = self.connect(timeout=3)
        self.reactor.advance(3)
        error = self.failureResultOf(connecting, ResolvingTimedOut).value
        self.assertEqual(str(error), "resolving the host name name took longer than 3 s")
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_requestsNameTheStage(self) -> None:
        """A request that times out while the name of the Auth API's host does not resolve says so."""
        client = Client("joe", "key", baseUrl="http://registry.test/v1.0", reactor=self.reactor)
        asking = client.services.get("web1", timeout=2)
        self.reactor.advance(2)
        error = self.failureResultOf(asking, RequestTimedOut).value
        self.assertIn("after 2 s, resolving the host name registry.test. Check this machine's name server", str(error))

    def test_requestsThatFailNameTheStage(self) -> None:
        """So does a request whose time to connect ends first."""
        urls = [f"http://registry{number}.test/v1.0" for number in range(2)]
        client = Client("joe", "key", baseUrl=urls, reactor=self.reactor, timeout=10)
        asking = client.services.get("web1")
        for _ in range(100):
            self.reactor.advance(0.11)
        error = self.failureResultOf(asking, ConnectionFailed, RequestTimedOut).value
        self.assertIn("resolving the host name registry", str(error))
        self.assertNotIn("server hangs", str(error))

    def test_checksNameTheStage(self) -> None:
        """The wrapper's checks too."""
        for check in ("tcp:name.test:80", "http://name.test/"):
            clock = Clock()
            told: list[str] = []

            def observe(event: Any, told: list[str] = told) -> None:
                if "reason" in event:
                    told.append(event["reason"])

            globalLogPublisher.addObserver(observe)
            self.addCleanup(globalLogPublisher.removeObserver, observe)
            probe = makeProbe(self.reactor, check)
            options = {"id": "web1", "check": check, "check-interval": 5.0, "check-timeout": 5.0, "rise": 1, "fall": 1}
            checker = Checker(options, probe, clock, lambda: None)
            checker.start()
            clock.pump([1.0] * 30)
            checker.stop()
            self.assertEqual(told, ["timed out after 5 s, resolving the host name name.test"])

    def test_checksOfAHostThatDoesNotRespond(self) -> None:
        """A check that ends while it connects says that too."""
        for check in ("tcp:name.test:80", "tcp:192.0.2.1:80"):
            checking = makeProbe(self.reactor, check)()
            if self.names.asked:
                self.names.answer(ONE)
            self.assertEqual(self.tried[-1], "192.0.2.1")
            checking.cancel()
            error = self.failureResultOf(checking, HealthCheckFailed).value
            self.assertEqual(str(error), "no response to the connection attempt")


class ThreadTests(TestCase):
    """The system's resolver, on a real reactor."""

    async def test_busyReactorThreads(self) -> None:
        """A host name is resolved while every thread of the reactor's pool is busy."""
        threads = getattr(reactor, "getThreadPool")().max  # noqa: B009 # the reactor's type has no such name
        over = threading.Event()
        busy = [deferToThread(over.wait, 60) for _ in range(threads)]
        try:
            addresses = await hostName(reactor, "localhost", 80).resolve().addTimeout(30, reactor)  # type: ignore[arg-type] # a module is a reactor
            self.assertTrue({address.host for address in addresses} & {"127.0.0.1", "::1"})  # type: ignore[attr-defined] # those of TCP
        finally:
            over.set()
            for each in busy:
                await each

    async def test_namesThatCanNotBeEncoded(self) -> None:
        """Invalid names have no address, like names that do not exist."""
        for name in ("a" * 70 + ".test", ".test", "a..test"):
            self.assertEqual(list(await hostName(reactor, name, 80).resolve()), [])
            with self.assertRaises(DNSLookupError):
                await endpointTo(reactor, name, 80, 5.0).connect(Factory.forProtocol(Protocol))

    async def test_aLookupThatIsImpossible(self) -> None:
        """A lookup that fails in any other way, because too many files are open for example, finds no address."""

        def lookUp(*args: Any) -> Sequence[Any]:
            raise OSError(errno.EMFILE, "too many open files")

        self.patch(socket, "getaddrinfo", lookUp)
        found = hostName(reactor, "impossible.test", 80).resolve().addTimeout(5, reactor)  # type: ignore[arg-type] # a module is a reactor
        self.assertEqual(list(await found), [])

    async def test_aHangingLookupHoldsUpNoOther(self) -> None:
        """Lookups of other names go on beside one that hangs; threads that run them do not delay the process's end."""
        over = threading.Event()
        daemons: list[bool] = []

        def lookUp(host: str, port: int, *rest: Any) -> Sequence[Any]:
            daemons.append(threading.current_thread().daemon)
            if host == "hangs.test":
                over.wait(60)
                raise gaierror("no such name")
            return [(AF_INET, SOCK_STREAM, 6, "", ("192.0.2.1", port))]

        self.patch(socket, "getaddrinfo", lookUp)
        hanging = hostName(reactor, "hangs.test", 80).resolve()
        try:
            for number in range(30):
                addresses = await hostName(reactor, f"name{number}.test", 80).resolve()
                self.assertEqual(list(addresses), [ONE])
        finally:
            over.set()
        self.assertEqual(list(await hanging), [])
        self.assertEqual(set(daemons), {True})
