"""
Tests for :mod:`txserviceregistry.registry.http.messages` and :mod:`txserviceregistry.registry.http.server`: the framing
of requests and answers, byte by byte.
"""

from __future__ import annotations

import fcntl
import gc
import json
import socket
import tempfile
import termios
from typing import Any

from treq.testing import StubTreq
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import directlyProvides, providedBy

from tests.unit.garbage import collectOnlyNew
from txserviceregistry.registry.http.connections import ConnectionLimits
from txserviceregistry.registry.http.messages import EXTENSIONS, Response, inBytes
from txserviceregistry.registry.http.server import ApiSite

from ..wire import Api, Connection, Reply, parseReplies, requestBytes

SERVICES = "/v1.0/1234/services"
BATCHES = "/v1.0/1234/heartbeats"
JSON_TYPE = "application/json; charset=UTF-8"


class FramingCase(SynchronousTestCase):
    """A registry, and a connection to it."""

    def setUp(self) -> None:
        self.api = Api()
        self.connection = Connection(self.api)

    def request(self, method: str = "GET", path: str = SERVICES, body: bytes | None = None, **headers: str) -> bytes:
        return requestBytes(method, path, body, {"X-Auth-Token": self.api.token, **headers})

    def create(self, id: str, size: int = 0, **headers: str) -> bytes:
        body = json.dumps({"id": id, "heartbeat_timeout": 30}).encode()
        return self.request("POST", body=body.ljust(size), **headers)

    def services(self) -> list[str]:
        return [service["id"] for service in self.api.ask("GET", "/services").json["values"]]

    def assertRefused(self, replies: list[Reply]) -> None:
        (reply,) = replies
        self.assertEqual((reply.code, reply.json["type"]), (413, "requestTooLargeError"))
        self.assertEqual((reply.header("Connection"), reply.header("Content-Type")), ("close", JSON_TYPE))
        self.assertEqual(reply.header("X-Response-Id"), reply.json["txnId"])
        self.assertEqual(reply.header("X-Service-Registry-Extensions"), ", ".join(EXTENSIONS))


