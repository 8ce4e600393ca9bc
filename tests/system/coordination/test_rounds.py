"""
Locks between real processes.
"""

from __future__ import annotations

import os
import sys

from tests import ROOT
from tests.needs import needs
from tests.system.processes import ProcessTestCase

#: How many rounds there are for each store; the CI asks for more.
_ROUNDS = int(os.environ.get("LOCK_ROUNDS", "3"))


class RoundsTests(ProcessTestCase):
    """Holders that are killed, stopped, cut off and ended, registries that are killed, and clocks that step."""

    async def rounds(self, store: str) -> None:
        rounds = self.spawn(
            os.path.basename(sys.executable),
            "-m",
            "tests.system.coordination.rounds",
            f"--rounds={_ROUNDS}",
            f"--store={store}",
            environment={"PYTHONPATH": str(ROOT)},
        )
        await rounds.ended
        self.assertEqual(rounds.exitCode, 0, rounds.errors)
        self.assertIn("one at a time", rounds.output)

    def setUp(self) -> None:
        super().setUp()
        needs("etcd", "faketime")

    async def test_sqlite(self) -> None:
        """One holder at a time, over a registry with a file."""
        await self.rounds("sqlite")

    async def test_memory(self) -> None:
        """One holder at a time, over a registry that loses its data and then gives no locks for a while."""
        await self.rounds("memory")

    async def test_cluster(self) -> None:
        """One holder at a time, over three registries and three members of etcd."""
        await self.rounds("etcd")
