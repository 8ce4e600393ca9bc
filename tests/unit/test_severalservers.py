"""
A registry with several URLs, as a client of it sees it: whatever happens to one of its nodes, no service expires.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.nodes import CUT_OFF, DEAF, HANGS, HIDDEN, REFUSES, UP, Nodes
from txserviceregistry import Client, RegisteredService
from txserviceregistry.discovery import ConfigurationWatcher, Directory, EventsFeed
from txserviceregistry.errors import ConnectionFailed, NotFound, RequestTimedOut, ServerError, ServiceExists
from txserviceregistry.testing import FakeRegistry

#: Every way in which a node may be of no use.
TROUBLES = (REFUSES, HANGS, DEAF, CUT_OFF)

#: A gateway's responses in a node's place: pages that look like success, JSON of another shape, errors of its own.
PAGES = (
    *((200, body) for body in (b"<html>", b"{}", b"[]", b'{"values": []}', b'{"token": 5}')),
    *((status, b"") for status in (200, 204, 301, 401, 404, 407, 429, 500, 501, 502, 505, 521, 599)),
)


class SeveralServersTestCase(SynchronousTestCase):
    """Three nodes, and a client that begins with ``a``."""

    def setUp(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Everything new."""
        self.fake = FakeRegistry()
        self.nodes = Nodes(self.fake)
        self.client = self.newClient()

    def newClient(self, **options: Any) -> Client:
        client = self.nodes.client(**options)
        self.addCleanup(client.close)
        return client

    def done(self, work: Deferred[Any], within: float = 10.0) -> Any:
        """What *work* comes to within so many seconds."""
        self.fake.advance(within)
        return self.successResultOf(work)

    def eventTypes(self) -> list[str]:
        """The types of the feed's events."""
        page = self.successResultOf(self.fake.client().events.list(limit=1000))
        return [event["type"].partition(".")[2] for event in page["values"]]

    def warm(self) -> None:
        """Let the client know its tenant and the extensions."""
        self.done(self.client.account.getLimits(), 0.1)


