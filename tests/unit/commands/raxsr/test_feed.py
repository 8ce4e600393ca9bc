"""The feed of events as ``raxsr events follow`` follows it: when it asks, and what it says when it can't."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from tests.fakeagent import answer, asOfAPlainRegistry
from txserviceregistry import Client
from txserviceregistry.commands.raxsr.feed import Feed
from txserviceregistry.testing import FakeRegistry
from txserviceregistry.types import Event


@implementer(IAgent)
class Between:
    """
    Stands between a client and the registry in memory.

    :param bears: whether requests that wait are let through; else they are answered with 504.
    :param isPlain: whether the registry has no extensions.
    """

    def __init__(self, fake: FakeRegistry, *, bears: bool = True, isPlain: bool = False) -> None:
        self._agent = fake.agent
        self._bears = bears
        self._isPlain = isPlain
        self.refused = 0

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        """See IAgent."""
        if b"wait=" in uri and not self._bears:
            self.refused += 1
            return succeed(answer(504, b"<html>"))
        asked = self._agent.request(method, uri, headers, bodyProducer)
        return asked.addCallback(asOfAPlainRegistry) if self._isPlain else asked


class FeedTests(SynchronousTestCase):
    """Beside a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        self.notes: list[str] = []
        self.count = 0

    def happen(self) -> str:
        """Set a value; what it is."""
        self.count += 1
        self.done(self.other.configuration.set("key", str(self.count)))
        return str(self.count)

    def clientOver(self, agent: IAgent) -> Client:
        fake = self.fake
        return Client(fake.username, fake.apiKey, baseUrl=fake.url, agent=agent, reactor=fake.clock)

    def done(self, result: Deferred[Any]) -> Any:
        self.fake.flush()
        return self.successResultOf(result)

    def feed(self, client: Client | None = None, type: str | None = None) -> Feed:
        """A feed that has begun."""
        feed = Feed(client or self.fake.client(), type, self.notes.append)
        self.done(Deferred.fromCoroutine(feed.begin(None)))
        return feed

    def next(self, feed: Feed) -> Deferred[list[Event]]:
        result = Deferred.fromCoroutine(feed.next())
        self.fake.flush()
        return result

    def values(self, result: Deferred[list[Event]]) -> list[str]:
        """The values that the events tell of."""
        events: list[Any] = self.done(result)
        return [event["payload"]["new_value"] for event in events]

    def test_hearsAtOnce(self) -> None:
        """An event is told as soon as it happens, the first one of an account too; one of another type never."""
        feed = self.feed(type="configuration_value.update")
        for _ in range(3):
            waiting = self.next(feed)
            self.fake.advance(7)
            self.done(self.other.services.create("web1", 30))
            self.done(self.other.services.remove("web1"))
            self.fake.advance(7)
            self.assertNoResult(waiting)
            new = self.happen()
            self.assertEqual(self.values(waiting), [new])

    def test_silenceCostsLittle(self) -> None:
        """While nothing happens the registry is asked twice a minute."""
        waiting = self.next(self.feed())
        began = len(self.fake.requests)
        self.fake.advance(600)
        self.assertNoResult(waiting)
        self.assertIn(len(self.fake.requests) - began, range(19, 22))

    def test_aRegistryThatCannotWait(self) -> None:
        """It is asked once a second."""
        waiting = self.next(self.feed(self.clientOver(Between(self.fake, isPlain=True))))
        began = len(self.fake.requests)
        self.fake.advance(60)
        self.assertIn(len(self.fake.requests) - began, range(59, 62))
        new = self.happen()
        self.fake.advance(1)
        self.assertEqual(self.values(waiting), [new])

    def test_waitingThatIsRefused(self) -> None:
        """
        Where only those who wait are refused, by a proxy or for want of a place, nothing is lost and nothing told: the
        registry is asked once a second, and twice a minute whether one can wait.
        """
        between = Between(self.fake, bears=False)
        waiting = self.next(self.feed(self.clientOver(between)))
        began = len(self.fake.requests)
        self.fake.advance(300)
        self.assertIn(len(self.fake.requests) - began, range(290, 320))
        self.assertIn(between.refused, range(9, 12))
        new = self.happen()
        self.fake.advance(1)
        self.assertEqual(self.values(waiting), [new])
        self.assertEqual(self.notes, [])

    def test_aRegistryThatIsLost(self) -> None:
        """That it is lost, and that it is back, is told once and soon; what happened meanwhile is not missed."""
        feed = self.feed()
        waiting = self.next(feed)
        self.fake.partition()
        self.fake.advance(60)
        self.assertEqual([note.partition(":")[0] for note in self.notes], ["registry unreachable, retrying"])
        self.fake.heal()
        new = self.happen()
        self.fake.advance(16)
        self.assertEqual(self.values(waiting), [new])
        waiting = self.next(feed)
        self.fake.dropNext(3)
        self.fake.restart()
        self.fake.advance(10)
        self.assertEqual(
            [note.partition(" after ")[0].partition(":")[0] for note in self.notes],
            ["registry unreachable, retrying", "registry reachable again"] * 2,
        )
        self.assertNoResult(waiting)
        new = self.happen()
        self.assertEqual(self.values(waiting), [new])
