"""
JSON over HTTP: URLs, bodies, deadlines, failover.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error as TLSError
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError, DNSLookupError, TimeoutError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseFailed, ResponseNeverReceived

from txserviceregistry.errors import ConnectionFailed, MalformedResponse, RequestTimedOut
from txserviceregistry.http.jsontransport import ClientClosed, JSONTransport
from txserviceregistry.http.messages import ResponseTooLarge, segment
from txserviceregistry.http.pool import AgentClosed, StaleConnection

from ...fakeagent import FakeAgent, answer

SERVER = "http://registry:8880/v1.0"
OTHER = "http://other:8880/v1.0"


def lost(kind: Any = ResponseNeverReceived, reason: Exception | None = None) -> Exception:
    return kind([Failure(reason or ConnectionDone())])


class SegmentTests(SynchronousTestCase):
    """Ids in paths."""

    def test_noIdChangesTheRoute(self) -> None:
        """Slashes, percent signs, dots and other scripts stay inside the one segment."""
        ids = {
            "web1": "web1",
            "a/b": "a%2Fb",
            "..": "%2E%2E",
            ".": "%2E",
            "...": "...",
            "a%2fb": "a%252fb",
            "a?b#c": "a%3Fb%23c",
            "é \n": "%C3%A9%20%0A",
        }
        self.assertEqual({text: segment(text) for text in ids}, ids)


class JSONTransportTests(SynchronousTestCase):
    """One server, or several."""

    def setUp(self) -> None:
        self.clock = Clock()

    def transport(self, handler: Any = None, *urls: str) -> JSONTransport:
        self.agent = FakeAgent(handler)
        return JSONTransport(self.agent, self.clock, urls or (SERVER,), random=lambda: 0.0)

    def fails(self, request: Deferred[Any], kind: type[Exception]) -> str:
        return str(self.failureResultOf(request, kind).value)

    # -- tries beside each other

    def test_aServerThatIsLateIsNotGivenUp(self) -> None:
        """The next one is asked beside it, and the first answer counts; the other request is ended."""
        for winner in (0, 1):
            ended: list[object] = []
            pending: list[Deferred[Any]] = []

            def hang(sent: Any, pending: list[Deferred[Any]] = pending, ended: list[object] = ended) -> Deferred[Any]:
                pending.append(Deferred(ended.append))
                return pending[-1]

            transport = self.transport(hang, "http://a", "http://b", "http://c")
            asked = transport.request("GET", "/x", timeout=3)
            self.clock.advance(1)
            self.assertEqual((self.agent.asked, ended), (["GET http://a/x", "GET http://b/x"], []))
            pending[winner].callback(answer(200, {"from": winner}))
            response = self.successResultOf(asked)
            self.assertEqual((response.json, response.url), ({"from": winner}, f"http://{'ab'[winner]}/x"))
            self.assertEqual(transport.baseUrl, f"http://{'ab'[winner]}")
            self.assertEqual(len(ended), 1)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_aLateServerMayBeTheOnlyOneThatAnswers(self) -> None:
        """When the others have failed, it has until the deadline."""
        late: Deferred[Any] = Deferred()
        transport = self.transport(lambda sent: late if "//a/" in sent.url else answer(503), "http://a", "http://b")
        asked = transport.request("GET", "/x", timeout=4)
        self.clock.advance(2)
        self.assertNoResult(asked)
        self.clock.advance(1.9)
        late.callback(answer(200, {}))
        self.assertEqual(self.successResultOf(asked).status, 200)

    def test_noneAnswersInTime(self) -> None:
        """At the deadline all requests are ended."""
        ended: list[object] = []
        transport = self.transport(lambda sent: Deferred(ended.append), "http://a", "http://b")
        asked = transport.request("GET", "/x", timeout=4)
        self.clock.advance(2)
        self.clock.advance(2)
        self.failureResultOf(asked, RequestTimedOut)
        self.assertEqual(len(ended), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancellingEndsAll(self) -> None:
        """So does cancelling."""
        ended: list[object] = []
        transport = self.transport(lambda sent: Deferred(ended.append), "http://a", "http://b")
        asked = transport.request("GET", "/x", timeout=4)
        self.clock.advance(2)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(len(ended), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    # -- what is sent and what comes back

    def test_queriesAreEncodedAndLackWhatIsNone(self) -> None:
        """Each parameter goes out encoded; those that are None do not go at all."""
        transport = self.transport(lambda sent: answer(200, {}))
        transport.request("GET", "/x", query={"tag": "a&b c/ü", "marker": None, "limit": 5})
        transport.request("GET", "/x", query={"marker": None})
        self.assertEqual(self.agent.asked, [f"GET {SERVER}/x?tag=a%26b%20c%2F%C3%BC&limit=5", f"GET {SERVER}/x"])

    def test_bodiesAreJSON(self) -> None:
        """A body goes out as JSON with its content type, a request without one says nothing of the kind."""
        transport = self.transport(lambda sent: answer(200, {}))
        transport.request("PUT", "/x", body={"value": "ü", "half": "\ud800"})
        transport.request("GET", "/x")
        put, get = self.agent.sent
        self.assertEqual(put.body, {"value": "ü", "half": "\ud800"})
        self.assertEqual(put.headers.getRawHeaders("Content-Type"), ["application/json; charset=UTF-8"])
        self.assertFalse(get.headers.hasHeader("Content-Type"))
        self.assertIsNone(get.body)

    def test_answersOfAnyStatusComeBack(self) -> None:
        """The status, headers and JSON of an answer are handed on; what an error has for a body may be anything."""
        answers = [answer(201, {"a": 1}, Location="there"), answer(204), answer(502, b"<html>")]
        transport = self.transport(lambda sent: answers.pop(0))
        created, empty, broken = (self.successResultOf(transport.request("GET", "/x")) for _ in range(3))
        self.assertEqual((created.status, created.json, created.header("location")), (201, {"a": 1}, "there"))
        self.assertEqual((empty.status, empty.json, empty.header("Location")), (204, None, None))
        self.assertEqual((broken.status, broken.json), (502, None))

    def test_whatIsNotJSONIsMalformed(self) -> None:
        """A success whose body is not JSON, or nested beyond reason, is a MalformedResponse that names the URL."""
        for body in (b"<html>", b'{"a": ', b"\xff\xfe", b"[" * 200_000):
            transport = self.transport(lambda sent, body=body: answer(200, body))
            self.assertIn(f"GET {SERVER}/x", self.fails(transport.request("GET", "/x"), MalformedResponse))

    def test_whatIsCutShortOrTooLongIsMalformed(self) -> None:
        """A response that ends too early, is not HTTP, or does not end, is a MalformedResponse."""
        for error in (lost(ResponseFailed), ResponseTooLarge("more than 5 bytes")):
            transport = self.transport(lambda sent, error=error: error)
            self.assertIn(f"GET {SERVER}/x", self.fails(transport.request("GET", "/x"), MalformedResponse))

    # -- failures

    def test_failuresSayWhatHappened(self) -> None:
        """A request without a response fails with ConnectionFailed, which names the URL and the cause."""
        causes = {
            "connection refused": ConnectionRefusedError(),
            "no response to the connection attempt": TimeoutError(),
            "no such host": DNSLookupError(),
            "the connection was closed": lost(),
            "TLS failed: ": lost(reason=TLSError("certificate verify failed")),
            "ZeroDivisionError": ZeroDivisionError(),
            "OSError: strange": lost(reason=OSError("strange")),
        }
        for words, error in causes.items():
            transport = self.transport(lambda sent, error=error: error)
            text = self.fails(transport.request("POST", "/x"), ConnectionFailed)
            self.assertIn(f"POST {SERVER}/x", text)
            self.assertIn(words, text)

    def test_timeoutCoversEverything(self) -> None:
        """A request that is not answered within its time is cancelled and fails with RequestTimedOut."""
        transport = self.transport()
        byDefault, shorter = transport.request("GET", "/x"), transport.request("GET", "/y", timeout=2.5)
        self.clock.advance(2.4)
        self.assertNoResult(shorter)
        self.clock.advance(0.2)
        text = self.fails(shorter, RequestTimedOut)
        self.assertIn(f"GET {SERVER}/y timed out after 2.5 s", text)
        self.clock.advance(8)
        self.assertIn("after 10 s", self.fails(byDefault, RequestTimedOut))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancellingCancelsTheRequest(self) -> None:
        """A caller's own cancel is a CancelledError, reaches the agent, and leaves nothing on the clock."""
        cancelled: list[object] = []
        transport = self.transport(lambda sent: Deferred(cancelled.append))
        request = transport.request("GET", "/x")
        request.cancel()
        self.failureResultOf(request, CancelledError)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_answeredRequestsLeaveNothingOnTheClock(self) -> None:
        """The deadline goes with the answer."""
        transport = self.transport(lambda sent: answer(200, {}))
        self.successResultOf(transport.request("GET", "/x"))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closedAgentMeansClosedClient(self) -> None:
        """A request through an agent that was closed says so."""
        transport = self.transport(lambda sent: AgentClosed())
        self.assertIn("has been closed", self.fails(transport.request("GET", "/x"), ClientClosed))

    # -- stale connections

    def test_sentAgainAtOnceWhenTheConnectionWasStale(self) -> None:
        """A request that may be sent twice is sent again on the next connection, without an error."""
        answers: list[Any] = [lost(StaleConnection), lost(StaleConnection), answer(200, {"a": 1})]
        transport = self.transport(lambda sent: answers.pop(0))
        response = self.successResultOf(transport.request("POST", "/x", body={}, repeatable=True))
        self.assertEqual(response.json, {"a": 1})

    def test_staleConnectionsAreTriedOnlySoOften(self) -> None:
        """The client gives up on a server that closes every connection."""
        transport = self.transport(lambda sent: lost(StaleConnection))
        self.fails(transport.request("GET", "/x"), ConnectionFailed)
        self.assertEqual(len(self.agent.sent), 3)

    def test_whatMayNotBeSentTwiceIsNot(self) -> None:
        """A POST that was not answered fails: the client can't know whether the server acted on it."""
        transport = self.transport(lambda sent: lost(StaleConnection), SERVER, OTHER)
        self.fails(transport.request("POST", "/x", body={}), ConnectionFailed)
        self.assertEqual(len(self.agent.sent), 1)

    # -- several servers

    def test_staysWithAServerThatWorks(self) -> None:
        """A server that can't be reached is left for the next, and that one is the first to be asked from then on."""
        transport = self.transport(
            lambda sent: ConnectionRefusedError() if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
        )
        for _ in range(2):
            self.successResultOf(transport.request("POST", "/x", body={}))
        self.assertEqual(self.agent.asked, [f"POST {SERVER}/x", f"POST {OTHER}/x", f"POST {OTHER}/x"])
        self.assertEqual(transport.baseUrl, OTHER)

    def test_repeatsOnTheNextServerWhatMayBeRepeated(self) -> None:
        """A request without an answer goes to the next server, if it may have its effect twice."""
        transport = self.transport(
            lambda sent: lost() if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
        )
        self.successResultOf(transport.request("GET", "/x"))
        self.assertEqual(self.agent.asked, [f"GET {SERVER}/x", f"GET {OTHER}/x"])

    def test_repeatsWhatWasCutShort(self) -> None:
        """An answer that breaks off in the middle, because its server has died, is asked for again of the next one."""
        cut = lost(ResponseFailed)
        transport = self.transport(lambda sent: cut if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER)
        self.successResultOf(transport.request("GET", "/x"))
        self.fails(self.transport(lambda sent: cut, SERVER, OTHER).request("POST", "/x"), MalformedResponse)
        self.assertEqual(self.agent.asked, [f"POST {SERVER}/x"])

    def test_aHangingServerGetsItsShareOfTheTime(self) -> None:
        """The first of two servers has half of the deadline, so that the second one can still answer."""
        transport = self.transport(
            lambda sent: Deferred() if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
        )
        request = transport.request("GET", "/x")
        self.clock.advance(4.9)
        self.assertNoResult(request)
        self.clock.advance(0.2)
        self.successResultOf(request)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_whenAllHangTheDeadlineEndsIt(self) -> None:
        """Two hanging servers are one timeout."""
        transport = self.transport(None, SERVER, OTHER)
        request = transport.request("GET", "/x")
        self.clock.pump([5.0, 5.0])
        self.assertIn(OTHER, self.fails(request, RequestTimedOut))

    def test_whenNoneCanBeReachedTheLastOneIsNamed(self) -> None:
        """With all servers refusing, the failure is that of a server."""
        transport = self.transport(lambda sent: ConnectionRefusedError(), SERVER, OTHER)
        self.assertIn(OTHER, self.fails(transport.request("GET", "/x"), ConnectionFailed))

    def test_saysWhetherTheRequestMayHaveReachedAServer(self) -> None:
        """It was sent if any of the servers was sent it, whichever of them is the last one to fail."""
        for first, wasSent in ((ConnectionRefusedError, False), (lost, True)):

            def handler(sent: Any, first: Any = first) -> Any:
                return first() if sent.url.startswith(SERVER) else ConnectionRefusedError()

            request = self.transport(handler, SERVER, OTHER).request("PUT", "/x")
            self.assertEqual(self.failureResultOf(request, ConnectionFailed).value.wasSent, wasSent)

    def test_aLimitSaysNothingAboutOtherServers(self) -> None:
        """A proxy's 429 is the response only if no other server may have received the request."""
        for first, expected in ((lost(), ConnectionFailed), (answer(503), 503), (ConnectionRefusedError(), 429)):
            for servers in ((SERVER, OTHER), (OTHER, SERVER)):

                def handler(sent: Any, first: Any = first) -> Any:
                    return first if sent.url.startswith(SERVER) else answer(429, b"<html>")

                isFault = lambda status, *_: status == 503  # noqa: E731 (the 429 is a proxy's)
                transport = JSONTransport(FakeAgent(handler), self.clock, servers, isFault=isFault)
                request = transport.request("PUT", "/x")
                if expected is ConnectionFailed:
                    self.assertTrue(self.failureResultOf(request, ConnectionFailed).value.wasSent)
                else:
                    self.assertEqual(self.successResultOf(request).status, expected)

    def test_whatALimitRejectsGoesToTheNextServer(self) -> None:
        """A request that a proxy rejects with 429 had no effect, so that it may be sent elsewhere, whatever it is."""

        def handler(sent: Any) -> Any:
            return answer(429, b"<html>") if sent.url.startswith(SERVER) else answer(200, {})

        isFault = lambda status, *_: False  # noqa: E731
        for method in ("POST", "PUT"):
            transport = JSONTransport(FakeAgent(handler), self.clock, (SERVER, OTHER), isFault=isFault)
            self.assertEqual(self.successResultOf(transport.request(method, "/x")).status, 200)

    def test_leavesAServerThatCannotDoItsWork(self) -> None:
        """A request that may be repeated goes to the next server after a 503, and later requests begin there."""
        transport = self.transport(
            lambda sent: answer(503) if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
        )
        for _ in range(2):
            self.assertEqual(self.successResultOf(transport.request("GET", "/x")).status, 200)
        self.assertEqual(self.agent.asked, [f"GET {SERVER}/x", f"GET {OTHER}/x", f"GET {OTHER}/x"])

    def test_repeatsNothingThatMayHaveBeenDone(self) -> None:
        """A POST that was answered with 503, or not at all, is not sent again; only the next request goes elsewhere."""
        for fault in (lambda: answer(503), lambda: lost()):
            transport = self.transport(
                lambda sent, fault=fault: fault() if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
            )
            transport.request("POST", "/x", body={}).addErrback(lambda _: None)
            self.assertEqual(self.agent.asked, [f"POST {SERVER}/x"])
            self.successResultOf(transport.request("POST", "/x", body={}))
            self.assertEqual(self.agent.asked, [f"POST {SERVER}/x", f"POST {OTHER}/x"])

    def test_whatMayNotBeRepeatedLeavesAHangingServerAfterItsDeadline(self) -> None:
        """A POST that hangs fails at its deadline, and what comes next begins with the other server."""
        transport = self.transport(
            lambda sent: Deferred() if sent.url.startswith(SERVER) else answer(200, {}), SERVER, OTHER
        )
        request = transport.request("POST", "/x", body={})
        self.clock.advance(10)
        self.failureResultOf(request, RequestTimedOut)
        self.successResultOf(transport.request("POST", "/x", body={}))

    def test_whenAllAreInTroubleTheirAnswerIsGiven(self) -> None:
        """With one server refusing connections and the other answering 503, the 503 is what one gets."""
        transport = self.transport(
            lambda sent: answer(503) if sent.url.startswith(SERVER) else ConnectionRefusedError(), SERVER, OTHER
        )
        self.assertEqual(self.successResultOf(transport.request("GET", "/x")).status, 503)
        self.assertEqual(len(self.agent.sent), 2)
