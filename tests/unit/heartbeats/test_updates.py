"""Updates of registered services: the fields that are registered again, and the times of heartbeats."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.unit.garbage import collectOnlyNew
from txserviceregistry import HeartBeater, RegisteredService
from txserviceregistry.errors import BadRequest, NotFound, NotRunning, RegistrationEnded, RequestTimedOut
from txserviceregistry.testing import FakeRegistry

GIVEN = {"port": "80", "host": "10.0.0.1"}
UPDATED = {**GIVEN, "status": "disabled"}


class UpdateCase(SynchronousTestCase):
    """A registry, the application's client, and another client."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.client = self.fake.client()
        self.other = self.fake.client()

    def service(self, timeout: int = 10, **options: Any) -> RegisteredService:
        options = {"metadata": GIVEN, **options}
        service = RegisteredService(self.client, "web1", timeout, random=lambda: 0.5, **options)
        self.addCleanup(self.end, service)
        service.startService()
        return service

    def end(self, service: RegisteredService) -> None:
        service.stopService()
        self.fake.advance(4)

    def registered(self, timeout: int = 10, **payload: Any) -> HeartBeater:
        """One that ``services.register`` keeps registered."""
        _, heartBeater = self.successResultOf(self.client.services.register("web1", timeout, payload))
        heartBeater.start()
        self.addCleanup(heartBeater.stop)
        return heartBeater

    def found(self) -> Any:
        return self.successResultOf(self.other.services.get("web1"))

    def metadata(self) -> Any:
        return self.found()["metadata"]

    def events(self) -> list[str]:
        page = self.successResultOf(self.other.events.list())
        return [event["type"].partition(".")[2] for event in page["values"]]

    def outage(self, seconds: float = 15) -> None:
        """A partition, and the time to come back."""
        self.fake.partition()
        self.fake.advance(seconds)
        self.fake.heal()
        self.fake.advance(20)

    def assertRegisteredAgain(self, **expected: Any) -> None:
        """The service expired, is registered again, and these fields are as they should be."""
        self.assertEqual(self.events()[-2:], ["timeout", "join"])
        found = self.found()
        self.assertEqual({name: found[name] for name in expected}, expected)


class Text(str):
    """A string that can be referenced weakly."""


class MemoryTests(UpdateCase):
    """The memory of the updates of a service that is updated again and again."""

    def kept(self, update: Callable[[Text], Deferred[Any]], count: int = 20, seconds: float = 2) -> int:
        """How many of so many updates are in memory, with so many seconds between them."""
        collectOnlyNew(self)
        updates: list[ReferenceType[Text]] = []
        for number in range(count):
            text = Text(number)
            updates.append(ref(text))
            self.successResultOf(update(text))
            self.fake.advance(seconds)
        del text
        gc.collect()
        return sum(each() is not None for each in updates)

    def throughTheClient(self, text: Text) -> Deferred[Any]:
        return self.client.services.update("web1", {"metadata": {"load": text}})

    def test_ofAService(self) -> None:
        """Those of a RegisteredService."""
        service = self.service(3)
        self.assertLess(self.kept(lambda text: service.update(metadata={"load": text})), 5)
        self.assertLess(self.kept(self.throughTheClient), 5)

    def test_beforeTheFirstHeartbeat(self) -> None:
        """Those of a service for which no heartbeat was accepted so far are bounded."""
        _, heartBeater = self.successResultOf(self.client.services.register("web1", 120))
        self.assertLess(self.kept(self.throughTheClient, 150, 0.1), 105)
        heartBeater.stop()

    def test_ofACreatedService(self) -> None:
        """Those of a service that is not registered again, and whose heartbeats the application itself sends."""
        _, heartBeater = self.successResultOf(self.client.services.create("web1", 120))
        self.assertLess(self.kept(self.throughTheClient), 5)
        heartBeater.stop()


