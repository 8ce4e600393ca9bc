"""
The agent that puts tokens on requests.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.http_headers import Headers

from txserviceregistry.api.auth import Credentials, KeystoneAuthenticator, RetryingAuthAgent
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.util.deferred import returnsDeferred

from ...fakeagent import API_KEY, FakeAgent, access, answer, fault

AUTH = "http://registry:8880/v2.0"


class RetryingAuthAgentTests(SynchronousTestCase):
    """The agent that puts tokens on requests."""

    def setUp(self) -> None:
        self.valid = {"token-1"}
        self.issued = 0
        self.agent = FakeAgent(self.serve)
        transport = JSONTransport(self.agent, Clock(), [AUTH])
        self.authenticator = KeystoneAuthenticator(transport, Credentials("joe", API_KEY), clock=Clock())
        self.authenticated = RetryingAuthAgent(self.agent, self.authenticator)

    def serve(self, sent: Any) -> Any:
        if sent.url.startswith(AUTH):
            self.issued += 1
            return answer(200, access(f"token-{self.issued}"))
        return answer(200, {"token": sent.token}) if sent.token in self.valid else fault("unauthorizedError")

    def get(self) -> Deferred[Any]:
        return self.authenticated.request(b"GET", b"http://registry/x")

    def test_putsTheTokenOn(self) -> None:
        """Each request carries the token, in headers of its own."""
        headers = Headers({"X-Other": ["1"]})
        response = self.successResultOf(self.authenticated.request(b"GET", b"http://registry/x", headers))
        self.assertEqual(response.code, 200)
        self.assertEqual(self.agent.sent[-1].headers.getRawHeaders("X-Other"), ["1"])
        self.assertFalse(headers.hasHeader("X-Auth-Token"))

    def test_anExpiredTokenIsReplacedUnnoticed(self) -> None:
        """On 401 a new token is fetched and the request sent once more."""
        self.successResultOf(self.get())
        self.valid = {"token-2"}
        self.assertEqual(self.successResultOf(self.get()).code, 200)
        self.assertEqual(self.issued, 2)

    def test_aThousandRefusedRequestsCostOneAuthentication(self) -> None:
        """1,000 requests in flight when the token is purged: one authentication, and all succeed."""
        self.successResultOf(self.get())
        self.agent.handler = None
        waiting = [self.get() for _ in range(1000)]
        purged, self.agent.pending = self.agent.pending, []
        self.valid = {"token-2"}
        # The first complaint asks for a token; half of the others come before it is there.
        for request in purged[:500]:
            request.callback(fault("unauthorizedError"))
        tokens = list(self.agent.pending)
        self.assertEqual(len(tokens), 1)
        self.agent.handler = self.serve
        tokens[0].callback(answer(200, access("token-2")))
        for request in purged[500:]:
            request.callback(fault("unauthorizedError"))
        self.assertEqual({self.successResultOf(request).code for request in waiting}, {200})
        self.assertEqual(len([sent for sent in self.agent.sent if sent.url.startswith(AUTH)]), 2)

    def test_aFreshTokenThatIsRefusedIsTheAnswer(self) -> None:
        """A second 401 goes to the caller: there is no loop."""
        self.valid = set()
        self.assertEqual(self.successResultOf(self.get()).code, 401)
        self.assertEqual(self.issued, 2)

    def test_aKeystoneChallengeCounts(self) -> None:
        """A 401 that asks for a token of Keystone is about the token, whatever its body."""
        self.successResultOf(self.get())
        self.valid = {"token-2"}
        challenge = 'Keystone uri="http://auth/v2.0"'
        serve = self.serve

        def challenging(sent: Any) -> Any:
            response = serve(sent)
            return answer(401, b"<html>", WWW_Authenticate=challenge) if response.code == 401 else response

        self.agent.handler = challenging
        self.assertEqual(self.successResultOf(self.get()).code, 200)

    def test_aProxys401DoesNotEndTheToken(self) -> None:
        """
        A 401 that is not the registry's goes to the caller, and the token stays in use, also while the Auth API is
        down. A new one is fetched beside it, once a minute at most.
        """
        self.successResultOf(self.get())
        for page in (answer(401), answer(401, b"<html>", WWW_Authenticate="Basic realm=p"), answer(401, {"error": 1})):
            self.agent.handler = lambda sent, page=page: answer(503) if sent.url.startswith(AUTH) else page
            for _ in range(10):
                self.assertEqual(self.successResultOf(self.get()).code, 401)
        self.assertEqual(len([sent for sent in self.agent.sent if sent.url.startswith(AUTH)]), 2)
        self.agent.handler = self.serve
        response = self.successResultOf(self.get())
        self.assertEqual((response.code, self.agent.sent[-1].token), (200, "token-1"))

    def test_aProxys401IsNotBelievedForever(self) -> None:
        """A registry whose 401 is not a fault of the API gets a new token at the second try after it."""
        self.successResultOf(self.get())
        self.valid = {"token-2"}
        serve = self.serve
        self.agent.handler = lambda sent: response if (response := serve(sent)).code == 200 else answer(401)
        codes = [self.successResultOf(self.get()).code for _ in range(3)]
        self.assertEqual(codes, [401, 401, 200])

    def test_cancellingReachesWhatIsUnderWay(self) -> None:
        """Cancelling cancels the request itself."""
        self.successResultOf(self.get())
        ended: list[object] = []
        self.agent.handler = lambda sent: Deferred(ended.append)
        request = self.get()
        request.cancel()
        self.failureResultOf(request, CancelledError)
        self.assertEqual(len(ended), 1)


class TreqTests(TestCase):
    """The agent under treq, without the rest of the client. (treq sends bodies through the reactor.)"""

    async def test_worksUnderTreqAlone(self) -> None:
        """With treq and any agent, bodies included: they are sent again whole after a 401."""
        bodies: list[bytes] = []

        class Consumer:
            data = b""

            def write(self, data: bytes) -> None:
                self.data += data

        class Plain:
            @returnsDeferred
            async def request(self, method: bytes, uri: bytes, headers: Headers, body: Any) -> Any:
                consumer = Consumer()
                await body.startProducing(consumer)
                bodies.append(consumer.data)
                [token] = headers.getRawHeaders("X-Auth-Token")
                original = answer(200, {"token": token}) if token == "token-2" else fault("unauthorizedError")
                # Not the kind of response that our own queue gives.
                members = {**vars(original), "length": original.length}
                return type("Plain", (), {**members, "deliverBody": lambda _, p: original.deliverBody(p)})()

        tokens = iter(["token-1", "token-2"])
        transport = JSONTransport(FakeAgent(lambda sent: answer(200, access(next(tokens)))), Clock(), [AUTH])
        authenticator = KeystoneAuthenticator(transport, Credentials("joe", API_KEY), clock=Clock())
        client = HTTPClient(RetryingAuthAgent(Plain(), authenticator))
        response = await client.post("http://registry/x", json={"a": 1})
        self.assertEqual(response.code, 200)
        self.assertEqual(bodies, [b'{"a":1}'] * 2)
        self.assertEqual(await response.json(), {"token": "token-2"})