class RequestTests(SeveralServersTestCase):
    """Single requests."""

    def test_whateverHappensToANodeItsRequestsAreDone(self) -> None:
        """Reading, writing and heartbeating go on within one timeout, in whatever way the node fails."""
        for trouble in TROUBLES:
            self.begin()
            body, _ = self.done(self.client.services.create("web1", 30), 0.1)
            self.nodes.states["a"] = trouble
            self.done(self.client.services.heartbeat("web1", body["token"]))
            self.nodes.asked["a"].clear()
            self.done(self.client.services.update("web1", {"tags": ["x"]}), 0.1)
            self.assertEqual(self.done(self.client.services.get("web1"), 0.1)["tags"], ["x"])
            # The node is left alone from then on.
            self.assertEqual(self.nodes.asked["a"], [])

    def test_theAuthApiToo(self) -> None:
        """A client that starts while its first node is of no use gets its token from another."""
        for trouble in TROUBLES:
            self.begin()
            self.nodes.states["a"] = trouble
            self.done(self.client.account.getLimits())

    def test_itMayHaveUrlsOfItsOwn(self) -> None:
        """Auth APIs that are somewhere else are left for one another, too, and the nodes know nothing of it."""
        for trouble in TROUBLES:
            self.begin()
            urls = [self.nodes.url(name).replace("v1.0", "v2.0") for name in "cb"]
            self.nodes.states["c"] = trouble
            self.done(self.newClient(authUrl=urls).account.getLimits())
            self.assertEqual(self.nodes.authentications, {"c": 1, "b": 1})
            self.assertEqual([name for name, asked in self.nodes.asked.items() if asked], ["a"])

    def test_goesBackToItsOwnNode(self) -> None:
        """A client whose node is back is with it again after a while, by heartbeats alone, and not before."""
        body, _ = self.done(self.client.services.create("web1", 30), 0.1)
        self.nodes.states["a"] = REFUSES
        for second in range(100):
            if second == 5:
                self.nodes.states["a"] = UP
                self.nodes.asked["a"].clear()
            if second == 20:
                self.assertEqual(self.nodes.asked["a"], [])
            self.done(self.client.services.heartbeat("web1", body["token"]), 1.0)
        self.assertGreater(len(self.nodes.asked["a"]), 70)

    def test_aRemoveWhoseAnswerIsLost(self) -> None:
        """It is repeated with the next node, which says that there is no such service: it was done."""
        self.done(self.client.services.create("web1", 30), 0.1)
        self.nodes.states["a"] = DEAF
        removing = self.client.services.remove("web1")
        self.fake.advance(10)
        self.failureResultOf(removing, NotFound)
        self.assertEqual(self.eventTypes(), ["join", "remove"])

    def test_aTokenOfOneNodeIsGoodForAll(self) -> None:
        """Moving on costs no authentication."""
        self.warm()
        self.nodes.states["a"] = REFUSES
        self.done(self.client.account.getLimits(), 0.1)
        self.assertEqual(self.nodes.authentications, {"a": 1})

    def test_anImpatientCallerDoesNotMeetTheSameAuthApiAgain(self) -> None:
        """A caller that gives up before the end of the Auth API's share of the time is served by another node next."""
        self.nodes.states["a"] = HANGS
        for _ in range(2):
            trying = self.client.services.get("web1", timeout=0.3)
            self.fake.advance(0.3)
            self.failureResultOf(trying)
        self.assertEqual(self.nodes.authentications, {"a": 1, "b": 1})

    def test_aShortDeadlineLeavesTimeToAnswer(self) -> None:
        """Of 0.4 s the first of three servers has half, not a third."""
        self.warm()
        self.nodes.states["a"] = HANGS
        self.nodes.states["b"] = HANGS
        beating = self.client.services.heartbeat("web1", "token", timeout=0.4)
        self.fake.advance(0.19)
        self.assertEqual(len(self.nodes.asked["b"]), 0)
        self.fake.advance(0.02)
        self.assertEqual(len(self.nodes.asked["b"]), 1)
        self.fake.advance(0.2)
        self.failureResultOf(beating)

    def test_theClientsOfAStoppedNodeSpread(self) -> None:
        """They don't all go to the same one of those that are left."""
        import random

        draw = random.Random(20261124).random
        self.nodes.states["a"] = REFUSES
        for _ in range(60):
            self.done(self.newClient(random=draw).account.getLimits(), 0.01)
        self.assertLess(abs(len(self.nodes.asked["b"]) - len(self.nodes.asked["c"])), 20)


class CreationTests(SeveralServersTestCase):
    """A create is not repeated blindly."""

    def test_itsOutcomeIsFoundOut(self) -> None:
        """Whether or not the node that was asked has created it, in the end there is one service, with a token."""
        for trouble in (HANGS, DEAF, CUT_OFF):
            for asked in ("create", "register"):
                self.begin()
                self.warm()
                self.nodes.states["a"] = trouble
                create = getattr(self.client.services, asked)
                # Not at the last moment: the next node takes time to answer.
                body, _ = self.done(create("web1", 30, {"tags": ["www"]}), 9.0)
                self.done(self.client.services.heartbeat("web1", body["token"]), 0.1)
                happened = ["join", "remove", "join"] if trouble == DEAF else ["join"]
                self.assertEqual((trouble, self.eventTypes()), (trouble, happened))

    def test_anotherClientsStays(self) -> None:
        """An id that another holds is refused, and the other one is left alone, whatever node was asked first."""
        self.done(self.fake.client().services.create("web1", 120, {"tags": ["theirs"]}), 0.1)
        for trouble in (HANGS, CUT_OFF):
            client = self.newClient()
            self.nodes.states["a"] = trouble
            creating = client.services.create("web1", 30)
            self.fake.advance(10)
            self.failureResultOf(creating, ServiceExists)
        self.assertEqual(self.done(self.client.services.get("web1"))["tags"], ["theirs"])

    def test_anUnknownOutcomeFails(self) -> None:
        """With all nodes in trouble the caller is told, within the timeout, and little is asked."""
        errors = {HANGS: RequestTimedOut, CUT_OFF: ServerError, REFUSES: ConnectionFailed}
        for trouble, error in errors.items():
            self.begin()
            self.warm()
            self.nodes.states.update(dict.fromkeys("abc", trouble))
            creating = self.client.services.create("web1", 30)
            self.fake.advance(10)
            self.failureResultOf(creating, error)
            self.assertLess(sum(map(len, self.nodes.asked.values())), 6)
        self.assertEqual(self.eventTypes(), [])

    def test_cancellingEndsIt(self) -> None:
        """A create that is cancelled leaves nothing behind, wherever it was."""
        self.warm()
        self.nodes.states.update(dict.fromkeys("abc", HANGS))
        for seconds in (0.0, 6.0):
            creating = self.client.services.create("web1", 30)
            self.fake.advance(seconds)
            creating.cancel()
            self.failureResultOf(creating, CancelledError)
        self.fake.advance(20)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])