class ReregistrationTests(UpdateCase):
    """Updates outlive an expiration."""

    def test_updateThroughTheClient(self) -> None:
        """An update of a RegisteredService by services.update() outlives a partition."""
        service = self.service(tags=["www"])
        self.successResultOf(self.client.services.update("web1", {"metadata": UPDATED}))
        self.outage()
        self.assertRegisteredAgain(metadata=UPDATED, tags=["www"])
        self.assertEqual((service.metadata, service.tags), (UPDATED, ["www"]))

    def test_updateOfTheService(self) -> None:
        """So does one by RegisteredService.update(), which keeps the fields that are not given."""
        service = self.service(tags=["www"])
        self.successResultOf(service.update(metadata=UPDATED))
        self.assertEqual(self.metadata(), UPDATED)
        self.successResultOf(service.update(tags=["a", "b"]))
        self.outage()
        self.assertRegisteredAgain(metadata=UPDATED, tags=["a", "b"])

    def test_register(self) -> None:
        """So does an update of a service of services.register()."""
        self.registered(tags=["www"])
        self.successResultOf(self.client.services.update("web1", {"metadata": UPDATED}))
        self.outage()
        self.assertRegisteredAgain(metadata=UPDATED, tags=["www"])

    def test_registryWithoutItsData(self) -> None:
        """A registry that has lost its data gets the updated fields, not the original ones."""
        service = self.service()
        self.successResultOf(service.update(metadata=UPDATED))
        self.fake.restart(keepData=False)
        self.fake.advance(10)
        self.assertEqual(self.metadata(), UPDATED)

    def test_anotherClientsService(self) -> None:
        """Another client's service in the place of one whose heartbeats were accepted stays, even if it is the same."""
        for start in (self.service, self.registered):
            start(metadata=GIVEN)
            for _ in range(2):
                self.fake.advance(20)
                self.successResultOf(self.other.services.remove("web1"))
                self.successResultOf(self.other.services.create("web1", 10, {"tags": [], "metadata": GIVEN}))
                self.fake.advance(30)
                self.assertEqual(self.events()[-4:], ["remove", "join", "timeout", "join"])
            self.doCleanups()
            self.fake.advance(20)

    def test_beforeTheStart(self) -> None:
        """The change counts for the start, but the Deferred does not wait for a start that may never come."""
        service = RegisteredService(self.client, "web1", 10)
        self.failureResultOf(service.update(metadata=UPDATED), NotRunning)
        self.addCleanup(self.end, service)
        service.startService()
        self.assertEqual(self.metadata(), UPDATED)

    def test_afterARefusal(self) -> None:
        """Neither an update of the time before nor a later one waits for a service that the registry refused."""
        self.fake.partition()
        service = self.service(tags=["x" * 56])
        before = service.update(metadata=UPDATED)
        self.fake.heal()
        self.fake.advance(10)
        self.failureResultOf(before, BadRequest)
        self.failureResultOf(service.whenRegistered(), BadRequest)
        self.failureResultOf(service.update(tags=["good"]), BadRequest)
        self.successResultOf(service.stopService())
        service.startService()
        self.assertEqual(self.found()["tags"], ["good"])

    def test_aNewStartOfTheSameService(self) -> None:
        """A service that is stopped and started again keeps its updates."""
        service = self.service()
        self.successResultOf(service.update(metadata=UPDATED))
        service.stopService()
        self.fake.advance(1)
        service.startService()
        self.fake.advance(1)
        self.assertEqual(self.metadata(), UPDATED)

    def test_anotherClientsUpdate(self) -> None:
        """An update by another client is lost when the service expires."""
        self.service()
        self.successResultOf(self.other.services.update("web1", {"metadata": UPDATED}))
        self.outage()
        self.assertRegisteredAgain(metadata=GIVEN)

    def test_aServiceThatWasRemovedIsNotUpdatedInSecret(self) -> None:
        """After a service has stopped, updates of it are ordinary requests."""
        service = self.service()
        service.stopService()
        self.fake.advance(1)
        self.failureResultOf(self.client.services.update("web1", {"metadata": UPDATED}), NotFound)
        self.assertEqual(service.metadata, GIVEN)


