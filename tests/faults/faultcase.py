"""
What the rows of the fault table have in common: their length, and how they tell what they measured.
"""

from __future__ import annotations

import json
import os

from tests.processes import ProcessTestCase

__all__ = ["FIGURES", "FULL", "FaultCase", "Figures"]

#: Set in the environment when the rows run at full length.
FULL = "FAULTS_FULL"
#: Names, in the environment, the file that figures are added to: a line of JSON each.
FIGURES = "FAULTS_FIGURES"


class Figures:
    """
    Mixed into the test cases that are rows, with or without processes.

    :cvar row: the row's number in the table.
    :cvar fault: what is done, for the table.
    """

    row: int
    fault: str

    @property
    def isFull(self) -> bool:
        """Whether this run is at full length."""
        return FULL in os.environ

    def tell(self, what: str, figure: object) -> None:
        """Keep a figure for the table, if one is being made: *what* was counted or measured, with its unit."""
        path = os.environ.get(FIGURES)
        if path:
            line = {"row": self.row, "fault": self.fault, "what": what, "figure": figure}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


class FaultCase(Figures, ProcessTestCase):
    """A row that runs processes."""

    # Of one test at full length, in seconds. What hangs is found out by each step's own patience.
    timeout = 1800.0
