"""
Partitioners, which share items, in :mod:`txserviceregistry.coordination.contenders`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import testing
from txserviceregistry.coordination import Assignment, Lock, Partitioner
from txserviceregistry.coordination.contenders import planFor
from txserviceregistry.errors import ConnectionFailed
from txserviceregistry.testing import FakeRegistry

from .case import CoordinationTestCase

GROUP = "/workers/mail"
ITEMS = [f"queue-{number}" for number in range(12)]


class Member:
    """A process of a group, and the items that it works on until it has put them away."""

    def __init__(self, fake: FakeRegistry, items: Iterable[str] = ITEMS, *, cleaning: float = 0.0) -> None:
        self.fake = fake
        self.client = fake.client(random=lambda: 0.5)
        self.cleaning = cleaning
        self.at: dict[str, Assignment] = {}
        self.moves = 0
        self.isKilled = False
        self.partitioner = Partitioner(
            self.client, GROUP, items, self.assigned, timeout=10, member="m", random=lambda: 0.5
        )
        self.partitioner.startService()

    async def assigned(self, assignment: Assignment) -> None:
        self.at[assignment.item] = assignment
        self.moves += 1
        try:
            await Deferred()
        except CancelledError:
            try:
                if self.cleaning:
                    await self.client.pause(self.cleaning)
            except ConnectionFailed:
                pass
            raise
        finally:
            del self.at[assignment.item]

    def kill(self) -> None:
        """Nothing is sent any more, and nothing done."""
        self.isKilled = True
        self.client.close()


class PartitionerCase(CoordinationTestCase):
    """Members of a group."""

    def setUp(self) -> None:
        super().setUp()
        # Timers are on time all the same.
        self.patch(testing, "_STEP", 1.0)
        self.members: list[Member] = []
        self.addCleanup(self.end)

    def join(self, items: Iterable[str] = ITEMS, *, cleaning: float = 0.0) -> Member:
        self.members.append(Member(self.fake, items, cleaning=cleaning))
        return self.members[-1]

    def end(self) -> None:
        for member in self.members:
            member.partitioner.stopService()
            self.fake.advance(1)
            member.client.close()
        self.fake.advance(0)

    def check(self) -> None:
        """No item is with two members."""
        owners = Counter(
            item for member in self.members for item, assignment in member.at.items() if assignment.isValid
        )
        assert all(count == 1 for count in owners.values()), owners

    def passes(self, seconds: float) -> None:
        end = self.fake.clock.seconds() + seconds
        while (left := end - self.fake.clock.seconds()) > 0:
            self.fake.advance(min(left, 1.0))
            self.check()

    def owned(self) -> list[str]:
        return sorted(item for member in self.members for item in member.partitioner.owned)


class PartitionerTests(PartitionerCase):
    """Moves of items, and their moments."""

    def test_workThatStopsThePartitioner(self) -> None:
        """Work that waits for the stop of its own partitioner is cancelled, and the stop ends."""
        stops: list[Deferred[None]] = []

        async def assigned(assignment: Assignment) -> None:
            await self.client.pause(1)
            stops.append(partitioner.stopService())
            await stops[-1]

        partitioner = Partitioner(self.client, GROUP, ITEMS, assigned)
        partitioner.startService()
        self.passes(10)
        stops.append(partitioner.stopService())
        self.passes(1)
        self.successResultOf(stops[-1])
        self.assertEqual(partitioner.owned, frozenset())

    def test_workThatIsDoneWhenItIsCancelled(self) -> None:
        """Work that ends in order when it is cancelled releases its item as well."""

        async def assigned(assignment: Assignment) -> None:
            try:
                await Deferred()
            except CancelledError:
                pass

        partitioner = Partitioner(self.client, GROUP, ITEMS, assigned)
        partitioner.startService()
        self.passes(10)
        self.assertEqual(partitioner.owned, frozenset(ITEMS))
        stopped = partitioner.stopService()
        self.passes(1)
        self.successResultOf(stopped)
        self.assertEqual(partitioner.owned, frozenset())

    def test_oneMemberOwnsAll(self) -> None:
        """A single member owns every item, after the time to settle."""
        member = self.join()
        self.passes(4.5)
        self.assertEqual(member.partitioner.owned, frozenset())
        self.passes(1.5)
        self.assertEqual(member.partitioner.owned, frozenset(ITEMS))
        self.assertEqual(member.at.keys(), set(ITEMS))
        self.passes(60)
        self.assertEqual(member.moves, len(ITEMS))

    def test_aSecondOneGetsItsShare(self) -> None:
        """Items of a new member move to it and no others; they move back when it has stopped."""
        first = self.join()
        self.passes(7)
        second = self.join()
        self.passes(8)
        self.assertEqual(self.owned(), sorted(ITEMS))
        moved = len(second.at)
        self.assertGreater(moved, 0)
        self.assertEqual((first.moves, second.moves), (12, moved))
        stopped = second.partitioner.stopService()
        self.passes(8)
        self.successResultOf(stopped)
        self.assertEqual(len(first.at), 12)
        self.assertEqual((first.moves, second.moves), (12 + moved, moved))

    def test_anItemMovesWhenItIsPutAway(self) -> None:
        """An item is assigned to another member only after the work of the first one on it has ended."""
        first = self.join(cleaning=20)
        self.passes(7)
        second = self.join()
        self.passes(15)
        self.assertEqual((len(first.at), len(second.at)), (12, 0))
        self.passes(12)
        self.assertEqual(self.owned(), sorted(ITEMS))
        self.assertGreater(len(second.at), 0)

    def test_membersAreNotListedWhenItRetries(self) -> None:
        """
        An item that another process holds is asked for again, without a listing of the members: a registry that has
        just lost its data would show few of them, and the items of the others would be free.
        """
        other = Lock(self.client, f"{GROUP}/item.{ITEMS[0]}", 60).acquire()
        self.fake.flush()
        self.successResultOf(other)
        self.join()
        self.passes(7)
        self.assertEqual(self.owned(), sorted(ITEMS[1:]))
        began = len(self.fake.requests)
        self.passes(11)
        requests = [request for request in self.fake.requests[began:] if request.path.endswith("/locks")]
        self.assertEqual({request.method for request in requests}, {"POST"})
        self.assertEqual([request.method for request in self.fake.requests[began:] if "/locks?" in request.path], [])

    def test_aMemberThatIsKilled(self) -> None:
        """The items of a member that was killed are owned by others after the timeout and the time to settle."""
        self.join()
        second = self.join()
        self.passes(10)
        second.kill()
        self.passes(17)
        self.assertEqual(self.owned(), sorted(ITEMS))
        self.assertEqual(second.at, {})

    def test_arollingDeploymentSettles(self) -> None:
        """Members that join one after the other within a few seconds cause one distribution."""
        members = []
        for _ in range(3):
            members.append(self.join())
            self.passes(3)
        self.passes(5)
        self.assertEqual(sum(member.moves for member in members), len(ITEMS))

    def test_membersThatDisagree(self) -> None:
        """While members have other items, each of them reports it and nothing moves; then they recover."""
        first = self.join()
        self.passes(7)
        errors: list[str | None] = []
        first.partitioner.onError(errors.append)
        other = self.join([*ITEMS, "one-more"])
        self.passes(8)
        self.assertEqual((len(first.at), len(other.at)), (12, 0))
        self.assertIn("1 of 2", str(errors[0]))
        self.assertIn("1 of 2", str(other.partitioner.error))
        first.partitioner.stopService()
        self.passes(8)
        self.assertEqual(len(other.at), 13)
        self.assertIsNone(other.partitioner.error)
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_aFailureOfTheApplication(self) -> None:
        """An item whose work fails is assigned anew after some seconds, as often as that is necessary."""
        calls: list[str] = []

        def assigned(assignment: Assignment) -> None:
            calls.append(assignment.item)
            if len(calls) < 4:
                raise (RuntimeError("a failure of the application") if len(calls) < 3 else asyncio.CancelledError())

        partitioner = Partitioner(self.client, GROUP, ["a"], assigned, settle=0, random=lambda: 0.5)
        partitioner.startService()
        for kind in (RuntimeError, RuntimeError, asyncio.CancelledError):
            self.fake.advance(4)
            self.assertEqual(len(self.flushLoggedErrors(kind)), 1)
            self.fake.advance(1.5)
        self.assertEqual((calls, partitioner.owned), (["a"] * 4, frozenset({"a"})))
        stopped = partitioner.stopService()
        self.fake.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(self.result(self.client.locks.list())["values"], [])

    def test_aFailureAtAStop(self) -> None:
        """An item whose work fails while it is stopped is assigned at the next start."""

        async def assigned(assignment: Assignment) -> None:
            try:
                await Deferred()
            finally:
                raise RuntimeError("a failure of the application")

        partitioner = Partitioner(self.client, GROUP, ["a"], assigned, settle=0, random=lambda: 0.5)
        for _ in range(2):
            partitioner.startService()
            self.fake.advance(1)
            self.assertEqual(partitioner.owned, frozenset({"a"}))
            stopped = partitioner.stopService()
            self.fake.advance(1)
            self.successResultOf(stopped)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_anItemThatReturnsWhileItIsReleased(self) -> None:
        """Items that come back to a member while it waits for the response to their release are acquired again."""
        locks, responses = self.client.locks, list[Deferred[None]]()

        def late(send: Callable[..., Deferred[Any]]) -> Callable[..., Deferred[Any]]:
            def sent(name: str, *args: Any, **options: Any) -> Deferred[Any]:
                response = send(name, *args, **options)
                if "/item." in name:
                    responses.append(Deferred())
                    arrival = responses[-1]
                    response.addCallback(lambda result: arrival.addCallback(lambda _: result))
                return response

            return sent

        def arrive() -> None:
            arriving = [responses.pop() for _ in range(len(responses))]
            for each in arriving:
                each.callback(None)
            self.fake.advance(1)

        self.patch(locks, "acquire", late(locks.acquire))
        self.patch(locks, "release", late(locks.release))
        first, second = (
            Partitioner(client, GROUP, ITEMS, lambda _: None, settle=0) for client in (self.client, self.newClient())
        )
        for each in (first, second):
            each.startService()
            self.fake.advance(1)
        # The registry has granted all items to the first member, which has to give some of them to the second.
        arrive()
        self.assertGreater(len(second.owned), 0)
        second.stopService()
        self.fake.advance(1)
        while responses:
            arrive()
        self.assertEqual(first.owned, first.items)
        first.stopService()
        self.fake.advance(1)
        while responses:
            arrive()

    def test_survivesTheRegistry(self) -> None:
        """After an outage longer than the timeout, and a loss of all data, the items are distributed anew."""
        self.join()
        self.join()
        self.passes(10)
        self.fake.partition()
        self.passes(30)
        self.assertEqual(self.owned(), [])
        self.fake.heal()
        self.passes(40)
        self.assertEqual(self.owned(), sorted(ITEMS))
        self.fake.restart(keepData=False)
        self.passes(60)
        self.assertEqual(self.owned(), sorted(ITEMS))

    def test_stopsDuringAnOutage(self) -> None:
        """When it is stopped while the members are listed, and that fails, nothing is left on the reactor."""
        member = self.join()
        self.passes(7)
        self.join().partitioner.stopService()
        self.passes(4)
        self.fake.pause()
        self.passes(2)
        stopped = member.partitioner.stopService()
        self.passes(60)
        self.successResultOf(stopped)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_startsAgain(self) -> None:
        """A partitioner that was stopped can be started again, and any text may name an item."""
        partitioner = Partitioner(self.client, GROUP, ["a", "ä/b c", ""], lambda _: None, settle=0)
        for _ in range(2):
            partitioner.startService()
            self.fake.advance(1)
            self.assertEqual(partitioner.owned, partitioner.items)
            stopped = partitioner.stopService()
            self.fake.advance(1)
            self.successResultOf(stopped)
            self.assertEqual(partitioner.owned, frozenset())


class PlanTests(SynchronousTestCase):
    """Which member an item belongs to."""

    @given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=8), st.data())
    def test_noMoreMovesThanNecessary(self, members: set[str], data: st.DataObject) -> None:
        """Every item belongs to one member. When one leaves, only its items belong to others."""
        plans = {member: planFor(member, members, ITEMS) for member in members}
        self.assertEqual(sorted(item for plan in plans.values() for item in plan), sorted(ITEMS))
        leaves = data.draw(st.sampled_from(sorted(members)))
        for member in members - {leaves}:
            after = planFor(member, members - {leaves}, ITEMS)
            self.assertTrue(plans[member] <= after)
            self.assertTrue(after - plans[member] <= plans[leaves])

    def test_sharesAreEqual(self) -> None:
        """Each of four members has about a quarter of 1,024 items."""
        items = [str(number) for number in range(1024)]
        for member in "abcd":
            self.assertTrue(200 < len(planFor(member, "abcd", items)) < 312)


class ManyItemsTests(PartitionerCase):
    """More items than are acquired at once."""

    count = 50

    def test_threeFourThree(self) -> None:
        """Three members, then four, then three again: every item has one owner whenever it is quiet, never two."""
        items = [f"item-{number}" for number in range(self.count)]
        for _ in range(3):
            self.join(items)
        self.passes(7)
        self.assertEqual(len(self.owned()), self.count)
        self.join(items)
        self.passes(7)
        self.assertEqual(len(self.owned()), self.count)
        self.members[0].kill()
        self.passes(17)
        self.assertEqual(self.owned(), sorted(items))


class ModelTests(SynchronousTestCase):
    """Random members, in simulated time."""

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["join", "slow", "stop", "kill", "cut", "block", "restart", "forget"]),
                st.integers(0, 3),
                st.sampled_from([0.5, 3.0, 8.0, 25.0]),
            ),
            max_size=6,
        )
    )
    def test_neverTwoOwnersAndOneWhenQuiet(self, steps: list[tuple[str, int, float]]) -> None:
        """With random faults, no item has two valid owners, and each has one after the last fault."""
        case = PartitionerTests("test_oneMemberOwnsAll")
        case.setUp()
        some = ITEMS[:5]
        case.join(some)
        for what, number, seconds in steps:
            members = [member for member in case.members if member.partitioner.running and not member.isKilled]
            chosen = members[number % len(members)] if members else None
            if what in ("join", "slow") and len(members) < 5:
                case.join(some, cleaning=4.0 if what == "slow" else 0.0)
            elif what == "stop" and chosen is not None:
                chosen.partitioner.stopService()
            elif what == "kill" and chosen is not None:
                chosen.kill()
            elif what == "cut":
                case.fake.partition()
                case.passes(seconds)
                case.fake.heal()
            elif what == "block":
                case.fake.block(seconds)
                case.check()
            elif what == "restart":
                case.fake.restart()
            elif what == "forget":
                # A registry that has lost its data knows of no owner: the old ones are valid for up to their timeout.
                case.fake.restart(keepData=False)
                case.fake.advance(10)
            case.passes(seconds)
        alive = [member for member in case.members if member.partitioner.running and not member.isKilled]
        if not alive:
            case.join(some)
        case.passes(60)
        self.assertEqual(case.owned(), some)
        case.doCleanups()