class HeartbeatTests(SeveralServersTestCase):
    """Services with the shortest timeout that there is."""

    def service(self, name: str, timeout: int = 3, **options: Any) -> RegisteredService:
        service = RegisteredService(self.client, name, timeout, random=lambda: 0.5, **options)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def test_surviveTheFailureOfTheirNode(self) -> None:
        """No service expires or changes its state in whatever way its node fails, with single or batched heartbeats."""
        for trouble in TROUBLES:
            self.begin()
            services = [self.service(f"web{number}") for number in range(3)]
            # One with a check is not beaten for together with others.
            services += [self.service(f"checked{number}", check=lambda: True) for number in range(3)]
            self.fake.advance(10)
            states: list[str] = []
            for service in services:
                service.onStateChange(states.append)
            self.nodes.states["a"] = trouble
            self.fake.advance(20)
            self.assertEqual((trouble, states), (trouble, []))
            self.assertNotIn("timeout", self.eventTypes())
            self.assertEqual(self.eventTypes().count("join"), 6)

    def test_surviveAGatewayWithoutItsNode(self) -> None:
        """With any page of a gateway in the place of their node, the other nodes keep them."""
        for page in PAGES:
            self.begin()
            services = [self.service(f"web{number}") for number in range(3)]
            services += [self.service("checked", check=lambda: True)]
            self.fake.advance(5)
            self.nodes.page = page
            self.nodes.states["a"] = HIDDEN
            self.fake.advance(6)
            self.assertEqual((page, self.eventTypes()), (page, ["join"] * 4))
            self.assertTrue(all(service.healthy for service in services))

    def test_areRegisteredBesideAGatewayWithoutItsNode(self) -> None:
        """Services that start while a gateway answers for their first node, at the Auth API too, are registered."""
        for page in PAGES:
            self.begin()
            self.nodes.page = page
            self.nodes.states["a"] = HIDDEN
            services = [self.service(f"web{number}") for number in range(3)]
            self.fake.advance(5)
            self.assertTrue(all(service.healthy for service in services), page)

    def test_surviveTwoOfThree(self) -> None:
        """Also when two nodes hang at the same moment."""
        services = [self.service(f"web{number}") for number in range(20)]
        services += [self.service("checked", check=lambda: True)]
        self.fake.advance(10)
        self.nodes.states.update(a=HANGS, b=HANGS)
        self.fake.advance(20)
        self.assertNotIn("timeout", self.eventTypes())
        self.assertTrue(all(service.healthy for service in services))

    def test_surviveThatNodesComeAndGo(self) -> None:
        """A node fails and comes back each five seconds, another one each time."""
        services = [self.service(f"web{number}") for number in range(10)]
        services += [self.service("checked", check=lambda: True)]
        for turn in range(24):
            for number, name in enumerate("abc"):
                self.nodes.states[name] = TROUBLES[turn % 4] if turn % 3 == number else UP
            self.fake.advance(5)
        self.assertNotIn("timeout", self.eventTypes())
        self.assertTrue(all(service.healthy for service in services))

    def test_areRegisteredWhileTheirNodeHangs(self) -> None:
        """Services that start while their first node is of no use are registered soon, whatever their timeout."""
        for trouble in TROUBLES:
            self.begin()
            self.nodes.states["a"] = trouble
            services = [self.service(f"web{number}") for number in range(5)]
            self.fake.advance(5)
            self.assertTrue(all(service.healthy for service in services), trouble)
            self.assertNotIn("timeout", self.eventTypes())