class AnswerTests(FramingCase):
    """The form of every response."""

    def test_headers(self) -> None:
        """Every response says what and how long it is, has an id of its own, and names the extensions."""
        ids = set()
        for method, path, body, code in [
            ("GET", SERVICES, None, 200),
            ("POST", SERVICES, b'{"id": "web1", "heartbeat_timeout": 30}', 201),
            ("POST", SERVICES, b"{", 400),
            ("GET", "/v1.0/1/services", None, 401),
            ("GET", "/v1.0/1234/nothing", None, 404),
            ("GET", "/", None, 404),
            ("POST", "/v2.0/tokens", b"{}", 400),
            ("GET", "/v1.0/1234/%zz", None, 400),
            ("GET", "*", None, 404),
            ("OPTIONS", "*", None, 404),
            ("GET", "http://registry.example/v1.0/1234/services", None, 200),
            ("FOO", SERVICES, None, 404),
            ("TRACE", SERVICES, None, 404),
        ]:
            self.connection.send(self.request(method, path, body))
            (reply,) = self.connection.replies()
            self.assertEqual(reply.code, code, (method, path))
            self.assertEqual(reply.header("Content-Type"), JSON_TYPE)
            self.assertEqual(reply.header("X-Service-Registry-Extensions"), ", ".join(EXTENSIONS))
            reply.json  # noqa: B018 (it parses)
            ids.add(reply.header("X-Response-Id"))
        self.assertEqual((len(ids), None in ids), (13, False))

    def test_noContent(self) -> None:
        """A 204 has no body, and neither length nor type of one; the connection goes on."""
        self.connection.send(self.create("web1"))
        self.connection.replies()
        for _ in range(2):
            self.connection.send(self.request("PUT", SERVICES + "/web1", b"{}"))
        replies = self.connection.replies()
        for reply in replies:
            self.assertEqual(
                (reply.code, reply.header("Content-Length"), reply.header("Content-Type")), (204, None, None)
            )
            self.assertTrue(reply.header("X-Response-Id"))
        self.assertEqual(len(replies), 2)

    def test_head(self) -> None:
        """HEAD is answered as GET is, with the length of the body that is left out, and the connection goes on."""
        for path in ("/v1.0/1234/services", "/v1.0/1234/services/unknown", "/v1.0/1234/nothing"):
            self.connection.send(self.request("HEAD", path))
            (head,) = self.connection.replies(noBody=True)
            self.connection.send(self.request("GET", path))
            (whole,) = self.connection.replies()
            self.assertEqual((head.code, head.header("Content-Length")), (whole.code, whole.header("Content-Length")))

    def test_manyOnOneConnection(self) -> None:
        """Requests that come in one go are answered in their order, also when they come in bits."""
        data = b"".join(self.create(f"web{number}") for number in range(3)) + self.request()
        self.connection.send(data[:-20])
        for byte in data[-20:]:
            self.connection.send(bytes([byte]))
        replies = self.connection.replies()
        self.assertEqual([reply.code for reply in replies], [201, 201, 201, 200])
        self.assertEqual(replies[-1].json["metadata"]["count"], 3)

    def test_oldHTTP(self) -> None:
        """A client that speaks HTTP/1.0, or asks for it, gets its response and then the connection is closed."""
        old = requestBytes("GET", SERVICES, None, {"X-Auth-Token": self.api.token}, version="1.0")
        for data in (old, self.request(Connection="close")):
            connection = Connection(self.api)
            connection.send(data)
            self.assertEqual([reply.code for reply in connection.replies()], [200])
            self.assertFalse(connection.isOpen)

    def test_noHTTP(self) -> None:
        """Invalid HTTP is refused with a fault, and the connection is closed."""
        for data in (
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\nbroken header\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 17_000 + b"\r\n\r\n",
        ):
            connection = Connection(self.api)
            connection.send(data)
            (reply, *_) = connection.replies()
            self.assertEqual((reply.code, reply.json["type"]), (400, "badRequest"), data[:60])
            self.assertEqual(reply.header("X-Response-Id"), reply.json["txnId"])
            self.assertFalse(connection.isOpen)

    def test_duplicateHeaders(self) -> None:
        """Headers that come twice never break anything."""
        token = self.api.token.encode()
        twice = b"".join(
            name + b": " + value + b"\r\n"
            for name, value in [
                (b"Host", b"a"),
                (b"Host", b"b"),
                (b"X-Auth-Token", token),
                (b"X-Auth-Token", token),
                (b"Content-Type", b"application/json"),
                (b"Content-Type", b"text/xml"),
                (b"Accept", b"a"),
                (b"Accept", b"b"),
                (b"X-Response-Id", b"mine"),
            ]
        )
        body = b'{"id": "web1", "heartbeat_timeout": 30}'
        head = b"POST /v1.0/1234/services HTTP/1.1\r\nContent-Length: %d\r\n" % len(body)
        self.connection.send(head + twice + b"\r\n" + body)
        (reply,) = self.connection.replies()
        self.assertEqual((reply.code, reply.header("Location")), (201, "http://a/v1.0/1234/services/web1"))
        self.assertNotEqual(reply.header("X-Response-Id"), "mine")

    def test_wholeURL(self) -> None:
        """
        A client that sends the whole URL, as to a proxy, is answered as one that sends the path, whatever host it
        names; a batch of heartbeats may be as large.
        """
        for url in ("http://registry.example:8880", "HTTPS://joe:secret@[::1]"):
            for path, code in (("/v1.0/1234/services", 200), ("/v1.0/1234/limits?a=/", 200), ("", 404), ("?a=/", 404)):
                self.connection.send(self.request("GET", url + path))
                (reply,) = self.connection.replies()
                self.assertEqual(reply.code, code, url + path)
        self.connection.send(self.request("POST", "http://a/v1.0/1234/heartbeats", b"[" + b" " * 10_000 + b"]"))
        (reply,) = self.connection.replies()
        self.assertEqual(reply.code, 400)

    def test_aHeaderIsOneLine(self) -> None:
        """No value of a header begins another line."""
        response = inBytes(Response(400, headers={"Location": "/a\r\nSet-Cookie: b"}), "1", b"Bad Request")
        self.assertIn(b"\r\nLocation: /a Set-Cookie: b\r\n", response)

    def test_requestsLeaveNoGarbage(self) -> None:
        """
        The objects of a request go with its response, and are not left to Python's collector: it would look at those
        that thousands of others wait with, too.
        """
        self.addCleanup(gc.enable)
        collectOnlyNew(self)
        for number in range(2):
            # The first time some things are made that stay.
            self.api.create(f"old{number}")
            event = self.api.ask("GET", "/events").json["values"][-1]["id"]
            gc.collect()
            gc.disable()
            self.connection.send(self.request("GET", f"/v1.0/1234/events?marker={event}&wait=1"))
            self.api.advance(1)
            self.connection.send(self.create(f"new{number}") + self.request() + self.request("GET", "/nothing"))
            for refused in ("GET", "PUT", "DELETE"):
                self.connection.send(self.request(refused, SERVICES + "/nothing", b"{}"))
            self.connection.send(self.create("old0") + self.request("GET", "/v1.0/1234/configuration/nothing"))
            codes = [reply.code for reply in self.connection.replies()]
            left = gc.collect()
        self.assertEqual((codes, left), ([200, 201, 200, 404, 404, 404, 404, 400, 404], 0))

    def test_noAccessLog(self) -> None:
        """Requests leave no line in the log, and idle connections no secrets."""
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.connection.send(self.request())
        self.assertEqual(events, [])


