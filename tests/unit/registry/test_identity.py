"""
Tests for :mod:`txserviceregistry.registry.identity`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import CHEAP
from txserviceregistry.registry.identity import Identity, InvalidCredentials, InvalidToken, InvalidUser, Overloaded
from txserviceregistry.registry.limits import Origin
from txserviceregistry.registry.stores.interfaces import NoSuchObject, ObjectExists, StoreUnavailable
from txserviceregistry.registry.stores.memory import MemoryStore
from txserviceregistry.util import deferred

from .heldstore import HeldCall, HeldStore

DAY = 86_400.0


class Checks:
    """A hasher that counts, and that can hold its work back."""

    def __init__(self) -> None:
        self.count = 0
        self.held: list[Callable[[], None]] | None = None
        self.running = 0

    def __call__(self, work: Callable[[], Any]) -> Deferred[Any]:
        self.count += 1
        if self.held is None:
            return maybeDeferred(work)
        self.running += 1
        done: Deferred[Any] = Deferred()

        def go() -> None:
            self.running -= 1
            done.callback(work())

        self.held.append(go)
        return done

    def release(self) -> None:
        while self.held:
            self.held.pop(0)()


class IdentityCase(SynchronousTestCase):
    """
    An identity over the memory store, on a clock of its own.
    """

    def setUp(self) -> None:
        self.clock = Clock()
        self.wallClock = Clock()
        self.wallClock.advance(1_767_225_600.25)
        self.memory = MemoryStore(wallClock=self.wallClock.seconds)
        self.successResultOf(self.memory.open())
        self.store = HeldStore(self.memory)
        self.checks = Checks()
        self.identity = self.newIdentity()
        _, self.key = self.successResultOf(self.identity.addUser("joe", "1234"))
        self.checks.count = 0

    def newIdentity(self, **options: Any) -> Identity:
        options.setdefault("cost", CHEAP)
        return Identity(
            self.store,  # type: ignore[arg-type]
            clock=self.clock,
            wallClock=self.wallClock.seconds,
            hasher=self.checks,
            **options,
        )

    def release(self, held: list[HeldCall]) -> None:
        for call in held:
            self.store.pass_(call.name)
            call.release()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.wallClock.advance(seconds)

    def authenticate(self, name: str = "joe", key: str | None = None) -> Any:
        return self.successResultOf(self.identity.authenticate(name, self.key if key is None else key))

    def refuse(self, name: str = "joe", key: str = "wrong") -> None:
        refused = self.identity.authenticate(name, key)
        # As long as the wait after many failures is.
        self.clock.advance(3)
        self.failureResultOf(refused, InvalidCredentials)

    def assertCounts(self, token: str, tenant: str = "1234") -> None:
        self.assertEqual(self.successResultOf(self.identity.userOf(token)).tenant, tenant)

    def assertRefused(self, token: str) -> None:
        self.failureResultOf(self.identity.userOf(token), InvalidToken)


class UserTests(IdentityCase):
    """
    Users and their keys.
    """

    def test_manyWithOneToken(self) -> None:
        """When many show one token in the same moment, the store is asked once, and each gets the result."""
        token = self.successResultOf(self.identity.authenticate("joe", self.key))
        self.clock.advance(5)
        held = self.store.hold("getToken")
        asked = [self.identity.userOf(token.id) for _ in range(10)]
        self.assertEqual(len(held), 1)
        asked[0].cancel()
        self.failureResultOf(asked[0])
        self.release(held)
        self.assertEqual([self.successResultOf(each).tenant for each in asked[1:]], ["1234"] * 9)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_manyWithOneTokenThatHasEnded(self) -> None:
        """When a token that many show has ended, each of them is refused."""
        token = self.successResultOf(self.identity.authenticate("joe", self.key))
        self.successResultOf(self.identity.purgeAll())
        held = self.store.hold("getToken")
        asked = [self.identity.userOf(token.id) for _ in range(3)]
        self.release(held)
        for each in asked:
            self.failureResultOf(each, InvalidToken)

    def test_addUser(self) -> None:
        """
        A user gets a random key and, if none is given, an unused tenant.
        """
        first, firstKey = self.successResultOf(self.identity.addUser("ann"))
        second, secondKey = self.successResultOf(self.identity.addUser("bob@example.com"))
        self.assertEqual((first.name, first.tenant, second.tenant), ("ann", "1", "2"))
        self.assertNotEqual(firstKey, secondKey)
        self.assertEqual(self.authenticate("ann", firstKey).tenant, "1")

    def test_addUserWithAKey(self) -> None:
        """
        A key can be given.
        """
        self.successResultOf(self.identity.addUser("ann", key="abc"))
        self.authenticate("ann", "abc")

    def test_nameIsTaken(self) -> None:
        """
        There is one user of a name.
        """
        self.failureResultOf(self.identity.addUser("joe"), ObjectExists)

    def test_names(self) -> None:
        """
        Names are of a sensible set of characters, and none of the others gets in.
        """
        for name in ("a", "A.b-c_d@e.f+g", "9" * 64):
            self.successResultOf(self.identity.addUser(name))
        for name in ("", "9" * 65, "-a", ".a", "a b", "a\n", "\xe4", "a/b", "a:b", "a\0"):
            self.failureResultOf(self.identity.addUser(name), InvalidUser)

    def test_tenants(self) -> None:
        """
        A tenant is a positive number of 31 bits, written in one way only.
        """
        for number, tenant in enumerate(("1", "2147483647", "999999999")):
            self.successResultOf(self.identity.addUser(f"user{number}", tenant))
        for tenant in ("", "0", "01", "-1", "2147483648", "99999999999", "1.0", "a", "\u0661", "1\n"):
            self.failureResultOf(self.identity.addUser("other", tenant), InvalidUser)

    def test_emptyKey(self) -> None:
        """
        A key has to be one.
        """
        self.failureResultOf(self.identity.addUser("ann", key=""), InvalidUser)

    def test_listUsers(self) -> None:
        """
        Users are listed by name.
        """
        self.successResultOf(self.identity.addUser("ann"))
        users = self.successResultOf(self.identity.listUsers())
        self.assertEqual([user.name for user in users], ["ann", "joe"])

    def test_rotate(self) -> None:
        """
        A new key ends the old one, and the tokens that it had brought.
        """
        token = self.authenticate().id
        self.assertCounts(token)
        _, key = self.successResultOf(self.identity.rotate("joe"))
        self.assertRefused(token)
        self.refuse(key=self.key)
        self.assertCounts(self.authenticate(key=key).id)

    def test_changesDuringAuthentication(self) -> None:
        """
        A key that is changed, or whose user is removed, while a token is being made for it brings none.
        """
        for end in (self.identity.rotate, self.identity.removeUser):
            _, key = self.successResultOf(self.identity.rotate("joe"))
            # The last look at the user comes when the token is in the store, where a change of the key ends it.
            held = self.store.hold("getUser")
            asked = self.identity.authenticate("joe", key)
            held[0].release()
            self.successResultOf(end("joe"))
            self.release(held[1:])
            self.failureResultOf(asked, InvalidCredentials)

    def test_changesOfOthersDuringAuthentication(self) -> None:
        """
        A key that another process has just changed brings no token, though it was right a moment ago, and leaves none
        in the store.
        """
        self.authenticate()
        other = self.newIdentity()
        for end in (other.rotate, other.removeUser):
            made = self.store.calls["addToken"]
            self.successResultOf(end("joe"))
            self.failureResultOf(self.identity.authenticate("joe", self.key), InvalidCredentials)
            self.assertEqual(self.store.calls["addToken"], made + 1)
            self.assertEqual(self.store.calls["removeToken"], self.store.calls["addToken"] - 1)

    def test_changesOfOthersWhileTheStoreCantBeWritten(self) -> None:
        """The same, where the token would be kept in memory."""
        self.authenticate()
        for name in ("addToken", "removeToken"):
            self.store.breakDown(name, StoreUnavailable("disk full"))
        for end in (self.newIdentity().rotate, self.newIdentity().removeUser):
            self.successResultOf(end("joe"))
            self.failureResultOf(self.identity.authenticate("joe", self.key), InvalidCredentials)

    def test_rotateAnUnknownUser(self) -> None:
        """
        Only users have keys.
        """
        self.failureResultOf(self.identity.rotate("ann"), NoSuchObject)

    def test_removeUser(self) -> None:
        """
        A user who is removed is out at once; the others are not.
        """
        _, key = self.successResultOf(self.identity.addUser("ann"))
        token, other = self.authenticate().id, self.authenticate("ann", key).id
        self.successResultOf(self.identity.removeUser("joe"))
        self.assertRefused(token)
        self.refuse(key=self.key)
        self.assertCounts(other, "1")
        self.failureResultOf(self.identity.removeUser("joe"), NoSuchObject)

    def test_aNewKeyCountsAtOnce(self) -> None:
        """
        A user with a new key of another process is not refused because the old one was accepted a moment
        ago; a user with a wrong key is always refused.
        """
        self.authenticate()
        _, key = self.successResultOf(self.newIdentity().rotate("joe"))
        self.authenticate(key=key)
        self.refuse()

    def test_changesOfOthersAreSeenWithinASecond(self) -> None:
        """
        A key that another process has changed counts within a second, and the old one no longer.
        """
        self.authenticate()
        other = self.newIdentity()
        _, key = self.successResultOf(other.rotate("joe"))
        self.advance(1.0)
        self.refuse(key=self.key)
        self.authenticate(key=key)
        self.successResultOf(other.removeUser("joe"))
        self.advance(1.0)
        self.refuse(key=key)


class AuthenticationTests(IdentityCase):
    """
    From an API key to a token.
    """

    def test_token(self) -> None:
        """
        A right key brings a token that opens the user's tenant, for a day, in whole seconds.
        """
        issued = self.authenticate()
        self.assertEqual((issued.user, issued.tenant, issued.expires), ("joe", "1234", 1_767_225_600 + DAY))
        self.assertCounts(issued.id)

    def test_wrong(self) -> None:
        """
        A wrong key, an unknown user and invalid names are refused in the same way.
        """
        for name, key in [
            ("joe", "wrong"),
            ("joe", ""),
            ("ann", self.key),
            ("", self.key),
            ("Joe", self.key),
            ("x" * 5000, self.key),
            ("\ud800", "\ud800"),
        ]:
            self.refuse(name, key)

    def test_unknownUsersTakeAsLongAsWrongKeys(self) -> None:
        """
        How long a refusal takes does not disclose whether there is such a user, though only a user's key costs an
        scrypt.
        """
        _, key = self.successResultOf(self.identity.addUser("ann"))
        self.checks.held = []
        right = self.identity.authenticate("ann", key)
        self.clock.advance(0.25)
        self.checks.release()
        self.successResultOf(right)
        count = self.checks.count
        for name in ("bob", "no user has this name"):
            refused = self.identity.authenticate(name, "wrong")
            self.clock.advance(0.24)
            self.assertNoResult(refused)
            self.clock.advance(0.02)
            self.failureResultOf(refused, InvalidCredentials)
        self.assertEqual(self.checks.count, count)

    def test_unknownUsersWaitForTheirTurn(self) -> None:
        """
        While keys of users are checked, an unknown name waits as they do, and many tries of it follow one another.
        """
        self.refuse()  # so that it is known how long a check takes
        self.checks.held = []
        first = self.identity.authenticate("joe", "another")
        unknown = [self.identity.authenticate("bob", f"wrong{number}") for number in range(2)]
        self.clock.advance(1)
        for each in unknown:
            self.assertNoResult(each)
        self.checks.release()
        self.clock.pump([0.5] * 10)
        for each in (first, *unknown):
            self.failureResultOf(each, InvalidCredentials)

    def test_theFirstUnknownUser(self) -> None:
        """
        A registry that has checked no key so far finds out with the first one how long that takes.
        """
        for name in ("ann", "bob"):
            self.refuse(name)
        self.assertEqual(self.checks.count, 1)

    def test_theSecondTimeIsCheap(self) -> None:
        """
        A client that authenticates before every request costs one scrypt, and one token.
        """
        tokens = set()
        writes = 0
        for _ in range(50):
            tokens.add(self.authenticate().id)
            writes = self.store.calls["addToken"]
            self.advance(0.9)
        self.assertEqual((self.checks.count, len(tokens), writes), (1, 1, 1))

    def test_manyClientsCostOneScrypt(self) -> None:
        """
        Hundreds of clients with one key that come together cost one check and one token.
        """
        self.checks.held = []
        answers = [self.identity.authenticate("joe", self.key) for _ in range(400)]
        self.checks.release()
        self.assertEqual(len({self.successResultOf(answer).id for answer in answers}), 1)
        self.assertEqual((self.checks.count, self.store.calls["addToken"]), (1, 1))

    def test_oneOfManyGivesUp(self) -> None:
        """
        A client that goes away takes nothing from the others who wait for the same check.
        """
        self.checks.held = []
        first, second = (self.identity.authenticate("joe", self.key) for _ in range(2))
        first.addErrback(lambda failure: None)
        first.cancel()
        self.checks.release()
        self.assertCounts(self.successResultOf(second).id)

    def test_aNewTokenWhenTheOldOneIsOld(self) -> None:
        """
        When a tenth of a token's lifetime is over the next one is another, and the first stays valid.
        """
        first = self.authenticate()
        self.advance(DAY * 0.05)
        self.assertEqual(self.authenticate(), first)
        self.advance(DAY * 0.06)
        second = self.authenticate()
        self.assertNotEqual(second.id, first.id)
        self.assertTrue(second.expires > first.expires)
        self.assertCounts(first.id)
        self.assertCounts(second.id)

    def test_aNewTokenWhenTheOldOneWasEnded(self) -> None:
        """
        A client whose token was ended, here or by another process, gets a valid one.
        """
        for identity in (self.identity, self.newIdentity()):
            first = self.authenticate()
            self.successResultOf(identity.purgeAll())
            second = self.authenticate()
            self.assertNotEqual(second.id, first.id)
            self.assertCounts(second.id)

    def test_wallClockStepsBack(self) -> None:
        """
        After a step of the wall clock no token is handed out that would be valid longer than it should.
        """
        first = self.authenticate()
        self.wallClock.rightNow -= 3600
        second = self.authenticate()
        self.assertTrue(second.expires < first.expires)

    def test_checksAreBounded(self) -> None:
        """
        Five hundred keys wait to be checked; of more the one goes that would be checked last.
        """
        self.checks.held = []
        waiting = [self.identity.authenticate("joe", f"wrong{number}") for number in range(502)]
        self.assertEqual(self.checks.running, 1)
        self.failureResultOf(waiting.pop(), Overloaded)
        self.assertEqual((self.identity.statistics.waited, self.identity.statistics.overloaded), (501, 1))
        self.identity.stop()
        self.checks.release()
        for answer in waiting:
            self.failureResultOf(answer, InvalidCredentials)

    def test_rightKeysPassWhileManyWait(self) -> None:
        """
        A client whose key is known does not wait behind those who guess.
        """
        self.authenticate()
        self.checks.held = []
        waiting = [self.identity.authenticate("joe", f"wrong{number}") for number in range(600)]
        self.authenticate()
        self.identity.stop()
        self.checks.release()
        for answer in waiting:
            self.failureResultOf(answer, InvalidCredentials, Overloaded)

    def flood(self, count: int, **origin: Any) -> None:
        """Many wrong keys for *joe*, one of which is being checked."""
        self.checks.held = []
        for number in range(count):
            refused = self.identity.authenticate("joe", f"wrong{number}", Origin(**{"connection": number, **origin}))
            refused.addErrback(lambda _: None)

    def checksUntil(self, answer: Deferred[Any]) -> int:
        """How many checks have to end until there is an answer."""
        assert self.checks.held is not None
        count = 0
        while not answer.called:
            self.checks.held.pop(0)()
            count += 1
        self.successResultOf(answer)
        return count

    def test_anotherNameDoesNotWaitForAFlood(self) -> None:
        """
        However many keys of one user are tried, another user's is checked soon, also from the same address.
        """
        _, key = self.successResultOf(self.identity.addUser("ann"))
        self.flood(400)
        self.assertLessEqual(self.checksUntil(self.identity.authenticate("ann", key)), 3)

    def test_anotherAddressDoesNotWaitForAFlood(self) -> None:
        """
        However many keys come from one address, that from another is checked soon, also of the same user.
        """
        self.flood(400, peer="10.0.0.1")
        valid = self.identity.authenticate("joe", self.key, Origin("10.0.0.2"))
        self.assertLessEqual(self.checksUntil(valid), 3)

    def test_aNewConnectionDoesNotWaitForAFlood(self) -> None:
        """
        Connections that have tried keys before wait for one that has not, also of the same user and address.
        """
        self.checks.held = []

        def again(number: int) -> None:
            tried = self.identity.authenticate("joe", f"{number} {self.checks.count}", Origin(connection=number))
            tried.addErrback(lambda _: again(number))

        for number in range(30):
            again(number)
        for _ in range(100):
            self.checks.held.pop(0)()
            self.clock.advance(3)
        valid = self.identity.authenticate("joe", self.key, Origin(connection=99))
        self.assertLess(self.checksUntil(valid), 4)

    def test_knownAddressesHaveAShare(self) -> None:
        """
        A flood from thousands of addresses leaves half of the checks to those at which clients have authenticated
        before.
        """
        users = [self.successResultOf(self.identity.addUser(f"user{number}")) for number in range(20)]
        self.checks.held = []
        for number, (user, _) in enumerate(users):
            self.identity.authenticate(user.name, "wrong", Origin(f"10.0.0.{number}")).addErrback(lambda _: None)
        valid = self.identity.authenticate("joe", self.key, Origin("10.0.1.1", isKnown=True))
        self.assertLessEqual(self.checksUntil(valid), 3)

    def test_aFloodOfUnknownNamesCostsNothing(self) -> None:
        """
        A thousand names that no user has are refused without an scrypt, and hold up no others.
        """
        _, key = self.successResultOf(self.identity.addUser("ann"))
        self.refuse()
        count = self.checks.count
        for number in range(1000):
            self.identity.authenticate(f"name{number}", "wrong").addErrback(lambda _: None)
        self.authenticate("ann", key)
        self.assertEqual(self.checks.count, count + 1)

    def test_repeatedFailuresWait(self) -> None:
        """
        The first refusal of a name comes at once, and each further one later, up to three seconds.
        """
        self.failureResultOf(self.identity.authenticate("joe", "wrong"), InvalidCredentials)
        for wait in (0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0):
            refused = self.identity.authenticate("joe", "wrong")
            self.clock.advance(wait - 0.01)
            self.assertNoResult(refused)
            self.clock.advance(0.02)
            self.failureResultOf(refused, InvalidCredentials)

    def test_theRightKeyDoesNotWait(self) -> None:
        """
        A name's failures cost those who fail, not its user, nor other names.
        """
        for _ in range(5):
            self.refuse()
        self.authenticate()
        self.failureResultOf(self.identity.authenticate("ann", "wrong"), InvalidCredentials)

    def test_failuresAreForgotten(self) -> None:
        """
        After a minute without failures the next one is a first again.
        """
        for _ in range(2):
            self.refuse()
        self.clock.advance(60)
        self.failureResultOf(self.identity.authenticate("joe", "wrong"), InvalidCredentials)

    def test_stopLeavesNothingBehind(self) -> None:
        """
        Requests that wait for a refusal get it when the registry stops, and none waits after that.
        """
        self.refuse()
        refused = self.identity.authenticate("joe", "wrong")
        self.assertNoResult(refused)
        self.identity.stop()
        self.failureResultOf(refused, InvalidCredentials)
        self.failureResultOf(self.identity.authenticate("joe", "wrong"), InvalidCredentials)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_manyNamesAreForgotten(self) -> None:
        """
        Memory is bounded: of those who fail only the last ones are remembered.
        """
        self.patch(deferred, "CAPACITY", 100)
        self.refuse("first")
        for number in range(100):
            self.refuse(f"name{number}")
        self.failureResultOf(self.identity.authenticate("first", "wrong"), InvalidCredentials)

    def test_storeIsAway(self) -> None:
        """
        While the store is away, those who were seen before get in with the token that they had, and no others.
        """
        first = self.authenticate()
        _, key = self.successResultOf(self.identity.addUser("ann"))
        self.advance(5)
        self.memory.unavailable = True
        self.assertEqual(self.authenticate(), first)
        self.refuse(key="wrong")
        self.failureResultOf(self.identity.authenticate("ann", key), StoreUnavailable)
        self.failureResultOf(self.identity.authenticate("bob", key), StoreUnavailable)


class TokenTests(IdentityCase):
    """
    The auth tokens.
    """

    def setUp(self) -> None:
        super().setUp()
        self.token = self.authenticate().id

    def test_unknown(self) -> None:
        """
        Anything else than a valid token does not count.
        """
        for token in ("", "x", self.token + "x", self.token.swapcase(), "\ud800", "\0", "x" * 10_000):
            self.assertRefused(token)

    def test_expires(self) -> None:
        """
        A token ends with its day, whether it was asked for a moment ago or never.
        """
        self.advance(DAY - 0.5)
        self.assertCounts(self.token)
        self.advance(0.3)
        self.assertRefused(self.token)
        self.identity = self.newIdentity()
        self.assertRefused(self.token)

    def test_lifetime(self) -> None:
        """
        The lifetime of tokens can be set.
        """
        self.identity = self.newIdentity(tokenLifetime=60.0)
        token = self.authenticate()
        self.advance(59)
        self.assertCounts(token.id)
        self.advance(1)
        self.assertRefused(token.id)

    def test_survivesARestart(self) -> None:
        """
        A token counts for every process over the store.
        """
        self.identity = self.newIdentity()
        self.assertCounts(self.token)

    def test_onlyHashesAreStored(self) -> None:
        """
        Neither a token nor a key reaches the store.
        """
        written = [self.store.hold(name, acts=True) for name in ("addUser", "replaceUserKey", "addToken")]
        adding = self.identity.addUser("ann")
        rotating = self.identity.rotate("joe")
        for calls in written[:2]:
            calls[0].release()
        secrets = [self.successResultOf(changing)[1] for changing in (adding, rotating)]
        issuing = self.identity.authenticate("joe", secrets[1])
        written[2][0].release()
        secrets.append(self.successResultOf(issuing).id)
        (token,) = written[2][0].arguments
        kept = repr([[call.arguments for call in calls] for calls in written]) + repr(attrs.astuple(token))
        self.assertIn(token.tokenHash, kept)
        self.assertIn("scrypt$", kept)
        for secret in secrets:
            self.assertNotIn(secret, kept)

    def test_noSecretInReprs(self) -> None:
        """
        Objects of an identity can be logged without a secret.
        """
        user, key = self.successResultOf(self.identity.rotate("joe"))
        issued = self.authenticate(key=key)
        for shown in (repr(user), repr(issued), repr(self.identity)):
            for secret in (key, issued.id, user.keyHash):
                self.assertNotIn(secret, shown)

    def test_purgeAll(self) -> None:
        """
        All tokens end, also those that this process has not seen; keys and users stay.
        """
        self.identity = self.newIdentity()
        self.successResultOf(self.identity.purgeAll())
        self.assertRefused(self.token)
        self.assertCounts(self.authenticate().id)

    def test_endedElsewhereIsSeenWithinASecond(self) -> None:
        """
        A token that another process has ended is refused within a second.
        """
        self.assertCounts(self.token)
        self.successResultOf(self.newIdentity().purgeAll())
        self.advance(1.0)
        self.assertRefused(self.token)

    def test_oneReadASecond(self) -> None:
        """
        However many requests carry a token, the store is asked for it about once a second.
        """
        for _ in range(100):
            for _ in range(10):
                self.assertCounts(self.token)
            self.advance(0.1)
        self.assertTrue(9 <= self.store.calls["getToken"] <= 11)

    def test_manyAtOnceAreOneRead(self) -> None:
        """
        Requests that come together ask the store once, and one that is given up takes nothing from the others.
        """
        self.identity = self.newIdentity()
        self.store.calls.clear()
        held = self.store.hold("getToken")
        answers = [self.identity.userOf(self.token) for _ in range(100)]
        answers[0].addErrback(lambda failure: None)
        answers[0].cancel()
        self.release(held)
        self.assertEqual([self.successResultOf(answer).tenant for answer in answers[1:]], ["1234"] * 99)
        self.assertEqual(self.store.calls, {"getToken": 1})

    def test_storeIsAway(self) -> None:
        """
        While the store is unavailable, tokens that were seen before stay valid until they expire; others can't be
        checked.
        """
        self.memory.unavailable = True
        self.advance(3600)
        self.assertCounts(self.token)
        self.failureResultOf(self.identity.userOf("another"), StoreUnavailable)
        self.advance(DAY)
        self.assertRefused(self.token)

    def test_endsWhileTheStoreCantBeWritten(self) -> None:
        """
        A user whose token ends while no token can be stored gets one that is in memory only, and ends with the key.
        """
        self.store.breakDown("addToken", StoreUnavailable("disk full"))
        self.advance(DAY)
        self.assertRefused(self.token)
        token = self.authenticate().id
        self.assertEqual(self.authenticate().id, token)
        self.advance(5)
        self.assertCounts(token)
        # Nothing can be read either.
        self.memory.unavailable = True
        self.advance(5)
        self.assertCounts(token)
        self.advance(DAY)
        self.assertRefused(token)
        token = self.authenticate().id
        self.assertCounts(token)
        self.memory.unavailable = False
        self.successResultOf(self.newIdentity().rotate("joe"))
        self.advance(1)
        self.assertRefused(token)

    def test_storeHangs(self) -> None:
        """
        A store that does not answer holds up a token that was seen before for a tenth of a second, no longer.
        """
        self.advance(5)
        held = self.store.hold("getToken")
        answer = self.identity.userOf(self.token)
        self.advance(0.09)
        self.assertNoResult(answer)
        self.advance(0.2)
        self.assertEqual(self.successResultOf(answer).tenant, "1234")
        self.release(held)
        self.assertCounts(self.token)

    def test_writtenWhileItIsRead(self) -> None:
        """
        The result of a slow read does not replace data that were written meanwhile.
        """
        self.advance(5)
        held = self.store.hold("getUser")
        slow = self.identity.authenticate("joe", self.key)
        self.advance(0.5)
        _, key = self.successResultOf(self.identity.rotate("joe"))
        self.release(held)
        self.clock.advance(3)
        slow.addErrback(lambda failure: failure.trap(InvalidCredentials))
        self.successResultOf(slow)
        self.authenticate(key=key)
