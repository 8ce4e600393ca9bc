"""
The console script: what can go wrong before there is a command line to speak of.
"""

from __future__ import annotations

import sys

from ..._version import installCommand
from ..console import runConsole


def main() -> int:
    """
    Run ``raxsr`` with the arguments of this process.

    :return: the exit code: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C, 141 when nobody reads the output.
    """
    return runConsole("raxsr", _run)


def _run() -> int:
    try:
        from .app import Raxsr
    except ImportError as error:
        if (error.name or "").startswith("txserviceregistry"):
            raise
        print(
            f"raxsr needs the extra 'cli', and {error.name or 'a part of it'} is not installed: "
            + installCommand("cli"),
            file=sys.stderr,
        )
        return 1
    return Raxsr().run(sys.argv[1:])
