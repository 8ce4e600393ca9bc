"""
The authenticator: getting, sharing, renewing and losing tokens.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.api.auth import Credentials, KeystoneAuthenticator
from txserviceregistry.errors import (
    APIError,
    AuthenticationFailed,
    ConnectionFailed,
    ForeignResponse,
    InvalidSettings,
    MalformedResponse,
    NotFound,
    RequestTimedOut,
    ServerError,
)
from txserviceregistry.http.jsontransport import JSONTransport
from txserviceregistry.http.pool import AgentClosed

from ...fakeagent import API_KEY, TOKEN, FakeAgent, access, answer, authFault

AUTH = "http://registry:8880/v2.0"
NOW = 1_800_000_000.0


def at(seconds: float) -> str:
    """How the Auth API writes an instant so many seconds after NOW."""
    return datetime.fromtimestamp(NOW + seconds, timezone.utc).isoformat()


def authenticatorOver(agent: FakeAgent, **options: Any) -> tuple[KeystoneAuthenticator, Clock]:
    clock = Clock()
    transport = JSONTransport(agent, clock, [AUTH], name="the Auth API")
    authenticator = KeystoneAuthenticator(
        transport,
        Credentials("joe", API_KEY),
        clock=clock,
        wallClock=lambda: NOW + clock.seconds(),
        random=lambda: 0.0,
        **options,
    )
    return authenticator, clock


class AuthenticatorTests(SynchronousTestCase):
    """One authenticator over time."""

    def setUp(self) -> None:
        self.tokens = 0
        self.problem: Any = None
        self.life: float | None = 1000.0
        self.agent = FakeAgent(self.issue)
        self.authenticator, self.clock = authenticatorOver(self.agent)
        self.log = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)

    def issue(self, sent: Any) -> Any:
        if self.problem is not None:
            return self.problem
        self.tokens += 1
        expires = {} if self.life is None else {"expires": at(self.clock.seconds() + self.life)}
        return answer(200, access(f"token-{self.tokens}", **expires))

    def token(self) -> str:
        return self.successResultOf(self.authenticator.session()).token

    def test_aRedirect(self) -> None:
        """A redirect is not followed; the error says where it leads, and which settings say where the Auth API is."""
        self.problem = answer(301, Location="https://elsewhere/v2.0/tokens")
        error = self.failureResultOf(self.authenticator.session(), ForeignResponse).value
        self.assertIn("It redirects to https://elsewhere/v2.0/tokens, which is not followed", str(error))
        self.assertIn(
            "Change the URL: RAXSR_AUTH_URL ([auth_api] url) or, if there is none, RAXSR_API_URL ([api] url)",
            str(error),
        )

    # -- sharing

    def test_oneAuthenticationForAll(self) -> None:
        """However many ask at the same time and later, one authentication serves them."""
        self.agent.handler = None
        waiting = [self.authenticator.session() for _ in range(1000)]
        self.agent.pending[0].callback(answer(200, access()))
        self.assertEqual({self.successResultOf(session).token for session in waiting}, {TOKEN})
        self.assertEqual(self.token(), TOKEN)
        self.assertEqual(len(self.agent.sent), 1)

    def test_cancellingOneWaiterLeavesTheOthers(self) -> None:
        """Each waiter has a Deferred of its own."""
        self.agent.handler = None
        one, other = self.authenticator.session(), self.authenticator.session()
        one.cancel()
        self.failureResultOf(one, CancelledError)
        self.agent.pending[0].callback(answer(200, access()))
        self.assertEqual(self.successResultOf(other).token, TOKEN)

    def leaveWithout(self) -> None:
        """A request for a token that is cancelled before there is one."""
        session = self.authenticator.session()
        session.cancel()
        self.failureResultOf(session, CancelledError)

    def test_aLateAuthenticationRunsOn(self) -> None:
        """When no request waits any more, the authentication runs on, and later requests use its token."""
        self.agent.handler = None
        self.leaveWithout()
        self.agent.pending[0].callback(answer(200, access()))
        self.assertEqual(self.token(), TOKEN)
        self.assertEqual(len(self.agent.sent), 1)

    def test_aLateAuthenticationIsRefused(self) -> None:
        """Those that come later are told, and the credentials are not sent again."""
        self.agent.handler = None
        self.leaveWithout()
        self.agent.pending[0].callback(answer(401, {"unauthorized": {"code": 401, "message": "no"}}))
        self.failureResultOf(self.authenticator.session(), AuthenticationFailed)
        self.assertEqual(len(self.agent.sent), 1)

    def test_theNextOneBeginsBesideALateOne(self) -> None:
        """The first token counts, whichever of them brings it; a failure of the other one does not."""
        for winner in (0, 1):
            self.authenticator, self.clock = authenticatorOver(agent := FakeAgent())
            self.leaveWithout()
            session = self.authenticator.session()
            agent.pending[winner].callback(answer(200, access()))
            self.assertEqual(self.successResultOf(session).token, TOKEN)
            agent.pending[1 - winner].errback(ConnectionRefusedError())
            self.assertEqual(self.token(), TOKEN)
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waitersMayCancelEachOther(self) -> None:
        """A waiter that gives up another one when it has its own answer does no harm."""
        for result in (answer(200, access()), ConnectionRefusedError()):
            authenticator, _ = authenticatorOver(agent := FakeAgent())
            first, second = authenticator.session(), authenticator.session()
            first.addBoth(lambda result, second=second: second.cancel())
            if isinstance(result, Exception):
                agent.pending[0].errback(result)
            else:
                agent.pending[0].callback(result)
            self.successResultOf(first)
            self.failureResultOf(second, CancelledError)

    # -- renewing

    def test_renewsAheadOfTheEndWithoutAPause(self) -> None:
        """At nine tenths of its life the token is renewed in the background; the old one serves meanwhile."""
        self.assertEqual(self.token(), "token-1")
        self.clock.advance(899)
        self.assertEqual((self.token(), self.tokens), ("token-1", 1))
        self.clock.advance(2)
        self.agent.handler = None
        self.assertEqual((self.token(), self.token()), ("token-1", "token-1"))
        self.assertEqual(len(self.agent.sent), 2)
        self.agent.pending[0].callback(answer(200, access("token-2")))
        self.assertEqual(self.token(), "token-2")

    def test_nothingIsOnTheClockWithoutRequests(self) -> None:
        """An authenticator that is not used does nothing: there is no timer."""
        self.token()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unknownEndMeansUntilRefused(self) -> None:
        """A token whose end is not known, or is past already (clocks differ), is used until it is refused."""
        for life in (None, -3600.0):
            self.life = life
            self.authenticator.invalidate(f"token-{self.tokens}")
            first = self.token()
            self.clock.advance(100_000)
            self.assertEqual(self.token(), first)

    def test_oldTokenServesWhileTheAuthApiIsDown(self) -> None:
        """When it can't be renewed the token stays in use, also past its end, and the API is asked ever less often."""
        self.token()
        self.problem = ConnectionRefusedError()
        self.clock.advance(950)
        for _ in range(100):
            self.assertEqual(self.token(), "token-1")
        self.assertEqual(len(self.agent.sent), 2)
        for _ in range(3600):
            self.clock.advance(1)
            self.assertEqual(self.token(), "token-1")
        self.assertLess(len(self.agent.sent), 25)
        self.problem = None
        self.clock.advance(300)
        self.token()
        self.assertEqual(self.token(), "token-2")
        # One line when it begins, and one when it ends.
        begins, ends = (formatEvent(event) for event in self.log)
        self.assertIn("Auth token could not be renewed: POST http://registry:8880/v2.0/tokens failed", begins)
        self.assertEqual(ends, "Auth token renewed, after 3900.0 s")

    def test_aTokenThatHasEndedIsRenewedFirst(self) -> None:
        """When the client slept past the token's end, the next request waits for the new one."""
        self.token()
        self.clock.advance(2000)
        self.assertEqual(self.token(), "token-2")

    def test_renewalThatIsCancelledByClosingIsNotAWarning(self) -> None:
        """A renewal that ends because the client is closed is nothing to log."""
        self.token()
        self.clock.advance(950)
        self.problem = AgentClosed()
        self.token()
        self.assertEqual([event for event in self.log if "renewed" in str(event.get("log_format"))], [])

    # -- losing

    def test_onlyTheTokenThatIsNamedIsDropped(self) -> None:
        """A late complaint about an old token does not cost the new one."""
        first = self.token()
        self.authenticator.invalidate(first)
        self.assertEqual(self.token(), "token-2")
        self.authenticator.invalidate(first)
        self.assertEqual((self.token(), self.tokens), ("token-2", 2))

    def test_refusedCredentialsFailAtOnceAndAreRemembered(self) -> None:
        """One request, AuthenticationFailed for all; after a minute the credentials have another chance."""
        self.problem = answer(401, {"unauthorized": {"code": 401, "message": f"Username or {API_KEY} is invalid"}})
        for _ in range(50):
            error = self.failureResultOf(self.authenticator.session(), AuthenticationFailed).value
            self.assertIn("'joe'", str(error))
            self.assertIn(f"{AUTH}/tokens", str(error))
            self.assertIn("Check the username and the API key", str(error))
            self.assertNotIn(API_KEY, f"{error} {error!r}")
        self.assertEqual(len(self.agent.sent), 1)
        self.clock.advance(60)
        self.problem = None
        self.assertEqual(self.token(), "token-1")

    def test_refusalDuringRenewalKeepsTheToken(self) -> None:
        """A user whose key was changed goes on with the token until that one is refused."""
        self.token()
        self.clock.advance(950)
        self.problem = authFault(403)
        self.assertEqual((self.token(), self.token()), ("token-1", "token-1"))
        self.assertEqual(len(self.agent.sent), 2)
        self.authenticator.invalidate("token-1")
        self.failureResultOf(self.authenticator.session(), AuthenticationFailed)

    def test_anAuthApiThatIsDownIsNotHammered(self) -> None:
        """Without a token it is asked again at once, then about once a second, however many want one."""
        self.problem = ConnectionRefusedError()
        for _ in range(100):
            for _ in range(20):
                failure = self.failureResultOf(self.authenticator.session(), ConnectionFailed)
                self.assertIn(f"{AUTH}/tokens", str(failure.value))
            self.clock.advance(0.1)
        self.assertTrue(10 <= len(self.agent.sent) <= 20, len(self.agent.sent))
        self.problem = None
        self.clock.advance(1)
        self.assertEqual(self.token(), "token-1")
        # The next trouble is a new one, and met with a second try at once.
        self.authenticator.invalidate("token-1")
        self.problem = ConnectionRefusedError()
        self.failureResultOf(self.authenticator.session(), ConnectionFailed)
        self.problem = None
        self.assertEqual(self.token(), "token-2")

    def test_failuresAreTyped(self) -> None:
        """An error of the Auth API is the same as one of the registry, but never NotFound: no service is gone."""
        for problem, kind in (
            (ConnectionRefusedError(), ConnectionFailed),
            (answer(503, {"fault": {"message": "down"}}), ServerError),
            (answer(200, b"<html>"), MalformedResponse),
        ):
            self.problem = problem
            self.clock.advance(1)
            self.assertIn(f"{AUTH}/tokens", str(self.failureResultOf(self.authenticator.session(), kind).value))
        self.problem = ConnectionRefusedError()
        self.clock.advance(1)
        self.assertIn("the Auth API", str(self.failureResultOf(self.authenticator.session()).value))
        for status in (400, 404):
            self.problem = authFault(status, "Who are you?")
            self.clock.advance(1)
            failure = self.failureResultOf(self.authenticator.session(), APIError)
            self.assertFalse(failure.check(NotFound))
            self.assertIn("Who are you?", str(failure.value))
        for status, kind in ((404, ForeignResponse), (405, ForeignResponse), (501, ServerError)):
            self.problem = answer(status, b"<html>")
            self.clock.advance(1)
            failure = self.failureResultOf(self.authenticator.session(), kind)
            self.assertTrue(str(failure.value).endswith(". Check that this is the URL of a service registry"))

    def test_aProxysRefusalIsNotTheAuthApis(self) -> None:
        """Credentials count as refused only after a fault of the Auth API, and are sent again soon otherwise."""
        for status in (401, 403):
            for body in (b"<html>", {"message": "no"}, {"unauthorized": {"code": 402, "message": "no"}}, {"x": []}):
                self.problem = answer(status, body)
                self.clock.advance(1)
                self.failureResultOf(self.authenticator.session(), ForeignResponse)
        self.problem = None
        self.clock.advance(1)
        self.token()

    def test_eachWaiterHasItsOwnException(self) -> None:
        """A failure that goes to many is an object of its own for each."""
        self.agent.handler = None
        waiting = [self.authenticator.session() for _ in range(2)]
        self.agent.pending[0].errback(ConnectionRefusedError())
        one, other = (self.failureResultOf(session, ConnectionFailed).value for session in waiting)
        self.assertEqual(str(one), str(other))
        self.assertIsNot(one, other)

    def test_aHangingAuthApiIsATimeout(self) -> None:
        """An authentication ends, however long the Auth API takes."""
        self.agent.handler = None
        session = self.authenticator.session()
        self.clock.advance(10)
        self.failureResultOf(session, RequestTimedOut)