class HostTests(FramingCase):
    """The URLs in responses."""

    def location(self, host: str | None, *more: bytes) -> str | None:
        connection = self.connection
        lines = [b"POST /v1.0/1234/services HTTP/1.1", b"X-Auth-Token: " + self.api.token.encode(), *more]
        if host is not None:
            lines.append(b"Host: " + host.encode("latin-1"))
        body = b'{"id": "web1", "heartbeat_timeout": 30}'
        lines += [b"Content-Length: %d" % len(body), b"", body]
        connection.send(b"\r\n".join(lines))
        (reply,) = connection.replies()
        connection.send(self.request("DELETE", SERVICES + "/web1"))
        connection.replies()
        location = reply.header("Location") or ""
        return location.removesuffix("/v1.0/1234/services/web1")

    def test_host(self) -> None:
        """A client finds its own name of the registry in URLs."""
        for host in ("registry.example", "Registry.example:81", "127.0.0.1:8880", "[::1]:8880", "[2001:db8::1]", "a_b"):
            self.assertEqual(self.location(host), f"http://{host}")

    def test_noHost(self) -> None:
        """A name that is none is not repeated: the local address takes its place."""
        for host in (
            None,
            "",
            "a b",
            "evil/x",
            "a@b",
            "a:b",
            "[::1",
            "a:123456",
            "\xe4",
            'x"y',
            "x" * 300,
            "a,b",
            "a\tb",
        ):
            self.assertEqual(self.location(host), "http://127.0.0.1:8880", host)

    def test_otherAddresses(self) -> None:
        """The local address can be of another family."""
        for address, url in [
            (IPv6Address("TCP", "fe80::1%eth0", 8880), "http://[fe80::1]:8880"),
            (UNIXAddress(b"/tmp/socket"), "http://localhost"),
            # A header of the PROXY protocol may have any text in the place of an address.
            (IPv4Address("TCP", "r\xe4gistry x", 8880), "http://localhost"),
        ]:
            self.connection = Connection(self.api, host=address)
            self.assertEqual(self.location(None), url)

    def test_forwarded(self) -> None:
        """Behind proxies the URLs have the scheme that the client used, which the first proxy reports."""
        for schemes in ("https", "HTTPS", "https, http", "http", "http, https", ""):
            url = self.location("registry.example", b"X-Forwarded-Proto: " + schemes.encode())
            self.assertEqual(url, f"{schemes.partition(',')[0].lower() or 'http'}://registry.example")

    def test_secure(self) -> None:
        """Over TLS the URLs are https."""
        directlyProvides(self.connection.transport, ISSLTransport, providedBy(self.connection.transport))
        self.assertEqual(self.location("registry.example"), "https://registry.example")