class OutageTests(UpdateCase):
    """Updates while the registry can't be reached, or has lost the service."""

    def test_updateDuringAnOutage(self) -> None:
        """An update changes the desired state at once, and its Deferred fires when the registry has it."""
        service = self.service()
        self.fake.partition()
        self.fake.advance(15)
        updated = service.update(metadata=UPDATED)
        self.assertEqual(service.metadata, UPDATED)
        self.fake.advance(15)
        self.assertNoResult(updated)
        self.fake.heal()
        self.fake.advance(10)
        self.assertIsNone(self.successResultOf(updated))
        self.assertRegisteredAgain(metadata=UPDATED)

    def test_updateDuringAShortOutage(self) -> None:
        """A service that does not expire meanwhile is updated when the registry is back."""
        service = self.service(60)
        self.fake.advance(1)
        self.fake.partition()
        updated = service.update(metadata=UPDATED)
        self.fake.advance(15)
        self.assertNoResult(updated)
        self.fake.heal()
        self.fake.advance(20)
        self.assertIsNone(self.successResultOf(updated))
        self.assertEqual((self.metadata(), self.events()), (UPDATED, ["join"]))

    def test_retriesBecomeRarer(self) -> None:
        """An update is retried with backoff, and the log has its failure and its success."""
        service = self.service(120)
        self.fake.advance(1)
        self.fake.stop()
        asked = len(self.fake.requests)
        with capturedLogs() as events:
            updated = service.update(metadata=UPDATED)
            self.fake.advance(60)
            attempts = [each for each in self.fake.requests[asked:] if each.method == "PUT"]
            self.fake.start()
            self.fake.advance(60)
        self.assertIsNone(self.successResultOf(updated))
        self.assertTrue(3 < len(attempts) < 20, len(attempts))
        failed, succeeded = (text for event in events if "pdate" in (text := str(formatEvent(event))))
        self.assertIn("Update of service web1 failed: ", failed)
        self.assertIn("Service web1 updated after ", succeeded)

    def test_updateBeforeTheFirstRegistration(self) -> None:
        """An update waits for the registration, which sends it."""
        self.fake.stop()
        service = self.service()
        updated = service.update(metadata=UPDATED)
        self.fake.advance(1)
        self.assertNoResult(updated)
        self.fake.start()
        self.fake.advance(20)
        self.assertIsNone(self.successResultOf(updated))
        self.assertEqual(self.metadata(), UPDATED)

    def test_unknownOutcome(self) -> None:
        """services.update() fails after a time without a response; the update counts, and the client retries it."""
        for keep in (self.service, self.registered):
            with self.subTest(keep.__name__):
                kept: Any = keep(60) if keep is self.service else self.registered(60, metadata=GIVEN)
                self.fake.advance(1)
                self.fake.partition()
                updated = self.client.services.update("web1", {"metadata": UPDATED})
                self.fake.advance(31)
                self.failureResultOf(updated, RequestTimedOut)
                self.fake.heal()
                self.fake.advance(20)
                self.assertEqual(self.metadata(), UPDATED)
                self.successResultOf(self.client.services.remove("web1"))
                if isinstance(kept, HeartBeater):
                    self.successResultOf(kept.stop())
                else:
                    self.end(kept)

    def test_notFound(self) -> None:
        """An update of a service that the registry has just lost fails, and is part of the next registration."""
        self.service()
        self.fake.restart(keepData=False)
        self.failureResultOf(self.client.services.update("web1", {"metadata": UPDATED}), NotFound)
        self.fake.advance(10)
        self.assertEqual(self.metadata(), UPDATED)

    def test_anUpdateFindsOutThatTheServiceIsGone(self) -> None:
        """After a 404, RegisteredService.update() does not wait for the next heartbeat: it registers at once."""
        service = self.service(120)
        self.fake.advance(10)
        self.fake.restart(keepData=False)
        updated = service.update(metadata=UPDATED)
        self.fake.advance(1)
        self.assertIsNone(self.successResultOf(updated))
        self.assertEqual(self.metadata(), UPDATED)

    def test_stoppedBefore(self) -> None:
        """An update that waits fails when its service is stopped."""
        service = self.service()
        self.fake.partition()
        updated = service.update(metadata=UPDATED)
        service.stopService()
        self.fake.advance(4)
        self.failureResultOf(updated, RegistrationEnded)

    def test_aWaiterThatIsCancelled(self) -> None:
        """Cancelling an update's Deferred does not cancel the update."""
        service = self.service()
        self.fake.partition()
        updated = service.update(metadata=UPDATED)
        updated.addErrback(lambda _: None)
        updated.cancel()
        self.fake.heal()
        self.fake.advance(20)
        self.assertEqual(self.metadata(), UPDATED)