class SubscriberTests(SeveralServersTestCase):
    """A subscriber goes on with the same marker at another node."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.fake.client()

    def test_theFeedGoesOn(self) -> None:
        """Each event comes once and in order, in whatever way the node fails, and the first after it comes soon."""
        for trouble in TROUBLES:
            self.begin()
            self.other = self.fake.client()
            got: list[Any] = []
            feed = EventsFeed(self.client, random=lambda: 0.5, wallClock=self.fake.wallClock)
            feed.onEvent(got.append)
            feed.onGap(partial(got.append, None))
            feed.startService()
            self.fake.advance(3)
            for number in range(10):
                if number == 5:
                    self.nodes.states["a"] = trouble
                    # A node that can't serve ends what it holds back, or the next request to it fails.
                    self.client.account.getLimits().addErrback(lambda _: None)
                    self.fake.advance(6)
                self.successResultOf(self.other.configuration.set(f"value{number}", "x"))
                self.fake.advance(2)
            self.successResultOf(feed.stopService())
            names = [event and event["payload"]["configuration_value_id"] for event in got]
            self.assertEqual((trouble, names), (trouble, [f"value{number}" for number in range(10)]))

    def test_aLonelySubscriberFindsOutByItself(self) -> None:
        """With nothing else to ask, a node that hangs is left when it has not answered at the end of the wait."""
        got: list[str] = []
        feed = EventsFeed(self.client, random=lambda: 0.5, wallClock=self.fake.wallClock)
        feed.onEvent(lambda event: got.append(event["type"]))
        feed.startService()
        self.fake.advance(3)
        self.nodes.states["a"] = HANGS
        self.successResultOf(self.other.configuration.set("value1", "x"))
        self.fake.advance(35)
        self.assertEqual(got, ["configuration_value.update"])
        # And the node that it went to is not blamed for the time that the first one took.
        self.successResultOf(self.other.configuration.set("value2", "x"))
        self.fake.advance(0.1)
        self.assertEqual(len(got), 2)
        self.assertEqual(self.nodes.asked["c"], [])
        self.successResultOf(feed.stopService())

    def test_directoriesAndWatchersGoOn(self) -> None:
        """They are as the registry is a moment after their node has failed, and never shrink because of it."""
        directory = Directory(self.client)
        watcher = ConfigurationWatcher(self.client, "/production")
        changes: list[str] = []
        directory.onChange(lambda change, service: changes.append(f"{change} {service['id']}"))
        for follower in (directory, watcher):
            follower.startService()
            self.addCleanup(follower.stopService)
        self.done(self.other.services.create("web1", 120), 0.1)
        self.fake.advance(3)
        for name, number in (("a", 2), ("b", 3)):
            self.nodes.states[name] = HANGS
            self.client.account.getLimits().addErrback(lambda _: None)
            self.fake.advance(6)
            self.done(self.other.services.create(f"web{number}", 120), 0.1)
            self.done(self.other.configuration.set("/production/number", str(number)), 0.1)
            self.fake.advance(2)
            self.assertEqual(len(directory.services()), number)
            self.assertEqual(dict(watcher), {"/production/number": str(number)})
        self.assertEqual(changes, ["join web1", "join web2", "join web3"])

    def test_aWaitIsNotWhatTriesANodeThatIsAway(self) -> None:
        """Going back is tried by a request whose answer tells at once."""
        feed = EventsFeed(self.client, random=lambda: 0.5, wallClock=self.fake.wallClock)
        feed.startService()
        self.fake.advance(3)
        self.nodes.states["a"] = HANGS
        self.client.account.getLimits().addErrback(lambda _: None)
        self.fake.advance(10)
        self.nodes.asked["a"].clear()
        self.fake.advance(300)
        self.assertEqual([asked for asked in self.nodes.asked["a"] if "wait=" in asked], [])
        self.successResultOf(feed.stopService())
