"""
Running the installed ``raxsr`` beside a real registry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from twisted.internet.utils import getProcessOutputAndValue

from tests.inprocess import Ended
from tests.system.processes import Child, ProcessTestCase, sharedRegistry
from tests.unit.commands.raxsr.raxsrcase import Commands

RAXSR = os.path.join(os.path.dirname(sys.executable), "raxsr")


class RaxsrProcessTestCase(Commands, ProcessTestCase):
    """Commands as processes, beside the shared registry."""

    def setUp(self) -> None:
        super().setUp()
        self.settings = dict(sharedRegistry())

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """See :class:`ProcessTestCase`."""
        return super().environment({**self.settings, "TZ": "Asia/Kolkata", **(extra or {})})

    async def ran(self, words: Sequence[str], stdin: bytes | None, environment: Mapping[str, str]) -> Ended:
        """See :class:`Commands`."""
        try:
            out, err, code = await getProcessOutputAndValue(
                RAXSR, words, env=self.environment(environment), path=self.home, stdinBytes=stdin
            )
        except Exception as error:
            out, err, number = error.args
            code = -number
        return Ended(out.decode(), err.decode(), code)

    def started(self, *words: str) -> Child:
        """A command that goes on until it is ended."""
        return self.spawn("raxsr", *words)