class RefusalTests(UpdateCase):
    """Updates that the registry refuses change nothing."""

    REFUSED = {"x": ""}

    def test_throughTheClient(self) -> None:
        """The service is registered again without the update."""
        self.service()
        self.failureResultOf(self.client.services.update("web1", {"metadata": self.REFUSED}), BadRequest)
        self.failureResultOf(self.client.services.update("web1", {"tags": "www"}), BadRequest)
        self.outage()
        self.assertRegisteredAgain(metadata=GIVEN, tags=[])

    def test_ofTheService(self) -> None:
        """The Deferred fails with the registry's reason, and the service stays what it was."""
        service = self.service()
        self.successResultOf(service.update(tags=["good"]))
        self.failureResultOf(service.update(metadata=self.REFUSED), BadRequest)
        self.assertEqual((service.metadata, service.tags), (GIVEN, ["good"]))
        self.outage()
        self.assertRegisteredAgain(metadata=GIVEN, tags=["good"])

    def test_duringAnOutage(self) -> None:
        """A service is registered again without an update that the registry refuses then."""
        service = self.service()
        self.fake.partition()
        self.fake.advance(15)
        updated = service.update(metadata=self.REFUSED)
        self.fake.heal()
        self.fake.advance(10)
        self.failureResultOf(updated, BadRequest)
        self.assertRegisteredAgain(metadata=GIVEN)
        self.assertTrue(service.healthy)

    def test_whatNoRegistryTakes(self) -> None:
        """A wrong type raises TypeError at once."""
        service = self.service()
        for wrong in ({"tags": "www"}, {"tags": [1]}, {"metadata": {"port": 80}}):
            arguments: Any = wrong
            self.assertRaises(TypeError, service.update, **arguments)
        self.assertEqual((service.metadata, service.tags), (GIVEN, []))


class RaceTests(UpdateCase):
    """Updates beside registrations and other updates: the last one counts."""

    def test_besideARegistration(self) -> None:
        """An update during a registration is sent after it."""
        for update in (
            lambda service: service.update(metadata=UPDATED),
            lambda service: self.client.services.update("web1", {"metadata": UPDATED}),
        ):
            service = self.service()
            self.fake.restart(keepData=False)
            while not self.fake.requests[-1].path.endswith("/services"):
                self.fake.pause()
                self.fake.advance(0.25)
            updated: Deferred[Any] = update(service)
            updated.addErrback(lambda failure: failure.trap(NotFound))
            self.fake.resume()
            self.fake.advance(10)
            self.successResultOf(updated)
            self.assertEqual(self.metadata(), UPDATED)
            self.end(service)

    def test_twoAtOnce(self) -> None:
        """The registry has the later one of two simultaneous updates in the end, even if the first one arrives last."""
        self.service(60)
        self.fake.advance(1)
        self.fake.pause()
        first = self.client.services.update("web1", {"metadata": {"n": "1"}})
        self.fake.resume()
        self.fake.loseNext()
        second = self.client.services.update("web1", {"metadata": {"n": "2"}})
        for updated in (first, second):
            updated.addErrback(lambda _: None)
        self.fake.advance(20)
        self.assertEqual(self.metadata(), {"n": "2"})

    def test_allAreAnswered(self) -> None:
        """Updates of a service end when the registry has what the last one wants, whichever request has brought it."""
        service = self.service()
        throughTheClient = {"metadata": {**GIVEN, "number": "4"}}
        for requests in (
            lambda: [service.update(tags=["1"]) for _ in range(3)],
            lambda: [service.update(tags=[each]) for each in ("2", "3", "2")],
            lambda: [self.client.services.update("web1", throughTheClient), service.update(**throughTheClient)],
            lambda: [self.client.services.update("web1", throughTheClient), service.update()],
        ):
            self.fake.pause()
            waiting = requests()
            self.fake.resume()
            self.fake.advance(1)
            for each in waiting:
                self.successResultOf(each)
        self.assertEqual((self.found()["tags"], self.metadata()), (["2"], {**GIVEN, "number": "4"}))

    def test_whileItIsRegistered(self) -> None:
        """So does one that comes while the service is being registered with what it wants."""
        self.fake.pause()
        service = self.service(tags=["1"])
        waiting = service.update(tags=["1"])
        self.fake.resume()
        self.fake.advance(1)
        self.successResultOf(waiting)

    def test_aLostRegistrationThatWasUpdatedMeanwhile(self) -> None:
        """A service that was created without a response is removed and created again, also after an update."""
        for update in (
            lambda service: service.update(metadata=UPDATED),
            lambda service: self.client.services.update("web1", {"metadata": UPDATED}),
        ):
            before = len(self.events())
            service = RegisteredService(self.client, "web1", 60, metadata=GIVEN, random=lambda: 0.5)
            self.successResultOf(self.client.account.getLimits())
            self.fake.loseNext()
            service.startService()
            update(service).addErrback(lambda _: None)
            self.fake.advance(5)
            self.assertTrue(service.healthy)
            self.assertEqual(self.metadata(), UPDATED)
            self.assertEqual(self.events()[before:], ["join", "remove", "join"])
            self.end(service)


