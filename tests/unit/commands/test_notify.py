"""Notifications of the service manager: what is sent, and when the watchdog gets a sign of life."""

from __future__ import annotations

import os
import socket

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.twistd import Notifier


class NotifyTests(SynchronousTestCase):
    """A socket in the place of the service manager's."""

    def setUp(self) -> None:
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.addCleanup(self.manager.close)
        name = f"txserviceregistry-tests-notify-{os.getpid()}-{id(self)}"
        self.manager.bind(f"\0{name}")
        self.environ = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "6000000", "WATCHDOG_PID": str(os.getpid())}
        self.clock = Clock()

    def received(self) -> list[str]:
        """The messages received since the last time."""
        found = []
        while True:
            try:
                found.append(self.manager.recv(4096).decode())
            except BlockingIOError:
                return found

    def test_states(self) -> None:
        """States are the lines of one datagram."""
        Notifier(self.environ).send(b"READY=1", b"STATUS=ready")
        self.assertEqual(self.received(), ["READY=1\nSTATUS=ready"])

    def test_withoutAServiceManager(self) -> None:
        """Nothing happens."""
        notifier = Notifier({"WATCHDOG_USEC": "1000000"})
        notifier.send(b"READY=1")
        self.assertIsNone(notifier.watchdogSeconds)

    def test_aServiceManagerThatIsGone(self) -> None:
        """It is logged, and the process goes on."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]  # a function has the interface
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.manager.close()
        Notifier(self.environ).send(b"READY=1")
        self.assertEqual(lines, ["Service manager not notified: Connection refused"])

    def test_theWatchdogOfAnotherProcess(self) -> None:
        """A watchdog that is another process's, or off, or not a number, expects nothing of this one."""
        for changes in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}):
            self.assertIsNone(Notifier({**self.environ, **changes}).watchdogSeconds)
        self.assertEqual(Notifier(self.environ).watchdogSeconds, 6.0)

    def test_onlyWhileTheProcessWorks(self) -> None:
        """The watchdog gets a sign three times within its time, none while the check fails or hangs, and none after."""
        answer: Deferred[bool] = succeed(True)
        watchdog = Notifier(self.environ)
        watchdog.watch(self.clock, lambda: answer)
        self.clock.pump([1.0] * 12)
        self.assertEqual(self.received(), ["WATCHDOG=1"] * 7)
        for silent in (succeed(False), Deferred[bool]()):
            answer = silent
            self.clock.pump([1.0] * 12)
            self.assertEqual(self.received(), [])
        watchdog.stop()
        answer.callback(True)
        self.clock.pump([1.0] * 12)
        self.assertEqual((self.received(), self.clock.getDelayedCalls()), ([], []))
