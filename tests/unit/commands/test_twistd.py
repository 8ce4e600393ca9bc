"""The common parts of the twistd commands."""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.twistd import collectSeldom


class GarbageTests(SynchronousTestCase):
    """Python's garbage collection in a process that serves requests."""

    def setUp(self) -> None:
        self.addCleanup(gc.set_threshold, *gc.get_threshold())

    def test_collectsLessOften(self) -> None:
        """The youngest generation is collected less often; the thresholds of the others do not change."""
        gc.set_threshold(700, 10, 5)
        collectSeldom()
        self.assertEqual(gc.get_threshold(), (20_000, 10, 5))

    def test_keepsOtherThresholds(self) -> None:
        """A higher threshold, or none, is not changed."""
        for young in (100_000, 0):
            gc.set_threshold(young, 10, 10)
            collectSeldom()
            self.assertEqual(gc.get_threshold(), (young, 10, 10))
