"""The registration of the wrapped command: the tries at the start, lost registrations, settings that change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.commands.wrapper.registration import (
    NotRegistered,
    WrapperRegistration,
    tokenFileOf,
)
from txserviceregistry.errors import InvalidSettings
from txserviceregistry.registry.limits import ResourceLimits
from txserviceregistry.settings import Settings, readSettings
from txserviceregistry.testing import FakeRegistry


class RegistrationTests(SynchronousTestCase):
    """As the registry and the caller see it."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        self.settings: Settings | InvalidSettings = self.other.settings
        self.key = self.fake.apiKey
        self.lost: list[str] = []
        self.registrations: list[WrapperRegistration] = []

    def tearDown(self) -> None:
        for registration in self.registrations:
            registration.abandon()
            if registration.client is not None:
                registration.client.close()
        self.other.close()
        self.fake.advance(1)
        self.assertEqual(self.fake.clock.getDelayedCalls(), [])

    def connect(self) -> Client:
        if isinstance(self.settings, InvalidSettings):
            raise self.settings
        return self.fake.client(apiKey=self.settings.apiKey)

    def registration(self, interval: int = 10, retries: int = 2, **options: Any) -> WrapperRegistration:
        given = {"id": "web1", "interval": interval, "retries": retries, "tags": [], "metadata": {}, "drain": None}
        registration = WrapperRegistration(
            self.fake.clock,
            {**given, **options.pop("spec", {})},
            lambda: self.connect(),
            self.lost.append,
            random=lambda: 0.5,
            **options,
        )
        self.registrations.append(registration)
        return registration

    def registered(self, **options: Any) -> WrapperRegistration:
        registration = self.registration(**options)
        self.successResultOf(registration.begin())
        return registration

    def refused(self, tried: Deferred[None]) -> str:
        return self.failureResultOf(tried, NotRegistered).getErrorMessage()

    def listed(self) -> list[str]:
        return [service["id"] for service in self.successResultOf(self.other.services.list())["values"]]

    def eventTypes(self) -> list[str]:
        return [event["type"] for event in self.successResultOf(self.other.events.list())["values"]]

    # -- the start

    def test_registersWithWhatItWasGiven(self) -> None:
        """The registry has the service as it was given."""
        self.registered(spec={"tags": ["www"], "metadata": {"a": "b"}})
        service = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual(
            (service["tags"], service["metadata"], service["heartbeat_timeout"]), (["www"], {"a": "b"}, 10)
        )

    def test_makesAsManyTriesAsItMay(self) -> None:
        """The tries at the start are one and the retries; they fail with the reason of the last one."""
        for retries in (0, 1, 4):
            self.fake.stop()
            before = len(self.fake.requests)
            registration = self.registration(retries=retries)
            tried = registration.begin()
            waited = 0.0
            while not tried.called:
                self.fake.advance(0.01)
                waited += 0.01
            self.assertEqual(len(self.fake.requests) - before, retries + 1)
            self.assertIn("connection refused", self.refused(tried))
            registration.abandon()

    def test_retriesWithoutLimit(self) -> None:
        """After the tries at the start others follow, however late the registry is started."""
        self.fake.stop()
        tried = self.registration().begin()
        self.fake.advance(600)
        self.refused(tried)
        self.fake.start()
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        self.assertEqual(self.lost, [])

    def test_aRefusalEndsTheTriesAtTheStart(self) -> None:
        """Another try with a wrong key or an invalid service would fail in the same way."""
        self.settings = self.fake.client(apiKey="wrong").settings
        self.assertIn("refused", self.refused(self.registration(retries=9).begin()))
        self.settings = self.other.settings
        self.assertIn("not in range", self.refused(self.registration(retries=9, spec={"tags": ["x" * 56]}).begin()))

    def test_aFullAccountIsARefusal(self) -> None:
        """The registry's limit on services ends the tries at the start."""
        self.fake = FakeRegistry(limits=ResourceLimits(service=0))
        self.other = self.fake.client()
        self.assertIn("limit", self.refused(self.registration(retries=9).begin()))

    def test_anInvalidServiceIsTriedAgain(self) -> None:
        """Rarely, and without limit: another version of the registry may accept it."""
        self.refused(self.registration(spec={"tags": ["x" * 56]}).begin())
        before = len(self.fake.requests)
        self.fake.advance(3600)
        self.assertEqual(len(self.fake.requests) - before, 12)

    def test_waitsForAnIdThatIsTaken(self) -> None:
        """It is registered when the service that holds the id has expired."""
        self.successResultOf(self.other.services.create("web1", 20))
        tried = self.registration(retries=1).begin()
        self.fake.advance(5)
        self.assertIn("already exists", self.refused(tried))
        self.fake.advance(20)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout", "service.join"])

    def test_reachesARegistry(self) -> None:
        """It tells a registry that answers from one that does not, or refuses, and registers nothing."""
        self.successResultOf(self.registration().reach())
        self.fake.failNext(503, 2)
        reached = self.registration().reach()
        self.fake.advance(1)
        self.successResultOf(reached)
        self.fake.stop()
        reached = self.registration().reach()
        self.fake.advance(1)
        self.assertIn("connection refused", self.refused(reached))
        self.fake.start()
        self.settings = InvalidSettings("no key")
        self.assertEqual(self.refused(self.registration().reach()), "no key")
        self.assertEqual(self.listed(), [])

    # -- lost registrations

    def test_aShortOutageIsNotALoss(self) -> None:
        """A registry that is reachable again within an interval after the deadline gets the service again."""
        self.registered()
        self.fake.stop()
        self.fake.advance(15)
        self.fake.start(keepData=False)
        self.fake.advance(60)
        self.assertEqual((self.lost, self.listed()), ([], ["web1"]))

    def test_aLongOutageIsALoss(self) -> None:
        """It is reported once, an interval after the deadline."""
        self.registered()
        self.fake.advance(60)
        self.fake.stop()
        self.fake.advance(15)
        self.assertEqual(self.lost, [])
        self.fake.advance(15)
        self.assertEqual(len(self.lost), 1)
        self.fake.advance(60)
        self.assertEqual(len(self.lost), 1)

    def test_aRefusalIsALoss(self) -> None:
        """A service that was removed, and is refused for a reason that stays, is lost."""
        self.registered()
        self.fake.restart(keepData=False)
        self.fake.apiKey = "another"
        self.fake.restart(keepData=False)
        self.fake.advance(10)
        self.assertEqual(self.lost, [])
        self.fake.advance(60)
        self.assertEqual(len(self.lost), 1)

    def test_aRoleThatNoLongerAllowsItIsALoss(self) -> None:
        """A service whose user may no longer send heartbeats is lost; it is tried again, and registered when it may."""
        self.registered()
        self.fake.setRole("read")
        self.fake.advance(25)
        self.assertEqual((len(self.lost), self.listed()), (1, []))
        self.fake.setRole("write")
        self.fake.advance(300)
        self.assertEqual(self.listed(), ["web1"])

    def test_aFullAccountIsALoss(self) -> None:
        """A service that can't be registered again because of the account's limit is lost."""
        self.fake = FakeRegistry(limits=ResourceLimits(service=1))
        self.other = self.fake.client()
        self.registered()
        self.successResultOf(self.other.services.remove("web1"))
        self.successResultOf(self.other.services.create("other", 120))
        self.fake.advance(10)
        self.assertIn("limit", self.lost[0])

    def test_anotherServiceWithTheIdIsALoss(self) -> None:
        """A service of another client that holds the id for longer than an interval is a loss."""
        self.registered()
        self.successResultOf(self.other.services.remove("web1"))
        self.successResultOf(self.other.services.create("web1", 120))
        self.fake.advance(8)
        self.assertEqual(self.lost, [])
        self.fake.advance(12)
        self.assertEqual(len(self.lost), 1)

    def test_aFailingCheckIsNotALoss(self) -> None:
        """A service that expires while its check fails is not lost."""
        healthy = [True]
        self.registered(check=lambda: healthy[0])
        healthy[0] = False
        self.fake.advance(120)
        self.assertEqual((self.listed(), self.lost), ([], []))
        healthy[0] = True
        self.fake.advance(10)
        self.assertEqual((self.listed(), self.lost), (["web1"], []))
        self.fake.stop()
        healthy[0] = False
        self.fake.advance(120)
        self.assertEqual(self.lost, [])
        healthy[0] = True
        self.fake.advance(25)
        self.assertEqual(len(self.lost), 1)

    # -- updates

    def metadata(self) -> Any:
        return self.successResultOf(self.other.services.get("web1"))["metadata"]

    def test_updatesThroughItsClient(self) -> None:
        """Updates are kept when the service is registered again."""
        registration = self.registered(spec={"metadata": {"a": "b"}})
        assert registration.client is not None
        self.successResultOf(registration.client.services.update("web1", {"metadata": {"c": "d"}}))
        self.fake.restart(keepData=False)
        self.fake.advance(20)
        self.assertEqual((self.listed(), self.metadata()), (["web1"], {"c": "d"}))

    def test_updatesOfOtherClients(self) -> None:
        """A wrapper that is killed and started again in time keeps updates, but not of what its options change."""
        tokenFile = Path(self.mktemp())
        self.registered(spec={"metadata": {"a": "b"}}, tokenFile=tokenFile).abandon()
        self.successResultOf(self.other.services.update("web1", {"metadata": {"c": "d"}}))
        again = self.registered(spec={"metadata": {"a": "b"}}, tokenFile=tokenFile)
        self.assertEqual(self.metadata(), {"c": "d"})
        again.abandon()
        self.registered(spec={"metadata": {"e": "f"}}, tokenFile=tokenFile)
        self.assertEqual(self.metadata(), {"e": "f"})

    def test_aTokenFileHasOneOwner(self) -> None:
        """While a registration is in use, another one with its file does not continue its service."""
        tokenFile = Path(self.mktemp())
        first = self.registered(tokenFile=tokenFile)
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        second = self.registration(tokenFile=tokenFile, retries=0).begin()
        self.assertIn("another process uses", "\n".join(lines))
        self.assertIn("already exists", self.refused(second))
        self.assertTrue(first.registered)
        first.abandon()
        self.registered(tokenFile=tokenFile)
        self.assertEqual(self.eventTypes(), ["service.join"])

    # -- the end

    def test_abandonedItExpires(self) -> None:
        """No heartbeat follows, and no try to register."""
        registration = self.registered()
        self.assertTrue(registration.registered)
        registration.abandon()
        self.fake.advance(60)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout"])

    def test_leavingRemovesIt(self) -> None:
        """A registered service is deregistered."""
        self.successResultOf(self.registered().leave())
        self.assertEqual(self.eventTypes(), ["service.join", "service.remove"])

    def test_leavingUnregisteredTakesNoTime(self) -> None:
        """Without a registry, or before the first try, leaving ends at once."""
        self.successResultOf(self.registration().leave())
        self.fake.stop()
        registration = self.registration()
        tried = registration.begin()
        self.fake.advance(1)
        self.refused(tried)
        self.successResultOf(registration.leave())
        self.fake.start()
        self.fake.advance(60)
        self.assertEqual(self.listed(), [])

    # -- settings that change

    def test_settingsMayComeLater(self) -> None:
        """Without settings it can't begin; as soon as they exist, the service is registered."""
        settings, self.settings = self.settings, InvalidSettings("There is no username")
        self.assertEqual(self.refused(self.registration().begin()), "There is no username")
        self.fake.advance(60)
        self.settings = settings
        self.fake.advance(6)
        self.assertEqual(self.listed(), ["web1"])

    def test_aKeyMayBeCorrected(self) -> None:
        """A wrong key in a file that is corrected meanwhile needs no restart."""
        raxrc = Path(self.mktemp())

        def write(key: str) -> None:
            credentials = f"[credentials]\nusername = {self.fake.username}\napi_key = {key}\n"
            raxrc.write_text(f"{credentials}[api]\nurl = {self.fake.url}\n")

        def connect() -> Client:
            settings = readSettings(environ={"RAXSR_RAXRC": str(raxrc), "HOME": self.mktemp()})
            return Client(settings=settings, agent=self.fake.agent, reactor=self.fake.clock)

        write("wrong")
        self.connect = connect  # type: ignore[method-assign]  # as the program does
        self.refused(self.registration().begin())
        self.fake.advance(60)
        write(self.fake.apiKey)
        self.fake.advance(6)
        self.assertEqual(self.listed(), ["web1"])
        self.fake.advance(400)
        self.assertEqual(self.eventTypes(), ["service.join"])


