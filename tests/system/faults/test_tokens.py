"""Row 6: auth tokens that end, and an Auth API that is unreachable."""

from __future__ import annotations

from collections import Counter

from .journal import Operation, Outcome
from .simulated import SimulatedCase


class _TokenCase(SimulatedCase):
    row = 6
    fault = "Auth tokens are purged every 3 s; authentication is down for ten minutes"
    TIMEOUTS = (3, 4, 6, 10, 20, 30, 45, 60, 90, 120)

    def setUp(self) -> None:
        super().setUp()
        #: Seconds for what is called a minute here.
        self.minute = 60.0 if self.isFull else 2.0

    def assertNoneFailed(self, operations: list[Operation]) -> None:
        """The application has seen no call fail. (Removing a value that does not exist does not count as a failure.)"""
        self.assertEqual([each for each in operations if each.outcome is Outcome.unknown], [])


class LivingTokenTests(_TokenCase):
    """As long as there is a valid token, or a way to get one, no service is affected."""

    def test_purged(self) -> None:
        """A purge costs one authentication, however many services there are, and no call fails."""
        self.start()
        before, purges = self.network.counts["authentications"], round(20 * self.minute) if self.isFull else 20
        done = 0
        for purge in range(1, purges + 1):
            self.fake.advance(3)
            self.fake.purgeTokens()
            if purge % 200 == 0 or purge == purges:
                operations = self.look()
                done += len(operations)
                self.assertNoneFailed(operations)
        self.assertAllRegistered()
        asked = self.network.counts["authentications"] - before
        # Those that audit are clients of their own.
        self.assertLessEqual(asked, purges)
        self.assertEqual(self.audit.count("service.timeout"), 0)
        self.end()
        self.tell("purges", purges)
        self.tell("authentications", asked)
        self.tell("writes meanwhile, none failed", done)
        self.tell("expirations", 0)

    def test_renewalWhileTheAuthApiIsDown(self) -> None:
        """A token that should have been renewed stays in use, and is renewed as soon as that can be."""
        asked = self.outage(lifetime=30, begin=19)
        self.tell("attempts to renew a valid token", asked)

    def test_endWhileTheAuthApiIsDown(self) -> None:
        """A token that has ended by what it says stays in use too, as long as the registry takes it."""
        asked = self.outage(lifetime=24, begin=15)
        self.tell("attempts to renew a token that expires meanwhile", asked)

    def outage(self, lifetime: int, begin: int) -> int:
        """
        Ten minutes without the Auth API, from *begin* on, with a token for so many minutes.

        :return: how often the Auth API has been asked meanwhile.
        """
        self.network.lifetime = lifetime * self.minute
        self.start()
        # The ten seconds that the start took are over.
        self.fake.advance(begin * self.minute - 10)
        before = self.network.counts["authentications"]
        self.network.authDown = True
        self.fake.advance(10 * self.minute)
        self.network.authDown = False
        asked = self.network.counts["authentications"] - before
        self.assertGreater(asked, 0)
        self.assertLess(asked, 40)
        self.fake.advance(self.minute)
        self.assertNoneFailed(self.look())
        self.assertAllRegistered()
        self.assertEqual(self.audit.count("service.timeout"), 0)
        self.assertLess(self.network.counts["authentications"] - before - asked, 3)
        self.end()
        return asked


class DyingTokenTests(_TokenCase):
    """Without a token, and without a way to get one, no request is accepted."""

    CREATORS = 0

    def test_purgedWhileTheAuthApiIsDown(self) -> None:
        """Services expire, as they must, and are registered again when the Auth API answers; it is asked rarely."""
        self.start()
        self.network.authDown = True
        self.fake.advance(2 * self.minute)
        self.assertNoneFailed(self.application.operations)
        self.fake.purgeTokens()
        before = self.network.counts["authentications"]
        self.fake.advance(8 * self.minute)
        asked = self.network.counts["authentications"] - before
        expired = {service.serviceId for service in self.services if not service.healthy}
        self.network.authDown = False
        waited = 0.0
        while not all(service.healthy for service in self.services):
            self.fake.advance(0.5)
            waited += 0.5
            self.assertLess(waited, 20)
        outcomes = Counter(operation.outcome for operation in self.look(mayTimeOut=expired))
        self.assertLessEqual(self.audit.count("service.timeout"), len(expired))
        rate = asked / (8 * self.minute)
        self.assertLess(rate, 2.0)
        self.end()
        self.tell("expirations without a token", self.audit.count("service.timeout"))
        self.tell("time until all were back, s", waited)
        self.tell("authentications per second meanwhile", round(rate, 2))
        self.tell("writes that failed, without effect", outcomes[Outcome.unknown])
