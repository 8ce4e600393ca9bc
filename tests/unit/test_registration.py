"""RegisteredService: stays registered, and is deregistered when it stops."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import capturedLogs, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry import Client, RegisteredService
from txserviceregistry.errors import (
    BadRequest,
    ConnectionFailed,
    Forbidden,
    NotFound,
    NotRunning,
    RegistrationEnded,
    RequestTimedOut,
)
from txserviceregistry.testing import FakeRegistry


def openDescriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/dev/fd"))


class RegistrationCase(SynchronousTestCase):
    """Registered services of a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client()

    def service(self, timeout: int = 30, id: str = "web1", **options: Any) -> RegisteredService:
        service = RegisteredService(self.client, id, timeout, random=lambda: 0.5, **options)
        self.addCleanup(self.settle, service.stopService)
        return service

    def settle(self, call: Any) -> Any:
        done = call()
        results: list[Any] = []
        done.addBoth(results.append)
        for _ in range(40):
            if results:
                break
            self.fake.advance(0.25)
        return results[0]

    def listed(self) -> list[str]:
        page = self.successResultOf(self.other.services.list())
        return [service["id"] for service in page["values"]]

    def eventTypes(self) -> list[str]:
        page = self.successResultOf(self.other.events.list())
        return [event["type"] for event in page["values"]]

    def heldBy(self, path: str) -> Any:
        """The token in the state file."""
        return json.loads(Path(path).read_text())["token"]


