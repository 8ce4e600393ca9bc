"""Finding the program of a command, and exit codes, without a process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.commands.wrapper.process import CantStart, exitCode, findProgram


class ProcessTests(SynchronousTestCase):
    """As a shell does it."""

    def test_programsThatCantBeFound(self) -> None:
        """The exit code is 127 if there is none, and 126 if it can't be run."""
        plain = Path(self.mktemp()).absolute()
        plain.write_text("echo\n")
        plain.chmod(0o644)
        self.assertTrue(os.access(findProgram("sh"), os.X_OK))
        for word, code in (
            ("no-such-program", 127),
            ("/no/such/program", 127),
            ("", 127),
            (str(plain), 126),
            ("/", 126),
        ):
            self.assertEqual(self.assertRaises(CantStart, findProgram, word).exitCode, code, word)

    def test_exitCodes(self) -> None:
        """The process's own, or 128 + N after signal N."""
        for status, code in ((0, 0), (7 << 8, 7), (255 << 8, 255), (signal.SIGSEGV, 139), (signal.SIGTERM, 143)):
            self.assertEqual(exitCode(status), code)
