"""The order of the wrapper's actions, and its reactions to events; no process is started."""

from __future__ import annotations

import signal
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry import Client
from txserviceregistry.commands import console
from txserviceregistry.commands.wrapper.main import Options, Wrapper
from txserviceregistry.commands.wrapper.process import CantStart, Child
from txserviceregistry.errors import InvalidSettings
from txserviceregistry.settings import Settings
from txserviceregistry.testing import FakeRegistry

# Wait statuses: what waitpid says.
ENDED_WITH_1 = 1 << 8
DIED_OF_TERM = signal.SIGTERM
EXITED_143 = 143 << 8


class FakeChild(Child):
    """A process that notes the signals it is sent."""

    sharesTerminalSignals = True

    def __init__(self) -> None:
        super().__init__(pid=0)
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        self.signals.append(number)


class WrapperCase(SynchronousTestCase):
    """The wrapper over a registry in memory."""

    def setUp(self) -> None:
        self.fake = FakeRegistry()
        self.other = self.fake.client()
        self.settings: Settings | InvalidSettings = self.other.settings
        self.child: FakeChild | None = None
        self.cantStart: CantStart | None = None
        self.said: list[str] = []

    def wrapper(self, *arguments: str, command: str = sys.executable) -> Deferred[int]:
        options = self.options = Options()
        options.parseOptions(["--id=web1", "--interval=10", *arguments, command])
        self.wrapped = Wrapper(
            self.fake.clock,
            options,
            start=self.start,
            connect=self.connect,
            tell=self.said.append,
        )
        return self.wrapped.run()

    def connect(self) -> Client:
        if isinstance(self.settings, InvalidSettings):
            raise self.settings
        return self.fake.client(apiKey=self.settings.apiKey, timeout=5)

    def start(self) -> Child:
        if self.cantStart is not None:
            raise self.cantStart
        self.listedAtTheStart = self.listed()
        self.child = FakeChild()
        return self.child

    def running(self) -> FakeChild:
        assert self.child is not None, self.said
        return self.child

    def advanceToASignal(self) -> None:
        """Let time go by until the command is sent its first signal: less than three intervals, but more than one."""
        began = self.fake.clock.seconds()
        while not self.running().signals:
            self.fake.advance(0.25)
            self.assertLess(self.fake.clock.seconds(), began + 30)
        self.assertGreater(self.fake.clock.seconds(), began + 10)

    def listed(self) -> list[str]:
        try:
            return [service["id"] for service in self.successResultOf(self.other.services.list())["values"]]
        except self.failureException:
            return []

    def eventTypes(self) -> list[str]:
        return [event["type"] for event in self.successResultOf(self.other.events.list())["values"]]

    def ended(self, code: Deferred[int], status: int) -> int:
        self.running().ended.callback(status)
        self.fake.flush()
        result: int = self.successResultOf(code)
        return result