class TokenFileTests(SynchronousTestCase):
    """The path of the file that lets a restart continue the same service."""

    def tokenFile(self, serviceId: str, **environment: str) -> Path | str:
        """The path, or the line that says why there is none."""
        said: list[str] = []
        with mock.patch.dict(os.environ, environment):
            path = tokenFileOf(serviceId, said.append)
        if path is not None:
            return path
        [line] = said
        return line

    def test_isInAPrivateFolder(self) -> None:
        """Each service has its own file in a folder that only its user can read."""
        dataDir = os.path.abspath(self.mktemp())
        path = self.tokenFile("web1", RAXSR_DATA_DIR=dataDir)
        assert isinstance(path, Path)
        self.assertEqual(path, Path(dataDir, "wrapper", "web1.token"))
        self.assertEqual(path.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.tokenFile("web2", RAXSR_DATA_DIR=dataDir), path.with_name("web2.token"))

    def test_aDataDirThatCantBeWritten(self) -> None:
        """There is one line about it, with the path and what follows from it."""
        file = os.path.abspath(self.mktemp())
        Path(file).touch()
        line = self.tokenFile("web1", RAXSR_DATA_DIR=os.path.join(file, "data"))
        self.assertIn(f"{file}", str(line))
        self.assertIn(": Not a directory. A restart can't continue the same service", str(line))
