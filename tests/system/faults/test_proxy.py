"""The proxy between clients and registry does what it is told to, on real sockets."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet import reactor as globalReactor
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.loopback import LoopbackTestCase, Server

from .messages import Messages, answer
from .proxy import TO_CLIENT, TO_REGISTRY, Proxy

reactor: Any = globalReactor

GET = b"GET /v1.0/limits HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\nhello"


class Caller(Protocol):
    """A client: what it has received, and how its connection ended."""

    def __init__(self) -> None:
        self.received = b""
        self.isConnected = False
        self.ended: Failure | None = None

    def connectionMade(self) -> None:
        self.isConnected = True

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended = reason

    def ask(self, count: int = 1) -> None:
        self.transport.write(GET * count)


class _Callers(ClientFactory):
    noisy = False

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def buildProtocol(self, addr: object) -> Caller:
        return self._caller

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._caller.ended = reason


class ProxyTests(LoopbackTestCase):
    """Each fault, from its beginning to its end."""

    def setUp(self) -> None:
        self.server: Server = self.serve(lambda call: call.answer(200, b"hello"))
        self.proxy = Proxy(reactor, int(self.server.url.rpartition(":")[2]), Random(1))
        self.proxy.start()
        self.addCleanup(self.proxy.stop)

    async def caller(self, asks: int = 0) -> Caller:
        """A client that has connected, and sent so many requests."""
        caller = Caller()
        port = int(self.proxy.url.split(":")[2].split("/")[0])
        reactor.connectTCP("127.0.0.1", port, _Callers(caller))
        await self.until(lambda: caller.isConnected or caller.ended is not None)
        if asks:
            caller.ask(asks)
        self.addCleanup(lambda: caller.transport and caller.transport.abortConnection())
        return caller

    async def answered(self, caller: Caller, count: int = 1) -> None:
        await self.until(lambda: caller.received == OK * count)

    def how(self, caller: Caller) -> type[BaseException] | None:
        assert caller.ended is not None
        return caller.ended.type

    async def test_passesAllThatIsSaid(self) -> None:
        """Without a fault requests and answers pass, several on one connection, and its orderly end."""
        caller = await self.caller(2)
        await self.answered(caller, 2)
        self.assertEqual(self.server.opened, 1)
        caller.transport.loseConnection()
        await self.until(lambda: not self.server.open)
        self.assertEqual(self.proxy.counts, {"connections": 1, "requests": 2, "answers": 2})

    async def test_passesTheEndOfTheRegistry(self) -> None:
        """When the registry closes, the client's connection is closed; when it is not there, it is reset."""
        caller = await self.caller(1)
        await self.answered(caller)
        self.server.calls[0].hangUp()
        await self.until(lambda: caller.ended)
        self.assertIs(self.how(caller), ConnectionDone)
        self.proxy.port = int(self.unusedUrl().rpartition(":")[2])
        alone = await self.caller(1)
        await self.until(lambda: alone.ended)
        self.assertIs(self.how(alone), ConnectionLost)

    async def test_refusesUntilHealed(self) -> None:
        """New connections are refused, open ones are served; healed, it listens on the same port again."""
        before = await self.caller()
        await self.proxy.refuse()
        refused = await self.caller()
        self.assertIs(self.how(refused), ConnectionRefusedError)
        before.ask()
        await self.answered(before)
        self.proxy.heal()
        await self.answered(await self.caller(1))

    async def test_resets(self) -> None:
        """A reset ends what is open, on both sides, and nothing else."""
        caller = await self.caller(1)
        await self.answered(caller)
        self.proxy.reset()
        await self.until(lambda: caller.ended and not self.server.open)
        self.assertIs(self.how(caller), ConnectionLost)
        await self.answered(await self.caller(1))

    async def test_stopsWhileConnectionsEnd(self) -> None:
        """It can be stopped while clients hang up by themselves."""
        for turns in range(6):
            callers = [await self.caller(1) for _ in range(5)]
            for caller in callers:
                await self.answered(caller)
            for caller in callers[::2]:
                caller.transport.abortConnection()
            for _ in range(turns):
                await deferLater(reactor, 0)
            await self.proxy.stop()
            self.proxy.start()

    async def test_nothingGetsThroughACut(self) -> None:
        """In a cut nothing comes to the registry; what was sent does when it is over."""
        caller = await self.caller(1)
        await self.answered(caller)
        self.proxy.hang()
        caller.ask()
        late = await self.caller(1)
        self.proxy.hung.discard(TO_CLIENT)
        await self.until(lambda: self.server.opened == 2)
        self.assertEqual(len(self.server.calls), 1)
        self.proxy.heal()
        await self.answered(caller, 2)
        await self.answered(late)

    async def test_cutsOneDirection(self) -> None:
        """Half open: with the way back cut, the registry does what it is asked, and the client hears nothing."""
        caller = await self.caller()
        self.proxy.hang(TO_CLIENT)
        caller.ask()
        await self.until(lambda: self.server.calls)
        await self.until(lambda: self.proxy.counts["answers"] == 1)
        self.assertEqual(caller.received, b"")
        self.proxy.heal()
        await self.answered(caller)

    async def test_whatWasResetInACutNeverArrives(self) -> None:
        """A client that gives up in a cut takes back what it had sent; the registry learns that after the cut."""
        caller = await self.caller(1)
        await self.answered(caller)
        self.proxy.hang(TO_REGISTRY)
        caller.ask()
        other = await self.caller(1)
        caller.transport.abortConnection()
        await self.until(lambda: caller.ended)
        other.transport.loseConnection()
        await self.until(lambda: other.ended)
        self.assertEqual(len(self.server.open), 2)
        self.proxy.heal()
        await self.until(lambda: not self.server.open)
        # The other one said goodbye, so that its system went on trying to deliver what it had sent.
        self.assertEqual(len(self.server.calls), 2)

    async def test_delays(self) -> None:
        """Delayed bytes come later, in order, and even when their sender has gone by then."""
        caller = await self.caller()
        self.proxy.delay(0.2, TO_REGISTRY)
        began = reactor.seconds()
        caller.ask()
        await self.until(lambda: self.proxy.counts["requests"] == 1)
        self.proxy.delay(0.0)
        caller.ask()
        await self.answered(caller, 2)
        self.assertGreaterEqual(reactor.seconds() - began, 0.2)
        self.proxy.delay(0.1)
        caller.ask()
        caller.transport.loseConnection()
        await self.until(lambda: len(self.server.calls) == 3)

    async def test_cutsBodiesShort(self) -> None:
        """So many bytes of the body come, then the end."""
        self.proxy.cutShort(3, every=2)
        caller = await self.caller(2)
        await self.until(lambda: caller.ended)
        self.assertEqual(caller.received, OK + OK[:-2])
        self.assertIs(self.how(caller), ConnectionDone)
        self.assertEqual(self.proxy.counts["cut short"], 1)

    async def test_garbles(self) -> None:
        """One byte of what comes is another."""
        self.proxy.garble(1.0, TO_CLIENT)
        caller = await self.caller(1)
        await self.until(lambda: len(caller.received) == len(OK))
        self.assertEqual(sum(a != b for a, b in zip(caller.received, OK, strict=True)), 1)
        self.assertEqual(self.server.calls[0].path, "/v1.0/limits")

    async def test_losesEverySecondAnswer(self) -> None:
        """The registry has done what it was asked, and the client's connection is reset instead of an answer."""
        self.proxy.lose()
        lucky = await self.caller(1)
        await self.answered(lucky)
        lucky.ask()
        await self.until(lambda: lucky.ended)
        self.assertEqual((lucky.received, self.how(lucky)), (OK, ConnectionLost))
        self.assertEqual(len(self.server.calls), 2)
        await self.answered(await self.caller(1))

    async def test_losesInSilence(self) -> None:
        """An answer may also be lost without a sign; the connection is of no use from then on."""
        self.proxy.lose(hang=True)
        caller = await self.caller(3)
        await self.until(lambda: self.proxy.counts["answers"] == 3 and caller.received == OK)
        self.assertIsNone(caller.ended)

    async def test_answersInstead(self) -> None:
        """A balancer's own answer comes, whether or not the registry was asked."""
        page = answer(503)
        for reaching, calls in ((0.0, 0), (1.0, 1)):
            self.proxy.answer(1.0, page, reaching=reaching)
            caller = await self.caller(1)
            await self.until(lambda caller=caller: caller.received == page)  # type: ignore[misc]  # bound now
            self.assertEqual(len(self.server.calls), calls)
        self.assertEqual(self.proxy.counts["answered instead"], 2)

    async def test_answersAtARate(self) -> None:
        """About so many of all requests are answered so, half of them after they have reached the registry."""
        self.proxy.answer(0.2, answer(500))
        caller = await self.caller(500)
        await self.until(lambda: caller.received.count(b"HTTP/1.1") == 500)
        own = caller.received.count(b" 500 ")
        self.assertEqual(own, self.proxy.counts["answered instead"])
        self.assertTrue(60 < own < 140, own)
        self.assertTrue(500 - own < len(self.server.calls) < 500, len(self.server.calls))


class MessagesTests(SynchronousTestCase):
    """Messages are told from each other, however they come."""

    def test_bytesByByte(self) -> None:
        """Bodies with a length, none, and chunks; in single bytes and all together."""
        messages = [
            OK,
            b"HTTP/1.1 204 X\r\n\r\n",
            b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
            GET,
        ]
        together = b"".join(messages)
        self.assertEqual(Messages().take(together), messages)
        single = Messages()
        self.assertEqual([message for byte in together for message in single.take(bytes([byte]))], messages)

    def test_theRestIsNotLost(self) -> None:
        """A message without an end comes out on request, once."""
        messages = Messages()
        self.assertEqual(messages.take(OK + OK[:20]), [OK])
        self.assertEqual([messages.rest(), messages.rest()], [OK[:20], b""])
