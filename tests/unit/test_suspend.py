"""A machine that was suspended: heartbeats are sent at once, although no clock has moved."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import HeartBeater, RegisteredService
from txserviceregistry.clock import SuspendWatch, machineSuspended
from txserviceregistry.discovery import Directory
from txserviceregistry.testing import FakeRegistry


class WatchTests(SynchronousTestCase):
    """SuspendWatch, with simulated clocks."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.total = 100.0
        self.heard: list[float] = []
        self.watch = SuspendWatch(self.clock, lambda: self.total, lambda: self.heard.append(-1.0))
        self.logged: list[str] = []

        def observe(event: Any) -> None:
            if event["log_namespace"].startswith("txserviceregistry"):
                self.logged.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def test_reportsASuspend(self) -> None:
        """The listeners are called within a tick, once, and the log has one line."""
        self.watch.add(self.heard.append)
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.heard, [])
        self.total += 60
        self.clock.pump([1.0] * 10)
        self.assertEqual(self.heard, [-1.0, 60.0])
        self.assertEqual(self.logged, ["Machine was suspended for 60.0 s; heartbeats are sent at once"])

    def test_aClockThatHasCountedIt(self) -> None:
        """With a reactor that counts wall-clock time, the clock did not stand still."""
        self.watch.add(self.heard.append)
        self.total += 60
        self.clock.advance(60.3)
        self.assertEqual(self.heard, [-1.0, 0.0])

    def test_readingTwoClocksIsNotASuspend(self) -> None:
        """The time between the two readings does not count."""
        self.watch.add(self.heard.append)
        for drift in (0.001, -0.001, 0.3):
            self.total += drift
            self.clock.pump([1.0] * 3)
        self.assertEqual(self.heard, [])

    def test_nothingIsOnTheClockWithoutListeners(self) -> None:
        """Without listeners there is no timer, and a suspend of that time is not reported later."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.watch.add(self.heard.append)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.watch.discard(self.heard.append)
        self.watch.discard(self.heard.append)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.total += 60
        self.watch.add(self.heard.append)
        self.clock.pump([1.0] * 3)
        self.assertEqual(self.heard, [])

    def test_theMachineTells(self) -> None:
        """The total is not negative, and stays the same between two readings."""
        self.assertLessEqual(0.0, machineSuspended() + 0.001)
        self.assertLess(abs(machineSuspended() - machineSuspended()), SuspendWatch.SHORTEST)


class ClientTests(SynchronousTestCase):
    """A client whose machine is suspended."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.watcher = self.fake.client()

    def register(self, id: str, timeout: int, **options: Any) -> RegisteredService:
        service = RegisteredService(self.client, id, timeout, random=lambda: 1.0, **options)
        self.addCleanup(self.stop, service)
        service.startService()
        self.fake.advance(1)
        return service

    def stop(self, service: RegisteredService) -> None:
        stopped = service.stopService()
        self.fake.advance(4)
        self.successResultOf(stopped)

    def events(self) -> list[tuple[str, str]]:
        page = self.successResultOf(self.watcher.events.list(limit=1000))
        return [(event["type"].partition(".")[2], event["payload"].get("id", "")) for event in page["values"]]

    def heartbeats(self, within: float) -> set[str]:
        """The heartbeat requests within so many seconds, by the last parts of their paths."""
        before = len(self.fake.requests)
        self.fake.advance(within)
        asked = self.fake.requests[before:]
        return {request.path.split("/", 4)[-1] for request in asked if "heartbeat" in request.path}

    def test_heartbeatsAreSentAtOnce(self) -> None:
        """Single and batched heartbeats are sent at once, and only once."""
        self.register("alone", 100, check=lambda: True)
        for number in range(3):
            self.register(f"together{number}", 100)
        self.fake.advance(10)
        self.fake.suspend(50)
        self.assertEqual(self.heartbeats(1.1), {"alone/heartbeat", "heartbeats"})
        self.assertEqual(self.heartbeats(60), set())
        self.assertNotIn("timeout", dict(self.events()))

    def test_aShortSleepExpiresNothing(self) -> None:
        """A service whose deadline is after the suspend does not expire, even if its heartbeat was due much later."""
        services = [self.register("alone", 20, check=lambda: True), self.register("together", 20)]
        self.fake.advance(5)
        self.fake.suspend(11)
        self.fake.advance(60)
        self.assertEqual({event for event, _ in self.events()}, {"join"})
        self.assertEqual({service.state for service in services}, {"registered"})

    def test_aLongSleepIsFollowedByARegistration(self) -> None:
        """Services that expired meanwhile are registered again within seconds."""
        services = [self.register("alone", 20, check=lambda: True), self.register("together", 20)]
        self.fake.suspend(600)
        self.assertEqual([event for event, _ in self.events()].count("timeout"), 2)
        self.fake.advance(1.5)
        self.assertEqual([event for event, _ in self.events()].count("join"), 4)
        self.assertTrue(all(service.healthy for service in services))

    def test_aRegistrationThatFailedBeforeIsTriedAtOnce(self) -> None:
        """The wait before its next try, of up to 15 s, ends; an authentication under way begins again."""
        for seconds in (290, 300):
            self.setUp()
            self.fake.partition()
            service = self.register("web1", 120)
            self.fake.advance(seconds)
            self.fake.suspend(60)
            self.fake.heal()
            self.fake.advance(1.1)
            self.assertEqual(service.state, "registered")

    def test_aRegistrationThatWasUnderWayIsSentAnew(self) -> None:
        """It does not wait until its request has timed out, nor do other requests."""
        self.register("other", 120)
        self.fake.hangNext(2)
        service = self.register("web1", 120)
        found = self.client.configuration.list()
        self.fake.suspend(1)
        self.fake.advance(2)
        self.assertEqual(service.state, "registered")
        self.successResultOf(found)

    def test_aHeartbeatThatWasUnderWayIsSentAnew(self) -> None:
        """It hangs on a connection that no longer works."""
        for options in ({}, {"check": lambda: True}):
            service = self.register("web1", 20, **options)
            self.fake.pause()
            self.fake.advance(16)
            self.fake.suspend(1)
            self.fake.resume()
            self.fake.advance(1.5)
            self.assertTrue(service.healthy)
            self.stop(service)

    def test_theDeadlineIsNearer(self) -> None:
        """While the registry does not answer after a suspend, the service is not healthy past its real deadline."""
        service = self.register("web1", 20)
        self.fake.suspend(30)
        self.fake.partition()
        self.fake.advance(1.1)
        self.assertFalse(service.healthy)
        self.fake.heal()
        self.fake.advance(30)
        self.assertTrue(service.healthy)

    def test_subscribersReconnect(self) -> None:
        """A Directory is current within seconds, and does not wait for its old request for events."""
        directory = Directory(self.client)
        directory.startService()
        self.fake.advance(1)
        self.fake.suspend(60)
        self.successResultOf(self.watcher.services.create("new", 100))
        self.fake.advance(2)
        self.assertEqual([service["id"] for service in directory.services()], ["new"])
        self.addCleanup(directory.stopService)

    def test_nothingIsLeftOnTheClock(self) -> None:
        """When the services have stopped, there is no timer any more."""
        service = self.register("web1", 20)
        self.stop(service)
        self.successResultOf(self.client.close())
        self.fake.advance(130)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_nothingIsLeftAfterALoss(self) -> None:
        """A service that the batch has given up, and that is stopped before it is registered again, leaves nothing."""
        service = self.register("web1", 10)
        self.fake.advance(30)
        self.successResultOf(self.watcher.services.remove("web1"))
        self.successResultOf(self.watcher.services.create("web1", 120))
        self.fake.advance(10)
        self.assertFalse(service.healthy)
        self.stop(service)
        self.successResultOf(self.client.close())
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_aHeartBeaterOfItsOwn(self) -> None:
        """One without a client has a watch of its own, which stops with it."""
        clock = Clock()
        heartBeater = HeartBeater(self.client.services, "web1", 20, "token", clock=clock)
        heartBeater.start()
        heartBeater.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
