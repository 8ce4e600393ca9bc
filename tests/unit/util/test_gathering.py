"""Work that is done together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.util.gathering import Gathering


class GatheringTests(SynchronousTestCase):
    """Numbers, which are doubled, three at a time."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.groups: list[list[int]] = []
        self.gathering: Gathering[int, int] = Gathering(self.clock, 3, self.double)

    async def double(self, numbers: Sequence[int]) -> Mapping[int, int]:
        self.groups.append(list(numbers))
        return {number: 2 * number // (number != 13) for number in numbers}

    def do(self, *numbers: int) -> list[Deferred[int]]:
        waiting = [self.gathering.do(number) for number in numbers]
        self.clock.advance(0)
        return waiting

    def test_together(self) -> None:
        """What comes in one turn is done together, each once, and not too many at a time."""
        for turn in ((1, 2, 1), (3, 4, 5, 6)):
            self.assertEqual([self.successResultOf(each) for each in self.do(*turn)], [2 * number for number in turn])
        self.assertEqual(self.groups, [[1, 2], [3, 4, 5], [6]])

    def test_failures(self) -> None:
        """What fails, fails for all that were done together, and for no others."""
        *failed, fine = self.do(12, 13, 14, 15)
        for each in failed:
            self.failureResultOf(each, ZeroDivisionError)
        self.assertEqual(self.successResultOf(fine), 30)

    def test_cancelling(self) -> None:
        """One who cancels changes nothing for others that asked for the same."""
        one, two = self.gathering.do(1), self.gathering.do(1)
        one.addErrback(lambda _: None).cancel()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(two), 2)