class TimeoutTests(UpdateCase):
    """Updates of the heartbeat timeout."""

    def change(self, timeout: int) -> None:
        self.successResultOf(self.client.services.update("web1", {"heartbeat_timeout": timeout}))

    def test_heartbeatsFollow(self) -> None:
        """The service does not expire with a shorter or longer timeout, and the number of heartbeats fits it."""
        for keep in ("service", "registered", "created"):
            if keep == "created":
                _, heartBeater = self.successResultOf(self.client.services.create("web1", 120))
                heartBeater.start()
                kept: Any = heartBeater
            else:
                kept = getattr(self, keep)(120)
            self.fake.advance(30)
            self.change(3)
            self.fake.advance(60)
            self.assertNotIn("timeout", self.events())
            self.assertEqual((self.found()["heartbeat_timeout"], kept.heartbeatTimeout), (3, 3))
            self.change(120)
            self.fake.advance(10)
            before = len(self.fake.requests)
            self.fake.advance(300)
            self.assertIn(len(self.fake.requests) - before, range(2, 6))
            self.assertNotIn("timeout", self.events())
            kept.stopService() if keep == "service" else kept.stop()
            self.client.services.remove("web1").addErrback(lambda _: None)
            self.fake.advance(4)

    def test_withoutTheExtension(self) -> None:
        """The same holds for single heartbeats, as with a check."""
        service = self.service(120, check=lambda: True)
        self.fake.advance(30)
        self.change(3)
        self.fake.advance(60)
        self.assertEqual((self.events(), service.heartbeatTimeout), (["join"], 3))

    def test_withoutAResponse(self) -> None:
        """While the registry may have the shorter timeout, heartbeats are sent for that one."""
        self.service(120)
        self.fake.advance(30)
        self.fake.loseNext(2)
        self.client.services.update("web1", {"heartbeat_timeout": 3}).addErrback(lambda _: None)
        self.fake.advance(60)
        self.assertEqual((self.events(), self.found()["heartbeat_timeout"]), (["join"], 3))

    def test_registersAgain(self) -> None:
        """A service that expires is registered again with the new timeout."""
        self.service(10)
        self.change(20)
        self.outage(25)
        self.assertRegisteredAgain(heartbeat_timeout=20)

    def test_refused(self) -> None:
        """A timeout that the registry refuses changes nothing."""
        service = self.service(10)
        self.failureResultOf(self.client.services.update("web1", {"heartbeat_timeout": 500}), BadRequest)
        self.assertEqual(service.heartbeatTimeout, 10)

    def test_refusedWithAnotherField(self) -> None:
        """Nor does a shorter one in an update that the registry refuses: there are no more heartbeats than before."""
        heartBeater = self.registered(10)
        payload = {"heartbeat_timeout": 3, "tags": ["x" * 56]}
        self.failureResultOf(self.client.services.update("web1", payload), BadRequest)
        self.assertEqual(heartBeater.heartbeatTimeout, 10)


