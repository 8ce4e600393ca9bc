"""Creations without a response: the client finds, removes and replaces the services that they have created."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

from tests.nodes import Nodes
from txserviceregistry import RegisteredService
from txserviceregistry.errors import ConnectionFailed
from txserviceregistry.testing import FakeRegistry


@implementer(IAgent)
class LosingAgent:
    """The fake's own agent, over a network that loses the responses to the requests for which *isLost* is true."""

    def __init__(self, fake: FakeRegistry, isLost: Callable[[bytes, bytes], bool]) -> None:
        self._fake = fake
        self._agent = fake.agent
        self._isLost = isLost

    def request(self, method: bytes, uri: bytes, *args: Any, **kwargs: Any) -> Deferred[IResponse]:
        if self._isLost(method, uri):
            self._fake.loseNext()
        return self._agent.request(method, uri, *args, **kwargs)


@implementer(IAgent)
class SlowAgent:
    """The fake's own agent, whose responses arrive after some seconds, unless the request is cancelled before."""

    def __init__(self, fake: FakeRegistry) -> None:
        self._agent = fake.agent
        self._clock = fake.clock
        self.delay = 0.0
        #: Whether only the responses to creations are slow.
        self.isOfCreations = False

    def request(self, method: bytes, uri: bytes, *args: Any) -> Deferred[IResponse]:
        answered: Deferred[IResponse] = self._agent.request(method, uri, *args)
        if self.isOfCreations and not (method == b"POST" and uri.endswith(b"/services")):
            return answered
        return answered.addCallback(lambda answer: deferLater(self._clock, self.delay, lambda: answer))


@implementer(IAgent)
class HoldingAgent:
    """The fake's own agent, over a network on which creations need seconds to reach the registry."""

    def __init__(self, fake: FakeRegistry, *delays: float) -> None:
        self._agent = fake.agent
        self._clock = fake.clock
        self._delays = list(delays)

    def request(self, method: bytes, uri: bytes, *args: Any) -> Deferred[IResponse]:
        isCreation = method == b"POST" and uri.endswith(b"/services")
        delay = self._delays.pop(0) if isCreation else 0.0
        return deferLater(self._clock, delay, self._agent.request, method, uri, *args)


class LimitTests(SynchronousTestCase):
    """A proxy that limits the rate of requests."""

    def test_aRejectedCreationIsNotLookedUp(self) -> None:
        """A creation that the proxy has rejected with 429 had no effect: it is repeated, without other requests."""
        fake = FakeRegistry()
        fake.answerNext(429, b"<html>", "text/html", count=3, when=lambda request: request.path.endswith("/services"))
        service = RegisteredService(fake.client(), "web1", 30)
        service.startService()
        fake.advance(10)
        requests = [(request.method, request.path.partition("?")[0]) for request in fake.requests]
        self.assertEqual(requests, [("POST", "/v2.0/tokens"), *[("POST", "/v1.0/1/services")] * 4])
        self.assertEqual(service.state, "registered")
        service.stopService()
        fake.advance(1)


class SlowNetworkTests(SynchronousTestCase):
    """A network on which a response takes longer than a third of the heartbeat timeout."""

    def test_registers(self) -> None:
        """A creation has the time that it needs: the service joins once, and does not expire."""
        for check in (None, lambda: True):
            fake = FakeRegistry()
            other = fake.client()
            fake.agent = slow = SlowAgent(fake)
            slow.delay = 1.1
            service = RegisteredService(fake.client(), "web1", 3, check=check, random=lambda: 0.5)
            service.startService()
            fake.advance(30)
            self.assertEqual(service.state, "registered")
            events = self.successResultOf(other.events.list())["values"]
            self.assertEqual([event["type"] for event in events], ["service.join"])
            stopped = service.stopService()
            fake.advance(3)
            self.successResultOf(stopped)

    def test_waitsForTheResponse(self) -> None:
        """A service that is found soon after its creation is not removed at once: the response may be on the way."""
        fake = FakeRegistry()
        other = fake.client()
        fake.agent = slow = SlowAgent(fake)
        slow.delay, slow.isOfCreations = 1.4, True
        service = RegisteredService(fake.client(), "web1", 3, random=lambda: 0.5)
        service.startService()
        fake.advance(10)
        self.assertEqual(service.state, "registered")
        events = self.successResultOf(other.events.list())["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"])
        self.successResultOf(service.stopService())

    def test_updatesFollowALateResponse(self) -> None:
        """After the late response of a creation the service has the updates that were made meanwhile."""
        fake = FakeRegistry()
        other = fake.client()
        fake.agent = slow = SlowAgent(fake)
        slow.delay = 1.1
        service = RegisteredService(fake.client(), "web1", 3, random=lambda: 0.5)
        service.startService()
        fake.advance(0.5)
        updated = service.update(tags=["new"])
        fake.advance(20)
        self.successResultOf(updated)
        self.assertEqual(self.successResultOf(other.services.get("web1"))["tags"], ["new"])
        events = self.successResultOf(other.events.list())["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"])
        stopped = service.stopService()
        fake.advance(3)
        self.successResultOf(stopped)

    def test_updatesFollowAnEarlierCreation(self) -> None:
        """So it does if the creation reached the registry late, and before the one that already has the updates."""
        fake = FakeRegistry()
        other = fake.client()
        fake.agent = HoldingAgent(fake, 1.5, 1.0)
        service = RegisteredService(fake.client(), "web1", 3, random=lambda: 0.5)
        service.startService()
        fake.advance(0.5)
        updated = service.update(tags=["new"])
        fake.advance(5)
        self.successResultOf(updated)
        self.assertEqual(self.successResultOf(other.services.get("web1"))["tags"], ["new"])
        events = self.successResultOf(other.events.list())["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"])
        stopped = service.stopService()
        fake.advance(3)
        self.successResultOf(stopped)

    def test_severalServers(self) -> None:
        """It also joins once with a third of the time for each of three URLs."""
        fake = FakeRegistry()
        other = fake.client()
        fake.agent = slow = SlowAgent(fake)
        slow.delay = 0.4
        client = Nodes(fake).client()
        self.addCleanup(client.close)
        service = RegisteredService(client, "web1", 3, random=lambda: 0.5)
        service.startService()
        fake.advance(60)
        self.assertEqual(service.state, "registered")
        events = self.successResultOf(other.events.list())["values"]
        self.assertEqual([event["type"] for event in events], ["service.join"])
        stopped = service.stopService()
        fake.advance(3)
        self.successResultOf(stopped)