class ChangedKeyTests(SynchronousTestCase):
    """An API key that is changed at the registry, and in the settings."""

    def setUp(self) -> None:
        self.key = self.settings = API_KEY
        self.looked = 0
        self.agent = FakeAgent(self.issue)
        self.authenticator, self.clock = authenticatorOver(self.agent, lookUp=self.lookUp)

    def issue(self, sent: Any) -> Any:
        if sent.body["auth"]["RAX-KSKEY:apiKeyCredentials"] == {"username": "joe", "apiKey": self.key}:
            return answer(200, access(f"token of {self.key}", expires=at(self.clock.seconds() + 1000)))
        return authFault()

    def lookUp(self) -> Credentials:
        self.looked += 1
        return Credentials("joe", self.settings)

    def token(self) -> str:
        return self.successResultOf(self.authenticator.session()).token

    def refused(self) -> None:
        self.failureResultOf(self.authenticator.session(), AuthenticationFailed)

    def test_theOldKeyIsNotSentAgain(self) -> None:
        """When a token is refused, the next one is asked for with the key that the settings have by then."""
        self.assertEqual(self.token(), f"token of {API_KEY}")
        self.key = self.settings = "the new key"
        self.authenticator.invalidate(f"token of {API_KEY}")
        self.assertEqual(self.token(), "token of the new key")
        self.assertEqual(len(self.agent.sent), 2)

    def test_whoIsRefusedHearsNothingOfIt(self) -> None:
        """
        When the key is refused and the settings have another one by then, all who wait get a token for that one; and so
        do those who ask while it is under way.
        """
        self.agent.handler = None
        waiting = [self.authenticator.session() for _ in range(10)]
        self.key = self.settings = "the new key"
        self.agent.pending[0].callback(authFault())
        waiting.append(self.authenticator.session())
        self.agent.pending[1].callback(self.issue(self.agent.sent[1]))
        self.assertEqual({self.successResultOf(each).token for each in waiting}, {"token of the new key"})
        self.assertEqual(len(self.agent.sent), 2)

    def test_theSettingsAreNotReadWithoutNeed(self) -> None:
        """They are looked up once for each token."""
        for looked in range(1, 6):
            for _ in range(10):
                self.token()
            self.assertEqual(self.looked, looked)
            self.clock.advance(2000)

    def test_aKeyThatComesLater(self) -> None:
        """While the key is refused, those who ask have the settings looked at once a second, and nothing sent."""
        self.key = "the new key"
        for _ in range(100):
            self.refused()
            self.clock.advance(0.1)
        self.assertEqual(len(self.agent.sent), 1)
        self.assertTrue(9 <= self.looked <= 11, self.looked)
        self.clock.advance(51)
        self.refused()
        self.assertEqual(len(self.agent.sent), 2)
        self.settings = "the new key"
        self.clock.advance(1)
        self.assertEqual(self.token(), "token of the new key")

    def test_keysThatAreAllWrong(self) -> None:
        """Settings with another wrong key each time do not make anybody hammer the Auth API."""
        self.key = "another one"

        def lookUp() -> Credentials:
            self.looked += 1
            return Credentials("joe", f"wrong key {self.looked}")

        self.authenticator, self.clock = authenticatorOver(self.agent, lookUp=lookUp)
        for _ in range(100):
            self.refused()
            self.clock.advance(0.1)
        self.assertTrue(len(self.agent.sent) <= 22, len(self.agent.sent))

    def test_renewingWithTheOldKey(self) -> None:
        """A renewal that is refused is done again with the new key, while the old token serves."""
        self.token()
        self.key = self.settings = "the new key"
        self.clock.advance(950)
        self.assertEqual(self.token(), f"token of {API_KEY}")
        self.assertEqual(self.token(), "token of the new key")

    def test_settingsThatCannotBeRead(self) -> None:
        """Why there is no other key is told to those who are refused, for as long as it is so."""
        trouble: Exception = InvalidSettings("raxrc can't be read")

        def lookUp() -> Credentials:
            raise trouble

        self.authenticator, self.clock = authenticatorOver(self.agent, lookUp=lookUp)
        self.key = "the new key"
        for _ in range(2):
            failure = self.failureResultOf(self.authenticator.session(), AuthenticationFailed)
            self.assertTrue(str(failure.value).endswith("Username or api key is invalid. raxrc can't be read"))
        # A listener's exception is logged, and no request waits without a limit because of it.
        trouble = ValueError("nonsense")
        self.clock.advance(60)
        failure = self.failureResultOf(self.authenticator.session(), AuthenticationFailed)
        self.assertNotIn("raxrc", str(failure.value))
        self.assertNotEqual(self.flushLoggedErrors(ValueError), [])