class HostTests(UpdateCase):
    """The host that is determined automatically."""

    def setUp(self) -> None:
        super().setUp()
        self.automatic = {"port": "80", "host": "127.0.0.1"}

    def service(self, timeout: int = 10, **options: Any) -> RegisteredService:
        return super().service(timeout, **{"metadata": {"port": "80"}, **options})

    def test_isNotStored(self) -> None:
        """The registry has the host; the metadata that the user gave do not contain it."""
        service = self.service()
        self.assertEqual((self.metadata(), service.metadata), (self.automatic, {"port": "80"}))

    def test_staysWithAnUpdate(self) -> None:
        """An update that replaces the metadata keeps the host."""
        service = self.service()
        self.successResultOf(self.client.services.update("web1", {"metadata": {"port": "80", "a": "b"}}))
        self.assertEqual(self.metadata(), {**self.automatic, "a": "b"})
        self.successResultOf(service.update(metadata={**service.metadata, "c": "d"}))
        self.assertEqual(self.metadata(), {**self.automatic, "a": "b", "c": "d"})

    def test_ofAnUpdate(self) -> None:
        """An update that adds a port, or removes the host, sets the host too."""
        for given in ({}, GIVEN):
            service = self.service(metadata=given)
            self.fake.changeLocalAddress("10.7.7.7" if given else "127.0.0.1")
            self.successResultOf(service.update(metadata={"port": "80"}))
            self.assertEqual(self.metadata(), {"port": "80", "host": "10.7.7.7" if given else "127.0.0.1"})
            self.end(service)

    def test_followsTheAddress(self) -> None:
        """After the machine has moved to another network, the registry has the new address, despite updates."""
        service = self.service(tags=["www"])
        read = self.metadata()
        self.successResultOf(self.client.services.update("web1", {"metadata": {**read, "a": "b"}}))
        self.fake.changeLocalAddress("10.9.9.9")
        self.fake.advance(1)
        self.assertEqual(self.metadata(), {"port": "80", "a": "b", "host": "10.9.9.9"})
        self.assertEqual(service.metadata, {"port": "80", "a": "b"})

    def test_isDeterminedAnewAtEachRegistration(self) -> None:
        """An address that changed while the service was not registered is registered."""
        self.service()
        self.fake.partition()
        self.fake.advance(15)
        self.fake.changeLocalAddress("10.9.9.9")
        self.fake.heal()
        self.fake.advance(10)
        self.assertRegisteredAgain(metadata={"port": "80", "host": "10.9.9.9"})

    def test_explicitHostWins(self) -> None:
        """The user's own host, from the start or by an update, stays whatever the address is."""
        service = self.service(metadata=GIVEN)
        self.fake.changeLocalAddress("10.9.9.9")
        self.fake.advance(1)
        self.assertEqual(self.metadata(), GIVEN)
        self.end(service)
        service = self.service()
        self.successResultOf(service.update(metadata={"port": "80", "host": "10.9.9.9"}))
        self.fake.changeLocalAddress("10.8.8.8")
        self.fake.advance(1)
        self.assertEqual(self.metadata(), {"port": "80", "host": "10.9.9.9"})

    def test_anAddressOfIPv6(self) -> None:
        """The log says what to do if a server that listens on IPv4 only is registered with an IPv6 address."""
        with capturedLogs() as events:
            self.service()
            self.fake.changeLocalAddress("2001:db8::1")
            self.fake.advance(1)
        self.assertEqual(self.metadata(), {"port": "80", "host": "2001:db8::1"})
        lines = [str(formatEvent(event)) for event in events]
        (advice,) = [line for line in lines if "tcp6:PORT" in line]
        self.assertIn("has host 2001:db8::1, the local address", advice)

    def test_afterTheEnd(self) -> None:
        """A change of the address does not affect a service that was stopped."""
        service = self.service()
        self.end(service)
        self.fake.requests.clear()
        self.fake.changeLocalAddress("10.9.9.9")
        self.fake.advance(5)
        self.assertEqual(self.fake.requests, [])