class CreationTests(SynchronousTestCase):
    """A service that the client created itself is neither in its way nor left to expire."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        #: The answers that are lost, first of all: of requests that look like this.
        self.losses: list[tuple[bytes, bytes]] = []
        self.fake.agent = LosingAgent(self.fake, self.isLost)
        self.client = self.fake.client()
        self.successResultOf(self.client.account.getLimits())

    def isLost(self, method: bytes, uri: bytes) -> bool:
        if not self.losses or method != self.losses[0][0] or not uri.partition(b"?")[0].endswith(self.losses[0][1]):
            return False
        self.losses.pop(0)
        return True

    def started(self, timeout: int, id: str = "web1") -> RegisteredService:
        service = RegisteredService(self.client, id, timeout, random=lambda: 0.5)
        self.addCleanup(service.stopService)
        service.startService()
        return service

    def eventTypes(self) -> list[str]:
        page = self.successResultOf(self.other.events.list())
        return [event["type"].partition(".")[2] for event in page["values"]]

    def test_cancellingEndsTheRequest(self) -> None:
        """Nothing is left of a creation that is cancelled."""
        before = len(self.fake.clock.getDelayedCalls())
        self.fake.hangNext()
        creating = self.client.services.create("web1", 10)
        self.assertNoResult(creating)
        creating.cancel()
        self.failureResultOf(creating, CancelledError)
        self.assertEqual(len(self.fake.clock.getDelayedCalls()), before)

    def test_isFoundWhenOtherAnswersAreLostToo(self) -> None:
        """Looking for it is done again at once; that the removal was not answered is no matter."""
        self.losses = [
            (b"POST", b"/services"),
            (b"GET", b"/services/web1"),
            (b"GET", b"/services/web1"),
            (b"DELETE", b"/services/web1"),
        ]
        service = self.started(3)
        self.fake.advance(1)
        self.assertTrue(service.healthy)
        self.assertEqual((self.losses, self.eventTypes()), ([], ["join", "remove", "join"]))

    def test_registersThroughANetworkThatLosesHalfOfAllAnswers(self) -> None:
        """None of what was created without an answer times out, and none is there twice."""
        count = 0

        def everySecond(method: bytes, uri: bytes) -> bool:
            nonlocal count
            count += 1
            return count % 2 == 0

        self.fake.agent = LosingAgent(self.fake, everySecond)
        self.client = self.fake.client()
        services = [self.started(3, f"web{number}") for number in range(10)]
        self.fake.advance(15)
        self.assertTrue(all(service.healthy for service in services))
        self.assertNotIn("timeout", self.eventTypes())

    def test_aHangIsGivenUpInTime(self) -> None:
        """A request ends before a service without a token would expire: the client removes it, and creates another."""
        self.fake.hangNext()
        service = self.started(3)
        self.fake.advance(2.7)
        self.assertTrue(service.healthy)
        self.assertNotIn("timeout", self.eventTypes())

    def test_whatNeverLeftIsNotLookedFor(self) -> None:
        """While the registry refuses connections, a try to register is one request, and nothing is looked for."""
        self.fake.stop()
        asked = len(self.fake.requests)
        self.started(3)
        self.fake.advance(10)
        tries = self.fake.requests[asked:]
        self.assertEqual({request.method for request in tries}, {"POST"})
        self.assertLess(len(tries), 20)

    def test_aHeartBeaterOfRegisterFindsItToo(self) -> None:
        """Registering again after a loss, it does not wait for the end of what it has just created itself."""
        _, heartBeater = self.successResultOf(self.client.services.register("web1", 120, {"tags": ["www"]}))
        heartBeater.start()
        self.fake.advance(1)
        self.successResultOf(self.other.services.remove("web1"))
        self.losses = [(b"POST", b"/services")]
        self.fake.advance(110)
        self.assertTrue(heartBeater.healthy)
        self.assertEqual(self.eventTypes(), ["join", "remove", "join", "remove", "join"])
        self.assertEqual(self.successResultOf(self.other.services.get("web1"))["tags"], ["www"])
        self.successResultOf(heartBeater.stop())

    def test_anotherClientsServiceStays(self) -> None:
        """A client that took the id meanwhile keeps it, also when our stopping comes between."""
        self.fake.dropNext()
        service = self.started(30)
        self.successResultOf(self.other.services.create("web1", 120, {"tags": ["theirs"]}))
        self.fake.advance(20)
        self.assertFalse(service.healthy)
        self.successResultOf(service.stopService())
        self.assertEqual(self.successResultOf(self.other.services.get("web1"))["tags"], ["theirs"])

    def test_saysWhetherTheRequestWasSent(self) -> None:
        """A ConnectionFailed says whether the request may have had an effect."""
        self.fake.dropNext()
        self.assertTrue(self.failureResultOf(self.client.account.getLimits(), ConnectionFailed).value.wasSent)
        self.fake.stop()
        self.assertFalse(self.failureResultOf(self.client.account.getLimits(), ConnectionFailed).value.wasSent)
