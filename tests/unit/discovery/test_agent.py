"""
RegistryAgent: HTTP by tag, over real loopback sockets, because connections are what it is about.
"""

from __future__ import annotations

import importlib.util
import urllib.parse
from collections.abc import Callable
from io import BytesIO
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.ssl import Certificate, PrivateCertificate, trustRootFromCertificates
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    FileBodyProducer,
    RequestTransmissionFailed,
    ResponseNeverReceived,
    readBody,
)
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.certificates import selfSigned
from tests.loopback import Call, Connection, LoopbackTestCase, Server
from txserviceregistry.discovery.agent import RegistryAgent
from txserviceregistry.errors import NoServiceAvailable

from .standin import FakeDirectory, service


def portOf(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


def hangUp(call: Call) -> None:
    """A server that closes the connection instead of responding."""
    call.hangUp()


def named(name: str) -> Callable[[Call], None]:
    """A server that responds with its name."""
    return lambda call: call.answer(200, name.encode())


@implementer(IBodyProducer)
class Stream:
    """A body that is too long to be kept."""

    length = 100_000

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(b"x" * self.length)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = pauseProducing


@implementer(IBodyProducer)
class Endless:
    """A body that does not come to its end."""

    length = 100_000

    def __init__(self) -> None:
        self.stopped = False

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(b"x")
        return Deferred()

    def stopProducing(self) -> None:
        self.stopped = True

    def pauseProducing(self) -> None:
        pass

    resumeProducing = pauseProducing


class HangingUp(Connection):
    """A server's end of a connection that is closed as soon as anything comes."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.abortConnection()


class AgentTestCase(LoopbackTestCase):
    """A test with a directory and an agent over it."""

    def setUp(self) -> None:
        self.directory = FakeDirectory()
        self.agent = self.makeAgent()

    def makeAgent(self, **options: Any) -> RegistryAgent:
        agent = RegistryAgent(reactor, self.directory, **{"random": lambda: 0.0, **options})
        self.addCleanup(agent.close)
        return agent

    def instance(self, id: str, handler: Callable[[Call], None], context: Any = None, **metadata: str) -> Server:
        """A server, and its service in the directory."""
        server = self.serve(handler, context)
        self.directory.put(service(id, portOf(server), host="127.0.0.1", **metadata))
        return server

    async def refusing(self, *ids: str) -> None:
        """Services in the directory whose ports refuse connections."""
        for id in ids:
            port = int(self.unusedUrl().rpartition(":")[2])
            self.directory.put(service(id, port, host="127.0.0.1"))

    async def ask(self, method: bytes = b"GET", uri: bytes = b"registry://web/status", body: Any = None) -> bytes:
        response = await self.agent.request(method, uri, Headers({b"X-Mine": [b"yes"]}), body)
        answer: bytes = await readBody(response)
        return answer


class RequestTests(AgentTestCase):
    """Requests."""

    async def test_asksInTurn(self) -> None:
        """Requests go to the instances in turn, with path, query and headers; connections are kept."""
        servers = [self.instance(id, named(id)) for id in ("aaa", "bbb")]
        uri = b"registry://web/a%20b?c=d#e"
        self.assertEqual([await self.ask(uri=uri) for _ in range(4)], [b"aaa", b"bbb", b"aaa", b"bbb"])
        for server in servers:
            self.assertEqual([call.path for call in server.calls], ["/a%20b?c=d"] * 2)
            self.assertEqual(server.calls[0].headers["x-mine"], "yes")
            self.assertEqual(server.calls[0].headers["host"], server.url.partition("//")[2])
            self.assertEqual(server.opened, 1)
        self.assertTrue(verifyObject(IAgent, self.agent))

    async def test_logsNothing(self) -> None:
        """Requests that succeed are not logged."""
        log = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        self.instance("aaa", named("aaa"))
        await self.ask()
        self.assertEqual([event for event in log if "factory" in str(event.get("log_format"))], [])

    async def test_underTreq(self) -> None:
        """treq's HTTPClient takes it, with a Host and cookies of one's own."""
        server = self.instance("aaa", lambda call: call.answer(200, b"hello", headers="Set-Cookie: a=b\r\n"))
        client = HTTPClient(self.agent)
        response = await client.get("registry://web/status", headers={"Host": "www.example"})
        self.assertEqual((response.code, await response.text()), (200, "hello"))
        response = await client.post("registry://web", json={"a": 1})
        self.assertEqual(server.calls[0].headers["host"], "www.example")
        self.assertEqual((server.calls[1].path, server.calls[1].body), ("/", b'{"a":1}'))
        self.assertEqual(server.calls[1].headers.get("cookie"), "a=b")

    async def test_otherSchemes(self) -> None:
        """URIs with other schemes go to the server that they name. A tag is required, and has no port."""
        server = self.serve(named("plain"))
        self.assertEqual(await self.ask(uri=server.url.encode() + b"/x"), b"plain")
        for uri in (b"registry://web:80/", b"registry://joe@web/", b"registry:///x", b"registry://%ff/", b"ftp://web/"):
            with self.assertRaises(SchemeNotSupported):
                await self.ask(uri=uri)

    async def test_tagsMayBeQuoted(self) -> None:
        """A tag that is not a host name is percent-encoded; a query may come right after it."""
        server = self.serve(named("blank"))
        self.directory.put(service("aaa", portOf(server), host="127.0.0.1", tags=("a b/ü",)))
        self.assertEqual(await self.ask(uri=b"registry://a%20b%2F%C3%BC?x"), b"blank")
        self.assertEqual(server.calls[0].path, "/?x")

    async def test_noInstance(self) -> None:
        """Without an instance it fails at once; when there is one it works, and others' tags don't matter."""
        with self.assertRaises(NoServiceAvailable):
            await self.ask()
        self.instance("aaa", named("aaa"))
        self.assertEqual(await self.ask(), b"aaa")
        with self.assertRaises(NoServiceAvailable):
            await self.ask(uri=b"registry://mail/")

    async def test_leastConnections(self) -> None:
        """An instance is in use until its response has been read to the end."""
        self.agent = self.makeAgent(strategy="least-connections")
        servers = {id: self.instance(id, named(id)) for id in ("aaa", "bbb")}
        first = await self.agent.request(b"GET", b"registry://web/")
        self.assertEqual([await self.ask() for _ in range(2)], [b"bbb", b"bbb"])
        self.assertEqual(await readBody(first), b"aaa")
        self.assertEqual([await self.ask() for _ in range(2)], [b"aaa", b"aaa"])
        servers["aaa"].handler = servers["bbb"].handler = lambda call: call.answer(204)
        # There is nothing to be read of these: they are over with their headers.
        for _ in range(4):
            await self.agent.request(b"GET", b"registry://web/")
        self.assertEqual([len(server.calls) for server in servers.values()], [7, 2])


class RetryTests(AgentTestCase):
    """Another instance, when it is safe."""

    async def test_refusedConnections(self) -> None:
        """
        A refused connection has sent nothing: requests of any method are sent to another instance, with their bodies.
        """
        await self.refusing("aaa", "bbb")
        self.instance("ccc", named("ccc"))
        self.assertEqual(await self.ask(b"POST", body=FileBodyProducer(BytesIO(b"abc"))), b"ccc")
        self.assertEqual(await self.ask(b"POST", body=Stream()), b"ccc")

    async def test_allRefuse(self) -> None:
        """When all refuse, the error has each one's reason."""
        await self.refusing("aaa", "bbb")
        with self.assertRaises(NoServiceAvailable) as caught:
            await self.ask()
        self.assertEqual(len(caught.exception.reasons), 2)
        self.assertIn("refused", str(caught.exception))

    async def test_idempotentRequestsAreRepeated(self) -> None:
        """If an instance closes the connection without a response, GET and PUT go to another one, with the body."""
        for id in ("aaa", "bbb"):
            self.instance(id, hangUp)
        server = self.instance("ccc", named("ccc"))
        self.assertEqual(await self.ask(), b"ccc")
        self.assertEqual(await self.ask(b"PUT", body=FileBodyProducer(BytesIO(b"abc"))), b"ccc")
        self.assertEqual(server.calls[-1].body, b"abc")

    async def test_othersAreNot(self) -> None:
        """Requests that are not idempotent, or whose body can't be sent again, fail instead."""
        servers = [self.instance(id, hangUp) for id in ("aaa", "bbb")]
        for method, body in ((b"POST", None), (b"PATCH", None), (b"PUT", Stream())):
            with self.assertRaises(ResponseNeverReceived):
                await self.ask(method, body=body)
        self.assertEqual(sum(len(server.calls) for server in servers), 3)

    async def test_aBodyThatIsCutOff(self) -> None:
        """When the connection is lost in the middle of a long body, the body is stopped, and the request has failed."""
        servers = [self.instance(id, hangUp) for id in ("aaa", "bbb")]
        body = Endless()
        for server in servers:
            server.protocol = HangingUp
        with self.assertRaises(RequestTransmissionFailed):
            await self.ask(b"PUT", body=body)
        self.assertTrue(body.stopped)

    async def test_cancellingBeforeItIsSent(self) -> None:
        """A request that is cancelled while its body is being read is over, and its body is stopped."""
        server = self.instance("aaa", named("aaa"))
        body = Endless()
        body.length = 10
        asked = self.agent.request(b"PUT", b"registry://web/", None, body)
        asked.cancel()
        with self.assertRaises(CancelledError):
            await asked
        self.assertTrue(body.stopped)
        self.assertEqual(server.opened, 0)

    async def test_invalidRequests(self) -> None:
        """An invalid request fails at once, and is not sent to another instance."""
        server = self.instance("aaa", named("aaa"))
        for _ in range(2):
            with self.assertRaises(ValueError):
                await self.ask(uri=b"registry://web/a b")
        self.assertEqual(server.opened, 0)
        self.assertEqual(await self.ask(), b"aaa")

    async def test_theLastOnesErrorIsTheResult(self) -> None:
        """If all close the connection, the error is that of the last one."""
        servers = [self.instance(id, hangUp) for id in ("aaa", "bbb")]
        with self.assertRaises(ResponseNeverReceived):
            await self.ask()
        self.assertEqual([len(server.calls) for server in servers], [1, 1])

    async def test_answersAreFinal(self) -> None:
        """Any response is the result."""
        servers = [self.instance(id, lambda call: call.answer(503)) for id in ("aaa", "bbb")]
        response = await self.agent.request(b"GET", b"registry://web/")
        self.assertEqual(response.code, 503)
        self.assertEqual(sum(len(server.calls) for server in servers), 1)

    async def test_anInstanceThatIsGoneMeanwhile(self) -> None:
        """A kept connection that the server has closed, and a port that is closed too, cost a GET nothing."""
        ports = []
        for id in ("aaa", "bbb"):
            server = Server(named(id))
            port = reactor.listenTCP(0, server, interface="127.0.0.1")
            ports.append((port, server))
            self.directory.put(service(id, port.getHost().port, host="127.0.0.1"))
        self.assertEqual([await self.ask() for _ in range(2)], [b"aaa", b"bbb"])
        port, server = ports[0]
        await port.stopListening()
        server.handler = hangUp
        self.assertEqual([await self.ask() for _ in range(3)], [b"bbb"] * 3)
        await ports[1][0].stopListening()

    async def test_cancelling(self) -> None:
        """A request that is cancelled is over, and is not tried elsewhere."""
        servers = [self.instance(id, lambda call: None) for id in ("aaa", "bbb")]
        asked = self.agent.request(b"GET", b"registry://web/")
        await self.until(lambda: servers[0].calls)
        asked.cancel()
        with self.assertRaises(CancelledError):
            await asked
        await self.until(lambda: not servers[0].open)
        self.assertEqual(servers[1].calls, [])


class RedirectTests(AgentTestCase):
    """Redirects that treq follows."""

    def redirecting(self, location: Callable[[Call], str]) -> Server:
        def handle(call: Call) -> None:
            if call.path == "/status":
                call.answer(302, headers=f"Location: {location(call)}\r\n")
            else:
                call.answer(200, call.path.encode())

        return self.instance("aaa", handle)

    async def follow(self) -> str:
        response = await HTTPClient(self.agent).get("registry://web/status", headers={"Authorization": "mine"})
        text: str = await response.text()
        return text

    async def test_toAnotherPath(self) -> None:
        """A path, and the instance's own address, mean the tag; what belongs to the origin goes with them."""
        for location in (
            lambda call: "/other",
            lambda call: "other",
            lambda call: f"http://{call.headers['host']}/other",
        ):
            server = self.redirecting(location)
            self.assertEqual(await self.follow(), "/other")
            self.assertEqual([call.headers["authorization"] for call in server.calls], ["mine", "mine"])

    async def test_toAnotherServer(self) -> None:
        """A redirect to another server goes there, without credentials."""
        other = self.serve(named("other"))
        self.redirecting(lambda call: f"{other.url}/x")
        self.assertEqual(await self.follow(), "other")
        self.assertNotIn("authorization", other.calls[0].headers)

    async def test_toAnotherTag(self) -> None:
        """A tag may be named."""
        other = self.serve(named("mail"))
        self.directory.put(service("mmm", portOf(other), host="127.0.0.1", tags=("mail",)))
        self.redirecting(lambda call: "registry://mail/inbox")
        self.assertEqual(await self.follow(), "mail")
        self.assertEqual(other.calls[0].path, "/inbox")

    async def test_nonsense(self) -> None:
        """An invalid location is left as it is."""
        self.redirecting(lambda call: "http://[")
        response = await self.agent.request(b"GET", b"registry://web/status")
        self.assertEqual(response.headers.getRawHeaders(b"location"), [b"http://["])


class TLSTests(AgentTestCase):
    """``registrys``."""

    def setUp(self) -> None:
        self.certificate, key = selfSigned("web")
        self.context = PrivateCertificate.loadPEM(self.certificate + key).options()
        super().setUp()

    def makeAgent(self, **options: Any) -> RegistryAgent:
        trusted = trustRootFromCertificates([Certificate.loadPEM(self.certificate)])
        return super().makeAgent(policy=BrowserLikePolicyForHTTPS(trusted), **options)

    async def test_theCertificateIsForTheHost(self) -> None:
        """The certificate has to be for the instance's host; connections are kept."""
        server = self.instance("aaa", named("aaa"), self.context)
        self.assertEqual([await self.ask(uri=b"registrys://web/") for _ in range(2)], [b"aaa"] * 2)
        self.assertEqual(server.opened, 1)

    async def test_anotherName(self) -> None:
        """With ``tls.name`` the certificate has to be for that name; otherwise nothing is sent."""
        server = self.instance("aaa", named("aaa"), self.context, **{"tls.name": "web.example"})
        with self.assertRaises(NoServiceAvailable) as caught:
            await self.ask(b"POST", b"registrys://web/")
        self.assertIn("TLS: the certificate is not for web.example", str(caught.exception))
        self.assertEqual(server.calls, [])

    async def test_anUntrustedCertificate(self) -> None:
        """An instance without a trusted certificate is not used, and a POST goes to another one: nothing was sent."""
        certificate, key = selfSigned("another")
        other = self.instance("aaa", named("aaa"), PrivateCertificate.loadPEM(certificate + key).options())
        self.instance("bbb", named("bbb"), self.context)
        self.assertEqual([await self.ask(b"POST", b"registrys://web/") for _ in range(2)], [b"bbb"] * 2)
        self.assertEqual(other.calls, [])
        self.directory.remove("bbb")
        with self.assertRaises(NoServiceAvailable) as caught:
            await self.ask(uri=b"registrys://web/")
        self.assertIn("TLS: certificate verify failed", str(caught.exception))

    async def test_redirects(self) -> None:
        """A redirect on the instance is one to the tag, over TLS."""

        def handle(call: Call) -> None:
            if call.path == "/":
                call.answer(302, headers=f"Location: https://{call.headers['host']}/x\r\n")
            else:
                call.answer(200, b"there")

        self.instance("aaa", handle, self.context)
        response = await self.agent.request(b"GET", b"registrys://web/")
        self.assertEqual(response.headers.getRawHeaders(b"location"), [b"registrys://web/x"])
        response = await HTTPClient(self.agent).get("registrys://web/")
        self.assertEqual(await response.text(), "there")


class OptionsTests(SynchronousTestCase):
    """The arguments of an agent."""

    def test_options(self) -> None:
        """A strategy that there is not is refused at once."""
        self.assertRaises(ValueError, RegistryAgent, reactor, FakeDirectory(), strategy="best")

    def test_schemes(self) -> None:
        """Importing the module changes nothing in ``urllib.parse``; agents need their schemes there, once each."""
        for name in ("uses_netloc", "uses_relative"):
            self.patch(urllib.parse, name, ["", "http"])
        spec = importlib.util.find_spec(RegistryAgent.__module__)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.assertEqual(urllib.parse.uses_relative, ["", "http"])
        for _ in range(2):
            module.RegistryAgent(reactor, FakeDirectory())
            for table in (urllib.parse.uses_netloc, urllib.parse.uses_relative):
                self.assertEqual(table, ["", "http", "registry", "registrys"])


class ManyTests(AgentTestCase):
    """Many at once."""

    async def test_areSpread(self) -> None:
        """Twenty requests at once are spread evenly."""
        servers = [self.instance(id, named(id)) for id in ("aaa", "bbb")]
        await gatherResults([Deferred.fromCoroutine(self.ask()) for _ in range(20)])
        self.assertEqual([len(server.calls) for server in servers], [10, 10])