class StateFileTests(UpdateCase):
    """The state file keeps updates across processes."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.mktemp()

    def service(self, timeout: int = 10, **options: Any) -> RegisteredService:
        return super().service(timeout, **{"state": self.path, **options})

    def crash(self, service: RegisteredService, seconds: float = 0) -> None:
        service.abandon()
        self.fake.advance(seconds)

    def test_updatesOutliveTheProcess(self) -> None:
        """An update outlives the process, whether the service has expired meanwhile or not."""
        for seconds in (1, 30):
            for where in ("client", "service"):
                service = self.service()
                if where == "client":
                    self.successResultOf(self.client.services.update("web1", {"metadata": UPDATED}))
                else:
                    self.successResultOf(service.update(metadata=UPDATED))
                self.crash(service, seconds)
                again = self.service()
                self.fake.advance(1)
                self.assertEqual((again.state, again.metadata, self.metadata()), ("registered", UPDATED, UPDATED))
                self.end(again)

    def test_updatesOfOthers(self) -> None:
        """A service that is continued keeps the updates of other clients."""
        service = self.service(tags=["www"])
        self.successResultOf(self.other.services.update("web1", {"metadata": UPDATED, "heartbeat_timeout": 60}))
        self.crash(service)
        again = self.service(tags=["www"])
        self.fake.advance(1)
        found = self.found()
        self.assertEqual((again.metadata, found["metadata"], found["heartbeat_timeout"]), (UPDATED, UPDATED, 60))
        self.fake.advance(300)
        self.assertEqual(self.events(), ["join"])

    def test_updatesOfOthersComeOnce(self) -> None:
        """A service that is continued twice by one process keeps what this process has changed in between."""
        service = self.service(tags=["www"])
        self.successResultOf(self.other.services.update("web1", {"metadata": UPDATED, "tags": ["theirs"]}))
        self.crash(service)
        again = self.service(tags=["www"])
        self.fake.advance(1)
        again.abandon()
        self.failureResultOf(again.update(tags=["ours"]), NotRunning)
        again.startService()
        self.fake.advance(1)
        self.assertEqual((self.found()["tags"], self.metadata()), (["ours"], UPDATED))

    def test_otherArgumentsWin(self) -> None:
        """An argument that has changed since the last run wins; updates of other fields stay."""
        service = self.service(tags=["www"])
        self.successResultOf(service.update(metadata=UPDATED, tags=["updated"]))
        self.crash(service)
        self.service(tags=["new"])
        self.fake.advance(1)
        found = self.found()
        self.assertEqual((found["tags"], found["metadata"]), (["new"], UPDATED))

    def test_anOrderlyEnd(self) -> None:
        """After stopService() the arguments of the program count."""
        service = self.service()
        self.successResultOf(service.update(metadata=UPDATED))
        self.end(service)
        self.service()
        self.fake.advance(1)
        self.assertEqual(self.metadata(), GIVEN)

    def test_theAutomaticHostIsNotStored(self) -> None:
        """The state file does not contain the automatic host, and the next run determines it anew."""
        service = self.service(metadata={"port": "80"})
        self.crash(service)
        self.assertNotIn("host", Path(self.path).read_text())
        self.fake.changeLocalAddress("10.9.9.9")
        again = self.service(metadata={"port": "80"})
        self.fake.advance(1)
        self.assertEqual(self.metadata(), {"port": "80", "host": "10.9.9.9"})
        self.assertEqual(again.metadata, {"port": "80"})

    def test_anUpdateThatNoRegistryTookIsStillThere(self) -> None:
        """The next process sends an update of a process that was killed during an outage."""
        service = self.service(60)
        self.fake.partition()
        service.update(metadata=UPDATED).addErrback(lambda _: None)
        self.crash(service)
        self.fake.heal()
        self.service(60)
        self.fake.advance(1)
        self.assertEqual((self.metadata(), self.events()), (UPDATED, ["join"]))

    def test_aFileWithNonsense(self) -> None:
        """Invalid fields in the file are ignored."""
        for updated in ({"tags": "www"}, {"metadata": {"a": 1}}, {"heartbeat_timeout": "x"}, [], 3):
            kept = {"id": "web1", "token": "x", "given": {"metadata": GIVEN, "tags": []}, "updated": updated}
            Path(self.path).write_text(json.dumps(kept))
            service = self.service()
            self.fake.advance(1)
            self.assertEqual((self.metadata(), self.found()["tags"]), (GIVEN, []))
            self.end(service)
