"""
Some random programs, the same each time, over each kind of store; ``python -m tests.system.fuzz.programs`` runs
thousands.
"""

from twisted.trial.unittest import SynchronousTestCase

from tests.system.fuzz.nodes import BACKINGS
from tests.system.fuzz.programs import machine, run


class ProgramTests(SynchronousTestCase):
    """A registry answers as the model of the API does."""

    def test_memory(self):
        """Over the memory store there is no difference."""
        run(machine(BACKINGS["memory"]), 30, None, steps=30)

    def test_sqlite(self):
        """Over the SQLite store there is no difference."""
        run(machine(BACKINGS["sqlite"]), 15, None, steps=30)
