"""For tests of what is left to Python's collector."""

from __future__ import annotations

import gc

from twisted.trial.unittest import SynchronousTestCase


def collectOnlyNew(case: SynchronousTestCase) -> None:
    """Until the test is over, collections look at nothing that was there before: that would take most of their time."""
    gc.freeze()
    case.addCleanup(gc.unfreeze)
