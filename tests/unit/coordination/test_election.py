"""
Elections, in :mod:`txserviceregistry.coordination.contenders`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from txserviceregistry import Client
from txserviceregistry.coordination import Election, Leadership

from .case import NAME, CoordinationTestCase


class Member:
    """A process that competes, and what it does while it leads."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.leaderships: list[Leadership] = []
        self.work: list[Deferred[None]] = []
        self.cancelled = 0
        # A Deferred that its work waits for at its end after it was cancelled.
        self.cleaning: Deferred[None] = succeed(None)
        self.election = Election(client, NAME, self.lead, timeout=10, holder=name, random=lambda: 0.5)

    async def lead(self, leadership: Leadership) -> None:
        self.leaderships.append(leadership)
        self.work.append(Deferred())
        try:
            await self.work[-1]
        except CancelledError:
            self.cancelled += 1
            await self.cleaning
            raise


class ElectionTests(CoordinationTestCase):
    """Two members that want to lead."""

    def setUp(self) -> None:
        super().setUp()
        self.first, self.second = (Member(self.newClient(), name) for name in ("first", "second"))
        self.first.election.startService()
        self.fake.advance(1)
        self.second.election.startService()
        self.fake.advance(1)
        self.addCleanup(self.stop)

    def stop(self) -> None:
        for member in (self.first, self.second):
            member.election.stopService()
        self.fake.advance(0)

    def leading(self) -> list[bool]:
        return [member.election.isLeading for member in (self.first, self.second)]

    def test_oneLeads(self) -> None:
        """One of two leads, for as long as it lives, and both know who it is."""
        for _ in range(50):
            self.fake.advance(5)
            self.assertEqual(self.leading(), [True, False])
        self.assertEqual((self.first.election.leader, self.second.election.leader), ("first", "first"))
        self.assertEqual(len(self.first.work), 1)

    def test_aStopHandsOver(self) -> None:
        """A stop ends the work; when that has ended, the next one leads at once, with a larger fence."""
        self.first.cleaning = Deferred()
        stopped = self.first.election.stopService()
        self.fake.advance(5)
        self.assertNoResult(stopped)
        self.assertEqual((self.first.cancelled, self.leading()), (1, [True, False]))
        self.first.cleaning.callback(None)
        self.fake.advance(0.1)
        self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(self.leading(), [False, True])
        self.assertGreater(self.second.leaderships[0].fence, self.first.leaderships[0].fence)
        self.assertFalse(self.first.leaderships[0].isValid)

    def test_aLeaderThatIsKilledIsReplaced(self) -> None:
        """When the leader has ended without a word, the next one leads after the timeout and a second at the latest."""
        self.first.client.close()
        self.fake.advance(11)
        self.assertEqual(self.leading(), [False, True])

    def test_aPartitionEndsTheWork(self) -> None:
        """A leader that is cut off ends its work, and competes again only after that has ended."""
        self.first.cleaning = Deferred()
        self.fake.partition()
        self.fake.advance(9.2)
        self.assertEqual((self.first.cancelled, self.leading()), (1, [False, False]))
        self.fake.heal()
        self.fake.advance(60)
        self.assertEqual(self.leading(), [False, True])
        self.second.election.stopService()
        self.fake.advance(60)
        self.assertEqual(len(self.first.work), 1)
        self.first.cleaning.callback(None)
        self.fake.advance(2)
        self.assertEqual(self.leading(), [True, False])
        self.assertEqual(len(self.first.work), 2)

    def test_stepDown(self) -> None:
        """A leader that steps down lets another one lead, and is the next one after that."""
        self.first.leaderships[0].stepDown()
        self.fake.advance(0.1)
        self.assertEqual(self.leading(), [False, True])
        self.fake.advance(2)
        self.second.leaderships[0].stepDown()
        self.fake.advance(0.1)
        self.assertEqual(self.leading(), [True, False])

    def test_workThatEndsItsOwnLeadership(self) -> None:
        """Work that steps down, stops the election or closes the client is cancelled where it waits next."""

        async def stop(leadership: Leadership) -> None:
            await third.election.stopService()

        async def close(leadership: Leadership) -> None:
            await third.client.close()
            await Deferred()

        async def stepDown(leadership: Leadership) -> None:
            leadership.stepDown()
            await Deferred()

        for end in (stepDown, close, stop):
            third = Member(self.newClient(), "third")
            ended: list[Exception] = []

            async def lead(leadership: Leadership, end: Any = end, third: Any = third, ended: Any = ended) -> None:
                try:
                    # In a coroutine of its own, and not before it has waited for something.
                    await third.client.pause(1)
                    await Deferred.fromCoroutine(end(leadership))
                except CancelledError as error:
                    ended.append(error)
                    raise

            third.election = Election(third.client, f"{NAME}/{end.__name__}", lead)
            third.election.startService()
            self.fake.advance(1.1)
            self.assertEqual(len(ended), 1, end)
            stopped = third.election.stopService()
            self.fake.advance(1)
            self.successResultOf(stopped)

    def test_workThatEnds(self) -> None:
        """When the work is done or fails, another one leads; with no other, the same one again after a pause."""
        self.first.work[0].callback(None)
        self.fake.advance(0.1)
        self.assertEqual(self.leading(), [False, True])
        self.first.election.stopService()
        self.fake.advance(0.1)
        self.second.work[0].errback(RuntimeError("a failure of the application"))
        self.fake.advance(0.2)
        self.assertEqual(self.leading(), [False, False])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.fake.advance(2)
        self.assertEqual(self.leading(), [False, True])
        self.second.work[1].errback(asyncio.CancelledError())
        self.fake.advance(3)
        self.assertEqual(len(self.flushLoggedErrors(asyncio.CancelledError)), 1)
        self.assertEqual(self.leading(), [False, True])

    def test_anAsyncioTask(self) -> None:
        """A stop ends an asyncio task, whose CancelledError is its own, without an error."""
        self.first.cleaning = fail(asyncio.CancelledError())
        stopped = self.first.election.stopService()
        self.fake.advance(0.1)
        self.successResultOf(stopped)
        self.assertEqual(self.leading(), [False, True])

    def test_startsAgain(self) -> None:
        """After a stop that is not over yet, a start competes when it is."""
        self.first.cleaning = Deferred()
        self.first.election.stopService()
        self.second.election.stopService()
        self.first.election.startService()
        self.fake.advance(5)
        self.assertEqual(len(self.first.work), 1)
        self.first.cleaning.callback(None)
        self.fake.advance(0.1)
        self.assertEqual(self.leading(), [True, False])
        self.assertEqual(len(self.first.work), 2)

    def test_observers(self) -> None:
        """A listener is called with each leader, and with None while there is none."""
        third = Member(self.newClient(), "third")
        heard: list[str | None] = []
        third.election.onChange(heard.append)
        third.election.startService()
        self.addCleanup(third.election.stopService)
        self.fake.advance(1)
        self.assertEqual(heard, ["first"])
        self.first.election.stopService()
        self.fake.advance(1)
        self.assertEqual(heard, ["first", None, "second"])
        self.second.client.close()
        self.fake.advance(12)
        # The one that takes over may know that before it knows of the expiration.
        self.assertEqual([leader for leader in heard if leader is not None], ["first", "second", "third"])
        self.assertEqual(heard[-1], "third")
        third.election.stopService()
        self.fake.advance(1)
        self.assertIsNone(heard[-1])

    def test_surviveTheRegistry(self) -> None:
        """While the registry is down for a moment the leader goes on; one that has lost its data elects anew."""
        self.fake.stop()
        self.fake.advance(4)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual((self.leading(), self.first.cancelled), ([True, False], 0))
        self.fake.restart(keepData=False)
        self.fake.advance(80)
        self.assertEqual((self.first.cancelled, sum(self.leading())), (1, 1))

    def test_startsDuringAnOutage(self) -> None:
        """A process that starts while the registry is unreachable competes soon after it is reachable again."""
        self.fake.stop()
        third = Member(self.newClient(), "third")
        third.election.startService()
        self.addCleanup(third.election.stopService)
        self.fake.advance(25)
        self.first.election.stopService()
        self.second.election.stopService()
        self.fake.advance(5)
        self.fake.start(keepData=False)
        # Half a second, and one until there is a new auth token.
        self.fake.advance(1.6)
        self.assertTrue(third.election.isLeading)

    def test_aClientThatIsClosedEndsIt(self) -> None:
        """When its client is closed, the work is cancelled and nothing is left on the reactor."""
        self.first.client.close()
        self.second.client.close()
        self.client.close()
        self.fake.advance(1)
        self.assertEqual(self.first.cancelled, 1)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_aClientThatIsClosedEndsTheWatch(self) -> None:
        """The same if the leader is watched."""
        for member in (self.first, self.second):
            member.election.onChange(lambda leader: None)
        self.fake.advance(1)
        self.test_aClientThatIsClosedEndsIt()

    def test_eventsThatComeAfterTheEnd(self) -> None:
        """A process whose events come when it has led already does not take itself for the leader again."""
        heard: list[str | None] = []
        third = Election(self.newClient(), f"{NAME}/short", lambda leadership: None, holder="third")
        third.onChange(heard.append)
        third.startService()
        self.fake.advance(0.2)
        third.stopService()
        self.fake.advance(1)
        self.assertEqual(heard, ["third", None])

    def test_stopsWhenItLearnsWhoLeads(self) -> None:
        """A listener that stops the election when another process leads does not leave it waiting for the lock."""
        third = Member(self.newClient(), "third")
        stopped: list[Deferred[None]] = []
        third.election.onChange(lambda leader: stopped.append(third.election.stopService()))
        self.fake.pause()
        third.election.startService()
        self.fake.resume()
        self.fake.advance(1)
        self.assertEqual(third.election.leader, "first")
        self.successResultOf(stopped[0])
        self.stop()
        self.fake.advance(1)
        self.assertEqual(third.work, [])
