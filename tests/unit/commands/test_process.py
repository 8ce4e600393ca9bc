"""What the processes have in common."""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.process import collectSeldom


class GarbageTests(SynchronousTestCase):
    """How often Python looks for garbage in a process that serves."""

    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())

    def test_looksLessOften(self) -> None:
        """It looks after more new objects than usual, and as seldom as before at those that have been there longer."""
        gc.set_threshold(700, 10, 5)
        collectSeldom()
        self.assertEqual(gc.get_threshold(), (50_000, 10, 5))

    def test_leavesWhatIsSetOtherwise(self) -> None:
        """Who has it look even less often, or not at all, knows why."""
        for young in (100_000, 0):
            gc.set_threshold(young, 10, 10)
            collectSeldom()
            self.assertEqual(gc.get_threshold(), (young, 10, 10))