class WrapperOrderTests(WrapperCase):
    """The order of what the wrapper does."""

    # -- the start

    def test_registersWhatItIsGiven(self) -> None:
        """Tags, metadata and interval are those of the options, which may be repeated."""
        words = ["--tags=api,www", "--tags=x", "--interval=20", "--metadata=port=8000,host=localhost,is_public=true"]
        code = self.wrapper(*words, r"--metadata=url=http://h/?a=b\,c")
        service = self.successResultOf(self.other.services.get("web1"))
        self.assertEqual((service["tags"], service["heartbeat_timeout"]), (["api", "www", "x"], 20))
        self.assertEqual(
            service["metadata"], {"port": "8000", "host": "localhost", "is_public": "true", "url": "http://h/?a=b,c"}
        )
        self.ended(code, 0)

    def test_theOriginalsOptions(self) -> None:
        """The command line of Rackspace's wrapper works unchanged."""
        words = ["-i", "original", "-t", "api,www", "-m", "port=8000,host=h", "--heartbeat-timeout", "21"]
        words += ["--session-metadata", "a=b", "--username", "joe", "--api-key", "secret"]
        warnings: list[str] = []
        self.patch(console, "tell", warnings.append)
        code = self.wrapper(*words, "--abort-on-failure")
        service = self.successResultOf(self.other.services.get("original"))
        self.assertEqual((service["tags"], service["metadata"]), (["api", "www"], {"port": "8000", "host": "h"}))
        self.assertEqual(service["heartbeat_timeout"], 21)
        self.assertEqual((self.options["username"], self.options["api-key"]), ("joe", "secret"))
        [warning] = warnings
        self.assertIn("--session-metadata is ignored", warning)
        self.ended(code, 0)

    def test_registersThenStarts(self) -> None:
        """When the command starts, it is registered."""
        code = self.wrapper()
        self.assertEqual(self.listedAtTheStart, ["web1"])
        self.assertEqual((self.ended(code, ENDED_WITH_1), self.said), (1, []))

    def test_startsWithoutARegistry(self) -> None:
        """After the tries at the start the command runs, and is registered when the registry is started."""
        self.fake.stop()
        code = self.wrapper()
        self.assertIsNone(self.child)
        self.fake.advance(0.5)
        self.running()
        [line] = self.said
        self.assertIn("connection refused", line)
        self.assertIn("started unregistered", line)
        self.fake.start()
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        self.ended(code, 0)

    def test_aHangingRegistryDelaysTheStart(self) -> None:
        """The command starts after three seconds, whatever --retries says."""
        self.fake.partition()
        code = self.wrapper("--retries=100")
        self.fake.advance(2.9)
        self.assertIsNone(self.child)
        self.fake.advance(0.2)
        self.running()
        self.ended(code, 0)

    def test_theIdIsTaken(self) -> None:
        """The line about a command that starts unregistered says that another service has the id."""
        self.successResultOf(self.other.services.create("web1", 30))
        code = self.wrapper("--retries=100")
        self.fake.advance(3.5)
        [line] = self.said
        self.assertIn("Service with id web1 already exists", line)
        self.assertIn("started unregistered", line)
        self.ended(code, 0)

    def test_startsWhenItIsRefused(self) -> None:
        """With a wrong key, or without settings, there is one line, and the command runs."""
        for settings in (self.fake.client(apiKey="not-the-key").settings, InvalidSettings("There is no username")):
            self.settings = settings
            self.child = None
            self.said.clear()
            code = self.wrapper()
            self.running()
            [line] = self.said
            self.assertIn("started unregistered", line)
            self.assertNotIn("not-the-key", line)
            self.ended(code, 0)

    def test_aSignalBeforeTheStartEndsIt(self) -> None:
        """While the wrapper waits for the registry, a signal that ends processes ends it; others have no effect."""
        self.fake.stop()
        code = self.wrapper("--retries=100", "--abort-on-failure")
        self.wrapped.signalled(signal.SIGUSR1, False)
        self.fake.advance(1)
        self.assertNoResult(code)
        self.wrapped.signalled(signal.SIGTERM, False)
        self.assertEqual(self.successResultOf(code), 143)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual((self.child, self.eventTypes()), (None, []))

    def test_aMissingProgramIsNotRegistered(self) -> None:
        """A command that does not exist is not registered."""
        self.assertEqual(self.successResultOf(self.wrapper(command="/no/such/program")), 127)
        self.assertEqual(self.eventTypes(), [])

    def test_aProgramThatCantBeRunIsDeregistered(self) -> None:
        """If only the start shows that it can't be run, its service is deregistered at once."""
        self.cantStart = CantStart("broken", 126)
        self.assertEqual(self.successResultOf(self.wrapper()), 126)
        self.assertEqual((self.said, self.eventTypes()), (["broken"], ["service.join", "service.remove"]))

    # -- --abort-on-failure

    def test_abortsTheStart(self) -> None:
        """Without a registry, or refused, the command is not started, and the exit code is 100."""
        self.fake.stop()
        code = self.wrapper("--abort-on-failure", "--retries=1")
        self.fake.advance(0.1)
        self.assertEqual(self.successResultOf(code), 100)
        self.fake.start()
        self.settings = self.fake.client(apiKey="wrong").settings
        self.assertEqual(self.successResultOf(self.wrapper("--abort-on-failure")), 100)
        self.settings = InvalidSettings("There is no username")
        self.assertEqual(self.successResultOf(self.wrapper("--abort-on-failure")), 100)
        self.assertEqual((self.child, len(self.said)), (None, 3))
        self.fake.advance(60)
        self.assertEqual(self.eventTypes(), [])

    def test_aRegistryThatHangsAbortsTheStart(self) -> None:
        """Each try has its own five seconds."""
        self.fake.partition()
        code = self.wrapper("--abort-on-failure", "--retries=1")
        self.fake.advance(11)
        self.assertEqual(self.successResultOf(code), 100)

    def test_abortsWithACheckToo(self) -> None:
        """A command that has to run before it can be registered is not started while the registry is unreachable."""
        self.fake.stop()
        code = self.wrapper("--abort-on-failure", "--retries=0", "--check=tcp:1")
        self.assertEqual((self.successResultOf(code), self.child), (100, None))

    def test_aLossEndsTheCommand(self) -> None:
        """It gets SIGTERM and some seconds to end, and the exit code is 100 whatever its own was."""
        code = self.wrapper("--abort-on-failure")
        self.fake.stop()
        self.advanceToASignal()
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.assertIn("registration lost", self.said[-1])
        self.fake.start(keepData=False)
        self.fake.advance(9)
        self.assertEqual(self.listed(), [])
        self.assertEqual(self.ended(code, 0), 100)
        self.fake.advance(30)
        self.assertEqual(self.running().signals, [signal.SIGTERM])

    def test_aCommandThatDoesNotEndIsKilled(self) -> None:
        """It gets SIGKILL ten seconds after SIGTERM."""
        code = self.wrapper("--abort-on-failure")
        self.fake.stop()
        self.advanceToASignal()
        self.fake.advance(9.5)
        self.assertEqual(self.running().signals, [signal.SIGTERM])
        self.fake.advance(1)
        self.assertEqual(self.running().signals, [signal.SIGTERM, signal.SIGKILL])
        self.assertEqual(self.ended(code, signal.SIGKILL), 100)

    def test_aLossWithoutTheOptionEndsNothing(self) -> None:
        """Without --abort-on-failure the command goes on, and is registered again as soon as possible."""
        code = self.wrapper()
        self.fake.stop()
        self.fake.advance(120)
        self.assertEqual(self.running().signals, [])
        self.fake.start(keepData=False)
        self.fake.advance(10)
        self.assertEqual(self.listed(), ["web1"])
        self.ended(code, 0)

    # -- signals

    def test_forwardsSignals(self) -> None:
        """Each signal is forwarded once; a signal of the terminal reaches the command without the wrapper."""
        self.wrapper()
        child = self.running()
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT):
            self.wrapped.signalled(number, False)
        self.wrapped.signalled(signal.SIGINT, True)
        self.assertEqual(child.signals, [signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT])
        child.sharesTerminalSignals = False
        self.wrapped.signalled(signal.SIGINT, True)
        self.assertEqual(child.signals[3:], [signal.SIGINT])

    # -- the end

    def test_theServiceExpires(self) -> None:
        """After any end of the command, no request is sent; the exit code is the command's, or 128 + N."""
        for number in (0, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            code = self.wrapper()
            if number:
                self.wrapped.signalled(number, False)
            self.assertEqual(self.ended(code, number or ENDED_WITH_1), 128 + number if number else 1)
            self.fake.advance(11)
        self.assertEqual(self.eventTypes(), ["service.join", "service.timeout"] * 6)

    def test_aCommandMayIgnoreSIGTERM(self) -> None:
        """It goes on, registered, until it ends."""
        code = self.wrapper()
        self.wrapped.signalled(signal.SIGTERM, False)
        self.fake.advance(60)
        self.assertNoResult(code)
        self.assertEqual(self.listed(), ["web1"])
        self.assertEqual(self.ended(code, 3 << 8), 3)

    def deregistered(self, status: int, *signals: int, typed: bool = False) -> tuple[int, bool]:
        code = self.wrapper("--deregister")
        for number in signals:
            self.wrapped.signalled(number, typed)
        result = self.ended(code, status)
        removed = self.eventTypes()[-1] == "service.remove"
        if not removed:
            self.fake.advance(11)
        return result, removed

    def test_deregistersAnOrderlyEnd(self) -> None:
        """An exit code of 0, or the end by a signal that was forwarded, as a wait status or as an exit code."""
        self.assertEqual(self.deregistered(0), (0, True))
        self.assertEqual(self.deregistered(DIED_OF_TERM, signal.SIGTERM), (143, True))
        self.assertEqual(self.deregistered(EXITED_143, signal.SIGTERM), (143, True))
        self.assertEqual(self.deregistered(signal.SIGINT, signal.SIGINT, typed=True), (130, True))

    def test_expiresAfterAnyOtherEnd(self) -> None:
        """After a failure, or a signal from elsewhere, the service expires."""
        self.assertEqual(self.deregistered(ENDED_WITH_1), (1, False))
        self.assertEqual(self.deregistered(DIED_OF_TERM), (143, False))
        self.assertEqual(self.deregistered(signal.SIGKILL, signal.SIGTERM), (137, False))
        self.assertEqual(self.deregistered(ENDED_WITH_1, signal.SIGHUP), (1, False))

    def test_deregisteringIsBounded(self) -> None:
        """A registry that does not answer delays the end by three seconds at most."""
        code: Any = self.wrapper("--deregister")
        self.fake.partition()
        self.running().ended.callback(0)
        self.fake.advance(2.5)
        self.assertNoResult(code)
        self.fake.advance(1)
        self.assertEqual(self.successResultOf(code), 0)