class BodySizeTests(FramingCase):
    """Bodies of 5,000 bytes and more, and of 256 KiB where these are taken."""

    def chunked(self, *chunks: bytes) -> bytes:
        head = self.request("POST", body=b"", **{"Transfer-Encoding": "chunked"})
        return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)

    def test_largestBody(self) -> None:
        """4,999 bytes are taken, in chunks too."""
        self.connection.send(self.create("web1", 4999))
        body = b'{"id": "web2", "heartbeat_timeout": 30}'.ljust(4999)
        self.connection.send(self.chunked(body[:2000], body[2000:]) + b"0\r\n\r\n")
        self.assertEqual([reply.code for reply in self.connection.replies()], [201, 201])
        self.assertTrue(self.connection.isOpen)

    def test_tooLarge(self) -> None:
        """5,000 bytes are not; nothing is stored, and the connection ends."""
        self.connection.send(self.create("web1", 5000))
        self.assertRefused(self.connection.replies())
        self.assertFalse(self.connection.isOpen)
        self.assertEqual(self.services(), [])

    def test_answeredBeforeTheBodyComes(self) -> None:
        """
        The response does not wait for the body; the connection stays until the body has come, so that nothing is reset.
        """
        data = self.create("web1", 5000)
        self.connection.send(data[:-5000])
        self.assertRefused(self.connection.replies())
        self.connection.send(data[-5000:-1])
        self.assertTrue(self.connection.isOpen)
        self.connection.send(data[-1:])
        self.assertFalse(self.connection.isOpen)
        self.assertEqual(self.connection.replies(), [])

    def test_chunked(self) -> None:
        """A body without a length is refused when there is too much of it."""
        self.connection.send(self.chunked(b"x" * 4999))
        self.assertEqual(self.connection.replies(), [])
        self.connection.send(b"1\r\nx\r\n")
        self.assertRefused(self.connection.replies())
        self.assertTrue(self.connection.isOpen)
        self.connection.send(b"3\r\nxxx\r\n0\r\n\r\n")
        self.assertFalse(self.connection.isOpen)

    def test_discardsForAWhile(self) -> None:
        """A client that goes on and on is cut off after two seconds."""
        self.connection.send(self.chunked(b"x" * 5000))
        self.assertRefused(self.connection.replies())
        for _ in range(19):
            self.connection.send(b"1\r\nx\r\n")
            self.api.clock.advance(0.1)
        self.assertTrue(self.connection.isOpen)
        self.api.clock.advance(0.2)
        self.assertFalse(self.connection.isOpen)

    def test_discardsSoMuch(self) -> None:
        """A client that sends more than a megabyte after it was refused is cut off."""
        self.connection.send(self.create("web1", 10_000_000)[:1_000_000])
        self.assertRefused(self.connection.replies())
        self.assertTrue(self.connection.isOpen)
        self.connection.send(b"x" * 100_000)
        self.assertFalse(self.connection.isOpen)

    def test_clientHangsUp(self) -> None:
        """A client that goes away when it is refused leaves nothing behind."""
        before = len(self.api.clock.getDelayedCalls())
        connection = Connection(self.api)
        connection.send(self.create("web1", 10_000)[:5_000])
        connection.transport.loseConnection()
        self.assertEqual((len(self.api.clock.getDelayedCalls()), self.flushLoggedErrors()), (before, []))

    def test_expectContinue(self) -> None:
        """A client that sends ``Expect`` gets 100, or the refusal alone."""
        data = self.create("web1", 100, Expect="100-continue")
        self.connection.send(data[:-100])
        self.assertEqual([reply.code for reply in self.connection.replies()], [100])
        self.connection.send(data[-100:])
        self.assertEqual([reply.code for reply in self.connection.replies()], [201])
        self.connection.send(self.create("web2", 5000, Expect="100-continue")[:-5000])
        self.assertRefused(self.connection.replies())
        self.assertTrue(self.connection.isOpen)
        self.api.clock.advance(2)
        self.assertFalse(self.connection.isOpen)

    def test_batches(self) -> None:
        """
        A batch of heartbeats may be as large as 256 KiB, whether its length is known or not, and however its path is
        spelt; and it is kept in memory.
        """

        def temporaryFile(*args: object) -> None:
            raise AssertionError("a body goes to the disk")

        self.patch(tempfile, "TemporaryFile", temporaryFile)
        for path in (BATCHES, BATCHES + "?x=1", "/v1.0//1234/%68eartbeats"):
            body = b'{"heartbeats": [0]}'.ljust(256 * 1024 - 1)
            self.connection.send(self.request("POST", path, body))
            head = self.request("POST", path, b"", **{"Transfer-Encoding": "chunked"})
            half = b"1f000\r\n" + body[:0x1F000] + b"\r\n"
            self.connection.send(head + half + b"%x\r\n" % len(body[0x1F000:]) + body[0x1F000:] + b"\r\n0\r\n\r\n")
            replies = self.connection.replies()
            self.assertEqual([(reply.code, len(reply.json["values"])) for reply in replies], [(200, 1)] * 2, path)
        # A smaller one after it on the same connection is bounded as ever.
        self.connection.send(self.create("web1", 5000))
        self.assertRefused(self.connection.replies())

    def test_batchesThatAreTooLarge(self) -> None:
        """256 KiB are too much, and a batch sent elsewhere is none."""
        for method, path, size in [
            ("POST", BATCHES, 256 * 1024),
            ("PUT", BATCHES, 5000),
            ("POST", BATCHES + "/", 5000),
            ("POST", "/v1.0/heartbeats", 256 * 1024),
            ("POST", "/v1.0/services", 5000),
            ("POST", "/v2.0/1234/heartbeats", 5000),
            ("POST", "/v1.0/%zz/heartbeats", 5000),
        ]:
            connection = Connection(self.api)
            connection.send(self.request(method, path, b"{}".ljust(size))[:-1])
            self.assertRefused(connection.replies())
            connection.send(b" ")
            self.assertFalse(connection.isOpen)
            head = self.request(method, path, b"", **{"Transfer-Encoding": "chunked"})
            connection = Connection(self.api)
            connection.send(head + b"%x\r\n" % size + b" " * (size - 1))
            self.assertEqual(connection.replies(), [])
            connection.send(b" ")
            self.assertRefused(connection.replies())
            connection.transport.loseConnection()

    def test_underAPlainSite(self) -> None:
        """Wherever the resource is served, what is too large is refused."""
        treq = StubTreq(self.api.resource)
        for path, size, code in (
            (SERVICES, 4999, 201),
            (SERVICES, 5000, 413),
            (BATCHES, 256 * 1024 - 1, 400),
            (BATCHES, 256 * 1024, 413),
        ):
            asked = treq.post(
                f"http://registry.example{path}",
                data=b'{"id": "web1", "heartbeat_timeout": 30}'.ljust(size),
                headers={"X-Auth-Token": self.api.token, "Content-Type": "application/json"},
            )
            treq.flush()
            response = self.successResultOf(asked)
            self.assertEqual(response.code, code)