class RegisteredServiceTests(RegistrationCase):
    """The promises to an application, seen from the registry's side."""

    def test_registersWithWhatItWasGiven(self) -> None:
        """Tags, metadata and timeout are what others see."""
        service = self.service(tags=["www"], metadata={"a": "b"})
        service.startService()
        self.assertIsNone(self.successResultOf(service.whenRegistered()))
        found = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual((found["tags"], found["metadata"], found["heartbeat_timeout"]), (["www"], {"a": "b"}, 30))
        self.assertEqual(service.state, "registered")
        self.assertTrue(service.healthy)

    def test_staysRegistered(self) -> None:
        """Two minutes later it is there, and there was no timeout event."""
        self.service(3).startService()
        self.fake.advance(120)
        self.assertEqual(self.listed(), ["web1"])
        self.assertNotIn("service.timeout", self.eventTypes())

    def test_theLogWhenTheIdIsTaken(self) -> None:
        """When another process has taken the id during an outage, the log says so, once."""
        self.service().startService()
        self.fake.stop()
        self.fake.advance(60)
        self.fake.start(keepData=False)
        with capturedLogs() as events:
            _, heartBeater = self.successResultOf(self.other.services.create("web1", 30))
            heartBeater.start()
            self.fake.advance(600)
        lines = [str(formatEvent(event)) for event in events if event["log_level"].name == "warn"]
        self.assertEqual(len([line for line in lines if "Service with id web1 already exists" in line]), 1)

    def logged(self, *levels: str) -> list[str]:
        """The lines of the log from now on, of these levels."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event["log_level"].name in levels and event["log_namespace"].endswith(".RegisteredService"):
                lines.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines

    def test_waitingForWhatWasNotStarted(self) -> None:
        """Before the first start and after a stop it fails at once, unless there is a parent that will start it."""
        service = self.service()
        error = self.failureResultOf(service.whenRegistered(), NotRunning).value
        self.assertEqual(str(error), "RegisteredService is not running; call startService()")
        parent = MultiService()
        service.setServiceParent(parent)
        waiting = service.whenRegistered()
        self.assertNoResult(waiting)
        parent.startService()
        self.successResultOf(waiting)
        self.successResultOf(maybeDeferred(service.disownServiceParent))
        self.failureResultOf(service.whenRegistered(), NotRunning)

    def test_theLogSaysWhereItIsRegistered(self) -> None:
        """In one line for each start, and in none when it only comes back."""
        lines = self.logged("info")
        said = [f"Service web1 registered at {self.client.settings.baseUrls[0]}"]
        service = self.service(10)
        service.startService()
        self.assertEqual(lines, said)
        self.fake.restart(keepData=False)
        self.fake.advance(60)
        self.assertEqual(self.eventTypes(), ["service.join"])
        self.assertEqual(lines, said)
        self.settle(service.stopService)
        service.startService()
        self.assertEqual(lines, [*said, "Service web1 deregistered", *said])

    def test_theLogSaysWhichAuthAPIItWas(self) -> None:
        """The registry's URL comes from the Auth API's catalog, where the settings have none."""
        lines = self.logged("info")
        fake = self.fake
        authUrl = self.client.settings.authUrls[0]
        # Those of the user who runs the test may name a registry.
        self.patch(os, "environ", {"HOME": self.mktemp()})
        self.client = Client(fake.username, fake.apiKey, authUrl=authUrl, agent=fake.agent, reactor=fake.clock)
        self.addCleanup(self.settle, self.client.close)
        self.service().startService()
        self.assertEqual(lines, [f"Service web1 registered at {authUrl}"])

    def test_registersWhenTheRegistryComesUp(self) -> None:
        """The application may start before the registry does."""
        self.fake.stop()
        service = self.service()
        service.startService()
        registered = service.whenRegistered()
        self.fake.advance(600)
        self.assertNoResult(registered)
        self.assertEqual(service.state, "registering")
        self.fake.start()
        self.fake.advance(12)
        self.successResultOf(registered)
        self.assertEqual(self.listed(), ["web1"])

    def test_registersAgainWhenTheDataIsGone(self) -> None:
        """After a registry's restart without its data it is registered again within one heartbeat interval."""
        services = [self.service(30, id=f"web{i}") for i in range(20)]
        for service in services:
            service.startService()
        self.fake.advance(7)
        self.fake.restart(keepData=False)
        self.fake.advance(24)
        self.assertEqual(len(self.listed()), 20)

    def test_livesThroughARestart(self) -> None:
        """A registry that is restarted with its data sees it go on with the token that it had."""
        self.service(3).startService()
        self.fake.advance(10)
        self.fake.stop()
        self.fake.advance(2)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_livesThroughEveryKindOfFailure(self) -> None:
        """500, 502, 503, lost connections, silence, garbage and cut answers don't kill it."""
        self.service(6).startService()
        for fault in (
            lambda: self.fake.failNext(500),
            lambda: self.fake.failNext(502, 2),
            lambda: self.fake.failNext(503, 3),
            self.fake.dropNext,
            self.fake.loseNext,
            self.fake.hangNext,
            self.fake.garbageNext,
            self.fake.truncateNext,
            lambda: self.fake.hangNext(2),
        ):
            self.fake.advance(2)
            fault()
            self.fake.advance(8)
        self.assertEqual(self.eventTypes(), ["service.join"])
        self.assertEqual(self.listed(), ["web1"])

    def test_comesBackAfterAPartition(self) -> None:
        """Cut off for longer than its timeout it times out, says so, and is registered again when the network heals."""
        service = self.service(10)
        states: list[str] = []
        service.onStateChange(states.append)
        service.startService()
        self.fake.advance(5)
        self.fake.partition()
        self.fake.advance(60)
        self.assertEqual((service.state, service.healthy), ("unreachable", False))
        self.fake.heal()
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        self.assertEqual(states, ["registering", "registered", "unreachable", "registering", "registered"])
        # Serializers such as YAML's refuse other strings than Python's own.
        self.assertEqual({type(state) for state in [service.state, *states]}, {str})

    def test_isNotPunishedForTheRegistrysPause(self) -> None:
        """A registry that was stopped for three timeouts gives the time back."""
        self.service(10).startService()
        self.fake.advance(5)
        self.fake.pause()
        self.fake.advance(30)
        self.fake.resume()
        self.fake.advance(30)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_stoppingRemovesIt(self) -> None:
        """A clean shutdown leaves no service, no timeout event, and nothing on the reactor."""
        service = self.service()
        service.startService()
        self.fake.advance(5)
        lines = self.logged("info", "warn")
        self.settle(service.stopService)
        self.assertEqual(self.listed(), [])
        self.assertEqual(lines, ["Service web1 deregistered"])
        self.settle(self.client.close)
        self.settle(self.other.close)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])
        asked = len(self.fake.requests)
        self.fake.advance(300)
        self.assertEqual(len(self.fake.requests), asked)

    def test_stoppingWhatIsNotThere(self) -> None:
        """If the registry has lost the service meanwhile, the log does not say that it was deregistered."""
        service = self.service()
        service.startService()
        self.fake.restart(keepData=False)
        lines = self.logged("info", "warn")
        self.settle(service.stopService)
        self.assertEqual(lines, ["Service web1 was no longer registered when it stopped"])

    def test_stoppingTwiceIsStoppingOnce(self) -> None:
        """The second stop waits for the first, and asks nothing of its own."""
        service = self.service()
        service.startService()
        self.settle(service.stopService)
        asked = len(self.fake.requests)
        self.settle(service.stopService)
        self.assertEqual(len(self.fake.requests), asked)

    def test_stoppingIsBoundedInTime(self) -> None:
        """With a registry that does not answer, stopping takes three seconds and no more."""
        service = self.service()
        service.startService()
        self.fake.partition()
        stopped = service.stopService()
        self.fake.advance(2.5)
        self.assertNoResult(stopped)
        self.fake.advance(0.6)
        self.assertIsNone(self.successResultOf(stopped))
        self.settle(self.client.close)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_stoppingTriesMoreThanOnce(self) -> None:
        """The deregistration is retried while the registry has a short outage."""
        service = self.service()
        service.startService()
        self.fake.failNext(503, 3)
        self.settle(service.stopService)
        self.assertEqual(self.listed(), [])

    def test_stoppingWithCredentialsThatAreRefused(self) -> None:
        """If its user's key was changed, so that no other try can succeed, it ends at once."""
        service = self.service()
        service.startService()
        self.successResultOf(service.whenRegistered())
        self.fake.apiKey = "another"
        self.fake.restart(keepData=False)
        stopped = service.stopService()
        self.fake.advance(0.1)
        self.successResultOf(stopped)

    def test_stoppingAsksWhileTheRegistrationIsUnderWay(self) -> None:
        """Stopped while the registration is under way, it waits for the outcome, and leaves no service."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.pause()
        service = self.service()
        service.startService()
        waiting = service.whenRegistered()
        stopped = service.stopService()
        self.failureResultOf(waiting, RegistrationEnded)
        self.fake.resume()
        self.fake.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(self.listed(), [])

    def test_stoppingLeavesAnotherClientsServiceAlone(self) -> None:
        """If another client took the id while the service was lost, stopping does not remove that one."""
        service = self.service(10)
        service.startService()
        self.fake.partition()
        self.fake.advance(25)
        self.fake.heal()
        self.successResultOf(self.other.services.create("web1", 120, {"tags": ["theirs"]}))
        self.fake.advance(15)
        self.assertEqual(service.state, "registering")
        self.settle(service.stopService)
        self.assertEqual(self.successResultOf(self.other.services.get("web1"))["tags"], ["theirs"])

    def test_otherRequestsThatHangDoNotDelayHeartbeats(self) -> None:
        """While all connections wait for responses, a service with a timeout of three seconds does not expire."""
        self.service(3).startService()
        self.fake.advance(1)
        self.fake.hangNext(2)
        hanging = [self.client.configuration.set(f"key{number}", "1") for number in range(2)]
        self.fake.advance(9)
        self.assertEqual(self.eventTypes(), ["service.join"])
        self.fake.advance(2)
        for each in hanging:
            self.failureResultOf(each, RequestTimedOut)

    def test_startsAgain(self) -> None:
        """Stopped and started at once, it is registered; the stop does not take the new registration away."""
        service = self.service()
        service.startService()
        service.stopService()
        service.startService()
        service.startService()
        self.fake.advance(30)
        self.assertEqual(self.listed(), ["web1"])

    def test_aRegistrationWhoseAnswerWasLostIsTakenUp(self) -> None:
        """It does not wait for a timeout of what it has just created itself."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.loseNext()
        service = self.service(120)
        service.startService()
        self.fake.advance(3)
        self.assertTrue(service.healthy)
        self.assertEqual(self.listed(), ["web1"])

    def test_waitsWhileTheIdIsTaken(self) -> None:
        """While an earlier service holds the id, it waits, and is registered as soon as that one has expired."""
        self.successResultOf(self.other.services.create("web1", 20))
        service = self.service(30)
        service.startService()
        self.fake.advance(19)
        self.assertFalse(service.healthy)
        self.fake.advance(3.5)
        self.assertTrue(service.healthy)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout", "service.join"])

    def test_whatIsNeverValidEndsIt(self) -> None:
        """A service that the registry refuses for good is reported to what waits for it, and not retried."""
        service = self.service(tags=["x" * 56])
        service.startService()
        refused = self.failureResultOf(service.whenRegistered(), BadRequest).value
        self.assertIn("String is not in range (1..55)", str(refused))
        self.assertEqual(service.state, "stopped")
        asked = len(self.fake.requests)
        self.fake.advance(300)
        self.assertEqual(len(self.fake.requests), asked)

    def test_aUserThatMayNotRegister(self) -> None:
        """A user whose role does not allow it is not asked for again; after another start it may be."""
        self.fake.setRole("write", services=["db"])
        service = self.service()
        waiting = service.whenRegistered()
        self.failureResultOf(waiting, NotRunning)
        service.startService()
        error = self.failureResultOf(service.whenRegistered(), Forbidden).value
        self.assertIn('This user may only change services that begin with "db"', str(error))
        self.assertIn("another role", str(error))
        self.assertEqual(service.state, "stopped")
        asked = len(self.fake.requests)
        self.fake.advance(600)
        self.assertEqual(len(self.fake.requests), asked)
        self.settle(service.stopService)
        self.fake.setRole("write")
        service.startService()
        self.assertIsNone(self.successResultOf(service.whenRegistered()))

    def test_aUserThatMayNoLongerSendHeartbeats(self) -> None:
        """
        With a role that lost the right, batched and single heartbeats end with one clear error, and the service
        expires. Others, whose ids the role allows, stay registered.
        """
        lines: list[str] = []

        def observe(event: Any) -> None:
            if event["log_level"].name in ("warn", "error"):
                lines.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        services = [self.service(10, id) for id in ("web1", "web2", "db1")]
        services.append(self.service(10, "web3", check=lambda: True))
        for service in services:
            service.startService()
        self.fake.advance(30)
        self.fake.setRole("write", services=["db"])
        self.fake.advance(60)
        self.assertEqual([service.state for service in services], ["stopped", "stopped", "registered", "stopped"])
        self.assertEqual(self.listed(), ["db1"])
        self.assertEqual(len(lines), 3)
        for line in lines:
            self.assertRegex(line, "^Heartbeats for service web[123] ended: .*403 .*This user may only change")
        self.failureResultOf(services[0].whenRegistered(), Forbidden)

    def test_aUserThatMayNotDeregister(self) -> None:
        """A service that stops is not deregistered again and again by a user that may not do it."""
        service = self.service()
        service.startService()
        self.fake.setRole("read")
        lines = self.logged("warn")
        stopped = service.stopService()
        self.fake.flush()
        self.assertIsNone(self.successResultOf(stopped))
        (line,) = lines
        self.assertRegex(line, "^Deregistration of service web1 failed: .*may only read.* It expires after 30 s$")

    def test_theStateFileOfAUserThatMayNotRegister(self) -> None:
        """A token is kept while the user may not use it, so that the service is continued if that changes in time."""
        path = self.mktemp()
        service = self.service(state=path)
        service.startService()
        service.abandon()
        self.fake.setRole("read")
        again = self.service(state=path)
        again.startService()
        self.failureResultOf(again.whenRegistered(), Forbidden)
        again.abandon()
        self.fake.setRole("write")
        again.startService()
        self.assertIsNone(self.successResultOf(again.whenRegistered()))
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_invalidArgumentsRaiseAtOnce(self) -> None:
        """An argument of a wrong type, or out of the protocol's bounds, is an error that says what is right."""
        for options, error, text in (
            ({"id": b"web1"}, TypeError, "b'web1', but a service's id is a string"),
            ({"id": None}, TypeError, "is a string of 3 to 65 characters"),
            ({"id": "a"}, ValueError, "'a', but a service's id is a string of 3 to 65 characters"),
            ({"id": "a" * 66}, ValueError, "3 to 65 characters"),
            ({"id": "no/slashes"}, ValueError, "of a-z A-Z 0-9 _ - ."),
            ({"timeout": "30"}, TypeError, "'30', but it has to be a whole number of seconds from 3 to 120"),
            ({"timeout": None}, TypeError, "whole number"),
            ({"timeout": 2}, ValueError, "heartbeatTimeout is 2, but it has to be a whole number of seconds from 3"),
            ({"timeout": 121}, ValueError, "3 to 120"),
            ({"timeout": 3.5}, ValueError, "whole number"),
            ({"timeout": float("nan")}, ValueError, "whole number"),
            ({"timeout": True}, ValueError, "whole number"),
            ({"tags": "www"}, TypeError, "tags is 'www', but it has to be a list of strings"),
            ({"tags": ""}, TypeError, "list of strings"),
            ({"tags": b"www"}, TypeError, "tags is b'www', but it has to be a list"),
            ({"tags": ["www", 1]}, TypeError, "1 is in tags, but each has to be a string"),
            ({"tags": None}, TypeError, "tags is None, but it has to be a list of strings"),
            ({"metadata": {"port": 8000}}, TypeError, r"metadata\['port'\] is 8000, but each value has to be a string"),
            ({"metadata": {8000: "port"}}, TypeError, "8000 is a key of metadata"),
            ({"metadata": "port=8000"}, TypeError, "mapping of strings to strings"),
            (
                {"check": True},
                TypeError,
                r"check is bool, but it has to be a function: check=healthy, not check=healthy\(\)",
            ),
        ):
            with self.subTest(options=options):
                self.assertRaisesRegex(error, text, self.service, **options)

    def test_whateverTheProtocolTakes(self) -> None:
        """Ids and timeouts up to their bounds, and all kinds of collections."""
        for number, options in enumerate(
            (
                {"id": "A-z"},
                {"id": "0_." + 62 * "a"},
                {"timeout": 3},
                {"timeout": 120},
                {"timeout": 30.0},
                {"tags": ("www",)},
                {"tags": {"www"}},
                {"tags": (tag for tag in ("www",))},
                {"metadata": MappingProxyType({"a": "b"})},
                {"metadata": None},
            )
        ):
            with self.subTest(options=options):
                service = self.service(**{"id": f"web{number}", **options})
                service.startService()
                self.successResultOf(service.whenRegistered())
                found = self.successResultOf(self.other.services.get(service.serviceId))
                self.assertEqual(found["tags"], ["www"] if "tags" in options else [])
                self.assertEqual(found["metadata"], dict(options.get("metadata") or {}))
                self.assertEqual(found["heartbeat_timeout"], options.get("timeout", 30))

    def test_theRegistryHasTheLastWord(self) -> None:
        """How many tags there may be, and how long each, another registry may see in another way."""
        for options in ({"tags": [f"tag{number}" for number in range(11)]}, {"tags": ["x" * 56]}, {"tags": [""]}):
            service = self.service(**options)
            service.startService()
            self.failureResultOf(service.whenRegistered(), BadRequest)

    def test_drainForATimeThatIsNone(self) -> None:
        """It is an error where it is written, and the service stays registered."""
        service = self.service()
        service.startService()
        for seconds in (float("nan"), float("inf"), -1.0):
            self.assertRaises(ValueError, service.drain, seconds)
        self.assertEqual(self.listed(), ["web1"])

    def test_drainRemovesItFirst(self) -> None:
        """It leaves the registry at once, and the rest of the time is for those who still know it."""
        service = self.service()
        service.startService()
        drained = service.drain(5)
        self.fake.advance(0)
        self.assertEqual(self.listed(), [])
        self.fake.advance(4.9)
        self.assertNoResult(drained)
        self.fake.advance(0.2)
        self.successResultOf(drained)
        self.assertEqual(self.listed(), [])

    def test_anAbandonedServiceTimesOut(self) -> None:
        """No more requests are sent, and the event feed has the timeout of the service."""
        service = self.service(10)
        service.startService()
        service.abandon()
        asked = len(self.fake.requests)
        self.assertEqual(service.state, "stopped")
        self.fake.advance(11)
        self.assertEqual(len(self.fake.requests), asked)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout"])
        self.settle(service.stopService)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout"])

    def test_continuesAnAbandonedServiceInTime(self) -> None:
        """The state file keeps its token."""
        path = self.mktemp()
        first = self.service(10, state=path)
        first.startService()
        first.abandon()
        self.fake.advance(5)
        self.service(10, state=path).startService()
        self.fake.advance(20)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_abandonedWhileItRegisters(self) -> None:
        """Waiting Deferreds fail, and no try follows."""
        self.successResultOf(self.client.account.getLimits())
        self.fake.hangNext()
        service = self.service()
        service.startService()
        waiting = service.whenRegistered()
        service.abandon()
        service.abandon()
        self.failureResultOf(waiting, RegistrationEnded)
        asked = len(self.fake.requests)
        self.fake.advance(60)
        self.assertEqual(len(self.fake.requests), asked)
        self.assertEqual(self.listed(), [])

    def test_reportsEachTryThatFailed(self) -> None:
        """A listener is called with the reason of each failed registration, and no more once it is registered."""
        self.fake.stop()
        service = self.service()
        reasons: list[Exception] = []
        service.onRegistrationFailure(reasons.append)
        service.startService()
        self.fake.advance(0.2)
        self.assertGreater(len(reasons), 1)
        self.fake.start()
        self.fake.advance(12)
        self.successResultOf(service.whenRegistered())
        self.assertEqual({type(reason) for reason in reasons}, {ConnectionFailed})

    def test_checkSuspendsRegistrationAndHeartbeats(self) -> None:
        """It is registered when the check passes first, expires while it fails, and is back when it passes again."""
        well = [False]
        service = self.service(10, check=lambda: well[0])
        service.startService()
        self.fake.advance(30)
        self.assertEqual(self.listed(), [])
        well[0] = True
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        well[0] = False
        self.fake.advance(25)
        self.assertEqual(self.listed(), [])
        well[0] = True
        self.fake.advance(12)
        self.assertEqual(self.listed(), ["web1"])

    def test_aListenerThatRaisesDoesNoHarm(self) -> None:
        """The error is logged, and the service registered all the same."""
        service = self.service()

        def bad(state: str) -> None:
            raise RuntimeError("listener")

        service.onStateChange(bad)
        service.startService()
        self.successResultOf(service.whenRegistered())
        self.settle(service.stopService)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 3)

    # -- the address

    def test_aListenerThatStopsIt(self) -> None:
        """A listener may stop it, or start it again, in any state: nothing is registered or left in the end."""
        for at in ("registering", "registered"):
            for again in (False, True):
                fake = FakeRegistry()
                client = fake.client()
                service = RegisteredService(client, "web1", 10)
                left = [at] * 3

                def listener(
                    state: str, service: RegisteredService = service, left: list[str] = left, again: bool = again
                ) -> None:
                    if state in left:
                        left.remove(state)
                        service.stopService()
                        if again:
                            service.startService()

                service.onStateChange(listener)
                service.startService()
                fake.advance(30)
                self.assertEqual(service.state, "registered" if again else "stopped")
                service.stopService()
                client.close()
                fake.advance(10)
                self.failureResultOf(fake.client().services.get("web1"), NotFound)
                self.assertEqual(fake.clock.getDelayedCalls(), [], (at, again))

    def test_aClientThatIsClosedEndsIt(self) -> None:
        """A service whose client is closed too early does not seem to be registered: it ends, and the log says so."""
        # One that is batched, and one that is not.
        for check in (None, lambda: True):
            client = self.fake.client()
            service = RegisteredService(client, "web1", 10, check=check)
            service.startService()
            self.fake.advance(30)
            with capturedLogs() as events:
                client.close()
                self.fake.advance(60)
            self.assertEqual(service.state, "stopped")
            self.failureResultOf(service.whenRegistered(), ConnectionFailed)
            self.failureResultOf(service.update(tags=["a"]), ConnectionFailed)
            self.assertIn("Heartbeats for service web1 ended", "".join(formatEvent(event) for event in events))
            self.successResultOf(service.stopService())
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def test_findsItsHost(self) -> None:
        """With a port and no host in the metadata, the host is the address that reaches the registry."""
        service = self.service(metadata={"port": "8000"})
        service.startService()
        found = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual(found["metadata"], {"port": "8000", "host": "127.0.0.1"})

    def test_keepsTheHostThatItWasGiven(self) -> None:
        """The caller's own address stays."""
        service = self.service(metadata={"port": "8000", "address": "10.0.0.9"})
        service.startService()
        found = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual(found["metadata"], {"port": "8000", "address": "10.0.0.9"})

    # -- the state file

    def crash(self, service: RegisteredService) -> None:
        """End it as kill -9 would: no heartbeat follows, and no deregistration."""
        self.fake.partition()
        service.stopService()
        self.fake.advance(3.1)
        self.fake.heal()

    def test_goesOnAsTheSameServiceAfterACrash(self) -> None:
        """With a state file a new process takes the service up at once, with what is new in its metadata."""
        path = self.mktemp()
        first = self.service(metadata={"version": "1"}, state=path)
        first.startService()
        self.crash(first)
        again = self.service(metadata={"version": "2"}, state=path)
        again.startService()
        self.successResultOf(again.whenRegistered())
        found = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual(found["metadata"], {"version": "2"})
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_theStateFileHoldsTheLastToken(self) -> None:
        """Each answer's token is kept before it is used, in a file that only its owner reads."""
        path = self.mktemp()
        self.service(10, state=path).startService()
        first = json.loads(Path(path).read_text())
        self.fake.advance(30)
        last = json.loads(Path(path).read_text())
        self.assertEqual((first["id"], last["id"]), ("web1", "web1"))
        self.assertNotEqual(first["token"], last["token"])
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_aRegistrationThatGotTheTokenOfAnotherService(self) -> None:
        """The service that was created has no token that works: it is removed and created again, and never expires."""
        self.fake.foreignTokenNext()
        service = self.service(10)
        service.startService()
        self.fake.advance(60)
        self.assertTrue(service.healthy)
        events = self.successResultOf(self.other.events.list())["values"]
        types = [event["type"] for event in events]
        self.assertEqual(types, ["service.join", "service.remove", "service.join"])

    def test_aTokenThatIsRefusedWhileAnotherHasTheId(self) -> None:
        """A service of someone else, which took the id meanwhile, is left alone."""
        service = self.service(10)
        service.startService()
        self.fake.advance(20)
        self.successResultOf(self.other.services.remove("web1"))
        _, heartBeater = self.successResultOf(self.other.services.create("web1", 10))
        heartBeater.start()
        self.addCleanup(heartBeater.stop)
        self.fake.advance(60)
        self.assertFalse(service.healthy)
        events = self.successResultOf(self.other.events.list())["values"]
        types = [event["type"] for event in events]
        self.assertEqual(types, ["service.join", "service.remove", "service.join"])

    def test_theStateFileSurvivesATokenOfAnotherService(self) -> None:
        """An application that was killed after a response of another service goes on as the same service."""
        for heartbeats in (1, 2):
            path = self.mktemp()
            id = f"web{heartbeats}"
            service = self.service(10, id=id, state=path)
            service.startService()
            self.fake.advance(30)
            self.fake.foreignTokenNext(heartbeats)
            self.fake.advance(6.5 * heartbeats)
            service.abandon()
            again = self.service(10, id=id, state=path)
            again.startService()
            self.fake.foreignTokenNext()
            self.fake.advance(30)
            self.assertTrue(again.healthy)
            events = self.successResultOf(self.other.events.list())["values"]
            self.assertEqual([event["type"] for event in events if event["payload"]["id"] == id], ["service.join"])

    def test_aStaleStateFileIsNotAHindrance(self) -> None:
        """A token of a service that has ended, or a file that is none of ours, leads to a new registration."""
        for content in (
            '{"id": "web1", "token": "59a8f3a0-e0ac-11f0-8000-000000000000"}',
            '{"id": "web1", "token": "x"}',
            '{"id": "web1", "token": 3}',
            '{"id": "other", "token": "x"}',
            "garbage",
            "[]",
            "[" * 100_000,
        ):
            path = self.mktemp()
            with open(path, "w") as file:
                file.write(content)
            service = self.service(state=path)
            service.startService()
            self.successResultOf(service.whenRegistered())
            self.settle(service.stopService)
            self.assertFalse(os.path.exists(path))

    def test_aStateFileThatCantBeWrittenIsLogged(self) -> None:
        """The service is registered all the same."""
        lines: list[str] = []

        def observe(event: Any) -> None:
            if "can't be written" in event.get("log_format", ""):
                lines.append(event["log_level"].name)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        service = self.service(state="/nonexistent/folder/state")
        service.startService()
        self.successResultOf(service.whenRegistered())
        self.assertEqual(lines, ["warn"])

    def test_resumesWhenTheRegistryIsBack(self) -> None:
        """An unreachable registry at the start does not make the client give up the kept service."""
        path = self.mktemp()
        first = self.service(60, state=path)
        first.startService()
        self.crash(first)
        self.fake.stop()
        again = self.service(60, state=path)
        again.startService()
        self.fake.advance(20)
        self.fake.start()
        self.fake.advance(20)
        self.assertTrue(again.healthy)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_cancellingAWaiterLeavesTheOthers(self) -> None:
        """Cancelling one wait for the registration leaves the others."""
        self.fake.stop()
        service = self.service()
        service.startService()
        one, two = service.whenRegistered(), service.whenRegistered()
        one.addErrback(lambda _: None)
        one.cancel()
        self.fake.start()
        self.fake.advance(12)
        self.successResultOf(two)

    def test_isNotFoundAfterwards(self) -> None:
        """After a stop its id is free."""
        service = self.service()
        service.startService()
        self.settle(service.stopService)
        self.failureResultOf(self.other.services.get("web1"), NotFound)
        self.assertIn("stopped", repr(service))
        again: Deferred[Any] = self.other.services.create("web1", 30)
        self.successResultOf(again)

    # -- the state file, and several who have it

    def test_twoWithOneStateFileAreTwoServices(self) -> None:
        """The second takes nothing of the first while that runs: not its service, nor its token, nor the file."""
        path = self.mktemp()
        lines = self.logged("warn")
        first, second = self.service(10, state=path), self.service(10, state=path)
        first.startService()
        second.startService()
        self.fake.advance(60)
        self.assertEqual((first.state, second.state), ("registered", "registering"))
        self.assertEqual(len(lines), 1)
        self.assertIn(path, lines[0])
        self.settle(second.stopService)
        self.assertTrue(os.path.exists(path))
        self.assertEqual(self.listed(), ["web1"])
        self.crash(first)
        self.service(10, state=path).startService()
        self.fake.advance(10)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_aRollingRestart(self) -> None:
        """The new one is registered when the old one has left, and has the file from there on."""
        path = self.mktemp()
        first, second = self.service(10, state=path), self.service(10, state=path)
        first.startService()
        second.startService()
        first.drain(5)
        self.fake.advance(10)
        self.assertTrue(second.healthy)
        self.assertEqual(self.eventTypes(), ["service.join", "service.remove", "service.join"])
        self.crash(second)
        self.service(10, state=path).startService()
        self.fake.advance(30)
        self.assertEqual(self.eventTypes(), ["service.join", "service.remove", "service.join"])

    def test_takesOverFromAKilledProcess(self) -> None:
        """One that waits goes on as the same service when the first has ended."""
        path = self.mktemp()
        first, second = self.service(10, state=path), self.service(10, state=path)
        first.startService()
        second.startService()
        self.fake.advance(5)
        first.abandon()
        self.fake.advance(30)
        self.assertTrue(second.healthy)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_anotherServiceTakesTheFileWhenItIsFree(self) -> None:
        """One with an id of its own is registered at once, and its token kept as soon as the file is free."""
        path = self.mktemp()
        first, second = self.service(10, state=path), self.service(10, id="web2", state=path)
        first.startService()
        second.startService()
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1", "web2"])
        self.assertEqual(json.loads(Path(path).read_text())["id"], "web1")
        self.settle(first.stopService)
        self.fake.advance(10)
        self.assertEqual(json.loads(Path(path).read_text())["id"], "web2")

    def test_isWarnedAfterEachStart(self) -> None:
        """Stopped and started again, the first has its file again, and the second logs that again."""
        path = self.mktemp()
        lines = self.logged("warn")
        first, second = self.service(10, state=path), self.service(10, id="web2", state=path)
        for count in (1, 2):
            first.startService()
            second.startService()
            self.fake.advance(10)
            self.assertEqual(len(lines), count)
            self.assertEqual(json.loads(Path(path).read_text())["id"], "web1")
            self.settle(second.stopService)
            self.settle(first.stopService)

    def test_leavesNoDescriptorOpen(self) -> None:
        """However often it is started, stopped and abandoned, and however often it finds the file taken."""
        # Else a file that another test has left open may be closed meanwhile.
        collectOnlyNew(self)
        path = self.mktemp()
        first, second = self.service(10, state=path), self.service(10, state=path)

        def run() -> None:
            first.startService()
            second.startService()
            self.fake.advance(20)
            self.settle(second.stopService)
            first.abandon()
            first.startService()
            self.settle(first.stopService)

        run()
        before = openDescriptors()
        run()
        run()
        self.assertEqual(openDescriptors(), before)
