"""The wrapper's checks: when they look, what they find, and what the log says of it."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail, succeed
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Client
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from tests.certificates import commonHolder
from tests.loopback import Call, LoopbackTestCase
from txserviceregistry.commands.wrapper.checks import Checker, makeProbe
from txserviceregistry.heartbeats.attempts import HealthCheckFailed

reactor: Any = globalReactor


class CheckerTests(SynchronousTestCase):
    """A Checker on a clock of the test's own, and a probe that does as the test says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.looks: list[float] = []
        self.result: Any = True
        self.passes = 0
        self.lines: list[str] = []

        def observe(event: Any) -> None:
            if event["log_namespace"].startswith("txserviceregistry") and event["log_level"].name != "debug":
                self.lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def probe(self) -> Deferred[bool]:
        self.looks.append(self.clock.seconds())
        if self.result is None:
            return Deferred()
        return succeed(True) if self.result is True else fail(HealthCheckFailed(self.result))

    def passed(self) -> None:
        self.passes += 1

    def checker(self, interval: float = 5, **options: int) -> Checker:
        given = {"id": "web1", "check": "tcp:8000", "check-interval": interval, "check-timeout": 2.0}
        checker = Checker({"rise": 1, "fall": 1, **given, **options}, self.probe, self.clock, self.passed)
        self.addCleanup(checker.stop)
        checker.start()
        return checker

    def pass_(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds / 0.05))

    def test_looksMoreOftenBeforeTheFirstPass(self) -> None:
        """Every half a second, and at --check-interval from the first pass on, passing or not."""
        self.result = "connection refused"
        checker = self.checker()
        self.pass_(20)
        self.assertIn(len(self.looks), range(38, 42))
        self.result = True
        self.pass_(0.5)
        self.assertEqual((checker.passing, self.passes), (True, 1))
        for result in (True, "connection refused"):
            self.result = result
            self.looks.clear()
            self.pass_(50)
            self.assertIn(len(self.looks), (9, 10))
        self.assertEqual((checker.passing, self.passes), (False, 1))

    def test_aShortIntervalIsKept(self) -> None:
        """An interval of less than half a second is not made longer."""
        self.result = "connection refused"
        self.checker(0.2)
        self.pass_(10)
        self.assertGreater(len(self.looks), 40)

    def test_aProgramMayTakeItsTimeToStart(self) -> None:
        """A check that fails in the first ten seconds only is not logged."""
        self.result = "connection refused"
        self.checker()
        self.pass_(9)
        self.result = True
        self.pass_(60)
        self.assertEqual((self.passes, self.lines), (1, []))

    def test_oneLineWhenItBeginsAndOneWhenItEnds(self) -> None:
        """The first has the reason; at the start what waits is the registration, afterwards the heartbeats."""
        self.result = "connection refused"
        self.checker()
        self.pass_(100)
        self.result = True
        self.pass_(10)
        self.result = "HTTP status 503"
        self.pass_(300)
        self.result = True
        self.pass_(10)
        refused, registered, unavailable, well = self.lines
        self.assertEqual(
            refused, "Service web1: health check tcp:8000 failed: connection refused; registration suspended"
        )
        self.assertRegex(registered, r"health check tcp:8000 passed after \d+\.\d s; registration resumed$")
        self.assertEqual(
            unavailable, "Service web1: health check tcp:8000 failed: HTTP status 503; heartbeats suspended"
        )
        self.assertRegex(well, r"passed after 300\.\d s; heartbeats resumed$")

    def test_aLookThatHangs(self) -> None:
        """It counts as failed after --check-timeout, and the next look follows."""
        self.checker()
        self.result = None
        self.pass_(60)
        self.assertGreater(len(self.looks), 10)
        self.assertEqual(
            self.lines, ["Service web1: health check tcp:8000 failed: timed out after 2 s; heartbeats suspended"]
        )

    def test_severalChecksInARow(self) -> None:
        """With --rise and --fall a state changes only after as many checks in a row with the other result."""
        results = [True, True, "refused", True, True, True, "refused", True, "refused", "refused", True, True, True]
        self.result = results[0]
        checker = self.checker(1, rise=3, fall=2)
        states = ["+" if checker.passing else "-"]
        for result in results[1:]:
            self.result = result
            while len(self.looks) == len(states):
                self.pass_(0.05)
            states.append("+" if checker.passing else "-")
        self.assertEqual(("".join(states), self.passes), ("-----++++---+", 1))

    def test_stopLeavesNothing(self) -> None:
        """Stopped during a look or between two, nothing is left on the reactor, and nothing logged."""
        for result in (None, True):
            self.result = result
            self.checker().stop()
            self.assertEqual((self.clock.getDelayedCalls(), self.lines), ([], []))


class ProbeTests(LoopbackTestCase):
    """Probes of a real port."""

    def listen(self, factory: Any) -> int:
        port = IReactorTCP(reactor).listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        number: int = port.getHost().port
        return number

    async def reasonFor(self, check: str) -> str:
        try:
            await makeProbe(reactor, check)()
        except HealthCheckFailed as failed:
            return str(failed)
        return ""

    async def test_reasons(self) -> None:
        """A refused connection, an HTTP status, a connection that ends early: each in standard words."""
        free = self.unusedUrl().rpartition(":")[2]
        site = Resource()
        site.putChild(b"", Resource())
        web = self.listen(Site(site))
        closing = self.listen(Factory.forProtocol(_Closing))
        self.assertEqual(await self.reasonFor(f"tcp:{free}"), "connection refused")
        self.assertEqual(await self.reasonFor(f"http://127.0.0.1:{free}/"), "connection refused")
        self.assertEqual(await self.reasonFor(f"http://127.0.0.1:{web}/health"), "HTTP status 404")
        self.assertEqual(await self.reasonFor(f"http://127.0.0.1:{closing}/"), "the connection was closed")
        self.assertEqual(await self.reasonFor(f"tcp:{web}"), "")
        early = "the connection was closed during the TLS handshake. Check the port"
        self.assertEqual(await self.reasonFor(f"https://127.0.0.1:{closing}/"), early)

    async def test_aResponseThatStalls(self) -> None:
        """A check that took too long leaves no connection, although the server does not end it."""

        def stall(call: Call) -> None:
            call.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
            call.connection.transport.pauseProducing()

        for context in (None, commonHolder().options()):
            server = self.serve(stall, context)
            checking = makeProbe(reactor, server.url)()
            await self.until(lambda server=server: server.calls)
            checking.addTimeout(0.1, reactor)
            with self.assertRaises((CancelledError, TimeoutError)):
                await checking
            await self.until(lambda: not any(isinstance(each, Client) for each in reactor.getReaders()))


class _Closing(Protocol):
    """Closes each connection once data has arrived: unread data turns the close into a reset."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.loseConnection()
