"""
Locks between real processes.
"""

from __future__ import annotations

import os
import sys

from tests import ROOT
from tests.system.processes import ProcessTestCase


class RoundsTests(ProcessTestCase):
    """Holders that are killed, stopped and ended, and a registry that is killed."""

    async def test_oneHolderAtATime(self) -> None:
        """Four rounds of ``python -m tests.system.coordination.rounds``, one of each kind."""
        rounds = self.spawn(
            os.path.basename(sys.executable),
            "-m",
            "tests.system.coordination.rounds",
            "--rounds=4",
            environment={"PYTHONPATH": str(ROOT)},
        )
        await rounds.ended
        self.assertEqual(rounds.exitCode, 0, rounds.errors)
        self.assertIn("one at a time", rounds.output)
