"""The small idioms around Deferreds."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.deferred import then


class ThenTests(SynchronousTestCase):
    """One thing after the other, whether the first is done already or not."""

    def test_whatIsDoneIsGoneOnFromAtOnce(self) -> None:
        """The result of what is done is handed on, and what comes of that is what comes."""
        self.assertEqual(self.successResultOf(then(succeed(1), lambda value: succeed(value + 1))), 2)

    def test_whatIsNotDoneIsWaitedFor(self) -> None:
        """What comes later is handed on then."""
        work: Deferred[int] = Deferred()
        result = then(work, lambda value: succeed(value + 1))
        self.assertNoResult(result)
        work.callback(1)
        self.assertEqual(self.successResultOf(result), 2)

    def test_aFailureEndsIt(self) -> None:
        """What has failed fails, and nothing follows."""
        result = then(fail(LookupError()), lambda value: self.fail("called"))
        self.failureResultOf(result, LookupError)

    def test_whatIsRaisedIsAFailure(self) -> None:
        """It makes no difference whether the second raises or fails, nor when the first is done."""

        def broken(value: int) -> Deferred[int]:
            raise LookupError

        self.failureResultOf(then(succeed(1), broken), LookupError)
        work: Deferred[int] = Deferred()
        result = then(work, broken)
        work.callback(1)
        self.failureResultOf(result, LookupError)