class ConnectionTests(FramingCase):
    """How connections end."""

    def test_idle(self) -> None:
        """A connection on which nothing has happened for two minutes since its last request is closed."""
        self.connection.send(self.request())
        self.api.clock.advance(119)
        self.assertTrue(self.connection.isOpen)
        self.api.clock.advance(2)
        self.assertFalse(self.connection.isOpen)

    def test_idleEachByItself(self) -> None:
        """Each has two minutes from its last request, also after a response that took longer."""
        slow: Deferred[Any] = Deferred()
        self.patch(self.api.registry, "get", lambda *args: slow)
        first, second, busy = (Connection(self.api) for _ in range(3))
        for connection in (self.connection, first, second):
            connection.send(self.request())
        busy.send(self.request("GET", SERVICES + "/web1"))
        self.api.clock.advance(60)
        first.send(self.request())
        self.api.clock.advance(59)
        second.send(b"GET")
        self.api.clock.advance(2)
        self.assertEqual([each.isOpen for each in (self.connection, first, second, busy)], [False, True, True, True])
        self.api.clock.advance(59)
        self.assertEqual([each.isOpen for each in (first, second, busy)], [False, False, True])
        slow.callback({"id": "web1"})
        self.api.clock.advance(119)
        self.assertTrue(busy.isOpen)
        self.api.clock.advance(2)
        self.assertFalse(busy.isOpen)

    def test_drain(self) -> None:
        """Idle connections are closed at once, others with their response; then the site is drained."""
        slow: Deferred[Any] = Deferred()
        self.patch(self.api.registry, "get", lambda *args: slow)
        busy = Connection(self.api)
        busy.send(self.request("GET", SERVICES + "/web1") + self.create("web2"))
        drained = self.api.site.connections.drain(1.0)
        self.assertFalse(self.connection.isOpen)
        self.assertNoResult(drained)
        slow.callback({"id": "web1"})
        (reply,) = busy.replies()
        self.assertEqual((reply.json, reply.header("Connection")), ({"id": "web1"}, "close"))
        self.assertFalse(busy.isOpen)
        self.successResultOf(drained)
        self.successResultOf(self.api.site.connections.drain(1.0))
        self.assertEqual(self.services(), [])

    def test_drainIsBounded(self) -> None:
        """A request that takes too long is cut off."""
        self.patch(self.api.registry, "get", lambda *args: Deferred())
        self.connection.send(self.request("GET", SERVICES + "/web1"))
        drained = self.api.site.connections.drain(1.0)
        self.api.clock.advance(0.9)
        self.assertNoResult(drained)
        self.api.clock.advance(0.2)
        self.successResultOf(drained)
        self.assertFalse(self.connection.isOpen)

    def test_http11Only(self) -> None:
        """Over TLS nothing else than HTTP/1.1 is agreed on."""
        self.assertEqual(self.api.site.acceptableProtocols(), [b"http/1.1"])


