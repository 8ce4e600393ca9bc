"""The wrapped command's place in the registry: the tries at the start, what is lost for good, settings that change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.commands.wrapper.registration import (
    NotRegistered,
    ServiceSpec,
    WrapperRegistration,
    claimTokenFile,
)
from txserviceregistry.errors import InvalidSettings
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.settings import Settings
from txserviceregistry.testing import FakeRegistry


class EnrolmentTests(SynchronousTestCase):
    """Seen from the registry, and from whoever waits for the outcome."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        self.settings: Settings | InvalidSettings = self.other.settings
        self.key = self.fake.apiKey
        self.lost: list[str] = []
        self.enrolments: list[WrapperRegistration] = []

    def tearDown(self) -> None:
        for enrolment in self.enrolments:
            enrolment.abandon()
            if enrolment.client is not None:
                enrolment.client.close()
        self.other.close()
        self.fake.advance(1)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def read(self) -> Settings:
        if isinstance(self.settings, InvalidSettings):
            raise self.settings
        return self.settings

    def connect(self, settings: Settings) -> Client:
        return self.fake.client(apiKey=settings.apiKey)

    def enrolment(self, interval: int = 10, retries: int = 2, **options: Any) -> WrapperRegistration:
        registrant = ServiceSpec("web1", interval, **options.pop("registrant", {}))
        enrolment = WrapperRegistration(
            self.fake.clock,
            registrant,
            read=self.read,
            connect=self.connect,
            retries=retries,
            lost=self.lost.append,
            random=lambda: 0.5,
            **options,
        )
        self.enrolments.append(enrolment)
        return enrolment

    def registered(self, **options: Any) -> WrapperRegistration:
        enrolment = self.enrolment(**options)
        self.successResultOf(enrolment.begin())
        return enrolment

    def refused(self, tried: Deferred[None]) -> str:
        return self.failureResultOf(tried, NotRegistered).getErrorMessage()

    def listed(self) -> list[str]:
        return [service["id"] for service in self.successResultOf(self.other.services.list())["values"]]

    def eventTypes(self) -> list[str]:
        return [event["type"] for event in self.successResultOf(self.other.events.list())["values"]]

    # -- the start

    def test_registersWithWhatItWasGiven(self) -> None:
        """What the registry knows is what was asked for."""
        self.registered(registrant={"tags": ["www"], "metadata": {"a": "b"}})
        service = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual(
            (service["tags"], service["metadata"], service["heartbeat_timeout"]), (["www"], {"a": "b"}, 10)
        )

    def test_makesAsManyTriesAsItMay(self) -> None:
        """The tries at the start are one and the retries; what they met is told."""
        for retries in (0, 1, 4):
            self.fake.stop()
            before = len(self.fake.requests)
            enrolment = self.enrolment(retries=retries)
            tried = enrolment.begin()
            waited = 0.0
            while not tried.called:
                self.fake.advance(0.01)
                waited += 0.01
            self.assertEqual(len(self.fake.requests) - before, retries + 1)
            self.assertIn("connection refused", self.refused(tried))
            enrolment.abandon()

    def test_goesOnTryingForEver(self) -> None:
        """After the tries at the start the others follow, however late the registry comes."""
        self.fake.stop()
        tried = self.enrolment().begin()
        self.fake.advance(3600)
        self.refused(tried)
        self.fake.start()
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        self.assertEqual(self.lost, [])

    def test_aRefusalEndsTheTriesAtTheStart(self) -> None:
        """A key that is refused, or a service that is not valid, gets no better by trying at once again."""
        self.settings = self.fake.client(apiKey="wrong").settings
        self.assertIn("refused", self.refused(self.enrolment(retries=9).begin()))
        self.settings = self.other.settings
        self.assertIn("not in range", self.refused(self.enrolment(retries=9, registrant={"tags": ["x" * 56]}).begin()))

    def test_aFullAccountIsARefusal(self) -> None:
        """The registry's limit on services is told at once."""
        self.fake = FakeRegistry(limits=ResourceLimits(service=0))
        self.other = self.fake.client()
        self.assertIn("limit", self.refused(self.enrolment(retries=9).begin()))

    def test_whatIsNotValidIsAskedAgain(self) -> None:
        """For ever, but rarely: another version of the registry may take it."""
        self.refused(self.enrolment(registrant={"tags": ["x" * 56]}).begin())
        before = len(self.fake.requests)
        self.fake.advance(3600)
        self.assertEqual(len(self.fake.requests) - before, 12)

    def test_anIdThatIsTakenIsWaitedFor(self) -> None:
        """When its ghost has died, it is registered."""
        self.successResultOf(self.other.services.create("web1", 20))
        tried = self.enrolment(retries=1).begin()
        self.fake.advance(5)
        self.assertIn("already exists", self.refused(tried))
        self.fake.advance(20)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout", "service.join"])

    def test_seesWhetherThereIsARegistry(self) -> None:
        """Without registering anything it tells a registry that is there from one that is not, or refuses."""
        self.successResultOf(self.enrolment().reach())
        self.fake.failNext(503, 2)
        reached = self.enrolment().reach()
        self.fake.advance(1)
        self.successResultOf(reached)
        self.fake.stop()
        reached = self.enrolment().reach()
        self.fake.advance(1)
        self.assertIn("connection refused", self.refused(reached))
        self.fake.start()
        self.settings = InvalidSettings("no key")
        self.assertEqual(self.refused(self.enrolment().reach()), "no key")
        self.assertEqual(self.listed(), [])

    # -- what is lost for good

    def test_anOutageIsNoLoss(self) -> None:
        """A registry that is back within an interval after the deadline finds it there."""
        self.registered()
        self.fake.stop()
        self.fake.advance(15)
        self.fake.start(keepData=False)
        self.fake.advance(60)
        self.assertEqual((self.lost, self.listed()), ([], ["web1"]))

    def test_aRegistryThatStaysAwayIsALoss(self) -> None:
        """An interval after the deadline it is told, once."""
        self.registered()
        self.fake.advance(60)
        self.fake.stop()
        self.fake.advance(15)
        self.assertEqual(self.lost, [])
        self.fake.advance(15)
        self.assertEqual(len(self.lost), 1)
        self.fake.advance(60)
        self.assertEqual(len(self.lost), 1)

    def test_aRegistryThatTakesItNoMoreIsALoss(self) -> None:
        """Removed, and then refused for a reason that stays, it is lost at once."""
        self.registered()
        self.fake.restart(keepData=False)
        self.fake.apiKey = "another"
        self.fake.restart(keepData=False)
        self.fake.advance(10)
        self.assertEqual(self.lost, [])
        self.fake.advance(60)
        self.assertEqual(len(self.lost), 1)

    def test_aFullAccountIsALossToo(self) -> None:
        """Where its place was taken meanwhile, that is told when it tries to come back."""
        self.fake = FakeRegistry(limits=ResourceLimits(service=1))
        self.other = self.fake.client()
        self.registered()
        self.successResultOf(self.other.services.remove("web1"))
        self.successResultOf(self.other.services.create("other", 120))
        self.fake.advance(10)
        self.assertIn("limit", self.lost[0])

    def test_aStrangerWithTheIdIsALoss(self) -> None:
        """Somebody else who keeps the id alive for longer than an interval has it."""
        self.registered()
        self.successResultOf(self.other.services.remove("web1"))
        self.successResultOf(self.other.services.create("web1", 120))
        self.fake.advance(8)
        self.assertEqual(self.lost, [])
        self.fake.advance(12)
        self.assertEqual(len(self.lost), 1)

    def test_aCheckThatFailsIsNoLoss(self) -> None:
        """A hung command expires, and that is not the registry's doing."""
        well = [True]
        self.registered(check=lambda: well[0])
        well[0] = False
        self.fake.advance(120)
        self.assertEqual((self.listed(), self.lost), ([], []))
        well[0] = True
        self.fake.advance(10)
        self.assertEqual((self.listed(), self.lost), (["web1"], []))
        self.fake.stop()
        well[0] = False
        self.fake.advance(120)
        self.assertEqual(self.lost, [])
        well[0] = True
        self.fake.advance(25)
        self.assertEqual(len(self.lost), 1)

    # -- updates

    def metadata(self) -> Any:
        return self.successResultOf(self.other.services.get("web1"))["metadata"]

    def test_updatesThroughItsClient(self) -> None:
        """They are registered again, also with other settings."""
        enrolment = self.registered(registrant={"metadata": {"a": "b"}})
        assert enrolment.client is not None
        self.successResultOf(enrolment.client.services.update("web1", {"metadata": {"c": "d"}}))
        self.fake.partition()
        self.fake.advance(15)
        self.settings = self.fake.client(apiKey="wrong").settings
        self.fake.advance(6)
        self.settings = self.other.settings
        self.fake.heal()
        self.fake.advance(20)
        self.assertEqual((self.listed(), self.metadata()), (["web1"], {"c": "d"}))

    def test_updatesOfOthersWhileItWasKilled(self) -> None:
        """A wrapper that is killed and started again in time leaves them as they are."""
        state = Path(self.mktemp())
        self.registered(registrant={"metadata": {"a": "b"}}, state=state).abandon()
        self.successResultOf(self.other.services.update("web1", {"metadata": {"c": "d"}}))
        again = self.registered(registrant={"metadata": {"a": "b"}}, state=state)
        self.assertEqual(self.metadata(), {"c": "d"})
        again.abandon()
        self.registered(registrant={"metadata": {"e": "f"}}, state=state)
        self.assertEqual(self.metadata(), {"e": "f"})

    # -- the end

    def test_abandonedItTimesOut(self) -> None:
        """No beat follows, and no try."""
        enrolment = self.registered()
        self.assertTrue(enrolment.registered)
        enrolment.abandon()
        self.fake.advance(60)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout"])

    def test_leavingRemovesIt(self) -> None:
        """What is registered is removed."""
        self.successResultOf(self.registered().leave())
        self.assertEqual(self.eventTypes(), ["service.join", "service.remove"])

    def test_leavingWaitsForNobodyWhenNothingIsRegistered(self) -> None:
        """Without a registry, or before the first try, leaving takes no time."""
        self.successResultOf(self.enrolment().leave())
        self.fake.stop()
        enrolment = self.enrolment()
        tried = enrolment.begin()
        self.fake.advance(1)
        self.refused(tried)
        self.successResultOf(enrolment.leave())
        self.fake.start()
        self.fake.advance(60)
        self.assertEqual(self.listed(), [])

    # -- settings that change

    def test_settingsMayComeLater(self) -> None:
        """Without any it can't begin; as soon as there are some, it is registered."""
        settings, self.settings = self.settings, InvalidSettings("There is no username")
        self.assertEqual(self.refused(self.enrolment().begin()), "There is no username")
        self.fake.advance(60)
        self.settings = settings
        self.fake.advance(6)
        self.assertEqual(self.listed(), ["web1"])

    def test_settingsMayBePutRight(self) -> None:
        """A wrong key that is mended while it runs needs no restart."""
        right, self.settings = self.settings, self.fake.client(apiKey="wrong").settings
        self.refused(self.enrolment().begin())
        self.fake.advance(60)
        self.settings = InvalidSettings("just being written")
        self.fake.advance(6)
        self.settings = right
        self.fake.advance(6)
        self.assertEqual(self.listed(), ["web1"])
        self.fake.advance(600)
        self.assertEqual(self.eventTypes(), ["service.join"])

    def test_settingsOfAServiceThatIsRegisteredStay(self) -> None:
        """As long as all is well nobody looks at them."""
        self.registered()
        self.settings = InvalidSettings("gone")
        self.fake.advance(60)
        self.fake.stop()
        self.fake.advance(12)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual((self.listed(), self.lost), (["web1"], []))

    def test_whatIsNotValidMayBeSoElsewhere(self) -> None:
        """New settings are tried at once, also after a refusal that is asked about rarely."""
        self.refused(self.enrolment(registrant={"tags": ["x" * 56]}).begin())
        self.fake.apiKey = "another"
        self.fake.restart(keepData=False)
        self.settings = self.fake.client(apiKey="another").settings
        before = len(self.fake.requests)
        self.fake.advance(6)
        self.assertGreater(len(self.fake.requests), before)
        self.fake.advance(600)


class TokenFileTests(SynchronousTestCase):
    """The file that makes a restart go on as the same service."""

    def test_isOneProcess(self) -> None:
        """While somebody has it, nobody else gets it; each service has its own."""
        folder = Path(self.mktemp())
        path, claim = claimTokenFile(folder, "web1")
        self.assertEqual(path, folder / "wrapper" / "web1.token")
        self.assertEqual(path.parent.stat().st_mode & 0o777, 0o700)
        self.assertRaises(BlockingIOError, claimTokenFile, folder, "web1")
        claimTokenFile(folder, "web2")
        os.close(claim)
        self.assertEqual(claimTokenFile(folder, "web1")[0], path)
