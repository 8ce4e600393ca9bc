"""
The registry's API: the tenant in the URLs, sessions, faults, pauses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from txserviceregistry.api.auth import Session
from txserviceregistry.api.shapes import readToken
from txserviceregistry.api.transport import Transport, isRegistryFault
from txserviceregistry.errors import (
    APIError,
    BadRequest,
    ConnectionFailed,
    Forbidden,
    ForeignResponse,
    InvalidSettings,
    LimitReached,
    MalformedResponse,
    NotFound,
    RateLimited,
    RequestTimedOut,
    ServerError,
    ServiceExists,
    Unauthorized,
)
from txserviceregistry.http.jsontransport import ClientClosed, JSONTransport

from ...fakeagent import FakeAgent, answer, fault

SERVER = "http://registry:8880/v1.0"
OTHER = "http://other:8880/v1.0"


def lost(kind: Any = ResponseNeverReceived, reason: Exception | None = None) -> Exception:
    return kind([Failure(reason or ConnectionDone())])


class FakeAuthenticator:
    """Gives the sessions that a test puts in."""

    def __init__(self) -> None:
        self.tenant = "7"
        self.token = "token"
        self.waiting: Deferred[Session] | None = None
        self.invalid: list[str] = []
        self.suspected: list[str] = []

    def session(self) -> Deferred[Session]:
        waiting = self.waiting or Deferred()
        if self.waiting is None:
            waiting.callback(Session(self.token, self.tenant))
        return waiting

    def stage(self, url: str) -> str:
        return "waiting for the Auth API"

    def invalidate(self, token: str) -> None:
        self.invalid.append(token)
        self.token = "the next token"

    def suspect(self, token: str) -> None:
        self.suspected.append(token)


class TransportTests(SynchronousTestCase):
    """The registry's API."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.authenticator = FakeAuthenticator()
        self.base = SERVER

    def transport(self, handler: Any) -> Transport:
        return self.transportTo(handler, lambda session: [self.base])

    def transportTo(self, handler: Any, basesFor: Callable[[Session], list[str]]) -> Transport:
        """One to the servers of *basesFor*, the first of which is asked first."""
        self.agent = FakeAgent(handler)
        servers = partial(JSONTransport, self.agent, self.clock, isFault=isRegistryFault, random=lambda: 0.0)
        return Transport(servers, self.clock, self.authenticator, basesFor, self.agent)

    def fault(self, response: Any, body: Any = None) -> Any:
        transport = self.transport(lambda sent: response)
        return self.failureResultOf(transport.request("POST", "/x", body=body)).value

    def test_pathsAreBelowTheTenant(self) -> None:
        """Every request goes below the tenant's URL, also when the tenant changes."""
        transport = self.transport(lambda sent: answer(200, {}))
        self.successResultOf(transport.request("GET", "/services"))
        self.authenticator.tenant = "8"
        self.successResultOf(transport.request("GET", "/services"))
        self.assertEqual(self.agent.asked, [f"GET {SERVER}/7/services", f"GET {SERVER}/8/services"])
        self.assertEqual(transport.baseUrl, f"{SERVER}/8")

    def test_anotherCatalogMayNameTheRegistry(self) -> None:
        """When the catalog names no registry, the next request authenticates anew, which may bring another catalog."""

        def basesFor(session: Session) -> list[str]:
            if session.token == "token":
                raise InvalidSettings("the catalog names no registry")
            return [self.base]

        transport = self.transportTo(lambda sent: answer(200, {}), basesFor)
        self.failureResultOf(transport.request("GET", "/services"), InvalidSettings)
        self.successResultOf(transport.request("GET", "/services"))

    def test_aStreamThatIsRefused(self) -> None:
        """A 401 to a stream may be a proxy's: the token stays in use until the next request has found that out."""
        answers = iter([answer(200, {}), answer(401, {})])
        transport = self.transport(lambda sent: next(answers))
        self.successResultOf(transport.request("GET", "/limits"))
        self.failureResultOf(transport.stream("/events/stream", {}, {}), ConnectionFailed)
        self.assertEqual((self.authenticator.suspected, self.authenticator.invalid), (["token"], []))

    def test_theDeadlineCoversAuthentication(self) -> None:
        """A request that waits for its token too long says what it waited for."""
        transport = self.transport(lambda sent: answer(200, {}))
        self.authenticator.waiting = Deferred()
        request = transport.request("GET", "/services", timeout=3)
        self.clock.advance(3)
        self.assertIn("waiting for the Auth API", str(self.failureResultOf(request, RequestTimedOut).value))

    # -- tokens

    def test_aRefusedTokenIsReplaced(self) -> None:
        """After a 401 of the registry, the request is sent once more with a new token, below the new token's tenant."""

        def serve(sent: Any) -> Any:
            self.authenticator.tenant = "8"
            return answer(200, {}) if sent.token == "the next token" else fault("unauthorizedError")

        transport = self.transport(serve)
        self.successResultOf(transport.request("POST", "/services", body={}))
        self.assertEqual(self.agent.asked, [f"POST {SERVER}/7/services", f"POST {SERVER}/8/services"])
        self.assertEqual([sent.token for sent in self.agent.sent], ["token", "the next token"])
        self.assertEqual((self.authenticator.invalid, self.authenticator.suspected), (["token"], []))

    def test_aNewTokenThatIsRefusedIsAnError(self) -> None:
        """There is no third request."""
        self.assertIsInstance(self.fault(fault("unauthorizedError")), Unauthorized)
        self.assertEqual(len(self.agent.sent), 2)
        self.assertEqual(self.authenticator.invalid, ["token"])

    def test_aKeystoneChallengeRefusesTheToken(self) -> None:
        """A 401 with a challenge of Keystone is the registry's, whatever its body, and another server is not asked."""
        page = answer(401, b"<html>", WWW_Authenticate='Keystone uri="http://auth/v2.0"')
        urls = ["http://a/v1.0", "http://b/v1.0"]
        transport = self.transportTo(lambda sent: page if sent.token == "token" else answer(200, {}), lambda _: urls)
        self.successResultOf(transport.request("GET", "/x"))
        self.assertEqual(self.agent.asked, ["GET http://a/v1.0/7/x"] * 2)
        self.assertEqual(self.authenticator.invalid, ["token"])

    def test_a401OfAProxyDoesNotRefuseTheToken(self) -> None:
        """It is the response, and the token is suspected only."""
        self.assertIsInstance(self.fault(answer(401, b"<html>")), ForeignResponse)
        self.assertEqual(len(self.agent.sent), 1)
        self.assertEqual((self.authenticator.invalid, self.authenticator.suspected), ([], ["token"]))

    def test_theDeadlineCoversTheSecondAuthentication(self) -> None:
        """A request whose token was refused says that it waits for a new one. Its server is not late."""

        def serve(sent: Any) -> Any:
            self.authenticator.waiting = Deferred()
            return fault("unauthorizedError")

        transport = self.transportTo(serve, lambda _: ["http://a/v1.0", "http://b/v1.0"])
        request = transport.request("GET", "/services", timeout=3)
        self.clock.advance(3)
        self.assertIn("waiting for the Auth API", str(self.failureResultOf(request, RequestTimedOut).value))
        self.assertEqual(transport.baseUrl, "http://a/v1.0/7")

    # -- faults

    def test_faultsAreTyped(self) -> None:
        """Each fault of the API is an exception of its own, with all that the registry said."""
        kinds: list[tuple[int, str, type[APIError]]] = [
            (400, "badRequest", BadRequest),
            (400, "invalidLimit", BadRequest),
            (400, "serviceWithThisIdExists", ServiceExists),
            (400, "limitReached", LimitReached),
            (401, "unauthorizedError", Unauthorized),
            (403, "forbiddenError", Forbidden),
            (404, "notFoundError", NotFound),
            (413, "requestTooLargeError", BadRequest),
            (500, "internalError", ServerError),
            (503, "systemFailureError", ServerError),
        ]
        for status, type, kind in kinds:
            body = {"type": type, "code": status, "message": "m", "details": "d", "txnId": "t"}
            error = self.fault(answer(status, body))
            self.assertIs(error.__class__, kind)
            self.assertEqual(
                (error.status, error.type, error.message, error.details, error.txnId), (status, type, "m", "d", "t")
            )
            self.assertIn(f"POST {SERVER}/7/x returned {status} {type}: m: d (txnId t)", str(error))

    def test_aTakenIdIsExplainedToAll(self) -> None:
        """The advice for an id that is taken suits callers that have to wait, and those that wait already."""
        body = {"type": "serviceWithThisIdExists", "code": 400, "message": "Service with id web1 already exists."}
        said = str(self.fault(answer(400, body)))
        self.assertIn("After a restart, wait for the heartbeat timeout", said)
        self.assertIn("as register() and the wrapper do", said)
        self.assertIn("else use another id", said)
        self.assertNotIn("..", said)

    def test_errorsThatAreNoFaultsAreTypedByTheirStatus(self) -> None:
        """A proxy's error page, or JSON of another kind, is an error all the same."""
        for body in (b"<html>Bad Gateway", [1], {"message": 5, "type": None}):
            error = self.fault(answer(502, body, X_Response_Id="abc"))
            self.assertIs(type(error), ServerError)
            self.assertEqual((error.type, error.txnId), ("", "abc"))

    def test_onlyAFaultOfTheApiIsTheRegistrysAnswer(self) -> None:
        """
        A 4xx that is not a fault of the API is a ForeignResponse, which is neither NotFound nor a refusal: HTML, a
        problem of RFC 9457, a type that the API does not have, and a code of another type or of another status.
        """
        good = {"type": "notFoundError", "code": 404, "message": "object does not exist"}
        self.assertIs(type(self.fault(answer(404, good))), NotFound)
        problem = {"type": "about:blank", "title": "Not Found"}
        for status in (400, 401, 403, 404, 405, 408, 410, 413, 418, 429, 451):
            for body in (
                b"",
                b"<html>",
                b"null",
                [],
                problem,
                {**good, **problem},
                {**good, "type": "teapot", "code": status},
                {**good, "type": ["notFoundError"]},
                {**good, "code": None},
                {**good, "code": 400},
                {**good, "code": "404"},
                {"type": "notFoundError", "code": 404},
                {**good, "message": None},
                *([good] if status != 404 else []),
            ):
                error = self.fault(answer(status, body))
                self.assertIs(type(error), ForeignResponse, (status, body))
                self.assertEqual((error.status, error.method), (status, "POST"))
                self.assertIn(
                    f"POST {SERVER}/7/x returned {status}, but the response is not from the registry", str(error)
                )

    def test_extensionsEndWithTheRegistryThatHadThem(self) -> None:
        """A fault of a registry without extensions says that it has none; a gateway's page says nothing."""
        transport = self.transport(lambda sent: answer(200, {}, X_Service_Registry_Extensions="heartbeats"))
        self.successResultOf(transport.request("GET", "/x"))
        for response, extensions in (
            (answer(404, b"<html>"), {"heartbeats"}),
            (answer(503, b"<html>"), {"heartbeats"}),
            (fault("notFoundError"), set()),
        ):
            self.agent.handler = lambda sent, response=response: response
            self.failureResultOf(transport.request("GET", "/x"))
            self.assertEqual(transport.extensions, extensions)

    def test_theNextServerIsAskedWhenAGatewayAnswers(self) -> None:
        """A gateway without its registry is skipped like a server that is down; a registry that refuses is not."""
        for page in (
            answer(404, b"<html>"),
            answer(401),
            answer(302, Location="http://login"),
            answer(200, b"<html>"),
            answer(501, b"<html>"),
            answer(521),
        ):
            transport = self.transportTo(
                lambda sent, page=page: page if "//a/" in sent.url else answer(200, {}),
                lambda _: ["http://a/v1.0", "http://b/v1.0"],
            )
            self.assertEqual(self.successResultOf(transport.request("GET", "/x")).url, "http://b/v1.0/7/x")
            self.successResultOf(transport.request("GET", "/x"))
            self.assertEqual(self.agent.asked, [f"GET http://{one}/v1.0/7/x" for one in "abb"])
        for type, kind in (("notFoundError", NotFound), ("notImplementedError", ServerError)):
            self.agent.sent.clear()
            self.agent.handler = lambda sent, type=type: fault(type)
            self.failureResultOf(transport.request("GET", "/x"), kind)
            self.assertEqual(len(self.agent.asked), 1)

    def test_urlsThatAreNoRegistrys(self) -> None:
        """If another server answers, the error says that the URL may be wrong."""
        gone = {"type": "notFoundError", "code": 404, "message": "object does not exist"}
        ask = "Check that this is the URL of a service registry"
        incomplete = "Check the registry's URL, which ends in /v1.0"
        for response, kind, doubt in (
            (answer(404, b"<html>"), ForeignResponse, ask),
            (answer(501, b"<html>"), ServerError, ask),
            (answer(503, b"<html>"), ServerError, ""),
            (fault("notImplementedError"), ServerError, ""),
            (answer(404, gone), NotFound, ""),
            (answer(404, {**gone, "message": "The page cannot be found."}), NotFound, incomplete),
        ):
            error = self.fault(response)
            self.assertIs(type(error), kind)
            self.assertEqual(error.doubt, doubt, response.code)
            self.assertIn(error.doubt, str(error))
            self.assertNotIn("Retry later" if doubt else ask, str(error))

    def test_rateLimitsSayWhenToComeBack(self) -> None:
        """retryAfter is what the registry says in seconds, None if it says nothing that is a number."""
        limited = self.fault(fault("rateLimitReached", Retry_After="12"))
        self.assertIsInstance(limited, RateLimited)
        self.assertEqual(limited.retryAfter, 12.0)
        self.assertIsNone(self.fault(fault("rateLimitReached", Retry_After="soon")).retryAfter)
        self.assertEqual(self.fault(answer(503, Retry_After="12")).retryAfter, 12.0)

    def test_headersThatAreNoText(self) -> None:
        """A proxy before a registry may send any bytes; they make no other error than the answer does."""
        response = fault("rateLimitReached")
        for name in (b"Retry-After", b"X-Response-Id", b"X-Service-Registry-Extensions"):
            response.headers.setRawHeaders(name, [b"\xff\xfe"])
        self.assertIsInstance(self.fault(response), RateLimited)

    def test_redirectsAreNotFollowed(self) -> None:
        """A redirect is not followed; the error says where it leads, and which setting to change."""
        for location, shown in (
            ("https://elsewhere/v1.0", "https://elsewhere/v1.0"),
            ("/other", "http://registry:8880/other"),
            ("https://else\x1bwhere", "https://else?where"),
            ("http://[elsewhere", "http://[elsewhere"),
        ):
            error = self.fault(answer(308, Location=location))
            self.assertIsInstance(error, MalformedResponse)
            self.assertIn(f"returned 308. It redirects to {shown}, which is not followed", str(error))
            self.assertIn("Change the URL: RAXSR_API_URL ([api] url)", str(error))
        self.assertIn("returned 304. Check that this is the URL of a service registry", str(self.fault(answer(304))))

    def test_aTokenThatComesBackInAFaultIsHidden(self) -> None:
        """A fault that quotes the token which was sent does not show it, in its text or its attributes."""
        details = 'Object "HeartbeatMarker" with key "s3cret" does not exist'
        error = self.fault(fault("notFoundError", "object does not exist", details), {"token": "s3cret"})
        self.assertNotIn("s3cret", f"{error} {error!r} {error.details}")

    def test_responsesAreValidated(self) -> None:
        """A response of another shape is a MalformedResponse that names the request and what is wrong."""
        transport = self.transport(lambda sent: answer(200, {"token": 5}))
        response = self.successResultOf(transport.request("GET", "/x"))
        error = self.assertRaises(MalformedResponse, response.read, readToken)
        self.assertIn("GET http://registry:8880/v1.0/7/x returned 200, but token is not a string", str(error))

    def test_pausesEndWithTheTransport(self) -> None:
        """A pause fires in its time, can be cancelled, and does not outlive the transport."""
        transport = self.transport(lambda sent: answer(200, {}))
        done, cancelled, ended = transport.pause(1), transport.pause(5), transport.pause(5)
        self.clock.advance(1)
        self.successResultOf(done)
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        transport.close()
        self.failureResultOf(ended, ClientClosed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