class _Client(Protocol):
    """A client that keeps what comes, and how its connection ended."""

    def __init__(self) -> None:
        self.data = b""
        self.reason: Failure | None = None
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason
        self.ended.callback(None)


class SocketTests(TestCase):
    """Behavior that only sockets can show."""

    def setUp(self) -> None:
        self.api = Api()
        self.site = ApiSite(self.api.resource, reactor)  # type: ignore[arg-type]
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self.port.stopListening)

    async def connect(self) -> _Client:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        client: _Client = await connectProtocol(endpoint, _Client())
        return client

    def request(self, size: int) -> bytes:
        body = b'{"id": "web1", "heartbeat_timeout": 30}'.ljust(size)
        return requestBytes("POST", SERVICES, body, {"X-Auth-Token": self.api.token, "Connection": "close"})

    async def test_theRefusalIsRead(self) -> None:
        """A client that sends all of a large body before it reads gets the response, and not a reset."""
        for size in (5000, 100_000, 900_000):
            client = await self.connect()
            client.transport.write(self.request(size))  # type: ignore[union-attr]
            await client.ended
            self.assertIsInstance(getattr(client.reason, "value", None), ConnectionDone, size)
            self.assertEqual([reply.code for reply in parseReplies(client.data)], [413])

    async def test_answers(self) -> None:
        """An ordinary request gets an ordinary response."""
        client = await self.connect()
        client.transport.write(self.request(100))  # type: ignore[union-attr]
        await client.ended
        self.assertEqual([reply.code for reply in parseReplies(client.data)], [201])

    async def test_whatHasArrivedIsAnswered(self) -> None:
        """
        A request that has come in, and has not been read, is answered, though newcomers need its connection's place.
        """
        site = ApiSite(self.api.resource, reactor, ConnectionLimits(connections=2))  # type: ignore[arg-type]
        self.addCleanup(site.connections.drain, 1)
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
        self.addCleanup(self.port.stopListening)
        clients = [await self.connect() for _ in range(2)]
        newcomers = [socket.create_connection(("127.0.0.1", self.port.getHost().port)) for _ in range(2)]
        for each in newcomers:
            self.addCleanup(each.close)
        for each in clients:
            # Both have come before the registry looks at either: the kernel counts what has not been acknowledged.
            each.transport.writeSomeData(requestBytes("GET", "/", None, {"Connection": "close"}))  # type: ignore[union-attr]
            while fcntl.ioctl(each.transport.getHandle(), termios.TIOCOUTQ, bytes(4)) != bytes(4):  # type: ignore[union-attr]
                pass
        for each in clients:
            await each.ended
            self.assertEqual([reply.code for reply in parseReplies(each.data)], [404])

    async def test_drain(self) -> None:
        """A site that is drained has no connections, whatever happens on them."""
        idle, busy = await self.connect(), await self.connect()
        arrived: Deferred[None] = Deferred()
        self.patch(self.api.registry, "account", lambda tenant: arrived.callback(None) or Deferred())
        busy.transport.write(  # type: ignore[union-attr]
            requestBytes("GET", SERVICES + "/web1", headers={"X-Auth-Token": self.api.token})
        )
        await arrived
        self.assertFalse(idle.ended.called)
        await self.site.connections.drain(0.05)
        await idle.ended
        await busy.ended
        self.assertEqual(busy.data, b"")
