"""``--only-leader``: the command runs on one host at a time."""

from __future__ import annotations

import signal

from txserviceregistry.coordination import Held, Lock

from .test_main import WrapperCase

NAME = "/tests/leader"
ONLY = f"--only-leader={NAME}"


class LeadingTests(WrapperCase):
    """The wrapper and another holder of its lock."""

    def hold(self) -> Held:
        acquired = Lock(self.other, NAME, 10, "another host").acquire(0)
        self.fake.advance(0.01)
        held: Held = self.successResultOf(acquired)
        return held

    def test_waitsForTheLock(self) -> None:
        """The command is registered and started when the lock is free, and the lock is released after its end."""
        held = self.hold()
        code = self.wrapper(ONLY)
        self.fake.advance(100)
        self.assertEqual((self.child, self.listed()), (None, []))
        held.release()
        self.fake.advance(0.1)
        self.assertEqual((self.running().signals, self.listed()), ([], ["web1"]))
        self.fake.advance(60)
        self.assertEqual(self.running().signals, [])
        self.assertEqual(self.ended(code, 7 << 8), 7)
        self.assertTrue(self.hold().isValid)

    def test_aLossEndsTheCommand(self) -> None:
        """When the lock is lost, the command gets SIGTERM, and SIGKILL before another host can run it."""
        code = self.wrapper(ONLY)
        self.fake.advance(1)
        self.fake.partition()
        began = self.fake.clock.seconds()
        while not self.running().signals:
            self.fake.advance(0.25)
        self.fake.advance(1)
        self.assertEqual(self.running().signals, [signal.SIGTERM, signal.SIGKILL])
        self.assertLess(self.fake.clock.seconds(), began + 15)
        self.assertIn("leadership lost: no heartbeat was answered in time", self.said[-1])
        self.running().ended.callback(signal.SIGKILL)
        self.fake.advance(5)
        self.assertEqual(self.successResultOf(code), 100)

    def test_aSignalEndsTheWait(self) -> None:
        """A signal while it waits for the lock ends it, and nothing is started."""
        self.hold()
        code = self.wrapper(ONLY)
        self.fake.advance(1)
        self.wrapped.signalled(signal.SIGTERM, False)
        self.fake.advance(0.1)
        self.assertEqual((self.successResultOf(code), self.child), (143, None))

    def test_aNameThatIsNotValid(self) -> None:
        """A name that no lock can have ends it, with the reason."""
        code = self.wrapper("--only-leader=/x")
        self.fake.advance(1)
        self.assertEqual((self.successResultOf(code), self.child), (100, None))
        self.assertIn("name", self.said[-1])
        self.assertIn("The command is not started (--only-leader)", self.said[-1])
