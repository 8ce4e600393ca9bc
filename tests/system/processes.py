"""
Real child processes for tests: started with nothing of this machine's settings, watched for what they print, and
never left behind.
"""

from __future__ import annotations

import atexit
import codecs
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cache
from signal import Signals
from typing import Any, TypeVar

from twisted.internet import reactor as globalReactor
from twisted.internet.defer import Deferred, DeferredSemaphore, TimeoutError, gatherResults
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.inprocess import withoutSettings
from tests.system import forked
from txserviceregistry import Client
from txserviceregistry.settings import readSettings
from txserviceregistry.util.deferred import returnsDeferred, waitFor

# Far more than anything here takes; a test that waits for it has failed.
PATIENCE = 60.0
# A process that SIGTERM does not end within so many seconds is killed.
GRACE = 6.0
reactor: Any = globalReactor
_T = TypeVar("_T")


def isCrowded() -> bool:
    """
    Whether this machine has much else to do. A process may then wait for seconds until it runs, so a long time says
    nothing about this project.
    """
    return os.getloadavg()[0] >= 2 * (os.cpu_count() or 1)


class Child(ProcessProtocol):
    """A child process: what it has printed so far, and how it ended."""

    def __init__(self) -> None:
        self.output = ""
        self.errors = ""
        self._exited: Deferred[Child] = Deferred()
        self._ended: Deferred[Child] = Deferred()
        # A read may end within a character.
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(2)]
        self.exitCode: int | None = None
        self.signal: int | None = None
        self.running = True
        self._waiting: list[tuple[str, Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        """See ProcessProtocol."""
        self.output += self._decoders[0].decode(data)
        self._look()

    def errReceived(self, data: bytes) -> None:
        """See ProcessProtocol."""
        self.errors += self._decoders[1].decode(data)
        self._look()

    def processExited(self, reason: Failure) -> None:
        """See ProcessProtocol."""
        self._exited.callback(self)

    def processEnded(self, reason: Failure) -> None:
        """See ProcessProtocol."""
        self.running = False
        self.exitCode = reason.value.exitCode  # type: ignore[attr-defined]  # ProcessDone or ProcessTerminated
        self.signal = reason.value.signal  # type: ignore[attr-defined]  # as above
        waiting, self._waiting = self._waiting, []
        for text, waiter in waiting:
            waiter.errback(AssertionError(f"ended before it said {text!r}:\n{self.output}\n{self.errors}"))
        self._ended.callback(self)

    @property
    def exited(self) -> Deferred[Child]:
        """Wait until the process has ended; others may have its streams."""
        return waitFor(self._exited)

    @property
    def ended(self) -> Deferred[Child]:
        """Wait until the process has ended, and its streams."""
        return waitFor(self._ended)

    def says(self, text: str) -> Deferred[None]:
        """Wait until *text* has been printed; fails if the process ends before."""
        waiter: Deferred[None] = Deferred()
        self._waiting.append((text, waiter))
        self._look()

        def tooLate(result: object, seconds: float) -> None:
            self._waiting.remove((text, waiter))
            raise AssertionError(f"did not say {text!r} within {seconds} s:\n{self.output}\n{self.errors}")

        return waiter.addTimeout(PATIENCE, reactor, onTimeoutCancel=tooLate)

    def kill(self, signal: str) -> None:
        """Send a signal (``TERM``, ``KILL``, …); a process that has ended already takes none."""
        try:
            self.transport.signalProcess(Signals[f"SIG{signal}"].value)  # type: ignore[union-attr]  # IProcessTransport
        except ProcessExitedAlready:
            pass

    def _look(self) -> None:
        for text, waiter in list(self._waiting):
            if text in self.output or text in self.errors:
                self._waiting.remove((text, waiter))
                waiter.callback(None)


@cache
def sharedRegistry() -> dict[str, str]:
    """
    The environment in which programs find a registry that all tests of a run share: for those that look at programs
    beside a registry that is simply there. It is started when first asked for, and ends with the run.
    """
    home = tempfile.mkdtemp()
    program = os.path.join(os.path.dirname(sys.executable), "twistd")
    command = [program, "-n", "--pidfile=", "--logfile=/dev/null", "service-registry", "--store=memory"]
    registry = subprocess.Popen(
        [*command, "--listen=tcp:0:interface=127.0.0.1"],
        env={**withoutSettings(), "RAXSR_DATA_DIR": home},
        cwd=home,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        registry.terminate()
        registry.communicate()
        shutil.rmtree(home)

    atexit.register(end)
    assert registry.stdout is not None
    registry.stdout.readline()
    return {"RAXSR_RAXRC": os.path.join(home, "raxrc")}


@returnsDeferred
async def together(works: Iterable[Coroutine[Any, Any, _T]], atOnce: int = 4) -> list[_T]:
    """The results of several coroutines that each wait for a process, a few at once."""
    places = DeferredSemaphore(atOnce)
    return await gatherResults([places.run(Deferred.fromCoroutine, work) for work in works], consumeErrors=True)


class ProcessTestCase(TestCase):
    """A test case with a home of its own, whose child processes end with it."""

    # Each step has its own timeout, which finds what hangs.
    timeout = 10 * PATIENCE

    def setUp(self) -> None:
        self.home = os.path.abspath(self.mktemp())
        os.makedirs(self.home)
        self.dataDir = os.path.join(self.home, "state", "txserviceregistry")
        self.children: list[Child] = []
        self.addCleanup(self._endAll)

    async def _end(self) -> None:
        # The last started process goes first: an agent that its registry leaves waits for it in vain.
        for child in reversed(self.children):
            if not child.running:
                continue
            child.kill("CONT")
            child.kill("TERM")
            try:
                await child.ended.addTimeout(GRACE, reactor)
            except TimeoutError:
                child.kill("KILL")
                await child.ended

    def _endAll(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._end())

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Ours, without settings, and with a home that is empty at first."""
        return {
            **withoutSettings(),
            "HOME": self.home,
            "XDG_STATE_HOME": os.path.join(self.home, "state"),
            **(extra or {}),
        }

    def spawn(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        child: Child | None = None,
        usePTY: bool = False,
    ) -> Child:
        """Start a program out of this Python's own folder, perhaps on a terminal; *child* watches it."""
        command = [os.path.join(os.path.dirname(sys.executable), program), *arguments]
        if program == "twistd" and "COVERAGE_PROCESS_START" in os.environ:
            command[:1] = [sys.executable, os.path.join(os.path.dirname(__file__), "coveredtwistd.py")]
        child = child or Child()
        complete = self.environment(environment)
        if not usePTY and forked.isPossible(command, complete):
            forked.ForkedProcess(child, command, complete, self.home)
        else:
            IReactorProcess(reactor).spawnProcess(
                child, command[0], command, env=complete, path=self.home, usePTY=usePTY
            )
        self.children.append(child)
        return child

    def twistd(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        """Start ``twistd -n --pidfile= …``."""
        return self.spawn("twistd", "-n", "--pidfile=", *arguments, environment=environment)

    def client(self, **options: Any) -> Client:
        """A client of the registry over this test's data directory; closed with the test."""
        settings = readSettings(environ={"HOME": self.home, "RAXSR_DATA_DIR": self.dataDir})
        client = Client(reactor=reactor, settings=settings, **options)
        self.addCleanup(client.close)
        return client

    async def until(self, condition: Callable[[], Any], interval: float = 0.05) -> Any:
        """Ask *condition* (a function that returns an awaitable) until it is true; its value."""
        clock: IReactorTime = reactor
        end = clock.seconds() + PATIENCE
        while True:
            value = await condition()
            if value:
                return value
            if clock.seconds() > end:
                raise AssertionError("the condition did not come true")
            await deferLater(clock, interval, lambda: None)

    def assertNoTraceback(self, children: Sequence[Child] | None = None) -> None:
        """None of the processes has printed a traceback."""
        for child in self.children if children is None else children:
            self.assertNotIn("Traceback", child.output + child.errors)
