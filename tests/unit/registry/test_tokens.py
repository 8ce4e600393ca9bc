"""
Heartbeat tokens: which are accepted.
"""

from __future__ import annotations

import uuid

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.registry.http import validation
from txserviceregistry.registry.uuids import HeartbeatTokens

SECRET = b"s" * 32
SERVICE = ("1234", "web1", "a56b7c00-f7c2-11e1-a0d7-8d4d1d0b7f2e")
LATER_SERVICE = ("1234", "web1", "a56b7c01-f7c2-11e1-a0d7-8d4d1d0b7f2e")


class HeartbeatTokensTests(SynchronousTestCase):
    """`HeartbeatTokens`."""

    def setUp(self) -> None:
        self.now = 1_346_967_146.5
        self.tokens = HeartbeatTokens(SECRET, lambda: self.now)

    def following(self, presented: str, service: tuple[str, str, str] = SERVICE) -> str | None:
        """The token after *presented*."""
        return self.tokens.following()(self.tokens.proof(*service), presented)

    def test_isAVersionOneUUID(self) -> None:
        """A token is what the API says it is, and its time is now."""
        token = self.tokens.first(*SERVICE)
        self.assertEqual(validation.HEARTBEAT_FIELDS[0].value({"token": token}), token)
        parsed = uuid.UUID(token)
        self.assertEqual((parsed.version, parsed.variant, str(parsed)), (1, uuid.RFC_4122, token))
        self.assertAlmostEqual((parsed.time - 0x01B21DD213814000) / 10_000_000, self.now, places=3)

    def test_eachIsNew(self) -> None:
        """No two tokens of a chain are the same, though the clock stands still or steps back."""
        token = self.tokens.first(*SERVICE)
        seen = [token]
        for step in (0, 0, 1, -3600, 0, 7200):
            self.now += step
            following = self.following(seen[-1])
            assert following is not None
            seen.append(following)
        times = [uuid.UUID(each).time for each in seen]
        self.assertEqual(times, sorted(set(times)))

    def test_anyTokenOfThisIncarnationIsAccepted(self) -> None:
        """The first token is as good as the last, also after a day, and in a process that was started since."""
        first = self.tokens.first(*SERVICE)
        second = self.following(first)
        assert second is not None
        self.now += 86_400
        again = HeartbeatTokens(SECRET, lambda: self.now)
        for token in (first, second):
            self.assertIsNotNone(again.following()(again.proof(*SERVICE), token))

    def test_thoseOfOneMoment(self) -> None:
        """Heartbeats that come together are answered as each alone would be, also where the clock has stepped back."""
        first = self.tokens.first(*SERVICE)
        self.now += 3600
        later = self.following(first)
        assert later is not None
        self.now -= 1800
        following = self.tokens.following()
        proof = self.tokens.proof(*SERVICE)
        for presented in (first, later, later.upper()):
            answer = following(proof, presented)
            self.assertEqual(answer, self.following(presented))
            self.assertNotEqual(answer, presented.lower())
        self.assertIsNone(following(proof, self.tokens.first(*LATER_SERVICE)))

    def test_tokensOfEarlierReleasesCount(self) -> None:
        """A token that a release gave out is accepted by later ones, or an upgrade would let all services expire."""
        self.assertIsNotNone(self.following("5a6adc40-f86a-11e1-9644-062ffc4fc41e"))

    def test_caseDoesNotMatter(self) -> None:
        """A UUID in upper case is the same token; the answer is in lower case."""
        first = self.tokens.first(*SERVICE)
        following = self.following(first.upper())
        self.assertEqual(following, self.following(first))
        assert following is not None
        self.assertEqual(following, following.lower())

    def test_othersAreRefused(self) -> None:
        """A token of another tenant, service, earlier incarnation, or registry is not this service's."""
        for other in (("1235", *SERVICE[1:]), ("1234", "web2", SERVICE[2]), LATER_SERVICE):
            self.assertIsNone(self.following(self.tokens.first(*other)))
        foreign = HeartbeatTokens(b"t" * 32, lambda: self.now)
        self.assertIsNone(self.following(foreign.first(*SERVICE)))
        self.assertIsNone(self.following(str(uuid.uuid1())))

    def test_everyBitOfTheProofCounts(self) -> None:
        """A token with any digit of its last two groups changed is refused."""
        first = self.tokens.first(*SERVICE)
        for index in (*range(19, 23), *range(24, 36)):
            for digit in "0123456789abcdef":
                if digit != first[index]:
                    self.assertIsNone(self.following(first[:index] + digit + first[index + 1 :]))

    def test_fieldsDoNotRunIntoEachOther(self) -> None:
        """A character moved from one field to the next makes another service."""
        first = self.tokens.first("12", "3web", "x")
        for other in (("123", "web", "x"), ("1", "23web", "x"), ("12", "3we", "bx")):
            self.assertIsNone(self.following(first, other))

    def test_endOfTime(self) -> None:
        """A token whose time is the last that a UUID can hold is answered, not an error; so is a clock beyond it."""
        tail = self.tokens.first(*SERVICE)[19:]
        last = f"ffffffff-ffff-1fff-{tail}"
        self.assertEqual(self.following(last), last)
        self.assertEqual(self.following(f"fffffffe-ffff-1fff-{tail}"), last)
        self.now = 1e15
        self.assertEqual(self.tokens.first(*SERVICE), last)

    def test_beginningOfTime(self) -> None:
        """A wall clock before there were UUIDs makes a token all the same."""
        self.now = -1e12
        token = self.tokens.first(*SERVICE)
        self.assertEqual(token[:18], "00000000-0000-1000")
        self.assertIsNotNone(self.following(token))

    def test_doesNotShowTheSecret(self) -> None:
        """Neither the text of the object nor a token has the secret in it."""
        self.assertNotIn(repr(SECRET)[2:-1], repr(vars(self.tokens)) + self.tokens.first(*SERVICE))
