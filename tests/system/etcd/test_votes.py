"""Which services expire over etcd."""

from __future__ import annotations

import json

from twisted.internet.defer import gatherResults

from tests.system.etcd.storecase import EtcdStoreCase, T
from tests.system.etcd.troubled import TroubledAgent
from tests.unit.registry.stores.etcd.test_gateway import CLOCK
from txserviceregistry.registry.model import ServiceChanges
from txserviceregistry.registry.stores.etcd.keyvalues import encode, endOf


class VoteTests(EtcdStoreCase):
    """Which services expire by a vote, and which do not."""

    def isExpiration(self, body: bytes) -> bool:
        """Whether a request deletes a record."""
        return b"request_delete_range" in body

    def isTouch(self, body: bytes) -> bool:
        """Whether a request writes the time of a heartbeat of the service, and no more."""
        return b"request_put" in body and encode(f"{self.prefix}seen/{T}/web").encode() in body

    async def test_aTouchMakesTheExpirationFail(self) -> None:
        """A heartbeat that comes before the last node has answered keeps the service, on whichever node it comes."""
        a, b, c = [await self.store() for _ in range(3)]
        made = await self.created(a, b, c)
        for receiver in (a, b):
            await self.voteOf(a, made, b)
            self.assertTrue(await self.admitted(receiver, made))
            self.passSilently(made, c)
            self.ticking = [a, b, c]
            await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(a), ["service.join"])

    async def test_manyTouchTogether(self) -> None:
        """Heartbeats on two nodes that find the service closed at the same moment are all admitted."""
        a, b, c = [await self.store() for _ in range(3)]
        made = await self.created(a, b, c)
        for _ in range(3):
            await self.voteOf(a, made, b)
            beats = [self.beginAdmitted(store, made) for store in (a, b) * 5]
            self.assertEqual(await gatherResults(beats), [True] * 10)
            self.passSilently(made, c)
            self.ticking = [a, b, c]
            await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(a), ["service.join"])

    async def test_anotherTimeoutIsATouch(self) -> None:
        """An update of the timeout during a vote keeps the service; each node counts from when it notices."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        began = CLOCK.seconds()
        await b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        for store in (a, b):
            await self.notifies(store, "appeared", "web", made.incarnation, 60)
            self.assertFull(store, made, began, 60)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.untilVotesEnd(made, a, b)
        self.assertEqual(await self.types(a), ["service.join", "service.update"])

    async def test_theSameTimeoutIsATouchToo(self) -> None:
        """An update to the timeout that a service has gives it a full timeout on the other nodes as well."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        self.ticking = []
        self.passDeadline(made, a)
        began = CLOCK.seconds()
        await b.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=30))
        await self.notifies(a, "renew", made.incarnation)
        self.assertFull(a, made, began)
        await b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
        await self.catchesUp(a)
        self.assertEqual(self.listeners[a].heard.count(("renew", made.incarnation)), 1)

    async def test_anUpdateInTheSameGroupIsATouchToo(self) -> None:
        """Although etcd does not show it yet when the expiration is worked out."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        value = encode(f"{self.prefix}values/{T}/key").encode()
        wire.holds = lambda body: value in body
        setting = a.setValue(T, "key", "x", 10)
        await self.until(lambda: wire.held)
        updating = a.updateService(T, "web", made.incarnation, ServiceChanges(heartbeatTimeout=60))
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: made.incarnation in b.closed(T))
        # The vote is decided, and its transaction waits for the end of the group that is held.
        await self.catchesUp(a)
        wire.release()
        await gatherResults([setting, updating])
        await self.untilVotesEnd(made, a, b)
        self.assertEqual((await b.getService(T, "web")).heartbeatTimeout, 60)
        self.assertNotIn("service.timeout", await self.types(a))

    async def test_anUpdateOfOtherFieldsIsNone(self) -> None:
        """Tags that change during a vote do not keep the service; its event shows it as it was last."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        await b.updateService(T, "web", made.incarnation, ServiceChanges(tags=("x",)))
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.notifies(b, "vanished", "web", made.incarnation)
        self.assertEqual((await a.listEvents(T, 0, 10, {"service.timeout"}))[0].payload["tags"], ["x"])

    async def test_aTouchThatIsUnderWayCountsOnEveryNode(self) -> None:
        """While a node could not touch a service yet, it answers the votes of others with a full timeout."""
        wire = TroubledAgent()
        a, b, c = await self.store(agent=wire), await self.store(), await self.store()
        made = await self.created(a, b, c)
        await self.voteOf(a, made)
        wire.holds = self.isTouch
        beat = self.beginAdmitted(a, made)
        await self.until(lambda: wire.held)
        self.passSilently(made, c)
        self.passDeadline(made, b)
        self.ticking = [b]
        await self.until(lambda: made.incarnation in b.closed(T))
        self.ticking = [a, b]
        await self.whenever(self.isAnswered)
        wire.release()
        self.assertTrue(await beat)
        self.ticking = [a, b, c]
        await self.untilVotesEnd(made, a, b, c)
        self.assertEqual(await self.types(b), ["service.join"])

    async def isAnswered(self) -> bool:
        """Whether a node has answered a vote with the timeout of a service."""
        begin = f"{self.prefix}nodes/"
        found, _ = await self.asked.range(begin, endOf(begin))
        return any(b'{"0":30.0}' in each.value for each in found)

    async def test_aLostResponseIsFoundOut(self) -> None:
        """An expiration whose first response is lost has happened once, and is found out."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.loses = lambda body: self.isExpiration(body) and not wire.lost
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.notifies(a, "expired", made.incarnation)
        self.assertEqual(wire.lost, 1)
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])

    async def test_lostResponsesAreDecidedByATouch(self) -> None:
        """When no response comes at all, a touch finds that the service has expired; until then it is closed."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.loses = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.lost)
        self.assertIn(made.incarnation, a.closed(T))
        await self.untilVotesEnd(made, a, b)
        self.assertFalse(await self.admitted(a, made))
        self.assertFalse(await self.admitted(b, made))
        self.assertEqual(await self.types(b), ["service.join", "service.timeout"])

    async def test_anExpirationThatIsLateFailsAfterATouch(self) -> None:
        """One that arrives at etcd after its sender has decided the vote by a touch changes nothing."""
        self.giveUpSoon()
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        wire.holds = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.held)
        self.heartbeat(b, made)
        await self.whenever(lambda: self.key(f"seen/{T}/web"))
        await self.untilVotesEnd(made, a, b)
        wire.release()
        await self.catchesUp(a)
        self.assertTrue(await self.admitted(a, made))
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_anExpirationOfANodeThatIsGoneFails(self) -> None:
        """A transaction that arrives when the key of its node is gone changes nothing."""
        wire = TroubledAgent()
        a = await self.store(agent=wire)
        own = await self.newestNode()
        b = await self.store()
        made = await self.created(a, b)
        wire.holds = self.isExpiration
        await self.voteOf(a, made)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.until(lambda: wire.held)
        self.ticking = []
        # It cannot join again, which would make the transaction fail too.
        wire.holds = lambda body: True
        await self.asked.revoke(own.lease)
        await self.until(lambda: self.secondsLeft(b, made) > 0)
        self.assertNotIn(made.incarnation, b.closed(T))
        wire.release()
        await self.notifies(a, "suspend")
        await self.until(lambda: a.isValid)
        self.assertTrue(await self.admitted(a, made))
        self.assertEqual(await self.types(b), ["service.join"])

    async def test_oneThatIsCreatedAgainStays(self) -> None:
        """A vote is about one registration: another node removes it and creates the service again meanwhile."""
        a, b = await self.store(), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        await b.removeService(T, "web", made.incarnation)
        again = await self.create(b)
        self.passSilently(made, b)
        self.ticking = [a, b]
        await self.untilVotesEnd(made, a, b)
        await self.notifies(a, "appeared", "web", again.incarnation, 30)
        self.assertFalse(await self.admitted(a, made))
        self.assertTrue(await self.admitted(a, again))
        self.assertEqual(await self.types(a), ["service.join", "service.remove", "service.join"])

    async def test_aTouchOfOneThatWasCreatedAgainFails(self) -> None:
        """Also on a node that knows nothing of it yet."""
        wire = TroubledAgent()
        a, b = await self.store(agent=wire), await self.store()
        made = await self.created(a, b)
        await self.voteOf(a, made)
        wire.isDeaf = True
        await b.removeService(T, "web", made.incarnation)
        await self.create(b)
        self.assertFalse(await self.admitted(a, made))
        self.assertIsNone(await self.key(f"seen/{T}/web"))

    async def test_manyExpireTogether(self) -> None:
        """Hundreds of expirations, found by two nodes at once, are persisted once each, and other services stay."""
        a, b = await self.store(), await self.store()
        self.ticking = []
        made = await gatherResults([self.beginCreate(a, f"web{number:03}") for number in range(120)])
        for store in (a, b):
            await self.until(lambda store=store: len(self.listeners[store].deadlines) == 120)
        kept = made[::10]
        for each in made:
            self.passDeadline(each, a, b)
        for each in kept:
            self.heartbeat(b, each)
        self.ticking = [a, b]
        await self.whenever(lambda: self.areThere([each.id for each in kept]))
        timeouts = [each.payload["id"] for each in await a.listEvents(T, 0, 1000, {"service.timeout"})]
        self.assertEqual(sorted(timeouts), [each.id for each in made if each not in kept])
        # The limit's count is the number of services.
        clock = await self.key(f"clocks/{T}")
        self.assertEqual(json.loads(clock.value)["services"] if clock else 0, len(kept))
        expired = [each for store in (a, b) for each in self.listeners[store].heard if each[0] == "expired"]
        self.assertEqual(len(expired), len(set(expired)))

    async def areThere(self, ids: list[str]) -> bool:
        return await self.keys(f"services/{T}/") == ids
